"""Where every pixel reads from, and shrinking: on torch tensors of any device.

Positions are px with pixel centres at integers, x before y. All sampling is bilinear, and outside the image the
nearest edge pixel is repeated. Images are (N, C, H, W) floats.

Nothing here is a matrix product, though each step could be written as one (``hat_weights``, ``area_weights``):
with TF32 switched on, a product on the GPU keeps 10 bits of a coordinate, which is a quarter pixel at 512 px. And
sums of a few taps give a face the same bits whatever batch it is in.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from swapfast.augment.device.transfer import constant, table
from swapfast.augment.taps import area_taps, hat_taps


@table
def _hat_nodes(size: int, nodes: int) -> np.ndarray:
    """(2, size): the lower and the upper node."""
    low, _ = hat_taps(size, nodes)
    return np.stack([low, low + 1])


@table
def _hat_upper(size: int, nodes: int) -> np.ndarray:
    return hat_taps(size, nodes)[1].astype(np.float32)


@table
def _area_index(size: int, smaller: int) -> np.ndarray:
    """(taps, smaller): each tap's px side by side."""
    return area_taps(size, smaller)[0].T


@table
def _area_share(size: int, smaller: int) -> np.ndarray:
    return area_taps(size, smaller)[1].T.astype(np.float32)


@table
def _steps(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32)


def relative(positions, size: int):
    """Positions of any shape in px of an image of that size -> -1 at its first px's centre, 1 at its last's."""
    return positions * (2 / (size - 1)) - 1


def relative_matrix(matrix: np.ndarray, size: int) -> np.ndarray:
    """(N, 2, 3) matrices px -> px to matrices px -> ``relative`` positions."""
    scaled = matrix * (2 / (size - 1))
    scaled[:, :, 2] -= 1
    return scaled


def affine_map(matrix: Tensor, size: int) -> Tensor:
    """(N, 2, 3) matrices, px of the result -> positions in any unit, to (N, size, size, 2) positions."""
    at = _steps(size, matrix.device)[:, None]
    along = matrix[:, None, None, :, 0] * at
    down = torch.addcmul(matrix[:, None, :, 2], matrix[:, None, :, 1], at)
    return along + down[:, :, None]


def control_map(nodes: Tensor, size: int) -> Tensor:
    """(N, K, K, 2) positions that the nodes read -> (N, size, size, 2) that each px reads, linear in between.

    The positions' unit is any. Where the nodes lie is ``hat_taps``'.
    """
    count = nodes.shape[1]
    low, high = _hat_nodes(size, count, nodes.device)
    share = _hat_upper(size, count, nodes.device).to(nodes.dtype)[:, None]
    columns = torch.lerp(nodes.index_select(2, low), nodes.index_select(2, high), share)
    return torch.lerp(columns.index_select(1, low), columns.index_select(1, high), share[:, None])


def read(images: Tensor, positions: Tensor) -> Tensor:
    """Read (N, C, H, W) images at (N, h, w, 2) ``relative`` positions: bilinear, edges repeated -> (N, C, h, w)."""
    return F.grid_sample(images, positions, mode="bilinear", padding_mode="border", align_corners=True)


def sample(images: Tensor, positions: Tensor) -> Tensor:
    """``read`` for positions in px. On whole maps that is two kernels more than to make the few nodes relative."""
    height, width = images.shape[-2:]
    scale = constant((2 / (width - 1), 2 / (height - 1)), positions.device, positions.dtype)
    return read(images, positions * scale - 1)


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
    index, share = _area_index(size, smaller, images.device), _area_share(size, smaller, images.device)
    rows = images.index_select(2, index[0]) * share[0, :, None]
    for k in range(1, len(index)):
        rows = torch.addcmul(rows, images.index_select(2, index[k]), share[k, :, None])
    small = rows.index_select(3, index[0]) * share[0]
    for k in range(1, len(index)):
        small = torch.addcmul(small, rows.index_select(3, index[k]), share[k])
    return small
