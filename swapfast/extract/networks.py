"""Runs the two network files by OpenCV: a face detector and a 468-point mesh.

    frame       (H, W, 3) uint8 BGR
    detection   (17,) float64: score, box x0 y0 x1 y1, six points (eyes, nose, mouth, ears), px of the frame
    mesh        (468, 2) float64, px of the frame
Networks hold the state of a forward pass: each thread has its own.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.extract.landmark_map import MESH_POINTS
from swapfast.extract.model_files import DETECTOR, MESH
from swapfast.points import transform_points

DETECTOR_EDGE, MESH_EDGE = 128, 192  # px of the networks' inputs
LEAST_SCORE = 0.5
# Outer corners of the eyes in the mesh, left to right in the picture: they tell its roll.
EYE_CORNERS = (33, 263)
_REGION = 1.5  # edge of what the mesh network sees over the face's larger extent
_SAME = 0.3  # two detections of one face: intersection over union
_WITHIN = 0.7  # or intersection over the smaller box
_MARGIN = 0.02  # of a tile's edge, by which a whole face may reach out of it
_OVERLAP, _STEP = 1.25, 0.7  # a tile's edge over that of tiles side by side; from one to the next at most, in edges


def _read_network(content: bytes, name: str) -> Any:
    """Return a network. OpenCV 5's new engine drops all outputs of the detector but one: the classic one keeps them.

    Only where it reads a file does OpenCV heed the choice, so the checked content goes through one.
    """
    engine = getattr(cv2.dnn, "ENGINE_CLASSIC", None)
    try:
        with tempfile.TemporaryDirectory(prefix="swapfast-") as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            return cv2.dnn.readNetFromTFLite(str(path), *([] if engine is None else [engine]))
    except (cv2.error, AttributeError) as error:
        raise SwapfastError(
            f"{name}: OpenCV {cv2.__version__} cannot read it; install opencv-python of constraints.txt", EXIT_FAILED
        ) from error


def _anchors() -> np.ndarray:
    """Return the centres that the detector's outputs are relative to, (896, 2) shares of its input."""
    centres = []
    for cells, count in ((16, 2), (8, 6)):
        y, x = np.mgrid[:cells, :cells]
        grid = np.stack([(x + 0.5) / cells, (y + 0.5) / cells], axis=-1).reshape(-1, 2)
        centres.append(np.repeat(grid, count, axis=0))
    return np.concatenate(centres)


class Detector:
    """Finds faces in squares of a frame.

    levels: 1 is the whole frame, n are overlapping squares of 1/n of its longer edge. A face is found from about 0.2 of
    a square's edge on.
    """

    def __init__(self, models: Mapping[str, bytes]) -> None:
        self._network = _read_network(models[DETECTOR.name], DETECTOR.name)
        self._anchors = _anchors()

    def __call__(self, frame: np.ndarray, levels: Sequence[int] = (1,), turns: Sequence[int] = (0,)) -> np.ndarray:
        """Return the detections of a frame, best first, (n, 17). turns: quarter turns, anticlockwise, to look at."""
        detections = [np.zeros((0, 17))]
        for square, to_frame, window in _squares(frame, levels):
            for turn in turns:
                faces = self._in_square(np.ascontiguousarray(np.rot90(square, turn)))
                if len(faces):
                    faces = _moved(_turned_back(faces, turn), to_frame)
                    detections.append(faces if window is None else faces[_is_inside(faces, window)])
        return merge_detections(np.concatenate(detections))

    def _in_square(self, square: np.ndarray) -> np.ndarray:
        """Return the detections of an input of the network, (n, 17) in its px."""
        blob = cv2.dnn.blobFromImage(square, 1 / 127.5, square.shape[:2], (127.5,) * 3, swapRB=True)
        self._network.setInput(blob)
        first, second = (o.reshape(896, -1) for o in self._network.forward(["regressors", "classificators"]))
        regressors, logits = (first, second) if first.shape[1] == 16 else (second, first)
        scores = 1 / (1 + np.exp(-np.clip(logits[:, 0].astype(np.float64), -100, 100)))
        keep = scores > LEAST_SCORE
        values = regressors[keep].astype(np.float64) / DETECTOR_EDGE
        centres = self._anchors[keep]
        middle, half = values[:, :2] + centres, values[:, 2:4] / 2
        points = values[:, 4:].reshape(-1, 6, 2) + centres[:, None]
        places = np.concatenate([middle - half, middle + half, points.reshape(-1, 12)], axis=1) * DETECTOR_EDGE - 0.5
        return merge_detections(np.column_stack([scores[keep], places]))


