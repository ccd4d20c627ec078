"""Draws the survey of one or two folders: poses, faces by pose, sharpness, sizes, and what is to be skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swapfast.faces.survey import BLURRED, DUPLICATE, SMALL, Skipped, Survey
from swapfast.logs.plot import BLUE, GRID, INK, ORANGE, RED, default_style, png_of
from swapfast.printing import printable

_WIDTH, _HEIGHT = 1280, 900  # px
_DPI = 100
_YAWS, _PITCHES = (45, 30, 15, 0, -15, -30, -45), (-20, -10, 0, 10, 20)  # centres of the grid of faces, degrees
_EXAMPLES = 9  # faces to skip that are shown
_EDGE = 64  # px of a shown face
_COLOURS = (BLUE, ORANGE)

FaceReader = Callable[[int], np.ndarray | None]  # index -> (64, 64, 3) uint8 BGR, None where it cannot be read


@dataclass(frozen=True)
class SurveyedSide:
    """What is drawn of a folder. blur_limit: sharpness below which a face is blurred."""

    title: str
    survey: Survey
    skipped: Sequence[Skipped]
    blur_limit: float
    read_face: FaceReader


def survey_sheet(sides: Sequence[SurveyedSide]) -> bytes:
    """Return the picture as a PNG: a row of three plots, then for each side its faces by pose and those to skip."""
    with default_style():
        figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI)
        outer = figure.add_gridspec(
            2, 1, height_ratios=(1, 1.5), left=0.05, right=0.985, top=0.955, bottom=0.03, hspace=0.2
        )
        plots = outer[0].subgridspec(1, 3, width_ratios=(1.4, 1, 1), wspace=0.2)
        _poses(figure.add_subplot(plots[0]), sides)
        _histogram(
            figure.add_subplot(plots[1]),
            [(side.survey.sharpness, side.blur_limit) for side in sides],
            "sharpness, levels; left of the line: blurred",
        )
        _histogram(
            figure.add_subplot(plots[2]), [(side.survey.edges, None) for side in sides], "width of the face's crop, px"
        )
        halves = outer[1].subgridspec(1, len(sides), wspace=0.17)
        for number, side in enumerate(sides):
            parts = halves[number].subgridspec(2, 1, height_ratios=(len(_PITCHES), 2), hspace=0.34)
            _faces_by_pose(figure.add_subplot(parts[0]), side)
            _skipped_faces(figure.add_subplot(parts[1]), side)
        return png_of(figure)


def _poses(axes: Axes, sides: Sequence[SurveyedSide]) -> None:
    for side, colour in zip(sides, _COLOURS):
        label = printable(f"{side.title}, {len(side.survey)} faces")
        axes.scatter(side.survey.yaw, side.survey.pitch, s=8, color=colour, alpha=0.5, linewidths=0, label=label)
    width = max(50.0, *(float(np.abs(side.survey.yaw).max(initial=0)) + 5 for side in sides))
    height = max(25.0, *(float(np.abs(side.survey.pitch).max(initial=0)) + 5 for side in sides))
    axes.set_xlim(width, -width)  # as the picture shows them: left is left, up is up
    axes.set_ylim(height, -height)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_xlabel("turned left  <  yaw, degrees  >  turned right")
    axes.set_ylabel("down  <  pitch  >  up")
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, borderaxespad=0.2)


def _histogram(axes: Axes, columns: Sequence[tuple[np.ndarray, float | None]], label: str) -> None:
    values = np.concatenate([column for column, _ in columns])
    if len(values):
        edges = np.linspace(min(0, values.min()), max(values.max(), 1e-6), 41)
        for (column, limit), colour in zip(columns, _COLOURS):
            axes.hist(column, edges.tolist(), color=colour, alpha=0.6)
            if limit is not None:
                axes.axvline(limit, color=RED if len(columns) == 1 else colour, linewidth=1.2, linestyle="--")
    axes.set_xlabel(label)
    axes.set_ylabel("faces")
    axes.grid(color=GRID)
    axes.set_axisbelow(True)


def _faces_by_pose(axes: Axes, side: SurveyedSide) -> None:
    """Show of each pose the sharpest face and how many there are; an empty cell is a pose that the folder lacks."""
    yaw_bin = np.abs(side.survey.yaw[:, None] - np.array(_YAWS)).argmin(1)
    pitch_bin = np.abs(side.survey.pitch[:, None] - np.array(_PITCHES)).argmin(1)
    canvas = np.full((_EDGE * len(_PITCHES), _EDGE * len(_YAWS), 3), 235, np.uint8)
    for row in range(len(_PITCHES)):
        for column in range(len(_YAWS)):
            members = np.flatnonzero((yaw_bin == column) & (pitch_bin == row))
            x, y = column * _EDGE, row * _EDGE
            if not len(members):
                continue
            _put(canvas, side.read_face(int(members[side.survey.sharpness[members].argmax()])), x, y)
            axes.text(x + 3, y + 12, str(len(members)), color="white", size=7, bbox=_BOX)
    axes.imshow(canvas[..., ::-1], interpolation="nearest")
    axes.set_xticks(
        [(i + 0.5) * _EDGE for i in range(len(_YAWS))], [_degrees(yaw, "left", "right") for yaw in _YAWS], size=7
    )
    axes.set_yticks(
        [(i + 0.5) * _EDGE for i in range(len(_PITCHES))], [_degrees(pitch, "down", "up") for pitch in _PITCHES], size=7
    )
    axes.set_title(
        f"{printable(side.title)}: the sharpest face of each pose, and how many it has", size=9, parse_math=False
    )


_BOX = {"facecolor": "black", "alpha": 0.55, "pad": 1, "linewidth": 0}


def _degrees(angle: int, positive: str, negative: str) -> str:
    return "0" if angle == 0 else f"{positive if angle > 0 else negative} {abs(angle)}"


def _skipped_faces(axes: Axes, side: SurveyedSide) -> None:
    """Show faces to skip below a red line, those of near-duplicates under the face that stays."""
    examples = _examples(side.skipped)
    canvas = np.full((2 * _EDGE, _EDGE * _EXAMPLES, 3), 255, np.uint8)
    for column, skip in enumerate(examples):
        x = column * _EDGE
        _put(canvas, side.read_face(skip.index), x, _EDGE)
        if skip.like is not None:
            _put(canvas, side.read_face(skip.like), x, 0)
        axes.text(x + 3, 2 * _EDGE - 5, skip.reason, color="white", size=5, bbox=_BOX)
    axes.imshow(canvas[..., ::-1], interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([_EDGE / 2, 1.5 * _EDGE], ["stays", "skipped"], size=7)
    counts = {reason: sum(skip.reason == reason for skip in side.skipped) for reason in (DUPLICATE, BLURRED, SMALL)}
    reasons_text = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "none"
    axes.set_title(printable(f"{side.title}, to skip: {reasons_text}"), size=9, parse_math=False)


def _examples(skipped: Sequence[Skipped]) -> list[Skipped]:
    """Return some faces to skip, of every reason some, spread over the folder."""
    by_reason = [[skip for skip in skipped if skip.reason == reason] for reason in (DUPLICATE, BLURRED, SMALL)]
    filled = [members for members in by_reason if members]
    examples: list[Skipped] = []
    for place, members in enumerate(filled):
        room = (_EXAMPLES - len(examples)) // (len(filled) - place)
        places = np.unique(np.linspace(0, len(members) - 1, min(room, len(members))).round().astype(int))
        examples += [members[i] for i in places.tolist()]
    return examples


def _put(canvas: np.ndarray, face: np.ndarray | None, x: int, y: int) -> None:
    if face is not None:
        canvas[y : y + _EDGE, x : x + _EDGE] = face
