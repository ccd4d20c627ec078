"""The form that later checks of benchmarks/losses.py lean on, and that its rivals do the same work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import losses
from tests import preloaded

pytestmark = pytest.mark.slow  # whole programs

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("losses") / "losses.json"
    command = [sys.executable, "-m", "benchmarks.losses", "--quick", "--json", str(file), "--device", "cpu"]
    result = preloaded.run(
        [*command, "--sizes", "64", "--batches", "1", "2", "--threads", "1"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(file.read_text())


@pytest.mark.long
def test_there_is_a_row_for_every_loss_and_batch_of_every_rival(content):
    assert content["environment"]["processor"] and "torch" in content["environment"]["versions"]
    rows = content["results"]
    found = {(row["name"], row["batch"], row["backend"]) for row in rows}
    for batch in (1, 2):
        assert {(name, batch, backend) for name in losses.NAMES for backend in ("swapfast", "plain")} <= found
        assert {("ssim", batch, backend) for backend in ("pytorch_msssim", "torchmetrics", "kornia")} <= found
        assert ("ms_ssim", batch, "pytorch_msssim") in found
    for row in rows:
        assert row["backend"] in ("swapfast", "plain") or row["version"]
        assert row["median_ms"] > 0 and row["ratio"] > 0 and row["added_mib"] >= 0 and row["threads"] == 1
        assert row["faces_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"], rel=0.01, abs=0.051)


@pytest.mark.long
def test_ours_names_the_fastest_rival(content):
    rows = content["results"]
    for row in (row for row in rows if row["backend"] == "swapfast"):
        rivals = [
            r for r in rows if r["backend"] != "swapfast" and all(r[k] == row[k] for k in ("name", "size", "batch"))
        ]
        assert row["ratio"] == 1
        assert row["ratio_to_fastest"] == min(rival["ratio"] for rival in rivals)
        assert row["fastest_other"] in {rival["backend"] for rival in rivals}


@pytest.mark.parametrize("name", losses.NAMES)
@pytest.mark.parametrize("size", [64, 192])
def test_the_rivals_measure_the_same(name, size):
    """Maps alike, the plain formula exactly; libraries differ by borders, scales' means and, in gmsd, kernels."""
    true, pred = losses.make_pair(size, 2, torch.device("cpu"))
    made = {backend: make(size) for backend, make in losses.BACKENDS.items()}
    values = {b: named[name](true, pred).mean().item() for b, named in made.items() if name in named}
    ours = values.pop("swapfast")
    assert values.pop("plain") == pytest.approx(ours, rel=2e-5)
    for backend, value in values.items():
        assert 0.4 * ours < value < 2.5 * ours, f"{backend}: {value}, ours {ours}"
