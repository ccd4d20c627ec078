"""Weights in and out of Keras' layout, as faceswap's 'original' stores them.

Keras keeps convolution kernels as (height, width, in, out) and dense ones as (in, out), flattens and reshapes
pictures in (height, width, channel) order, and faceswap's pixel shuffle counts channels fastest:
(row, column, channel) where torch's counts (channel, row, column).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import Unflatten

KerasLayers = list[tuple[np.ndarray, np.ndarray]]  # (kernel, bias) of each layer, in order


def _shuffled(channels: int) -> Tensor:
    """Return where Keras keeps each of torch's channels in front of a pixel shuffle by two."""
    return torch.arange(channels).view(4, channels // 4).T.reshape(-1)


def _height_width_channel(channels: int, size: int) -> Tensor:
    """Return where Keras keeps each of torch's (channel, height, width) values in a flattened picture."""
    return torch.arange(channels * size * size).view(size, size, channels).permute(2, 0, 1).reshape(-1)


def _layers(module: nn.Module) -> Iterator[tuple[nn.Conv2d | nn.Linear, Tensor | None, Tensor | None]]:
    """Yield every layer with weights, the order of its outputs and that of its inputs; None is Keras' order."""
    modules = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.PixelShuffle, Unflatten))]
    channels = None  # of the picture in front of a flatten
    for layer, following in zip(modules, [*modules[1:], None]):
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
            yield layer, _shuffled(channels) if isinstance(following, nn.PixelShuffle) else None, None
        elif isinstance(layer, nn.Linear):
            inputs = None
            if channels is not None:
                inputs = _height_width_channel(channels, round((layer.in_features / channels) ** 0.5))
                channels = None
            yield (
                layer,
                _height_width_channel(*following.shape[:2]) if isinstance(following, Unflatten) else None,
                inputs,
            )


def _parts(model: FaceAutoencoder) -> dict[str, nn.Module]:
    faces = {f"decoder_{side}": cast(Decoder, decoder).face for side, decoder in model.decoders.items()}
    return {"encoder": model.encoder, **faces}


def to_keras(model: FaceAutoencoder) -> dict[str, KerasLayers]:
    """Return (kernel, bias) per layer, float32 in Keras' layout, of 'encoder', 'decoder_a' and 'decoder_b'."""
    result: dict[str, KerasLayers] = {}
    for name, part in _parts(model).items():
        result[name] = []
        for layer, outputs, inputs in _layers(part):
            assert layer.bias is not None, "all our layers have one"
            weight, bias = layer.weight.detach().cpu(), layer.bias.detach().cpu()
            if outputs is not None:
                inverse = outputs.argsort()
                weight, bias = weight[inverse], bias[inverse]
            if inputs is not None:
                weight = weight[:, inputs.argsort()]
            kernel = weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.T
            result[name].append((kernel.contiguous().numpy(), bias.numpy()))
    return result


@torch.no_grad()
def from_keras(model: FaceAutoencoder, weights: dict[str, KerasLayers]) -> None:
    """Fill ``model`` from ``to_keras``'s form. Raises ValueError where a shape does not fit."""
    for name, part in _parts(model).items():
        for (layer, outputs, inputs), (kernel, bias) in zip(_layers(part), weights[name], strict=True):
            weight, offset = torch.as_tensor(kernel), torch.as_tensor(bias)
            weight = weight.permute(3, 2, 0, 1) if weight.ndim == 4 else weight.T
            if outputs is not None:
                weight, offset = weight[outputs], offset[outputs]
            if inputs is not None:
                weight = weight[:, inputs]
            if weight.shape != layer.weight.shape:
                raise ValueError(f"{name}: a kernel of {tuple(kernel.shape)} does not fit {layer}")
            assert layer.bias is not None, "all our layers have one"
            layer.weight.copy_(weight)
            layer.bias.copy_(offset)
