"""What the checkpoints' JSON says of a run: settings, faces, versions, and what earlier runs left."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping

import cv2
import numpy as np
import torch

from pipelines.dataset import TrainSet
from pipelines.decode import dali_version
from pipelines.run.request import Plan
from pipelines.sides import faces_digest
from swapfast.batch import SIDES
from swapfast.checkpoints.folder import Checkpoint
from swapfast.config import TrainConfig

_KEPT = ("lr_finder", "loaded_weights", "overrides", "runs")
_LISTS = ("overrides", "runs")


def run_state(config: TrainConfig, sides: list[TrainSet]) -> dict:
    """What every checkpoint's JSON says beside the step: what was trained, on what, with what."""
    return {
        "model": config.model.name,
        "synthetic_media": "pictures made with this model are synthetic and should say so",
        "config": config.checkpoint_dict(),  # a start's folders and intervals are not the model's
        "data": {
            name: {
                "folder": str(s.source.folder.path),
                "faces": len(s),
                "held_out": len(s.validation),
                "digest": faces_digest([s]),
            }
            for name, s in zip(SIDES, sides, strict=True)
        },
        "versions": versions(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def make_state(plan: Plan, sides: list[TrainSet]) -> dict:
    """``run_state`` with what earlier runs left to be kept, and with this run as the newest of ``runs``."""
    state = run_state(plan.config, sides) | kept_state(plan.checkpoint)
    if plan.transfer is not None:
        state["loaded_weights"] = plan.transfer.to_dict()
    this = {
        "started": state["started"],
        "from_iteration": plan.step,
        "until_iteration": plan.step,
        "batch_size": plan.config.batch_size,
        "device": str(plan.device),
        "precision": plan.precision,
        "compiled": plan.config.run.compile,
        "processes": plan.processes.world,
    }
    state["runs"] = [*state.get("runs", []), this]
    return state


def versions() -> dict[str, str | None]:
    """Return the versions of what a result depends on, None for what is missing.

    kornia, which only tests and benchmarks compare with, is named where it is installed.
    """
    compared_with = {"kornia": version} if (version := package_version("kornia")) else {}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dali": dali_version(),
        "kornia_rs": package_version("kornia_rs"),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "numba": package_version("numba"),
        **compared_with,
    }


def package_version(name: str) -> str | None:
    """Return the version of an installed package, or None, without importing it: that takes 0.4 s for Numba."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def kept_state(checkpoint: Checkpoint | None) -> dict:
    """What every later checkpoint says too: of the runs so far, and of where weights and learning rate come from."""
    state = {} if checkpoint is None else checkpoint.state
    kept = {name: state[name] for name in _KEPT if name in state}
    no_lists = [name for name in _LISTS if not isinstance(kept.get(name, []), list)]  # somebody's hand in state.json
    return {name: value for name, value in kept.items() if name not in no_lists}


def kept_metrics(checkpoint: Checkpoint | None, config: TrainConfig) -> dict[str, float | None]:
    """What the checkpoint says of its losses, as far as they are numbers and compare with those that come now."""
    metrics = {} if checkpoint is None else checkpoint.state.get("metrics")
    numbers = metrics.items() if isinstance(metrics, dict) else ()
    kept = {name: value for name, value in numbers if isinstance(value, float)}
    if checkpoint is not None and TrainConfig.from_dict(checkpoint.state.get("config")).loss != config.loss:
        kept.pop("lowest_average_loss", None)  # of other functions or weights: it might never be reached again
    return kept


def _table(value: object) -> dict:
    """``value`` unless somebody's hand made something else of it."""
    return value if isinstance(value, dict) else {}


def same_faces(checkpoint: Checkpoint, data: Mapping[str, Mapping]) -> list[str]:
    """The sides whose faces are those of the checkpoint, in their order. data: as ``run_state`` has it."""
    before = _table(checkpoint.state.get("data"))
    return [side for side, now in data.items() if _table(before.get(side)).get("digest") == now["digest"]]


def changed_faces(checkpoint: Checkpoint | None, data: dict) -> list[str]:
    """A line for each side whose faces are not those of the checkpoint. data: as ``run_state`` has it."""
    lines = []
    before = _table(None if checkpoint is None else checkpoint.state.get("data"))
    for side, now in data.items():
        then = _table(before.get(side))
        if "digest" in then and then["digest"] != now["digest"]:
            lines.append(
                f"side {side.upper()}: its faces are not those it was trained on so far ({then.get('faces')} then, "
                f"{now['faces']} now)"
            )
    return lines
