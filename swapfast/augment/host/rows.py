"""Images that stay where they lie until some of them are wanted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Rows:
    """Rows of some arrays, one after another, as one array (N, ...) that is read a part at a time.

    parts: arrays (n, ...) of one dtype and, but for n, one shape, each with the rows wanted of it, (k,) int. Who
    augments a batch on several threads so reads it on all of them, and copies no large image at all; ``np.asarray``
    gives the whole.
    """

    def __init__(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self._parts = list(parts)
        first = self._parts[0][0]
        self.dtype, self.ndim = first.dtype, first.ndim
        self.shape = (sum(len(rows) for _, rows in self._parts), *first.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def one(self, index: int) -> np.ndarray:
        """(1, ...): the image with that number, as it lies there; not to be written to."""
        for array, rows in self._parts:
            if index < len(rows):
                return array[rows[index]][None]
            index -= len(rows)
        raise IndexError("no such image")

    def take(self, some: slice, out: np.ndarray) -> np.ndarray:
        """Consecutive images, copied to ``out``, which is returned."""
        before = 0
        for array, rows in self._parts:
            low, high = max(some.start, before), min(some.stop, before + len(rows))
            if low < high:
                place = out[low - some.start : high - some.start]
                # Any mode but 'raise' writes without a detour.
                np.take(array, rows[low - before : high - before], axis=0, out=place, mode="clip")
            before += len(rows)
        return out

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        whole = self.take(slice(0, len(self)), np.empty(self.shape, self.dtype))
        return whole if dtype is None else whole.astype(dtype, copy=False)
