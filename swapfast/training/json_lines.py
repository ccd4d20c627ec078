"""What a program reads while training: one JSON object a line, ``train --json``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence

from swapfast.printing import write_text
from swapfast.training.progress import ProgressLine, Speed


class JsonLines(ProgressLine):
    """Prints events. Each has ``event``, ``time`` (seconds since 1970) and what its kind has.

    start       the rows of the table
    losses      step, iterations, loss_a, loss_b, iterations_per_s, faces_per_s, data_wait (0..1)
    estimate    step, iterations_per_s, seconds_left: at the speed of the first minute
    validation  step, loss_a, loss_b, and what else was measured
    saved       step
    line        text: what a person would be shown beside these
    end         step, code (the exit code), text
    """

    def _emit(self, event: str, **values: object) -> None:
        finite = {name: None if _is_broken(value) else value for name, value in values.items() if value is not None}
        with self._lock:
            write_text(self._stream, json.dumps({"event": event, "time": round(time.time(), 3)} | finite) + "\n")

    def start(self, rows: Mapping[str, str]) -> None:
        """Print what is about to be trained."""
        self._emit("start", **rows)

    def show_losses(self, step: int, sides: dict[str, float], speed: Speed) -> None:
        """Print the losses of a step and the speed behind them."""
        losses = {f"loss_{side}": value for side, value in sides.items()}
        self._emit(
            "losses",
            step=step,
            iterations=self._iterations,
            **losses,
            iterations_per_s=speed.iterations_per_s,
            faces_per_s=speed.faces_per_s,
            data_wait=speed.data_wait,
        )

    def estimate(self, step: int, rate: float, left_s: float) -> None:
        """Print how long the rest will take."""
        self._emit("estimate", step=step, iterations_per_s=rate, seconds_left=max(left_s, 0.0))

    def validation(
        self,
        step: int,
        sides: dict[str, float],
        quality: float | None = None,
        leak: float | None = None,
        gains: Mapping[str, float] | None = None,
        verdict: Sequence[str] = (),
    ) -> None:
        """Print what was measured on the faces that are held out."""
        losses = {f"loss_{side}": value for side, value in sides.items()}
        gained = dict(gains) if gains else None
        self._emit("validation", step=step, **losses, swap_quality=quality, skin_leak=leak, gain_db=gained)

    def saved(self, step: int, text: str = "") -> None:
        """Print that a checkpoint is whole."""
        self._emit("saved", step=step)

    def end(self, step: int, text: str, code: int | None = None) -> None:
        """Print how the run ended."""
        self._emit("end", step=step, code=code, text=text)

    def log(self, text: str) -> None:
        """Print a line of any other kind."""
        self._emit("line", text=text)


def _is_broken(value: object) -> bool:
    """Return whether it is a number that JSON lacks."""
    return isinstance(value, float) and not math.isfinite(value)
