"""Unpack packages that a machine without network lacks: python3 benchmarks/unpack.py .device /tmp/swapfast-site

The first folder holds a tar.xz, whole or in pieces (NAME.tar.xz.00, NAME.tar.xz.01, ...), of what is to lie in the
second one; wheels may lie beside it or in it and are unpacked too. Python's own library does it, no program. What is
unpacked already stays. Where there is no such folder nothing is to be done. Exit code 1 and one line where an archive
cannot be unpacked.
"""

from __future__ import annotations

import io
import lzma
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DONE = ".unpacked"  # written last, with the names of what was unpacked


class Pieces(io.RawIOBase):
    """Files read one after another as one."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self._files = [file.open("rb") for file in files]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill ``buffer`` with what comes next; 0 at the end."""
        while self._files:
            count = self._files[0].readinto(buffer)
            if count:
                return count
            self._files.pop(0).close()
        return 0


def unpack(source: Path, site: Path) -> list[str]:
    """Unpack all of ``source`` to ``site``, return the names of its files. Raises OSError and what archives raise."""
    pieces = sorted(source.glob("*.tar.xz.*")) or sorted(source.glob("*.tar.xz"))
    wheels = sorted(source.glob("*.whl"))
    if not pieces and not wheels:
        raise FileNotFoundError(f"{source}: holds no .tar.xz, whole or in pieces, and no wheel")
    names = [file.name for file in (*pieces, *wheels)]
    done = site / DONE
    if done.is_file() and done.read_text().split("\n") == names:
        return names
    site.mkdir(parents=True, exist_ok=True)
    for archive in _archives(pieces):
        joined = io.BufferedReader(Pieces(archive), 1 << 20)
        with lzma.open(joined) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            tar.extractall(site, filter="data")
    for wheel in (*wheels, *sorted(site.glob("*.whl"))):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)
    done.write_text("\n".join(names))
    return names


def _archives(pieces: Sequence[Path]) -> list[list[Path]]:
    """Return the pieces of each archive."""
    archives: dict[str, list[Path]] = {}
    for piece in pieces:
        archives.setdefault(piece.name.partition(".tar.xz")[0], []).append(piece)
    return list(archives.values())


def main() -> int:
    """Unpack what the command line names; return the exit code."""
    source, site = map(Path, sys.argv[1:])
    if not source.is_dir():
        print(f"{source}: no such folder, so nothing to unpack")
        return 0
    try:
        names = unpack(source, site)
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
        print(f"unpack.py: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print(f"{', '.join(names)}: in {site}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
