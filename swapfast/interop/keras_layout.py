"""Where Keras keeps the numbers that our layers have.

Keras keeps convolution kernels as (height, width, in, out) and dense ones as (in, out), flattens and reshapes
pictures in (height, width, channel) order, and faceswap's pixel shuffle counts channels fastest:
(row, column, channel) where torch's counts (channel, row, column).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from swapfast.errors import SwapfastError
from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import Unflatten

Branch = tuple[str, str]  # a part ('encoder', 'decoder_a', 'decoder_b') and what comes out: 'code', 'face' or 'mask'
Step = tuple[str | int, ...]  # what a layer does, with its sizes


@dataclass(frozen=True)
class KerasLayer:
    """A layer with weights, and in which order Keras keeps them.

    outputs, inputs: for each of torch's, Keras' index of it; None where both count alike.
    """

    layer: nn.Conv2d | nn.Linear
    outputs: Tensor | None
    inputs: Tensor | None

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Return the shape of the kernel in Keras: (height, width, in, out) or (in, out)."""
        shape = tuple(self.layer.weight.shape)
        return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else (shape[1], shape[0])

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Return kernel and bias as Keras has them, float32."""
        weight, bias = self.layer.weight.detach().float().cpu(), cast(Tensor, self.layer.bias).detach().float().cpu()
        if self.outputs is not None:
            inverse = self.outputs.argsort()
            weight, bias = weight[inverse], bias[inverse]
        if self.inputs is not None:
            weight = weight[:, self.inputs.argsort()]
        kernel = weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        return kernel.contiguous().numpy(), bias.numpy()

    @torch.no_grad()
    def fill(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        """Take the numbers of a layer of Keras'. Raises ValueError where their shapes do not fit."""
        if kernel.shape != self.kernel_shape or bias.shape != self.kernel_shape[-1:]:
            raise ValueError(f"a kernel of {tuple(kernel.shape)} does not fit {self.layer}")
        weight, offset = torch.as_tensor(kernel), torch.as_tensor(bias)
        weight = weight.permute(3, 2, 0, 1) if weight.ndim == 4 else weight.T
        if self.outputs is not None:
            weight, offset = weight[self.outputs], offset[self.outputs]
        if self.inputs is not None:
            weight = weight[:, self.inputs]
        self.layer.weight.copy_(weight)
        cast(Tensor, self.layer.bias).copy_(offset)


def _shuffled(channels: int) -> Tensor:
    """Return where Keras keeps each of torch's channels in front of a pixel shuffle by two."""
    return torch.arange(channels).view(4, channels // 4).T.reshape(-1)


def _height_width_channel(channels: int, size: int) -> Tensor:
    """Return where Keras keeps each of torch's (channel, height, width) values in a flattened picture."""
    return torch.arange(channels * size * size).view(size, size, channels).permute(2, 0, 1).reshape(-1)


def keras_layers(module: nn.Module) -> Iterator[KerasLayer]:
    """Yield every layer of ``module`` that has weights, in the order they run in."""
    modules = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.PixelShuffle, Unflatten))]
    channels = None  # of the picture in front of a flatten
    for layer, following in zip(modules, [*modules[1:], None]):
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
            yield KerasLayer(layer, _shuffled(channels) if isinstance(following, nn.PixelShuffle) else None, None)
        elif isinstance(layer, nn.Linear):
            inputs = None
            if channels is not None:
                inputs = _height_width_channel(channels, round((layer.in_features / channels) ** 0.5))
                channels = None
            outputs = _height_width_channel(*following.shape[:2]) if isinstance(following, Unflatten) else None
            yield KerasLayer(layer, outputs, inputs)


def branches(model: FaceAutoencoder) -> dict[Branch, nn.Module]:
    """Return the chains of layers that a model of faceswap's kind consists of: an encoder, and two decoders."""
    result: dict[Branch, nn.Module] = {("encoder", "code"): model.encoder}
    for side, module in model.decoders.items():
        decoder = cast(Decoder, module)
        result[f"decoder_{side}", "face"] = decoder.face
        if decoder.mask is not None:
            result[f"decoder_{side}", "mask"] = decoder.mask
    return result


def steps_of(module: nn.Module) -> list[Step]:
    """Return what the layers of ``module`` do, one after the other, pictures as (height, width, channels).

    Raises SwapfastError for a layer that faceswap's ``original`` and ``lightweight`` have not.
    """
    steps: list[Step] = []
    for layer in module.modules():
        if next(layer.children(), None) is not None:
            continue
        if isinstance(layer, nn.Conv2d):
            steps.append(("convolution", layer.kernel_size[0], layer.stride[0], layer.out_channels))
        elif isinstance(layer, nn.Linear):
            steps.append(("dense", layer.out_features))
        elif isinstance(layer, Unflatten):
            channels, height, width = layer.shape
            steps.append(("reshape", height, width, channels))
        elif isinstance(layer, nn.LeakyReLU):
            steps.append(("leaky ReLU", round(1000 * layer.negative_slope)))
        elif isinstance(layer, (nn.Flatten, nn.PixelShuffle, nn.Sigmoid)):
            steps.append(({nn.Flatten: "flatten", nn.Sigmoid: "sigmoid"}.get(type(layer), "pixel shuffle"),))
        else:
            raise SwapfastError(f"a layer {type(layer).__name__}: faceswap's models have none")
    return steps


def text_of(step: Step | None) -> str:
    """Return a step as a person reads it."""
    if step is None:
        return "nothing"
    kind, *sizes = step
    if kind == "convolution":
        return f"a convolution {sizes[0]}x{sizes[0]} of stride {sizes[1]} to {sizes[2]}"
    if kind == "leaky ReLU":
        return f"leaky ReLU {int(sizes[0]) / 1000:g}"
    return " ".join([str(kind), "x".join(map(str, sizes))]).strip()
