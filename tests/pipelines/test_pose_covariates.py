"""By what the codes of two people are compared: what is told of a face, and how much of a difference counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cli
from pipelines.loader import TrainLoader
from pipelines.pose_covariates import (
    ALIGNED,
    FURTHEST,
    LEAST_SPREAD,
    PITCH_LIMIT,
    PoseCovariates,
    beyond,
    pitch_difference,
    pose_of_faces,
)
from pipelines.target_points import TargetPoints
from swapfast.checkpoints.trained import open_model
from swapfast.config import AugmentationConfig, LossConfig, ModelConfig, TrainConfig
from swapfast.faces.folder import scan_folder
from swapfast.faces.matching import aligned_landmarks

NO_FLIP = AugmentationConfig(flip=False)


def _sides(yaw: float = 0.0, pitch: float = 0.0, mouth: float = 0.0, spread: float = 8.0) -> list[np.ndarray]:
    """Values of 300 faces of A and 200 of B, whose means differ by this much."""
    rng = np.random.default_rng(5)
    own = [rng.normal(0, spread, (faces, 3)) for faces in (300, 200)]
    apart = np.array([yaw, pitch, mouth])
    return [own[0] - own[0].mean(0) + 3, own[1] - own[1].mean(0) + 3 + apart]


def test_values_are_deviations_from_the_middle_of_the_sides(within):
    values = _sides(yaw=6.0, pitch=30.0, mouth=-4.0)
    covariates = PoseCovariates(values, NO_FLIP, pitch_limit=0.0)
    assert covariates.difference == pytest.approx([6, 30, -4])
    ids = np.stack([np.arange(300), np.arange(300) % 200])
    of_a, of_b = covariates.of(ids, np.zeros(600, bool))
    of_b = of_b[:200]  # each of B's once
    covariance = (np.cov(of_a.T, bias=True) + np.cov(of_b.T, bias=True)) / 2
    within("covariance of both sides", np.abs(covariance - np.eye(3)).max(), 1e-5)  # of float32
    for of_side, mean in zip((of_a, of_b), covariates.side_means, strict=True):
        within("mean of a side", np.abs(of_side.mean(0) - mean).max(), 1e-5)
    np.testing.assert_allclose(covariates.side_means[0], -covariates.side_means[1])
    # The nearest to the three numbers themselves that has no correlation: each is its own, in its own unit.
    assert all(np.corrcoef(of_a[:, k], values[0][:, k])[0, 1] > 0.99 for k in range(3))


def test_of_a_difference_in_pitch_what_two_heads_may_make_does_not_count():
    for pitch, kept in ((PITCH_LIMIT, 0.0), (-PITCH_LIMIT / 2, 0.0), (2 * PITCH_LIMIT, 1.5 * PITCH_LIMIT)):
        covariates = PoseCovariates(_sides(yaw=2.0, pitch=pitch), NO_FLIP)
        assert covariates.difference == pytest.approx([2.0, kept, 0.0], abs=1e-9), pitch
        values = covariates.of(np.arange(200)[None].repeat(2, 0), np.zeros(400, bool))
        assert np.abs(values[1].mean(0) - covariates.side_means[1]).max() < 1e-5, "faces are counted from the same"
    assert beyond(0.0, 0.0) == 0 and beyond(-30.0, 10.0) == pytest.approx(-30 * (1 - 1 / 9))


def _two_people(pitch: float, rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Values and landmarks of two people with heads of their own, B of whom looks down by ``pitch`` further.

    B's nose lets headers tell 9 degrees more than there are.
    """
    moves = rng.normal(0, 0.3, (3, 136))
    head = rng.uniform(10, 90, 136)
    values, landmarks = [], []
    for side, faces in enumerate((300, 200)):
        poses = rng.normal(0, (15.0, 6.0, 8.0), (faces, 3)) + side * np.array([5.0, pitch, -3.0])
        person = head + side * rng.normal(0, 2.0, 136)
        landmarks.append((person + poses @ moves + rng.normal(0, 0.3, (faces, 136))).reshape(-1, 68, 2))
        values.append(poses + side * np.array([0.0, 9.0, 0.0]))
    return values, landmarks


