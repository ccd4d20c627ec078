"""Pixels of a decoded frame: its planes as BGR, and changed pixels back into copies of the planes.

    planes   (h, w) uint8 or uint16 each, as FFmpeg decoded them: luma, U, V and alpha; or G, B, R and alpha
    pixels   (H, W, 3) BGR or (H, W, 4) BGRA; uint8 of 8-bit video, uint16 over the whole 0..65535 of deeper video
    box      x0, y0, x1, y1 of a frame, px, the last two outside: what is converted, the rest of the pixels is black

Pixels that nobody changed keep their luma to the bit, and their chroma where no neighbour within the same sample
changed: nothing is converted there and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.video.probe import ColourTags

Box = tuple[int, int, int, int]

# Red and blue in luma, by the matrix number of ITU-T H.273.
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
_WEIGHTS |= {9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
HD_HEIGHT = 720  # rows from which untagged video is BT.709, as players have it
# Packed and half-packed formats, and the planar ones of the same samples.
_PLANAR = {
    "nv12": "yuv420p",
    "nv21": "yuv420p",
    "nv16": "yuv422p",
    "nv24": "yuv444p",
    "nv42": "yuv444p",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "yvyu422": "yuv422p",
    "uyyvyy411": "yuv444p",
    "yuv411p": "yuv444p",
    "yuvj411p": "yuv444p",
    "yuv410p": "yuv444p",
    "p010le": "yuv420p10le",
    "p012le": "yuv420p12le",
    "p016le": "yuv420p16le",
    "p210le": "yuv422p10le",
    "p410le": "yuv444p10le",
    "y210le": "yuv422p10le",
    "y212le": "yuv422p12le",
    "ayuv64le": "yuva444p16le",
    "monow": "gray",
    "monob": "gray",
}


@dataclass(frozen=True)
class PlaneFormat:
    """How the planes of a working format lie.

    name       FFmpeg's, such as 'yuv420p10le'
    bits       of a sample
    halves_x, halves_y  whether chroma has half the columns, half the rows
    is_rgb, is_gray, has_alpha
    """

    name: str
    bits: int
    halves_x: bool
    halves_y: bool
    is_rgb: bool
    is_gray: bool
    has_alpha: bool

    @property
    def peak(self) -> int:
        """Return the largest value of a channel of ``pixels``."""
        return 255 if self.bits == 8 else 65535

    @property
    def dtype(self) -> type:
        """Return the type of plane and pixel values."""
        return np.uint8 if self.bits == 8 else np.uint16


@lru_cache(maxsize=64)
def working_format(pix_fmt: str) -> PlaneFormat:
    """Return the planar format that frames of ``pix_fmt`` become. Raises SwapfastError where there is none."""
    from av import VideoFormat

    name = pix_fmt.removesuffix("be") + ("le" if pix_fmt.endswith("be") else "")
    name = _PLANAR.get(name, name)
    format = VideoFormat(name)
    parts = format.components
    bits = max(part.bits for part in parts)
    has_alpha = any(part.is_alpha for part in parts) or format.has_palette
    is_rgb = format.is_rgb or format.has_palette or name.startswith("ya")
    if is_rgb and not name.startswith(("gbrp", "gbrap")):
        name = f"gbr{'a' if has_alpha else ''}p{'' if bits <= 8 else '16le'}"
        bits = 8 if bits <= 8 else 16
    is_plain = is_rgb or name.startswith(("yuv", "gray"))
    if not is_plain or not 8 <= bits <= 16 or "f16" in name or "f32" in name or "msb" in name:
        raise SwapfastError(f"pixels of the kind {pix_fmt} are not read; convert the video to yuv420p first")
    is_gray = name.startswith("gray")
    sample, has_chroma = VideoFormat(name, 64, 64), not is_rgb and not is_gray
    halves_x, halves_y = has_chroma and sample.chroma_width() == 32, has_chroma and sample.chroma_height() == 32
    return PlaneFormat(name, bits, halves_x, halves_y, is_rgb, is_gray, has_alpha and not is_gray)


def planes_of(frame: Any, format: PlaneFormat) -> list[np.ndarray]:
    """Return the planes of PyAV's frame in the working format. They are views: not to be written to."""
    if frame.format.name != format.name and not _same_samples(frame.format.name, format.name):
        frame = frame.reformat(format=format.name)
    return [_plane(plane, format) for plane in frame.planes]


def _same_samples(first: str, second: str) -> bool:
    return first.replace("yuvj", "yuv") == second.replace("yuvj", "yuv")


