"""The scalars of a step, as logs name them."""

from __future__ import annotations

import torch
from torch import Tensor

from swapfast.batch import SIDES
from swapfast.losses import BatchLoss


def step_values(losses: list[BatchLoss]) -> dict[str, Tensor]:
    """Return the scalars of one step under the peer's TensorBoard tags, still on the device.

    batch_total; per side batch_face_A (all functions), batch_unweighted_A/<function>, batch_weighted_A/<function>
    and batch_mask_A where a mask is learned. Several outputs are added.
    """
    tags: list[str] = []
    items: list[Tensor] = []
    ends: dict[str, slice] = {}
    for side, loss in zip(SIDES, losses):  # what adds up to a side's loss comes first, side by side
        first = len(items)
        for output in loss.weighted:
            tags += [f"batch_weighted_{side.upper()}/{name}" for name in output]
            items += output.values()
        if loss.mask is not None:
            tags.append(f"batch_mask_{side.upper()}")
            items.append(loss.mask)
        ends[side] = slice(first, len(items))
    for side, loss in zip(SIDES, losses):
        for output in loss.unweighted:
            tags += [f"batch_unweighted_{side.upper()}/{name}" for name in output]
            items += output.values()
    # One mean for all of them: on a GPU each small operation costs as much as a large one.
    means = torch.stack([item.detach().float() for item in items]).mean(dim=1)
    values: dict[str, Tensor] = {}
    for tag, mean in zip(tags, means.unbind()):
        values[tag] = values[tag] + mean if tag in values else mean
    values |= {f"batch_face_{side.upper()}": means[part].sum() for side, part in ends.items()}
    return values | {"batch_total": means[: ends[SIDES[len(losses) - 1]].stop].sum()}
