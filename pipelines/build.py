"""Puts a run together from a request: faces, loader, model, optimizer, trainer."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from pipelines.cache import cached_store, has_space
from pipelines.collate import Collate
from pipelines.dataset import TrainSet, bad_faces, split
from pipelines.decode import dali_version
from pipelines.feed import DecodeFeed, DeviceFeed, Feed, HostFeed, PreparedFeed
from pipelines.fill import Source, fill
from pipelines.loader import TrainLoader
from pipelines.preview import PreviewLoader, PreviewSet, evenly, shrink
from pipelines.sampler import Sampler
from pipelines.store import HostStore, StoreSpec
from swapfast.config import TrainConfig, settings, updated
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.folder import scan_folder
from swapfast.faces.masks import DRAWN_TYPES, check_mask_type, mask_names
from swapfast.faces.prepared import is_prepared, open_prepared
from swapfast.faces.reader import BadFace
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import FaceTable, index_path, load_index, save_index
from swapfast.files import write_file
from swapfast.losses import LossCollator
from swapfast.models import SIDES, FaceAutoencoder, build_model
from swapfast.preview.samples import Samples
from swapfast.swap.apply import all_swaps
from swapfast.system import available_memory
from swapfast.training.checkpoint import Checkpoint, CheckpointFolder
from swapfast.training.optimizer import Optimizer
from swapfast.training.stop import StopRequest
from swapfast.training.tensorboard import TorchTensorBoard
from swapfast.training.trainer import Run, Trainer, model_folder

FEW_FACES = 25  # below this a model mostly learns the faces by heart
MEAN_OF = 1024
DEVICE_SHARE = 0.6  # of free GPU memory; the model, its optimizer and the batches want the rest
MEMORY_SHARE = 0.5


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
    cache_mode: str = "auto"
    cache_dir: Path | None = None

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


Watch = Callable[[str], Callable[[int, int], None]]
Say = Callable[[str], None]


def no_watch(_description: str) -> Callable[[int, int], None]:
    """For who does not want to see progress."""
    return lambda done, total: None


def quiet(_line: str) -> None:
    """For who does not want to hear of it."""


def scan_side(path: Path, mask_type: str, skip_bad: bool, watch: Watch = no_watch, cache: Path | None = None) -> Source:
    """Read a folder's headers, or open a prepared set, and see that its faces have the mask asked for.

    cache: where its index lies, if there is one; it is brought up to date where that folder exists. Raises
    SwapfastError listing every bad file, unless they are to be skipped, and where no face has that mask.
    """
    if is_prepared(path):
        made = open_prepared(path)
        return Source(made.folder, made)
    kept = None if cache is None else index_path(cache, path)
    known = None if kept is None else load_index(kept, path)
    folder = scan_folder(path, progress=watch(f"reading {path}"), known=known)
    if kept is not None and folder.records is not known and cache.is_dir():
        keep_index(kept, folder.records)
    if mask_type == "none":
        folder.require_all_good(skip_bad)
        return Source(folder)
    lacking = np.flatnonzero(~folder.records.where(lambda record: _has_mask(record, mask_type)))
    reasons = [_mask_reason(folder.records[int(i)], mask_type) for i in lacking]
    if reasons and len(reasons) == len(folder.records):
        check_mask_type(folder.records[0], mask_type)
    if reasons:
        folder = folder.without(reasons)
    folder.require_all_good(skip_bad)
    return Source(folder)


def _has_mask(record: FaceRecord, mask_type: str) -> bool:
    return _mask_reason(record, mask_type) is None


def _mask_reason(record: FaceRecord, mask_type: str) -> BadFace | None:
    try:
        check_mask_type(record, mask_type)
    except SwapfastError as error:
        return BadFace(record.path, str(error).removeprefix(f"{record.path}: "))
    return None


def keep_index(path: Path, table: FaceTable) -> None:
    """Save an index. Where that fails there is none: the next start reads the folder again."""
    with contextlib.suppress(OSError):
        save_index(path, table)


def check_prepared(source: Source, spec: StoreSpec) -> list[str]:
    """See that a prepared set shows the crop that is to be trained on; returns what a person should know of it.

    Raises SwapfastError where it shows another, or has no mask of the kind asked for.
    """
    made = source.prepared
    if made is None:
        return []
    if made.crop != spec.crop:
        flags = {"centering": "--centering", "coverage": "--coverage", "vertical_offset": "--vertical-offset"}
        wanted, has = spec.crop.to_dict(), made.crop.to_dict()
        differing = [f"{flags[n]} {has[n]} there and {wanted[n]} asked for" for n in flags if has[n] != wanted[n]]
        raise SwapfastError(f"{made.path}: was prepared with {', '.join(differing)}; give the same, or prepare it anew")
    if "face" in spec.masks and spec.mask != made.mask and spec.mask.mask_type not in DRAWN_TYPES:
        raise SwapfastError(
            f"{made.path}: was prepared with --mask-type {made.mask.mask_type}; give the same with the same cleaning, "
            f"a drawn one ({', '.join(DRAWN_TYPES)}), or prepare it anew"
        )
    if made.size < spec.size:
        return [f"warning: {made.path} was prepared at {made.size} px and is enlarged to {spec.size} px"]
    return []


def shown_bytes(count: int) -> str:
    """1234567 -> '1.2 MiB'."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def choose_cache(asked: str, needed: int, cache: Path, device: torch.device, backend: str) -> tuple[str, str]:
    """Where decoded faces are kept, 'device', 'host', 'memory' or 'off', and a line that says why.

    asked: --cache. needed: bytes of all faces. Raises SwapfastError (code 1) where they do not fit where they should.
    """
    size = shown_bytes(needed)
    on_gpu = device.type == "cuda"
    if asked == "device" or (asked == "auto" and on_gpu and backend == "device"):
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
        room = DEVICE_SHARE if on_gpu else MEMORY_SHARE
        if needed <= room * free:
            return "device", f"cache: device, {size} of {shown_bytes(free)} that are free there"
        if asked == "device":
            raise SwapfastError(
                f"--cache device: the faces take {size}, and of the {shown_bytes(free)} that are free there at most "
                f"{room:.0%} are used for them; train with --cache host",
                EXIT_FAILED,
            )
    if asked == "off":
        return "off", "cache: off, every batch is decoded"
    if asked == "host" or has_space(cache, needed):
        return "host", f"cache: host, {size} in {cache}"
    if needed <= MEMORY_SHARE * available_memory():
        return "memory", f"cache: {size} in memory, for the disk of {cache} has no room: the next start decodes again"
    return "off", f"cache: off, for neither the disk of {cache} nor memory has room for {size}"


