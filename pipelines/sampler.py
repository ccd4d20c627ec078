"""Which faces make up a step: a pure function of (seed, step)."""

from __future__ import annotations

import functools

import numpy as np

from swapfast.augment.draws import STREAM_ORDER, random_words


@functools.lru_cache(maxsize=8)
def _order(seed: int, side: int, epoch: int, faces: int) -> np.ndarray:
    """(faces,) a permutation: the faces' indices sorted by one 64-bit random key each."""
    words = random_words(seed, np.arange(faces), side, range(epoch, epoch + 1), STREAM_ORDER)
    keys = words[:, 0].astype(np.uint64) << np.uint64(32) | words[:, 1]
    return np.argsort(keys, kind="stable")


class Sampler:
    """Draws ``batch_size`` faces per side and step.

    Each side goes through its faces in a new order every epoch, whatever the other side's length, so no face is
    seen twice before all have been seen once, and a side smaller than the batch repeats within it.
    counts: faces per side, at least one each.
    """

    def __init__(self, seed: int, counts: tuple[int, ...], batch_size: int) -> None:
        if min(counts) < 1 or batch_size < 1:
            raise ValueError(f"a sampler needs faces on every side and a batch: {counts}, {batch_size}")
        self.seed = seed
        self.counts = counts
        self.batch_size = batch_size

    def ordinals(self, step: int) -> np.ndarray:
        """(batch_size,) uint64: the how-manieth face of its side each one is. The augmentation's counter."""
        first = step * self.batch_size
        return np.arange(first, first + self.batch_size, dtype=np.uint64)

    def ids(self, step: int) -> np.ndarray:
        """(sides, batch_size) int64: the faces' indices within their side."""
        result = np.empty((len(self.counts), self.batch_size), np.int64)
        for side, faces in enumerate(self.counts):
            epochs, places = np.divmod(self.ordinals(step).astype(np.int64), faces)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                result[side, here] = _order(self.seed, side, int(epoch), faces)[places[here]]
        return result
