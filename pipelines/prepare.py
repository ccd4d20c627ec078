"""From a folder of faces to a prepared set (swapfast/faces/prepared.py): cut and encoded once, on all cores."""

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
from swapfast.faces.image import decode_image, read_bytes
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
from swapfast.faces.reader import BadFace, digest_pixels, printable
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import FaceTable
from swapfast.files import cannot_write
from swapfast.stop import StopRequest
from swapfast.system import available_cores, on_all_cores

Progress = Callable[[int, int], None]

# Faces that may wait to be written while the disk is busy: so many per core, and no more than so many bytes.
_AHEAD_FACES, _AHEAD_BYTES = 64, 128 << 20
_FEWEST = 8


@dataclass(frozen=True)
class PrepareReport:
    """What was written. faces: how many. bad: what was left out. bytes: of all files. seconds: it took."""

    faces: int
    bad: list[BadFace]
    bytes: int
    seconds: float


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
) -> PrepareReport:
    """Write the faces of ``folder`` at ``size`` px to a new prepared set ``out``, which is there whole or not at all.

    encoding: see FORMATS. progress, scanning: told (done, total) of faces written, and before that of files read. The
    result does not depend on ``workers``. A set of mask type none gets a face mask of 255.

    Raises SwapfastError where the request is wrong, for bad files unless they are to be skipped, and (code 1) where
    the set cannot be written; KeyboardInterrupt where SIGINT or SIGTERM comes. Then nothing is kept.
    """
    begun = time.perf_counter()
    folder, out = Path(folder), Path(os.path.abspath(out))
    check_format(encoding, size)
    _check_places(folder, out)
    source = Path(os.path.abspath(folder)).name
    try:
        with _signals_raise(), NewPreparedSet(out, size, encoding, crop, mask, source, shard_bytes) as new:
            found = scan_folder(folder, workers, scanning)
            found.require_all_good(skip_bad)
            found = found.with_mask(mask.mask_type)
            found.require_all_good(skip_bad)
            bad = _write(new, found.records, crop, mask, skip_bad, workers, progress)
            found = found.without(bad)
            found.require_all_good(skip_bad)
            new.commit()
    except OSError as error:
        raise cannot_write(out, error) from error
    return PrepareReport(len(found.records), found.bad, new.bytes, time.perf_counter() - begun)


def _check_places(folder: Path, out: Path) -> None:
    if is_prepared(folder):
        raise SwapfastError(f"{printable(folder)}: is a prepared set already; give the folder that holds the faces")
    if (out.parent.resolve() / out.name).is_relative_to(folder.resolve()):
        raise SwapfastError(
            f"{printable(out)}: lies in {printable(folder)}, and nothing is written into a folder of faces; "
            "give another place"
        )


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does: unhandled it would end the process and leave half a set."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are heard in the main thread alone
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
    """Every face decoded, cut, encoded and written, in order; returns those that cannot be.

    ``on_all_cores`` does not wait for who takes its results: it gets some faces at a time, and so a slow disk does not
    fill the memory.
    """
    workers = workers or available_cores()
    each = 6 * new.size**2 // (1 if new.encoding == "raw" else 4)
    step = max(_FEWEST, min(_AHEAD_FACES * workers, _AHEAD_BYTES // each))

    def sample(index: int) -> Sample | str:
        record = records[index]
        try:
            return make_sample(record, *cut(record, crop, mask, new.size), crop, new.size, new.encoding)
        except (ValueError, MemoryError, SwapfastError) as error:
            return str(error).removeprefix(f"{record.path}: ") or "not enough memory"

    bad: list[BadFace] = []
    for first in range(0, len(records), step):
        indices = range(first, min(first + step, len(records)))
        for index, made in zip(indices, on_all_cores(sample, indices, workers), strict=True):
            if isinstance(made, str):
                bad.append(BadFace(records[index].path, made))
            elif skip_bad or not bad:  # else the rest is read only to name all that is bad
                new.add(made)
            if progress:
                progress(index + 1, len(records))
    return bad


def cut(record: FaceRecord, crop: CropConfig, mask: MaskConfig, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What a set keeps of a face: (S, S, 3) uint8 BGR and (3, S, S) uint8 masks, as training makes them.

    Raises ValueError or SwapfastError where the file is damaged or has changed since the folder was read.
    """
    data = read_bytes(record.path)
    if record.pixels and digest_pixels(data) != record.pixels:
        raise ValueError("it has changed since the folder was read; start again")
    face = crop_face(record, decode_image(data), crop, size)
    masks = np.full((len(MASK_NAMES), size, size), 255, np.uint8)
    names = [name for name in MASK_NAMES if name != "face" or mask.mask_type != "none"]
    masks[-len(names) :] = training_masks(record, crop, mask, size, names).transpose(2, 0, 1)
    return face, masks


def quality(
    folder: Path, size: int, sample: int = 64, crop: CropConfig | None = None, mask: MaskConfig | None = None
) -> list[dict]:
    """What each format does to up to ``sample`` faces spread over a folder; nothing is written.

    Of each: faces, the mean bytes of picture and masks, PSNR (dB, over all pixels of all faces; None: no error), the
    largest errors (levels of 255), and the mean time to decode both (ms, one thread).
    """
    crop, mask = crop or CropConfig(), mask or MaskConfig()
    found = scan_folder(folder)
    found.require_all_good(skip_bad=True)
    records = found.records
    chosen = records.select(np.linspace(0, len(records) - 1, min(sample, len(records)), dtype=np.int64))
    cuts = [cut(record, crop, mask, size) for record in chosen]
    table = []
    for encoding in FORMATS:
        encoded = [encode(*one, encoding) for one in cuts]
        begun = time.perf_counter()
        decoded = [decode(*one, encoding, size) for one in encoded]
        seconds = time.perf_counter() - begun
        faces, masks = (
            np.stack([abs(np.subtract(a[part], b[part], dtype=np.int16)) for a, b in zip(cuts, decoded)])
            for part in (0, 1)
        )
        mse = float(np.square(faces, dtype=np.float64).mean())
        table.append(
            {
                "format": encoding,
                "faces": len(cuts),
                "face_bytes": round(np.mean([len(face) for face, _ in encoded])),
                "mask_bytes": round(np.mean([len(masks) for _, masks in encoded])),
                "psnr_db": round(10 * math.log10(255**2 / mse), 2) if mse else None,
                "max_error": int(faces.max()),
                "mask_max_error": int(masks.max()),
                "decode_ms": round(1e3 * seconds / len(cuts), 2),
            }
        )
    return table
