"""Puts a run together from a plan: faces, loader, model, optimizer, observers, trainer."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pipelines.augmenters import make_augmenter
from pipelines.cache import store_path
from pipelines.collate import Collate
from pipelines.dataset import TrainSet
from pipelines.loader import BatchSchedule, TrainLoader
from pipelines.pose_covariates import PoseCovariates
from pipelines.preview import PreviewWriter, Timelapse
from pipelines.run.code_faces import SampleLoader
from pipelines.run.known_faces import FILE
from pipelines.run.light import STATE as LIGHT
from pipelines.run.light import run_light
from pipelines.run.mean_face import mean_faces
from pipelines.run.request import Plan
from pipelines.run.run_state import (
    MEASURED,
    changed_faces,
    faces_drawn,
    inherited_measurements,
    inherited_metrics,
    make_state,
)
from pipelines.run.validation import NO_AUGMENTATION, HeldOut
from pipelines.sampler import Sampler
from pipelines.side_light import SideLight
from pipelines.sides import (
    Log,
    ProgressFactory,
    choose_cache,
    describe_sides,
    faces_digest,
    make_feed,
    make_matcher,
    make_train_set,
    no_progress,
    try_save_index,
)
from pipelines.target_points import TargetPoints
from swapfast.augment.kernels.jit import HOST_KERNELS, load_kernels
from swapfast.bars import log_if_slow
from swapfast.batch import SIDES
from swapfast.checkpoints.after_save import AfterSave
from swapfast.checkpoints.averages import FILE as AVERAGES_FILE
from swapfast.checkpoints.snapshots import Snapshots
from swapfast.checkpoints.transfer import trained_state
from swapfast.device import pick_backend, set_deterministic, set_products
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.export.targets import TARGETS
from swapfast.faces.matching import LandmarkMatcher
from swapfast.faces.table import index_path
from swapfast.logs.observer import LogObserver
from swapfast.logs.steplog import StepLog
from swapfast.logs.tensorboard import TorchTensorBoard
from swapfast.models import FaceAutoencoder
from swapfast.models.side_statistics import COVARIATES, PLAIN
from swapfast.optim.lr_finder import GRAPH
from swapfast.optim.optimizer import Optimizer
from swapfast.preview.history import PreviewHistory
from swapfast.preview.window_process import PreviewWindow
from swapfast.printing import complain
from swapfast.processes import Processes
from swapfast.stop import StopRequest
from swapfast.swap.leak import LeakMeter
from swapfast.system import available_cores
from swapfast.training.averages import WeightAverages
from swapfast.training.code_statistics import CodeStatistics
from swapfast.training.core_watch import CoreWatch
from swapfast.training.graphed import CudaGraphs
from swapfast.training.measured import Measured
from swapfast.training.nonfinite import NanPolicy
from swapfast.training.observers import Observer
from swapfast.training.plateau import PlateauWatch
from swapfast.training.progress import NoProgress, ProgressLine
from swapfast.training.run import Run
from swapfast.training.saver import FolderCheck
from swapfast.training.trainer import AUTOCAST, Exchange, Trainer
from swapfast.training.validation import Validation


def build_trainer(
    plan: Plan,
    stop: StopRequest,
    log: Log,
    progress: ProgressFactory = no_progress,
    loss_line: ProgressLine | None = None,
) -> Trainer:
    """Return a trainer with everything in place for ``Trainer.train``; the model folder must be locked.

    log: prints a line. progress: shows how far long work is. loss_line: where training shows its progress, None for
    plain lines. All of several processes must call it.
    """
    config, folder, processes = plan.config, plan.checkpoints, plan.processes
    if processes.is_first and folder.steps() != plan.steps:
        raise SwapfastError(f"--model-dir {folder.folder}: another run has just saved there; start again")
    device = plan.device
    backend = pick_backend(config.run.backend, device)
    if processes.is_first:
        Snapshots(folder).set_aside_newer_than(plan.step)
    faces = read_faces(plan, backend, log, progress)
    sides = faces.sides
    model = model_on_device(plan)
    optimizer = make_optimizer(plan, model)
    sampler = make_sampler(plan, sides)
    threads = max(1, available_cores() // processes.local_world)
    take_own_cores()
    compile_kernels(backend, faces.matcher is not None, log)
    loader = make_loader(plan, faces, backend, sampler, threads, log)
    compare_poses(model, loader.covariates, log)
    if config.run.compile:
        log("compiling: the first step takes a minute or so")
        model.compile(dynamic=False)  # in place: its weights keep their names
    if loss_line is None:
        loss_line = ProgressLine(iterations=config.run.iterations) if processes.is_first else NoProgress()
    averages = make_averages(plan, log)
    evaluated = model if averages is None else averages.model_for(config.run.shown_weights)
    statistics = make_code_statistics(plan, sides, averages, loader, log)
    means = mean_faces(sides, config, plan.checkpoint, faces.state["data"]) if processes.is_first else None
    meter = make_leak_meter(plan, means, faces.light)
    validation = None
    if config.validation:
        batches = held_out_faces(plan, sides, backend, threads, log) if processes.is_first else None
        validation = make_validation(plan, batches, loss_line, faces.measured, meter, faces.light)
    observers = make_observers(plan, evaluated, statistics, sides, validation, loss_line, log)
    loss_line.start(start_table(plan, sides, backend))
    if config.optimizer.schedule == "plateau":
        # Behind the validation, which comes first, and in front of what shows a rate.
        observers.insert(bool(config.validation), make_plateau_watch(plan, optimizer, loss_line))
    tensors = {} if means is None else {"faces": means, FILE: dict(plan.known.tensors)}
    run = make_run(plan, faces, tensors, sampler, observers, loss_line, stop)
    return Trainer(
        model,
        plan.loss,
        optimizer,
        loader,
        run,
        plan.step,
        plan.precision,
        processes,
        config.batch_size,
        CudaGraphs(device) if plan.uses_cuda_graph else None,
        cast(Exchange, config.run.gradient_exchange),
        averages,
        evaluated,
        statistics,
    )


def model_on_device(plan: Plan) -> FaceAutoencoder:
    """Return the model where it trains, with torch set to the products and the order of sums that are asked for."""
    set_products(plan.precision, plan.device)
    if plan.config.run.deterministic:
        set_deterministic(plan.device)
    return plan.model.to(plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it


def make_run(
    plan: Plan,
    faces: RunFaces,
    tensors: dict[str, dict[str, Tensor]],
    sampler: Sampler,
    observers: list[Observer],
    loss_line: ProgressLine,
    stop: StopRequest,
) -> Run:
    """Return how long to train, what is saved beside the model, and who watches. tensors: more of it, by file."""
    config = plan.config
    metrics = inherited_metrics(plan.checkpoint, config, faces.state["data"], faces.is_relit)
    return Run(
        checkpoints=plan.checkpoints,
        iterations=config.run.iterations,
        save_interval=config.run.save_interval,
        snapshot_interval=config.run.snapshot_interval,
        state=faces.state | {"metrics": metrics},
        tensors=tensors,
        saved_step=None if plan.checkpoint is None else plan.step,
        drawn_before=sampler.drawn_before,
        nan=cast(NanPolicy, config.nan),
        observers=observers,
        progress=loss_line,
        stop=stop,
    )


@dataclass(frozen=True)
class RunFaces:
    """The faces of a run, and what its checkpoints say of them.

    cache_mode: where they are kept, see ``choose_cache``. matcher: finds faces to warp to, None where none are warped
    so. light: of the sides, None where it is not exchanged. is_relit: whether it is other than in the checkpoint that
    the run goes on from. measured: what earlier runs found on faces held out.
    """

    cache_mode: str
    sides: list[TrainSet]
    matcher: LandmarkMatcher | None
    state: dict[str, Any]
    light: SideLight | None
    is_relit: bool
    measured: Measured


def read_faces(plan: Plan, backend: str, log: Log, progress: ProgressFactory) -> RunFaces:
    """Return the faces of both sides, decoded where they are kept so; says what they are."""
    config, processes = plan.config, plan.processes
    cache_mode, sides = make_sides(plan, backend, log, progress)
    matcher = make_matcher(sides, config, config.run.cache_folder, progress)
    processes.publish_files_ready()
    processes.check_same("the faces", faces_digest(sides))
    state = make_state(plan, sides)
    changed = changed_faces(plan.checkpoint, state["data"], plan.known.remarks)
    for line in (*plan.lines, *describe_sides(sides), *changed):
        log(line)
    light = run_light(sides, config, plan.checkpoint, state["data"], processes)
    if light is not None:
        log(light.line())
    state[LIGHT] = None if light is None else list(light.ratio)
    is_relit = plan.checkpoint is not None and plan.checkpoint.state.get(LIGHT) != state[LIGHT]
    measured = Measured() if is_relit else inherited_measurements(plan.checkpoint, state["data"])
    if config.validation:
        state[MEASURED] = measured.rows
    return RunFaces(cache_mode, sides, matcher, state, light, is_relit, measured)


def start_table(plan: Plan, sides: list[TrainSet], backend: str) -> dict[str, str]:
    """Return what a person is told of a run that begins, by the name of the row."""
    config, run, model = plan.config, plan.config.run, plan.model
    frozen = f", {' and '.join(config.model.freeze)} frozen" if config.model.freeze else ""
    sizes = " and ".join(map(str, model.output_sizes))
    millions = sum(weights.numel() for weights in model.parameters()) / 1e6
    graphs = ", a CUDA graph a step" if plan.uses_cuda_graph else ""
    world = f", {plan.processes.world} processes" if plan.processes.world > 1 else ""
    threads = torch.get_num_threads()
    cores = f", {threads} thread{'s' * (threads > 1)}" if plan.device.type == "cpu" else ""
    table = {
        "model": f"{model.name}{frozen}, {model.input_size} to {sizes} px, {millions:.1f} M weights",
        "folder": f"{run.model_folder}, saved every {run.save_interval:,} iterations",
        "training": f"on {plan.device} in {plan.precision}{graphs}{cores}{world}, batch {config.batch_size} per side",
        "augmentation": backend,
        "code": code_line(model.name, model.input_size, config.model.code, plan.checkpoint is None),
        "iterations": f"{plan.step:,} to {run.iterations:,}",
    }
    if config.validation:
        interval = config.validation_interval or run.save_interval
        held_out = " and ".join(f"{len(side.validation)} faces of {side.side}" for side in sides)
        table["validation"] = f"every {interval:,}, on {held_out}"
    return table


def code_line(name: str, size: int, code: str, is_new: bool) -> str:
    """Return what a person is told of a model's code; of a new one also what can never be made of it.

    name: of the model. size: of its faces, px.
    """
    if code == PLAIN:
        return PLAIN
    ways = [
        f"; for export --to {other} begin a model with --recipe {target.recipe}"
        for other, target in TARGETS.items()
        if is_new and target.recipe and target.can_hold(name, size)
    ]
    return f"one for both people (--code {code}){''.join(ways)}"


def make_optimizer(plan: Plan, model: FaceAutoencoder) -> Optimizer:
    """Return the optimizer of the model on its device, as the checkpoint left it, with the end of the run if known."""
    config, processes = plan.config, plan.processes
    optimizer = Optimizer(
        model, config.optimizer, plan.precision == "fp16", config.optimizer.warmup, processes, config.seed
    )
    tensors = None if plan.checkpoint is None else processes.broadcast_tensors(plan.checkpoint.tensors)
    if tensors is not None:
        optimizer.load_state_dict(trained_state(model, tensors["optimizer"]))
    if plan.has_end:
        optimizer.plan_end(config.run.iterations - plan.step)
    return optimizer


def make_sampler(plan: Plan, sides: list[TrainSet]) -> Sampler:
    """Return what says which faces this process is given at which step, behind those that the model has seen."""
    return Sampler(
        plan.config.seed,
        tuple(map(len, sides)),
        plan.config.batch_size,
        plan.processes.rank,
        plan.processes.world,
        start_step=plan.step,
        start_ordinal=faces_drawn(plan.checkpoint),
    )


def take_own_cores() -> None:
    """Let torch use the cores that there are for this program: it counts the machine's, not a container's."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > available_cores():
        torch.set_num_threads(available_cores())


