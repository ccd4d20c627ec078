"""Presets: settings that belong together, by one name. They rank below everything else that a person gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NO_PRESET = "none"


@dataclass(frozen=True)
class Preset:
    """Settings of a new model by dotted name, and what they are for in a few words."""

    purpose: str
    settings: Mapping[str, object]


# DeepFaceLab's SAEHD as it begins: its model and its defaults, with its clipping on. Only its B, src, is not mirrored.
# Weights are in percent, so 1000 is its factor 10.
_SAEHD: dict[str, object] = {
    "batch_size": 8,
    "model.name": "liae-ud",
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

PRESETS = {
    "saehd": Preset("DeepFaceLab's SAEHD as a training begins", _SAEHD),
    "saehd-finish": Preset(
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
