"""Results of benchmarks/augment.py as tables and as a picture: python -m benchmarks.compare RESULT.json ...

    python -m benchmarks.compare cpu.json gpu.json -o augment.png --into docs/benchmarks.md

Files of one machine are taken together. A table has a row for each size and a column for each backend: faces per second
and how many times the peer's speed in the same run that is. Where a GPU was measured, further tables have what the host
and the GPU take, and the share of its memory's speed; where none was, what is counted. --into puts the tables into a
page, between two lines that mark the place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.plot import (
    BLUE,
    DPI,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SAND,
    SKY,
    gpu_names,
    hardware,
    headline,
    headline_inches,
    short_hardware,
    times,
)

WHOLE = {"whole": "5x5 warp", "whole_landmarks": "warp to landmarks"}
MARKS = ("<!-- augmentation: begin -->", "<!-- augmentation: end -->")
BAR = 0.23  # inches
WIDTH, WIDTH_GPU = 12.5, 17.0  # inches; more where times of a GPU stand beside bars
SHARE, SHARE_GPU = 0.7, 0.5  # of the axis that the longest bar takes; less where times of a GPU stand beside bars


@dataclass(frozen=True)
class Backend:
    """Rows of one backend on one kind of device, and how they are shown."""

    label: str
    name: str
    device: str
    color: str


BACKENDS = (
    Backend("faceswap's way, CPU", "peer_loop", "cpu", GRAY),
    Backend("DALI, affine alone*, CPU", "dali_affine", "cpu", SAND),
    Backend("kornia, CPU", "kornia", "cpu", SKY),
    Backend("opencv, CPU", "opencv", "cpu", BLUE),
    Backend("DALI, affine alone*, GPU", "dali_affine", "cuda", ORANGE),
    Backend("kornia, GPU", "kornia", "cuda", PURPLE),
    Backend("triton, GPU", "triton", "cuda", GREEN),
)
ONLY_AFFINE = "* DALI alone: rotate, zoom, shift, flip and resize. No LAB jitter, no CLAHE and no warp, so no feed."


@dataclass(frozen=True)
class Machine:
    """What one machine gave, of one file or several."""

    environments: list[dict]
    rows: list[dict]

    def rows_of(self, name: str, backend: Backend, key: str = "faces_per_s") -> dict[int, dict]:
        """size -> a backend's row, of those that have ``key``; small faces first."""
        keys = (name, backend.name, backend.device)
        rows = [row for row in self.rows if tuple(map(row.get, ("name", "backend", "device"))) == keys and key in row]
        return {row["size"]: row for row in sorted(rows, key=lambda row: row["size"])}

    def sizes(self, names: list[str]) -> list[int]:
        """Those of timed faces."""
        return sorted({row["size"] for row in self.rows if row["name"] in names and "faces_per_s" in row})

    def batches(self, names: list[str]) -> str:
        """'64', or '16, 64'."""
        return ", ".join(map(str, sorted({row["batch"] for row in self.rows if row["name"] in names})))

    def headlines(self) -> list[str]:
        """The hardware of each file, once."""
        return list(dict.fromkeys(map(hardware, self.environments)))


def machines(results: list[dict]) -> list[Machine]:
    """Results by machine, in the order of their files."""
    found: dict[tuple, Machine] = {}
    for result in results:
        environment = result["environment"]
        key = (environment["processor"], short_hardware(environment))
        machine = found.setdefault(key, Machine([], []))
        machine.environments.append(environment)
        machine.rows.extend(result["results"])
    return list(found.values())


# ---- tables --------------------------------------------------------------------------------------------------


def speed(row: dict) -> str:
    """'2,691 (4.1×)'; without the peer in the run '2,691'."""
    return f"{row['faces_per_s']:,.0f}" + (f" ({times(row['ratio_to_peer'])})" if "ratio_to_peer" in row else "")


def share(row: dict) -> str:
    """'12.3 %'."""
    return f"{100 * row['floor_fraction']:.1f} %"


def host_and_device(row: dict) -> str:
    """'0.412 / 0.0953': ms until the call returns, and of the GPU; a dash where no event sees it."""
    return f"{row['host_ms']:.3g} / " + (f"{row['device_ms']:.3g}" if "device_ms" in row else "–")


def size_table(machine: Machine, name: str, key: str, written: Callable[[dict], str]) -> list[list[str]]:
    """A table, its head first: a row for each size, a column for each backend that has any; nothing without rows."""
    found = {backend.label: machine.rows_of(name, backend, key) for backend in BACKENDS}
    columns = {
        label: timed
        for label, rows in found.items()
        if (timed := {size: row for size, row in rows.items() if not row.get("estimate")})
    }
    sizes = sorted({size for rows in columns.values() for size in rows})
    body = [[f"{size} px", *(written(r[size]) if size in r else "" for r in columns.values())] for size in sizes]
    return [["", *columns], *body] if columns else []


