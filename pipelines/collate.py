"""From bytes of all sides in one batch to the Batch a model trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from swapfast.augment.device.transfer import send_tensor
from swapfast.augment.draws import Draws
from swapfast.augment.host.rows import Rows
from swapfast.augment.result import Augmented
from swapfast.batch import MASK_NAMES, Batch, BatchMeta

Pixels = np.ndarray | Tensor | Rows
Augment = Callable[[Pixels, Pixels, Draws], Augmented]


def _by_side(images: Tensor, sides: int) -> Tensor:
    """(sides * B, C, H, W) -> (B, sides, C, H, W), a view."""
    return images.unflatten(0, (sides, -1)).transpose(0, 1)


def _mask(augmented: Augmented, names: tuple[str, ...], name: str, sides: int) -> list[Tensor] | None:
    if augmented.masks is None or name not in names:
        return None
    channel = names.index(name)
    return [_by_side(masks[:, channel : channel + 1], sides) for masks in augmented.masks]


def collate(augmented: Augmented, ids: np.ndarray, masks: tuple[str, ...], color_order: str, step: int = 0) -> Batch:
    """Sort the faces by side and the masks by kind; swap to RGB if that is what the model wants.

    augmented: float 0..1, N = sides * B faces, A's first, BGR. ids: (sides, B). masks: the names of its channels.
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
    """Augments stored faces and makes targets and masks of them.

    augment: ``augment(faces, extra_masks, draws)``, either backend's. on_device: it takes tensors on ``device`` (the
    torch backend) and not arrays (OpenCV). masks: which masks come with the faces, in their order. color_order: the
    model's.
    """

    def __init__(
        self,
        augment: Augment,
        on_device: bool,
        masks: tuple[str, ...],
        color_order: str = "bgr",
        device: torch.device | str = "cpu",
    ) -> None:
        self.augment, self.on_device = augment, on_device
        self.masks, self.color_order = masks, color_order
        self.device = torch.device(device)

    def batch(self, faces: Pixels, extra_masks: Pixels, draws: Draws, ids: np.ndarray, step: int = 0) -> Batch:
        """From (N, S, S, 3 or 4) faces and (N, K, S, S) extra masks, uint8, A's first; ids: (sides, B)."""
        if self.on_device:
            faces, extra_masks = (_on(pixels, self.device) for pixels in (faces, extra_masks))
            augmented = self.augment(faces, extra_masks, draws)
        else:
            faces, extra_masks = (p.cpu().numpy() if isinstance(p, Tensor) else p for p in (faces, extra_masks))
            augmented = _sent(self.augment(faces, extra_masks, draws), self.device)
        return collate(augmented.to_float(), ids, self.masks, self.color_order, step)

    def __call__(self, data: Sequence[tuple[tuple[np.ndarray, int], ...]], draws: Draws) -> Batch:
        """From B items of a MultiDataset: for each side (S, S, 3 + M) uint8 BGR with its masks, and its index."""
        stacked = np.stack([pixels for side in zip(*data) for pixels, _ in side])
        ids = np.array([[index for _, index in side] for side in zip(*data)])
        channels = 4 if "face" in self.masks else 3
        faces, extra_masks = stacked[..., :channels], stacked[..., channels:].transpose(0, 3, 1, 2)
        return self.batch(np.ascontiguousarray(faces), np.ascontiguousarray(extra_masks), draws, ids)


def _on(pixels: Pixels, device: torch.device) -> Tensor:
    return send_tensor(pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.asarray(pixels)), device)


def _sent(augmented: Augmented, device: torch.device) -> Augmented:
    """Bytes to the device: a quarter of what floats are."""
    return dataclasses.replace(
        augmented,
        feed=send_tensor(augmented.feed, device),
        targets=[send_tensor(target, device) for target in augmented.targets],
        masks=None if augmented.masks is None else [send_tensor(mask, device) for mask in augmented.masks],
    )
