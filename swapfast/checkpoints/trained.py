"""Opens a trained model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.config import TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import shrink
from swapfast.files import not_a_folder
from swapfast.models import FaceAutoencoder, build_model


def load_weights(model: FaceAutoencoder, checkpoint: Checkpoint, folder: CheckpointFolder) -> None:
    """Fill ``model``; SwapfastError where the checkpoint's weights are another model's or a part of it is not named."""
    missing = sorted({"model", "optimizer", "faces"} - checkpoint.tensors.keys())
    if missing:
        raise SwapfastError(
            f"{folder.path(checkpoint.step)}: state.json names no {missing[0]}.safetensors; restore a copy of it, or "
            "choose another --model-dir to start a new model"
        )
    try:
        model.load_state_dict(checkpoint.tensors["model"])
    except RuntimeError as error:
        raise SwapfastError(
            f"{folder.path(checkpoint.step)}: the weights do not fit the model {model.name!r} that state.json names"
        ) from error


def load_model(path: Path, device: torch.device) -> tuple[FaceAutoencoder, TrainConfig, np.ndarray]:
    """A trained model, its config and B's mean face (H, W, 3) in 0..1 BGR at its largest output size."""
    folder = CheckpointFolder(path)
    if not path.is_dir():
        raise not_a_folder(path, f"--model-dir {path}", "a model folder")
    found = folder.load()
    if found is None:
        raise SwapfastError(f"--model-dir {path}: holds no model; train one with `swapfast train`")
    checkpoint, _ = found
    config = TrainConfig.from_dict(checkpoint.state.get("config"), str(folder.path(checkpoint.step) / "state.json"))
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    load_weights(model, checkpoint, folder)
    mean = checkpoint.tensors["faces"]["mean_b"].numpy()
    return model.to(device), config, shrink(mean, model.output_sizes[-1])