def _plane(plane: Any, format: PlaneFormat) -> np.ndarray:
    values: np.ndarray = np.frombuffer(plane, format.dtype)
    rows = values.reshape(-1, plane.line_size // values.itemsize)
    return rows[: plane.height, : plane.width]


def frame_of(planes: list[np.ndarray], name: str, width: int, height: int) -> Any:
    """Return planes as a new frame of PyAV's. name: its format."""
    from av import VideoFrame

    frame = VideoFrame(width, height, name)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows: Any = np.frombuffer(plane, values.dtype)  # type: ignore[call-overload]
        target = rows.reshape(-1, plane.line_size // values.itemsize)
        high, wide = values.shape
        target[:high, :wide] = values
        target[:high, wide:] = target[high:] = 0  # x264 reads what pads the rows too, and its decisions depend on it
    return frame


def part_of(box: Box) -> tuple[slice, slice]:
    """Return the rows and columns of a box."""
    x0, y0, x1, y1 = box
    return slice(y0, y1), slice(x0, x1)


class Conversion:
    """Planes of one format and one set of colour tags to pixels and back.

    format: how the planes lie. tags: the video's. height: px as stored; it decides where the matrix is not tagged.
    """

    def __init__(self, format: PlaneFormat, tags: ColourTags, height: int) -> None:
        self.format = format
        red, blue = _WEIGHTS.get(tags.matrix) or _WEIGHTS[1 if height >= HD_HEIGHT else 5]
        green = 1 - red - blue
        top = (1 << format.bits) - 1
        is_full = tags.range == 2 or (tags.range == 0 and (format.is_gray or format.name.startswith("yuvj")))
        step = 1 << (format.bits - 8)
        low, luma, chroma = (0, top, top) if is_full else (16 * step, 219 * step, 224 * step)
        middle, peak = 128 * step, format.peak
        to_red, to_blue = 2 * (1 - red) * peak / chroma, 2 * (1 - blue) * peak / chroma
        forward = [low, middle, peak / luma, to_red, -to_blue * blue / green, -to_red * red / green, to_blue]
        weights = np.array([blue, green, red])
        u = (np.array([1, 0, 0]) - weights) / (2 * (1 - blue)) * chroma / peak
        v = (np.array([0, 0, 1]) - weights) / (2 * (1 - red)) * chroma / peak
        self._forward = np.array(forward, np.float32)
        self._back = np.concatenate([[low], weights * luma / peak, u, v]).astype(np.float32)
        self._top = top

    def to_pixels(self, planes: list[np.ndarray], box: Box | None = None) -> np.ndarray:
        """Return new pixels, (H, W, 3), or (H, W, 4) where there is alpha. box: None for all of them."""
        format = self.format
        height, width = planes[0].shape
        channels = 4 if format.has_alpha else 3
        # Zeros that nobody touches take neither time nor memory.
        pixels: np.ndarray = (np.empty if box is None else np.zeros)((height, width, channels), format.dtype)
        box = box or (0, 0, width, height)
        inside = part_of(box)
        if format.is_rgb:
            for channel, plane in zip((1, 0, 2), planes):
                pixels[inside][..., channel] = self._widened(plane[inside])
        else:
            from swapfast.video.kernels import planes_to_bgr

            halves, factors = (format.halves_x, format.halves_y), self._forward
            planes_to_bgr(*self._yuv(planes), *halves, factors, format.peak, np.array(box), pixels)
        if format.has_alpha:
            pixels[inside][..., 3] = self._widened(planes[3][inside])
        return pixels

    def changed(
        self, planes: list[np.ndarray], old: np.ndarray, new: np.ndarray, box: Box | None = None
    ) -> list[np.ndarray]:
        """Return planes that differ where ``new`` differs from ``old``, which is ``to_pixels(planes, box)``."""
        planes = [plane.copy() for plane in planes]
        height, width = planes[0].shape
        box = box or (0, 0, width, height)
        inside = part_of(box)
        if self.format.is_rgb:
            for channel, plane in zip((1, 0, 2), planes):
                self._put(plane[inside], old[inside][..., channel], new[inside][..., channel])
        else:
            from swapfast.video.kernels import put_changes

            halves = self.format.halves_x, self.format.halves_y
            put_changes(new, old, *self._yuv(planes), *halves, self._back, self._top, np.array(box))
        if self.format.has_alpha:
            self._put(planes[3][inside], old[inside][..., 3], new[inside][..., 3])
        return planes

    def to_planes(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return the planes of (H, W, 3 or 4) pixels: black ones, changed everywhere. (H, W) is gray."""
        format = self.format
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        if format.is_rgb:
            planes: list[np.ndarray] = [np.zeros(pixels.shape[:2], format.dtype) for _ in range(3 + format.has_alpha)]
            return self.changed(planes, np.zeros_like(pixels), pixels)
        height, width = pixels.shape[:2]
        chroma = ((height + format.halves_y) >> format.halves_y, (width + format.halves_x) >> format.halves_x)
        low, middle = int(self._forward[0]), int(self._forward[1])
        sizes = [((height, width), low), (chroma, middle), (chroma, middle)]
        sizes = sizes[:1] if format.is_gray else sizes
        sizes += [((height, width), 0)] if format.has_alpha else []
        planes = [np.full(size, value, format.dtype) for size, value in sizes]
        return self.changed(planes, np.zeros_like(pixels), pixels)

    def _yuv(self, planes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self.format.is_gray:
            return planes[0], planes[1], planes[2]
        # Gray has no chroma: the same constant for all rows and columns, which nothing can change.
        nothing = np.full(planes[0].shape, self._forward[1], planes[0].dtype)
        return planes[0], nothing, nothing.copy()

    def _widened(self, plane: np.ndarray) -> np.ndarray:
        if self._top == self.format.peak:
            return plane
        return np.rint(plane * (self.format.peak / self._top)).astype(self.format.dtype)

    def _put(self, plane: np.ndarray, old: np.ndarray, new: np.ndarray) -> None:
        where = new != old
        plane[where] = np.rint(new[where] * (self._top / self.format.peak)).astype(plane.dtype)
