"""Movement, flip, warp and shrinking against OpenCV's numbers, float64 references, and as properties."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from swapfast.augment.augmentation import ImageAugmentation
from swapfast.augment.device import geometry
from swapfast.augment.device.augmenter import DeviceAugmenter
from swapfast.augment.draws import Draws, draw
from swapfast.augment.host import geometry as host_geometry
from swapfast.augment.host.augmenter import OpenCVAugmenter
from swapfast.augment.host.recycle import Scratch
from swapfast.augment.taps import area_weights, hat_weights
from swapfast.config import AugmentationConfig
from tests.augment.slow_references import (
    affine_positions,
    area_mean,
    bilinear,
    coarse_grid_levels,
    node_positions,
    pictures,
)


def from_record(size: int, n: int, **recorded) -> Draws:
    """Draws that do nothing but what is given."""
    values = {k: np.asarray(v) if k == "flip" else np.asarray(v, np.float64) for k, v in recorded.items()}
    return dataclasses.replace(Draws.identity(n, size), **values)


def on_device(batch: np.ndarray, device) -> torch.Tensor:
    return torch.from_numpy(batch).to(device)


def worst(a, b) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


# ---- against the peer ----------------------------------------------------------------------------------------


@pytest.mark.golden
def test_transform_is_the_peers(golden, device, within):
    g = golden("aug_transform")
    cases = [name.removeprefix("img_") for name in g.files if name.startswith("img_")]
    assert cases
    for case in cases:
        images = g[f"img_{case}"]
        n, size = images.shape[:2]
        recorded = {k: g[f"{k}_{case}"] for k in ("rotation", "scale", "shift")}
        step = ImageAugmentation(n, size, draws=from_record(size, n, **recorded))
        if f"matrix_{case}" in g.files:
            within(f"{case}: matrix", worst(step.draws.forward(), g[f"matrix_{case}"]), 1e-4)
        points = g[f"points_{case}"] if f"points_{case}" in g.files else None
        # The peer's six channels take OpenCV's fixed-point path; ours, and its 3 and 4, are exact: a value that all but
        # lies between two levels goes either way.
        levels = coarse_grid_levels(images) if images.shape[-1] > 4 else 1
        ours, transformed = step.transform(images, points)
        within(f"{case}: opencv, levels", worst(ours, g[f"out_{case}"]), levels)
        if points is not None:
            within(f"{case}: points, px", worst(transformed, g[f"points_out_{case}"]), 1e-4)
        on, _ = step.transform(on_device(images, device))
        within(f"{case}: device, levels", worst(on.cpu(), g[f"out_{case}"]), levels)
        within(f"{case}: device against opencv, levels", worst(on.cpu(), ours), 1)


@pytest.mark.golden
def test_flip_is_the_peers(golden, device, within):
    g = golden("aug_flip")
    n, size = g["img"].shape[:2]
    step = ImageAugmentation(n, size, draws=from_record(size, n, flip=g["rand"] <= 0.5))
    ours, points = step.random_flip(g["img"], g["points"])
    assert 0 < step.draws.flip.sum() < n
    within("opencv, levels", worst(ours, g["out"]), 0)
    within("points, px", worst(points, g["points_out"]), 1e-4)
    within("points of draws, px", worst(step.draws.move_points(g["points"]), g["points_out"]), 1e-4)
    within("device, levels", worst(step.random_flip(on_device(g["img"], device))[0].cpu(), g["out"]), 0)
    faces = g["img"]
    for augment, batch in (
        (OpenCVAugmenter(size, size, [size], threads=1), faces),
        (DeviceAugmenter(size, size, [size]), on_device(faces, device)),
    ):
        target = augment(batch, None, step.draws).to_float().targets[0].cpu().permute(0, 2, 3, 1)
        within(f"{type(augment).__name__}, levels", worst(target * 255, g["out"]), 0.02)


@pytest.mark.golden
def test_warp_is_the_peers_without_its_half_pixel_and_its_black_rim(golden, device, within):
    g = golden("aug_warp_random")
    cases = [name.removeprefix("img_") for name in g.files if name.startswith("img_")]
    assert "zero" in cases
    for case in cases:
        maps = g[f"map_{case}"].astype(np.float64) - 0.5  # the peer's own map, half a pixel put back
        images = g[f"img_{case}"][: len(maps)]
        n, size = images.shape[:2]
        rand = g[f"rand_{case}"][:n] if f"rand_{case}" in g.files else np.zeros((n, 2, 5, 5))
        step = ImageAugmentation(n, size, draws=from_record(size, n, warp=rand))

        nodes = torch.from_numpy(step.draws.warp_nodes().astype(np.float32)).to(device)
        device_map = geometry.control_map(nodes, size).cpu().numpy()
        weights = hat_weights(size).astype(np.float32)
        opencv_map = [
            host_geometry.fill_rows(row, weights) for row in host_geometry.node_rows(step.draws.warp_nodes(), weights)
        ]
        within(f"{case}: map of the device, px", worst(device_map, maps.transpose(0, 2, 3, 1)), 1e-4)
        within(f"{case}: map of opencv, px", worst(opencv_map, maps.transpose(0, 2, 3, 1)), 1e-3)

        expected = [
            cv2.remap(image, *at.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for image, at in zip(images, maps)
        ]
        ours = step.warp(images)
        within(f"{case}: opencv, levels", worst(ours, expected), 1)
        within(f"{case}: device, levels", worst(step.warp(on_device(images, device)).cpu(), expected), 1)
        if not rand.any():
            assert np.array_equal(ours, images), "no noise is no change"
            assert not np.array_equal(g[f"out_{case}"], images), "it is one to the peer"


@pytest.mark.golden
def test_targets_and_masks_of_every_size_are_the_peers(golden, device, within):
    g = golden("targets")
    stack = g["batch"]  # (sides * B, S, S, 6), side after side
    n, size = stack.shape[:2]
    tags = sorted({name.split("_")[1] for name in g.files if name.startswith("target_")})
    assert tags
    faces = np.ascontiguousarray(stack[..., :4])
    extra_masks = np.ascontiguousarray(stack[..., 4:].transpose(0, 3, 1, 2))
    for tag in tags:
        sizes = [int(s) for s in tag.split("x")]
        for augment, to in (
            (OpenCVAugmenter(size, size, sizes, threads=1), lambda batch: batch),
            (DeviceAugmenter(size, size, sizes), lambda batch: on_device(batch, device)),
        ):
            result = augment(to(faces), to(extra_masks), Draws.identity(n, size)).to_float()
            for target, masks, s in zip(result.targets, result.masks, sorted(sizes)):
                theirs = g[f"target_{tag}_{s}"]  # (B, sides, s, s, 3)
                b, sides = theirs.shape[:2]
                ours = target.cpu().permute(0, 2, 3, 1).reshape(sides, b, s, s, 3).transpose(0, 1) * 255
                within(f"{type(augment).__name__} {tag}, {s} px: levels", worst(ours, theirs), 1.001)
                for channel, mask in enumerate(("face", "eye", "mouth")):
                    name = f"mask_{mask}_{tag}_{s}"
                    if name in g.files:
                        mine = masks[:, channel].cpu().reshape(sides, b, 1, s, s).transpose(0, 1) * 255
                        within(f"{type(augment).__name__} {name}: levels", worst(mine, g[name]), 1.001)


@pytest.mark.golden
def test_a_smaller_feed_is_the_peers(golden, device, within):
    g = golden("feed_resize")
    cases = [name.removeprefix("in_") for name in g.files if name.startswith("in_")]
    assert cases
    for case in cases:
        images, expected, smaller = g[f"in_{case}"], g[f"out_{case}"], int(case.split("_")[1])
        within(f"{case}: opencv", worst(host_geometry.shrink(images, smaller, Scratch()), expected), 0)
        small = geometry.shrink(on_device(images, device).permute(0, 3, 1, 2).float(), smaller)
        within(f"{case}: device, levels", worst(small.permute(0, 2, 3, 1).cpu(), expected), 1)


# ---- against float64 -----------------------------------------------------------------------------------------


def references(faces: np.ndarray, d: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Targets and feeds (N, S, S, C) in float64, from the definitions: movement, then flip, then warp."""
    size = d.size
    y, x = np.mgrid[:size, :size].astype(np.float64)
    targets, feeds = [], []
    for i, face in enumerate(faces):
        back = np.linalg.inv(d.forward()[i])

        def read(x, y, face=face, back=back, mirrored=d.flip[i]):
            return bilinear(face, *affine_positions(back, size - 1 - x if mirrored else x, y))

        targets.append(read(x, y))
        feeds.append(read(*node_positions(d.warp_nodes()[i], x, y, size)))
    return np.stack(targets), np.stack(feeds)


