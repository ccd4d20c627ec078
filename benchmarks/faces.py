"""Benchmark data: faceswap-style head PNGs of made-up faces, with a header of the usual size."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from swapfast.batch import SIDES
from swapfast.faces.crop import sample_square
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.png import write_header
from swapfast.faces.record import FaceRecord
from swapfast.synthetic import synthesize

AGE_S = 3600  # a file of this second is read anew by the next scan, whatever the index says
MASKS = {"bisenet-fp_face": "face", "bisenet-fp_head": "head", "unet-dfl": "legacy"}


def head_png(record: FaceRecord, size: int, rng: np.random.Generator) -> bytes:
    """The head crop of a plain picture as faceswap's extract writes it, some 20 kB of header included."""
    head = sample_square(read_image(record.path), record.alignment.matrix(size, "head", whole_padding=True), size)
    # Noise of a photograph's strength: a drawing's PNG would be too small and too quick to decode.
    head = np.clip(head + rng.normal(0, 2, head.shape), 0, 255).astype(np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    cv2.ellipse(mask, (64, 64), (40 + int(rng.integers(8)), 52), 0, 0, 360, 255, -1, cv2.LINE_AA)
    compressed_mask = zlib.compress(cv2.GaussianBlur(mask, (0, 0), 2).tobytes())
    matrix = record.alignment.matrix(128, "face").tolist()
    payload = {
        "alignments": {
            "x": 0,
            "y": 0,
            "w": size,
            "h": size,
            "landmarks_xy": record.landmarks.astype(float).tolist(),
            "mask": {
                name: {
                    "mask": compressed_mask,
                    "affine_matrix": matrix,
                    "interpolator": 3,
                    "stored_size": 128,
                    "stored_centering": centering,
                }
                for name, centering in MASKS.items()
            },
            "identity": {"vggface2": rng.normal(size=512).tolist()},
        },
        "source": {
            "alignments_version": 2.4,
            "original_filename": record.path.name,
            "face_index": 0,
            "source_filename": "made_up.mp4",
            "source_is_video": True,
            "source_frame_dims": (record.height, record.width),
        },
    }
    return write_header(cv2.imencode(".png", head)[1].tobytes(), payload)


@contextmanager
def head_folders(faces: int, size: int = 512, seed: int = 1) -> Iterator[list[Path]]:
    """Two temporary folders of ``faces`` head PNGs each."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "made"
        synthesize(source, faces=faces, size=256, pairs=0, seed=seed)
        rng = np.random.default_rng(seed)
        folders = []
        for side in SIDES:
            folder = Path(temporary) / side
            folder.mkdir()
            for record in scan_folder(source / side).records:
                picture = folder / record.path.name
                picture.write_bytes(head_png(record, size, rng))
                os.utime(picture, times=(picture.stat().st_mtime - AGE_S,) * 2)
            scan_folder(folder).require_all_good()
            folders.append(folder)
        yield folders


def link_faces(pictures: list[Path], folder: Path, count: int) -> Path:
    """A folder of ``count`` files, each of which is one of the pictures."""
    folder.mkdir()
    for number in range(count):
        os.link(pictures[number % len(pictures)], folder / f"made_up_{number:06d}_0.png")
    return folder
