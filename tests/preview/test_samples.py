"""The preview sheet against faceswap's own, and what it does where the peer overflows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.preview.samples import Samples, parse_color


@pytest.mark.golden
def test_sheets_are_the_peers(golden, within):
    """Below the header, whose letters depend on the OpenCV version.

    The peer counts a side's predictions from itself (B>B, B>A); ours by destination (B>A, B>B).
    """
    vectors = golden("preview")
    manifest = json.loads((golden.folder / "manifest.json").read_text())
    cases = manifest["files"]["preview.npz"]["params"]["cases"]
    assert cases
    for name, case in cases.items():
        samples = Samples(case["coverage"], case["has_mask"], case["opacity"], case["color"])
        if case["toggled_off"]:
            samples.toggle_mask_display()
        predictions = vectors[f"pred_{name}"].astype(np.float32) / 255
        predictions = np.stack([predictions[0], predictions[1, ::-1]])
        sheet = samples.get_preview(predictions, vectors[f"target_{name}"].astype(np.float32) / 255)
        theirs = vectors[f"image_{name}"]
        assert sheet.shape == theirs.shape and sheet.dtype == np.uint8
        header = int(case["full"] / 4.5)
        error = np.abs(sheet.astype(int) - theirs)[header:].max()
        within(f"{name}, levels", error, 1)


def test_values_beyond_the_limits_do_not_wrap_around():
    predictions = np.full((2, 2, 1, 32, 32, 3), 1.02, dtype=np.float32)
    sheet = Samples(1.0, False).get_preview(predictions, np.ones((2, 1, 32, 32, 4), dtype=np.float32))
    assert (sheet[32:] == 255).all()


def test_each_column_shows_what_its_title_says():
    predictions = np.zeros((2, 2, 1, 36, 36, 3), dtype=np.float32)
    predictions[0, 1], predictions[1, 0] = 0.25, 0.75  # A>B, B>A
    sheet = Samples(1.0, False).get_preview(predictions, np.ones((2, 1, 36, 36, 4), dtype=np.float32))
    middles = sheet[sheet.shape[0] - 18, 18::36, 0]
    assert middles.tolist() == [255, 0, 63, 255, 0, 191]


@pytest.mark.parametrize("sides", [1, 2, 3])
def test_every_side_is_drawn(sides):
    """Each followed by itself and then by the others, in as many columns as that makes."""
    predictions = np.zeros((sides, sides, 1, 36, 36, 3), dtype=np.float32)
    shades = [[(1 + side * sides + other) / 10 for other in range(sides)] for side in range(sides)]
    for side in range(sides):
        for other in range(sides):
            predictions[side, other] = shades[side][other]
    sheet = Samples(1.0, False).get_preview(predictions, np.ones((sides, 1, 36, 36, 4), dtype=np.float32))
    assert sheet.shape == (8 + 36, sides * (sides + 1) * 36, 3)
    expected = []
    for side, row in enumerate(shades):
        expected += [1.0, row[side], *(shade for other, shade in enumerate(row) if other != side)]
    assert sheet[26, 18::36, 0].tolist() == [int(np.float32(shade) * np.float32(255)) for shade in expected]
    titles = sheet[:8].reshape(8, -1, 36, 3)
    assert (titles.min((0, 2, 3)) < 200).all(), "each column has a title"


def test_a_colour_is_read_and_refused():
    assert parse_color("#ff8000") == (0, 128, 255)
    for text in ("red", "#ff80", "ff8000", "#gg0000"):
        with pytest.raises(SwapfastError, match="#rrggbb"):
            parse_color(text)
