"""Images that stay where they lie until they are needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike


class Rows:
    """Rows of several arrays, one after another, as one array (N, ...) that is read a part at a time.

    parts: arrays (n, ...) of one dtype and, but for n, one shape, each with the rows to take of it, (k,) int

    An augmenter that reads a batch on several threads copies nothing large in one place; ``np.asarray`` gathers all.
    """

    def __init__(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self._parts = list(parts)
        array = self._parts[0][0]
        self.dtype, self.ndim = array.dtype, array.ndim
        self.shape = (sum(len(rows) for _, rows in self._parts), *array.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def image(self, index: int) -> np.ndarray:
        """Return (1, ...), a view of the image with that number; not to be written to. Raises IndexError."""
        for array, rows in self._parts:
            if index < len(rows):
                return array[rows[index]][None]
            index -= len(rows)
        raise IndexError("no such image")

    def take(self, strip: slice, out: np.ndarray) -> np.ndarray:
        """Copy consecutive images to ``out``, which is returned."""
        offset = 0
        for array, rows in self._parts:
            start, stop = max(strip.start, offset), min(strip.stop, offset + len(rows))
            if start < stop:
                target = out[start - strip.start : stop - strip.start]
                # Any mode but 'raise' writes without a detour.
                np.take(array, rows[start - offset : stop - offset], axis=0, out=target, mode="clip")
            offset += len(rows)
        return out

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        gathered = self.take(slice(0, len(self)), np.empty(self.shape, self.dtype))
        return gathered if dtype is None else gathered.astype(dtype, copy=False)