def test_who_looks_down_is_told_by_all_landmarks_and_not_by_a_long_nose(within):
    for pitch in (0.0, 15.0, -20.0):
        found = [pitch_difference(*_two_people(pitch, np.random.default_rng(seed))) for seed in range(5)]
        # A head that is 2 px apart from another in each of 136 coordinates, which move by 0.3 px a degree: 2 / 0.3 over
        # the root of 136 is a deviation of 0.6 degrees; four of these, and what 500 faces leave of the slopes.
        within(f"of {pitch:g} degrees", max(abs(value - pitch) for value in found), 2.6)
        values, _ = _two_people(pitch, np.random.default_rng(0))
        assert values[1][:, 1].mean() - values[0][:, 1].mean() > pitch + 7


def test_one_picture_a_side_is_taken_as_its_header_says():
    values = [np.array([[3.0, -20.0, 0.0]]), np.array([[-3.0, 5.0, 1.0]])]
    points = [np.zeros((1, 68, 2)), np.ones((1, 68, 2))]
    assert pitch_difference(values, points) == 25.0
    assert PoseCovariates(values, NO_FLIP, 0.0, 25.0).difference[1] == 18.0, "no further than can be learned"


def test_faces_that_are_mirrored_look_the_other_way():
    values = _sides(yaw=20.0)
    for chance, side_means in ((50.0, 0.0), (25.0, 5.0), (0.0, 10.0)):
        covariates = PoseCovariates(values, AugmentationConfig(flip_chance=chance))
        # Means of 3 and 23 degrees, of which a share is turned round.
        assert covariates.difference[0] == pytest.approx(2 * side_means), chance
        drawn = [covariates.of(np.arange(200)[None].repeat(2, 0), np.full(400, flip)) for flip in (False, True)]
        means = (1 - chance / 100) * drawn[0][1].mean(0) + chance / 100 * drawn[1][1].mean(0)
        np.testing.assert_allclose(means, covariates.side_means[1], atol=1e-5)
        squares = [np.square(flipped[1] - means)[:, 0].mean() for flipped in drawn]
        of_b = (1 - chance / 100) * squares[0] + chance / 100 * squares[1]
        assert of_b == pytest.approx(1 + covariates.side_covariances[1, 0, 0], abs=1e-4), "of what is drawn"
    ids = np.array([[0, 0], [1, 1]])
    mirrored = np.array([False, True, False, True])
    straight, turned = PoseCovariates(values, AugmentationConfig()).of(ids, mirrored).swapaxes(0, 1)
    assert straight[:, 0] == pytest.approx(-turned[:, 0]) and straight[:, 1:] == pytest.approx(turned[:, 1:])
    one = PoseCovariates(values, AugmentationConfig(flip_sides=["a"]))
    assert one.difference[0] == pytest.approx(23.0), "B's alone are not mirrored"


def test_how_much_more_a_side_turns_than_the_other(within):
    rng = np.random.default_rng(8)
    values = [rng.normal(0, (2.0, 8.0, 9.0), (4000, 3)), rng.normal(0, (14.0, 8.0, 9.0), (4000, 3))]
    covariates = PoseCovariates(values, NO_FLIP)
    # Variances of 4 and 196, whose mean is 100; those of 4000 faces are known to 2 %.
    for side, apart in enumerate((-0.96, 0.96)):
        within("of yaw", abs(covariates.side_covariances[side, 0, 0] - apart), 0.05)
        within("of the others", np.abs(covariates.side_covariances[side, 1:]).max(), 0.1)
    still = PoseCovariates(values, AugmentationConfig()).side_covariances
    within("mirrored", abs(still[0, 0, 0] + 0.96), 0.05)


def test_a_side_of_one_picture_moves_nothing_out_of_reach():
    covariates = PoseCovariates([np.array([[-40.0, -20.0, 0.0]]), np.array([[40.0, 60.0, 30.0]])], NO_FLIP)
    assert (np.abs(covariates.difference) <= 2 * FURTHEST * LEAST_SPREAD).all()
    assert np.abs(covariates.side_means).max() == pytest.approx(FURTHEST) and not covariates.side_covariances.any()
    found = covariates.of(np.zeros((2, 1), int), np.zeros(2, bool))[:, 0]
    np.testing.assert_allclose(found, covariates.side_means, atol=1e-6)
    assert np.isfinite(covariates.slopes([np.zeros((1, 4)), np.zeros((1, 4))])).all()


