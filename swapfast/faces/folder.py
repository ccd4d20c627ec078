"""Reads a folder of faces: its faces, their landmarks, and the bad files with their reasons.

``scan_folder`` serves training and decodes nothing. ``inspect_folder`` serves a person and decodes everything.
reader.py reads one file. Nothing is ever written into the folder.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.faces.companions import find_file, is_mask_file
from swapfast.faces.faceset_pack import FacesetPack, find_pack, open_pack
from swapfast.faces.image import read_image
from swapfast.faces.landmark_check import check_landmarks
from swapfast.faces.masks import check_mask_type, read_mask_file
from swapfast.faces.other_kinds import hint_for, is_archive
from swapfast.faces.reader import MASK_UNUSABLE, NO_LANDMARKS, BadFace, has_face_header, read_face
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import KINDS, FaceTable, Packed, pack
from swapfast.files import not_a_folder
from swapfast.printing import shown_name
from swapfast.system import available_cores, on_all_cores
from swapfast.threads import ThreadPool

SHOWN_BAD = 50
RECENT_NS = 2 * 10**9
_MISSING, _UNKNOWN = (-1, -1), (-2, -2)  # no such file; a file whose size and time cannot be read

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FaceFolder:
    """The faces of one folder.

    records: the good faces, sorted by file name; training uses this order.
    bad: the files that cannot be used.
    notes: what decoding changes -> number of pictures.
    read: number of files that were read; the index knew the rest.
    warnings: what may be wrong with the landmarks.
    skipped: number of faces that a list of --skip left out.
    """

    path: Path
    records: FaceTable
    bad: list[BadFace] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    read: int = 0
    warnings: list[str] = field(default_factory=list)
    skipped: int = 0

    def without(self, bad: Sequence[BadFace]) -> FaceFolder:
        """Return this folder without some faces, which join the bad ones."""
        names = {face.path.name for face in bad}
        indices = [i for i in range(len(self.records)) if self.records.name(i) not in names]
        records = self.records.select(indices)
        return dataclasses.replace(self, records=records, bad=[*self.bad, *bad], notes=records.note_counts())

    def with_mask(self, mask_type: str) -> FaceFolder:
        """Return this folder without the faces that lack a mask of this type, which join the bad ones.

        Raises SwapfastError if no face has such a mask, unless files of that name are there, and for an unknown type.
        """
        if mask_type == "none":
            return self
        lacking = np.flatnonzero(
            ~self.records.accepted_by(lambda record: _mask_error(record, mask_type) is None)
        ).tolist()
        if lacking and len(lacking) == len(self.records) and MASK_UNUSABLE not in self.records.note_counts():
            check_mask_type(self.records[0], mask_type)
        bad = []
        for record in self.records.select(lacking):
            reason = _mask_error(record, mask_type) or ""
            bad.append(BadFace(record.path, reason.removeprefix(f"{record.path}: ")))
        return self.without(bad) if bad else self

    def require_all_good(self, skip_bad: bool = False) -> None:
        """Raise one SwapfastError that lists every bad file; with ``skip_bad``, only if no face is left."""
        if not self.bad or (skip_bad and len(self.records)):
            return
        total = len(self.bad) + len(self.records)
        way_out = (
            "mend or remove them, or train on the rest with --skip-bad" if len(self.records) else "no face is left"
        )
        if not len(self.records) and all(bad.reason.startswith(NO_LANDMARKS) for bad in self.bad):
            way_out += ": if these are frames, give the folder of the faces that faceswap extract cut from them"
        lines = [f"{shown_name(self.path)}: {len(self.bad)} of {total} files cannot be used; {way_out}"]
        lines += [f"  {shown_name(bad.path.name)}: {bad.reason}" for bad in self.bad]
        raise SwapfastError("\n".join(lines))


def scan_folder(
    folder: Path, workers: int | None = None, progress: Progress | None = None, known: FaceTable | None = None
) -> FaceFolder:
    """Read every face of a folder, or of DeepFaceLab's faceset.pak in it or given itself, without decoding it.

    workers: number of processes, by default one per core.
    progress: called with (files done, files in total).
    known: result of an earlier scan (``load_index``); files of the same name, size and time are not read again.
    Raises SwapfastError for a missing folder and for a folder without pictures. Bad pictures are listed in the result.
    """
    folder = Path(folder)
    start_ns = time.time_ns()
    pack = find_pack(folder)
    folder = folder if pack is None else pack
    stats = _file_stats(folder) if pack is None else _member_stats(open_pack(pack))
    file_names = frozenset(stats)
    unchanged, masks = ({}, set()) if known is None else _unchanged_rows(known, stats, file_names)
    names = [name for name in stats if not name.lower().endswith(".json") and (name not in masks or name in unchanged)]
    unread = [name for name in names if name not in unchanged]
    task = partial(_read, folder, file_names=file_names)
    results = zip(unread, on_all_cores(task, unread, workers, progress), strict=True)
    read = {name: packed for name, packed in results if packed is not None}
    if not read and not unchanged:
        raise SwapfastError(f"{shown_name(folder)}: no PNG or JPEG in this folder; {hint_for(folder)}")
    if known is not None and not read and len(unchanged) == len(known.columns["kind"]):
        table = known
    else:
        faces = read if known is None else read | {name: known.packed(row) for name, row in unchanged.items()}
        names = [name for name in names if name in faces]
        packed = [faces[name] for name in names]
        files = np.array(
            [_files(name, p.text.partition("\0")[0], stats, file_names) for name, p in zip(names, packed)], np.int64
        )
        # A file as new as this scan may have been written to after it was read, so the next scan reads it again.
        files[(files[:, :, 1] > start_ns - RECENT_NS).any(1)] = -2
        table = FaceTable.build(folder, names, packed, files)
    mask_names = table.mask_files()
    bad = table.bad(excluded=mask_names)
    if not len(table) and not bad:
        raise SwapfastError(f"{shown_name(folder)}: no PNG or JPEG in this folder; {hint_for(folder)}")
    mistaken, warnings = check_landmarks(table)
    result = FaceFolder(folder, table, bad, table.note_counts(), len(read), warnings)
    return result.without(mistaken) if mistaken else result


def _mask_error(record: FaceRecord, mask_type: str) -> str | None:
    try:
        check_mask_type(record, mask_type)
    except SwapfastError as error:
        return str(error)
    return None


def _read(folder: Path, name: str, file_names: frozenset[str]) -> Packed | None:
    if is_mask_file(name, file_names) and not has_face_header(folder / name):
        return None
    face = read_face(folder, name, file_names)
    return None if face is None else pack(face)


def _file_stats(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and mtime in ns of every visible file of the folder, by sorted name. Sub-folders are ignored."""
    try:
        with os.scandir(folder) as entries:
            stats = {e.name: _stat(e) for e in entries if not e.name.startswith(".") and not e.is_dir()}
    except FileNotFoundError:
        raise SwapfastError(f"{shown_name(folder)}: no such folder") from None
    except NotADirectoryError:
        instead = "the folder that it unpacks to" if is_archive(folder) else "the folder that holds the faces"
        raise not_a_folder(folder, shown_name(folder), instead) from None
    except OSError as error:
        raise SwapfastError(f"{shown_name(folder)}: cannot be read ({error.strerror})") from error
    return dict(sorted(stats.items()))


