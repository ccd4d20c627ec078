"""What can be told of a swap without the truth: the arithmetic of each sign, against the plain way to write it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from swapfast.faces.orientation import MIRRORED
from swapfast.models.tiny import tiny
from swapfast.swap.figures import masked_psnr, match_colors
from swapfast.swap.quality import SideFaces, area_under_curve, direction_scores, separability, signs, swap_quality


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


def _psnr(first: np.ndarray, second: np.ndarray, mask: np.ndarray, matched: bool = False) -> float:
    images, expected, masks = (np.ascontiguousarray(x[None]) for x in (first, second, mask))
    return masked_psnr(match_colors(images, expected, masks) if matched else images, expected, masks)[0]


def test_a_swap_is_compared_with_the_nearest_of_the_faces_in_its_pose(within):
    rng = np.random.default_rng(3)
    swaps, faces = rng.uniform(0, 1, (3, 8, 8, 3)), rng.uniform(0, 1, (15, 8, 8, 3))
    masks, points = rng.uniform(0, 1, (15, 8, 8)), (rng.normal(0, 1, (3, 68, 2)), rng.normal(0, 1, (15, 68, 2)))
    tensors = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (swaps, faces, masks[..., None])]
    found = swap_quality(*tensors, tuple(map(torch.from_numpy, points)))
    faces, masks = np.concatenate([faces, faces[:, :, ::-1]]), np.concatenate([masks, masks[:, :, ::-1]])
    turned = points[1][:, list(MIRRORED)] * (-1, 1) + (1, 0)
    distances = np.linalg.norm((points[0][:, None] - np.concatenate([points[1], turned])).reshape(3, 30, -1), axis=2)
    alike = distances.argsort(1)[:, :10]
    for matched, tag in ((False, "swap/near"), (True, "swap/near_matched")):
        expected = [
            max(_psnr(swap, faces[n], masks[n], matched) for n in row) for swap, row in zip(swaps, alike, strict=True)
        ]
        within(f"{tag}, dB", abs(found[tag] - np.mean(expected)), 1e-6)  # float64, by another formula
    assert found["swap/quality"] == pytest.approx((found["swap/near"] + found["swap/near_matched"]) / 2)
    anywhere = swap_quality(*tensors, None)
    assert anywhere["swap/near"] >= found["swap/near"], "of all faces one is at least as near"


def test_a_face_to_the_other_side_is_a_face_to_this_side_mirrored():
    rng = np.random.default_rng(6)
    face = torch.from_numpy(rng.uniform(0, 1, (1, 3, 16, 16)))
    points = torch.from_numpy(rng.uniform(0, 1, (2, 68, 2)))
    others = torch.from_numpy(rng.uniform(0, 1, (1, 3, 16, 16)))
    faces, masks = torch.cat([face, others.expand(11, -1, -1, -1)]), torch.ones(12, 1, 16, 16)
    mirrored = points[:1, list(MIRRORED)] * torch.tensor((-1, 1)) + torch.tensor((1, 0))
    of_b = torch.cat([mirrored, points[1:].expand(11, -1, -1)])
    assert swap_quality(face.flip(3), faces, masks, (points[:1], of_b))["swap/near"] > 90


def test_another_skin_and_another_pose_are_told():
    """A perfect swap ranks over one in A's colour, and that over one that shows B in another pose."""
    rng = np.random.default_rng(5)
    faces = torch.from_numpy(rng.uniform(0.2, 0.8, (40, 3, 16, 16)))
    points = (
        torch.arange(40.0)[:, None, None].expand(-1, 68, 2) * 0 + torch.arange(40.0)[:, None, None]
    )  # a pose for each, the neighbours' the most alike
    masks = torch.ones(40, 1, 16, 16)

    def quality(swaps: torch.Tensor) -> dict[str, float]:
        return swap_quality(swaps, faces, masks, (points, points))

    true, tinted, turned = quality(faces), quality(faces + 0.1), quality(faces.roll(20, 0))
    assert true["swap/quality"] > 99 > tinted["swap/quality"] > turned["swap/quality"]
    assert tinted["swap/near"] == pytest.approx(20, abs=1e-6) and tinted["swap/near_matched"] > 60


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
