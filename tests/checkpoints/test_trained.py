"""Opening a trained model: which checkpoint it is, what it says of itself, and what cannot be opened."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.snapshots import Snapshots
from swapfast.checkpoints.trained import open_model
from swapfast.config import ModelConfig, OptimizerConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.models import build_model

CONFIG = TrainConfig(model=ModelConfig(name="tiny"))


def _save(folder: CheckpointFolder, step: int, **metrics: float) -> None:
    """A checkpoint whose weights and mean faces are those of seed ``step``."""
    model = build_model(CONFIG.model, CONFIG.loss.learn_mask, seed=step)
    faces = {f"mean_{side}": torch.full((128, 128, 3), (step + index) / 100) for index, side in enumerate("ab")}
    state = {"config": CONFIG.to_dict(), "metrics": {"average_loss": 0.5} | metrics}
    folder.save(Checkpoint(step, {"model": model.state_dict(), "optimizer": {}, "faces": faces}, state))


@pytest.fixture
def folder(tmp_path) -> CheckpointFolder:
    """Checkpoints of 6 and 8, snapshots of 4 and 8, and a backup of 2."""
    folder = CheckpointFolder(tmp_path / "model")
    snapshots = Snapshots(folder)
    for step in (2, 4, 6, 8):
        _save(folder, step)
        if step == 2:
            snapshots.back_up(step)
        if step in (4, 8):
            snapshots.snapshot(step)
    return folder


def _damage(path) -> None:
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()  # which may be a hard link
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _has_weights_of(model, seed: int) -> bool:
    expected = build_model(CONFIG.model, CONFIG.loss.learn_mask, seed).state_dict()
    return all(torch.equal(value.cpu(), expected[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "step, opened, name",
    [
        (None, 8, "checkpoint-00000008"),
        (8, 8, "checkpoint-00000008"),
        (6, 6, "checkpoint-00000006"),
        (4, 4, "snapshot-00000004"),
        (2, 2, "backup-00000002"),
        ("best", 2, "backup-00000002"),
    ],
)
def test_the_checkpoint_that_is_meant_is_opened(folder, device, step, opened, name):
    model, config, metadata = open_model(folder.folder, step, device)
    assert _has_weights_of(model, opened) and config == CONFIG
    assert not model.training and all(weight.device.type == device.type for weight in model.parameters())
    assert (metadata.step, metadata.path) == (opened, folder.folder / name) and name.startswith(metadata.kind)
    assert metadata.state["metrics"] == {"average_loss": 0.5} and metadata.remarks == []
    for index, side in enumerate("ab"):
        assert metadata.mean_faces[side].shape == (64, 64, 3), "those of 128 px at the size of the model"
        np.testing.assert_allclose(metadata.mean_faces[side], (opened + index) / 100, rtol=1e-6)


def test_opening_changes_nothing(folder):
    times = {path: path.stat().st_mtime_ns for path in folder.folder.rglob("*")}
    open_model(str(folder.folder))
    assert {path: path.stat().st_mtime_ns for path in folder.folder.rglob("*")} == times


def test_a_damaged_one_is_passed_over_with_a_remark(folder):
    _damage(folder.path(8))
    newest = open_model(folder.folder)
    assert newest.metadata.step == 6 and _has_weights_of(newest.model, 6)
    (remark,) = newest.metadata.remarks
    assert remark.startswith(f"{folder.path(8)} is damaged (")
    same_step = open_model(folder.folder, 8)
    assert same_step.metadata.kind == "snapshot" and _has_weights_of(same_step.model, 8)
    assert same_step.metadata.remarks == [remark]


@pytest.mark.parametrize("backup", ["damaged", "missing"])
def test_without_a_backup_the_best_is_the_newest(folder, backup):
    path = folder.folder / "backup-00000002"
    _damage(path) if backup == "damaged" else shutil.rmtree(path)
    metadata = open_model(folder.folder, "best").metadata
    assert metadata.step == 8 and metadata.kind == "checkpoint"
    assert metadata.remarks[-1] == f"{folder.folder}: there is no whole backup; opened the newest checkpoint"
    assert len(metadata.remarks) == (2 if backup == "damaged" else 1)


@pytest.mark.parametrize(("step", "opened"), [("auto", 8), (None, 8), ("newest", 8), ("best", 2)])
def test_a_run_that_measured_no_swap_is_opened_as_ever(folder, step, opened):
    metadata = open_model(folder.folder, step).metadata
    assert metadata.step == opened and metadata.remarks == []


@pytest.mark.slow
def test_where_the_swap_was_measured_the_best_is_opened_and_said(folder):
    _save(folder, 10, swap_quality=20.0, highest_swap_quality=21.0)
    metadata = open_model(folder.folder, "auto").metadata
    assert (metadata.step, metadata.kind) == (2, "backup")
    assert metadata.remarks == ["iteration 2 had the best swap and is used; --checkpoint newest takes iteration 10"]
    for step in ("newest", None):
        assert open_model(folder.folder, step).metadata.step == 10
        assert open_model(folder.folder, step).metadata.remarks == []

    _save(folder, 12, swap_quality=22.0, highest_swap_quality=22.0)
    Snapshots(folder).back_up(12)
    metadata = open_model(folder.folder, "auto").metadata
    assert (metadata.step, metadata.kind) == (12, "checkpoint")
    assert metadata.remarks == ["iteration 12, the newest, has the best swap so far"]

    shutil.rmtree(folder.folder / "backup-00000012")
    metadata = open_model(folder.folder, "auto").metadata
    assert metadata.step == 12 and metadata.remarks[0].endswith(
        "there is no whole backup; opened the newest checkpoint"
    )


@pytest.mark.slow
@pytest.mark.parametrize("highest", [None, "21", True, float("nan"), [1.0]])
def test_a_best_swap_that_is_no_number_is_none(folder, highest):
    _save(folder, 10, highest_swap_quality=highest)
    assert open_model(folder.folder, "auto").metadata.step == 10


def test_what_cannot_be_opened_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    _damage(folder.folder / "snapshot-00000004")
    for path, step, message in (
        (tmp_path / "none", None, r"--model-dir .*none: no such folder; give a model folder"),
        (tmp_path / "file", None, r"--model-dir .*file: is a file; give a model folder"),
        (tmp_path / "empty", None, r"--model-dir .*empty: holds no model; train one"),
        (tmp_path / "empty", "best", r"--model-dir .*empty: holds no model; train one"),
        (tmp_path / "empty", 3, r"--checkpoint 3: .*empty has no such iteration; train a model"),
        (folder.path(8), None, r"checkpoint-00000008: is a checkpoint; give the model folder around it"),
        (folder.folder, 5, r"--checkpoint 5: .*model has no such iteration; give one of 2, 4, 6, 8"),
        (folder.folder, 4, r"--checkpoint 4: .*snapshot-00000004 is damaged \(.*\); give one of 2, 6, 8"),
        (folder.folder, "worst", r"--checkpoint 'worst': give an iteration, best or newest"),
        (folder.folder, True, r"--checkpoint True: give an iteration, best or newest"),
    ):
        with pytest.raises(SwapfastError, match=message) as caught:
            open_model(path, step)
        assert caught.value.code == 2 and "\n" not in str(caught.value)


def test_a_checkpoint_without_a_mean_face_is_refused(tmp_path):
    folder = CheckpointFolder(tmp_path)
    model = build_model(CONFIG.model, CONFIG.loss.learn_mask, 1)
    tensors = {"model": model.state_dict(), "optimizer": {}, "faces": {"mean_a": torch.zeros(64, 64, 3)}}
    folder.save(Checkpoint(3, tensors, {"config": CONFIG.to_dict()}))
    with pytest.raises(SwapfastError, match=r"checkpoint-00000003: faces\.safetensors has no mean_b; restore a copy"):
        open_model(tmp_path)


@pytest.mark.parametrize("name", ["zz", "cuda:99", "cuda"])
def test_a_device_that_is_not_there_is_refused(folder, name):
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SwapfastError, match=rf"^--device {name}: "):
        open_model(folder.folder, device=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean_a", "mean_mask_b"])
@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(1.0),
        torch.zeros(0, 0, 3),
        torch.zeros(64, 64),
        torch.zeros(64, 32, 3),
        torch.full((64, 64, 3), torch.nan),
    ],
)
def test_a_mean_that_is_no_picture_is_refused(tmp_path, name, value):
    model = build_model(CONFIG.model, CONFIG.loss.learn_mask, 1)
    faces = {"mean_a": torch.zeros(64, 64, 3), "mean_b": torch.zeros(64, 64, 3)}
    faces |= {"mean_mask_a": torch.zeros(64, 64, 1), "mean_mask_b": torch.zeros(64, 64, 1)} | {name: value}
    tensors = {"model": model.state_dict(), "optimizer": {}, "faces": faces}
    CheckpointFolder(tmp_path).save(Checkpoint(1, tensors, {"config": CONFIG.to_dict()}))
    with pytest.raises(SwapfastError, match=f"{name} in faces.safetensors is no picture"):
        open_model(tmp_path)


def test_mean_masks_have_the_size_of_the_model(tmp_path):
    model = build_model(CONFIG.model, CONFIG.loss.learn_mask, 1)
    faces = {f"mean_{side}": torch.zeros(128, 128, 3) for side in "ab"}
    faces |= {f"mean_mask_{side}": torch.full((128, 128, 1), value) for side, value in (("a", 0.25), ("b", 0.75))}
    tensors = {"model": model.state_dict(), "optimizer": {}, "faces": faces}
    CheckpointFolder(tmp_path).save(Checkpoint(1, tensors, {"config": CONFIG.to_dict()}))
    masks = open_model(tmp_path).metadata.mean_masks
    assert all(mask.shape == (64, 64, 1) and mask.dtype == np.float32 for mask in masks.values())
    assert (masks["a"] == 0.25).all() and (masks["b"] == 0.75).all()


def _save_averages(path, averages: dict[str, torch.Tensor], ema: str = "500,20") -> None:
    """A checkpoint of seed 1, with these tensors as its averages."""
    model = build_model(CONFIG.model, CONFIG.loss.learn_mask, seed=1)
    faces = {f"mean_{side}": torch.zeros(64, 64, 3) for side in "ab"}
    config = TrainConfig(model=ModelConfig(name="tiny"), optimizer=OptimizerConfig(ema=ema))
    tensors = {"model": model.state_dict(), "optimizer": {}, "faces": faces, "ema": averages}
    CheckpointFolder(path).save(Checkpoint(3, tensors, {"config": config.to_dict()}))


@pytest.mark.slow
def test_averaged_weights_are_opened_unless_told_otherwise(tmp_path):
    averages = {"@waiting": torch.tensor(3), "20/@steps": torch.tensor(3)}
    for half_life, seed in ((20, 2), (500, 3)):
        weights = build_model(CONFIG.model, CONFIG.loss.learn_mask, seed).state_dict()
        averages |= {f"{half_life}/{name}": weight for name, weight in weights.items()}
    frozen = [name for name in averages if name.startswith("500/encoder")]
    _save_averages(tmp_path, {name: tensor for name, tensor in averages.items() if name not in frozen})
    for weights, seed, name in (
        ("raw", 1, "raw"),
        ("ema-20", 2, "ema-20"),
        ("ema", 3, "ema-500"),
        ("auto", 3, "ema-500"),
    ):
        model, _, metadata = open_model(tmp_path, weights=weights)
        assert metadata.weights == name
        assert torch.equal(model.get_parameter("decoders.b.face.3.bias"), _weights_of(seed)["decoders.b.face.3.bias"])
        first = _weights_of(1 if seed == 3 else seed)["encoder.0.0.weight"]
        assert torch.equal(model.get_parameter("encoder.0.0.weight"), first), "what was frozen is as it is"
    for weights, said in (
        ("ema-7", r"^--weights ema-7: \S+ has ema-500 and ema-20: give one of them"),
        ("ena", r"^unknown --weights 'ena'\. Did you mean 'ema'\?"),
    ):
        with pytest.raises(SwapfastError, match=said):
            open_model(tmp_path, weights=weights)


def _weights_of(seed: int) -> dict[str, torch.Tensor]:
    return build_model(CONFIG.model, CONFIG.loss.learn_mask, seed).state_dict()


def test_a_checkpoint_without_averages_says_so(folder):
    assert open_model(folder.folder).metadata.weights == "raw"
    for weights in ("ema", "ema-500"):
        with pytest.raises(
            SwapfastError, match=rf"^--weights {weights}: \S+00008 has no averaged weights: give raw, or"
        ):
            open_model(folder.folder, weights=weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "averages",
    [
        {"500/none": torch.zeros(3)},
        {"500/encoder.0.0.bias": torch.zeros(3)},
        {"500/encoder.0.0.bias": torch.zeros(16, dtype=torch.int64)},
    ],
)
def test_averages_of_another_model_are_refused_and_the_weights_can_be_had(tmp_path, averages):
    _save_averages(tmp_path, averages)
    with pytest.raises(
        SwapfastError, match=r"00003: \S+ in ema\.safetensors is no weight of the model; .*--weights raw"
    ):
        open_model(tmp_path)
    assert _has_weights_of(open_model(tmp_path, weights="raw").model, 1)


def test_names_that_are_none_of_an_average_are_left_alone(tmp_path):
    names = ("500", "/x", "0/x", "-5/x", "9" * 40 + "/x", "1e3/x", "@", "5/@steps")
    _save_averages(tmp_path, {name: torch.zeros(3) for name in names})
    assert open_model(tmp_path).metadata.weights == "raw"
