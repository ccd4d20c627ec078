"""DeepFaceLab's optimizers, against the steps that its own code made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from swapfast.config import OptimizerConfig
from swapfast.optim.lr_dropout import rate_factor
from swapfast.optim.optimizer import Optimizer

RATE = 1e-3  # of the recorded steps


class Weight(nn.Module):
    """One weight whose gradient a test gives."""

    def __init__(self, value: np.ndarray, device: torch.device) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value, device=device))

    def step(self, optimizer: Optimizer, gradient: np.ndarray) -> None:
        """Move it by a gradient."""
        optimizer.backward((self.w * torch.from_numpy(gradient).to(self.w)).sum())
        optimizer.step()


@pytest.fixture
def recorded(golden):
    if not (golden.folder / "dfl" / "pieces.npz").is_file():
        pytest.skip("no recorded pieces of DeepFaceLab")
    return golden("dfl/pieces")


@pytest.mark.golden
@pytest.mark.parametrize("case", ["adabelief", "adabelief_clip", "rmsprop", "rmsprop_clip"])
def test_steps_are_deepfacelabs(case, recorded, device, within):
    name = "rms-prop-dfl" if case.startswith("rmsprop") else "adabelief-dfl"
    clip = "global_norm" if case.endswith("clip") else "none"
    weight = Weight(recorded["w0"], device)
    optimizer = Optimizer(weight, OptimizerConfig(optimizer=name, learning_rate=RATE, gradient_clipping=clip))
    worst = 0.0
    for gradient, expected in zip(recorded["grads"], recorded[case], strict=True):
        weight.step(optimizer, gradient)
        worst = max(worst, float(np.abs(weight.w.detach().cpu().numpy() - expected).max()))
    # A step of at most some 1e-3 times ten is rounded, in float32, to a few parts in 10^7, and so is a weight of 2.
    within("weights after twelve steps", worst, 2e-6)


@pytest.mark.golden
def test_steps_along_a_cosine_are_deepfacelabs(recorded, device, within):
    """It reads the count of steps while it raises it: a recorded step has the rate of this count or the one before."""
    weights = [Weight(recorded["w0"], device) for _ in range(2)]
    optimizers = [Optimizer(w, OptimizerConfig(optimizer="adabelief-dfl", learning_rate=RATE)) for w in weights]
    before, worst = [recorded["w0"]] * 3, 0.0
    for step, (gradient, expected) in enumerate(zip(recorded["grads"], recorded["adabelief_cos"], strict=True)):
        for late, (weight, optimizer) in enumerate(zip(weights, optimizers, strict=True)):
            optimizer.set_lr(RATE * rate_factor(step + late))
            weight.step(optimizer, gradient)
        after = [*(weight.w.detach().cpu().numpy().copy() for weight in weights), expected]
        early_step, late_step, its_step = (a - b for a, b in zip(after, before, strict=True))
        low, high = np.minimum(early_step, late_step), np.maximum(early_step, late_step)
        worst = max(worst, float(np.maximum(low - its_step, its_step - high).max()))
        before = after
    # Each of the weights, below 4, is rounded by 2^-23 at most; a step is the difference of two.
    within("a step outside of both", worst, 1e-6)


@pytest.mark.parametrize("name", ["adabelief-dfl", "rms-prop-dfl"])
def test_it_goes_on_to_the_bit(name, device):
    config = OptimizerConfig(optimizer=name, learning_rate=RATE)
    gradients = np.random.default_rng(1).normal(size=(6, 4, 3)).astype(np.float32)
    straight, stopped = Weight(gradients[0], device), Weight(gradients[0], device)
    first, second = Optimizer(straight, config), Optimizer(stopped, config)
    for gradient in gradients[:3]:
        straight.step(first, gradient)
        stopped.step(second, gradient)
    resumed = Optimizer(stopped, config)
    resumed.load_state_dict(second.state_dict())
    for gradient in gradients[3:]:
        straight.step(first, gradient)
        stopped.step(resumed, gradient)
    assert torch.equal(straight.w, stopped.w)
