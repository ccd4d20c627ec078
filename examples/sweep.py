"""Trains several models, or one with several settings, on the same faces, and puts their figures into a table.

    python -m examples.sweep -A faces/a -B faces/b -o OUT --models tiny --set optimizer.learning_rate=1e-4 3e-4

trains each model with each value, in turn, to OUT/MODEL-VALUE. --truth FOLDER measures them against known true swaps
(`swapfast synthesize`); without it a tenth of each side's faces is held out and the reconstruction of B's is measured,
which does not see whether a swap keeps A's identity: look at the previews too. Words that are not known here go to
train. The same command goes on where it stopped. OUT/table.md and OUT/table.json keep the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from examples.program import Start, swapfast

TEST_SHARE = 0.1


@dataclass(frozen=True)
class Row:
    """A trained model. parameters: millions. speed: faces a second of both sides. db: of swaps, or of B's own faces."""

    name: str
    parameters: float
    iterations: int
    speed: float
    loss: float
    db: float


def main(arguments: list[str] | None = None, start: Start = subprocess.run) -> int:
    """Train and measure all; print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sweep", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("-A", type=Path, required=True, metavar="DIR")
    parser.add_argument("-B", type=Path, required=True, metavar="DIR")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT")
    parser.add_argument("--models", nargs="+", default=["tiny"], metavar="NAME", help="see `swapfast models`")
    parser.add_argument("--set", nargs="+", metavar="NAME=VALUE", help="a setting, and its other values behind it")
    parser.add_argument("-i", "--iterations", type=int, default=1000, metavar="N", help="of each; default 1000")
    parser.add_argument("--truth", type=Path, metavar="DIR", help="known true swaps: DIR/a/NAME and DIR/b/NAME")
    options, train_flags = parser.parse_known_args(arguments)
    name, values = _values(options.set or [])
    rows = []
    for model, value in product(options.models, values):
        folder = options.out / (f"{model}-{value}" if value else model)
        flags = ["-A", options.A, "-B", options.B, "-m", folder, "-t", model, "-i", options.iterations, *train_flags]
        flags += ["--set", f"{name}={value}"] if value else []
        flags += [] if options.truth else ["--test", TEST_SHARE]
        swapfast("train", *flags, start=start)
        rows.append(_measured(folder, model, options.truth, start))
    table = _table(rows, "swap, dB" if options.truth else "B > B, dB")
    (options.out / "table.md").write_text(table)
    (options.out / "table.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(table, end="")
    return 0


def _values(words: list[str]) -> tuple[str, list[str]]:
    """Return a setting's name and values; one empty value where there is none."""
    if not words:
        return "", [""]
    name, equals, first = words[0].partition("=")
    if not equals or not first:
        print(f"--set {words[0]}: give NAME=VALUE, and further values behind it", file=sys.stderr)
        raise SystemExit(2)
    return name, [first, *words[1:]]


def _measured(folder: Path, model: str, truth: Path | None, start: Start) -> Row:
    log = json.loads(swapfast("log", folder, "--json", start=start, keep=True))
    against = ("--truth", truth) if truth else ("--test",)
    quality = json.loads(swapfast("evaluate", "-m", folder, *against, "--json", start=start, keep=True))
    weights = json.loads(swapfast("models", "--json", start=start, keep=True))
    return Row(
        name=folder.name,
        parameters=round(next(row["parameters"] for row in weights if row["name"] == model) / 1e6, 1),
        iterations=log["iterations"],
        speed=round(log["speed"]["faces_per_s"]["mean"], 1) if log["speed"] else 0.0,
        loss=round(sum(course["latest"] for course in log["loss"].values()), 4),
        db=quality["swap_psnr"] if truth else quality["b"]["psnr"],
    )


def _table(rows: list[Row], db: str) -> str:
    """Return the rows as a table in Markdown, the best first."""
    lines = [f"| model | parameters, M | iterations | faces/s | loss | {db} |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: -row.db):
        lines.append(f"| {row.name} | {row.parameters} | {row.iterations} | {row.speed} | {row.loss} | {row.db:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
