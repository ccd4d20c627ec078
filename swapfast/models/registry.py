"""The models by name, and the options that each of them takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from swapfast.config import ModelConfig
from swapfast.errors import SwapfastError, unknown_name
from swapfast.models import deepfacelab
from swapfast.models.autoencoder import FaceAutoencoder
from swapfast.models.deepfacelab import df, liae
from swapfast.models.lightweight import lightweight
from swapfast.models.original import original
from swapfast.models.side_statistics import CodeKind
from swapfast.models.tiny import tiny
from swapfast.options import settings


@dataclass(frozen=True)
class ModelEntry:
    """A family of networks.

    build: makes the network; takes ``learn_mask`` and the ModelConfig fields of ``options``, and the whole name where
    ``letters`` may follow the family's.
    purpose: what it is for, in a line. sizes: px it is usually trained at. example: a name with usual letters.
    """

    build: Callable[..., FaceAutoencoder]
    purpose: str
    options: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (64,)
    letters: str = ""
    example: str = ""


# Fields that are no option of a single model.
_OF_ALL = ("name", "freeze", "code", "comparable_poses", "exchange_codes")
_DIMS = ("input_size", "ae_dims", "e_dims", "d_dims", "d_mask_dims")

MODELS = {
    "original": ModelEntry(
        original,
        "faceswap's default; the plainest, at home at 64 px",
        ("lowmem", "input_size", "bottleneck", "encoder_width", "dense", "dropout"),
        (64, 128, 256),
    ),
    "lightweight": ModelEntry(lightweight, "faceswap's for cards of 2 GiB: fewer weights, more work"),
    "df": ModelEntry(
        df,
        "DeepFaceLab's with a decoder a person: closest to the face that is put in",
        _DIMS,
        (128, 256),
        deepfacelab.LETTERS,
        "df-ud",
    ),
    "liae": ModelEntry(
        liae,
        "DeepFaceLab's with one decoder: forgiving where light, shape and pose differ",
        _DIMS,
        (128, 256),
        deepfacelab.LETTERS,
        "liae-ud",
    ),
    "tiny": ModelEntry(tiny, "to try things out on a CPU, in minutes"),
}


def find_entry(name: str) -> ModelEntry:
    """Return the family of a model's name, such as 'original' or 'liae-ud'. Raises SwapfastError for an unknown one."""
    family, dash, _ = name.partition("-")
    entry = MODELS.get(family)
    if entry is None or (dash and not entry.letters):
        raise unknown_name("model", name, [other.example or known for known, other in MODELS.items()])
    return entry


def build_model(config: ModelConfig, learn_mask: bool, seed: int) -> FaceAutoencoder:
    """Return the network that ``config`` names, its weights drawn from ``seed``.

    Raises SwapfastError for an unknown model, for an option that the model does not take, and for sizes that cannot be.
    """
    return plan_model(config, learn_mask).initialise(seed)


def plan_model(config: ModelConfig, learn_mask: bool) -> FaceAutoencoder:
    """Return the network that ``config`` names, its weights not drawn yet; raises as ``build_model``.

    On torch's device 'meta' it takes no memory.
    """
    entry = find_entry(config.name)
    _refuse_other_options(config, entry)
    options = {name: getattr(config, name) for name in entry.options}
    if entry.letters:
        options["name"] = config.name
    return entry.build(learn_mask=learn_mask, **options).with_code(cast(CodeKind, config.code), config.exchange_codes)


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
