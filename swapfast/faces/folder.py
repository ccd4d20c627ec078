"""A folder of faces: which of its files are faces, where each lies, and which are bad and why.

``scan_folder`` is for training and decodes nothing; ``inspect_folder`` is for a person and decodes everything.
reader.py says what one file is. Nothing is ever written into the folder.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.faces.image import read_image
from swapfast.faces.masks import check_mask_type, read_mask_file
from swapfast.faces.reader import PICTURE_SUFFIXES, BadFace, printable, read_face
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import KINDS, FaceTable, Packed, pack
from swapfast.system import available_cores, on_all_cores

SHOWN_BAD = 50
RECENT_NS = 2 * 10**9
_NONE, _UNKNOWN = (-1, -1), (-2, -2)  # no such file; one whose size and time cannot be had

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FaceFolder:
    """The faces of one side.

    records: sorted by file name, which is their order in training. notes: what decoding will change, and in how
    many pictures. read: how many files were read, the others being known from the index.
    """

    path: Path
    records: FaceTable
    bad: list[BadFace] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    read: int = 0

    def without(self, bad: Sequence[BadFace]) -> FaceFolder:
        """The same less some faces, which are added to the bad ones."""
        names = {face.path.name for face in bad}
        keep = [i for i in range(len(self.records)) if self.records.name(i) not in names]
        records = self.records.select(keep)
        return dataclasses.replace(self, records=records, bad=[*self.bad, *bad], notes=records.note_counts())

    def with_mask(self, mask_type: str) -> FaceFolder:
        """The same less the faces that have no mask of this type, which are added to the bad ones.

        Raises SwapfastError where not one has it, and for a type that there is not.
        """
        if mask_type == "none":
            return self
        lacking = np.flatnonzero(
            ~self.records.accepted_by(lambda record: _mask_error(record, mask_type) is None)
        ).tolist()
        if lacking and len(lacking) == len(self.records):
            check_mask_type(self.records[0], mask_type)
        records = self.records.select(lacking)
        bad = [BadFace(one.path, _mask_error(one, mask_type).removeprefix(f"{one.path}: ")) for one in records]
        return self.without(bad) if bad else self

    def require_all_good(self, skip_bad: bool = False) -> None:
        """Raises one SwapfastError that lists every bad file; with ``skip_bad``, only where no face is left."""
        if not self.bad or (skip_bad and len(self.records)):
            return
        total = len(self.bad) + len(self.records)
        some = "mend or remove them, or train on the rest with --skip-bad"
        way_out = some if len(self.records) else "no face is left"
        lines = [f"{printable(self.path)}: {len(self.bad)} of {total} files cannot be used; {way_out}"]
        lines += [f"  {printable(bad.path.name)}: {bad.reason}" for bad in self.bad]
        raise SwapfastError("\n".join(lines))


def scan_folder(
    folder: Path, workers: int | None = None, progress: Progress | None = None, known: FaceTable | None = None
) -> FaceFolder:
    """Reads every face of a folder, without its pixels. ``progress`` is told (done, total).

    known: what an earlier scan found (see ``load_index``); files of the same name, size and time are not read again.
    Raises SwapfastError where there is no such folder or no picture in it. Bad pictures are listed, not raised.
    """
    folder = Path(folder)
    begun = time.time_ns()
    stats = _file_stats(folder)
    others = frozenset(stats)
    names = [name for name in stats if not name.lower().endswith(".json") and not is_mask_of_another(name, others)]
    found = {} if known is None else _still_true(known, stats)
    unchanged = len(found)
    unread = [name for name in names if name not in found]
    task = partial(_read, folder, others=others)
    for name, result in zip(unread, on_all_cores(task, unread, workers, progress), strict=True):
        if result is not None:
            found[name] = result
    if not found:
        raise SwapfastError(f"{printable(folder)}: no PNG or JPEG in this folder; give the folder that holds the faces")
    if known is not None and len(found) == unchanged == len(known.columns["kind"]):
        table = known
    else:
        names = [name for name in names if name in found]
        packed = [known.packed(p) if isinstance(p := found[name], int) else p for name in names]
        files = np.array([_files(name, p.text, stats) for name, p in zip(names, packed)], np.int64)
        # What is as new as this scan may have been written to after it was read: it is not known the next time.
        files[(files[:, :, 1] > begun - RECENT_NS).any(1)] = -2
        table = FaceTable.build(folder, names, packed, files)
    masks = table.mask_files()
    bad = table.bad(passed_over=masks)
    if not len(table) and not bad:
        raise SwapfastError(f"{printable(folder)}: no PNG or JPEG in this folder; give the folder that holds the faces")
    return FaceFolder(folder, table, bad, table.note_counts(), len(found) - unchanged)


def _mask_error(record: FaceRecord, mask_type: str) -> str | None:
    try:
        check_mask_type(record, mask_type)
    except SwapfastError as error:
        return str(error)
    return None


def _read(folder: Path, name: str, others: frozenset[str]) -> Packed | None:
    found = read_face(folder, name, others)
    return None if found is None else pack(found)


def _file_stats(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and mtime in ns of every visible file of the folder, sorted by name; sub-folders are not entered."""
    try:
        with os.scandir(folder) as entries:
            found = {e.name: _stat(e) for e in entries if not e.name.startswith(".") and not e.is_dir()}
    except FileNotFoundError:
        raise SwapfastError(f"{printable(folder)}: no such folder") from None
    except NotADirectoryError:
        raise SwapfastError(f"{printable(folder)}: this is a file; give the folder that holds the faces") from None
    except OSError as error:
        raise SwapfastError(f"{printable(folder)}: cannot be read ({error.strerror})") from error
    return dict(sorted(found.items()))


