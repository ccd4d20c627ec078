"""Maps of the hair around the head: where it grows, its thickness and its strands."""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import lookup, smoothstep
from .identity import Identity

_LONGITUDES = np.radians([0, 35, 55, 70, 82, 100, 180])
_TOP, _BOTTOM = -2.0, 1.9


def noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, float]) -> np.ndarray:
    """Return smooth noise, (h, w), with a standard deviation of about 1.

    cells: number of features over the sheet, vertically and horizontally.
    """
    coarse = rng.normal(size=[max(2, round(count) + 2) for count in cells]).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC) * 1.3


class HairMap:
    """Sheets of hair over (y, longitude), longitude -pi..pi.

    cover: (h, w) in 0..1.
    radius: (h, w), thickness of the hair relative to the head's radius.
    slope: (h, w, 2), change of the radius by longitude and by y.
    tone: (h, w), brightness of the strands, about 1.
    """

    def __init__(self, identity: Identity, size: int) -> None:
        rng = np.random.default_rng(identity.key)
        hair = identity.hair
        shape = (max(96, round(1.3 * size)), max(192, round(2.6 * size)))
        self.shape = shape
        y = np.linspace(_TOP, _BOTTOM, shape[0], dtype=np.float32)[:, None]
        longitude = np.linspace(-np.pi, np.pi, shape[1], dtype=np.float32)[None, :]
        strands = self._strands(rng, shape, hair.curl, hair.part)
        shifted = np.abs(longitude + 0.25 * hair.part * np.exp(-((longitude / 0.7) ** 2)))
        hairline = np.interp(shifted, _LONGITUDES, hair.hairline).astype(np.float32)
        above = hairline - y + 0.03 * noise(rng, (1, shape[1]), (1, 70)) + 0.05 * strands
        self.cover = smoothstep(above, -0.05, 0.12).astype(np.float32)
        body = smoothstep(above, -0.02, 0.30 + hair.thickness)
        lumps = noise(rng, shape, (22, 34)) * smoothstep(y, -1.7, -1.3)
        radius = hair.thickness * body * (1 + hair.curl * 0.16 * lumps) + 0.006 * strands * self.cover
        self.radius = radius.astype(np.float32)
        down, across = np.gradient(cv2.GaussianBlur(self.radius, (0, 0), 0.7))
        self.slope = np.dstack([across * shape[1] / (2 * np.pi), down * shape[0] / (_BOTTOM - _TOP)]).astype(np.float32)
        self.slope = np.clip(self.slope, -0.9, 0.9)
        tone = 1 + 0.16 * strands + hair.curl * 0.18 * lumps
        self.tone = np.clip(tone, 0.35, 1.8).astype(np.float32)

    @staticmethod
    def _strands(rng: np.random.Generator, shape: tuple[int, int], curl: float, part: float) -> np.ndarray:
        fine = noise(rng, shape, (5 + 25 * curl, 300)) * 0.6 + noise(rng, shape, (3 + 20 * curl, 100)) * 0.45
        rows, columns = np.indices(shape, dtype=np.float32)
        wave = curl * 6 * np.sin(rows / shape[0] * 40 + columns / shape[1] * 30)
        sweep = part * 0.12 * rows * shape[1] / shape[0]
        return cv2.remap(fine, columns + wave + sweep, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)

    def lookup(self, sheet: np.ndarray, longitude: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return ``sheet`` sampled at (n,) longitudes in rad and heights in eye distances."""
        columns = (longitude + np.float32(np.pi)) * np.float32((self.shape[1] - 1) / (2 * np.pi))
        rows = (y - np.float32(_TOP)) * np.float32((self.shape[0] - 1) / (_BOTTOM - _TOP))
        return lookup(sheet, columns, rows)
