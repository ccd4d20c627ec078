"""How far each face looks aside and down and opens its mouth: by that the codes of two people are compared.

What is a side's own is taken out of its codes by statistics over its faces. Where one person mostly looks down and the
other up, their poses would be taken out with it, and a swap would look where its person looks on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.dataset import TrainSet
from pipelines.side_light import ALWAYS, OFF
from swapfast.batch import SIDES
from swapfast.config import AugmentationConfig, CropConfig, TrainConfig
from swapfast.faces.eye_light import EYES
from swapfast.faces.matching import aligned_landmarks
from swapfast.faces.table import FaceTable
from swapfast.models.side_statistics import PLAIN

YAW, PITCH, MOUTH = range(3)
# degrees. Of thirteen drawn pairs, whose people look up and down alike, ``pitch_difference`` tells 3.6 in the root mean
# square and 7.2 at most, where headers have 5.7 and 10.7.
PITCH_LIMIT = 6.0
LEAST_SPREAD = np.array([5.0, 3.0, 2.0])  # degrees, degrees, percent: a side may be one picture
FURTHEST = 3.0  # deviations of a side's mean from the middle; what faces teach holds near them alone
LEAST_VARIANCE = 0.1  # of a combination of them: less is told by rounding, or by one face
ALIGNED = CropConfig(centering="legacy", coverage=100.0, vertical_offset=0.0)
_TOLD = np.array([5.0, 0.0, 5.0])  # differences of the sides that a person is told of
_LIPS = ((61, 67), (62, 66), (63, 65))  # inner edges, above and below


class PoseCovariates:
    """Yaw, pitch and open mouth of both sides' faces, in numbers that mean the same for both.

    values: per side (n, 3): yaw and pitch in degrees, as headers have them, and the mouth, see ``pose_of_faces``.
    augmentation: tells how often a side's faces are mirrored. pitch: degrees that B looks further down than A, None for
    what the headers say. pitch_limit: degrees of that which two heads alone may make.

    difference: (3,), of B from A on average, as they are drawn: degrees, degrees, percent.
    side_means: (sides, 3), where each side is on average, from the middle of both. Units are deviations of faces from
    their side's mean, made uncorrelated. side_covariances: (sides, 3, 3), how much more the faces of a side differ
    among themselves than those of both sides do.
    """

    def __init__(
        self,
        values: Sequence[np.ndarray],
        augmentation: AugmentationConfig,
        pitch_limit: float = PITCH_LIMIT,
        pitch: float | None = None,
    ) -> None:
        self._values = [np.asarray(of_side, np.float64) for of_side in values]
        drawn = [_drawn(*pair, augmentation) for pair in zip(SIDES, self._values, strict=True)]
        usual, covariances = (np.stack(moments) for moments in zip(*drawn, strict=True))
        spread = np.maximum(np.sqrt(np.diagonal(covariances.mean(0))), LEAST_SPREAD)
        self.difference = usual[1] - usual[0]
        self.difference[PITCH] = beyond(self.difference[PITCH] if pitch is None else pitch, pitch_limit)
        self.difference = self.difference.clip(-2 * FURTHEST * spread, 2 * FURTHEST * spread)
        self._whitening = _whitening(covariances.mean(0), spread)
        halves = np.stack([-self.difference, self.difference]) / 2
        self._zeros = usual - halves  # what a side's numbers are counted from
        self.side_means = halves @ self._whitening
        apart = self._whitening.T @ (covariances - covariances.mean(0)) @ self._whitening
        self.side_covariances = (apart + apart.swapaxes(1, 2)) / 2

    @classmethod
    def from_sides(cls, sides: Sequence[TrainSet], config: TrainConfig) -> PoseCovariates | None:
        """Return those of the faces that are trained on, None where codes are not compared by them."""
        is_unused = config.model.code == PLAIN and not config.model.exchange_codes
        if is_unused or len(sides) != len(SIDES):
            return None
        tables = [side.source.folder.records.select(side.members) for side in sides]
        return cls.from_tables(tables, config.augmentation, config.model.comparable_poses)

    @classmethod
    def from_tables(
        cls, tables: Sequence[FaceTable], augmentation: AugmentationConfig, comparable_poses: str
    ) -> PoseCovariates | None:
        """Return those of each side's faces; None for ``comparable_poses`` 'off', of ``ModelConfig``."""
        if comparable_poses == OFF:
            return None
        values = [pose_of_faces(table) for table in tables]
        pitch = pitch_difference(values, [aligned_landmarks(table, ALIGNED, 100) for table in tables])
        return cls(values, augmentation, 0.0 if comparable_poses == ALWAYS else PITCH_LIMIT, pitch)

    def of(self, ids: np.ndarray, flip: np.ndarray) -> np.ndarray:
        """Return the covariates of faces, (sides, B, 3) float32, counted from the middle of both sides.

        ids: (sides, B). flip: (sides * B,) bool, which of them are mirrored, side A's first.
        """
        sides = enumerate(zip(ids, flip.reshape(ids.shape), strict=True))
        return np.stack([self.of_side(number, rows, is_flipped) for number, (rows, is_flipped) in sides])

    def of_side(self, number: int, ids: np.ndarray, flip: np.ndarray) -> np.ndarray:
        """Return the covariates of faces of one side, (B, 3) float32. number: 0 for A. ids, flip: (B,)."""
        values = self._values[number][ids]
        values[flip, YAW] *= -1
        return ((values - self._zeros[number]) @ self._whitening).astype(np.float32)

    def slopes(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Return by how much something of all faces, per side (n, C), moves with each covariate: (3, C)."""
        return regression([of_side @ self._whitening for of_side in self._values], values)[0]

    def line(self) -> str | None:
        """Return what a person is told, None where the sides look alike."""
        names = (("right", "left"), ("up", "down"))
        parts = [
            f"{abs(value):.0f} degrees further {ways[int(value > 0)]}"
            for value, ways, least in zip(self.difference, names, _TOLD)
            if abs(value) > least
        ]
        mouth = self.difference[MOUTH]
        if abs(mouth) > _TOLD[MOUTH]:
            parts.append(f"with the mouth {'more' if mouth > 0 else 'less'} open")
        if not parts:
            return None
        return (
            f"poses: on average B looks {' and '.join(parts)} than A; both people's codes are compared at the same "
            "pose, so that a swap looks where A does (--comparable-poses off: as if both looked alike)"
        )


def pose_of_faces(table: FaceTable) -> np.ndarray:
    """Return yaw, pitch (degrees) and the height of the open mouth (percent of the eyes' distance) of faces, (n, 3)."""
    angles, points = table.column("angles"), table.column("landmarks").astype(np.float64)
    heights = [np.linalg.norm(points[:, above] - points[:, below], axis=1) for above, below in _LIPS]
    left, right = (points[:, eye].mean(1) for eye in EYES)
    distance = np.maximum(np.linalg.norm(left - right, axis=1), np.finfo(np.float32).eps)
    return np.stack([angles[:, 1], angles[:, 0], 100 * np.mean(heights, 0) / distance], 1)


def pitch_difference(values: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> float:
    """Return how many degrees B looks further down than A on average, by where all their landmarks lie.

    Headers tell pitch by a head that is nobody's own, from 26 of the landmarks: a person's long nose is a look down. So
    it is asked how landmarks move with pitch among the faces of one person, and by how much of that the two people's
    mean faces differ. What else two faces differ in moves them in all directions.

    values: per side (n, 3), see ``pose_of_faces``. landmarks: (n, 68, 2), aligned. Where the faces of a side do not
    tell how landmarks move, as one picture does not, it is what the headers say.
    """
    wide = [np.column_stack([of_side, of_side[:, YAW] ** 2]) for of_side in values]  # a turned face is narrower
    flat = [points.reshape(len(points), -1) for points in landmarks]
    apart = wide[1].mean(0) - wide[0].mean(0)
    moves, is_told = regression(wide, flat)
    size = np.square(moves[PITCH]).sum()
    if not is_told or not size:
        return float(apart[PITCH])
    others = np.delete(apart, PITCH) @ np.delete(moves, PITCH, axis=0)
    faces = [points.mean(0, dtype=np.float64) for points in flat]
    return float((faces[1] - faces[0] - others) @ moves[PITCH] / size)


def regression(covariates: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> tuple[np.ndarray, bool]:
    """Return by how much values move with covariates among the faces of one side, (K, C), and whether they tell it.

    covariates: per side (n, K). values: per side (n, C). Where they do not, it is the least movement that fits.
    """
    own = [of_side - of_side.mean(0) for of_side in covariates]
    squares = sum(of_side.T @ of_side for of_side in own)
    products = sum(of_side.T @ of_values for of_side, of_values in zip(own, values, strict=True))
    sizes = np.sqrt(np.diagonal(squares))
    sizes = np.where(sizes > 0, sizes, 1.0)
    normal = squares / np.outer(sizes, sizes)
    is_told = np.linalg.matrix_rank(normal, tol=1e-6, hermitian=True) == len(normal)
    slopes = np.linalg.pinv(normal, rcond=1e-6, hermitian=True) @ (products / sizes[:, None])
    return slopes / sizes[:, None], bool(is_told)


def beyond(difference: float, limit: float) -> float:
    """Return what of a difference is more than noise of about ``limit``: nothing up to it, nearly all far beyond it.

    The garrote of Breiman (1995): without a step at the limit.
    """
    return difference * max(0.0, 1 - (limit / difference) ** 2) if difference else 0.0


def mirrored_share(side: str, augmentation: AugmentationConfig) -> float:
    """Return the share of a side's faces that are mirrored in training, 0..1."""
    is_flipped = augmentation.flip and side in augmentation.flip_sides
    return augmentation.flip_chance / 100 if is_flipped else 0.0


def _drawn(side: str, values: np.ndarray, augmentation: AugmentationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (3,) and covariance (3, 3) of a side's faces as they are drawn: mirrored ones look the other way."""
    unflipped = 1 - 2 * mirrored_share(side, augmentation)
    sign = np.array([unflipped, 1.0, 1.0])
    moments = values.T @ values / len(values)
    moments[YAW, PITCH:] *= unflipped
    moments[PITCH:, YAW] *= unflipped
    mean = values.mean(0) * sign
    return mean, moments - np.outer(mean, mean)


def _whitening(covariance: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return what deviations are multiplied by (from the right) to have no correlation and a deviation of 1, (3, 3).

    spread: (3,), of each, no less than its deviation: where it is more, that one comes out smaller.
    """
    correlation = covariance / np.outer(spread, spread)
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    return (vectors / np.sqrt(np.maximum(values, LEAST_VARIANCE))) @ vectors.T / spread[:, None]
