"""Batches: what is in them, and that nothing but (seed, step) decides it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import time

import cv2
import numpy as np
import pytest
import torch

from pipelines import decode
from pipelines.cache import cached_store
from pipelines.collate import Collate
from pipelines.dataset import TrainSet
from pipelines.feed import DecodeFeed, DeviceFeed, HostFeed
from pipelines.loader import BatchSchedule, TrainLoader
from pipelines.preview import PreviewLoader, PreviewSet, Timelapse
from pipelines.run.build import make_augmenter
from pipelines.sampler import Sampler
from pipelines.side_light import SideLight
from swapfast.augment.fused.verified import VerifiedAugmenter
from swapfast.batch import MASK_NAMES
from swapfast.config import AugmentationConfig, CropConfig, MaskConfig, ModelConfig, PreviewConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.matching import LandmarkMatcher
from swapfast.models import build_model
from swapfast.preview.samples import Samples

STILL = {"color": False, "flip": False, "warp": False, "zoom_amount": 0, "rotation_range": 0, "shift_range": 0}


@pytest.fixture(scope="module")
def sides(made_faces):
    return [TrainSet.from_folder(side.upper(), made_faces / side, 64) for side in "ab"]


@pytest.fixture
def make(sides, device):
    def loader(
        backend="opencv",
        seed=7,
        batch=6,
        config=None,
        start=0,
        color_order="bgr",
        prefetch=2,
        sets=None,
        feed=None,
        rank=0,
        world=1,
        matcher=None,
        workers=1,
        batches_per_call=1,
        threads=1,
        light=None,
    ):
        sets = sets or sides
        sampler = Sampler(seed, tuple(map(len, sets)), batch, rank, world)
        collate = Collate(
            make_augmenter(backend, 64, 64, (64,), device, callers=workers),
            backend == "kornia",
            MASK_NAMES,
            color_order,
            device,
        )
        feed = feed(sets, sampler) if feed else HostFeed(sets, device if backend == "kornia" else None)
        config = config or AugmentationConfig()
        schedule = BatchSchedule(prefetch, workers, batches_per_call, threads)
        return TrainLoader(feed, sampler, collate, config, 64, start, matcher, schedule, light=light)

    return loader


@pytest.fixture(scope="module")
def matcher(sides):
    return LandmarkMatcher.from_records([side.source.folder.records for side in sides], 64, "face", 1.0, 0.0)


def _tensors(batch) -> list[torch.Tensor]:
    return [*batch.inputs, *batch.targets, *batch.meta.mask_face, *batch.meta.mask_eye, *batch.meta.mask_mouth]


def _equal(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_tensors(one), _tensors(two), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "color_order"), [(0.0, "bgr"), (0.0, "rgb"), (0.1, "bgr")])
def test_kernels_write_batches_over_former_ones_where_a_step_reads_a_few_memories(make, device, noise, color_order):
    """Not where channels are turned afterwards, nor where kornia takes the kernels' place."""
    loader = make("kornia", color_order=color_order)
    composed = loader.collate.augment

    def writes(faces, extra_masks, draws, out=None):
        result = composed(faces, extra_masks, draws)
        result.feed.add_(noise)
        for place, pixels in zip(_all(out or result), _all(result), strict=True):
            place.copy_(pixels)
        return out or result

    augment = VerifiedAugmenter(lambda: writes, composed, lambda line: None)
    loader.collate = Collate(augment, True, MASK_NAMES, color_order, device, memories=3)
    places = []
    for batch, wanted in zip(itertools.islice(loader, 8), make("kornia", color_order=color_order)):
        assert _equal(batch, wanted)
        places.append((batch.slot, *(tensor.data_ptr() for tensor in _tensors(batch))))
    if noise or color_order == "rgb":
        assert {slot for slot, *_ in places} == {None}
    else:
        assert [slot for slot, *_ in places] == [0, 1, 2, 0, 1, 2, 0, 1] and len(set(places)) == 3
        with pytest.raises(ValueError, match="2 memories for 2 batches made ahead"):
            TrainLoader(
                loader.feed,
                loader.sampler,
                Collate(augment, True, MASK_NAMES, device=device, memories=2),
                loader.config,
                64,
                schedule=loader.schedule,
            )


