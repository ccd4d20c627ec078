"""Describes a training face without its pixels."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from swapfast.config import CropConfig
from swapfast.faces.alignment import Alignment

MAX_STORED_SIZE = 4096


@dataclass(frozen=True)
class StoredMask:
    """A mask stored in a PNG header.

    data: zlib-compressed rows of uint8, stored_size x stored_size, 0..255.
    stored_centering: centering of the crop that the mask was made on.
    affine: rows of the 2x3 or 3x3 matrix frame px -> mask px; only for writing.
    interpolator: cv2's flag; only for writing.
    """

    data: bytes
    stored_size: int
    stored_centering: str
    affine: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    interpolator: int = 1

    def pixels(self) -> np.ndarray:
        """Return the decompressed mask, (stored_size, stored_size) uint8.

        Raises ValueError if the data have another length. At most one byte more than expected is decompressed.
        """
        expected = self.stored_size**2
        inflater = zlib.decompressobj()
        try:
            plain = inflater.decompress(self.data, expected + 1)
        except zlib.error as error:
            raise ValueError("mask data that are not valid zlib") from error
        if len(plain) != expected or not inflater.eof:
            problem = "more than " if len(plain) > expected else "" if inflater.eof else "a truncated stream of "
            raise ValueError(f"{problem}{min(len(plain), expected)} bytes, expected {expected}")
        return np.frombuffer(plain, np.uint8).reshape(self.stored_size, self.stored_size)


@dataclass(frozen=True, eq=False)
class FaceRecord:
    """One face: its file, landmarks, alignment and masks.

    kind: "head" is a faceswap PNG of an aligned head; "plain" is any picture with landmarks beside it; "prepared" is a
        crop at training size in a prepared set (prepared.py).
    width, height: size of the picture in the file, px.
    landmarks: (68, 2) float32 in px of the frame. A head's frame is the picture it was cut from; the frame of a plain
        or prepared face is the picture itself.
    mask_file: plain only, the mask beside the picture.
    unusable_mask: plain only, the name of a mask file that cannot be used, and why; it matters with mask type file.
    notes: what decoding changes, such as "alpha dropped".
    encoding: file format of the picture.
    content: 16-byte digest of the picture, landmarks and masks; empty if unknown.
    pixels: 8-byte digest of the picture alone, which stays when a mask or the header changes; empty if unknown.
    crop: prepared only, the crop that the picture shows.
    """

    path: Path
    kind: Literal["head", "plain", "prepared"]
    width: int
    height: int
    landmarks: np.ndarray
    alignment: Alignment
    stored_masks: Mapping[str, StoredMask] = field(default_factory=dict)
    mask_file: Path | None = None
    unusable_mask: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()
    encoding: Literal["png", "jpeg", "raw"] = "png"
    content: bytes = b""
    pixels: bytes = b""
    crop: CropConfig | None = None
