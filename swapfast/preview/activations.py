"""What a network makes of a face, stage by stage: a picture of its activations, for both sides.

A face is a panel of three rows: what both sides share, and what each side makes of it. A stage is shown by the channels
that tell most about the faces on the sheet; a channel has the same place and the same scale for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from swapfast.batch import SIDES
from swapfast.errors import SwapfastError
from swapfast.models import FaceAutoencoder
from swapfast.models.blocks import Unflatten
from swapfast.models.deepfacelab import Residual
from swapfast.models.side_statistics import Rows
from swapfast.training.validation import evaluating

TILE = 66  # px of a channel's map where three stand side by side
CELL = 3 * TILE
GAP, LABEL, TITLE = 8, 34, 30  # px
MOST_CHANNELS, MOST_FACES = 64, 16
WIDEST = 3600  # px, of two panels side by side
_PAPER, _INK, _PALE = 24, (235, 235, 235), (165, 165, 165)
_POSITIVE, _NEGATIVE = np.array((60, 60, 235), np.float32), np.array((235, 130, 50), np.float32)  # BGR
_LOW, _HIGH = 1, 99  # percentiles between which a map's colours lie
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass
class Stage:
    """What a layer gives.

    name: of the layer, as the network calls it. kind: 'halving', 'doubling', 'residual', 'code' or 'bottleneck'.
    values: (n, channels, height, width) or, of a code, (n, values); float32.
    """

    name: str
    kind: str
    values: Tensor


@dataclass
class Activations:
    """What a network makes of n faces.

    shared: the stages that are the same whosever face is to come out. sides: side -> the stages that are not. faces:
    side -> (n, H, W, 3) in 0..1 BGR. masks: side -> (n, H, W), where they are learned.
    """

    shared: list[Stage] = field(default_factory=list)
    sides: dict[str, list[Stage]] = field(default_factory=dict)
    faces: dict[str, np.ndarray] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)


def find_activations(model: FaceAutoencoder, faces: np.ndarray, of: str = SIDES[0]) -> Activations:
    """Return what ``model`` makes of faces, (n, 3, S, S) float32 in 0..1 BGR at its input size.

    of: the side that they show, 'a' or 'b'. Raises SwapfastError where a value is not finite.
    """
    images = torch.from_numpy(faces).to(next(model.parameters()).device)
    if model.color_order == "rgb":
        images = images.flip(1)
    result = Activations()
    with evaluating(model):
        with _recording(model) as stages:
            model.encode(images, [Rows(len(images), of, of)])
        result.shared = list(stages)
        for side in SIDES:
            rows = Rows(len(images), of, side)
            features = model.encode(images, [rows])
            with _recording(model) as stages:
                outputs = model.decoder(side)(model.side_code(features, rows))
            result.sides[side] = list(stages)
            if model.learns_mask:
                result.masks[side] = outputs.pop()[:, 0].float().cpu().numpy()
            face = outputs[-1].flip(1) if model.color_order == "rgb" else outputs[-1]
            result.faces[side] = face.float().permute(0, 2, 3, 1).cpu().numpy()
    _move_shared(result)
    for stage in (*result.shared, *(stage for stages in result.sides.values() for stage in stages)):
        if not stage.values.isfinite().all():
            raise SwapfastError(
                f"{stage.name} of the model gives a value that is not finite: its training has failed; choose an "
                "earlier --checkpoint"
            )
    return result


@contextmanager
def _recording(model: FaceAutoencoder) -> Iterator[list[Stage]]:
    """Collect the stages of what is computed within, in the order in which they are computed."""
    stages: list[Stage] = []
    hooks = []
    for name, kind in _kinds(model).items():

        def add(_: nn.Module, __: tuple, output: Tensor, name: str = name, kind: str = kind) -> None:
            stages.append(Stage(name, kind, output.detach().float().cpu()))

        hooks.append(model.get_submodule(name).register_forward_hook(add))
    try:
        yield stages
    finally:
        for hook in hooks:
            hook.remove()


def _kinds(model: FaceAutoencoder) -> dict[str, str]:
    """Return the modules that are stages, by name, and what each is to a person.

    A block counts as one. The second dense layer is shown as the bottleneck, the picture that it is made to. Of a
    branch that learns a mask nothing is shown but the mask.
    """
    kinds: dict[str, str] = {}
    dense = ""  # the last dense layer so far
    for name, module in model.named_modules():
        if ".mask." in name:
            continue
        if isinstance(module, Residual):
            kinds[name] = "residual"
        elif isinstance(module, nn.Linear):
            dense = name
            kinds[name] = "code"
        elif isinstance(module, Unflatten):
            kinds.pop(dense, None)
            kinds[name] = "bottleneck"
        elif isinstance(module, nn.Sequential) and len(module) and isinstance(module[0], nn.Conv2d):
            if any(isinstance(layer, nn.PixelShuffle) for layer in module):
                kinds[name] = "doubling"
            elif max(module[0].stride) > 1:
                kinds[name] = "halving"
    return kinds


def _move_shared(result: Activations) -> None:
    """Move what both sides compute alike behind the shared stages: liae's code of what has seen both people."""
    first, second = (result.sides[side] for side in SIDES)
    others = {stage.name: stage for stage in second}
    alike = [stage for stage in first if stage.name in others and torch.equal(stage.values, others[stage.name].values)]
    names = {stage.name for stage in alike}
    result.shared += alike
    for side in SIDES:
        result.sides[side] = [stage for stage in result.sides[side] if stage.name not in names]


