"""The file that says what a run made: OUT/swap.json, so that anybody can tell how a picture came about.

It also is how a run goes on: a folder whose manifest says the same request is continued, another one is refused.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from swapfast.checkpoints.folder import SYNTHETIC_MEDIA
from swapfast.errors import SwapfastError
from swapfast.files import TEMPORARY, cannot_write, open_lock, open_plain, try_lock, write_file
from swapfast.swap.marking import SOURCE_TYPE
from swapfast.swap.request import file_digest

MANIFEST, _LOCK = "swap.json", ".swap.lock"
_MOST_BYTES = 1 << 28


class RunFolder:
    """The output folder of one run: held by a lock while it goes on, with its manifest."""

    def __init__(
        self, folder: Path, fingerprint: dict[str, Any], overwrite: bool, subfolders: Iterable[str] = ()
    ) -> None:
        self.folder, self._fingerprint = folder, json.loads(json.dumps(fingerprint))
        self._digests: dict[str, str] = {}
        self._lock: BinaryIO | None = None
        self.goes_on = self._is_same_run(overwrite)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open_lock(folder / _LOCK)
        except OSError as error:
            raise cannot_write(folder, error) from error
        if try_lock(self._lock) is False:
            self._lock.close()
            raise SwapfastError(f"-o/--out {folder}: another run is writing there; wait for it, or give another folder")
        for part in ("", *subfolders):
            (folder / part).mkdir(exist_ok=True)
            for name in os.listdir(folder / part):
                if name.startswith(TEMPORARY):
                    (folder / part / name).unlink(missing_ok=True)  # of a killed run
        self._started = now()
        write_file(folder / MANIFEST, self._content("unfinished", {}))

    def _is_same_run(self, overwrite: bool) -> bool:
        """Return whether the folder holds a part of this run; raise SwapfastError where it holds something else."""
        if not self.folder.is_dir():
            return False
        names = [name for name in os.listdir(self.folder) if not name.startswith(".")]
        if overwrite or not names:
            return False
        if MANIFEST not in names:
            raise SwapfastError(
                f"-o/--out {self.folder}: is not empty, and holds no swap; give a new folder, or --overwrite"
            )
        earlier = read_manifest(self.folder / MANIFEST).get("request")
        if earlier == self._fingerprint:
            return True
        differing = [k for k, v in self._fingerprint.items() if not isinstance(earlier, dict) or earlier.get(k) != v]
        raise SwapfastError(
            f"-o/--out {self.folder}: holds another swap ({', '.join(differing) or 'its request'} differs); give a new "
            "folder, or --overwrite to make everything anew"
        )

    def note(self, path: Path, content: bytes) -> None:
        """Remember a file that was written, by its digest."""
        self._digests[self._name(path)] = hashlib.sha256(content).hexdigest()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def finish(self, files: Iterable[Path], results: dict[str, Any]) -> None:
        """Write the whole manifest. files: all of the run, those of an earlier part too."""
        digests = {
            self._name(path): self._digests.get(self._name(path)) or file_digest(path)
            for path in files
            if path.exists()
        }
        write_file(self.folder / MANIFEST, self._content("finished", {"results": results, "files": digests}))

    def close(self) -> None:
        """Give the folder back; what was not finished under a temporary name is removed."""
        if self._lock is not None:
            (self.folder / _LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _content(self, state: str, more: dict[str, Any]) -> bytes:
        return manifest_content(self._fingerprint, {"state": state, "started": self._started, **more})


def manifest_content(request: dict[str, Any], more: dict[str, Any]) -> bytes:
    """Return a manifest's file. request: what was asked for."""
    table = {
        "synthetic_media": SYNTHETIC_MEDIA,
        "digital_source_type": SOURCE_TYPE,
        "written": now(),
        "request": request,
        **more,
    }
    return (json.dumps(table, indent=1) + "\n").encode(errors="surrogateescape")


def file_manifest(path: Path, request: dict[str, Any], results: dict[str, Any]) -> bytes:
    """Return the manifest of a finished file."""
    return manifest_content(request, {"state": "finished", "results": results, "files": {path.name: file_digest(path)}})


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest. Raises SwapfastError where it is none."""
    try:
        with open_plain(path) as file:
            table = json.loads(file.read(_MOST_BYTES))
    except OSError as error:
        raise SwapfastError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise SwapfastError(f"{path}: is no manifest of a swap; give a new folder to -o, or --overwrite")
    return table


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
