"""Small faces, pictures and files to test with, made here."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import cv2
import numpy as np

from swapfast.config import CropConfig, MaskConfig
from swapfast.faces.alignment import mean_face
from swapfast.faces.crop import crop_matrix, crop_shares
from swapfast.faces.masks import dilate, draw_face, feature_mask
from swapfast.faces.png import write_header
from swapfast.faces.record import FaceRecord
from swapfast.points import transform_points


def a_face(scale: float = 100.0, shift=(150.0, 120.0), degrees: float = 0.0) -> np.ndarray:
    """(68, 2) float32: the mean face with a jaw, inner 51 points ``scale`` px wide, within about 400 px."""
    angle = np.linspace(np.pi, 0, 17)
    jaw = np.stack([0.5 + 0.62 * np.cos(angle), 0.25 + 0.98 * np.sin(angle)], axis=1)
    points = (np.concatenate([jaw, mean_face().flat]) - 0.5) * scale
    turn = np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return (points @ matrix.T + 0.5 * scale + shift).astype(np.float32)


def a_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: coloured blobs with some grain, so that any misplaced pixel shows."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (max(height // 12, 2), max(width // 12, 2), 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def png_bytes(picture: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".png", picture)
    assert ok
    return data.tobytes()


def a_payload(landmarks: np.ndarray, **masks) -> dict:
    """The dictionary of a faceswap 2.4 header."""
    return {
        "alignments": {
            "x": 1,
            "y": 2,
            "w": 3,
            "h": 4,
            "landmarks_xy": landmarks.astype(float).tolist(),
            "mask": masks,
            "identity": {"vggface2": [0.25, -1.5e-3]},
        },
        "source": {
            "alignments_version": 2.4,
            "original_filename": "frame_0.png",
            "face_index": 0,
            "source_filename": "frame.mp4",
            "source_is_video": True,
            "source_frame_dims": (720, 1280),
        },
    }


def a_stored_mask(size: int = 64, centering: str = "face", seed: int = 0) -> dict:
    soft = cv2.GaussianBlur(
        np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8), (0, 0), size / 10
    )
    return {
        "mask": zlib.compress(np.ascontiguousarray((soft > soft.mean()) * np.uint8(255))),
        "affine_matrix": [[0.2, 0.0, 1.0], [0.0, 0.2, 2.0]],
        "interpolator": 3,
        "stored_size": size,
        "stored_centering": centering,
    }


def write_head(path: Path, edge: int = 64, payload: dict | None = None, seed: int = 0) -> Path:
    payload = payload or a_payload(a_face(), **{"bisenet-fp_face": a_stored_mask()})
    path.write_bytes(write_header(png_bytes(a_picture(edge, edge, seed)), payload))
    return path


def peer_matrix(record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """(2, 3): frame px -> crop px by which the peer moves landmarks: padding of whole px, whatever the pixels do."""
    return record.alignment.matrix(size, crop.centering, *crop_shares(crop), whole_padding=True)


def as_the_peer(points: np.ndarray, record: FaceRecord, crop: CropConfig, size: int) -> np.ndarray:
    """Our points on a crop, where the peer has them: moved by the exactly known difference of the two maps."""
    ours, theirs = (
        np.vstack([m, (0, 0, 1)]) for m in (crop_matrix(record, crop, size), peer_matrix(record, crop, size))
    )
    return transform_points((theirs @ np.linalg.inv(ours))[:2], points)


def drawn_mask(points: np.ndarray, mask: MaskConfig, size: int, name: str) -> np.ndarray:
    """(size, size): the face mask drawn from the points, or the eye or mouth mask."""
    points = points.astype(np.float32)
    if name in ("eye", "mouth"):
        return feature_mask(points, size, name)
    return dilate(draw_face(points, size, extended=mask.mask_type == "extended"), mask.dilation)


def write_plain(
    path: Path, picture: np.ndarray, landmarks: np.ndarray, mask: np.ndarray | None = None, **extra
) -> Path:
    """A picture with its json, and its mask where there is one."""
    assert cv2.imwrite(str(path), picture)
    if mask is not None:
        cv2.imwrite(str(path.with_name(f"{path.stem}_mask.png")), mask)
    described = {"image": path.name, "landmarks": landmarks.astype(float).tolist(), **extra}
    path.with_suffix(".json").write_text(json.dumps(described))
    return path


def area_weights(t: int, size: int) -> np.ndarray:
    """(size, t) float64: how much of each input pixel each output pixel covers, on one axis."""
    edges = np.arange(size + 1) * t / size
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(t)
    return np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None) * size / t


def exact_window(picture: np.ndarray, x0: float, y0: float, edge: float, size: int) -> np.ndarray:
    """(size, size, C) float64: the exact means over a square that need not lie on whole px; inside the picture."""

    def weights(first: float, count: int) -> np.ndarray:
        edges = first + np.arange(size + 1) * edge / size
        low, high, pixel = edges[:-1, None], edges[1:, None], np.arange(count)
        return np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None) * size / edge

    rows, columns = weights(y0, picture.shape[0]), weights(x0, picture.shape[1])
    return np.einsum("iy,jx,yxc->ijc", rows, columns, picture.astype(float), optimize=True)


def exact_crop(picture: np.ndarray, window: tuple[int, int, int], size: int) -> np.ndarray:
    """Border repeated, then every output pixel the exact mean of what it covers, in float64. Only shrinks."""
    x0, y0, t = window
    assert t >= size
    far = t + abs(x0) + abs(y0)
    wide = np.pad(picture.astype(float), ((far, far), (far, far), (0, 0)), mode="edge")
    square = wide[y0 + far : y0 + far + t, x0 + far : x0 + far + t]
    weights = area_weights(t, size)
    return np.einsum("iy,jx,yxc->ijc", weights, weights, square, optimize=True)


def corrected(theirs: np.ndarray, picture: np.ndarray, window: tuple[int, int, int]) -> np.ndarray:
    """float64: faceswap's patch, and where its black from outside the head shines in, what it should have been."""
    (x0, y0, t), size, edge = window, theirs.shape[0], picture.shape[0]
    if x0 >= 0 and y0 >= 0 and max(x0, y0) + t <= edge:
        return theirs.astype(float)
    assert t >= size, "no exact expectation for a patch that both grows and leaves the head"
    head = np.zeros((t, t), np.uint8)
    head[max(-y0, 0) : max(edge - y0, 0), max(-x0, 0) : max(edge - x0, 0)] = 255
    seen = cv2.resize(head, (size, size), interpolation=cv2.INTER_AREA) == 255
    return np.where(seen[..., None], theirs, exact_crop(picture, window, size))
