"""Draws a film: one head that sways, looks around, blinks and talks, with exact landmarks in every frame.

A scene is a pure function of the seed and the time, so any frame can be drawn alone, at any rate. The same film with
another person is the true swap of this one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .scene import Expression, Light, Pose, Scene, draw_scene
from .streams import FILM, generator

_WAVES = 3  # of each movement
_SLOWEST, _FASTEST = 0.08, 0.55  # Hz
_BLINK_S = 0.22  # of a closing and opening lid
_BLINKS_EVERY_S = 3.0
_WORDS_HZ = 2.6


@dataclass(frozen=True)
class _Wave:
    """A movement: a sum of sines, within -1 and 1."""

    shares: np.ndarray
    rates: np.ndarray  # Hz
    phases: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, fastest: float = _FASTEST) -> _Wave:
        shares = rng.uniform(0.4, 1.0, _WAVES)
        rates = np.geomspace(_SLOWEST, fastest, _WAVES) * rng.uniform(0.8, 1.25, _WAVES)
        return cls(shares / shares.sum(), rates, rng.uniform(0, 2 * np.pi, _WAVES))

    def __call__(self, time_s: float) -> float:
        return float(self.shares @ np.sin(2 * np.pi * self.rates * time_s + self.phases))


class Film:
    """The scenes of a film. seed: the movements, the light and the clothes follow from it."""

    def __init__(self, seed: int) -> None:
        rng = generator(seed, FILM, 0)
        self._first = draw_scene(rng)
        names = ("yaw", "pitch", "roll", "x", "y", "zoom", "smile", "brows", "gaze_x", "gaze_y", "talk", "light")
        self._waves = {name: _Wave.draw(rng) for name in names}
        self._words = _Wave.draw(rng, _WORDS_HZ)
        self._blink_phase = float(rng.uniform(0, _BLINKS_EVERY_S))

    def scene(self, time_s: float) -> Scene:
        """Return the scene at a time."""
        at = {name: wave(time_s) for name, wave in self._waves.items()}
        shift = (0.35 * at["x"], 0.15 * at["y"])
        pose = Pose(0.36 * at["yaw"], 0.14 * at["pitch"], 0.12 * at["roll"], shift, 0.95 + 0.08 * at["zoom"])
        talks = max(0.0, at["talk"] + 0.15)  # now and then
        expression = Expression(
            mouth_open=min(0.9, talks * (1 + self._words(time_s))),
            smile=0.3 + 0.5 * at["smile"],
            brows=0.6 * at["brows"],
            blink=max(0.12, self._lid(time_s)),
            gaze=(0.6 * at["gaze_x"], 0.35 * at["gaze_y"]),
        )
        light: Light = replace(self._first.light, azimuth=self._first.light.azimuth + 4 * at["light"])
        return replace(self._first, pose=pose, expression=expression, light=light)

    def _lid(self, time_s: float) -> float:
        """Return how far the eyes are closed, 0..1."""
        since = (time_s + self._blink_phase) % _BLINKS_EVERY_S
        return float(np.sin(np.pi * since / _BLINK_S) ** 2) if since < _BLINK_S else 0.0
