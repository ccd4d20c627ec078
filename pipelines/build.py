"""Puts a run together from a request: faces, loader, model, optimizer, trainer."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.cache import store_path
from pipelines.collate import Collate
from pipelines.dataset import TrainSet, check_prepared, split
from pipelines.fill import Source
from pipelines.loader import Making, TrainLoader
from pipelines.mean_face import mean_faces
from pipelines.preview import PreviewWriter, Timelapse, shrink
from pipelines.resume import resumed
from pipelines.run_state import changed_faces, kept_metrics, make_state
from pipelines.sampler import Sampler
from pipelines.sides import (
    Say,
    Watch,
    choose_cache,
    faces_digest,
    keep_index,
    make_feed,
    make_matcher,
    make_set,
    no_watch,
    remarks,
    scan_side,
)
from pipelines.store import StoreSpec
from pipelines.validation import STILL, HeldOut
from swapfast.augment.compiled import HOST_KERNELS, kernels
from swapfast.bars import said_if_slow
from swapfast.batch import Batch
from swapfast.config import AugmentationConfig, TrainConfig
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.masks import mask_names
from swapfast.faces.matching import LandmarkMatcher
from swapfast.faces.table import index_path
from swapfast.files import check_folder
from swapfast.losses import LossCollator
from swapfast.models import FaceAutoencoder, build_model
from swapfast.models.summary import summary
from swapfast.preview.samples import Samples
from swapfast.system import available_cores
from swapfast.training.after_save import AfterSave
from swapfast.training.checkpoint import Checkpoint, CheckpointFolder, model_folder
from swapfast.training.distributed import ALONE, Processes
from swapfast.training.lr_finder import GRAPH
from swapfast.training.optimizer import Optimizer
from swapfast.training.progress import NoProgress, ProgressLine
from swapfast.training.run import Run
from swapfast.training.steplog import StepLog
from swapfast.training.stop import StopRequest
from swapfast.training.tensorboard import TorchTensorBoard
from swapfast.training.trainer import Trainer
from swapfast.training.transfer import Transfer, freeze, load_weights_from, trained_state


@dataclass(frozen=True)
class TrainRequest:
    """What the command line asks for.

    changes: settings by dotted name, over those of a resumed model or of ``config``. resume: 'auto' goes on where a
    model is and starts one where none is, 'never' refuses where one is, 'must' where none is. override: accept a change
    of fixed settings where that is possible. load_weights: a model whose weights a new one begins with. after_save: a
    shell command. compile: model and, on the device backend, augmentation. timelapse: the folder of a picture for every
    save, if there is to be one. timelapse_inputs: folders of the faces on them; none for those of the preview.
    """

    input_a: Path
    input_b: Path
    model_dir: Path
    config: TrainConfig
    changes: dict[str, object]
    iterations: int = 1_000_000
    save_interval: int = 250
    resume: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    skip_bad: bool = False
    logs: bool = True
    cache_mode: str = "auto"
    cache_dir: Path | None = None
    lr_finder: bool = False
    snapshot_interval: int = 0
    override: bool = False
    load_weights: Path | None = None
    after_save: str | None = None
    compile: bool = False
    timelapse: Path | None = None
    timelapse_inputs: tuple[Path, ...] = ()

    @property
    def cache(self) -> Path:
        """The cache folder, by default beside the model."""
        return self.cache_dir or self.model_dir / "cache"


def pick_device(name: str) -> torch.device:
    """'auto', 'cpu' or 'cuda' -> a device that is there; SwapfastError where it is not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SwapfastError("--device cuda: torch sees no CUDA device here; `swapfast doctor` says more")
    return torch.device(name)


def pick_backend(name: str, device: torch.device) -> str:
    """'auto' -> 'opencv' on a CPU, where it is several times faster than torch, 'device' on a GPU."""
    return ("opencv" if device.type == "cpu" else "device") if name == "auto" else name


