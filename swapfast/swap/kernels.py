"""The kernel that blends a face into a frame, compiled by Numba: one pass over the box, where arrays take six."""

from __future__ import annotations

import numpy as np

from swapfast.augment.kernels.jit import kernel

A = np.ndarray
_F = np.float32


@kernel(fastmath=False)  # a product and a sum that become one operation would round otherwise
def blend_box(region: A, face: A, alpha: A, highest: int) -> None:
    """Blend a face into a region of a frame, in place, rounding once, halves to even.

    region: (h, w, 3) uint8 or uint16, 0..highest. face: (h, w, 3) float32 in 0..1. alpha: (h, w) float32 in 0..1.
    """
    top = _F(highest)
    for y in range(region.shape[0]):
        for x in range(region.shape[1]):
            share = alpha[y, x]
            if share == 0:
                continue
            for channel in range(3):
                old = _F(region[y, x, channel])
                # What a cubic filter overshoots is cut first, so that a half of it is not blended in.
                new = min(max(face[y, x, channel] * top, _F(0)), top)
                mixed = np.rint(old + (new - old) * share)
                region[y, x, channel] = np.int32(min(max(mixed, _F(0)), top))
