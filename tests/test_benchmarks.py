"""The form that later checks of benchmark results lean on."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import augment as augment_benchmark
from benchmarks import compare
from benchmarks.common import Timing, summary
from benchmarks.step_cost import step_cost
from swapfast.config import OPTIMIZER_NAMES
from swapfast.optim.clip import METHODS
from tests import preloaded

pytestmark = pytest.mark.slow  # whole programs

ROOT = Path(__file__).resolve().parents[1]
ROUNDED = 2 * 0.5e-4  # five digits of each of two values
UNTIMED = ("memory", "copy_bandwidth", "unusable")  # rows that are not about faces
GPU_ROWS = (("kornia", "cuda"), ("triton", "cuda"))
STEPS = ("color", "clahe", "transform", "warp", "warp_landmarks", "masks_targets", "to_float")


def call(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    return preloaded.run(command, cwd=ROOT, capture_output=True, text=True)


def written(folder: Path, name: str, *arguments: object) -> Path:
    """The file that a quick run writes."""
    file = folder / f"{name}.json"
    result = call(name, "--quick", "--json", file, *arguments)
    assert result.returncode == 0, result.stderr
    return file


@pytest.fixture(scope="module")
def loader(tmp_path_factory) -> Path:
    return written(
        tmp_path_factory.mktemp("loader"), "loader", "--sizes", 64, "--faces", 6, "--cold-faces", 12, "--batch", 4
    )


@pytest.fixture(scope="module")
def decode(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("decode"), "decode", "--sizes", 64, "--faces", 4)


@pytest.fixture(scope="module")
def scale(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("scale"), "scale", "--faces", 100)


@pytest.fixture(scope="module")
def augment(tmp_path_factory) -> Path:
    tiny = ("--sizes", 64, "--batch", 4, "--faces", 2, "--threads", 1)
    return written(tmp_path_factory.mktemp("augment"), "augment", *tiny)


@pytest.fixture(scope="module")
def optimizers(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("optimizers"), "optimizers", "--model", "tiny", "--batch", 2)


def rows_of(file: Path) -> list[dict]:
    return json.loads(file.read_text())["results"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["loader", "decode", "scale", "augment", "optimizers"])
def test_a_benchmark_says_where_it_ran_and_gives_numbers_that_fit_together(name, request):
    content = json.loads(request.getfixturevalue(name).read_text())
    environment = content["environment"]
    for key in ("processor", "cores", "gpus", "driver", "versions", "torch_threads", "opencv_threads", "commit"):
        assert key in environment
    assert {"torch", "dali", "kornia", "opencv", "numba"} <= set(environment["versions"])
    timed = [row for row in content["results"] if row["name"] not in UNTIMED and not row.get("estimate")]
    needed = {"name", "size", "batch", "median_ms", "iqr_ms", "faces_per_s", "repeats", "peak_mib"}
    assert timed and all(needed <= set(row) for row in timed)
    for row in timed:
        assert row["median_ms"] > 0
        assert row["faces_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"], rel=ROUNDED)


@pytest.mark.parametrize("seconds", [1.6225e-6, 0.12345, 86_400.0])
def test_short_and_long_times_are_told_equally_exactly(seconds):
    row = summary(Timing([0.9 * seconds, seconds, 1.2 * seconds], None), 4)
    assert row["median_ms"] == pytest.approx(1000 * seconds, rel=ROUNDED)
    assert row["faces_per_s"] == pytest.approx(4 / seconds, rel=ROUNDED)
    assert row["iqr_ms"] == pytest.approx(300 * seconds, rel=ROUNDED)  # quartiles of three: the outer ones


@pytest.mark.long
def test_the_loader_benchmark_has_every_stage_and_every_way(loader):
    rows = rows_of(loader)
    stages = {"read_headers", "index_again", "decode", "crop_and_masks", "augment", "to_tensor", "end_to_end"}
    assert stages <= {row["name"] for row in rows}
    whole = {(row["backend"], row["state"]) for row in rows if row["name"] == "end_to_end" and row["device"] == "cpu"}
    assert whole == {
        ("opencv", "warm"),
        ("opencv", "warm_uint8"),
        ("opencv", "cold"),
        ("opencv", "cache_gpu"),
        ("kornia", "cache_gpu"),
        ("opencv", "cache_off"),
        ("peer_loop", "warm"),
    }
    ours = [row for row in rows if row["name"] == "end_to_end" and row["backend"] != "peer_loop"]
    assert all(row["ratio_to_peer"] > 0 for row in ours)


@pytest.mark.long
def test_the_decode_benchmark_compares_pixels(decode):
    rows = rows_of(decode)
    assert {row["file"] for row in rows} == {"png", "jpeg", "mask_jpeg", "raw"}
    assert {"opencv_threads", "kornia_processes"} <= {row["decoder"] for row in rows if row["file"] == "png"}
    assert all(row["max_difference"] == 0 for row in rows if row["file"] in ("png", "raw"))
    assert all(row["cpu_ms_per_face"] > 0 for row in rows)


@pytest.mark.long
def test_the_scale_benchmark_has_a_row_for_every_number_of_faces(scale):
    rows = rows_of(scale)
    starts = ["first_start", "restart", "restart_to_landmarks"]
    for name in (*starts, "step"):
        assert [row["faces"] for row in rows if row["name"] == name] == [1, 10, 100]
    restarts = [row for row in rows if row["name"] == "restart"]
    assert all(row["whole_s"] >= row["read_s"] > 0 for row in restarts)
    assert [row["state"] for row in rows if row["name"] == "memory"] == starts


@pytest.mark.long
def test_the_augment_benchmark_has_every_step_of_every_backend(augment):
    rows = [row for row in rows_of(augment) if row["device"] == "cpu"]
    found = {(row["name"], row["backend"]) for row in rows}
    for name in (*STEPS, "whole", "whole_landmarks"):
        assert {(name, backend) for backend in ("peer_loop", "opencv", "kornia")} <= found
    dali = {row["name"] for row in rows_of(augment) if row["backend"] == "dali_affine"}
    assert dali == {"transform", "masks_targets", "to_float", "whole"}  # what DALI has no function for is not there
    assert all(row["ratio_to_peer"] == 1 for row in rows if row["backend"] == "peer_loop")
    assert all(row["ratio_to_peer"] > 0 and row["added_mib"] >= 0 and row["threads"] == 1 for row in rows)


def test_the_augment_benchmark_speaks_of_a_gpu_measured_or_estimated(augment):
    content = json.loads(augment.read_text())
    rows = [r for r in content["results"] if (r.get("backend"), r.get("device")) in GPU_ROWS and r["name"] == "whole"]
    assert {row["size"] for row in rows} == {64}
    assert all(0 < row["floor_fraction"] < 1 for row in rows)
    measured = [row for row in content["results"] if row["name"] in ("copy_bandwidth", "host_to_device")]
    if content["environment"]["gpus"] and measured:
        assert len(measured) == 2 and all(row["gb_per_s"] > 1 for row in measured)
        assert all(row["host_ms"] > 0 and row["device_ms"] > 0 and row["beside_mib"] >= 0 for row in rows)
        copied = [row for row in content["results"] if row.get("copied")]
        assert {row["backend"] for row in copied} == {"peer_loop", "opencv"}
    else:
        counted = {row["backend"]: row for row in rows}
        assert all(row["estimate"] and not {"median_ms", "device_ms", "faces_per_s"} & set(row) for row in rows)
        assert counted["kornia"]["launches"] > 100 and counted["kornia"]["instructions_per_pixel"] is None
        if importlib.util.find_spec("triton"):
            assert counted["triton"]["launches"] == 3 and counted["triton"]["instructions_per_pixel"] > 300


@pytest.mark.long
def test_the_augment_benchmark_measures_the_whole_alone_and_without_the_peer(tmp_path):
    tiny = ("--sizes", 32, "--batch", 2, "--faces", 1, "--threads", 1, "--repeats", 1)
    chosen = ("--steps", "whole", "--peer-up-to", 31, "--backends", "opencv", "dali_affine")
    rows = [row for row in rows_of(written(tmp_path, "augment", *tiny, *chosen)) if "median_ms" in row]
    assert [row["backend"] for row in rows if row["name"] == "whole"] == ["opencv", "dali_affine"]
    assert {row["name"] for row in rows} <= {"whole", "host_to_device"}
    assert not any("ratio_to_peer" in row for row in rows)


def test_an_unknown_backend_is_refused_by_the_augment_benchmark():
    refused = call("augment", "--backends", "torch")
    assert refused.returncode == 2 and "--backends torch: there are" in refused.stderr


def test_the_optimizer_benchmark_has_every_optimizer_and_every_way_to_clip(optimizers):
    rows = rows_of(optimizers)
    assert [row["name"] for row in rows].count("train_step") == 1
    steps = {row["optimizer"]: row for row in rows if row["name"] == "optimizer"}
    assert set(steps) == {*OPTIMIZER_NAMES, "torch_adam"}
    assert all(row["ratio_to_adam"] > 0 and row["share_of_train_step"] > 0 for row in steps.values())
    clips = {row["method"]: row for row in rows if row["name"] == "clip"}
    assert set(clips) == {*METHODS, "torch_clip_grad_norm"}
    assert all(math.isfinite(row["share_of_train_step"]) for row in clips.values())
    assert [row["half_lives"] for row in rows if row["name"] == "ema" and row["share_of_train_step"] > 0] == [1, 3]


def decibels(a: Tensor, b: Tensor) -> float:
    return float(-10 * np.log10(np.mean((a.double().numpy() - b.double().numpy()) ** 2)))


@pytest.mark.parametrize("name", ["whole", "whole_landmarks"])
def test_the_backends_that_are_compared_do_the_same_work(name, tmp_path, at_least):
    data = augment_benchmark.make_data(augment_benchmark.make_records(tmp_path, 2), 128, 4)
    there = {backend.name: backend.make(data) for backend in augment_benchmark.backends(1) if backend.device == "cpu"}
    made = {key: calls[name]() for key, calls in there.items() if name in calls}
    opencv = made["opencv"]
    kornia = made["kornia"]
    pairs = ((opencv.feed, kornia.feed), (opencv.targets[0], kornia.targets[0]), (opencv.masks[0], kornia.masks[0]))
    found = [decibels(*pair) for pair in pairs]
    assert all(a > b for a, b in zip(found, (40, 40, 60))), f"{found} dB"
    if "dali_affine" in made:  # in the original colours, so only the masks can be compared
        masks = torch.from_numpy(np.stack([np.asarray(face) for face in made["dali_affine"][0]])[:, 3:])
        # OpenCV rounds to bytes, at worst 59 dB where all is gray, and positions to 1/32 px, which shows at edges.
        at_least("DALI's masks beside OpenCV's, dB", decibels(opencv.masks[0], masks), 50)
    feed, target, masks = made["peer_loop"]  # its amounts are its own
    assert feed.shape == target.shape == masks.shape == (4, 128, 128, 3)
    assert 0.2 < float(feed.mean()) / float(opencv.feed.mean()) < 5


@pytest.mark.long
def test_augment_results_become_a_table_and_a_diagram(augment, tmp_path):
    content = json.loads(augment.read_text())
    opencv = [row for row in content["results"] if row.get("backend") == "opencv" and row["name"] == "whole"]
    times = {"faces_per_s": 123456.0, "ratio_to_peer": 12.3, "host_ms": 0.412, "device_ms": 0.0953}
    other, image = tmp_path / "gpu.json", tmp_path / "plot.png"
    rows = [row | {"device": "cuda", "backend": "triton"} | times for row in opencv]
    environment = content["environment"] | {"gpus": ["NVIDIA H200"]}
    other.write_text(json.dumps({"environment": environment, "results": rows}))

    page = tmp_path / "page.md"
    page.write_text("before\n\n{}\n\nformer\n\n{}\n\nafter\n".format(*compare.MARKS))

    result = call("compare", augment, other, "-o", image, "--markdown", "--into", page)
    assert result.returncode == 0, result.stderr
    parts = page.read_text().split("\n\n")
    assert (parts[0], parts[-1]) == ("before", "after\n") and "former" not in parts
    assert result.stdout.strip() in page.read_text()
    lines = result.stdout.splitlines()
    head = next(line for line in lines if line.startswith("|"))
    assert all(f"{name}, CPU" in head for name in ("faceswap's way", "opencv", "kornia"))
    speeds = [line for line in lines if line.startswith("| 64 px")]
    assert "(1×)" in speeds[0] and any("123,456 (12×)" in line for line in speeds)
    assert any("0.412 / 0.0953" in line for line in speeds)
    pixels = cv2.imread(str(image))
    drawn = (pixels < 200).any(axis=2)
    # Two diagrams side by side, and more in each than a frame.
    assert all(0.01 < half.mean() < 0.6 for half in np.array_split(drawn, 2, axis=1))

    plain = call("compare", augment, "--names", "clahe")
    assert plain.returncode == 0 and plain.stdout.count("64 px") == 1 and "|" not in plain.stdout


def test_a_comparison_of_nothing_is_refused(scale, tmp_path):
    result = call("compare", scale, "-o", tmp_path / "plot.png")
    assert result.returncode == 1 and "no augment results" in result.stderr


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


@pytest.mark.long
def test_every_function_of_kornia_that_is_used_is_right(tmp_path):
    rows = rows_of(written(tmp_path, "kornia_errors"))
    used = [row for row in rows if not row["function"].startswith("not")]
    assert len(used) > 8 and len(rows) > len(used)
    for row in used:
        # CLAHE in float64 may end a tie the other way; all else is float32's rounding of positions up to 256 px.
        assert row["exact"][0] <= (1 if row["step"].startswith("CLAHE") else 0.03), row
    assert all(row["exact"][0] > 1 for row in rows if "equalize_clahe" in row["function"])


def test_a_step_in_bf16_casts_each_weight_and_each_gradient_once():
    """Though both sides use the encoder: autocast remembers. Beside them the inputs, and outputs there and back."""
    weights, sides = 30, 2  # of tiny, which has the layers of original
    rows = {row["part"]: row for row in step_cost("tiny")}
    assert [row["casts"] for row in rows.values()] == [weights + 1, sides, weights + sides, 0]
    assert rows["optimizer"]["kernels"] < weights  # all weights at once
