"""Reads and writes lists of faces to leave out.

    # a comment
    DIGEST <tab> NAME <tab> REASON      a face by its pixels, wherever it lies: 16 hexadecimal digits
    NAME                                every face of that file name

A face is known by the digest of its encoded pixels (``digest_pixels``), so a list fits both sides, and goes on to fit
when a folder is moved, renamed or prepared.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swapfast.errors import SwapfastError, shortened
from swapfast.faces.folder import FaceFolder
from swapfast.files import open_plain
from swapfast.printing import printable, shown_name

_LARGEST = 64 << 20  # bytes
_DIGEST = re.compile(r"[0-9a-f]{16}")
HEADER = """\
# Faces that swapfast train, prepare and augment leave out with --skip.
# Take out the lines of faces to keep. A line of your own may be the name of a file.
"""


@dataclass(frozen=True)
class SkipList:
    """Faces to leave out: by the digest of their pixels, and by file name."""

    digests: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()

    def apply(self, folder: FaceFolder, flag: str = "--skip") -> FaceFolder:
        """Return the folder without these faces. Raises SwapfastError where none is left."""
        if not self.digests and not self.names:
            return folder
        records = folder.records
        digests = records.column("pixels").view(">u8")[:, 0].tolist()
        keep = [
            index
            for index, digest in enumerate(digests)
            if digest not in self.digests and (not self.names or records.name(index) not in self.names)
        ]
        if not keep and len(records):
            raise SwapfastError(
                f"{flag}: names every face of {shown_name(folder.path)}; take some lines out of the list"
            )
        bad = [face for face in folder.bad if face.path.name not in self.names]
        kept_records = records.select(np.array(keep, np.int64))
        return dataclasses.replace(
            folder,
            records=kept_records,
            bad=bad,
            notes=kept_records.note_counts(),
            skipped=folder.skipped + len(records) - len(kept_records),
        )


NO_SKIP = SkipList()


def read_skip_lists(paths: Sequence[Path], flag: str = "--skip") -> SkipList:
    """Return what is in all of some lists. Raises SwapfastError naming the file and line that is wrong."""
    digests: set[int] = set()
    names: set[str] = set()
    for path in paths:
        for number, line in enumerate(_lines(path, flag), 1):
            if not line.strip() or line.startswith("#"):
                continue
            digest, tab, _ = line.partition("\t")
            if not tab:
                names.add(line)
            elif _DIGEST.fullmatch(digest):
                digests.add(int(digest, 16))
            else:
                raise SwapfastError(
                    f"{flag} {path}: line {number} begins with {shortened(digest)}, where 16 hexadecimal digits were "
                    "expected; give a list that `swapfast inspect --skip-list` wrote, or file names alone"
                )
    return SkipList(frozenset(digests), frozenset(names))


def _lines(path: Path, flag: str) -> list[str]:
    try:
        with open_plain(path) as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise SwapfastError(f"{flag} {path}: cannot be read ({error.strerror or error})") from error
    if len(data) > _LARGEST or b"\0" in data:
        raise SwapfastError(f"{flag} {path}: is no list of faces; give one that `swapfast inspect --skip-list` wrote")
    return data.decode("utf-8", "surrogateescape").splitlines()


def skip_list_text(folder: FaceFolder, entries: Sequence[tuple[int, str]]) -> str:
    """Return a list of some faces of a folder. entries: index and reason of each face."""
    digests = folder.records.column("pixels").view(">u8")[:, 0]
    lines = [f"{int(digests[i]):016x}\t{printable(folder.records.name(i))}\t{reason}\n" for i, reason in entries]
    return HEADER + "".join(lines)
