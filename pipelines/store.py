"""Stores of decoded faces: crops at training size and their masks, as bytes."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face
from swapfast.faces.masks import training_masks
from swapfast.faces.record import FaceRecord

UPLOAD_BYTES = 64 << 20  # sent to the device at a time


@dataclass(frozen=True)
class StoreSpec:
    """What a store holds of each face.

    size: edge of the crop S, px.
    crop, mask: the settings the crop and masks are made with.
    masks: names from MASK_NAMES, in that order.
    """

    size: int
    crop: CropConfig
    mask: MaskConfig
    masks: tuple[str, ...]

    @property
    def face_channels(self) -> int:
        """Return 4 with a face mask, otherwise 3. One warp of 4 channels takes half the time of two, of 3 and of 1."""
        return 4 if "face" in self.masks else 3

    @property
    def extra_mask_count(self) -> int:
        """Return the number of masks stored beside the face: eye and mouth. The face mask is its fourth channel."""
        return len(self.masks) - (self.face_channels - 3)

    @property
    def bytes_per_face(self) -> int:
        """Return the bytes of one face and its masks."""
        return self.size**2 * (3 + len(self.masks))

    @property
    def face_shape(self) -> tuple[int, int, int]:
        """Return the shape of one face: BGR and, if stored, the face mask."""
        return self.size, self.size, self.face_channels

    @property
    def extra_masks_shape(self) -> tuple[int, int, int]:
        """Return the shape of one face's eye and mouth masks."""
        return self.extra_mask_count, self.size, self.size

    def put(self, record: FaceRecord, image: np.ndarray, face: np.ndarray, extra_masks: np.ndarray) -> None:
        """Write a face's crop and masks to ``face`` and ``extra_masks``.

        image: (H, W, 3) uint8 BGR, the decoded picture of ``record``.
        face: (S, S, 3 or 4) uint8, receives the crop and, if stored, the face mask.
        extra_masks: (K, S, S) uint8, receives the other masks.
        Raises SwapfastError or ValueError if the picture differs from its header or lacks a mask of that type.
        """
        crop = crop_face(record, image, self.crop, self.size)
        masks = training_masks(record, self.crop, self.mask, self.size, self.masks)
        # OpenCV copies channels in a tenth of NumPy's time.
        sources = [crop, masks] if self.masks else [crop]
        pairs = [channel for i in range(3 + len(self.masks)) for channel in (i, i)]
        flat = [mask[..., None] for mask in extra_masks]
        cv2.mixChannels(sources, [face, *flat], pairs)

    def to_dict(self) -> dict:
        """Return plain values. Two specs with equal values store the same of a face."""
        return asdict(self)


def shared_array(shape: tuple[int, ...]) -> np.ndarray:
    """Return uint8 zeros in memory shared with forked workers. Raises SwapfastError if there is not enough."""
    size = int(np.prod(shape))
    try:
        return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8, size).reshape(shape)
    except (OSError, MemoryError, ValueError, OverflowError) as error:
        raise SwapfastError(
            f"{shape[0]} faces need {size / 2**30:.1f} GiB of memory, which is not free; train at a smaller size or on "
            "fewer faces, or with --cache off",
            code=1,
        ) from error


class HostStore:
    """Faces in host memory, allocated by this process or mapped from a file.

    faces: (N, S, S, 3 or 4) uint8 BGR and, if stored, the face mask.
    extra_masks: (N, K, S, S) uint8, eye and mouth.
    """

    def __init__(self, spec: StoreSpec, faces: np.ndarray, extra_masks: np.ndarray) -> None:
        self.spec, self.faces, self.extra_masks = spec, faces, extra_masks

    @classmethod
    def in_memory(cls, spec: StoreSpec, count: int) -> HostStore:
        """Return a store for ``count`` faces in shared memory, to be filled."""
        return cls(spec, shared_array((count, *spec.face_shape)), shared_array((count, *spec.extra_masks_shape)))

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all faces and masks."""
        return self.faces.nbytes + self.extra_masks.nbytes

    def take(self, rows: np.ndarray, faces: np.ndarray, extra_masks: np.ndarray) -> None:
        """Copy the faces and masks of ``rows`` to ``faces`` and ``extra_masks``, in that order."""
        np.take(self.faces, rows, axis=0, out=faces, mode="clip")  # mode 'raise' would make a copy
        np.take(self.extra_masks, rows, axis=0, out=extra_masks, mode="clip")


class DeviceStore:
    """The faces of all sides in a device's memory, one tensor with HostStore's shape: a batch is one gather.

    first: (sides,) the first row of each side.
    """

    def __init__(self, sides: Sequence[HostStore], device: torch.device) -> None:
        self.spec = sides[0].spec
        self.first = np.cumsum([0, *map(len, sides)])[:-1]
        self.faces = _upload([side.faces for side in sides], device)
        self.extra_masks = _upload([side.extra_masks for side in sides], device)

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all faces and masks."""
        return self.faces.nbytes + self.extra_masks.nbytes

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the faces and masks of ``rows``, (B,) int64 on the device, counted over all sides."""
        return self.faces.index_select(0, rows), self.extra_masks.index_select(0, rows)


def _upload(sources: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Return arrays concatenated on the device, sent in parts: a mapped file never has to be resident as a whole."""
    result = torch.empty((sum(map(len, sources)), *sources[0].shape[1:]), dtype=torch.uint8, device=device)
    step, offset = max(1, UPLOAD_BYTES // max(1, sources[0][:1].nbytes)), 0
    for source in sources:
        for first in range(0, len(source), step):
            part = np.array(source[first : first + step])  # a copy, since a mapped file is read-only
            result[offset : offset + len(part)].copy_(torch.from_numpy(part))
            offset += len(part)
    return result
