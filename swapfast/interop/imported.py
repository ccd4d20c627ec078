"""A model that another program wrote, and how it becomes a model folder of ours."""

from __future__ import annotations

import datetime
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from swapfast import __version__
from swapfast.batch import SIDES
from swapfast.checkpoints.folder import SYNTHETIC_MEDIA, Checkpoint, CheckpointFolder, model_folder
from swapfast.config import TrainConfig
from swapfast.errors import SwapfastError
from swapfast.files import cannot_write, check_folder, flush, open_new, temporary_name, write_all
from swapfast.logs.steplog import StepLog
from swapfast.models import FaceAutoencoder
from swapfast.models.side_statistics import SideStatistics

MOST_LOGGED = 20_000  # losses
KEPT = "imported"  # folder in the model folder: what only the other program has a use for


@dataclass(frozen=True)
class Imported:
    """What was read of another program's model.

    kind        the program's name for it, as `export --to` has it: 'saehd', 'keras'
    source      the file or folder it came from
    step        iterations it has had
    config      the settings to go on with
    model       the network with its weights
    optimizer   the optimizer's state, see Optimizer.state_dict; empty where it begins anew
    mean_faces  side -> (H, W, 3) float32 in 0..1 BGR, where faces came with it
    origin      what the checkpoints say of it beside kind and source, as JSON
    losses      [of A, of B] of each iteration, as far as they are known
    kept        name -> content of files that its export gives back
    lines       what to tell a person
    """

    kind: str
    source: Path
    step: int
    config: TrainConfig
    model: FaceAutoencoder
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    mean_faces: Mapping[str, Tensor] = field(default_factory=dict)
    origin: Mapping[str, object] = field(default_factory=dict)
    losses: Sequence[tuple[float, float]] = ()
    kept: Mapping[str, bytes | memoryview] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def summary(self, model_dir: Path) -> str:
        """Return what was made, in a line, and how to go on."""
        model, state = self.model, "with its optimizer's state" if self.optimizer else "without an optimizer's state"
        flags = f"-A ... -B ... -m {shlex.quote(str(model_dir))}"
        return (
            f"{model.name} at {model.input_size} px, iteration {self.step}, {state}, in {model_dir}; go on with "
            f"`swapfast train {flags}`, or without training with `swapfast codes {flags}`, which measures both "
            "people's codes for better swaps"
        )


def on_host(model: FaceAutoencoder) -> FaceAutoencoder:
    """Give memory to a model that was made on torch's device 'meta': for weights that are to come; return it."""
    model = model.to_empty(device="cpu")
    for layer in model.statistics.values():
        if isinstance(layer, SideStatistics):
            layer.begin()
    return model


def check_new_model(folder: Path) -> CheckpointFolder:
    """Return the folder for a new model; raise SwapfastError where there is a model or another program's files."""
    check_folder(folder, "--model-dir")
    checkpoints = model_folder(folder)
    if checkpoints.steps() or checkpoints.kept_aside():
        raise SwapfastError(f"--model-dir {folder}: holds a model already; give a new folder")
    for name in (KEPT, "logs"):
        if (folder / name).exists():
            raise SwapfastError(f"--model-dir {folder}: holds {name} of another model; give a new folder")
    return checkpoints


def write_model(imported: Imported, checkpoints: CheckpointFolder) -> None:
    """Make a model folder with one checkpoint, of the iteration that the model has had.

    Raises SwapfastError where there is one already, and (code 1) where it cannot be written.
    """
    existed = checkpoints.folder.exists()
    try:
        with checkpoints.locked():
            check_new_model(checkpoints.folder)
            try:
                _write_kept(imported.kept, checkpoints.folder / KEPT)
                _write_losses(imported, checkpoints.folder / "logs")
                checkpoints.save(_checkpoint(imported))
            except BaseException:
                for folder_name in (KEPT, "logs"):
                    shutil.rmtree(checkpoints.folder / folder_name, ignore_errors=True)
                raise
    except BaseException:
        if not existed:
            shutil.rmtree(checkpoints.folder, ignore_errors=True)
        raise


def _checkpoint(imported: Imported) -> Checkpoint:
    size = imported.model.output_sizes[-1]
    means = {f"mean_{side}": imported.mean_faces.get(side, torch.full((size, size, 3), 0.5)) for side in SIDES}
    origin = {"kind": imported.kind, "from": str(imported.source), "iteration": imported.step, **imported.origin}
    state = {
        "model": imported.config.model.name,
        "synthetic_media": SYNTHETIC_MEDIA,
        "config": imported.config.checkpoint_dict(),
        "versions": {"swapfast": __version__},
        "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "imported": origin,
    }
    tensors = {"model": imported.model.state_dict(), "optimizer": dict(imported.optimizer), "faces": means}
    return Checkpoint(imported.step, tensors, state)


def _write_kept(files: Mapping[str, bytes | memoryview], folder: Path) -> None:
    """Write files to a new folder, which is there with all of them or not at all."""
    if not files:
        return
    temporary = temporary_name(folder)
    try:
        temporary.mkdir()
        for name, content in files.items():
            with open_new(temporary / name) as file:
                write_all(file, content)
            flush(temporary / name)
        flush(temporary)
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(folder, error, "choose another --model-dir") from error


def _write_losses(imported: Imported, folder: Path) -> None:
    """Write what is known of the losses as the log of a run, for `swapfast log`; of very many, some."""
    if not imported.losses:
        return
    every = -(-len(imported.losses) // MOST_LOGGED)
    log = StepLog(folder, 0, {"imported": imported.kind}, update_freq=every)
    for step, (of_a, of_b) in enumerate(imported.losses, 1):
        if step <= imported.step:
            log.on_train_batch_end(step, {"batch_total": of_a + of_b, "batch_face_A": of_a, "batch_face_B": of_b})
    log.on_train_end()


def kept_file(model_dir: Path, name: str) -> Path | None:
    """Return a file that came with an imported model, None where there is none."""
    path = model_dir / KEPT / name
    return path if path.is_file() else None
