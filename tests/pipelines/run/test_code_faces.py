"""The statistics of both people's codes in a checkpoint: of its own weights, by faces as training shows them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cli
from pipelines.dataset import TrainSet, open_source
from pipelines.loader import TrainLoader
from pipelines.run.code_faces import AS_THEY_ARE, AUGMENTED, SampleLoader, SingleFaces
from pipelines.store import StoreSpec
from swapfast.batch import SIDES
from swapfast.checkpoints.trained import open_model
from swapfast.config import AugmentationConfig, ModelConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.models.registry import build_model
from swapfast.models.side_statistics import Rows, SideStatistics, with_mean
from swapfast.training.code_statistics import COLOR_DIRECTIONS, FACES_AT_ONCE
from tests.toy import SIZE, toy


def _samples(folder: Path, config: TrainConfig, model, size: int) -> SampleLoader:
    """Return what a run has that trains ``model`` on the faces of a folder."""
    sides = [TrainSet.from_folder(side, folder / side, size, config.crop, config.mask, ()) for side in SIDES]
    loader = TrainLoader.from_folders([folder / side for side in SIDES], size, (size,), config=config)
    return SampleLoader(sides, model, loader)


def _batches(folder: Path, config: TrainConfig) -> list:
    """Return the first batches of a training, of as many faces as are normalised together."""
    config = dataclasses.replace(config, batch_size=FACES_AT_ONCE)
    loader = TrainLoader.from_folders([folder / side for side in SIDES], 64, (64,), config=config)
    return [loader.batch(step) for step in range(AUGMENTED // FACES_AT_ONCE)]


def _means(of_values: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean and the mean square of features (n, C, ...), (2, C) float64."""
    values = torch.cat([part.double().transpose(0, 1).flatten(1) for part in of_values], 1)
    return torch.stack([values.mean(1), values.square().mean(1)])


def _moments(model, batches: list) -> dict[str, torch.Tensor]:
    """Return each layer's moments (sides, 2, C), where each batch is normalised as in training."""
    seen = {name: ([], []) for name, _ in model.statistics.named_children()}

    def keep(name):
        def hook(layer: SideStatistics, given, _):
            features, rows = given
            for of_side, part in zip(seen[name], features.split([part.faces for part in rows]), strict=True):
                of_side.append(part)

        return hook

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in model.statistics.named_children()]
    model.train()
    for batch in batches:
        rows = [
            Rows(FACES_AT_ONCE, side, side, covariates=with_mean(values))
            for side, values in zip(SIDES, batch.covariates, strict=True)
        ]
        with torch.no_grad():
            model.encode(torch.cat(batch.inputs), rows)
    for hook in hooks:
        hook.remove()
    return {name: torch.stack([_means(of_side) for of_side in of_sides]) for name, of_sides in seen.items()}


def _own_colors(model, samples: SampleLoader) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each side's codes of faces as they are lie, (sides, C) float64, and on what colours move: (C, C)."""
    path = model.code_layer()
    slopes, means, moves = model.statistics_behind(path).slopes.double(), [], []
    for side, faces in zip(SIDES, samples.own_colors(), strict=True):
        shown = [torch.from_numpy(images).float() / 255 for images in (faces.images, faces.recolored_images)]
        code = {path: None}
        with torch.no_grad():
            model.encode(torch.cat(shown), [Rows(sum(map(len, shown)), side, side)], code)
        own, recolored = code[path].double().split([len(images) for images in shown])
        moves.append(recolored - own[: len(recolored)])
        means.append(own.mean(0) - torch.from_numpy(faces.covariates) @ slopes)
    between = torch.cat(moves).T @ torch.cat(moves)
    directions = torch.linalg.eigh(between)[1][:, -COLOR_DIRECTIONS:]
    return torch.stack(means), directions @ directions.T


@pytest.fixture
def train(made_faces, tmp_path, capsys):
    """Train in a folder up to an iteration; return the weights, and the averages under '3/'."""
    words = ["-A", made_faces / "a", "-B", made_faces / "b", "-t", "tiny", "-b", 4, "--preview-images", 1, "-n"]
    words += ["--device", "cpu", "--ema", "3", "--set", "augmentation.color=true"]

    def run(folder: str, iterations: int, *flags: str) -> dict[str, torch.Tensor]:
        code = cli.main([*map(str, ["train", *words, "-m", tmp_path / folder, "-i", iterations, *flags])])
        assert code == 0, capsys.readouterr().err
        saved = tmp_path / folder / f"checkpoint-{iterations:08}"
        return load_file(saved / "model.safetensors") | {
            f"3/{name}": value for name, value in load_file(saved / "ema.safetensors").items()
        }

    return run


