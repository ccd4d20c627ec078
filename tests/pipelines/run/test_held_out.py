"""The held-out faces as they are measured: those held out, never others, as they lie in the store."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from pipelines.collate import Collate
from pipelines.dataset import TrainSet, held_out_mask, open_source
from pipelines.fill import fill_store
from pipelines.run import validation
from pipelines.run.build import make_augmenter
from pipelines.run.validation import NO_AUGMENTATION, HeldOut
from pipelines.store import HostStore, StoreSpec
from swapfast.batch import MASK_NAMES
from swapfast.config import CropConfig, MaskConfig
from swapfast.faces.crop import crop_landmarks

SHARE = 0.4


@pytest.fixture(scope="module")
def sets(made_faces):
    """{'host': both sides from a store, 'off': both decoded every time}."""
    spec = StoreSpec(64, CropConfig(), MaskConfig(), MASK_NAMES)
    made = {"host": [], "off": []}
    for side in "ab":
        source = open_source(made_faces / side)
        store = HostStore.in_memory(spec, len(source))
        assert fill_store(spec, source, store) == {}
        made["host"].append(TrainSet.from_source(side.upper(), source, spec, store, share=SHARE))
        made["off"].append(TrainSet.from_source(side.upper(), source, spec, None, share=SHARE))
    return made


def _held_out(sets, device, backend="opencv", batch=2):
    augment = make_augmenter(backend, 64, 64, (64,), device, NO_AUGMENTATION)
    return HeldOut(sets, Collate(augment, backend == "kornia", MASK_NAMES, "bgr", device), 64, batch)


def _tensors(held):
    return [
        (side, batch.inputs[0].cpu(), batch.targets[0].cpu(), batch.meta.mask_face[0].cpu()) for side, batch in held
    ]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["opencv", "kornia"])
def test_they_are_the_faces_held_out_and_not_augmented(sets, device, backend):
    seen = {0: [], 1: []}
    for side, batch in _held_out(sets["host"], device, backend):
        (images,), (targets,) = batch.inputs, batch.targets
        assert targets.shape == (len(images), 1, 3, 64, 64) and len(images) <= 2 and batch.faces == len(images)
        torch.testing.assert_close(images, targets[:, 0], rtol=0, atol=1.01 / 255)
        seen[side] += list((targets[:, 0] * 255).permute(0, 2, 3, 1).cpu().numpy())
    for side, one in enumerate(sets["host"]):
        stored = one.store.faces[one.validation, ..., :3].astype(np.float32)
        assert (
            len(seen[side])
            == len(stored)
            == int(held_out_mask(one.source.folder.records.column("pixels"), SHARE).sum())
        )
        assert np.abs(np.stack(seen[side]) - stored).max() <= 1.01


@pytest.mark.slow
def test_every_time_and_from_every_cache_the_same(sets, device):
    first = _tensors(_held_out(sets["host"], device))
    assert {side for side, *_ in first} == {0, 1}
    decoded = _held_out(sets["off"], device)
    for again in (_held_out(sets["host"], device), decoded, decoded):
        for one, two in zip(first, _tensors(again), strict=True):
            assert one[0] == two[0] and all(map(torch.equal, one[1:], two[1:]))


@pytest.mark.slow
def test_one_that_cannot_be_read_is_named(made_faces, tmp_path, device):
    folder = tmp_path / "faces"
    shutil.copytree(made_faces / "a", folder)
    spec = StoreSpec(64, CropConfig(), MaskConfig(), MASK_NAMES)
    side = TrainSet.from_source("A", open_source(folder), spec, None, share=SHARE)
    broken = side.source.folder.records[int(side.validation_members[0])].path
    broken.unlink()
    said, augment = [], make_augmenter("opencv", 64, 64, (64,), device, NO_AUGMENTATION)
    held = HeldOut([side], Collate(augment, False, MASK_NAMES, "bgr", device), 64, 2, said.append)
    measured = [sum(batch.faces for _, batch in held) for _ in range(2)]
    assert measured == [min(validation.MAX_FACES, len(side.validation)) - 1] * 2
    assert len(said) == 1 and said[0].startswith(f"warning: {broken}: ") and "held out" in said[0]


def test_no_more_than_so_many(sets, device, monkeypatch):
    monkeypatch.setattr(validation, "MAX_FACES", 3)
    counts = {0: 0, 1: 0}
    for side, batch in _held_out(sets["host"], device):
        counts[side] += batch.faces
    assert counts == {side: min(3, len(one.validation)) for side, one in enumerate(sets["host"])}
    assert max(len(one.validation) for one in sets["host"]) > 3


@pytest.mark.parametrize("kind", ["host", "off"])
def test_landmarks_are_those_of_the_faces_in_their_order(sets, device, kind):
    held = _held_out(sets[kind], device)
    points = held.points()
    assert held.points() is points
    for number, side in enumerate(sets[kind]):
        records = [side.source.folder.records[int(member)] for member in side.validation_members]
        expected = np.stack([crop_landmarks(record, side.spec.crop, 64) for record in records])
        np.testing.assert_allclose(points[number], (expected + 0.5) / 64, rtol=1e-6)
        assert len(points[number]) == sum(batch.faces for one, batch in held if one == number)
