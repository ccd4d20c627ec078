"""The benchmark of swaps: both ways make the same pictures, and the figures fit together."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks.swap import draw_footage, measure, run_loop, run_pipeline
from swapfast.swap.stages import Stopwatch
from tests.swap.echo import echo

pytestmark = pytest.mark.slow


def test_the_pipeline_and_the_loop_make_the_same_of_a_frame(tmp_path, at_least):
    for name in ("in", "fast", "plain"):
        (tmp_path / name).mkdir()
    footage, model = draw_footage(tmp_path / "in", 300, 1, "png"), echo(64, gain=0.8)
    run_pipeline(model, footage, tmp_path / "fast", Stopwatch())
    run_loop(model, footage, tmp_path / "plain", "png")
    for name in footage.names:
        frame, fast, plain = (cv2.imread(str(tmp_path / d / name)).astype(float) for d in ("in", "fast", "plain"))
        changed = (fast != frame).any(2) | (plain != frame).any(2)
        assert 0.005 < changed.mean() < 0.05
        error = ((fast - plain)[changed] ** 2).mean()
        # The loop's crop is not averaged, its mask has 64 px and its colours are measured to the mask's edge.
        at_least("PSNR of one to the other", -10 * np.log10(error / 255**2), 26)
    rows = measure(model, footage, "png", 1, tmp_path / "fast")
    assert [row["way"] for row in rows] == ["pipeline", "loop", "model", "opencv", "dali"]
    assert all(row["frames"] == 1 and row["median_ms"] > 0 for row in rows)
    assert set(rows[0]["seconds_by_stage"]) >= {"read", "cut", "model", "paste", "encode"}
