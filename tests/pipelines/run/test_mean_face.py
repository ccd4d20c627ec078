"""The mean face of a side: its arithmetic, and when the one of a checkpoint still holds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipelines.dataset import TrainSet
from pipelines.run.mean_face import mean_crop, mean_faces
from pipelines.run.run_state import run_state
from pipelines.store import HostStore
from swapfast.checkpoints.folder import Checkpoint
from swapfast.config import TrainConfig, updated

SIZE = 48
KEPT = {
    name: torch.full((SIZE, SIZE, channels), value)
    for side, value in (("a", 0.25), ("b", 0.75))
    for name, channels in ((f"mean_{side}", 3), (f"mean_mask_{side}", 1))
}


@pytest.fixture(scope="module")
def sides(made_faces) -> list[TrainSet]:
    return [TrainSet.from_folder(name.upper(), made_faces / name, SIZE) for name in "ab"]


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return TrainConfig()


def _mean_face(side: TrainSet) -> torch.Tensor:
    return mean_crop(side)[..., :3]


def _checkpoint(config: TrainConfig, sides: list[TrainSet]) -> Checkpoint:
    return Checkpoint(3, {"faces": dict(KEPT)}, run_state(config, sides))


@pytest.mark.slow
@pytest.mark.parametrize("masks", [(), ("eye", "mouth"), ("face", "eye", "mouth")])
def test_it_is_the_mean_of_the_training_crops(made_faces, masks):
    side = TrainSet.from_folder("A", made_faces / "a", SIZE, masks=masks)
    some = dataclasses.replace(side, rows=side.rows[::2], members=side.members[::2])
    expected = (side.store.faces[::2, ..., :3].astype(np.float64).mean(0) / 255).astype(np.float32)
    assert mean_crop(some).shape == (SIZE, SIZE, 4 if "face" in masks else 3)
    np.testing.assert_array_equal(_mean_face(some).numpy(), expected)
    decoded = _mean_face(dataclasses.replace(some, store=None))
    np.testing.assert_array_equal(decoded.numpy(), expected)


def test_many_bright_faces_add_up_exactly(sides):
    """1024 faces at most: their sums stay below what float32 counts one by one."""
    faces = np.full((3, SIZE, SIZE, 4), 255, np.uint8)
    faces[0] = 254
    store = HostStore(sides[0].spec, faces, np.zeros((3, 2, SIZE, SIZE), np.uint8))
    rows = np.arange(5000) % 3
    many = dataclasses.replace(sides[0], store=store, rows=rows, members=rows)
    chosen = rows[np.linspace(0, 4999, 1024).round().astype(int)]
    expected = np.float32(faces[chosen, 0, 0, 0].astype(np.float64).mean() / 255)
    assert (_mean_face(many).numpy() == expected).all()


def test_a_checkpoint_of_the_same_faces_has_it(sides, config):
    data = run_state(config, sides)["data"]
    for name, mean in mean_faces(sides, config, _checkpoint(config, sides), data).items():
        assert torch.equal(mean, KEPT[name]), "taken, not computed"


@pytest.mark.parametrize("state", [None, {}, {"data": None}, {"data": {"a": {}, "b": 3}}])
def test_it_is_computed_where_there_is_none(state, sides, config):
    data = run_state(config, sides)["data"]
    before = None if state is None else _checkpoint(config, sides)
    if before is not None:
        before.state.pop("data")
        before.state |= state
    means = mean_faces(sides, config, before, data)
    for name, side in zip("ab", sides, strict=True):
        assert torch.equal(torch.cat([means[f"mean_{name}"], means[f"mean_mask_{name}"]], 2), mean_crop(side))


def test_it_is_computed_for_the_side_whose_faces_have_changed(sides, config):
    before = _checkpoint(config, sides)
    fewer = [dataclasses.replace(sides[0], rows=sides[0].rows[1:], members=sides[0].members[1:]), sides[1]]
    means = mean_faces(fewer, config, before, run_state(config, fewer)["data"])
    assert torch.equal(means["mean_a"], _mean_face(fewer[0]))
    assert torch.equal(means["mean_b"], KEPT["mean_b"])


def test_it_is_computed_where_faces_are_cut_in_another_way(sides, config):
    before = _checkpoint(updated(config, {"crop.coverage": 70.0}), sides)
    data = run_state(config, sides)["data"]
    assert torch.equal(mean_faces(sides, config, before, data)["mean_a"], _mean_face(sides[0]))
    before = _checkpoint(config, sides)
    before.tensors["faces"]["mean_a"] = torch.zeros(32, 32, 3)  # another size
    assert torch.equal(mean_faces(sides, config, before, data)["mean_a"], _mean_face(sides[0]))


def test_the_mean_mask_is_kept_where_there_are_masks(sides, config):
    data = run_state(config, sides)["data"]
    former = _checkpoint(config, sides)
    former.tensors["faces"] = {name: KEPT[name] for name in ("mean_a", "mean_b")}
    means = mean_faces(sides, config, former, data)
    assert means.keys() == {"mean_a", "mean_b", "mean_mask_a", "mean_mask_b"}
    for name, side in zip("ab", sides, strict=True):
        expected = (side.store.faces[..., 3:].astype(np.float64).mean(0) / 255).astype(np.float32)
        np.testing.assert_array_equal(means[f"mean_mask_{name}"].numpy(), expected)
        assert torch.equal(means[f"mean_{name}"], _mean_face(side)), "a former version kept no masks"
    marked = {name: torch.full_like(mean, 0.5) for name, mean in means.items()}
    before = Checkpoint(3, {"faces": marked}, run_state(config, sides))
    again = mean_faces(sides, config, before, data)
    assert all(torch.equal(again[name], marked[name]) for name in means)
    grown = mean_faces(sides, updated(config, {"mask.dilation": 5.0}), before, data)
    assert all(torch.equal(grown[name], means[name]) for name in means), "masks of other settings"
