"""Measures the sides' codes of a model that is trained already, so that its swap can exchange their means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from pipelines.collate import Collate
from pipelines.dataset import check_prepared
from pipelines.fill import FaceSource
from pipelines.run.build import make_augmenter
from pipelines.run.known_faces import refuse_exchanged
from pipelines.run.reconstruction import decoded_batches
from pipelines.run.validation import NO_AUGMENTATION
from pipelines.sides import Log, ProgressFactory, no_log, no_progress, scan_side
from pipelines.store import StoreSpec
from swapfast.batch import SIDES
from swapfast.checkpoints.averages import FILE, averages_of, load_averages, stored_half_lives
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.trained import load_weights
from swapfast.config import MaskConfig, TrainConfig
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.crop import spread_indices
from swapfast.models import FaceAutoencoder
from swapfast.models.registry import build_model
from swapfast.models.side_statistics import PLAIN, Rows, SideStatistics

MOST_FACES = 2048  # a side: the mean of so many is as good as that of all


def measure_codes(
    checkpoints: CheckpointFolder,
    folders: Mapping[str, Path],
    device: torch.device,
    progress: ProgressFactory = no_progress,
    log: Log = no_log,
) -> tuple[int, dict[str, int]]:
    """Put each side's statistics of these faces into the newest checkpoint of a model folder, which must be locked.

    folders: of the faces of each side. Of averaged weights the same is done. Faces are taken as they are, not varied.
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
    sources = {side: scan_side(folders[side], "none", True, progress) for side in SIDES}
    refuse_exchanged(sources, checkpoint.tensors.get("known_faces", {}))
    spec = StoreSpec(max(model.input_size, *model.output_sizes), config.crop, MaskConfig(mask_type="none"), ())
    for source in sources.values():
        for line in check_prepared(source, spec):
            log(line)
    images = {side: _images(model, sources[side], spec, device, progress, log) for side in SIDES}
    model.to(device)
    tensors = dict(checkpoint.tensors)
    tensors["model"] = tensors["model"] | _statistics(model, images)
    averages = dict(tensors.get(FILE, {}))
    for half_life in stored_half_lives(averages):
        load_averages(model, averages, half_life, path)
        measured = _statistics(model, images)
        kept = averages_of(averages, half_life)
        averages |= {f"{half_life}/{name}": value for name, value in measured.items() if name in kept}
    if averages:
        tensors[FILE] = averages
    state = {key: value for key, value in checkpoint.state.items() if key not in ("format", "step", "files")}
    checkpoints.replace(Checkpoint(checkpoint.step, tensors, state))
    return checkpoint.step, {side: len(of_side) for side, of_side in images.items()}


def _images(
    model: FaceAutoencoder,
    source: FaceSource,
    spec: StoreSpec,
    device: torch.device,
    progress: ProgressFactory,
    log: Log,
) -> torch.Tensor:
    """Return faces of a side as the model takes them, (n, 3, h, w) in 0..1."""
    chosen = source.select(np.unique(spread_indices(len(source), MOST_FACES)))
    augment = make_augmenter("kornia", spec.size, model.input_size, model.output_sizes, device, NO_AUGMENTATION)
    collate = Collate(augment, True, (), model.color_order, device)
    path = source.folder.path
    batches = decoded_batches(0, chosen, spec, collate, progress(f"decoding {path}"), log)
    images = [batch.inputs[0] for _, batch in batches]
    if not images:
        raise SwapfastError(f"{path}: no face of it can be read", EXIT_FAILED)
    return torch.cat(images)


@torch.no_grad()
def _statistics(model: FaceAutoencoder, images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the statistics that the model's layers have of all images together, by their names in a checkpoint."""
    layers = [layer for layer in model.statistics.values() if isinstance(layer, SideStatistics)]
    model.eval()
    for layer in layers:
        layer.begin()
        layer.train()
    for side, of_side in images.items():
        for part in of_side.split(64):
            rows = Rows(len(part), side, side)
            model.side_code(model.encode(part, [rows]), rows)
    model.update_statistics()
    model.eval()
    state = model.state_dict()
    return {name: value.to("cpu", copy=True) for name, value in state.items() if name.startswith("statistics.")}
