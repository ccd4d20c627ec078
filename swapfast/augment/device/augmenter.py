"""Augmentation of whole batches on torch tensors of any device, composed of kornia's functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swapfast.augment.checks import check_colors, check_inputs, check_sizes
from swapfast.augment.constants import ANY_CONFIG, ConstantsColor
from swapfast.augment.device import clahe, color, geometry
from swapfast.augment.device.transfer import send
from swapfast.augment.draws import Draws
from swapfast.augment.result import Augmented
from swapfast.config import AugmentationConfig


class DeviceAugmenter:
    """Augments whole batches on the device they are on, in float32: the reference of every other way on a device.

    processing_size: px of the faces that come in
    input_size: px of the feed
    output_sizes: px of the targets
    config: the configuration of the draws; without it any may come

    Nothing here waits for the device: what an amount decides over, such as which faces have CLAHE, is decided where
    the amounts are drawn, on the host.
    """

    def __init__(
        self,
        processing_size: int,
        input_size: int,
        output_sizes: Sequence[int],
        config: AugmentationConfig | None = None,
    ) -> None:
        sizes = check_sizes(processing_size, input_size, output_sizes)
        self.processing_size, self.input_size, self.output_sizes = sizes
        constants = ConstantsColor.from_config(self.processing_size, config or ANY_CONFIG)
        self.largest_grid, self.recolors = constants.largest_grid, constants.recolors

    def __call__(self, faces: Tensor, extra_masks: Tensor | None, draws: Draws) -> Augmented:
        """Return N faces augmented, float32 0..1 on their device.

        faces: (N, S, S, 3) uint8 BGR, or (N, S, S, 4) with the face mask last
        extra_masks: (N, K, S, S) uint8, the masks beside the face's, or None
        draws: of N faces, for S px

        Raises ValueError where the arguments do not fit each other or the configuration.
        """
        check_inputs(faces, extra_masks, draws, self.processing_size, (torch.Tensor,), torch.uint8)
        check_colors(draws, self.recolors, self.largest_grid)
        amounts = Amounts.unpack(send(packed_amounts(draws), faces.device))
        pixels = faces.permute(0, 3, 1, 2)
        images = to_unit(pixels[:, :3])
        if self.recolors:
            images = color.color_adjust(images, *amounts.color, clahe.groups(draws))
        feed = geometry.read(images, geometry.control_map(amounts.nodes, self.processing_size))
        target = geometry.move(images, amounts.matrix)
        groups = [group for group in (pixels[:, 3:], extra_masks) if group is not None and group.shape[1]]
        masks = geometry.move(to_unit(torch.cat(groups, dim=1)), amounts.matrix) if groups else None
        return Augmented(
            feed=_channels_last(geometry.shrink(feed, self.input_size)),
            targets=[_channels_last(geometry.shrink(target, size)) for size in self.output_sizes],
            masks=None if masks is None else [geometry.shrink(masks, size) for size in self.output_sizes],
        )


def packed_amounts(draws: Draws) -> np.ndarray:
    """Return (N, 14 + 2 K^2) float32, the fields of ``Amounts`` side by side for one copy to the device.

    They are computed in float64 on the host, so every backend and device starts from the same numbers.
    """
    n = len(draws)
    factor, offset = draws.lab_affine()
    changes = (draws.clahe_grid > 0) | draws.lab.any(axis=1)
    nodes = geometry.relative(draws.control_grid(), draws.size)
    parts = [
        factor,
        offset,
        np.stack([changes, clahe.sorted_by_grid(draws)], axis=1),
        draws.matrix().reshape(n, 6),
        nodes.reshape(n, math.prod(nodes.shape[1:])),
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


class Amounts(NamedTuple):
    """A batch's amounts as the functions of ``color`` and ``geometry`` take them."""

    factor: Tensor  # (N, 3) of LAB
    offset: Tensor  # (N, 3)
    changes: Tensor  # (N,) bool, whether the colours change at all
    order: Tensor  # (N,) int64 ``clahe.sorted_by_grid``
    matrix: Tensor  # (N, 2, 3) px of the face -> px of the target
    nodes: Tensor  # (N, K, K, 2) ``geometry.relative`` position in the face that each node of the feed reads

    @classmethod
    def unpack(cls, packed: Tensor) -> Amounts:
        """Return the fields of ``packed_amounts`` on a device."""
        n, count = len(packed), math.isqrt((packed.shape[1] - 14) // 2)
        return cls(
            factor=packed[:, 0:3],
            offset=packed[:, 3:6],
            changes=packed[:, 6] > 0,
            order=packed[:, 7].to(torch.int64),
            matrix=packed[:, 8:14].reshape(n, 2, 3),
            nodes=packed[:, 14:].reshape(n, count, count, 2),
        )

    @property
    def color(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What ``color_adjust`` takes between the images and the groups."""
        return self.factor, self.offset, self.changes, self.order


def to_unit(pixels: Tensor) -> Tensor:
    """Return uint8 0..255 of any layout as float32 0..1, dense in the order of the dimensions."""
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
