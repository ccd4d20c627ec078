"""Fills a store: decodes, crops and masks every face once, on all cores.

Worker processes decode PNGs and write into shared memory. One core's decoder is the limit there
(swapfast/faces/image.py), and a GPU cannot decode PNGs. DALI decodes JPEGs and threads crop them, all on the CPU: a GPU
decodes slightly differently, and the content of a store must not depend on the machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from pipelines.decode import DALI_PIXELS, dali_version, decode_encoded, decode_pictures
from pipelines.store import HostStore, StoreSpec
from swapfast.batch import MASK_NAMES
from swapfast.errors import SwapfastError
from swapfast.faces.faceset_pack import is_pack
from swapfast.faces.folder import FaceFolder
from swapfast.faces.image import decode_image
from swapfast.faces.prepared import PreparedSet
from swapfast.faces.reader import BadFace, read_unchanged
from swapfast.faces.record import FaceRecord
from swapfast.system import available_cores, on_all_cores
from swapfast.threads import ThreadPool

Progress = Callable[[int, int], None]

UNUSABLE = (ValueError, MemoryError, SwapfastError, cv2.error)  # errors of an unusable picture


@dataclass(frozen=True)
class FaceSource:
    """The faces of one side: a folder, or a prepared set and its content as a folder.

    tested: number of faces that were left out of it for the test.
    """

    folder: FaceFolder
    prepared: PreparedSet | None = None
    tested: int = 0

    def __len__(self) -> int:
        return len(self.folder.records)

    def without(self, bad: Sequence[BadFace]) -> FaceSource:
        """Return this source without some faces."""
        return dataclasses.replace(self, folder=self.folder.without(bad))

    def select(self, indices: np.ndarray) -> FaceSource:
        """Return the source of some of these faces, in the order of ``indices``."""
        records = self.folder.records.select(indices)
        return dataclasses.replace(
            self, folder=dataclasses.replace(self.folder, records=records, notes=records.note_counts())
        )

    def picture(self, index: int) -> tuple[FaceRecord, np.ndarray]:
        """Return a face's record and decoded picture, (H, W, 3) uint8 BGR. Raises ValueError with a short reason."""
        record = self.folder.records[index]
        if self.prepared is not None:
            return record, self.prepared.read(int(self.folder.records.rows[index]))[0]
        return record, decode_image(read_unchanged(record))

    def put(self, spec: StoreSpec, index: int, face: np.ndarray, extra_masks: np.ndarray) -> str | None:
        """Write one face to ``face`` and ``extra_masks`` (``StoreSpec.put``). Returns the reason if that fails."""
        try:
            if self.prepared is None:
                record, picture = self.picture(index)
                spec.put(record, picture, face, extra_masks)
            else:
                row = int(self.folder.records.rows[index])
                put_prepared(
                    spec, self.prepared, self.folder.records[index], *self.prepared.read(row), face, extra_masks
                )
        except UNUSABLE as error:
            return _reason(error, self.folder.records[index])
        return None


def _reason(error: Exception, record: FaceRecord) -> str:
    return str(error).removeprefix(f"{record.path}: ") or type(error).__name__


def put_prepared(
    spec: StoreSpec,
    prepared: PreparedSet,
    record: FaceRecord,
    picture: np.ndarray,
    masks: np.ndarray,
    face: np.ndarray,
    extra_masks: np.ndarray,
) -> None:
    """Write a face of a prepared set, like ``StoreSpec.put``. Its masks are reused if they have the wanted settings.

    picture: (P, P, 3) uint8 BGR.
    masks: (3, P, P) uint8.
    """
    if spec.mask != prepared.mask:
        spec.put(record, picture, face, extra_masks)
        return
    resized = {name: _resized(mask, spec.size) for name, mask in zip(MASK_NAMES, masks)}
    face[..., :3] = _resized(picture, spec.size)
    if spec.face_channels == 4:
        face[..., 3] = resized["face"]
    for mask, name in zip(extra_masks, [name for name in spec.masks if name != "face"]):
        mask[:] = resized[name]


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if len(image) == size:
        return image
    interpolation = cv2.INTER_AREA if len(image) > size else cv2.INTER_CUBIC
    return cv2.resize(image, (size, size), interpolation=interpolation)


def fill_store(
    spec: StoreSpec,
    source: FaceSource,
    store: HostStore,
    indices: np.ndarray | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    good: np.ndarray | None = None,
) -> dict[int, str]:
    """Fill rows of ``store`` and return the reasons of the bad ones by index.

    indices: rows to fill, by default all.
    threads: number of threads and processes; the result does not depend on it.
    progress: called with (faces done, faces in total).
    good: (N,) uint8 in shared memory; 1 for every filled row, also if ``progress`` raises before the end.
    """
    indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    records = source.folder.records
    pixels = records.column("width").astype(np.int64) * records.column("height")
    jpegs = ((records.column("encoding") == 1) & (pixels <= DALI_PIXELS))[indices]
    if dali_version() is None or is_pack(records.folder):  # DALI reads whole files
        jpegs[:] = False
    bad: dict[int, str] = {}
    total, not_jpegs = len(indices), indices[~jpegs].tolist()

    def report(count: int, _total: int = 0) -> None:
        if progress is not None:
            progress(count, total)

    good = np.zeros(len(source), np.uint8) if good is None else good

    def put(index: int) -> str | None:
        reason = source.put(spec, index, store.faces[index], store.extra_masks[index])
        good[index] = reason is None
        return reason

    for index, reason in zip(not_jpegs, on_all_cores(put, not_jpegs, threads, report), strict=True):
        if reason is not None:
            bad[index] = reason
    if jpegs.any():
        bad |= _fill_by_dali(
            spec,
            source,
            store,
            indices[jpegs].tolist(),
            threads or available_cores(),
            lambda count: report(len(not_jpegs) + count),
            good,
        )
    return bad


def _fill_by_dali(
    spec: StoreSpec,
    source: FaceSource,
    store: HostStore,
    indices: list[int],
    threads: int,
    report: Callable[[int], None],
    good: np.ndarray,
) -> dict[int, str]:
    """Decode JPEGs in batches by DALI and crop them by threads."""
    records, prepared = source.folder.records, source.prepared

    def put(index: int, decoded: Any) -> str | None:
        record = records[index]
        if isinstance(decoded, str):
            return decoded
        try:
            if prepared is None:
                read_unchanged(record)
                spec.put(record, decoded, store.faces[index], store.extra_masks[index])
            else:
                picture, masks = decoded
                put_prepared(spec, prepared, record, picture, masks, store.faces[index], store.extra_masks[index])
        except UNUSABLE as error:
            return _reason(error, record)
        good[index] = 1
        return None

    batches: Iterator[Sequence[Any]]
    if prepared is None:
        batches = decode_pictures([records[i].path for i in indices], threads)
    else:
        batches = decode_encoded(prepared, [int(records.rows[i]) for i in indices], threads)
    bad: dict[int, str] = {}
    count = 0
    with ThreadPool(threads) as pool:
        for batch in batches:
            batch_indices = indices[count : count + len(batch)]
            reasons = pool.map(put, batch_indices, batch)
            bad |= {index: reason for index, reason in zip(batch_indices, reasons) if reason is not None}
            count += len(batch)
            report(count)
    return bad
