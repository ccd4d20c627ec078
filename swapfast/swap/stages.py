"""Stages that run side by side in threads, in order and with a bounded number of items between them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from swapfast.threads import ThreadPool

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered(pool: ThreadPool, task: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield ``task(item)`` of every item, in order, with up to ``ahead`` of them in work or waiting.

    What ``items`` raises comes behind the results of those before.
    """
    pending: deque[Future] = deque()
    source, failure = iter(items), None
    while True:
        try:
            item = next(source)
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        pending.append(pool.submit(task, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
    if failure is not None:
        raise failure


class Stopwatch:
    """Adds up how long each stage took, over all threads.

    seconds: by the clock. cpu_seconds: processor time of the threads that were in the stage, without those that they
    let work, such as a codec's. spans: when each stage was first entered and last left, seconds of the clock.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        self.spans: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a block."""
        start, cpu_start = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            end, cpu_elapsed = time.perf_counter(), time.thread_time() - cpu_start
            with self._lock:
                self.seconds[stage] += end - start
                self.cpu_seconds[stage] += cpu_elapsed
                first, last = self.spans.get(stage, (start, end))
                self.spans[stage] = min(first, start), max(last, end)

    def share(self, stage: str) -> float | None:
        """Return the share of its span in which a stage was at work, None where it never was.

        Only of a stage that one thread is in at a time.
        """
        if stage not in self.spans:
            return None
        first, last = self.spans[stage]
        return self.seconds[stage] / (last - first) if last > first else None
