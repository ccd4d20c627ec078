"""The few layers our models are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.1


class SameConv(nn.Conv2d):
    """A convolution whose output is its input's size divided by the stride, as Keras' padding 'same'.

    With stride 2 and an even input Keras pads one pixel less before than after, so torch's symmetric padding
    would shift the picture by a pixel against a model trained there.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride)
        total = kernel - stride
        self.edges = (total // 2, total - total // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H / stride, W / stride) of ``x`` (N, inputs, H, W)."""
        return super().forward(F.pad(x, self.edges))


def down(inputs: int, outputs: int, kernel: int = 5) -> nn.Sequential:
    """Return what halves the size: strided convolution, leaky ReLU."""
    return nn.Sequential(SameConv(inputs, outputs, kernel, stride=2), nn.LeakyReLU(LEAK))


def up(inputs: int, outputs: int) -> nn.Sequential:
    """Return what doubles the size: convolution to four times the channels, leaky ReLU, pixel shuffle."""
    return nn.Sequential(SameConv(inputs, 4 * outputs, 3), nn.LeakyReLU(LEAK), nn.PixelShuffle(2))


class Unflatten(nn.Module):
    """A layer from (N, channels * size * size) to (N, channels, size, size)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.shape = (channels, size, size)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.view(-1, *self.shape)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw He-uniform convolutions and Glorot-uniform dense layers from ``generator``; set biases to zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
