"""The JSONL: what it says of a step, what a later run makes void, what a kill may leave, and what `log` makes of it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time as clock
from array import array
from pathlib import Path

import cv2
import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.logs.loss_plot import draw_losses
from swapfast.logs.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from swapfast.logs.steplog import NAME, History, LoggedRun, StepLog, read_steps
from swapfast.logs.summary import describe, load_history, summarise

ROOT = Path(__file__).resolve().parents[2]


def _tags(a, b, **more):
    return {"batch_unweighted_A/ssim": a, "batch_weighted_A/ssim": a, "batch_face_A": a, "batch_face_B": b} | more


def _run(folder, first, last, level=1.0, time=None):
    """Steps ``first`` to ``last`` of a run, each at ``time`` (now) plus as many seconds, a report at every tenth."""
    log = StepLog(folder, first - 1, {"batch_size": 4})
    time = clock.time() if time is None else time
    for step in range(first, last + 1):
        log.on_train_batch_end(step, _tags(level / step, 2 * level / step), time + step)
        if step % 10 == 0:
            speed = {"speed/iterations_per_s": 1.0, "speed/faces_per_s": 8.0, "speed/data_wait": 0.25}
            log.on_train_batch_end(step, speed | {"learning_rate": 5e-5})
            log.flush()
    log.on_train_end()
    return log.path


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_per_step(tmp_path):
    path = _run(tmp_path, 1, 20, time=1000.0)
    first, *steps = _lines(path)
    assert first["run_from"] == 0 and first["batch_size"] == 4 and path.name == NAME
    assert steps[0] == {"step": 1, "time": 1001.0, "ssim_a": 1.0, "loss_a": 1.0, "loss_b": 2.0}
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert steps[9]["data_wait"] == 0.25 and steps[9]["learning_rate"] == 5e-5 and "data_wait" not in steps[8]


def test_what_is_not_finite_is_left_out(tmp_path):
    log = StepLog(tmp_path)
    log.on_train_batch_end(1, _tags(math.nan, math.inf, batch_total=3.0), 5.0)
    log.on_train_end()
    assert _lines(log.path)[1] == {"step": 1, "time": 5.0, "loss": 3.0}


def test_a_resumed_run_has_every_step_once(tmp_path):
    _run(tmp_path, 1, 20, level=1.0)
    path = _run(tmp_path, 16, 30, level=10.0)
    history = read_steps(path)
    assert list(history.steps) == list(range(1, 31)) and history.void == 5 and history.damaged == 0
    loss = history.column("loss_a")
    assert loss[14] == pytest.approx(1 / 15, rel=1e-5) and loss[15] == pytest.approx(10 / 16, rel=1e-5)
    assert [run.step for run in history.runs] == [0, 15] and history.runs[1].about == {"batch_size": 4}
    assert math.isnan(history.column("data_wait")[0]) and history.latest("data_wait") == 0.25


def test_a_resumed_run_that_starts_from_an_old_checkpoint_before_all(tmp_path):
    _run(tmp_path, 1, 20)
    assert list(read_steps(_run(tmp_path, 1, 3)).steps) == [1, 2, 3]


@pytest.mark.slow
def test_a_log_that_is_torn_anywhere(tmp_path):
    """Cut at every byte: reading gives the whole lines, and the next run's steps are all there."""
    whole = _run(tmp_path / "whole", 1, 3).read_bytes()
    for length in range(len(whole) + 1):
        folder = tmp_path / str(length)
        folder.mkdir()
        path = folder / NAME
        path.write_bytes(whole[:length])
        history = read_steps(path)
        complete = whole[:length].count(b"\n") - 1
        assert list(history.steps)[: max(complete, 0)] == [1, 2, 3][: max(complete, 0)] and history.damaged <= 1
        after = read_steps(_run(folder, 3, 5))
        assert list(after.steps)[-3:] == [3, 4, 5] and len(set(after.steps)) == len(after.steps)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"null",
        b"[1]",
        b"3",
        b'{"step": "4", "time": 1}',
        b'{"step": 4}',
        b'{"step": 4, "time": "x"}',
        b'{"step": 4, "time": 1, "loss_a": [1]}',
        b'{"run_from": 2}',
        b'{"step": 1e400, "time": 1}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
)
def test_a_line_that_makes_no_sense_is_counted(tmp_path, line):
    path = _run(tmp_path, 1, 3)
    path.write_bytes(path.read_bytes() + line + b"\n" + b'{"step": 4, "time": 9, "loss_a": 0.5}\n')
    history = read_steps(path)
    assert list(history.steps) == [1, 2, 3, 4] and history.damaged == 1 and history.column("loss_a")[-1] == 0.5


