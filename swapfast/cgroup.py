"""What a container grants: Linux' control groups, of either version, and every group above this process'.

``docker --cpus 2 --memory 4g`` and the pods of a cluster show the whole machine's cores and memory; these limits alone
say what there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 60  # bytes; version 1 writes a number near 2**63


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _numbers(text: str) -> list[int]:
    """Return the numbers of a text of numbers, none where it holds something else, such as 'max'."""
    words = text.split()
    return [int(word) for word in words] if all(word.lstrip("-").isdecimal() for word in words) else []


def _folders(controller: str, root: Path, groups: Path) -> Iterator[Path]:
    """Yield where the limits of this process may lie, for version 2 and then version 1: its group and those above."""
    for line in _read(groups).splitlines() or ["0::/"]:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        # Mounted by the names of all its controllers, or by one; a hybrid system mounts version 2 as 'unified'.
        for mount in (root / controllers, root / controller) if controllers else (root, root / "unified"):
            # A container sees its own group as the root, though the path is the machine's.
            parts = [part for part in path.split("/") if part and part != ".."]
            for depth in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:depth])
    yield root / controller  # where the list of groups names no version 1, and its folder is there


def core_limit(root: Path = ROOT, groups: Path = GROUPS) -> int | None:
    """Return the cores that the share of CPU time is worth, rounded up, None where there is no limit."""
    shares = []
    for folder in _folders("cpu", root, groups):
        numbers = _numbers(_read(folder / "cpu.max"))
        if not numbers:
            numbers = _numbers(f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}")
        if len(numbers) == 2 and min(numbers) > 0:
            shares.append(numbers[0] / numbers[1])
    return max(1, math.ceil(min(shares))) if shares else None


def memory_limits(root: Path = ROOT, groups: Path = GROUPS) -> list[tuple[int, int]]:
    """Return (limit, in use) of every group with a limit, in bytes; what can be given back is not in use."""
    limits = []
    for folder in _folders("memory", root, groups):
        for limit_name, usage_name, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _numbers(_read(folder / limit_name))
            if len(limit) != 1 or not 0 < limit[0] < _NO_LIMIT:
                continue
            usage = sum(_numbers(_read(folder / usage_name))[:1])
            for line in _read(folder / "memory.stat").splitlines():
                name, _, number = line.partition(" ")
                if name == cached:
                    usage -= sum(_numbers(number)[:1])
            limits.append((limit[0], max(0, usage)))
    return limits
