"""Puts a run together from a request: faces, loader, model, optimizer, trainer."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from pipelines.cache import store_path
from pipelines.collate import Collate
from pipelines.dataset import TrainSet, check_prepared, split
from pipelines.decode import dali_version
from pipelines.fill import Source
from pipelines.loader import TrainLoader
from pipelines.preview import PreviewLoader, PreviewSet, shrink
from pipelines.sampler import Sampler
from pipelines.sides import (
    Say,
    Watch,
    choose_cache,
    keep_index,
    make_feed,
    make_matcher,
    make_set,
    mean_face,
    no_watch,
    remarks,
    scan_side,
)
from pipelines.store import StoreSpec
from swapfast.batch import Batch
from swapfast.config import AugmentationConfig, TrainConfig, settings, updated
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.masks import mask_names
from swapfast.faces.table import index_path
from swapfast.files import write_file
from swapfast.losses import LossCollator
from swapfast.models import SIDES, FaceAutoencoder, build_model
from swapfast.preview.samples import Samples
from swapfast.swap.apply import all_swaps
from swapfast.training.checkpoint import Checkpoint, CheckpointFolder
from swapfast.training.lr_finder import GRAPH, RESULT
from swapfast.training.optimizer import Optimizer
from swapfast.training.stop import StopRequest
from swapfast.training.tensorboard import TorchTensorBoard
from swapfast.training.trainer import Run, Trainer, model_folder


@dataclass(frozen=True)
class TrainRequest:
    """What the command line asks for.

    changes: settings by dotted name, over those of a resumed model or of ``config``. resume: 'auto' goes on where a
    model is and starts one where none is, 'never' refuses where one is, 'must' where none is.
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
):
    """The augmentation of ``backend``, 'opencv' or 'device', for batches that end on ``device``.

    On the way to a GPU OpenCV's results stay bytes, a quarter of the copy; for the CPU its threads make the floats.
    """
    if backend == "opencv":
        from swapfast.augment.opencv import OpenCVAugmenter

        return OpenCVAugmenter(processing_size, input_size, output_sizes, as_float=device.type == "cpu")
    from swapfast.augment.augmentation import DeviceAugmenter

    return DeviceAugmenter(processing_size, input_size, output_sizes, config)


def resumed(request: TrainRequest, folder: CheckpointFolder) -> tuple[TrainConfig, Checkpoint | None, list[str]]:
    """The config to train with and the checkpoint to go on from, if there is one.

    A resumed model keeps its settings but for those that are given now. Raises SwapfastError where a fixed one differs
    and where ``resume`` forbids what is found.
    """
    found = folder.load()
    if found is None:
        if request.resume == "must":
            raise SwapfastError(f"--resume must: {folder.folder} holds no model to go on with")
        return updated(request.config, request.changes), None, []
    if request.resume == "never":
        raise SwapfastError(
            f"--resume never: {folder.folder} holds a model already; choose another --model-dir or --resume auto"
        )
    checkpoint, damaged = found
    where = str(folder.path(checkpoint.step) / "state.json")
    stored = TrainConfig.from_dict(checkpoint.state.get("config"), where)
    wanted = updated(stored, request.changes)
    given = settings(wanted)
    differing = [
        f"{field.metadata['flag'] or name} is {value!r} there and {given[name][1]!r} now"
        for name, (field, value) in settings(stored).items()
        if field.metadata["fixed"] and given[name][1] != value
    ]
    if differing:
        raise SwapfastError(
            f"--model-dir {folder.folder} holds another model: {'; '.join(differing)}. Leave these as they are or "
            "choose another --model-dir"
        )
    lines = [f"{remark}; going on from {checkpoint.step}" for remark in damaged]
    rate = checkpoint.state.get("lr_finder")
    if request.lr_finder and rate is not None and wanted.lr_finder.mode != "graph_and_exit":
        wanted = updated(wanted, {"optimizer.learning_rate": rate}, f"{where}: lr_finder")
        lines.append(f"learning rate {rate:.3g}, which was found before")
    return wanted, checkpoint, lines


