"""How a person is lit, by the whites of the eyes: against drawings whose light is known, whatever the skin."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from swapfast.faces.eye_light import LIT_DIFFERENTLY, FaceLight, are_lit_differently, face_light, light_ratio
from swapfast.synthetic.identity import draw_identities
from swapfast.synthetic.render import render
from swapfast.synthetic.scene import draw_scene
from swapfast.synthetic.streams import SIDE_A, generator

SIZE, FACES = 160, 5


@functools.cache
def drawn(person: int, light: float = 1.0, seed: int = 1) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Return faces of a person in so many times the usual light, in the same poses, with the lamp in the same place."""
    identity = draw_identities(seed)[person]
    pictures = []
    for index in range(FACES):
        scene = draw_scene(generator(seed, SIDE_A, index))
        lamp = scene.light
        lamp = dataclasses.replace(lamp, strength=lamp.strength * light, ambient=lamp.ambient * light)
        picture = render(identity, dataclasses.replace(scene, light=lamp), SIZE)
        pictures.append((picture.image, picture.landmarks, 1.0))
    return pictures


def measured(faces: list[tuple[np.ndarray, np.ndarray, float]]) -> FaceLight:
    light = face_light(faces)
    assert light is not None
    return light


@pytest.mark.slow
@pytest.mark.parametrize("light", [0.16, 0.4, 1.0])
def test_light_of_one_person_is_told(light, within):
    """Pictures hold the square root of light, so a quarter of it is half the level; bytes cost a little."""
    ratio = light_ratio(measured(drawn(0)), measured(drawn(0, light)))
    within("logarithm of the level", np.abs(np.log(ratio / np.sqrt(light))).max(), 0.08)
    assert are_lit_differently(ratio) == (light < 1)


@pytest.mark.slow
def test_skin_is_not_taken_for_light(within):
    """A pale person and a dark one in one light: their skin differs by more than the limit, their light does not."""
    both = [measured(drawn(person, seed=seed)) for seed in (1, 2, 3) for person in (0, 1)]
    skins = sorted(both, key=lambda light: light.skin.mean())
    darkest, palest = skins[0], skins[-1]
    assert np.exp(palest.skin - darkest.skin).mean() > 1.5
    ratio = light_ratio(darkest, palest)
    within("logarithm of what is told", abs(np.log(ratio).mean()), np.log(LIT_DIFFERENTLY))
    assert not are_lit_differently(ratio)


@pytest.mark.slow
def test_the_colour_of_the_light_is_told(within):
    """Pictures with less blue and more red, as by a lamp: each colour by itself."""
    cast = np.array([0.6, 0.8, 1.0])
    faces = drawn(0, 0.5)
    warm = [(np.rint(image * cast).astype(np.uint8), points, scale) for image, points, scale in faces]
    ratio = light_ratio(measured(faces), measured(warm))
    within("logarithm of a colour's level", np.abs(np.log(ratio / cast)).max(), 0.03)


def test_eyes_that_do_not_tell_are_left_out():
    """Closed ones, small ones, those of enlarged pictures and those outside; with too few nothing is said."""
    faces = drawn(0)
    assert measured(faces).eyes == 2 * FACES
    closed = [(image, _with_eyes_closed(points), scale) for image, points, scale in faces]
    outside = [(image, points - (0, 90), scale) for image, points, scale in faces]
    enlarged = [(image, points, 10.0) for image, points, _ in faces]
    for none in (closed, outside, enlarged, faces[:3], []):
        assert face_light(none) is None
    assert measured(closed + faces).eyes == 2 * FACES


def _with_eyes_closed(points: np.ndarray) -> np.ndarray:
    moved = points.copy()
    for eye in (slice(36, 42), slice(42, 48)):
        moved[eye, 1] = moved[eye, 1].mean()
    return moved
