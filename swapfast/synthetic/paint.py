"""Paints the face plane: skin and its marks, eyes, brows, lips, nostrils, folds, beard.

Sheets have four channels: B, G, R as a screen shows them, and gloss, all in 0..1.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike

from . import template
from .canvas import Canvas, smoothstep, spline
from .hair import noise
from .identity import Identity
from .scene import Scene

_SKIN_GLOSS = 0.30


def _shade(colour: ArrayLike, factor: float) -> np.ndarray:
    return np.clip(np.asarray(colour, np.float32) * factor, 0, 1)


def _glossy(colour: ArrayLike, gloss: float) -> np.ndarray:
    return np.append(np.asarray(colour, np.float32), np.float32(gloss))


@lru_cache(maxsize=4)
def _skin_sheet(identity: Identity, scale: float) -> np.ndarray:
    """Return the skin of the neutral face, (h, w, 4): tone, blotches, freckles, mole, wrinkles."""
    sheet = Canvas(scale, 4)
    rng = np.random.default_rng(identity.key + 1)
    shape = sheet.image.shape[:2]
    skin = np.asarray(identity.skin, np.float32)
    blotches = 1 + 0.018 * noise(rng, shape, (14, 10)) + 0.012 * noise(rng, shape, (60, 42))
    sheet.image[..., :3] = skin * blotches[..., None]
    sheet.image[..., 3] = _SKIN_GLOSS
    for x, y, radius, amount in ((-0.62, 0.55, 0.22, 1.0), (0.62, 0.55, 0.22, 1.0), (0, 0.52, 0.12, 0.7)):
        flush = skin * (0.80, 0.74, 0.98) + (0.02, 0.0, 0.03)
        sheet.spot((x, y), (radius, radius * 0.9), _glossy(flush, 0.35), identity.blush * amount)
    for x, y, radius in ((0, -0.75, 0.32), (0, 0.30, 0.06), (0, 1.6, 0.12)):
        sheet.spot((x, y), (radius, radius), _glossy(_shade(skin, 1.05), 0.42), 0.8)
    _freckle(sheet, rng, identity)
    if identity.mole is not None:
        sheet.spot(identity.mole, (0.030, 0.030), _glossy(_shade(skin, 0.28), 0.3), 1.0)
        sheet.spot(identity.mole, (0.020, 0.020), _glossy(_shade(skin, 0.2), 0.3), 1.0)
    _wrinkle_brow(sheet, identity)
    return sheet.image


def _freckle(sheet: Canvas, rng: np.random.Generator, identity: Identity) -> None:
    if not identity.freckles:
        return
    brown = np.asarray(identity.skin, np.float32) * (0.50, 0.62, 0.78)
    for _ in range(190):
        x, y = rng.normal(0, 0.46), rng.normal(0.42, 0.26)
        radius = rng.uniform(0.009, 0.018)
        sheet.spot((x, y), (radius, radius), _glossy(brown, 0.3), identity.freckles * rng.uniform(0.25, 0.7))


def _wrinkle_brow(sheet: Canvas, identity: Identity) -> None:
    fold = _glossy(np.asarray(identity.skin, np.float32) * (0.70, 0.72, 0.78), 0.2)
    for y in (-0.62, -0.76, -0.9):
        line = spline([(-0.5, y + 0.02), (-0.25, y - 0.02), (0, y + 0.01), (0.25, y - 0.02), (0.5, y + 0.02)])
        sheet.line(line, fold, 0.022, 0.75 * identity.age, 0.012)


@lru_cache(maxsize=4)
def _growth(key: int, height: int, width: int) -> np.ndarray:
    """Return the person's pattern of single beard hairs, (h, w) in 0..1."""
    rng = np.random.default_rng(key + 2)
    hairs = noise(rng, (height, width), (height / 2.2, width / 2.2))
    return smoothstep(hairs + 0.6 * noise(rng, (height, width), (40, 30)), -0.6, 1.4).astype(np.float32)


