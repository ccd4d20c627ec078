"""The form that later checks of benchmark results lean on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def written(folder: Path, name: str, *arguments: object) -> Path:
    """The file that a quick run writes."""
    file = folder / f"{name}.json"
    result = call(name, "--quick", "--json", file, *arguments)
    assert result.returncode == 0, result.stderr
    return file


@pytest.fixture(scope="module")
def loader(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("loader"), "loader", "--sizes", 64, "--faces", 6, "--batch", 4)


@pytest.fixture(scope="module")
def decode(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("decode"), "decode", "--sizes", 64, "--faces", 4)


@pytest.fixture(scope="module")
def scale(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("scale"), "scale", "--faces", 200)


def rows_of(file: Path) -> list[dict]:
    return json.loads(file.read_text())["results"]


@pytest.mark.parametrize("name", ["loader", "decode", "scale"])
def test_a_benchmark_says_where_it_ran_and_gives_numbers_that_fit_together(name, request):
    content = json.loads(request.getfixturevalue(name).read_text())
    environment = content["environment"]
    for key in ("processor", "cores", "gpus", "driver", "versions", "torch_threads", "opencv_threads", "commit"):
        assert key in environment
    assert {"torch", "dali", "kornia", "opencv"} <= set(environment["versions"])
    timed = [row for row in content["results"] if row["name"] != "memory"]
    needed = {"name", "size", "batch", "median_ms", "iqr_ms", "faces_per_s", "repeats", "peak_mib"}
    assert timed and all(needed <= set(row) for row in timed)
    for row in timed:
        assert row["median_ms"] > 0
        assert abs(row["faces_per_s"] - 1000 * row["batch"] / row["median_ms"]) < 0.01 * row["faces_per_s"]


def test_the_loader_benchmark_has_every_stage_and_every_way(loader):
    rows = rows_of(loader)
    stages = {"read_headers", "index_again", "decode", "crop_and_masks", "augment", "to_tensor", "end_to_end"}
    assert stages <= {row["name"] for row in rows}
    whole = {(row["backend"], row["state"]) for row in rows if row["name"] == "end_to_end" and row["device"] == "cpu"}
    assert whole == {
        ("opencv", "warm"),
        ("opencv", "warm_uint8"),
        ("opencv", "cold"),
        ("opencv", "cache_device"),
        ("device", "cache_device"),
        ("opencv", "cache_off"),
        ("peer_loop", "warm"),
    }
    ours = [row for row in rows if row["name"] == "end_to_end" and row["backend"] != "peer_loop"]
    assert all(row["ratio_to_peer"] > 0 for row in ours)


def test_the_decode_benchmark_compares_pixels(decode):
    rows = rows_of(decode)
    assert {row["file"] for row in rows} == {"png", "jpeg", "mask_jpeg", "raw"}
    assert {"opencv_threads", "kornia_processes"} <= {row["decoder"] for row in rows if row["file"] == "png"}
    assert all(row["max_difference"] == 0 for row in rows if row["file"] in ("png", "raw"))
    assert all(row["cpu_ms_per_face"] > 0 for row in rows)


def test_the_scale_benchmark_has_a_row_for_every_number_of_faces(scale):
    rows = rows_of(scale)
    for name in ("first_start", "restart", "step"):
        assert [row["faces"] for row in rows if row["name"] == name] == [2, 20, 200]
    restarts = [row for row in rows if row["name"] == "restart"]
    assert all(row["whole_s"] >= row["read_s"] > 0 for row in restarts)
    assert [row["state"] for row in rows if row["name"] == "memory"] == ["first_start", "restart"]


def test_a_plot_shows_something(loader, decode, tmp_path):
    image = tmp_path / "plot.png"
    result = call("plot", loader, loader, decode, "-o", image)
    assert result.returncode == 0, result.stderr
    pixels = cv2.imread(str(image))
    assert min(pixels.shape[:2]) > 500
    drawn = (pixels < 200).any(axis=2)
    # Both halves, diagram and bars, and enough of each to be more than a frame.
    assert all(0.01 < half.mean() < 0.6 for half in (drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]))


def test_a_plot_of_nothing_is_refused(scale, tmp_path):
    result = call("plot", scale, "-o", tmp_path / "plot.png")
    assert result.returncode == 1 and "no loader or decode results" in result.stderr
