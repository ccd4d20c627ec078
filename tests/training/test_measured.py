"""What a run remembers of its measurements, also behind a stop, and of whatever a checkpoint says."""

from __future__ import annotations

import json

import pytest

from swapfast.logs.verdict import Verdict
from swapfast.training.measured import MOST, Measured


def _values(step):
    return {"validation/psnr_a": 20 + step / 1000, "validation/psnr_b": 18 + step / 2000, "swap/quality": 15.0}


def test_a_run_that_goes_on_knows_the_same_gains():
    whole, first = Measured(), Measured()
    for step in range(100, 1001, 100):
        expected = whole.add(step, _values(step))
    for step in range(100, 601, 100):
        first.add(step, _values(step))
    second = Measured(json.loads(json.dumps(first.rows)), 500)  # the checkpoint before the last measurement
    for step in range(600, 1001, 100):
        found = second.add(step, _values(step))
    assert found == expected and second.rows == whole.rows
    assert expected["validation/gain_a"] == pytest.approx(1.0) and expected["validation/gain_b"] == pytest.approx(0.5)
    assert expected["validation/gain_before_a"] == pytest.approx(1.0) and expected["swap/gain"] == 0.0


def test_a_step_that_is_done_again_counts_once():
    measured = Measured()
    for step in (1, 2, 3, 2):
        measured.add(step, _values(step))
    assert [row[0] for row in measured.rows] == [1, 2]


@pytest.mark.slow
def test_a_long_run_keeps_its_newest_measurements_and_a_gain_that_holds():
    measured = Measured()
    for step in range(1, 1001):
        gains = measured.add(step, _values(step))
    assert MOST // 2 <= len(measured.rows) <= MOST and measured.rows[-1][0] == 1000
    assert gains["validation/gain_a"] == pytest.approx(1.0, abs=1e-3)  # rows hold four digits behind the point


@pytest.mark.slow
def test_the_verdict_names_the_best_swap_of_a_long_run():
    measured = Measured()
    for step in range(100, 100_100, 100):
        values = {"validation/psnr_a": 20 + step / 10_000, "swap/quality": -abs(step - 4200) / 1e4}
        measured.add(step, values)
    assert measured.verdict() == Verdict(
        ("A gains 0.1 dB in 1,000 iterations, 0.1 before", "the swap has not got better since 4,200")
    )
    assert MOST // 2 <= len(measured.rows) <= MOST and Measured().verdict() == Verdict()


def test_what_was_not_measured_is_no_figure():
    measured = Measured()
    assert measured.add(1, {"validation/psnr_a": 20.0}) == {}
    assert set(measured.add(2, {"validation/psnr_a": 21.0})) == {"validation/gain_a"}
    assert measured.rows == [[1, 20.0, None, None], [2, 21.0, None, None]]


@pytest.mark.parametrize(
    "rows",
    [None, 3, {"a": 1}, [3], [[1]], [["1", 2, 3, 4]], [[1, "x", 3, 4]], [[-1, 1, 1, 1]], [[True, 1, 1, 1]]]
    + [[[1, float("nan"), 1, 1]], [[9, 1, 1, 1]], [[1, float("inf"), 1, 1]], [[1, [], 1, 1]]],
)
def test_rows_that_are_none_are_left_out(rows):
    assert Measured(rows, 5).rows == []
    assert Measured([[2, 20.0, 20.0, None], *(rows if isinstance(rows, list) else [])], 5).rows == [
        [2, 20.0, 20.0, None]
    ]
