"""How far pictures of faces lie from the true ones, inside a mask.

A swap is colour-corrected when it is pasted, so the figures come twice: as it is, and colour-matched, after each
picture's mean B, G and R inside the mask were set right. Of one picture, the mean squared error as it is equals the
matched one plus the square of the colour error. The matched figures tell about shape, pose, expression and light.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import cv2
import numpy as np

SSIM_WINDOW = 11  # px, and its deviation; Wang et al., "Image Quality Assessment" (2004)
SSIM_DEVIATION = 1.5


@dataclass(frozen=True)
class Distances:
    """Mean figures of some pictures against the true ones, inside their masks.

    psnr: dB. psnr_matched: dB, colour-matched. ssim: -1..1. color_error: of the mean colours, 0..1.
    """

    psnr: float
    psnr_matched: float
    ssim: float
    color_error: float

    @classmethod
    def of(cls, images: np.ndarray, expected: np.ndarray, masks: np.ndarray) -> Distances:
        """Return the means over (n, H, W, 3) images in 0..1, see ``each_distance``."""
        return cls(**{name: float(values.mean()) for name, values in each_distance(images, expected, masks).items()})

    def to_dict(self) -> dict[str, float]:
        """Return the values by name, JSON-ready."""
        return asdict(self)


DISTANCES = tuple(field.name for field in fields(Distances))


def each_distance(images: np.ndarray, expected: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Return every figure of ``Distances`` for each picture, (n,) float64 by name.

    images, expected: (n, H, W, 3) in 0..1.
    masks: (n, H, W) in 0..1, none of them empty.
    """
    matched = match_colors(images, expected, masks)
    return {
        "psnr": masked_psnr(images, expected, masks),
        "psnr_matched": masked_psnr(matched, expected, masks),
        "ssim": masked_ssim(images, expected, masks),
        "color_error": color_errors(images, expected, masks),
    }


def masked_psnr(images: np.ndarray, expected: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return each image's PSNR in dB, weighted by its mask.

    images, expected: (n, H, W, 3) in 0..1.
    masks: (n, H, W) in 0..1, none of them empty.
    Returns (n,) float64.
    """
    squares = ((images.astype(np.float64) - expected) ** 2).mean(-1)
    error = (squares * masks).sum((1, 2)) / masks.sum((1, 2))
    return -10 * np.log10(np.maximum(error, 1e-10))


def mean_colors(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return each picture's mean colour inside its mask, (n, 3) float64, in the order of its channels."""
    weights = masks / masks.sum((1, 2), keepdims=True)
    return np.einsum("nhwc,nhw->nc", images, weights)


def match_colors(images: np.ndarray, expected: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the images moved so that their mean colours inside the masks are those expected; 0..1 may be left."""
    shift = mean_colors(expected, masks) - mean_colors(images, masks)
    return images + shift[:, None, None]


def color_errors(images: np.ndarray, expected: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return how far each picture's mean colour is off, (n,) in 0..1: the root mean square over B, G and R."""
    apart = mean_colors(images, masks) - mean_colors(expected, masks)
    return np.sqrt((apart**2).mean(-1))


def _blurred(images: np.ndarray) -> np.ndarray:
    edge = (SSIM_WINDOW, SSIM_WINDOW)
    return np.stack(
        [cv2.GaussianBlur(image, edge, SSIM_DEVIATION, borderType=cv2.BORDER_REFLECT_101) for image in images]
    )


def masked_ssim(images: np.ndarray, expected: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return each image's structural similarity (SSIM), the mean of B, G and R weighted by its mask.

    Wang et al. (2004): a Gaussian window of 11 px with a deviation of 1.5, K1 0.01, K2 0.03; the border is mirrored.
    images, expected: (n, H, W, 3) in 0..1.
    masks: (n, H, W) in 0..1, none of them empty.
    Returns (n,) float64, -1..1.
    """
    images, expected = images.astype(np.float64), expected.astype(np.float64)
    mean, mean_true = _blurred(images), _blurred(expected)
    variances = _blurred(images**2) - mean**2 + _blurred(expected**2) - mean_true**2
    covariance = _blurred(images * expected) - mean * mean_true
    luminance = (2 * mean * mean_true + 0.01**2) / (mean**2 + mean_true**2 + 0.01**2)
    contrast = (2 * covariance + 0.03**2) / (np.maximum(variances, 0) + 0.03**2)
    similarity = (luminance * contrast).mean(-1)
    return (similarity * masks).sum((1, 2)) / masks.sum((1, 2))
