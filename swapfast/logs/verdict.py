"""When is it done, in short sentences for the page and the window, made of what a log's held-out faces measured."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEAK_WARNING = 0.2  # share of A's skin that a swap keeps, see swapfast/swap/leak.py
_QUALITY, _LEAK = "swap_quality", "swap_leak"  # keys of steps.jsonl
_MOST = 4096  # measurements of a figure that are kept of a log
_PSNR = re.compile("validation_psnr_([a-z])")


def spread(steps: Sequence[int], best: int) -> list[int]:
    """Return the places of about half of the steps, spread evenly from the first to the last, ``best`` among them.

    A gain of the last quarter, and of the one before, is then told from as many measurements as ever.
    """
    count, span = len(steps) // 2, steps[-1] - steps[0] + 1
    last_of_part = {(step - steps[0]) * count // span: place for place, step in enumerate(steps)}
    return sorted({*last_of_part.values(), best})


class Measurements:
    """The values of a figure by ascending step.

    There are at most _MOST, see ``spread``. The best and the newest are always among them.
    """

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")

    def add(self, step: int, value: float) -> None:
        """Add a measurement; those of ``step`` and later are void."""
        self.forget_after(step - 1)
        if len(self.steps) >= _MOST:
            places = spread(self.steps, max(range(len(self.values)), key=self.values.__getitem__))
            self.steps = array("q", [self.steps[place] for place in places])
            self.values = array("d", [self.values[place] for place in places])
        self.steps.append(step)
        self.values.append(value)

    def forget_after(self, step: int) -> None:
        """Drop the measurements of later steps."""
        first = bisect_right(self.steps, step)
        del self.steps[first:], self.values[first:]


def is_held_out(key: str) -> bool:
    """Return whether a key of steps.jsonl is one of those that ``Verdict`` is made of."""
    return key in (_QUALITY, _LEAK) or _PSNR.fullmatch(key) is not None


@dataclass(frozen=True)
class Verdict:
    """When is it done, in short sentences. All are empty where no faces are held out.

    gains: of each side and of the swap, or since when that has not got better. leak: how much of A's skin the swap
    keeps. warns: whether that is so much that a person is to be warned.
    """

    gains: tuple[str, ...] = ()
    leak: str = ""
    warns: bool = False

    @classmethod
    def of(cls, measurements: Mapping[str, Measurements]) -> Verdict:
        """Return the verdict on what was measured, by key of steps.jsonl, see ``is_held_out``."""
        if not measurements:
            return cls()
        from swapfast.logs.gain import best_step  # and with it numpy, which the page has no other need of

        matches = [match for match in map(_PSNR.fullmatch, sorted(measurements)) if match]
        parts = [_short(match[1].upper(), measurements[match[0]]) for match in matches]
        swap, leaks = measurements.get(_QUALITY), measurements.get(_LEAK)
        if swap is not None:
            since = best_step(swap.steps, swap.values)
            parts.append(_short("the swap", swap) if since is None else f"the swap has not got better since {since:,}")
        gains = tuple(filter(None, parts))
        if leaks is None or not leaks.values:
            return cls(gains)
        leak = leaks.values[-1]
        return cls(gains, describe_leak(leak), leak >= LEAK_WARNING)


def describe_leak(leak: float) -> str:
    """Return how much of A's skin a swap keeps, in words, as a warning where that is much. leak: share, 0..1."""
    percent = max(0, round(100 * leak))
    number = f"{percent}" if percent < 1e9 else f"{percent:.3g}"  # absurd, and a line of hundreds of digits
    return f"{'warning: ' if leak >= LEAK_WARNING else ''}the swap keeps {number} % of A's skin"


def _short(name: str, measurements: Measurements) -> str:
    """Return such as 'A gains 0.31 dB in 1,000 iterations, 0.62 before'; '' where there is one measurement."""
    from swapfast.logs.gain import gain_of

    gain = gain_of(measurements.steps, measurements.values)
    if gain is None:
        return ""
    verb = "gains" if gain.per_1000 >= 0 else "loses"
    before = "" if gain.per_1000_before is None else f", {_figure(gain.per_1000_before)} before"
    return f"{name} {verb} {_figure(abs(gain.per_1000))} dB in 1,000 iterations{before}"


def _figure(value: float) -> str:
    """Return a number with two digits that count, and none of less than a ten-thousandth."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{round(value, 4) + 0:.2g}"
