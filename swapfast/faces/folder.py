"""A folder of faces: which of its files are faces, where each lies, and which are bad and why.

``scan_folder`` is for training and decodes nothing; ``inspect_folder`` is for a person and decodes everything.
reader.py says what one file is. Nothing is ever written into the folder.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.faces.image import read_image
from swapfast.faces.masks import read_mask_file
from swapfast.faces.reader import PICTURE_SUFFIXES, BadFace, read_face, shown
from swapfast.faces.record import FaceRecord
from swapfast.system import available_cores, signals_held, start_worker

SHOWN_BAD = 50

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FaceFolder:
    """The faces of one side.

    records: sorted by file name, which is their order in training. notes: what decoding will change, and in how
    many pictures.
    """

    path: Path
    records: list[FaceRecord]
    bad: list[BadFace] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def require_all_good(self, skip_bad: bool = False) -> None:
        """Raises one SwapfastError that lists every bad file; with ``skip_bad``, only where no face is left."""
        if not self.bad or (skip_bad and self.records):
            return
        total = len(self.bad) + len(self.records)
        way_out = "mend or remove them, or train on the rest with --skip-bad" if self.records else "no face is left"
        lines = [f"{shown(self.path)}: {len(self.bad)} of {total} files cannot be used; {way_out}"]
        lines += [f"  {shown(bad.path.name)}: {bad.reason}" for bad in self.bad]
        raise SwapfastError("\n".join(lines))


def scan_folder(folder: Path, workers: int | None = None, progress: Progress | None = None) -> FaceFolder:
    """Reads every face of a folder, without its pixels. ``progress`` is told (done, total).

    Raises SwapfastError where there is no such folder or no picture in it. Bad pictures are listed, not raised.
    """
    folder = Path(folder)
    names = _file_names(folder)
    others = frozenset(names)
    pictures = [name for name in names if not _is_mask_of_another(name, others)]
    results = _map(read_face, folder, pictures, others, workers, progress)
    masks = {r.mask_file.name for r in results if isinstance(r, FaceRecord) and r.mask_file}
    results = [r for r in results if r is not None and r.path.name not in masks]
    if not results:
        raise SwapfastError(f"{shown(folder)}: no PNG or JPEG in this folder; give the folder that holds the faces")
    records = [r for r in results if isinstance(r, FaceRecord)]
    return FaceFolder(
        path=folder,
        records=records,
        bad=[r for r in results if isinstance(r, BadFace)],
        notes=dict(sorted(Counter(note for r in records for note in r.notes).items())),
    )


def _file_names(folder: Path) -> list[str]:
    """Every visible file of the folder, sorted by name; sub-folders are not entered."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and not e.is_dir())
    except FileNotFoundError:
        raise SwapfastError(f"{shown(folder)}: no such folder") from None
    except NotADirectoryError:
        raise SwapfastError(f"{shown(folder)}: this is a file; give the folder that holds the faces") from None
    except OSError as error:
        raise SwapfastError(f"{shown(folder)}: cannot be read ({error.strerror})") from error


def _is_mask_of_another(name: str, others: frozenset[str]) -> bool:
    stem = Path(name).stem
    if not stem.endswith("_mask") or f"{stem}.json" in others:
        return False
    face = stem.removesuffix("_mask")
    return f"{face}.json" in others or any(face + suffix in others for suffix in PICTURE_SUFFIXES)


# Headers are read by Python code, which threads take turns at: 340 faces/s with two threads, 620 with two processes, on
# two nearly free cores (no difference when others use them). Below this many files starting them does not pay. Forking
# is what torch's DataLoader does too; the children never touch a device.
_PROCESSES_FROM = 200


def _map(
    read: Callable,
    folder: Path,
    names: list[str],
    others: frozenset[str],
    workers: int | None,
    progress: Progress | None,
) -> list:
    """``read(folder, name, others)`` of every name, in order, on all cores."""
    workers = workers or available_cores()
    task = partial(read, folder, others=others)
    may_fork = sys.platform == "linux" and not multiprocessing.current_process().daemon
    if may_fork and workers > 1 and len(names) >= _PROCESSES_FROM:
        try:
            return _in_processes(task, names, workers, progress)
        except (BrokenExecutor, OSError):
            pass  # no room for processes, or one was killed: threads need none
    with ThreadPoolExecutor(workers) as pool:
        return _gather(pool.map(task, names), len(names), progress)


def _in_processes(task: Callable, names: list[str], workers: int, progress: Progress | None) -> list:
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(os.getpid(),))
    try:
        with signals_held():  # this forks
            results = pool.map(task, names, chunksize=16)
        return _gather(results, len(names), progress)
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted, it waits for the chunks begun and not for the whole folder


def _gather(results: Iterable, total: int, progress: Progress | None) -> list:
    done = []
    for result in results:
        done.append(result)
        if progress:
            progress(len(done), total)
    return done


# --- for a person ---------------------------------------------------------------------------------------


def inspect_folder(folder: Path, workers: int | None = None, progress: Progress | None = None) -> dict:
    """A JSON-ready report; see ``describe``. Raises SwapfastError only where there is no folder or picture in it.

    Unlike ``scan_folder`` it decodes, and so also finds damage that only the pixels show. yaw and pitch: degrees.
    """
    found = scan_folder(folder, workers)
    damage = _damaged(found, workers or available_cores(), progress)
    good = [record for record in found.records if record.path not in damage]
    bad = [*found.bad, *(BadFace(path, reason) for path, reason in damage.items())]
    return {
        "folder": str(found.path),
        "faces": len(good),
        "kinds": _counted(record.kind for record in good),
        "sizes": _counted(f"{record.width}x{record.height}" for record in good),
        "masks": _counted(name for record in good for name in _mask_kinds(record)),
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
    lines = [f"{shown(report['folder'])}: {report['faces']} faces"]
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
    lines += [f"    {shown(one['file'])}: {one['reason']}" for one in report["bad"][:SHOWN_BAD]]
    if len(report["bad"]) > SHOWN_BAD:
        lines.append(f"    and {len(report['bad']) - SHOWN_BAD} more")
    return "\n".join(lines)
