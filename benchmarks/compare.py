"""Results of benchmarks/augment.py as tables and as a diagram: python -m benchmarks.compare RESULT.json ...

    python -m benchmarks.compare cpu.json gpu.json --markdown -o augment.png

A table has a row for each size and a column for each backend: faces per second and how many times the peer's speed in
the same run that is. Where a GPU was measured or estimated, a further table has the share of its memory's speed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.plot import (
    BLUE,
    DPI,
    GRAY,
    PURPLE,
    SKY,
    STYLES,
    WIDTH,
    hardware,
    headline,
    headline_inches,
    logarithmic,
    short_hardware,
    times,
    write_ratio,
)

WHOLE = {"whole": "Augmentation, 5x5 warp", "whole_landmarks": "Augmentation, warp to landmarks"}


@dataclass(frozen=True)
class Line:
    """Rows of one backend on one kind of device. above: whether its ratios stand above its points."""

    label: str
    backend: str
    device: str
    color: str
    marker: str
    above: bool


LINES = (
    Line("the peer's way, CPU", "peer_loop", "cpu", GRAY, ".", False),
    Line("OpenCV, CPU", "opencv", "cpu", BLUE, "o", True),
    Line("kornia, CPU", "kornia_cpu", "cpu", SKY, "^", False),
    Line("kornia, GPU", "kornia_gpu", "cuda", PURPLE, "v", True),
)


def rows_of(result: dict, name: str, line: Line, key: str = "faces_per_s") -> dict[int, dict]:
    """size -> a line's row, of those that have ``key``; small faces first."""
    key_values = (name, line.backend, line.device)
    rows = [r for r in result["results"] if tuple(map(r.get, ("name", "backend", "device"))) == key_values and key in r]
    return {row["size"]: row for row in sorted(rows, key=lambda row: row["size"])}


def speed(row: dict) -> str:
    """'2,691 (4.1×)'."""
    return f"{row['faces_per_s']:,.0f} ({times(row['ratio_to_peer'])})"


def share(row: dict) -> str:
    """'12.3 %', with a question mark where no clock ran."""
    return f"{100 * row['floor_fraction']:.1f} %" + (" (estimate)" if row.get("estimate") else "")


def cells(result: dict, name: str, key: str, written) -> list[list[str]]:
    """A table, its head first: a row for each size, a column for each backend that has any; nothing without rows."""
    columns = {line.label: rows for line in LINES if (rows := rows_of(result, name, line, key))}
    sizes = sorted({size for rows in columns.values() for size in rows})
    body = [[f"{size} px", *(written(r[size]) if size in r else "" for r in columns.values())] for size in sizes]
    return [["", *columns], *body] if columns else []


def text(table: list[list[str]], markdown: bool) -> str:
    """A table's lines; in columns of one width, or as Markdown."""
    if markdown:
        rule = ["", *["--:"] * (len(table[0]) - 1)]
        rule[0] = "---"
        return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], rule, *table[1:]])
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def tables(results: list[dict], names: list[str], markdown: bool) -> str:
    """All tables of all files, each with a title."""
    parts = []
    for result in results:
        parts.append(hardware(result["environment"]))
        for name in names:
            batches = sorted({row["batch"] for row in result["results"] if row["name"] == name})
            title = f"{WHOLE.get(name, name)}: faces/s (times the peer's), batches of {', '.join(map(str, batches))}"
            parts += titled(title, cells(result, name, "faces_per_s", speed), markdown)
            title = f"{WHOLE.get(name, name)}: share of the speed of the GPU's memory"
            parts += titled(title, cells(result, name, "floor_fraction", share), markdown)
    return "\n\n".join(parts)


def titled(title: str, table: list[list[str]], markdown: bool) -> list[str]:
    return [f"**{title}**" if markdown else title, text(table, markdown)] if table else []


def draw_lines(axes: Axes, results: list[dict], name: str) -> set[int]:
    """Faces per second against their size, a line for each backend and file -> the sizes."""
    sizes = set()
    for result, style in zip(results, STYLES * len(results)):
        machine = f" ({short_hardware(result['environment'])})" if len(results) > 1 else ""
        for line in LINES:
            rows = rows_of(result, name, line)
            if not rows:
                continue
            sizes.update(rows)
            y = [row["faces_per_s"] for row in rows.values()]
            label = line.label + machine
            axes.plot(list(rows), y, style, color=line.color, marker=line.marker, lw=1.8, ms=6, label=label)
            if line.backend != "peer_loop":
                for row in rows.values():
                    write_ratio(axes, row, line.color, line.above)
    axes.set_title(WHOLE[name], fontsize=10, loc="left")
    return sizes


def draw(results: list[dict], file: Path) -> None:
    """Both wholes side by side, as far as they were measured."""
    names = [name for name in WHOLE if any(rows_of(result, name, line) for result in results for line in LINES)]
    if not names:
        raise SystemExit("no augment results in these files")
    head = headline_inches(len(results))
    figure = plt.figure(figsize=(WIDTH, head + 6.6), layout="constrained")
    grid = figure.add_gridspec(2, len(names), height_ratios=[head, 6.6])
    batches = sorted({r["batch"] for result in results for r in result["results"] if r["name"] in names})
    title = f"Augmentation of {' or '.join(map(str, batches))} faces, from bytes to floats"
    headline(figure.add_subplot(grid[0, :]), title, [hardware(result["environment"]) for result in results])
    panels = [figure.add_subplot(grid[1, 0])]
    panels += [figure.add_subplot(grid[1, column], sharey=panels[0]) for column in range(1, len(names))]
    sizes = [draw_lines(axes, results, name) for axes, name in zip(panels, names)]
    for axes, present in zip(panels, sizes):  # when all is drawn: they share an axis
        logarithmic(axes, present)
    panels[0].set_ylabel("faces per second (logarithmic)")
    handles, labels = panels[0].get_legend_handles_labels()
    note = "numbers at the points: times the peer's speed in the same run"
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, title=note)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI)
    plt.close(figure)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    flags.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="draw the wholes")
    flags.add_argument("--markdown", action="store_true", help="tables for a Markdown page")
    flags.add_argument("--names", nargs="+", default=list(WHOLE), metavar="NAME", help="of rows, e.g. color clahe")
    options = flags.parse_args()
    results = [json.loads(path.read_text()) for path in options.results]
    print(tables(results, options.names, options.markdown))
    if options.output:
        draw(results, options.output)


if __name__ == "__main__":
    main()
