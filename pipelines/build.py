"""Puts a run together from a request: faces, loader, model, optimizer, trainer."""

from __future__ import annotations

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
from swapfast.faces.folder import FaceFolder, scan_folder
from swapfast.faces.masks import mask_names
from swapfast.losses import LossCollator
from swapfast.models import SIDES, FaceAutoencoder, build_model
from swapfast.preview.samples import Samples
from swapfast.swap.apply import all_swaps
from swapfast.training.checkpoint import Checkpoint, CheckpointFolder, write_file
from swapfast.training.optimizer import Optimizer
from swapfast.training.progress import ProgressLine
from swapfast.training.stop import StopRequest
from swapfast.training.tensorboard import TorchTensorBoard
from swapfast.training.trainer import Run, Trainer

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


def store_spec(config: TrainConfig, model: FaceAutoencoder) -> StoreSpec:
    """What is kept of each face for ``model``."""
    size = max(model.input_size, *model.output_sizes)
    return StoreSpec(size, config.crop, config.mask, needed_masks(config))


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


def read_side(path: Path, spec: StoreSpec, skip_bad: bool, watch: Watch | None = None) -> Side:
    """Read and decode a folder. Raises SwapfastError listing every bad file, unless they are to be skipped."""
    folder = scan_folder(path, progress=watch and watch(f"reading {path}"))
    folder.require_all_good(skip_bad)
    store, bad = fill_store(spec, folder.records, progress=watch and watch(f"decoding {path}"))
    if bad:
        names = {face.path for face in bad}
        good = [record for record in folder.records if record.path not in names]
        folder = FaceFolder(folder.path, good, [*folder.bad, *bad], folder.notes)
        folder.require_all_good(skip_bad)
    return Side(folder, store)


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
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
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


def build_trainer(
    request: TrainRequest, folder: CheckpointFolder, stop: StopRequest, say: Callable[[str], None], watch: Watch
) -> Trainer:
    """Everything in place for ``Trainer.train``. say: prints a line; watch: makes progress bars."""
    device = pick_device(request.device)
    backend = pick_backend(request.backend, device)
    config, checkpoint, lines = resumed(request, folder)
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    model = model.to(device, memory_format=torch.channels_last)
    loss = loss_collator(config, model).to(device)
    step = 0
    if checkpoint is not None:
        step = checkpoint.step
        model.load_state_dict(checkpoint.tensors["model"])
    optimizer = Optimizer(model, config.optimizer)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint.tensors["optimizer"])
        folder.set_aside_newer_than(step)
        lines.append(f"going on from iteration {step} in {folder.folder}")
    for line in lines:
        say(line)

    spec = store_spec(config, model)
    look = config.preview
    samples = Samples(config.crop.coverage / 100, "face" in spec.masks, look.mask_opacity, look.mask_color)
    sides = [read_side(path, spec, request.skip_bad, watch) for path in (request.input_a, request.input_b)]
    for line in remarks(sides):
        say(line)
    say(f"model {model.name}, {backend} augmentation, training on {device}, batch {config.batch_size} per side")
    loader = TrainLoader(
        [side.store for side in sides],
        Sampler(config.seed, tuple(len(side.store) for side in sides), config.batch_size),
        make_augmenter(backend, spec.size, model.input_size, model.output_sizes, device),
        backend == "device",
        config.augmentation,
        model.color_order,
        device,
        step,
    )
    means = {f"mean_{name}": mean_face(side.store) for name, side in zip(SIDES, sides)}
    run = Run(
        folder,
        request.iterations,
        request.save_interval,
        run_state(config, sides),
        {"faces": means},
        preview_writer(model, sides, config, samples, folder.folder),
        TorchTensorBoard(folder.folder / "logs") if request.logs else None,
        ProgressLine(),
        stop,
        saved_step=None if checkpoint is None else step,
    )
    return Trainer(model, loss, optimizer, loader, run, step)


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
    model = build_model(config.model, config.loss.learn_mask, config.seed).to(device)
    model.load_state_dict(checkpoint.tensors["model"])
    mean = checkpoint.tensors["faces"]["mean_b"].numpy()
    return model, config, shrink(mean, model.output_sizes[-1])