def paint_face(identity: Identity, scene: Scene, points: np.ndarray, scale: float) -> Canvas:
    """Return the painted face plane.

    points: (68, 2), in the face plane.
    scale: pixels per eye distance.
    """
    sheet = Canvas(scale, 4)
    sheet.image[:] = _skin_sheet(identity, scale)
    _paint_folds(sheet, identity, scene, points)
    _paint_growth(sheet, identity, points)
    _paint_nostrils(sheet, identity, points)
    _paint_mouth(sheet, identity, points)
    for eye, side in zip(template.EYES, (-1, 1), strict=True):
        _paint_eye(sheet, identity, scene, points[eye] if side < 0 else points[eye][[3, 2, 1, 0, 5, 4]], side)
    for number, brow in enumerate(template.BROWS):
        _paint_brow(sheet, identity, points[brow] if number == 0 else points[brow][::-1], number)
    if identity.glasses:
        _paint_glasses(sheet, identity)
    return sheet


def _paint_glasses(sheet: Canvas, identity: Identity) -> None:
    """Paint dark frames about the eyes of the neutral face, which do not move with brows and lids."""
    frame, glint = _glossy((0.06, 0.05, 0.05), 0.9), _glossy((0.75, 0.72, 0.7), 0.9)
    points = template.neutral_face(identity.shape)
    turn = np.linspace(0, 2 * np.pi, 25)
    inner = []
    for eye, side in zip(template.EYES, (-1, 1), strict=True):
        middle = points[eye].mean(axis=0) + (0.02 * side, 0.07)
        # Between an ellipse and a box, as most frames are.
        rim = middle + np.stack([np.cos(turn), np.sin(turn)], axis=1) * (0.43, 0.33)
        rim += (
            0.04 * np.stack([np.sign(np.cos(turn)), np.sign(np.sin(turn))], axis=1) * np.abs(np.sin(2 * turn))[:, None]
        )
        sheet.fill(rim, _glossy((0.5, 0.5, 0.5), 0.7), 0.10 * identity.glasses)
        sheet.line(rim, frame, 0.075, identity.glasses)
        sheet.line(middle + ((-0.25, 0.05), (-0.05, -0.2)), glint, 0.03, 0.35 * identity.glasses, 0.02)
        sheet.line(middle + ((0.42 * side, -0.1), (0.95 * side, -0.16)), frame, 0.06, identity.glasses)
        inner.append(middle + (-0.40 * side, -0.1))
    bridge = [inner[0], (inner[0] + inner[1]) / 2 - (0, 0.06), inner[1]]
    sheet.line(spline(bridge), frame, 0.07, identity.glasses)


def _paint_folds(sheet: Canvas, identity: Identity, scene: Scene, points: np.ndarray) -> None:
    """Paint the lines from the nose to the corners of the mouth, the bags below the eyes, the groove above the lip."""
    skin = np.asarray(identity.skin, np.float32)
    fold = _glossy(skin * (0.66, 0.68, 0.76), 0.2)
    smile = max(scene.expression.smile, 0.0)
    for wing, corner, eye, side in ((31, 48, template.LEFT_EYE, -1), (35, 54, template.RIGHT_EYE, 1)):
        start = points[wing] + (side * 0.09, -0.05)
        stop = points[corner] + (side * 0.11, 0.02)
        bend = (start + stop) / 2 + (side * (0.05 + 0.04 * smile), -0.06)
        strength = 0.18 + 0.35 * identity.age + 0.25 * smile
        sheet.line(spline([start, bend, stop], 8), fold, 0.035, min(strength, 0.8), 0.022)
        lids = points[eye]
        low = lids[[0, 5, 4, 3]] if side < 0 else lids[[3, 4, 5, 0]]
        sheet.line(spline(low + (0, 0.115)), fold, 0.03, 0.12 + 0.4 * identity.age, 0.025)
    sheet.line([points[33] + (0, 0.05), points[51] + (0, -0.02)], fold, 0.04, 0.3, 0.025)


