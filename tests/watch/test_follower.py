"""Logs that grow, are torn, void, huge or hostile, and the curves made of them."""

from __future__ import annotations

import json
import os
import random

import pytest
from watched import row

from swapfast.logs.steplog import StepLog, read_steps
from swapfast.logs.summary import load_history, summarise
from swapfast.watch import follower as follower_module
from swapfast.watch.curves import MOST_BUCKETS, MOST_CURVES, Curves
from swapfast.watch.follower import LONGEST_LINE, MOST_LINES, LogFollower


def _drain(follower: LogFollower) -> LogFollower:
    while follower.poll():
        pass
    return follower


def _values(follower: LogFollower, key: str) -> dict[int, float]:
    return {point[0]: point[1] for point in follower.curves.by_key[key].points()}


def test_what_a_run_writes_is_followed(tmp_path):
    log = StepLog(tmp_path, about={"iterations": 100, "batch_size": 4, "precision": "fp32", "processes": 1})
    follower = _drain(LogFollower(tmp_path / "steps.jsonl"))
    assert follower.about["iterations"] == 100 and follower.step == 0
    for step in range(1, 41):
        log.on_train_batch_end(step, {"batch_total": 3.0, "batch_face_A": 1 / step, "batch_face_B": 2 / step})
    log.on_train_batch_end(40, {"speed/iterations_per_s": 12.5, "speed/faces_per_s": 100.0, "speed/data_wait": 0.015})
    log.flush()
    assert not _drain(follower).damaged
    history = read_steps(tmp_path / "steps.jsonl")
    for key in ("loss_a", "loss_b"):
        read = dict(zip(history.steps, history.column(key)))
        assert _values(follower, key) == {step: pytest.approx(value, rel=1e-4) for step, value in read.items()}
    assert follower.latest["loss_a"] == pytest.approx(1 / 40) and follower.rate == 12.5
    assert "begins at iteration 0 of 100" in follower.tail[0]
    assert "[#00040] loss A 0.025, B 0.05, 12.50 it/s, 100 faces/s, waiting for data 1.5 %" in follower.tail[-1]


def test_a_line_that_is_still_being_written_is_waited_for(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text(row(1, loss_a=1.0) + row(2, loss_a=0.5)[:20])
    follower = _drain(LogFollower(path))
    assert _values(follower, "loss_a") == {1: 1.0}
    with open(path, "a") as file:
        file.write(row(2, loss_a=0.5)[20:])
    assert _values(_drain(follower), "loss_a") == {1: 1.0, 2: 0.5} and not follower.damaged


def test_steps_that_a_later_run_repeats_are_forgotten(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(row(step, loss_a=1.0) for step in range(1, 101)))
    follower = _drain(LogFollower(path))
    generation = follower.curves.generation
    with open(path, "a") as file:
        file.write(json.dumps({"run_from": 50, "time": 5.0}) + "\n" + row(51, loss_a=9.0))
    values = _values(_drain(follower), "loss_a")
    assert max(values) == 51 and values[51] == 9.0 and values[50] == 1.0
    assert follower.curves.generation > generation, "pages must be told to ask again"
    with open(path, "a") as file:
        file.write(row(20, loss_a=4.0))  # of a run whose first line was lost
    assert max(_values(_drain(follower), "loss_a")) == 20


def test_a_log_that_is_replaced_or_cut_is_read_anew(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(row(step, loss_a=1.0) for step in range(1, 50)))
    follower = _drain(LogFollower(path))
    path.write_text(row(7, loss_b=2.0))
    assert set(_drain(follower).curves.by_key) == {"loss_b"} and follower.step == 7
    other = tmp_path / "other"
    other.write_text("".join(row(step, mse_a=2.0) for step in range(1, 90)))
    os.replace(other, path)
    assert set(_drain(follower).curves.by_key) == {"mse_a"} and follower.step == 89
    path.unlink()
    assert follower.poll() is False and follower.step == 89


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        '"text"',
        "[" * 60000,
        '{"step": 1}',
        '{"step": -1, "time": 1}',
        '{"step": 1e3, "time": 1}',
        '{"step": true, "time": 1}',
        '{"step": 9999999999999, "time": 1}',
        '{"step": 1, "time": "now"}',
        '{"step": 1, "time": 1e300}',
        '{"step": 1, "time": NaN}',
        '{"run_from": "x", "time": 1}',
        '{"step": 1, "time": 1, "loss_a": ' + "9" * 70000 + "}",
        "\x00\xff" * 50,
    ],
)
def test_a_line_that_nobody_of_ours_wrote_is_counted_and_left_out(tmp_path, line):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(row(5, loss_a=1.0).encode() + line.encode("latin-1") + b"\n" + row(6, loss_a=2.0).encode())
    follower = _drain(LogFollower(path))
    assert _values(follower, "loss_a") == {5: 1.0, 6: 2.0} and follower.damaged == bool(line)


