"""Reads SAEHD models of DeepFaceLab: a folder of files NAME_SAEHD_..., with those of other models beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swapfast.batch import SIDES
from swapfast.config import TrainConfig
from swapfast.errors import SwapfastError, shortened
from swapfast.files import read_plain
from swapfast.interop.imported import Imported, on_host
from swapfast.interop.pickles import read_pickle, read_pickle_file
from swapfast.interop.saehd_layout import OPTIMIZER, PARTS, Place, averages_of, family_of, places, shape_there, to_ours
from swapfast.interop.saehd_options import config_of, iteration_of
from swapfast.models import FaceAutoencoder
from swapfast.models.registry import plan_model

MARK = "_SAEHD_"
DATA = f"{MARK}data.dat"
KEPT_DATA = "SAEHD_data.dat"
_OTHERS = ("AMP", "Quick96", "XSeg", "SAE", "H64", "H128", "DF", "LIAEF128", "AMT")  # of its models
_LEFT_BEHIND = ("GAN.npy", "GAN_opt.npy", "code_discriminator.npy", "D_code_opt.npy")


class _Found(NamedTuple):
    folder: Path
    name: str

    def path(self, file: str) -> Path:
        return self.folder / f"{self.name}{MARK}{file}"


def looks_like_saehd(path: Path) -> bool:
    """Return whether ``path`` is meant as a SAEHD model: a folder, a name in one, or one of its files."""
    if path.is_dir() or MARK in path.name:
        return True
    return path.parent.is_dir() and not path.exists() and bool(_names(path.parent))


def read_saehd(path: Path) -> Imported:
    """Read the SAEHD model at ``path``: the folder of one, FOLDER/NAME, or an autobackup's folder.

    Raises SwapfastError where there is none, or several and no name; where a part is missing, damaged, of another
    size, or calls anything.
    """
    files = _find(path)
    data_path = files.path("data.dat")
    try:
        data_bytes = read_plain(data_path)
    except OSError as error:
        raise SwapfastError(f"{data_path}: cannot be read ({error.strerror or error}); give another copy") from error
    data = _table(read_pickle(data_bytes, str(data_path)), str(data_path))
    options = _table(data.get("options"), f"{data_path}: options")
    step = iteration_of(data, str(data_path))
    config, lines = config_of(options, f"{data_path}: options")
    try:
        with torch.device("meta"):
            model = plan_model(config.model, config.loss.learn_mask)
    except SwapfastError as error:
        raise SwapfastError(f"{data_path}: options that make no network: {error}") from error
    model = on_host(model)
    read_weights(model, files)
    optimizer, remark = read_averages(model, files, config)
    lines = [*([remark] if remark else []), *lines]
    files_left_behind = [file for file in _LEFT_BEHIND if files.path(file).exists()]
    if files_left_behind:
        lines.append(f"left behind: {', '.join(files_left_behind)}; DeepFaceLab draws these anew")
    kept_files: dict[str, bytes | memoryview] = {KEPT_DATA: data_bytes}
    means = _mean_faces(data.get("sample_for_preview"), config.model.input_size)
    losses = _losses(data.get("loss_history"))
    return Imported(
        "saehd", path, step, config, model, optimizer, means, {"name": files.name}, losses, kept_files, lines
    )


def read_kept_data(path: Path, config: TrainConfig) -> dict[str, object]:
    """Return what the data.dat held that a model was imported with.

    Raises SwapfastError where it is damaged, or tells of another network than ``config``.
    """
    data = _table(read_pickle_file(path), str(path))
    options = _table(data.get("options"), f"{path}: options")
    model = config_of(options, f"{path}: options")[0].model
    if dataclasses.replace(model, freeze=config.model.freeze) != config.model:
        raise SwapfastError(f"{path}: tells of another network; remove it to export with options of the settings here")
    return data


# --- finding ------------------------------------------------------------------------------------------------


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name.removesuffix(DATA) for path in folder.iterdir() if path.name.endswith(DATA))
    except OSError:
        return []


def _find(path: Path) -> _Found:
    if not path.is_dir():
        return _find_named(path.parent, path.name.rpartition(MARK)[0] or path.name, path)
    names = _names(path)
    if len(names) == 1:
        return _Found(path, names[0])
    if names:
        names_text = ", ".join(names[:20])
        raise SwapfastError(
            f"{path}: holds {len(names)} models; give one, as in {path / names[0]}. There are {names_text}"
        )
    raise SwapfastError(f"{path}: {_what_else(path)}")


def _what_else(folder: Path) -> str:
    """Return what a folder without a SAEHD model holds instead, and the way out."""
    files = sorted(file.name for file in folder.iterdir())
    if backups := [name for name in files if _names(folder / name)]:
        return f"holds folders of models; give one of {', '.join(backups[:30])}"
    if parts := sorted({name.partition(MARK)[0] for name in files if MARK in name and name.endswith(".npy")}):
        return f"has no {parts[0]}{DATA}, which tells of the network; give a whole copy"
    for other in _OTHERS:
        if any(name.endswith(f"_{other}_data.dat") for name in files):
            return f"holds a model of DeepFaceLab's {other}, and only SAEHD is read; give another folder"
    if archives := [name for name in files if name.endswith(".keras")]:
        return f"is a folder, and of faceswap's models the file is read; give {folder / archives[0]}"
    return f"holds no model of DeepFaceLab (NAME{DATA}); give another folder"


def _find_named(folder: Path, name: str, path: Path) -> _Found:
    names = _names(folder)
    if name in names:
        return _Found(folder, name)
    if not names:
        raise SwapfastError(f"{path}: no such file or folder; give a folder of DeepFaceLab's models")
    raise SwapfastError(f"{path}: no model of that name; there are {', '.join(names[:20])}")


# --- reading ------------------------------------------------------------------------------------------------


def _table(value: object, source: str) -> dict[str, object]:
    """Return ``value``, which must be a dictionary whose keys are texts."""
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise SwapfastError(f"{source}: is a {type(value).__name__} and no table of names; give another copy")
    return value


def read_weights(model: FaceAutoencoder, files: _Found) -> None:
    """Fill a model with the weights of its parts' files; raise SwapfastError where one is not the model's."""
    place_of = places(model)
    parameters = dict(model.named_parameters())
    paths = {part: files.path(f"{part}.npy") for part in PARTS[family_of(model)].values()}
    if missing := [path.name for path in paths.values() if not path.exists()]:
        raise SwapfastError(f"{files.folder}: lacks {', '.join(missing)}; give a whole copy of the model")
    for part, path in paths.items():
        arrays = _table(read_pickle_file(path), str(path))
        places_of_part = {name: place for name, place in place_of.items() if place.part == part}
        if unknown := sorted(arrays.keys() - {place.key for place in places_of_part.values()}):
            raise SwapfastError(f"{path}: has weights that a {model.name} has not: {_few(unknown)}; give another copy")
        for name, place in places_of_part.items():
            weight = _taken(arrays, place.key, place, parameters[name], path)
            parameters[name].data = weight


def _taken(arrays: Mapping[str, object], key: str, place: Place, parameter: Tensor, path: Path) -> Tensor:
    """Return one array of a file in our order; raise SwapfastError where it is not as large as the weight."""
    array, shape = arrays.get(key), shape_there(parameter.shape)
    if key not in arrays:
        raise SwapfastError(f"{path}: lacks {key}; give a whole copy of the model")
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise SwapfastError(f"{path}: {key} is {kind} and should be an array of float32; give another copy")
    if array.shape != shape:
        raise SwapfastError(
            f"{path}: {key} is {_size(array.shape)} and should be {_size(shape)} by the model's options; give the "
            "files of one model"
        )
    tensor = to_ours(array, place)
    if not tensor.isfinite().all():
        raise SwapfastError(f"{path}: {key} has values that are not finite; give an older copy, such as an autobackup")
    return tensor


def read_averages(model: FaceAutoencoder, files: _Found, config: TrainConfig) -> tuple[dict[str, Tensor], str]:
    """Return the optimizer's state, as ours is stored, and what to tell of it where there is none.

    Raises SwapfastError where a part of it is missing or another model's.
    """
    path, optimizer = files.path(f"{OPTIMIZER}.npy"), config.optimizer.optimizer
    if not path.exists():
        return {}, f"there is no {path.name}: the optimizer begins anew"
    arrays = _table(read_pickle_file(path), str(path))
    averages = list(averages_of(optimizer, places(model)))
    if not any(key in arrays for *_, key in averages):
        return {}, f"{path.name} is another optimizer's: {optimizer} begins anew"
    iterations = _iterations(arrays.get("iters:0"), path)
    parameters, state = dict(model.named_parameters()), {}
    for name, quantity, place, key in averages:
        state[f"{name}.{quantity}"] = _taken(arrays, key, place, parameters[name], path)
        state[f"{name}.step"] = torch.tensor(float(iterations))
    return state | {"@steps": torch.tensor(iterations)}, ""


def _iterations(value: object, path: Path) -> int:
    number = value.item() if isinstance(value, np.ndarray) and value.shape in ((), (1,)) else value
    if type(number) is not int or not 0 <= number < 1 << 24:  # counted in float32
        raise SwapfastError(f"{path}: iters:0 is {shortened(number)} and should be a count; give another copy")
    return number


def _losses(history: object) -> list[tuple[float, float]]:
    """Return the losses of A and B of each iteration: it keeps [src, dst]."""
    pairs = history if type(history) is list else []
    if not all(type(pair) in (list, tuple) and len(pair) == 2 and set(map(type, pair)) <= {float} for pair in pairs):
        return []
    return [(dst, src) for src, dst in pairs]


def _mean_faces(samples: object, size: int) -> dict[str, Tensor]:
    """Return the mean of the faces that the model shows in its preview, where there are any; they are *src*, *dst*."""
    means: dict[str, Tensor] = {}
    sides = samples if isinstance(samples, (list, tuple)) and len(samples) == len(SIDES) else ()
    for side, of_side in zip(reversed(SIDES), sides):
        faces = of_side[1] if isinstance(of_side, (list, tuple)) and len(of_side) > 1 else None
        if isinstance(faces, np.ndarray) and faces.dtype == np.float32 and faces.ndim == 4 and len(faces):
            mean = torch.from_numpy(faces.mean(0, dtype=np.float64).astype(np.float32))
            if mean.shape == (size, size, 3) and mean.isfinite().all():
                means[side] = mean.clamp(0, 1)
    return means


def _few(names: list[str]) -> str:
    return ", ".join(shortened(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"
