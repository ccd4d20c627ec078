"""Where a batch says that its targets' landmarks are: against points in pictures, and against what is usual."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipelines.augmenters import make_augmenter
from pipelines.dataset import TrainSet
from pipelines.loader import TrainLoader
from pipelines.target_points import TargetPoints, mirrored
from swapfast.augment.draws import Draws, draw
from swapfast.config import AugmentationConfig, LossConfig, TrainConfig

SIZE = 64
EYES, MOUTH_CORNERS = (slice(36, 42), slice(42, 48)), (48, 54)


@pytest.fixture
def landmarks() -> list[np.ndarray]:
    """Points of 40 and of 25 faces, px."""
    rng = np.random.default_rng(4)
    face = rng.uniform(10, 54, (68, 2))
    return [face + side + rng.normal(0, 2, (faces, 68, 2)) for side, faces in ((0, 40), (3, 25))]


def _without_flips() -> AugmentationConfig:
    return AugmentationConfig(flip=False)


def test_of_faces_as_they_are_stored(landmarks, within):
    points = TargetPoints(landmarks, SIZE, _without_flips())
    ids = np.array([[0, 5, 39], [24, 3, 3]])
    found = points.of(ids, Draws.identity(6, SIZE))
    assert found.shape == (2, 3, 136) and found.dtype == np.float32
    apart = np.concatenate([side - side.mean(0) for side in landmarks])
    spread = np.sqrt(np.mean([np.mean((side - side.mean(0)) ** 2) for side in landmarks]))
    assert points.spread == pytest.approx(spread) and apart.std() == pytest.approx(spread, rel=0.05)
    for side, face in ((0, 1), (1, 2)):
        own = landmarks[side]
        expected = (own[ids[side, face]] - own.mean(0)) / spread
        # Values of up to 5, as float32.
        within("as stored", np.abs(found[side, face] - expected.reshape(136)).max(), 5e-7)


def test_points_lie_where_the_pictures_points_lie(landmarks, within):
    """A face is black but for a spot at one landmark; where the spot is in the target, there the point has to be."""
    config = AugmentationConfig(color=False, flip_chance=50.0, rotation_range=20.0, zoom_amount=10.0, shift_range=8.0)
    augment = make_augmenter("opencv", SIZE, SIZE, (SIZE,), torch.device("cpu"), config)
    number, faces = 30, 24
    inside = [np.clip(side[:faces], 20, 43) for side in landmarks]
    y, x = np.mgrid[:SIZE, :SIZE]
    spots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / 8) for side in inside for px, py in side[:, number]]
    pictures = np.repeat((255 * np.stack(spots))[..., None], 3, 3).astype(np.uint8)
    ids = np.tile(np.arange(faces), (2, 1))
    draws = draw(3, np.tile(np.arange(faces), 2), np.repeat([0, 1], faces), SIZE, config)
    assert 10 < draws.flip.sum() < 38
    targets = np.asarray(augment(pictures, np.zeros((2 * faces, 0, SIZE, SIZE), np.uint8), draws).targets[0])
    weights = targets.mean(1, dtype=float).reshape(2, faces, SIZE, SIZE)
    points = TargetPoints(inside, SIZE, config)
    found = points.of(ids, draws).reshape(2, faces, 68, 2) * points.spread + points.usual[:, None]
    worst = 0.0
    for side in (0, 1):
        for face in range(faces):
            # Point 30, the tip of the nose, keeps its number when a face is mirrored.
            weight = weights[side, face] ** 2  # the rim of the spot is lost to 8 bits
            centre = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
            worst = max(worst, np.abs(centre - found[side, face, number]).max())
    # OpenCV reads pictures at 1/32 px, and levels are whole numbers.
    within("from the spot, px", worst, 0.1)


def test_left_stays_left_when_a_face_is_mirrored(made_faces):
    sides = [TrainSet.from_folder(side.upper(), made_faces / side, SIZE) for side in "ab"]
    config = TrainConfig(loss=LossConfig(landmark_weight=10.0))
    points = TargetPoints.from_sides(sides, config)
    ids = np.zeros((2, 1), int)
    flipped = dataclasses.replace(Draws.identity(2, SIZE), flip=np.ones(2, bool))
    for draws in (Draws.identity(2, SIZE), flipped):
        found = points.of(ids, draws).reshape(2, 68, 2) * points.spread + points.usual
        for face in found:
            left, right = (face[eye].mean(0) for eye in EYES)
            assert left[0] < right[0] - 5 and face[MOUTH_CORNERS[0], 0] < face[MOUTH_CORNERS[1], 0] - 3
    assert TargetPoints.from_sides(sides, TrainConfig()) is None


def test_a_mirrored_face_mirrored_is_the_face(landmarks):
    np.testing.assert_allclose(mirrored(mirrored(landmarks[0], SIZE), SIZE), landmarks[0])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"flip_chance": 20.0}, {"flip": False}, {"flip_sides": ["b"]}], ids=str)
def test_what_is_usual_is_the_mean_of_what_is_drawn(landmarks, changes):
    """Of each side by itself, since what its codes are normalised by is its own too."""
    config = AugmentationConfig(**changes)
    points = TargetPoints(landmarks, SIZE, config)
    count = 6000
    rng = np.random.default_rng(1)
    ids = np.stack([rng.integers(0, len(side), count) for side in landmarks])
    draws = draw(5, np.tile(np.arange(count), 2), np.repeat([0, 1], count), SIZE, config)
    found = points.of(ids, draws)
    # Means of so many values have this error; the largest of 272 of them is below 4.5.
    assert (np.abs(found.mean(1)) < 4.5 * found.std(1) / np.sqrt(count)).all()


def test_a_side_of_one_face_has_points(landmarks):
    one = [side[:1] for side in landmarks]
    found = TargetPoints(one, SIZE, AugmentationConfig()).of(np.zeros((2, 2), int), Draws.identity(4, SIZE))
    assert np.isfinite(found).all() and np.abs(found).max() < 1e3


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 3])
def test_batches_have_the_points_of_their_faces(made_faces, together):
    config = TrainConfig(batch_size=6, loss=LossConfig(landmark_weight=10.0))
    folders = [made_faces / side for side in "ab"]
    loader = TrainLoader.from_folders(folders, SIZE, (SIZE,), config=config, backend="opencv")
    plain = TrainLoader.from_folders(folders, SIZE, (SIZE,), config=TrainConfig(batch_size=6), backend="opencv")
    batches = loader.batches(4, together)
    for batch in batches:
        draws, _ = loader.draws(batch.ordinals, batch.ids)
        expected = loader.points.of(batch.ids, draws)
        assert all(np.array_equal(got.numpy(), side) for got, side in zip(batch.landmarks, expected, strict=True))
        without = plain.batch(batch.step)
        assert without.landmarks is None and np.array_equal(without.inputs[0], batch.inputs[0])
        assert len(batch.tensors) == len(without.tensors) + 2
        moved = batch.map(lambda tensor: tensor + 1)
        assert np.array_equal(moved.landmarks[1], batch.landmarks[1] + 1)