def _all(augmented) -> list[torch.Tensor]:
    return [augmented.feed, *augmented.targets, *augmented.masks]


@pytest.mark.parametrize("backend", ["opencv", "kornia"])
def test_shapes_and_ranges(make, device, backend):
    batch = make(backend).batch(3)
    assert batch.step == 3 and batch.faces == 12
    assert [tuple(t.shape) for t in batch.inputs] == [(6, 3, 64, 64)] * 2
    assert [tuple(t.shape) for t in batch.targets] == [(6, 2, 3, 64, 64)]
    for mask in (*batch.meta.mask_face, *batch.meta.mask_eye, *batch.meta.mask_mouth):
        assert tuple(mask.shape) == (6, 2, 1, 64, 64)
    for tensor in _tensors(batch):
        assert tensor.device.type == device.type and tensor.dtype == torch.float32
        assert tensor.min() >= 0 and tensor.max() <= 1 and tensor.std() > 0.01
    side = batch.meta[1]
    assert torch.equal(side.mask_eye[0], batch.meta.mask_eye[0][:, 1]) and side.mask_eye[0].shape == (6, 1, 64, 64)


@pytest.mark.parametrize("backend", ["opencv", "kornia"])
def test_with_everything_off_a_batch_is_what_the_store_holds(make, sides, backend):
    """The right face in the right place, its own masks, A first, BGR."""
    batch = make(backend, config=AugmentationConfig(**STILL)).batch(0)
    for side in range(2):
        for place, face in enumerate(batch.ids[side]):
            stored = sides[side].store
            expected = torch.from_numpy(stored.faces[face].copy()).permute(2, 0, 1) / 255
            torch.testing.assert_close(batch.targets[0][place, side].cpu(), expected[:3], atol=1e-4, rtol=0)
            torch.testing.assert_close(batch.inputs[side][place].cpu(), expected[:3], atol=1e-4, rtol=0)
            torch.testing.assert_close(batch.meta.mask_face[0][place, side].cpu(), expected[3:], atol=1e-4, rtol=0)
            eye, mouth = torch.from_numpy(stored.extra_masks[face].copy()) / 255
            torch.testing.assert_close(batch.meta.mask_eye[0][place, side, 0].cpu(), eye, atol=1e-4, rtol=0)
            torch.testing.assert_close(batch.meta.mask_mouth[0][place, side, 0].cpu(), mouth, atol=1e-4, rtol=0)


def test_a_model_that_wants_rgb_gets_it_once(make):
    bgr, rgb = make().batch(1), make(color_order="rgb").batch(1)
    assert torch.equal(bgr.inputs[0].flip(1), rgb.inputs[0])
    assert torch.equal(bgr.targets[0].flip(2), rgb.targets[0])
    assert not torch.equal(bgr.targets[0], rgb.targets[0])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["opencv", "kornia"])
