"""Muon: what it does to matrices in float64, what torch's own does, and that a step left out changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from swapfast.config import OptimizerConfig
from swapfast.optim.muon import COEFFICIENTS, ITERATIONS, Muon, is_matrix, orthogonal
from swapfast.optim.optimizer import Optimizer

ROUNDING = 2.0**-24  # of float32, relative


def _matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def _polynomial_64(singular: np.ndarray) -> np.ndarray:
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        singular = a * singular + b * singular**3 + c * singular**5
    return singular


@pytest.mark.parametrize("shape", [(16, 75), (48, 48), (200, 24)])
def test_singular_values_become_about_one_and_directions_stay(shape, within):
    matrix = 1e-3 * _matrix(*shape)
    left, singular, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    expected = left * _polynomial_64(singular / np.linalg.norm(singular)) @ right
    made = orthogonal(matrix).double().numpy()
    # Each of 15 products rounds sums of as many terms as the longer side; the polynomial is 3.4 steep at most each time
    # where values are small, but these are no longer small after the first.
    within("polynomial of the singular values", np.abs(made - expected).max(), 15 * max(shape) * 3.5 * ROUNDING)
    values = np.linalg.svd(made, compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.21


def test_kernels_and_dense_layers_are_matrices():
    assert is_matrix(torch.empty(128, 3, 5, 5)) and is_matrix(torch.empty(64, 32))
    assert (
        not is_matrix(torch.empty(3, 64, 5, 5)) and not is_matrix(torch.empty(64)) and not is_matrix(torch.empty(64, 1))
    )


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon of its own")
def test_matrices_move_as_with_torchs_own(within):
    ours, theirs = (nn.Parameter(_matrix(40, 24).double()) for _ in range(2))
    mine = Muon([ours], lr=1e-2, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    start = ours.detach().clone()
    for step in range(20):
        gradient = _matrix(40, 24, step + 1).double()
        ours.grad, theirs.grad = gradient, gradient.clone()
        mine.step()
        other.step()
    moved = (ours - start).norm()
    # Theirs works in bfloat16, of 8 bits, whatever the weights are: each of 15 products is off by 2**-8 of its size.
    within("apart, of the way", ((ours - theirs).norm() / moved).item(), 15 * 2.0**-8)


def test_other_weights_move_as_with_adamw(within):
    ours, theirs = (nn.Parameter(_matrix(1, 24)[0]) for _ in range(2))
    mine = Muon([ours], lr=1e-2, betas=(0.5, 0.99), eps=1e-7, weight_decay=0.1)
    other = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.5, 0.99), eps=1e-7, weight_decay=0.1, fused=True)
    for step in range(20):
        ours.grad = _matrix(1, 24, step + 1)[0]
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    within("apart", (ours - theirs).abs().max().item(), 0.0)


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.out = nn.Conv2d(8, 24, 3), nn.Conv2d(24, 3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv(images)))


def _train(model: nn.Module, optimizer: Optimizer, steps: range, broken: tuple[int, ...] = ()) -> None:
    for step in steps:
        images = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(step))
        loss = model(images).square().mean()
        optimizer.backward(loss * float("nan") if step in broken else loss)
        optimizer.step()


def test_a_step_that_is_not_finite_changes_nothing():
    model = _Small()
    optimizer = Optimizer(model, OptimizerConfig(optimizer="muon", learning_rate=1e-2))
    _train(model, optimizer, range(3))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    averages = {name: value.clone() for name, value in optimizer.state_dict().items()}
    _train(model, optimizer, range(3, 4), broken=(3,))
    assert bool(optimizer.report["nonfinite/step"])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    after = optimizer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in averages.items() if name != "@steps")


def test_it_goes_on_to_the_bit():
    config = OptimizerConfig(optimizer="muon", learning_rate=1e-2, weight_decay=0.1)
    whole, first = _Small(), _Small()
    optimizer = Optimizer(first, config)
    _train(whole, Optimizer(whole, config), range(6))
    _train(first, optimizer, range(3))
    state = {name: value.clone() for name, value in optimizer.state_dict().items()}
    assert "conv.weight.exp_avg_sq" not in state and "conv.bias.exp_avg_sq" in state, "matrices keep one average"
    second = _Small()
    second.load_state_dict(first.state_dict())
    again = Optimizer(second, config)
    again.load_state_dict(state)
    _train(second, again, range(3, 6))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in second.state_dict().items())
