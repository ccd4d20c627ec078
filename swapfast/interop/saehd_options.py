"""The options of a SAEHD model and our settings: which is which, and what we lack."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from swapfast.config import FACE_TYPES, MOST_ITERATIONS, TrainConfig, updated
from swapfast.errors import SwapfastError, shortened
from swapfast.models import FaceAutoencoder
from swapfast.models.deepfacelab import make_plan
from swapfast.recipes import RECIPES

_FORMER_FACE_TYPES = {"half": "h", "mid_full": "mf", "full": "f", "whole_face": "wf"}
LEARNING_RATE = 5e-5
_SIZES = {"input_size": "resolution", **{name: name for name in ("ae_dims", "e_dims", "d_dims", "d_mask_dims")}}
# What an option is where it does nothing, for those that we lack.
_LACKING: dict[str, Any] = {
    "uniform_yaw": False,
    "random_hsv_power": 0.0,
    "true_face_power": 0.0,
    "face_style_power": 0.0,
    "bg_style_power": 0.0,
    "ct_mode": "none",
    "gan_power": 0.0,
    "pretrain": False,
}
EYE_MOUTH_PRIORITY = 300.0
_WITHOUT_EFFECT = (  # on how its weights move, or only with one of those above
    "models_opt_on_gpu",
    "gan_patch_size",
    "gan_dims",
    "autobackup_hour",
    "write_preview_history",
    "target_iter",
    "session_name",
)


def whole_number(table: Mapping[str, object], name: str, source: str, most: int = 1 << 16, least: int = 1) -> int:
    """Return the whole number that an option is; raise SwapfastError naming ``source`` for another value."""
    value = table.get(name)
    if type(value) is not int or not least <= value <= most:
        raise SwapfastError(
            f"{source}: {name} is {'missing' if name not in table else shortened(value)} and should be a whole number "
            f"of {least} to {most}; give another copy of the model"
        )
    return value


def config_of(options: Mapping[str, object], source: str) -> tuple[TrainConfig, list[str]]:
    """Return our settings for a model with these options, and a line on those that we lack.

    Raises SwapfastError naming ``source`` where an option that shapes the network is no such option.
    """
    name = options.get("archi")
    if type(name) is not str or not re.fullmatch(r"(df|liae)(-[a-z]{0,8})?", name):
        raise SwapfastError(f"{source}: archi is {shortened(name)}, where df and liae are read; give another model")
    changes: dict[str, object] = {"model.name": name.removesuffix("-"), "loss.learn_mask": True}
    changes |= {f"model.{ours}": whole_number(options, theirs, source, 1024) for ours, theirs in _SIZES.items()}
    if "batch_size" in options:
        changes["batch_size"] = whole_number(options, "batch_size", source)
    crop = FACE_TYPES.get(face_type := _face_type(options))
    if crop is not None:
        changes |= {f"crop.{name}": value for name, value in crop.to_dict().items()}
    changes = {**RECIPES["saehd"].settings, **changes, **_training(options)}
    try:
        config = updated(TrainConfig(), changes)
    except SwapfastError as error:
        raise SwapfastError(f"{source}: cannot be settings of swapfast: {error}") from error
    return config, _remarks(options, face_type if crop is None else "")


def _face_type(options: Mapping[str, object]) -> str:
    text = _text(options, "face_type") or "f"
    return _FORMER_FACE_TYPES.get(text, text)


def _text(options: Mapping[str, object], name: str) -> str:
    value = options.get(name)
    return value if isinstance(value, str) else ""


def _is(options: Mapping[str, object], name: str, default: bool) -> bool:
    value = options.get(name, default)
    return value if type(value) is bool else default


def _training(options: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of how it is trained; an option that is missing is what it is usually."""
    clips, warps = _is(options, "clipgrad", False), _is(options, "random_warp", True)
    flips = {"a": _is(options, "random_dst_flip", False), "b": _is(options, "random_src_flip", False)}
    flips = dict.fromkeys(flips, True) if _is(options, "random_flip", False) else flips
    sides = [side for side, is_flipped in flips.items() if is_flipped]
    masked = _is(options, "masked_training", True)
    changes: dict[str, object] = {
        "optimizer.optimizer": "adabelief-dfl" if _is(options, "adabelief", True) else "rms-prop-dfl",
        "optimizer.learning_rate": LEARNING_RATE,
        "optimizer.gradient_clipping": "global_norm" if clips else "none",
        "optimizer.lr_dropout": _is(options, "lr_dropout", False) or _text(options, "lr_dropout") in ("y", "cpu"),
        "loss.penalized_mask_loss": masked,
        "loss.soft_mask": masked,
        "loss.eye_mouth_priority": EYE_MOUTH_PRIORITY if _is(options, "eyes_mouth_prio", False) else 0.0,
        "loss.blur_out_mask": _is(options, "blur_out_mask", False),
        "augmentation.warp": warps,
        "augmentation.flip": bool(sides),
        **({"augmentation.flip_sides": sides} if sides else {}),
    }
    if not warps and str(options["archi"]).startswith("liae"):
        changes["model.freeze"] = ["inter_both"]
    return changes


