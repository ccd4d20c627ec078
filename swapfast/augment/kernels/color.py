"""Colour of a face on the CPU, compiled by Numba: three times as fast as OpenCV's LAB there and back, and more exact.

OpenCV's 8-bit conversion looks up tables for each value, both ways, and rounds to whole levels of L, a and b in
between: 0.9 of a level on average. Here a face goes to LAB and back in float32, as in ``device/color.py``, and is
rounded once, at the end: 0.25. Only L before CLAHE is OpenCV's, to the bit.

What makes it fast: pixels are split into the channels of a block that stays in the first cache, and all that follows
is products and sums, which the compiler does for 8 or 16 pixels at once. Roots and powers are polynomials and Newton
steps, within 0.1 of a level of the exact ones. All blocks have one length, so that a pixel takes the same path, and
gets the same bits, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numba import types

from swapfast.augment.kernels.jit import inline, kernel, read
from swapfast.augment.lab import FROM_XYZ, LUMINANCE, STEPS, TO_XYZ, WHITE, levels_of_luminance, linear_light

BLOCK = 256  # px: 32 x 32, the smallest face, is four of them


def _fit(curve: Callable[[np.ndarray], np.ndarray], low: float, degree: int, weight: float) -> list[np.float32]:
    """Return the coefficients, lowest first, of a polynomial close to ``curve`` between ``low`` and 1.

    weight: how much more errors count near ``low`` than near 1, as a power of x
    """
    x = np.linspace(low, 1, 4001)
    fit = np.polynomial.Chebyshev.fit(x, curve(x), degree, w=x**-weight)
    return [np.float32(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef]


def _white_matrices() -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices linear RGB -> XYZ over white, and back, as float32."""
    white = np.array(WHITE)
    return (np.array(TO_XYZ) / white[:, None]).astype(np.float32), (np.array(FROM_XYZ) * white).astype(np.float32)


_F = np.float32
_I = np.int32
_FORWARD, _BACK = _white_matrices()
(_X_R, _X_G, _X_B), (_Y_R, _Y_G, _Y_B), (_Z_R, _Z_G, _Z_B) = _FORWARD
(_R_X, _R_Y, _R_Z), (_G_X, _G_Y, _G_Z), (_B_X, _B_Y, _B_Z) = _BACK
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = _fit(lambda v: ((v + 0.055) / 1.055) ** 2.4, 0.039, 6, 1.0)
_Q0, _Q1, _Q2, _Q3, _Q4, _Q5 = _fit(lambda root: 255 * (1.055 * root**1.25 - 0.055), 0.145, 5, 0.0)


@inline
def _linear(level):
    """Return the linear light 0..1 of an sRGB level 0..255."""
    v = _F(level) * _F(1 / 255)
    curve = _P0 + v * (_P1 + v * (_P2 + v * (_P3 + v * (_P4 + v * (_P5 + v * _P6)))))
    return curve if v > _F(0.04045) else v * _F(1 / 12.92)


@inline
def _cube_root(x):
    """Return x ** (1/3) of a positive float32 to 1e-6: the inverse root from its bits, one cubic and one Newton step.

    Source: Moroz, Samotyy, Walczyk, Cieslinski, "Fast calculation of cube and inverse cube roots using a magic
    constant and its implementation on microcontrollers", Energies 2021.
    """
    bits = np.float32(x).view(np.int32)
    inverse = np.int32(_F(0x548C2B4B) - _F(bits) * _F(1 / 3)).view(np.float32)
    part = x * inverse * inverse * inverse
    inverse *= _F(1.752319676) - part * (_F(1.2509524245) - _F(0.5093818292) * part)
    inverse += inverse * _F(1 / 3) * (_F(1) - x * inverse * inverse * inverse)
    return x * inverse * inverse


@inline
def _root(part):
    """Return f(t) of LAB, t being X, Y or Z over white."""
    return _cube_root(part) if part > _F(0.008856) else part * _F(7.787) + _F(4 / 29)


