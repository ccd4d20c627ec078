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


def test_sides_and_predictions_of_several_sizes_share_a_sheet():
    """The largest face decides; what is smaller is enlarged, to the middle of the frame where coverage is less."""
    sizes, coverage = (32, 64, 48), 0.75
    shades = [[(1 + 3 * side + other) / 10 for other in range(3)] for side in range(3)]
    predictions = [
        [np.full((2, sizes[other] // 2, sizes[other] // 2, 3), shades[side][other], np.float32) for other in range(3)]
        for side in range(3)
    ]
    targets = [np.ones((2, size, size, 4), np.float32) for size in sizes]
    sheet = Samples(coverage, False).get_preview(predictions, targets)
    assert sheet.shape == (14 + 2 * 64, 12 * 64, 3)
    middles = sheet[14 + 32, 32::64, 0]
    wanted = [1.0, *shades[0], 1.0, shades[1][1], shades[1][0], shades[1][2], 1.0, shades[2][2], *shades[2][:2]]
    assert np.abs(middles.astype(int) - np.float32(wanted) * 255).max() <= 1
    cell = sheet[14 : 14 + 64, 64:128, 0]
    assert (cell == middles[1]).sum() == 48 * 48, "the trained part is 48 px wide"


def test_a_learned_mask_has_a_column_behind_each_prediction():
    predictions = np.full((2, 2, 1, 36, 36, 4), 0.5, np.float32)
    predictions[..., 3] = 0
    predictions[..., 12:24, 12:24, 3] = 1
    targets = np.full((2, 1, 36, 36, 4), 0.25, np.float32)
    sheet = Samples(1.0, True, mask_column=True).get_preview(predictions, targets)
    assert sheet.shape == (8 + 36, 10 * 36, 3)
    for column in (2, 4, 7, 9):
        mask = sheet[8:, column * 36 : (column + 1) * 36]
        assert (mask[12:24, 12:24] == 255).all() and mask.sum() == 12 * 12 * 3 * 255
    assert Samples(1.0, True).get_preview(predictions, targets).shape == (44, 6 * 36, 3)
    plain = Samples(1.0, True, mask_column=True).get_preview(predictions[..., :3], targets)
    assert plain.shape == (44, 6 * 36, 3), "nothing was learned"


def test_sides_of_different_numbers_of_faces_are_refused():
    targets = [np.ones((count, 8, 8, 4), np.float32) for count in (1, 2)]
    predictions = [[np.ones((count, 8, 8, 3), np.float32)] * 2 for count in (1, 2)]
    with pytest.raises(ValueError, match="numbers of faces"):
        Samples(1.0, False).get_preview(predictions, targets)


def test_a_colour_is_read_and_refused():
    assert parse_color("#ff8000") == (0, 128, 255)
    for text in ("red", "#ff80", "ff8000", "#gg0000"):
        with pytest.raises(SwapfastError, match="#rrggbb"):
            parse_color(text)
