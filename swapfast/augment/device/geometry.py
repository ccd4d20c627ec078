"""Where every pixel reads from, and shrinking: kornia's functions on torch tensors of any device.

Positions are px with pixel centres at integers, x before y. All sampling is bilinear, and outside the image the
nearest edge pixel is repeated. Images are (N, C, H, W) floats. docs/kornia.md has the error of each step.
"""

from __future__ import annotations

import numpy as np
import torch
from kornia.geometry.transform import hflip, remap, resize, warp_affine
from torch import Tensor

from swapfast.augment.device.transfer import table
from swapfast.augment.taps import area_taps, hat_taps


def relative(positions: np.ndarray, size: int) -> np.ndarray:
    """Return px of an image of that size, in any shape, as -1 at its first px's centre to 1 at its last's."""
    return positions * (2 / (size - 1)) - 1


@table
def _node_positions(size: int, nodes: int) -> np.ndarray:
    """Return (1, size, size): where on the nodes' axis each column lies, -1 at the first node to 1 at the last."""
    lower, upper_weight = hat_taps(size, nodes)
    position = relative(lower + upper_weight, nodes).astype(np.float32)
    return np.broadcast_to(position, (1, size, size))


def control_map(nodes: Tensor, size: int) -> Tensor:
    """Return the positions that each px reads, linear between nodes: (N, size, size, 2) in any unit.

    nodes: (N, K, K, 2) positions that the nodes read, in that unit; ``hat_taps`` says where the nodes lie
    """
    columns = _node_positions(size, nodes.shape[1], nodes.device).to(nodes.dtype)
    return _read(nodes.permute(0, 3, 1, 2), columns, columns.transpose(1, 2)).permute(0, 2, 3, 1)


def move(images: Tensor, matrix: Tensor) -> Tensor:
    """Return images moved by (N, 2, 3) matrices, px of the image -> px of the result."""
    height, width = images.shape[-2:]
    return warp_affine(images, matrix, (height, width), padding_mode="border", align_corners=True)


def read(images: Tensor, positions: Tensor) -> Tensor:
    """Return images (N, C, H, W) read at ``relative`` positions (N, h, w, 2)."""
    return _read(images, *positions.unbind(-1))


def _read(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # By default ``remap`` puts zeros outside and reads an identity map half a pixel off. Of positions in px it makes
    # relative ones by a constant that it sends to the device each time, which waits.
    return remap(images, x, y, padding_mode="border", align_corners=True, normalized_coordinates=True)


def flip(images: Tensor, flags: Tensor) -> Tensor:
    """Return images (N, C, H, W), mirrored where ``flags`` (N,) is true: x -> W - 1 - x."""
    return torch.where(flags[:, None, None, None], hflip(images), images)


def shrink(images: Tensor, smaller: int) -> Tensor:
    """Return square images (N, C, S, S) at ``smaller`` px: the exact mean of the area that each px covers.

    kornia: where the sizes do not divide, ``resize`` by area gives every px it touches the full weight: off by 1.1
    levels on average, 47 at most. Ours: there, the share of each px that is covered.
    """
    size = images.shape[-1]
    if images.shape[-2] != size or not 0 < smaller <= size:
        raise ValueError(f"cannot shrink {tuple(images.shape)} to {smaller} px")
    if smaller == size:
        return images
    if size % smaller == 0:
        return resize(images, (smaller, smaller), interpolation="area")
    return _weighted(_weighted(images, smaller, dim=2), smaller, dim=3)


def _weighted(images: Tensor, smaller: int, dim: int) -> Tensor:
    """Return images with one of their axes shrunk, by sums of a few taps: a face has the same bits in any batch."""
    size = images.shape[dim]
    tap_index, tap_weight = _area_index(size, smaller, images.device), _area_weights(size, smaller, images.device)
    tap_weight = tap_weight[:, :, None] if dim == 2 else tap_weight
    small = images.index_select(dim, tap_index[0]) * tap_weight[0]
    for index, weight in zip(tap_index[1:], tap_weight[1:]):
        small = torch.addcmul(small, images.index_select(dim, index), weight)
    return small


@table
def _area_index(size: int, smaller: int) -> np.ndarray:
    """Return (taps, smaller): each tap's px side by side."""
    return area_taps(size, smaller)[0].T


@table
def _area_weights(size: int, smaller: int) -> np.ndarray:
    return area_taps(size, smaller)[1].T.astype(np.float32)