def test_a_batch_is_a_function_of_seed_and_step(make, backend):
    straight = list(itertools.islice(make(backend), 5))
    late = list(itertools.islice(make(backend, start=3, prefetch=1), 2))
    assert [b.step for b in straight] == [0, 1, 2, 3, 4] and [b.step for b in late] == [3, 4]
    assert all(_equal(a, b) for a, b in zip(straight[3:], late))
    assert not _equal(straight[0], straight[1])
    assert not _equal(straight[0], make(backend, seed=8).batch(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule", [{"prefetch": 4, "workers": n} for n in (1, 2, 3)] + [{"prefetch": 0, "batches_per_call": 5}]
)
def test_held_batches_keep_their_pixels(make, schedule):
    """Nothing that comes later, or is made at the same time, writes into a batch that is still in use."""
    held = list(itertools.islice(make(**schedule), 12))
    assert [batch.step for batch in held] == list(range(12))
    again = make()
    assert all(_equal(batch, again.batch(batch.step)) for batch in held)


@pytest.mark.slow
@pytest.mark.parametrize("rank, world", [(0, 1), (1, 4)])
@pytest.mark.parametrize("batches_per_call", [1, 3, 8])
def test_batches_made_together_are_those_made_one_by_one(make, matcher, batches_per_call, rank, world):
    """Over the end of an epoch (9 faces, 6 a step), with landmarks, started anew in the middle, for each rank."""
    ours = {"matcher": matcher, "rank": rank, "world": world}
    straight = list(itertools.islice(make(prefetch=0, batches_per_call=batches_per_call, threads=2, **ours), 7))
    late = list(itertools.islice(make(prefetch=0, batches_per_call=batches_per_call, start=4, **ours), 3))
    alone = make(**ours)
    for batch in (*straight, *late):
        expected = alone.batch(batch.step)
        assert _equal(batch, expected) and batch.unwarped == expected.unwarped and batch.faces == expected.faces
        assert np.array_equal(batch.ids, expected.ids) and np.array_equal(batch.ordinals, expected.ordinals)
        assert all(tensor.stride() == same.stride() for tensor, same in zip(batch.inputs, expected.inputs))
    assert [batch.step for batch in (*straight, *late)] == [*range(7), 4, 5, 6]


@pytest.mark.parametrize(
    "cache, backend, device, expected",
    [
        ("host", "opencv", "cpu", BatchSchedule(prefetch=0, batches_per_call=8, threads=4)),
        ("off", "opencv", "cpu", BatchSchedule(threads=1)),
        ("host", "kornia", "cpu", BatchSchedule(threads=1)),
        ("host", "opencv", "cuda", BatchSchedule(workers=2, threads=4)),
        ("gpu", "kornia", "cuda", BatchSchedule(threads=4)),
    ],
)
def test_when_batches_are_made(cache, backend, device, expected):
    assert BatchSchedule.for_training(cache, backend, torch.device(device), 4, 32 * 64**2) == expected


@pytest.mark.parametrize("faces, size, batches_per_call", [(2, 32, 8), (128, 64, 2), (32, 128, 2), (128, 256, 1)])
def test_few_large_faces_are_made_together(faces, size, batches_per_call):
    schedule = BatchSchedule.for_training("host", "opencv", torch.device("cpu"), 2, faces * size**2)
    assert schedule.batches_per_call == batches_per_call


@pytest.mark.slow
def test_the_two_backends_agree(make, at_least):
    """By design: geometry to 55 dB, whole targets to 43 dB, feeds to 38 dB."""

    def psnr(a, b):
        return float(-10 * torch.log10((a.cpu() - b.cpu()).square().mean()))

    cases = {  # config -> floors of targets and feeds
        "geometry": (AugmentationConfig(color=False), 55, 55),
        "without CLAHE": (AugmentationConfig(color_clahe_chance=0), 43, 38),
        "all": (AugmentationConfig(), 43, 38),
    }
    for name, (config, target, feed) in cases.items():
        one, two = make("opencv", batch=32, config=config).batch(0), make("kornia", batch=32, config=config).batch(0)
        at_least(f"{name}: target, dB", psnr(one.targets[0], two.targets[0]), target)
        at_least(f"{name}: feed, dB", psnr(torch.cat(one.inputs), torch.cat(two.inputs)), feed)
        at_least(f"{name}: face mask, dB", psnr(one.meta.mask_face[0], two.meta.mask_face[0]), 55)


def test_an_error_while_making_a_batch_reaches_the_trainer(make):
    loader = make()
    loader.collate.augment = None
    with pytest.raises(TypeError):
        next(iter(loader))


# --- warp to landmarks ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["opencv", "kornia"])
def test_warping_to_landmarks_changes_the_feed_alone(make, matcher, backend):
    plain, warped = make(backend).batch(2), make(backend, matcher=matcher).batch(2)
    assert torch.equal(plain.targets[0], warped.targets[0])
    assert torch.equal(plain.meta.mask_face[0], warped.meta.mask_face[0])
    for side in range(2):
        assert (plain.inputs[side] - warped.inputs[side]).abs().mean() > 0.005
    unwarped = make(backend, config=AugmentationConfig(warp=False)).batch(2)
    moved = (unwarped.inputs[0] - warped.inputs[0]).abs().mean((1, 2, 3))
    assert (moved > 0.002).all(), "every face is warped"


def test_warping_to_landmarks_is_a_function_of_seed_step_and_rank(make, matcher):
    whole = make(matcher=matcher).batch(5)
    assert _equal(whole, next(iter(make(matcher=matcher, start=5))))
    threaded = make(matcher=matcher, threads=3)
    assert _equal(whole, threaded.batch(5))
    threaded.close()
    parts = [make(matcher=matcher, rank=rank, world=3).batch(5) for rank in range(3)]
    for side in range(2):
        assert torch.equal(torch.cat([part.inputs[side] for part in parts]), whole.inputs[side])


def test_faces_that_cannot_be_warped_are_counted_and_fed_as_they_are(make, sides):
    """All landmarks of side B on one line: neither side can be warped to or from them."""
    points = [np.stack([matched.landmarks for matched in side.source.folder.records]) for side in sides]
    points[1][..., 1] = points[1][..., 0]
    loader = make(matcher=LandmarkMatcher(*points))
    warped, unwarped = loader.batch(0), make(config=AugmentationConfig(warp=False)).batch(0)
    assert warped.unwarped == 12 and unwarped.unwarped == 0
    assert all((a - b).abs().max() < 0.02 for a, b in zip(warped.inputs, unwarped.inputs))


# --- wherever the bytes come from -------------------------------------------------------------------------


def _feeds(sides, device, cache, backend="opencv"):
    """The same faces from a mapped file, from the device and from DALI, batch for batch."""
    stored = [cached_store(cache, one.spec, one.source).store for one in sides]
    to_device = device if backend == "kornia" else None
    mapped = [dataclasses.replace(one, store=store) for one, store in zip(sides, stored)]
    return {
        "host": lambda sets, sampler: HostFeed(mapped, to_device),
        "gpu": lambda sets, sampler: DeviceFeed(mapped, device),
        "off": lambda sets, sampler: DecodeFeed(sides, sampler, threads=2),
        "off, one thread": lambda sets, sampler: DecodeFeed(sides, sampler, threads=1),
    }


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["opencv", "kornia"])
def test_gpu_host_and_off_give_the_same_bits(make, sides, device, tmp_path, backend):
    """Over two epochs of the smaller side (9 faces, 6 a step), started anew in the middle, and backwards."""
    expected = [make(backend).batch(step) for step in range(4)]
    for name, feed in _feeds(sides, device, tmp_path, backend).items():
        straight = list(itertools.islice(make(backend, feed=feed), 4))
        assert all(_equal(a, b) for a, b in zip(straight, expected)), name
        late = list(itertools.islice(make(backend, feed=feed, start=2, prefetch=1), 2))
        assert all(_equal(a, b) for a, b in zip(late, expected[2:])), name
        backwards = make(backend, feed=feed)
        assert all(_equal(backwards.batch(step), expected[step]) for step in (3, 1, 0, 1)), name


