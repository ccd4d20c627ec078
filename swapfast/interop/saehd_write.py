"""Writes a trained df or liae as a SAEHD model, which DeepFaceLab loads and goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from swapfast.export.request import Export
from swapfast.files import flush, open_new
from swapfast.interop.imported import kept_file
from swapfast.interop.pickle_writer import write_pickle
from swapfast.interop.saehd_layout import AVERAGES, OPTIMIZER, PARTS, averages_of, family_of, places, to_theirs
from swapfast.interop.saehd_options import options_of
from swapfast.interop.saehd_read import DATA, KEPT_DATA, MARK, read_kept_data
from swapfast.logs.steplog import NAME, read_steps


def write_saehd(export: Export, path: Path) -> list[str]:
    """Write the files of a SAEHD model into the new folder ``path``; return what to tell a person.

    A model that was imported has its options, preview and losses back.
    """
    model = export.opened.model
    lines: list[str] = []
    name = _name(export)
    path.mkdir()
    place_of, weights = places(model), dict(model.named_parameters())
    for part in PARTS[family_of(model)].values():
        arrays = {
            place.key: to_theirs(weights[n].detach(), place) for n, place in place_of.items() if place.part == part
        }
        _write(path / f"{name}{MARK}{part}.npy", arrays)
    averages = _averages(export, lines)
    if averages:
        _write(path / f"{name}{MARK}{OPTIMIZER}.npy", averages)
    if not model.learns_mask:
        lines.append("no mask is learned here: DeepFaceLab draws the mask's branch anew and learns it")
    _write(path / f"{name}{DATA}", _data(export, lines))
    flush(path)
    lines.append(f"copy the files {name}{MARK}* into DeepFaceLab's model folder")
    return lines


def _write(path: Path, value: object) -> None:
    with open_new(path) as file:
        write_pickle(file, value)
    flush(path)


def _name(export: Export) -> str:
    """Return what the model is called there: as it was, where it was imported, or as its folder."""
    origin = export.opened.metadata.state.get("imported")
    name = origin.get("name") if isinstance(origin, dict) and origin.get("kind") == "saehd" else None
    is_name = isinstance(name, str) and name and Path(name).name == name and "\0" not in name  # may have been edited
    return name if is_name else export.name or "swapfast"  # type: ignore[return-value]


def _averages(export: Export, lines: list[str]) -> dict[str, Any]:
    """Return what the optimizer's file holds, nothing where DeepFaceLab has no such optimizer."""
    model, config, metadata = export.opened
    optimizer = config.optimizer.optimizer
    if optimizer not in AVERAGES:
        lines.append(f"DeepFaceLab has no {optimizer}: the optimizer begins anew there")
        return {}
    state = load_file(metadata.path / "optimizer.safetensors")
    steps = [int(value) for key, value in state.items() if key.endswith(".step")]
    if not steps:
        return {}
    weights = dict(model.named_parameters())
    arrays: dict[str, Any] = {"iters:0": np.int64(max(steps))}
    for name, quantity, place, key in averages_of(optimizer, places(model)):
        arrays[key] = to_theirs(_average(state, f"{name}.{quantity}", weights[name]), place)
    return arrays


def _average(state: Mapping[str, Tensor], key: str, weight: Tensor) -> Tensor:
    """Return an average, zeros where its weight was frozen."""
    average = state.get(key)
    return average if average is not None and average.shape == weight.shape else torch.zeros(weight.shape)


def _data(export: Export, lines: list[str]) -> dict[str, Any]:
    """Return what data.dat holds."""
    model, config, metadata = export.opened
    folder, data = metadata.path.parent, dict[str, Any]()
    kept = kept_file(folder, KEPT_DATA)
    if kept is not None:
        data = read_kept_data(kept, config)
    options: dict[str, Any] = data.get("options") or options_of(config, model, lines)
    if config.optimizer.optimizer in AVERAGES:
        options = options | {"adabelief": config.optimizer.optimizer == "adabelief-dfl"}
    return data | {
        "iter": metadata.step,
        "options": options,
        "loss_history": _losses(folder, data.get("loss_history"), metadata.step),
        "sample_for_preview": data.get("sample_for_preview"),
        "choosed_gpu_indexes": data.get("choosed_gpu_indexes"),
    }


def _losses(folder: Path, earlier: object, step: int) -> list[Any]:
    """Return [src, dst] of each iteration: there is one for each there, and means are taken of them by number.

    An iteration that was not logged has the losses of the one before.
    """
    losses = list(earlier[:step]) if isinstance(earlier, list) else []
    logged: dict[int, list[float]] = {}
    path = folder / "logs" / NAME
    if path.is_file() and len(losses) < step:
        history = read_steps(path)
        of_src, of_dst = history.column("loss_b"), history.column("loss_a")
        logged = {n: [src, dst] for n, src, dst in zip(history.steps, of_src, of_dst) if isfinite(src + dst)}
    last = losses[-1] if losses else next((logged[n] for n in sorted(logged)), [0.0, 0.0])
    for number in range(len(losses) + 1, step + 1):
        last = logged.get(number, last)
        losses.append(last)
    return losses
