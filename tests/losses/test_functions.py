"""Each loss against faceswap's numbers, a float64 run of itself and its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swapfast.errors import SwapfastError
from swapfast.losses import LOSSES, get_loss
from swapfast.losses.structure import blur


def _inputs(golden, key, device):
    pair = golden("loss_inputs")
    true = pair[f"true_{key}"]
    true = true.astype(np.float32) / 255 if true.dtype == np.uint8 else true
    return torch.from_numpy(true).to(device), torch.from_numpy(pair[f"pred_{key}"]).to(device)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["ssim", "mse", "mae"])
def test_values_and_gradients_are_the_peers(golden, device, within, name):
    vectors, loss = golden(f"loss_{name}"), get_loss(name).function
    keys = [k.removeprefix("mean64_") for k in vectors.files if k.startswith("mean64_")]
    assert keys
    for key in keys:
        true, pred = _inputs(golden, key, device)
        pred.requires_grad_()
        value = loss(true, pred)
        (grad,) = torch.autograd.grad(value.mean(), pred)
        mean64 = float(vectors[f"mean64_{key}"])
        within(f"{name} {key} mean, relative", abs(value.double().mean().item() - mean64) / mean64, 1e-5)
        items = value.detach().double().flatten(1).mean(1).cpu().numpy()
        items64 = vectors[f"item64_{key}"]
        within(f"{name} {key} per item, relative", np.abs(items / items64 - 1).max(), 1e-5)
        value64 = loss(true.double(), pred.detach().double()).cpu().numpy()
        within(f"{name} {key} against float64", np.abs(value.detach().cpu().numpy() - value64).mean(), 2e-5)
        if f"value_{key}" in vectors.files and vectors[f"value_{key}"].ndim == 4:
            # Float32 cancels in ssim's variance on flat areas: the peer is 2.3e-5 off float64 there, ours 8e-6.
            difference = np.abs(value64 - vectors[f"value_{key}"])
            within(f"{name} {key} value, worst pixel", difference.max(), 2e-3 if name == "ssim" else 1e-6)
            within(f"{name} {key} value, mean pixel", difference.mean(), 5e-5)
        if f"grad_{key}" in vectors.files:
            theirs = vectors[f"grad_{key}"]
            noise = float(vectors[f"grad_rel_f32_vs_f64_{key}"])
            error = np.abs(grad.cpu().numpy() - theirs).max() / np.abs(theirs).max()
            within(f"{name} {key} gradient, relative (peer's noise {noise:.0e})", error, 1e-4 + noise)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_in_float64(name):
    generator = torch.Generator().manual_seed(3)
    true = torch.rand(1, 2, 12, 12, generator=generator, dtype=torch.float64)
    pred = torch.rand(1, 2, 12, 12, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: get_loss(name).function(true, p), pred)


def test_blur_equals_padding_and_a_square_convolution(device, within):
    images = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(1)).to(device)
    offset = torch.arange(11, dtype=torch.float64) - 5
    kernel = torch.exp(-offset.square() / (2 * 1.5**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = torch.nn.functional.pad(images.double().cpu(), (5, 5, 5, 5), mode="reflect")
    expected = torch.nn.functional.conv2d(padded, kernel.expand(3, 1, 11, 11), groups=3)
    within("blur", (blur(images, 11, 1.5).double().cpu() - expected).abs().max(), 1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("true, pred", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 0.5)])
def test_flat_images_give_finite_values_and_gradients(device, name, true, pred):
    y_true = torch.full((2, 3, 32, 32), true, device=device)
    y_pred = torch.full((2, 3, 32, 32), pred, device=device).requires_grad_()
    value = get_loss(name).function(y_true, y_pred)
    value.mean().backward()
    assert torch.isfinite(value).all() and torch.isfinite(y_pred.grad).all()
    assert value.mean().item() == pytest.approx(0.0, abs=1e-5) if true == pred else value.mean() > 0.5


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(SwapfastError, match=r"unknown loss function 'sism'. Did you mean 'ssim'\?.*mae, mse, ssim"):
        get_loss("sism")
