"""Threads that work beside the main one, make do with what the system grants, and can be left behind.

``concurrent.futures`` waits for its threads wherever a program ends. A read from a network share that is away never
returns, and a program that waits for it cannot leave either. These threads are daemons: they end with the process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from swapfast.printing import complain

PATIENCE_S = 0.5  # for what is still running when its result is no longer wanted
ENDING_S = 10.0  # for all that libraries do when Python ends, which is 0.3 s in a program that nothing stalls
_left_behind: list[threading.Thread] = []
_REFUSED = "can't start new thread"


def is_thread_refused(error: BaseException) -> bool:
    """Return whether an error means that the system grants no further thread. Python raises a plain RuntimeError."""
    return isinstance(error, RuntimeError) and _REFUSED in str(error)


@functools.cache
def note_refusal() -> None:
    """Say once that the system grants fewer threads or processes than there are cores."""
    complain(
        "swapfast: warning: the system grants no more threads or processes (ulimit -u, docker --pids-limit, "
        "pids.max); going on with fewer, more slowly"
    )


class _Work:
    """What the threads of a pool share. It does not refer to the pool, so that a pool nobody holds can end them."""

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[functools.partial | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.unfinished = 0

    def run(self) -> None:
        """Do tasks until the end is announced."""
        while (task := self.tasks.get()) is not None:
            task()
            del task  # a waiting thread holds no batch
            with self.lock:
                self.unfinished -= 1
        self.tasks.put(None)  # for the next thread


def _carry_out(future: Future, task: Callable, arguments: tuple, named: dict) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = task(*arguments, **named)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


class ThreadPool(Executor):
    """Runs tasks on up to ``size`` threads; on fewer, or in the caller's, where the system grants no more.

    Left by an exception, a ``with`` block drops what has not begun and waits ``PATIENCE_S`` for the rest.
    """

    def __init__(self, size: int, name: str = "work") -> None:
        if size < 1:
            raise ValueError(f"size = {size}: need at least one thread")
        self.size, self.name = size, name
        self._work = _Work()
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self._end = weakref.finalize(self, self._work.tasks.put, None)

    def submit(self, task: Callable, /, *arguments: Any, **named: Any) -> Future:
        """Return the future of ``task(*arguments, **named)``. Raises RuntimeError behind ``shutdown``."""
        if self._is_closed:
            raise RuntimeError("the pool has been shut down")
        future: Future = Future()
        call = functools.partial(_carry_out, future, task, arguments, named)
        with self._work.lock:
            self._work.unfinished += 1
            if self._work.unfinished > len(self._threads) and len(self._threads) < self.size:
                self._add_thread()
            has_threads = bool(self._threads)
            if not has_threads:
                self._work.unfinished -= 1
        if has_threads:
            self._work.tasks.put(call)
        else:
            call()
        return future

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._work.run, name=f"{self.name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not is_thread_refused(error):
                raise
            self.size = len(self._threads)
            note_refusal()
        else:
            self._threads.append(thread)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, patience_s: float | None = None) -> None:
        """End the threads; twice does no harm.

        wait: until all is done. cancel_futures: drop what has not begun. patience_s: wait no longer than that.
        """
        self._is_closed = True
        if cancel_futures:
            self._drop_tasks()
        self._end()
        end = time.monotonic() + (patience_s or 0.0)
        for thread in self._threads if wait else ():
            thread.join(None if patience_s is None else max(0.0, end - time.monotonic()))
        _left_behind.extend(thread for thread in self._threads if thread.is_alive())

    def _drop_tasks(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                task = self._work.tasks.get_nowait()
                if task is None:  # the end was announced before
                    self._work.tasks.put(None)
                    return
                task.args[0].cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.shutdown()
        else:
            self.shutdown(cancel_futures=True, patience_s=PATIENCE_S)


def leave(code: int) -> int:
    """Return ``code``; end the process with it where something keeps Python from ending.

    Libraries wait at the end for reads of their own, as DALI does for those that it began ahead. One that a thread
    which was left behind waits for too is known to stall: the process ends at once. Of others nobody knows: they have
    ``ENDING_S``.
    """
    if any(thread.is_alive() for thread in _left_behind):
        _end_process(code)
    watch = threading.Timer(ENDING_S, _end_process, (code,))
    watch.daemon = True
    with contextlib.suppress(RuntimeError):  # the system grants no more threads
        watch.start()
    return code


def _end_process(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def wait_in_thread(call: Callable[[], Any], name: str) -> Any:
    """Return ``call()``, made by a thread, so that a signal that comes meanwhile is answered: not so within C code.

    Where the answer raises, the thread is left behind.
    """
    with ThreadPool(1, name) as pool:
        return pool.submit(call).result()
