"""Bytes to floats of many small images, compiled by Numba: what is only copying should take no longer.

NumPy divides bytes by a float through a buffer of its own, and taking channels apart is a pass of its own before that.
"""

from __future__ import annotations

import numpy as np
from numba import types

from swapfast.augment.kernels.jit import kernel, read

_F = np.float32
_BYTES, _FLOATS = read(types.u1), types.f4[::1]


@kernel(types.void(_BYTES, _FLOATS))
def to_floats(levels, out):
    """Write (P,) bytes as floats in 0..1."""
    for i in range(len(out)):
        out[i] = _F(levels[i]) / _F(255)


@kernel(types.void(_BYTES, _FLOATS))
def bgr_to_floats(pixels, out):
    """Write the first three of four channels, (4 P,) bytes, as floats in 0..1, (3 P,)."""
    for i in range(len(out) // 3):
        out[3 * i] = _F(pixels[4 * i]) / _F(255)
        out[3 * i + 1] = _F(pixels[4 * i + 1]) / _F(255)
        out[3 * i + 2] = _F(pixels[4 * i + 2]) / _F(255)


@kernel(types.void(_BYTES, _FLOATS))
def every_fourth_to_floats(levels, out):
    """Write every fourth byte, from the first on, as floats in 0..1, (P,)."""
    for i in range(len(out)):
        out[i] = _F(levels[4 * i]) / _F(255)
