"""The surface of the head: an egg shaped by the 68 points, with relief in front and hair around it.

Head space: x right on the picture, y down, z towards the viewer, in eye distances, the eyes' line at y = 0. A point
(x, y, z) lies on the bald head if X^2 + Y^2 + Z^2 = 1 for

    X = x / width(y)      Y = egg(y)      Z = (z - lean(y) - relief(x, y)) / DEPTH

so the relief never moves the face plane's (x, y), and a point's depth is read off directly.
Hair adds to the radius: ``|XYZ| = 1 + hair(longitude, y)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from . import template
from .canvas import LEFT, TOP, Canvas, Pair, lookup, smoothstep
from .hair import HairMap
from .identity import Shape
from .scene import Expression

DEPTH = 1.35
CROWN = 1.72  # the crown lies this far above the eyes' line
_SLOPE = 0.32  # of egg(y) at the eyes' line; smaller is boxier
_JAW_Z = 0.15  # the jaw's points sit just before the silhouette
_LEAN = 0.50  # how far the chin stands before an upright egg


@dataclass
class Hits:
    """Intersections of rays with the head.

    rays: (n,), numbers of the rays.
    t: (n,), depth along the ray.
    x, y: (n,), head space.
    longitude: (n,), rad.
    egg_z: (n,), Z of the unit egg.
    normal: (n, 3), outward, in head space.
    """

    rays: np.ndarray
    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    longitude: np.ndarray
    egg_z: np.ndarray
    normal: np.ndarray


class Head:
    """The surface of one head.

    points: (68, 2) in the face plane, with the expression.
    scale: pixels of its sheets per eye distance.
    """

    def __init__(self, points: np.ndarray, shape: Shape, expression: Expression, hair: HairMap, scale: float):
        self.points, self.hair = points, hair
        self.chin = float(points[8, 1])
        self.width = self._fitted_width(shape)
        self.width_slope = np.polyder(self.width)
        sheet = Canvas(scale, 1)
        self.scale = scale
        relief = _relief(sheet.x, sheet.y, points, shape, expression)
        half_width = np.polyval(self.width, sheet.y)
        egg_z = np.sqrt(np.clip(1 - (sheet.x / half_width) ** 2 - self.egg(sheet.y) ** 2, 0, None))
        self.relief = np.ascontiguousarray(relief * smoothstep(egg_z, 0.05, 0.45), dtype=np.float32)
        self.front = (self.lean(sheet.y) + DEPTH * egg_z + self.relief).astype(np.float32)
        down, across = np.gradient(self.relief)
        self.relief_slope = np.dstack([across, down]).astype(np.float32) * scale

    def _fitted_width(self, shape: Shape) -> np.ndarray:
        """Return half the egg's width along y as a polynomial, which rays evaluate quickly."""
        jaw = self.points[template.JAW]
        half = (jaw[:8] * (-1, 1) + jaw[:8:-1]) / 2
        widths = half[:, 0] / np.sqrt(1 - self.egg(half[:, 1]) ** 2)
        skull = half[0, 0] * np.array([1.02, 1.045, 1.05, 1.02])
        return np.polyfit(np.r_[half[:, 1], -0.4, -0.9, -1.4, -1.9], np.r_[widths, skull], 5).astype(np.float32)

    def egg(self, y: np.ndarray) -> np.ndarray:
        """Return Y of the unit egg: -1 at the crown, 0 at the eyes, 1 under the chin."""
        half = np.where(y > 0, np.float32(self.chin), np.float32(CROWN))
        return y * (np.float32(_SLOPE) + (1 / half - np.float32(_SLOPE)) * np.square(y / half))

    def _egg_slope(self, y: np.ndarray) -> np.ndarray:
        half = np.where(y > 0, np.float32(self.chin), np.float32(CROWN))
        part = y / half
        return _SLOPE + 3 * (1 / half - _SLOPE) * part * part

    @staticmethod
    def lean(y: np.ndarray) -> np.ndarray:
        """Return how far the egg is pushed forward at ``y``: a chin is in front of the ears."""
        return np.float32(_LEAN) * np.clip((y - 0.3) / 1.55, 0, 1.3) ** 2

    @staticmethod
    def _lean_slope(y: np.ndarray) -> np.ndarray:
        return np.float32(2 * _LEAN / 1.55) * np.clip((y - 0.3) / 1.55, 0, 1.3)

    def landmarks(self) -> np.ndarray:
        """Return the 68 points on the surface in head space, (68, 3)."""
        x, y = self.points.T.copy()
        ramp = np.linspace(0, self.chin, 2049)
        jaw_x, jaw_y = x[template.JAW] / np.polyval(self.width, y[template.JAW]), self.egg(y[template.JAW])
        inward = np.sqrt(1 - _JAW_Z**2) / np.hypot(jaw_x, jaw_y)
        y[template.JAW] = np.interp(jaw_y * inward, self.egg(ramp), ramp)
        x[template.JAW] = jaw_x * inward * np.polyval(self.width, y[template.JAW])
        egg_z = np.sqrt(np.clip(1 - (x / np.polyval(self.width, y)) ** 2 - self.egg(y) ** 2, 0, None))
        relief = self.sample(self.relief, x, y)
        return np.stack([x, y, self.lean(y) + DEPTH * egg_z + relief], axis=1)

    def sample(self, sheet: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return a sheet over the face plane, such as ``relief``, sampled at (n,) ``x``, ``y``."""
        return lookup(sheet, (x - LEFT) * self.scale - 0.5, (y - TOP) * self.scale - 0.5)

    def _outside(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the distance outside the surface in radii, then X, Y, Z and the longitude."""
        big_x = x / np.polyval(self.width, np.clip(y, -1.9, self.chin))
        big_y = self.egg(y)
        big_z = (z - self.lean(y) - self.sample(self.relief, x, y)) / np.float32(DEPTH)
        longitude = np.arctan2(big_x, big_z)
        radius = np.sqrt(big_x * big_x + big_y * big_y + big_z * big_z)
        return radius - 1 - self.hair.lookup(self.hair.radius, longitude, y), big_x, big_y, big_z, longitude

    def trace(self, origin: np.ndarray, rays: np.ndarray, near: float, far: float) -> Hits:
        """Return the intersections of unit rays (h, w, 3) from ``origin`` with the surface, for near < t < far.

        A quarter of the rays is sphere-traced. All rays near a hit then start just in front of it and converge by the
        secant method.
        """
        h, w = rays.shape[:2]
        coarse = rays[::2, ::2]
        starts = self._walk(origin, coarse.reshape(-1, 3).T.copy(), near, far).reshape(coarse.shape[:2])
        starts = cv2.erode(starts, np.ones((3, 3), np.uint8))
        doubled = (2 * coarse.shape[1], 2 * coarse.shape[0])
        t = cv2.resize(starts, doubled, interpolation=cv2.INTER_LINEAR)[:h, :w].ravel()
        ray_indices = np.flatnonzero(t < far - 0.01)
        rays, t = rays.reshape(-1, 3)[ray_indices].T.copy(), t[ray_indices]
        last_gap = self._outside(*_along(origin, rays, t))[0]
        step = last_gap
        for _ in range(3):
            t = np.clip(t + step, near, far)
            gap = self._outside(*_along(origin, rays, t))[0]
            # A secant step, limited to between half a plain step and three for rays that almost graze the surface.
            gain = np.clip(step / np.where(np.abs(last_gap - gap) < 1e-6, 1e-6, last_gap - gap), 0.5, 3.0)
            last_gap, step = gap, gap * gain
        t = np.clip(t + step, near, far)
        x, y, z = _along(origin, rays, t)
        outside, big_x, big_y, big_z, longitude = self._outside(x, y, z)
        hit = np.zeros(h * w, np.uint8)
        hit[ray_indices] = (np.abs(outside) < 0.025) & (t < far - 1e-3)
        hit = cv2.morphologyEx(hit.reshape(h, w), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)).ravel()
        is_hit = hit[ray_indices] > 0
        t, x, y, longitude = (values[is_hit] for values in (t, x, y, longitude))
        big_x, big_y, big_z = (values[is_hit] for values in (big_x, big_y, big_z))
        normal = self._normal(x, y, big_x, big_y, big_z, longitude)
        return Hits(ray_indices[is_hit], t, x, y, longitude, big_z, normal)

    def _walk(self, origin: np.ndarray, rays: np.ndarray, near: float, far: float) -> np.ndarray:
        t = np.full(rays.shape[1], near, np.float32)
        for _ in range(16):
            t = np.minimum(t + 0.85 * self._outside(*_along(origin, rays, t))[0], np.float32(far))
        return t

    def _normal(
        self,
        x: np.ndarray,
        y: np.ndarray,
        big_x: np.ndarray,
        big_y: np.ndarray,
        big_z: np.ndarray,
        longitude: np.ndarray,
    ) -> np.ndarray:
        """Return the normalised gradient of the distance in ``_outside``."""
        width = np.polyval(self.width, np.clip(y, -1.9, self.chin))
        slope = self.sample(self.relief_slope, x, y)
        forward = big_z / np.float32(DEPTH)
        gx = big_x / width - forward * slope[:, 0]
        gy = big_y * self._egg_slope(y) - big_x * big_x * np.polyval(self.width_slope, y) / width
        gy = gy - forward * (self._lean_slope(y) + slope[:, 1])
        gz = forward
        turn = 1 / np.maximum(big_x * big_x + big_z * big_z, 0.02)
        around, down = self.hair.lookup(self.hair.slope, longitude, y).T
        gx, gy, gz = gx - around * big_z * turn / width, gy - down, gz + around * big_x * turn / np.float32(DEPTH)
        return np.stack([gx, gy, gz], axis=1) / np.maximum(np.sqrt(gx * gx + gy * gy + gz * gz), 1e-6)[:, None]