def compile_kernels(backend: str, warps_to_landmarks: bool, log: Log) -> None:
    """Compile what augments faces on the host now, and not within the first batch."""
    with log_if_slow(log, "compiling the augmentation for this processor: that takes 10 seconds or so"):
        for name in (*(HOST_KERNELS if backend == "opencv" else ()), *(("nodes",) if warps_to_landmarks else ())):
            load_kernels(name)


def make_plateau_watch(plan: Plan, optimizer: Optimizer, loss_line: ProgressLine) -> PlateauWatch:
    """Return what lowers the rate where the validation, or without one the loss, gets no better."""
    tag = "validation_total" if plan.config.validation else "batch_total"
    return PlateauWatch(optimizer, tag, plan.processes, loss_line.log)


def make_averages(plan: Plan, log: Log) -> WeightAverages | None:
    """Return the averages of the weights, as the checkpoint has them; None for none, and but for rank 0."""
    settings = plan.config.optimizer
    if not settings.half_lives or not plan.processes.is_first:
        return None
    averages = WeightAverages(plan.model, settings.half_lives, settings.gradient_accumulation)
    if plan.checkpoint is not None:
        path = plan.checkpoints.path(plan.step)
        new = averages.load_state_dict(plan.checkpoint.tensors.get(AVERAGES_FILE, {}), path)
        if new:
            log(f"{' and '.join(new)}: averages that begin with the weights of iteration {plan.step}")
    return averages


