"""Puts a run together from a request: faces, loader, model, optimizer, trainer."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from pipelines.decode import dali_version
from pipelines.loader import TrainLoader
from pipelines.preview import PreviewLoader, shrink
from pipelines.sampler import Sampler
from pipelines.store import HostStore, StoreSpec, fill_store
from swapfast.config import TrainConfig, settings, updated
from swapfast.errors import SwapfastError
from swapfast.faces.folder import BadFace, FaceFolder, scan_folder
from swapfast.faces.masks import check_mask_type, mask_names
from swapfast.files import write_file
from swapfast.losses import LossCollator
from swapfast.models import SIDES, FaceAutoencoder, build_model
from swapfast.preview.samples import Samples
from swapfast.swap.apply import all_swaps
from swapfast.training.checkpoint import Checkpoint, CheckpointFolder
from swapfast.training.optimizer import Optimizer
from swapfast.training.stop import StopRequest
from swapfast.training.tensorboard import TorchTensorBoard
from swapfast.training.trainer import Run, Trainer, model_folder

FEW_FACES = 25  # below this a model mostly learns the faces by heart


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
    resume: str = (
        "auto"  # auto: go on where a model is, else start; never: refuse where one is; must: refuse where none is
    )
    device: str = "auto"
    backend: str = "auto"
    skip_bad: bool = False
    logs: bool = True


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
    )


def make_augmenter(backend: str, processing_size: int, input_size: int, output_sizes, device: torch.device):
    """The augmentation of ``backend``, 'opencv' or 'device', for batches that end on ``device``.

    On the way to a GPU OpenCV's results stay bytes, a quarter of the copy; for the CPU its threads make the floats.
    """
    if backend == "opencv":
        from swapfast.augment.opencv import OpenCVAugmenter

        return OpenCVAugmenter(processing_size, input_size, output_sizes, as_float=device.type == "cpu")
    from swapfast.augment.augmentation import DeviceAugmenter  # brings kornia, seconds to import

    return DeviceAugmenter(processing_size, input_size, output_sizes)


@dataclass(frozen=True)
class Side:
    """One side's folder and its decoded faces."""

    folder: FaceFolder
    store: HostStore


Watch = Callable[[str], Callable[[int, int], None]]


def no_watch(_description: str) -> Callable[[int, int], None]:
    """For who does not want to see progress."""
    return lambda done, total: None


def without(folder: FaceFolder, bad: list[BadFace], skip_bad: bool) -> FaceFolder:
    """``folder`` less some faces. Raises SwapfastError listing every bad file, unless they are to be skipped."""
    names = {face.path for face in bad}
    good = [record for record in folder.records if record.path not in names]
    folder = dataclasses.replace(folder, records=good, bad=[*folder.bad, *bad])
    folder.require_all_good(skip_bad)
    return folder


def scan_side(path: Path, mask_type: str, skip_bad: bool, watch: Watch = no_watch) -> FaceFolder:
    """Read a folder's headers and see that its faces have the mask asked for.

    Raises SwapfastError listing every bad file, unless they are to be skipped, and where no face has that mask.
    """
    folder = scan_folder(path, progress=watch(f"reading {path}"))
    lacking = {}
    for record in folder.records if mask_type != "none" else []:
        try:
            check_mask_type(record, mask_type)
        except SwapfastError as error:
            lacking[record.path] = error
    if lacking and len(lacking) == len(folder.records):
        raise next(iter(lacking.values()))
    bad = [BadFace(path, str(error).removeprefix(f"{path}: ")) for path, error in lacking.items()]
    return without(folder, bad, skip_bad)


def decode_side(folder: FaceFolder, spec: StoreSpec, skip_bad: bool, watch: Watch = no_watch) -> Side:
    """Decode a folder's faces. Raises SwapfastError listing those that do not decode, unless they are to be skipped."""
    store, bad = fill_store(spec, folder.records, progress=watch(f"decoding {folder.path}"))
    return Side(without(folder, bad, skip_bad) if bad else folder, store)


def remarks(sides: list[Side]) -> list[str]:
    """What a person should know of the folders, a line each."""
    lines = []
    for label, side in zip("AB", sides):
        notes = "".join(f", {count} with {note}" for note, count in side.folder.notes.items())
        size = f"{side.store.nbytes / 2**20:.0f} MiB"
        lines.append(f"side {label}: {len(side.store)} faces from {side.folder.path}, {size} in memory{notes}")
        if side.folder.bad:
            lines.append(f"side {label}: {len(side.folder.bad)} bad files left out")
        if len(side.store) < FEW_FACES:
            lines.append(
                f"warning: side {label} has {len(side.store)} faces; below {FEW_FACES} it learns them by heart"
            )
    return lines


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
    return wanted, checkpoint, [f"{remark}; going on from {checkpoint.step}" for remark in damaged]


