"""Averaged weights in checkpoints: what their file is called, and which of them somebody means by ``--weights``.

``ema.safetensors`` holds a copy of the weights for each half-life, under 'HALF-LIFE/NAME', and counters under names
that begin with '@' (training/averages.py). Weights that were frozen have no copy there: theirs do not move.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from swapfast.errors import SwapfastError, unknown_name

FILE = "ema"  # the stem of its name
RAW = "raw"
_KEY = re.compile(r"([1-9][0-9]{0,11})/([^@].*)")


def average_name(half_life: int | None) -> str:
    """Return what the weights with this half-life are called, such as 'ema-500'; 'raw' for None."""
    return RAW if half_life is None else f"{FILE}-{half_life}"


def choose_average(weights: str, half_lives: Sequence[int], source: str, flag: str = "--weights") -> int | None:
    """Return the half-life that is meant, None for the weights as they are.

    weights: 'auto' for the first half-life where there is one, 'raw', 'ema' for the first, or such as 'ema-500'.
    half_lives: those there are. source: what has them, for errors. Raises SwapfastError for what is not there.
    """
    names = {average_name(half_life): half_life for half_life in half_lives}
    if weights in names:
        return names[weights]
    if weights in ("auto", FILE) and half_lives:
        return half_lives[0]
    if weights in ("auto", RAW):
        return None
    if re.fullmatch(rf"{FILE}(-[0-9]+)?", weights):
        way = f"has {' and '.join(names)}: give one of them" if names else "has no averaged weights: give raw"
        raise SwapfastError(f"{flag} {weights[:40]}: {source} {way}, or train with --ema")
    raise unknown_name(flag, weights, ["auto", RAW, FILE, *(names or {f"{FILE}-500"})])


def stored_half_lives(tensors: Mapping[str, Tensor], usual: Sequence[int] = ()) -> list[int]:
    """Return the half-lives of which a checkpoint has averages, those of ``usual`` first and in that order.

    tensors: what its file holds.
    """
    half_lives = {int(match[1]) for match in map(_KEY.fullmatch, tensors) if match}
    return [*(half_life for half_life in usual if half_life in half_lives), *sorted(half_lives.difference(usual))]


def averages_of(tensors: Mapping[str, Tensor], half_life: int) -> dict[str, Tensor]:
    """Return the weights with this half-life by their name in the model. tensors: what a checkpoint's file holds."""
    prefix = f"{half_life}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not name.startswith(f"{prefix}@")
    }


def require_fitting(averages: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise SwapfastError unless each average has the name, shape and kind of one of the model's ``weights``.

    path: of the checkpoint.
    """
    for name, average in averages.items():
        weight = weights.get(name)
        if weight is None or weight.shape != average.shape or not average.is_floating_point():
            raise SwapfastError(
                f"{path}: {name[:80]} in {FILE}.safetensors is no weight of the model; restore a copy of it, or leave "
                "the averages out: --weights raw, and --ema off to go on training"
            )


def load_averages(model: nn.Module, tensors: Mapping[str, Tensor], half_life: int, path: Path) -> None:
    """Put the weights with this half-life into ``model``, which has those of the same checkpoint already.

    tensors: what its file holds. path: of the checkpoint. Raises SwapfastError where they are another model's.
    """
    averages = averages_of(tensors, half_life)
    require_fitting(averages, model.state_dict(), path)
    model.load_state_dict(averages, strict=False)