@inline
def _power(root):
    """Return the inverse of ``_root``."""
    return root * root * root if root > _F(0.2068966) else (root - _F(4 / 29)) * _F(1 / 7.787)


@inline
def _level(light):
    """Return the nearest sRGB level of linear light."""
    light = min(max(light, _F(0)), _F(1))
    root = _cube_root(max(light, _F(0.001)))
    curve = _Q0 + root * (_Q1 + root * (_Q2 + root * (_Q3 + root * (_Q4 + root * _Q5))))
    return np.uint8(_I((curve if light > _F(0.0031308) else light * _F(12.92 * 255)) + _F(0.5)))


@inline
def _jittered_lab(b, g, r, amounts):
    """Return L, a, b of one pixel in 8-bit units, times factors ``amounts[:3]`` plus offsets ``amounts[3:]``."""
    b, g, r = _linear(b), _linear(g), _linear(r)
    x = _root(_X_R * r + _X_G * g + _X_B * b)
    y = _root(_Y_R * r + _Y_G * g + _Y_B * b)
    z = _root(_Z_R * r + _Z_G * g + _Z_B * b)
    lightness = (y * _F(2.55 * 116) - _F(2.55 * 16)) * amounts[0] + amounts[3]
    a = ((x - y) * _F(500) + _F(128)) * amounts[1] + amounts[4]
    return lightness, a, ((y - z) * _F(200) + _F(128)) * amounts[2] + amounts[5]


@inline
def _in_registers(amounts):
    """Return the six amounts as values: in memory, for all the compiler knows, every write might change them."""
    return amounts[0], amounts[1], amounts[2], amounts[3], amounts[4], amounts[5]


@inline
def _nearest_bgr(lightness, a, b):
    """Return the nearest levels of blue, green and red of L, a, b in 8-bit units."""
    y = lightness * _F(1 / (2.55 * 116)) + _F(16 / 116)
    x = _power(y + (a - _F(128)) * _F(1 / 500))
    z = _power(max(y - (b - _F(128)) * _F(1 / 200), _F(0)))
    y = _power(y)
    blue = _level(_B_X * x + _B_Y * y + _B_Z * z)
    return blue, _level(_G_X * x + _G_Y * y + _G_Z * z), _level(_R_X * x + _R_Y * y + _R_Z * z)


@kernel()
def _split(pixels, channels, count, blue, green, red):
    """Write the colours of ``count`` interleaved pixels to three channels."""
    if channels == 3:
        for i in range(count):
            blue[i] = pixels[3 * i]
            green[i] = pixels[3 * i + 1]
            red[i] = pixels[3 * i + 2]
    else:
        for i in range(count):
            blue[i] = pixels[4 * i]
            green[i] = pixels[4 * i + 1]
            red[i] = pixels[4 * i + 2]


@kernel()
def _interleave(blue, green, red, pixels, channels, count, out):
    """Write three channels to ``count`` interleaved pixels; a fourth comes from ``pixels``."""
    if channels == 3:
        for i in range(count):
            out[3 * i] = blue[i]
            out[3 * i + 1] = green[i]
            out[3 * i + 2] = red[i]
    else:
        for i in range(count):
            out[4 * i] = blue[i]
            out[4 * i + 1] = green[i]
            out[4 * i + 2] = red[i]
            out[4 * i + 3] = pixels[4 * i + 3]


@kernel()
def _jitter_block(blue, green, red, amounts):
    amounts = _in_registers(amounts)
    for i in range(BLOCK):
        lightness, a, b = _jittered_lab(blue[i], green[i], red[i], amounts)
        blue[i], green[i], red[i] = _nearest_bgr(lightness, a, b)


