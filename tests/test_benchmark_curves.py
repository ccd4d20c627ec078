"""The curves of the models' own recipes beside the reference: from figures that are kept, and drawn as they are."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from matplotlib import pyplot as plt

from benchmarks import learning_curves
from benchmarks.learning_curves import OWN, PANELS, REFERENCE, Source

SEED = 1


def test_every_curve_has_its_kept_run_and_what_it_is_called_is_what_was_trained():
    for panel in PANELS:
        own, reference = (source.read(panel.pair, learning_curves.RESULTS) for source in (panel.own, panel.reference))
        assert own["set"] == reference["set"] == "report" and own["seed"] == reference["seed"] == SEED
        assert own["settings"]["run.recipe"] in ("own", "one-code"), panel
        assert reference["settings"]["run.recipe"] == "faceswap" or "a quarter" in panel.model, panel
        names = [run["settings"].get("model.name", "tiny").partition("-")[0] for run in (own, reference)]
        assert names[0] == names[1] and names[0] in panel.model


def _kept(folder, name: str, recipe: str, raw: list[float], seed: int = SEED) -> None:
    rows = [
        {
            "step": 250 * (number + 1),
            "cpu_seconds": 90.0 * (number + 1),
            "swap_psnr": value,
            "mean_b_psnr": 20.0,
            "swap_psnr_matched": value + 1,
            "mean_b_psnr_matched": 20.5,
        }
        for number, value in enumerate(raw)
    ]
    file = folder / f"learning_{name}_2core_epyc_cpu.json"
    kept = json.loads(file.read_text())["results"] if file.exists() else []
    run = {"pair": "sisters", "recipe": recipe, "seed": seed, "rows": rows}
    file.write_text(json.dumps({"results": [*kept, run]}))


def test_curves_are_decibels_above_the_mean_face_of_the_longest_run(tmp_path):
    _kept(tmp_path, "one", "own", [23.0])
    _kept(tmp_path, "one", "own", [21.0, 24.0])
    _kept(tmp_path, "one", "own", [0.0, 0.0, 0.0], seed=2)
    _kept(tmp_path, "two", "adam", [19.0, 18.0, 17.0])
    panel = learning_curves.Panel("tiny", "sisters", Source("one", "own"), Source("two", "adam"))
    figure, axes = plt.subplots()
    learning_curves.draw_panel(axes, panel, "cpu_seconds", tmp_path)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    plt.close(figure)
    assert drawn[f"{OWN}, raw"] == [[90.0, 1.0], [180.0, 4.0]]
    assert drawn[f"{OWN}, matched"] == [[90.0, 1.5], [180.0, 4.5]]
    assert drawn[f"{REFERENCE}, raw"] == [[90.0, -1.0], [180.0, -2.0], [270.0, -3.0]]

    learning_curves.draw(tmp_path / "curves.png", tmp_path, (panel,) * 5)
    picture = cv2.imread(str(tmp_path / "curves.png"))
    blue, red = picture[..., 0].astype(int), picture[..., 2].astype(int)
    for is_color in ((blue - red > 60), (red - blue > 60)):  # own and reference, in each of the five panels
        count, _ = cv2.connectedComponents(cv2.dilate(is_color.astype(np.uint8), np.ones((9, 9))))
        assert count > 10, "five panels, over iterations and over seconds"


def test_a_run_that_is_not_kept_is_named(tmp_path):
    _kept(tmp_path, "one", "own", [23.0])
    with pytest.raises(SystemExit, match=r"learning_one_2core_epyc_cpu\.json: holds no run of own on bearded"):
        Source("one", "own").read("bearded", tmp_path)
