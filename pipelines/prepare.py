"""Makes a prepared set (swapfast/faces/prepared.py) of a folder of faces, on all cores."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swapfast.batch import MASK_NAMES
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import decode_image
from swapfast.faces.masks import training_masks
from swapfast.faces.prepared import (
    FORMATS,
    SHARD_BYTES,
    NewPreparedSet,
    Sample,
    check_format,
    decode,
    encode,
    is_prepared,
    make_sample,
)
from swapfast.faces.reader import BadFace, read_unchanged
from swapfast.faces.record import FaceRecord
from swapfast.faces.skip_list import NO_SKIP, SkipList
from swapfast.faces.table import FaceTable
from swapfast.files import cannot_write, real_path
from swapfast.printing import shown_name
from swapfast.stop import StopRequest
from swapfast.system import available_cores, on_all_cores

Progress = Callable[[int, int], None]

# Limits of the faces that may wait while the disk is busy: faces per core, and bytes in all.
_AHEAD_FACES, _AHEAD_BYTES = 64, 128 << 20
_FEWEST = 8


@dataclass(frozen=True)
class PrepareReport:
    """The result of ``prepare``.

    faces: number of faces written.
    bad: the files left out.
    bytes: size of all files.
    seconds: duration.
    skipped: number of faces that ``skip`` left out.
    """

    faces: int
    bad: list[BadFace]
    bytes: int
    seconds: float
    skipped: int = 0


def prepare(
    folder: Path,
    out: Path,
    encoding: str,
    size: int,
    crop: CropConfig,
    mask: MaskConfig,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
    scanning: Progress | None = None,
    skip: SkipList = NO_SKIP,
) -> PrepareReport:
    """Write the faces of ``folder`` at ``size`` px to a new prepared set ``out``, atomically.

    encoding: one of FORMATS.
    workers: number of processes, by default one per core. The result does not depend on it.
    progress: called with (faces written, faces in total).
    scanning: called before that, with (files read, files in total).
    skip: faces to leave out.
    A set of mask type none gets a face mask of 255.

    Raises SwapfastError for a wrong request, for bad files unless ``skip_bad``, and (code 1) where the set cannot be
    written; KeyboardInterrupt on SIGINT or SIGTERM. Then nothing remains of the set.
    """
    start = time.perf_counter()
    folder, out = Path(folder), Path(os.path.abspath(out))
    check_format(encoding, size)
    _check_places(folder, out)
    source = Path(os.path.abspath(folder)).name
    try:
        with _signals_raise(), NewPreparedSet(out, size, encoding, crop, mask, source, shard_bytes) as new:
            faces = skip.apply(scan_folder(folder, workers, scanning))
            faces.require_all_good(skip_bad)
            faces = faces.with_mask(mask.mask_type)
            faces.require_all_good(skip_bad)
            bad = _write(new, faces.records, crop, mask, skip_bad, workers, progress)
            faces = faces.without(bad)
            faces.require_all_good(skip_bad)
            new.commit()
    except OSError as error:
        raise cannot_write(out, error) from error
    return PrepareReport(len(faces.records), faces.bad, new.bytes, time.perf_counter() - start, faces.skipped)


def _check_places(folder: Path, out: Path) -> None:
    if is_prepared(folder):
        raise SwapfastError(f"{shown_name(folder)}: is a prepared set already; give the folder that holds the faces")
    if not out.name:
        raise SwapfastError(f"{shown_name(out)}: is the root of the file system; give a new folder")
    if (real_path(out.parent) / out.name).is_relative_to(real_path(folder)):
        raise SwapfastError(
            f"{shown_name(out)}: lies in {shown_name(folder)}, and nothing is written into a folder of faces; "
            "give another place"
        )


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt, as Ctrl-C does. Otherwise it would leave half a set behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    with StopRequest().listening():
        yield


def _write(
    new: NewPreparedSet,
    records: FaceTable,
    crop: CropConfig,
    mask: MaskConfig,
    skip_bad: bool,
    workers: int | None,
    progress: Progress | None,
) -> list[BadFace]:
    """Decode, crop, encode and write every face in order. Returns the bad ones.

    ``on_all_cores`` does not wait until its results are used. It gets some faces at a time, so that a slow disk does
    not fill the memory.
    """
    workers = workers or available_cores()
    bytes_per_face = 6 * new.size**2 // (1 if new.encoding == "raw" else 4)
    step = max(_FEWEST, min(_AHEAD_FACES * workers, _AHEAD_BYTES // bytes_per_face))

    def sample(index: int) -> Sample | str:
        record = records[index]
        try:
            return make_sample(record, *crop_and_masks(record, crop, mask, new.size), crop, new.size, new.encoding)
        except (ValueError, MemoryError, SwapfastError) as error:
            return str(error).removeprefix(f"{record.path}: ") or "not enough memory"

    bad: list[BadFace] = []
    for first in range(0, len(records), step):
        indices = range(first, min(first + step, len(records)))
        for index, result in zip(indices, on_all_cores(sample, indices, workers), strict=True):
            if isinstance(result, str):
                bad.append(BadFace(records[index].path, result))
            elif skip_bad or not bad:  # otherwise the rest is read only to list all bad faces
                new.add(result)
            if progress:
                progress(index + 1, len(records))
    return bad


def crop_and_masks(record: FaceRecord, crop: CropConfig, mask: MaskConfig, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a face's crop, (S, S, 3) uint8 BGR, and masks, (3, S, S) uint8, as training makes them.

    Raises ValueError or SwapfastError if the file is damaged or has changed since the folder was read.
    """
    face = crop_face(record, decode_image(read_unchanged(record)), crop, size)
    masks = np.full((len(MASK_NAMES), size, size), 255, np.uint8)
    names = [name for name in MASK_NAMES if name != "face" or mask.mask_type != "none"]
    masks[-len(names) :] = training_masks(record, crop, mask, size, names).transpose(2, 0, 1)
    return face, masks


