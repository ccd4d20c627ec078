"""Where a face lies: from its 68 landmarks to a matrix for any crop, in float64.

Three frames of reference:
    frame   pixels of the picture the landmarks were found in
    unit    the unit square in which the mean face lies upright (x right, y down)
    crop    pixels of a square crop; the unit square's content fills its core, padding surrounds it
Points are (x, y), pixel centres at integers. Coverage and vertical offset are SHARES here (1.0 = all of the crop,
0.1 = a tenth of the core); only crop.py turns a CropConfig's percent into shares.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import cv2
import numpy as np

from swapfast.points import transform_points

# The share of a full crop's edge that is padding; the core takes the rest.
PADDING_SHARE = {"legacy": 0.375, "face": 0.5, "head": 0.625}
CENTERINGS = tuple(PADDING_SHARE)

# Beyond these the 68 points are no face. Real ones: distance below 0.05, offset below 0.5; random points lie at a
# distance of 0.22, a mirrored face at 0.21, a face in full profile near 0.1.
MAX_AVERAGE_DISTANCE = 0.2
MAX_OFFSET = 2.0

_FROM_98 = (
    *range(0, 33, 2),
    *range(33, 38),
    *range(42, 47),
    *range(51, 60),
    *(60, 61, 63, 64, 65, 67),
    *(68, 69, 71, 72, 73, 75),
    *range(76, 88),
    *range(88, 96),
)


@dataclass(frozen=True)
class MeanFace:
    """The faces landmarks are fitted to. flat: (51, 2) unit square, points 17..67. solid: (26, 3), y up.
    centres: (3, 3), the solid face's point that each of CENTERINGS has in its middle."""

    flat: np.ndarray
    solid: np.ndarray
    solid_indices: list[int]
    centres: np.ndarray
    camera: np.ndarray


@cache
def mean_face() -> MeanFace:
    folder = resources.files("swapfast.faces.data")
    flat = json.loads((folder / "mean_face_51.json").read_text(encoding="utf-8"))
    solid = json.loads((folder / "mean_face_3d_26.json").read_text(encoding="utf-8"))
    focal, (cx, cy) = solid["camera"]["focal"], solid["camera"]["principal"]
    return MeanFace(
        flat=np.array(flat["points_xy"], np.float64),
        solid=np.array(solid["points_xyz"], np.float64),
        solid_indices=solid["indices_into_68"],
        centres=np.array([solid["centre_points_xyz"][name] for name in CENTERINGS], np.float64),
        camera=np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]], np.float64),
    )


@dataclass(frozen=True, eq=False)
class Alignment:
    """How one face lies in its frame.

    legacy_matrix: (2, 3), frame px -> unit square. offsets: centering -> (2,), where that crop's centre lies
    relative to the legacy centre, in the unit square. rotation, translation: (3,) each, the pose as solvePnP gives
    it (Rodrigues). pitch, yaw, roll: degrees. average_distance: mean |dx| and |dy| between the aligned points and
    the mean face.
    """

    legacy_matrix: np.ndarray
    offsets: dict[str, np.ndarray]
    rotation: np.ndarray
    translation: np.ndarray
    pitch: float
    yaw: float
    roll: float
    average_distance: float

    def matrix(self, size: int, centering: str, coverage: float = 1.0, vertical_offset: float = 0.0) -> np.ndarray:
        """(2, 3): frame px -> px of a square crop of edge ``size``.

        coverage and vertical_offset are shares; a positive offset moves the face down.
        """
        return crop_matrices(self.legacy_matrix, self.offsets[centering], size, centering, coverage, vertical_offset)

    def head_axes(self) -> np.ndarray:
        """(3, 2): where the tips of the head's x, y and z axes appear in the unit square of a head crop."""
        tips = np.diag([6.0, 6.0, 6.0]) + mean_face().centres[CENTERINGS.index("head")]
        return _project(tips, cv2.Rodrigues(self.rotation)[0], self.translation) - self.offsets["head"]


def crop_matrices(
    legacy: np.ndarray, offsets: np.ndarray, size: int, centering: str, coverage: float, vertical_offset: float
) -> np.ndarray:
    """(..., 2, 3): see ``Alignment.matrix``. legacy: (..., 2, 3); offsets: (..., 2), of ``centering``."""
    margin = padding(size, centering, coverage)
    core = size - 2 * margin
    matrices = legacy * core
    matrices[..., 2] += margin - core * offsets
    matrices[..., 1, 2] += core * vertical_offset
    return matrices