def counted_table(rows: list[dict]) -> list[list[str]]:
    """A table of what benchmarks/graph_cost.py counts, the floor first; nothing where nothing was counted."""
    counted = [row for row in rows if "launches" in row]
    if not counted:
        return []
    table = [["", "launches", "bytes a px", "instructions a px"]]
    table.append(["the floor", "", f"{counted[0]['floor_bytes_per_pixel']}", ""])
    for row in sorted(counted, key=lambda row: (row["backend"], row["size"])):
        instructions = row["instructions_per_pixel"]
        written = "not counted" if instructions is None else f"{instructions:,.0f}"
        name = f"{row['backend']}, {row['size']} px"
        table.append([name, str(row["launches"]), f"{row['bytes_per_pixel']:,.0f}", written])
    return table


def text(table: list[list[str]], markdown: bool) -> str:
    """A table's lines; in columns of one width, or as Markdown."""
    if markdown:
        rule = ["", *["--:"] * (len(table[0]) - 1)]
        rule[0] = "---"
        return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], rule, *table[1:]])
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def tables(found: list[Machine], names: list[str], markdown: bool) -> str:
    """All tables of all machines, each with a title."""
    parts = []
    for machine in found:
        parts += machine.headlines()
        for name in names:
            what = f"{WHOLE.get(name, name)}, {machine.batches([name])} faces"
            contents = {
                f"{what}: faces/s (times faceswap's way)": size_table(machine, name, "faces_per_s", speed),
                f"{what}: ms of the host / of the GPU": size_table(machine, name, "host_ms", host_and_device),
                f"{what}: share of the speed of the GPU's memory": size_table(machine, name, "floor_fraction", share),
            }
            for title, table in contents.items():
                parts += titled(title, table, markdown)
        counted = counted_table(machine.rows) if "whole" in names else []
        parts += titled("on a GPU, counted and not timed", counted, markdown)
        if any(row.get("backend") == "dali_affine" for row in machine.rows):
            parts.append(ONLY_AFFINE.replace("*", r"\*") if markdown else ONLY_AFFINE)
    return "\n\n".join(parts)


def titled(title: str, table: list[list[str]], markdown: bool) -> list[str]:
    return [f"**{title}**" if markdown else title, text(table, markdown)] if table else []


def put_into(page: Path, written: str) -> None:
    """Replace what stands between MARKS in a page."""
    content = page.read_text()
    first, last = (content.find(mark) for mark in MARKS)
    if not 0 <= first < last:
        raise SystemExit(f"--into {page}: it needs the lines {' and '.join(MARKS)}")
    page.write_text(content[: first + len(MARKS[0])] + f"\n\n{written}\n\n" + content[last:])


# ---- picture -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A backend of a machine at one size."""

    label: str
    value: float
    written: str
    color: str


def unit_name(machine: Machine, backend: Backend) -> str:
    """Return '16 cores' for a backend of the CPU, 'NVIDIA H200' for one of the GPU."""
    environment = machine.environments[0]
    return f"{environment['cores']} cores" if backend.device == "cpu" else gpu_names(environment)[0]


def bars_of(found: list[Machine], name: str, size: int) -> list[Bar]:
    """The bars of a part of the picture, in the order of BACKENDS."""
    bars = []
    for backend in BACKENDS:
        for machine in found:
            row = machine.rows_of(name, backend).get(size)
            if row is None:
                continue
            copied = " to GPU" if row.get("copied") else ""
            where = f" ({unit_name(machine, backend)})" if len(found) > 1 else ""
            written = f"{row['faces_per_s']:,.0f}"
            if backend.name != "peer_loop" and "ratio_to_peer" in row:
                written += f"   {times(row['ratio_to_peer'])}"
            if "device_ms" in row:
                written += f"   host {row['host_ms']:.2g}, GPU {row['device_ms']:.2g} ms"
            bars.append(Bar(backend.label + copied + where, row["faces_per_s"], written, backend.color))
    return bars


def short_number(value: float, _place: object = None) -> str:
    """Return '100', '10k' and '1M' for powers of ten."""
    return next((f"{value / unit:g}{name}" for unit, name in ((1e6, "M"), (1e3, "k")) if value >= unit), f"{value:g}")


