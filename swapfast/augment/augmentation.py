"""Augmentation on torch tensors of any device, and the public classes of the API text.

``DeviceAugmenter`` takes a batch of bytes to finished targets and feeds. ``ImageAugmentation`` has the API's single
steps, for arrays (OpenCV) and tensors (torch) alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swapfast.augment import color, geometry, opencv
from swapfast.augment.checks import check_colors, check_inputs, check_sizes
from swapfast.augment.clahe import bin_limits, largest_grid
from swapfast.augment.constants import (
    ConstantsAugmentation,
    ConstantsColor,
    ConstantsTransform,
    ConstantsWarp,
)
from swapfast.augment.draws import Draws, draw, flip_points, landmark_noise, transform_points
from swapfast.augment.host_color import jitter_matrices, recolor
from swapfast.augment.landmarks import landmark_nodes
from swapfast.augment.recycle import Scratch
from swapfast.augment.result import Augmented
from swapfast.augment.transfer import send
from swapfast.config import AugmentationConfig

ANY_CONFIG = AugmentationConfig(color_clahe_max_size=8)  # the finest grids that a configuration may ask for

__all__ = [
    "Augmented",
    "ConstantsAugmentation",
    "ConstantsColor",
    "ConstantsTransform",
    "ConstantsWarp",
    "DeviceAugmenter",
    "ImageAugmentation",
]


class DeviceAugmenter:
    """Augments whole batches on the device they are on, in float32.

    processing_size: px of the faces that come in. input_size: px of the feed. output_sizes: px of the targets.
    config: what the draws come from. It decides how much room CLAHE takes and whether colour is touched at all;
    without it there is room for any, which at 64 px costs half as much again. compile: make one function of it by
    ``torch.compile``, anew for every shape of batch (20 s on a CPU), a tenth of the kernels from then on. PyTorch
    makes eight such functions in a process (``torch._dynamo.config.recompile_limit``) and refuses a ninth.

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

    def __call__(self, faces: Tensor, planes: Tensor | None, draws: Draws) -> Augmented:
        """Augment N faces of S px.

        faces: (N, S, S, 3) uint8 BGR, or (N, S, S, 4) with the face mask last. planes: (N, K, S, S) uint8, the
        other masks, or None. Returns float32 0..1 on the faces' device.
        """
        check_inputs(faces, planes, draws, self.processing_size, (torch.Tensor,), torch.uint8)
        check_colors(draws, self.recolors, self.largest_grid)
        amounts = send(packed_amounts(draws), faces.device)
        feed, targets, masks = self._function(faces, planes, amounts)(faces, planes, amounts, *self._options())
        return Augmented(feed=feed, targets=targets, masks=masks)

    def _options(self) -> tuple[int, list[int], int | None]:
        return self.input_size, self.output_sizes, self.largest_grid if self.recolors else None

    def _function(self, faces: Tensor, planes: Tensor | None, amounts: Tensor) -> Callable:
        """``_augment``, compiled where that is wanted and there is something to compile it for."""
        if self._compiled is None or not len(faces):
            return _augment
        tables = faces.device, amounts.shape[1]
        if tables not in self._has_tables:  # what is made while compiling would be made in every batch
            _augment(faces[:1], None if planes is None else planes[:1], amounts[:1], *self._options())
            self._has_tables.add(tables)
        return self._compiled


