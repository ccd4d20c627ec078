"""The faces that are held out, as the validation loss sees them: some of them, always the same, not augmented."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipelines.collate import Collate
from pipelines.dataset import TrainSet
from swapfast.augment.draws import draw
from swapfast.config import AugmentationConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_landmarks, spread_indices
from swapfast.stop import interruptible
from swapfast.training.validation import OneSided

MAX_FACES = 64  # faces per side
NO_AUGMENTATION = AugmentationConfig(
    color=False, flip=False, warp=False, zoom_amount=0.0, rotation_range=0.0, shift_range=0.0, color_clahe_chance=0.0
)


class HeldOut:
    """Batches of one side each, over MAX_FACES held-out faces per side at most; every iteration gives the same ones.

    Where no store holds a side's faces they are decoded here, once. Raises SwapfastError where none can be.

    collate     with an augmentation of its own, made for NO_AUGMENTATION
    size        of the stored faces, in px
    batch_size  faces at once
    warn        is told of faces that cannot be decoded
    """

    def __init__(
        self,
        sides: Sequence[TrainSet],
        collate: Collate,
        size: int,
        batch_size: int,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.sides, self.collate = sides, collate
        self.size, self.batch_size = size, batch_size
        self._warn = warn
        self._decoded: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._good: dict[int, np.ndarray] = {}  # which of those chosen could be decoded
        self._points: tuple[np.ndarray, np.ndarray] | None = None

    def __iter__(self) -> Iterator[OneSided]:
        for number, side in enumerate(self.sides):
            faces, extra_masks = self._bytes(number, side)
            for first in range(0, len(faces), self.batch_size):
                part = slice(first, first + self.batch_size)
                ids = np.arange(len(faces))[part]
                draws = draw(0, ids.astype(np.uint64), np.full(len(ids), number), self.size, NO_AUGMENTATION)
                yield number, self.collate.batch(faces[part], extra_masks[part], draws, ids[None])

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the landmarks of each side's faces in their order, (n, 68, 2) float32 in shares of the edge."""
        if self._points is None:
            sides = []
            for number, side in enumerate(self.sides):
                records = side.source.folder.records
                members = side.validation_members[_chosen(side)]
                if side.store is None:
                    self._bytes(number, side)
                    members = members[self._good[number]]
                crop, size = side.spec.crop, side.spec.size
                points = np.stack([crop_landmarks(records[int(member)], crop, size) for member in members])
                sides.append((points + np.float32(0.5)) / np.float32(size))
            self._points = sides[0], sides[1]
        return self._points

    def _bytes(self, number: int, side: TrainSet) -> tuple[np.ndarray, np.ndarray]:
        if side.store is None:
            if number not in self._decoded:
                *decoded, self._good[number] = _decoded(side, self._warn)
                self._decoded[number] = decoded[0], decoded[1]
            return self._decoded[number]
        rows = side.validation[_chosen(side)]
        faces = np.empty((len(rows), *side.spec.face_shape), np.uint8)
        extra_masks = np.empty((len(rows), *side.spec.extra_masks_shape), np.uint8)
        side.store.take(rows, faces, extra_masks)
        return faces, extra_masks


def _chosen(side: TrainSet) -> np.ndarray:
    held = len(side.validation)
    return spread_indices(held, min(held, MAX_FACES))


def _decoded(side: TrainSet, warn: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return faces and extra masks read from the pictures, less those that cannot be, and which of them are good."""
    members = side.validation_members[_chosen(side)]
    faces = np.empty((len(members), *side.spec.face_shape), np.uint8)
    extra_masks = np.empty((len(members), *side.spec.extra_masks_shape), np.uint8)
    with interruptible():
        reasons = [side.source.put(side.spec, int(m), f, plane) for m, f, plane in zip(members, faces, extra_masks)]
    good = np.array([reason is None for reason in reasons])
    if not good.any():
        raise SwapfastError(f"{side.source.folder.path}: no face that is held out can be read: {reasons[0]}", 1)
    for member, reason in zip(members, reasons):
        if reason is not None:
            path = side.source.folder.records[int(member)].path
            warn(f"warning: {path}: {reason}; held out, and left out of what is measured")
    return faces[good], extra_masks[good], good
