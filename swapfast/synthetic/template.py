"""The 68 points (iBUG order) in the face plane: an average face, moved by a person's traits and expression.

The plane's unit is the average distance between the eyes' middles; x runs right on the picture, y down, and (0, 0)
lies between the eyes. "Left" and "right" are those of the picture.
"""

from __future__ import annotations

import numpy as np

from .identity import Shape
from .scene import Expression

JAW = slice(0, 17)
LEFT_BROW, RIGHT_BROW = slice(17, 22), slice(22, 27)
BRIDGE, NOSTRILS = slice(27, 31), slice(31, 36)
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)
MOUTH = slice(48, 68)
EYES = (LEFT_EYE, RIGHT_EYE)
BROWS = (LEFT_BROW, RIGHT_BROW)

# Half a face, estimated by eye; the other half is its mirror image.
_JAW = [(-1.13, 0.06), (-1.12, 0.36), (-1.09, 0.66), (-1.03, 0.95), (-0.93, 1.23)]
_JAW += [(-0.77, 1.48), (-0.55, 1.67), (-0.28, 1.80), (0.0, 1.85)]
_BROW = [(-0.93, -0.22), (-0.80, -0.34), (-0.61, -0.385), (-0.41, -0.355), (-0.23, -0.275)]
_NOSE = [(0.0, -0.08), (0.0, 0.11), (0.0, 0.30), (0.0, 0.49), (-0.26, 0.63), (-0.13, 0.68), (0.0, 0.70)]
_EYE = [(-0.73, 0.01), (-0.59, -0.095), (-0.42, -0.08), (-0.285, 0.035), (-0.43, 0.07), (-0.585, 0.075)]
_LIPS_OUT = [(-0.40, 1.10), (-0.26, 1.005), (-0.11, 0.95), (0.0, 0.975), (-0.28, 1.20), (-0.14, 1.25), (0.0, 1.265)]
_LIPS_IN = [(-0.36, 1.10), (-0.13, 1.085), (0.0, 1.095), (-0.13, 1.09), (0.0, 1.10)]


def _mirrored(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(-x, y) for x, y in reversed(points)]


def _average_face() -> np.ndarray:
    bridge, wing = _NOSE[:4], _NOSE[4:]
    upper_out, lower_out = _LIPS_OUT[:4], _LIPS_OUT[4:]
    upper_in, lower_in = _LIPS_IN[:3], _LIPS_IN[3:]
    right_eye = [(-_EYE[i][0], _EYE[i][1]) for i in (3, 2, 1, 0, 5, 4)]
    points = [*_JAW, *_mirrored(_JAW[:-1]), *_BROW, *_mirrored(_BROW), *bridge, *wing, *_mirrored(wing[:-1])]
    points += [*_EYE, *right_eye]
    lower_right = [(-x, y) for x, y in lower_out[:-1]]
    points += [*upper_out, *_mirrored(upper_out[:-1]), *lower_right, *reversed(lower_out)]
    points += [*upper_in, *_mirrored(upper_in[:-1]), (-lower_in[0][0], lower_in[0][1]), lower_in[1], lower_in[0]]
    return np.array(points, dtype=np.float64)


AVERAGE = _average_face()


def _scaled(points: np.ndarray, about: np.ndarray, x: float, y: float) -> np.ndarray:
    return about + (points - about) * (x, y)


