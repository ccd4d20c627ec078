"""What the operating system grants this process, and how worker processes keep out of its way."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from swapfast.cgroup import core_limit, memory_limits
from swapfast.threads import PATIENCE_S, ThreadPool, is_thread_refused, note_refusal

if TYPE_CHECKING:
    import torch

_PR_SET_PDEATHSIG = 1
# Looked up on import: a forked child should load nothing.
_prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


def available_cores() -> int:
    """Return the number of cores this process may use: those of its CPU affinity, and no more than its share of time.

    ``taskset``, SLURM and ``docker --cpuset-cpus`` set the affinity, and ``docker --cpus`` a share of CPU time, rounded
    up here. ``os.cpu_count()`` looks at neither.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, core_limit() or cores)


def available_memory() -> int:
    """Return the bytes of memory that can be taken without swapping, 0 where the system does not say.

    A container's limit counts (``docker --memory``).
    """
    try:
        with open("/proc/meminfo") as file:
            entries = dict(line.split(":", 1) for line in file)
        free = int(entries["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = 0
    rooms = [max(1, limit - usage) for limit, usage in memory_limits()]
    return min([*rooms, free]) if free else min(rooms, default=0)


def total_memory() -> int:
    """Return the bytes of memory of this machine or container, 0 where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    return min([total, *(limit for limit, _ in memory_limits())])


def memory_in_use(device: torch.device) -> dict[str, int]:
    """Return the bytes this process holds: 'host' where the system says; on a GPU 'gpu' and its peak, 'gpu_peak'."""
    import torch

    usage: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm") as file:
        usage["host"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if device.type == "cuda":
        usage["gpu"] = torch.cuda.memory_allocated(device)
        usage["gpu_peak"] = torch.cuda.max_memory_allocated(device)
    return usage


@contextmanager
def signals_held() -> Iterator[None]:
    """Put off the answer to signals, SIGALRM (a limit's) among them, until the block ends: for the start of a pool.

    Interrupted half-way, ``ProcessPoolExecutor`` forgets the workers it has and waits for them for ever. And a worker
    forked in the block is deaf to them until ``start_worker``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are answered in the main thread alone
        return
    pending = set()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    handlers = {number: handler for number, handler in handlers.items() if handler is not None}  # None: not Python's
    for number in handlers:
        signal.signal(number, lambda number, frame: pending.add(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in pending:
            signal.raise_signal(number)


def start_worker(parent: int) -> None:
    """Prepare a process of a pool: it does not outlive process ``parent``, and leaves the parent's signals to it.

    Ctrl-C reaches the whole process group; the parent hears it and ends its pool, the workers say nothing. Handlers
    that a fork inherits, such as the trainer's for SIGTERM, are meant for the parent too.

    On Linux a worker dies with its parent, even by SIGKILL; elsewhere it may be left waiting. What counts there is
    the THREAD that started the worker: it has to wait for the pool's end.
    """
    # What the parent has left to be destroyed is the parent's: a DALI pipeline whose threads are not here took the
    # worker with it when a garbage collection ended it.
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it was listened for
            os._exit(1)


# Python code takes turns at one core under threads: headers are parsed at 340 faces/s with two threads and 620 with two
# processes. Below this many items starting processes does not pay.
PROCESSES_FROM = 32
_CHUNK = 16
# A fork copies locks that other threads hold at that moment, OpenCV's own among them, and nobody is left to release
# them: a worker then sleeps for ever. Sleepers are given up, and threads do what is left.
STALL_S = 20.0
_LOOK_S = 0.5

_task: Callable | None = None  # what this worker process does; set before the fork, so that it is never pickled


class _StalledWorkers(BrokenExecutor):
    """All workers sleep and no result comes."""


def _run_tasks(items: Sequence) -> list:
    assert _task is not None, "set before the fork"
    return [_task(item) for item in items]


def on_all_cores(
    task: Callable,
    items: Sequence,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    stall_s: float = STALL_S,
) -> Iterator:
    """Yield ``task(item)`` of every item, in order: by forked processes where there are enough items, else by threads.

    A worker sees the task and what it refers to as they were at the call; memory of ``NewArrays`` is shared. Results
    travel by pipe: keep them small. Workers touch no device. Where a process is killed or cannot be had, or all of them
    have slept for ``stall_s``, threads do what is left, some items perhaps a second time. ``progress`` is told (done,
    total).
    """
    workers = min(workers or available_cores(), len(items))
    may_fork = sys.platform == "linux" and not multiprocessing.current_process().daemon
    count = 0
    if may_fork and workers > 1 and len(items) >= PROCESSES_FROM:
        try:
            for result in _in_processes(task, items, workers, stall_s):
                yield result
                count += 1
                if progress:
                    progress(count, len(items))
            return
        except BrokenExecutor:
            pass  # one was killed, or all sleep: threads need none
        except (OSError, RuntimeError) as error:  # no room for processes, or for the thread that feeds them
            if isinstance(error, RuntimeError) and not is_thread_refused(error):
                raise
            note_refusal()
    with ThreadPool(workers or 1) as pool:
        for result in pool.map(task, items[count:]):
            yield result
            count += 1
            if progress:
                progress(count, len(items))


def _cpu_ticks(processes: Iterable[multiprocessing.process.BaseProcess]) -> int:
    """Return the CPU time that processes have taken, in ticks of the system."""
    ticks = 0
    for process in processes:
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks


def _result_of(future: Future, processes: Iterable[multiprocessing.process.BaseProcess], stall_s: float) -> list:
    """Return a future's result. Raises BrokenExecutor where ``processes`` take no CPU time for ``stall_s``."""
    ticks, since = -1, time.monotonic()
    while True:
        with suppress(TimeoutError):
            return future.result(_LOOK_S)
        if future.done():  # what the task itself has raised is a TimeoutError
            return future.result()
        if (now := _cpu_ticks(processes)) != ticks:
            ticks, since = now, time.monotonic()
        elif time.monotonic() - since > stall_s:
            raise _StalledWorkers


def _in_processes(task: Callable, items: Sequence, workers: int, stall_s: float) -> Iterator:
    global _task
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), initializer=start_worker, initargs=(os.getpid(),)
    )
    _task = task
    earlier = set(multiprocessing.active_children())
    try:
        size = max(1, min(_CHUNK, len(items) // (4 * workers)))
        with signals_held():  # this forks
            futures = [pool.submit(_run_tasks, items[start : start + size]) for start in range(0, len(items), size)]
        processes = set(multiprocessing.active_children()) - earlier
        for future in futures:
            yield from _result_of(future, processes, stall_s)
    except BaseException:
        # It would wait for a worker whose read never returns; and where its own thread was refused, it never had one
        # that could tell the workers to leave.
        abandon_pool(pool, earlier)
        raise
    finally:
        _task = None
    pool.shutdown()


def abandon_pool(pool: ProcessPoolExecutor, earlier: set[multiprocessing.process.BaseProcess]) -> None:
    """End a pool whose results are no longer wanted, and its processes: the children that are not among ``earlier``.

    The pool's own thread may be reading what a worker was writing as it was killed. It would read for ever, and Python
    would wait for it at the end of the program: this process must not hold the other end of that pipe open.
    """
    results = getattr(pool, "_result_queue", None)
    pool.shutdown(wait=False, cancel_futures=True)
    _end_processes([process for process in multiprocessing.active_children() if process not in earlier])
    writer = getattr(results, "_writer", None)
    if writer is not None:
        writer.close()


def _end_processes(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Give worker processes a moment to end what they have begun, and kill those that do not."""
    end = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for process in processes:
        process.kill()
        process.join(PATIENCE_S)
