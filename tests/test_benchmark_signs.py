"""What can be told of a swap without the truth: the arithmetic of each sign."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.signs import area_under_curve, direction_scores, separability, signs
from swapfast.models.tiny import tiny
from swapfast.swap.quality import SideFaces


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


@pytest.mark.slow
def test_signs_of_a_model_leave_it_as_it_was_and_are_numbers():
    rng = np.random.default_rng(4)
    model = tiny().initialise(1).train()
    a, b = (
        SideFaces(faces.transpose(0, 3, 1, 2).copy(), faces, np.ones((4, 64, 64)))
        for faces in rng.uniform(0, 1, (2, 4, 64, 64, 3)).astype(np.float32)
    )
    found = signs(model, a, b)
    assert model.training and all(np.isfinite(value) for value in found.values())
    assert signs(model, a, b) == found, "nothing is drawn"
    same = signs(model, a, a)
    assert same["skin_a"] == 0 and same["distance"] < 1e-6, "A is B"


def test_swaps_are_compared_with_faces_of_b_in_the_light_of_a():
    rng = np.random.default_rng(5)
    model = tiny().initialise(1)
    a, b = (
        SideFaces(faces.transpose(0, 3, 1, 2).copy(), faces, np.ones((4, 64, 64)))
        for faces in rng.uniform(0, 1, (2, 4, 64, 64, 3)).astype(np.float32)
    )
    light = (0.5, 0.75, 1.5)
    found, drawn = (
        signs(model, a, b, light),
        signs(model, a, dataclasses.replace(b, faces=np.minimum(b.faces * np.float32(light), 1))),
    )
    of_swaps = ("quality", "pose_near", "pose_near_matched", "near", "near_matched", "skin", "likeness")
    assert all(found[name] == drawn[name] for name in of_swaps)
    without = signs(model, a, b)
    assert all(found[name] != without[name] for name in of_swaps)
    assert found["again"] == without["again"] != drawn["again"], "B's own faces are made in B's light"
