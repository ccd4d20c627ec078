"""Augmentation on torch tensors of any device, and the public classes of the API text.

``DeviceAugmenter`` takes a batch of bytes to finished targets and feeds. ``ImageAugmentation`` has the API's single
steps, for arrays (OpenCV) and tensors (torch) alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from swapfast.augment import color, geometry, opencv
from swapfast.augment.checks import check_inputs, check_sizes
from swapfast.augment.constants import (
    ConstantsAugmentation,
    ConstantsColor,
    ConstantsTransform,
    ConstantsWarp,
)
from swapfast.augment.draws import Draws, draw, flip_points, transform_points
from swapfast.augment.result import Augmented
from swapfast.augment.transfer import send
from swapfast.config import AugmentationConfig

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
    """

    def __init__(self, processing_size: int, input_size: int, output_sizes: Sequence[int]) -> None:
        sizes = check_sizes(processing_size, input_size, output_sizes)
        self.processing_size, self.input_size, self.output_sizes = sizes

    def __call__(self, faces: Tensor, planes: Tensor | None, draws: Draws) -> Augmented:
        """Augment N faces of S px.

        faces: (N, S, S, 3) uint8 BGR, or (N, S, S, 4) with the face mask last. planes: (N, K, S, S) uint8, the
        other masks, or None. Returns float32 0..1 on the faces' device.
        """
        size = self.processing_size
        check_inputs(faces, planes, draws, size, torch.Tensor, torch.uint8)
        amounts = Amounts(draws, faces.device)
        pixels = to_unit(faces.permute(0, 3, 1, 2))
        images = color.color_adjust(pixels[:, :3], amounts.factor, amounts.offset, amounts.grids)
        channels = [images, pixels[:, 3:]] + ([] if planes is None else [to_unit(planes)])
        moved = geometry.sample(torch.cat(channels, dim=1), geometry.affine_map(amounts.inverse, size))
        warped = geometry.sample(images, geometry.control_map(amounts.nodes, size))
        outputs = [geometry.shrink(moved, s) for s in self.output_sizes]
        return Augmented(
            feed=_channels_last(geometry.shrink(warped, self.input_size)),
            targets=[_channels_last(output[:, :3]) for output in outputs],
            masks=[output[:, 3:] for output in outputs] if moved.shape[1] > 3 else None,
        )


class Amounts:
    """A batch's amounts where the kernels need them: float32 on the device, sent in one copy, grids on the host.

    They are worked out in float64 on the host, so every backend and device starts from the same numbers.
    """

    def __init__(self, draws: Draws, device: torch.device | str) -> None:
        n = len(draws)
        factor, offset = draws.lab_affine()
        parts = [factor, offset, draws.inverse().reshape(n, 6), draws.control_grid().reshape(n, 50)]
        packed = send(np.concatenate(parts, axis=1).astype(np.float32), device)
        self.factor, self.offset = packed[:, 0:3], packed[:, 3:6]
        self.inverse = packed[:, 6:12].reshape(n, 2, 3)
        self.nodes = packed[:, 12:].reshape(n, 5, 5, 2)
        self.grids = draws.clahe_grid.tolist()


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 of any layout -> float32 0..1."""
    return pixels.to(torch.float32) / 255


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
            matrices = opencv.jitter_matrices(self.draws)
            return opencv.recolor(batch, matrices, self.draws.clahe_grid.tolist(), opencv.Scratch()).copy()

        def adjust(images: Tensor, amounts: Amounts) -> Tensor:
            return color.color_adjust(images, amounts.factor, amounts.offset, amounts.grids)

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
            return np.stack([_move_any(image, matrix) for image, matrix in zip(batch, inverse)]), moved

        def move(images: Tensor, amounts: Amounts) -> Tensor:
            matrix = send(inverse.astype(np.float32), images.device)
            return geometry.sample(images, geometry.affine_map(matrix, self.processing_size))

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

    def warp(self, batch):
        """Warp (N, S, S, C) images by the 5x5 grid.

        Peer: the map is half a pixel off and what lies outside is black. Ours: neither.
        """
        self._check(batch)
        nodes = self.draws.warp_nodes()
        if isinstance(batch, np.ndarray):
            weights = geometry.hat_weights(self.processing_size).astype(np.float32)
            rows = opencv.node_rows(nodes, weights)
            batch, scratch = np.ascontiguousarray(batch), opencv.Scratch()
            warped = np.empty_like(batch)
            for image, row, out in zip(batch, rows, warped):
                opencv.read_warped(image, row, weights, out, scratch)
            return warped

        def warp(images: Tensor, amounts: Amounts) -> Tensor:
            at = send(nodes.astype(np.float32), images.device)
            return geometry.sample(images, geometry.control_map(at, self.processing_size))

        return self._on_device(batch, warp)

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
        result = change(to_unit(images) if bytes_wanted else images, Amounts(self.draws, batch.device))
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
