"""Shows the faces of each side in the light of both: a swap then has the light of the face that it replaces.

A decoder that saw its person by day alone paints her by day, whoever is replaced at night. And where the sides are lit
differently, the statistics by which their codes are made alike take the light for a part of the person.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipelines.dataset import TrainSet
from pipelines.store import StoreSpec
from swapfast.augment.device.transfer import send
from swapfast.batch import SIDES, Batch
from swapfast.config import CropConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_matrix, spread_indices
from swapfast.faces.eye_light import LEAST_EYES, FaceLight, are_lit_differently, face_light, light_ratio
from swapfast.faces.matching import aligned_landmarks
from swapfast.faces.record import FaceRecord

OFF, AUTO, ALWAYS = "off", "auto", "always"
_FACES = 64  # of a side that are looked at
_SIZE = 256  # px of their crops
LIMITS = (0.1, 10.0)  # of a ratio


@dataclass(frozen=True)
class SideLight:
    """The light of side B over that of A. ratio: (B, G, R), of levels."""

    ratio: tuple[float, float, float]

    def gains(self, shares: np.ndarray) -> np.ndarray:
        """Return by what to multiply each face's levels, (sides, B, 3) float32 B, G, R.

        shares: (sides, B) in 0..1, how much of the way to the other side's light a face is taken.
        """
        way = np.log(self.ratio) * np.array([1.0, -1.0])[:, None]
        return np.exp(shares[..., None] * way[:, None]).astype(np.float32)

    def b_as_a(self, color_order: str = "bgr") -> np.ndarray:
        """Return by what B's faces are multiplied to have A's light, (3,) float32 in the model's colour order."""
        gains = self.gains(np.ones((2, 1)))[1, 0]
        return np.ascontiguousarray(gains[::-1] if color_order == "rgb" else gains)

    def apply(self, batch: Batch, shares: np.ndarray, color_order: str = "bgr") -> None:
        """Change the faces of a batch where they lie. shares: as of ``gains``."""
        gains = self.gains(shares)
        if color_order == "rgb":
            gains = gains[..., ::-1]
        by_side = send(np.ascontiguousarray(gains)[..., None, None], batch.inputs[0].device)
        changed = set()
        for target in batch.targets:
            _brighten(target, by_side.transpose(0, 1))
            changed.add(target.untyped_storage().data_ptr())
        for faces, of_side in zip(batch.inputs, by_side, strict=True):
            if faces.untyped_storage().data_ptr() not in changed:  # without a warp they may be the targets themselves
                _brighten(faces, of_side)

    def line(self) -> str:
        """Return what a person is told."""
        mean = float(np.exp(np.log(self.ratio).mean()))
        brighter, times = ("B", mean) if mean > 1 else ("A", 1 / mean)
        return (
            f"light: by the whites of the eyes {brighter}'s pictures are {times:.2f} times as bright as the other "
            "side's; both sides are shown in the light of both, so that a swap has the light of the face it replaces "
            "(--exchange-light off: each in its own)"
        )


def _brighten(faces: Tensor, gains: Tensor) -> None:
    faces.mul_(gains.to(faces.dtype)).clamp_(max=1)


def side_light(sides: Sequence[TrainSet], config: TrainConfig) -> SideLight | None:
    """Return how the sides are lit, None where their light is not exchanged.

    Raises SwapfastError where it is asked for whatever it is, and the eyes of a side do not tell.
    """
    setting = config.augmentation.exchange_light
    if setting == OFF or len(sides) != len(SIDES):
        return None
    lights = [_light_of(side, config) for side in sides]
    for side, light in zip(sides, lights, strict=True):
        if light is None and setting == ALWAYS:
            raise SwapfastError(
                f"--exchange-light {ALWAYS}: fewer than {LEAST_EYES} eyes in {side.source.folder.path} are open and "
                "large enough to tell its light; give more or larger pictures, or --exchange-light off"
            )
    if lights[0] is None or lights[1] is None:
        return None
    ratio = np.clip(light_ratio(lights[0], lights[1]), *LIMITS)
    if setting == AUTO and not are_lit_differently(ratio):
        return None
    return SideLight((float(ratio[0]), float(ratio[1]), float(ratio[2])))


def _light_of(side: TrainSet, config: TrainConfig) -> FaceLight | None:
    rows = side.members[np.unique(spread_indices(len(side), _FACES))]
    table = side.source.folder.records.select(rows)
    points = aligned_landmarks(table, config.crop, _SIZE)
    spec = StoreSpec(_SIZE, config.crop, config.mask, ())

    def faces() -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        for row, record, landmarks in zip(rows, table, points, strict=True):
            picture, no_masks = np.empty(spec.face_shape, np.uint8), np.empty(spec.extra_masks_shape, np.uint8)
            if side.source.put(spec, int(row), picture, no_masks) is None:
                yield picture, landmarks, _enlargement(record, config.crop)

    return face_light(faces())


def _enlargement(record: FaceRecord, crop: CropConfig) -> float:
    """Return how many times a crop of _SIZE enlarges the picture, or the frame that a head was cut from, if larger."""
    if record.kind == "prepared" and record.crop == crop:
        return _SIZE / record.width
    of_frame = _scale(crop_matrix(record, crop, _SIZE))
    if record.kind != "head":
        return of_frame
    return max(of_frame, of_frame / _scale(record.alignment.matrix(record.width, "head")))


def _scale(matrix: np.ndarray) -> float:
    return float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