def test_odd_values_do_no_harm(tmp_path):
    path = tmp_path / "steps.jsonl"
    odd = {"loss_a": float("nan"), "loss_b": 1e308, "mse_a": 10**400, "ssim_a": "x", "<b>": 1.0, "data_wait": None}
    path.write_text(row(1, **odd) + row(2, iterations_per_s=1e400, validation_loss_a="x") + row(3, loss_a=1.0))
    follower = _drain(LogFollower(path))
    assert _values(follower, "loss_a") == {3: 1.0} and _values(follower, "loss_b") == {1: 1e30}
    assert not {"ssim_a", "<b>", "data_wait"} & follower.curves.by_key.keys()
    json.dumps([follower.latest, follower.curves.all_points(), list(follower.tail)], allow_nan=False)


def test_a_line_without_end_takes_no_memory(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(row(1, loss_a=1.0).encode() + b"x" * (3 << 20) + b"\n" + row(2, loss_a=2.0).encode())
    follower = LogFollower(path)
    while follower.poll():
        assert len(follower._rest) <= LONGEST_LINE
    assert _values(follower, "loss_a") == {1: 1.0, 2: 2.0} and follower.damaged == 1


@pytest.mark.slow
def test_a_gigantic_log_is_sampled_evenly_and_then_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(follower_module, "MOST_READ", 1 << 18)
    monkeypatch.setattr(follower_module, "SAMPLE", 1 << 12)
    path, last = tmp_path / "steps.jsonl", 40_000
    path.write_text("".join(row(step, loss_a=float(step), loss_b=0.5) for step in range(1, last + 1)))
    follower, polls = LogFollower(path), 0
    while follower.poll():
        polls += 1
    assert follower.is_sampled and polls <= 64 + 2, "64 samples, and what lies behind the last one"
    assert follower.step == last and not follower.damaged and follower.progress is None
    buckets = _values(follower, "loss_a")
    width = follower.curves.width
    assert len(buckets) > 50 and all(abs(value - bucket * width) <= width for bucket, value in buckets.items())
    with open(path, "a") as file:
        file.write(row(last + 1, loss_a=7.0))
    assert _drain(follower).latest["loss_a"] == 7.0


def test_a_pipe_a_folder_or_a_device_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", "/dev/zero", tmp_path / "missing/steps.jsonl"):
        follower = LogFollower(tmp_path / path)
        assert follower.poll() is False and follower.step is None


def test_the_tail_is_bounded(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(row(step, iterations_per_s=1.0, loss_a=0.1) for step in range(1, 1000)))
    follower = _drain(LogFollower(path))
    assert len(follower.tail) == MOST_LINES and follower.lines == 999 and "[#00999]" in follower.tail[-1]


def test_buckets_hold_the_lowest_mean_and_highest_value():
    rng, curves = random.Random(1), Curves()
    values = {step: rng.uniform(0.1, 1.0) for step in range(1, 5001)}
    for step, value in values.items():
        curves.add(step, {"loss_a": value})
    points = curves.by_key["loss_a"].points()
    assert MOST_BUCKETS / 2 <= len(points) <= MOST_BUCKETS
    for bucket, mean, low, high in points:
        members = [value for step, value in values.items() if step // curves.width == bucket]
        assert [mean, low, high] == pytest.approx([sum(members) / len(members), min(members), max(members)], rel=1e-4)


@pytest.mark.slow
def test_changes_make_the_same_curves_as_asking_for_all():
    """What a page does with changes: from the first changed bucket on, the new ones replace its own."""
    curves, own, generation = Curves(), {}, 0
    for step in range(1, 2000):
        curves.add(step, {"loss_a": float(step), "mse_a": 1.0 / step} if step % 7 else {"validation_loss_a": 1.0})
        if step % 13 == 0:
            if curves.generation != generation:
                generation, own = curves.generation, curves.all_points()
                curves.take_changes()
            for key, points in curves.take_changes().items():
                kept = [point for point in own.get(key, []) if point[0] < points[0][0]]
                own[key] = kept + points
            assert own == curves.all_points()


def test_a_log_with_very_many_columns_is_bounded():
    curves = Curves()
    for step in range(100):
        curves.add(step, {f"column_{step}_{number}": 1.0 for number in range(100)})
    assert len(curves.by_key) == MOST_CURVES


def test_the_verdict_is_that_of_the_log_command(tmp_path):
    """By the same figures: `swapfast log` reads the whole file, the page and the window follow it."""
    (tmp_path / "logs").mkdir()
    path, rows = tmp_path / "logs/steps.jsonl", []
    for step in range(1, 1501):
        held_out = {"validation_psnr_a": 20 + step / 4000, "swap_quality": -abs(step - 700) / 1000}
        rows.append(row(step, loss_a=0.5, **(held_out if step % 100 == 0 else {})))
    path.write_text("".join(rows))
    follower = _drain(LogFollower(path))
    summary = summarise(load_history(tmp_path))
    assert summary["swap_not_better_since"] == 700 and summary["gain"]["a"]["per_1000"] == pytest.approx(0.25)
    assert follower.verdict.gains == (
        "A gains 0.25 dB in 1,000 iterations, 0.25 before",
        "the swap has not got better since 700",
    )
    with open(path, "a") as file:  # a run goes on from 600
        file.write(json.dumps({"run_from": 600, "time": 5.0}) + "\n" + row(650, swap_quality=-0.05, swap_leak=0.5))
    assert _drain(follower).verdict.gains[1].startswith("the swap gains ")
    assert follower.verdict.warns and follower.verdict.leak == "warning: the swap keeps 50 % of A's skin"
