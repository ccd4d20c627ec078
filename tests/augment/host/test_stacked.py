"""Small images, read several at a time: the same pixels as one at a time."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from swapfast.augment.draws import draw
from swapfast.augment.host.augmenter import OpenCVAugmenter
from swapfast.augment.host.geometry import move, node_rows, node_weights, read_warped
from swapfast.augment.host.recycle import Scratch
from swapfast.augment.host.stacked import STACK_PIXELS, STACKED_UP_TO, affine_maps, node_maps, read_stacked
from swapfast.augment.kernels.jit import load_kernels


def _images(count: int, size: int, channels: int) -> np.ndarray:
    """Smooth ones, each of another colour, so that a row of a neighbour would show."""
    rng = np.random.default_rng(4)
    small = rng.integers(0, 256, (count, 6, 6, channels), np.uint8)
    resized = [cv2.resize(single, (size, size), interpolation=cv2.INTER_CUBIC) for single in small]
    return np.stack(resized).reshape(count, size, size, channels)


@pytest.mark.parametrize("size", [32, 64, STACKED_UP_TO])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_moved_as_one_at_a_time(size, channels, within):
    images, matrices = _images(13, size, channels), draw(2, np.arange(13), np.zeros(13, int), size).inverse()
    stacked = read_stacked(images, affine_maps(matrices, size, Scratch()), np.zeros_like(images))
    single = np.stack([move(image, matrix) for image, matrix in zip(images, matrices)]).reshape(images.shape)
    difference = np.abs(stacked.astype(int) - single)
    within(f"{size} px, {channels} channels, levels", difference.max(), 1)
    within(f"{size} px, {channels} channels, share of values", (difference > 0).mean(), 0.02)


@pytest.mark.parametrize(("size", "nodes"), [(32, 5), (64, 5), (64, 33), (STACKED_UP_TO, 33)])
def test_warped_as_one_at_a_time(size, nodes, within):
    rng = np.random.default_rng(5)
    images, weights = _images(13, size, 4), node_weights(size, nodes)
    at = np.linspace(-0.5, size - 0.5, nodes) if nodes == 5 else np.linspace(0, size - 1, nodes)
    grid = np.stack(np.meshgrid(at, at), axis=-1) + rng.normal(0, size / 50, (13, nodes, nodes, 2))
    stacked = read_stacked(images, node_maps(grid, size, Scratch()), np.zeros_like(images))
    single = np.zeros_like(images)
    for image, rows, out in zip(images, node_rows(grid, weights), single):
        read_warped(image, rows, weights, out, Scratch())
    difference = np.abs(stacked.astype(int) - single)
    within(f"{size} px, {nodes} nodes, levels", difference.max(), 1)
    within(f"{size} px, {nodes} nodes, share of values", (difference > 0).mean(), 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64, STACKED_UP_TO, STACKED_UP_TO + 16])
@pytest.mark.parametrize("mask_count", [0, 1, 2, 5])
def test_a_face_does_not_depend_on_the_stack_it_is_in(size, mask_count):
    """More than one stack holds, on one, two and three threads, and each face alone: the same bits."""
    count = STACK_PIXELS // size**2 + 5 if size == STACKED_UP_TO else 11
    faces, masks = (
        _images(count, size, 4),
        _images(count, size, max(mask_count, 1)).transpose(0, 3, 1, 2)[:, :mask_count].copy(),
    )
    draws = draw(3, np.arange(count), np.zeros(count, int), size)

    def parts(augmented) -> list[np.ndarray]:
        results = [augmented.feed, *augmented.targets, *augmented.masks]
        assert all(part.any() for part in results) and augmented.masks[0].shape[1] == 1 + mask_count
        return [part.numpy() for part in results]

    with OpenCVAugmenter(size, size, [size // 2, size], threads=1) as augment:
        full = parts(augment(faces, masks, draws))
        for faces_slice in (slice(0, 1), slice(3, 4), slice(count - 1, count), slice(2, 9)):
            for single, two in zip(parts(augment(faces[faces_slice], masks[faces_slice], draws[faces_slice])), full):
                assert np.array_equal(single, two[faces_slice])
    for threads in (2, 3):
        with OpenCVAugmenter(size, size, [size // 2, size], threads=threads) as augment:
            assert all(np.array_equal(a, b) for a, b in zip(parts(augment(faces, masks, draws)), full))


def test_bytes_become_the_floats_that_division_gives():
    levels = np.random.default_rng(0).permutation(np.repeat(np.arange(256, dtype=np.uint8), 12))
    expected, copies = levels / np.float32(255), load_kernels("copies")
    out = np.empty(len(levels), np.float32)
    copies.to_floats(levels, out)
    assert np.array_equal(out, expected)
    copies.bgr_to_floats(levels, out[: len(levels) // 4 * 3])
    assert np.array_equal(out[: len(levels) // 4 * 3], expected.reshape(-1, 4)[:, :3].ravel())
    for channel in (0, 3):
        copies.every_fourth_to_floats(levels[channel:], out[: len(levels) // 4])
        assert np.array_equal(out[: len(levels) // 4], expected[channel::4])