def _squares(
    frame: np.ndarray, levels: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, float, float] | None]]:
    """Yield inputs of the detector: the square, its matrix px -> frame px (2, 3), and its window in the frame.

    The window, x0, y0 and edge, is None for the whole frame, whose faces may be cut off by its border.
    """
    height, width = frame.shape[:2]
    longer = max(width, height)
    for level in levels:
        if level == 1:
            yield _square(frame, 1, (width - longer) / 2, (height - longer) / 2, longer)
            continue
        edge = _OVERLAP * longer / level
        factor = 1 << max(0, int(math.log2(max(1.0, edge / DETECTOR_EDGE))))
        reduced = _reduced(frame, factor)
        for y in _places(height, edge):
            for x in _places(width, edge):
                square, matrix, _ = _square(reduced, factor, x, y, edge)
                yield square, matrix, (x, y, edge)


def _places(length: int, edge: float) -> list[float]:
    """Return where tiles of ``edge`` px begin along a side of the frame; one stands in the middle of a shorter side."""
    if edge >= length:
        return [(length - edge) / 2]
    return np.linspace(0, length - edge, math.ceil((length - edge) / (_STEP * edge)) + 1).tolist()


def _reduced(frame: np.ndarray, factor: int) -> np.ndarray:
    """Return a frame averaged over ``factor`` px; its border is repeated up to whole ones."""
    if factor == 1:
        return frame
    height, width = frame.shape[:2]
    bottom, right = -height % factor, -width % factor
    if bottom or right:
        frame = cv2.copyMakeBorder(frame, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    size = frame.shape[1] // factor, frame.shape[0] // factor
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _square(
    picture: np.ndarray, factor: int, x: float, y: float, edge: float
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float] | None]:
    """Return the square of a frame at (x, y) as an input of the detector, black outside it.

    picture: the frame reduced by ``factor``. x, y, edge: px of the frame, from its outer edges.
    """
    further = 1 << max(0, int(math.log2(max(1.0, edge / factor / DETECTOR_EDGE))))
    reduced = _reduced(picture, further)
    scale = DETECTOR_EDGE * factor * further / edge  # input px per px of ``reduced``
    shift = -np.array([x, y]) * DETECTOR_EDGE / edge + (scale - 1) / 2
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    square = cv2.warpAffine(reduced, matrix, (DETECTOR_EDGE, DETECTOR_EDGE), flags=cv2.INTER_LINEAR)
    back = edge / DETECTOR_EDGE
    to_frame = np.array([[back, 0, x + (back - 1) / 2], [0, back, y + (back - 1) / 2]])
    return square, to_frame, None


def _turned_back(faces: np.ndarray, turn: int) -> np.ndarray:
    """Return detections of a square that was turned by quarters, anticlockwise, in px of the unturned one."""
    points = faces[:, 1:].reshape(-1, 8, 2)
    for _ in range(turn % 4):
        points = np.stack([DETECTOR_EDGE - 1 - points[..., 1], points[..., 0]], axis=-1)
    return np.column_stack([faces[:, 0], _with_ordered_box(points)])


def _with_ordered_box(points: np.ndarray) -> np.ndarray:
    corners = points[:, :2]
    box = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    return np.concatenate([box, points[:, 2:].reshape(-1, 12)], axis=1)


