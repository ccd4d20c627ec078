"""Colour on torch tensors: LAB there and back, the jitter in between, and CLAHE of its lightness.

LAB here is in the 8-bit units in which amounts are given and CLAHE works: L = 2.55 L*, a = a* + 128, b = b* + 128,
as floats that are not rounded. OpenCV's 8-bit conversion differs by up to 3 of these units (0.1 on average), and by
0.4 to 1.1 levels on average over the whole way to LAB and back; the float way is the more exact one.

docs/kornia.md has the error of each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from kornia.color import bgr_to_rgb, linear_rgb_to_rgb, rgb_to_bgr, rgb_to_linear_rgb
from torch import Tensor

from swapfast.augment.device.clahe import Group, equalize
from swapfast.augment.device.transfer import table
from swapfast.augment.lab import FROM_XYZ, LUMINANCE, STEPS, TO_XYZ, WHITE, levels_of_luminance

Matrix = Sequence[Sequence[float]]

_RGB_TO_WHITE = [[m / white for m in row] for row, white in zip(TO_XYZ, WHITE)]
_WHITE_TO_RGB = [[m * white for m, white in zip(row, WHITE)] for row in FROM_XYZ]


def bgr_to_lab(images: Tensor) -> Tensor:
    """Return LAB in 8-bit units, 0..255, of BGR in 0..1; both (N, 3, H, W)."""
    return linear_to_lab(rgb_to_linear_rgb(bgr_to_rgb(images)))


def linear_to_lab(light: Tensor) -> Tensor:
    """Return LAB in 8-bit units of linear RGB in 0..1; both (N, 3, H, W).

    kornia: ``rgb_to_lab`` and ``lab_to_rgb`` send their constants to a GPU in each call, four times a batch, and each
    time the host waits; and they mix channels there by a convolution in TF32: off by up to 0.17 of a level. Ours: their
    formulas as sums, with the constants in the kernels: 1e-4.
    """
    white = _mix(_RGB_TO_WHITE, light)  # X, Y, Z over those of white
    root = torch.where(white > 0.008856, white.clamp(min=0.008856) ** (1 / 3), 7.787 * white + 4 / 29)
    x, y, z = root.unbind(1)
    return torch.stack([2.55 * (116 * y - 16), 500 * (x - y) + 128, 200 * (y - z) + 128], dim=1)


def lab_to_bgr(lab: Tensor) -> Tensor:
    """Return BGR in 0..1 of LAB in 8-bit units; both (N, 3, H, W). What no screen can show is clipped."""
    lightness, a, b = lab.unbind(1)
    y = (lightness / 2.55 + 16) / 116
    root = torch.stack([y + (a - 128) / 500, y, (y - (b - 128) / 200).clamp(min=0)], dim=1)
    white = torch.where(root > 0.2068966, root**3, (root - 4 / 29) / 7.787)
    return rgb_to_bgr(linear_rgb_to_rgb(_mix(_WHITE_TO_RGB, white)).clamp(0, 1))


def _mix(matrix: Matrix, channels: Tensor) -> Tensor:
    """Return three channels through a 3x3 matrix of plain numbers."""
    x, y, z = channels.unbind(1)
    return torch.stack([torch.add(p * x, y, alpha=q).add_(z, alpha=r) for p, q, r in matrix], dim=1)


_levels_of_luminance = table(levels_of_luminance)


def whole_lightness(light: Tensor) -> Tensor:
    """Return L in whole levels (N, H, W) of linear RGB (N, 3, H, W), OpenCV's 8-bit conversion to the bit.

    As it does, light and luminance become whole 2040ths.
    """
    red, green, blue = (light * STEPS).round().unbind(1)
    of_blue, of_green, of_red = LUMINANCE
    luminance = ((blue * of_blue + green * of_green + red * of_red) / 4096 + 0.5).to(torch.int32)
    return _levels_of_luminance(light.device).index_select(0, luminance.flatten()).view(luminance.shape)


def jitter(lab: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Return LAB in 8-bit units times factors plus offsets (``Draws.lab_affine``).

    lab: (N, 3, H, W); or one of its channels, (N, H, W)
    factor, offset: (N, 3); or (N,)

    Peer: cuts off the fraction, half a level of L, a and b on average. Ours: keeps it.
    """
    return lab * factor[..., None, None] + offset[..., None, None]


def color_adjust(
    images: Tensor, factor: Tensor, offset: Tensor, changes: Tensor, order: Tensor, groups: Sequence[Group]
) -> Tensor:
    """Return images after jitter and CLAHE.

    images: (N, 3, H, W) BGR in 0..1
    factor, offset: (N, 3) of LAB, ``Draws.lab_affine``
    changes: (N,) bool, whether anything is drawn for a face
    order: (N,) int64, the faces sorted by their grids
    groups: which of them have CLAHE with which grid, ``clahe.groups``

    A face for which nothing is drawn comes back as it was, not merely as close as LAB and back would bring it.
    """
    light = rgb_to_linear_rgb(bgr_to_rgb(images))
    lab = jitter(linear_to_lab(light), factor, offset)
    for group in groups:
        faces = order[group.first : group.last]
        # CLAHE makes a difference of one level in its tiles one of many. With OpenCV's L the two backends agree to
        # 51 dB at 64 and at 128 px, with the exact one to 36 and 43.
        lightness = jitter(whole_lightness(light.index_select(0, faces)), factor[faces, 0], offset[faces, 0])
        lab[:, 0].index_copy_(0, faces, equalize(lightness, group.grid, group.limit))
    return torch.where(changes[:, None, None, None], lab_to_bgr(lab), images)