@pytest.mark.slow
@pytest.mark.parametrize("world, batch", [(2, 6), (4, 6), (3, 7)])
def test_ranks_together_see_what_one_process_sees(make, sides, tmp_path, world, batch, device):
    """Also where the batch does not divide, from every kind of store, and each face in the light that it is given."""
    feeds = _feeds(sides, device, tmp_path)
    light = SideLight((0.5, 0.6, 0.8))
    for step in (0, 5):
        whole = make(batch=batch, light=light).batch(step)
        assert not _equal(whole, make(batch=batch).batch(step))
        for name in ("host", "gpu", "off"):
            ours = {"batch": batch, "world": world, "feed": feeds[name], "light": light}
            parts = [make(rank=rank, **ours).batch(step) for rank in range(world)]
            assert abs(len(parts[0].inputs[0]) - len(parts[-1].inputs[0])) <= 1
            assert np.array_equal(np.concatenate([p.ids for p in parts], axis=1), whole.ids), name
            for side in range(2):
                assert torch.equal(torch.cat([p.inputs[side] for p in parts]), whole.inputs[side]), name
            assert torch.equal(torch.cat([p.targets[0] for p in parts]), whole.targets[0]), name
            assert torch.equal(torch.cat([p.meta.mask_mouth[0] for p in parts]), whole.meta.mask_mouth[0]), name


def _copied(made_faces, tmp_path):
    for side in "ab":
        shutil.copytree(made_faces / side, tmp_path / side)
    return [TrainSet.from_folder(side.upper(), tmp_path / side, 64) for side in "ab"]


