"""The previews that a model folder keeps: which ones, how many, and what becomes of damage."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.preview import history
from swapfast.preview.history import FOLDER, PreviewHistory, kept_previews, read_sheet, surplus


def _sheet(shade: int, shape: tuple[int, int] = (24, 40)) -> np.ndarray:
    return np.full((*shape, 3), shade, np.uint8)


@pytest.mark.slow
def test_what_is_kept_is_spread_evenly_and_ends_with_the_newest(tmp_path):
    kept = PreviewHistory(tmp_path, 10)
    for step in range(250, 250 * 400 + 1, 250):
        kept.add(step, _sheet(step // 250 % 256))
    steps = [preview.step for preview in kept_previews(tmp_path)]
    assert len(steps) == 10 and steps[0] == 250 and steps[-1] == 250 * 400
    gaps = np.diff(steps)
    assert gaps.max() <= 4 * np.median(gaps), "no long stretch is without a picture"
    assert len(list((tmp_path / FOLDER).iterdir())) == 10
    assert abs(int(read_sheet(kept_previews(tmp_path)[-1].path)[0, 0, 0]) - 400 % 256) <= 2


def test_both_pictures_are_kept_and_dropped_together(tmp_path):
    kept = PreviewHistory(tmp_path, 3)
    for step in range(1, 8):
        kept.add(step, _sheet(200), _sheet(50))
    previews = kept_previews(tmp_path)
    assert [preview.step for preview in previews][-1] == 7 and len(previews) == 3
    assert len(list((tmp_path / FOLDER).iterdir())) == 6
    assert [round(int(read_sheet(path)[0, 0, 0]), -1) for path in previews[0].files] == [200, 50]


def test_a_run_that_goes_back_drops_what_it_gave_up(tmp_path):
    kept = PreviewHistory(tmp_path, 10)
    for step in (100, 200, 300):
        kept.add(step, _sheet(9), _sheet(9))
    PreviewHistory(tmp_path, 10).add(150, _sheet(9), _sheet(9))
    assert [preview.step for preview in kept_previews(tmp_path)] == [100, 150]


def test_bytes_are_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "MOST_BYTES", 40_000)
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    kept = PreviewHistory(tmp_path, 100)
    for step in range(1, 21):
        kept.add(step, noise, noise)
    total = sum(path.stat().st_size for path in (tmp_path / FOLDER).iterdir())
    assert 20_000 < total <= 40_000


def test_a_large_sheet_is_kept_smaller(tmp_path):
    PreviewHistory(tmp_path, 1).add(1, _sheet(7, (300, history.LONGEST * 2)))
    assert read_sheet(kept_previews(tmp_path)[0].path).shape == (150, history.LONGEST, 3)


@pytest.mark.parametrize("steps, limit, dropped", [([1, 2, 3], 3, []), ([1, 2, 50], 2, [2]), ([5, 9], 1, [5])])
def test_which_go(steps, limit, dropped):
    assert surplus(steps, limit) == dropped


def test_a_folder_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path):
    told: list[str] = []
    (tmp_path / FOLDER).write_text("in the way")
    kept = PreviewHistory(tmp_path, 5, told.append)
    kept.add(1, _sheet(1))
    kept.add(2, _sheet(1))
    assert len(told) == 1 and told[0].startswith("warning: ") and FOLDER in told[0]
    assert kept_previews(tmp_path) == []


def test_nothing_else_in_the_folder_is_touched_or_shown(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in ("notes.txt", "1.jpg", "00000300.png", "00000001-plain.jpg", ".writing-ab12-00000007.jpg"):
        (folder / name).write_text("not ours")
    PreviewHistory(tmp_path, 1).add(2, _sheet(3))
    assert [preview.step for preview in kept_previews(tmp_path)] == [2]
    assert {p.name for p in folder.iterdir()} == {
        *("notes.txt", "1.jpg", "00000300.png", "00000001-plain.jpg", "00000002.jpg")
    }


def _bomb(path):
    """A PNG whose header speaks of 4 billion pixels."""
    _, png = cv2.imencode(".png", _sheet(1))
    data = bytearray(png.tobytes())
    data[16:24] = (65535).to_bytes(4, "big") * 2
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: path.write_bytes(b"no picture"), "is no picture"),
        (lambda path: path.write_bytes(b""), "is no picture"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xc0\x00"), "is no picture"),
        (_bomb, "million px"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: __import__("os").mkfifo(path), "pipe"),
        (lambda path: None, "No such file"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(tmp_path, make, words):
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(SwapfastError, match=words) as caught:
        read_sheet(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
