"""Files as DeepFaceLab writes them: JPEGs with metadata, and packs. Python's own pickle writes them."""

from __future__ import annotations

import enum
import pickle
import struct
import sys
import types
from pathlib import Path

import cv2
import numpy as np

from tests.faces.face_samples import a_face, a_picture


def dfl_jpeg(landmarks: np.ndarray, edge: int = 160, seed: int = 0, protocol: int = 4, **metadata) -> bytes:
    """An aligned JPEG. metadata: entries beside the landmarks."""
    _, encoded = cv2.imencode(".jpg", a_picture(edge, edge, seed))
    table = {"face_type": "whole_face", "landmarks": landmarks.tolist(), "source_filename": "00001.png", **metadata}
    return with_segment(encoded.tobytes(), pickle.dumps(table, protocol))


def with_segment(jpeg: bytes, content: bytes) -> bytes:
    """The JPEG with a segment APP15 behind its APP0."""
    end = 4 + struct.unpack(">H", jpeg[4:6])[0]
    return jpeg[:end] + b"\xff\xef" + struct.pack(">H", len(content) + 2) + content + jpeg[end:]


def a_face_in(edge: int, degrees: float = 0.0) -> np.ndarray:
    """(68, 2): a face in the middle of an aligned picture."""
    return a_face(edge * 0.4, (edge * 0.3, edge * 0.3), degrees)


def xseg_mask(landmarks: np.ndarray, edge: int, size: int) -> np.ndarray:
    """The bytes of an encoded mask of ``size`` px of a picture of ``edge`` px, (n, 1) uint8."""
    mask = np.zeros((size, size), np.uint8)
    points = (landmarks * (size / edge)).astype(np.int32)
    cv2.fillConvexPoly(mask, cv2.convexHull(points), 255)
    return cv2.imencode(".png", mask)[1].reshape(-1, 1)


def write_pack(path: Path, faces: dict[str, bytes], person: str | None = None, absolute_last: bool = True) -> Path:
    """A pack of faces. Its list holds members of two enumerations, as DeepFaceLab's does."""
    with _enumerations() as (sample_type, face_type):
        listed = [
            {
                "sample_type": sample_type(1),
                "filename": name,
                "face_type": face_type(3),
                "shape": (160, 160, 3),
                "landmarks": a_face_in(160).tolist(),
                "seg_ie_polys": {"polys": [{"type": 1, "pts": np.ones((3, 2), np.float32)}]},
                "xseg_mask_compressed": np.ones((9, 1), np.uint8),
                "person_name": person,
            }
            for name in faces
        ]
        pickled = pickle.dumps(listed, 4)
    offsets = np.cumsum([0, *map(len, faces.values())], dtype="<u8")
    head = struct.pack("<QQ", 1, len(pickled)) + pickled
    if absolute_last:
        offsets[-1] += np.uint64(len(head) + offsets.nbytes)
    path.write_bytes(head + offsets.tobytes() + b"".join(faces.values()))
    return path


class _enumerations:
    """Two enumerations under the names that a pack has them by, while it is written."""

    def __enter__(self) -> tuple[type[enum.IntEnum], type[enum.IntEnum]]:
        kinds = []
        for module, name in (("samplelib.Sample", "SampleType"), ("facelib.FaceType", "FaceType")):
            kind = enum.IntEnum(name, {"ONE": 1, "THREE": 3}, module=module)
            sys.modules[module.partition(".")[0]] = types.ModuleType(module.partition(".")[0])
            sys.modules[module] = types.ModuleType(module)
            setattr(sys.modules[module], name, kind)
            kinds.append(kind)
        return kinds[0], kinds[1]

    def __exit__(self, *_: object) -> None:
        for module in ("samplelib.Sample", "facelib.FaceType", "samplelib", "facelib"):
            del sys.modules[module]
