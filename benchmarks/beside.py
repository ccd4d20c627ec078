"""Training on a CPU alone and beside one busy process, with threads that wait in several ways.

    python -m benchmarks.beside [--seconds 15] [--repeats 3] [--json FILE]

Runs whole programs in turns: `swapfast train -t tiny -b 16` on drawn faces. Rows:

    name        step: the steps of a window behind the first seconds; took_over: those of a run so long that CoreWatch
                (swapfast/training/core_watch.py) has taken a thread from torch. median_ms: of the windows' means
    way         ours: as the program is started; spinning: libgomp's own count of rounds (300,000); passive: threads
                sleep at once; one_thread: OMP_NUM_THREADS=1
    state       alone, or beside: another process is busy on one core
    lacking_cores   of each window: for how long threads were ready to run and had no core, a second of the clock. By
                this CoreWatch judges
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import Timing, parser, save, show, summary
from swapfast.logs.summary import load_history
from swapfast.synthetic.dataset import synthesize
from swapfast.system import available_cores
from swapfast.training.core_watch import WINDOW_S, WINDOWS, runnable_wait_s

BATCH = 16  # faces per side
WARM_UP_S = 3.0
# libgomp's count where nothing is set and there are no more threads than cores.
WAYS: dict[str, dict[str, str]] = {
    "ours": {},
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one_thread": {"OMP_NUM_THREADS": "1"},
}
STATES = ("alone", "beside")
_UNSET = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


@contextlib.contextmanager
def neighbour(state: str) -> Iterator[None]:
    """Keep one core busy in another process, where ``state`` is beside."""
    if state == "alone":
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def training(faces: Path, model: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Train in another process, ``WARM_UP_S`` behind its first loss line, and stop at the end of the block."""
    command = [sys.executable, "-m", "swapfast", "train", "-A", faces / "a", "-B", faces / "b", "-m", model]
    command += ["-t", "tiny", "-b", BATCH, "-i", 10**6, "-s", 10**6, "--device", "cpu", "--preview-images", 2]
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET} | variables
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        while "[#" not in process.stdout.readline():
            if process.poll() is not None:
                raise RuntimeError("the run ended before its first step")
        time.sleep(WARM_UP_S)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def wait_s(process: int) -> float:
    """Return what ``runnable_wait_s`` does. Raises RuntimeError where nothing is known."""
    seconds = runnable_wait_s(process)
    if seconds is None:
        raise RuntimeError("nobody tells for how long threads had no core: the run has ended, or this is not Linux")
    return seconds


def window(faces: Path, way: str, state: str, before_s: float, seconds: float) -> tuple[float, float]:
    """Return the mean seconds of a step of a window, and the cores that the threads lacked in it.

    before_s: how long the run goes on before the window begins.
    """
    with TemporaryDirectory() as folder, neighbour(state):
        model = Path(folder) / "model"
        with training(faces, model, WAYS[way]) as process:
            time.sleep(before_s)
            start, waited = time.time(), wait_s(process.pid)
            time.sleep(seconds)
            end, lacking = time.time(), wait_s(process.pid) - waited
        steps = sum(start <= at <= end for at in load_history(model).column("time"))
    return (end - start) / max(steps, 1), lacking / (end - start)


def measure(faces: Path, seconds: float, repeats: int, quick: bool) -> list[dict]:
    """Return a row for each way and state, measured in turns."""
    places = [("step", way, state, 0.0) for way in WAYS for state in STATES]
    places += [("took_over", "ours", state, 0.0 if quick else (WINDOWS + 1) * WINDOW_S) for state in STATES]
    taken: dict[tuple, list[tuple[float, float]]] = {place: [] for place in places}
    for _ in range(repeats):
        for place in places:
            _, way, state, before_s = place
            taken[place].append(window(faces, way, state, before_s, seconds))
    rows = []
    for (name, way, state, _), windows in taken.items():
        steps, lacking = zip(*windows)
        row = summary(Timing(steps, None), 2 * BATCH, name=name, model="tiny", size=64, way=way, state=state)
        rows.append(row | {"lacking_cores": [round(cores, 3) for cores in lacking]})
    return rows


def main() -> None:
    """Run the benchmark."""
    flags = parser("Training on a CPU alone and beside one busy process")
    flags.add_argument("--seconds", type=float, default=15.0, help="of a window; default 15")
    flags.add_argument("--repeats", type=int, default=3, help="windows of each way and state; default 3")
    options = flags.parse_args()
    seconds, repeats = (3.0, 1) if options.quick else (options.seconds, options.repeats)
    with TemporaryDirectory() as folder:
        faces = Path(folder) / "faces"
        synthesize(faces, faces=100, size=128, pairs=0, seed=1, workers=available_cores())
        rows = measure(faces, seconds, repeats, options.quick)
    show(rows)
    save(rows, options.json)


if __name__ == "__main__":
    main()