def _moved(faces: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    points = transform_points(matrix, faces[:, 1:].reshape(-1, 8, 2))
    return np.column_stack([faces[:, 0], points.reshape(-1, 16)])


def _is_inside(faces: np.ndarray, window: tuple[float, float, float]) -> np.ndarray:
    """Return whether faces lie within a tile: one that its border cuts is found whole in another tile."""
    x, y, edge = window
    margin = _MARGIN * edge
    low, high = np.array([x, y]) - margin, np.array([x, y]) + edge + margin
    return np.all((faces[:, 1:3] > low) & (faces[:, 3:5] < high), axis=1)


def merge_detections(faces: np.ndarray) -> np.ndarray:
    """Return detections with those of one face merged into their mean, weighted by their scores, best first."""
    faces = faces[np.argsort(-faces[:, 0], kind="stable")]
    merged = []
    while len(faces):
        best = faces[0]
        low, high = np.maximum(best[1:3], faces[:, 1:3]), np.minimum(best[3:5], faces[:, 3:5])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        areas = np.prod(np.maximum(faces[:, 3:5] - faces[:, 1:3], 1e-9), axis=1)
        is_same = (shared / (areas + areas[0] - shared) > _SAME) | (shared / np.minimum(areas, areas[0]) > _WITHIN)
        is_same[0] = True
        alike = faces[is_same & (faces[:, 0] > best[0] - 0.2)]
        # Of one face seen in two turns the points are another's: those of the best alone count.
        alike = alike[_rolls_alike(alike, best)]
        mean = (alike * alike[:, :1]).sum(0) / alike[:, 0].sum()
        mean[0] = best[0]
        merged.append(mean)
        faces = faces[~is_same]
    return np.array(merged).reshape(-1, 17)


def _rolls_alike(faces: np.ndarray, best: np.ndarray) -> np.ndarray:
    across, reference = faces[:, 7:9] - faces[:, 5:7], best[7:9] - best[5:7]
    alike = across @ reference > 0.7 * np.linalg.norm(across, axis=1) * np.linalg.norm(reference)
    return alike | np.all(faces == best, axis=1)


@dataclass(frozen=True, eq=False)
class Region:
    """A turned square of a frame that holds a face. centre: (2,) px. edge: px. roll: rad, clockwise on the screen."""

    centre: np.ndarray
    edge: float
    roll: float

    @classmethod
    def of_detection(cls, face: np.ndarray) -> Region:
        """Return the region of a detection, (17,)."""
        across = face[7:9] - face[5:7]
        extent = float(max(face[3:5] - face[1:3]))
        return cls((face[1:3] + face[3:5]) / 2, _REGION * max(extent, 1.0), math.atan2(across[1], across[0]))

    @classmethod
    def of_mesh(cls, mesh: np.ndarray) -> Region:
        """Return the region around a mesh: where the next frame's face is looked for."""
        across = mesh[EYE_CORNERS[1]] - mesh[EYE_CORNERS[0]]
        roll = math.atan2(across[1], across[0])
        turn = np.array([[math.cos(roll), math.sin(roll)], [-math.sin(roll), math.cos(roll)]])
        upright = mesh @ turn.T
        low, high = upright.min(0), upright.max(0)
        return cls((low + high) / 2 @ turn, _REGION * max(float(max(high - low)), 1.0), roll)

    def matrix(self, size: int) -> np.ndarray:
        """Return the matrix frame px -> px of a square of ``size`` px that shows the region upright, (2, 3)."""
        scale = size / self.edge
        cosine, sine = scale * math.cos(self.roll), scale * math.sin(self.roll)
        turn = np.array([[cosine, sine], [-sine, cosine]])
        return np.column_stack([turn, (size - 1) / 2 - turn @ self.centre])


class MeshNetwork:
    """Finds the mesh of the face in a region."""

    def __init__(self, models: Mapping[str, bytes]) -> None:
        self._network = _read_network(models[MESH.name], MESH.name)
        self._outputs = self._network.getUnconnectedOutLayersNames()

    def __call__(self, frame: np.ndarray, region: Region) -> tuple[np.ndarray, float]:
        """Return the mesh and the confidence, 0..1, that the region shows a face."""
        matrix = region.matrix(MESH_EDGE)
        patch = sample_quickly(frame, matrix, MESH_EDGE)
        self._network.setInput(cv2.dnn.blobFromImage(patch, 1 / 255, swapRB=True))
        outputs = self._network.forward(self._outputs)
        points = next(o for o in outputs if o.size == 3 * MESH_POINTS).reshape(MESH_POINTS, 3)[:, :2]
        logit = next(float(o.ravel()[0]) for o in outputs if o.size == 1)
        # The network's coordinates count from the outer edge of its input.
        mesh = transform_points(cv2.invertAffineTransform(matrix), points.astype(np.float64) - 0.5)
        return mesh, 1 / (1 + math.exp(-max(-100.0, min(100.0, logit))))


def sample_quickly(frame: np.ndarray, matrix: np.ndarray, edge: int) -> np.ndarray:
    """Return a square of a frame for networks and thumbnails, (edge, edge, 3) uint8, black outside the frame.

    matrix: frame px -> px of the square. What is shrunk is averaged by whole factors first, so that little aliases; it
    takes a tenth of the time of an exact crop.
    """
    scale = math.hypot(matrix[0, 0], matrix[0, 1])
    size = (edge, edge)
    if scale >= 0.5:
        return cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR)
    factor = 1 << int(math.log2(1 / scale))
    corners = transform_points(
        cv2.invertAffineTransform(matrix), np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * (edge - 1)
    )
    height, width = frame.shape[:2]
    low = np.maximum(np.floor(corners.min(0)).astype(int) - factor, 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + factor + 1, (width, height))
    if (high <= low).any():
        return np.zeros((*size, 3), np.uint8)
    part = _reduced(frame[low[1] : high[1], low[0] : high[0]], factor)
    fine = matrix.copy()
    fine[:, 2] += matrix[:, :2] @ (low + (factor - 1) / 2)
    fine[:, :2] *= factor
    return cv2.warpAffine(part, fine, size, flags=cv2.INTER_LINEAR)
