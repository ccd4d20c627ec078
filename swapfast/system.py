"""What the operating system grants this process, and how worker processes keep out of its way."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
# Looked up on import: a forked child should load nothing.
_prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


def available_cores() -> int:
    """Cores this process may use, at least 1: those of its CPU affinity where the system has one, else all.

    ``taskset``, SLURM and ``docker --cpuset-cpus`` set the affinity, and ``os.cpu_count()`` does not look at it. A
    share of CPU time (``docker --cpus``) is seen by neither.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM are answered only when the block ends: for the start of a pool.

    Interrupted half-way, ``ProcessPoolExecutor`` forgets the workers it has and waits for them for ever. And a worker
    forked in the block is deaf to both until ``start_worker``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are answered in the main thread alone
        return
    came = set()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler is not None}  # None: not Python's
    for number in before:
        signal.signal(number, lambda number, frame: came.add(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def start_worker(parent: int) -> None:
    """Initializer of a pool's processes: none outlives process ``parent``, whose signals are not theirs.

    Ctrl-C reaches the whole process group; the parent hears it and ends its pool, the workers say nothing. Handlers
    that a fork inherits, such as the trainer's for SIGTERM, are meant for the parent too.

    On Linux a worker dies with its parent, even by SIGKILL; elsewhere it may be left waiting. What counts there is
    the THREAD that started the worker: it has to wait for the pool's end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it was listened for
            os._exit(1)
