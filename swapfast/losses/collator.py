"""From predictions, targets and masks to one scalar for backward and a value per function for the log."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from swapfast.batch import BatchMeta
from swapfast.errors import SwapfastError, unknown_name
from swapfast.losses.masks import blur_outside, soft_mask
from swapfast.losses.pixel import mean_absolute_error
from swapfast.losses.registry import get_loss

CYCLE = "cycle"  # what the logs call the loss of faces swapped there and back
LANDMARKS = "landmarks"  # and that of the landmarks that are read off the codes


@dataclass
class BatchLoss:
    """The losses of one side.

    unweighted, weighted: per output, smallest first, function name -> (N,) values per item
    mask: (N,) weighted loss of the predicted mask, or None where none is learned
    """

    unweighted: list[dict[str, Tensor]]
    weighted: list[dict[str, Tensor]]
    mask: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The scalar to call ``backward`` on: all weighted functions of all outputs, and the mask's."""
        parts = [values.mean() for output in self.weighted for values in output.values()]
        if self.mask is not None:
            parts.append(self.mask.mean())
        return torch.stack(parts).sum()

    def with_cycle(self, back: BatchLoss, weight: float) -> BatchLoss:
        """Return these losses and, times ``weight``, those of faces that were swapped there and back."""
        parts = [values for output in back.weighted for values in output.values()]
        if back.mask is not None:
            parts.append(back.mask)
        return self._with(CYCLE, torch.stack(parts).sum(0), weight)

    def with_landmarks(self, read: Tensor, landmarks: Tensor, weight: float) -> BatchLoss:
        """Return these losses and, times ``weight``, the mean squared error of what was read off codes, (N, 136)."""
        return self._with(LANDMARKS, (read - landmarks).square().mean(1), weight)

    def _with(self, name: str, values: Tensor, weight: float) -> BatchLoss:
        """Return these losses and (N,) further values, which are logged with the last output's."""
        unweighted, weighted = ([*outputs] for outputs in (self.unweighted, self.weighted))
        unweighted[-1] = unweighted[-1] | {name: values}
        weighted[-1] = weighted[-1] | {name: weight * values}
        return dataclasses.replace(self, unweighted=unweighted, weighted=weighted)

    def to_cpu(self) -> BatchLoss:
        """Return the values detached and on the CPU. Waits for the device."""
        return self._map(lambda value: value.detach().cpu())

    def detach(self) -> BatchLoss:
        """Return the values without what made them."""
        return self._map(Tensor.detach)

    def _map(self, function: Callable[[Tensor], Tensor]) -> BatchLoss:
        def mapped(outputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
            return [{name: function(value) for name, value in output.items()} for output in outputs]

        mask = None if self.mask is None else function(self.mask)
        return dataclasses.replace(self, unweighted=mapped(self.unweighted), weighted=mapped(self.weighted), mask=mask)


MOST_FUNCTIONS = 4
MASK_LOSSES = ("mse", "mae")
EYE_MOUTH = "eye_mouth"  # what the logs call the priority's term


@dataclass(frozen=True)
class Masks:
    """The masks of one output.

    face: (N, 1, H, W), or None for the whole picture
    parts: eye and mouth with their multipliers
    on_pictures: whether ``face`` covers the pictures before they are compared, and not the loss of each pixel
    """

    face: Tensor | None
    parts: list[tuple[Tensor, float]]
    on_pictures: bool = False


def _added_weights(functions: Sequence[str], weights: Sequence[float]) -> Mapping[str, float]:
    """Return the weight of each function.

    Peer: keeps functions in a dict, so that one chosen twice loses its first weight. Ours: adds the two.
    """
    if len(functions) != len(weights):
        raise SwapfastError(f"loss functions {', '.join(functions)}: {len(weights)} weights given; give one for each")
    if sum(name != "none" for name in functions) > MOST_FUNCTIONS:
        raise SwapfastError(f"loss functions {', '.join(functions)}: give at most {MOST_FUNCTIONS}")
    added: dict[str, float] = {}
    for name, weight in zip(functions, weights):
        if not 0 <= weight < math.inf:
            raise SwapfastError(f"loss {name}: weight {weight} must not be negative, and finite")
        if name != "none":
            added[name] = added.get(name, 0.0) + weight
    if not added:
        raise SwapfastError("loss functions: give at least one besides 'none'")
    if not any(added.values()):
        raise SwapfastError(f"loss functions {', '.join(added)}: all weights are 0, so nothing would be learned")
    return added


class LossCollator(nn.Module):
    """Calls the chosen loss functions, masks and weights them.

    A spatial function's map is masked: L = loss * face; L += L * eye * eye_multiplier; L += L * mouth *
    mouth_multiplier; then the mean over C, H, W (what lies outside the mask counts in the denominator). So an eye's
    pixel counts 1 + eye_multiplier times, which is how faceswap computes it although its help says multiplier.
    For the others, which give one value per item, both images are masked before: loss(face) + eye_multiplier *
    loss(eye) + mouth_multiplier * loss(mouth). A multiplier of 1 is off.

    functions: names, up to four; 'none' is skipped
    weights: a factor for each (1.0 is 100 %); those of a function named twice are added
    color_order: of the images, for functions that care
    use_mask: whether pixels outside the face count nothing (the penalised mask loss)
    eye_multiplier, mouth_multiplier: see above
    smallest_output: px, for functions that build pyramids
    mask_loss: 'mse', 'mae' or None (no learned mask)
    weights_folder: of the networks of lpips (docs/losses.md)
    mask_weight: a factor for the loss of the learned mask
    soft: with ``use_mask``, let the face mask have a soft rim beyond the face and cover both pictures, for every
        function (``soft_mask``)
    blurs_outside: blur the target outside the face first (``blur_outside``)
    eye_mouth_priority: adds this many times the mean over the picture of the absolute difference within eyes and mouth
    dssim_window: px of the window of 'dssim', 0 for the usual ones
    cycle_weight: let ``Trainer`` add the loss of faces that were swapped there and back, times this
    landmark_weight: and that of the landmarks that the model reads off its codes
    sums: let ``Trainer`` follow the gradient of the sum over a step's faces and not of their mean

    Raises SwapfastError for an unknown function, a wrong weight or an output too small for a function.
    """

    def __init__(
        self,
        functions: Sequence[str],
        weights: Sequence[float],
        color_order: Literal["bgr", "rgb"],
        use_mask: bool,
        eye_multiplier: float,
        mouth_multiplier: float,
        smallest_output: int,
        mask_loss: str | None = None,
        weights_folder: Path | None = None,
        *,
        mask_weight: float = 1.0,
        soft: bool = False,
        blurs_outside: bool = False,
        eye_mouth_priority: float = 0.0,
        dssim_window: int = 0,
        sums: bool = False,
        cycle_weight: float = 0.0,
        landmark_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if color_order not in ("bgr", "rgb"):
            raise unknown_name("color order", color_order, ("bgr", "rgb"))
        self.weights = _added_weights(functions, weights)
        options = {
            "color_order": color_order,
            "weights_folder": weights_folder,
            "windows": (dssim_window,) if dssim_window else (),
        }
        specs = {name: get_loss(name) for name in self.weights}
        self.functions = {
            name: partial(spec.function, **{key: options[key] for key in spec.takes}) for name, spec in specs.items()
        }
        self.spatial = {name for name, spec in specs.items() if spec.spatial}
        self.use_mask = use_mask
        self.soft, self.blurs_outside, self.sums = soft, blurs_outside, sums
        self.cycle_weight, self.landmark_weight = cycle_weight, landmark_weight
        self.mask_weight, self.eye_mouth_priority = mask_weight, eye_mouth_priority
        self.eye_multiplier = eye_multiplier
        self.mouth_multiplier = mouth_multiplier
        if mask_loss not in (None, "", *MASK_LOSSES):
            raise unknown_name("loss of the learned mask", mask_loss, MASK_LOSSES)
        self.mask_loss = get_loss(mask_loss).function if mask_loss else None
        for name, multiplier in (("eye", eye_multiplier), ("mouth", mouth_multiplier)):
            if not 0 <= multiplier < math.inf:
                raise SwapfastError(f"{name} multiplier {multiplier}: must not be negative, and finite")
        blank = torch.zeros(1, 3, smallest_output, smallest_output)
        for function in self.functions.values():
            function(blank, blank)  # a small output or missing weights are refused here and not in the first step

    def forward(self, y_true_all: list[Tensor], y_pred_all: list[Tensor], meta: BatchMeta) -> BatchLoss:
        """Return the losses of one side, computed in float32 also inside autocast.

        y_true_all: per output (N, 3, H, W) in 0..1
        y_pred_all: the model's outputs in that order, with the predicted (N, 1, H, W) mask last if it learns one
        meta: that side's masks

        Raises SwapfastError where the batch lacks a mask that the loss needs, or the number of outputs does not fit.
        """
        expected = len(y_true_all) + (self.mask_loss is not None)
        if len(y_pred_all) != expected:
            raise SwapfastError(f"{len(y_pred_all)} outputs for {len(y_true_all)} targets: the loss needs {expected}")
        needs_face = self.use_mask or self.mask_loss is not None or self.blurs_outside
        needs_parts = self.eye_mouth_priority > 0 and (meta.mask_eye is None or meta.mask_mouth is None)
        if needs_parts or (needs_face and meta.mask_face is None):
            part = "mask of eyes and mouth" if needs_parts else "face mask"
            raise SwapfastError(f"the loss needs a {part} and the batch has none: choose a --mask-type")
        with torch.autocast(y_pred_all[0].device.type, enabled=False):
            unweighted = [
                self._of_output(y_true, y_pred, meta, output)
                for output, (y_true, y_pred) in enumerate(zip(y_true_all, y_pred_all))
            ]
            mask = None
            if self.mask_loss is not None and meta.mask_face is not None:
                mask = self.mask_loss(meta.mask_face[-1], y_pred_all[-1]).flatten(1).mean(1) * self.mask_weight
        factors = {**self.weights, EYE_MOUTH: self.eye_mouth_priority}
        weighted = [{name: v * factors[name] for name, v in output.items()} for output in unweighted]
        return BatchLoss(unweighted, weighted, mask)

    def _of_output(self, y_true: Tensor, y_pred: Tensor, meta: BatchMeta, output: int) -> dict[str, Tensor]:
        """Return function -> (N,) unweighted values of one output."""
        if self.blurs_outside and meta.mask_face is not None:
            y_true = blur_outside(y_true.float(), meta.mask_face[output].float())
        masks = self._masks(meta, output)
        values = {name: self._per_item(name, y_true, y_pred, masks) for name in self.functions}
        if self.eye_mouth_priority and meta.mask_eye is not None and meta.mask_mouth is not None:
            part = torch.maximum(meta.mask_eye[output], meta.mask_mouth[output])
            values[EYE_MOUTH] = mean_absolute_error(y_true * part, y_pred * part).flatten(1).mean(1)
        return values

    def _masks(self, meta: BatchMeta, output: int) -> Masks:
        """Return that output's masks, those of eyes and mouth where a multiplier asks for them."""
        pairs = ((meta.mask_eye, self.eye_multiplier), (meta.mask_mouth, self.mouth_multiplier))
        parts = [(mask[output], multiplier) for mask, multiplier in pairs if mask is not None and multiplier > 1]
        face = meta.mask_face[output] if self.use_mask and meta.mask_face is not None else None
        return Masks(soft_mask(face.float()) if self.soft and face is not None else face, parts, self.soft)

    def _per_item(self, name: str, y_true: Tensor, y_pred: Tensor, masks: Masks) -> Tensor:
        """Return the (N,) loss of one function, masked and with eyes and mouth weighted."""
        per_item = _mean_of_map if name in self.spatial else _of_masked_images
        return per_item(self.functions[name], y_true, y_pred, masks)


def _mean_of_map(function: Callable[..., Tensor], y_true: Tensor, y_pred: Tensor, masks: Masks) -> Tensor:
    """Return the (N,) means of a spatial function's map, masked."""
    # Peer: masks the map in place, which breaks the backward of flip. Ours: makes new tensors.
    face = masks.face
    if face is not None and masks.on_pictures:
        loss = function(y_true * face, y_pred * face)
    else:
        loss = function(y_true, y_pred)
        if face is not None:
            loss = loss * face
    for part, multiplier in masks.parts:
        loss = loss + loss * part * multiplier
    return loss.flatten(1).mean(1)


def _of_masked_images(function: Callable[..., Tensor], y_true: Tensor, y_pred: Tensor, masks: Masks) -> Tensor:
    """Return the (N,) values of a function of images, masked before."""
    face = masks.face
    loss = function(y_true, y_pred) if face is None else function(y_true * face, y_pred * face)
    for part, multiplier in masks.parts:
        loss = loss + multiplier * function(y_true * part, y_pred * part)
    return loss
