"""The camera, and the buffer of what it sees nearest: depth, normal, colour, openness, mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .canvas import Window

EYE_DISTANCE = 0.192  # of the picture's side, so that the head takes about 70 % of the height
CAMERA_DISTANCE = 16.0  # eye distances from the origin
_OVER = 2  # samples per pixel and axis
_EYES_AT = 0.475  # of the picture's height


@dataclass(frozen=True)
class Camera:
    """Projects world space to a picture of ``size`` px, and pixels to rays."""

    size: int
    zoom: float

    @property
    def focal(self) -> float:
        """Return the focal length in px."""
        return self.size * EYE_DISTANCE * self.zoom * CAMERA_DISTANCE

    @property
    def eye(self) -> np.ndarray:
        """Return the camera's position in world space, (3,)."""
        return np.array([0.0, 0.0, CAMERA_DISTANCE])

    @property
    def centre(self) -> np.ndarray:
        """Return the principal point in px, (2,)."""
        return np.array([0.5, _EYES_AT]) * self.size - 0.5

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return the pixels of (n, 3) world points, (n, 2)."""
        return self.centre + self.focal * points[:, :2] / (CAMERA_DISTANCE - points[:, 2:])

    def rays(self, rows: slice, columns: slice) -> np.ndarray:
        """Return unit directions from the camera through the samples of a window, (h, w, 3)."""
        x = ((np.arange(columns.start, columns.stop) + 0.5) / _OVER - 0.5 - self.centre[0]) / self.focal
        y = ((np.arange(rows.start, rows.stop) + 0.5) / _OVER - 0.5 - self.centre[1]) / self.focal
        rays = np.empty((len(y), len(x), 3), np.float32)
        rays[..., 0], rays[..., 1], rays[..., 2] = x[None, :], y[:, None], -1
        return rays / np.linalg.norm(rays, axis=2, keepdims=True)

    def window(self, centre: np.ndarray, reach: np.ndarray) -> Window:
        """Return the samples that can see a box around ``centre``: rows, columns. reach: its half-size (x, y)."""
        middle = self.project(centre[None])[0]
        half = self.focal * np.asarray(reach) / (CAMERA_DISTANCE - centre[2] - max(reach))
        low = np.clip(np.floor((middle - half) * _OVER), 0, self.size * _OVER - 2).astype(int)
        high = np.clip(np.ceil((middle + half) * _OVER) + 1, low + 2, self.size * _OVER).astype(int)
        return slice(low[1], high[1]), slice(low[0], high[0])


class Buffer:
    """The nearest surface at each of n samples, row by row.

    distance: (n,), along the ray.
    normal: (n, 3).
    colour: (n, 4), linear BGR and gloss.
    open: (n, 2), openness to the sky and to the key light.
    mask: (n,), the face mask.
    """

    def __init__(self, size: int) -> None:
        self.side = size * _OVER
        count = self.side**2
        self.distance = np.full(count, np.inf, np.float32)
        self.normal = np.zeros((count, 3), np.float32)
        self.colour = np.zeros((count, 4), np.float32)
        self.open = np.zeros((count, 2), np.float32)
        self.mask = np.zeros(count, np.float32)

    def numbers(self, window: Window) -> np.ndarray:
        """Return the sample numbers of a window, (h * w,)."""
        rows, columns = (np.arange(part.start, part.stop) for part in window)
        return (rows[:, None] * self.side + columns).ravel()

    def nearer(self, samples: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Return which of ``samples`` are visible at ``distance``, (n,) bool."""
        return distance < self.distance[samples]

    def put(
        self,
        samples: np.ndarray,
        distance: np.ndarray,
        normal: np.ndarray,
        colour: np.ndarray,
        opened: np.ndarray,
        mask: ArrayLike,
    ) -> None:
        """Write visible samples."""
        self.distance[samples] = distance
        self.normal[samples] = normal
        self.colour[samples] = colour
        self.open[samples] = opened
        self.mask[samples] = mask
