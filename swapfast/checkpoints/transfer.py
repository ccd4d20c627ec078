"""Weights from another model, and parts that are not to be trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from swapfast.batch import SIDES
from swapfast.checkpoints.folder import UNREADABLE, Checkpoint, CheckpointFolder
from swapfast.errors import SwapfastError
from swapfast.files import not_a_folder
from swapfast.models import FaceAutoencoder

PARTS = ("encoder", *(f"decoder_{side}" for side in SIDES))  # as --freeze-weights names them


def part_of(name: str) -> str:
    """'encoder.0.0.weight' -> 'encoder', 'decoders.a.face.1.bias' -> 'decoder_a'."""
    first, second, *_ = name.split(".")
    return f"decoder_{second}" if first == "decoders" else first


@dataclass
class Transfer:
    """What came over from another model. taken, of: weights by part. left: those that stay as drawn, with why."""

    source: str
    step: int
    taken: Counter = field(default_factory=Counter)
    of: Counter = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What to tell a person."""
        counts = ", ".join(f"{part} {self.taken[part]} of {self.of[part]}" for part in self.of)
        lines = [f"weights from iteration {self.step} of {self.source}: {counts}"]
        if self.left:
            more = f" and {len(self.left) - 3} more" if len(self.left) > 3 else ""
            lines.append(f"not taken: {'; '.join(self.left[:3])}{more}")
        return lines

    def to_dict(self) -> dict:
        """For the JSON of the checkpoints."""
        return {"from": self.source, "iteration": self.step, "taken": dict(self.taken), "of": dict(self.of)}


def find_weights(path: Path) -> tuple[dict[str, Tensor], int, str]:
    """The weights of a model folder's newest checkpoint, or of a checkpoint, snapshot or backup folder.

    Returns them with their step and where they lie. Raises SwapfastError where there are none.
    """
    try:
        found, where = _newest(path)
        if "model" not in found.tensors:
            raise SwapfastError(f"{path}: {where} names no model.safetensors; give another checkpoint")
    except SwapfastError as error:  # it begins with the path
        raise SwapfastError(f"--load-weights {error}", error.code) from error
    return found.tensors["model"], found.step, str(where)


def _newest(path: Path) -> tuple[Checkpoint, Path]:
    """The checkpoint that ``path`` is or, of a model folder, the newest one in it, and where it lies."""
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
    weights, step, where = find_weights(path)
    transfer, taken = Transfer(where, step), {}
    for name, own in model.state_dict().items():
        part = part_of(name)
        transfer.of[part] += 1
        theirs = weights.get(name)
        if theirs is not None and theirs.shape == own.shape:
            taken[name] = theirs
            transfer.taken[part] += 1
        else:
            there = "missing there" if theirs is None else f"{_shape(theirs)} there"
            transfer.left.append(f"{name} ({there}, {_shape(own)} here)")
    if not transfer.taken["encoder"]:
        raise SwapfastError(
            f"--load-weights {path}: no weight of its encoder fits the model {model.name!r}; give a model of the same "
            "kind (-t) or leave the flag out"
        )
    model.load_state_dict(taken, strict=False)
    return transfer


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def freeze(model: FaceAutoencoder, parts: list[str]) -> None:
    """Train no weight of these parts (see PARTS), and every other one. SwapfastError where nothing is left to train."""
    if set(parts) >= set(PARTS):
        raise SwapfastError(f"-f/--freeze-weights {' '.join(parts)}: nothing would be left to train; leave one out")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) not in parts)


def trained_state(model: FaceAutoencoder, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An optimizer's stored state less what belongs to weights that are frozen now."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {key: value for key, value in state.items() if key.rpartition(".")[0] not in frozen}
