"""Schedules of the learning rate: their values, and that runs with them go on to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from swapfast.config import OptimizerConfig
from swapfast.optim.optimizer import Optimizer
from swapfast.optim.schedules import WINDOWS, Plateau

RATE = 0.5


def _optimizer(warmup=0, accumulation=1, **config) -> Optimizer:
    torch.manual_seed(1)
    settings = OptimizerConfig(learning_rate=RATE, gradient_accumulation=accumulation, **config)
    return Optimizer(nn.Linear(2, 1), settings, warmup_steps=warmup)


def _run(optimizer, iterations) -> list[float]:
    """Make the iterations; return the rate that each step of the weights was made at, as a share."""
    model, rates = optimizer._parameters, []
    for _ in range(iterations):
        if optimizer.completes_step:
            rates.append(optimizer._torch.param_groups[0]["lr"] / RATE)
        optimizer.backward(sum(weight.square().sum() for weight in model.values()))
        optimizer.step()
    return rates


CASES = {
    "linear over all": ({"schedule": "linear", "decay_share": 100.0}, [1 - n / 8 for n in range(8)]),
    "linear over the last half": ({"schedule": "linear", "decay_share": 50.0}, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
    "linear to a fifth": (
        {"schedule": "linear", "decay_share": 50.0, "final_rate": 20.0},
        [1, 1, 1, 1, 1, 0.8, 0.6, 0.4],
    ),
    "cosine": ({"schedule": "cosine"}, [(1 + math.cos(math.pi * n / 8)) / 2 for n in range(8)]),
    "constant": ({}, [1.0] * 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_rate_of_each_step_is_what_the_schedule_says(name):
    config, expected = CASES[name]
    optimizer = _optimizer(**config)
    optimizer.plan_end(8)
    assert _run(optimizer, 8) == pytest.approx(expected, rel=1e-12)
    warm = _optimizer(warmup=4, **config)
    warm.plan_end(8)
    assert _run(warm, 8) == pytest.approx([e * min(n / 4, 1) for n, e in enumerate(expected, 1)], rel=1e-12)
    slow = _optimizer(accumulation=3, **config)
    slow.plan_end(26)  # the last two iterations make no step
    assert _run(slow, 26) == pytest.approx(expected, rel=1e-12)
    endless = _optimizer(**config)
    assert _run(endless, 8) == [1.0] * 8


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("stops", [(3,), (13,), (20, 21)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stopped_run_goes_on_to_the_bit(schedule, stops, accumulation):
    """Within the warm-up (3), before the fall (13) and within it (20)."""
    config = {"schedule": schedule, "warmup": 6, "accumulation": accumulation}
    through = _optimizer(**config)
    through.plan_end(24)
    expected, rates, state, done = _run(through, 24), [], None, 0
    for end in (*stops, 24):
        part = _optimizer(**config)
        if state is not None:
            weights, averages = state
            with torch.no_grad():
                for name, weight in part._parameters.items():
                    weight.copy_(weights[name])
            part.load_state_dict(averages)
        part.plan_end(24 - done)
        rates += _run(part, end - done)
        done, state = end, ({n: w.detach().clone() for n, w in part._parameters.items()}, part.state_dict())
    assert rates == expected
    assert all(torch.equal(weight, through._parameters[name]) for name, weight in part._parameters.items())


def test_a_prolonged_run_has_the_rate_of_the_longer_one():
    optimizer = _optimizer(schedule="linear", decay_share=50.0)
    optimizer.plan_end(4)
    assert _run(optimizer, 4) == [1, 1, 1, 0.5]
    optimizer.plan_end(12)
    assert _run(optimizer, 12) == pytest.approx([1] * 5 + [1 - n / 8 for n in range(1, 8)][:7], rel=1e-12)


def test_a_search_moves_at_its_own_rates_and_puts_the_schedule_back():
    optimizer = _optimizer(schedule="cosine")
    optimizer.plan_end(8)
    first = _run(optimizer, 4)
    with optimizer.sweeping() as set_rate:
        set_rate(0.25)
        assert _run(optimizer, 2) == [0.5, 0.5]
    optimizer._warmup.set_base(RATE)
    optimizer._warmup.go_to(4)
    assert first + _run(optimizer, 4) == pytest.approx(CASES["cosine"][1], rel=1e-12)


def test_a_way_back_halves_the_rate_and_the_fall_ends_where_it_did():
    optimizer = _optimizer(schedule="linear", decay_share=50.0)
    optimizer.plan_end(16)
    _run(optimizer, 2)
    saved = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    _run(optimizer, 3)  # the fifth is broken
    optimizer.roll_back(saved)
    optimizer.plan_end(16 - 5)
    rates = _run(optimizer, 11)
    assert rates[0] == 0.5 and rates[-1] == pytest.approx(0.5 / 6.5, rel=1e-12), "13 steps, falling over 6.5"


def test_a_plateau_halves_the_rate_down_to_its_share():
    plateau = Plateau(100, final=0.2)
    assert plateau.iterations == 10
    said = []
    for loss in [3.0, 2.0, 1.0, *[1.0 - 1e-4, math.nan, 2.0] * 20]:
        plateau.add(loss)
        said.append(plateau.end_window())
        if said[-1]:
            plateau.reduce()
    windows = [number for number, stands_still in enumerate(said) if stands_still]
    # Of the windows behind the third, two in three have a loss; ten of these without a lower one are a plateau.
    assert windows == [17, 32, 47, 62] and plateau.factor(1) == 0.2 and plateau.reductions == 4
    plateau.add(0.5)
    assert not plateau.end_window(), "lower at last"


def test_a_plateau_goes_on_where_it_was_unless_the_rate_is_another():
    optimizer = _optimizer(schedule="plateau")
    for loss in (1.0, *[2.0] * (WINDOWS - 1)):
        optimizer.schedule.add(loss)
        assert not optimizer.schedule.end_window()
    optimizer.schedule.add(3.0)
    again = _optimizer(schedule="plateau")
    again.load_state_dict(optimizer.state_dict())
    for one in (optimizer, again):
        one.schedule.add(0.9999)  # the mean with the 3.0 before the stop is not lower
        assert one.schedule.end_window()
        one.schedule.reduce()
        one.apply_schedule()
        assert one.learning_rate == RATE / 2
    other = Optimizer(nn.Linear(2, 1), OptimizerConfig(learning_rate=0.1, schedule="plateau"))
    other.load_state_dict(again.state_dict())
    assert other.learning_rate == 0.1
    optimizer.load_state_dict({name: t for name, t in again.state_dict().items() if name != "@plateau"})
    assert optimizer.learning_rate == RATE, "of a model that had none"


@pytest.mark.parametrize("values", [[], [1.0], [math.nan] * 5, [math.inf] * 5])
def test_counts_that_are_none_are_left_out(values):
    plateau = Plateau(50, 0.0)
    plateau.load_state_dict({"@plateau": torch.tensor(values, dtype=torch.float64)})
    assert plateau.factor(1) == 1.0