def _paint_growth(sheet: Canvas, identity: Identity, points: np.ndarray) -> None:
    amount = max(identity.stubble, identity.beard)
    if not amount:
        return
    jaw = points[template.JAW] * (1.15, 1.0) + (0, 0.12)
    lip, nose = points[51], points[33]
    inner = [(1.3, 0.25), (0.98, 0.45), (0.80, 0.92), (abs(points[54, 0]) + 0.17, lip[1] - 0.05)]
    inner += [(0.22, nose[1] + 0.09), (0, nose[1] + 0.12)]
    inner += [(-x, y) for x, y in reversed(inner[:-1])]
    region = np.concatenate([spline(jaw[1:-1], 3), spline(inner, 3)])
    window = sheet.window(region, 0.1)
    cover = sheet.cover(region, window, 0.05)
    hairs = _growth(identity.key, sheet.height, sheet.width)[window]
    if identity.beard:
        cover = cover * amount * (0.62 + 0.38 * hairs)
        colour = _glossy(_shade(identity.hair_colour, 0.85), 0.12)
    else:
        cover = cover * amount * (0.16 + 0.52 * hairs)
        colour = _glossy(_shade(identity.hair_colour, 0.7), 0.12)
    sheet.blend(window, cover, colour)


def _paint_nostrils(sheet: Canvas, identity: Identity, points: np.ndarray) -> None:
    skin = np.asarray(identity.skin, np.float32)
    crease = _glossy(skin * (0.55, 0.56, 0.66), 0.15)
    hole = _glossy(skin * (0.16, 0.15, 0.24), 0.0)
    for outer, inner, side in ((31, 32, -1), (35, 34, 1)):
        wing = points[outer]
        rim = spline([wing + (-side * 0.03, 0.045), wing + (side * 0.035, 0.0), wing + (side * 0.015, -0.10)], 8)
        sheet.line(rim, crease, 0.028, 0.55, 0.014)
        centre = points[inner] * 0.75 + wing * 0.25 + (0, 0.012)
        sheet.spot(centre, (0.055, 0.024), hole, 0.85)
    sheet.line(spline(points[template.NOSTRILS] + (0, 0.035)), crease, 0.03, 0.4, 0.02)


def _paint_mouth(sheet: Canvas, identity: Identity, points: np.ndarray) -> None:
    mouth = points[template.MOUTH]
    lips = np.asarray(identity.lips, np.float32)
    upper_edge, lower_edge = spline(mouth[:7]), spline(mouth[[6, 7, 8, 9, 10, 11, 0]])
    upper_line, lower_line = spline(mouth[12:17]), spline(mouth[[16, 17, 18, 19, 12]])
    gloss = 0.45 + 0.4 * identity.makeup
    sheet.fill(np.concatenate([upper_edge, upper_line[::-1]]), _glossy(_shade(lips, 0.84), gloss), 0.95, 0.010)
    lower = np.concatenate([lower_edge, lower_line[::-1]])
    sheet.fill(lower, _glossy(lips, gloss), 0.95, 0.010)
    shine = (mouth[9] + mouth[18]) / 2
    sheet.spot(shine, (0.11, 0.03), _glossy(np.minimum(lips * 1.22 + 0.04, 1), 0.9), 0.6)
    sheet.line(lower_edge[6:-6] + (0, 0.035), _glossy(_shade(identity.skin, 0.62), 0.2), 0.04, 0.35, 0.025)
    _paint_gape(sheet, points, np.concatenate([upper_line, lower_line]))
    dark = _glossy(lips * (0.30, 0.26, 0.40), 0.2)
    opened = points[66, 1] - points[62, 1]
    sheet.line(upper_line, dark, 0.026, 0.9 if opened < 0.05 else 0.5, 0.008)
    for corner in (mouth[0], mouth[6]):
        sheet.spot(corner, (0.03, 0.022), dark, 0.6)


