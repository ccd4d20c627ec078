"""A model that returns what it is shown, so that everything a swap changes beside the face itself can be seen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from swapfast.models import FaceAutoencoder
from swapfast.models.autoencoder import Decoder
from swapfast.synthetic.identity import draw_identities
from swapfast.synthetic.render import RenderedFace, render
from swapfast.synthetic.scene import draw_scene
from swapfast.synthetic.streams import generator


class _Mask(nn.Module):
    """A mask that is 1 in the upper part of the crop, down to ``share``."""

    def __init__(self, size: int, share: float) -> None:
        super().__init__()
        self.register_buffer("rows", (torch.arange(size) < share * size).float())

    def forward(self, code: Tensor) -> Tensor:
        return self.rows[None, None, :, None].expand(len(code), 1, -1, code.shape[3])


class Gain(nn.Module):
    """Returns its input times a number."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, code: Tensor) -> Tensor:
        return (code * self.gain).clamp(0, 1)


def echo(size: int = 64, gain: float = 1.0, masks: tuple[float, float] | None = None) -> FaceAutoencoder:
    """Return a model whose swaps are its input. masks: how far down the learned masks of a and b reach."""
    shares = masks or (None, None)
    decoders = {
        side: Decoder(Gain(gain), None if share is None else _Mask(size, share))
        for side, share in zip("ab", shares, strict=True)
    }
    return FaceAutoencoder("echo", size, (size,), nn.Identity(), decoders).eval()


def drawn_face(index: int = 0, size: int = 256, seed: int = 1) -> RenderedFace:
    """Return a drawn face of person A with its exact landmarks."""
    return render(draw_identities(seed)[0], draw_scene(generator(seed, 0, index)), size)


def ramp(width: int, height: int, kind: type = np.uint8) -> np.ndarray:
    """Return a frame whose colours change evenly, which cubic and linear filters keep, (H, W, 3)."""
    x, y = np.meshgrid(np.linspace(0.2, 0.8, width), np.linspace(0.2, 0.8, height))
    return np.rint(np.stack([x, y, (x + y) / 2], axis=2) * np.iinfo(kind).max).astype(kind)
