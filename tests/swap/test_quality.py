"""What can be told of a swap without the truth: the arithmetic of each sign, against the plain way to write it."""

from __future__ import annotations

import numpy as np
import pytest

from swapfast.models.tiny import tiny
from swapfast.swap.figures import masked_psnr
from swapfast.swap.quality import (
    SideFaces,
    _nearest_psnr,
    area_under_curve,
    direction_scores,
    separability,
    signs,
)


def test_the_area_under_the_curve_counts_pairs():
    is_b = np.array([False, False, True, True])
    assert area_under_curve(np.array([0.0, 1.0, 2.0, 3.0]), is_b) == 1
    assert area_under_curve(np.array([2.0, 3.0, 0.0, 1.0]), is_b) == 0
    assert area_under_curve(np.array([0.0, 2.0, 1.0, 3.0]), is_b) == 0.75
    assert area_under_curve(np.zeros(4), is_b) == 0.5


def test_codes_that_differ_are_told_apart_and_others_are_not():
    rng = np.random.default_rng(1)
    codes = rng.normal(0, 1, (2, 400, 30))
    area, distance = separability(*codes)
    assert abs(area - 0.5) < 0.1 and distance < 0.15, "five standard errors of 400 faces, and of 30 numbers' means"
    codes[1, :, 3] += 3
    area, distance = separability(*codes)
    assert area > 0.95 and distance == pytest.approx(3 / np.sqrt(30), rel=0.1)


def test_the_line_from_a_to_b_runs_from_0_to_1():
    rng = np.random.default_rng(2)
    features = rng.normal(0, 0.1, (40, 300))
    is_b = np.arange(40) >= 20
    features[is_b, 0] += 5
    half_way = np.zeros((1, 300))
    half_way[0, 0] = 2.5
    scores = direction_scores(features, is_b, np.concatenate([features, half_way]), ridge=1e-3)
    assert scores[:20].max() < 0.1 and scores[20:40].min() > 0.9 and scores[40] == pytest.approx(0.5, abs=0.05)


def test_the_nearest_face_is_the_nearest():
    rng = np.random.default_rng(3)
    swaps, faces, masks = rng.uniform(0, 1, (3, 8, 8, 3)), rng.uniform(0, 1, (5, 8, 8, 3)), rng.uniform(0, 1, (5, 8, 8))
    nearest = [max(masked_psnr(swap[None], faces[[n]], masks[[n]])[0] for n in range(5)) for swap in swaps]
    assert _nearest_psnr(swaps, faces, masks) == pytest.approx(np.mean(nearest))


def test_signs_of_a_model_leave_it_as_it_was_and_are_numbers():
    rng = np.random.default_rng(4)
    model = tiny().initialise(1).train()
    a, b = (
        SideFaces(faces.transpose(0, 3, 1, 2).copy(), faces, np.ones((4, 64, 64)))
        for faces in rng.uniform(0, 1, (2, 4, 64, 64, 3)).astype(np.float32) * ((1.0,), (0.5,))[0]
    )
    found = signs(model, a, b)
    assert model.training and all(np.isfinite(value) for value in found.values())
    assert signs(model, a, b) == found, "nothing is drawn"
    same = signs(model, a, a)
    assert same["skin_a"] == 0 and same["distance"] < 1e-6, "A is B"