def neutral_face(shape: Shape) -> np.ndarray:
    """Return the points of a person's neutral face, (68, 2)."""
    points = AVERAGE.copy()
    jaw = points[JAW]
    jaw[:, 0] *= 1 + 0.055 * shape.face_width
    jaw[:, 0] *= 1 + 0.075 * shape.jaw_square * np.exp(-(((jaw[:, 1] - 1.5) / 0.35) ** 2))
    jaw[:, 1] += 0.10 * shape.chin_length * np.clip(jaw[:, 1] / 1.85, 0, 1) ** 2
    for eye, brow, side in zip(EYES, BROWS, (-1, 1), strict=True):
        centre = points[eye].mean(axis=0)
        points[eye] = _scaled(points[eye], centre, 1 + 0.11 * shape.eye_size, 1 + 0.15 * shape.eye_size)
        points[eye, 1] -= 0.12 * shape.eye_tilt * side * (points[eye, 0] - centre[0])
        points[eye, 0] += 0.03 * side * shape.eye_gap
        arch = np.array([0.0, 0.8, 1.0, 0.4, 0.0])
        points[brow, 1] -= 0.04 * shape.brow_height + 0.03 * shape.brow_arch * (arch if side < 0 else arch[::-1])
        points[brow, 0] += 0.03 * side * shape.eye_gap
    points[27:36, 1] = -0.08 + (points[27:36, 1] + 0.08) * (1 + 0.055 * shape.nose_length)
    points[NOSTRILS, 0] *= 1 + 0.2 * shape.nose_width
    middle = np.array([0.0, 1.10])
    full = 1 + 0.26 * shape.lip_fullness
    points[MOUTH] = _scaled(points[MOUTH], middle, 1 + 0.10 * shape.mouth_width, full)
    points[MOUTH, 1] += 0.02 * shape.mouth_height + 0.025 * shape.nose_length
    return points


def apply_expression(points: np.ndarray, expression: Expression) -> np.ndarray:
    """Return (68, 2) points moved by an expression."""
    points = points.copy()
    _move_eyes(points, expression)
    _move_mouth(points, expression)
    return points


def _move_eyes(points: np.ndarray, expression: Expression) -> None:
    frown = max(-expression.brows, 0.0)
    for brow, side in zip(BROWS, (-1, 1), strict=True):
        upper, lower = ([37, 38], [41, 40]) if side < 0 else ([43, 44], [47, 46])
        points[lower, 1] -= 0.03 * max(expression.smile, 0.0)
        points[upper, 1] -= 0.015 * max(expression.brows, 0.0)
        points[upper] += (points[lower] + (0, -0.012) - points[upper]) * expression.blink
        inner = np.exp(-(((np.abs(points[brow, 0]) - 0.2) / 0.3) ** 2))
        points[brow, 1] -= 0.085 * max(expression.brows, 0.0) + 0.03 * expression.brows * inner
        points[brow, 0] -= side * 0.04 * frown * inner
        points[brow, 1] += 0.035 * frown


def _move_mouth(points: np.ndarray, expression: Expression) -> None:
    opened, smile, pucker = expression.mouth_open, expression.smile, expression.pucker
    mouth = points[MOUTH]
    centre = np.array([0.0, mouth[[0, 6], 1].mean()])
    corner = np.clip(np.abs(mouth[:, 0]) / np.abs(mouth[0, 0]), 0, 1) ** 1.5
    mouth[:, 0] *= 1 + 0.17 * max(smile, 0.0) - 0.26 * pucker - 0.08 * opened
    mouth[:, 1] -= 0.085 * smile * corner - 0.015 * smile
    mouth[:, 1] = centre[1] + (mouth[:, 1] - centre[1]) * (1 - 0.15 * max(smile, 0.0) + 0.1 * pucker)
    lower, upper = [7, 8, 9, 10, 11, 17, 18, 19], [1, 2, 3, 4, 5, 13, 14, 15]
    sag = np.array([0.78, 0.97, 1.0, 0.97, 0.78, 0.9, 1.0, 0.9])
    mouth[lower, 1] += 0.30 * opened * sag
    mouth[upper, 1] -= 0.045 * opened
    mouth[[0, 6, 12, 16], 1] += 0.07 * opened
    jaw = points[JAW]
    jaw[:, 1] += 0.21 * opened * np.clip((jaw[:, 1] - 0.6) / 1.2, 0, 1) ** 1.5
