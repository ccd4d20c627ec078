"""What the operating system grants this process, and how worker processes keep out of its way."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Looked up on import: a forked child should load nothing.
_prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


def available_cores() -> int:
    """Cores this process may use, at least 1: those of its CPU affinity where the system has one, else all.

    ``taskset``, SLURM and ``docker --cpuset-cpus`` set the affinity, and ``os.cpu_count()`` does not look at it. A
    share of CPU time (``docker --cpus``) is seen by neither.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