def make_sides(plan: Plan, backend: str, log: Log, progress: ProgressFactory) -> tuple[str, list[TrainSet]]:
    """Return where decoded faces are kept (see ``choose_cache``), and the training faces of each side, decoded."""
    config, spec, cache = plan.config, plan.spec, plan.config.run.cache_folder
    counts = [len(source) for source in plan.sources]
    cached = sum(len(source) for source in plan.sources if store_path(cache, spec, source).is_file())
    cache_mode, line = choose_cache(
        config.run.cache,
        sum(counts) * spec.bytes_per_face,
        cache,
        plan.device,
        backend,
        cached * spec.bytes_per_face,
        plan.processes.local_world,
    )
    log(line)
    sides = [
        make_train_set(
            side.upper(), source, spec, cache_mode, cache, config.run.skip_bad, config.validation, progress, log
        )
        for side, source in zip(SIDES, plan.sources)
    ]
    for source in plan.sources:
        index = index_path(cache, source.folder.path)
        if source.prepared is None and not index.exists():  # else it was brought up to date when the folder was read
            try_save_index(index, source.folder.records)
    return cache_mode, sides


def make_observers(
    plan: Plan,
    evaluated: FaceAutoencoder,
    statistics: CodeStatistics,
    sides: list[TrainSet],
    validation: Validation | None,
    loss_line: ProgressLine,
    log: Log,
) -> list[Observer]:
    """Return what watches the run, in the order in which it is called; only rank 0 has observers that write.

    evaluated: the model that they show, once ``statistics`` are measured. validation: comes first. loss_line: where
    training shows its progress. log: prints a line before that.
    """
    config, folder = plan.config, plan.checkpoints.folder
    observers: list[Observer] = [] if validation is None else [validation]
    if plan.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        observers.append(CoreWatch(loss_line.log))
    if not plan.processes.is_first:
        return observers
    tensorboard = TorchTensorBoard(folder / "logs", warn=log, step=plan.step) if config.run.logs else None
    observers.append(FolderCheck(plan.checkpoints))
    preview = make_preview(plan, evaluated, statistics, sides, tensorboard, loss_line.log)
    observers.append(preview)
    if config.run.preview:
        observers.append(PreviewWindow(folder, preview.draw, preview.toggle_mask, loss_line.log))
    if config.run.timelapse_folder is not None:
        film = make_timelapse(plan, evaluated, statistics, sides, config.run.timelapse_folder, loss_line.log)
        observers.append(film)
    if tensorboard is not None:
        observers += [LogObserver(tensorboard), LogObserver(make_step_log(plan, log))]
    if config.run.after_save:
        observers.append(AfterSave(config.run.after_save, folder, loss_line.log))
    return observers


