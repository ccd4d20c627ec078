"""LPIPS: torchmetrics' networks, with weights from the user's own files."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from swapfast.errors import SwapfastError
from swapfast.losses.filters import float32_loss, refuse_smaller
from swapfast.losses.perceptual import ColorOrder

# Our name -> torchmetrics' name, and the file of the network's weights as torchvision names them.
NETWORKS: dict[str, tuple[Literal["alex", "squeeze", "vgg"], str]] = {
    "lpips_alex": ("alex", "alexnet.safetensors"),
    "lpips_squeeze": ("squeeze", "squeezenet1_1.safetensors"),
    "lpips_vgg16": ("vgg", "vgg16.safetensors"),
}
SMALLEST = 32  # px: AlexNet's strides leave nothing of less


def _untrained(name: str) -> nn.Module:
    """Return the metric with its published heads, which torchmetrics carries, on a network of random weights."""
    try:
        from torchmetrics.functional.image import lpips
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise _no_package(name, error) from error
    try:
        with torch.random.fork_rng(devices=[]):  # the network's first weights must not move the run's random numbers
            return lpips._LPIPS(net=NETWORKS[name][0], spatial=True, pnet_rand=True)
    except ImportError as error:
        raise _no_package(name, error) from error


def _no_package(name: str, error: Exception) -> SwapfastError:
    reason = str(error).partition("\n")[0]
    return SwapfastError(
        f"loss {name}: needs torchmetrics and torchvision ({reason}): pip install 'swapfast[lpips]', or another --loss"
    )


def _read_weights(name: str, folder: Path | None) -> tuple[Path, dict[str, Tensor]]:
    """Return the file and torchvision's weights in it, a safetensors file, which can hold nothing but tensors."""
    if folder is None:
        raise SwapfastError(
            f"loss {name}: give the folder of its weights, --set loss.lpips_weights=DIR; "
            "docs/losses.md says where they come from"
        )
    file = Path(folder) / NETWORKS[name][1]
    try:
        return file, load_file(file)
    except FileNotFoundError:
        raise SwapfastError(f"loss {name}: {file} is not there; docs/losses.md says where it comes from") from None
    except (OSError, SafetensorError) as error:
        raise SwapfastError(f"loss {name}: {file} cannot be read ({error})") from error


@functools.lru_cache(maxsize=8)
def network(name: str, folder: Path | None, device: torch.device) -> nn.Module:
    """Return the metric ``name`` on ``device``, frozen: two images in -1..1, RGB, to (N, 1, H, W).

    Nothing is downloaded. Raises SwapfastError where the package or the weights are missing or do not fit.
    """
    file, weights = _read_weights(name, folder)
    metric = _untrained(name)
    features = metric.get_submodule("net")
    # torchmetrics cuts torchvision's ``features`` into slices, whose layers keep their numbers.
    file_keys = {key: re.sub(r"^slice(s\.)?\d+\.", "features.", key) for key in features.state_dict()}
    missing = [key for key in file_keys.values() if key not in weights]
    if missing:
        raise SwapfastError(
            f"loss {name}: {file} has no {missing[0]!r}; it must hold the weights of torchvision's {file.stem}"
        )
    try:
        features.load_state_dict({key: weights[file_key] for key, file_key in file_keys.items()})
    except RuntimeError as error:
        raise SwapfastError(f"loss {name}: {file.name} does not fit: {error}") from error
    return metric.to(device).requires_grad_(False).eval()


@float32_loss
def lpips(
    y_true: Tensor, y_pred: Tensor, name: str, color_order: ColorOrder = "bgr", weights_folder: Path | None = None
) -> Tensor:
    """Return the learned perceptual difference: (N, 1, H, W), the layers' differences enlarged and added.

    y_true, y_pred: (N, 3, H, W) in 0..1
    name: one of ``NETWORKS``
    color_order: of the images
    weights_folder: of the networks' weights

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features", CVPR 2018. Always in float32. Raises
    SwapfastError below 32 px, and where package or weights are missing.
    """
    refuse_smaller(name, y_true, SMALLEST)
    metric = network(name, weights_folder, y_pred.device)
    images = [images.float().flip(1) if color_order == "bgr" else images.float() for images in (y_true, y_pred)]
    return metric(*images, normalize=True)
