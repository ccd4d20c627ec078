"""LPIPS: what is said when something is missing, and the loss on weights made here where its packages are installed."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from swapfast.batch import BatchMeta
from swapfast.errors import SwapfastError
from swapfast.losses import LossCollator, get_loss
from swapfast.losses.lpips import NETWORKS, network

NAMES = sorted(NETWORKS)


@pytest.fixture(autouse=True)
def forget_networks():
    network.cache_clear()


@pytest.fixture(scope="module")
def models():
    """torchvision's models, where it is installed and fits this torch."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no torchvision for this torch: {error}")
    return models


@pytest.fixture
def weights(models, tmp_path):
    """Makes the file of a network's weights, untrained."""

    def make(name):
        file = tmp_path / NETWORKS[name][1]
        torch.manual_seed(1)
        save_file(getattr(models, file.stem)(weights=None).state_dict(), file)
        return tmp_path

    return make


def collate(name, folder):
    return LossCollator([name], [1.0], "bgr", False, 1, 1, 64, weights_folder=folder)


@pytest.mark.parametrize("name", NAMES)
def test_no_folder_and_no_file_are_said(name, tmp_path):
    with pytest.raises(SwapfastError, match=rf"loss {name}: give the folder .*loss.lpips_weights=DIR; docs/losses.md"):
        collate(name, None)
    with pytest.raises(SwapfastError, match=rf"loss {name}: .*{NETWORKS[name][1]} is not there; docs/losses.md"):
        collate(name, tmp_path)


def test_a_pickle_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "alexnet.safetensors")
    with pytest.raises(SwapfastError, match=r"loss lpips_alex: .*alexnet.safetensors cannot be read"):
        collate("lpips_alex", tmp_path)


def test_a_missing_package_is_said(tmp_path, monkeypatch):
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "alexnet.safetensors")
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(SwapfastError, match=r"loss lpips_alex: needs torchmetrics and torchvision .*swapfast\[lpips\]"):
        collate("lpips_alex", tmp_path)


def test_an_output_below_32_px_is_refused(tmp_path):
    with pytest.raises(SwapfastError, match="lpips_vgg16: an output of 31 px is smaller than 32 px"):
        get_loss("lpips_vgg16").function(*[torch.zeros(1, 3, 31, 31)] * 2, weights_folder=tmp_path)


def test_weights_of_another_network_are_refused(models, tmp_path):
    save_file(models.squeezenet1_1(weights=None).state_dict(), tmp_path / "alexnet.safetensors")
    with pytest.raises(SwapfastError, match=r"alexnet.safetensors (has no|does not fit)"):
        collate("lpips_alex", tmp_path)
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg16.safetensors")
    with pytest.raises(SwapfastError, match=r"vgg16.safetensors has no 'features.0.bias'"):
        collate("lpips_vgg16", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_on_networks_made_here(device, name, weights):
    folder, state = weights(name), torch.random.get_rng_state()
    loss = get_loss(name).function
    collate(name, folder)
    assert torch.equal(torch.random.get_rng_state(), state), "the run's random numbers moved"
    generator = torch.Generator().manual_seed(2)
    true, pred = (torch.rand(2, 3, 64, 64, generator=generator).to(device) for _ in range(2))
    value = loss(true, pred, weights_folder=folder)
    assert value.shape == (2, 1, 64, 64) and value.dtype == torch.float32 and value.mean() > 0
    torch.testing.assert_close(value, loss(true.flip(1), pred.flip(1), color_order="rgb", weights_folder=folder))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(value, loss(true, pred, weights_folder=folder))

    # Every layer that is used has the file's weights.
    network_parameters, stored = (
        network(name, folder, device).net.named_parameters(),
        load_file(folder / NETWORKS[name][1]),
    )
    layers = {key: value for key, value in stored.items() if key.startswith("features.")}
    for (key, parameter), (source, layer) in zip(network_parameters, sorted_layers(layers)):
        assert torch.equal(parameter.cpu(), layer), f"{key} is not {source}"

    for case in ((true, true), (torch.zeros_like(true), torch.ones_like(true))):
        stored = case[1].clone().requires_grad_()
        loss(case[0], stored, weights_folder=folder).mean().backward()
        assert torch.isfinite(stored.grad).all()
    repeated = LossCollator([name], [1.0], "bgr", False, 1, 1, 64, weights_folder=folder)([true], [true], BatchMeta())
    assert repeated.total.item() == 0
    assert not list(LossCollator([name], [1.0], "bgr", False, 1, 1, 64, weights_folder=folder).parameters())


def sorted_layers(layers):
    """In the order of the network: by number, then weight before bias as torch lists them."""
    by_place = {}
    for key, value in layers.items():
        number, *rest = key.removeprefix("features.").split(".")
        part = rest[0] if len(rest) > 1 else ""
        place = int(number), ("squeeze", "expand1x1", "expand3x3", "").index(part), ("weight", "bias").index(rest[-1])
        by_place[place] = key, value
    return [by_place[place] for place in sorted(by_place)]