def draw_bars(axes: Axes, bars: list[Bar], limits: tuple[float, float]) -> None:
    """Draw faces per second, logarithmic, with the figure and the ratio beside each bar."""
    places = range(len(bars))
    drawn = axes.barh(places, [bar.value for bar in bars], color=[bar.color for bar in bars], height=0.74)
    for label in axes.bar_label(drawn, [bar.written for bar in bars], padding=4, fontsize=8.5):
        label.set_in_layout(False)  # there is room for it; the layout would make more
    axes.set_yticks(places, [bar.label for bar in bars], fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.xaxis.set_major_formatter(FuncFormatter(short_number))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", which="both", labelsize=8, color=GRAY)
    axes.grid(axis="x", which="major", color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def axis_limits(bars: list[Bar], share: float) -> tuple[float, float]:
    """Return the ends of the axis of all parts: the shortest bar shows, the longest takes a share."""
    values = [bar.value for bar in bars]
    low = min(values) / 2
    return low, low * (max(values) / low) ** (1 / share)


def notes(found: list[Machine]) -> list[str]:
    """Small print: what the picture does not show, and what is counted in its place."""
    lines = []
    if any(row.get("backend") == "dali_affine" for machine in found for row in machine.rows):
        lines.append(ONLY_AFFINE)
    timed = any(
        machine.rows_of("whole", backend) for machine in found for backend in BACKENDS if backend.device == "cuda"
    )
    counted = [] if timed else [row for machine in found for row in machine.rows if row.get("estimate")]
    if counted:
        largest = max(row["size"] for row in counted)
        parts = [
            f"{row['backend']} {row['launches']} launches and {row['bytes_per_pixel']:,.0f} bytes a px"
            for row in counted
            if row["size"] == largest
        ]
        floor = counted[0]["floor_bytes_per_pixel"]
        lines.append(
            f"On a GPU nothing was timed, so it has no bar. Counted: {', '.join(parts)}; the floor is {floor}."
        )
    return lines


def draw(found: list[Machine], file: Path) -> None:
    """Draw both wholes side by side, as far as they were timed: sizes from top to bottom, a bar for each backend."""
    names = [name for name in WHOLE if any(machine.sizes([name]) for machine in found)]
    if not names:
        raise SystemExit("no augment results in these files")
    sizes = sorted({size for machine in found for size in machine.sizes(names)})
    parts = {(size, name): bars_of(found, name, size) for size in sizes for name in names}
    bars = [bar for shown in parts.values() for bar in shown]
    on_gpu = any("GPU" in bar.written for bar in bars)
    limits = axis_limits(bars, SHARE_GPU if on_gpu else SHARE)
    heights = [0.55 + BAR * max(len(parts[size, name]) for name in names) for size in sizes]
    lines, below = [line for machine in found for line in machine.headlines()], notes(found)
    head, foot = headline_inches(len(lines)), 0.2 + 0.2 * len(below)
    figure = plt.figure(figsize=(WIDTH_GPU if on_gpu else WIDTH, head + sum(heights) + foot), layout="constrained")
    grid = figure.add_gridspec(2 + len(sizes), len(names), height_ratios=[head, *heights, foot])
    batches = " or ".join(dict.fromkeys(machine.batches(names) for machine in found))
    title = f"Augmented faces per second, batches of {batches}: image and 3 masks, from bytes to floats"
    headline(figure.add_subplot(grid[0, :]), title, lines)
    for place, size in enumerate(sizes):
        for column, name in enumerate(names):
            axes = figure.add_subplot(grid[1 + place, column])
            draw_bars(axes, parts[size, name], limits)
            axes.set_title(f"{size} px, {WHOLE[name]}", fontsize=10, loc="left", fontweight="bold")
    footer = figure.add_subplot(grid[-1, :])
    footer.axis("off")
    scale = "faces per second, logarithmic; beside a bar how many times faceswap's way in the same run that is"
    if on_gpu:
        scale += "; ms a batch: until the host is free, and of the GPU"
    written = [scale, *below]
    footer.text(0, 1, "\n".join(written), fontsize=8.5, color=GRAY, va="top")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI)
    plt.close(figure)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    flags.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="draw the wholes")
    flags.add_argument("--markdown", action="store_true", help="tables for a Markdown page")
    flags.add_argument("--into", type=Path, metavar="PAGE.md", help="replace the tables of a Markdown page")
    flags.add_argument("--names", nargs="+", default=list(WHOLE), metavar="NAME", help="of rows, e.g. color clahe")
    options = flags.parse_args()
    found = machines([json.loads(path.read_text()) for path in options.results])
    print(tables(found, options.names, options.markdown))
    if options.into:
        put_into(options.into, tables(found, options.names, markdown=True))
    if options.output:
        draw(found, options.output)


if __name__ == "__main__":
    main()
