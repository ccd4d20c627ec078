"""The decoded faces: crops at training size and their masks, as bytes, filled once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.decode import decode_pictures
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face
from swapfast.faces.folder import BadFace
from swapfast.faces.masks import training_masks
from swapfast.faces.record import FaceRecord
from swapfast.system import available_cores


@dataclass(frozen=True)
class StoreSpec:
    """What is stored of a face. size: px; masks: names from batch.MASK_NAMES, in that order."""

    size: int
    crop: CropConfig
    mask: MaskConfig
    masks: tuple[str, ...]

    @property
    def face_channels(self) -> int:
        """3, or 4 where the face mask travels beside BGR: one four-channel warp costs half of a three and a one."""
        return 4 if "face" in self.masks else 3

    @property
    def planes(self) -> int:
        """Further masks, each a plane of its own."""
        return len(self.masks) - (self.face_channels - 3)

    @property
    def bytes_per_face(self) -> int:
        """What one face takes."""
        return self.size**2 * (3 + len(self.masks))


class HostStore:
    """The faces of one side in host memory.

    faces: (N, S, S, 3 or 4) uint8 BGR and, where asked for, the face mask. planes: (N, K, S, S) uint8 eye and mouth
    masks. names: the files, in the same order.
    """

    def __init__(self, spec: StoreSpec, count: int) -> None:
        self.spec = spec
        try:
            self.faces = np.empty((count, spec.size, spec.size, spec.face_channels), np.uint8)
            self.planes = np.empty((count, spec.planes, spec.size, spec.size), np.uint8)
        except MemoryError as error:
            needed = count * spec.bytes_per_face / 2**30
            raise SwapfastError(
                f"{count} faces at {spec.size} px need {needed:.1f} GiB of memory, which is not free; train at a "
                "smaller size or on fewer faces",
                code=1,
            ) from error
        self.names: list[str] = []

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def nbytes(self) -> int:
        """What the faces take."""
        return self.faces.nbytes + self.planes.nbytes

    def put(self, index: int, record: FaceRecord, image: np.ndarray) -> None:
        """Crop the decoded picture of ``record`` and draw or read its masks. Thread-safe for distinct indices."""
        spec = self.spec
        self.faces[index, ..., :3] = crop_face(record, image, spec.crop, spec.size)
        masks = training_masks(record, spec.crop, spec.mask, spec.size, spec.masks)
        if spec.face_channels == 4:
            self.faces[index, ..., 3] = masks[..., 0]
        self.planes[index] = masks[..., spec.face_channels - 3 :].transpose(2, 0, 1)

    def keep(self, indices: Sequence[int]) -> None:
        """Drop all other faces, in place."""
        for new, old in enumerate(indices):
            if new != old:
                self.faces[new], self.planes[new] = self.faces[old], self.planes[old]
        self.faces, self.planes = self.faces[: len(indices)], self.planes[: len(indices)]
        self.names = [self.names[i] for i in indices]


def fill_store(
    spec: StoreSpec,
    records: Sequence[FaceRecord],
    threads: int | None = None,
    device_id: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[HostStore, list[BadFace]]:
    """Decode, crop and mask every face. Returns the store of the good ones and the bad ones with their reasons."""
    threads = threads or available_cores()
    store = HostStore(spec, len(records))
    store.names = [record.path.name for record in records]
    bad: dict[int, str] = {}

    def put(index: int, image) -> None:
        if isinstance(image, str):
            bad[index] = image
            return
        try:
            store.put(index, records[index], image)
        except (ValueError, MemoryError, SwapfastError) as error:
            bad[index] = str(error).removeprefix(f"{records[index].path}: ")

    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for images in decode_pictures([record.path for record in records], threads, device_id):
            list(pool.map(put, range(done, done + len(images)), images))
            done += len(images)
            if progress is not None:
                progress(done, len(records))
    if bad:
        store.keep([i for i in range(len(records)) if i not in bad])
    return store, [BadFace(Path(records[i].path), bad[i]) for i in sorted(bad)]
