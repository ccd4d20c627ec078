"""Opens a trained model, for whatever works with one: measuring, swapping, exporting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from swapfast.batch import SIDES
from swapfast.checkpoints.averages import FILE, average_name, choose_average, load_averages, stored_half_lives
from swapfast.checkpoints.folder import UNREADABLE, Checkpoint, CheckpointFolder
from swapfast.checkpoints.snapshots import Kind, RestorePoint, Snapshots
from swapfast.config import TrainConfig
from swapfast.device import pick_device
from swapfast.errors import SwapfastError
from swapfast.faces.crop import shrink
from swapfast.files import not_a_folder
from swapfast.models import FaceAutoencoder, build_model

NAMES = ("best", "newest")  # what may be given in place of an iteration
CheckpointChoice = Literal["best", "newest", "auto"] | int | None
_ORDER: tuple[Kind, ...] = ("checkpoint", "snapshot", "backup")  # of one step: which is opened first


@dataclass(frozen=True)
class ModelMetadata:
    """Where a model comes from.

    step        iterations it has had
    kind        of folder: 'checkpoint', 'snapshot' or 'backup'
    path        that folder
    state       what its state.json says: versions, training faces, losses
    mean_faces  the mean training face of each side, (H, W, 3) float32 in 0..1 BGR at the largest output size
    mean_masks  the mean face mask of each side, (H, W, 1) float32 in 0..1 at that size; empty where none is kept
    known_faces digests of the faces that each side has been trained on, (n,) int64; empty for a model that keeps none
    remarks     a line for each damaged folder that was passed over, where another one than the best was opened, and
                where the weights are averaged ones
    weights     which of the checkpoint's the model has: 'raw', or averaged ones such as 'ema-500'
    """

    step: int
    kind: Kind
    path: Path
    state: dict
    mean_faces: dict[str, np.ndarray]
    mean_masks: dict[str, np.ndarray]
    known_faces: dict[str, torch.Tensor]
    remarks: list[str]
    weights: str = "raw"


class OpenedModel(NamedTuple):
    """A trained model, the configuration it was trained with, and where it comes from."""

    model: FaceAutoencoder
    config: TrainConfig
    metadata: ModelMetadata


def open_model(
    folder: str | Path,
    step: CheckpointChoice = None,
    device: str | torch.device = "cpu",
    weights: str = "auto",
    exchange_codes: bool | None = None,
) -> OpenedModel:
    """Open the trained model in a model folder, in evaluation mode on ``device``.

    step: None or 'newest' for the newest whole checkpoint; a number for that iteration, of a checkpoint, a snapshot or
    the backup; 'best' for the backup, which is the best by its swap or its loss, or the newest checkpoint where there
    is no whole backup; 'auto' for 'best' where the swap was measured while it trained (--validation), with a remark
    that says which, else for 'newest'.
    device: one of torch's, or 'auto' for a GPU where torch sees one.
    weights: 'auto' for averaged weights where the checkpoint keeps some, else as they were in training; 'raw' for these
    always; 'ema', or such as 'ema-500', for averaged ones always.
    exchange_codes: whether a plain model's swap exchanges the sides' mean codes, and that of others those of faces in
    their own colours; None for what its settings say.
    Nothing in the folder is changed, and it may be trained in meanwhile. Raises SwapfastError where there is no such
    folder, model, iteration, device or average, naming those there are, and where what is asked for is damaged.
    """
    path, device = Path(folder), pick_device(str(device))
    if not path.is_dir():
        raise not_a_folder(path, f"--model-dir {path}", "a model folder")
    if (path / "state.json").is_file():
        raise SwapfastError(f"--model-dir {path}: is a checkpoint; give the model folder around it, and --checkpoint N")
    checkpoint, point, remarks = _find(CheckpointFolder(path), step)
    config = TrainConfig.from_dict(checkpoint.state.get("config"), str(point / "state.json"))
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    load_weights(model, checkpoint, point)
    if exchange_codes is not None:
        model.exchange_mean_codes(exchange_codes)
    averages = checkpoint.tensors.get(FILE, {})
    half_life = choose_average(weights, stored_half_lives(averages, config.optimizer.half_lives), str(point))
    if half_life is not None:
        load_averages(model, averages, half_life, point)
        remarks.append(f"with its averaged weights ({average_name(half_life)}); --weights raw takes those in training")
    metadata = ModelMetadata(
        checkpoint.step,
        next(kind for kind in _ORDER if point.name.startswith(kind)),
        point,
        checkpoint.state,
        _mean_faces(checkpoint, point, model.output_sizes[-1]),
        _mean_masks(checkpoint, point, model.output_sizes[-1]),
        checkpoint.tensors.get("known_faces", {}),
        remarks,
        average_name(half_life),
    )
    return OpenedModel(model.to(device).eval(), config, metadata)


def load_weights(model: FaceAutoencoder, checkpoint: Checkpoint, path: Path) -> None:
    """Fill ``model`` with the weights of the checkpoint that lies at ``path``.

    Raises SwapfastError where they are another model's, or state.json does not name all files.
    """
    missing = sorted({"model", "optimizer", "faces"} - checkpoint.tensors.keys())
    if missing:
        raise SwapfastError(
            f"{path}: state.json names no {missing[0]}.safetensors; restore a copy of it, or choose another "
            "--model-dir to start a new model"
        )
    try:
        model.load_trained(checkpoint.tensors["model"])
    except RuntimeError as error:
        raise SwapfastError(
            f"{path}: the weights do not fit the model {model.name!r} that state.json names; restore a copy of it"
        ) from error


def _find(folder: CheckpointFolder, step: CheckpointChoice) -> tuple[Checkpoint, Path, list[str]]:
    """Return the checkpoint that is meant, its folder, and remarks."""
    names = (None, *NAMES, "auto")
    if isinstance(step, bool) or not (step in names or isinstance(step, int)):
        raise SwapfastError(f"--checkpoint {step!r}: give an iteration, best or newest")
    if step == "auto":
        return _best_or_newest(folder)
    if step is None or step == "newest":
        return _newest(folder, [])
    points = Snapshots(folder).points()
    if step == "best":
        backups = [point for point in points if point.kind == "backup"]
        checkpoint, path, remarks = _first_whole(reversed(backups))
        if checkpoint is not None:
            return checkpoint, path, remarks
        return _newest(folder, [*remarks, f"{folder.folder}: there is no whole backup; opened the newest checkpoint"])
    candidates = sorted((p for p in points if p.step == step), key=lambda p: (_ORDER.index(p.kind), p.path.name))
    checkpoint, path, remarks = _first_whole(candidates)
    if checkpoint is None:
        steps = ", ".join(str(number) for number in sorted({point.step for point in points if point.step != step}))
        problem = "; ".join(remarks) or f"{folder.folder} has no such iteration"
        raise SwapfastError(f"--checkpoint {step}: {problem}; {f'give one of {steps}' if steps else 'train a model'}")
    return checkpoint, path, remarks


def _best_or_newest(folder: CheckpointFolder) -> tuple[Checkpoint, Path, list[str]]:
    """Return the backup where it was chosen by its swap, else the newest checkpoint."""
    newest = _newest(folder, [])
    if not _has_best_swap(newest[0].state):
        return newest
    checkpoint, path, remarks = _find(folder, "best")
    step = newest[0].step
    if not path.name.startswith("backup"):  # there is none that is whole, and a remark says so
        return checkpoint, path, remarks
    if checkpoint.step == step:
        return *newest[:2], [*newest[2], f"iteration {step}, the newest, has the best swap so far"]
    way = f"--checkpoint newest takes iteration {step}"
    return checkpoint, path, [*remarks, f"iteration {checkpoint.step} had the best swap and is used; {way}"]


def _has_best_swap(state: dict) -> bool:
    metrics = state.get("metrics")
    highest = metrics.get("highest_swap_quality") if isinstance(metrics, dict) else None
    return isinstance(highest, float) and isfinite(highest)


def _newest(folder: CheckpointFolder, remarks: list[str]) -> tuple[Checkpoint, Path, list[str]]:
    loaded = folder.load()
    if loaded is None:
        raise SwapfastError(f"--model-dir {folder.folder}: holds no model; train one with `swapfast train`")
    checkpoint, damaged = loaded
    return checkpoint, folder.path(checkpoint.step), [*remarks, *damaged]


def _first_whole(points: Iterable[RestorePoint]) -> tuple[Checkpoint | None, Path, list[str]]:
    """Return the first point that can be read, with its folder, and a remark for each damaged one before it."""
    remarks: list[str] = []
    for point in points:
        try:
            return CheckpointFolder.read(point.path), point.path, remarks
        except UNREADABLE as error:
            remarks.append(f"{point.path} is damaged ({error})")
    return None, Path(), remarks


def _mean_faces(checkpoint: Checkpoint, path: Path, size: int) -> dict[str, np.ndarray]:
    """Return each side's mean face (H, W, 3) at ``size`` px."""
    return {side: _mean(checkpoint, path, f"mean_{side}", 3, size) for side in SIDES}


def _mean_masks(checkpoint: Checkpoint, path: Path, size: int) -> dict[str, np.ndarray]:
    """Return each side's mean mask (H, W, 1) at ``size`` px; none unless there is one of each."""
    if any(f"mean_mask_{side}" not in checkpoint.tensors["faces"] for side in SIDES):
        return {}
    return {side: _mean(checkpoint, path, f"mean_mask_{side}", 1, size) for side in SIDES}


def _mean(checkpoint: Checkpoint, path: Path, name: str, channels: int, size: int) -> np.ndarray:
    """Return a mean (H, W, channels) float32 at ``size`` px. Raises SwapfastError where it is missing or no picture."""
    mean = checkpoint.tensors["faces"].get(name)
    if mean is None:
        raise SwapfastError(f"{path}: faces.safetensors has no {name}; restore a copy of it")
    edge = mean.shape[0] if mean.ndim else 0
    if mean.shape != (edge, edge, channels) or not edge or not mean.is_floating_point() or not mean.isfinite().all():
        raise SwapfastError(f"{path}: {name} in faces.safetensors is no picture; restore a copy of it")
    return shrink(mean.float().numpy(), size).reshape(size, size, channels)
