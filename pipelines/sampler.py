"""Chooses the faces of a step, as a pure function of (seed, step, rank)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.philox import STREAM_ORDER, STREAM_SPARE, random_words

Permutation = Callable[[int, int, int], np.ndarray]  # (side, epoch, faces) -> (faces,) order in that epoch

_FEW = 1024  # faces of a small side, which may need several epochs' orders in one step


def _order(seed: int, side: int, epoch: int, faces: int) -> np.ndarray:
    """Return a random permutation of the faces of a side, (faces,)."""
    return (_order_of_few if faces <= _FEW else _order_of_many)(seed, side, epoch, faces)


def _sort_by_key(seed: int, side: int, epoch: int, faces: int) -> np.ndarray:
    """Return the faces' indices sorted by a 64-bit random key, (faces,)."""
    words = random_words(seed, np.arange(faces), side, range(epoch, epoch + 1), STREAM_ORDER)
    keys = words[:, 0].astype(np.uint64) << np.uint64(32) | words[:, 1]
    return np.argsort(keys, kind="stable")


# Two caches: the orders of a small side would evict that of a large one, which takes 4 ms for 50,000 faces.
_order_of_few = functools.lru_cache(maxsize=256)(_sort_by_key)
_order_of_many = functools.lru_cache(maxsize=8)(_sort_by_key)


class Sampler:
    """Chooses the faces of each side and step, and the share of one rank.

    Each side goes through its faces in a new order every epoch, independently of the other side's length. All faces
    are seen once before any is seen again, and a side smaller than the batch repeats within it. The ranks' shares of a
    step, one after another, are the faces a single process sees at that step.

    seed: 64 bits.
    counts: faces per side, at least one each.
    batch_size: faces per side and step, of all ranks.
    rank, world: this process, and the number of processes.
    permutation: returns the order of an epoch, by default random from ``seed``.
    start_step, start_ordinal: where a run goes on: the step to draw next, and the faces of a side drawn before it. A
        run that had another batch size before neither repeats nor leaves out a face.
    """

    def __init__(
        self,
        seed: int,
        counts: tuple[int, ...],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        permutation: Permutation | None = None,
        start_step: int = 0,
        start_ordinal: int = 0,
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
        self.start_step, self.start_ordinal = start_step, start_ordinal

    @property
    def batch_size(self) -> int:
        """Return the faces per side and step of this rank; ranks differ by at most one."""
        return self.stop - self.first

    def ordinals(self, step: int) -> np.ndarray:
        """Return each face's position in its side's endless order, (batch_size,) uint64: the augmentation's counter."""
        first = self.drawn_before(step)
        return np.arange(first + self.first, first + self.stop, dtype=np.uint64)

    def drawn_before(self, step: int) -> int:
        """Return how many faces of each side were drawn before ``step``, by all ranks."""
        if step < self.start_step:
            raise ValueError(f"step {step}: this sampler begins at step {self.start_step}")
        return self.start_ordinal + (step - self.start_step) * self.global_batch_size

    def ids(self, step: int) -> np.ndarray:
        """Return the faces of a step, (sides, batch_size) int64 indices within their side."""
        result = np.empty((len(self.counts), self.batch_size), np.int64)
        for side in range(len(self.counts)):
            result[side] = self.faces_at(side, self.ordinals(step).astype(np.int64))
        return result

    def faces_at(self, side: int, ordinals: np.ndarray) -> np.ndarray:
        """Return the faces at these positions of a side's endless order, (len(ordinals),) int64."""
        faces = self.counts[side]
        result = np.empty(len(ordinals), np.int64)
        epochs, positions = np.divmod(ordinals, faces)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            result[in_epoch] = self.permutation(side, int(epoch), faces)[positions[in_epoch]]
        return result

    def spare(self, side: int, ordinal: int, attempt: int) -> int:
        """Return the face that replaces the unreadable one at ``ordinal``.

        attempt: number of replacements that could not be read either.
        It depends on these and the seed only, so every rank and every restart finds the same face.
        """
        word = random_words(self.seed, [ordinal], side, range(attempt, attempt + 1), STREAM_SPARE)[0, 0]
        return int(word) * self.counts[side] >> 32
