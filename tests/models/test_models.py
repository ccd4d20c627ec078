"""The networks: their size, their outputs, and that their weights mean in Keras what they mean here."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from swapfast.config import ModelConfig
from swapfast.errors import SwapfastError
from swapfast.interop.keras_layout import keras_layers
from swapfast.models import MODELS, build_model
from swapfast.models.blocks import PixelShuffle, SameConv, channels_last_shuffle
from swapfast.models.original import original
from swapfast.models.registry import ModelEntry
from swapfast.models.side_statistics import Rows
from swapfast.models.tiny import tiny


def _parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_sizes_are_those_of_the_plan():
    assert _parameters(original()) == 82_062_470
    assert 835_000 < _parameters(tiny()) < 845_000
    # One encoder layer less and a bottleneck half as wide, written out from the layer plan.
    encoder = [(5, 3, 128), (5, 128, 256), (5, 256, 512), (1, 8 * 8 * 512, 512), (1, 512, 16384), (3, 1024, 2048)]
    decoder = [(3, 512, 1024), (3, 256, 512), (3, 128, 256), (5, 64, 3)]
    assert _parameters(original(lowmem=True)) == sum(k * k * i * o + o for k, i, o in encoder + 2 * decoder)


def test_a_swap_to_nobody_or_of_other_pictures_is_refused():
    model = tiny()
    with pytest.raises(SwapfastError, match=r"unknown side of the model 'c'.* Known: a, b"):
        model.swap(torch.zeros(1, 3, 64, 64), to="c")
    with pytest.raises(SwapfastError, match=r"images of shape \(1, 3, 32, 32\): tiny takes \(N, 3, 64, 64\)"):
        model.swap(torch.zeros(1, 3, 32, 32), to="a")


def _out_and_gradients(function, picture, *weights):
    picture = picture.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = function(picture)
    generator = torch.Generator().manual_seed(2)
    slope = torch.randn(out.shape, generator=generator).to(out.device)
    return out.detach(), torch.autograd.grad(out, (picture, *weights), slope)


@pytest.mark.parametrize("kernel, stride", [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_a_convolution_pads_as_keras_does(kernel, stride, device, within):
    """Both ways give the same sums; only a GPU may take them by another algorithm."""
    torch.manual_seed(1)
    conv = SameConv(8, 16, kernel, stride).to(device, memory_format=torch.channels_last)
    picture = torch.randn(2, 8, 16, 16).to(device, memory_format=torch.channels_last)

    def padded_before(x):
        return F.conv2d(F.pad(x, conv.edges), conv.weight, conv.bias, stride)

    ours, gradients = _out_and_gradients(conv, picture, conv.weight, conv.bias)
    plain, expected = _out_and_gradients(padded_before, picture, conv.weight, conv.bias)
    assert ours.shape == (2, 16, 16 // stride, 16 // stride)
    assert conv.pads_itself == (stride == 1)
    # Sums of at most 16 * 25 products for a pixel, and of 2 * 16 * 16 for a weight: each addition rounds by 2^-24 of
    # the sum, which is below 100 here.
    within("output", (ours - plain).abs().max(), 400 * 100 * 2**-24)
    for name, gradient, wanted in zip(("picture", "weight", "bias"), gradients, expected):
        within(name, (gradient - wanted).abs().max(), 512 * 100 * 2**-24)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize(
    ("shuffle_by", "memory_format"),
    [
        (PixelShuffle, torch.channels_last),
        (PixelShuffle, torch.contiguous_format),
        (lambda factor: partial(channels_last_shuffle, factor=factor), torch.channels_last),  # not on a CPU
    ],
    ids=["channels-last", "contiguous", "channels-last-on-devices"],
)
def test_pixel_shuffle_is_torchs_and_keeps_the_layout(shuffle_by, memory_format, factor, device):
    shuffle = shuffle_by(factor)
    picture = torch.rand(2, 5 * factor**2, 4, 6).to(device, memory_format=memory_format)
    ours, (gradient,) = _out_and_gradients(shuffle, picture)
    plain, (expected,) = _out_and_gradients(torch.nn.PixelShuffle(factor), picture)
    assert torch.equal(ours, plain) and torch.equal(gradient, expected)
    assert ours.is_contiguous(memory_format=memory_format)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "learn_mask"), [("lightweight", True), ("original", True), ("tiny", True), ("tiny", False)]
)
def test_outputs(device, name, learn_mask):
    model = build_model(ModelConfig(name=name), learn_mask, seed=1).to(device)
    sides = [torch.rand(3, 3, 64, 64, device=device), torch.rand(2, 3, 64, 64, device=device)]
    outputs = model(sides)
    shapes = [[tuple(o.shape) for o in side] for side in outputs]
    assert shapes == [[(n, 3, 64, 64), (n, 1, 64, 64)][: 1 + learn_mask] for n in (3, 2)]
    assert all(o.min() >= 0 and o.max() <= 1 for side in outputs for o in side)
    swapped = model.swap(sides[0], to="b")
    alone = model([sides[0], sides[0]])[1]
    torch.testing.assert_close(swapped[0], alone[0], atol=1e-4, rtol=1e-4)
    assert (swapped[0] - outputs[0][0]).abs().mean() > 1e-4, "the decoders are not the same"


def test_weights_follow_from_the_seed():
    first, again, other = (build_model(ModelConfig(name="tiny"), False, seed) for seed in (7, 7, 8))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.encoder[0][0].weight, other.encoder[0][0].weight)


def test_standardising_hides_brightness_and_contrast():
    model = tiny().initialise(1)
    image = torch.rand(1, 3, 64, 64)
    plain, dimmed = (model.encode(x, [Rows(1, "a", "a")]) for x in (image, image * 0.5 + 0.2))
    torch.testing.assert_close(plain, dimmed, atol=5e-2, rtol=5e-2)


def _keras_forward(image: np.ndarray, layers: list, plan: str) -> np.ndarray:
    """A slow float64 run of Keras' layers: image (H, W, C); plan: d down, n dense, r reshape, u up, o out."""
    x, layers = image.astype(np.float64), iter(layers)

    def conv(x, kernel, bias, stride):
        size = kernel.shape[0]
        total = size - stride
        x = np.pad(x, ((total // 2, total - total // 2),) * 2 + ((0, 0),))
        patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::stride, ::stride]
        return np.einsum("hwcij,ijco->hwo", patches, kernel.astype(np.float64)) + bias

    for step in plan:
        if step == "r":
            x = x.reshape(4, 4, -1)
            continue
        kernel, bias = next(layers)
        if step == "n":
            x = x.reshape(-1) @ kernel.astype(np.float64) + bias
        else:
            x = conv(x, kernel, bias, 2 if step == "d" else 1)
        if step in "du":
            x = np.where(x > 0, x, 0.1 * x)
        if step == "u":
            height, width, channels = x.shape
            x = x.reshape(height, width, 2, 2, channels // 4).transpose(0, 2, 1, 3, 4)
            x = x.reshape(height * 2, width * 2, channels // 4)
        if step == "o":
            x = 1 / (1 + np.exp(-x))
    return x


@pytest.mark.slow
def test_keras_layout_computes_the_same(within):
    """Written against Keras' conventions (interop notes), so a mistake in either direction shows."""
    model = original(encoder_width=16, dense=64, bottleneck="4x4x64").initialise(3).eval()
    encoder = [layer.numbers() for layer in keras_layers(model.encoder)]
    decoder = [layer.numbers() for layer in keras_layers(model.decoder("b").face)]
    assert [k.shape for k, _ in encoder][:5:4] == [(5, 5, 3, 16), (2048, 64)]
    image = np.random.default_rng(1).random((64, 64, 3)).astype(np.float32)
    code = _keras_forward(image, encoder, "ddddnnru")
    expected = _keras_forward(code, decoder, "uuuo")
    with torch.no_grad():
        ours = model.swap(torch.from_numpy(image).permute(2, 0, 1)[None], to="b")[0][0].permute(1, 2, 0)
    within("Keras layout against float64", np.abs(ours.numpy() - expected).max(), 1e-5)


def test_keras_layout_there_and_back():
    model, copy = tiny().initialise(3), tiny().initialise(4)
    for layer, other in zip(keras_layers(model), keras_layers(copy), strict=True):
        other.fill(*layer.numbers())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, copy.state_dict()[name])


def test_an_option_of_a_new_model_needs_its_entry_alone(monkeypatch):
    """Refused for all others, taken by its own, which is told what it is set to."""
    taken = []

    def build(learn_mask: bool, lowmem: bool):
        taken.append(lowmem)
        return tiny(learn_mask)

    monkeypatch.setitem(MODELS, "new", ModelEntry(build, "takes lowmem", ("lowmem",)))
    monkeypatch.setitem(MODELS, "original", ModelEntry(original, "takes nothing"))
    build_model(ModelConfig(name="new", lowmem=True, freeze=["encoder"]), False, 1)
    assert taken == [True]
    with pytest.raises(SwapfastError, match=r"--lowmem True: is no option of the model 'original'.* or train new$"):
        build_model(ModelConfig(name="original", lowmem=True), False, 1)


def test_what_a_user_can_get_wrong():
    with pytest.raises(SwapfastError, match=r"unknown model 'orginal'. Did you mean 'original'\?.*original, tiny"):
        build_model(ModelConfig(name="orginal"), False, 1)
    said = "--lowmem True: is no option of the model 'tiny', which takes none; leave it out or train original"
    with pytest.raises(SwapfastError, match=f"^{said}$"):
        build_model(ModelConfig(name="tiny", lowmem=True), False, 1)
