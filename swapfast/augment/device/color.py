"""Colour on torch tensors: LAB there and back with kornia's constants, and the jitter in between.

LAB here is in the 8-bit units in which amounts are given and CLAHE works: L = 2.55 L*, a = a* + 128, b = b* + 128,
as floats that are not rounded. OpenCV's 8-bit conversion differs by up to 3 of these units (0.1 on average), and by
0.4 to 1.1 levels on average over the whole way to LAB and back; the float way is the more exact one.

kornia's own functions are not used, for the sake of few and cheap kernels. They write powers as powers: x ** 2.4 is a
library call for each value, exp2(2.4 * log2(x)) two instructions of a GPU, and compiled for a CPU 1.9 times as fast;
the two differ by 0.002 of a level. They clamp what needs none, and mix channels by a convolution, which on a GPU
keeps 10 bits (TF32). A test compares ours with theirs. Each step overwrites what the one before it made: on a CPU
fresh memory costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from swapfast.augment.device.clahe import equalize
from swapfast.augment.device.transfer import table

# kornia's constants: D65 white, linear RGB -> XYZ and back.
WHITE = (0.95047, 1.0, 1.08883)
TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
FROM_XYZ = (
    (3.2404813432005266, -1.5371515162713185, -0.4985363261688878),
    (-0.9692549499965682, 1.8759900014898907, 0.0415559265582928),
    (0.0556466391351772, -0.2040413383665112, 1.0573110696453443),
)
SLOPE = 12.92  # of sRGB near black; linear light is counted in 1 / 12.92 on the way in, which saves a product
STEPS = 2040  # of light, as fine as OpenCV's 8-bit conversion counts it
LUMINANCE = (296, 2929, 871)  # the shares of blue, green and red, in 4096ths
_BGR_TO_WHITE = [[m / white / SLOPE for m in reversed(row)] for row, white in zip(TO_XYZ, WHITE)]
_WHITE_TO_BGR = [[m * white for m, white in zip(row, WHITE)] for row in reversed(FROM_XYZ)]


Channels = Tensor | Sequence[Tensor]  # three: one (N, 3, H, W) tensor, or three of (N, H, W)


def bgr_to_lab(images: Channels) -> list[Tensor]:
    """Return LAB in 8-bit units, 0..255, as three (N, H, W) channels, of BGR in 0..1."""
    return _linear_to_lab(_map(_linear, images))


def _linear_to_lab(light: Channels) -> list[Tensor]:
    x, y, z = _split(_map(_root, _mix(_BGR_TO_WHITE, light)))
    return [(y * (2.55 * 116)).sub_(2.55 * 16), (x - y).mul_(500).add_(128), (y - z).mul_(200).add_(128)]


def lab_to_bgr(lab: Channels) -> Tensor:
    """Return (N, 3, H, W) BGR in 0..1 of LAB in 8-bit units; what no screen can show is clipped."""
    return _stack(_map(_srgb, _lab_to_linear(lab)))


def _lab_to_linear(lab: Channels) -> list[Tensor]:
    lightness, a, b = _split(lab)
    y = (lightness * (1 / (2.55 * 116))).add_(16 / 116)
    x = torch.add(y, a, alpha=1 / 500).sub_(128 / 500)
    z = torch.sub(y, b, alpha=1 / 200).add_(128 / 200).clamp_(min=0)
    return _mix(_WHITE_TO_BGR, _map(_power, [x, y, z]))


def _whole_lightness(light: Channels) -> Tensor:
    """Return L in whole levels, OpenCV's 8-bit conversion to the bit: light and luminance become whole 2040ths."""
    blue, green, red = _split(_map(lambda channel: (channel * (STEPS / SLOPE)).round_(), light))
    of_blue, of_green, of_red = LUMINANCE
    luminance = (blue * of_blue).add_(green, alpha=of_green).add_(red, alpha=of_red)
    luminance = luminance.mul_(1 / 4096).add_(0.5).to(torch.int32)
    return _levels_on_device(blue.device).index_select(0, luminance.flatten()).view(luminance.shape)


