"""Describes scenes: pose, expression, light, clothes and background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Uniform: the standard deviation (limit / sqrt 3) settles sooner than a normal one's, without rare extremes.
YAW_LIMIT = 0.39  # rad
PITCH_DEVIATION = 0.09
ROLL_DEVIATION = 0.09
LIGHT_LIMIT = 42.0  # degrees to either side


@dataclass(frozen=True)
class Pose:
    """The pose of the head.

    yaw, pitch, roll: rad. Positive yaw turns the nose to the right of the picture, positive pitch looks down, positive
        roll turns anticlockwise on the screen.
    shift: eye distances, x right and y down.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0


@dataclass(frozen=True)
class Expression:
    """The expression of the face in amounts of 0..1.

    smile: -0.4..1.
    brows: -1 (frown) .. 1 (raised).
    gaze: -1..1 in x and y.
    """

    mouth_open: float = 0.0
    smile: float = 0.0
    pucker: float = 0.0
    brows: float = 0.0
    blink: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Light:
    """A key light and the light of the sky.

    azimuth: degrees, positive from the right of the picture.
    elevation: degrees, positive from above.
    strength, ambient: factors of the albedo.
    warmth: -1 (bluish) .. 1 (reddish).
    """

    azimuth: float = 0.0
    elevation: float = 30.0
    strength: float = 0.8
    ambient: float = 0.4
    warmth: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Everything about a picture that is not the person."""

    pose: Pose = Pose()
    expression: Expression = Expression()
    light: Light = Light()
    cloth: tuple[float, float, float] = (0.5, 0.4, 0.3)  # BGR 0..1
    neckline: float = 0.5  # 0 (a high collar) .. 1 (a wide one)
    backdrop: int = 0  # seed of the background


def _draw_pose(rng: np.random.Generator) -> Pose:
    yaw = rng.uniform(-YAW_LIMIT, YAW_LIMIT)
    pitch, roll = np.clip(rng.normal(0, (PITCH_DEVIATION, ROLL_DEVIATION)), -0.25, 0.25)
    shift = tuple(rng.uniform(-0.12, 0.12, 2).tolist())
    return Pose(float(yaw), float(pitch), float(roll), shift, float(rng.uniform(0.95, 1.05)))


def _draw_expression(rng: np.random.Generator) -> Expression:
    mouth_open = rng.uniform(0.15, 0.9) if rng.random() < 0.4 else 0.0
    smile = rng.uniform(0.3, 1.0) if rng.random() < 0.45 else rng.uniform(-0.4, 0.3)
    blink = rng.uniform(0.85, 1.0) if rng.random() < 0.05 else rng.uniform(0.0, 0.3)
    pucker = rng.uniform(0.2, 0.8) if rng.random() < 0.12 and smile < 0.3 else 0.0
    gaze = np.clip(rng.normal(0, (0.4, 0.25)), -1, 1)
    brows = np.clip(rng.normal(0, 0.45), -1, 1)
    across, down = gaze.tolist()
    return Expression(float(mouth_open), float(smile), float(pucker), float(brows), float(blink), (across, down))


def _draw_light(rng: np.random.Generator) -> Light:
    return Light(
        azimuth=float(rng.uniform(-LIGHT_LIMIT, LIGHT_LIMIT)),
        elevation=float(rng.uniform(12, 42)),
        strength=float(rng.uniform(0.74, 0.90)),
        ambient=float(rng.uniform(0.38, 0.46)),
        warmth=float(rng.uniform(-1, 1)),
    )


def draw_scene(rng: np.random.Generator) -> Scene:
    """Return a random scene that a small network can learn: moderate yaw, moderate light from either side."""
    return Scene(
        pose=_draw_pose(rng),
        expression=_draw_expression(rng),
        light=_draw_light(rng),
        cloth=tuple((rng.uniform(0.08, 0.75) * rng.uniform(0.25, 1.0, 3)).tolist()),
        neckline=float(rng.uniform()),
        backdrop=int(rng.integers(2**63)),
    )
