"""Points (x, y) through affine matrices: the one place for faces and augmentation alike."""

from __future__ import annotations

import math

import numpy as np


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points moved by affine matrices, in float64 and in the shape they came in.

    matrix: (2, 3) for all points; or (N, 2, 3) or (N, 3, 3), one for each entry of the points' first dimension
    points: (..., 2), or (N, ..., 2)
    """
    points, batch = np.asarray(points, np.float64), matrix.ndim - 2
    rows = points.reshape(*points.shape[:batch], math.prod(points.shape[batch:-1]), 2)
    result = rows @ matrix[..., :2, :2].swapaxes(-1, -2) + matrix[..., None, :2, 2]
    return result.reshape(points.shape)
