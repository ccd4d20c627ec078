"""Where every pixel reads from, and shrinking: on torch tensors of any device.

Positions are px with pixel centres at integers, x before y. All sampling is bilinear, and outside the image the
nearest edge pixel is repeated. Images are (N, C, H, W) floats.

Nothing here is a matrix product, though each step could be written as one (``hat_weights``, ``area_weights``):
with TF32 switched on, a product on the GPU keeps 10 bits of a coordinate, which is a quarter pixel at 512 px. And
sums of a few taps give a face the same bits whatever batch it is in.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from swapfast.augment.draws import GRID
from swapfast.augment.transfer import constant


def hat_taps(size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``size`` px: (size,) the lower of the two nodes it lies between and (size,) the upper's weight.

    Pixel j lies at (j + 1/2) * 4 / size on the axis of the five nodes. It is the map that faceswap gets by
    resizing the nodes to 1.25 times the size and cutting out the middle.
    """
    at = (np.arange(size) + 0.5) * (GRID - 1) / size
    low = np.minimum(at.astype(np.int64), GRID - 2)
    return low, at - low


def hat_weights(size: int) -> np.ndarray:
    """``hat_taps`` as a (size, 5) matrix H: a map is H @ nodes @ H.T."""
    low, upper = hat_taps(size)
    weights = np.zeros((size, GRID))
    weights[np.arange(size), low] = 1 - upper
    weights[np.arange(size), low + 1] = upper
    return weights


def area_taps(size: int, smaller: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``smaller`` px: (smaller, taps) the source px it covers and (smaller, taps) their shares.

    Shares add up to one; a px that is covered in part has its part as share (cv2's INTER_AREA).
    """
    ratio = size / smaller
    start = np.arange(smaller) * ratio
    taps = int(np.ceil(ratio)) + 1
    index = np.floor(start).astype(np.int64)[:, None] + np.arange(taps)
    covered = np.minimum(index + 1, (start + ratio)[:, None]) - np.maximum(index, start[:, None])
    share = np.clip(covered, 0, None)
    share[index >= size] = 0
    return np.minimum(index, size - 1), share / share.sum(1, keepdims=True)


def area_weights(size: int, smaller: int) -> np.ndarray:
    """``area_taps`` as a (smaller, size) matrix."""
    index, share = area_taps(size, smaller)
    weights = np.zeros((smaller, size))
    np.add.at(weights, (np.arange(smaller)[:, None], index), share)
    return weights


@lru_cache(maxsize=64)
def _hat_tensors(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    low, upper = hat_taps(size)
    return torch.from_numpy(low).to(device), torch.from_numpy(upper.astype(np.float32)).to(device)


@lru_cache(maxsize=64)
def _area_tensors(size: int, smaller: int, device: torch.device) -> tuple[Tensor, Tensor]:
    index, share = area_taps(size, smaller)
    return torch.from_numpy(index).to(device), torch.from_numpy(share.astype(np.float32)).to(device)


def affine_map(matrix: Tensor, size: int) -> Tensor:
    """(N, 2, 3) matrices, px of the result -> px of the image, to (N, size, size, 2) positions."""
    at = torch.arange(size, device=matrix.device, dtype=matrix.dtype)
    a = matrix[:, :, :, None, None]
    return torch.stack([a[:, i, 0] * at + a[:, i, 1] * at[:, None] + a[:, i, 2] for i in (0, 1)], dim=-1)


def control_map(nodes: Tensor, size: int) -> Tensor:
    """(N, 5, 5, 2) px where the nodes read -> (N, size, size, 2) px where each pixel reads, linear in between."""
    low, upper = _hat_tensors(size, nodes.device)
    columns = nodes[:, :, low] + upper[:, None] * (nodes[:, :, low + 1] - nodes[:, :, low])
    return columns[:, low] + upper[:, None, None] * (columns[:, low + 1] - columns[:, low])


def sample(images: Tensor, positions: Tensor) -> Tensor:
    """Read (N, C, H, W) images at (N, h, w, 2) px positions: bilinear, edges repeated -> (N, C, h, w)."""
    height, width = images.shape[-2:]
    scale = constant((2 / (width - 1), 2 / (height - 1)), positions.device, positions.dtype)
    return F.grid_sample(images, positions * scale - 1, mode="bilinear", padding_mode="border", align_corners=True)


def flip(images: Tensor, flags: Tensor) -> Tensor:
    """Mirror the images (N, C, H, W) for which ``flags`` (N,) is true: x -> W - 1 - x."""
    return torch.where(flags[:, None, None, None], images.flip(-1), images)


def shrink(images: Tensor, smaller: int) -> Tensor:
    """Square (N, C, S, S) float images to (N, C, smaller, smaller): the exact mean of the area each px covers."""
    size = images.shape[-1]
    if images.shape[-2] != size or not 0 < smaller <= size:
        raise ValueError(f"cannot shrink {tuple(images.shape)} to {smaller} px")
    if smaller == size:
        return images
    if size % smaller == 0:
        return F.avg_pool2d(images, size // smaller)
    # torch's adaptive pooling and mode="area" give every px they touch the full weight: 40 to 44 dB only.
    index, share = _area_tensors(size, smaller, images.device)
    rows = sum(images[:, :, index[:, k]] * share[:, k, None] for k in range(index.shape[1]))
    return sum(rows[:, :, :, index[:, k]] * share[:, k] for k in range(index.shape[1]))
