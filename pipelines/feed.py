"""Where a step's bytes come from: ``feed(step, ids)`` -> faces and extra masks of all sides, A's first, and their ids.

``HostFeed``    the stores in host memory; on a GPU through two pinned buffers, copied on the loader's own stream
``DeviceFeed``  a store in device memory: one gather
``DecodeFeed``  no store: DALI decodes the batch
``PreparedFeed``  no store, prepared JPEGs: DALI decodes the batch where it is augmented
ids: (sides, B) numbers of training faces; others than those asked for where a file cannot be read.
faces: (N, S, S, 3 or 4), extra_masks: (N, K, S, S), uint8.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipelines.collate import Pixels
from pipelines.dataset import TrainSet
from pipelines.decode import BatchDecoder, dali_version
from pipelines.fill import UNUSABLE, checked_bytes, put_prepared
from pipelines.sampler import Sampler
from pipelines.store import DeviceStore
from swapfast.augment.device.transfer import send
from swapfast.augment.host.rows import Rows
from swapfast.batch import MASK_NAMES
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.system import available_cores

Feed = Callable[[int, np.ndarray], tuple[Pixels, Pixels, np.ndarray]]

PINNED_BUFFERS = 2
MAX_SPARES = 64  # faces tried in the place of one that cannot be read


class _Pinned:
    """A batch's bytes in pinned memory, and when the device has them all."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.tensors = [torch.empty(shape, dtype=torch.uint8, pin_memory=True) for shape in shapes]
        self.copied = torch.cuda.Event()

    def send(self, device: torch.device) -> tuple[Tensor, Tensor]:
        faces, extra_masks = (tensor.to(device, non_blocking=True) for tensor in self.tensors)
        self.copied.record()
        return faces, extra_masks


class HostFeed:
    """Takes a batch out of the sides' stores.

    to_device: where the batch is wanted on the GPU as bytes, else None. Pinned memory is written to directly; a
    buffer is used again when the copy from it is done, for which this thread waits and nobody else. On the host
    nothing is copied: the faces come as ``Rows`` of the stores.
    """

    def __init__(self, sets: Sequence[TrainSet], to_device: torch.device | None = None) -> None:
        self.sets = sets
        self.spec = sets[0].spec
        self.device = to_device if to_device is not None and to_device.type == "cuda" else None
        self._pinned: list[_Pinned] = []

    def __call__(self, step: int, ids: np.ndarray) -> tuple[Pixels, Pixels, np.ndarray]:
        if self.device is None:
            stored = [(one.store, one.rows[wanted]) for one, wanted in zip(self.sets, ids, strict=True)]
            faces, extra_masks = (
                Rows([(getattr(s, name), rows) for s, rows in stored]) for name in ("faces", "extra_masks")
            )
            return faces, extra_masks, ids
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
        for side, (one, wanted) in enumerate(zip(self.sets, ids, strict=True)):
            here = slice(side * size, (side + 1) * size)
            one.store.take(one.rows[wanted], faces[here], extra_masks[here])


class DeviceFeed:
    """Gathers a batch on the device that the faces and the augmentation are on."""

    def __init__(self, sets: Sequence[TrainSet], device: torch.device) -> None:
        self.sets, self.device = sets, device
        self.store = DeviceStore([one.store for one in sets], device)

    def __call__(self, step: int, ids: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        rows = [first + one.rows[wanted] for first, one, wanted in zip(self.store.first, self.sets, ids, strict=True)]
        return *self.store.gather(send(np.concatenate(rows), self.device)), ids


class DecodeFeed:
    """Decodes, crops and masks each batch anew.

    A file that cannot be read any more is told to ``warn`` once, left out from then on, and replaced by another face
    of its side (``Sampler.spare``), so that the run goes on.
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
            [one.source for one in sets], self._members, threads or available_cores(), device_id
        )
        self._pool = ThreadPoolExecutor(threads or available_cores(), "crop")

    def _members(self, step: int) -> list[tuple[int, int]]:
        """(side, which of its source's faces) of every face of a step, A's first."""
        ids = self.sampler.ids(step)
        return [(side, int(one.members[i])) for side, one in enumerate(self.sets) for i in ids[side]]

    def __call__(self, step: int, ids: np.ndarray) -> tuple[Pixels, Pixels, np.ndarray]:
        members = self._members(step)
        faces = np.empty((len(members), *self.spec.face_shape), np.uint8)
        extra_masks = np.empty((len(members), *self.spec.extra_masks_shape), np.uint8)
        decoded = self.decoder(step)
        ordinals = np.tile(self.sampler.ordinals(step), len(self.sets))
        used = ids.copy()

        def put(place: int) -> None:
            side, member = members[place]
            if (side, member) not in self.bad:
                reason = decoded[place]
                if not isinstance(reason, str):
                    reason = self._put(side, member, decoded[place], faces[place], extra_masks[place])
                if reason is None:
                    return
                self._leave_out(side, member, reason)
            used.flat[place] = self._replace(side, int(ordinals[place]), faces[place], extra_masks[place])

        list(self._pool.map(put, range(len(members))))
        return faces, extra_masks, used

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
        self.decoder.close()

    def _put(self, side: int, member: int, decoded, face: np.ndarray, extra_masks: np.ndarray) -> str | None:
        source = self.sets[side].source
        record = source.folder.records[member]
        try:
            if source.prepared is None:
                checked_bytes(record)
                self.spec.put(record, decoded, face, extra_masks)
            else:
                put_prepared(self.spec, source.prepared, record, *decoded, face, extra_masks)
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
        """Put another face there; returns its number."""
        one = self.sets[side]
        for attempt in range(MAX_SPARES):
            spare = self.sampler.spare(side, ordinal, attempt)
            member = int(one.members[spare])
            if (side, member) in self.bad:
                continue
            reason = one.source.put(self.spec, member, face, extra_masks)
            if reason is None:
                return spare
            self._leave_out(side, member, reason)
        raise SwapfastError(
            f"side {one.side}: {len([b for b in self.bad if b[0] == side])} of {len(one)} faces cannot be read any "
            f"more in {one.source.folder.path}; see that the folder is still there, then start again",
            EXIT_FAILED,
        )


class PreparedFeed:
    """Decodes prepared JPEGs where the augmentation runs: on a GPU by its JPEG engine, and no pixel passes the host.

    by_one: of sets that ``fits`` accepts; it does what a damaged face asks for.
    """

    def __init__(self, by_one: DecodeFeed) -> None:
        self.spec, self.by_one = by_one.spec, by_one

    @staticmethod
    def fits(sets: Sequence[TrainSet]) -> bool:
        """Whether every side is a prepared set of JPEGs that are just what is trained on."""
        made = [one.source.prepared for one in sets]
        spec = sets[0].spec
        return dali_version() is not None and all(
            one is not None and (one.encoding, one.size, one.mask) == ("jpeg", spec.size, spec.mask) for one in made
        )

    def __call__(self, step: int, ids: np.ndarray) -> tuple[Pixels, Pixels, np.ndarray]:
        decoded = self.by_one.decoder.tensors(step)
        if decoded is None:
            return self.by_one(step, ids)
        faces, masks = decoded
        if self.spec.face_channels == 4:
            faces = torch.cat([faces, masks[:, 0].unsqueeze(-1)], dim=-1)
        wanted = [MASK_NAMES.index(name) for name in self.spec.masks if name != "face"]
        return faces, torch.stack([masks[:, i] for i in wanted], dim=1) if wanted else masks[:, :0], ids

    def close(self) -> None:
        """End the threads."""
        self.by_one.close()