@pytest.mark.slow
def test_a_file_that_vanishes_or_breaks_during_the_run_is_named_and_left_out(make, made_faces, tmp_path):
    """The batch is filled with another face of that side, the same one after a restart, and the run goes on."""
    sets = _copied(made_faces, tmp_path)
    told: list[str] = []

    def feed(sets, sampler):
        return DecodeFeed(sets, sampler, threads=2, warn=told.append)

    before = [make(sets=sets).batch(step) for step in range(5)]
    loader = make(sets=sets, feed=feed)
    assert all(_equal(loader.batch(step), before[step]) for step in range(2)) and not told
    (tmp_path / "a" / "0003.png").unlink()
    (tmp_path / "b" / "0001.png").write_bytes((tmp_path / "b" / "0001.png").read_bytes()[:2000])
    gone = ([r.path.name for r in sets[0].source.folder.records].index("0003.png"), 1)
    after = [loader.batch(step) for step in range(5)]
    assert len(told) == 2 and any("0003.png" in line and "side A" in line for line in told)
    assert any("0001.png" in line and "side B" in line for line in told)
    replaced = 0
    for one, two in zip(before, after):
        for side in range(2):
            for place, face in enumerate(one.ids[side]):
                same = torch.equal(one.targets[0][place, side], two.targets[0][place, side])
                assert same == (face != gone[side]), "only these faces are replaced"
                assert (two.ids[side, place] == face) == same and two.ids[side, place] != gone[side]
                replaced += not same
    assert replaced >= 3
    again = make(sets=sets, feed=feed, start=3)
    assert _equal(again.batch(3), after[3])
    shutil.copy(made_faces / "a" / "0003.png", tmp_path / "a")
    assert _equal(loader.batch(4), after[4]), "what comes back later does not change the batch"


@pytest.mark.slow
def test_another_picture_under_the_same_name_is_not_trained_with_old_landmarks(make, made_faces, tmp_path):
    sets = _copied(made_faces, tmp_path)
    told: list[str] = []
    cv2.imwrite(str(tmp_path / "a" / "0003.png"), cv2.imread(str(tmp_path / "a" / "0003.png"))[::-1])
    loader = make(batch=14, sets=sets, feed=lambda sets, sampler: DecodeFeed(sets, sampler, warn=told.append))
    assert 3 not in loader.batch(0).ids[0]
    assert len(told) == 1 and "0003.png: it has changed since the folder was read" in told[0]


@pytest.mark.slow
def test_pictures_too_large_for_a_batch_of_dali_are_decoded_apart(make, made_faces, tmp_path, monkeypatch):
    """Their number differs from step to step."""
    _copied(made_faces, tmp_path)
    for name in ("0002", "0005", "0006"):
        enlarged = cv2.resize(cv2.imread(str(tmp_path / "a" / f"{name}.png")), None, fx=2, fy=2)
        cv2.imwrite(str(tmp_path / "a" / f"{name}.png"), enlarged)
        described = json.loads((tmp_path / "a" / f"{name}.json").read_text())
        described["landmarks"] = (2 * np.array(described["landmarks"])).tolist()
        described.pop("mask", None)
        (tmp_path / "a" / f"{name}.json").write_text(json.dumps(described))
        (tmp_path / "a" / f"{name}_mask.png").unlink()
    sets = [TrainSet.from_folder(side.upper(), tmp_path / side, 64) for side in "ab"]
    monkeypatch.setattr(decode, "DALI_PIXELS", 96 * 96)
    loader = make(batch=3, sets=sets, feed=lambda sets, sampler: DecodeFeed(sets, sampler))
    stored = make(batch=3, sets=sets)
    assert all(_equal(loader.batch(step), stored.batch(step)) for step in range(12))


@pytest.mark.slow
def test_a_replaced_face_is_warped_by_its_own_landmarks(make, made_faces, tmp_path):
    sets = _copied(made_faces, tmp_path)
    matcher = LandmarkMatcher.from_records([one.source.folder.records for one in sets], 64, "face", 1.0, 0.0)
    (tmp_path / "a" / "0003.png").unlink()
    options = {"batch": 14, "sets": sets, "matcher": matcher, "config": AugmentationConfig(color=False)}
    batch = make(feed=lambda sets, sampler: DecodeFeed(sets, sampler), **options).batch(0)
    draws, _ = make(**options).draws(batch.ordinals, batch.ids)
    faces, extra_masks, _ = HostFeed(sets)(0, batch.ids)
    expected = make(**options).collate.batch(faces, extra_masks, draws, batch.ids)
    assert torch.equal(expected.inputs[0], batch.inputs[0])


