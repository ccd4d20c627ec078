"""Where MS-SSIM leaps: rounding decides there, and no tolerance for a pixel can hold on every processor."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.plain_losses import SCALES, ssim_terms

NEAR_ZERO = 1e-3  # of a scale's term: three times what float32 leaves of one on flat areas, in the worst of ten draws


def leaping_pixels(true: torch.Tensor, pred: torch.Tensor) -> np.ndarray:
    """Return where a term of MS-SSIM is near 0 in float64: (N, C, H, W) bool, as the images (N, C, H, W) in 0..1.

    A term's 0.0448th power is 0 at 0 and 0.54 at 1e-6, so that float32's rounding moves the loss by up to 1 there.
    """
    true, pred, full = true.double(), pred.double(), true.shape[-2:]
    size = min(11, min(full) // 16)
    size -= 1 - size % 2
    leaping = torch.zeros(true.shape, dtype=torch.bool, device=true.device)
    for scale in range(len(SCALES)):
        luminance, term = ssim_terms(true, pred, size)
        term = luminance * term if scale == len(SCALES) - 1 else term
        leaping |= F.interpolate(term, size=full, mode="bilinear", align_corners=False).abs() < NEAR_ZERO
        true, pred = F.avg_pool2d(true, 2), F.avg_pool2d(pred, 2)
    return leaping.cpu().numpy()
