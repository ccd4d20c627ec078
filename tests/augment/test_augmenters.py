"""Whole batches through both backends: they agree, nothing but the face itself matters, bad input is refused."""

from __future__ import annotations

import dataclasses
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from swapfast.augment.augmentation import ImageAugmentation
from swapfast.augment.constants import ConstantsColor, ConstantsTransform, ConstantsWarp
from swapfast.augment.device.augmenter import DeviceAugmenter
from swapfast.augment.draws import Draws, draw
from swapfast.augment.host import geometry as host_geometry
from swapfast.augment.host.augmenter import OpenCVAugmenter
from swapfast.augment.result import Augmented, to_float
from swapfast.config import AugmentationConfig
from tests.augment.slow_references import mask_images, pictures, psnr


def batch(n: int, size: int, mask_count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Faces with their mask, and other masks."""
    mask = mask_images(n, 1, size).transpose(0, 2, 3, 1)
    return np.concatenate([pictures(n, size), mask], axis=-1), mask_images(n, mask_count, size, seed=3)


def run(backend: str, device, sizes, faces, extra_masks, draws, **options) -> Augmented:
    if backend == "opencv":
        with OpenCVAugmenter(*sizes, **options) as augment:
            return augment(faces, extra_masks, draws)
    extra_masks = None if extra_masks is None else torch.from_numpy(extra_masks).to(device)
    return DeviceAugmenter(*sizes)(torch.from_numpy(faces).to(device), extra_masks, draws)


def tensors(result: Augmented) -> list[torch.Tensor]:
    return [result.feed, *result.targets, *(result.masks or [])]


BACKENDS = ("opencv", "kornia")


@pytest.mark.slow
@pytest.mark.parametrize("size, sizes", [(256, (256, 128, [64, 256])), (128, (128, 80, [96, 128]))])
def test_backends_agree(device, at_least, size, sizes):
    faces, extra_masks = batch(8, size)
    for what, config, target, feed in (
        ("geometry", AugmentationConfig(color=False), 55, 55),
        ("all", AugmentationConfig(), 43, 38),
    ):
        d = draw(1, np.arange(8), 0, size, config)
        a = run("opencv", device, sizes, faces, extra_masks, d).to_float()
        b = run("kornia", device, sizes, faces, extra_masks, d)
        at_least(f"{what} at {size} px: feed, dB", psnr(a.feed, b.feed.cpu(), 1), feed)
        for x, y in zip(a.targets, b.targets):
            at_least(f"{what} at {size} px: target of {x.shape[-1]} px, dB", psnr(x, y.cpu(), 1), target)
        for x, y in zip(a.masks, b.masks):
            at_least(f"{what} at {size} px: masks of {x.shape[-1]} px, dB", psnr(x, y.cpu(), 1), 55)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels, extra_masks", [(3, None), (3, 2), (4, 0), (4, 1), (4, 5)])
def test_shapes_ranges_and_memory(device, backend, channels, extra_masks):
    faces, masks = batch(3, 64, extra_masks or 0)
    faces = np.ascontiguousarray(faces[..., :channels])
    original = faces.copy()
    masks = masks if extra_masks is not None else None
    result = run(backend, device, (64, 48, [64, 32]), faces, masks, draw(1, [0, 1, 2], 0, 64))
    assert np.array_equal(faces, original), "the input is left alone"
    assert result.feed.shape == (3, 3, 48, 48)
    assert [tuple(t.shape) for t in result.targets] == [(3, 3, 32, 32), (3, 3, 64, 64)]
    count = (extra_masks or 0) + channels - 3
    if count:
        assert [tuple(m.shape) for m in result.masks] == [(3, count, 32, 32), (3, count, 64, 64)]
        assert all(m[0, 0].is_contiguous() for m in result.masks)
    else:
        assert result.masks is None
    assert result.feed.dtype == (torch.uint8 if backend == "opencv" else torch.float32)
    floats = result.to_float()
    for image in (result.feed, *result.targets, floats.feed, *floats.targets):
        assert image.is_contiguous(memory_format=torch.channels_last)
    for tensor in tensors(floats):
        assert tensor.dtype == torch.float32 and tensor.min() >= 0 and tensor.max() <= 1
    if backend == "opencv":
        assert all(torch.equal(f, b.float() / 255) for f, b in zip(tensors(floats), tensors(result)))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_face_has_the_same_bits_in_any_batch_and_order(device, backend):
    size, sizes, n = 64, (64, 64, [48, 64]), 13
    faces, extra_masks = batch(n, size)
    d = draw(3, np.arange(n), np.arange(n) % 2, size)
    full_batch = tensors(run(backend, device, sizes, faces, extra_masks, d))
    again = tensors(run(backend, device, sizes, faces, extra_masks, draw(3, np.arange(n), np.arange(n) % 2, size)))
    assert all(torch.equal(a, b) for a, b in zip(full_batch, again)), "same seed, same bits"
    order = np.random.default_rng(2).permutation(n)
    for pick in (slice(0, 5), slice(5, 6), slice(6, 13), order):
        part = tensors(run(backend, device, sizes, faces[pick], extra_masks[pick], d[pick]))
        assert all(torch.equal(a, b[pick]) for a, b in zip(part, full_batch)), pick


def test_threads_and_floats_change_no_bit(device):
    faces, extra_masks = batch(11, 64)
    d = draw(3, np.arange(11), 0, 64)
    sizes = (64, 48, [32, 64])
    one = run("opencv", device, sizes, faces, extra_masks, d, threads=1)
    for threads in (2, 3, 16):
        many = run("opencv", device, sizes, faces, extra_masks, d, threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(many)))
        floats = run("opencv", device, sizes, faces, extra_masks, d, threads=threads, as_float=True)
        assert all(torch.equal(a, b) for a, b in zip(tensors(one.to_float()), tensors(floats)))


def test_an_earlier_result_outlives_later_calls():
    """Outputs are memory nobody else holds: a prefetching loader may hold several. More in test_recycle.py."""
    faces, extra_masks = batch(6, 64)
    with OpenCVAugmenter(64, 64, [64], threads=2) as augment:
        first = augment(faces, extra_masks, draw(1, np.arange(6), 0, 64))
        copies = [t.clone() for t in tensors(first)]
        for step in range(1, 4):
            later = augment(faces, extra_masks, draw(1, np.arange(6) + 6 * step, 0, 64))
            assert not torch.equal(later.feed, first.feed)
        assert all(torch.equal(a, b) for a, b in zip(tensors(first), copies))


class AsksTheDevice(TorchDispatchMode):
    """Notes every operation whose shape or value the host would have to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "bincount"):
            self.asked.append(name)
        if name.startswith(("index", "_unique", "unique")) and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args)
        ):
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


