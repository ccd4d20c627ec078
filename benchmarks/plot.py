"""Draw results of benchmarks/loader.py and benchmarks/decode.py: python -m benchmarks.plot FILE.json ... -o FILE.png

All loader results share one diagram, with further lines for a further machine; each decode result gets a part of its
own.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullFormatter

WIDTH = 11.0  # inches
DPI = 130
GRAY, BLUE, SKY, ORANGE, SAND, GREEN, PURPLE = (
    *("#555555", "#0B4F8A", "#3C9BD0", "#C8500A", "#F0B27A"),
    *("#008060", "#A04C86"),
)
LIBRARIES = {"torch": "torch", "opencv": "OpenCV", "kornia": "kornia"}  # key of the versions -> how it is written
STYLES = ("-", "--", ":", "-.")  # one per machine


@dataclass(frozen=True)
class Line:
    """A line of the diagram: which rows of ``end_to_end`` make it. above: its ratios stand above its points."""

    label: str
    backend: str
    state: str
    device: str
    color: str
    marker: str
    above: bool


LINES = (
    Line("GPU, faces in its memory", "kornia", "cache_gpu", "cuda", GREEN, "D", True),
    Line("GPU, faces in host memory", "kornia", "warm", "cuda", PURPLE, "v", False),
    Line("warm, handed on as uint8", "opencv", "warm_uint8", "cpu", SKY, "^", True),
    Line("warm, float32", "opencv", "warm", "cpu", BLUE, "o", False),
    Line("first epoch, decoding included", "opencv", "cold", "cpu", ORANGE, "s", True),
    Line("the peer's way, warm", "peer_loop", "warm", "cpu", GRAY, ".", False),
)

FILES = {"png": "PNG heads", "jpeg": "JPEG 4:4:4, quality 98", "mask_jpeg": "3 masks in a gray JPEG", "raw": "raw"}
DECODERS = {  # name -> what is drawn
    "opencv_threads": ("OpenCV, threads", SKY),
    "opencv_processes": ("OpenCV, processes", BLUE),
    "kornia_threads": ("kornia_rs, threads", SAND),
    "kornia_processes": ("kornia_rs, processes", ORANGE),
    "dali_cpu": ("DALI on the CPU", GRAY),
    "dali_mixed": ("DALI on the GPU", GREEN),
    "set_threads": ("copied, threads", SKY),
    "set_processes": ("copied, processes", BLUE),
}


def short_hardware(environment: dict) -> str:
    """Return '2 cores' or '16 cores, NVIDIA H200'."""
    return ", ".join([f"{environment['cores']} cores", *gpu_names(environment)])


def gpu_names(environment: dict) -> list[str]:
    return [gpu if isinstance(gpu, str) else str(gpu.get("name", "a GPU")) for gpu in environment["gpus"]]


def hardware(environment: dict) -> str:
    """Return the line below a title: hardware, versions, commit and date."""
    versions = environment["versions"]
    libraries = [f"{title} {versions[key]}" for key, title in LIBRARIES.items() if key in versions]
    if versions.get("dali"):
        libraries.append(f"DALI {versions['dali']}")
    machine = ", ".join([environment["processor"], short_hardware(environment)])
    return f"{machine}; {', '.join(libraries)}; {environment['commit']}, {environment['date'][:10]}"


def rows_of(result: dict, line: Line) -> list[dict]:
    """Return a line's rows, small faces first."""
    labels = {"name": "end_to_end", "backend": line.backend, "state": line.state, "device": line.device}
    rows = [row for row in result["results"] if all({"device": "cpu", **row}[key] == labels[key] for key in labels)]
    return sorted(rows, key=lambda row: row["size"])


def plain(value: float, _place: object = None) -> str:
    """Return 12000.0 as '12,000'."""
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def times(ratio: float) -> str:
    """Return '12×', and '4.2×' or '0.55×' below ten."""
    return f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.2g}×"


def write_ratio(axes: Axes, row: dict, color: str, above: bool) -> None:
    """Write at a point how many times the peer's speed it is; below the point where that is slower."""
    ratio = row["ratio_to_peer"]
    text = axes.annotate(
        times(ratio),
        (row["size"], row["faces_per_s"]),
        (0, 8 if above and ratio >= 1 else -15),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=color,
    )
    text.set_path_effects([withStroke(linewidth=3, foreground="white")])


def logarithmic(axes: Axes, sizes: set[int]) -> None:
    """Make both axes logarithmic, with a tick per size of a face and room for the ratios."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted(sizes), [str(size) for size in sorted(sizes)])
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08, y=0.1)
    axes.set_xlabel("size of a face, px (logarithmic)")
    axes.grid(which="major", color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_loader(axes: Axes, results: list[dict]) -> None:
    """Draw faces per second against the faces' size, both logarithmic, with the ratio to the peer at each point."""
    sizes = set()
    for result, style in zip(results, STYLES * len(results)):
        machine = f" ({short_hardware(result['environment'])})" if len(results) > 1 else ""
        for line in LINES:
            rows = rows_of(result, line)
            if not rows:
                continue
            x, y = [row["size"] for row in rows], [row["faces_per_s"] for row in rows]
            sizes.update(x)
            axes.plot(x, y, style, color=line.color, marker=line.marker, lw=1.8, ms=6, label=line.label + machine)
            for row in rows:
                if row.get("ratio_to_peer") is not None:
                    write_ratio(axes, row, line.color, line.above)
    logarithmic(axes, sizes)
    axes.set_ylabel("faces per second, both sides (logarithmic)")
    title = "numbers at the points: times the peer's speed in the same run"
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False, title=title)


