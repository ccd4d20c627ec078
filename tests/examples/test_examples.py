"""The scripts of examples/ and benchmarks/film.py, run on small drawn clips and faces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import film
from examples import cpu_gpu, sweep, two_videos
from swapfast.synthetic import synthesize
from swapfast.video.film import draw_film
from swapfast.video.reader import VideoReader
from tests import preloaded

FRAMES, SIZE = 8, 96


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """What `make film` leaves, of 8 frames and two steps."""
    folder = tmp_path_factory.mktemp("film")
    assert draw_film(folder / "clips", FRAMES / 25, SIZE, clips=True) == FRAMES
    clips = (folder / "clips" / "a.mp4", folder / "clips" / "person_b.mp4")
    words = [*map(str, clips), str(folder), "--size", "96", "-i", "2", "-b", "2", "--preview-images", "2"]
    assert two_videos.main(words, start=preloaded.run) == 0
    return folder


@pytest.mark.long
def test_two_videos_become_a_film_with_the_first_ones_sound(made):
    names = {path.name for path in made.iterdir()}
    assert {"a", "b", "inspect.png", "skip.txt", "model", "swapped.mp4", "report.json"} <= names
    assert len(list((made / "a").glob("*.png"))) == FRAMES
    frames = [frame.pixels() for frame in VideoReader(made / "swapped.mp4")]
    originals = [frame.pixels() for frame in VideoReader(made / "clips" / "a.mp4")]
    assert len(frames) == FRAMES
    assert all(np.abs(new.astype(int) - old).max() > 40 for new, old in zip(frames, originals)), "faces are swapped"
    corners = [np.abs(new.astype(int) - old)[:8, :8].max() for new, old in zip(frames, originals)]
    assert max(corners) <= 8, "the rest is as it was, but for the encoder"
    import av

    with av.open(str(made / "swapped.mp4")) as clip:
        assert [stream.type for stream in clip.streams] == ["video", "audio"]


@pytest.mark.long
def test_a_film_is_measured_against_its_true_swap(made, tmp_path, capsys, within):
    sheet, figures = tmp_path / "sheet.png", tmp_path / "figures.json"
    assert film.main([str(made), "--sheet", str(sheet), "--json", str(figures)]) == 0
    assert f"{FRAMES} frames: " in capsys.readouterr().out
    result = json.loads(figures.read_text())
    assert result["frames_found"] == FRAMES
    within("drawn landmarks against themselves, of the eyes' distance", result["landmark_error"], 0.0005)  # to 0.01 px
    assert result["frames"] == FRAMES and 5 < result["swap_db"] < 40 and result["flicker_swapped"] >= 0
    height, width = cv2.imread(str(sheet)).shape[:2]
    assert (height, width) == (3 * (192 + 22), 5 * 196 - 4)
    true = tmp_path / "true"
    shutil.copytree(made / "clips", true / "clips")
    shutil.copy(true / "clips" / "b.mp4", true / "swapped.mp4")
    shutil.copy(made / "report.json", true)
    shutil.copytree(made / "a", true / "a")
    assert film.measure(true)["swap_db"] == 100, "the true swap is at the limit of the measure"
    shutil.copy(true / "clips" / "a.mp4", true / "swapped.mp4")
    unchanged = film.measure(true)
    assert unchanged["swap_db"] == unchanged["unchanged_db"] == result["unchanged_db"]


def test_faces_at_which_extract_was_stopped_are_not_all_there(tmp_path):
    report = tmp_path / "extract.json"
    assert two_videos.is_done(tmp_path), "made by hand"
    report.write_text('{"is_stopped": true}')
    assert not two_videos.is_done(tmp_path)
    report.write_text('{"is_stopped": false}')
    assert two_videos.is_done(tmp_path) and not two_videos.is_done(tmp_path / "nowhere")


@pytest.mark.slow
def test_what_is_missing_of_a_film_is_named(tmp_path, capsys):
    assert film.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.jsonl" in line
    assert two_videos.main(["no.mp4", "b.mp4", str(tmp_path / "out")], start=preloaded.run) == 2
    assert "no.mp4: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "faces"
    synthesize(folder, 6, 64, 2, 1)
    return folder


@pytest.mark.long
def test_a_sweep_trains_each_and_makes_a_table(faces, tmp_path, capsys):
    words = ["-A", str(faces / "a"), "-B", str(faces / "b"), "-o", str(tmp_path), "--truth", str(faces / "truth")]
    words += ["-i", "2", "-b", "2", "--preview-images", "2", "--set", "optimizer.learning_rate=1e-4"]
    assert sweep.main(words, start=preloaded.run) == 0
    printed = capsys.readouterr().out
    assert printed.endswith((tmp_path / "table.md").read_text())
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in rows] == ["tiny-1e-4"]
    assert all(row["iterations"] == 2 and row["parameters"] > 0 and row["db"] > 3 for row in rows)


def test_the_best_of_a_sweep_comes_first():
    rows = [sweep.Row("worse", 1.0, 2, 3.0, 0.5, 20.0), sweep.Row("better", 1.0, 2, 3.0, 0.6, 21.0)]
    assert [line.split("|")[1].strip() for line in sweep._table(rows, "dB").splitlines()[2:]] == ["better", "worse"]


def test_a_setting_without_a_value_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        sweep.main(["-A", "a", "-B", "b", "-o", str(tmp_path), "--set", "optimizer.learning_rate"])
    assert caught.value.code == 2 and "NAME=VALUE" in capsys.readouterr().err


@pytest.mark.long
def test_the_cpu_is_measured_where_there_is_no_gpu(faces, tmp_path, capsys):
    words = ["-A", str(faces / "a"), "-B", str(faces / "b"), "-o", str(tmp_path / "speed")]
    words += ["-i", "4", "--warm-up", "1", "-b", "2", "--preview-images", "2"]
    assert cpu_gpu.main(words, start=preloaded.run) == 0
    lines = capsys.readouterr().out.splitlines()
    cpu = next(line for line in lines if line.startswith("| cpu"))
    assert float(cpu.split("|")[2]) > 0 and cpu.endswith("| 1.0 |")
    assert cpu_gpu.main(words, start=preloaded.run) == 2
    assert "is there already" in capsys.readouterr().err
