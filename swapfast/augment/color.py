"""Colour on torch tensors: LAB there and back with kornia's formulas, and the jitter in between.

LAB here is in the 8-bit units in which amounts are given and CLAHE works: L = 2.55 L*, a = a* + 128, b = b* + 128,
as floats that are not rounded. OpenCV's 8-bit conversion differs by up to 3 of these units (.1 on average), and
.4 to 1.1 levels on average over the whole way to LAB and back; the float way is the more exact one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from torch import Tensor

from swapfast.augment.clahe import equalize

_SCALE = (2.55, 1.0, 1.0)
_OFFSET = (0.0, 128.0, 128.0)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device)[:, None, None]


def bgr_to_lab(images: Tensor) -> Tensor:
    """(N, 3, H, W) BGR in 0..1 -> LAB in 8-bit units, 0..255."""
    lab = rgb_to_lab(images.flip(1))  # kornia's channels are RGB
    return lab * _per_channel(_SCALE, lab) + _per_channel(_OFFSET, lab)


def lab_to_bgr(lab: Tensor) -> Tensor:
    """(N, 3, H, W) LAB in 8-bit units -> BGR in 0..1; what no screen can show is clipped."""
    return lab_to_rgb((lab - _per_channel(_OFFSET, lab)) / _per_channel(_SCALE, lab)).flip(1)


def jitter(lab: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """(N, 3, H, W) LAB in 8-bit units times (N, 3) factors plus (N, 3) offsets (``Draws.lab_affine``).

    Peer: cuts off the fraction, half a level of L, a and b on average. Ours: keeps it.
    """
    return lab * factor[:, :, None, None] + offset[:, :, None, None]


def color_adjust(images: Tensor, factor: Tensor, offset: Tensor, grids: Sequence[int]) -> Tensor:
    """Jitter and CLAHE of (N, 3, H, W) BGR in 0..1. ``grids``: N tiles per edge on the host, 0 for no CLAHE.

    A face for which neither is drawn comes back as it was, not merely as close as LAB and back would bring it.
    """
    if not len(images):
        return images.clone()
    lab = jitter(bgr_to_lab(images), factor, offset)
    lightness = equalize(lab[:, :1], grids)
    colored = lab_to_bgr(torch.cat([lightness, lab[:, 1:]], dim=1))
    plain = torch.tensor([not grid for grid in grids]).to(images.device)
    same = plain & (factor == 1).all(1) & (offset == 0).all(1)
    return torch.where(same[:, None, None, None], images, colored)
