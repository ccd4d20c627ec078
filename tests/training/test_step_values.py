"""A step's scalars are what the losses say of themselves."""

from __future__ import annotations

import pytest
import torch

from swapfast.losses import BatchLoss
from swapfast.training.pending import Pending
from swapfast.training.step_values import step_values


def _loss(seed, device, mask=True):
    """Two outputs, the second with a function of its own."""
    generator = torch.Generator().manual_seed(seed)

    def items():
        return torch.rand(5, generator=generator).to(device)

    unweighted = [{"ssim": items(), "mse": items()}, {"ssim": items(), "mae": items()}]
    weighted = [{name: 2 * value for name, value in output.items()} for output in unweighted]
    return BatchLoss(unweighted, weighted, items() if mask else None)


@pytest.mark.parametrize("mask", [True, False])
def test_they_are_the_means(device, mask):
    losses = [_loss(seed, device, mask) for seed in (1, 2)]
    values = {tag: value.item() for tag, value in step_values(losses).items()}
    for label, loss in zip("AB", losses):
        assert values[f"batch_face_{label}"] == pytest.approx(loss.total.item(), rel=1e-6)
        for kind in ("weighted", "unweighted"):
            first, second = getattr(loss, kind)
            total = (first["ssim"].mean() + second["ssim"].mean()).item()
            assert values[f"batch_{kind}_{label}/ssim"] == pytest.approx(total, rel=1e-6)
            assert values[f"batch_{kind}_{label}/mae"] == pytest.approx(second["mae"].mean().item(), rel=1e-6)
        assert (f"batch_mask_{label}" in values) == mask
        if mask:
            assert values[f"batch_mask_{label}"] == pytest.approx(loss.mask.mean().item(), rel=1e-6)
    assert values["batch_total"] == pytest.approx(sum(loss.total.item() for loss in losses), rel=1e-6)


@pytest.mark.parametrize("wait", [True, False])
def test_pending_steps_come_in_order_each_once(device, wait):
    """More than are copied at once; those that have not arrived come with the next take."""
    pending, steps = Pending(), []
    for step in range(1, 30):
        values = {"x": torch.tensor(step / 4, device=device), "flag": torch.tensor(step % 2 == 0, device=device)}
        pending.add(step, 100.0 + step, None, values, {"learning_rate": 0.5})
        if step % 7 == 0:
            steps += pending.take(wait)
    steps += pending.take()
    assert [(step.step, step.time, step.values) for step in steps] == [
        (step, 100.0 + step, {"x": step / 4, "flag": float(step % 2 == 0), "learning_rate": 0.5})
        for step in range(1, 30)
    ]
    assert pending.take() == []


def test_what_is_cleared_is_gone(device):
    pending = Pending(lambda values: values * 2)
    pending.add(1, 0.0, None, {"x": torch.ones((), device=device)})
    pending.clear()
    pending.add(2, 0.0, None, {"x": torch.ones((), device=device)})
    assert [(step.step, step.values) for step in pending.take()] == [(2, {"x": 2.0})]
