"""Stopping on request: a signal is noticed within one step, the run saves and leaves."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class StopRequest:
    """Turns SIGINT and SIGTERM into a request that the training loop reads between steps.

    Before training starts (``training`` is False) there is nothing to save, so a signal raises KeyboardInterrupt
    at once.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.training = False

    def request(self, reason: str) -> None:
        """Ask the loop to save and leave after the step in progress."""
        self.reason = self.reason or reason

    def __bool__(self) -> bool:
        return self.reason is not None

    def _handle(self, number: int, _frame) -> None:
        self.request(signal.Signals(number).name)
        if not self.training:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Install the handlers, and put the former ones back at the end. Main thread only."""
        former = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