def test_the_line_says_who_looks_where():
    assert PoseCovariates(_sides(), NO_FLIP).line() is None
    assert PoseCovariates(_sides(pitch=PITCH_LIMIT, mouth=4.0, yaw=4.0), NO_FLIP).line() is None
    said = PoseCovariates(_sides(yaw=-30.0, pitch=20.0, mouth=-9.0), NO_FLIP).line()
    down = beyond(20.0, PITCH_LIMIT)
    assert f"B looks 30 degrees further right and {down:.0f} degrees further down and with the mouth less open" in said


def test_an_open_mouth_is_told_whatever_the_size_and_turn_of_the_head(made_faces):
    table = scan_folder(made_faces / "a").records
    values = pose_of_faces(table)
    points = table.column("landmarks").astype(float)
    eyes = np.linalg.norm(points[:, 36:42].mean(1) - points[:, 42:48].mean(1), axis=1)
    expected = 100 * np.linalg.norm(points[:, 62] - points[:, 66], axis=1) / eyes
    assert np.corrcoef(values[:, 2], expected)[0, 1] > 0.9 and values[:, 2].min() >= 0
    assert np.array_equal(values[:, :2], table.column("angles")[:, [1, 0]])


def test_landmarks_are_told_from_where_both_sides_look(within):
    """Two people whose heads are alike, one of whom looks up: at the same pose they have the same target."""
    rng = np.random.default_rng(3)
    head, moves = rng.uniform(10, 54, (68, 2)), rng.normal(0, 1, (3, 136))
    values = _sides(pitch=40.0, yaw=10.0)
    covariates = PoseCovariates(values, NO_FLIP, pitch_limit=0.0)
    landmarks = [head + (of_side / 8 @ moves).reshape(-1, 68, 2) for of_side in values]
    points = TargetPoints(landmarks, 64, NO_FLIP, covariates)
    within("where both usually are, px", np.abs(points.usual[0] - points.usual[1]).max(), 1e-9)
    without = TargetPoints(landmarks, 64, NO_FLIP)
    assert np.abs(without.usual[0] - without.usual[1]).max() > 3


def _config(poses: str, code: str = "encoder", **augmentation) -> TrainConfig:
    return TrainConfig(
        batch_size=5,
        model=ModelConfig(name="tiny", code=code, comparable_poses=poses),
        loss=LossConfig(landmark_weight=10.0),
        augmentation=AugmentationConfig(**augmentation),
    )


def test_batches_have_the_covariates_of_their_faces(made_faces):
    folders = [made_faces / side for side in "ab"]
    loader = TrainLoader.from_folders(folders, 64, [64], config=_config("always", flip_chance=30.0))
    first, second = loader.batches(3, 2)
    again = loader.batch(4)
    for side in range(2):
        assert first.covariates[side].shape == (5, 3)
        assert np.array_equal(second.covariates[side], again.covariates[side]), "whatever is made at once"
    flips = loader.draws(loader.sampler.ordinals(4), loader.sampler.ids(4))[0].flip
    assert flips.any() and not flips.all()
    expected = loader.covariates.of(again.ids, flips)
    assert all(np.array_equal(expected[side], again.covariates[side].numpy()) for side in range(2))


@pytest.mark.parametrize(("poses", "code"), [("off", "encoder"), ("auto", "plain")])
def test_where_nothing_is_compared_batches_have_none(made_faces, poses, code):
    """Plain codes without the exchange of their means have nothing to compare."""
    config = _config(poses, code)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, exchange_codes=False))
    loader = TrainLoader.from_folders([made_faces / side for side in "ab"], 64, [64], config=config)
    assert loader.covariates is None and loader.batch(0).covariates is None
    compared = TrainLoader.from_folders([made_faces / side for side in "ab"], 64, [64], config=_config("always"))
    assert not np.array_equal(loader.points.usual, compared.points.usual)


