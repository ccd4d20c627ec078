"""What the checkpoints' JSON says of a run: settings, faces, versions, and what earlier runs left."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
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
from swapfast.checkpoints.folder import SYNTHETIC_MEDIA, Checkpoint
from swapfast.config import TrainConfig
from swapfast.training.measured import Measured

_INHERITED = ("imported", "lr_finder", "loaded_weights", "overrides", "runs")
MAX_ORDINAL = 2**62  # a larger number was written by hand
MEASURED = "measured"  # in state.json: ``Measured.rows``
_LISTS = ("overrides", "runs")


def run_state(config: TrainConfig, sides: list[TrainSet]) -> dict:
    """Return what every checkpoint's JSON says beside the step: what was trained, on what, with what."""
    return {
        "model": config.model.name,
        "synthetic_media": SYNTHETIC_MEDIA,
        "config": config.checkpoint_dict(),  # a start's folders and intervals are not the model's
        "data": {
            name: {
                "folder": str(s.source.folder.path),
                "faces": len(s),
                "held_out": len(s.validation),
                "tested": s.source.tested,
                "digest": faces_digest([s]),
            }
            for name, s in zip(SIDES, sides, strict=True)
        },
        "versions": versions(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def make_state(plan: Plan, sides: list[TrainSet]) -> dict:
    """Return ``run_state`` with what earlier runs left, and with this run as the newest of ``runs``."""
    state = run_state(plan.config, sides) | inherited_state(plan.checkpoint)
    if plan.transfer is not None:
        state["loaded_weights"] = plan.transfer.to_dict()
    run = {
        "started": state["started"],
        "from_iteration": plan.step,
        "until_iteration": plan.step,
        "batch_size": plan.config.batch_size,
        "device": str(plan.device),
        "precision": plan.precision,
        "compiled": plan.config.run.compile,
        "processes": plan.processes.world,
    }
    state["runs"] = [*state.get("runs", []), run]
    return state


def versions() -> dict[str, str | None]:
    """Return the versions of what a result depends on, None for what is missing."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dali": dali_version(),
        "kornia": package_version("kornia"),
        "kornia_rs": package_version("kornia_rs"),
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "numba": package_version("numba"),
    }


def package_version(name: str) -> str | None:
    """Return the version of an installed package, or None, without importing it: that takes 0.4 s for Numba."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def inherited_state(checkpoint: Checkpoint | None) -> dict:
    """Return what every later checkpoint says too: on the runs so far, and the origin of weights and learning rate."""
    state = {} if checkpoint is None else checkpoint.state
    inherited = {name: state[name] for name in _INHERITED if name in state}
    edited = [name for name in _LISTS if not isinstance(inherited.get(name, []), list)]  # by hand, in state.json
    return {name: value for name, value in inherited.items() if name not in edited}


def inherited_metrics(
    checkpoint: Checkpoint | None,
    config: TrainConfig,
    data: Mapping[str, Mapping] | None = None,
    is_relit: bool = False,
) -> dict[str, float | None]:
    """Return what the checkpoint says of its losses and swaps, as far as that compares with those of this run.

    Swaps do where the same faces are held out, and shown in the same light; data: as ``run_state`` has it. is_relit:
    whether the light is another one now. What is no finite number is left out: no later value would ever be lower, or
    higher.
    """
    metrics = {} if checkpoint is None else checkpoint.state.get("metrics")
    numbers = metrics.items() if isinstance(metrics, dict) else ()
    inherited: dict[str, float | None] = {
        name: value for name, value in numbers if isinstance(value, float) and math.isfinite(value)
    }
    if checkpoint is not None and TrainConfig.from_dict(checkpoint.state.get("config")).loss != config.loss:
        inherited.pop("lowest_average_loss", None)  # of other functions or weights: it might never be reached again
    if not config.validation or is_relit or not _holds_out_the_same(checkpoint, data):
        for name in ("swap_quality", "highest_swap_quality"):
            inherited.pop(name, None)  # likewise
    return inherited


def inherited_measurements(checkpoint: Checkpoint | None, data: Mapping[str, Mapping]) -> Measured:
    """Return what was measured on the held-out faces so far, where they are the same. data: as ``run_state`` has it."""
    if checkpoint is None or not _holds_out_the_same(checkpoint, data):
        return Measured()
    return Measured(checkpoint.state.get(MEASURED), checkpoint.step)


def _holds_out_the_same(checkpoint: Checkpoint | None, data: Mapping[str, Mapping] | None) -> bool:
    return checkpoint is None or data is None or len(same_faces(checkpoint, data)) == len(data)


def faces_drawn(checkpoint: Checkpoint | None) -> int:
    """Return how many faces of each side were drawn before the next step.

    A checkpoint without that number comes from a run that drew as if it had had one batch size from its first step on.
    """
    if checkpoint is None:
        return 0
    counts = list(table_of(checkpoint.state.get("faces_drawn")).values())
    if counts and all(type(count) is int and 0 <= count < MAX_ORDINAL for count in counts):
        return max(counts)
    return checkpoint.step * TrainConfig.from_dict(checkpoint.state.get("config")).batch_size


def table_of(value: object) -> dict:
    """Return ``value``, or an empty table where somebody's hand made something else of it."""
    return value if isinstance(value, dict) else {}


def same_faces(checkpoint: Checkpoint, data: Mapping[str, Mapping]) -> list[str]:
    """Return the sides whose faces are those of the checkpoint, in their order. data: as ``run_state`` has it."""
    earlier = table_of(checkpoint.state.get("data"))
    return [side for side, faces in data.items() if table_of(earlier.get(side)).get("digest") == faces["digest"]]


def changed_faces(
    checkpoint: Checkpoint | None, data: Mapping[str, Mapping], remarks: Mapping[str, str] | None = None
) -> list[str]:
    """Return a line for each side whose faces are not those of the checkpoint.

    data: as ``run_state`` has it.
    remarks: side -> how many of its faces are new, where the checkpoint tells.
    """
    lines = []
    earlier = table_of(None if checkpoint is None else checkpoint.state.get("data"))
    for side, faces in data.items():
        trained = table_of(earlier.get(side))
        if "digest" in trained and trained["digest"] != faces["digest"]:
            remark = (remarks or {}).get(side)
            lines.append(
                f"side {side.upper()}: its faces are not those it was trained on so far ({trained.get('faces')} then, "
                f"{faces['faces']} now){f': {remark}' if remark else ''}"
            )
    return lines
