"""Weights from another model, and parts that are not to be trained."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from swapfast.checkpoints.folder import UNREADABLE, Checkpoint, CheckpointFolder
from swapfast.errors import SwapfastError, unknown_name
from swapfast.files import not_a_folder, open_plain
from swapfast.models import FaceAutoencoder


def part_of(name: str) -> str:
    """Return the part of a weight: 'encoder.0.0.weight' -> 'encoder', 'decoders.a.face.1.bias' -> 'decoder_a'.

    As FaceAutoencoder.parts and --freeze-weights name them.
    """
    first, second, *_ = name.split(".")
    return f"{first[:-1]}_{second}" if first in ("decoders", "inters") else first


@dataclass
class Transfer:
    """What came over from another model.

    source   the folder that held it
    step     iterations it had
    loaded   weights that came over, by part
    total    weights of this model, by part
    skipped  a phrase for each weight that stays as drawn, with its name and the reason
    """

    source: str
    step: int
    loaded: Counter = field(default_factory=Counter)
    total: Counter = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return what to tell a person."""
        counts = ", ".join(f"{part} {self.loaded[part]} of {total}" for part, total in self.total.items())
        lines = [f"weights from iteration {self.step} of {self.source}: {counts}"]
        if self.skipped:
            rest = f" and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
            lines.append(f"not taken: {'; '.join(self.skipped[:3])}{rest}")
        return lines

    def to_dict(self) -> dict:
        """Return what the JSON of the checkpoints says of it."""
        return {"from": self.source, "iteration": self.step, "taken": dict(self.loaded), "of": dict(self.total)}


def find_weights(path: Path) -> tuple[dict[str, Tensor], int, str]:
    """Return the weights of a model folder's newest checkpoint, their step, and the folder that holds them.

    path: may also be the folder of a checkpoint, snapshot or backup, or a .safetensors file of `swapfast export`.
    Raises SwapfastError where there are no weights.
    """
    try:
        if path.suffix == ".safetensors" and path.exists() and not path.is_dir():
            return *_exported(path), str(path)
        checkpoint, folder = _newest(path)
        if "model" not in checkpoint.tensors:
            raise SwapfastError(f"{path}: {folder} names no model.safetensors; give another checkpoint")
    except SwapfastError as error:  # it begins with the path
        raise SwapfastError(f"--load-weights {error}", error.code) from error
    return checkpoint.tensors["model"], checkpoint.step, str(folder)


def _exported(path: Path) -> tuple[dict[str, Tensor], int]:
    """Return the weights in a .safetensors file, and their step, 0 where it does not say."""
    try:
        open_plain(path).close()
        with safe_open(path, "pt") as file:
            step = (file.metadata() or {}).get("iteration", "")
            names = file.keys()
            weights = {name: file.get_tensor(name) for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise SwapfastError(f"{path}: cannot be read ({error}); give another file or a model folder") from error
    return weights, int(step) if re.fullmatch("[0-9]{1,13}", step) else 0


def _newest(path: Path) -> tuple[Checkpoint, Path]:
    """Return the checkpoint that ``path`` is, or the newest one of a model folder, and its folder."""
    if not path.is_dir():
        raise not_a_folder(path, str(path), "a model folder")
    if (path / "state.json").is_file():
        try:
            return CheckpointFolder.read(path), path
        except UNREADABLE as error:
            raise SwapfastError(f"{path}: is damaged ({error}); give another checkpoint") from error
    folder = CheckpointFolder(path)
    loaded = folder.load("--load-weights")
    if loaded is None:
        raise SwapfastError(f"{path}: holds no model; give a folder that `swapfast train` made")
    return loaded[0], folder.path(loaded[0].step)


def load_weights_from(model: FaceAutoencoder, path: Path) -> Transfer:
    """Fill what fits of ``model``, by name and shape, with the weights of the model at ``path``.

    Raises SwapfastError where nothing of the encoder fits: that is what is worth having.
    """
    weights, step, source = find_weights(path)
    transfer, fitting = Transfer(source, step), {}
    for name, target in model.state_dict().items():
        part = part_of(name)
        transfer.total[part] += 1
        weight = weights.get(name)
        if weight is not None and weight.shape == target.shape:
            fitting[name] = weight
            transfer.loaded[part] += 1
        else:
            shape = "missing there" if weight is None else f"{_shape(weight)} there"
            transfer.skipped.append(f"{name} ({shape}, {_shape(target)} here)")
    if not transfer.loaded["encoder"]:
        raise SwapfastError(
            f"--load-weights {path}: no weight of its encoder fits the model {model.name!r}; give a model of the same "
            "kind (-t) or leave the flag out"
        )
    model.load_state_dict(fitting, strict=False)
    return transfer


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def freeze(model: FaceAutoencoder, parts: list[str]) -> None:
    """Exclude the weights of these parts (see FaceAutoencoder.parts) from training, and train every other one.

    Raises SwapfastError for a part that the model has not, and where nothing is left to train.
    """
    known = list(model.parts())
    for part in parts:
        if part not in known:
            raise unknown_name(f"-f/--freeze-weights: part of the model {model.name!r}", part, known)
    if set(parts) >= set(known):
        raise SwapfastError(f"-f/--freeze-weights {' '.join(parts)}: nothing would be left to train; leave one out")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) not in parts)


def trained_state(model: FaceAutoencoder, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an optimizer's stored state without what belongs to weights that are frozen now."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {key: value for key, value in state.items() if key.rpartition(".")[0] not in frozen}
