"""Logs of a training that diverged, of another hand, or damaged: summed up and drawn without a word of Python's."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest

import cli
from swapfast.logs.loss_plot import draw_losses
from swapfast.logs.lr_plot import draw_curve
from swapfast.logs.steplog import read_steps
from swapfast.logs.summary import describe, summarise

PNG = b"\x89PNG\r\n\x1a\n"
NUMBERS = [1e308, 1.79e308, -1e308, 1e-320, 0, -1, 10**30, 10**400, 2**63 - 1, 1e30, 1.7e9, float("nan"), float("inf")]
VALUES = [*NUMBERS, True, None, "x", "\x1b[31m", [1], {"a": {"b": 1}}]
KEYS = ["loss_a", "loss_b", "loss_c", "validation_loss_a", "iterations_per_s", "faces_per_s", "data_wait", "ssim_a"]
KEYS += ["gradient_norm", "learning_rate", "gpu_mib", "\x1b[31m_mib", "\ud800_a"]


def _model(folder: Path, rows: list[dict]) -> Path:
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _row(step: int, loss: float, **more) -> dict:
    return {"step": step, "time": 1.7e9 + step, "loss_a": loss, "loss_b": loss, **more}


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        [_row(step, 1e308 if step % 2 else 1.7e308) for step in range(1, 300)],
        [_row(step, 1e-320 if step % 2 else 1e300) for step in range(1, 300)],
        [_row(1, float("inf"))],
        [_row(1, 1.0, **{"\x1b[31mred_a": 1.0, "\ud800_a": 1.0, "\x9b_mib": 1e308})],
        [_row(1, 1.0, iterations_per_s=1e308, faces_per_s=float("inf"), data_wait=-1e308)],
    ],
    ids=["huge", "wide", "infinite", "texts", "speed"],
)
def test_log_of_absurd_values(tmp_path, capsys, recwarn, rows):
    model = _model(tmp_path / "a$\\frac$ 中 [/red]", rows)
    picture = tmp_path / "losses.png"
    assert cli.main(["log", str(model), "-o", str(picture)]) == 0
    text = capsys.readouterr().out
    assert cli.main(["log", str(model), "--json"]) == 0
    json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert not set(text) & {"\x1b", "\x9b", "\ud800"} and max(map(len, text.splitlines())) < 300
    assert picture.read_bytes().startswith(PNG) and not recwarn.list


def test_one_broken_step_does_not_spoil_the_means_behind_it(tmp_path):
    rows = [_row(step, 1e30 if step == 50 else 0.25) for step in range(1, 301)]
    course = summarise(read_steps(_model(tmp_path / "m", rows) / "logs" / "steps.jsonl"))["loss"]["a"]
    assert course["latest"] == pytest.approx(0.25) and course["best"] == pytest.approx(0.25)


@pytest.mark.parametrize("row", [{"step": 10**13}, {"step": -1}, {"step": True}, {"step": 4, "time": 1e308}])
def test_lines_that_cannot_be_are_counted_as_damaged(tmp_path, row):
    rows = [_row(3, 0.5), {"time": 1.7e9, "loss_a": 0.1, **row}]
    summary = summarise(read_steps(_model(tmp_path / "m", rows) / "logs" / "steps.jsonl"))
    assert summary["iterations"] == 3 and summary["damaged_lines"] == 1 and summary["loss"]["a"]["latest"] == 0.5


def test_a_log_of_endless_keys_takes_no_endless_memory(tmp_path):
    rows = [{"step": step, "time": 1.7e9, **{f"k{step}_{n}": 1 for n in range(100)}} for step in range(1, 200)]
    history = read_steps(_model(tmp_path / "m", rows) / "logs" / "steps.jsonl")
    assert len(history.columns) <= 1000 and history.damaged > 180


def _random_line(draws: random.Random, step: int) -> bytes:
    row = {"step": step, "time": 1.7e9 + step}
    row |= {key: draws.random() if draws.random() < 0.6 else draws.choice(NUMBERS) for key in draws.sample(KEYS, 8)}
    if draws.random() < 0.2:
        row[draws.choice([*row, "run_from"])] = draws.choice(VALUES)
    line = json.dumps(row).encode()
    if draws.random() < 0.05:
        line = draws.choice([line[: draws.randrange(len(line))], b"[" * 100_000, draws.randbytes(40), b"9" * 5000])
    return line


@pytest.mark.long
@pytest.mark.parametrize("seed", range(30))
def test_random_logs_are_summed_up_and_drawn(tmp_path, seed):
    draws = random.Random(seed)
    path = tmp_path / "steps.jsonl"
    steps = [1, *(draws.choice([step, draws.randrange(200)]) for step in range(draws.choice([1, 3, 300])))]
    path.write_bytes(json.dumps(_row(1, 0.5)).encode() + b"\n" + b"\n".join(_random_line(draws, n) for n in steps))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = read_steps(path)
        if not history.steps:
            return  # a later line began the run anew
        summary = summarise(history)
        json.dumps(summary, allow_nan=False)
        assert len(describe(summary, Path("m"))) < 3000
        assert draw_losses(history, "a$\\frac$ 中 \x1b\ud800").startswith(PNG)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [[1e308, 1e-320, 0.5], [float("nan"), float("inf"), 1e30], [0.0], [1e30, 1e30]])
def test_a_learning_rate_curve_of_absurd_losses(recwarn, losses):
    rates = list(np.geomspace(1e-6, 1, len(losses)))
    assert draw_curve(rates, losses, losses, None).startswith(PNG) and not recwarn.list
