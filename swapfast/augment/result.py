"""The result of an augmenter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmented:
    """A batch of N augmented faces, all sides together, in BGR.

    The OpenCV backend makes uint8 0..255, the kornia backend float32 0..1. Images are channels_last in memory;
    masks lie one after another, so that a single mask is a view without gaps.
    """

    feed: Tensor  # (N, 3, h, w) what the model sees: moved, flipped and warped
    targets: list[Tensor]  # per output size, smallest first: (N, 3, H, W) moved and flipped
    masks: list[Tensor] | None  # per output size: (N, M, H, W) face mask, then the extra ones; None without masks

    def to_float(self) -> Augmented:
        """Return the same as float32 in 0..1; floats pass unchanged."""
        return Augmented(
            feed=to_float(self.feed),
            targets=[to_float(target) for target in self.targets],
            masks=None if self.masks is None else [to_float(masks) for masks in self.masks],
        )


def to_float(pixels: Tensor) -> Tensor:
    """Return uint8 0..255 as float32 0..1 in the same memory order, exactly ``v / 255``; floats pass unchanged."""
    if pixels.dtype != torch.uint8:
        return pixels
    if pixels.device.type != "cpu":
        return pixels.to(torch.float32).div_(255)
    # NumPy on the CPU: torch's threads wait for each other, 20 ms for 1 ms of work while others use the cores.
    return torch.from_numpy(np.divide(pixels.numpy(), np.float32(255), dtype=np.float32))