def pick_precision(name: str, device: torch.device) -> str:
    """'auto' -> 'bf16' on a GPU that computes in it (not one that only pretends to), 'fp32' elsewhere."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def needed_masks(config: TrainConfig) -> tuple[str, ...]:
    """Which masks the loss will ask for; SwapfastError where one must be learned and there is none."""
    loss = config.loss
    there = config.mask.mask_type != "none"
    if loss.learn_mask and not there:
        raise SwapfastError("--learn-mask: there is nothing to learn with --mask-type none")
    weighted = there and loss.penalized_mask_loss
    return tuple(
        mask_names(
            config.mask,
            face=there and (loss.penalized_mask_loss or loss.learn_mask),
            eye=weighted and loss.eye_multiplier > 1,
            mouth=weighted and loss.mouth_multiplier > 1,
        )
    )


def check_multipliers(config: TrainConfig, given: Mapping[str, object]) -> None:
    """Raises SwapfastError where a multiplier is asked for, among ``given``, whose mask there will not be."""
    masks = needed_masks(config)
    for part in ("eye", "mouth"):
        name = f"{part}_multiplier"
        if f"loss.{name}" in given and getattr(config.loss, name) > 1 and part not in masks:
            raise SwapfastError(
                f"--{part}-multiplier {getattr(config.loss, name):g}: has no effect with --no-penalized-mask or "
                "--mask-type none; leave one of them out"
            )


def loss_collator(config: TrainConfig, model: FaceAutoencoder) -> LossCollator:
    """The loss that ``config`` describes."""
    loss = config.loss
    return LossCollator(
        loss.functions,
        [weight / 100 for weight in loss.weights],
        model.color_order,
        loss.penalized_mask_loss and config.mask.mask_type != "none",
        loss.eye_multiplier,
        loss.mouth_multiplier,
        model.output_sizes[0],
        loss.mask_loss_function if loss.learn_mask else None,
        Path(loss.lpips_weights) if loss.lpips_weights else None,
    )


def make_augmenter(
    backend: str,
    processing_size: int,
    input_size: int,
    output_sizes: Sequence[int],
    device: torch.device,
    config: AugmentationConfig | None = None,
    threads: int | None = None,
    compile: bool = False,
    callers: int = 1,
):
    """The augmentation of ``backend``, 'opencv' or 'device', for batches that end on ``device``.

    On the way to a GPU OpenCV's results stay bytes, a quarter of the copy; for the CPU its threads make the floats.
    threads: of OpenCV's, by default one per core, shared by ``callers`` at the same time. compile: that on the device,
    by torch.
    """
    if backend == "opencv":
        from swapfast.augment.opencv import OpenCVAugmenter

        as_float = device.type == "cpu"
        return OpenCVAugmenter(processing_size, input_size, output_sizes, threads, as_float, callers)
    from swapfast.augment.augmentation import DeviceAugmenter

    return DeviceAugmenter(processing_size, input_size, output_sizes, config, compile)


@dataclass(frozen=True)
class Plan:
    """A request that has been found possible. Nothing has been written so far.

    steps: the checkpoints there were. lines: what to tell a person. transfer: what came from another model.
    timelapse_sources: what is in the request's ``timelapse_inputs``.
    """

    request: TrainRequest
    checkpoints: CheckpointFolder
    steps: list[int]
    config: TrainConfig
    checkpoint: Checkpoint | None
    sources: list[Source]
    model: FaceAutoencoder
    loss: LossCollator
    spec: StoreSpec
    samples: Samples
    lines: list[str]
    processes: Processes = ALONE
    transfer: Transfer | None = None
    timelapse_sources: Sequence[Source] = ()

    @property
    def step(self) -> int:
        """Iterations the model has had."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def device(self) -> torch.device:
        """What to train on."""
        return self.processes.device or pick_device(self.request.device)

    @property
    def precision(self) -> str:
        """What the model computes in: 'fp32', 'bf16' or 'fp16'."""
        return pick_precision(self.config.precision, self.device)

    @property
    def only_graph(self) -> bool:
        """Whether to look for a learning rate and leave."""
        return self.request.lr_finder and self.config.lr_finder.mode == "graph_and_exit"

    @property
    def finds_rate(self) -> bool:
        """Whether to look for a learning rate: once per model, but for the mode that only looks."""
        found = self.checkpoint is not None and "lr_finder" in self.checkpoint.state
        return self.request.lr_finder and (self.only_graph or not found)


