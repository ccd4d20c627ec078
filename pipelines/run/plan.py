"""From a request to a plan: everything is checked before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from pipelines.dataset import check_prepared, split_validation, tested_mask, without_tested
from pipelines.fill import FaceSource
from pipelines.run.known_faces import know_faces
from pipelines.run.request import KnownFaces, Plan, TrainRequest
from pipelines.run.resume import resumed, settled_config
from pipelines.side_light import OFF
from pipelines.sides import (
    ProgressFactory,
    no_progress,
    scan_side,
)
from pipelines.store import StoreSpec
from swapfast.checkpoints.averages import RAW, choose_average
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder, model_folder
from swapfast.checkpoints.trained import load_weights
from swapfast.checkpoints.transfer import Transfer, freeze, load_weights_from
from swapfast.config import LossConfig, RunConfig, TrainConfig
from swapfast.device import pick_backend, pick_device
from swapfast.errors import SwapfastError
from swapfast.faces.masks import needed_masks
from swapfast.faces.skip_list import read_skip_lists
from swapfast.files import check_folder, not_a_folder, real_path
from swapfast.losses import LossCollator
from swapfast.models import FaceAutoencoder, build_model
from swapfast.models.side_statistics import PLAIN, SMALLEST_BATCH
from swapfast.models.summary import summary
from swapfast.optim.schedules import NEEDS_END
from swapfast.preview.samples import Samples
from swapfast.processes import SINGLE_PROCESS, Processes
from swapfast.requirements import check_import
from swapfast.training.graphed import pick_cuda_graph


def check_masks(config: TrainConfig, changes: Mapping[str, object]) -> None:
    """Raise SwapfastError where what is asked for, among ``changes``, needs a mask that is not there.

    The default of a multiplier is in every file of --print-config.
    """
    masks, loss = needed_masks(config), config.loss
    for name, has_mask in (
        ("soft_mask", loss.penalized_mask_loss and config.mask.mask_type != "none"),
        ("blur_out_mask", config.mask.mask_type != "none"),
        ("eye_mouth_priority", config.mask.mask_type != "none"),
    ):
        if f"loss.{name}" in changes and getattr(loss, name) and not has_mask:
            causes = "--no-penalized-mask or --mask-type none" if name == "soft_mask" else "--mask-type none"
            raise SwapfastError(f"--{name.replace('_', '-')}: has no effect with {causes}; leave one of them out")
    for part in ("eye", "mouth"):
        name = f"{part}_multiplier"
        multiplier = getattr(config.loss, name)
        if f"loss.{name}" in changes and multiplier not in (1, getattr(LossConfig, name)) and part not in masks:
            raise SwapfastError(
                f"--{part}-multiplier {multiplier:g}: has no effect with --no-penalized-mask or "
                "--mask-type none; leave one of them out"
            )


def plan_schedule(config: TrainConfig, changes: Mapping[str, object]) -> list[str]:
    """Return what to tell a person of the learning rate's schedule.

    changes: what was asked for. Raises SwapfastError where a schedule is asked for that needs an end, and none is.
    """
    rate, has_end = config.optimizer, "run.iterations" in changes
    if rate.schedule in NEEDS_END and not has_end:
        if "optimizer.schedule" in changes:
            raise SwapfastError(
                f"--schedule {rate.schedule}: the learning rate falls over the iterations that are asked for: give "
                "-i, or take --schedule plateau"
            )
        return [f"learning rate: it stays, for --schedule {rate.schedule} has no end without -i"]
    final = f"{rate.final_rate:g} %" if rate.final_rate else "nothing"
    last = f" over the last {rate.decay_share:g} % of them" if rate.schedule == "linear" else ""
    if rate.schedule in NEEDS_END:
        return [f"learning rate: {rate.schedule}, to {final} at iteration {config.run.iterations}{last}"]
    return []


def check_kernels(config: TrainConfig, device: torch.device) -> None:
    """Raise SwapfastError where the run needs Numba or kornia and that cannot run."""
    backend = pick_backend(config.run.backend, device)
    name, other = ("Numba", "kornia") if backend == "opencv" else ("kornia", "opencv")
    check_import(name, f"--backend {config.run.backend}", f"give --backend {other}")
    if config.augmentation.warp_to_landmarks:
        check_import("Numba", "-M/--warp-to-landmarks", "leave it out")


def training_model(config: TrainConfig) -> FaceAutoencoder:
    """Return the model that ``config`` trains, its weights drawn, with all that its loss asks of it."""
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    return model.with_landmark_reader() if config.loss.landmark_weight else model


def loss_collator(config: TrainConfig, model: FaceAutoencoder) -> LossCollator:
    """Return the loss that ``config`` describes."""
    loss, has_mask = config.loss, config.mask.mask_type != "none"
    is_masked = loss.penalized_mask_loss and has_mask
    return LossCollator(
        loss.functions,
        [weight / 100 for weight in loss.weights],
        model.color_order,
        is_masked,
        loss.eye_multiplier if is_masked else 1.0,  # the priority may need these masks without
        loss.mouth_multiplier if is_masked else 1.0,
        model.output_sizes[0],
        loss.mask_loss_function if loss.learn_mask else None,
        Path(loss.lpips_weights) if loss.lpips_weights else None,
        mask_weight=loss.mask_loss_weight / 100,
        soft=loss.soft_mask,
        blurs_outside=loss.blur_out_mask and has_mask,
        eye_mouth_priority=loss.eye_mouth_priority if has_mask else 0.0,
        dssim_window=loss.dssim_window,
        sums=loss.reduction == "sum",
        cycle_weight=loss.cycle_weight / 100,
        landmark_weight=loss.landmark_weight / 100,
    )


def plan_run(
    request: TrainRequest, progress: ProgressFactory = no_progress, processes: Processes = SINGLE_PROCESS
) -> Plan:
    """Check everything that can be checked before anything is written; raise SwapfastError where it fails.

    Only what was read of a folder is kept, where there is a cache folder already. Of several processes rank 0 looks for
    a model to go on with and tells the others, which wait until their machine's first one has read the folders and
    filled the cache.
    """
    processes.wait_for_files()
    run = request.config.run
    check_run_folders(run, processes.is_first)
    checkpoints = model_folder(run.model_folder)
    device = pick_device(run.device)
    steps = checkpoints.steps()
    config, checkpoint, lines = resumed(request, checkpoints) if processes.is_first else followed(processes, run)
    if processes.is_first:
        state = None if checkpoint is None else {"step": checkpoint.step, **checkpoint.state}
        processes.publish("plan", {"config": config.checkpoint_dict(), "state": state})
    lines += check_settings(config, request.changes, device, processes)
    look = config.preview
    masks = needed_masks(config)
    samples = Samples(
        config.crop.coverage / 100, "face" in masks, look.mask_opacity, look.mask_color, config.loss.learn_mask
    )
    model = training_model(config)
    loss = loss_collator(config, model)
    transfer = None
    if processes.is_first:
        transfer, remarks = fill_weights(model, config, checkpoint, checkpoints)
        lines += remarks
    freeze(model, config.model.freeze)
    spec = StoreSpec(max(model.input_size, *model.output_sizes), config.crop, config.mask, masks)
    sources = scan_inputs(config, progress)
    for source in sources:
        lines += check_prepared(source, spec)
    known_faces = KnownFaces()
    if processes.is_first:
        known_faces = know_faces(checkpoint, sources, config.validation, run.override)
        lines += known_faces.lines
    timelapse_sources: list[FaceSource] = []
    if processes.is_first:
        timelapse_sources, remarks = scan_timelapse(config, spec, dict(zip(run.inputs, sources)), progress)
        lines += remarks
    return Plan(
        checkpoints,
        steps,
        config,
        checkpoint,
        sources,
        model,
        loss,
        spec,
        samples,
        lines,
        processes,
        transfer,
        timelapse_sources,
        known_faces,
        has_end="run.iterations" in request.changes,
    )


def fill_weights(
    model: FaceAutoencoder, config: TrainConfig, checkpoint: Checkpoint | None, checkpoints: CheckpointFolder
) -> tuple[Transfer | None, list[str]]:
    """Give the model the weights of its checkpoint, or those that -l names; return what -l gave it, and remarks."""
    if checkpoint is not None:
        load_weights(model, checkpoint, checkpoints.path(checkpoint.step))
        return None, [f"going on from iteration {checkpoint.step} in {checkpoints.folder}"]
    if not config.run.load_weights:
        return None, []
    transfer = load_weights_from(model, Path(config.run.load_weights), config.run.shown_weights != RAW)
    return transfer, transfer.lines()


def check_settings(
    config: TrainConfig, changes: Mapping[str, object], device: torch.device, processes: Processes
) -> list[str]:
    """Raise SwapfastError where settings contradict each other or the device; return what a person is told of them.

    changes: what was asked for.
    """
    check_masks(config, changes)
    check_kernels(config, device)
    check_code(config, changes)
    lines = plan_schedule(config, changes)
    choose_average(config.run.shown_weights, config.optimizer.half_lives, "this run")
    pick_cuda_graph(config.run.cuda_graph, processes.device or device, config.optimizer, processes.world)
    return lines


def scan_inputs(config: TrainConfig, progress: ProgressFactory) -> list[FaceSource]:
    """Return the faces of each side that may be trained on: all but those left out or held out for the test.

    Raises SwapfastError where they are too few to hold out those for the validation.
    """
    run, masks = config.run, config.mask.mask_type
    skip = read_skip_lists(run.skip_lists)
    sources = [
        without_tested(scan_side(path, masks, run.skip_bad, progress, run.cache_folder, skip), config.test)
        for path in run.inputs
    ]
    for source in sources:
        split_validation(source, config.validation)
    return sources


def check_code(config: TrainConfig, changes: Mapping[str, object]) -> None:
    """Raise SwapfastError where a batch is too small for statistics of its own, or they are asked for and not taken.

    changes: what was asked for.
    """
    code, batch = config.model.code, config.batch_size
    poses = config.model.comparable_poses
    if code == PLAIN and not config.model.exchange_codes and "model.comparable_poses" in changes and poses != OFF:
        raise SwapfastError(
            f"--comparable-poses {poses}: has no effect with --no-code-exchange, which leaves codes as they are; give "
            "one of the two"
        )
    if code != PLAIN and batch < SMALLEST_BATCH:
        raise SwapfastError(
            f"-b/--batch-size {batch}: --code {code} normalises by the statistics of each side's faces in a batch; "
            f"give -b {SMALLEST_BATCH} or more, or for a new model --code {PLAIN}"
        )


def check_run_folders(run: RunConfig, is_first: bool) -> None:
    """Raise SwapfastError where a run would write into a folder of faces, or into what is no folder.

    is_first: whether this is the process that writes the timelapse.
    """
    output_folders = {
        "--model-dir": run.model_folder,
        "--cache-dir": run.cache_folder,
        "--timelapse-output": run.timelapse_folder,
    }
    for flag, folder in output_folders.items():
        for path in (*run.inputs, *run.timelapse_inputs):
            if folder is not None and real_path(path) in (real_path(folder), *real_path(folder).parents):
                raise SwapfastError(f"{flag} {folder}: lies in the faces' folder {path}; choose another")
    cache = run.cache_folder
    if cache.exists() and not cache.is_dir():
        raise not_a_folder(cache, f"--cache-dir {cache}")
    if run.timelapse_folder is not None and is_first:
        check_folder(run.timelapse_folder, "--timelapse-output")


def scan_timelapse(
    config: TrainConfig, spec: StoreSpec, scanned: dict[Path, FaceSource], progress: ProgressFactory
) -> tuple[list[FaceSource], list[str]]:
    """Return the faces of the timelapse's own folders, less those held out for the test, and what to tell a person.

    scanned: folders that were read before. Raises SwapfastError where nothing of a folder may be shown.
    """
    run, sources, lines = config.run, dict(scanned), []
    for path in run.timelapse_inputs:
        if path in sources:
            continue
        skip = read_skip_lists(run.skip_lists)
        source = scan_side(path, config.mask.mask_type, run.skip_bad, progress, run.cache_folder, skip)
        lines += check_prepared(source, spec)
        if bad := source.folder.bad:
            lines.append(f"timelapse: {len(bad)} bad files left out of {path}")
        is_tested = tested_mask(source.folder.records.column("pixels"), config.test)
        if is_tested.all():
            raise SwapfastError(f"--timelapse-input: all faces of {path} are held out for the test; give others")
        sources[path] = source.select(np.flatnonzero(~is_tested))
    return [sources[path] for path in run.timelapse_inputs], lines


def describe_model(request: TrainRequest) -> str:
    """Return the network that ``request`` would train, as a table; no folder of faces is looked at."""
    config, _ = settled_config(request)
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    freeze(model, config.model.freeze)
    return summary(model)


def followed(processes: Processes, run: RunConfig) -> tuple[TrainConfig, Checkpoint | None, list[str]]:
    """Return what ``resumed`` found for rank 0. The checkpoint's tensors come later, through ``Processes.spread``."""
    plan = cast(Mapping[str, Any], processes.wait_for("plan"))
    config = dataclasses.replace(TrainConfig.from_dict(plan["config"], "the plan of rank 0"), run=run)
    return config, plan["state"] and Checkpoint(plan["state"]["step"], {}, plan["state"]), []
