"""Augmentation of whole batches on torch tensors of any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swapfast.augment.checks import check_colors, check_inputs, check_sizes
from swapfast.augment.constants import ConstantsColor
from swapfast.augment.device import color, geometry
from swapfast.augment.device.clahe import bin_limits, largest_grid
from swapfast.augment.device.transfer import send
from swapfast.augment.draws import Draws
from swapfast.augment.result import Augmented
from swapfast.config import AugmentationConfig

ANY_CONFIG = AugmentationConfig(color_clahe_max_size=8)  # the finest grids that a configuration can have


class DeviceAugmenter:
    """Augments whole batches on the device they are on, in float32.

    processing_size: px of the faces that come in
    input_size: px of the feed
    output_sizes: px of the targets
    config: the configuration of the draws. It decides how much room CLAHE takes and whether colour is touched at all;
        without it there is room for any, which at 64 px costs half as much again
    compile: make one function of it by ``torch.compile``, anew for every shape of batch (20 s on a CPU), a tenth of the
        kernels from then on. PyTorch makes eight such functions in a process
        (``torch._dynamo.config.recompile_limit``) and refuses a ninth

    Nothing here waits for the device, and no shape depends on what is drawn.
    """

    def __init__(
        self,
        processing_size: int,
        input_size: int,
        output_sizes: Sequence[int],
        config: AugmentationConfig | None = None,
        compile: bool = False,
    ) -> None:
        sizes = check_sizes(processing_size, input_size, output_sizes)
        self.processing_size, self.input_size, self.output_sizes = sizes
        constants = ConstantsColor.from_config(self.processing_size, config or ANY_CONFIG)
        self.largest_grid = largest_grid(constants)
        self.recolors = self.largest_grid > 0 or any(constants.lab_adjust)
        self._compiled = torch.compile(_augment, fullgraph=True, dynamic=False) if compile else None
        self._has_tables: set[tuple] = set()

    def __call__(self, faces: Tensor, extra_masks: Tensor | None, draws: Draws) -> Augmented:
        """Return N faces augmented, float32 0..1 on their device.

        faces: (N, S, S, 3) uint8 BGR, or (N, S, S, 4) with the face mask last
        extra_masks: (N, K, S, S) uint8, the masks beside the face's, or None
        draws: of N faces, for S px

        Raises ValueError where the arguments do not fit each other or the configuration.
        """
        check_inputs(faces, extra_masks, draws, self.processing_size, (torch.Tensor,), torch.uint8)
        check_colors(draws, self.recolors, self.largest_grid)
        amounts = send(packed_amounts(draws), faces.device)
        feed, targets, masks = self._function(faces, extra_masks, amounts)(
            faces, extra_masks, amounts, *self._options()
        )
        return Augmented(feed=feed, targets=targets, masks=masks)

    def _options(self) -> tuple[int, list[int], int | None]:
        return self.input_size, self.output_sizes, self.largest_grid if self.recolors else None

    def _function(self, faces: Tensor, extra_masks: Tensor | None, amounts: Tensor) -> Callable:
        """Return ``_augment``, compiled where ``compile`` is set and there are faces to compile it for."""
        if self._compiled is None or not len(faces):
            return _augment
        tables = faces.device, amounts.shape[1]
        if tables not in self._has_tables:  # a table made while compiling would be made in every batch
            _augment(faces[:1], None if extra_masks is None else extra_masks[:1], amounts[:1], *self._options())
            self._has_tables.add(tables)
        return self._compiled


def _augment(
    faces: Tensor,
    extra_masks: Tensor | None,
    packed: Tensor,
    input_size: int,
    output_sizes: list[int],
    largest_grid: int | None,
) -> tuple[Tensor, list[Tensor], list[Tensor] | None]:
    """Return (feed, targets, masks) as in ``Augmented``, by tensors only.

    packed: ``packed_amounts`` on the device
    largest_grid: the largest CLAHE grid, None to leave colours alone
    """
    size = faces.shape[1]
    amounts = Amounts.unpack(packed)
    # Images and masks apart, and each channel by itself: what is computed for three channels does not step over a
    # fourth.
    pixels = faces.permute(0, 3, 1, 2)
    images = to_unit(pixels[:, :3])
    if largest_grid is not None:
        images = color.color_adjust(images, *amounts.color, largest_grid)
    positions = geometry.affine_map(amounts.inverse, size)
    moved_images = geometry.read(images, positions)
    warped = geometry.read(images, geometry.control_map(amounts.nodes, size))
    feed = _channels_last(geometry.shrink(warped, input_size))
    targets = [_channels_last(geometry.shrink(moved_images, s)) for s in output_sizes]
    groups = [m for m in (pixels[:, 3:], extra_masks) if m is not None and m.shape[1]]
    if not groups:
        return feed, targets, None
    masks = geometry.read(to_unit(torch.cat(groups, dim=1) if len(groups) > 1 else groups[0]), positions)
    return feed, targets, [geometry.shrink(masks, s) for s in output_sizes]


def packed_amounts(draws: Draws) -> np.ndarray:
    """Return (N, 14 + 2 K^2) float32, the fields of ``Amounts`` side by side for one copy to the device.

    They are computed in float64 on the host, so every backend and device starts from the same numbers.
    """
    n, size = len(draws), draws.size
    factor, offset = draws.lab_affine()
    inverse = geometry.relative_matrix(draws.inverse(), size).reshape(n, 6)
    nodes = geometry.relative(draws.control_grid(), size)
    clahe = np.stack([draws.clahe_grid, bin_limits(draws.clahe_grid, size, draws.clip_limit)], axis=1)
    parts = [factor, offset, clahe, inverse, nodes.reshape(n, math.prod(nodes.shape[1:]))]
    return np.concatenate(parts, axis=1).astype(np.float32)


class Amounts(NamedTuple):
    """A batch's amounts as the kernels take them; positions are ``geometry.relative``."""

    factor: Tensor  # (N, 3) of LAB
    offset: Tensor  # (N, 3)
    grids: Tensor  # (N,) int32
    limits: Tensor  # (N,) int32 ``clahe.bin_limits``
    inverse: Tensor  # (N, 2, 3) px of the target -> position in the face
    nodes: Tensor  # (N, K, K, 2) position in the face that each node of the feed reads

    @classmethod
    def unpack(cls, packed: Tensor) -> Amounts:
        """Return views of ``packed_amounts`` on a device."""
        n, count = len(packed), math.isqrt((packed.shape[1] - 14) // 2)
        return cls(
            factor=packed[:, 0:3],
            offset=packed[:, 3:6],
            grids=packed[:, 6].to(torch.int32),
            limits=packed[:, 7].to(torch.int32),
            inverse=packed[:, 8:14].reshape(n, 2, 3),
            nodes=packed[:, 14:].reshape(n, count, count, 2),
        )

    @property
    def color(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What ``color_adjust`` takes beside the images: factor, offset, grids, limits."""
        return self.factor, self.offset, self.grids, self.limits


def to_unit(pixels: Tensor) -> Tensor:
    """Return uint8 0..255 of any layout as float32 0..1, dense in the order of the dimensions."""
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