@pytest.mark.slow
def test_a_checkpoint_has_the_statistics_of_its_own_weights(made_faces, tmp_path, train, within):
    some = ["--set", "augmentation.color_chance=60"]
    whole = train("whole", 6, *some)
    for weights in ("raw", "ema-3"):
        opened = open_model(tmp_path / "whole", 6, weights=weights)
        model, batches = opened.model, _batches(made_faces, opened.config)
        # Of the same faces, to the byte, by float32 sums of some thousand products in another order.
        for name, expected in _moments(model, batches).items():
            found = model.statistics[name].moments.double()
            apart = ((found - expected).abs() / (1 + expected.abs())).max().item()
            within(f"{name} by {weights} weights", apart, 1e-4)
        statistics = model.eval().statistics_behind(model.code_layer())
        means, onto_colors = _own_colors(model, _samples(made_faces, opened.config, model, 64))
        expected = means @ onto_colors
        found = statistics.uncolored_sums / statistics.uncolored_faces[:, None]
        within(f"own colours by {weights} weights", (found - expected).abs().max().item(), 1e-4)
        assert (expected[1] - expected[0]).abs().max() > 0.01
    train("parts", 3, *some)
    parts = train("parts", 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    without = train("parts", 8, "--set", "augmentation.color_chance=100")
    assert not any(value.any() for name, value in without.items() if "uncolored" in name), "nobody tells any more"
    alike = train("alike", 2)
    assert not any(value.any() for name, value in alike.items() if "uncolored" in name)


@pytest.mark.slow
@pytest.mark.parametrize("colors", ["color_chance=60", "color_chance=100", "color=false"])
def test_plain_codes_that_are_exchanged_have_means_of_their_own_weights(colors, made_faces, tmp_path, train, within):
    """Of faces as training shows them, but in their own colours, also where training never shows those."""
    flags = ["--code", "plain", "--set", f"augmentation.{colors}"]
    whole = train("whole", 6, *flags)
    for weights in ("raw", "ema-3"):
        opened = open_model(tmp_path / "whole", 6, weights=weights)
        model, batches = opened.model, _batches(made_faces, opened.config)
        ((_, augmented),) = _moments(model, batches).items()
        statistics = model.eval().statistics_behind(model.code_layer())
        means, onto_colors = _own_colors(model, _samples(made_faces, opened.config, model, 64))
        means += statistics.side_means.double() @ statistics.slopes.double()
        of_colors = (means - augmented[:, 0]) @ onto_colors
        assert of_colors.abs().max() > 0.01
        expected = augmented[:, 0] + (0 if colors == "color=false" else of_colors)
        apart = ((statistics.moments[:, 0].double() - expected).abs() / (1 + expected.abs())).max().item()
        within(f"mean codes by {weights} weights", apart, 1e-4)  # as above
        scale, offset = statistics.scale_and_offset("a", "b")
        of_poses = (statistics.side_means[1] - statistics.side_means[0]) @ statistics.slopes
        assert torch.equal(scale, torch.ones_like(scale))
        apart = offset + of_poses - (expected[1] - expected[0])
        of_both = 2e-4 * (1 + expected.abs().max().item())  # what both means may be off by
        within(f"a swap by {weights} weights", apart.abs().max().item(), of_both)
    assert not any(value.any() for name, value in whole.items() if "uncolored" in name)
    train("parts", 3, *flags)
    parts = train("parts", 6, *flags)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_plain_codes_that_are_not_exchanged_keep_running_means(made_faces, tmp_path, train, within):
    """As the peer's recipe has it: after a step they are those of its batch by the weights that it began with."""
    with_exchange = train("with", 1, "--code", "plain")
    without_exchange = train("without", 1, "--code", "plain", "--no-code-exchange")
    (name,) = (name for name in without_exchange if name.endswith(".moments") and not name.startswith("3/"))
    config = open_model(tmp_path / "without", 1).config
    model = build_model(config.model, False, config.seed)
    batch = TrainLoader.from_folders([made_faces / side for side in SIDES], 64, (64,), config=config).batch(0)
    for number, (side, faces) in enumerate(zip(SIDES, batch.inputs, strict=True)):
        with torch.no_grad():
            expected = model.eval().code_features(faces, side).mean(0)
        within(f"mean code of {side}", (without_exchange[name][number, 0] - expected).abs().max().item(), 1e-4)
        assert (with_exchange[name][number, 0] - expected).abs().max() > 1e-3
    assert all(
        torch.equal(with_exchange[key], without_exchange[key]) for key in without_exchange if "statistics" not in key
    )


def test_the_faces_are_those_of_a_training(made_faces, within):
    """In other colours or their own, moved, mirrored and warped, and with their poses."""
    config = TrainConfig(
        batch_size=FACES_AT_ONCE,
        augmentation=AugmentationConfig(color_chance=60.0, flip_sides=["b"], flip_chance=30.0),
        model=ModelConfig(code="encoder", comparable_poses="auto"),
    )
    loader = TrainLoader.from_folders([made_faces / side for side in SIDES], SIZE, (SIZE,), config=config)
    sides = [TrainSet.from_folder(side, made_faces / side, SIZE, config.crop, config.mask, ()) for side in SIDES]
    samples, batch = _samples(made_faces, config, toy(), SIZE), loader.batch(1)
    part = slice(FACES_AT_ONCE, 2 * FACES_AT_ONCE)
    for number, faces in enumerate(samples.augmented()):
        assert faces.images.shape == (AUGMENTED, 3, SIZE, SIZE) and faces.images.dtype == np.uint8
        seen = torch.from_numpy(faces.images[part]).float() / 255
        within("levels", (seen - batch.inputs[number]).abs().max().item(), 0.5 / 255 + 1e-6)
        assert np.array_equal(faces.covariates[part], batch.covariates[number].numpy())
    for number, (faces, mirrored) in enumerate(zip(samples.own_colors(), (0.0, 0.3), strict=True)):
        own, turned = np.split(faces.images, 2)
        ids = np.concatenate([loader.sampler.ids(step)[number] for step in range(AS_THEY_ARE // FACES_AT_ONCE)])
        plain = sides[number].store.faces[sides[number].rows[ids]][..., :3].transpose(0, 3, 1, 2)
        assert np.array_equal(own, plain) and np.array_equal(turned, plain[..., ::-1])
        assert np.allclose(np.split(faces.weights, 2), [[1 - mirrored], [mirrored]])
        poses = [loader.covariates.of_side(number, ids, np.full(len(ids), flip)).mean(0) for flip in (False, True)]
        within("pose", np.abs(faces.covariates - np.average(poses, 0, [1 - mirrored, mirrored])).max(), 1e-5)
        assert faces.recolored_images.shape == plain.shape
        changed = np.abs(faces.recolored_images.astype(float) - plain).mean((1, 2, 3))
        assert (changed > 0).mean() > 0.9 and changed.mean() > 3, "levels of 255; none keeps its colours by choice"


@pytest.mark.parametrize(
    "settings",
    [{"warp_to_landmarks": True}, {"warp": False}, {"flip": False}, {"color": False}, {"color_chance": 25.0}],
    ids=str,
)
def test_whatever_a_training_does_with_faces_the_same_ones_tell_their_colors(made_faces, settings):
    """A start with -M ended with a line about flags that nobody had given."""
    config, usual = (TrainConfig(augmentation=AugmentationConfig(**given)) for given in (settings, {}))
    found, expected = (_samples(made_faces, one, toy(), SIZE).own_colors() for one in (config, usual))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.images, theirs.images) and np.array_equal(
            ours.recolored_images, theirs.recolored_images
        )


def test_a_face_that_cannot_be_read_is_replaced(made_faces, damaged):
    """Where no store holds them."""
    config = TrainConfig()
    spec = StoreSpec(SIZE, config.crop, config.mask, ())
    side = TrainSet.from_source("A", open_source(damaged), spec, None)
    other = TrainSet.from_folder("B", made_faces / "b", SIZE, config.crop, config.mask, ())
    faces, masks, ids = SingleFaces([side, other])(0, np.array([[2, 3, 13], [0, 8, 0]]))
    assert ids.tolist() == [[2, 4, 13], [0, 8, 0]] and masks.shape == (6, 0, SIZE, SIZE)
    assert np.array_equal(faces[4], other.store.faces[8][..., :3])
    again = TrainSet.from_folder("A", made_faces / "a", SIZE, config.crop, config.mask, ())
    assert np.array_equal(faces[1], again.store.faces[4][..., :3])
    for path in damaged.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(SwapfastError, match="no face of it can be read"):
        SingleFaces([side, other])(0, np.array([[2], [0]]))
