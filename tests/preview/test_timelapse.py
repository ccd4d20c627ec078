"""The film of what a model learned: its frames, its length, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import cli
from swapfast.preview.history import FOLDER, PreviewHistory
from swapfast.preview.timelapse import CAPTION, find_pictures, frames

STEPS = (250, 500, 1000)


@pytest.fixture
def model(tmp_path) -> Path:
    """Previews that get brighter, darker without the mask."""
    folder = tmp_path / "model"
    folder.mkdir()
    history = PreviewHistory(folder, 10)
    for step in STEPS:
        history.add(step, np.full((101, 203, 3), step // 5, np.uint8), np.full((101, 203, 3), step // 20, np.uint8))
    return folder


def _film(path: Path) -> list[np.ndarray]:
    if path.suffix == ".gif":
        with Image.open(path) as film:
            pictures = []
            for index in range(film.n_frames):
                film.seek(index)
                pictures += [np.asarray(film.convert("RGB"))] * round(film.info["duration"] / 100)
            return pictures
    video = cv2.VideoCapture(str(path))
    pictures = []
    while (read := video.read())[0]:
        pictures.append(read[1])
    assert video.get(cv2.CAP_PROP_FPS) == 10
    return pictures


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_shows_every_kept_preview_in_turn(model, tmp_path, capsys, suffix):
    """With the iteration below, and the last one for two seconds."""
    if suffix == ".mp4":
        pytest.importorskip("av")
    out = tmp_path / f"film{suffix}"
    assert cli.main(["timelapse", str(model), "-o", str(out)]) == 0
    assert "iterations 250 to 1,000 in 2.2 s" in capsys.readouterr().out
    pictures = _film(out)
    assert len(pictures) == 2 + 20
    shades = [int(picture[20, 100].mean()) for picture in pictures]
    assert np.abs(np.array(shades[:3]) - [step / 5 for step in STEPS]).max() <= 6, "levels that compression costs"
    assert len({shade // 8 for shade in shades[2:]}) <= 2
    assert pictures[0].shape == (100 + CAPTION, 204, 3)
    assert pictures[0][-CAPTION + 6 :].max() > 150, "a line says which iteration it is"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [out.name]


def test_without_the_mask_and_of_a_folder(model, tmp_path):
    plain = find_pictures(model, plain=True)
    assert [step for step, _ in plain] == list(STEPS)
    assert abs(int(next(frames(plain[2:], 500))[20, 100, 0]) - 50) <= 2
    own = tmp_path / "own"
    own.mkdir()
    for step in range(1, 6):
        cv2.imwrite(str(own / f"{step:08}.jpg"), np.full((50, 60, 3), 9, np.uint8))
    assert len(find_pictures(model, own)) == 5
    own.rename(model / "timelapse")  # of train -z, which keeps them all
    assert len(find_pictures(model)) == 5


def test_frames_have_one_even_size_whatever_the_pictures(model):
    cv2.imwrite(str(model / FOLDER / "00002000.jpg"), np.full((300, 90, 3), 200, np.uint8))
    shown = list(frames(find_pictures(model), 170))
    assert len({frame.shape for frame in shown}) == 1 and len(shown) == 4
    assert shown[0].shape[0] % 2 == shown[0].shape[1] % 2 == 0
    assert max(shown[0].shape) <= 170


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, message",
    [
        (["-o", "film.avi"], "-o/--out film.avi: give a name that ends in .mp4, .gif"),
        (["-o", "missing/film.gif"], "there is no folder"),
        (["-o", "there.gif"], "is there already"),
        (["-o", "f.gif", "--fps", "0"], "--fps 0: must lie within 0.5 and 60"),
        (["-o", "f.gif", "--fps", "nan"], "--fps nan: must lie within"),
        (["-o", "f.gif", "--longest", "9"], "--longest 9: must lie within 160 and 4096"),
        (["-o", "f.gif", "--pictures", "nowhere"], "--pictures nowhere: no such folder"),
        (["-o", "f.gif", "--pictures", "."], "--pictures .: holds no pictures"),
        (["-o", "f.gif", "--pictures", ".", "--no-mask"], "--no-mask with --pictures"),
    ],
)
def test_a_wrong_request_is_one_line(model, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.gif").write_text("mine")
    assert cli.main(["timelapse", "model", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there.gif"]


def test_a_folder_without_pictures_and_a_damaged_one(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = str(tmp_path / "f.gif")
    assert cli.main(["timelapse", str(tmp_path / "empty"), "-o", out]) == 2
    assert "holds no pictures such as 00000250.jpg" in capsys.readouterr().err
    assert cli.main(["timelapse", str(tmp_path / "empty"), "-o", out, "--no-mask"]) == 2
    assert "--no-mask: " in capsys.readouterr().err
    (model / FOLDER / "00000500.jpg").write_bytes(b"torn")
    assert cli.main(["timelapse", str(model), "-o", out]) == 2
    assert "00000500.jpg: is no picture" in capsys.readouterr().err and not Path(out).exists()
