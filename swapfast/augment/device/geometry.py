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
    """Return (2, size): the lower and the upper node."""
    lower, _ = hat_taps(size, nodes)
    return np.stack([lower, lower + 1])


@table
def _hat_weights(size: int, nodes: int) -> np.ndarray:
    return hat_taps(size, nodes)[1].astype(np.float32)


@table
def _area_index(size: int, smaller: int) -> np.ndarray:
    """Return (taps, smaller): each tap's px side by side."""
    return area_taps(size, smaller)[0].T


@table
def _area_weights(size: int, smaller: int) -> np.ndarray:
    return area_taps(size, smaller)[1].T.astype(np.float32)


@table
def _pixels(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32)


def relative(positions: np.ndarray, size: int) -> np.ndarray:
    """Return px of an image of that size, in any shape, as -1 at its first px's centre to 1 at its last's."""
    return positions * (2 / (size - 1)) - 1


def relative_matrix(matrix: np.ndarray, size: int) -> np.ndarray:
    """Return (N, 2, 3) matrices px -> ``relative`` positions of (N, 2, 3) matrices px -> px."""
    scaled = matrix * (2 / (size - 1))
    scaled[:, :, 2] -= 1
    return scaled


def affine_map(matrix: Tensor, size: int) -> Tensor:
    """Return the positions that each px reads: (N, size, size, 2) in any unit.

    matrix: (N, 2, 3) px of the result -> positions in that unit
    """
    pixels = _pixels(size, matrix.device)[:, None]
    along = matrix[:, None, None, :, 0] * pixels
    down = torch.addcmul(matrix[:, None, :, 2], matrix[:, None, :, 1], pixels)
    return along + down[:, :, None]


def control_map(nodes: Tensor, size: int) -> Tensor:
    """Return the positions that each px reads, linear between nodes: (N, size, size, 2) in any unit.

    nodes: (N, K, K, 2) positions that the nodes read, in that unit; ``hat_taps`` says where the nodes lie
    """
    count = nodes.shape[1]
    lower, upper = _hat_nodes(size, count, nodes.device)
    weight = _hat_weights(size, count, nodes.device).to(nodes.dtype)[:, None]
    columns = torch.lerp(nodes.index_select(2, lower), nodes.index_select(2, upper), weight)
    return torch.lerp(columns.index_select(1, lower), columns.index_select(1, upper), weight[:, None])


def read(images: Tensor, positions: Tensor) -> Tensor:
    """Return images (N, C, H, W) read at ``relative`` positions (N, h, w, 2), bilinear, edges repeated."""
    return F.grid_sample(images, positions, mode="bilinear", padding_mode="border", align_corners=True)


def sample(images: Tensor, positions: Tensor) -> Tensor:
    """Return ``read`` at positions in px; on whole maps two kernels more than making the few nodes relative."""
    height, width = images.shape[-2:]
    scale = constant((2 / (width - 1), 2 / (height - 1)), positions.device, positions.dtype)
    return read(images, positions * scale - 1)


def flip(images: Tensor, flags: Tensor) -> Tensor:
    """Return images (N, C, H, W), mirrored where ``flags`` (N,) is true: x -> W - 1 - x."""
    return torch.where(flags[:, None, None, None], images.flip(-1), images)


def shrink(images: Tensor, smaller: int) -> Tensor:
    """Return square images (N, C, S, S) at ``smaller`` px: the exact mean of the area that each px covers."""
    size = images.shape[-1]
    if images.shape[-2] != size or not 0 < smaller <= size:
        raise ValueError(f"cannot shrink {tuple(images.shape)} to {smaller} px")
    if smaller == size:
        return images
    if size % smaller == 0:
        return F.avg_pool2d(images, size // smaller)
    # torch's adaptive pooling and mode="area" give every px they touch the full weight: 40 to 44 dB only.
    tap_index, tap_weight = _area_index(size, smaller, images.device), _area_weights(size, smaller, images.device)
    rows = images.index_select(2, tap_index[0]) * tap_weight[0, :, None]
    for k in range(1, len(tap_index)):
        rows = torch.addcmul(rows, images.index_select(2, tap_index[k]), tap_weight[k, :, None])
    small = rows.index_select(3, tap_index[0]) * tap_weight[0]
    for k in range(1, len(tap_index)):
        small = torch.addcmul(small, rows.index_select(3, tap_index[k]), tap_weight[k])
    return small