def mean_face(store: HostStore) -> torch.Tensor:
    """(S, S, 3) float32 in 0..1 BGR: the mean of all crops."""
    total = np.zeros(store.faces.shape[1:3] + (3,), np.float64)
    for face in store.faces:
        total += face[..., :3]
    return torch.from_numpy((total / len(store) / 255).astype(np.float32))


def run_state(config: TrainConfig, sides: list[Side]) -> dict:
    """What every checkpoint's JSON says beside the step: what was trained, on what, with what."""
    return {
        "model": config.model.name,
        "synthetic_media": "pictures made with this model are synthetic and should say so",
        "config": config.to_dict(),
        "data": {
            side: {"folder": str(s.folder.path), "faces": len(s.store)} for side, s in zip(SIDES, sides, strict=True)
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
    model: FaceAutoencoder, sides: list[Side], config: TrainConfig, samples: Samples, folder: Path
) -> Callable[[int], None]:
    """A function that replaces preview.png in ``folder`` by what the model makes now."""
    size = model.output_sizes[-1]
    faces = PreviewLoader(
        [side.folder.records for side in sides],
        model.input_size,
        size,
        config.crop,
        config.mask,
        samples.has_mask,
        config.preview.images,
    )

    def write(step: int) -> None:
        sheet = samples.get_preview(np.nan_to_num(all_swaps(model, faces.inputs)), faces.targets)
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
    folders: list[FaceFolder]
    model: FaceAutoencoder
    loss: LossCollator
    spec: StoreSpec
    samples: Samples
    lines: list[str]

    @property
    def step(self) -> int:
        """Iterations the model has had."""
        return 0 if self.checkpoint is None else self.checkpoint.step


def plan_run(request: TrainRequest, watch: Watch = no_watch) -> Plan:
    """Check everything that can be checked before anything is written; raises SwapfastError where it fails."""
    inputs = (request.input_a, request.input_b)
    checkpoints = model_folder(request.model_dir)
    for path in inputs:
        if path.resolve() in (request.model_dir.resolve(), *request.model_dir.resolve().parents):
            raise SwapfastError(f"--model-dir {request.model_dir}: lies in the faces' folder {path}; choose another")
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
    folders = [scan_side(path, config.mask.mask_type, request.skip_bad, watch) for path in inputs]
    spec = StoreSpec(max(model.input_size, *model.output_sizes), config.crop, config.mask, masks)
    return Plan(request, checkpoints, steps, config, checkpoint, folders, model, loss, spec, samples, lines)


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


def build_trainer(plan: Plan, stop: StopRequest, say: Callable[[str], None], watch: Watch = no_watch) -> Trainer:
    """Everything in place for ``Trainer.train``; the model folder must be locked. say: prints a line."""
    request, config, folder = plan.request, plan.config, plan.checkpoints
    if folder.steps() != plan.steps:
        raise SwapfastError(f"--model-dir {folder.folder}: another run has just saved there; start again")
    device = pick_device(request.device)
    backend = pick_backend(request.backend, device)
    folder.set_aside_newer_than(plan.step)
    model = plan.model.to(device, memory_format=torch.channels_last)
    optimizer = Optimizer(model, config.optimizer)
    if plan.checkpoint is not None:
        optimizer.load_state_dict(plan.checkpoint.tensors["optimizer"])
    sides = [decode_side(found, plan.spec, request.skip_bad, watch) for found in plan.folders]
    for line in (*plan.lines, *remarks(sides)):
        say(line)
    say(f"model {model.name}, {backend} augmentation, training on {device}, batch {config.batch_size} per side")
    loader = TrainLoader(
        [side.store for side in sides],
        Sampler(config.seed, tuple(len(side.store) for side in sides), config.batch_size),
        make_augmenter(backend, plan.spec.size, model.input_size, model.output_sizes, device),
        on_device=backend == "device",
        config=config.augmentation,
        color_order=model.color_order,
        device=device,
        start=plan.step,
    )
    run = Run(
        checkpoints=folder,
        iterations=request.iterations,
        save_interval=request.save_interval,
        state=run_state(config, sides),
        tensors={"faces": {f"mean_{name}": mean_face(side.store) for name, side in zip(SIDES, sides)}},
        preview=preview_writer(model, sides, config, plan.samples, folder.folder),
        tensorboard=TorchTensorBoard(folder.folder / "logs", warn=say) if request.logs else None,
        stop=stop,
        saved_step=None if plan.checkpoint is None else plan.step,
    )
    return Trainer(model, plan.loss, optimizer, loader, run, plan.step)


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
