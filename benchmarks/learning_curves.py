"""The models' own recipes beside plain codes: how far swaps come over iterations and seconds, from kept results.

    python -m benchmarks.learning_curves -o docs/images/learning_curves.png

Each panel is one model on one pair to report, all of them runs of ``benchmarks.learning`` that benchmarks/results
keeps: dB above the mean face of B, as they are (solid) and colour-matched (dotted). Plain codes are faceswap's recipe,
for ``tiny`` at the best constant rate of a sweep; the narrow ``original`` exchanges its means besides.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from benchmarks.common import ROOT
from benchmarks.learning_report import GAINS, Run

RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = 4
OWN, REFERENCE = "the model's own recipe", "plain codes"
COLORS = {OWN: "C0", REFERENCE: "C3"}
STYLES = {"raw above the mean face, dB": "-", "matched above the mean face, dB": ":"}
OVER = {"step": "iterations", "cpu_seconds": "seconds of one core"}
DPI = 110


@dataclass(frozen=True)
class Source:
    """A kept run: learning_NAME_2core_epyc_cpu.json, and which recipe in it, of seed 1."""

    name: str
    recipe: str

    def read(self, pair: str, results: Path) -> Run:
        """Return the longest run of the recipe on ``pair``; raise SystemExit where there is none."""
        file = results / f"learning_{self.name}_2core_epyc_cpu.json"
        runs = [
            run
            for run in json.loads(file.read_text(encoding="utf-8"))["results"]
            if (run["pair"], run["recipe"], run["seed"]) == (pair, self.recipe, 1)
        ]
        if not runs:
            raise SystemExit(f"{file}: holds no run of {self.recipe} on {pair}")
        return max(runs, key=lambda run: run["rows"][-1]["step"])


@dataclass(frozen=True)
class Panel:
    """One model on one pair: its own recipe and the reference."""

    model: str
    pair: str
    own: Source
    reference: Source


PEER = Source("report", "adam-1e-3")
PANELS = (
    Panel("tiny", "pale_to_deep", Source("light", "own"), PEER),
    Panel("tiny", "turned_away", Source("statistics", "own"), PEER),
    Panel("tiny", "sisters", Source("own", "own"), PEER),
    Panel("tiny", "night_day", Source("light", "own"), PEER),
    Panel("original", "pale_to_deep", Source("original", "whole-original"), Source("models", "original-plain")),
    Panel(
        "original, a quarter",
        "turned_away",
        Source("original", "narrow-original-one-code"),
        Source("original", "narrow-original"),
    ),
    Panel("narrow df", "pale_to_deep", Source("own", "narrow-df"), Source("models", "df-plain")),
    Panel("narrow liae", "pale_to_deep", Source("own", "narrow-liae"), Source("models", "liae-plain")),
)


def draw_panel(axes: Axes, panel: Panel, over: str, results: Path) -> None:
    """Draw both runs of a panel over iterations or seconds; zero is the mean face of B."""
    for label, source in ((OWN, panel.own), (REFERENCE, panel.reference)):
        rows = source.read(panel.pair, results)["rows"]
        for title, style in STYLES.items():
            values = np.array([GAINS[title](row) for row in rows], float)
            name = f"{label}, {title.split()[0]}"
            axes.plot(
                [row[over] for row in rows], values, style, marker=".", color=COLORS[label], label=name, linewidth=1.4
            )
    axes.axhline(0, color="0.4", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(f"{panel.model}: {panel.pair}", fontsize=9)
    axes.set_xlabel(OVER[over], fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def draw(file: Path, results: Path = RESULTS, panels: tuple[Panel, ...] = PANELS) -> None:
    """Draw all panels, over iterations and below that over seconds, to a PNG."""
    bands = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(2 * bands, COLUMNS, figsize=(12, 5.2 * bands), squeeze=False, layout="constrained")
    for number, panel in enumerate(panels):
        for row, over in enumerate(OVER):
            draw_panel(axes[2 * (number // COLUMNS) + row][number % COLUMNS], panel, over, results)
    for axis in axes.ravel():
        axis.set_visible(bool(axis.lines))
    for row in axes:
        row[0].set_ylabel("dB above the mean face of B", fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI)
    plt.close(figure)


def main() -> None:
    """Draw what the command line says."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON files are")
    flags.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.png")
    arguments = flags.parse_args()
    draw(arguments.output, arguments.results)


if __name__ == "__main__":
    main()
