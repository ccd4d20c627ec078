"""Notices that the threads of a CPU's training get no core, and lets torch go on with fewer, or with more again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from swapfast.training.observers import Observer, Training

WINDOW_S = 20.0  # how long is looked at in one go: a compiler or a backup that passes is no reason
STARVED = 0.25  # cores that the process lacked all the time: 0.02 alone, 0.6 to 0.8 beside one (benchmarks/beside.py)
FREE = 0.75  # cores that nobody used all the time
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


def idle_s() -> float | None:
    """Return for how long the cores that this process may use have been idle since the system started, in seconds.

    The sum over the cores, as Linux counts it. None where the system does not tell.
    """
    try:
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        ticks = sum(int(fields[4]) + int(fields[5]) for fields in lines if fields[0] in cores)  # idle, and for disks
        return ticks / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True)
class _Reading:
    """at: by the clock, s. waited_s, idle_s: see ``runnable_wait_s`` and ``idle_s``."""

    at: float
    waited_s: float | None
    idle_s: float | None


class CoreWatch(Observer):
    """Takes a thread from torch where another program has a core of the machine, and gives it back when one is free.

    Each operation waits for its slowest thread: beside one busy process on two cores, two threads are slower than
    one. Results then differ by the rounding of sums taken in other parts, as between numbers of processes.

    log: prints a line. wait_s, free_s: read the waiting and the idle cores so far, see ``runnable_wait_s`` and
    ``idle_s``. clock: in seconds.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        wait_s: Callable[[], float | None] = runnable_wait_s,
        free_s: Callable[[], float | None] = idle_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._wait_s, self._free_s, self._clock = log, wait_s, free_s, clock
        self._start: _Reading | None = None  # of the window
        self._most = torch.get_num_threads()
        self._starved_windows = self._free_windows = 0
        self._patience = WINDOWS  # free windows before a thread is given back
        self._gave_back = False

    def on_step(self, training: Training) -> None:
        """Judge a window that is over, and begin the next one."""
        now = self._clock()
        if self._start is not None and now - self._start.at < WINDOW_S:
            return
        reading = _Reading(now, self._wait_s(), self._free_s())
        if self._start is not None:
            self._judge(self._start, reading)
        self._start = reading

    def _judge(self, start: _Reading, end: _Reading) -> None:
        threads, seconds = torch.get_num_threads(), end.at - start.at
        lacking = _cores(start.waited_s, end.waited_s, seconds) if threads > 1 else 0.0
        free = _cores(start.idle_s, end.idle_s, seconds) if threads < self._most else 0.0
        self._starved_windows = self._starved_windows + 1 if lacking >= STARVED else 0
        self._free_windows = self._free_windows + 1 if free >= FREE else 0
        if self._starved_windows >= WINDOWS:
            self._patience *= 2 if self._gave_back else 1  # a program that comes and goes
            self._set(threads - 1, "other programs use this machine's cores", ", which is faster beside them")
        elif self._free_windows >= self._patience:
            self._gave_back = True
            self._set(threads + 1, "a core of this machine is free again", "")

    def _set(self, threads: int, reason: str, remark: str) -> None:
        self._starved_windows = self._free_windows = 0
        former = torch.get_num_threads()
        torch.set_num_threads(threads)
        self._log(
            f"{reason}: training goes on with {threads} thread{'s' if threads > 1 else ''} instead of {former}{remark} "
            "(OMP_NUM_THREADS fixes the number)"
        )


def _cores(start_s: float | None, end_s: float | None, seconds: float) -> float:
    """Return a time that cores counted in a window as a number of cores, 0 where the system does not tell."""
    return 0.0 if start_s is None or end_s is None else (end_s - start_s) / seconds
