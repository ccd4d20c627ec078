"""faceswap's `original` and `lightweight` in and out, as the .keras file that Keras 3 saves."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from swapfast.checkpoints.trained import OpenedModel
from swapfast.config import CropConfig, LossConfig, TrainConfig
from swapfast.errors import SwapfastError, shortened
from swapfast.files import read_plain
from swapfast.interop.imported import KEPT, Imported, kept_file, on_host
from swapfast.interop.keras_architecture import PARTS, Architecture, find_difference, identify, read_architecture
from swapfast.interop.keras_archive import (
    BACKUP,
    CONFIG,
    METADATA,
    MOST_JSON,
    WEIGHTS,
    KerasArchive,
    Layout,
    check_h5py,
    check_layout,
    layout_of,
    open_weights,
    parse_archive,
    read_archive,
    read_dataset,
)
from swapfast.interop.keras_layout import KerasLayer, branches, keras_layers, steps_of
from swapfast.models import FaceAutoencoder
from swapfast.models.registry import plan_model

if TYPE_CHECKING:
    import h5py

LAYOUT = "layout.json"  # kept beside the file's own two: where its weights lie
STAMP = (1980, 1, 1, 0, 0, 0)  # of the files in an archive, as Keras has them


@dataclass(frozen=True)
class KerasTemplate:
    """A .keras file without its numbers.

    layout: path of a group 'vars' -> name of the layer whose numbers it holds.
    """

    archive: KerasArchive
    architecture: Architecture
    layout: Layout


# --- in ---------------------------------------------------------------------------------------------------------------


def read_keras(path: Path) -> Imported:
    """Read faceswap's model from a .keras file; no Keras is needed for it.

    Iterations and crop are those of the file NAME_state.json beside it, where there is one. Raises SwapfastError where
    the file holds another network, naming it, is damaged, or holds numbers that are not finite.
    """
    archive = read_archive(path)
    architecture = read_architecture(archive)
    model_config = dataclasses.replace(identify(path, architecture), comparable_poses="auto")
    with torch.device("meta"):
        model = plan_model(model_config, architecture.learns_mask)
    model = on_host(model)
    layout = read_numbers(model, archive, architecture)
    state, remark = _read_state(path)
    config = TrainConfig(
        model=model_config, loss=LossConfig(learn_mask=architecture.learns_mask), crop=_crop_of(state, CropConfig())
    )
    crop = config.crop
    lines = [
        f"faceswap's {model_config.name}{' lowmem' if model_config.lowmem else ''}"
        f"{' with a learned mask' if architecture.learns_mask else ''}: {describe(model)}",
        remark,
        f"trained on crops of centering {crop.centering}, {crop.coverage:g} %",
        "the optimizer's state was left behind: training goes on with an optimizer that begins anew",
    ]
    return Imported(
        kind="keras",
        source=path,
        step=_iterations_of(state),
        config=config,
        model=model,
        origin={"keras_version": str(json.loads(archive.metadata).get("keras_version", ""))[:40]},
        kept={CONFIG: archive.config, METADATA: archive.metadata, LAYOUT: json.dumps(layout, indent=1).encode()},
        lines=lines,
    )


def _parameters(model: FaceAutoencoder) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def describe(model: FaceAutoencoder) -> str:
    """Return a network's sizes in a line: px, filters and units of its parts."""
    texts = [f"{model.input_size} px in and out"]
    for (part, kind), module in branches(model).items():
        if kind == "mask" or part == PARTS[2]:
            continue
        sizes = [str(step[-1]) for step in steps_of(module) if step[0] in ("convolution", "dense")]
        texts.append(f"{'decoders' if kind == 'face' else part} {' '.join(sizes)}")
    return f"{', '.join(texts)}; {_parameters(model):,} parameters"