def test_the_host_never_asks_the_device(device):
    faces, extra_masks = (torch.from_numpy(a).to(device) for a in batch(5, 64))
    augment = DeviceAugmenter(64, 48, [20, 64])
    augment(faces, extra_masks, draw(1, np.arange(5), 0, 64))
    with AsksTheDevice() as mode:
        result = augment(faces, extra_masks, draw(1, np.arange(5, 10), 0, 64))
        assert not mode.asked
        result.feed.max().item()
        assert mode.asked, "the test would have seen it"


def test_a_configuration_decides_what_is_worked_out(device):
    """Room for its own grids only, no colour at all without any; draws from another are refused."""
    faces, extra_masks = (torch.from_numpy(a).to(device) for a in batch(4, 64))
    d = draw(1, np.arange(4), 0, 64)
    assert d.clahe_grid.max() > 2
    full_batch = DeviceAugmenter(64, 64, [64])(faces, extra_masks, d)
    configured = DeviceAugmenter(64, 64, [64], AugmentationConfig())(faces, extra_masks, d)
    assert all(torch.equal(a, b) for a, b in zip(tensors(full_batch), tensors(configured)))
    colorless, only_lab = AugmentationConfig(color=False), AugmentationConfig(color_clahe_chance=0)
    without = draw(1, np.arange(4), 0, 64, colorless)
    uncolored = DeviceAugmenter(64, 64, [64], colorless)(faces, extra_masks, without)
    plain = DeviceAugmenter(64, 64, [64])(faces, extra_masks, without)
    assert all(torch.equal(a, b) for a, b in zip(tensors(uncolored), tensors(plain)))
    with pytest.raises(ValueError, match="CLAHE"):
        DeviceAugmenter(64, 64, [64], only_lab)(faces, extra_masks, d)
    with pytest.raises(ValueError, match="colours"):
        DeviceAugmenter(64, 64, [64], colorless)(faces, extra_masks, draw(1, np.arange(4), 0, 64, only_lab))
    with pytest.raises(ValueError, match="CLAHE"):
        DeviceAugmenter(64, 64, [64])(faces, extra_masks, dataclasses.replace(d, clahe_grid=np.full(4, 11)))


