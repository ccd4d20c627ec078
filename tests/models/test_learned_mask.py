"""A learned mask, whichever the family: from the loss to what a swap gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from swapfast.batch import SIDES, BatchMeta
from swapfast.config import ModelConfig
from swapfast.losses.collator import LossCollator
from swapfast.models import FaceAutoencoder, build_model
from swapfast.models.registry import MODELS
from swapfast.swap.apply import all_swaps

pytestmark = pytest.mark.slow  # every family

DIMS = {"input_size": 64, "ae_dims": 16, "e_dims": 4, "d_dims": 4}
FAMILIES = [
    ("tiny", {}),
    ("original", {"encoder_width": 8, "dense": 16, "bottleneck": "4x4x16"}),
    ("df-ud", DIMS),
    ("liae-ud", DIMS),
    ("liae-t", DIMS),
    ("lightweight", {}),
]


def _losses(model: FaceAutoencoder, images: list[torch.Tensor], masks: torch.Tensor) -> list[torch.Tensor]:
    """The mask's loss of each side, of all its faces."""
    loss = LossCollator(["mse"], [1.0], "bgr", True, 1.0, 1.0, 64, "mae")
    return [
        loss([images[side]], outputs, BatchMeta(mask_face=[masks[side]])).mask.mean()
        for side, outputs in enumerate(model(images))
    ]


def test_every_family_is_among_these():
    assert {name.partition("-")[0] for name, _ in FAMILIES} == MODELS.keys()


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setattr("swapfast.models.lightweight.ENCODER_WIDTHS", (8, 8, 16))
    monkeypatch.setattr("swapfast.models.lightweight.UP_WIDTHS", (16, 8, 8))
    for name, channels in (("DENSE", 16), ("BOTTLENECK_WIDTH", 16), ("CODE_CHANNELS", 8)):
        monkeypatch.setattr(f"swapfast.models.lightweight.{name}", channels)


@pytest.mark.parametrize(("name", "sizes"), FAMILIES)
def test_the_loss_moves_each_sides_mask_towards_its_own(name, sizes):
    """Every layer of the mask is reached and none of the face, and a step along the gradient lowers the loss."""
    model = build_model(ModelConfig(name=name, **sizes), True, seed=1)
    images = list(torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(3)))
    masks = torch.zeros(2, 1, 1, 64, 64)
    masks[0, ..., :32] = masks[1, ..., 32:] = 1  # A's is the left half, B's the right one
    before = torch.stack(_losses(model, images, masks))
    before.sum().backward()
    for side in SIDES:
        decoder = model.decoder(side)
        assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in decoder.mask.parameters())
        assert all(weight.grad is None for weight in decoder.face.parameters())
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    assert all(weight.grad.abs().max() > 0 for weight in weights)
    size = torch.stack([weight.grad.square().sum() for weight in weights]).sum()
    with torch.no_grad():
        for weight in weights:
            weight -= 1e-4 / size * weight.grad
        after = torch.stack(_losses(model, images, masks))
    assert after.sum() < before.sum()


@pytest.mark.parametrize(("name", "sizes"), FAMILIES)
def test_a_swap_gives_the_mask_of_the_side_that_comes_out(name, sizes):
    model = build_model(ModelConfig(name=name, **sizes), True, seed=1)
    faces = np.random.default_rng(1).random((2, 1, 3, 64, 64), np.float32)
    swaps = all_swaps(model, faces)
    assert swaps.shape == (2, 2, 1, 64, 64, 4)
    with torch.no_grad():
        own = model([torch.from_numpy(side) for side in faces])
        for source, to in np.ndindex(2, 2):
            images = torch.from_numpy(faces[source])
            face, mask = model.decoder(SIDES[to])(model.code(images, SIDES[to]))
            assert mask.shape == (1, 1, 64, 64)
            expected = torch.cat([face, mask], 1).permute(0, 2, 3, 1)
            torch.testing.assert_close(torch.from_numpy(swaps[source, to]), expected)
            if source == to:
                torch.testing.assert_close(torch.from_numpy(swaps[source, to, ..., 3]), own[to][-1][:, 0])
    assert np.abs(swaps[0, 0, ..., 3] - swaps[0, 1, ..., 3]).max() > 1e-4, "each side has its own"
