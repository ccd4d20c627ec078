"""The benchmark of swaps: both ways make the same pictures, and the figures fit together."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks import swap_video
from benchmarks.swap import draw_footage, measure, run_loop, run_pipeline
from swapfast.swap.stages import Stopwatch
from swapfast.video.reader import VideoReader
from tests.swap.echo import echo

pytestmark = pytest.mark.slow


@pytest.mark.long
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
    assert [row["way"] for row in rows] == ["pipeline", "loop", "model", "opencv", "dali", "encoder", "opencv png"]
    assert all(2 < row["mib_a_frame"] < 5 for row in rows[-2:])  # of 5.9 without compression
    assert all(row["frames"] == 1 and row["median_ms"] > 0 for row in rows)
    assert set(rows[0]["seconds_by_stage"]) >= {"read", "cut", "model", "paste", "encode"}


@pytest.mark.long
def test_the_program_and_the_loop_make_the_same_video(tmp_path, at_least, within):
    """Also its stages fit into its processor time, and its landmarks lie where the face was drawn."""
    size, model = (320, 240), "tiny"
    clip = swap_video.draw_clip(tmp_path, 120, 3, size)
    edges = [swap_video.crop_edge(face) for face in clip.faces]
    within("edge of the crop, px", max(abs(edge - 120) for edge in edges), 12)  # the film zooms by up to 8 %
    rows = {row["way"]: row for row in swap_video.measure(tmp_path, model, clip, 1)}
    assert list(rows) == ["program", "loop", "decode", "encode", "model", "open"]
    assert all(row["frames"] == 3 and row["cpu_ms_per_frame"] > 0 and row["frames_per_s"] > 0 for row in rows.values())
    stages = rows["program"]["cpu_ms_by_stage"]
    assert {"read", "colours in", "cut", "model", "paste", "colours out", "encode", "join"} <= set(stages)
    source, fast, plain = (
        np.stack([frame.pixels() for frame in VideoReader(path)]).astype(float)
        for path in (clip.path, tmp_path / "program.mp4", tmp_path / "loop.mp4")
    )
    assert source.shape == fast.shape == plain.shape == (3, 240, 320, 3)
    changed = np.abs(plain - source).max(3) > 8
    assert 0.02 < changed.mean() < 0.3
    # As in the pictures above; beside it two encodings, and colours that the program smooths over frames.
    at_least("PSNR of one to the other", -10 * np.log10(((fast - plain)[changed] ** 2).mean() / 255**2), 21)
