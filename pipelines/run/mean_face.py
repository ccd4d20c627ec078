"""The mean training face of each side, kept with every checkpoint: what a swap is measured against (evaluate.py)."""

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
    """Return each side's ``mean_face`` under its name in a checkpoint; the checkpoint's own where faces are the same.

    data: as ``run_state`` has it. On a start that finds its store, means would else be most of the reading: a GiB a
    side.
    """
    stored = stored_mean_faces(config, checkpoint, data)
    named = {f"mean_{name}": side for name, side in zip(SIDES, sides, strict=True)}
    return {
        name: stored[name] if name in stored and stored[name].shape == _shape(side) else mean_face(side)
        for name, side in named.items()
    }


def stored_mean_faces(
    config: TrainConfig, checkpoint: Checkpoint | None, data: Mapping[str, Mapping]
) -> dict[str, Tensor]:
    """Return the checkpoint's mean faces of the sides that show the same faces, cut in the same way."""
    if checkpoint is None or TrainConfig.from_dict(checkpoint.state.get("config")).crop != config.crop:
        return {}
    named = {f"mean_{side}" for side in same_faces(checkpoint, data)}
    return {name: mean for name, mean in checkpoint.tensors.get("faces", {}).items() if name in named}


def _shape(side: TrainSet) -> tuple[int, int, int]:
    return side.spec.size, side.spec.size, 3


def mean_face(side: TrainSet) -> Tensor:
    """Return the mean of the training crops, or of MEAN_OF spread over the folder: (S, S, 3) float32 in 0..1 BGR.

    Raises SwapfastError where none of them can be read.
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
    return torch.from_numpy((total[..., :3].astype(np.float64) / count / 255).astype(np.float32))


def face_of(side: TrainSet, index: int) -> np.ndarray | str:
    """Return one training crop, (S, S, 3 or 4) uint8 BGR and mask, or why there is none.

    It is decoded where no store holds it.
    """
    if side.store is not None:
        return side.store.faces[side.rows[index]]
    face, extra_masks = np.empty(side.spec.face_shape, np.uint8), np.empty(side.spec.extra_masks_shape, np.uint8)
    return side.source.put(side.spec, int(side.members[index]), face, extra_masks) or face