@pytest.mark.parametrize("size", [64, 100, 128])
def test_both_backends_sample_where_the_definition_says(device, within, size):
    config = AugmentationConfig(color=False, rotation_range=25.0, zoom_amount=20.0, shift_range=10.0)
    faces, d = pictures(4, size, 4), draw(2, np.arange(4), 1, size, config)
    assert d.flip.any() and not d.flip.all()
    targets, feeds = references(faces, d)
    result = DeviceAugmenter(size, size, [size])(on_device(faces, device), None, d)
    image = 255 * torch.cat([result.targets[0], result.masks[0]], 1).cpu().permute(0, 2, 3, 1).numpy()
    within("device: target, levels", worst(image, targets), 0.01)
    feed = 255 * result.feed.cpu().permute(0, 2, 3, 1).numpy()
    within("device: feed, levels", worst(feed, feeds[..., :3]), 0.01)
    with OpenCVAugmenter(size, size, [size], threads=1) as augment:
        result = augment(faces, None, d)
    image = torch.cat([result.targets[0], result.masks[0]], 1).permute(0, 2, 3, 1).numpy()
    within("opencv: target, levels", worst(image, targets), 1.0)
    within("opencv: feed, levels", worst(result.feed.permute(0, 2, 3, 1).numpy(), feeds[..., :3]), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("size, smaller", [(128, 64), (96, 32), (96, 64), (128, 80), (100, 99), (64, 1), (50, 50)])
def test_shrinking_is_the_mean_of_the_area(device, within, size, smaller):
    image = pictures(2, size)
    exact = np.stack([area_mean(single, smaller) for single in image])
    small = geometry.shrink(on_device(image, device).permute(0, 3, 1, 2).float(), smaller)
    within("device, levels", worst(small.permute(0, 2, 3, 1).cpu(), exact), 1e-3)
    within("opencv, levels", worst(host_geometry.shrink(image, smaller, Scratch()), exact), 0.51)
    weights_matrix = area_weights(size, smaller)
    within("shares add up", worst(weights_matrix.sum(1), 1) + worst(weights_matrix.sum(0), smaller / size), 1e-9)


def test_the_two_ways_to_write_a_map_agree(within):
    for size in (64, 100, 256):
        d = draw(4, np.arange(3), 0, size)
        weights = hat_weights(size)
        product = np.einsum("ij,njkc,lk->nilc", weights, d.control_grid(), weights)
        taps = geometry.control_map(torch.from_numpy(d.control_grid()), size).numpy()
        within(f"{size} px", worst(product, taps), 1e-4)  # the taps' weights are float32


# ---- properties ----------------------------------------------------------------------------------------------


def test_gradients_pass_through_movement_and_warp(device):
    d = draw(2, [0], 0, 32, AugmentationConfig(color=False))
    images = torch.rand(1, 1, 32, 32, dtype=torch.float64, device=device, requires_grad=True)
    matrix = torch.from_numpy(d.matrix()).to(device)
    positions = geometry.control_map(torch.from_numpy(geometry.relative(d.control_grid(), 32)).to(device), 32)
    for function in (lambda x: geometry.move(x, matrix), lambda x: geometry.read(x, positions)):
        assert torch.autograd.gradcheck(function, images, fast_mode=True)


def test_no_amounts_change_nothing(device):
    faces, extra_masks = pictures(3, 96, 4), pictures(3, 96, 2).transpose(0, 3, 1, 2).copy()
    d = Draws.identity(3, 96)
    with OpenCVAugmenter(96, 96, [96], threads=1) as augment:
        ours = augment(faces, extra_masks, d)
    bgr, masks = faces[..., :3].transpose(0, 3, 1, 2), np.concatenate([faces[:, None, ..., 3], extra_masks], 1)
    assert np.array_equal(ours.feed, bgr)
    assert np.array_equal(ours.targets[0], bgr)
    assert np.array_equal(ours.masks[0], masks)
    result = DeviceAugmenter(96, 96, [96])(on_device(faces, device), on_device(extra_masks, device), d)
    for tensor, expected in ((result.feed, bgr), (result.targets[0], bgr), (result.masks[0], masks)):
        assert worst(tensor.cpu() * 255, expected) < 0.02  # float32 positions: 1e-5 px


def test_flipping_twice_is_nothing(device):
    faces, points = pictures(4, 64), np.random.default_rng(0).uniform(0, 63, (4, 2, 68, 2))
    step = ImageAugmentation(4, 64, draws=from_record(64, 4, flip=[True, False, True, True]))
    once, transformed = step.random_flip(faces, points)
    assert not np.array_equal(once, faces) and not np.array_equal(transformed, points)
    twice, back = step.random_flip(once, transformed)
    assert np.array_equal(twice, faces) and np.allclose(back, points)
    images, flags = on_device(faces, device).permute(0, 3, 1, 2), on_device(step.draws.flip, device)
    assert torch.equal(geometry.flip(geometry.flip(images, flags), flags), images)
    assert np.array_equal(geometry.flip(images, flags).permute(0, 2, 3, 1).cpu(), once)


def blobs(points: np.ndarray, size: int) -> np.ndarray:
    """(N, size, size, 4) uint8: a soft dot of 2.5 px at each of N points, in all channels."""
    y, x = np.mgrid[:size, :size]
    dots = [255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 2.5**2)) for px, py in points]
    return np.repeat(np.rint(dots).astype(np.uint8)[..., None], 4, axis=-1)


