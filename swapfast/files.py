"""Files that are there whole or not at all: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

from swapfast.errors import EXIT_FAILED, SwapfastError

TEMPORARY = ".writing-"  # what a kill leaves behind begins with this, and nothing that does is ever read
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def temporary_name(path: Path) -> Path:
    """Where this process writes what will become ``path``; other processes use other names."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def flush(path: Path) -> None:
    """Make a file's or folder's content survive a power cut. Windows cannot be asked to for a folder."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(temporary: Path, path: Path) -> None:
    """Flush a finished file and give it its name."""
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)


def check_new_file(path: Path, flag: str, suffixes: tuple[str, ...]) -> None:
    """SwapfastError naming ``flag`` where ``path`` has none of the endings or no folder to lie in: before any work."""
    if path.suffix.lower() not in suffixes:
        raise SwapfastError(f"{flag} {path}: give a name that ends in {', '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise SwapfastError(f"{flag} {path}: there is no folder {path.absolute().parent}")


def check_folder(path: Path, flag: str) -> None:
    """SwapfastError naming ``flag`` where ``path`` neither is a folder nor can become one: before any work."""
    there = path
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        what = "is a file" if there.exists() else "is a link to nothing"
        raise SwapfastError(f"{flag} {path}: {'' if there == path else f'{there} '}{what}; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SwapfastError(f"{flag} {path}: may not be written to; give another folder")


def write_file(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` at once. Raises SwapfastError (code 1) where it cannot be written."""
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(content)
        put_in_place(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def write_all(file: BinaryIO, data: bytes) -> None:
    """All of ``data`` to an unbuffered file: the system may take less at a time."""
    while data:
        data = data[file.write(data) :]


def cannot_write(path: Path, error: OSError, way_out: str = "choose another folder") -> SwapfastError:
    """The one line for a file that the system does not take."""
    reason = "the disk is full" if error.errno in _NO_SPACE else error.strerror or str(error)
    return SwapfastError(f"{path}: cannot be written ({reason}); free space or {way_out}", EXIT_FAILED)


def writer_lives(temporary: Path) -> bool:
    """Whether the process that a temporary name tells of is still there; False for a name of another form."""
    number = temporary.name.removeprefix(TEMPORARY).split("-")[0]
    if not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is somebody else's
    return True
