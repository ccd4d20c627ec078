"""Schedules from the command line: the rates that are logged, stops within them, and what cannot be."""

from __future__ import annotations

import json

import pytest

import cli
from pipelines.run.plan import plan_schedule
from swapfast.config import OptimizerConfig, TrainConfig


@pytest.fixture
def train(made_faces, tmp_path, capsys):
    """Train ``tiny`` in a folder of this name; return code, output and error."""

    def call(name: str, *flags: object) -> tuple[int, str, str]:
        sides = (
            "-A",
            made_faces / "a",
            "-B",
            made_faces / "b",
            "-m",
            tmp_path / name,
            "-t",
            "tiny",
            "-b",
            2,
            "--recipe",
            "faceswap",
        )
        words = ("train", *sides, "--preview-images", 1, "--device", "cpu", "--learning-rate", "1e-3", *flags)
        return cli.main([*map(str, words)]), *capsys.readouterr()

    return call


def _rates(folder) -> list[float]:
    """The rate of each iteration as it was logged, in thousandths."""
    lines = [json.loads(line) for path in folder.glob("logs/*.jsonl") for line in path.read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    return [round(1000 * rates[step], 6) for step in sorted(rates)]


@pytest.mark.slow
def test_the_rate_falls_to_the_end_that_is_asked_for(train, tmp_path):
    code, out, _ = train("whole", "-i", 8, "--schedule", "linear", "--decay-share", 50, "-a", 3)
    assert code == 0 and "learning rate: linear, to nothing at iteration 8 over the last 50 % of them\n" in out
    assert _rates(tmp_path / "whole") == [0.333333, 0.666667, 1, 1, 1, 0.75, 0.5, 0.25]
    code, out, _ = train("whole", "-i", 10)
    assert code == 0 and _rates(tmp_path / "whole")[-2:] == [0.4, 0.2], "prolonged: the fall from 5 to 10"


def test_a_model_whose_own_schedule_has_no_end_says_so():
    """Somebody who asks for nothing is not refused for a setting that the model brought along."""
    config = TrainConfig(optimizer=OptimizerConfig(schedule="linear"))
    assert plan_schedule(config, {}) == ["learning rate: it stays, for --schedule linear has no end without -i"]
    assert plan_schedule(TrainConfig(), {}) == []


@pytest.mark.slow
def test_a_plateau_halves_the_rate_by_the_loss_of_held_out_faces(train, tmp_path):
    """At a rate of nothing the loss of held-out faces stays, to the bit, while that of the training does not."""
    flags = ("--schedule", "plateau", "--plateau-patience", 10, "--validation", 0.2, "--validation-interval", 1)
    code, out, error = train("m", "-i", 13, *flags, "--learning-rate", "1e-8")
    assert code == 0, error
    assert "iteration 11: the loss stands still; learning rate 5e-09\n" in out + error
    assert train("m", "-i", 14, "--learning-rate", "1e-8")[0] == 0
    assert [round(rate * 1e5, 6) for rate in _rates(tmp_path / "m")] == [1] * 11 + [0.5] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--schedule", "linaer", "-i", 1), "unknown --schedule 'linaer'. Did you mean 'linear'?"),
        (("--schedule", "cosine"), "--schedule cosine: the learning rate falls over the iterations that are asked for"),
        (("--schedule", "linear"), "give -i, or take --schedule plateau"),
        (("--decay-share", 0, "-i", 1), "--decay-share 0.0: must lie within 1.0 and 100.0"),
        (("--final-learning-rate", 101, "-i", 1), "--final-learning-rate 101.0: must lie within 0.0 and 100.0"),
        (("--plateau-patience", 1, "-i", 1), "--plateau-patience 1: must lie within 10 and 10000000"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(train, tmp_path, flags, said):
    code, _, error = train("m", *flags)
    assert code == 2 and error.count("\n") == 1 and said in error, error
    assert not (tmp_path / "m").exists()