@pytest.mark.parametrize("n", [1, 2])
def test_few_faces_and_a_warp_of_many_nodes(device, n):
    """The warp to landmarks has 33 nodes along an edge; where they read their own places nothing moves."""
    size = 64
    faces = torch.from_numpy(batch(n, size)[0]).to(device)
    at = np.linspace(0, size - 1, 33)
    nodes = np.broadcast_to(np.stack(np.meshgrid(at, at), -1), (n, 33, 33, 2))
    d = dataclasses.replace(Draws.identity(n, size), landmark_nodes=nodes.copy())
    feed = DeviceAugmenter(size, size, [size])(faces, None, d).feed
    assert (feed.permute(0, 2, 3, 1) - faces[..., :3] / 255).abs().max() < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_faces_give_empty_tensors(device, backend):
    faces, extra_masks = np.zeros((0, 64, 64, 4), np.uint8), np.zeros((0, 2, 64, 64), np.uint8)
    result = run(backend, device, (64, 32, [64]), faces, extra_masks, Draws.identity(0, 64))
    assert result.feed.shape == (0, 3, 32, 32) and result.masks[0].shape == (0, 3, 64, 64)


def test_each_step_takes_no_faces(device):
    step, colorless = ImageAugmentation(0, 64), np.zeros((0, 64, 64, 3), np.uint8)
    for batch in (colorless, torch.from_numpy(colorless).to(device)):
        results = step.color_adjust(batch), step.transform(batch)[0], step.random_flip(batch)[0], step.warp(batch)
        assert all(tuple(result.shape) == (0, 64, 64, 3) for result in results)


def test_the_colours_constants_come_in_the_apis_order():
    constants = ConstantsColor(2, 0.5, 4, (0.3, 0.08, 0.08))
    assert constants == ConstantsColor.from_config(256)
    assert (constants.clahe_base_contrast, constants.clahe_chance, constants.clahe_max_size) == (2, 0.5, 4)
    assert constants.lab_adjust == (0.3, 0.08, 0.08) and constants.clahe_clip_limit == 2.0


@pytest.mark.parametrize("size", [8, 31, 1025, 2048, 64.5, None, float("nan"), True])
def test_sizes_that_cannot_be_are_refused_everywhere(size):
    for make in (
        lambda: ImageAugmentation(1, size),
        lambda: draw(0, [0], 0, size),
        *(partial(kind.from_config, size) for kind in (ConstantsColor, ConstantsTransform, ConstantsWarp)),
    ):
        with pytest.raises(ValueError, match=r"processing size .*: (need a whole number|must lie within 32 and 1024)"):
            make()