def test_a_full_disk_ends_the_log_and_not_the_run(tmp_path):
    said = []
    log = StepLog(tmp_path, warn=said.append)
    log._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    for step in (1, 2, 3):
        log.on_train_batch_end(step, {"batch_total": 1.0})
        log.flush()
    log.on_train_end()
    assert len(said) == 1 and "No space left" in said[0] and "training goes on" in said[0]


def _model(tmp_path):
    """A model folder with the logs of two runs, 300 iterations, and three validations."""
    logs = tmp_path / "model" / "logs"
    _run(logs, 1, 120, level=1.0)
    _run(logs, 101, 300, level=1.0)
    log = StepLog(logs, 300)
    log.on_train_end()
    path = logs / NAME
    kept = path.read_text().splitlines()
    for step, loss in ((150, 0.5), (250, 0.2), (300, 0.3)):
        place = next(n for n, line in enumerate(kept) if json.loads(line).get("step") == step and n > 121)
        kept.insert(place + 1, json.dumps({"step": step, "time": 9500.0, "validation_loss_a": loss}))
    path.write_text("\n".join(kept) + "\n")
    return tmp_path / "model"


@pytest.mark.parametrize("jump", [-7200.0, -1e9, 1e6, 1e9])
def test_a_clock_that_is_set_does_not_change_how_long_it_took(tmp_path, jump):
    """Of 100 s the one in which the clock is set is lost."""
    logs = tmp_path / "logs"
    logs.mkdir()
    rows = [{"run_from": 0, "time": 1.5e9}]
    rows += [{"step": step, "time": 1.5e9 + step + (jump if step > 60 else 0), "loss_a": 0.5} for step in range(1, 101)]
    rows.insert(31, rows[30] | {"time": rows[29]["time"]})  # a little out of order
    (logs / NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = summarise(load_history(tmp_path))
    assert summary["runs"] == 1 and summary["hours"] == pytest.approx(99 / 3600)


def test_the_summary(tmp_path):
    model = _model(tmp_path)
    summary = summarise(load_history(model))
    expected = np.mean([1 / step for step in range(201, 301)])
    assert summary["iterations"] == summary["logged_steps"] == 300 and summary["void_steps"] == 20
    assert summary["loss"]["a"] == pytest.approx({"latest": expected, "best": expected, "best_step": 300}, rel=1e-5)
    assert summary["loss"]["b"]["latest"] == pytest.approx(2 * expected, rel=1e-5)
    assert summary["functions"] == pytest.approx({"ssim_a": expected}, rel=1e-5)
    assert summary["validation"] == {"a": {"latest": 0.3, "best": 0.2, "best_step": 250}}
    assert summary["speed"]["data_wait"] == {"latest": 0.25, "mean": pytest.approx(0.25)}
    assert summary["learning_rate"] == 5e-5 and summary["window"] == 100
    assert summary["runs"] == 2 and summary["hours"] == pytest.approx(420 / 3600, abs=0.01)
    text = describe(summary, model)
    assert text.startswith(f"{model}: 300 iterations in 0.12 h, 2 runs")
    assert f"loss A: {expected:.5f} (mean of 100 steps), best {expected:.5f} at iteration 300" in text
    assert "validation A: 0.30000, best 0.20000 at iteration 250" in text
    assert "waiting for data 25.0 %" in text and "20 steps were lost and done again" in text
    json.dumps(summary, allow_nan=False)


def test_a_loss_function_that_only_a_void_run_had(tmp_path):
    """It ended before its first checkpoint; the next run has another --loss."""
    logs = tmp_path / "model" / "logs"
    log = StepLog(logs)
    log.on_train_batch_end(1, {"batch_unweighted_A/flip": 1.0, "batch_face_A": 1.0})
    log.on_train_end()
    _run(logs, 1, 20)
    summary = summarise(load_history(tmp_path / "model"))
    assert set(summary["functions"]) == {"ssim_a"} and summary["void_steps"] == 1


@pytest.mark.slow
def test_a_log_of_one_step_has_a_summary_and_a_plot(tmp_path):
    logs = tmp_path / "logs"
    _run(logs, 1, 1)
    history = load_history(tmp_path)
    json.dumps(summarise(history), allow_nan=False)
    assert "1 iterations" in describe(summarise(history), tmp_path)
    assert cv2.imdecode(np.frombuffer(draw_losses(history, "m"), np.uint8), cv2.IMREAD_COLOR).shape[0] == HEIGHT


@pytest.mark.slow
def test_the_plot_shows_both_sides_where_they_are(tmp_path):
    """A constant loss for A, a tenth of it for B: each colour is on its own height, B's the lower."""
    logs = tmp_path / "logs"
    log = StepLog(logs, 0)
    for step in range(1, 501):
        log.on_train_batch_end(step, _tags(0.1, 0.01), step)
    log.on_train_end()
    picture = cv2.imdecode(np.frombuffer(draw_losses(load_history(tmp_path), "m"), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    rows = {}
    for side, color in (("a", (190, 110, 30)), ("b", (40, 100, 220))):
        hit = (np.abs(picture[60:].astype(int) - color).sum(axis=2) < 40).sum(axis=1)
        rows[side] = 60 + int(hit.argmax())
        assert hit.max() > 800, "the line goes all the way"
    assert 60 < rows["a"] < rows["b"] < HEIGHT - 60 and rows["b"] - rows["a"] > 300


@pytest.mark.slow
def test_the_plot_shows_a_validation_and_where_a_run_resumed(tmp_path):
    """A dot at step 300 of 500 on the height of its loss, a gray dashed line at step 200."""
    history = History()
    history.steps.extend(range(1, 501))
    history.columns["loss_a"] = array("d", np.geomspace(1, 0.01, 500))
    history.columns["validation_loss_b"] = array("d", [math.nan] * 299 + [0.5] + [math.nan] * 200)
    history.runs = [LoggedRun(0, 1.0, 2.0), LoggedRun(200, 2.0, 3.0)]
    picture = cv2.imdecode(np.frombuffer(draw_losses(history, "m"), np.uint8), cv2.IMREAD_COLOR).astype(int)
    inside = picture[TOP:-BOTTOM, LEFT:-RIGHT]
    height, width = inside.shape[:2]
    rows, columns = np.nonzero(np.abs(inside - (40, 100, 220)).sum(axis=2) < 40)
    assert abs(columns.mean() - 299 / 499 * width) < 2, "the dot is at its step"
    share = (2.1 - 2 * (1 - math.log10(0.5) / -2)) / 2.2  # of the two decades and a margin of a twentieth each
    assert abs(rows.mean() - share * height) < 3, "and at its loss"
    is_gray = (np.ptp(inside, axis=2) < 12) & (inside.max(axis=2) < 200)
    line = is_gray[:, round(199 / 499 * width) - 1 : round(199 / 499 * width) + 2].any(axis=1)
    assert height / 2 < line.sum() < 0.9 * height, "and dashed"


def test_a_single_step_is_seen(tmp_path):
    history = History()
    history.steps.append(1)
    history.columns["loss_a"] = array("d", [0.1])
    picture = cv2.imdecode(np.frombuffer(draw_losses(history, "m"), np.uint8), cv2.IMREAD_COLOR).astype(int)
    assert (np.abs(picture[TOP:-BOTTOM] - (190, 110, 30)).sum(axis=2) < 40).sum() > 20


@pytest.mark.slow
def test_a_users_style_does_not_change_the_plot(tmp_path):
    """A dark one, for every picture that Matplotlib makes; and no window system is looked for."""
    (tmp_path / "matplotlibrc").write_text("figure.facecolor: black\naxes.facecolor: black\ntext.usetex: True\n")
    program = (
        "import sys\n"
        "from swapfast.logs.steplog import History\n"
        "from swapfast.logs.loss_plot import draw_losses\n"
        "from array import array\n"
        "history = History()\n"
        "history.steps.extend([1, 2])\n"
        "history.columns['loss_a'] = array('d', [0.1, 0.2])\n"
        f"open({str(tmp_path / 'plot.png')!r}, 'wb').write(draw_losses(history, 'm'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = os.environ | {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert cv2.imread(str(tmp_path / "plot.png")).mean() > 240


@pytest.mark.long
def test_training_does_not_import_what_only_a_plot_needs():
    program = (
        "import sys, pipelines.run.build, swapfast.optim.lr_finder\n"
        "assert not any(name.split('.')[0] == 'matplotlib' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.slow
def test_a_million_steps_are_drawn_at_once():
    history = History()
    history.steps.extend(range(1, 1_000_001))
    noise = np.random.default_rng(1).uniform(0.5, 1.5, 1_000_000) / np.arange(1, 1_000_001) ** 0.3
    history.columns["loss_a"] = array("d", noise)
    assert len(draw_losses(history, "m")) > 5000 and summarise(history)["loss"]["a"]["best"] < 0.02


def test_where_there_is_no_log(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    StepLog(tmp_path / "begun" / "logs").on_train_end()
    for name, message in (
        ("none", "no such folder"),
        ("file", "is a file"),
        ("empty", "without -n"),
        ("begun", "no step is logged"),
    ):
        with pytest.raises(SwapfastError, match=message) as error:
            load_history(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and error.value.code == 2
