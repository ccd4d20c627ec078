"""The benchmarks of training run, and their numbers fit together."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import GPUS, ring_seconds
from tests import preloaded

pytestmark = pytest.mark.slow  # whole programs

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 240


def _quick(folder: Path, name: str, *arguments: object) -> dict:
    file = folder / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", file, *arguments]
    result = preloaded.run(
        [*map(str, command)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def scaling(tmp_path_factory) -> dict:
    return _quick(tmp_path_factory.mktemp("scaling"), "scaling", "--batch", 3, "--processes", 1, 2)


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> dict:
    arguments = ("--models", "tiny", "--batch", 2, "--device", "cpu")
    return _quick(tmp_path_factory.mktemp("train"), "train", *arguments)


@pytest.mark.long
@pytest.mark.parametrize("name", ["scaling", "train"])
def test_a_row_says_what_it_measured(name, request):
    content = request.getfixturevalue(name)
    assert {"processor", "cores", "gpus", "versions", "commit"} <= set(content["environment"])
    for row in content["results"]:
        if not row.get("estimate"):
            assert {"name", "size", "batch", "iqr_ms", "repeats", "peak_mib", "model", "device"} <= set(row)
            assert row["faces_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"], rel=0.01, abs=0.051)


@pytest.mark.long
def test_the_scaling_benchmark_has_a_step_for_every_number_of_processes(scaling):
    rows = scaling["results"]
    steps = {row["processes"]: row for row in rows if row["name"] == "step"}
    assert set(steps) == {1, 2} and steps[1]["speedup"] == 1
    assert all(row["steps_per_s"] == pytest.approx(1000 / row["median_ms"], rel=0.01) for row in steps.values())
    (exchange,) = [row for row in rows if row["name"] == "all_reduce"]
    assert exchange["processes"] == 2 and exchange["agree_ms"] > 0 and exchange["share_of_step"] > 0
    assert exchange["gradient_mib"] == pytest.approx(3.2, abs=0.1)


def test_what_is_reckoned_and_not_measured_says_so(scaling):
    rows = [row for row in scaling["results"] if row["name"] == "estimate"]
    assert {row["link"] for row in rows} == {"nvlink4", "pcie5"}
    for row in rows:
        assert row["estimate"] is True and "median_ms" not in row and row["processes"] == GPUS
        assert row["gradient_mib"] == pytest.approx(313, abs=1), "82 million weights of four bytes"
        assert row["speedup_one_after_another"] <= row["speedup_overlapped"] <= GPUS
    # Two processes send all they have once and receive as much; more than that never needs twice as long.
    assert ring_seconds(10**9, 2, 100.0, 0.0) == pytest.approx(0.01)
    assert ring_seconds(10**9, 1000, 100.0, 0.0) == pytest.approx(0.02, rel=2e-3)


@pytest.mark.long
def test_the_train_benchmark_splits_a_step(train):
    (row,) = [row for row in train["results"] if row["name"] == "parts"]
    names = ("data_wait", "forward", "backward", "optimizer", "rest")
    taken = {name: row[f"{name}_ms"] for name in names}
    assert taken["forward"] > 0 and taken["backward"] > 0 and taken["optimizer"] > 0
    assert sum(taken.values()) == pytest.approx(row["median_ms"], rel=0.2), "medians of parts and of the whole"


def test_the_train_benchmark_measures_all_that_is_around_a_step(train):
    rows = {row["name"]: row for row in train["results"]}
    assert set(rows) == {"parts", "live", "fixed", "logging", "start"}, "a compiled run only on a GPU"
    assert rows["live"]["cpu_ms"] > 0 and rows["live"]["slower"] > -1
    assert rows["logging"]["share"] > 0 and rows["logging"]["report_ms"] > 0
    assert rows["start"]["faces"] == 24 and rows["start"]["median_ms"] < 60_000
