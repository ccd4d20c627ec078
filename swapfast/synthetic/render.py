"""Renders a person in a scene: camera, parts in depth order, light, landmarks, mask.

World space is head space before the head turns: x right, y down, z to the viewer, in eye distances. Everything is drawn
at twice the size into a buffer of depth, normal, colour and mask, lit once, then averaged down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .backdrop import paint_backdrop
from .camera import CAMERA_DISTANCE, EYE_DISTANCE, Buffer, Camera
from .canvas import Canvas, lookup, smoothstep
from .hair import HairMap
from .identity import Identity
from .paint import paint_face
from .parts import put_parts
from .scene import Light, Pose, Scene
from .surface import Head, Hits
from .template import apply_expression, neutral_face

_PIVOT = np.array([0.0, 0.9, -0.25])  # the head turns about the top of the neck
_EXPOSURE = 0.68


@dataclass(frozen=True)
class RenderedFace:
    """A rendered face.

    image: (S, S, 3) uint8 BGR.
    landmarks: (68, 2) float32 px, pixel centres at integers.
    mask: (S, S) uint8.
    """

    image: np.ndarray
    landmarks: np.ndarray
    mask: np.ndarray


def turn_matrix(pose: Pose) -> np.ndarray:
    """Return the rotation from head space to world space, (3, 3)."""
    cos, sin = np.cos, np.sin
    yaw, pitch, roll = pose.yaw, pose.pitch, -pose.roll
    about_y = np.array([[cos(yaw), 0, sin(yaw)], [0, 1, 0], [-sin(yaw), 0, cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, cos(pitch), sin(pitch)], [0, -sin(pitch), cos(pitch)]])
    about_z = np.array([[cos(roll), -sin(roll), 0], [sin(roll), cos(roll), 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


@lru_cache(maxsize=4)
def _hair_map(identity: Identity, size: int) -> HairMap:
    return HairMap(identity, size)


def render(identity: Identity, scene: Scene, size: int = 256) -> RenderedFace:
    """Return the person rendered in the scene at ``size`` px, as a pure function of its arguments."""
    points = apply_expression(neutral_face(identity.shape), scene.expression)
    hair = _hair_map(identity, size)
    scale = size * EYE_DISTANCE * 2.2
    head = Head(points, identity.shape, scene.expression, hair, scale / 2)
    camera = Camera(size, scene.pose.zoom)
    turn = turn_matrix(scene.pose)
    place = _PIVOT - turn @ _PIVOT + (*scene.pose.shift, 0.0)
    buffer = Buffer(size)
    _put_head(buffer, camera, head, identity, scene, scale, turn, place)
    put_parts(buffer, camera, identity, scene, turn, place)
    landmarks = camera.project(head.landmarks() @ turn.T + place)
    image, mask = _develop(buffer, scene, size)
    return RenderedFace(image, landmarks.astype(np.float32), mask)


def _put_head(
    buffer: Buffer,
    camera: Camera,
    head: Head,
    identity: Identity,
    scene: Scene,
    scale: float,
    turn: np.ndarray,
    place: np.ndarray,
) -> None:
    reach = 1 + identity.hair.thickness * 1.5
    middle = turn @ np.array([0, (head.chin - 1.72) / 2, 0.2]) + place
    window = camera.window(middle, np.array([1.32, 1.95]) * reach + 0.25 * abs(np.sin(scene.pose.roll)))
    rays = camera.rays(*window)
    hits = head.trace(
        (camera.eye - place) @ turn, rays @ turn.astype(np.float32), CAMERA_DISTANCE - 3.0, CAMERA_DISTANCE + 1.6
    )
    sheet = paint_face(identity, scene, head.points, scale)
    colour, hair = _head_colour(hits, head, sheet, identity)
    opened = head.sample(_openness(head, light_direction(scene.light) @ turn), hits.x, hits.y)
    opened[:, 0] *= 1 - 0.25 * hair * smoothstep(hits.y, -0.9, 0.3)
    mask = smoothstep(hits.egg_z, 0.0, 0.06) * smoothstep(hits.y, -1.5, -1.3) * (1 - hair)
    normal = hits.normal @ turn.T.astype(np.float32)
    buffer.put(buffer.numbers(window)[hits.rays], hits.t, normal, colour, opened, mask)


def _head_colour(hits: Hits, head: Head, sheet: Canvas, identity: Identity) -> tuple[np.ndarray, np.ndarray]:
    """Return linear BGR and gloss, (n, 4), and the share of hair of each sample, (n,)."""
    colour = lookup(sheet.image, *sheet.pixel(np.stack([hits.x, hits.y], axis=1)).T)
    cover = head.hair.lookup(head.hair.cover, hits.longitude, hits.y)
    tone = head.hair.lookup(head.hair.tone, hits.longitude, hits.y)
    strands = tone[:, None] * np.append(np.asarray(identity.hair_colour, np.float32), np.float32(0.35))
    colour += (strands - colour) * cover[:, None]
    colour[:, :3] *= colour[:, :3]
    return np.clip(colour, 0, 1), cover


def _openness(head: Head, light: np.ndarray) -> np.ndarray:
    """Return the openness of the face plane to the sky and to the key light, (h, w, 2).

    The second is a horizon-based shadow of a height field: it marches over the face towards the light and checks
    whether the face rises above the ray. The height by which it rises softens the edge.
    """
    scale = head.scale
    hollow = cv2.GaussianBlur(head.relief, (0, 0), 0.11 * scale) - head.relief
    sky = np.clip(1 - 3.2 * np.maximum(hollow, 0) + 0.5 * np.minimum(hollow, 0), 0.35, 1.0)
    blocked = np.zeros_like(head.front)
    for step in (0.07, 0.13, 0.2, 0.28, 0.38, 0.5):
        dx, dy = light[0] * step * scale, light[1] * step * scale
        move = np.array([[1, 0, -dx], [0, 1, -dy]], np.float32)
        height, width = head.front.shape
        shifted = cv2.warpAffine(
            head.front, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        blocked = np.maximum(blocked, (shifted - head.front - light[2] * step) / (0.05 + 0.35 * step))
    lit = 1 - 0.65 * smoothstep(cv2.GaussianBlur(blocked, (0, 0), 0.02 * scale), 0.0, 1.0)
    return np.dstack([sky, lit]).astype(np.float32)


def light_direction(light: Light) -> np.ndarray:
    """Return the unit vector from the face to the key light in world space, (3,)."""
    azimuth, elevation = np.radians([light.azimuth, light.elevation])
    across = np.cos(elevation)
    return np.array([np.sin(azimuth) * across, -np.sin(elevation), np.cos(azimuth) * across])


def _lit(buffer: Buffer, pixels: np.ndarray, light: Light) -> np.ndarray:
    """Return the linear light of the visible samples ``seen``, (n, 3).

    It is wrapped diffuse light, wrapped further in red as in skin, plus a Blinn-Phong highlight and the sky.
    """
    normal, colour, opened = buffer.normal[pixels], buffer.colour[pixels], buffer.open[pixels]
    direction = light_direction(light)
    halfway = direction + (0, 0, 1)
    facing, shine = (normal @ np.stack([direction, halfway / np.linalg.norm(halfway)], axis=1).astype(np.float32)).T
    wrap = np.array((0.20, 0.26, 0.40), np.float32)
    tint = 1 + 0.06 * light.warmth * np.array((-1, 0, 1))
    key = np.maximum(facing[:, None] + wrap, 0) * (1.55 * light.strength * tint / (1 + wrap)).astype(np.float32)
    sky = np.float32(light.ambient) * (0.8 - 0.2 * normal[:, 1]) * opened[:, 0]
    gloss = colour[:, 3]
    broad = np.square(np.square(np.square(np.maximum(shine, 0))))  # ** 8
    narrow = broad * broad
    shine = (0.14 * broad + 0.5 * gloss * narrow * narrow) * gloss * np.float32(light.strength)
    return colour[:, :3] * (key * opened[:, 1:] + sky[:, None]) + (shine * opened[:, 0] * opened[:, 1])[:, None]


def _develop(buffer: Buffer, scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture over the backdrop, (S, S, 3) uint8, and its mask, (S, S) uint8."""
    seen = np.flatnonzero(np.isfinite(buffer.distance))
    layer = np.zeros((buffer.side**2, 4), np.float32)  # light and cover
    layer[seen, :3] = np.sqrt(np.clip(_lit(buffer, seen, scene.light) * _EXPOSURE, 0, 1))
    layer[seen, 3] = 1
    picture_layer = cv2.resize(layer.reshape(buffer.side, buffer.side, 4), (size, size), interpolation=cv2.INTER_AREA)
    light, cover = picture_layer[..., :3], picture_layer[..., 3]
    mask = cv2.resize(buffer.mask.reshape(buffer.side, buffer.side), (size, size), interpolation=cv2.INTER_AREA)
    picture = light + paint_backdrop(scene.backdrop, size) * (1 - cover[..., None])
    return np.round(picture * 255).clip(0, 255).astype(np.uint8), np.round(mask * 255).clip(0, 255).astype(np.uint8)
