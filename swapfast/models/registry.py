"""The models by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swapfast.config import ModelConfig
from swapfast.errors import SwapfastError, unknown_name
from swapfast.models.autoencoder import FaceAutoencoder
from swapfast.models.original import original
from swapfast.models.tiny import tiny


@dataclass(frozen=True)
class ModelEntry:
    """``build`` makes the network; ``options`` names the ModelConfig fields it takes beside ``learn_mask``."""

    build: Callable[..., FaceAutoencoder]
    description: str
    options: tuple[str, ...] = ()


MODELS = {
    "original": ModelEntry(original, "64 px, 82 M parameters, faceswap's default", ("lowmem",)),
    "tiny": ModelEntry(tiny, "64 px, 0.84 M parameters, for trying things out on a CPU"),
}


def build_model(config: ModelConfig, learn_mask: bool, seed: int) -> FaceAutoencoder:
    """The network that ``config`` names, its weights drawn from ``seed``; SwapfastError for an unknown one."""
    if config.name not in MODELS:
        raise unknown_name("model", config.name, MODELS)
    entry = MODELS[config.name]
    if config.lowmem and "lowmem" not in entry.options:
        raise SwapfastError(f"lowmem: model {config.name!r} has no such variant; 'original' has")
    options = {name: getattr(config, name) for name in entry.options}
    return entry.build(learn_mask=learn_mask, **options).initialise(seed)
