"""Trains the same steps on the CPU and on the GPU and says how many faces a second each takes.

    python -m examples.cpu_gpu -A faces/a -B faces/b -o speed --model original -i 300

Without faces it draws some first. Without a GPU the table has one row, and a line says so. The first --warm-up steps of
each are left out: they wait for files and compile. docs/gpu.md has the whole set of benchmarks for a rented GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from examples.program import Start, swapfast


def main(arguments: list[str] | None = None, start: Start = subprocess.run) -> int:
    """Train on each device and print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.cpu_gpu", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("-A", type=Path, metavar="DIR", help="default: drawn faces")
    parser.add_argument("-B", type=Path, metavar="DIR", help="default: drawn faces")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="a new folder")
    parser.add_argument("-t", "--model", default="tiny", help="see `swapfast models`; default tiny")
    parser.add_argument("-i", "--iterations", type=int, default=200, metavar="N", help="on each device; default 200")
    parser.add_argument("--warm-up", type=int, default=50, metavar="N", help="steps left out; default 50")
    options, train_flags = parser.parse_known_args(arguments)
    if options.out.exists():
        print(f"{options.out}: is there already; give a new folder", file=sys.stderr)
        return 2
    if not 0 <= options.warm_up < options.iterations:
        print(f"--warm-up {options.warm_up}: must be less than the {options.iterations} iterations", file=sys.stderr)
        return 2
    folder_a, folder_b = options.A, options.B
    if folder_a is None or folder_b is None:
        swapfast("synthesize", options.out / "faces", "--faces", 60, "--pairs", 1, start=start)
        folder_a, folder_b = options.out / "faces" / "a", options.out / "faces" / "b"
    gpus = json.loads(swapfast("doctor", "--json", start=start, keep=True))["gpus"]
    rows = []
    for device in ("cpu", "cuda") if gpus else ("cpu",):
        model = options.out / device
        flags = ("-A", folder_a, "-B", folder_b, "-m", model, "-t", options.model, "-i", options.iterations)
        swapfast("train", *flags, "--device", device, *train_flags, start=start)
        rows.append((device, _steps_per_second(model, options.warm_up)))
    print(f"| device | {options.model}: steps/s | beside the CPU |\n|---|---|---|")
    for device, speed in rows:
        print(f"| {device} | {speed:.2f} | {speed / rows[0][1]:.1f} |")
    if not gpus:
        print("no GPU that torch sees: `swapfast doctor` says why")
    return 0


def _steps_per_second(model: Path, warm_up: int) -> float:
    """Return the mean speed by the times at which the steps behind the warm-up were logged: a GPU's come in groups."""
    rows = [json.loads(line) for line in (model / "logs" / "steps.jsonl").read_text().splitlines()]
    times = [row["time"] for row in rows if row.get("step", 0) > warm_up]
    return (len(times) - 1) / max(times[-1] - times[0], 1e-9) if len(times) > 1 else float("nan")


if __name__ == "__main__":
    sys.exit(main())
