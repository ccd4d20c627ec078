"""The light of the two sides over the life of a model: measured once, then as its checkpoints say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pipelines.dataset import TrainSet
from pipelines.run.run_state import same_faces
from pipelines.side_light import LIMITS, SideLight, side_light
from swapfast.checkpoints.folder import Checkpoint
from swapfast.config import TrainConfig
from swapfast.processes import Processes

STATE = "light_ratio"  # in state.json: ``SideLight.ratio``, or null where the light is not exchanged
_PART, _RATIO = "light", "ratio"


def run_light(
    sides: Sequence[TrainSet],
    config: TrainConfig,
    checkpoint: Checkpoint | None,
    data: Mapping[str, Mapping],
    processes: Processes,
) -> SideLight | None:
    """Return the light of the sides, the same in all processes; None where it is not exchanged.

    The checkpoint's own is taken where faces and settings are the same: so a run that goes on is the run that was cut
    off. data: as ``run_state`` has it. Raises SwapfastError where the light is asked for and cannot be told.
    """
    parts = None
    if processes.is_first:
        light = _known(checkpoint) if _is_known(config, checkpoint, data) else side_light(sides, config)
        parts = {_PART: {} if light is None else {_RATIO: torch.tensor(light.ratio, dtype=torch.float64)}}
    received = (processes.broadcast_tensors(parts) or {}).get(_PART, {})
    return SideLight(*[tuple(ratio.tolist()) for ratio in received.values()]) if received else None


def _is_known(config: TrainConfig, checkpoint: Checkpoint | None, data: Mapping[str, Mapping]) -> bool:
    """Whether the checkpoint says how these faces are lit, by the same settings, and as this program writes it."""
    if checkpoint is None or STATE not in checkpoint.state or len(same_faces(checkpoint, data)) != len(data):
        return False
    before = TrainConfig.from_dict(checkpoint.state.get("config")).augmentation.exchange_light
    value = checkpoint.state[STATE]
    is_ratio = isinstance(value, list) and len(value) == len("BGR") and all(isinstance(v, float) for v in value)
    fits = value is None or (is_ratio and all(LIMITS[0] <= v <= LIMITS[1] for v in value))
    return before == config.augmentation.exchange_light and fits


def _known(checkpoint: Checkpoint | None) -> SideLight | None:
    assert checkpoint is not None, "known"
    value = checkpoint.state[STATE]
    return None if value is None else SideLight((value[0], value[1], value[2]))
