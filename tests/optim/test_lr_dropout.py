"""Learning-rate dropout: how many entries move, whose, by what rate, and that a resumed run draws the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from swapfast.config import OPTIMIZER_NAMES, OptimizerConfig
from swapfast.optim.lr_dropout import PERIOD, rate_factor
from swapfast.optim.optimizer import Optimizer
from swapfast.training.graphed import obstacle_to_graphs

SHAPES = {"kernel": (40, 25, 3, 3), "bias": (4000,)}


class Toy(nn.Module):
    """Two weights whose gradients are random and the same for each step's number."""

    def __init__(self, device) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, shape in SHAPES.items():
            weight = torch.randn(shape, generator=generator)
            layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
            self.register_parameter(name, nn.Parameter(weight.to(device, memory_format=layout)))

    def values(self) -> list[torch.Tensor]:
        return [weight.detach().cpu().clone() for weight in self.parameters()]


def _made(device, seed: int = 7, **options) -> tuple[Toy, Optimizer]:
    toy = Toy(device)
    return toy, Optimizer(toy, OptimizerConfig(lr_dropout=True, learning_rate=1e-2, **options), seed=seed)


def _step(toy: Toy, optimizer: Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(100 + number)
    gradients = [torch.randn(shape, generator=generator) for shape in SHAPES.values()]
    loss = sum((w * g.to(w.device)).sum() for w, g in zip(toy.parameters(), gradients, strict=True))
    optimizer.backward(loss)
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_three_entries_in_ten_move_as_they_would_without(name, device):
    toy, optimizer = _made(device, optimizer=name)
    whole = Toy(device)
    without = Optimizer(whole, OptimizerConfig(optimizer=name, learning_rate=1e-2 * rate_factor(1)))
    before = toy.values()
    _step(toy, optimizer, 0)
    _step(whole, without, 0)
    for old, new, all_moved in zip(before, toy.values(), whole.values(), strict=True):
        moved = new != old
        # Six deviations of a binomial draw.
        assert abs(float(moved.float().mean()) - 0.3) < 6 * math.sqrt(0.21 / old.numel())
        assert (all_moved != old).all()
        assert torch.equal(new[moved], all_moved[moved])


def test_others_move_at_the_next_step_and_with_another_seed(device):
    moved = []
    for seed in (7, 8):
        toy, optimizer = _made(device, seed)
        for number in range(2):
            before = toy.values()
            _step(toy, optimizer, number)
            moved.append(torch.cat([(new != old).flatten() for old, new in zip(before, toy.values(), strict=True)]))
    for one in range(4):
        for other in range(one):
            both = float((moved[one] & moved[other]).float().mean())
            assert abs(both - 0.09) < 6 * math.sqrt(0.09 * 0.91 / len(moved[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_a_resumed_run_draws_what_it_would_have_drawn(name, device):
    whole, optimizer = _made(device, optimizer=name)
    for number in range(6):
        _step(whole, optimizer, number)
    toy, optimizer = _made(device, optimizer=name)
    for number in range(3):
        _step(toy, optimizer, number)
    state, weights = {key: value.clone() for key, value in optimizer.state_dict().items()}, toy.state_dict()
    again, resumed = _made(device, optimizer=name)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for number in range(3, 6):
        _step(again, resumed, number)
    assert all(torch.equal(one, other) for one, other in zip(whole.values(), again.values(), strict=True))


def test_the_rate_falls_to_nothing_and_rises_again(device):
    assert rate_factor(PERIOD) == 1.0 and rate_factor(PERIOD // 2) == 0.0
    assert rate_factor(125) == pytest.approx(0.5)
    toy, optimizer = _made(device)
    assert optimizer.learning_rate == pytest.approx(1e-2 * rate_factor(1))
    _step(toy, optimizer, 0)
    assert optimizer.learning_rate == pytest.approx(1e-2 * rate_factor(2)) and optimizer.base_rate == 1e-2
    optimizer.load_state_dict({"@steps": torch.tensor(PERIOD // 2 - 1)})
    assert optimizer.learning_rate == 0.0


def test_a_step_that_is_left_out_moves_nothing_and_counts(device):
    toy, optimizer = _made(device)
    before = toy.values()
    optimizer.backward(sum((w * math.nan).sum() for w in toy.parameters()))
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, toy.values(), strict=True))
    assert optimizer.learning_rate == pytest.approx(1e-2 * rate_factor(2))


def test_a_search_for_a_rate_moves_all_at_the_rate_it_sets(device):
    toy, optimizer = _made(device)
    before = toy.values()
    with optimizer.sweeping() as set_rate:
        set_rate(1e-3)
        assert optimizer.learning_rate == 1e-3
        _step(toy, optimizer, 0)
    assert all((old != new).all() for old, new in zip(before, toy.values(), strict=True))
    assert optimizer.learning_rate < 1e-3, "behind it the rate swings again"


def test_a_step_that_draws_is_no_cuda_graph():
    assert obstacle_to_graphs(torch.device("cuda"), OptimizerConfig(lr_dropout=True), 1).startswith("--lr-dropout ")