def _along(origin: np.ndarray, rays: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the points at ``t`` (n,) along ``rays`` (3, n), as x, y, z."""
    return tuple(np.float32(origin[axis]) + rays[axis] * t for axis in range(3))


def _bump(x: np.ndarray, y: np.ndarray, centre: Pair | np.ndarray, radius: Pair, height: float) -> np.ndarray:
    return (
        np.float32(height)
        * np.exp(-0.5 * ((y - centre[1]) / radius[1]) ** 2)
        * np.exp(-0.5 * ((x - centre[0]) / radius[0]) ** 2)
    )


def _relief(x: np.ndarray, y: np.ndarray, points: np.ndarray, shape: Shape, expression: Expression) -> np.ndarray:
    """Return how far the face stands out of the egg, (h, w), in eye distances."""
    relief = _nose(x, y, points, shape) + _mouth(x, y, points)
    smile = max(expression.smile, 0.0)
    for eye, brow, side in zip(template.EYES, template.BROWS, (-1, 1), strict=True):
        centre = points[eye].mean(axis=0)
        relief += _bump(x, y, centre + (0, -0.02), (0.27, 0.17), -0.17)
        relief += _bump(x, y, (side * 0.2, centre[1] - 0.03), (0.10, 0.14), -0.07)
        relief += _bump(x, y, centre, (0.17, 0.125), 0.12)  # the eyeball under its lids
        relief += _bump(x, y, points[brow].mean(axis=0) + (0, 0.03), (0.30, 0.075), 0.075)
        relief += _bump(x, y, (side * 0.72, 0.50), (0.22, 0.20), 0.10 + 0.05 * shape.cheekbones)
        relief += _bump(x, y, (side * 0.50, 0.62 - 0.08 * smile), (0.16, 0.15), 0.03 + 0.09 * smile)
        relief += _bump(x, y, (side * 0.78, 1.0), (0.2, 0.22), -0.045 * (1 + shape.cheekbones))
    relief += _bump(x, y, (0, points[8, 1] - 0.24), (0.24, 0.15), 0.13)
    relief += _bump(x, y, (0, (points[57, 1] + points[8, 1]) / 2 - 0.14), (0.3, 0.07), -0.06)
    return relief


def _nose(x: np.ndarray, y: np.ndarray, points: np.ndarray, shape: Shape) -> np.ndarray:
    root, tip, base = points[27, 1], points[30, 1], points[33, 1]
    wing = abs(points[31, 0])
    along = (y - root) / (tip - root)
    bridge = 0.06 + 0.03 * shape.nose_bridge
    height = np.interp(along, [-0.5, 0, 0.35, 0.75, 1.0, 1.16], [0, bridge, 0.16 + bridge / 2, 0.30, 0.37, 0.30])
    height = height * smoothstep(y, base + 0.07, tip + 0.045)
    width = np.interp(along, [-0.4, 0.2, 0.7, 1.0, 1.4], [0.16, 0.10, 0.115, 0.14, 0.18]) * (0.75 + wing)
    nose = height * np.exp(-0.5 * (x / width) ** 2)
    for side in (-1, 1):
        nose = nose + _bump(x, y, (side * wing * 0.86, (tip + base) / 2 + 0.03), (wing * 0.25, 0.075), 0.10)
    return cv2.GaussianBlur(nose.astype(np.float32), (0, 0), 1.0)


def _mouth(x: np.ndarray, y: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the relief of the muzzle, the two lips and the line or opening between them, (h, w)."""
    half = abs(points[54, 0] - points[48, 0]) / 2
    upper, lower = (points[51, 1] + points[62, 1]) / 2, (points[57, 1] + points[66, 1]) / 2
    line, gap = (points[62, 1] + points[66, 1]) / 2, max(points[66, 1] - points[62, 1], 0.0)
    corner = points[[48, 54], 1].mean()
    sag = (corner - line) * np.clip(np.abs(x) / half, 0, 1.2) ** 2
    lips = _bump(x, y, (0, 1.04 + gap / 3), (0.36, 0.26 + gap / 3), 0.13)
    for middle, thick, height in (
        (upper, points[62, 1] - points[51, 1], 0.055),
        (lower, points[57, 1] - points[66, 1], 0.075),
    ):
        lips = lips + _bump(x, y - sag, (0, middle), (half * 0.55, 0.45 * max(thick, 0.05)), height)
    return lips - _bump(x, y - sag, (0, line), (half * 0.7, 0.025 + gap * 0.4), 0.05 + 0.1 * min(gap, 0.3))
