"""Constants of LAB that both backends share: kornia's matrices, and OpenCV's whole levels of L."""

from __future__ import annotations

import numpy as np

# kornia's: D65 white, linear RGB -> XYZ and back.
WHITE = (0.95047, 1.0, 1.08883)
TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
FROM_XYZ = (
    (3.2404813432005266, -1.5371515162713185, -0.4985363261688878),
    (-0.9692549499965682, 1.8759900014898907, 0.0415559265582928),
    (0.0556466391351772, -0.2040413383665112, 1.0573110696453443),
)
STEPS = 2040  # of light, as fine as OpenCV's 8-bit conversion counts it
LUMINANCE = (296, 2929, 871)  # the shares of blue, green and red, in 4096ths


def linear_light(srgb: np.ndarray) -> np.ndarray:
    """Return linear light 0..1 of sRGB 0..1, in float64."""
    return np.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)


def levels_of_luminance() -> np.ndarray:
    """Return (2041,) float32: L of each luminance in 2040ths. A root in float32 would put five one level off."""
    luminance = np.arange(STEPS + 1) / STEPS
    root = np.where(luminance > 216 / 24389, np.cbrt(luminance), luminance * 841 / 108 + 16 / 116)
    # The root in 32768ths, times 296 for 2.55 * 116, less 2.55 * 16: as OpenCV rounds them.
    return ((np.rint(root * 2**15) * 296 - 1336934 + 2**14) // 2**15).astype(np.float32)