# --- the picture ------------------------------------------------------------------------------------------------------


def draw_activations(
    activations: Activations, faces: np.ndarray, names: Sequence[str], title: str, channels: int = 9
) -> np.ndarray:
    """Return the sheet, (H, W, 3) uint8 BGR: a panel for each face, two of them side by side where they are not wide.

    faces: (n, S, S, 3) in 0..1 BGR, what the model was shown. names: of the faces. channels: of a stage to show, 1 to
    MOST_CHANNELS.
    """
    cells_of_stage = {id(stage): cells for stage, cells in _all_cells(activations, channels)}
    shared = [(_caption(stage, activations.shared), cells_of_stage[id(stage)]) for stage in activations.shared]
    rows = {
        side: [(_caption(s, stages), cells_of_stage[id(s)]) for s in stages]
        for side, stages in activations.sides.items()
    }
    panels = [_panel(name, faces[index], index, shared, rows, activations) for index, name in enumerate(names)]
    blank = np.full_like(panels[0], _PAPER)
    columns = 2 if len(panels) > 1 and 2 * blank.shape[1] <= WIDEST else 1
    panels += [blank] * (-len(panels) % columns)
    sheet = np.vstack([np.hstack(panels[start : start + columns]) for start in range(0, len(panels), columns)])
    head = np.full((TITLE, sheet.shape[1], 3), _PAPER, np.uint8)
    _write(head, title, GAP, TITLE - 10, 0.5, _INK)
    foot = np.full((TITLE, sheet.shape[1], 3), _PAPER, np.uint8)
    _write(foot, _legend(channels), GAP, TITLE - 12, 0.42, _PALE)
    return np.vstack([head, sheet, foot])


def _legend(channels: int) -> str:
    return (
        f"Each stage: the {channels} channels that vary most; bright is much. A channel has one place and scale for "
        "all faces. Code: red above zero, blue below."
    )


def _all_cells(activations: Activations, channels: int) -> Iterator[tuple[Stage, list[np.ndarray]]]:
    """Yield every stage with its picture for each face. Stages of one name share their channels and scales."""
    by_name: dict[str, list[Stage]] = {}
    for stage in (*activations.shared, *(stage for stages in activations.sides.values() for stage in stages)):
        by_name.setdefault(stage.name, []).append(stage)
    for stages in by_name.values():
        together = torch.cat([stage.values for stage in stages])
        draw = _draw_code if together.ndim == 2 else _draw_maps
        cells = draw(together.numpy(), channels)
        for index, stage in enumerate(stages):
            count = len(stage.values)
            yield stage, cells[index * count : (index + 1) * count]


def _draw_maps(values: np.ndarray, channels: int) -> list[np.ndarray]:
    """Return for each face its (CELL, CELL, 3) picture of the channels that vary most, the strongest first.

    values: (n, C, H, W).
    """
    strength = values.std((0, 2, 3))
    channel_indices = np.argsort(-strength, kind="stable")[:channels]
    low, high = np.percentile(values[:, channel_indices], (_LOW, _HIGH), axis=(0, 2, 3))[:, :, None, None]
    scaled = np.clip((values[:, channel_indices] - low) / np.maximum(high - low, 1e-12), 0, 1)
    edge = math.ceil(math.sqrt(channels))
    tile, inner = CELL // edge, CELL // edge - 2
    cells = []
    for face in np.rint(scaled * 255).astype(np.uint8):
        cell = np.full((CELL, CELL, 3), _PAPER, np.uint8)
        for number, plane in enumerate(face):
            y, x = (tile * place for place in divmod(number, edge))
            colored = cv2.applyColorMap(_resized(plane, inner), cv2.COLORMAP_INFERNO)
            cell[y : y + inner, x : x + inner] = colored
        cells.append(cell)
    return cells