def headline(axes: Axes, title: str, lines: list[str]) -> None:
    """Write a part's title and, below it, what it ran on."""
    axes.axis("off")
    axes.text(0.5, 1, title, fontsize=14, fontweight="bold", ha="center", va="top")
    axes.text(0.5, 0, "\n".join(lines), fontsize=9, color=GRAY, ha="center", va="bottom")


def headline_inches(lines: int) -> float:
    return 0.42 + 0.2 * lines


def loader_inches(results: list[dict]) -> float:
    """Return the height of the loader's part, inches."""
    return headline_inches(len(results)) + 5.2 + 1.0 * len(results)


def loader_part(part: SubFigure, results: list[dict]) -> None:
    """Draw title, hardware and diagram of the loader."""
    head = headline_inches(len(results))
    top, below = part.subplots(2, 1, height_ratios=[head, loader_inches(results) - head])
    batches = sorted({r["batch"] for result in results for r in result["results"] if r["name"] == "end_to_end"})
    faces = " or ".join(map(str, batches))
    title = f"From faceswap PNGs to training batches of {faces} faces"
    headline(top, title, [hardware(result["environment"]) for result in results])
    draw_loader(below, results)


def bar_label(row: dict) -> str:
    """Return a bar's label, such as 'DALI on the GPU, batch 64, fetched'."""
    label = DECODERS.get(row["decoder"], (row["decoder"], GRAY))[0]
    if row["decoder"] == "dali_mixed":
        label += f", batch {row['decode_batch']}" + (", fetched" if row["pixels_on"] == "host" else "")
    return label


def draw_bars(axes: Axes, rows: list[dict]) -> None:
    """Draw faces per second of every decoder of one kind of file, with the CPU time of a face."""
    colors = [DECODERS.get(row["decoder"], ("", GRAY))[1] for row in rows]
    bars = axes.barh([bar_label(row) for row in rows], [row["faces_per_s"] for row in rows], color=colors, height=0.72)
    texts = [f"{plain(row['faces_per_s'])}/s   {row['cpu_ms_per_face']:.2f} ms" for row in rows]
    axes.bar_label(bars, texts, padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(row["faces_per_s"] for row in rows))
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.tick_params(labelsize=8)
    size, kilobytes = rows[0]["size"], rows[0]["encoded_bytes"] / 1000
    axes.set_title(
        f"{FILES.get(rows[0]['file'], rows[0]['file'])}, {size} px, {kilobytes:,.0f} kB", fontsize=9.5, loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)


def kinds_of(result: dict) -> dict[str, dict[int, list[dict]]]:
    """Return kind -> size -> rows, in their order in the file."""
    kinds: dict[str, dict[int, list[dict]]] = {}
    for row in result["results"]:
        if row.get("decoder"):
            kinds.setdefault(row["file"], {}).setdefault(row["size"], []).append(row)
    return kinds


def rows_inches(result: dict) -> list[float]:
    """Return the height of the bars of each kind of file, inches."""
    return [0.8 + 0.23 * max(map(len, sizes.values())) for sizes in kinds_of(result).values()]


def decode_part(part: SubFigure, result: dict) -> None:
    """Draw title, hardware and, kind by kind, bars."""
    kinds = kinds_of(result)
    columns = math.lcm(*map(len, kinds.values()))
    grid = part.add_gridspec(1 + len(kinds), columns, height_ratios=[headline_inches(1), *rows_inches(result)])
    title = "Decoding on all cores: faces per second, and CPU time of one"
    headline(part.add_subplot(grid[0, :]), title, [hardware(result["environment"])])
    for place, sizes in enumerate(kinds.values(), 1):
        span = columns // len(sizes)
        for column, rows in enumerate(sizes.values()):
            draw_bars(part.add_subplot(grid[place, column * span : (column + 1) * span]), rows)


def draw(results: list[dict], file: Path) -> None:
    """Draw results, as ``save`` of common.py wrote them, to a PNG."""
    loaders = [result for result in results if any(row["name"] == "end_to_end" for row in result["results"])]
    decodes = [result for result in results if kinds_of(result)]
    if not loaders and not decodes:
        raise SystemExit("no loader or decode results in these files")
    heights = [loader_inches(loaders)] if loaders else []
    heights += [headline_inches(1) + sum(rows_inches(result)) for result in decodes]
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)
    figure = plt.figure(figsize=(WIDTH, sum(heights)), layout=layout)
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if loaders:
        loader_part(parts.pop(0), loaders)
    for part, result in zip(parts, decodes):
        decode_part(part, result)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI)
    plt.close(figure)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    arguments.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.png")
    options = arguments.parse_args()
    draw([json.loads(path.read_text()) for path in options.results], options.output)


if __name__ == "__main__":
    main()