def levels_of_luminance() -> np.ndarray:
    """Return (2041,) float32: L of each luminance in 2040ths. A root in float32 would put five one level off."""
    luminance = np.arange(STEPS + 1) / STEPS
    root = np.where(luminance > 216 / 24389, np.cbrt(luminance), luminance * 841 / 108 + 16 / 116)
    # The root in 32768ths, times 296 for 2.55 * 116, less 2.55 * 16: as OpenCV rounds them.
    return ((np.rint(root * 2**15) * 296 - 1336934 + 2**14) // 2**15).astype(np.float32)


_levels_on_device = table(levels_of_luminance)


def _split(channels: Channels) -> Sequence[Tensor]:
    return channels.unbind(1) if isinstance(channels, Tensor) else channels


def _stack(channels: Channels) -> Tensor:
    return channels if isinstance(channels, Tensor) else torch.stack(list(channels), dim=1)


def _map(function: Callable[..., Tensor], *images: Channels) -> Channels:
    """Return ``function`` of each of the three channels.

    Eagerly all three in one tensor: a third of the kernels. While compiling one by one: a tensor of three that other
    kernels split again is a way through the memory and back, where one kernel could do all of it.
    """
    if torch.compiler.is_compiling():
        return [function(*channels) for channels in zip(*map(_split, images))]
    return function(*map(_stack, images))


def _mix(matrix: Sequence[Sequence[float]], channels: Channels) -> list[Tensor]:
    """Return three channels through a 3x3 matrix of plain numbers, in full float32."""
    x, y, z = _split(channels)
    return [(p * x).add_(y, alpha=q).add_(z, alpha=r) for p, q, r in matrix]


def _linear(srgb: Tensor) -> Tensor:
    """Return linear light times 12.92 of sRGB in 0..1."""
    curve = (srgb + 0.055).log2_().mul_(2.4).exp2_().mul_(SLOPE * 1.055**-2.4)
    return torch.where(srgb > 0.04045, curve, srgb)


def _srgb(linear: Tensor) -> Tensor:
    """Return sRGB of linear light, clipped to 0..1. Below zero the logarithm is NaN, and the line is taken."""
    curve = torch.log2(linear).mul_(1 / 2.4).exp2_().mul_(1.055).sub_(0.055)
    return torch.where(linear > 0.0031308, curve, linear * SLOPE).clamp_(0, 1)


def _root(t: Tensor) -> Tensor:
    """Return f(t) of LAB, t being X, Y or Z over white: the cube root, a straight line near black."""
    return torch.where(t > 0.008856, torch.log2(t).mul_(1 / 3).exp2_(), (t * 7.787).add_(4 / 29))


def _power(root: Tensor) -> Tensor:
    """Return the inverse of ``_root``."""
    return torch.where(root > 0.2068966, root**3, (root - 4 / 29).mul_(1 / 7.787))


def jitter(lab: Channels, factor: Tensor, offset: Tensor) -> list[Tensor]:
    """Return LAB in 8-bit units times (N, 3) factors plus (N, 3) offsets (``Draws.lab_affine``).

    Peer: cuts off the fraction, half a level of L, a and b on average. Ours: keeps it.
    """
    factors, offsets = factor[:, :, None, None].unbind(1), offset[:, :, None, None].unbind(1)
    return [torch.addcmul(o, channel, f) for channel, f, o in zip(_split(lab), factors, offsets)]


def color_adjust(
    images: Tensor, factor: Tensor, offset: Tensor, grids: Tensor, limits: Tensor, largest_grid: int
) -> Tensor:
    """Return images after jitter and CLAHE.

    images: (N, 3, H, W) BGR in 0..1
    factor, offset: (N, 3) of LAB, ``Draws.lab_affine``
    grids: (N,) int32 tiles per edge, 0 for no CLAHE, up to ``largest_grid``
    limits: (N,) int32 ``clahe.bin_limits``

    A face for which neither is drawn comes back as it was, not merely as close as LAB and back would bring it.
    """
    light = _map(_linear, images)
    lab = _linear_to_lab(light)
    if largest_grid:
        # CLAHE makes a difference of one level in its tiles one of many. With OpenCV's L the two backends agree to
        # 51 dB at 64 and at 128 px, with the exact one to 36 and 43.
        lab[0] = torch.where((grids > 0)[:, None, None], _whole_lightness(light), lab[0])
    lightness, a, b = jitter(lab, factor, offset)
    linear = _lab_to_linear([equalize(lightness, grids, limits, largest_grid), a, b])
    unchanged = (grids == 0) & (factor == 1).all(1) & (offset == 0).all(1)

    def finish(image: Tensor, linear: Tensor) -> Tensor:
        return torch.where(unchanged.view(-1, *[1] * (image.ndim - 1)), image, _srgb(linear))

    return _stack(_map(finish, images, linear))
