"""Plain float64 versions of what the kernels do, written for reading, and pictures to try them on."""

from __future__ import annotations

import numpy as np


def pictures(n: int, size: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(n, size, size, channels) uint8 with the spectrum of photographs (1/f) and a few sharp edges."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    spectrum = 1 / np.maximum(frequency, 1 / size) ** 1.4
    noise = np.fft.rfft2(rng.normal(size=(n, channels, size, size))) * spectrum
    waves = np.fft.irfft2(noise, s=(size, size))
    waves = 128 + 45 * waves / waves.std(axis=(2, 3), keepdims=True)
    y, x = np.mgrid[:size, :size] / size
    for image in waves:
        for _ in range(3):
            cx, cy, radius = rng.uniform(0.2, 0.8, 2).tolist() + [rng.uniform(0.05, 0.2)]
            image[:, np.hypot(x - cx, y - cy) < radius] += rng.uniform(-60, 60, (channels, 1))
    return np.ascontiguousarray(np.clip(np.rint(waves), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def mask_images(n: int, count: int, size: int, seed: int = 1) -> np.ndarray:
    """(n, count, size, size) uint8: soft discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    cx, cy, radius = rng.uniform(0.2, 0.8, (3, n, count, 1, 1))
    distance = np.hypot(x - cx, y - cy) - radius * 0.3
    return np.rint(255 * np.clip(0.5 - distance * size / 3, 0, 1)).astype(np.uint8)


def psnr(a, b, peak: float = 255.0) -> float:
    """dB between two arrays of values 0..peak."""
    mean = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return float("inf") if mean == 0 else float(10 * np.log10(peak**2 / mean))


def coarse_grid_levels(images: np.ndarray) -> float:
    """Return by how many levels OpenCV's move of six (N, H, W, C) channels may part from one that is exact.

    It adds two coordinates in whole 1/1024 px and rounds to 1/32 px: off by up to 1/64 + 1/1024 px along x and along y,
    where neighbours differ as much as any do here. Two levels are for rounding: either's move, either's shrinking.
    """
    steepest = sum(np.abs(np.diff(images.astype(int), axis=axis)).max() for axis in (1, 2))
    return float(steepest * (1 / 64 + 1 / 1024) + 2)


def bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Read (H, W, C) at positions x, y in px, the edge repeated."""
    image = image.astype(np.float64)
    height, width = image.shape[:2]
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    upper = image[y0, x0] * (1 - fx) + image[y0, x0 + 1] * fx
    lower = image[y0 + 1, x0] * (1 - fx) + image[y0 + 1, x0 + 1] * fx
    return upper * (1 - fy) + lower * fy


def affine_positions(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2, 3) matrix of px positions."""
    return matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2], matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]


def node_positions(nodes: np.ndarray, x: np.ndarray, y: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(5, 5, 2) nodes, evenly spread from edge to edge of the image, read at px x, y: bilinear in between."""
    read = bilinear(nodes, (x + 0.5) * 4 / size, (y + 0.5) * 4 / size)
    return read[..., 0], read[..., 1]


def area_mean(image: np.ndarray, smaller: int) -> np.ndarray:
    """(S, S, C) to (smaller, smaller, C): the mean over the square that each px covers."""
    size = len(image)
    weights = np.zeros((smaller, size))
    for i in range(smaller):
        left, right = i * size / smaller, (i + 1) * size / smaller
        for j in range(size):
            weights[i, j] = max(0.0, min(right, j + 1) - max(left, j)) / (right - left)
    return np.einsum("ij,jkc->ikc", weights, np.einsum("kl,jlc->jkc", weights, image.astype(np.float64)))


_RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])


def lab_of_bgr(bgr: np.ndarray) -> np.ndarray:
    """(..., 3) BGR in 0..1 -> LAB in 8-bit units (2.55 L*, a* + 128, b* + 128): sRGB, D65, CIE 1976."""
    rgb = bgr[..., ::-1].astype(np.float64)
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ (_RGB_TO_XYZ / _RGB_TO_XYZ.sum(1, keepdims=True)).T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness = 116 * f[..., 1] - 16
    return np.stack(
        [2.55 * lightness, 500 * (f[..., 0] - f[..., 1]) + 128, 200 * (f[..., 1] - f[..., 2]) + 128], axis=-1
    )


def jittered(lab: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """(N, ..., 3) 8-bit LAB levels moved by (N, 3) amounts, in float64: the share r of the way to 255, or -r to 0."""
    r = amounts.astype(np.float64).reshape(len(lab), *[1] * (lab.ndim - 2), 3)
    v = lab.astype(np.float64)
    return np.where(r >= 0, v + (255 - v) * r, v * (1 + r))


def equalized_slowly(plane: np.ndarray, grid: int, clip_limit: float) -> np.ndarray:
    """CLAHE of one (S, S) plane of bytes, tile by tile and bin by bin, in float64."""
    size = len(plane)
    border = -size % grid
    bordered = np.pad(plane, (0, border), mode="reflect")
    tile = len(bordered) // grid
    limit = max(int(clip_limit * tile**2 / 256), 1)
    curves = np.empty((grid, grid, 256))
    for row in range(grid):
        for column in range(grid):
            part = bordered[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
            counts = np.bincount(part.ravel(), minlength=256)
            excess = np.maximum(counts - limit, 0).sum()
            counts = np.minimum(counts, limit) + excess // 256
            rest = excess % 256
            if rest:
                counts[:: max(256 // rest, 1)][:rest] += 1
            curves[row, column] = np.rint(np.cumsum(counts) * 255 / tile**2)
    result = np.empty(plane.shape)
    for y in range(size):
        for x in range(size):
            # Between the centres of four tiles; outside the outermost centres their tiles count for both.
            v, u = (y / tile - 0.5), (x / tile - 0.5)
            (top, left), (fv, fu) = np.floor([v, u]).astype(int), np.mod([v, u], 1)
            rows, columns = np.clip([top, top + 1], 0, grid - 1), np.clip([left, left + 1], 0, grid - 1)
            four = curves[np.ix_(rows, columns)][..., plane[y, x]]
            result[y, x] = [1 - fv, fv] @ four @ [1 - fu, fu]
    return np.rint(result)
