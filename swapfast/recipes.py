"""Recipes: settings that belong together, by one name. They rank below everything else that a person gives.

Each model brings its own as a TOML file beside it (models/NAME.toml); a new model begins with that where nobody asks
for another. A model that goes on keeps the settings it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from swapfast.options import read_toml

OWN = "own"  # the model's own recipe
_FOLDER = Path(__file__).with_name("models")


@dataclass(frozen=True)
class Recipe:
    """Settings of a new model by dotted name, and what they are for in a few words."""

    purpose: str
    settings: Mapping[str, object]


# Every default of faceswap acdcfa8 that decides over what is learned; what is not here it has not (or our own cannot
# be told otherwise, see docs/deviations.md). Its mixed_precision is off, and its warps and matches are no settings.
_FACESWAP: dict[str, object] = {
    "batch_size": 16,
    "precision": "fp32",
    "nan": "stop",
    "model.code": "plain",
    "model.comparable_poses": "off",
    "model.exchange_codes": False,
    "model.dropout": 0.0,
    "crop.centering": "face",
    "crop.coverage": 100.0,
    "crop.vertical_offset": 0.0,
    "mask.mask_type": "extended",
    "mask.dilation": 0.0,
    "mask.blur_kernel": 3,
    "mask.threshold": 4,
    "augmentation.color": True,
    "augmentation.flip": True,
    "augmentation.warp": True,
    "augmentation.warp_to_landmarks": False,
    "augmentation.zoom_amount": 5.0,
    "augmentation.rotation_range": 10.0,
    "augmentation.shift_range": 5.0,
    "augmentation.flip_sides": ["a", "b"],
    "augmentation.flip_chance": 50.0,
    "augmentation.exchange_light": "off",
    "augmentation.color_chance": 100.0,
    "augmentation.color_lightness": 30.0,
    "augmentation.color_ab": 8.0,
    "augmentation.color_clahe_chance": 50.0,
    "augmentation.color_clahe_max_size": 4,
    "augmentation.color_clahe_clip_limit": 2.0,
    "augmentation.warp_deviation": 100 * 5 / 256,
    "augmentation.landmark_deviation": 100 * 2 / 256,
    "loss.functions": ["ssim", "mse"],
    "loss.weights": [100.0, 100.0],
    "loss.penalized_mask_loss": True,
    "loss.eye_multiplier": 3.0,
    "loss.mouth_multiplier": 2.0,
    "loss.cycle_weight": 0.0,
    "loss.landmark_weight": 0.0,
    "loss.learn_mask": False,
    "loss.mask_loss_function": "mse",
    "loss.mask_loss_weight": 100.0,
    "loss.soft_mask": False,
    "loss.blur_out_mask": False,
    "loss.eye_mouth_priority": 0.0,
    "loss.reduction": "mean",
    "optimizer.optimizer": "adam",
    "optimizer.learning_rate": 5e-5,
    "optimizer.warmup": 0,
    "optimizer.schedule": "constant",
    "optimizer.epsilon_exponent": -7,
    "optimizer.gradient_clipping": "none",
    "optimizer.clipping_value": 1.0,
    "optimizer.autoclip_history": 10000,
    "optimizer.weight_decay": 0.0,
    "optimizer.gradient_accumulation": 1,
    "optimizer.lr_dropout": False,
    "optimizer.beta_1": 0.9,
    "optimizer.beta_2": 0.999,
    "optimizer.amsgrad": False,
    "optimizer.ema": "off",
}

# DeepFaceLab's SAEHD as it begins: its model and its defaults, with its clipping on. Only its B, src, is not mirrored.
# Weights are in percent, so 1000 is its factor 10.
_SAEHD: dict[str, object] = {
    "batch_size": 8,
    "model.name": "liae-ud",
    "model.comparable_poses": "auto",
    "augmentation.color": False,
    "augmentation.flip_sides": ["a"],
    "augmentation.zoom_amount": 15.0,
    "loss.functions": ["dssim", "mse"],
    "loss.weights": [1000.0, 1000.0],
    "loss.soft_mask": True,
    "loss.eye_multiplier": 1.0,
    "loss.mouth_multiplier": 1.0,
    "loss.learn_mask": True,
    "loss.mask_loss_weight": 1000.0,
    "loss.reduction": "sum",
    "optimizer.optimizer": "adabelief-dfl",
    "optimizer.learning_rate": 5e-5,
    "optimizer.gradient_clipping": "global_norm",
    "optimizer.clipping_value": 1.0,
}

# What was found for tiny and holds for df, liae, original and lightweight on drawn faces (docs/learning.md), without
# what depends on the size of a network (Muon, the rate) or on the light of the faces (no colour augmentation).
_ONE_CODE: dict[str, object] = {
    "model.code": "encoder",
    "model.comparable_poses": "auto",
    "augmentation.color_chance": 25.0,
    "augmentation.exchange_light": "auto",
    "loss.cycle_weight": 50.0,
    "loss.landmark_weight": 10.0,
    "optimizer.warmup": 100,
    "optimizer.ema": "300",
}

# What only one code has a use for is off where a model is to have plain codes, unless a person asks for it.
PLAIN_CODES: dict[str, object] = {
    "model.code": "plain",
    "augmentation.color_chance": 100.0,
    "loss.cycle_weight": 0.0,
    "loss.landmark_weight": 0.0,
}

RECIPES = {
    "one-code": Recipe("one code for both people, as all models have it by themselves; tiny has more", _ONE_CODE),
    "faceswap": Recipe("faceswap's defaults", _FACESWAP),
    "saehd": Recipe("DeepFaceLab's SAEHD as a training begins", _SAEHD),
    "saehd-finish": Recipe(
        "the same as it ends, for a model that begins with another's weights (-l)",
        _SAEHD
        | {
            "augmentation.warp": False,
            "loss.blur_out_mask": True,
            "loss.eye_mouth_priority": 300.0,
            "optimizer.lr_dropout": True,
        },
    ),
}


def recipe_settings(recipe: str, model: str) -> Mapping[str, object]:
    """Return the settings that a recipe brings along: one of RECIPES, or 'own' for the one of ``model``.

    model: a name as -t takes it, with or without letters. One that is unknown has no recipe.
    """
    return own_settings(model) if recipe == OWN else RECIPES[recipe].settings


def own_settings(model: str) -> dict[str, object]:
    """Return the settings of a model's own recipe by dotted name; none for a model without a file."""
    family = model.partition("-")[0]
    files = {path.stem: path for path in _FOLDER.glob("*.toml")}  # a name from outside never becomes a path
    return _flat(read_toml(files[family])) if family in files else {}


def own_values() -> dict[str, list[object]]:
    """Return the values that the models' own recipes give a setting, each once, by dotted name.

    None is among them where a recipe does not name it.
    """
    recipes = [_flat(read_toml(path)) for path in sorted(_FOLDER.glob("*.toml"))]
    names = {name: None for recipe in recipes for name in recipe}
    values: dict[str, list[object]] = {name: [] for name in names}
    for name, of_name in values.items():
        for recipe in recipes:
            if recipe.get(name) not in of_name:
                of_name.append(recipe.get(name))
    return values


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return dotted name -> value of a nested table."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