def _layers(model: FaceAutoencoder, architecture: Architecture) -> Iterator[tuple[str, str, KerasLayer]]:
    """Yield each layer with weights: its part, its name in the file, and ours."""
    for (part, kind), module in branches(model).items():
        for name, layer in zip(architecture.branches[part, kind].names, keras_layers(module), strict=True):
            yield part, name, layer


def _paths(layout: Layout) -> dict[tuple[str, str], str]:
    """Return where the layers of a file lie, by part and name."""
    parts = {path.removesuffix("/vars"): name for path, name in layout.items() if path.count("/") == 2}
    return {
        (parts[part], name): path
        for path, name in layout.items()
        if path.count("/") == 4 and (part := path.rsplit("/layers/", 1)[0]) in parts
    }


def read_numbers(model: FaceAutoencoder, archive: KerasArchive, architecture: Architecture) -> Layout:
    """Fill ``model``, which must be the network of the architecture, with an archive's numbers; return their layout.

    Raises SwapfastError where one is missing, of another shape or not finite.
    """
    with open_weights(archive.path, 4 * _parameters(model)) as file:
        layout = layout_of(file)
        _fill(model, architecture, layout, file)
    return layout


def _fill(model: FaceAutoencoder, architecture: Architecture, layout: Layout, file: h5py.File) -> None:
    """Take all numbers of a weights file. Raises ValueError where one is not as it should be."""
    paths = _paths(layout)
    for part, name, layer in _layers(model, architecture):
        path = paths.get((part, name))
        if path is None:
            raise ValueError(f"it has no weights of the layer {shortened(name)} of {part}")
        kernel = read_dataset(file, f"{path}/0", layer.kernel_shape)
        bias = read_dataset(file, f"{path}/1", layer.kernel_shape[-1:])
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise ValueError(f"the layer {shortened(name)} of {part} has numbers that are not finite")
        layer.fill(kernel, bias)


