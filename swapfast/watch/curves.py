"""Curves of bounded size, made of values that come one by one."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from math import isfinite

MOST_BUCKETS = 600  # of one curve; a chart has about as many px
MOST_CURVES = 64  # a log of ours has some thirty columns
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,47}")
_LARGEST = 1e30  # what a chart can still add up


class Curve:
    """The lowest, mean and highest value of each bucket of steps that has one, in ascending order of buckets."""

    def __init__(self) -> None:
        self.buckets = array("q")
        self.low, self.total, self.high = array("d"), array("d"), array("d")
        self.count = array("q")

    def add(self, bucket: int, value: float) -> None:
        """Count ``value`` in ``bucket``, which is the last one or a later one."""
        if self.buckets and self.buckets[-1] == bucket:
            self._merge_into_last(value, value, value, 1)
        else:
            self._append(bucket, value, value, value, 1)

    def _append(self, bucket: int, low: float, total: float, high: float, count: int) -> None:
        self.buckets.append(bucket)
        self.low.append(low)
        self.total.append(total)
        self.high.append(high)
        self.count.append(count)

    def _merge_into_last(self, low: float, total: float, high: float, count: int) -> None:
        self.low[-1] = min(self.low[-1], low)
        self.high[-1] = max(self.high[-1], high)
        self.total[-1] += total
        self.count[-1] += count

    def halved(self) -> Curve:
        """Return the same values in buckets of twice the width."""
        wide = Curve()
        for bucket, low, total, high, count in zip(self.buckets, self.low, self.total, self.high, self.count):
            if wide.buckets and wide.buckets[-1] == bucket // 2:
                wide._merge_into_last(low, total, high, count)
            else:
                wide._append(bucket // 2, low, total, high, count)
        return wide

    def forget_after(self, bucket: int) -> None:
        """Drop all buckets after ``bucket``."""
        while self.buckets and self.buckets[-1] > bucket:
            for values in (self.buckets, self.low, self.total, self.high, self.count):
                values.pop()

    def points(self, since: int = 0) -> list[list[float]]:
        """Return [bucket, mean], or [bucket, mean, lowest, highest], of each bucket from ``since`` on."""
        points: list[list[float]] = []
        for place in range(len(self.buckets) - 1, -1, -1):
            if self.buckets[place] < since:
                break
            mean = _rounded(self.total[place] / self.count[place])
            point = [self.buckets[place], mean]
            if self.count[place] > 1:
                point += [_rounded(self.low[place]), _rounded(self.high[place])]
            points.append(point)
        return points[::-1]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


class Curves:
    """The curves of a log, by its keys. All have buckets of one width, which doubles when there are MOST_BUCKETS.

    What a later run repeated is forgotten to within a bucket. width: of a bucket, steps. generation: changes whenever
    buckets that were there are no longer.
    """

    def __init__(self) -> None:
        self.width = 1
        self.generation = 0
        self.by_key: dict[str, Curve] = {}
        self._changed: dict[str, int] = {}  # key -> first bucket that has changed

    def add(self, step: int, values: Mapping[str, object]) -> None:
        """Count the numbers among ``values`` at ``step``. Steps ascend; see ``forget_after``."""
        while step // self.width >= MOST_BUCKETS:
            self._double()
        bucket = step // self.width
        for key, value in values.items():
            if type(value) not in (float, int) or key in ("step", "time"):
                continue
            curve = self.by_key.get(key)
            if curve is None:
                if len(self.by_key) >= MOST_CURVES or not _KEY.fullmatch(key):
                    continue
                curve = self.by_key[key] = Curve()
            number = value if type(value) is float else _as_float(value)
            if isfinite(number):
                curve.add(bucket, min(max(number, -_LARGEST), _LARGEST))
                self._changed.setdefault(key, bucket)

    def _double(self) -> None:
        self.width *= 2
        self.by_key = {key: curve.halved() for key, curve in self.by_key.items()}
        self._start_anew()

    def forget_after(self, step: int) -> None:
        """Drop what is known of later steps: a run goes on from ``step``."""
        for curve in self.by_key.values():
            curve.forget_after(step // self.width)
        self._start_anew()

    def _start_anew(self) -> None:
        self.generation += 1
        self._changed.clear()

    def take_changes(self) -> dict[str, list[list[float]]]:
        """Return the points of all buckets that have changed since the last call, by key."""
        changes = {key: self.by_key[key].points(first) for key, first in self._changed.items()}
        self._changed.clear()
        return changes

    def all_points(self) -> dict[str, list[list[float]]]:
        """Return the points of all buckets, by key."""
        return {key: curve.points() for key, curve in self.by_key.items()}


def _as_float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:  # a whole number of more than 308 digits
        return float("inf")
