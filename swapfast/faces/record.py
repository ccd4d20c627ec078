"""What a training face is, before its pixels are read."""

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
    """A mask kept in a PNG header.

    data: zlib-compressed rows of uint8, stored_size x stored_size, 0..255. stored_centering: of the crop it was
    made on. affine: rows of the 2x3 or 3x3 matrix frame px -> mask px, interpolator: cv2's flag; both are kept for
    writing and not used in training.
    """

    data: bytes
    stored_size: int
    stored_centering: str
    affine: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    interpolator: int = 1

    def pixels(self) -> np.ndarray:
        """(stored_size, stored_size) uint8. Raises ValueError if the data are not just that; inflates no more."""
        expected = self.stored_size**2
        inflater = zlib.decompressobj()
        try:
            plain = inflater.decompress(self.data, expected + 1)
        except zlib.error as error:
            raise ValueError("mask data that are not valid zlib") from error
        if len(plain) != expected or not inflater.eof:
            more = "more than " if len(plain) > expected else "" if inflater.eof else "a truncated stream of "
            raise ValueError(f"{more}{min(len(plain), expected)} bytes, expected {expected}")
        return np.frombuffer(plain, np.uint8).reshape(self.stored_size, self.stored_size)


@dataclass(frozen=True, eq=False)
class FaceRecord:
    """One face and where it lies.

    kind: "head", a faceswap PNG that shows the aligned head, "plain", any picture with landmarks beside it, or
    "prepared", a crop at training size in a prepared set (see prepared.py).
    width, height: of the picture in the file, px. landmarks: (68, 2) float32 in FRAME px: of the frame a head was
    cut from, of the picture itself for plain and prepared. mask_file: plain only, the mask beside the picture.
    notes: what decoding will change, such as "alpha dropped". encoding: of the picture's file. content: 16 bytes that
    tell this face from any other, its landmarks and mask included; pixels: 8 bytes from the picture alone, which stay
    when a mask or other header entry changes. Both empty where nobody has looked. cut: prepared only, the crop that
    the picture shows.
    """

    path: Path
    kind: Literal["head", "plain", "prepared"]
    width: int
    height: int
    landmarks: np.ndarray
    alignment: Alignment
    stored_masks: Mapping[str, StoredMask] = field(default_factory=dict)
    mask_file: Path | None = None
    notes: tuple[str, ...] = ()
    encoding: Literal["png", "jpeg", "raw"] = "png"
    content: bytes = b""
    pixels: bytes = b""
    cut: CropConfig | None = None
