"""Atomic files: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

from swapfast.errors import EXIT_FAILED, EXIT_REQUEST, SwapfastError, shortened

TEMPORARY = ".writing-"  # begins the names of unfinished files, which are never read
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PATH = (errno.ELOOP, errno.ENAMETOOLONG)  # whatever the disk holds


def temporary_name(path: Path) -> Path:
    """Return the temporary name under which this process writes ``path``; it holds the process number."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def flush(path: Path) -> None:
    """Flush a file or folder to the disk, so that it survives a power cut. Does nothing for a folder on Windows."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(temporary: Path, path: Path) -> None:
    """Flush a finished file or folder and rename it to ``path``, replacing a file of that name."""
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)


def real_path(path: Path) -> Path:
    """Return ``path`` without links, as far as it exists. ``Path.resolve`` raises RuntimeError for a ring of links."""
    return Path(os.path.realpath(path))


def check_path(path: str, name: str) -> None:
    """Raise SwapfastError naming the flag or setting ``name`` for what no file can be called.

    That is an empty text, one that holds a NUL, one that is too long, and a link that leads back to itself.
    """
    if not path:
        raise SwapfastError(f"{name} '': is empty, perhaps a variable that is not set; give a path")
    try:
        os.stat(path)
    except ValueError as error:  # a NUL, or a character that the system's encoding lacks
        raise SwapfastError(f"{name} {shortened(path)}: is no path ({error}); give another one") from None
    except OSError as error:
        if error.errno in _NO_PATH:
            raise SwapfastError(f"{name} {shortened(path)}: {error.strerror}; give another path") from None


def check_new_file(path: Path, flag: str, suffixes: tuple[str, ...]) -> None:
    """Raise SwapfastError naming ``flag`` unless ``path`` has one of the suffixes and its folder exists."""
    if path.suffix.lower() not in suffixes:
        raise SwapfastError(f"{flag} {path}: give a name that ends in {', '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise SwapfastError(f"{flag} {path}: there is no folder {path.absolute().parent}")
    if path.exists() and not path.is_file():
        raise SwapfastError(f"{flag} {path}: is no file; give another name")


def not_a_folder(path: Path, prefix: str, instead: str = "a folder") -> SwapfastError:
    """Return the error for a ``path`` that should be a folder. prefix: how it begins, such as '--model-dir m'."""
    problem = "is a file" if path.exists() else "is a link to nothing" if path.is_symlink() else "no such folder"
    return SwapfastError(f"{prefix}: {problem}; give {instead}")


def check_folder(path: Path, flag: str) -> None:
    """Raise SwapfastError naming ``flag`` unless ``path`` is a folder that can be written to, or can become one."""
    nearest = path
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise not_a_folder(nearest, f"{flag} {path}" if nearest == path else f"{flag} {path}: {nearest}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SwapfastError(f"{flag} {path}: may not be written to; give another folder")


def write_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically. Raises SwapfastError (code 1) where it cannot be written."""
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(content)
        put_in_place(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data`` to an unbuffered file, whose ``write`` may take only a part at a time."""
    while data:
        data = data[file.write(data) :]


def cannot_write(path: Path, error: OSError, way_out: str = "choose another folder") -> SwapfastError:
    """Return the SwapfastError (code 1) for a file that the system refused to write."""
    reason = "the disk is full" if error.errno in _NO_SPACE else error.strerror or str(error)
    if error.errno in _NO_PATH:
        return SwapfastError(f"{path}: cannot be written ({reason}); {way_out}", EXIT_REQUEST)
    return SwapfastError(f"{path}: cannot be written ({reason}); free space or {way_out}", EXIT_FAILED)


def writer_lives(temporary: Path) -> bool:
    """Return whether the process that wrote a temporary file still runs; False for any other file name."""
    number = temporary.name.removeprefix(TEMPORARY).split("-")[0]
    if not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it runs, as another user
    return True