def plan_run(request: TrainRequest, watch: Watch = no_watch, processes: Processes = ALONE) -> Plan:
    """Check everything that can be checked before anything is written; raises SwapfastError where it fails.

    Only what was read of a folder is kept, where there is a cache folder already. Of several processes rank 0 looks for
    a model to go on with and tells the others, which wait until their machine's first one has read the folders and
    filled the cache.
    """
    processes.wait_for_files()
    inputs = (request.input_a, request.input_b)
    checkpoints = model_folder(request.model_dir)
    written = {"--model-dir": request.model_dir, "--cache-dir": request.cache, "--timelapse-output": request.timelapse}
    for flag, folder in written.items():
        for path in (*inputs, *request.timelapse_inputs):
            if folder is not None and path.resolve() in (folder.resolve(), *folder.resolve().parents):
                raise SwapfastError(f"{flag} {folder}: lies in the faces' folder {path}; choose another")
    if request.cache.exists() and not request.cache.is_dir():
        raise SwapfastError(f"--cache-dir {request.cache}: is a file; give a folder")
    if request.timelapse is not None and processes.is_first:
        check_folder(request.timelapse, "--timelapse-output")
    pick_device(request.device)
    steps = checkpoints.steps()
    config, checkpoint, lines = resumed(request, checkpoints) if processes.is_first else followed(processes)
    if processes.is_first:
        state = None if checkpoint is None else {"step": checkpoint.step, **checkpoint.state}
        processes.tell("plan", {"config": config.to_dict(), "state": state})
    check_multipliers(config, request.changes)
    look = config.preview
    masks = needed_masks(config)
    samples = Samples(config.crop.coverage / 100, "face" in masks, look.mask_opacity, look.mask_color)
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    loss = loss_collator(config, model)
    if checkpoint is not None and processes.is_first:
        load_weights(model, checkpoint, checkpoints)
        lines.append(f"going on from iteration {checkpoint.step} in {checkpoints.folder}")
    transfer = None
    if checkpoint is None and request.load_weights is not None and processes.is_first:
        transfer = load_weights_from(model, request.load_weights)
        lines += transfer.lines()
    freeze(model, config.model.freeze)
    spec = StoreSpec(max(model.input_size, *model.output_sizes), config.crop, config.mask, masks)
    sources = [scan_side(path, config.mask.mask_type, request.skip_bad, watch, request.cache) for path in inputs]
    for source in sources:
        lines += check_prepared(source, spec)
        split(source, config.validation)
    known, shown = dict(zip(inputs, sources)), []
    for path in request.timelapse_inputs if processes.is_first else ():
        if path not in known:
            known[path] = scan_side(path, config.mask.mask_type, request.skip_bad, watch, request.cache)
            lines += check_prepared(known[path], spec)
            if bad := known[path].folder.bad:
                lines.append(f"timelapse: {len(bad)} bad files left out of {path}")
        shown.append(known[path])
    return Plan(
        request,
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
        shown,
    )


def describe_model(request: TrainRequest) -> str:
    """The network that ``request`` would train, as a table; no folder of faces is looked at."""
    config, _, _ = resumed(request, model_folder(request.model_dir))
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    freeze(model, config.model.freeze)
    return summary(model)


def followed(processes: Processes) -> tuple[TrainConfig, Checkpoint | None, list[str]]:
    """What ``resumed`` found for rank 0. The checkpoint's tensors come later, through ``Processes.spread``."""
    plan = processes.told("plan")
    config = TrainConfig.from_dict(plan["config"], "the plan of rank 0")
    return config, plan["state"] and Checkpoint(plan["state"]["step"], {}, plan["state"]), []


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