def run_state(config: TrainConfig, sides: list[TrainSet]) -> dict:
    """What every checkpoint's JSON says beside the step: what was trained, on what, with what."""
    return {
        "model": config.model.name,
        "synthetic_media": "pictures made with this model are synthetic and should say so",
        "config": config.to_dict(),
        "data": {
            name: {"folder": str(s.source.folder.path), "faces": len(s), "held_out": len(s.validation)}
            for name, s in zip(SIDES, sides, strict=True)
        },
        "versions": versions(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str | None]:
    """Of what a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dali": dali_version(),
        "kornia": importlib.metadata.version("kornia"),  # importing it takes seconds
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }


def preview_writer(
    model: FaceAutoencoder, sides: list[TrainSet], config: TrainConfig, samples: Samples, folder: Path
) -> Callable[[int], None]:
    """A function that replaces preview.png in ``folder`` by what the model makes now."""
    count = config.preview.images
    faces = PreviewLoader(
        [
            PreviewSet(
                side.side,
                side.source,
                model.input_size,
                model.output_sizes[-1],
                num_images=count,
                crop=config.crop,
                mask=config.mask,
                masked=samples.has_mask,
                skip_bad=side.store is None,
            )
            for side in sides
        ],
        count,
        num_samples=count,
    )
    next(faces)  # a file that is gone is told of now and not in the middle of the run

    def write(step: int) -> None:
        inputs, targets = next(faces)
        sheet = samples.get_preview(np.nan_to_num(all_swaps(model, inputs)), targets)
        _, png = cv2.imencode(".png", sheet)
        write_file(folder / "preview.png", png.tobytes())

    return write


@dataclass(frozen=True)
class Plan:
    """A request that has been found possible. Nothing has been written so far.

    steps: the checkpoints there were. lines: what to tell a person.
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

    @property
    def step(self) -> int:
        """Iterations the model has had."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def only_graph(self) -> bool:
        """Whether to look for a learning rate and leave."""
        return self.request.lr_finder and self.config.lr_finder.mode == "graph_and_exit"

    @property
    def finds_rate(self) -> bool:
        """Whether to look for a learning rate: once per model, but for the mode that only looks."""
        found = self.checkpoint is not None and "lr_finder" in self.checkpoint.state
        return self.request.lr_finder and (self.only_graph or not found)


def plan_run(request: TrainRequest, watch: Watch = no_watch) -> Plan:
    """Check everything that can be checked before anything is written; raises SwapfastError where it fails.

    Only what was read of a folder is kept, where there is a cache folder already.
    """
    inputs = (request.input_a, request.input_b)
    checkpoints = model_folder(request.model_dir)
    for flag, folder in (("--model-dir", request.model_dir), ("--cache-dir", request.cache)):
        for path in inputs:
            if path.resolve() in (folder.resolve(), *folder.resolve().parents):
                raise SwapfastError(f"{flag} {folder}: lies in the faces' folder {path}; choose another")
    if request.cache.exists() and not request.cache.is_dir():
        raise SwapfastError(f"--cache-dir {request.cache}: is a file; give a folder")
    pick_device(request.device)
    steps = checkpoints.steps()
    config, checkpoint, lines = resumed(request, checkpoints)
    look = config.preview
    masks = needed_masks(config)
    samples = Samples(config.crop.coverage / 100, "face" in masks, look.mask_opacity, look.mask_color)
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    loss = loss_collator(config, model)
    if checkpoint is not None:
        load_weights(model, checkpoint, checkpoints)
        lines.append(f"going on from iteration {checkpoint.step} in {checkpoints.folder}")
    spec = StoreSpec(max(model.input_size, *model.output_sizes), config.crop, config.mask, masks)
    sources = [scan_side(path, config.mask.mask_type, request.skip_bad, watch, request.cache) for path in inputs]
    for source in sources:
        lines += check_prepared(source, spec)
        split(source, config.validation)
    return Plan(request, checkpoints, steps, config, checkpoint, sources, model, loss, spec, samples, lines)


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
    """Everything in place for ``Trainer.train``; the model folder must be locked. say: prints a line."""
    request, config, folder = plan.request, plan.config, plan.checkpoints
    if folder.steps() != plan.steps:
        raise SwapfastError(f"--model-dir {folder.folder}: another run has just saved there; start again")
    device = pick_device(request.device)
    backend = pick_backend(request.backend, device)
    folder.set_aside_newer_than(plan.step)
    faces = plan.spec.bytes_per_face
    needed = faces * sum(map(len, plan.sources))
    there = faces * sum(len(one) for one in plan.sources if store_path(request.cache, plan.spec, one).is_file())
    where, why = choose_cache(request.cache_mode, needed, request.cache, device, backend, there)
    say(why)
    sides = [
        make_set(label, source, plan.spec, where, request.cache, request.skip_bad, config.validation, watch, say)
        for label, source in zip("AB", plan.sources)
    ]
    for source in plan.sources:
        kept = index_path(request.cache, source.folder.path)
        if source.prepared is None and not kept.exists():  # else it was brought up to date when the folder was read
            keep_index(kept, source.folder.records)
    for line in (*plan.lines, *remarks(sides)):
        say(line)
    model = plan.model.to(device, memory_format=torch.channels_last)
    optimizer = Optimizer(model, config.optimizer, config.precision == "fp16", config.optimizer.warmup)
    if plan.checkpoint is not None:
        optimizer.load_state_dict(plan.checkpoint.tensors["optimizer"])
    say(f"model {model.name}, {backend} augmentation, training on {device}, batch {config.batch_size} per side")
    sampler = Sampler(config.seed, tuple(map(len, sides)), config.batch_size)
    sizes = model.input_size, model.output_sizes
    augment = make_augmenter(backend, plan.spec.size, *sizes, device, config.augmentation)
    loader = TrainLoader(
        make_feed(where, sides, sampler, device, backend, say),
        sampler,
        Collate(augment, backend == "device", plan.spec.masks, model.color_order, device),
        config.augmentation,
        plan.spec.size,
        start=plan.step,
        matcher=make_matcher(sides, config, watch),
    )
    run = Run(
        checkpoints=folder,
        iterations=request.iterations,
        save_interval=request.save_interval,
        state=run_state(config, sides) | kept_state(plan.checkpoint),
        tensors={"faces": {f"mean_{name}": mean_face(side) for name, side in zip(SIDES, sides)}},
        preview=preview_writer(model, sides, config, plan.samples, folder.folder),
        tensorboard=TorchTensorBoard(folder.folder / "logs", warn=say) if request.logs else None,
        stop=stop,
        saved_step=None if plan.checkpoint is None else plan.step,
        nan=config.nan,
        batches_from=functools.partial(batches_from, loader),
    )
    return Trainer(model, plan.loss, optimizer, loader, run, plan.step, config.precision)


def batches_from(loader: TrainLoader, step: int) -> Iterator[Batch]:
    """The batches of ``loader`` from ``step`` on; those before must be used up."""
    loader.start = step
    return iter(loader)


def kept_state(checkpoint: Checkpoint | None) -> dict:
    """What every later checkpoint says too: the learning rate that was found for the model."""
    return {} if checkpoint is None else {k: checkpoint.state[k] for k in ("lr_finder",) if k in checkpoint.state}


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
    graph = "" if options.mode == "set" else f"; look at {folder / GRAPH}"
    if not found:
        message = f"no learning rate found: the loss did not fall in {options.iterations} steps{graph}"
        if plan.only_graph:
            say(message)
            return
        raise SwapfastError(
            f"{message}. Give more --lr-finder-iterations, or a --learning-rate without --lr-finder", EXIT_FAILED
        )
    rate = json.loads((folder / RESULT).read_text(encoding="utf-8"))["learning_rate"]
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