def _member_stats(pack: FacesetPack) -> dict[str, tuple[int, int]]:
    """Return, like ``_file_stats``, the size of every face in a pack and the time of the pack."""
    return {name: (length, pack.time_ns) for name, (_, length) in sorted(pack.members.items())}


def _stat(entry: os.DirEntry) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:
        return _UNKNOWN  # a broken link, or removed meanwhile
    return status.st_size, status.st_mtime_ns


def _files(
    name: str, mask: str, stats: dict[str, tuple[int, int]], file_names: frozenset[str]
) -> tuple[tuple[int, int], ...]:
    """Return size and time of a picture, its json and its mask, for the column ``files``."""
    json_name = find_file(f"{_stem(name)}.json", file_names) or ""
    return stats[name], stats.get(json_name, _MISSING), stats.get(find_file(mask, file_names) or "", _MISSING)


def _unchanged_rows(
    known: FaceTable, stats: dict[str, tuple[int, int]], file_names: frozenset[str]
) -> tuple[dict[str, int], set[str]]:
    """Return name -> row in ``known`` of the faces whose files have not changed, and the names of their masks.

    A new NAME_mask.png beside a plain picture without a mask counts as a change too.
    """
    rows, masks = {}, set()
    offsets, files = known.columns["texts_at"], known.columns["files"]
    bad = known.columns["kind"] == KINDS.index("bad")
    maskless = (offsets[1:] == offsets[:-1]) & (known.columns["kind"] == KINDS.index("plain"))
    for row, name in enumerate(known.file_names()):
        if name not in stats:
            continue
        mask = f"{_stem(name)}_mask.png" if maskless[row] else known.mask_name(row)
        current = _files(name, mask, stats, file_names)
        if bad[row] or files[row].tolist() != [list(pair) for pair in current]:
            continue  # bad files are few, and a file beside them may be the reason
        rows[name] = row
        if not maskless[row]:
            masks.add(mask)
    return rows, masks


