"""Which faces make up a step: a pure function of (seed, step, rank)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.philox import STREAM_ORDER, STREAM_SPARE, random_words

Permutation = Callable[[int, int, int], np.ndarray]  # (side, epoch, faces) -> (faces,) their order in that epoch


_FEW = 1024  # faces, of whose orders many are kept: a step may need one for every face of its batch


def _order(seed: int, side: int, epoch: int, faces: int) -> np.ndarray:
    """(faces,) a permutation: the faces' indices sorted by one 64-bit random key each."""
    return (_order_of_few if faces <= _FEW else _order_of_many)(seed, side, epoch, faces)


def _sorted(seed: int, side: int, epoch: int, faces: int) -> np.ndarray:
    words = random_words(seed, np.arange(faces), side, range(epoch, epoch + 1), STREAM_ORDER)
    keys = words[:, 0].astype(np.uint64) << np.uint64(32) | words[:, 1]
    return np.argsort(keys, kind="stable")


# Apart, or a small side that begins several epochs a step would drive out the large one's, which takes 4 ms for 50,000.
_order_of_few = functools.lru_cache(maxsize=256)(_sorted)
_order_of_many = functools.lru_cache(maxsize=8)(_sorted)


class Sampler:
    """Draws ``batch_size`` faces per side and step, of which rank ``rank`` of ``world`` gets its share.

    Each side goes through its faces in a new order every epoch, whatever the other side's length, so no face is
    seen twice before all have been seen once, and a side smaller than the batch repeats within it. The ranks' shares
    of a step, one after another, are what a single process sees at that step.
    counts: faces per side, at least one each. permutation: how an epoch is ordered, by default from ``seed``.
    """

    def __init__(
        self,
        seed: int,
        counts: tuple[int, ...],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        permutation: Permutation | None = None,
    ) -> None:
        if min(counts) < 1 or batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"a sampler needs faces on every side and a batch: {counts}, {batch_size}, {rank}/{world}")
        if batch_size < world:
            raise SwapfastError(f"-b/--batch-size {batch_size}: {world} processes need at least one face each")
        self.seed = seed
        self.counts = counts
        self.global_batch_size = batch_size
        self.first, self.stop = rank * batch_size // world, (rank + 1) * batch_size // world
        self.permutation = permutation or functools.partial(_order, seed)

    @property
    def batch_size(self) -> int:
        """Faces per side and step of this rank; ranks differ by one at most."""
        return self.stop - self.first

    def ordinals(self, step: int) -> np.ndarray:
        """(batch_size,) uint64: the how-manieth face of its side each one is. The augmentation's counter."""
        first = step * self.global_batch_size
        return np.arange(first + self.first, first + self.stop, dtype=np.uint64)

    def ids(self, step: int) -> np.ndarray:
        """(sides, batch_size) int64: the faces' indices within their side."""
        result = np.empty((len(self.counts), self.batch_size), np.int64)
        for side in range(len(self.counts)):
            result[side] = self.places(side, self.ordinals(step).astype(np.int64))
        return result

    def places(self, side: int, ordinals: np.ndarray) -> np.ndarray:
        """The faces that come at these places of a side's endless order."""
        faces = self.counts[side]
        result = np.empty(len(ordinals), np.int64)
        epochs, places = np.divmod(ordinals, faces)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = self.permutation(side, int(epoch), faces)[places[here]]
        return result

    def spare(self, side: int, ordinal: int, attempt: int) -> int:
        """The face to take where the one at ``ordinal`` cannot be read, and ``attempt`` others could not either.

        A function of these and the seed alone, so every rank and every restart finds the same.
        """
        word = random_words(self.seed, [ordinal], side, range(attempt, attempt + 1), STREAM_SPARE)[0, 0]
        return int(word) * self.counts[side] >> 32