def centres(images) -> np.ndarray:
    """(N, S, S) -> (N, 2) centres of mass (x, y)."""
    images = np.asarray(images, np.float64)
    size = images.shape[-1]
    at = np.arange(size)
    total = images.sum((1, 2))
    return np.stack([(images.sum(1) * at).sum(1) / total, (images.sum(2) * at).sum(1) / total], -1)


@pytest.mark.slow
def test_points_and_masks_go_where_the_pixels_go(device, within):
    """A dot, found by its centre of mass: in target, in masks and, through the map, in the feed; to .05 px."""
    size, n = 128, 24
    config = AugmentationConfig(color=False, rotation_range=20.0, zoom_amount=15.0)
    d = draw(6, np.arange(n), 0, size, config)
    rng = np.random.default_rng(1)
    spots = rng.uniform(40, 87, (n, 2))
    faces = blobs(spots, size)
    extra_masks = np.ascontiguousarray(np.repeat(faces[..., :1], 2, -1).transpose(0, 3, 1, 2))
    # In the feed: the dot is painted where the map reads for a px in the middle of a cell of the grid, and there
    # it must appear. Half the usual warp: a dot that the cell bends is no longer centred on its own point.
    seen = np.array([32.0, 64.0]) + rng.uniform(14, 17, (n, 2))
    warped = dataclasses.replace(d, warp=d.warp * 0.5)
    read = np.array([node_positions(nodes, *at, size) for nodes, at in zip(warped.control_grid(), seen)])
    feed_faces = blobs(read, size)
    for augment, to in (
        (OpenCVAugmenter(size, size, [size], threads=2), lambda batch: batch),
        (DeviceAugmenter(size, size, [size]), lambda batch: on_device(batch, device)),
    ):
        name = type(augment).__name__
        result = augment(to(faces), to(extra_masks), d).to_float()
        expected = d.move_points(spots[:, None])[:, 0]
        within(f"{name}: target, px", worst(centres(result.targets[0][:, 1].cpu()), expected), 0.05)
        for mask in range(3):
            error = worst(centres(result.masks[0][:, mask].cpu()), expected)
            within(f"{name}: mask {mask}, px", error, 0.05)
        feed = augment(to(feed_faces), None, warped).to_float().feed[:, 1].cpu()
        within(f"{name}: feed, px", worst(centres(feed), seen), 0.05)