def _paint_gape(sheet: Canvas, points: np.ndarray, inside: np.ndarray) -> None:
    """Paint the open mouth between the lips: darkness, the tongue, the upper teeth."""
    opened = points[66, 1] - points[62, 1]
    if opened < 0.03:
        return
    sheet.fill(inside, _glossy((0.10, 0.06, 0.17), 0.2), min(opened / 0.06, 1.0), 0.004)
    left, right = points[48, 0], points[54, 0]
    tongue = [
        (left * 0.6, points[66, 1] + 0.1),
        (0, points[66, 1] - 0.38 * opened),
        (right * 0.6, points[66, 1] + 0.1),
    ]
    sheet.fill(spline(tongue, 8), _glossy((0.33, 0.30, 0.62), 0.6), 0.8, 0.02, within=inside)
    top = spline(points[60:65])
    drop = min(0.14, 0.55 * opened)
    row = np.concatenate([top + (0, -0.02), (top + (0, drop))[::-1] * (0.93, 1)])
    sheet.fill(row, _glossy((0.80, 0.86, 0.90), 0.6), 0.95, 0.006, within=inside)
    for x in np.linspace(left * 0.7, right * 0.7, 9):
        gap = [(x - 0.004, points[62, 1] - 0.03), (x + 0.004, points[62, 1] - 0.03)]
        gap += [(x + 0.004, points[62, 1] + drop), (x - 0.004, points[62, 1] + drop)]
        sheet.fill(gap, _glossy((0.45, 0.50, 0.56), 0.3), 0.4, 0.004, within=inside)
    shadow = np.concatenate([top + (0, -0.03), (top + (0, 0.03))[::-1]])
    sheet.fill(shadow, _glossy((0.12, 0.10, 0.2), 0.1), 0.6, 0.012, within=inside)


def _paint_eye(sheet: Canvas, identity: Identity, scene: Scene, lids: np.ndarray, side: int) -> None:
    """Paint one eye. lids: (6, 2): outer corner, two upper, inner corner, two lower points, on both sides."""
    upper, lower = spline(lids[[0, 1, 2, 3]], 8), spline(lids[[3, 4, 5, 0]], 8)
    outline = np.concatenate([upper, lower])
    skin = np.asarray(identity.skin, np.float32)
    lid = skin * (0.80, 0.80, 0.88)
    shadow = identity.makeup * 0.6
    crease = upper * (1, 1) + np.linspace(-0.055, -0.075, len(upper))[:, None] * (0, 1)
    fold = np.concatenate([upper, crease[::-1]])
    sheet.fill(fold, _glossy(lid * (1 - 0.45 * shadow), 0.4), 0.6 + 0.3 * shadow, 0.02)
    sheet.line(crease, _glossy(skin * (0.50, 0.50, 0.60), 0.2), 0.024, 0.6, 0.010)
    window = sheet.window(outline, 0.05)
    cover = sheet.cover(outline, window)
    x, y = sheet.x[:, window[1]], sheet.y[window[0]]
    sheet.blend(window, cover, _eyeball(identity, scene, lids, upper, x, y))
    inner = lids[3] + (side * 0.022, 0.004)
    sheet.spot(inner, (0.022, 0.016), _glossy((0.46, 0.46, 0.72), 0.8), 0.6)
    lash = _glossy(_shade(identity.hair_colour, 0.30) if identity.makeup < 0.3 else (0.05, 0.04, 0.05), 0.2)
    lash[:3] = np.minimum(lash[:3], 0.16)
    wing = np.array([[side * (0.02 + 0.06 * identity.makeup), -0.015 - 0.035 * identity.makeup]])
    sheet.line(np.concatenate([lids[:1] + wing, upper]), lash, 0.026 + 0.026 * identity.makeup, 0.92, 0.005)
    sheet.line(lower, _glossy(lid * 0.5, 0.3), 0.016, 0.45 + 0.3 * identity.makeup, 0.006)