@pytest.mark.slow
def test_a_mask_moved_in_part_is_the_mask_moved_whole(within):
    """Eyes and mouths, the sparse masks; some black, some cut off by the edge."""
    rng, worst = np.random.default_rng(5), {"bytes": 0, "floats": 0.0}
    for _ in range(90):
        size = int(rng.integers(32, 300))
        plane = np.zeros((size, size), np.uint8)
        x, y, radius = (int(v) for v in (*rng.integers(0, size, 2), rng.integers(3, 40)))
        cv2.circle(plane, (x, y), radius, 255, -1)
        plane = cv2.GaussianBlur(plane, (5, 5), 0)
        (matrix,) = draw(int(rng.integers(99)), [0], 0, size).inverse()
        black, matrices = np.zeros_like(plane), np.ascontiguousarray(np.stack([matrix, matrix]))
        mask_pairs = np.stack([[black, plane], [plane, black]])
        full_batch = host_geometry.move(plane, matrix)
        level_masks, floats = np.full((3, 4, size, size), 7, np.uint8), np.full((3, 4, size, size), 7, np.float32)
        host_geometry.move_masks(mask_pairs, matrices, level_masks, 1, 2)
        host_geometry.move_masks(mask_pairs, matrices, floats, 1, 2)
        for moved_pair in (level_masks, floats):
            assert (
                not moved_pair[1, 2].any()
                and not moved_pair[2, 3].any()
                and (moved_pair[0] == 7).all()
                and (moved_pair[:, :2] == 7).all()
            )
            assert np.array_equal(moved_pair[1, 3], moved_pair[2, 2])
        worst["bytes"] = max(worst["bytes"], np.abs(level_masks[1, 3].astype(int) - full_batch).max())
        worst["floats"] = max(worst["floats"], np.abs(floats[1, 3] - level_masks[1, 3] / np.float32(255)).max())
    within("levels", worst["bytes"], 1)
    within("bytes and floats", worst["floats"], 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused(device, backend):
    faces, extra_masks = batch(2, 64)
    d = Draws.identity(2, 64)
    bad = {
        "faces": [(bad_faces, extra_masks, d) for bad_faces in (faces[:, :32], faces[..., :2], faces.astype(np.int16))],
        "extra_masks": [
            (faces, bad_masks, d)
            for bad_masks in (extra_masks[:1], extra_masks[:, 0], extra_masks[..., :32], extra_masks.astype(np.float32))
        ],
        "draws": [(faces, extra_masks, Draws.identity(3, 64)), (faces, extra_masks, Draws.identity(2, 128))],
    }
    for what, cases in bad.items():
        for case in cases:
            with pytest.raises(ValueError, match=what):
                run(backend, device, (64, 64, [64]), *case)
    other_backend = {"opencv": DeviceAugmenter, "kornia": OpenCVAugmenter}[backend](64, 64, [64])
    with pytest.raises(ValueError, match="faces"):
        other_backend(
            *((faces, extra_masks) if backend == "opencv" else map(torch.from_numpy, (faces, extra_masks))), d
        )
    for sizes in (
        *((64, 128, [64]), (64, 64, [128]), (64, 64, []), (64, 64, [64, 64]), (8, 8, [8]), (64, 0, [64])),
        *((2048, 64, [64]), (64.5, 64, [64]), (64, 32.5, [64]), (64, 64, [48.5]), (64, float("nan"), [64])),
        *((64, "big", [64]), (None, 64, [64]), (64, True, [64])),
    ):
        with pytest.raises(ValueError, match="size"):
            run(backend, device, sizes, faces, extra_masks, d)


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="threads"):
        OpenCVAugmenter(64, 64, [64], threads=0)


def test_a_failure_inside_a_thread_reaches_the_caller():
    """An impossible grid makes OpenCV raise in whichever thread meets it."""
    faces, extra_masks = batch(8, 64)
    d = dataclasses.replace(Draws.identity(8, 64), clahe_grid=np.full(8, -3))
    with OpenCVAugmenter(64, 64, [64], threads=2) as augment:
        with pytest.raises(cv2.error):
            augment(faces, extra_masks, d)
        good = augment(faces, extra_masks, Draws.identity(8, 64))
    assert np.array_equal(good.targets[0].permute(0, 2, 3, 1), faces[..., :3])


def test_to_float_is_exact_for_every_level(device):
    every = torch.arange(256, dtype=torch.uint8, device=device).reshape(1, 1, 16, 16)
    assert torch.equal(to_float(every).cpu(), (torch.arange(256).double() / 255).float().reshape(1, 1, 16, 16))
