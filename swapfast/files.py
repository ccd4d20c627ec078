"""Atomic files: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import platform
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from swapfast.errors import EXIT_FAILED, EXIT_REQUEST, SwapfastError, shortened

TEMPORARY = ".writing-"  # begins the names of unfinished files, which are never read
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PATH = (errno.ELOOP, errno.ENAMETOOLONG)  # whatever the disk holds
# What fsync of a folder answers where the file system has no such operation: SMB, AFS, shared folders of machines.
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS)
_HELD = (errno.EACCES, errno.EAGAIN)
_ABANDONED_S = 3600  # age of unfinished files that nobody writes any more, where there are no locks to tell


class NotAFile(OSError):
    """A pipe, a device or a socket lies where a file is expected. Reading it might never end."""

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(errno.EINVAL, "not a file that can be read (a pipe or a device)", os.fspath(path))


def _plain_opener(links: int) -> Callable[[str, int], int]:
    """Return an opener for ``open`` that refuses what is no file at once. links: O_NOFOLLOW, or 0 to follow them."""
    flags_here = links | getattr(os, "O_NONBLOCK", 0)

    def opener(path: str, flags: int) -> int:
        try:
            mode = os.stat(path, follow_symlinks=not links).st_mode
            # Opening some devices does something already, and a pipe for writing fails without saying why.
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise NotAFile(path)
        except FileNotFoundError:
            pass  # it may be made
        descriptor = os.open(path, flags | flags_here, 0o666)
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # it came in between
            os.close(descriptor)
            raise NotAFile(path)
        return descriptor

    return opener


_opener = _plain_opener(0)
_private_opener = _plain_opener(getattr(os, "O_NOFOLLOW", 0))


def open_plain(path: Path, mode: str = "rb") -> BinaryIO:
    """Return an ordinary file, opened without a buffer. Raises NotAFile for a pipe or device, never waiting for it."""
    return cast(BinaryIO, open(path, mode, buffering=0, opener=_opener))


def open_new(path: Path) -> BinaryIO:
    """Make a file that does not exist and return it, for reading and writing; no link is followed."""
    return cast(BinaryIO, open(path, "xb+", buffering=0, opener=_private_opener))


def open_lock(path: Path) -> BinaryIO:
    """Return a lock file, made where it is missing. A link that lies there is not followed."""
    return cast(BinaryIO, open(path, "ab", buffering=0, opener=_private_opener))


def read_plain(path: Path) -> bytes:
    """Return the content of an ordinary file. Raises OSError, also for a pipe or device."""
    with open_plain(path) as file:
        return file.read()


def try_lock(file: BinaryIO) -> bool | None:
    """Lock a file for this process, without waiting. None where the system or its disk has no locks.

    A record lock: child processes do not inherit it, so an orphan cannot keep it. It ends with the process, or when
    the process closes the file, also where it has opened the file twice.
    """
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return None
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


def temporary_name(path: Path) -> Path:
    """Return a new temporary name under which to write ``path``. Nobody can guess it and put a link there."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{path.name}")


def flush(path: Path) -> None:
    """Flush a file or folder to the disk, so that it survives a power cut.

    Does nothing for a folder on Windows, and where the file system has no such operation for folders.
    """
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or not _means_no_folder_flush(error):
            raise
    finally:
        os.close(descriptor)


def _means_no_folder_flush(error: OSError) -> bool:
    is_wsl = "microsoft" in platform.release().lower()  # answers EIO for folders on the disks of Windows
    return error.errno in _NO_FOLDER_FLUSH or (error.errno == errno.EIO and is_wsl)


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
    """Raise SwapfastError naming ``flag`` unless ``path`` has one of the suffixes and can be written to its folder."""
    if path.suffix.lower() not in suffixes:
        raise SwapfastError(f"{flag} {path}: give a name that ends in {', '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise SwapfastError(f"{flag} {path}: there is no folder {path.absolute().parent}")
    if path.exists() and not path.is_file():
        raise SwapfastError(f"{flag} {path}: is no file; give another name")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise SwapfastError(f"{flag} {path}: its folder may not be written to; give a file in another one")


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
        with open_new(temporary) as file:
            write_all(file, content)
        put_in_place(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of ``data`` to an unbuffered file, whose ``write`` may take only a part at a time."""
    while data:
        data = data[file.write(data) :]


def is_disk_full(error: OSError) -> bool:
    """Return whether the system's error says that there is no more room."""
    return error.errno in _NO_SPACE


def code_of(error: OSError) -> int:
    """Return the exit code for a file that cannot be made at the start: 1 where the disk is full, otherwise 2."""
    return EXIT_FAILED if is_disk_full(error) else EXIT_REQUEST


def cannot_write(path: Path, error: OSError, way_out: str = "choose another folder") -> SwapfastError:
    """Return the SwapfastError (code 1) for a file that the system refused to write."""
    reason = "the disk is full" if is_disk_full(error) else error.strerror or str(error)
    if error.errno in _NO_PATH:
        return SwapfastError(f"{path}: cannot be written ({reason}); {way_out}", EXIT_REQUEST)
    return SwapfastError(f"{path}: cannot be written ({reason}); free space or {way_out}", EXIT_FAILED)


def writer_lives(temporary: Path) -> bool:
    """Return whether somebody still writes a temporary file: it is locked, or new where there are no locks.

    A process number would not tell: in another container it is another process'. False for what is no file.
    """
    try:
        with open_plain(temporary, "rb+") as file:
            locked = try_lock(file)
        return is_recent(temporary) if locked is None else not locked
    except PermissionError:  # another user's
        return is_recent(temporary)
    except OSError:
        return False


def is_recent(path: Path) -> bool:
    """Return whether a file or folder has been changed within the last hour, or is gone by now."""
    try:
        return path.stat().st_mtime > time.time() - _ABANDONED_S
    except FileNotFoundError:
        return True
