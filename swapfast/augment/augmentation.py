"""``ImageAugmentation``: the single steps of the augmentation, for arrays (OpenCV) and tensors (kornia) alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from swapfast.augment.constants import (
    ConstantsAugmentation,
    ConstantsColor,
    ConstantsTransform,
    ConstantsWarp,
)
from swapfast.augment.device import clahe, color, geometry
from swapfast.augment.device.augmenter import Amounts, packed_amounts, to_unit
from swapfast.augment.device.transfer import send
from swapfast.augment.draws import Draws, draw, flip_points, landmark_noise
from swapfast.augment.host import geometry as host_geometry
from swapfast.augment.host.color import jitter_matrices, recolor
from swapfast.augment.host.recycle import Scratch
from swapfast.augment.landmarks import landmark_nodes
from swapfast.config import AugmentationConfig
from swapfast.points import transform_points

__all__ = [
    "ConstantsAugmentation",
    "ConstantsColor",
    "ConstantsTransform",
    "ConstantsWarp",
    "ImageAugmentation",
]

Images = TypeVar("Images", np.ndarray, Tensor)


class ImageAugmentation:
    """The steps of the augmentation, one by one, on a batch of images.

    batch_size: N, faces in a batch
    processing_size: S, px
    config: ranges of the draws
    draws: what happens to each face, the same at every call; by default every call draws for the next N faces
    seed: of those draws; two objects with the same seed and calls give the same

    Batches are (N, S, S, C) as in the API: uint8 arrays go through OpenCV, torch tensors (uint8, or float32 in 0..1)
    through the kornia backend's functions, and come back in the type they had.

    Peer: draws inside each step from a hidden state and changes its arguments. Ours: a call takes its amounts from
    ``draws``, or from the seed and the number of faces before, and returns new arrays.
    """

    def __init__(
        self,
        batch_size: int,
        processing_size: int,
        config: AugmentationConfig | None = None,
        draws: Draws | None = None,
        seed: int = 0,
    ) -> None:
        self.config = config or AugmentationConfig()
        self.constants = ConstantsAugmentation.from_config(processing_size, batch_size, self.config)
        self.batch_size, self.processing_size = batch_size, processing_size
        self.seed = seed
        self.first_ordinal = 0  # of the next call's faces, where it draws
        self.draws = draws
        if draws is not None and (len(draws) != batch_size or draws.size != processing_size):
            raise ValueError(
                f"draws: {len(draws)} made for {draws.size} px do not fit {batch_size} faces of {processing_size} px"
            )

    def _next_draws(self) -> Draws:
        """Return the amounts of this call: those given, or new ones."""
        if self.draws is not None:
            return self.draws
        return draw(self.seed, self._next_ordinals(), 0, self.processing_size, self.config)

    def _next_ordinals(self) -> np.ndarray:
        """Return the ordinals of this call's faces, (N,): always the first where ``draws`` are given."""
        ordinals = np.arange(self.first_ordinal, self.first_ordinal + self.batch_size, dtype=np.uint64)
        if self.draws is None:
            self.first_ordinal += self.batch_size
        return ordinals

    def color_adjust(self, batch: Images) -> Images:
        """Return (N, S, S, 3) BGR images after LAB jitter and CLAHE."""
        self._check(batch, channels=3)
        draws = self._next_draws()
        if isinstance(batch, np.ndarray):
            matrices = jitter_matrices(draws)
            grids, clip_limit = draws.clahe_grid.tolist(), draws.clip_limit
            return recolor(batch, matrices, grids, Scratch(), clip_limit).copy()

        def adjust(images: Tensor) -> Tensor:
            amounts = Amounts.unpack(send(packed_amounts(draws), images.device))
            return color.color_adjust(images, *amounts.color, clahe.groups(draws))

        return _on_device(batch, adjust)

    def transform(self, batch: Images, points: np.ndarray | None = None) -> tuple[Images, np.ndarray | None]:
        """Return images and points after rotation, zoom and shift.

        batch: (N, S, S, C)
        points: (N, ..., 2) px (x, y), or None

        Peer: six channels are sampled on a grid of 1/32 px. Ours: exactly, whatever their number.
        """
        self._check(batch)
        forward = self._next_draws().forward()
        if points is not None:
            points = transform_points(forward, points).astype(np.result_type(points, np.float32))
        if isinstance(batch, np.ndarray):
            inverse, result = np.linalg.inv(forward)[:, :2], np.empty_like(batch)
            for image, matrix, out in zip(batch, inverse, result):
                out[...] = _move_any(image, matrix)
            return result, points

        matrices = np.ascontiguousarray(forward[:, :2], np.float32)
        return _on_device(batch, lambda images: geometry.move(images, send(matrices, images.device))), points

    def random_flip(self, batch: Images, points: np.ndarray | None = None) -> tuple[Images, np.ndarray | None]:
        """Return images and points, mirrored where that is drawn.

        batch: (N, S, S, C)
        points: (N, ..., 2) px (x, y), or None; as the peer's, they keep their order: a left eye is still listed as left
        """
        self._check(batch)
        flags = self._next_draws().flip
        if points is not None:
            points = flip_points(points, flags, self.processing_size)
        if isinstance(batch, np.ndarray):
            return np.where(flags[:, None, None, None], batch[:, :, ::-1], batch), points
        return geometry.flip(batch.permute(0, 3, 1, 2), send(flags, batch.device)).permute(0, 2, 3, 1), points

    def warp(
        self,
        batch: Images,
        to_landmarks: bool = False,
        batch_src_points: np.ndarray | None = None,
        batch_dst_points: np.ndarray | None = None,
    ) -> Images:
        """Return images warped by the draws' grid of nodes, or to landmarks.

        batch: (N, S, S, C)
        to_landmarks: warp from ``batch_src_points`` to ``batch_dst_points``, to which noise is added: that of
            the first faces under the seed where ``draws`` are given, else of the next ones; a face that cannot be
            warped stays as it is
        batch_src_points: (N, 68, 2) px
        batch_dst_points: (N, 68, 2) px, those of the matched faces

        Peer: the map is half a pixel off and what lies outside is black. Ours: neither.
        """
        self._check(batch)
        if to_landmarks:
            nodes = self._to_landmarks(batch_src_points, batch_dst_points)
        else:
            nodes = self._next_draws().warp_nodes()
        if isinstance(batch, np.ndarray):
            weights = host_geometry.node_weights(self.processing_size, nodes.shape[1])
            batch, scratch = np.ascontiguousarray(batch), Scratch()
            warped = np.empty_like(batch)
            for image, rows, out in zip(batch, host_geometry.node_rows(nodes, weights), warped):
                host_geometry.read_warped(image, rows, weights, out, scratch)
            return warped

        relative_nodes = geometry.relative(nodes, self.processing_size).astype(np.float32)

        def warp(images: Tensor) -> Tensor:
            positions = geometry.control_map(send(relative_nodes, images.device), self.processing_size)
            return geometry.read(images, positions)

        return _on_device(batch, warp)

    def _to_landmarks(self, source: np.ndarray | None, match: np.ndarray | None) -> np.ndarray:
        if source is None or match is None:
            raise ValueError("warp to landmarks: needs batch_src_points and batch_dst_points")
        noise = landmark_noise(self.seed, self._next_ordinals(), 0) * self.constants.warp.lm_scale
        return landmark_nodes(source, match, noise, self.processing_size)[0]

    def _check(self, batch: Images, channels: int | None = None) -> None:
        size = self.processing_size
        shape = tuple(getattr(batch, "shape", ()))
        if len(shape) != 4 or shape[:3] != (self.batch_size, size, size) or channels not in (None, shape[-1]):
            raise ValueError(f"batch: expected ({self.batch_size}, {size}, {size}, {channels or 'C'}), got {shape}")
        kinds = (torch.uint8, torch.float32) if isinstance(batch, Tensor) else (np.uint8,)
        if batch.dtype not in kinds:
            raise ValueError(f"batch: {batch.dtype} is neither bytes nor (as a tensor) float32")


def _on_device(batch: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``function`` of (N, S, S, C) images as floats (N, C, S, S), in the type and layout they came in."""
    images = batch.permute(0, 3, 1, 2)
    if batch.dtype == torch.uint8:
        result = (function(to_unit(images)) * 255).round().clamp(0, 255).to(torch.uint8)
    else:
        result = function(images)
    return result.permute(0, 2, 3, 1)


def _move_any(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return ``move`` of any number of channels: by fours and then by ones, for which it is fast and exact."""
    channels = image.shape[-1]
    fours = channels // 4 * 4
    starts = [*range(0, fours, 4), *range(fours, channels)]
    groups = np.split(image, starts[1:], axis=-1)
    parts = [host_geometry.move(np.ascontiguousarray(group), matrix) for group in groups]
    return np.concatenate([part.reshape(*image.shape[:2], -1) for part in parts], axis=-1)
