"""Where the landmarks of a batch's targets are, which the codes of both people are asked to tell alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.dataset import TrainSet
from pipelines.pose_covariates import PoseCovariates, mirrored_share
from swapfast.augment.draws import Draws
from swapfast.batch import SIDES
from swapfast.config import AugmentationConfig, TrainConfig
from swapfast.faces.matching import aligned_landmarks
from swapfast.faces.orientation import MIRRORED
from swapfast.points import transform_points

LEAST_SPREAD = 0.002  # of a face's points about their usual places, in edges of the crop; a side may be one picture


class TargetPoints:
    """The landmarks of both sides' faces, and where they are usually.

    landmarks: per side (n, 68, 2), px of the crop. size: edge of the crop, px. augmentation: tells how often a side's
    faces are mirrored. covariates: of the same faces, or None.

    usual: (sides, 68, 2) px, the mean of what is drawn of each side, at the pose that both have in common where there
    are covariates. It is a side's own, as the statistics of its codes are: what is left is the pose, the expression and
    how the augmentation moved the face, and not whose face it is.
    spread: px, how far faces are from it, as they are stored.
    """

    def __init__(
        self,
        landmarks: Sequence[np.ndarray],
        size: int,
        augmentation: AugmentationConfig,
        covariates: PoseCovariates | None = None,
    ) -> None:
        self._landmarks = [np.asarray(points, np.float64) for points in landmarks]
        usual = []
        for side, points in zip(SIDES, self._landmarks, strict=True):
            share = mirrored_share(side, augmentation)
            usual.append((1 - share) * points.mean(0) + share * mirrored(points.mean(0), size))
        self.usual = np.stack(usual)
        if covariates is not None:
            slopes = covariates.slopes([points.reshape(-1, 136) for points in self._landmarks])
            self.usual -= (covariates.side_means @ slopes).reshape(self.usual.shape)
        deviations = [points - own for points, own in zip(self._landmarks, self.usual, strict=True)]
        spread = np.sqrt(np.mean([np.square(part).mean() for part in deviations]))
        self.spread = max(float(spread), LEAST_SPREAD * size)

    @classmethod
    def from_sides(
        cls, sides: Sequence[TrainSet], config: TrainConfig, covariates: PoseCovariates | None = None
    ) -> TargetPoints | None:
        """Return the points of the faces that are trained on, None where no code is asked for them."""
        if not config.loss.landmark_weight:
            return None
        size = sides[0].spec.size
        tables = [side.source.folder.records.select(side.members) for side in sides]
        points = [aligned_landmarks(table, config.crop, size) for table in tables]
        return cls(points, size, config.augmentation, covariates)

    def of(self, ids: np.ndarray, draws: Draws) -> np.ndarray:
        """Return how far each target's landmarks are from their usual places, (sides, B, 136) float32: x, y, x, ...

        ids: (sides, B). draws: of the faces of side A, B, ... in one row. In units of what is usual for a face of these
        sides as it is stored. Landmarks of a mirrored face change places, so left stays left on the screen.
        """
        faces = np.concatenate([points[rows] for points, rows in zip(self._landmarks, ids, strict=True)])
        moved = transform_points(draws.matrix(), faces)
        moved[draws.flip] = moved[draws.flip][:, list(MIRRORED)]
        by_side = moved.reshape(*ids.shape, 68, 2)
        distances = (by_side - self.usual[:, None]) / self.spread
        return distances.reshape(*ids.shape, 136).astype(np.float32)


def mirrored(points: np.ndarray, size: int) -> np.ndarray:
    """Return landmarks (..., 68, 2) of the mirrored picture, px, each under the number that it has there."""
    turned = points[..., list(MIRRORED), :].copy()
    turned[..., 0] = (size - 1) - turned[..., 0]
    return turned
