"""What both plots share: a figure of a fixed size with one pair of axes, and its PNG. Matplotlib without pyplot."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from swapfast.printing import printable

WIDTH, HEIGHT = 960, 540  # px
LEFT, RIGHT, TOP, BOTTOM = 90, 40, 60, 60  # px around the axes
BLUE, ORANGE, RED, INK, GRID = "#1E6EBE", "#DC6428", "#C82828", "#282828", "#E1E1E1"
_DPI = 100


@contextmanager
def default_style() -> Iterator[None]:
    """Draw within as Matplotlib does by default, whatever the user's own style: light, and without LaTeX."""
    # Not the backend: to look at its default is to choose a window system.
    names = set(matplotlib.rcParamsDefault) - {"backend"}
    with matplotlib.rc_context({name: matplotlib.rcParamsDefault[name] for name in names}):
        yield


def make_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure of WIDTH x HEIGHT px and its axes, with a grid behind what is drawn."""
    figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI)
    size = (1 - (LEFT + RIGHT) / WIDTH, 1 - (TOP + BOTTOM) / HEIGHT)
    axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, *size))
    # A folder's name may hold anything; between two dollar signs Matplotlib would read a formula.
    place, text = ((LEFT + WIDTH - RIGHT) / 2 / WIDTH, 1 - 18 / HEIGHT), printable(title)
    figure.text(*place, text, ha="center", va="center", size=12, parse_math=False)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(color=INK)
    return figure, axes


def add_legend(axes: Axes) -> None:
    """Name what is drawn, in one row between the title and the axes."""
    columns = len(axes.get_legend_handles_labels()[0])
    if not columns:
        return  # nothing of it could be drawn
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, borderaxespad=0.2)


def png_of(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks: a box stands for them
        figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()
