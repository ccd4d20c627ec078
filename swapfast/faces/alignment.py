"""Aligns a face: from its 68 landmarks to the matrix of any crop, in float64.

Three frames of reference:
    frame   pixels of the picture the landmarks were found in
    unit    the unit square in which the mean face lies upright (x right, y down)
    crop    pixels of a square crop; the unit square's content fills its core, padding surrounds it
Points are (x, y), pixel centres at integers. Coverage and vertical offset are SHARES here: 1.0 is the whole crop, 0.1 a
tenth of the core. crop.py converts a CropConfig's percent.
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

# Beyond these limits 68 points are not a face. Real faces have a distance below 0.05 (in full profile near 0.1) and an
# offset below 0.5. Random points have a distance of 0.22, a mirrored face 0.21.
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
    """The mean face that landmarks are fitted to.

    flat: (51, 2), points 17..67 in the unit square.
    solid: (26, 3), points in 3-D, y up.
    solid_indices: which of the 68 points the solid ones are.
    centres: (3, 3), the solid face's point at the centre of each of CENTERINGS.
    camera: (3, 3), the camera matrix for solvePnP.
    """

    flat: np.ndarray
    solid: np.ndarray
    solid_indices: list[int]
    centres: np.ndarray
    camera: np.ndarray


@cache
def mean_face() -> MeanFace:
    """Return the mean face, read from the package's data once."""
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
    """The position and pose of one face in its frame.

    legacy_matrix: (2, 3), frame px -> unit square.
    offsets: centering -> (2,), the crop's centre relative to the legacy centre, in the unit square.
    rotation, translation: (3,) each, the pose from solvePnP (Rodrigues vector).
    pitch, yaw, roll: degrees.
    average_distance: mean absolute coordinate difference between the aligned points and the mean face.
    """

    legacy_matrix: np.ndarray
    offsets: dict[str, np.ndarray]
    rotation: np.ndarray
    translation: np.ndarray
    pitch: float
    yaw: float
    roll: float
    average_distance: float

    def matrix(
        self,
        size: int,
        centering: str,
        coverage: float = 1.0,
        vertical_offset: float = 0.0,
        whole_padding: bool = False,
    ) -> np.ndarray:
        """Return the matrix frame px -> px of a square crop, (2, 3).

        size: edge of the crop, px.
        coverage, vertical_offset: shares; a positive offset moves the face down.
        whole_padding: pad by whole px, as faceswap does: a head that it cut lies where this matrix says.
        """
        offsets = self.offsets[centering]
        return crop_matrices(
            self.legacy_matrix, offsets, size, centering, coverage, vertical_offset, whole_padding=whole_padding
        )

    def head_axes(self) -> np.ndarray:
        """Return the tips of the head's x, y and z axes in the unit square of a head crop, (3, 2)."""
        tips = np.diag([6.0, 6.0, 6.0]) + mean_face().centres[CENTERINGS.index("head")]
        return _project(tips, cv2.Rodrigues(self.rotation)[0], self.translation) - self.offsets["head"]


def crop_matrices(
    legacy: np.ndarray,
    offsets: np.ndarray,
    size: int | np.ndarray,
    centering: str,
    coverage: float = 1.0,
    vertical_offset: float = 0.0,
    whole_padding: bool = False,
) -> np.ndarray:
    """Return the matrices of ``Alignment.matrix`` for many faces, (..., 2, 3).

    legacy: (..., 2, 3), the faces' legacy matrices.
    offsets: (..., 2), their offsets of ``centering``.
    size: of all crops, or (...,) of each.
    """
    margin = np.asarray(padding(size, centering, coverage))
    if whole_padding:
        margin = np.rint(margin)  # halves to even, as in faceswap
    core = size - 2 * margin
    matrices = legacy * core[..., None, None]
    matrices[..., 2] += margin[..., None] - core[..., None] * offsets
    matrices[..., 1, 2] += core * vertical_offset
    return matrices


def padding(size: int | np.ndarray, centering: str, coverage: float = 1.0) -> float | np.ndarray:
    """Return the px between the edge of a crop and its core on each side.

    Peer: whole px, so that a crop's scale depends on its size, by 1.6 % at 64 px. Ours: exact, so that it does not.
    """
    return size * (PADDING_SHARE[centering] + coverage - 1) / (2 * coverage)


def to_68(landmarks: np.ndarray) -> np.ndarray:
    """Return 68- or 98-point landmarks as (68, 2) float32. Raises ValueError with a short reason for any other."""
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
    """Return the least-squares similarity (rotation, scale, shift) from ``source`` to ``target``, (2, 3).

    In the plane Umeyama's singular value decomposition reduces to two sums: the similarity is a multiplication by one
    complex number and a shift.
    source, target: (N, 2).
    Raises ValueError if all source points lie on one spot.
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
    """Return the alignment of (68, 2) landmarks in frame px. Raises ValueError if they cannot be a face."""
    face = mean_face()
    matrix = umeyama(np.asarray(landmarks[17:], np.float64), face.flat)
    unit = transform_points(matrix, landmarks)
    distance = float(np.abs(unit[17:] - face.flat).mean())
    if not distance < MAX_AVERAGE_DISTANCE:
        raise ValueError("landmarks that do not look like a face")
    rotation, translation = _pose(unit)
    rotation_matrix = cv2.Rodrigues(rotation)[0]
    offsets = _project(face.centres, rotation_matrix, translation) - 0.5
    offsets[CENTERINGS.index("legacy")] = 0.0  # by definition
    if not np.abs(offsets).max() < MAX_OFFSET:
        raise ValueError("landmarks whose pose is not that of a face")
    pitch, yaw, roll = cv2.decomposeProjectionMatrix(np.column_stack([rotation_matrix, translation]))[-1][:, 0].tolist()
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
        is_solved, rotation, translation = cv2.solvePnP(
            face.solid, points, face.camera, None, flags=cv2.SOLVEPNP_ITERATIVE
        )
    except cv2.error as error:
        raise ValueError("landmarks whose pose cannot be found") from error
    if not is_solved or not np.isfinite(rotation).all() or not np.isfinite(translation).all():
        raise ValueError("landmarks whose pose cannot be found")
    return rotation[:, 0], translation[:, 0]


def _project(points: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return points of the solid face projected to the unit square, (N, 2).

    points: (N, 3).
    rotation: (3, 3).
    translation: (3,).
    """
    homogeneous = (points @ rotation.T + translation) @ mean_face().camera.T
    return homogeneous[:, :2] / homogeneous[:, 2:]
