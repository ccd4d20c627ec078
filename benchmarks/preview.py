"""What the window of ``train -p`` and the history of previews cost the training.

    DISPLAY=:0 python -m benchmarks.preview --json benchmarks/results/preview_MACHINE.json

One run as ``swapfast train`` builds it. window: short blocks of steps, in turns with the window running and stopped
(SIGSTOP; it is a process of its own). In each block the newest preview changes, so the window has one to read; more is
the median over pairs of blocks of how much longer their median step takes, 0.01 for 1 %, low and high its interval of
95 % by resampling. history: a preview with the history and one without, in turns; more is the difference of the two
medians over the time of the 250 steps between two saves. Both by the clock, which only means something on a machine
that does nothing else.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.common import Results, Timing, parser, significant, summary
from benchmarks.train import SAVES, Setup, opened
from pipelines.preview import PreviewWriter
from swapfast.preview.history import PreviewHistory
from swapfast.preview.window_process import PreviewWindow
from swapfast.synthetic import synthesize
from swapfast.training.trainer import Trainer

PAIRS = 40
STEPS = 40  # of a block
PREVIEWS = 20  # of each kind


def median_step(trainer: Trainer, steps: int) -> float:
    """Return the median seconds of some steps."""
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        trainer.train_one_step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def interval(values: list[float]) -> tuple[float, float]:
    """Return the interval of 95 % of the median, by resampling."""
    generator = random.Random(1)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def window_row(
    trainer: Trainer, preview: PreviewWriter, window: PreviewWindow, steps: int, pairs: int, faces: int
) -> dict:
    """Return the row of the window, which is open. faces: of a step."""
    assert window._process is not None
    pid = window._process.pid
    more, alone = [], []
    for pair in range(pairs):
        seconds = {}
        for runs in (True, False) if pair % 2 else (False, True):
            os.kill(pid, signal.SIGCONT if runs else signal.SIGSTOP)
            preview.draw(trainer.step)
            seconds[runs] = median_step(trainer, steps)
        more.append(seconds[True] / seconds[False] - 1)
        alone.append(seconds[False])
    os.kill(pid, signal.SIGCONT)
    assert window._process.poll() is None, "the window was open all the time"
    low, high = interval(more)
    found = {"more": statistics.median(more), "low": low, "high": high}
    return summary(Timing(alone, None), faces, name="window", pairs=pairs, steps=steps) | {
        key: significant(value) for key, value in found.items()
    }


def history_row(trainer: Trainer, preview: PreviewWriter, history: PreviewHistory, step_s: float, count: int) -> dict:
    """Return the row of the history. step_s: seconds of a step."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(count):
        for kept in (True, False):
            preview._history = history if kept else None
            start = time.perf_counter()
            preview.draw(trainer.step)
            seconds[kept].append(time.perf_counter() - start)
            trainer.train_one_step()  # the history names its files by the step
    more = (statistics.median(seconds[True]) - statistics.median(seconds[False])) / (SAVES * step_s)
    return summary(Timing(seconds[True], None), 1, name="history", more=significant(more))


def measure(setup: Setup, steps: int, pairs: int, previews: int) -> list[dict]:
    """Return the rows."""
    with opened(setup, "previewed", logs=True) as trainer:
        folder = setup.folder / "previewed"
        folder.mkdir(exist_ok=True)
        trainer.run.save_interval = 10**9  # previews are drawn here
        trainer.run.progress.interval_s = 10.0
        preview = next(observer for observer in trainer.run.observers if isinstance(observer, PreviewWriter))
        preview._history = None
        window = PreviewWindow(folder, preview.draw, preview.toggle_mask, print)
        trainer.run.observers = [*trainer.run.observers, window]
        median_step(trainer, 5)
        time.sleep(8)  # the window opens
        row = window_row(trainer, preview, window, steps, pairs, 2 * setup.batch)
        window.on_end(trainer)
        rows = [row, history_row(trainer, preview, PreviewHistory(folder, 100), row["median_ms"] / 1e3, previews)]
        return [{**row, **setup.labels(trainer), "load": round(os.getloadavg()[0], 1)} for row in rows]


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
        counts = (5, 2, 2) if options.quick else (STEPS, options.pairs, PREVIEWS)
        for row in measure(setup, *counts):
            results.add(row)


if __name__ == "__main__":
    main()