@pytest.mark.slow
def test_a_folder_that_is_gone_ends_the_run_with_one_line(make, made_faces, tmp_path):
    sets = _copied(made_faces, tmp_path)
    loader = make(sets=sets, feed=lambda sets, sampler: DecodeFeed(sets, sampler))
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(SwapfastError, match=r"side B: \d+ of 9 faces cannot be read any more in .*/b") as caught:
        for step in range(10):
            loader.batch(step)
    assert caught.value.code == 1 and "\n" not in str(caught.value)


# --- preview ----------------------------------------------------------------------------------------------


def test_preview_faces(made_faces, sides):
    def load(count=3, **options):
        sets = [PreviewSet(one.side, one.source, 64, 64, num_images=count, **options) for one in sides]
        return PreviewLoader(sets, count, num_samples=count)

    loader = load(crop=CropConfig(coverage=80))
    inputs, targets = next(loader)
    assert inputs.shape == (2, 3, 3, 64, 64) and inputs.dtype == np.float32
    assert targets.shape == (2, 3, 80, 80, 4)
    assert next(loader)[0] is inputs, "decoded once"
    whole = targets[..., :3].transpose(0, 1, 4, 2, 3)

    def apart(x: int, y: int) -> float:
        return np.abs(whole[..., y : y + 64, x : x + 64] - inputs).mean()

    assert apart(8, 8) < 0.5 * min(apart(7, 8), apart(9, 8), apart(8, 7), apart(8, 9)), "in the middle, to the pixel"
    assert targets[..., 3].min() == 0 and targets[..., 3].max() == 1
    _, alone = next(load(1, mask=MaskConfig(mask_type="none"), masked=False))
    assert (alone[..., 3] == 1).all()
    rgb, _ = next(load(crop=CropConfig(coverage=80), color_order="rgb"))
    assert np.array_equal(rgb[:, :, ::-1], inputs)


def test_random_previews_differ_each_time_and_cover_the_folder(sides):
    sets = [PreviewSet(one.side, one.source, 64, 64) for one in sides]
    loader, again = PreviewLoader(sets, 7), PreviewLoader(sets, 7)
    shown = [next(loader)[0] for _ in range(2)]
    assert all(np.array_equal(next(again)[0], one) for one in shown)
    assert not np.array_equal(*shown)
    assert len({face.tobytes() for one in shown for face in one[0]}) == 14, "every face of A before any twice"


def test_a_preview_face_that_is_gone_is_named(made_faces, tmp_path):
    one = _copied(made_faces, tmp_path)[0]
    faces = PreviewSet("A", one.source, 64, 64)
    (tmp_path / "a" / "0002.png").unlink()
    with pytest.raises(SwapfastError, match=r"0002.png: "):
        faces[2]
    skipping = PreviewSet("A", one.source, 64, 64, skip_bad=True)
    assert np.array_equal(skipping[2][0], skipping[3][0])


def _timelapse(sides, folder, images=2, **more) -> Timelapse:
    config = TrainConfig(preview=PreviewConfig(images=images), crop=CropConfig(coverage=75.0))
    model = build_model(ModelConfig(name="tiny"), False, 1)
    return Timelapse(model, [side.source for side in sides], config, Samples(0.75, True), folder=folder, **more)


