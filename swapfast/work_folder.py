"""The hidden folder beside an output that is not finished: what a killed run goes on from.

.OUT.KIND/request.json   what was asked for; the same request goes on, another one does not use what is there
.OUT.KIND/.lock          held by the run that writes
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from swapfast.errors import SwapfastError
from swapfast.files import TEMPORARY, cannot_write, open_lock, open_plain, try_lock, write_file

REQUEST, LOCK = "request.json", ".lock"
_LONGEST_REQUEST = 1 << 20


class WorkFolder:
    """The folder of one unfinished output, held until ``close``.

    out: the output. kind: what the folder's name ends in. request: what decides over the output's content.
    ``goes_on`` says whether what is there belongs to the same request. Raises SwapfastError where another process
    holds the folder, and where it cannot be made.
    """

    def __init__(self, out: Path, kind: str, request: dict[str, Any], flag: str = "-o") -> None:
        self.path = work_path(out, kind)
        self._text = json.dumps(request, sort_keys=True, default=str)
        try:
            self._check_own()
            self.path.mkdir(exist_ok=True)
            self._lock = open_lock(self.path / LOCK)
            if try_lock(self._lock) is False:
                self._lock.close()
                raise SwapfastError(f"{flag} {out}: another run is writing it; wait for it, or give another name")
            for path in self.path.glob(f"{TEMPORARY}*"):
                path.unlink(missing_ok=True)
            self.former_request = self._read_request()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _check_own(self) -> None:
        """Raise SwapfastError where something else lies there: all of this folder may be removed."""
        is_folder = self.path.is_dir() and not self.path.is_symlink()
        if os.path.lexists(self.path) and not (
            is_folder and ((self.path / LOCK).exists() or not any(self.path.iterdir()))
        ):
            raise SwapfastError(f"{self.path}: is in the way, and no folder of an unfinished run; remove it")

    @property
    def goes_on(self) -> bool:
        """Whether what is there belongs to the same request."""
        return self.former_request == self._text

    @property
    def is_new(self) -> bool:
        """Whether nothing is there of an earlier run."""
        return self.former_request is None

    def differing(self) -> list[str]:
        """Return the names of what the earlier run's request has otherwise."""
        ours = json.loads(self._text)
        try:
            theirs = json.loads(self.former_request or "{}")
        except (ValueError, RecursionError):
            theirs = None
        if not isinstance(theirs, dict):
            return []
        return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))

    def _read_request(self) -> str | None:
        try:
            with open_plain(self.path / REQUEST) as file:
                return file.read(_LONGEST_REQUEST).decode(errors="replace")
        except OSError:
            return None

    def begin_anew(self) -> None:
        """Remove what an earlier run left, and note the request."""
        self._clear()
        write_file(self.path / REQUEST, self._text.encode())
        self.former_request = self._text

    def _clear(self) -> None:
        # The request goes first: what a kill leaves of the rest then belongs to none.
        (self.path / REQUEST).unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others have the folder; its content stays for the next start."""
        self._lock.close()

    def remove(self) -> None:
        """Remove the folder: the output is finished."""
        self._clear()
        (self.path / LOCK).unlink(missing_ok=True)
        self._lock.close()
        self.path.rmdir()


def work_path(out: Path, kind: str) -> Path:
    """Return where the unfinished parts of an output lie."""
    return out.absolute().with_name(f".{out.name}.{kind}")
