"""Feeds give the bytes of a step: ``feed(step, ids)`` -> faces, extra masks, ids of all sides, A's first.

HostFeed        from stores in host memory; to a GPU through two pinned buffers, on the loader's stream
DeviceFeed      from a store in device memory, by one gather or none
DecodeFeed      without a store: DALI decodes the batch
PreparedFeed    without a store, from prepared JPEGs: DALI decodes the batch where it is augmented

faces           (N, S, S, 3 or 4) uint8
extra masks     (N, K, S, S) uint8
ids             (sides, B) training faces; a face that cannot be read is replaced by another one
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.collate import Pixels
from pipelines.dataset import TrainSet
from pipelines.decode import BatchDecoder, dali_version
from pipelines.fill import UNUSABLE, put_prepared
from pipelines.sampler import Sampler
from pipelines.store import DeviceStore
from swapfast.augment.device.transfer import send
from swapfast.augment.fused.rows import StoredRows
from swapfast.augment.host.rows import Rows
from swapfast.batch import MASK_NAMES
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.reader import read_unchanged
from swapfast.system import available_cores
from swapfast.threads import PATIENCE_S, ThreadPool

Feed = Callable[[int, np.ndarray], tuple[Pixels, Pixels, np.ndarray]]

PINNED_BUFFERS = 2
MAX_SPARES = 64  # replacements tried for a face that cannot be read


class _Pinned:
    """A batch's bytes in pinned memory, and the event that ends their copy to the device."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.tensors = [torch.empty(shape, dtype=torch.uint8, pin_memory=True) for shape in shapes]
        self.copied = torch.cuda.Event()

    def send(self, device: torch.device) -> tuple[Tensor, Tensor]:
        faces, extra_masks = (tensor.to(device, non_blocking=True) for tensor in self.tensors)
        self.copied.record()
        return faces, extra_masks


class HostFeed:
    """Takes batches from the sides' stores in host memory.

    to_device: a GPU that needs the bytes, None for the host.
    For a GPU, faces are copied to pinned memory. A buffer is used again when its copy to the device is done; only this
    thread waits for that. For the host nothing is copied: the faces are ``Rows`` of the stores.
    """

    def __init__(self, sets: Sequence[TrainSet], to_device: torch.device | None = None) -> None:
        self.sets = sets
        self.spec = sets[0].spec
        self.device = to_device if to_device is not None and to_device.type == "cuda" else None
        self._pinned: list[_Pinned] = []

    def __call__(self, step: int, ids: np.ndarray) -> tuple[Pixels, Pixels, np.ndarray]:
        if self.device is None:
            sides = zip(self.sets, ids, strict=True)
            rows_of_stores = [(side.host_store, side.rows[side_ids]) for side, side_ids in sides]
            faces = Rows([(store.faces, rows) for store, rows in rows_of_stores])
            return faces, Rows([(store.extra_masks, rows) for store, rows in rows_of_stores]), ids
        shapes = [(ids.size, *self.spec.face_shape), (ids.size, *self.spec.extra_masks_shape)]
        if len(self._pinned) < PINNED_BUFFERS:
            self._pinned.append(_Pinned(shapes))
            buffer = self._pinned[-1]
        else:
            buffer = self._pinned[step % PINNED_BUFFERS]
            buffer.copied.synchronize()
        self._take(ids, *(tensor.numpy() for tensor in buffer.tensors))
        return *buffer.send(self.device), ids

    def _take(self, ids: np.ndarray, faces: np.ndarray, extra_masks: np.ndarray) -> None:
        size = ids.shape[1]
        for number, (side, side_ids) in enumerate(zip(self.sets, ids, strict=True)):
            part = slice(number * size, (number + 1) * size)
            side.host_store.take(side.rows[side_ids], faces[part], extra_masks[part])


class DeviceFeed:
    """Gathers batches on the device that holds the faces and augments them.

    gathers: whether batches are tensors, or rows of the store for an augmentation that reads them there.
    """

    def __init__(self, sets: Sequence[TrainSet], device: torch.device, gathers: bool = True) -> None:
        self.sets, self.device, self.gathers = sets, device, gathers
        self.store = DeviceStore([side.host_store for side in sets], device)

    def __call__(self, step: int, ids: np.ndarray) -> tuple[Pixels, Pixels, np.ndarray]:
        sides = zip(self.store.first, self.sets, ids, strict=True)
        rows = [first + side.rows[side_ids] for first, side, side_ids in sides]
        sent = send(np.concatenate(rows), self.device)
        if self.gathers:
            return *self.store.gather(sent), ids
        return StoredRows(self.store.faces, sent), StoredRows(self.store.extra_masks, sent), ids