@kernel(types.void(read(types.u1, 2), types.i8, types.i8, read(types.f4, 2), read(types.i8, 1), types.u1[:, ::1]))
def jitter_faces(faces, size, channels, amounts, indices, out):
    """Write some faces, taken to LAB, jittered there, and taken back.

    faces, out: (N, size * channels) uint8, ``size`` pixels of 3 or 4 channels, BGR first; a fourth is kept
    amounts: (N, 6) float32, factors of L, a, b and offsets in 8-bit units
    indices: (M,) of the faces to write
    """
    blue, green, red = np.zeros(BLOCK, np.uint8), np.zeros(BLOCK, np.uint8), np.zeros(BLOCK, np.uint8)
    for n in indices:
        for start in range(0, size, BLOCK):
            count = min(BLOCK, size - start)
            pixels = faces[n, start * channels :]
            _split(pixels, channels, count, blue, green, red)
            _jitter_block(blue, green, red, amounts[n])
            _interleave(blue, green, red, pixels, channels, count, out[n, start * channels :])


@kernel()
def _lightness_block(blue, green, red, luminance, levels, amounts, lightness):
    """Write L as OpenCV's 8-bit conversion has it, jittered and rounded."""
    factor, offset = amounts[0], amounts[3]
    for i in range(BLOCK):
        light = luminance[0, blue[i]] + luminance[1, green[i]] + luminance[2, red[i]]
        level = np.rint(levels[light >> 12] * factor + offset)
        lightness[i] = np.uint8(_I(min(max(level, _F(0)), _F(255))))


@kernel()
def _ab_block(blue, green, red, amounts, a, b):
    amounts = _in_registers(amounts)
    for i in range(BLOCK):
        _, a[i], b[i] = _jittered_lab(blue[i], green[i], red[i], amounts)


_LAB = types.u1[::1], types.f4[::1], types.f4[::1]  # L, a, b


@kernel(types.void(read(types.u1), types.i8, types.i8, read(types.f4), read(types.i4, 2), read(types.f4), *_LAB))
def bgr_to_lab(face, size, channels, amounts, luminance, levels, lightness, a, b):
    """Write one face as jittered LAB, L in whole levels.

    face, amounts: one row of what ``jitter_faces`` takes
    luminance, levels: ``lightness_tables()``
    lightness, a, b: ``size`` pixels, uint8, float32 and float32, with room for whole blocks
    """
    blue, green, red = np.zeros(BLOCK, np.uint8), np.zeros(BLOCK, np.uint8), np.zeros(BLOCK, np.uint8)
    for start in range(0, size, BLOCK):
        _split(face[start * channels :], channels, min(BLOCK, size - start), blue, green, red)
        _lightness_block(blue, green, red, luminance, levels, amounts, lightness[start:])
        _ab_block(blue, green, red, amounts, a[start:], b[start:])


@kernel()
def _bgr_block(lightness, a, b, blue, green, red):
    for i in range(BLOCK):
        blue[i], green[i], red[i] = _nearest_bgr(_F(lightness[i]), a[i], b[i])


@kernel(types.void(*_LAB, read(types.u1), types.i8, types.i8, types.u1[::1]))
def lab_to_bgr(lightness, a, b, face, size, channels, out):
    """Write LAB, as ``bgr_to_lab`` gives it, to one face of ``size`` pixels; a fourth channel comes from ``face``."""
    blue, green, red = np.zeros(BLOCK, np.uint8), np.zeros(BLOCK, np.uint8), np.zeros(BLOCK, np.uint8)
    for start in range(0, size, BLOCK):
        count, offset = min(BLOCK, size - start), start * channels
        _bgr_block(lightness[start:], a[start:], b[start:], blue, green, red)
        _interleave(blue, green, red, face[offset:], channels, count, out[offset:])


@lru_cache(maxsize=1)
def lightness_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return (3, 256) int32, what blue, green and red levels add to luminance, and (2041,) float32, L of each step.

    Luminance is counted in 4096ths of a step.
    """
    steps = np.rint(STEPS * linear_light(np.arange(256) / 255))
    luminance = np.outer(LUMINANCE, steps).astype(np.int32)
    luminance[0] += 2048  # to round to nearest
    return luminance, levels_of_luminance()