def _stem(name: str) -> str:
    """Return ``Path(name).stem``, four times as fast: it is needed for every file of a folder."""
    return os.path.splitext(name)[0]


# --- for a person ---------------------------------------------------------------------------------------


def inspect_folder(
    folder: Path, workers: int | None = None, progress: Progress | None = None, scanning: Progress | None = None
) -> dict:
    """Return a JSON-ready report on a folder; ``describe`` makes text of it.

    Unlike ``scan_folder`` it decodes every picture, so it also finds damaged pixels.
    progress: called with (faces decoded, faces in total).
    scanning: called before that, with (files read, files in total).
    Raises SwapfastError for a missing folder and for a folder without pictures.
    """
    faces = scan_folder(folder, workers, scanning)
    damage = _damaged(faces, workers or available_cores(), progress)
    return report_on(faces.without([BadFace(path, reason) for path, reason in damage.items()]))


def make_report(folder: FaceFolder, masks_of: Callable[[FaceRecord], Sequence[str]]) -> dict:
    """Return a JSON-ready report on a folder. yaw, pitch: degrees.

    masks_of: returns the names of a face's masks.
    """
    good, bad = list(folder.records), sorted(folder.bad, key=lambda face: face.path.name)
    return {
        "folder": str(folder.path),
        "faces": len(good),
        "kinds": _counted(record.kind for record in good),
        "sizes": _counted(f"{record.width}x{record.height}" for record in good),
        "masks": _counted(name for record in good for name in masks_of(record)),
        "landmarks": "68 points each",
        "yaw": _spread([record.alignment.yaw for record in good]),
        "pitch": _spread([record.alignment.pitch for record in good]),
        "notes": _counted(note for record in good for note in record.notes),
        "warnings": folder.warnings,
        "bad": [{"file": face.path.name, "reason": face.reason} for face in bad],
    }


def _damaged(folder: FaceFolder, workers: int, progress: Progress | None) -> dict[Path, str]:
    damage = {}
    with ThreadPool(workers) as pool:
        results = zip(folder.records, pool.map(_decode_error, folder.records), strict=True)
        for count, (record, reason) in enumerate(results, 1):
            if reason:
                damage[record.path] = reason
            if progress:
                progress(count, len(folder.records))
    return damage


def _decode_error(record: FaceRecord) -> str | None:
    """Return why the pixels of this face or its mask cannot be used, None if they can."""
    try:
        checked_picture(record)
    except ValueError as error:
        return str(error)
    return None


def checked_picture(record: FaceRecord) -> np.ndarray:
    """Return a face's picture, (H, W, 3) uint8 BGR. Raises ValueError if it or its mask cannot be used."""
    picture = read_image(record.path)
    height, width = picture.shape[:2]
    if (width, height) != (record.width, record.height):
        raise ValueError(f"decodes to {width}x{height} px, its header says {record.width}x{record.height}")
    if record.unusable_mask:
        raise ValueError(record.unusable_mask[1])
    if record.mask_file:
        try:
            read_mask_file(record)
        except SwapfastError as error:
            raise ValueError(f"its mask {error}") from error
    return picture


def report_on(folder: FaceFolder) -> dict:
    """Return a JSON-ready report on a folder whose pictures have been decoded; see ``make_report``."""
    return make_report(folder, _mask_kinds)


def _mask_kinds(record: FaceRecord) -> list[str]:
    return [*record.stored_masks, *(["file"] if record.mask_file else [])]


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _spread(angles: list[float]) -> dict[str, float] | None:
    if not angles:
        return None
    figures = {"min": np.min(angles), "mean": np.mean(angles), "max": np.max(angles), "sd": np.std(angles)}
    return {name: round(float(figure), 2) for name, figure in figures.items()}


def describe(report: dict) -> str:
    """Return the report of ``inspect_folder`` as text for a person."""
    lines = [f"{shown_name(report['folder'])}: {report['faces']} faces"]
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
    lines += [f"  warning: {warning}" for warning in report["warnings"]]
    if not report["bad"]:
        return "\n".join([*lines, "  every file is good"])
    lines.append(f"  {len(report['bad'])} bad:")
    lines += [f"    {shown_name(face['file'])}: {face['reason']}" for face in report["bad"][:SHOWN_BAD]]
    if len(report["bad"]) > SHOWN_BAD:
        lines.append(f"    and {len(report['bad']) - SHOWN_BAD} more")
    return "\n".join(lines)