def _draw_code(values: np.ndarray, _channels: int) -> list[np.ndarray]:
    """Return for each face its (CELL, CELL, 3) picture of a code, line by line. values: (n, K)."""
    edge = math.ceil(math.sqrt(values.shape[1]))
    scaled = np.clip(values / max(float(np.percentile(np.abs(values), _HIGH)), 1e-12), -1, 1)
    colors = np.full((len(values), edge * edge, 3), _PAPER, np.float32)
    amount = np.abs(scaled)[..., None]
    ends = np.where(scaled[..., None] > 0, _POSITIVE, _NEGATIVE)
    colors[:, : values.shape[1]] = 245 + (ends - 245) * amount
    pictures = np.rint(colors).astype(np.uint8).reshape(len(values), edge, edge, 3)
    return [_resized(picture, CELL) for picture in pictures]


def _resized(picture: np.ndarray, size: int) -> np.ndarray:
    """Return a square picture at ``size`` px: its own pixels where it grows, their means where it shrinks."""
    method = cv2.INTER_AREA if len(picture) > size else cv2.INTER_NEAREST_EXACT
    return cv2.resize(picture, (size, size), interpolation=method)


def _photo(face: np.ndarray) -> np.ndarray:
    """Return a face, (S, S, 3) in 0..1, as (CELL, CELL, 3) uint8."""
    method = cv2.INTER_AREA if len(face) > CELL else cv2.INTER_CUBIC
    return np.rint(np.clip(cv2.resize(face, (CELL, CELL), interpolation=method), 0, 1) * 255).astype(np.uint8)


Captioned = tuple[tuple[str, str], list[np.ndarray]]


def _caption(stage: Stage, row: list[Stage]) -> tuple[str, str]:
    """Return what a stage is called, counted in its row and part, and its size."""
    part = stage.name.split(".")[:2]
    is_inter = part[0] == "inters"  # each counts its own
    alike = [s for s in row if s.kind == stage.kind and (not is_inter or s.name.split(".")[:2] == part)]
    number = f" {alike.index(stage) + 1}" if len(alike) > 1 else ""
    prefix = f"inter {part[1]}: " if is_inter else ""
    shape = stage.values.shape[1:]
    size = f"{shape[0]} values" if len(shape) == 1 else f"{shape[1]}x{shape[2]}x{shape[0]}"
    return f"{prefix}{stage.kind}{number}", size


def _panel(
    name: str,
    face: np.ndarray,
    index: int,
    shared: Sequence[Captioned],
    rows: dict[str, list[Captioned]],
    activations: Activations,
) -> np.ndarray:
    """Return all that is shown of a face."""
    lines = [[((("face in"), name), _photo(face)), *((caption, cells[index]) for caption, cells in shared)]]
    for side, stages in rows.items():
        line = [(caption, cells[index]) for caption, cells in stages]
        line.append((("face out", f"of {side.upper()}"), _photo(activations.faces[side][index])))
        if side in activations.masks:
            mask = cv2.cvtColor(np.ascontiguousarray(activations.masks[side][index]), cv2.COLOR_GRAY2BGR)
            line.append((("mask", f"of {side.upper()}"), _photo(mask)))
        lines.append(line)
    columns = max(len(lines[0]), 1 + max(len(line) for line in lines[1:]))
    step, height = CELL + GAP, CELL + LABEL + GAP
    panel = np.full((len(lines) * height + GAP, columns * step + 2 * GAP, 3), _PAPER, np.uint8)
    for row, line in enumerate(lines):
        y = GAP + row * height
        start = 0 if row == 0 else columns - len(line)
        if row:
            x = GAP + start * step - 80
            _write(panel, f"side {list(rows)[row - 1].upper()}", x, y + LABEL + CELL // 2, 0.6, _INK)
        for column, ((title, size), picture) in enumerate(line, start):
            x = GAP + column * step
            _write(panel, title, x, y + 12, 0.42, _INK)
            _write(panel, size, x, y + 27, 0.38, _PALE)
            panel[y + LABEL : y + LABEL + CELL, x : x + CELL] = picture
    return panel


def _write(picture: np.ndarray, text: str, x: int, y: int, scale: float, color: tuple[int, int, int]) -> None:
    """Write a line into the picture; what the font lacks becomes a question mark."""
    ascii_text = text.encode("ascii", "replace").decode()
    cv2.putText(picture, ascii_text, (x, y), _FONT, scale, color, 1, cv2.LINE_AA)
