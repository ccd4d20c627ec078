"""Which settings a model goes on with, and what has changed since."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from pipelines.run.request import TrainRequest
from pipelines.run.run_state import inherited_state
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder, model_folder
from swapfast.checkpoints.transfer import find_weights
from swapfast.config import TrainConfig, updated
from swapfast.errors import SwapfastError
from swapfast.models.registry import find_entry
from swapfast.models.side_statistics import PLAIN, SMALLEST_BATCH
from swapfast.options import settings
from swapfast.recipes import OWN, PLAIN_CODES, RECIPES

_STATEFUL = ("optimizer.optimizer", "optimizer.amsgrad")  # another one cannot use the averages of the one before


def settled_config(request: TrainRequest) -> tuple[TrainConfig, list[str]]:
    """Return the settings that the run would train with, and lines for a person; no folder of faces is looked at.

    They are those of the model in --model-dir where there is one, and a new model's code fits its batch and its -l.
    Given back, as a file is, they settle to themselves. Raises SwapfastError as ``resumed`` and ``find_entry`` do.
    """
    run = request.config.run
    found = resumed(request, model_folder(run.model_folder)) if run.model_dir else _with_fitting_code(request)
    config, _, lines = found
    find_entry(config.model.name)
    return config, lines


def resumed(request: TrainRequest, folder: CheckpointFolder) -> tuple[TrainConfig, Checkpoint | None, list[str]]:
    """Return the config to train with, the checkpoint to go on from if there is one, and lines for a person.

    A resumed model keeps its settings but for those that are given now. Raises SwapfastError where a fixed one differs
    and is not overridden, and where ``resume`` forbids what is found.
    """
    run = request.config.run
    newest = folder.load()
    if newest is None:
        if run.resume == "must":
            raise SwapfastError(f"--resume must: {folder.folder} holds no model to go on with")
        return _with_fitting_code(request)
    if run.resume == "never":
        raise SwapfastError(
            f"--resume never: {folder.folder} holds a model already; choose another --model-dir or --resume auto"
        )
    checkpoint, damaged = newest
    state_file = str(folder.path(checkpoint.step) / "state.json")
    earlier_config = TrainConfig.from_dict(checkpoint.state.get("config"), state_file)
    config = dataclasses.replace(updated(earlier_config, request.changes), run=run)
    lines = [f"{remark}; going on from {checkpoint.step}" for remark in damaged]
    lines += _take_over(request, folder, checkpoint, earlier_config, config)
    if run.recipe != OWN and not RECIPES[run.recipe].settings.keys() <= request.changes.keys():
        lines.append(
            f"--recipe {run.recipe}: not used, for the model has settings of its own already; flags change them"
        )
    if run.load_weights:
        lines.append("--load-weights: not used, for the model has weights of its own already")
    rate = checkpoint.state.get("lr_finder")
    if run.lr_finder and rate is not None and config.lr_finder.mode != "graph_and_exit":
        config = updated(config, {"optimizer.learning_rate": rate}, f"{state_file}: lr_finder")
        lines.append(f"learning rate {rate:.3g}, which was found before")
    return config, checkpoint, lines


def _with_fitting_code(request: TrainRequest) -> tuple[TrainConfig, None, list[str]]:
    """Return a new model's config, its code fitting the weights that it begins with (-l) and the batch; with remarks.

    A code that was asked for, by name or by a recipe that has one, is left, and refused later where the batch is small.
    """
    config, lines = request.config, []
    recipe = config.run.recipe
    is_asked_for = "model.code" in request.changes or (recipe != OWN and "model.code" in RECIPES[recipe].settings)
    usual, given = config.model.code, config.run.load_weights
    source = find_weights(Path(given)).model if given else None
    if source is not None and source.code_kind != usual:
        trained_with = f"--code {source.code_kind}, which the weights of -l {given} were trained with"
        if is_asked_for:
            lines.append(f"warning: --code {usual} in place of {trained_with}: they mean little to it at first")
        else:
            config = _with_code(config, source.code_kind, request.changes)
            lines.append(f"{trained_with}; --code {usual} is usual for {config.model.name}")
    code, batch = config.model.code, config.batch_size
    if code != PLAIN and batch < SMALLEST_BATCH and not is_asked_for:
        config = _with_code(config, PLAIN, request.changes)
        lines.append(
            f"--code {PLAIN}, since -b {batch} is too small for the usual {code}, which takes its statistics from each "
            f"side's faces in a batch: -b {SMALLEST_BATCH} or more makes better swaps"
        )
        if source is not None and source.code_kind != PLAIN:
            lines.append(f"warning: -l {given} was trained with --code {source.code_kind}: it means little at first")
    return config, None, lines


def _with_code(config: TrainConfig, code: str, asked_for: Mapping[str, object]) -> TrainConfig:
    """Return the config with another code, plain ones without what they have no use for and was not asked for."""
    others = {name: value for name, value in PLAIN_CODES.items() if name not in asked_for} if code == PLAIN else {}
    return updated(config, {**others, "model.code": code})


def _take_over(
    request: TrainRequest,
    folder: CheckpointFolder,
    checkpoint: Checkpoint,
    earlier_config: TrainConfig,
    config: TrainConfig,
) -> list[str]:
    """Refuse fixed settings that differ, or note in ``checkpoint`` that they are overridden; a line for each."""
    current = settings(config)
    names = {
        name: "{} is {} there and {} now".format(*setting.as_given(name), current[name].as_given(name)[1])
        for name, setting in settings(earlier_config).items()
        if setting.option.fixed and current[name].value != setting.value
    }
    # The sides' statistics that a checkpoint holds have no place in a model with plain codes.
    becomes_plain = "model.code" in names and config.model.code == PLAIN
    shapes = [
        text for name, text in names.items() if current[name].option.shapes or (name == "model.code" and becomes_plain)
    ]
    if shapes and request.config.run.override:
        raise SwapfastError(
            f"--override: {'; '.join(shapes)}: that is the shape of the weights in {folder.folder} and cannot be "
            "overridden; start a new model in another --model-dir, with what fits of this one by --load-weights"
        )
    if names and not request.config.run.override:
        way = "" if shapes else ", or accept the change with --override"
        raise SwapfastError(
            f"--model-dir {folder.folder} holds another model: {'; '.join(names.values())}. Leave these as they are or "
            f"choose another --model-dir{way}"
        )
    if not names:
        return []
    changes = {name: [settings(earlier_config)[name].value, current[name].value] for name in names}
    overrides = inherited_state(checkpoint).get("overrides", [])
    checkpoint.state["overrides"] = [*overrides, {"iteration": checkpoint.step, "changes": changes}]
    lines = [f"--override: {text}" for text in names.values()]
    if any(name in names for name in _STATEFUL):
        checkpoint.tensors["optimizer"] = {}
        lines.append("--override: the optimizer begins anew, with its warm-up if it has one")
    return lines
