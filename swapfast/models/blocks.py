"""The few layers our models are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.1


class SameConv(nn.Conv2d):
    """A convolution whose output is its input's size divided by the stride, as Keras' padding 'same'.

    With stride 2 and an even input Keras pads one pixel less before than after, so torch's symmetric padding
    would shift the picture by a pixel against a model trained there. Where both edges are equal the convolution pads
    for itself: the same sums, and neither a launch nor a copy of the picture for it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        total = kernel - stride
        self.edges = (total // 2, total - total // 2) * 2
        self.pads_itself = total % 2 == 0
        super().__init__(inputs, outputs, kernel, stride, padding=total // 2 if self.pads_itself else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H / stride, W / stride) of ``x`` (N, inputs, H, W)."""
        return super().forward(x if self.pads_itself else F.pad(x, self.edges))


class PixelShuffle(nn.PixelShuffle):
    """torch's, but that a picture in channels_last stays so on every device, by one copy.

    torch's own does that on a CPU only, in a third of the time there: elsewhere it writes NCHW, and each convolution
    that follows turns it back.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return (N, C, r H, r W) of ``input`` (N, C r r, H, W), with r the factor."""
        if input.device.type == "cpu" or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        return channels_last_shuffle(input, self.upscale_factor)


def channels_last_shuffle(features: Tensor, factor: int) -> Tensor:
    """Return (N, C, factor H, factor W) of ``features`` (N, C factor factor, H, W), both in channels_last."""
    count, channels, height, width = features.shape
    blocks = features.permute(0, 2, 3, 1).view(count, height, width, channels // factor**2, factor, factor)
    shape = (count, factor * height, factor * width, channels // factor**2)
    return blocks.permute(0, 1, 4, 2, 5, 3).reshape(shape).permute(0, 3, 1, 2)


def down(inputs: int, outputs: int, kernel: int = 5) -> nn.Sequential:
    """Return what halves the size: strided convolution, leaky ReLU."""
    return nn.Sequential(SameConv(inputs, outputs, kernel, stride=2), nn.LeakyReLU(LEAK))


def up(inputs: int, outputs: int) -> nn.Sequential:
    """Return what doubles the size: convolution to four times the channels, leaky ReLU, pixel shuffle."""
    return nn.Sequential(SameConv(inputs, 4 * outputs, 3), nn.LeakyReLU(LEAK), PixelShuffle(2))


class Unflatten(nn.Module):
    """A layer from (N, channels * size * size) to (N, channels, size, size)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.shape = (channels, size, size)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.view(-1, *self.shape)


def initialise(module: nn.Module, generator: torch.Generator, glorot: bool = False) -> None:
    """Draw He-uniform convolutions and Glorot-uniform dense layers from ``generator``; set biases to zero.

    glorot: convolutions too.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not glorot:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