def make_leak_meter(plan: Plan, means: dict[str, torch.Tensor] | None, light: SideLight | None) -> LeakMeter | None:
    """Return what tells how much of A's skin a swap keeps, None where it cannot be told.

    means: the mean face of each side, None but for rank 0. light: of the sides, which the meter would take for skin.
    """
    if means is None or light is not None:
        return None
    return LeakMeter.from_means(means, plan.model.color_order)


def make_validation(
    plan: Plan,
    batches: HeldOut | None,
    loss_line: ProgressLine,
    measured: Measured,
    leak: LeakMeter | None,
    light: SideLight | None,
) -> Validation:
    """Return what measures the faces that are held out.

    batches: those faces, None but for rank 0. measured: what earlier runs found. light: of the sides, where swaps have
    A's.
    """
    interval = plan.config.validation_interval or plan.config.run.save_interval
    points = None if batches is None else batches.points
    gains = None if light is None else torch.from_numpy(light.b_as_a(plan.model.color_order))
    return Validation(interval, batches, loss_line, points, measured, leak, gains)


def make_loader(plan: Plan, faces: RunFaces, backend: str, sampler: Sampler, threads: int, log: Log) -> TrainLoader:
    """Return the batches of a run from its first step on. threads: of this process."""
    sides, cache_mode = faces.sides, faces.cache_mode
    model, device, config = plan.model, plan.device, plan.config.augmentation
    size, sizes = plan.spec.size, (model.input_size, model.output_sizes)
    schedule = BatchSchedule.for_training(
        cache_mode, backend, device, threads, len(sides) * sampler.batch_size * size**2
    )
    warn = _warn_of(plan.processes, log)
    augment = make_augmenter(backend, size, *sizes, device, config, schedule.threads, schedule.workers, warn)
    feed = make_feed(cache_mode, sides, sampler, device, backend, warn, threads)
    # A graph for each memory that batches are written in: one is trained on while the others are made.
    memories = schedule.prefetch + 1 if plan.uses_cuda_graph and schedule.prefetch else 0
    collate = Collate(augment, backend != "opencv", plan.spec.masks, model.color_order, device, memories)
    covariates = PoseCovariates.from_sides(sides, plan.config)
    points = TargetPoints.from_sides(sides, plan.config, covariates)
    return TrainLoader(
        feed, sampler, collate, config, size, plan.step, faces.matcher, schedule, points, faces.light, covariates
    )