def test_the_steps_in_order_are_the_whole(device, at_least):
    """transform, flip and warp one after the other show what the composed sampling shows."""
    size = 128
    faces = pictures(4, size)
    d = draw(9, np.arange(4), 0, size, AugmentationConfig(color=False))
    step = ImageAugmentation(4, size, draws=d)
    transformed = step.random_flip(step.transform(faces)[0])[0]
    with OpenCVAugmenter(size, size, [size]) as augment:
        full = augment(faces, None, d)
    assert worst(transformed, full.targets[0].permute(0, 2, 3, 1)) <= 1
    inner = (slice(None), slice(16, -16), slice(16, -16))  # at the rim the whole may see beyond the target
    warped, feed = step.warp(transformed)[inner], full.feed.permute(0, 2, 3, 1).numpy()[inner]
    error = np.mean((warped.astype(np.float64) - feed) ** 2)
    at_least("two samplings against one, dB", 10 * np.log10(255**2 / error), 32)


@pytest.mark.slow
@pytest.mark.parametrize("as_tensor", [False, True])
def test_without_draws_every_call_is_another(device, as_tensor):
    """As in the API, whose state is hidden; here another object with the same seed gives the same calls."""
    faces = np.random.default_rng(2).integers(0, 256, (4, 64, 64, 3), np.uint8)
    batch = torch.from_numpy(faces).to(device) if as_tensor else faces
    config = AugmentationConfig(flip_chance=50.0, color_clahe_chance=75.0)

    def calls(step, count=4):
        each = (step.color_adjust, lambda b: step.transform(b)[0], lambda b: step.random_flip(b)[0], step.warp)
        return [[np.asarray(torch.as_tensor(call(batch)).cpu()) for _ in range(count)] for call in each]

    results = calls(ImageAugmentation(4, 64, config, seed=3))
    for outcomes in results:
        assert any(not np.array_equal(outcomes[0], other) for other in outcomes[1:])
    again, other = (calls(ImageAugmentation(4, 64, config, seed=seed)) for seed in (3, 4))
    assert all(np.array_equal(a, b) for one, two in zip(results, again) for a, b in zip(one, two))
    assert not all(np.array_equal(a, b) for one, two in zip(results, other) for a, b in zip(one, two))
    fixed = calls(ImageAugmentation(4, 64, config, draw(3, np.arange(4), 0, 64, config)), 2)
    assert all(np.array_equal(first, second) for first, second in fixed)
    assert np.array_equal(fixed[0][0], results[0][0]), "the first call draws for the first faces"


def test_wrong_shapes_are_refused(device):
    step = ImageAugmentation(2, 64)
    for batch in (np.zeros((3, 64, 64, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 64, 64))):
        with pytest.raises(ValueError, match="batch"):
            step.warp(batch)
    with pytest.raises(ValueError, match="float64"):
        step.transform(np.zeros((2, 64, 64, 3)))
    with pytest.raises(ValueError, match="batch"):
        step.color_adjust(np.zeros((2, 64, 64, 4), np.uint8))
    with pytest.raises(ValueError, match="draws"):
        ImageAugmentation(3, 64, draws=Draws.identity(2, 64))
    for smaller in (0, 65):
        with pytest.raises(ValueError, match="shrink"):
            geometry.shrink(torch.zeros(1, 1, 64, 64, device=device), smaller)
