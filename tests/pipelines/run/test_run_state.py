"""What a run takes over from the checkpoint's JSON, which somebody may have edited."""

from __future__ import annotations

import importlib.metadata

import pytest

from pipelines.doctor import describe, examine
from pipelines.run.request import TrainRequest
from pipelines.run.resume import resumed
from pipelines.run.run_state import (
    changed_faces,
    faces_drawn,
    inherited_measurements,
    inherited_metrics,
    inherited_state,
    package_version,
    versions,
)
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.config import TrainConfig, updated


def _checkpoint(**state) -> Checkpoint:
    return Checkpoint(3, {}, {"config": TrainConfig().to_dict()} | state)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"batch_size": 8}, True),
        ({"loss.functions": ["mse", "ssim"]}, False),
        ({"loss.weights": [100.0, 50.0]}, False),
        ({"loss.eye_multiplier": 1.0}, False),
    ],
)
def test_the_lowest_loss_is_of_the_same_functions_and_weights(changes, kept):
    before = _checkpoint(metrics={"average_loss": 0.2, "lowest_average_loss": 0.1, "other": "x"})
    metrics = inherited_metrics(before, updated(TrainConfig(), changes))
    assert metrics == {"average_loss": 0.2} | ({"lowest_average_loss": 0.1} if kept else {})
    assert inherited_metrics(None, TrainConfig()) == {}


@pytest.mark.parametrize(
    ("validation", "digest", "kept"), [(0.1, "1", True), (0.0, "1", False), (0.1, "2", False), (0.1, None, False)]
)
def test_the_best_swap_is_of_the_same_held_out_faces(validation, digest, kept):
    """Of others it might never be reached again, so that the backup would stay what it is for good."""
    data = {side: {"digest": "1", "faces": 9} for side in "ab"}
    rows = [[2, 20.0, 21.0, 22.0]]
    before = _checkpoint(
        metrics={"swap_quality": 20.0, "highest_swap_quality": 21.0},
        measured=rows,
        data=data if digest is None else data | {"b": {"digest": digest}},
    )
    now = data | {"c": {"digest": "1", "faces": 3}} if digest is None else data  # a side more
    metrics = inherited_metrics(before, updated(TrainConfig(), {"validation": validation}), now)
    assert metrics == ({"swap_quality": 20.0, "highest_swap_quality": 21.0} if kept else {})
    assert inherited_measurements(before, now).rows == (rows if digest == "1" else [])
    assert inherited_measurements(None, now).rows == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", True])
def test_what_is_no_finite_number_is_not_inherited(value):
    """No later loss would be lower, so that no backup would ever be made again."""
    assert inherited_metrics(_checkpoint(metrics={"lowest_average_loss": value}), TrainConfig()) == {}


def test_a_model_from_before_a_setting_existed_goes_on_with_its_default(tmp_path):
    state = TrainConfig().to_dict()
    state["augmentation"] |= {"color_clahe_max_size": 3}
    del state["augmentation"]["color_clahe_clip_limit"]
    folder = CheckpointFolder(tmp_path)
    folder.save(Checkpoint(3, {}, {"config": state}))
    for changes, limit in (({}, 2.0), ({"augmentation.color_clahe_clip_limit": 4.0}, 4.0)):
        request = TrainRequest(updated(TrainConfig(), changes), changes)
        config, checkpoint, lines = resumed(request, folder)
        assert (config.augmentation.color_clahe_max_size, config.augmentation.color_clahe_clip_limit) == (3, limit)
        assert checkpoint.step == 3 and lines == []


@pytest.mark.parametrize("data", [[1], None, {"a": 3}, {"a": {"digest": "old"}}])
def test_what_is_no_table_says_nothing_of_the_faces(data):
    lines = changed_faces(_checkpoint(data=data), {"a": {"digest": "new", "faces": 7}})
    assert len(lines) == (1 if data == {"a": {"digest": "old"}} else 0)


def test_a_run_goes_on_behind_the_faces_that_were_drawn():
    """A checkpoint without their number, or with no number there, was drawn at its batch size from the first step."""
    stored = TrainConfig(batch_size=8).to_dict()
    assert faces_drawn(None) == 0
    assert faces_drawn(_checkpoint(config=stored)) == 24
    assert faces_drawn(_checkpoint(config=stored, faces_drawn={"a": 40, "b": 40})) == 40
    assert faces_drawn(_checkpoint(config=stored, faces_drawn={"a": 40, "b": 44})) == 44, "none is drawn again"
    for edited in (7, [40], {}, {"a": "40", "b": 40}, {"a": -1, "b": 40}, {"a": 2**63, "b": 0}, {"a": True}, None):
        assert faces_drawn(_checkpoint(config=stored, faces_drawn=edited)) == 24


def test_what_is_no_list_is_not_handed_on():
    assert inherited_state(_checkpoint(runs=3, overrides="x", lr_finder=0.1)) == {"lr_finder": 0.1}
    assert inherited_state(_checkpoint(runs=[{}], overrides=[])) == {"runs": [{}], "overrides": []}


def test_the_doctor_misses_kornia(monkeypatch):
    assert package_version("no-such-package") is None and versions()["kornia"]
    installed = importlib.metadata.version

    def without_kornia(name: str) -> str:
        if name == "kornia":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", without_kornia)
    assert versions()["kornia"] is None and versions()["kornia_rs"] and "kornia missing" in describe(examine())