def _augment(
    faces: Tensor,
    planes: Tensor | None,
    packed: Tensor,
    input_size: int,
    output_sizes: list[int],
    largest: int | None,
) -> tuple[Tensor, list[Tensor], list[Tensor] | None]:
    """The part that is tensors only: (feed, targets, masks) as in ``Augmented``.

    packed: ``packed_amounts`` on the device. largest: the largest CLAHE grid, None to leave colours alone.
    """
    size = faces.shape[1]
    amounts = Amounts.of(packed)
    # Images and masks apart, and each channel a plane of its own: what is computed for three channels does not
    # step over a fourth.
    pixels = faces.permute(0, 3, 1, 2)
    images = to_unit(pixels[:, :3])
    if largest is not None:
        images = color.color_adjust(images, *amounts.colour, largest)
    at = geometry.affine_map(amounts.inverse, size)
    moved = geometry.read(images, at)
    warped = geometry.read(images, geometry.control_map(amounts.nodes, size))
    feed = _channels_last(geometry.shrink(warped, input_size))
    targets = [_channels_last(geometry.shrink(moved, s)) for s in output_sizes]
    planes = [p for p in (pixels[:, 3:], planes) if p is not None and p.shape[1]]
    if not planes:
        return feed, targets, None
    masks = geometry.read(to_unit(torch.cat(planes, dim=1) if len(planes) > 1 else planes[0]), at)
    return feed, targets, [geometry.shrink(masks, s) for s in output_sizes]


def packed_amounts(draws: Draws) -> np.ndarray:
    """(N, 14 + 2 K^2) float32: what ``Amounts`` takes apart, for one copy to the device.

    Worked out in float64 on the host, so every backend and device starts from the same numbers.
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
    def of(cls, packed: Tensor) -> Amounts:
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
    def colour(self) -> tuple[Tensor, ...]:
        """What ``color.color_adjust`` takes, in its order."""
        return self.factor, self.offset, self.grids, self.limits


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 of any layout -> float32 0..1, dense in the order of the dimensions."""
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


