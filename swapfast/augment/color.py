"""Colour on torch tensors: LAB there and back with kornia's formulas, and the jitter in between.

LAB here is in the 8-bit units in which amounts are given and CLAHE works: L = 2.55 L*, a = a* + 128, b = b* + 128,
as floats that are not rounded. OpenCV's 8-bit conversion differs by up to 3 of these units (.1 on average), and
.4 to 1.1 levels on average over the whole way to LAB and back; the float way is the more exact one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from kornia.color import linear_rgb_to_rgb, rgb_to_linear_rgb
from torch import Tensor

from swapfast.augment.clahe import equalize
from swapfast.augment.transfer import send

# kornia's constants: D65 white, linear RGB -> XYZ and back.
_WHITE = (0.95047, 1.0, 1.08883)
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_FROM_XYZ = (
    (3.2404813432005266, -1.5371515162713185, -0.4985363261688878),
    (-0.9692549499965682, 1.8759900014898907, 0.0415559265582928),
    (0.0556466391351772, -0.2040413383665112, 1.0573110696453443),
)


def bgr_to_lab(images: Tensor) -> Tensor:
    """(N, 3, H, W) BGR in 0..1 -> LAB in 8-bit units, 0..255."""
    blue, green, red = rgb_to_linear_rgb(images).unbind(1)
    x, y, z = (_root(part / white) for part, white in zip(_mixed(_TO_XYZ, red, green, blue), _WHITE))
    return torch.stack([2.55 * (116 * y - 16), 500 * (x - y) + 128, 200 * (y - z) + 128], dim=1)


def lab_to_bgr(lab: Tensor) -> Tensor:
    """(N, 3, H, W) LAB in 8-bit units -> BGR in 0..1; what no screen can show is clipped."""
    lightness, a, b = lab.unbind(1)
    y = (lightness / 2.55 + 16) / 116
    x, z = (a - 128) / 500 + y, (y - (b - 128) / 200).clamp(min=0)
    red, green, blue = _mixed(_FROM_XYZ, *(_power(part) * white for part, white in zip((x, y, z), _WHITE)))
    return linear_rgb_to_rgb(torch.stack([blue, green, red], dim=1)).clamp(0, 1)


def _mixed(matrix: Sequence[Sequence[float]], first: Tensor, second: Tensor, third: Tensor) -> list[Tensor]:
    """Three planes through a 3x3 matrix of plain numbers.

    kornia: makes the matrix a tensor on every call, for which the host waits on a GPU, and multiplies by a convolution,
    which there keeps 10 bits (TF32). Ours: sums of products, in full float32.
    """
    return [p * first + q * second + r * third for p, q, r in matrix]


def _root(part: Tensor) -> Tensor:
    """XYZ over white -> what LAB is made of: the cube root, a straight line near black."""
    return torch.where(part > 0.008856, part.clamp(min=0.008856) ** (1 / 3), 7.787 * part + 4 / 29)


def _power(root: Tensor) -> Tensor:
    """The inverse of ``_root``."""
    return torch.where(root > 0.2068966, root**3, (root - 4 / 29) / 7.787)


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
    plain = send(np.equal(grids, 0), images.device)
    same = plain & (factor == 1).all(1) & (offset == 0).all(1)
    return torch.where(same[:, None, None, None], images, colored)
