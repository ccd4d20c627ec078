"""The models by name, and the options that each of them takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swapfast.config import ModelConfig
from swapfast.errors import SwapfastError, unknown_name
from swapfast.models.autoencoder import FaceAutoencoder
from swapfast.models.original import original
from swapfast.models.tiny import tiny
from swapfast.options import settings


@dataclass(frozen=True)
class ModelEntry:
    """A model: what builds the network, and which ModelConfig fields that takes beside ``learn_mask``."""

    build: Callable[..., FaceAutoencoder]
    description: str
    options: tuple[str, ...] = ()


_OF_ALL = ("name", "freeze")  # fields that are no option of a single model

MODELS = {
    "original": ModelEntry(original, "64 px, 82 M parameters, faceswap's default", ("lowmem",)),
    "tiny": ModelEntry(tiny, "64 px, 0.84 M parameters, for trying things out on a CPU"),
}


def build_model(config: ModelConfig, learn_mask: bool, seed: int) -> FaceAutoencoder:
    """Return the network that ``config`` names, its weights drawn from ``seed``.

    Raises SwapfastError for an unknown model and for an option that the model does not take.
    """
    if config.name not in MODELS:
        raise unknown_name("model", config.name, MODELS)
    entry = MODELS[config.name]
    _refuse_other_options(config, entry)
    options = {name: getattr(config, name) for name in entry.options}
    return entry.build(learn_mask=learn_mask, **options).initialise(seed)


def _refuse_other_options(config: ModelConfig, entry: ModelEntry) -> None:
    defaults = settings(ModelConfig())
    for name, setting in settings(config).items():
        if name in _OF_ALL or name in entry.options or setting.value == defaults[name].value:
            continue
        flags = [defaults[option].option.flag or option for option in entry.options]
        models = sorted(model for model, other in MODELS.items() if name in other.options)
        raise SwapfastError(
            f"{setting.option.flag or name} {setting.value!r}: is no option of the model {config.name!r}, which takes "
            f"{', '.join(flags) or 'none'}; leave it out or train {' or '.join(models) or 'another model'}"
        )
