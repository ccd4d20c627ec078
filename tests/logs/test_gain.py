"""How much figures have gained, and what is said of it."""

from __future__ import annotations

import json
from math import nan

import numpy as np
import pytest

import cli
from swapfast.logs.gain import Gain, best_step, describe_gains, gain_of
from swapfast.logs.verdict import Measurements, Verdict


def test_a_straight_line_gains_as_much_at_any_time(within):
    steps = np.arange(250, 40_001, 250)
    gain = gain_of(steps, 20 + steps / 4000)
    assert gain.iterations == 10_000
    within("gain, dB in 1,000", abs(gain.per_1000 - 0.25), 1e-9)  # float64
    within("gain before", abs(gain.per_1000_before - 0.25), 1e-9)
    within("gained, dB", abs(gain.gained - 2.5), 1e-8)


def test_the_window_is_the_last_quarter_and_before_it_as_many():
    steps = np.arange(1000, 20_001, 1000)
    values = np.where(steps < 15_000, steps / 1000 * 0.4, 6.0)  # 0.4 dB in 1,000 up to 15,000, then nothing
    gain = gain_of(steps, values)
    assert (gain.iterations, gain.per_1000) == (5000, pytest.approx(0, abs=1e-12))
    assert gain.per_1000_before == pytest.approx(0.4, abs=1e-9)


def test_few_measurements_make_a_wide_window():
    assert gain_of([500], [20.0]) is None and gain_of([], []) is None
    two = gain_of([500, 1000], [20.0, 20.5])
    assert two == Gain(500, pytest.approx(1.0), None)
    five = gain_of([100, 200, 300, 400, 500], [0.0, 1, 1, 1, 1])
    assert (five.iterations, five.per_1000, five.per_1000_before) == (300, 0.0, pytest.approx(10))
    assert gain_of([1, 2, 3], [nan, 20.0, nan]) is None, "what was not measured does not count"


def test_the_best_counts_once_enough_measurements_are_behind_it():
    steps, values = [10, 20, 30, 40, 50], [1.0, 5.0, 4.0, 4.5, nan]
    assert best_step(steps, values) is None
    assert best_step([*steps, 60], [*values, 4.9]) == 20
    assert best_step([*steps, 60], [*values, 5.1]) is None
    assert best_step([], []) is None


def test_the_sentence():
    a, b = Gain(10_000, 0.031, 0.062), Gain(10_000, 0.005, None)
    assert describe_gains({"a": a, "b": b, "swap": b}, 42_000) == (
        "A has gained 0.31 dB in 10,000 iterations (0.031 in 1,000, 0.062 before), "
        "B has gained 0.05 dB in 10,000 iterations (0.005 in 1,000); the swap has not got better since 42,000"
    )
    worse = Gain(3000, -0.1, 0.2)
    assert describe_gains({"swap": worse}, None) == (
        "the swap has lost 0.30 dB in 3,000 iterations (-0.1 in 1,000, 0.2 before)"
    )
    assert describe_gains({}, None) == ""


def _log(folder, rows):
    (folder / "logs").mkdir(parents=True)
    lines = [{"run_from": 0, "time": 1.0}, *({"time": 2.0 + n} | row for n, row in enumerate(rows))]
    (folder / "logs" / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_swapfast_log_says_when_it_is_done(tmp_path, capsys):
    """A swap that falls behind 42,000 while reconstruction still rises."""
    rows = [
        {
            "step": step,
            "loss_a": 0.1,
            "loss_b": 0.1,
            "validation_psnr_a": 20 + step / 1e4,
            "validation_psnr_b": 20 + min(step, 50_000) / 1e4 + step / 2e5,
            "swap_quality": 21 - abs(step - 42_000) / 1e5,
            "swap_leak": step / 1e5,
        }
        for step in range(2000, 60_001, 2000)
    ]
    _log(tmp_path, rows)
    assert cli.main(["log", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "A has gained 1.40 dB in 14,000 iterations (0.1 in 1,000, 0.1 before), B has gained " in out
    assert "; the swap has not got better since 42,000\n" in out
    assert "warning: the swap keeps 60 % of A's skin\n" in out
    assert cli.main(["log", str(tmp_path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["swap_not_better_since"] == 42_000 and summary["swap_leak"] == 0.6
    assert summary["gain"]["a"]["gained"] == pytest.approx(1.4) and set(summary["gain"]) == {"a", "b", "swap"}


def test_a_log_without_validation_says_nothing_of_it(tmp_path, capsys):
    _log(tmp_path, [{"step": n, "loss_a": 0.1, "loss_b": 0.1} for n in (1, 2, 3)])
    assert cli.main(["log", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "gained" not in out and "skin" not in out


def _measured(**columns: list[tuple[int, float]]) -> dict[str, Measurements]:
    measured = {key: Measurements() for key in columns}
    for key, rows in columns.items():
        for row in rows:
            measured[key].add(*row)
    return measured


def test_the_verdict_of_what_was_measured():
    steps = range(1000, 17_000, 1000)
    a = [(step, step * 6e-5 + max(0, step - 12_000) * -3e-5) for step in steps]  # 0.06 dB in 1,000, then 0.03
    b = [(step, -step * 1e-5) for step in steps]
    swap = [(step, -abs(step - 9000.0)) for step in steps]
    verdict = Verdict.of(
        _measured(validation_psnr_b=b, validation_psnr_a=a, swap_quality=swap, swap_leak=[(1000, 0.125)])
    )
    assert verdict == Verdict(
        (
            "A gains 0.03 dB in 1,000 iterations, 0.06 before",
            "B loses 0.01 dB in 1,000 iterations, -0.01 before",
            "the swap has not got better since 9,000",
        ),
        "the swap keeps 12 % of A's skin",
        False,
    )
    rising = Verdict.of(_measured(swap_quality=[(10, 1.0), (20, 1.5)], swap_leak=[(10, 0.1), (20, 0.2)]))
    assert rising == Verdict(
        ("the swap gains 50 dB in 1,000 iterations",), "warning: the swap keeps 20 % of A's skin", True
    )
    assert Verdict.of({}) == Verdict.of(_measured(swap_quality=[], swap_leak=[])) == Verdict(), "nothing is held out"


def test_absurd_figures_make_short_lines():
    verdict = Verdict.of(_measured(validation_psnr_a=[(1, -1e30), (2, 1e30)], swap_leak=[(1, 1e30)]))
    assert verdict.gains == ("A gains 2e+33 dB in 1,000 iterations",)
    assert verdict.leak == "warning: the swap keeps 1e+32 % of A's skin"


def test_measurements_are_bounded_and_keep_the_best():
    measured = Measurements()
    for step in range(1, 50_001):
        measured.add(step, 99.0 if step == 1234 else step / 1e6)
    assert len(measured.steps) <= 4097 and list(measured.steps) == sorted(set(measured.steps))
    assert measured.steps[-1] == 50_000 and best_step(measured.steps, measured.values) == 1234
    assert max(b - a for a, b in zip(measured.steps, measured.steps[1:])) <= 100, "a part of 2,048 is 24"
    measured.forget_after(1234)
    assert measured.steps[-1] == 1234 and measured.values[-1] == 99
    measured.add(7, 5.0)  # of a run whose first line was lost
    assert measured.steps[-1] == 7
