"""Reads a picture as a frame, and writes it again in its own format, depth and channels.

    read                            written
    PNG, 8 or 16 bits, alpha        the same
    PNG, gray or of a palette       gray as gray, a palette as colours, its transparency as alpha
    JPEG                            JPEG, quality 95, its own chroma subsampling; gray as gray, four inks as colours
The EXIF orientation is not applied, as in training: landmarks are in stored pixels. It goes into the new file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from swapfast.errors import SwapfastError
from swapfast.faces import png
from swapfast.faces.bare_png import reduce_png
from swapfast.faces.cmyk import decode_inks, has_four_inks
from swapfast.faces.image import decode_image, read_bytes, read_gray
from swapfast.faces.reader import PictureInfo, picture_info
from swapfast.swap.marking import kept_of_jpeg, kept_of_png, mark_jpeg, mark_png, subsampling
from swapfast.swap.png_writer import encode_pixels

JPEG_QUALITY = 95
_PALETTE, _GRAYS = 3, (0, 4)


@dataclass(frozen=True, eq=False)
class PictureOrigin:
    """What of a picture's file its pixels do not tell.

    data: the file as it is. info: its header. is_gray: it is written as gray. kept: colour profile, EXIF data.
    """

    path: Path
    data: bytes
    info: PictureInfo
    is_gray: bool
    kept: bytes
    sampling: int = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420

    @property
    def is_png(self) -> bool:
        """Whether the file is a PNG, whatever its name says."""
        return isinstance(self.info, png.PngInfo)


class PictureDecoder(Protocol):
    """Decodes several pictures at once, in another way than ``decode_picture``."""

    def takes(self, origin: PictureOrigin) -> bool:
        """Return whether it decodes a picture to the pixels that ``Frame`` has: 8 bits, three channels."""

    def __call__(self, pictures: Sequence[PictureOrigin]) -> list[np.ndarray | None]:
        """Return the pixels of each picture, (H, W, 3) uint8 BGR; None where they cannot be decoded."""


def read_picture(path: Path) -> tuple[np.ndarray, PictureOrigin]:
    """Return a picture's pixels, as of ``Frame``, and its origin. Raises ValueError with a short reason."""
    origin = read_origin(path)
    return decode_picture(origin), origin


def read_origin(path: Path) -> PictureOrigin:
    """Return a picture's file and what its header says. Raises ValueError with a short reason."""
    data = read_bytes(path)
    if not data:
        raise ValueError("empty (zero bytes)")
    info = picture_info(data, path.suffix.lower())
    if isinstance(info, png.PngInfo):
        return PictureOrigin(path, data, info, info.colour_type in _GRAYS, kept_of_png(data))
    kept = kept_of_jpeg(data, keeps_profile=not has_four_inks(data)[0])
    return PictureOrigin(path, data, info, info.components == 1, kept, subsampling(data))


def decode_picture(origin: PictureOrigin) -> np.ndarray:
    """Return the pixels of a picture, as of ``Frame``. Raises ValueError with a short reason."""
    if isinstance(origin.info, png.PngInfo):
        return _decode_png(origin.data, origin.info)
    four_inks, adobe = has_four_inks(origin.data)
    return decode_inks(origin.data, adobe) if four_inks else decode_image(origin.data)


def _decode_png(data: bytes, info: png.PngInfo) -> np.ndarray:
    if info.transparent and info.bit_depth <= 8:
        return _decode_transparent(data)
    if info.bit_depth <= 8:
        return decode_image(data)
    pixels = cv2.imdecode(np.frombuffer(reduce_png(data), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("pixels that cannot be decoded")
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    return cv2.cvtColor(pixels[..., 0], cv2.COLOR_GRAY2BGR) if pixels.shape[2] == 2 else pixels


def _decode_transparent(data: bytes) -> np.ndarray:
    """Return a PNG with an alpha channel, a transparent colour or a palette with alpha, (H, W, 4) uint8 BGRA."""
    try:
        return _by_pillow(data)
    except ValueError:  # Pillow refuses texts and profiles beside the pixels that are long
        return _by_pillow(reduce_png(data, keeps_transparency=True))


def _by_pillow(data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            colours = np.asarray(picture.convert("RGBA"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("pixels that cannot be decoded") from error
    return cv2.cvtColor(colours, cv2.COLOR_RGBA2BGRA)


def encode_png(pixels: np.ndarray, is_gray: bool = False, kept: bytes = b"", is_synthetic: bool = True) -> bytes:
    """Return a PNG of (H, W), (H, W, 3) or (H, W, 4) pixels of 8 or 16 bits, marked where it is synthetic."""
    if is_gray and pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    return mark_png(encode_pixels(pixels), kept, is_synthetic)


def encode_picture(
    pixels: np.ndarray, origin: PictureOrigin, as_png: bool | None = None, is_synthetic: bool = True
) -> bytes:
    """Return a swapped frame in the format of its origin, marked where it is synthetic.

    as_png: whether to write a PNG or a JPEG in place of the origin's own. A JPEG drops alpha and has 8 bits.
    """
    kept = origin.kept if as_png is None or as_png == origin.is_png else b""
    if origin.is_png if as_png is None else as_png:
        return encode_png(pixels, origin.is_gray, kept, is_synthetic)
    pixels = pixels[..., :3]
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if origin.is_gray:
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_BGR2GRAY)
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, origin.sampling]
    return mark_jpeg(cv2.imencode(".jpg", pixels, quality)[1].tobytes(), kept, is_synthetic)


def read_gray_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return a mask's picture, (H, W) uint8. Raises SwapfastError where it is damaged or of another size."""
    try:
        pixels = read_gray(path)
    except ValueError as error:
        raise SwapfastError(f"{path}: {error}; mend it, or leave it out") from error
    if pixels.shape[::-1] != size:
        raise SwapfastError(
            f"{path}: the mask is {pixels.shape[1]}x{pixels.shape[0]} px, its frame {size[0]}x{size[1]}; make it again"
        )
    return pixels