def padding(size: int, centering: str, coverage: float = 1.0) -> int:
    """Pixels between the edge of a crop and its core on each side (halves to even, as faceswap rounds)."""
    return round(size * (PADDING_SHARE[centering] + coverage - 1) / (2 * coverage))


def to_68(landmarks: np.ndarray) -> np.ndarray:
    """(68, 2) float32 from a 68- or 98-point set. Raises ValueError with a short reason for anything else."""
    if landmarks.shape == (98, 2):
        landmarks = landmarks[list(_FROM_98)]
    if landmarks.shape == (4, 2):
        raise ValueError("4-point landmarks (a bounding box) cannot be aligned: extract with 68 points")
    if landmarks.shape != (68, 2):
        shape = "x".join(map(str, landmarks.shape))
        raise ValueError(f"landmarks of shape {shape}, expected 68x2 (or 98x2)")
    if not np.isfinite(landmarks).all() or np.abs(landmarks).max() > 1e6:
        raise ValueError("landmarks that are not finite numbers within a picture")
    return np.ascontiguousarray(landmarks, np.float32)


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(2, 3): the similarity (rotation, scale, shift, no mirroring) taking (N, 2) ``source`` nearest to ``target``.

    In the plane Umeyama's singular values come down to two sums: multiply by one complex number, then shift.
    Raises ValueError when the points do not determine one.
    """
    source_mean, target_mean = source.sum(0) / len(source), target.sum(0) / len(target)
    a, b = source - source_mean, target - target_mean
    spread = (a * a).sum()
    if not spread > 1e-6 * len(source):
        raise ValueError("landmarks that all lie on one spot")
    cosine = (a * b).sum() / spread
    sine = (a[:, 0] @ b[:, 1] - a[:, 1] @ b[:, 0]) / spread
    matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0]])
    matrix[:, 2] = target_mean - matrix[:, :2] @ source_mean
    return matrix


def align(landmarks: np.ndarray) -> Alignment:
    """The alignment of (68, 2) landmarks in frame px. Raises ValueError where they cannot be a face."""
    face = mean_face()
    matrix = umeyama(np.asarray(landmarks[17:], np.float64), face.flat)
    unit = transform_points(matrix, landmarks)
    distance = float(np.abs(unit[17:] - face.flat).mean())
    if not distance < MAX_AVERAGE_DISTANCE:
        raise ValueError("landmarks that do not look like a face")
    rotation, translation = _pose(unit)
    turn = cv2.Rodrigues(rotation)[0]
    offsets = _project(face.centres, turn, translation) - 0.5
    offsets[CENTERINGS.index("legacy")] = 0.0  # by definition
    if not np.abs(offsets).max() < MAX_OFFSET:
        raise ValueError("landmarks whose pose is not that of a face")
    pitch, yaw, roll = cv2.decomposeProjectionMatrix(np.column_stack([turn, translation]))[-1][:, 0].tolist()
    return Alignment(
        legacy_matrix=matrix,
        offsets=dict(zip(CENTERINGS, offsets)),
        rotation=rotation,
        translation=translation,
        pitch=pitch,
        yaw=yaw,
        roll=roll,
        average_distance=distance,
    )


def _pose(unit_points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    face = mean_face()
    points = np.ascontiguousarray(unit_points[face.solid_indices])
    try:
        found, rotation, translation = cv2.solvePnP(face.solid, points, face.camera, None, flags=cv2.SOLVEPNP_ITERATIVE)
    except cv2.error as error:
        raise ValueError("landmarks whose pose cannot be found") from error
    if not found or not np.isfinite(rotation).all() or not np.isfinite(translation).all():
        raise ValueError("landmarks whose pose cannot be found")
    return rotation[:, 0], translation[:, 0]


def _project(points: np.ndarray, turn: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(N, 2): (N, 3) points of the solid face as the pose's camera sees them. turn: (3, 3)."""
    seen = (points @ turn.T + translation) @ mean_face().camera.T
    return seen[:, :2] / seen[:, 2:]
