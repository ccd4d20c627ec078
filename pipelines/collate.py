"""Augments the stored faces of a batch and makes the ``Batch`` that a model trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from swapfast.augment.device.transfer import send_tensor
from swapfast.augment.draws import Draws
from swapfast.augment.fused.rows import StoredRows
from swapfast.augment.fused.verified import VerifiedAugmenter
from swapfast.augment.host.rows import Rows
from swapfast.augment.result import Augmented
from swapfast.batch import MASK_NAMES, Batch, BatchMeta

Pixels = np.ndarray | Tensor | Rows | StoredRows
Augment = Callable[[Pixels, Pixels, Draws], Augmented]


def _by_side(images: Tensor, sides: int) -> Tensor:
    """Return (sides * B, C, H, W) images as a view of shape (B, sides, C, H, W)."""
    return images.unflatten(0, (sides, -1)).transpose(0, 1)


def _mask(augmented: Augmented, names: tuple[str, ...], name: str, sides: int) -> list[Tensor] | None:
    if augmented.masks is None or name not in names:
        return None
    channel = names.index(name)
    return [_by_side(masks[:, channel : channel + 1], sides) for masks in augmented.masks]


def collate(augmented: Augmented, ids: np.ndarray, masks: tuple[str, ...], color_order: str, step: int = 0) -> Batch:
    """Return the batch of augmented faces: by side, with masks by name, in the model's colour order.

    augmented: N = sides * B faces in 0..1 BGR, A's first.
    ids: (sides, B).
    masks: names of the mask channels.
    color_order: "bgr" or "rgb".
    """
    sides = len(ids)
    feed, targets = augmented.feed, augmented.targets
    if color_order == "rgb":
        feed, targets = feed.flip(1), [target.flip(1) for target in targets]
    return Batch(
        inputs=list(feed.chunk(sides)),
        targets=[_by_side(target, sides) for target in targets],
        meta=BatchMeta(*(_mask(augmented, masks, name, sides) for name in MASK_NAMES)),
        step=step,
        ids=ids,
    )


class Collate:
    """Augments stored faces and makes a ``Batch`` of them.

    augment: the backend's ``augment(faces, extra_masks, draws)``.
    on_device: whether ``augment`` takes tensors on ``device`` or, as OpenCV's, arrays.
    masks: names of the stored masks, in their order.
    color_order: the model's, "bgr" or "rgb".
    memories: number of memories in which the fused kernels write one batch after another. The batch of so many steps
        later is written over a batch, which says so by its ``slot``. 0 gives each batch memory of its own, as do other
        backends, and RGB, which is turned afterwards.
    """

    def __init__(
        self,
        augment: Augment,
        on_device: bool,
        masks: tuple[str, ...],
        color_order: str = "bgr",
        device: torch.device | str = "cpu",
        memories: int = 0,
    ) -> None:
        self.memories = memories if color_order == "bgr" and isinstance(augment, VerifiedAugmenter) else 0
        self._written: dict[int, Augmented] = {}  # by slot
        self.augment, self.on_device = augment, on_device
        self.masks, self.color_order = masks, color_order
        self.device = torch.device(device)

    def batch(self, faces: Pixels, extra_masks: Pixels, draws: Draws, ids: np.ndarray, step: int = 0) -> Batch:
        """Return the batch of stored faces.

        faces: (N, S, S, 3 or 4) uint8, A's first.
        extra_masks: (N, K, S, S) uint8.
        draws: the random amounts of these faces.
        ids: (sides, B).
        """
        if self.on_device:
            faces, extra_masks = (_to_tensor(pixels, self.device) for pixels in (faces, extra_masks))
            if self.memories and isinstance(self.augment, VerifiedAugmenter):
                return self._rewritten(self.augment, faces, extra_masks, draws, ids, step)
            augmented = self.augment(faces, extra_masks, draws)
        else:
            faces, extra_masks = (p.cpu().numpy() if isinstance(p, Tensor) else p for p in (faces, extra_masks))
            augmented = _to_device(self.augment(faces, extra_masks, draws), self.device)
        return collate(augmented.to_float(), ids, self.masks, self.color_order, step)

    def _rewritten(
        self,
        augment: VerifiedAugmenter,
        faces: Tensor | StoredRows,
        extra_masks: Tensor | StoredRows,
        draws: Draws,
        ids: np.ndarray,
        step: int,
    ) -> Batch:
        """Return the batch in the memory of an earlier one, where the fused kernels write it."""
        slot = step % self.memories
        out = self._written.get(slot)
        augmented = augment(faces, extra_masks, draws, out if out is not None and len(out.feed) == len(draws) else None)
        batch = collate(augmented, ids, self.masks, self.color_order, step)
        if augment.is_fused:
            self._written[slot] = augmented
            batch.slot = slot
        return batch

    def __call__(self, data: Sequence[tuple[tuple[np.ndarray, int], ...]], draws: Draws) -> Batch:
        """Return the batch of B items of a MultiDataset.

        data: for each item and side, (S, S, 3 + M) uint8 BGR with its masks, and the face's index.
        """
        stacked = np.stack([pixels for side in zip(*data) for pixels, _ in side])
        ids = np.array([[index for _, index in side] for side in zip(*data)])
        channels = 4 if "face" in self.masks else 3
        faces, extra_masks = stacked[..., :channels], stacked[..., channels:].transpose(0, 3, 1, 2)
        return self.batch(np.ascontiguousarray(faces), np.ascontiguousarray(extra_masks), draws, ids)


def _to_tensor(pixels: Pixels, device: torch.device) -> Tensor | StoredRows:
    if isinstance(pixels, StoredRows):
        return pixels
    return send_tensor(pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.asarray(pixels)), device)


def _to_device(augmented: Augmented, device: torch.device) -> Augmented:
    """Return the augmented faces on the device, sent as bytes: a quarter of the size of floats."""
    return dataclasses.replace(
        augmented,
        feed=send_tensor(augmented.feed, device),
        targets=[send_tensor(target, device) for target in augmented.targets],
        masks=None if augmented.masks is None else [send_tensor(mask, device) for mask in augmented.masks],
    )