def _stat(entry: os.DirEntry) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:
        return _UNKNOWN  # a broken link, or gone already
    return status.st_size, status.st_mtime_ns


def _files(name: str, mask: str, stats: dict[str, tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The column ``files`` of one picture: itself, its json, its mask."""
    return stats[name], stats.get(f"{_stem(name)}.json", _NONE), stats.get(mask, _NONE)


def _still_true(known: FaceTable, stats: dict[str, tuple[int, int]]) -> dict[str, int]:
    """The names whose row in ``known`` tells of files that have not changed, and that row.

    A mask is part of a face only by its name in the row: a new NAME_mask.png counts as a change too.
    """
    rows = {}
    at, files = known.columns["texts_at"], known.columns["files"]
    bad = known.columns["kind"] == KINDS.index("bad")
    looks_for_mask = (at[1:] == at[:-1]) & (known.columns["kind"] == KINDS.index("plain"))
    for row, name in enumerate(known.file_names()):
        if name not in stats:
            continue
        mask = f"{_stem(name)}_mask.png" if looks_for_mask[row] else known.mask_name(row)
        now = _files(name, mask, stats)
        if bad[row] or files[row].tolist() != [list(pair) for pair in now]:
            continue  # bad files are few, and may be so for something that lies beside them
        rows[name] = row
    return rows


def _stem(name: str) -> str:
    """As ``Path(name).stem``, four times as fast: it is asked for every file of a folder."""
    return os.path.splitext(name)[0]


def is_mask_of_another(name: str, others: frozenset[str]) -> bool:
    """Whether a file is, by its name, the mask of one of the ``others`` beside it."""
    stem = _stem(name)
    if not stem.endswith("_mask") or f"{stem}.json" in others:
        return False
    face = stem.removesuffix("_mask")
    return f"{face}.json" in others or any(face + suffix in others for suffix in PICTURE_SUFFIXES)


# --- for a person ---------------------------------------------------------------------------------------


def inspect_folder(
    folder: Path, workers: int | None = None, progress: Progress | None = None, scanning: Progress | None = None
) -> dict:
    """A JSON-ready report; see ``describe``. Raises SwapfastError only where there is no folder or picture in it.

    Unlike ``scan_folder`` it decodes, and so also finds damage that only the pixels show. progress, scanning: told
    (done, total) of faces decoded, and before that of files read.
    """
    found = scan_folder(folder, workers, scanning)
    damage = _damaged(found, workers or available_cores(), progress)
    return report_of(found.without([BadFace(path, reason) for path, reason in damage.items()]), _mask_kinds)


def report_of(found: FaceFolder, masks_of: Callable[[FaceRecord], Sequence[str]]) -> dict:
    """A JSON-ready report on faces all of which are known to be good or bad. yaw and pitch: degrees."""
    good, bad = list(found.records), found.bad
    return {
        "folder": str(found.path),
        "faces": len(good),
        "kinds": _counted(record.kind for record in good),
        "sizes": _counted(f"{record.width}x{record.height}" for record in good),
        "masks": _counted(name for record in good for name in masks_of(record)),
        "landmarks": "68 points each",
        "yaw": _spread([record.alignment.yaw for record in good]),
        "pitch": _spread([record.alignment.pitch for record in good]),
        "notes": _counted(note for record in good for note in record.notes),
        "bad": [{"file": one.path.name, "reason": one.reason} for one in sorted(bad, key=lambda one: one.path.name)],
    }


def _damaged(found: FaceFolder, workers: int, progress: Progress | None) -> dict[Path, str]:
    damage = {}
    with ThreadPoolExecutor(workers) as pool:
        for done, (record, reason) in enumerate(
            zip(found.records, pool.map(_decode_error, found.records), strict=True), 1
        ):
            if reason:
                damage[record.path] = reason
            if progress:
                progress(done, len(found.records))
    return damage


def _decode_error(record: FaceRecord) -> str | None:
    """Why this face's pixels, or its mask's, cannot be used; None if they can."""
    try:
        height, width = read_image(record.path).shape[:2]
        if (width, height) != (record.width, record.height):
            return f"decodes to {width}x{height} px, its header says {record.width}x{record.height}"
        if record.mask_file:
            read_mask_file(record)
    except ValueError as error:
        return str(error)
    except SwapfastError as error:
        return f"its mask {error}"
    return None


def _mask_kinds(record: FaceRecord) -> list[str]:
    return [*record.stored_masks, *(["file"] if record.mask_file else [])]


def _counted(names) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _spread(angles: list[float]) -> dict[str, float] | None:
    if not angles:
        return None
    figures = {"min": np.min(angles), "mean": np.mean(angles), "max": np.max(angles), "sd": np.std(angles)}
    return {name: round(float(figure), 2) for name, figure in figures.items()}


def describe(report: dict) -> str:
    """The report of ``inspect_folder`` as lines for a person."""
    lines = [f"{printable(report['folder'])}: {report['faces']} faces"]
    for title in ("kinds", "sizes", "masks", "notes"):
        if report[title]:
            lines.append(f"  {title:10}" + ", ".join(f"{name}: {n}" for name, n in report[title].items()))
    lines.append(f"  landmarks {report['landmarks']}")
    for angle in ("yaw", "pitch"):
        if report[angle]:
            lines.append(
                f"  {angle:10}{{min:.0f}} to {{max:.0f}} degrees, mean {{mean:.0f}}, sd {{sd:.0f}}".format(
                    **report[angle]
                )
            )
    if not report["bad"]:
        return "\n".join([*lines, "  every file is good"])
    lines.append(f"  {len(report['bad'])} bad:")
    lines += [f"    {printable(one['file'])}: {one['reason']}" for one in report["bad"][:SHOWN_BAD]]
    if len(report["bad"]) > SHOWN_BAD:
        lines.append(f"    and {len(report['bad']) - SHOWN_BAD} more")
    return "\n".join(lines)
