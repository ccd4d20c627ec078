"""Weights from another model, and parts that are not to be trained."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from swapfast.checkpoints.averages import (
    FILE,
    RAW,
    average_name,
    averages_of,
    choose_average,
    require_fitting,
    stored_half_lives,
)
from swapfast.checkpoints.folder import UNREADABLE, Checkpoint, CheckpointFolder
from swapfast.config import TrainConfig
from swapfast.errors import SwapfastError, unknown_name
from swapfast.files import not_a_folder, open_plain
from swapfast.models import FaceAutoencoder
from swapfast.models.autoencoder import without_reader
from swapfast.models.registry import plan_model

SAFETENSORS = ".safetensors"
_NUMBERS = re.compile(r"(\.\d+)+$")  # at the end of the name of a layer in a chain of nn.Sequential


def part_of(name: str) -> str:
    """Return the part of a weight: 'encoder.0.0.weight' -> 'encoder', 'decoders.a.face.1.bias' -> 'decoder_a'.

    As FaceAutoencoder.parts and --freeze-weights name them.
    """
    first, second, *_ = name.split(".")
    return f"{first[:-1]}_{second}" if first in ("decoders", "inters") else first


@dataclass
class Transfer:
    """What came over from another model.

    source   the folder or file that held it
    step     iterations it had
    loaded   weights that came over, by part
    total    weights of this model, by part
    skipped  a phrase for each weight that stays as drawn, with its name and the reason
    weights  which of the other's: 'raw', or averaged ones such as 'ema-500'
    """

    source: str
    step: int
    loaded: Counter = field(default_factory=Counter)
    total: Counter = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    weights: str = RAW

    def lines(self) -> list[str]:
        """Return what to tell a person."""
        counts = ", ".join(f"{part} {self.loaded[part]} of {total}" for part, total in self.total.items())
        kind = "weights" if self.weights == RAW else f"averaged weights ({self.weights})"
        lines = [f"{kind} from iteration {self.step} of {self.source}: {counts}"]
        if self.skipped:
            ending = f" and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
            lines.append(f"not taken: {'; '.join(self.skipped[:3])}{ending}")
        return lines

    def to_dict(self) -> dict:
        """Return what the JSON of the checkpoints says of it."""
        averaged = {} if self.weights == RAW else {"weights": self.weights}
        taken = {"taken": dict(self.loaded), "of": dict(self.total)}
        return {"from": self.source, "iteration": self.step, **averaged, **taken}


@dataclass(frozen=True)
class FoundWeights:
    """The weights of a trained model.

    weights: by name. step: iterations they had. source: the folder or file that holds them. model: the network that
    they are of, without weights; None where that is not known. kind: 'raw', or averaged ones such as 'ema-500'.
    """

    weights: dict[str, Tensor]
    step: int
    source: str
    model: FaceAutoencoder | None = None
    kind: str = RAW


def find_weights(path: Path, averaged: bool = True) -> FoundWeights:
    """Return the weights of a model folder's newest checkpoint, averaged ones where it has some unless told otherwise.

    path: may also be the folder of a checkpoint, snapshot or backup, or a file that `export --to safetensors` wrote.
    Raises SwapfastError where there are no weights.
    """
    try:
        if path.suffix == SAFETENSORS and path.exists() and not path.is_dir():
            return _exported(path)
        if path.suffix.lower() in (".keras", ".h5") and path.is_file():
            raise SwapfastError(f"{path}: is another program's file; make a model folder of it with `swapfast import`")
        checkpoint, folder = _newest(path)
        if "model" not in checkpoint.tensors:
            raise SwapfastError(f"{path}: {folder} names no model.safetensors; give another checkpoint")
    except SwapfastError as error:  # it begins with the path
        raise SwapfastError(f"--load-weights {error}", error.code) from error
    weights, config = checkpoint.tensors["model"], checkpoint.state.get("config")
    averages = checkpoint.tensors.get(FILE, {})
    half_life = choose_average("auto" if averaged else RAW, stored_half_lives(averages, _half_lives(config)), "")
    if half_life is not None:
        require_fitting(averages_of(averages, half_life), weights, folder)
        weights = weights | averages_of(averages, half_life)
    return FoundWeights(weights, checkpoint.step, str(folder), _network(config), average_name(half_life))


def _half_lives(config: object) -> tuple[int, ...]:
    """Return the half-lives that a configuration names; none where it cannot be read."""
    try:
        return TrainConfig.from_dict(config).optimizer.half_lives
    except SwapfastError:
        return ()


def _exported(path: Path) -> FoundWeights:
    """Return the weights of an exported file, as float32; their step is 0 where it does not say."""
    try:
        open_plain(path).close()
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  # no mapping
        bad = next((name for name, weight in weights.items() if not weight.isfinite().all()), None)
        if bad is not None:
            raise ValueError(f"{bad} holds a number that is not finite")
        settings = json.loads(about.get("model_settings", "null"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SwapfastError(f"{path}: cannot be read ({reason}); give another file or a model folder") from error
    iteration = about.get("iteration", "")
    step = int(iteration) if re.fullmatch("[0-9]{1,13}", iteration) else 0
    learns_mask = about.get("learned_mask") == "true"
    return FoundWeights(weights, step, str(path), _network({"model": settings, "loss": {"learn_mask": learns_mask}}))


def _network(config: object) -> FaceAutoencoder | None:
    """Return the network that a configuration names, without weights; None where it names none."""
    try:
        settings = TrainConfig.from_dict(config)
        with torch.device("meta"):
            return plan_model(settings.model, settings.loss.learn_mask)
    except SwapfastError:
        return None


def _newest(path: Path) -> tuple[Checkpoint, Path]:
    """Return the checkpoint that ``path`` is, or the newest one of a model folder, and its folder."""
    if not path.is_dir():
        raise not_a_folder(path, str(path), "a model folder or a .safetensors file")
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


def roles(model: FaceAutoencoder) -> dict[str, str]:
    """Return what each weight of a model is to the network, by its name.

    Two sizes of ``original`` number their layers differently: a larger picture has more halvings behind the first ones
    and more doublings in front of the last ones. So halvings and dense layers are counted from the input, all others
    from the output. Layers that have names of their own are called by these.
    """
    chains: dict[tuple[str, str], list[str]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            kind = "dense" if isinstance(layer, nn.Linear) else "halving" if max(layer.stride) > 1 else "convolution"
            chains.setdefault((_NUMBERS.sub("", name), kind), []).append(name)
    result = {}
    for (chain, kind), names in chains.items():
        for number, name in enumerate(names[::-1] if kind == "convolution" else names):
            for parameter, _ in model.get_submodule(name).named_parameters():
                result[f"{name}.{parameter}"] = f"{chain}: {kind} {number}, {parameter}"
    return result


def load_weights_from(model: FaceAutoencoder, path: Path, averaged: bool = True) -> Transfer:
    """Fill what fits of ``model``, by role and shape, with the weights of the model at ``path``; see ``find_weights``.

    Raises SwapfastError where nothing of the encoder fits: that is what is worth having.
    """
    source = find_weights(path, averaged)
    ours = roles(model) if source.model is not None else {}
    theirs = {} if source.model is None else roles(source.model)
    by_role = {theirs.get(name, name): weight for name, weight in source.weights.items()}
    transfer, fitting = Transfer(source.source, source.step, weights=source.kind), {}
    for name, target in without_reader(dict(model.named_parameters())).items():
        part = part_of(name)
        transfer.total[part] += 1
        weight = by_role.get(ours.get(name, name))
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
    part_names = list(model.parts())
    for part in parts:
        if part not in part_names:
            raise unknown_name(f"-f/--freeze-weights: part of the model {model.name!r}", part, part_names)
    if set(parts) >= set(part_names):
        raise SwapfastError(f"-f/--freeze-weights {' '.join(parts)}: nothing would be left to train; leave one out")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) not in parts)


def trained_state(model: FaceAutoencoder, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an optimizer's stored state without what belongs to weights that are frozen, or not needed, now."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    needed = state if model.landmark_reader is not None else without_reader(state)
    return {key: value for key, value in needed.items() if key.rpartition(".")[0] not in frozen}
