"""Measures the sides' codes of a model that is trained already, so that its swap can exchange their means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.collate import Collate
from pipelines.dataset import check_prepared
from pipelines.fill import FaceSource
from pipelines.pose_covariates import PoseCovariates
from pipelines.run.build import compare_poses, make_augmenter
from pipelines.run.known_faces import refuse_exchanged
from pipelines.run.reconstruction import FACES_AT_ONCE, decoded_batches
from pipelines.run.validation import NO_AUGMENTATION
from pipelines.sides import Log, ProgressFactory, no_log, no_progress, scan_side
from pipelines.store import StoreSpec
from swapfast.batch import SIDES
from swapfast.checkpoints.averages import FILE, load_averages, stored_half_lives
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.trained import load_weights
from swapfast.config import MaskConfig, TrainConfig
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.crop import spread_indices
from swapfast.faces.table import FaceTable
from swapfast.models import FaceAutoencoder
from swapfast.models.registry import build_model
from swapfast.models.side_statistics import PLAIN, Rows, SideStatistics, with_mean

MOST_FACES = 2048  # a side: the mean of so many is as good as that of all


@dataclass(frozen=True)
class SideFaces:
    """Faces of a side as a model takes them, (n, 3, h, w) in 0..1, and what their headers say."""

    images: torch.Tensor
    table: FaceTable


def measure_codes(
    checkpoints: CheckpointFolder,
    folders: Mapping[str, Path],
    device: torch.device,
    comparable_poses: str = "auto",
    progress: ProgressFactory = no_progress,
    log: Log = no_log,
) -> tuple[int, dict[str, int]]:
    """Put each side's statistics of these faces into the newest checkpoint of a model folder, which must be locked.

    folders: of the faces of each side. Of averaged weights the same is done. Faces are taken as they are, not varied.
    comparable_poses: of ``ModelConfig``; the model keeps it as a setting, and that its swaps exchange mean codes.
    Returns the checkpoint's iteration and the faces of each side. Raises SwapfastError where there is no model, the
    sides are exchanged, no face of a side can be read, or the model normalises by its statistics.
    """
    loaded = checkpoints.load()
    if loaded is None:
        raise SwapfastError(f"--model-dir {checkpoints.folder}: holds no model; train one with `swapfast train`")
    checkpoint, path = loaded[0], checkpoints.path(loaded[0].step)
    config = TrainConfig.from_dict(checkpoint.state.get("config"), str(path / "state.json"))
    if config.model.code != PLAIN:
        # Of faces that are not varied they would be others than those that its layers were trained by: 1 dB worse.
        raise SwapfastError(
            f"--model-dir {checkpoints.folder}: --code {config.model.code} has both people's statistics from its "
            "training; this is for models of --code plain"
        )
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    load_weights(model, checkpoint, path)
    faces = _read_faces(model, config, folders, checkpoint.tensors.get("known_faces", {}), device, progress, log)
    covariates = PoseCovariates.from_tables([faces[side].table for side in SIDES], NO_AUGMENTATION, comparable_poses)
    compare_poses(model, covariates, log)
    model.to(device)
    tensors = dict(checkpoint.tensors)
    tensors["model"] = tensors["model"] | _statistics(model, faces, covariates)
    averages = dict(tensors.get(FILE, {}))
    for half_life in stored_half_lives(averages):
        load_averages(model, averages, half_life, path)
        compare_poses(model, covariates, no_log)  # averages bring along where the sides looked in training
        statistics = _statistics(model, faces, covariates)
        averages |= {f"{half_life}/{name}": value for name, value in statistics.items()}
    if averages:
        tensors[FILE] = averages
    state = {key: value for key, value in checkpoint.state.items() if key not in ("format", "step", "files")}
    model_settings = dataclasses.replace(config.model, comparable_poses=comparable_poses, exchange_codes=True)
    settings = dataclasses.replace(config, model=model_settings)
    checkpoints.replace(Checkpoint(checkpoint.step, tensors, state | {"config": settings.checkpoint_dict()}))
    return checkpoint.step, {side: len(of_side.images) for side, of_side in faces.items()}


def _read_faces(
    model: FaceAutoencoder,
    config: TrainConfig,
    folders: Mapping[str, Path],
    known_faces: Mapping[str, torch.Tensor],
    device: torch.device,
    progress: ProgressFactory,
    log: Log,
) -> dict[str, SideFaces]:
    """Return the faces of both sides' folders, or so many of them as tell the mean."""
    sources = {side: scan_side(folders[side], "none", True, progress) for side in SIDES}
    refuse_exchanged(sources, known_faces)
    spec = StoreSpec(max(model.input_size, *model.output_sizes), config.crop, MaskConfig(mask_type="none"), ())
    for source in sources.values():
        for line in check_prepared(source, spec):
            log(line)
    return {side: _decoded(model, sources[side], spec, device, progress, log) for side in SIDES}


def _decoded(
    model: FaceAutoencoder,
    source: FaceSource,
    spec: StoreSpec,
    device: torch.device,
    progress: ProgressFactory,
    log: Log,
) -> SideFaces:
    """Return faces of a side, without those that cannot be read, of which ``log`` is told."""
    sample_faces = source.select(np.unique(spread_indices(len(source), MOST_FACES)))
    augment = make_augmenter("kornia", spec.size, model.input_size, model.output_sizes, device, NO_AUGMENTATION)
    collate = Collate(augment, True, (), model.color_order, device)
    path = source.folder.path
    batches = [batch for _, batch in decoded_batches(0, sample_faces, spec, collate, progress(f"decoding {path}"), log)]
    if not batches:
        raise SwapfastError(f"{path}: no face of it can be read", EXIT_FAILED)
    members = np.concatenate([batch.ids[0] for batch in batches if batch.ids is not None])
    return SideFaces(torch.cat([batch.inputs[0] for batch in batches]), sample_faces.folder.records.select(members))


@torch.no_grad()
def _statistics(
    model: FaceAutoencoder, faces: Mapping[str, SideFaces], covariates: PoseCovariates | None
) -> dict[str, torch.Tensor]:
    """Return the statistics that the model's layers have of all faces together, by their names in a checkpoint.

    covariates: of the faces, by which their codes are compared; None for nothing.
    """
    layers = [layer for layer in model.statistics.values() if isinstance(layer, SideStatistics)]
    model.eval()
    slopes = []
    for layer in layers:
        layer.forget_features()
        layer.train()
    for number, (side, of_side) in enumerate(faces.items()):
        for ids in torch.arange(len(of_side.images)).split(FACES_AT_ONCE):
            rows = Rows(len(ids), side, side)
            if covariates is not None:
                values = covariates.of_side(number, ids.numpy(), np.zeros(len(ids), bool))
                rows = rows._replace(covariates=with_mean(torch.from_numpy(values).to(of_side.images)))
            model.side_code(model.encode(of_side.images[ids.to(of_side.images.device)], [rows]), rows)
        slopes.append([layer.take_slopes() for layer in layers])
    model.update_statistics()
    model.eval()
    for layer, of_sides in zip(layers, zip(*slopes, strict=True), strict=True):
        layer.slopes.copy_(torch.stack(of_sides).mean(0))  # in training both sides have as many faces
    state = model.state_dict()
    return {name: value.to("cpu", copy=True) for name, value in state.items() if name.startswith("statistics.")}
