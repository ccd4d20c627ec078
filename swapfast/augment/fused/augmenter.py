"""Augmentation of whole batches by three fused Triton kernels, the gather from the store included."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from swapfast.augment.checks import check_colors, check_draws, check_faces, check_masks, check_sizes
from swapfast.augment.constants import ANY_CONFIG, ConstantsColor
from swapfast.augment.device.transfer import send, table
from swapfast.augment.draws import Draws
from swapfast.augment.fused import amounts, operators
from swapfast.augment.result import Augmented
from swapfast.config import AugmentationConfig

MAX_MASKS = 4  # bytes of a word

light_of_quarters = table(amounts.light_of_quarters)
steps_of_quarters = table(amounts.steps_of_quarters)
level_bytes = table(amounts.level_bytes)


class FusedAugmenter:
    """Augments whole batches by Triton's kernels: on CUDA, or on a CPU under Triton's interpreter.

    processing_size: px of the faces that come in
    input_size: px of the feed
    output_sizes: px of the targets
    config: the configuration of the draws. It decides whether there is a kernel for CLAHE, and for how many tiles
    dtype: of the results: float32, bfloat16 or float16
    color_order: of the results, "bgr" or "rgb"; what comes in is BGR

    A batch is three launches, one more for each output size beyond the first, and one copy of amounts to the device.
    Nothing here waits for the device, and no launch depends on what is drawn.
    """

    def __init__(
        self,
        processing_size: int,
        input_size: int,
        output_sizes: Sequence[int],
        config: AugmentationConfig | None = None,
        dtype: torch.dtype = torch.float32,
        color_order: str = "bgr",
    ) -> None:
        sizes = check_sizes(processing_size, input_size, output_sizes)
        self.processing_size, self.input_size, self.output_sizes = sizes
        color = ConstantsColor.from_config(self.processing_size, config or ANY_CONFIG)
        self.largest_grid, self.recolors = color.largest_grid, color.recolors
        self.dtype, self.rgb = dtype, color_order == "rgb"

    def __call__(
        self,
        faces: Tensor,
        extra_masks: Tensor | None,
        draws: Draws,
        rows: Tensor | None = None,
        out: Augmented | None = None,
    ) -> Augmented:
        """Return N faces augmented, 0..1 on their device.

        faces: (M, S, S, 3) BGR, or (M, S, S, 4) with the face mask last; uint8, or float32 in 0..1, which is rounded to
            quarters of a level, its mask to whole ones
        extra_masks: (M, K, S, S) uint8, the masks beside the face's, or None; four masks in all at most
        draws: of N faces, for S px
        rows: (N,) int64 on the device, which of the M faces; by default all of them in turn
        out: where to write, a result of the same shapes; by default new memory

        Raises ValueError where the arguments do not fit each other or the configuration.
        """
        self._check(faces, extra_masks, draws, rows)
        check_colors(draws, self.recolors, self.largest_grid)
        device, n = faces.device, len(draws)
        masks = faces.shape[-1] - 3 + (0 if extra_masks is None else extra_masks.shape[1])
        if out is None:
            out = self._empty(n, masks, device)
        if n == 0:
            return out
        with torch.cuda.device_of(faces):  # Triton launches on the current device, whatever its tensors lie on
            self._launch(faces, extra_masks, draws, _in_turn(n, device) if rows is None else rows, masks, out)
        return out

    def _launch(
        self, faces: Tensor, extra_masks: Tensor | None, draws: Draws, rows: Tensor, masks: int, out: Augmented
    ) -> None:
        packed = send(amounts.pack_amounts(draws), faces.device)
        colors, mask_words = self._recolored(faces, extra_masks, rows, packed, masks)
        feed = out.feed
        for k, target in enumerate(out.targets):
            target_masks = out.masks[k] if out.masks is not None else mask_words
            operators.geometry(colors, mask_words, packed, feed, target, target_masks, self.rgb)
            feed = feed[:0]  # made by the first launch

    def _recolored(
        self, faces: Tensor, extra_masks: Tensor | None, rows: Tensor, packed: Tensor, masks: int
    ) -> tuple[Tensor, Tensor]:
        """Return the faces of ``rows`` recolored, (N, S, S) int32 packed, and their masks the same way."""
        device, n, size = faces.device, len(packed), self.processing_size
        faces = faces.contiguous()
        extra_masks = faces.new_empty(0, dtype=torch.uint8) if extra_masks is None else extra_masks.contiguous()
        steps, levels = steps_of_quarters(device), level_bytes(device)
        curves = torch.empty((n, self.largest_grid**2, amounts.BINS), dtype=torch.uint8, device=device)
        colors = torch.empty((n, size, size), dtype=torch.int32, device=device)
        mask_words = torch.empty_like(colors) if masks else colors[:0]
        if self.largest_grid:
            operators.curves(faces, rows, packed, steps, levels, curves)
        light = light_of_quarters(device)
        operators.color(faces, extra_masks, rows, packed, steps, levels, light, curves, colors, mask_words)
        return colors, mask_words

    def _empty(self, n: int, masks: int, device: torch.device) -> Augmented:
        """Return memory for a result: images channels_last, masks one after another."""

        def images(size: int) -> Tensor:
            return torch.empty((n, size, size, 3), dtype=self.dtype, device=device).permute(0, 3, 1, 2)

        return Augmented(
            feed=images(self.input_size),
            targets=[images(size) for size in self.output_sizes],
            masks=[torch.empty((n, masks, size, size), dtype=self.dtype, device=device) for size in self.output_sizes]
            if masks
            else None,
        )

    def _check(self, faces: Tensor, extra_masks: Tensor | None, draws: Draws, rows: Tensor | None) -> None:
        size = self.processing_size
        check_faces(faces, size)
        if faces.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"faces: expected uint8 or float32, got {faces.dtype}")
        if extra_masks is not None:
            check_masks(extra_masks, len(faces), size)
            if extra_masks.dtype != torch.uint8:
                raise ValueError(f"extra_masks: expected uint8, got {extra_masks.dtype}")
        count = faces.shape[-1] - 3 + (0 if extra_masks is None else extra_masks.shape[1])
        if count > MAX_MASKS:
            raise ValueError(f"{count} masks: the fused kernels take {MAX_MASKS}")
        check_draws(draws, len(faces) if rows is None else len(rows), size)


@lru_cache(maxsize=16)
def _in_turn(n: int, device: torch.device) -> Tensor:
    return torch.from_numpy(np.arange(n)).to(device)