def compare_poses(model: FaceAutoencoder, covariates: PoseCovariates | None, log: Log) -> None:
    """Let the model's codes be compared at the same poses, or, without covariates, at each side's own."""
    if covariates is None:
        sides = len(SIDES)
        model.compare_poses(torch.zeros(sides, COVARIATES), torch.zeros(sides, COVARIATES, COVARIATES))
        return
    model.compare_poses(torch.from_numpy(covariates.side_means), torch.from_numpy(covariates.side_covariances))
    line = covariates.line()
    if line is not None:
        log(line)


def make_code_statistics(
    plan: Plan, sides: list[TrainSet], averages: WeightAverages | None, loader: TrainLoader, log: Log
) -> CodeStatistics:
    """Return what measures the statistics of both sides' codes by the newest weights; rank 0 alone needs to know.

    Where all faces of the training are in other colours a model that normalises never learned what codes faces in their
    own ones have: where those lie is forgotten. Plain codes say it by their means, where training changes colours.
    """
    models = [plan.model]
    if averages is not None:
        models += [averages.averaged_model(half_life) for half_life in averages.half_lives]
    is_plain = plan.config.model.code == PLAIN
    augmentation = plan.config.augmentation
    knows_colors = augmentation.color if is_plain else augmentation.color_chance < 100
    if is_plain or not knows_colors:
        for model in models:
            model.forget_uncolored()
    if not plan.processes.is_first or (is_plain and not plan.config.model.exchange_codes):
        return CodeStatistics([], [])
    with log_if_slow(log, "reading some faces by which the codes of both people are measured"):
        samples = SampleLoader(sides, plan.model, loader)
        own_colors = samples.own_colors() if knows_colors else None
        return CodeStatistics(models, samples.augmented(), own_colors, AUTOCAST[plan.precision])


