"""Faces that keep their colours while others are augmented, from the draws to the checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cli
from pipelines.loader import TrainLoader
from swapfast.config import AugmentationConfig, TrainConfig
from swapfast.models.side_statistics import UNCOLORED_STEPS


def test_a_batch_says_which_of_its_faces_keep_their_colors(made_faces):
    folders = [made_faces / side for side in "ab"]
    config = TrainConfig(batch_size=16, augmentation=AugmentationConfig(color_chance=60.0))
    loader = TrainLoader.from_folders(folders, 64, (64,), config=config)
    batch = loader.batch(3)
    draws, _ = loader.draws(batch.ordinals, batch.ids)
    found = torch.cat(batch.uncolored).numpy()
    assert np.array_equal(found, draws.uncolored) and 0 < found.sum() < 32
    moved = batch.map(lambda tensor: tensor + 1)
    assert torch.equal(moved.uncolored[1], batch.uncolored[1] + 1)
    assert [tensor for tensor in batch.tensors if tensor is batch.uncolored[0]], "it goes where the others go"
    halves = loader.batches(3, 1)[0].split(2)
    assert torch.equal(torch.cat([half.uncolored[1] for half in halves]), batch.uncolored[1])
    usual = TrainLoader.from_folders(folders, 64, (64,), config=TrainConfig(batch_size=16)).batch(3)
    assert usual.uncolored is None, "all are alike"
    off = TrainConfig(batch_size=16, augmentation=AugmentationConfig(color=False, color_chance=60.0))
    plain = TrainLoader.from_folders(folders, 64, (64,), config=off).batch(3)
    assert torch.cat(plain.uncolored).all(), "a run that ends without colours goes on seeing its faces"


@pytest.mark.slow
def test_a_run_sees_them_and_goes_on_to_the_bit(made_faces, tmp_path, capsys):
    words = ["-A", made_faces / "a", "-B", made_faces / "b", "-t", "tiny", "-b", 4, "--preview-images", 1, "-n"]
    words += ["--device", "cpu", "--ema", "3", "--set", "augmentation.color=true"]
    some = ["--set", "augmentation.color_chance=60"]

    def train(folder: str, iterations: int, *flags: str) -> dict[str, torch.Tensor]:
        code = cli.main([*map(str, ["train", *words, "-m", tmp_path / folder, "-i", iterations, *flags])])
        assert code == 0, capsys.readouterr().err
        return load_file(tmp_path / folder / f"checkpoint-{iterations:08}" / "model.safetensors")

    last = UNCOLORED_STEPS + 2
    whole = train("whole", last, *some)
    seen = [name for name, value in whole.items() if name.endswith("uncolored_faces") and value.any()]
    assert len(seen) == 1 and whole[seen[0]].min() > 0 and whole[seen[0]].max() <= 2 * 4, "two looks at a batch of 4"
    assert whole[seen[0].replace("_faces", "_sums")].any(1).all()
    train("parts", UNCOLORED_STEPS - 1, *some)
    parts = train("parts", last)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    without = train("parts", last + 3, "--set", "augmentation.color_chance=100")
    assert not any(value.any() for name, value in without.items() if "uncolored" in name), "nobody tells any more"
    alike = train("alike", UNCOLORED_STEPS + 1)
    assert not any(value.any() for name, value in alike.items() if "uncolored" in name)
