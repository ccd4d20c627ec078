"""From augmented faces, all sides in one batch, to the Batch a model trains on."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from swapfast.augment.result import Augmented
from swapfast.batch import Batch, BatchMeta


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
        meta=BatchMeta(*(_mask(augmented, masks, name, sides) for name in ("face", "eye", "mouth"))),
        step=step,
        ids=ids,
    )