def make_preview(
    plan: Plan,
    evaluated: FaceAutoencoder,
    statistics: CodeStatistics,
    sides: list[TrainSet],
    tensorboard: TorchTensorBoard | None,
    warn: Log,
) -> PreviewWriter:
    """Return the preview of some of the faces that are trained on. tensorboard: keeps some of its pictures."""
    folder, history = plan.checkpoints.folder, plan.config.preview.history

    def keep(step: int, sheet: np.ndarray) -> None:
        if tensorboard is not None:
            tensorboard.on_preview(step, sheet, -(-step // plan.config.run.save_interval))

    return PreviewWriter(
        evaluated,
        [side.source for side in sides],
        plan.config,
        plan.samples,
        skip_bad=sides[0].store is None,
        prepare=statistics.measure,
        folder=folder,
        log=keep,
        history=PreviewHistory(folder, history, warn) if history else None,
    )


def make_timelapse(
    plan: Plan, evaluated: FaceAutoencoder, statistics: CodeStatistics, sides: list[TrainSet], folder: Path, warn: Log
) -> Timelapse:
    """Return what adds a picture to ``folder`` at every save."""
    sources = plan.timelapse_sources or [side.source for side in sides]
    skips = plan.config.run.skip_bad or (not plan.timelapse_sources and sides[0].store is None)
    # Samples of its own: whoever hides the mask in the preview does not mean the film.
    samples = copy.copy(plan.samples)
    prepare = statistics.measure
    return Timelapse(evaluated, sources, plan.config, samples, skips, prepare, folder=folder, warn=warn)


def make_step_log(plan: Plan, log: Log) -> StepLog:
    """Open the JSONL in the model folder. Raises SwapfastError where it cannot be written."""
    about = {
        "iterations": plan.config.run.iterations,
        "batch_size": plan.config.batch_size,
        "precision": plan.precision,
        "processes": plan.processes.world,
    }
    return StepLog(plan.checkpoints.folder / "logs", plan.step, about, warn=log)


def _warn_of(processes: Processes, log: Log) -> Log:
    """Return what prints a line on faces that only one process meets: rank 0 as always, others with their rank."""
    if processes.is_first:
        return log
    return lambda line: complain(f"rank {processes.rank}: {line}")


def held_out_faces(plan: Plan, sides: list[TrainSet], backend: str, threads: int, warn: Log) -> HeldOut:
    """Return the faces to validate with, as ``backend`` makes them."""
    model, size, device = plan.model, plan.spec.size, plan.device
    backend = "kornia" if backend == "triton" else backend  # faces that nothing happens to; and one warning is enough
    augment = make_augmenter(backend, size, model.input_size, model.output_sizes, device, NO_AUGMENTATION, threads)
    collate = Collate(augment, backend != "opencv", plan.spec.masks, model.color_order, device)
    return HeldOut(sides, collate, size, plan.config.batch_size, warn)


def find_rate(plan: Plan, trainer: Trainer, log: Log, progress: Callable[[int, int], None]) -> None:
    """Look for a learning rate, log it, and train at it unless only the graph is wanted.

    It goes into the configuration that the checkpoints keep, so a resumed model has it. Raises SwapfastError (code 1)
    where none is found that could be used.
    """
    options, folder = plan.config.lr_finder, plan.checkpoints.folder
    has_rate = trainer.optimizer.find_learning_rate(
        trainer,
        options.iterations,
        options.start,
        options.end,
        options.strength,
        options.mode,
        folder=folder,
        progress=progress,
    )
    if trainer.run.stop:
        return
    finder = trainer.optimizer.finder
    assert finder is not None, "it has looked"
    graph = "" if options.mode == "set" or not finder.curve.rates else f"; look at {folder / GRAPH}"
    if not has_rate:
        reason = "the loss did not fall" if finder.curve.rates else "the first loss was not finite"
        message = (
            f"no learning rate found: {reason} (after {len(finder.curve.rates)} of {options.iterations} steps){graph}"
        )
        if plan.only_graph:
            log(message)
            return
        raise SwapfastError(
            f"{message}. Give more --lr-finder-iterations, or a --learning-rate without --lr-finder", EXIT_FAILED
        )
    rate = finder.best_lr
    log(f"learning rate {rate:.3g} found{graph}")
    if not plan.only_graph:
        trainer.run.state["config"]["optimizer"]["learning_rate"] = rate
        trainer.run.state["lr_finder"] = rate
