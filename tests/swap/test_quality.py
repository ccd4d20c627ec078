"""How good a swap is without the truth, against the plain way to write it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swapfast.faces.orientation import MIRRORED
from swapfast.swap.figures import masked_psnr, match_colors
from swapfast.swap.quality import swap_quality


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