def build_trainer(plan: Plan, stop: StopRequest, say: Say, watch: Watch = no_watch) -> Trainer:
    """Everything in place for ``Trainer.train``; the model folder must be locked. say: prints a line.

    Of several processes all must call it; rank 0 alone is given what writes.
    """
    request, config, folder, processes = plan.request, plan.config, plan.checkpoints, plan.processes
    if processes.is_first and folder.steps() != plan.steps:
        raise SwapfastError(f"--model-dir {folder.folder}: another run has just saved there; start again")
    device = plan.device
    backend = pick_backend(request.backend, device)
    if processes.is_first:
        folder.set_aside_newer_than(plan.step)
    faces = plan.spec.bytes_per_face
    needed = faces * sum(map(len, plan.sources))
    there = faces * sum(len(one) for one in plan.sources if store_path(request.cache, plan.spec, one).is_file())
    copies = processes.local_world
    where, why = choose_cache(request.cache_mode, needed, request.cache, device, backend, there, copies)
    say(why)
    sides = [
        make_set(label, source, plan.spec, where, request.cache, request.skip_bad, config.validation, watch, say)
        for label, source in zip("AB", plan.sources)
    ]
    for source in plan.sources:
        kept = index_path(request.cache, source.folder.path)
        if source.prepared is None and not kept.exists():  # else it was brought up to date when the folder was read
            keep_index(kept, source.folder.records)
    matcher = make_matcher(sides, config, request.cache, watch)
    processes.files_ready()
    processes.check_same("the faces", faces_digest(sides))
    state = make_state(plan, sides)
    for line in (*plan.lines, *remarks(sides), *changed_faces(plan.checkpoint, state["data"])):
        say(line)
    model = plan.model.to(device, memory_format=torch.channels_last)
    optimizer = Optimizer(model, config.optimizer, plan.precision == "fp16", config.optimizer.warmup, processes)
    if plan.checkpoint is not None:
        optimizer.load_state_dict(trained_state(model, processes.spread(plan.checkpoint.tensors)["optimizer"]))
    frozen = f", {' and '.join(config.model.freeze)} frozen" if config.model.freeze else ""
    say(
        f"model {model.name}{frozen}, {backend} augmentation, training on {device} in {plan.precision}, "
        f"batch {config.batch_size} per side"
    )
    sampler = Sampler(config.seed, tuple(map(len, sides)), config.batch_size, processes.rank, processes.world)
    threads = max(1, available_cores() // processes.local_world)
    with said_if_slow(say, "compiling the augmentation for this processor: that takes 10 seconds or so"):
        for name in (*(HOST_KERNELS if backend == "opencv" else ()), *(("nodes",) if matcher is not None else ())):
            kernels(name)
    loader = make_loader(plan, where, backend, sides, sampler, matcher, threads, say)
    if request.compile:
        say("compiling: the first step takes a minute or so")
        model.compile(dynamic=False)  # in place: its weights keep their names
        if backend == "device":
            loader.batch(plan.step)  # compiled here, where a signal interrupts it, and not in the loader's thread
    writes = processes.is_first
    logs = make_logs(plan, say) if writes and request.logs else Logs()
    progress = ProgressLine() if writes else NoProgress()
    after = (request.after_save, folder.folder, progress.say) if writes and request.after_save else None
    run = Run(
        progress=progress,
        checkpoints=folder,
        iterations=request.iterations,
        save_interval=request.save_interval,
        snapshot_interval=request.snapshot_interval,
        state=state,
        metrics=kept_metrics(plan.checkpoint, config),
        after_save=AfterSave(*after) if after else None,
        tensors={"faces": mean_faces(sides, config, plan.checkpoint, state["data"])} if writes else {},
        preview=make_preview(plan, sides, logs) if writes else None,
        timelapse=make_timelapse(plan, sides, progress.say) if writes else None,
        tensorboard=logs.tensorboard,
        step_log=logs.steps,
        validation=held_out_faces(plan, sides, device, backend, threads, say) if writes and config.validation else None,
        validation_interval=(config.validation_interval or request.save_interval) if config.validation else 0,
        stop=stop,
        saved_step=None if plan.checkpoint is None else plan.step,
        nan=config.nan,
        batches_from=functools.partial(batches_from, loader),
    )
    return Trainer(model, plan.loss, optimizer, loader, run, plan.step, plan.precision, processes, config.batch_size)


def make_loader(
    plan: Plan,
    where: str,
    backend: str,
    sides: list[TrainSet],
    sampler: Sampler,
    matcher: LandmarkMatcher | None,
    threads: int,
    say: Say,
) -> TrainLoader:
    """The batches of a run from its first step on. where: its faces are kept. threads: of this process."""
    model, device, config = plan.model, plan.device, plan.config.augmentation
    size, sizes = plan.spec.size, (model.input_size, model.output_sizes)
    making = Making.fitting(where, backend, device, threads, len(sides) * sampler.batch_size * size**2)
    compiles, callers = plan.request.compile, making.at_once
    augment = make_augmenter(backend, size, *sizes, device, config, making.threads, compiles, callers)
    feed = make_feed(where, sides, sampler, device, backend, _warn_of(plan.processes, say), threads)
    collate = Collate(augment, backend == "device", plan.spec.masks, model.color_order, device)
    return TrainLoader(feed, sampler, collate, config, size, plan.step, matcher, making)


def make_preview(plan: Plan, sides: list[TrainSet], logs: Logs) -> PreviewWriter:
    """The preview of some of the faces that are trained on."""
    return PreviewWriter(
        plan.model,
        [side.source for side in sides],
        plan.config,
        plan.samples,
        skip_bad=sides[0].store is None,
        folder=plan.checkpoints.folder,
        log=logs.preview,
    )


def make_timelapse(plan: Plan, sides: list[TrainSet], warn: Say) -> Timelapse | None:
    """What adds a picture at every save, where that is asked for."""
    folder = plan.request.timelapse
    if folder is None:
        return None
    sources = plan.timelapse_sources or [side.source for side in sides]
    skips = plan.request.skip_bad or (not plan.timelapse_sources and sides[0].store is None)
    # Samples of its own: whoever hides the mask in the preview does not mean the film.
    samples = copy.copy(plan.samples)
    return Timelapse(plan.model, sources, plan.config, samples, skip_bad=skips, folder=folder, warn=warn)


@dataclass(frozen=True)
class Logs:
    """What a run tells for later, None where it does not. save_interval: iterations between previews."""

    tensorboard: TorchTensorBoard | None = None
    steps: StepLog | None = None
    save_interval: int = 1

    def preview(self, step: int, sheet: np.ndarray) -> None:
        """Keep a preview, if it is one of those that are kept."""
        if self.tensorboard is not None:
            self.tensorboard.on_preview(step, sheet, -(-step // self.save_interval))


def make_logs(plan: Plan, say: Say) -> Logs:
    """Open the logs in the model folder. Raises SwapfastError where they cannot be written."""
    request, config = plan.request, plan.config
    folder = plan.checkpoints.folder / "logs"
    about = {
        "iterations": request.iterations,
        "batch_size": config.batch_size,
        "precision": plan.precision,
        "processes": plan.processes.world,
    }
    return Logs(
        TorchTensorBoard(folder, warn=say, step=plan.step),
        StepLog(folder, plan.step, about, warn=say),
        request.save_interval,
    )


def _warn_of(processes: Processes, say: Say) -> Say:
    """Where a process tells of faces that only it meets: rank 0 as always, the others beside it."""
    if processes.is_first:
        return say
    return lambda line: print(f"rank {processes.rank}: {line}", file=sys.stderr, flush=True)


def held_out_faces(
    plan: Plan, sides: list[TrainSet], device: torch.device, backend: str, threads: int, warn: Say
) -> HeldOut:
    """The faces to validate with, as ``backend`` makes them."""
    model, size = plan.model, plan.spec.size
    augment = make_augmenter(backend, size, model.input_size, model.output_sizes, device, STILL, threads)
    collate = Collate(augment, backend == "device", plan.spec.masks, model.color_order, device)
    return HeldOut(sides, collate, size, plan.config.batch_size, warn)


def batches_from(loader: TrainLoader, step: int) -> Iterator[Batch]:
    """The batches of ``loader`` from ``step`` on; those before must be used up."""
    loader.start = step
    return iter(loader)


def find_rate(plan: Plan, trainer: Trainer, say: Say, progress: Callable[[int, int], None]) -> None:
    """Look for a learning rate, say it, and train at it unless only the graph is wanted.

    It goes into the configuration that the checkpoints keep, so a resumed model has it. Raises SwapfastError (code 1)
    where none is found that could be used.
    """
    options, folder = plan.config.lr_finder, plan.checkpoints.folder
    found = trainer.optimizer.find_learning_rate(
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
    graph = "" if options.mode == "set" or not finder.curve.rates else f"; look at {folder / GRAPH}"
    if not found:
        why = "the loss did not fall" if finder.curve.rates else "the first loss was not finite"
        message = (
            f"no learning rate found: {why} (after {len(finder.curve.rates)} of {options.iterations} steps){graph}"
        )
        if plan.only_graph:
            say(message)
            return
        raise SwapfastError(
            f"{message}. Give more --lr-finder-iterations, or a --learning-rate without --lr-finder", EXIT_FAILED
        )
    rate = finder.best_lr
    say(f"learning rate {rate:.3g} found{graph}")
    if not plan.only_graph:
        trainer.run.state["config"]["optimizer"]["learning_rate"] = rate
        trainer.run.state["lr_finder"] = rate


def load_model(path: Path, device: torch.device) -> tuple[FaceAutoencoder, TrainConfig, np.ndarray]:
    """A trained model, its config and B's mean face (H, W, 3) in 0..1 BGR at its largest output size."""
    folder = CheckpointFolder(path)
    if not path.is_dir():
        raise SwapfastError(f"--model-dir {path}: {'is a file; give a folder' if path.exists() else 'no such folder'}")
    found = folder.load()
    if found is None:
        raise SwapfastError(f"--model-dir {path}: holds no model; train one with `swapfast train`")
    checkpoint, _ = found
    config = TrainConfig.from_dict(checkpoint.state.get("config"), str(folder.path(checkpoint.step) / "state.json"))
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    load_weights(model, checkpoint, folder)
    mean = checkpoint.tensors["faces"]["mean_b"].numpy()
    return model.to(device), config, shrink(mean, model.output_sizes[-1])