class ImageAugmentation:
    """The steps of the augmentation, one by one, on a batch of images.

    Where the peer draws inside each step and changes its arguments, these take their amounts from ``draws``, the
    same on every call, and return new arrays. ``batch_size`` faces are expected; without ``draws`` they are the
    first of side 0 under seed 0. Batches are (N, S, S, C) as in the API: uint8 numpy arrays go through OpenCV,
    torch tensors (uint8, or float in 0..1) through the device's functions and come back in the type they had.
    """

    def __init__(
        self,
        batch_size: int,
        processing_size: int,
        config: AugmentationConfig | None = None,
        draws: Draws | None = None,
    ) -> None:
        config = config or AugmentationConfig()
        self.constants = ConstantsAugmentation.from_config(processing_size, batch_size, config)
        self.processing_size = processing_size
        self.draws = draws if draws is not None else draw(0, np.arange(batch_size), 0, processing_size, config)
        if len(self.draws) != batch_size or self.draws.size != processing_size:
            raise ValueError(
                f"draws: {len(self.draws)} made for {self.draws.size} px do not fit {batch_size} faces of "
                f"{processing_size} px"
            )

    def color_adjust(self, batch):
        """LAB jitter and CLAHE of (N, S, S, 3) BGR images."""
        self._check(batch, channels=3)
        if isinstance(batch, np.ndarray):
            matrices = jitter_matrices(self.draws)
            grids, clip_limit = self.draws.clahe_grid.tolist(), self.draws.clip_limit
            return recolor(batch, matrices, grids, Scratch(), clip_limit).copy()

        largest = int(self.draws.clahe_grid.max(initial=0))

        def adjust(images: Tensor) -> Tensor:
            amounts = Amounts.of(send(packed_amounts(self.draws), images.device))
            return color.color_adjust(images, *amounts.colour, largest)

        return self._on_device(batch, adjust)

    def transform(self, batch, points=None):
        """Rotate, zoom and shift (N, S, S, C) images and (N, ..., 2) points -> (images, points or None).

        Peer: six channels are sampled on a grid of 1/32 px. Ours: exactly, whatever their number.
        """
        self._check(batch)
        forward = self.draws.forward()
        moved = None if points is None else transform_points(points, forward)
        inverse = np.linalg.inv(forward)[:, :2]
        if isinstance(batch, np.ndarray):
            result = np.empty_like(batch)
            for image, matrix, out in zip(batch, inverse, result):
                out[...] = _move_any(image, matrix)
            return result, moved

        matrices = geometry.relative_matrix(inverse, self.processing_size).astype(np.float32)

        def move(images: Tensor) -> Tensor:
            at = geometry.affine_map(send(matrices, images.device), self.processing_size)
            return geometry.read(images, at)

        return self._on_device(batch, move), moved

    def random_flip(self, batch, points=None):
        """Mirror (N, S, S, C) images and (N, ..., 2) points where drawn -> (images, points or None).

        As the peer's, points keep their order: a left eye is still listed as left.
        """
        self._check(batch)
        flags = self.draws.flip
        moved = None if points is None else flip_points(points, flags, self.processing_size)
        if isinstance(batch, np.ndarray):
            return np.where(flags[:, None, None, None], batch[:, :, ::-1], batch), moved
        where = send(flags, batch.device)[:, None, None, None]
        return torch.where(where, batch.flip(2), batch), moved

    def warp(
        self,
        batch,
        to_landmarks: bool = False,
        batch_src_points: np.ndarray | None = None,
        batch_dst_points: np.ndarray | None = None,
    ):
        """Warp (N, S, S, C) images by the draws' grid of nodes, or to landmarks.

        to_landmarks: from ``batch_src_points`` (N, 68, 2), px, to ``batch_dst_points``, those of the faces matched, to
        which the noise of the first faces of side 0 under seed 0 is added. A face that cannot be warped stays as it is.

        Peer: the map is half a pixel off and what lies outside is black. Ours: neither.
        """
        self._check(batch)
        nodes = self._to_landmarks(batch_src_points, batch_dst_points) if to_landmarks else self.draws.warp_nodes()
        if isinstance(batch, np.ndarray):
            weights = geometry.hat_weights(self.processing_size, nodes.shape[1]).astype(np.float32)
            rows = opencv.node_rows(nodes, weights)
            batch, scratch = np.ascontiguousarray(batch), Scratch()
            warped = np.empty_like(batch)
            for image, row, out in zip(batch, rows, warped):
                opencv.read_warped(image, row, weights, out, scratch)
            return warped

        places = geometry.relative(nodes, self.processing_size).astype(np.float32)

        def warp(images: Tensor) -> Tensor:
            at = geometry.control_map(send(places, images.device), self.processing_size)
            return geometry.read(images, at)

        return self._on_device(batch, warp)

    def _to_landmarks(self, own: np.ndarray | None, match: np.ndarray | None) -> np.ndarray:
        if own is None or match is None:
            raise ValueError("warp to landmarks: needs batch_src_points and batch_dst_points")
        noise = landmark_noise(0, np.arange(len(self.draws)), 0) * self.constants.warp.lm_scale
        return landmark_nodes(own, match, noise, self.processing_size)[0]

    def _check(self, batch, channels: int | None = None) -> None:
        size = self.processing_size
        shape = tuple(getattr(batch, "shape", ()))
        if len(shape) != 4 or shape[:3] != (len(self.draws), size, size) or channels not in (None, shape[-1]):
            raise ValueError(f"batch: expected ({len(self.draws)}, {size}, {size}, {channels or 'C'}), got {shape}")
        kinds = (torch.uint8, torch.float32) if isinstance(batch, Tensor) else (np.uint8,)
        if batch.dtype not in kinds:
            raise ValueError(f"batch: {batch.dtype} is neither bytes nor (as a tensor) float32")

    def _on_device(self, batch: Tensor, change) -> Tensor:
        images = batch.permute(0, 3, 1, 2)
        bytes_wanted = batch.dtype == torch.uint8
        result = change(to_unit(images) if bytes_wanted else images)
        if bytes_wanted:
            result = (result * 255).round().clamp(0, 255).to(torch.uint8)
        return result.permute(0, 2, 3, 1)


def _move_any(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``opencv.move`` for any number of channels: by fours and then by ones, for which it is fast and exact."""
    channels = image.shape[-1]
    fours = channels // 4 * 4
    edges = [*range(0, fours, 4), *range(fours, channels)]
    parts = [
        opencv.move(np.ascontiguousarray(image[..., first : first + (4 if first < fours else 1)]), matrix)
        for first in edges
    ]
    return np.concatenate([part.reshape(*image.shape[:2], -1) for part in parts], axis=-1)
