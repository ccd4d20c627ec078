"""Draws all but the head itself: ears, neck, clothes, long hair. All are ellipsoids, intersected exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from .camera import Buffer, Camera
from .canvas import smoothstep
from .identity import Identity
from .scene import Scene

Triple = tuple[float, float, float]
Painted = tuple[np.ndarray, ArrayLike, ArrayLike]  # colour and gloss (n, 4), openness to the sky and to the key light
Paint = Callable[[np.ndarray], Painted]  # of points on the unit ball, (n, 3)
Keep = Callable[[np.ndarray], np.ndarray]  # which of them are there, (n,)
_HAIR_GLOSS = 0.35


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid in world space.

    centre: (3,).
    axes: (3,), half-lengths along the columns of ``frame``.
    frame: (3, 3), a rotation.
    """

    centre: np.ndarray
    axes: np.ndarray
    frame: np.ndarray

    def intersect(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Return the distance along (n, 3) rays to the surface, (n,), infinite for rays that miss it."""
        to_ball = (self.frame / self.axes).T.astype(np.float32)  # world to unit ball
        start = to_ball @ (origin - self.centre).astype(np.float32)
        directions = rays @ to_ball.T
        a, b, c = np.einsum("ij,ij->i", directions, directions), directions @ start, start @ start - 1
        root = b * b - a * c
        return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.float32(np.inf))

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the points on the unit ball and the world normals of (n, 3) world points on the surface."""
        to_ball = (self.frame / self.axes).T.astype(np.float32)
        unit = (points - self.centre.astype(np.float32)) @ to_ball.T
        normal = unit @ to_ball
        return unit, normal / np.linalg.norm(normal, axis=1, keepdims=True)


class Put(Protocol):
    """Draws a body where it is seen."""

    def __call__(self, body: Ellipsoid, paint: Paint, keep: Keep | None = None) -> None: ...


class OnHead(Protocol):
    """Makes an ellipsoid that turns with the head, of a place and a frame in head space."""

    def __call__(self, centre: Triple, axes: Triple, frame: np.ndarray | None = None) -> Ellipsoid: ...


def _about_y(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def put_parts(
    buffer: Buffer, camera: Camera, identity: Identity, scene: Scene, turn: np.ndarray, place: np.ndarray
) -> None:
    """Draw what surrounds the head into ``buffer``, behind everything that is nearer."""

    def put(body: Ellipsoid, paint: Paint, keep: Keep | None = None) -> None:
        reach = np.abs(body.frame * body.axes).sum(axis=1)[:2]
        window = camera.window(body.centre, reach)
        rays, samples = camera.rays(*window).reshape(-1, 3), buffer.numbers(window)
        distance = body.intersect(camera.eye, rays)
        is_seen = buffer.nearer(samples, distance)
        samples, distance = samples[is_seen], distance[is_seen]
        unit, normal = body.surface(camera.eye.astype(np.float32) + rays[is_seen] * distance[:, None])
        if keep is not None:
            part = keep(unit)
            samples, distance, unit, normal = samples[part], distance[part], unit[part], normal[part]
        colour, sky, key = paint(unit)
        colour[:, :3] *= colour[:, :3]
        opened = np.stack(np.broadcast_arrays(sky, key, distance)[:2], axis=1)
        buffer.put(samples, distance, normal, colour, opened, np.float32(0))

    def on_head(centre: Triple, axes: Triple, frame: np.ndarray | None = None) -> Ellipsoid:
        return Ellipsoid(
            turn @ np.asarray(centre) + place, np.asarray(axes), turn @ (np.eye(3) if frame is None else frame)
        )

    lean = place + turn @ np.array([0, 1.4, -0.3]) - np.array([0, 1.4, -0.3])  # shift of the top of the neck
    follow = np.array([*(0.6 * lean[:2] + 0.4 * np.array(scene.pose.shift)), 0.0])
    _put_ears(put, on_head, identity)
    _put_neck(put, identity, scene, follow)
    if identity.hair.length:
        _put_long_hair(put, on_head, identity)
    if identity.hair.bun:
        put(on_head((0, -1.85, -0.4), (0.48, 0.42, 0.48)), _hair_paint(identity))


def _put_ears(put: Put, on_head: OnHead, identity: Identity) -> None:
    size = 1 + 0.16 * identity.shape.ears
    half = 1.13 * (1 + 0.055 * identity.shape.face_width)

    def paint(unit: np.ndarray) -> Painted:
        v, w = unit[:, 1], unit[:, 2]
        rim = np.sqrt((w + 0.05) ** 2 + (v + 0.05) ** 2)
        bowl = np.exp(-0.5 * (((w - 0.12) / 0.32) ** 2 + ((v - 0.05) / 0.42) ** 2))
        groove = np.exp(-0.5 * ((rim - 0.68) / 0.09) ** 2)
        skin = np.asarray(identity.skin, np.float32) * (0.90, 0.90, 1.0)
        colour = np.empty((len(v), 4), np.float32)
        colour[:, :3] = skin * (1 - 0.26 * bowl - 0.14 * groove)[:, None]
        colour[:, 3] = 0.25
        return colour, 1 - 0.3 * bowl, np.float32(0.85)

    for side in (-1, 1):
        frame = _about_y(side * -0.62)
        put(on_head((side * (half + 0.02), 0.30, -0.12), (0.085, 0.37 * size, 0.25 * size), frame), paint)


def _put_neck(put: Put, identity: Identity, scene: Scene, follow: np.ndarray) -> None:
    thick = 0.70 * (1 + 0.10 * identity.shape.neck)
    skin = np.append(np.asarray(identity.skin, np.float32) * (0.94, 0.95, 0.97), np.float32(0.22))
    cloth = np.append(np.asarray(scene.cloth, np.float32), np.float32(0.05))

    def neck(unit: np.ndarray) -> Painted:
        y = unit[:, 1]
        shade = 0.42 + 0.5 * smoothstep(y, -0.26, 0.14)
        cords = 1 - 0.12 * np.exp(-(((np.abs(unit[:, 0]) - 0.35 + 0.4 * y) / 0.12) ** 2))
        return skin * np.ones_like(y)[:, None], shade * cords, shade

    def shoulders(unit: np.ndarray) -> Painted:
        x, y, z = unit[:, 0], unit[:, 1], unit[:, 2]
        wide = 0.24 + 0.12 * scene.neckline
        hole = np.sqrt((x / wide) ** 2 + (np.minimum(y + 1, 2) / (0.05 + 0.16 * scene.neckline)) ** 2)
        bare = smoothstep(hole, 1.0, 0.97)[:, None]
        seam = 1 - 0.25 * np.exp(-(((hole - 1.10) / 0.04) ** 2))
        weave = (seam * (1 + 0.05 * np.sin(x * 9 + 2 * z)))[:, None]
        shade = 0.55 + 0.45 * smoothstep(np.abs(x), 0.1, 0.45)
        return cloth * weave * (1 - bare) + skin * bare, shade, np.minimum(shade + 0.2, 1)

    upright = np.eye(3)
    put(Ellipsoid(np.array([0, 2.25, -0.35]) + follow, np.array([thick, 1.9, 0.66]), upright), neck)
    settle = np.array([0.4 * follow[0], 4.65, -0.6])
    put(Ellipsoid(settle, np.array([2.75, 2.45, 1.25]), upright), shoulders)


def _hair_paint(identity: Identity, waves: float = 0.0) -> Paint:
    colour = np.append(np.asarray(identity.hair_colour, np.float32), np.float32(_HAIR_GLOSS))
    phases = np.random.default_rng(identity.key + 9).uniform(0, 6.28, 4)

    def paint(unit: np.ndarray) -> Painted:
        across = np.arctan2(unit[:, 0], np.abs(unit[:, 2]) + 0.25) + 0.08 * waves * np.sin(unit[:, 1] * 11)
        strands = sum(
            amount * np.sin(across * count + phase + unit[:, 1] * bend)
            for amount, count, phase, bend in zip((0.5, 0.4, 0.35, 0.3), (17, 31, 53, 83), phases, (2, -3, 4, -2))
        )
        tone = np.clip(0.9 + 0.22 * strands, 0.3, 1.6)[:, None]
        return np.clip(colour * tone, 0, 1), np.float32(0.8), np.float32(0.85)

    return paint


def _put_long_hair(put: Put, on_head: OnHead, identity: Identity) -> None:
    """Draw a curtain of hair behind the neck and a lock on either side, with a ragged edge."""
    paint = _hair_paint(identity, identity.hair.curl)
    full = 1 + identity.hair.thickness
    low = 0.75 + 1.55 * identity.hair.length  # height of its end

    def hang(x: float, z: float, thick: float, deep: float, top: float, tilt: float) -> None:
        middle = low - 0.6
        body = on_head((x, middle, z), (thick, middle - top, deep), np.array([[1, -tilt, 0], [tilt, 1, 0], [0, 0, 1]]))
        edge = 0.6 / (middle - top)
        put(
            body, paint, lambda unit: unit[:, 1] < edge + 0.03 * np.sin(unit[:, 0] * 9) + 0.02 * np.sin(unit[:, 0] * 31)
        )

    hang(0, -0.85, 1.28 * full, 0.55, -1.6, 0.0)
    for side in (-1, 1):
        hang(side * 1.03 * full, -0.2, 0.29, 0.45, -0.55, side * 0.04)