def make_set(
    side: str,
    source: Source,
    spec: StoreSpec,
    where: str,
    request: TrainRequest,
    share: float,
    watch: Watch = no_watch,
    say: Say = quiet,
) -> TrainSet:
    """A side's training faces, decoded and kept as ``where`` says (see ``choose_cache``).

    Raises SwapfastError listing those that do not decode, unless they are to be skipped.
    """
    rows, store, bad = None, None, []
    progress = watch(f"decoding {source.folder.path}")
    if where in ("host", "device"):
        cached = cached_store(request.cache, spec, source, progress=progress, say=say)
        store, bad = cached.store, cached.bad
        if cached.reused:
            say(f"side {side}: {cached.reused} of {len(source)} faces were decoded before")
    elif where == "memory":
        store = HostStore.in_memory(spec, len(source))
        bad = bad_faces(source, fill(spec, source, store, progress=progress))
    if bad:
        names = {one.path.name for one in bad}
        rows = np.array([i for i in range(len(source)) if source.folder.records.name(i) not in names], np.int64)
        source = source.without(bad)
    source.folder.require_all_good(request.skip_bad)
    return TrainSet.of(side, source, spec, store, rows, share)


def make_feed(where: str, sets: list[TrainSet], sampler: Sampler, device: torch.device, backend: str, say: Say) -> Feed:
    """Where the loader takes a step's bytes from."""
    if where == "off":
        device_id = (device.index or 0) if device.type == "cuda" else None
        feed = DecodeFeed(sets, sampler, device_id=device_id, warn=say)
        return PreparedFeed(feed) if backend == "device" and PreparedFeed.fits(sets) else feed
    if where == "device":
        return DeviceFeed(sets, device)
    return HostFeed(sets, device if backend == "device" else None)