class DecodeFeed:
    """Decodes, crops and masks every batch.

    A file that can no longer be read is reported to ``warn`` once and left out from then on. Another face of its side
    replaces it (``Sampler.spare``), so the run goes on.
    """

    def __init__(
        self,
        sets: Sequence[TrainSet],
        sampler: Sampler,
        threads: int | None = None,
        device_id: int | None = None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.sets, self.sampler, self.warn = sets, sampler, warn
        self.spec = sets[0].spec
        self.bad: set[tuple[int, int]] = set()  # (side, member)
        self._lock = threading.Lock()
        self.decoder = BatchDecoder(
            [side.source for side in sets], self._members, threads or available_cores(), device_id
        )
        self._pool = ThreadPool(threads or available_cores(), "crop")

    def _members(self, step: int) -> list[tuple[int, int]]:
        """Return (side, index in its source) of every face of a step, A's first."""
        ids = self.sampler.ids(step)
        return [(number, int(side.members[i])) for number, side in enumerate(self.sets) for i in ids[number]]

    def __call__(self, step: int, ids: np.ndarray) -> tuple[Pixels, Pixels, np.ndarray]:
        members = self._members(step)
        faces = np.empty((len(members), *self.spec.face_shape), np.uint8)
        extra_masks = np.empty((len(members), *self.spec.extra_masks_shape), np.uint8)
        decoded = self.decoder(step)
        ordinals = np.tile(self.sampler.ordinals(step), len(self.sets))
        final_ids = ids.copy()

        def put(place: int) -> None:
            side, member = members[place]
            if (side, member) not in self.bad:
                reason = decoded[place]
                if not isinstance(reason, str):
                    reason = self._put(side, member, decoded[place], faces[place], extra_masks[place])
                if reason is None:
                    return
                self._leave_out(side, member, reason)
            final_ids.flat[place] = self._replace(side, int(ordinals[place]), faces[place], extra_masks[place])

        list(self._pool.map(put, range(len(members))))
        return faces, extra_masks, final_ids

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True, patience_s=PATIENCE_S)
        self.decoder.close()

    def _put(self, side: int, member: int, decoded: Any, face: np.ndarray, extra_masks: np.ndarray) -> str | None:
        source = self.sets[side].source
        record = source.folder.records[member]
        try:
            if source.prepared is None:
                read_unchanged(record)
                self.spec.put(record, decoded, face, extra_masks)
            else:
                picture, masks = decoded
                put_prepared(self.spec, source.prepared, record, picture, masks, face, extra_masks)
        except UNUSABLE as error:
            return str(error).removeprefix(f"{record.path}: ")
        return None

    def _leave_out(self, side: int, member: int, reason: str) -> None:
        with self._lock:
            if (side, member) in self.bad:
                return
            self.bad.add((side, member))
            self.decoder.left_out.add((side, member))
        record = self.sets[side].source.folder.records[member]
        self.warn(f"warning: side {self.sets[side].side}: {record.path}: {reason}; left out from now on")

    def _replace(self, side: int, ordinal: int, face: np.ndarray, extra_masks: np.ndarray) -> int:
        """Write another face of the side instead. Returns its id."""
        train_set = self.sets[side]
        for attempt in range(MAX_SPARES):
            spare = self.sampler.spare(side, ordinal, attempt)
            member = int(train_set.members[spare])
            if (side, member) in self.bad:
                continue
            reason = train_set.source.put(self.spec, member, face, extra_masks)
            if reason is None:
                return spare
            self._leave_out(side, member, reason)
        raise SwapfastError(
            f"side {train_set.side}: {len([b for b in self.bad if b[0] == side])} of {len(train_set)} faces cannot be "
            f"read any more in {train_set.source.folder.path}; see that the folder is still there, then start again",
            EXIT_FAILED,
        )


class PreparedFeed:
    """Decodes prepared JPEGs where the augmentation runs: on a GPU by its JPEG engine, so no pixel passes the host.

    fallback: the feed of batches with a damaged face, of sets that ``fits`` accepts.
    """

    def __init__(self, fallback: DecodeFeed) -> None:
        self.spec, self.fallback = fallback.spec, fallback

    @staticmethod
    def fits(sets: Sequence[TrainSet]) -> bool:
        """Return whether every side is a prepared set of JPEGs with the size and masks that are trained on."""
        prepared_sets = [side.source.prepared for side in sets]
        spec = sets[0].spec
        return dali_version() is not None and all(
            prepared is not None and (prepared.encoding, prepared.size, prepared.mask) == ("jpeg", spec.size, spec.mask)
            for prepared in prepared_sets
        )

    def __call__(self, step: int, ids: np.ndarray) -> tuple[Pixels, Pixels, np.ndarray]:
        decoded = self.fallback.decoder.tensors(step)
        if decoded is None:
            return self.fallback(step, ids)
        faces, masks = decoded
        if self.spec.face_channels == 4:
            faces = torch.cat([faces, masks[:, 0].unsqueeze(-1)], dim=-1)
        channels = [MASK_NAMES.index(name) for name in self.spec.masks if name != "face"]
        return faces, torch.stack([masks[:, i] for i in channels], dim=1) if channels else masks[:, :0], ids

    def close(self) -> None:
        """End the threads."""
        self.fallback.close()
