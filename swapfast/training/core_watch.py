"""Notices that the threads of a CPU's training get no core, and lets torch go on with fewer of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from swapfast.training.observers import Observer, Training

WINDOW_S = 20.0  # how long is looked at in one go: a compiler or a backup that passes is no reason
STARVED = 0.25  # cores that the process lacked all the time; alone on its machine it lacks 0.01 to 0.05
WINDOWS = 2  # starved ones in a row before anything changes


def runnable_wait_s(process: int | str = "self") -> float | None:
    """Return for how long the threads of a process have been ready to run but had no core, in seconds.

    The sum over the threads alive now, as Linux counts it. None where the system does not tell.
    """
    total = 0
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # a thread that has just ended
    except (OSError, ValueError, IndexError):
        return None
    return total / 1e9


class CoreWatch(Observer):
    """Takes a thread from torch where another program has a core of the machine.

    Each operation waits for its slowest thread: beside one busy process on two cores, two threads are slower than
    one. Results then differ by the rounding of sums taken in other parts, as between numbers of processes.

    log: prints a line. wait_s: reads the waiting so far, see ``runnable_wait_s``. clock: in seconds.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        wait_s: Callable[[], float | None] = runnable_wait_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._wait_s, self._clock = log, wait_s, clock
        self._start_s: float | None = None  # of the window, by the clock
        self._waited_s = 0.0  # at its start
        self._starved_windows = 0

    def on_step(self, training: Training) -> None:
        """Judge a window that is over, and begin the next one."""
        now = self._clock()
        if self._start_s is not None and now - self._start_s < WINDOW_S:
            return
        waited = self._wait_s()
        if waited is None or torch.get_num_threads() < 2:
            self._start_s = now
            return
        if self._start_s is not None:
            self._judge((waited - self._waited_s) / (now - self._start_s))
        self._start_s, self._waited_s = now, waited

    def _judge(self, lacking_cores: float) -> None:
        self._starved_windows = self._starved_windows + 1 if lacking_cores >= STARVED else 0
        if self._starved_windows < WINDOWS:
            return
        self._starved_windows = 0
        threads = torch.get_num_threads() - 1
        torch.set_num_threads(threads)
        self._log(
            f"other programs use this machine's cores: training goes on with {threads} "
            f"thread{'s' if threads > 1 else ''} instead of {threads + 1}, which is faster beside them "
            "(OMP_NUM_THREADS fixes the number)"
        )
