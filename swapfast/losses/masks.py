"""What becomes of face masks and targets before they are compared, as DeepFaceLab does it."""

from __future__ import annotations

import torch
from torch import Tensor

from swapfast.losses.filters import blur


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return (N, C, H, W) blurred by a Gaussian of ``sigma`` px, with zeros beyond the border."""
    return blur(images, max(3, int(4 * sigma)) | 1, sigma, "zeros")


@torch.no_grad()
def soft_mask(mask: Tensor) -> Tensor:
    """Return (N, 1, H, W) face masks grown over a soft rim: 1 wherever at least half of the blurred mask is, 0..1.

    The blur has a sigma of a 32nd of the edge, so the rim reaches about so far beyond the face.
    """
    return blurred(mask, max(1, mask.shape[-1] // 32)).clamp(0, 0.5) * 2


@torch.no_grad()
def blur_outside(images: Tensor, mask: Tensor) -> Tensor:
    """Return (N, 3, H, W) images whose pixels outside the face are means of others outside.

    mask: (N, 1, H, W) of the face, 0..1

    The Gaussian's sigma is a 128th of the edge; what lies inside the face has no part in it.
    """
    sigma, outside = images.shape[-1] / 128, 1 - mask
    weight = 1 - blurred(mask, sigma)
    mean = blurred(images * outside, sigma) / torch.where(weight == 0, 1.0, weight)
    return images * mask + mean * outside
