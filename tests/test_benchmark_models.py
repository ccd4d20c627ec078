"""The benchmarks of models: that they measure what they say."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.capacity import EXPERIMENTS, USUAL, train
from swapfast.config import ModelConfig
from swapfast.models.figures import measure
from swapfast.synthetic import synthesize
from tests.test_benchmarks import rows_of, written


@pytest.mark.slow
@pytest.mark.parametrize("network", [network for _, _, network in EXPERIMENTS])
def test_networks_of_other_sizes_make_pictures_of_their_size(network):
    with torch.device("meta"):
        model = network.build()
        outputs = model([torch.empty(2, 3, network.size, network.size) for _ in range(2)])
    assert [tuple(output.shape) for side in outputs for output in side] == 2 * [(2, 3, network.size, network.size)]
    dense = [layer.out_features for layer in model.encoder if isinstance(layer, torch.nn.Linear)]
    assert dense == [network.dense, network.channels * network.edge**2]


@pytest.mark.long
def test_a_network_is_trained_and_measured(tmp_path):
    synthesize(tmp_path / "data", faces=5, size=96, pairs=2, seed=1, workers=1)
    row = train(USUAL, tmp_path / "data", tmp_path / "run", steps=2, seed=1)
    assert row["steps"] == 2 and row["parameters"] == 1_287_062
    assert all(math.isfinite(row[name]) and 5 < row[name] < 40 for name in row if name.endswith("_db"))
    assert len(list((tmp_path / "run" / "faces" / "a").glob("*.png"))) > 0


@pytest.mark.long
def test_a_step_is_beside_its_work_and_the_rate_of_a_product(tmp_path):
    file = written(tmp_path, "models", "--model", "tiny", "--gflop", 2)
    rows = rows_of(file)
    figures = measure(ModelConfig(name="tiny"))
    assert [row["part"] for row in rows] == ["plain", "channels_last"] and "faster" in rows[1]
    for row in rows:
        assert row["parameters"] == figures.parameters
        assert row["gflop"] == pytest.approx(figures.gflop * row["batch"], abs=0.06)
        assert row["share"] > 0 and row["product_gflops"] > 0 and row["median_ms"] > 0
        # Weights, their gradients and Adam's two averages, in float32.
        assert row["peak_mib"] > 16 * figures.parameters / 2**20
    assert json.loads(file.read_text())["environment"]["cores"] >= 1
