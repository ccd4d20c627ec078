"""Every face decoded, cropped and masked once, on all cores.

PNGs are decoded by worker processes, which write into shared memory: what limits there is one core's decoder
(swapfast/faces/image.py), and a GPU does not take PNGs. JPEGs are decoded by DALI and cropped by threads: on the CPU,
for a GPU decodes them slightly differently, and a store's content must not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.decode import DALI_PIXELS, dali_version, decode_encoded, decode_pictures
from pipelines.store import HostStore, StoreSpec
from swapfast.batch import MASK_NAMES
from swapfast.errors import SwapfastError
from swapfast.faces.folder import FaceFolder
from swapfast.faces.image import decode_image, read_bytes
from swapfast.faces.prepared import PreparedSet
from swapfast.faces.reader import BadFace, digest_pixels
from swapfast.faces.record import FaceRecord
from swapfast.system import available_cores, on_all_cores

Progress = Callable[[int, int], None]

UNUSABLE = (ValueError, MemoryError, SwapfastError, cv2.error)  # what a picture that is no good may raise
CHANGED = "it has changed since the folder was read; start again"


@dataclass(frozen=True)
class FaceSource:
    """The faces of one side, wherever they come from. prepared: the set that ``folder`` is the content of, if any."""

    folder: FaceFolder
    prepared: PreparedSet | None = None

    def __len__(self) -> int:
        return len(self.folder.records)

    def without(self, bad: Sequence[BadFace]) -> FaceSource:
        """The same less some faces."""
        return FaceSource(self.folder.without(bad), self.prepared)

    def picture(self, index: int) -> tuple[FaceRecord, np.ndarray]:
        """One face's record and decoded picture, (H, W, 3) uint8 BGR. Raises ValueError with a short reason."""
        record = self.folder.records[index]
        if self.prepared is not None:
            return record, self.prepared.read(int(self.folder.records.rows[index]))[0]
        return record, decode_image(checked_bytes(record))

    def put(self, spec: StoreSpec, index: int, face: np.ndarray, extra_masks: np.ndarray) -> str | None:
        """Write one face to the arrays given, or say in a phrase why it cannot be."""
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


def checked_bytes(record: FaceRecord) -> bytes:
    """A picture's file. Raises ValueError where it cannot be read or is not the one whose landmarks are known."""
    data = read_bytes(record.path)
    if record.pixels and digest_pixels(data) != record.pixels:
        raise ValueError(CHANGED)
    return data


def _reason(error: Exception, record: FaceRecord) -> str:
    return str(error).removeprefix(f"{record.path}: ") or type(error).__name__


def put_prepared(
    spec: StoreSpec,
    made: PreparedSet,
    record: FaceRecord,
    picture: np.ndarray,
    masks: np.ndarray,
    face: np.ndarray,
    extra_masks: np.ndarray,
) -> None:
    """Like ``StoreSpec.put`` for a face of a prepared set: its masks are used where they are what is asked for."""
    if spec.mask != made.mask:
        spec.put(record, picture, face, extra_masks)
        return
    masks = {name: _resized(mask, spec.size) for name, mask in zip(MASK_NAMES, masks)}
    face[..., :3] = _resized(picture, spec.size)
    if spec.face_channels == 4:
        face[..., 3] = masks["face"]
    for mask, name in zip(extra_masks, [name for name in spec.masks if name != "face"]):
        mask[:] = masks[name]


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if len(image) == size:
        return image
    how = cv2.INTER_AREA if len(image) > size else cv2.INTER_CUBIC
    return cv2.resize(image, (size, size), interpolation=how)


def fill_store(
    spec: StoreSpec,
    source: FaceSource,
    store: HostStore,
    indices: Sequence[int] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    good: np.ndarray | None = None,
) -> dict[int, str]:
    """Fill the rows ``indices`` (all by default) of ``store``, in shared memory; returns the bad ones' reasons.

    The result does not depend on ``threads``. good: (N,) uint8 in shared memory, set to 1 for every row that is
    filled, also where ``progress`` raises and the others are not.
    """
    indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    records = source.folder.records
    pixels = records.column("width").astype(np.int64) * records.column("height")
    jpegs = ((records.column("encoding") == 1) & (pixels <= DALI_PIXELS))[indices]
    if dali_version() is None:
        jpegs[:] = False
    bad: dict[int, str] = {}
    total, others = len(indices), indices[~jpegs].tolist()

    def tell(done: int, _total: int) -> None:
        if progress is not None:
            progress(done, total)

    good = np.zeros(len(source), np.uint8) if good is None else good

    def put(index: int) -> str | None:
        reason = source.put(spec, index, store.faces[index], store.extra_masks[index])
        good[index] = reason is None
        return reason

    for index, reason in zip(others, on_all_cores(put, others, threads, tell), strict=True):
        if reason is not None:
            bad[index] = reason
    if jpegs.any():
        bad |= _fill_by_dali(
            spec,
            source,
            store,
            indices[jpegs].tolist(),
            threads or available_cores(),
            lambda done: tell(len(others) + done, total),
            good,
        )
    return bad


def _fill_by_dali(
    spec: StoreSpec,
    source: FaceSource,
    store: HostStore,
    indices: list[int],
    threads: int,
    tell: Callable[[int], None],
    good: np.ndarray,
) -> dict[int, str]:
    """JPEGs: decoded in batches by DALI, cropped by threads."""
    records, prepared = source.folder.records, source.prepared

    def put(index: int, decoded) -> str | None:
        record = records[index]
        if isinstance(decoded, str):
            return decoded
        try:
            if prepared is None:
                checked_bytes(record)
                spec.put(record, decoded, store.faces[index], store.extra_masks[index])
            else:
                put_prepared(spec, prepared, record, *decoded, store.faces[index], store.extra_masks[index])
        except UNUSABLE as error:
            return _reason(error, record)
        good[index] = 1
        return None

    if prepared is None:
        batches = decode_pictures([records[i].path for i in indices], threads)
    else:
        batches = decode_encoded(prepared, [int(records.rows[i]) for i in indices], threads)
    bad, done = {}, 0
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            these = indices[done : done + len(batch)]
            reasons = pool.map(put, these, batch)
            bad |= {index: reason for index, reason in zip(these, reasons) if reason is not None}
            done += len(batch)
            tell(done)
    return bad