@pytest.mark.slow
@pytest.mark.parametrize("images, longest", [(3, 4096), (3, 400), (1, 301)])
def test_pictures_of_a_timelapse_suit_an_encoder(sides, tmp_path, monkeypatch, images, longest):
    """Even in width and height, no longer than encoders take, and the sheet otherwise."""
    monkeypatch.setattr(Timelapse, "LONGEST", longest)
    made = _timelapse(sides, tmp_path / "film", images)
    made.on_save(7)
    picture, sheet = cv2.imread(str(tmp_path / "film" / "00000007.jpg")), made.sheet()
    height, width = picture.shape[:2]
    assert height % 2 == width % 2 == 0 and max(height, width) == min(longest // 2 * 2, -(-max(sheet.shape) // 2) * 2)
    assert width / height == pytest.approx(sheet.shape[1] / sheet.shape[0], rel=0.05)
    same = cv2.resize(sheet, (width, height), interpolation=cv2.INTER_AREA)
    assert np.abs(picture.astype(int) - same).mean() < 6


@pytest.mark.slow
def test_a_timelapse_whose_folder_goes_away_ends_no_run(sides, tmp_path):
    """It is said once; moved away it is made anew, as for who makes a film of what there is."""
    told: list[str] = []
    folder = tmp_path / "film"
    made = _timelapse(sides, folder, warn=told.append)
    made.on_save(1)
    folder.rename(tmp_path / "done")
    made.on_save(2)
    assert [path.name for path in folder.iterdir()] == ["00000002.jpg"] and not told
    folder.rename(tmp_path / "done too")
    folder.write_text("in the way")
    made.on_save(3)
    made.on_save(4)
    assert len(told) == 1 and told[0].startswith("warning: ") and f"without a picture in {folder}" in told[0]
    folder.unlink()
    made.on_save(5)
    assert [path.name for path in folder.iterdir()] == ["00000005.jpg"]


def test_a_timelapse_leaves_the_temporary_files_of_others_alone(sides, tmp_path):
    others = tmp_path / ".writing-checkpoint-00000015"
    others.mkdir()
    leftover = tmp_path / ".writing-999999999-00000001.jpg"
    leftover.write_bytes(b"a run that was killed")
    os.utime(leftover, (time.time() - 86400,) * 2)  # a newer one might be another run's that is about to lock it
    _timelapse(sides, tmp_path)
    assert list(tmp_path.iterdir()) == [others]


def test_a_timelapse_that_cannot_be_written_is_refused_before_the_run(sides, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SwapfastError, match=r"^--timelapse-output .*film: .*; choose another folder$") as caught:
        _timelapse(sides, tmp_path / "file" / "film")
    assert caught.value.code == 2


# --- from folders -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["opencv", "kornia"])
def test_a_loader_of_folders_gives_what_its_parts_give(made_faces, make, device, backend):
    """With the names of the API, in its order; ``get_loader`` and ``iter`` are one."""
    folders, config = [made_faces / "a", made_faces / "b"], TrainConfig(batch_size=6, seed=7)
    loader = TrainLoader.from_folders(folders, 64, (64,), "bgr", config, device=device, backend=backend)
    batches = loader.get_loader()
    expected = make(backend)
    for step in range(3):
        assert _equal(next(batches), expected.batch(step))
    batches.close()
    loader.close()


@pytest.mark.slow
def test_a_matcher_of_folders_is_that_of_their_records(made_faces, matcher):
    ours = LandmarkMatcher.from_folders([made_faces / "a", str(made_faces / "b")], 64, "face", 1.0, 0.0)
    for one, other in zip((*ours.landmarks, *ours.closest), (*matcher.landmarks, *matcher.closest), strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(SwapfastError, match="no PNG or JPEG"):
        LandmarkMatcher.from_folders([made_faces / "a", made_faces / "truth"], 64, "face", 1.0, 0.0)
    config = TrainConfig(augmentation=AugmentationConfig(warp_to_landmarks=True), batch_size=2)
    loader = TrainLoader.from_folders([made_faces / "a", made_faces / "b"], 64, (64,), config=config)
    assert next(loader).faces == 4
    loader.close()


def test_preview_sets_and_loaders_of_folders(made_faces, sides):
    crop, mask = CropConfig(coverage=80), MaskConfig(mask_type="components")
    ours = PreviewSet.from_folder("A", str(made_faces / "a"), 48, 64, "rgb", 3, crop, mask)
    expected = PreviewSet("A", sides[0].source, 48, 64, "rgb", 3, crop, mask)
    assert len(ours) == 3 and all(np.array_equal(a, b) for a, b in zip(ours[1], expected[1], strict=True))
    loader = PreviewLoader.from_folders(48, 64, "bgr", [made_faces / "a", made_faces / "b"], 2)
    inputs, targets = next(loader.get_loader())
    assert inputs.shape == (2, 2, 3, 48, 48) and targets.shape == (2, 2, 64, 64, 4)
    still = PreviewLoader.from_folders(48, 64, "bgr", [made_faces / "a", made_faces / "b"], 2, num_samples=2)
    assert all(np.array_equal(a, b) for a, b in zip(next(still), next(still), strict=True))
