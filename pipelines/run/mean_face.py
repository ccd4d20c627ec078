"""The mean training face and mask of each side, kept with every checkpoint.

A swap is measured against the face (evaluate.py), and the mask is exported with models that learn none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from pipelines.dataset import TrainSet
from pipelines.run.run_state import same_faces
from swapfast.batch import SIDES
from swapfast.checkpoints.folder import Checkpoint
from swapfast.config import TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import spread_indices

MEAN_OF = 1024  # at most: their sum is exact in float32, being below 2^24
MEAN_OF_DECODED = 64  # where no store holds them


def mean_faces(
    sides: Sequence[TrainSet], config: TrainConfig, checkpoint: Checkpoint | None, data: Mapping[str, Mapping]
) -> dict[str, Tensor]:
    """Return each side's mean face and, where a run has face masks, mean mask, under their names in a checkpoint.

    'mean_a' and 'mean_mask_a' are the channels of A's ``mean_crop``. The checkpoint's own are taken where faces are the
    same. data: as ``run_state`` has it. On a start that finds its store, means would else be most of the reading: a GiB
    a side.
    """
    earlier_means = stored_means(config, checkpoint, data)
    means: dict[str, Tensor] = {}
    for name, side in zip(SIDES, sides, strict=True):
        size, _, channels = side.spec.face_shape
        shapes = {f"mean_{name}": (size, size, 3)} | ({f"mean_mask_{name}": (size, size, 1)} if channels > 3 else {})
        if all(key in earlier_means and earlier_means[key].shape == shape for key, shape in shapes.items()):
            means |= {key: earlier_means[key] for key in shapes}
        else:
            means |= zip(shapes, (part.contiguous() for part in mean_crop(side).split([3, channels - 3], dim=2)))
    return means


def stored_means(config: TrainConfig, checkpoint: Checkpoint | None, data: Mapping[str, Mapping]) -> dict[str, Tensor]:
    """Return the checkpoint's means of the sides that show the same faces, cut and masked in the same way."""
    if checkpoint is None:
        return {}
    before = TrainConfig.from_dict(checkpoint.state.get("config"))
    if before.crop != config.crop:
        return {}
    kinds = ("mean_", "mean_mask_") if before.mask == config.mask else ("mean_",)
    names = {f"{kind}{side}" for kind in kinds for side in same_faces(checkpoint, data)}
    return {name: mean for name, mean in checkpoint.tensors.get("faces", {}).items() if name in names}


def mean_crop(side: TrainSet) -> Tensor:
    """Return the mean of the training crops, or of MEAN_OF spread over the folder.

    It is (S, S, 3) float32 in 0..1 BGR, or (S, S, 4) with the face mask as the last channel. Raises SwapfastError where
    no face can be read.
    """
    total, count = np.zeros(side.spec.face_shape, np.float32), 0
    reason = None
    for index in np.unique(spread_indices(len(side), MEAN_OF_DECODED if side.store is None else MEAN_OF)):
        face = face_of(side, int(index))
        if isinstance(face, str):
            reason = face
            continue
        cv2.accumulate(face, total)  # ten times as fast as numpy, which converts first and then adds
        count += 1
    if not count:
        raise SwapfastError(f"{side.source.folder.path}: no face of it can be read: {reason}")
    return torch.from_numpy((total.astype(np.float64) / count / 255).astype(np.float32))


def face_of(side: TrainSet, index: int) -> np.ndarray | str:
    """Return one training crop, (S, S, 3 or 4) uint8 BGR and mask, or why there is none.

    It is decoded where no store holds it.
    """
    if side.store is not None:
        return side.store.faces[side.rows[index]]
    face, extra_masks = np.empty(side.spec.face_shape, np.uint8), np.empty(side.spec.extra_masks_shape, np.uint8)
    return side.source.put(side.spec, int(side.members[index]), face, extra_masks) or face
