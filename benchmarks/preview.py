"""What the window of ``train -p`` and the history of previews cost the training.

    DISPLAY=:0 python -m benchmarks.preview --json benchmarks/results/preview_MACHINE.json

One run as ``swapfast train`` builds it, in blocks of 250 steps that end with their preview, in turns: without a window
and a history, and with both. The window is a process of its own; it is stopped while the other blocks run. more is the
median over pairs of how much more the blocks with both take, 0.01 for 1 %: cpu of all threads and of the window, wall
of the clock, which only means something on a machine that does nothing else. Each pair's own figures are in the row.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.common import Results, Timing, cpu_seconds, parser, summary
from benchmarks.train import SAVES, Setup, opened
from pipelines.preview import PreviewWriter
from swapfast.preview.history import PreviewHistory
from swapfast.preview.window_process import PreviewWindow
from swapfast.synthetic import synthesize
from swapfast.training.trainer import Trainer

PAIRS = 9
_TICKS = os.sysconf("SC_CLK_TCK")


def process_cpu_seconds(pid: int) -> float:
    """Return the CPU time of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def block(trainer: Trainer, steps: int, draw: Callable[[int], object], pid: int | None) -> tuple[float, float]:
    """Return the CPU and wall seconds of a block of steps and its preview. pid: of the window that runs meanwhile."""

    def used() -> float:
        return cpu_seconds() + (0.0 if pid is None else process_cpu_seconds(pid))

    cpu, wall = used(), time.perf_counter()
    for _ in range(steps):
        trainer.train_one_step()
    draw(trainer.step)
    return used() - cpu, time.perf_counter() - wall


def measure(setup: Setup, steps: int, pairs: int) -> dict:
    """Return the row."""
    with opened(setup, "previewed", logs=True) as trainer:
        folder = setup.folder / "previewed"
        folder.mkdir(exist_ok=True)
        trainer.run.save_interval = 10**9  # the block draws its previews itself
        trainer.run.progress.interval_s = 10.0
        preview = next(observer for observer in trainer.run.observers if isinstance(observer, PreviewWriter))
        window = PreviewWindow(folder, preview.draw, preview.toggle_mask, print)
        trainer.run.observers = [*trainer.run.observers, window]
        assert window._process is not None
        pid = window._process.pid
        history = PreviewHistory(folder, 100)
        preview._history = history
        block(trainer, 5, preview.draw, None)
        time.sleep(8)  # the window opens
        ratios: dict[str, list[float]] = {"cpu": [], "wall": []}
        walls = []
        for pair in range(pairs):
            seconds = {}
            for both in (True, False) if pair % 2 else (False, True):
                preview._history = history if both else None
                os.kill(pid, signal.SIGCONT if both else signal.SIGSTOP)
                seconds[both] = block(trainer, steps, preview.draw, pid if both else None)
            os.kill(pid, signal.SIGCONT)
            walls.append(seconds[False][1] / steps)
            for kind, index in (("cpu", 0), ("wall", 1)):
                ratios[kind].append(seconds[True][index] / seconds[False][index] - 1)
        assert window._process.poll() is None, "the window was open all the time"
        window.on_end(trainer)
        row = summary(Timing(walls), 2 * setup.batch, name="window and history", **setup.labels(trainer))
    for kind, values in ratios.items():
        row[f"{kind}_more"] = round(statistics.median(values), 4)
        row[f"{kind}_pairs"] = [round(value, 4) for value in values]
    return row | {"steps_each": steps, "load": round(os.getloadavg()[0], 1)}


def main() -> None:
    """Run the benchmark."""
    flags = parser("What the preview window and the history cost")
    flags.add_argument("--batch", type=int, default=16, help="faces a side; default 16")
    flags.add_argument("--pairs", type=int, default=PAIRS, help=f"of blocks; default {PAIRS}")
    options = flags.parse_args()
    results = Results(options.json)
    with TemporaryDirectory() as name:
        synthesize(Path(name) / "faces", 64, 128, 1, 1)
        setup = Setup(Path(name), "tiny", options.batch, "cuda" if torch.cuda.is_available() else "cpu", "fp32")
        results.add(measure(setup, 5 if options.quick else SAVES, 2 if options.quick else options.pairs))


if __name__ == "__main__":
    main()