@pytest.mark.slow
def test_a_run_goes_on_with_the_poses_compared_as_before(made_faces, tmp_path, capsys):
    """To the bit; a person is told who looks where, and ``off`` leaves nothing of it in the weights."""
    words = ["-A", made_faces / "a", "-B", made_faces / "b", "-t", "tiny", "-b", 4, "--preview-images", 1, "-n"]
    words += ["--device", "cpu", "-P"]

    def train(folder: str, iterations: int, *flags: str) -> tuple[dict[str, torch.Tensor], str]:
        code = cli.main([*map(str, ["train", *words, "-m", tmp_path / folder, "-i", iterations, *flags])])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return load_file(tmp_path / folder / f"checkpoint-{iterations:08}" / "model.safetensors"), printed.out

    whole, said = train("whole", 4, "--comparable-poses", "always")
    values = [pose_of_faces(scan_folder(made_faces / side).records) for side in "ab"]
    points = [aligned_landmarks(scan_folder(made_faces / side).records, ALIGNED, 100) for side in "ab"]
    expected = PoseCovariates(values, NO_FLIP, 0.0, pitch_difference(values, points))
    assert (expected.line() or "no line") in said
    layers = [name.removesuffix(".slopes") for name in whole if name.endswith(".slopes")]
    assert len(layers) == 5 and all(whole[f"{layer}.slopes"].any() for layer in layers)
    for layer in layers:
        np.testing.assert_allclose(whole[f"{layer}.side_means"], expected.side_means, rtol=1e-5)
        np.testing.assert_allclose(whole[f"{layer}.side_covariances"], expected.side_covariances, rtol=1e-5, atol=1e-6)
    train("parts", 2, "--comparable-poses", "always")
    parts, _ = train("parts", 4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    off, said = train("parts", 5, "--comparable-poses", "off")
    assert "poses:" not in said and not any(off[f"{layer}.side_means"].any() for layer in layers)


def test_poses_that_nothing_is_compared_by_are_refused(made_faces, tmp_path, capsys):
    words = ["train", "-A", str(made_faces / "a"), "-B", str(made_faces / "b"), "-m", str(tmp_path / "m"), "-i", "1"]
    words += ["-t", "tiny", "--code", "plain", "--no-code-exchange"]
    assert cli.main([*words, "--comparable-poses", "auto"]) == 2
    assert "--comparable-poses auto: has no effect with --no-code-exchange" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_plain_codes_train_as_without_and_are_exchanged_at_the_same_pose(made_faces, tmp_path, capsys):
    """The weights are the same to the bit; a run goes on with the same slopes."""
    words = ["train", "-A", made_faces / "a", "-B", made_faces / "b", "-t", "tiny", "-b", 4, "--code", "plain"]
    words += ["--device", "cpu", "-P", "-n", "--preview-images", 1, "--ema", "off", "--cycle-weight", 0]

    def train(folder: str, iterations: int, *flags: str) -> dict[str, torch.Tensor]:
        assert cli.main([*map(str, [*words, "-m", tmp_path / folder, "-i", iterations, *flags])]) == 0
        capsys.readouterr()
        return load_file(tmp_path / folder / f"checkpoint-{iterations:08}" / "model.safetensors")

    whole = train("whole", 4, "--comparable-poses", "always", "--landmark-weight", "0")
    without = train("without", 4, "--comparable-poses", "off", "--landmark-weight", "0")
    assert all(torch.equal(whole[name], without[name]) for name in whole if not name.startswith("statistics."))
    assert whole["statistics.encoder_5.slopes"].any() and not without["statistics.encoder_5.slopes"].any()
    train("parts", 2, "--comparable-poses", "always", "--landmark-weight", "0")
    parts = train("parts", 4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    layer = open_model(tmp_path / "whole").model.statistics["encoder_5"]
    apart = layer.moments[1, 0] - layer.moments[0, 0]
    of_poses = (layer.side_means[1] - layer.side_means[0]) @ layer.slopes
    torch.testing.assert_close(layer.scale_and_offset("a", "b")[1], apart - of_poses, rtol=1e-5, atol=1e-7)