def _eyeball(
    identity: Identity, scene: Scene, lids: np.ndarray, upper: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Return the eye as it would look without lids, (h, w, 4)."""
    width = float(np.linalg.norm(lids[0] - lids[3]))
    open_centre = (lids[0] + lids[3]) / 2 + (0, -0.012)
    radius = 0.215 * width / 0.45 * 0.5
    iris = open_centre + np.array(scene.expression.gaze) * (0.085, 0.035)
    dx, dy = x - iris[0], y - iris[1]
    distance = np.sqrt(dx * dx + dy * dy) / radius
    white = np.array((0.86, 0.88, 0.90), np.float32)
    corner = np.clip(np.abs(x - open_centre[0]) / (width / 2), 0, 1) ** 2
    eye = white * (1 - 0.28 * corner)[..., None] * np.ones_like(distance)[..., None]
    colour = np.asarray(identity.iris, np.float32)
    spokes = 1 + 0.14 * np.sin(np.arctan2(dy, dx) * 13 + 0.7) * np.sin(np.arctan2(dy, dx) * 7)
    fibre = (0.62 + 0.55 * smoothstep(distance, 0.9, 0.45) + 0.25 * smoothstep(dy / radius, -0.2, 0.8)) * spokes
    edge = 1.4 / (radius * 60)
    for cover, tint in (
        (smoothstep(distance, 1.0 + edge * 0.5, 1.0 - edge * 0.5), colour * 0.35),
        (smoothstep(distance, 0.93, 0.80), np.clip(colour * fibre[..., None], 0, 1)),
        (smoothstep(distance, 0.50, 0.40), np.array((0.02, 0.02, 0.02))),
    ):
        eye = eye + (tint - eye) * cover[..., None]
    below = y - np.interp(x[0], *np.sort(upper, axis=0).T if upper[0, 0] < upper[-1, 0] else upper[::-1].T)
    eye = eye * (0.52 + 0.48 * smoothstep(below, 0.0, 0.075))[..., None]
    side = 1 if scene.light.azimuth > 0 else -1
    for ox, oy, size, amount in ((0.36 * side, -0.36, 0.25, 1.0), (-0.35 * side, 0.35, 0.16, 0.35)):
        spark = np.exp(-0.5 * ((dx / radius - ox) ** 2 + (dy / radius - oy) ** 2) / (size * 0.6) ** 2)
        eye = eye + (1 - eye) * (amount * np.clip(1.3 * spark, 0, 1))[..., None]
    return np.dstack([eye, np.full_like(distance, 0.2)])


def _paint_brow(sheet: Canvas, identity: Identity, brow: np.ndarray, number: int) -> None:
    """Paint one brow: a soft body and single hairs at fixed positions along it. brow: (5, 2), outer end first."""
    rng = np.random.default_rng(identity.key + 3 + number)
    colour = _glossy(np.minimum(_shade(identity.hair_colour, 0.62), 0.55), 0.1)
    weight = 0.042 * (1 + 0.42 * identity.shape.brow_weight)
    middle = spline(brow, 8)
    along = np.linspace(0, 1, len(middle))
    half = weight * np.interp(along, [0, 0.35, 0.75, 1], [0.25, 0.9, 1.15, 0.8])
    body = np.concatenate([middle - half[:, None] * (0, 1), (middle + half[:, None] * (0, 1))[::-1]])
    sheet.fill(body, colour, 0.55 + 0.12 * identity.shape.brow_weight, 0.014)
    inward = np.sign(brow[-1, 0] - brow[0, 0])
    window = sheet.window(body, 0.1)
    mask = np.zeros(sheet.image[window].shape[:2], np.uint8)
    offset = np.array([window[1].start, window[0].start])
    for place, across, length in rng.uniform((0, -1, 0.7), (1, 1, 1.3), (90, 3)):
        spot = np.array([np.interp(place, along, middle[:, axis]) for axis in range(2)])
        reach = np.interp(place, along, half)
        root = spot + (0, across * reach)
        tip = root + np.array([-inward * 0.055, -0.035 * (0.3 + place)]) * length
        ends = np.round((sheet.pixel([root, tip]) - offset) * 64).astype(np.int32)
        cv2.line(mask, ends[0].tolist(), ends[1].tolist(), 255, 1, cv2.LINE_AA, 6)
    sheet.blend(window, mask.astype(np.float32) / 255 * 0.6, colour)
