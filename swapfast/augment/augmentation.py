"""Augmentation on torch tensors of any device, and the public classes of the API text.

``DeviceAugmenter`` takes a batch of bytes to finished targets and feeds. ``ImageAugmentation`` has the API's single
steps, for arrays (OpenCV) and tensors (torch) alike.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from swapfast.augment.constants import (
    ConstantsAugmentation,
    ConstantsColor,
    ConstantsTransform,
    ConstantsWarp,
)
from swapfast.augment.device import color, geometry
from swapfast.augment.device.augmenter import Amounts, packed_amounts, to_unit
from swapfast.augment.device.transfer import send
from swapfast.augment.draws import Draws, draw, flip_points, landmark_noise
from swapfast.augment.host import augmenter as opencv
from swapfast.augment.host.color import jitter_matrices, recolor
from swapfast.augment.host.recycle import Scratch
from swapfast.augment.landmarks import landmark_nodes
from swapfast.augment.taps import hat_weights
from swapfast.config import AugmentationConfig
from swapfast.points import transform_points

__all__ = [
    "ConstantsAugmentation",
    "ConstantsColor",
    "ConstantsTransform",
    "ConstantsWarp",
    "ImageAugmentation",
]


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
        moved = None if points is None else transform_points(forward, points).astype(np.result_type(points, np.float32))
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
            weights = hat_weights(self.processing_size, nodes.shape[1]).astype(np.float32)
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