def _remarks(options: Mapping[str, object], face_type: str) -> list[str]:
    lines = []
    lacking = [f"{_word(name)} {shortened(value)}" for name, value in options.items() if _is_lacking(name, value)]
    if face_type:
        lacking.append(f"face_type {shortened(face_type)}")
    if lacking:
        ending = f" and {len(lacking) - 20} more" if len(lacking) > 20 else ""
        lines.append(f"options that swapfast lacks, kept for an export: {', '.join(lacking[:20])}{ending}")
    if not _is(options, "random_warp", True) and str(options["archi"]).startswith("liae"):
        lines.append("inter_both is frozen, as in DeepFaceLab where random_warp is off; train it with -f none")
    return lines


def _word(name: str) -> str:
    return name if name.isidentifier() and len(name) < 40 else shortened(name)


_KNOWN = {
    *("archi", "face_type", "batch_size", "adabelief", "clipgrad", "masked_training", "random_warp"),
    *("random_flip", "random_src_flip", "random_dst_flip", "eyes_mouth_prio", "blur_out_mask", "lr_dropout"),
    *_SIZES.values(),
}


def _is_lacking(name: str, value: object) -> bool:
    if name in _LACKING:
        usual = _LACKING[name]
        return type(value) not in (type(usual), int) or value != usual
    return name not in _KNOWN and name not in _WITHOUT_EFFECT


def iteration_of(data: Mapping[str, object], source: str) -> int:
    """Return how many iterations a model has had."""
    return whole_number(data, "iter", source, MOST_ITERATIONS, 0)


def options_of(config: TrainConfig, model: FaceAutoencoder, lines: list[str]) -> dict[str, object]:
    """Return the options of a model of ours, as DeepFaceLab would have asked for them.

    lines: is told where a setting has no option.
    """
    crop = config.crop
    face_type = next((name for name, type_crop in FACE_TYPES.items() if type_crop == crop), "")
    if not face_type:
        face_type = {"legacy": "f", "head": "head"}.get(crop.centering, "wf")
        values = f"{crop.centering} {crop.coverage:g} {crop.vertical_offset:g}"
        lines.append(f"face_type {face_type} is the nearest to the crop {values}, but not it")
    plan = make_plan(model.name, **{ours: getattr(config.model, ours) for ours in _SIZES})
    clips = config.optimizer.gradient_clipping == "global_norm"
    flips = config.augmentation.flip_sides if config.augmentation.flip else []
    return {
        "resolution": plan.size,
        "face_type": face_type,
        "models_opt_on_gpu": True,
        "archi": model.name,
        "ae_dims": plan.ae,
        "e_dims": plan.e,
        "d_dims": plan.d,
        "d_mask_dims": plan.mask,
        "masked_training": config.loss.penalized_mask_loss,
        "eyes_mouth_prio": config.loss.eye_mouth_priority > 0,
        "uniform_yaw": False,
        "blur_out_mask": config.loss.blur_out_mask,
        "adabelief": config.optimizer.optimizer != "rms-prop-dfl",
        "lr_dropout": "y" if config.optimizer.lr_dropout else "n",
        "random_warp": config.augmentation.warp,
        "random_hsv_power": 0.0,
        "true_face_power": 0.0,
        "face_style_power": 0.0,
        "bg_style_power": 0.0,
        "ct_mode": "none",
        "clipgrad": clips and config.optimizer.clipping_value == 1,
        "pretrain": False,
        "autobackup_hour": 0,
        "write_preview_history": False,
        "target_iter": 0,
        "random_src_flip": "b" in flips,
        "random_dst_flip": "a" in flips,
        "batch_size": config.batch_size,
        "gan_power": 0.0,
        "gan_patch_size": plan.size // 8,
        "gan_dims": 16,
    }
