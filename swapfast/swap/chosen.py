"""The settings of each frame: a preset, a TOML file, flags, and the file's ranges of frames, in this order of rank.

[mask]                    # settings of all frames, under the names of --print-config
type = "extended"
[[range]]                 # some frames: what is named here ranks over flags too
frames = "10-50 90-100"
mask.erosion = 8.0
color.type = "linear"
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from swapfast.errors import SwapfastError, shortened, unknown_name
from swapfast.options import read_toml, settings
from swapfast.swap.settings import SwapSettings

_RANGE = re.compile(r"(\d{1,18})(?:(-)(\d{0,18}))?")
_MOST_RANGES = 10_000

# What each program starts with. Lengths of theirs are px of their masks; ours are percent, and these are near.
PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "faceswap": {
        "mask": {"type": "extended", "blur": "normalized", "blur_kernel": 3, "blur_passes": 4, "threshold": 4.0},
        "color": {"type": "mean"},
    },
    "deepfacelab": {
        "mask": {"type": "learned-min", "blur": "gaussian", "blur_kernel": 9, "blur_passes": 1, "feather": 6.0},
        "color": {"type": "reinhard"},
    },
}


@dataclass(frozen=True)
class FrameRanges:
    """Ranges of frame numbers, both ends inside. The last number may be missing: up to the end."""

    spans: tuple[tuple[int, int | None], ...]

    @classmethod
    def parse(cls, texts: Sequence[str] | str, flag: str = "-R/--frame-ranges") -> FrameRanges:
        """Return the ranges of '10-50 90-100 7 200-'. Raises SwapfastError naming ``flag``."""
        words = " ".join([texts] if isinstance(texts, str) else texts).replace(",", " ").split()
        if not words or len(words) > _MOST_RANGES:
            raise SwapfastError(f"{flag} {shortened(texts)}: give ranges of frames, such as 10-50 90-100")
        spans = []
        for word in words:
            match = _RANGE.fullmatch(word)
            if match is None:
                raise SwapfastError(f"{flag} {shortened(word)}: is no range of frames; give such as 10-50, 7 or 200-")
            first = int(match[1])
            last = first if match[2] is None else int(match[3]) if match[3] else None
            if last is not None and last < first:
                raise SwapfastError(f"{flag} {word}: ends before it begins; give {last}-{first}")
            spans.append((first, last))
        return cls(tuple(spans))

    def __contains__(self, number: int) -> bool:
        return any(first <= number and (last is None or number <= last) for first, last in self.spans)


@dataclass(frozen=True)
class ChosenSettings:
    """The settings of every frame: those of all, and changes by range."""

    values: Mapping[str, Any]
    ranges: tuple[tuple[FrameRanges, Mapping[str, Any]], ...] = ()

    @cached_property
    def usual(self) -> SwapSettings:
        """The settings where no range says otherwise."""
        return SwapSettings.from_dict(self.values)

    @cached_property
    def _made(self) -> dict[tuple[int, ...], SwapSettings]:
        return {(): self.usual}

    def of(self, number: int) -> SwapSettings:
        """Return the settings of the frame of this number. Where ranges overlap, the later one ranks higher."""
        indices = tuple(i for i, (frames, _) in enumerate(self.ranges) if number in frames)
        if indices not in self._made:
            values = self.values
            for i in indices:
                values = merged(values, self.ranges[i][1])
            self._made[indices] = SwapSettings.from_dict(values)
        return self._made[indices]

    def all(self) -> list[SwapSettings]:
        """Return the usual settings and those of each range by itself."""
        return [self.usual, *(SwapSettings.from_dict(merged(self.values, changes)) for _, changes in self.ranges)]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        ranges = [{"frames": list(map(list, frames.spans)), **changes} for frames, changes in self.ranges]
        return {**self.usual.to_dict(), "range": ranges}


def choose_settings(
    flags: Mapping[str, Any] | None = None, file: Path | None = None, preset: str = "none"
) -> ChosenSettings:
    """Put the sources together. flags: by dotted name. Raises SwapfastError naming what gave a wrong value."""
    if preset not in PRESETS:
        raise unknown_name("--preset", preset, PRESETS)
    values = merged(SwapSettings().to_dict(), PRESETS[preset])
    ranges: list[tuple[FrameRanges, Mapping[str, Any]]] = []
    if file is not None:
        table = read_toml(file)
        entries = table.pop("range", [])
        usual = SwapSettings()
        for name in table.keys() - usual.to_dict().keys():
            raise unknown_name(f"setting in {file}", name, [*usual.to_dict(), "range"], elsewhere=settings(usual))
        SwapSettings.from_dict(table, str(file))
        values = merged(values, table)
        ranges = _ranges(entries, file)
    given_values: dict[str, Any] = {}
    for name, value in (flags or {}).items():
        part, _, key = name.partition(".")
        given_values.setdefault(part, {})[key] = value
    SwapSettings.from_dict(given_values, "flags")
    return ChosenSettings(merged(values, given_values), tuple(ranges))


def _ranges(entries: object, file: Path) -> list[tuple[FrameRanges, Mapping[str, Any]]]:
    if not isinstance(entries, list) or len(entries) > _MOST_RANGES:
        raise SwapfastError(f"{file}: range is no list of tables; write [[range]] above each")
    ranges: list[tuple[FrameRanges, Mapping[str, Any]]] = []
    for number, entry in enumerate(entries, 1):
        where = f"{file}: range {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("frames"), (str, list)):
            raise SwapfastError(f'{where}: says no frames; write frames = "10-50"')
        frames = entry["frames"]
        texts = frames if isinstance(frames, str) else [str(item) for item in frames]
        changes = {name: value for name, value in entry.items() if name != "frames"}
        SwapSettings.from_dict(changes, where)
        ranges.append((FrameRanges.parse(texts, where), changes))
    return ranges


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with those of ``changes`` over them."""
    result = dict(values)
    for name, change in changes.items():
        before = result.get(name)
        result[name] = merged(before, change) if isinstance(before, Mapping) and isinstance(change, Mapping) else change
    return result
