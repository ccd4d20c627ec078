"""Planes to BGR and back against the formulas of ITU-R BT.601, BT.709 and BT.2020."""

from __future__ import annotations

import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.video.pixels import Conversion, part_of, working_format
from swapfast.video.probe import ColourTags

WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # red and blue in luma
FORMATS = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le", "yuva420p", "gray", "gbrp10le", "gbrap")


def _planes(name: str, rng: np.random.Generator, size: tuple[int, int] = (31, 47)) -> list[np.ndarray]:
    format = working_format(name)
    chroma = tuple((edge + half) >> half for edge, half in zip(size, (format.halves_y, format.halves_x)))
    sizes = [size] if format.is_gray else [size, chroma, chroma] + ([size] if format.has_alpha else [])
    return [rng.integers(0, 1 << format.bits, s).astype(format.dtype) for s in sizes]


def _exact(planes: list[np.ndarray], matrix: int, is_full: bool, bits: int) -> np.ndarray:
    """BGR 0..1 of planes of full size, in float64."""
    red, blue = WEIGHTS[matrix]
    green, step = 1 - red - blue, 1 << (bits - 8)
    y, u, v = (plane.astype(float) for plane in planes[:3])
    peak = (1 << bits) - 1
    y = y / peak if is_full else (y / step - 16) / 219
    u, v = ((c - 128 * step) / (peak if is_full else 224 * step) for c in (u, v))
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return np.clip(np.stack([b, (y - red * r - blue * b) / green, r], -1), 0, 1)


@pytest.mark.long
@pytest.mark.parametrize("name", ["yuv444p", "yuv444p10le"])
@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("span", [1, 2])
def test_every_value_has_the_colour_of_its_standard(name, matrix, span, within):
    """Also values beyond white, black and the gamut, which FFmpeg's own conversion lets wrap around."""
    format = working_format(name)
    planes = _planes(name, np.random.default_rng(matrix))
    pixels = Conversion(format, ColourTags(matrix, span), 1080).to_pixels(planes)
    expected = _exact(planes, matrix, span == 2, format.bits) * format.peak
    # Half a level by rounding, and float32 beside it: 2 ** -24 of at most 4 times the peak, a few times over.
    within(f"{name} {matrix} {span}", np.abs(pixels - expected).max(), 0.5 + format.peak * 4 * 2**-22)


def test_untagged_video_has_the_matrix_of_its_height():
    planes = [np.full((2, 2), value, np.uint8) for value in (100, 90, 200)]
    format = working_format("yuv444p")
    small, large = (Conversion(format, ColourTags(), height).to_pixels(planes) for height in (480, 720))
    assert (small == Conversion(format, ColourTags(6, 1), 480).to_pixels(planes)).all()
    assert (large == Conversion(format, ColourTags(1, 1), 480).to_pixels(planes)).all()
    assert (small != large).any()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("box", [(9, 5, 30, 22), (0, 0, 7, 31), (12, 13, 47, 31), (20, 10, 21, 11), (0, 0, 0, 0)])
def test_a_part_is_converted_as_it_is_within_the_whole(name, box):
    """To the bit, there and back: even and odd edges, at the frame's own edges, one pixel, and nothing."""
    planes = _planes(name, np.random.default_rng(5))
    format = working_format(name)
    conversion = Conversion(format, ColourTags(1, 1), 100)
    whole, part = conversion.to_pixels(planes), conversion.to_pixels(planes, box)
    inside = part_of(box)
    expected = np.zeros_like(whole)
    expected[inside] = whole[inside]
    np.testing.assert_array_equal(part, expected)
    new, new_part = whole.copy(), part.copy()
    new[inside] = new_part[inside] = format.peak - whole[inside]
    for one, other in zip(
        conversion.changed(planes, whole, new), conversion.changed(planes, part, new_part, box), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", FORMATS)
def test_what_nobody_changed_stays_to_the_bit(name):
    planes = _planes(name, np.random.default_rng(3))
    conversion = Conversion(working_format(name), ColourTags(1, 1), 100)
    pixels = conversion.to_pixels(planes)
    for before, after in zip(planes, conversion.changed(planes, pixels, pixels.copy()), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", FORMATS)
def test_a_change_stays_where_it_is(name):
    """Luma and alpha change in the box alone, chroma in the samples it touches; nothing is written in place."""
    planes = _planes(name, np.random.default_rng(4))
    former = [plane.copy() for plane in planes]
    format = working_format(name)
    conversion = Conversion(format, ColourTags(1, 1), 100)
    old = conversion.to_pixels(planes)
    new = old.copy()
    new[8:20, 10:30] = format.peak - old[8:20, 10:30]
    changed = conversion.changed(planes, old, new)
    for index, (before, after) in enumerate(zip(planes, changed, strict=True)):
        rows, columns = np.nonzero(before != after)
        is_chroma = index in (1, 2) and not format.is_rgb
        x, y = (2 if is_chroma and half else 1 for half in (format.halves_x, format.halves_y))
        assert rows.size and rows.min() >= 8 // y and rows.max() < -(-20 // y)
        assert columns.min() >= 10 // x and columns.max() <= 30 // x
    assert all((plane == before).all() for plane, before in zip(planes, former))


@pytest.mark.parametrize(
    ("name", "most"), [("yuv444p", 1), ("yuv420p", 1), ("yuv444p10le", 16), ("gray", 1), ("gbrp", 0)]
)
def test_a_new_colour_comes_back(name, most, within):
    """A face of one colour: what is read again is what was written, to half a sample of each plane."""
    planes = _planes(name, np.random.default_rng(5))
    format = working_format(name)
    conversion = Conversion(format, ColourTags(1, 1), 100)
    old = conversion.to_pixels(planes)
    middle = [np.full_like(plane, 128 << (format.bits - 8)) for plane in planes]
    flat = conversion.to_pixels(middle)
    new = flat.copy()
    new[4:28, 6:40] = np.array([0.3, 0.3, 0.3] if format.is_gray else [0.3, 0.5, 0.7]) * format.peak
    again = conversion.to_pixels(conversion.changed(middle, flat, new))
    # Half a sample of luma is 0.58 of a level, of chroma up to 1.06: of ten bits a quarter of it, in 16-bit levels.
    tolerance = 2 * format.peak / ((1 << format.bits) - 1) if most else 0
    inner = (slice(6, 26), slice(8, 38))
    error = np.abs(again[inner].astype(int) - new[inner]).max()
    within(f"{name}", error, tolerance)
    assert old.shape == new.shape


def test_highlights_beyond_white_do_not_shine_through():
    """A pixel brighter than white is shown as white; a gray put there is that gray, not one brighter by the excess."""
    format = working_format("yuv444p")
    conversion = Conversion(format, ColourTags(1, 1), 100)
    planes = [np.full((4, 4), value, np.uint8) for value in (254, 128, 128)]
    old = conversion.to_pixels(planes)
    assert (old == 255).all()
    changed = conversion.changed(planes, old, np.full_like(old, 128))
    assert np.abs(changed[0].astype(int) - 126).max() <= 1  # 16 + 128 * 219 / 255 = 125.9


def test_packed_and_turned_formats_have_planes():
    assert working_format("nv12").name == "yuv420p" and working_format("p010le").name == "yuv420p10le"
    assert working_format("rgb24").name == "gbrp" and working_format("pal8").has_alpha
    assert working_format("rgb48be").name == "gbrp16le" and working_format("yuv420p10be").name == "yuv420p10le"
    with pytest.raises(SwapfastError, match="xyz12le"):
        working_format("xyz12le")
