"""What an augmenter hands on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmented:
    """A batch of N augmented faces, all sides together, in BGR.

    The OpenCV backend makes uint8 0..255, the torch backend float32 0..1. Images are channels_last in memory;
    masks are one plane after another, so that a single mask is a view without gaps.
    """

    feed: Tensor  # (N, 3, h, w) what the model is fed: moved, flipped and warped
    targets: list[Tensor]  # per output size, smallest first: (N, 3, H, W) moved and flipped
    masks: list[Tensor] | None  # per output size: (N, M, H, W) face mask, then the extra ones; None without masks

    def to_float(self) -> Augmented:
        """The same as float32 in 0..1; what is float already is handed on as it is."""
        return Augmented(
            feed=to_float(self.feed),
            targets=[to_float(t) for t in self.targets],
            masks=None if self.masks is None else [to_float(m) for m in self.masks],
        )


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1 in the same memory order, exactly ``v / 255``; floats pass unchanged."""
    if pixels.dtype != torch.uint8:
        return pixels
    if pixels.device.type != "cpu":
        return pixels.to(torch.float32).div_(255)
    # numpy on the CPU: torch's threads wait for each other, 20 ms for 1 ms of work while others use the cores.
    return torch.from_numpy(np.divide(pixels.numpy(), np.float32(255), dtype=np.float32))