def remarks(sides: list[TrainSet]) -> list[str]:
    """What a person should know of the folders, a line each."""
    lines = []
    for side in sides:
        folder = side.source.folder
        notes = "".join(f", {count} with {note}" for note, count in folder.notes.items())
        held = f", {len(side.validation)} more held out for validation" if len(side.validation) else ""
        lines.append(f"side {side.side}: {len(side)} faces from {folder.path}{held}{notes}")
        if folder.bad:
            lines.append(f"side {side.side}: {len(folder.bad)} bad files left out")
        if len(side) < FEW_FACES:
            lines.append(f"warning: side {side.side} has {len(side)} faces; below {FEW_FACES} it learns them by heart")
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


def mean_face(side: TrainSet) -> torch.Tensor:
    """(S, S, 3) float32 in 0..1 BGR: the mean of the training crops, or of 1024 spread over the folder."""
    chosen = np.unique(evenly(len(side), MEAN_OF))
    total = np.zeros((side.spec.size, side.spec.size, 3), np.float64)
    for index in chosen:
        total += face_of(side, int(index))
    return torch.from_numpy((total / len(chosen) / 255).astype(np.float32))


def face_of(side: TrainSet, index: int) -> np.ndarray:
    """(S, S, 3) uint8 BGR: one training crop, decoded where no store holds it."""
    if side.store is not None:
        return side.store.faces[side.rows[index], ..., :3]
    face, planes = np.empty(side.spec.face_shape, np.uint8), np.empty(side.spec.planes_shape, np.uint8)
    member = int(side.members[index])
    reason = side.source.put(side.spec, member, face, planes)
    if reason is not None:
        raise SwapfastError(f"{side.source.folder.records[member].path}: {reason}")
    return face[..., :3]


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


def plan_run(request: TrainRequest, watch: Watch = no_watch) -> Plan:
    """Check everything that can be checked before anything is written; raises SwapfastError where it fails."""
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


def build_trainer(plan: Plan, stop: StopRequest, say: Callable[[str], None], watch: Watch = no_watch) -> Trainer:
    """Everything in place for ``Trainer.train``; the model folder must be locked. say: prints a line."""
    request, config, folder = plan.request, plan.config, plan.checkpoints
    if folder.steps() != plan.steps:
        raise SwapfastError(f"--model-dir {folder.folder}: another run has just saved there; start again")
    device = pick_device(request.device)
    backend = pick_backend(request.backend, device)
    folder.set_aside_newer_than(plan.step)
    needed = plan.spec.bytes_per_face * sum(map(len, plan.sources))
    where, why = choose_cache(request.cache_mode, needed, request.cache, device, backend)
    say(why)
    # Before anything touches a GPU: decoding forks.
    sides = [
        make_set(label, source, plan.spec, where, request, config.validation, watch, say)
        for label, source in zip("AB", plan.sources)
    ]
    if where in ("host", "device"):
        for source in plan.sources:
            if source.prepared is None:
                keep_index(index_path(request.cache, source.folder.path), source.folder.records)
    for line in (*plan.lines, *remarks(sides)):
        say(line)
    model = plan.model.to(device, memory_format=torch.channels_last)
    optimizer = Optimizer(model, config.optimizer)
    if plan.checkpoint is not None:
        optimizer.load_state_dict(plan.checkpoint.tensors["optimizer"])
    say(f"model {model.name}, {backend} augmentation, training on {device}, batch {config.batch_size} per side")
    sampler = Sampler(config.seed, tuple(map(len, sides)), config.batch_size)
    augment = make_augmenter(backend, plan.spec.size, model.input_size, model.output_sizes, device)
    loader = TrainLoader(
        make_feed(where, sides, sampler, device, backend, say),
        sampler,
        Collate(augment, backend == "device", plan.spec.masks, model.color_order, device),
        config.augmentation,
        plan.spec.size,
        start=plan.step,
    )
    run = Run(
        checkpoints=folder,
        iterations=request.iterations,
        save_interval=request.save_interval,
        state=run_state(config, sides),
        tensors={"faces": {f"mean_{name}": mean_face(side) for name, side in zip(SIDES, sides)}},
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
