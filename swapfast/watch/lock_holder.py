"""Which process trains in a model folder: the one that holds its lock file."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from swapfast.files import open_plain

# struct flock of fcntl.h, on systems where off_t has 64 bits: type, whence, start, length, process.
_LINUX = struct.Struct("@hhqqi4x")
_MAC = struct.Struct("@qqihh")


@dataclass(frozen=True)
class Holder:
    """Who holds a folder's lock. pid: None where it is on another machine or in another container."""

    pid: int | None


def find_holder(lock: Path) -> Holder | None:
    """Return who holds a lock file, None where nobody does or where that cannot be told.

    The lock itself is asked, so an answer is never out of date. A lock of this process is not seen.
    """
    try:
        import fcntl

        with open_plain(lock) as file:
            if sys.platform == "darwin":
                answer = _MAC.unpack(fcntl.fcntl(file, fcntl.F_GETLK, _MAC.pack(0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)))
                pid, kind = answer[2], answer[3]
            else:
                request = _LINUX.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                kind, _, _, _, pid = _LINUX.unpack(fcntl.fcntl(file, fcntl.F_GETLK, request))
    except (ImportError, OSError, struct.error):  # Windows, no folder, or a disk without locks
        return None
    if kind == fcntl.F_UNLCK:
        return None
    return Holder(pid if pid > 0 else None)  # 0 or less: of another container, or of another machine


def send_signal(lock: Path, number: signal.Signals) -> str | None:
    """Send a signal to the run that holds a lock file; return why that was not possible, None where it was.

    Nobody else can be hit: the process is held by a descriptor while its lock is looked at again.
    """
    holder = find_holder(lock)
    if holder is None:
        return "nobody trains in this folder"
    if holder.pid is None:
        return "the run is in another container or on another machine"
    if not _answers(holder.pid, number):
        return "the process that holds the folder does not answer requests"
    try:
        if not hasattr(os, "pidfd_open"):
            os.kill(holder.pid, number)
            return None
        descriptor = os.pidfd_open(holder.pid)
        try:
            if find_holder(lock) != holder:
                return "the run has just ended"
            signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
    except PermissionError:
        return "the run is another user's"
    except OSError:
        return "the run has just ended"
    return None


def _answers(pid: int, number: signal.Signals) -> bool:
    """Return whether a process handles a signal, which would end it otherwise; True where that cannot be told."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return True