def quality(
    folder: Path, size: int, sample: int = 64, crop: CropConfig | None = None, mask: MaskConfig | None = None
) -> list[dict]:
    """Compare the formats on up to ``sample`` faces spread over a folder. Nothing is written.

    Returns one row per format: number of faces, mean bytes of picture and masks, PSNR (dB over all pixels; None without
    any error), largest errors (levels of 255), and the mean time to decode picture and masks (ms, one thread).
    """
    crop, mask = crop or CropConfig(), mask or MaskConfig()
    folder_faces = scan_folder(folder)
    folder_faces.require_all_good(skip_bad=True)
    records = folder_faces.records
    sample_records = records.select(np.linspace(0, len(records) - 1, min(sample, len(records)), dtype=np.int64))
    originals = [crop_and_masks(record, crop, mask, size) for record in sample_records]
    table = []
    for encoding in FORMATS:
        encoded = [encode(*original, encoding) for original in originals]
        start = time.perf_counter()
        decoded = [decode(*data, encoding, size) for data in encoded]
        seconds = time.perf_counter() - start
        faces, masks = (
            np.stack([abs(np.subtract(a[part], b[part], dtype=np.int16)) for a, b in zip(originals, decoded)])
            for part in (0, 1)
        )
        mse = float(np.square(faces, dtype=np.float64).mean())
        table.append(
            {
                "format": encoding,
                "faces": len(originals),
                "face_bytes": round(np.mean([len(face) for face, _ in encoded])),
                "mask_bytes": round(np.mean([len(masks) for _, masks in encoded])),
                "psnr_db": round(10 * math.log10(255**2 / mse), 2) if mse else None,
                "max_error": int(faces.max()),
                "mask_max_error": int(masks.max()),
                "decode_ms": round(1e3 * seconds / len(originals), 2),
            }
        )
    return table
