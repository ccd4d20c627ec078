"""`swapfast codes`: a plain model that was trained without statistics gets them, and its swaps exchange mean codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cli
from pipelines.pose_covariates import PoseCovariates
from pipelines.run.codes import measure_codes
from pipelines.run.validation import NO_AUGMENTATION
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.trained import open_model
from swapfast.config import CropConfig, ModelConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.models.registry import build_model
from swapfast.models.side_statistics import Rows

MOMENTS, STEPS = "statistics.encoder_5.moments", "statistics.encoder_5.steps"
SLOPES, SIDE_MEANS = "statistics.encoder_5.slopes", "statistics.encoder_5.side_means"


@pytest.fixture
def imported(tmp_path) -> CheckpointFolder:
    """A model as an import leaves it: weights without statistics, with averages of them, and no word of its faces."""
    config = TrainConfig(model=ModelConfig(name="tiny", exchange_codes=False))
    weights = dict(build_model(config.model, False, 1).named_parameters())
    averages = {f"500/{name}": 1.01 * weight.detach() for name, weight in weights.items()}
    averages |= {f"500/{MOMENTS}": torch.zeros(2, 2, 128), f"500/{STEPS}": torch.zeros(2), "@steps": torch.tensor(4)}
    averages[f"500/{SIDE_MEANS}"] = torch.full((2, 3), 7.0)  # of other faces
    faces = {f"mean_{side}": torch.full((64, 64, 3), 0.5) for side in "ab"}
    folder = CheckpointFolder(tmp_path / "m")
    tensors = {"model": weights, "optimizer": {}, "faces": faces, "ema": averages}
    folder.save(Checkpoint(7, tensors, {"config": config.checkpoint_dict(), "metrics": {"average_loss": 0.5}}))
    return folder


def _measure(folder, made_faces, *options):
    with folder.locked():
        return measure_codes(folder, {side: made_faces / side for side in "ab"}, torch.device("cpu"), *options)


@pytest.mark.slow
def test_the_mean_codes_are_those_of_all_faces(imported, made_faces):
    step, faces = _measure(imported, made_faces)
    assert step == 7 and faces == {"a": 14, "b": 9}, "each once"
    tensors = CheckpointFolder.read(imported.path(7)).tensors
    moments = tensors["model"][MOMENTS]
    assert tensors["model"][STEPS].tolist() == [1, 1] and not torch.equal(moments[0], moments[1])
    model = open_model(imported.folder, weights="raw").model
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exchanged = model.code(images, "b")
        model.exchange_mean_codes(False)
        kept = model.code(images, "b")
    assert not torch.equal(exchanged, kept)
    told = open_model(imported.folder, weights="raw", exchange_codes=False).model
    with torch.no_grad():
        assert torch.equal(told.code(images, "b"), kept)
    averages = tensors["ema"]
    assert not torch.equal(averages[f"500/{MOMENTS}"], moments) and averages[f"500/{STEPS}"].tolist() == [1, 1]
    assert averages["@steps"] == 4, "nothing else of them changes"


@pytest.mark.slow
def test_codes_are_exchanged_at_the_same_pose(imported, made_faces, within):
    """The slopes are those that the codes of all faces have, each side counting alike, and the model keeps the word."""
    _measure(imported, made_faces, "always")
    checkpoint = CheckpointFolder.read(imported.path(7))
    weights = checkpoint.tensors["model"]
    opened = open_model(imported.folder, weights="raw").model
    slopes = []
    tables = [scan_folder(made_faces / side).records for side in "ab"]
    covariates = PoseCovariates.from_tables(tables, NO_AUGMENTATION, "always")
    for number, table in enumerate(tables):
        crops = np.stack([crop_face(record, read_image(record.path), CropConfig(), 64) for record in table])
        images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
        kept = dict.fromkeys(opened.bottleneck())
        with torch.no_grad():
            opened.encode(images, [Rows(len(images), "ab"[number], "ab"[number])], kept)
        codes = kept["encoder.5"].double()
        about = covariates.of_side(number, np.arange(len(table)), np.zeros(len(table), bool)).astype(np.float64)
        slopes.append(((about - about.mean(0)).T @ (codes - codes.mean(0)).numpy()) / (len(table) - 1))
    expected = np.mean(slopes, 0)
    # Faces of the store are the same crops, decoded by DALI, a level or two apart here and there.
    error = np.abs(weights[SLOPES].numpy() - expected).max()
    within("slopes, of the largest", error / np.abs(expected).max(), 0.02)
    np.testing.assert_allclose(weights[SIDE_MEANS], covariates.side_means, rtol=1e-5)
    settings = checkpoint.state["config"]["model"]
    assert settings["comparable_poses"] == "always" and settings["exchange_codes"], "training goes on with it"
    averages = checkpoint.tensors["ema"]
    assert averages[f"500/{SLOPES}"].any() and torch.equal(averages[f"500/{SIDE_MEANS}"], weights[SIDE_MEANS])
    _measure(imported, made_faces, "off")
    off = load_file(imported.path(7) / "model.safetensors")
    assert torch.equal(off[MOMENTS], weights[MOMENTS]) and not off[SIDE_MEANS].any() and not off[SLOPES].any()


@pytest.mark.slow
def test_measuring_again_changes_nothing(imported, made_faces):
    _measure(imported, made_faces)
    before = load_file(imported.path(7) / "model.safetensors")
    _measure(imported, made_faces)
    after = load_file(imported.path(7) / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in imported.folder.iterdir() if path.is_dir()] == ["checkpoint-00000007"]


@pytest.mark.slow
def test_the_command(imported, made_faces, capsys):
    words = ["codes", "-m", str(imported.folder), "--device", "cpu"]
    assert cli.main(words) == 2
    assert "-A and -B: the model's state.json names none; give -A and the folder" in capsys.readouterr().err
    assert cli.main([*words, "-A", str(made_faces / "a"), "-B", str(made_faces / "b")]) == 0
    assert capsys.readouterr().out.startswith("iteration 7 knows the codes of ")
    figures = {}
    for flags in ((), ("--no-code-exchange",)):
        words = ["evaluate", "-m", str(imported.folder), "--truth", str(made_faces / "truth"), "--json", *flags]
        assert cli.main(words) == 0
        figures[flags] = json.loads(capsys.readouterr().out)
    assert figures[()]["swap_psnr"] != figures["--no-code-exchange",]["swap_psnr"]
    assert figures[()]["reconstruction_psnr"] == figures["--no-code-exchange",]["reconstruction_psnr"]
    state = json.loads((imported.path(7) / "state.json").read_text())
    assert state["step"] == 7 and state["metrics"] == {"average_loss": 0.5}


def test_a_model_that_normalises_keeps_the_statistics_of_its_training(imported, made_faces):
    config = TrainConfig(model=ModelConfig(name="tiny", code="bottleneck"))
    weights = build_model(config.model, False, 1).state_dict()
    tensors = {"model": weights, "optimizer": {}, "faces": {"mean_a": torch.zeros(64, 64, 3)}}
    imported.save(Checkpoint(8, tensors, {"config": config.checkpoint_dict()}))
    before = (imported.path(8) / "model.safetensors").read_bytes()
    with pytest.raises(SwapfastError, match=r"^--model-dir .*: --code bottleneck has both people's statistics"):
        _measure(imported, made_faces)
    assert (imported.path(8) / "model.safetensors").read_bytes() == before


def test_a_folder_without_a_model_is_named(tmp_path, made_faces):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(SwapfastError, match=r"^--model-dir .*: holds no model; train one"):
        _measure(folder, made_faces)


@pytest.mark.slow
def test_a_batch_too_small_for_statistics_is_refused(tmp_path, made_faces, capsys):
    sides = ["-A", str(made_faces / "a"), "-B", str(made_faces / "b"), "-m", str(tmp_path / "m"), "-t", "tiny"]
    assert cli.main(["train", *sides, "-i", "1", "-b", "3", "--code", "encoder", "--device", "cpu"]) == 2
    assert "-b/--batch-size 3: --code encoder normalises by the statistics" in capsys.readouterr().err
    assert cli.main(["train", *sides, "-i", "1", "-b", "4", "--code", "encoder", "--device", "cpu", "-n"]) == 0
