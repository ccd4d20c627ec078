"""Losses that compare frequencies: of the whole image, or octave by octave."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from swapfast.errors import SwapfastError
from swapfast.losses.filters import blur, enlarge, float32_loss, refuse_smaller, safe_power


@float32_loss
def focal_frequency_loss(y_true: Tensor, y_pred: Tensor, alpha: float = 1.0, patches: int = 1) -> Tensor:
    """Return the focal frequency loss, (N,): the mean over all frequencies of |F|^2 * (|F| / largest |F|)^alpha.

    y_true, y_pred: (N, C, H, W) in 0..1
    alpha: how much the largest frequencies stand out
    patches: cut the image into this many parts along each edge first

    F is the orthonormal spectrum of the difference of one channel. Source: Jiang et al., "Focal Frequency Loss for
    Image Reconstruction", ICCV 2021; unlike in the paper the gradient passes through the focal weight.
    """
    # Peer: returns the spectrum's map, which its collator then multiplies by masks made of pixels, and divides 0 by 0
    # where nothing differs. Ours: a number per item, of masked images, and 0 there.
    height, width = y_true.shape[-2:]
    if height % patches or width % patches:
        raise SwapfastError(f"loss ffl: an output of {width}x{height} px cannot be cut into {patches} equal parts")
    difference = y_pred - y_true
    if patches > 1:
        difference = difference.unfold(2, height // patches, height // patches)
        difference = difference.unfold(3, width // patches, width // patches)
    spectrum = torch.fft.rfft2(difference, norm="ortho")  # the left half: the rest mirrors it
    power = spectrum.real.square() + spectrum.imag.square()
    largest = power.amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(power.dtype).tiny)
    focal = power * safe_power(power / largest, alpha / 2) if alpha != 1 else power**1.5 / largest.sqrt()
    columns = difference.shape[-1]
    mirrored = torch.full((focal.shape[-1],), 2.0, dtype=focal.dtype, device=focal.device)
    mirrored[0] = 1.0
    if columns % 2 == 0:
        mirrored[-1] = 1.0
    return (focal * mirrored).flatten(1).sum(dim=1) / difference[0].numel()


@float32_loss
def laplacian_pyramid_loss(
    y_true: Tensor, y_pred: Tensor, levels: int = 5, size: int = 5, sigma: float = 1.0
) -> Tensor:
    """Return the L1 distance of Laplacian pyramids, per value.

    y_true, y_pred: (N, C, H, W) in 0..1

    It is the sum over the levels and the remainder of 4^-level * |difference|, enlarged to full size. Borders repeated.
    Source: Bojanowski et al., "Optimizing the Latent Space of Generative Networks", 2018. Raises SwapfastError below
    2^levels (32) px.
    """
    refuse_smaller("laploss", y_true, 2**levels)
    image = y_pred - y_true  # a pyramid is linear: that of the difference will do
    height, width = image.shape[-2:]
    loss = torch.zeros_like(image)
    for level in range(levels + 1):
        smooth = blur(image, size, sigma, border="replicate") if level < levels else torch.zeros_like(image)
        amount = (image - smooth).abs() * 4.0**-level
        loss = loss + (enlarge(amount, height, width) if level else amount)
        image = F.avg_pool2d(smooth, 2) if level < levels else image
    return loss
