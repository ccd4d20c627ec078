"""A canvas over the face plane, and the curves and falloffs that painting needs."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike

LEFT, TOP, RIGHT, BOTTOM = -1.4, -1.9, 1.4, 2.25  # the part of the face plane a sheet covers
Window = tuple[slice, slice]  # rows and columns
Pair = tuple[float, float]  # x and y
_SHIFT = 6  # OpenCV draws with this many fractional bits
_ONE = 1 << _SHIFT
_ROW = 1024  # cv2.remap needs positions as a sheet narrower than 32768


def lookup(sheet: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a sheet sampled bilinearly.

    sheet: (h, w) or (h, w, channels) float32.
    x, y: (n,), positions in pixels.
    Returns (n,) or (n, channels) float32.
    """
    count = len(x)
    rows = -(-count // _ROW)
    positions = np.zeros((2, rows * _ROW), np.float32)
    positions[0, :count], positions[1, :count] = x, y
    columns, lines = positions.reshape(2, rows, _ROW)
    samples = cv2.remap(sheet, columns, lines, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return samples.reshape(rows * _ROW, *sheet.shape[2:])[:count]


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a smooth ramp of ``x`` from 0 at ``low`` to 1 at ``high``, which may be below ``low``."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def spline(points: ArrayLike, steps: int = 6, closed: bool = False) -> np.ndarray:
    """Return a Catmull-Rom curve through ``points`` (n, 2) with ``steps`` segments between neighbours, (m, 2)."""
    points = np.asarray(points, dtype=np.float64)
    ends = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    padded = np.concatenate([ends[0], points, ends[1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    p0, p1, p2, p3 = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    curve = curve.transpose(1, 0, 2).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


class Canvas:
    """Pixels over the face plane.

    image: (h, w, channels) float32.
    scale: pixels per eye distance.
    Every stroke changes only the window it needs. Points are (n, 2) in the face plane, widths and softness are in eye
    distances, a ``cover`` is (h, w) in 0..1.
    """

    def __init__(self, scale: float, channels: int) -> None:
        self.scale = scale
        self.height, self.width = round((BOTTOM - TOP) * scale), round((RIGHT - LEFT) * scale)
        self.image = np.zeros((self.height, self.width, channels), np.float32)

    @property
    def x(self) -> np.ndarray:
        """Return the columns' positions in the face plane, (1, w)."""
        return (np.arange(self.width, dtype=np.float32)[None, :] + 0.5) / self.scale + LEFT

    @property
    def y(self) -> np.ndarray:
        """Return the rows' positions in the face plane, (h, 1)."""
        return (np.arange(self.height, dtype=np.float32)[:, None] + 0.5) / self.scale + TOP

    def pixel(self, points: ArrayLike) -> np.ndarray:
        """Return face-plane points as pixel positions, pixel centres at integers."""
        return (np.asarray(points, dtype=np.float64) - (LEFT, TOP)) * self.scale - 0.5

    def window(self, points: ArrayLike, margin: float) -> Window:
        """Return the rows and columns within ``margin`` of ``points``."""
        pixels = self.pixel(points)
        low = np.maximum(np.floor(pixels.min(axis=0) - margin * self.scale - 2), 0).astype(int)
        high = np.ceil(pixels.max(axis=0) + margin * self.scale + 3).astype(int)
        return slice(low[1], max(high[1], low[1] + 1)), slice(low[0], max(high[0], low[0] + 1))

    def cover(self, points: ArrayLike, window: Window, soft: float = 0.0, width: float = 0.0) -> np.ndarray:
        """Return the cover of a polygon or, with a ``width``, of the line along ``points``, within ``window``."""
        mask = np.zeros(self.image[window].shape[:2], np.uint8)
        pixels = self.pixel(points) - (window[1].start, window[0].start)
        pixels = np.round(pixels * _ONE).astype(np.int32)
        if width:
            thickness = max(1, round(width * self.scale))
            cv2.polylines(mask, [pixels], False, 255, thickness, cv2.LINE_AA, _SHIFT)
        else:
            cv2.fillPoly(mask, [pixels], 255, cv2.LINE_AA, _SHIFT)
        cover = mask.astype(np.float32) / 255
        sigma = soft * self.scale
        return cv2.GaussianBlur(cover, (0, 0), sigma) if sigma > 0.3 else cover

    def blend(self, window: Window, cover: np.ndarray, colour: ArrayLike) -> None:
        """Blend the window's pixels with ``colour`` by ``cover``."""
        patch = self.image[window]
        patch += (np.asarray(colour, np.float32) - patch) * cover[..., None]

    def fill(
        self,
        points: ArrayLike,
        colour: ArrayLike,
        strength: float = 1.0,
        soft: float = 0.0,
        within: ArrayLike | None = None,
    ) -> None:
        """Fill a polygon with edges blurred by ``soft``, only inside the polygon ``within`` if given."""
        window = self.window(points, 3 * soft)
        cover = self.cover(points, window, soft) * strength
        if within is not None:
            cover *= self.cover(within, window)
        self.blend(window, cover, colour)

    def line(
        self, points: ArrayLike, colour: ArrayLike, width: float, strength: float = 1.0, soft: float = 0.0
    ) -> None:
        """Draw a line of ``width``. A line thinner than a pixel is drawn one pixel wide and fainter."""
        window = self.window(points, width + 3 * soft)
        strength *= min(1.0, width * self.scale)
        self.blend(window, self.cover(points, window, soft, width) * strength, colour)

    def spot(self, centre: Pair | np.ndarray, radius: Pair, colour: ArrayLike, strength: float = 1.0) -> None:
        """Draw a Gaussian spot. radius: (x, y), one standard deviation."""
        reach = np.asarray(radius) * 3.2
        window = self.window(np.array([centre - reach, centre + reach]), 0)
        across = np.exp(-0.5 * ((self.x[:, window[1]] - centre[0]) / radius[0]) ** 2)
        down = np.exp(-0.5 * ((self.y[window[0]] - centre[1]) / radius[1]) ** 2)
        self.blend(window, down * across * np.float32(strength), colour)