def _read_state(path: Path) -> tuple[Mapping[str, Any], str]:
    """Return what faceswap keeps beside a model of its iterations and settings, and a line about that."""
    backup = BACKUP if path.suffix == BACKUP else ""
    name = path.name.removesuffix(backup)
    beside = path.with_name(f"{Path(name).stem}_state.json{backup}")
    if not beside.is_file() or beside.stat().st_size > MOST_JSON:
        return (
            {},
            f"there is no {beside.name} beside it: iterations are counted from 0, crops are faceswap's usual ones",
        )
    try:
        state = json.loads(read_plain(beside).decode())
    except (OSError, ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        return {}, f"{beside} cannot be read: iterations are counted from 0, crops are faceswap's usual ones"
    return state, f"iteration {_iterations_of(state)}, as {beside.name} says"


def _iterations_of(state: Mapping[str, Any]) -> int:
    iterations = state.get("iterations")
    return iterations if type(iterations) is int and 0 <= iterations < 10**9 else 0


def _crop_of(state: Mapping[str, Any], usual: CropConfig) -> CropConfig:
    """Return the crop that faceswap's settings tell, the usual one where they do not."""
    settings = state.get("config")
    if not isinstance(settings, dict):
        return usual
    try:
        return CropConfig(
            centering=settings.get("centering", usual.centering),
            coverage=float(settings.get("coverage", usual.coverage)),
            vertical_offset=float(settings.get("vertical_offset", usual.vertical_offset)),
        )
    except (SwapfastError, TypeError, ValueError):
        return usual


# --- out --------------------------------------------------------------------------------------------------------------


def read_template(path: Path) -> KerasTemplate:
    """Return a .keras file without its numbers. Raises SwapfastError where it is none."""
    archive = read_archive(path)
    architecture = read_architecture(archive)
    with torch.device("meta"):
        model = plan_model(identify(path, architecture), architecture.learns_mask)
    with open_weights(path, 4 * _parameters(model)) as file:
        return KerasTemplate(archive, architecture, layout_of(file))


def kept_template(model_dir: Path) -> KerasTemplate | None:
    """Return what a model folder kept of the .keras file that it was imported from, None where it was not.

    Raises SwapfastError where that is damaged.
    """
    paths = [kept_file(model_dir, name) for name in (CONFIG, METADATA, LAYOUT)]
    if None in paths:
        return None
    folder = model_dir / KEPT
    try:
        config, metadata, layout_text = (read_plain(path) for path in paths if path is not None)
        layout = json.loads(layout_text.decode())
        check_layout(layout)
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SwapfastError(f"{folder}: is damaged ({reason}); give --template FILE.keras") from error
    archive = parse_archive(folder, config, metadata)
    return KerasTemplate(archive, read_architecture(archive), layout)


def export_keras(opened: OpenedModel, template: Path | None, path: Path) -> list[str]:
    """Write an opened model to ``path`` as faceswap's .keras file; return lines to tell a person.

    template: a .keras file of the same network; None for what the model folder kept of the file it came from. Raises
    SwapfastError where there is neither, or it is of another network, and OSError where the file cannot be written.
    """
    folder = opened.metadata.path.parent
    template_file = kept_template(folder) if template is None else read_template(template)
    if template_file is None:
        raise SwapfastError(
            f"--to keras: {folder} was not imported from a .keras file, and faceswap needs more of it than the "
            "weights; give one of the same network, such as faceswap saves after an iteration: --template FILE.keras"
        )
    write_keras(opened.model, template_file, path)
    name = template_file.architecture.name
    return [
        f"for faceswap call it {name}.keras, beside the {name}_state.json of a run; the optimizer begins anew there",
    ]


def check_fits(model: FaceAutoencoder, template: KerasTemplate) -> None:
    """Raise SwapfastError where a model is not the network that a template describes."""
    architecture, problem = template.architecture, ""
    if model.learns_mask != architecture.learns_mask:
        problem = f"only {'the model' if model.learns_mask else 'that file'} learns a mask"
    elif branches(model).keys() != architecture.branches.keys():
        problem = f"the model consists of {', '.join(model.parts())}"
    else:
        try:
            _, problem = find_difference(model, architecture)
        except SwapfastError as error:
            problem = str(error)
    if problem:
        raise SwapfastError(
            f"{template.archive.path}: is of faceswap's {shortened(architecture.name)} and does not fit the model "
            f"{model.name!r}: {problem}; give a template of the same network"
        )


def write_keras(model: FaceAutoencoder, template: KerasTemplate, path: Path) -> None:
    """Write ``model`` to ``path`` as the .keras file that ``template`` is of, with the model's weights.

    Raises SwapfastError where the model does not fit the template, and OSError where the file cannot be written.
    """
    check_h5py("--to keras")
    check_fits(model, template)
    weights = path.with_name(f"{path.name}.h5")
    try:
        _write_weights(model, template, weights)
        with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(METADATA, STAMP), template.archive.metadata)
            archive.writestr(zipfile.ZipInfo(CONFIG, STAMP), template.archive.config)
            info = zipfile.ZipInfo(WEIGHTS, STAMP)
            info.file_size = weights.stat().st_size
            with weights.open("rb") as source, archive.open(info, "w") as member:
                shutil.copyfileobj(source, member, 1 << 20)
    finally:
        weights.unlink(missing_ok=True)


def _write_weights(model: FaceAutoencoder, template: KerasTemplate, path: Path) -> None:
    """Write the HDF5 file of an archive. Raises OSError, and SwapfastError where the template has no place for it."""
    import h5py

    places = _paths(template.layout)
    with h5py.File(path, "x") as file:
        for group, name in template.layout.items():
            file.require_group(group).attrs["name"] = name
        for part, name, layer in _layers(model, template.architecture):
            if (part, name) not in places:
                raise SwapfastError(
                    f"{template.archive.path}: has no place for the layer {shortened(name)} of {part}; give another "
                    "template"
                )
            for number, values in enumerate(layer.numbers()):
                file[places[part, name]].create_dataset(str(number), data=values)
