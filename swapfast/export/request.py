"""What leaves: a trained model, whose face it is to make, and what a file says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from swapfast import __version__
from swapfast.batch import SIDES
from swapfast.checkpoints.trained import OpenedModel
from swapfast.errors import SwapfastError


@dataclass(frozen=True)
class Export:
    """What a writer of TARGETS is given.

    name     the model folder's, valid Unicode
    opened   the trained model and where it comes from
    side     'a' or 'b', whose face comes out of pictures of the other side
    is_half  weights as float16
    template a file of the other program's to make it from, None for what was kept of an import
    """

    name: str
    opened: OpenedModel
    side: str = SIDES[1]
    is_half: bool = False
    template: Path | None = None

    @property
    def other_side(self) -> str:
        """The side whose pictures go in."""
        return SIDES[1 - SIDES.index(self.side)]

    def metadata(self) -> dict[str, str]:
        """Return what every file says of itself, as texts."""
        model, config, origin = self.opened
        crop = config.crop
        return {
            "swapfast": __version__,
            "name": self.name,
            "model": config.model.name,
            "model_settings": json.dumps(config.model.to_dict()),
            "iteration": str(origin.step),
            "sides": " ".join(SIDES),
            "centering": crop.centering,
            "coverage": f"{crop.coverage:g}",
            "vertical_offset": f"{crop.vertical_offset:g}",
            "input_size": str(model.input_size),
            "output_size": str(model.output_sizes[-1]),
            "color_order": model.color_order,
            "learned_mask": json.dumps(model.learns_mask),
            "weights": "float16" if self.is_half else "float32",
            "averaged": origin.weights,
            "synthetic_media": "true",
        }

    def file_name(self) -> str:
        """Return the usual name, without a suffix: model, side where it is not B, crop and size.

        Such as 'NAME_face90-7.5_64': some formats have no other place for the crop.
        """
        model, config, _ = self.opened
        crop = config.crop
        offset = f"{crop.vertical_offset:+g}" if crop.vertical_offset else ""
        parts = [self.name, *(["a"] if self.side == SIDES[0] else [])]
        parts += [f"{crop.centering}{crop.coverage:g}{offset}", str(model.output_sizes[-1])]
        return "_".join([*parts, *(["fp16"] if self.is_half else [])])

    def check_weights(self) -> None:
        """Raise SwapfastError where a weight is not finite, or too large for float16 where that is asked for."""
        path = self.opened.metadata.path
        for name, weight in self.opened.model.named_parameters():
            largest = weight.abs().max().item() if weight.numel() else 0.0
            if not largest < float("inf"):
                raise SwapfastError(
                    f"{path}: {name} holds a number that is not finite: the training has failed there; choose an "
                    "earlier one with --checkpoint N"
                )
            if self.is_half and largest > _LARGEST_HALF:
                raise SwapfastError(f"--fp16: {name} holds {largest:g}, too large for float16; leave --fp16 out")


_LARGEST_HALF = 65504.0
