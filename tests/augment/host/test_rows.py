"""Images that stay where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from swapfast.augment.draws import draw
from swapfast.augment.host.augmenter import OpenCVAugmenter
from swapfast.augment.host.rows import Rows


@pytest.fixture
def stored() -> list[np.ndarray]:
    """Faces of two sides with a mask each."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (n, 64, 64, 4), np.uint8) for n in (5, 3)]


WANTED = [np.array([4, 0, 0, 2]), np.array([1, 1, 2, 0, 2])]


def test_rows_are_the_array_that_would_be_gathered(stored):
    expected = np.concatenate([array[rows_taken] for array, rows_taken in zip(stored, WANTED)])
    rows = Rows(list(zip(stored, WANTED)))
    assert (len(rows), rows.shape, rows.ndim, rows.dtype) == (9, expected.shape, 4, np.uint8)
    assert np.array_equal(np.asarray(rows), expected)
    for first in range(9):
        assert np.array_equal(rows.image(first), expected[first : first + 1])
        for last in range(first + 1, 10):
            out = np.zeros_like(expected[first:last])
            assert rows.take(slice(first, last), out) is out and np.array_equal(out, expected[first:last])
    with pytest.raises(IndexError):
        rows.image(9)


def test_one_image_is_not_copied(stored):
    rows = Rows(list(zip(stored, WANTED)))
    assert np.shares_memory(rows.image(5), stored[1]) and np.shares_memory(rows.image(0), stored[0])


@pytest.mark.parametrize(("size", "threads"), [(64, 1), (64, 3), (256, 2)])
def test_rows_of_read_only_stores_are_augmented_as_arrays_are(size, threads):
    """At 64 px several are read at a time, across the end of a side too, at 256 px each where it lies."""
    rng = np.random.default_rng(5)
    faces = [rng.integers(0, 256, (n, size, size, 4), np.uint8) for n in (5, 3)]
    extra_masks = [np.zeros((n, 2, size, size), np.uint8) for n in (5, 3)]
    for number, side in enumerate(extra_masks):
        side[:, number, size // 3 : size // 2, size // 4 : size // 2] = 200
    for array in (*faces, *extra_masks):
        array.flags.writeable = False
    draws = draw(1, np.arange(9), np.repeat([0, 1], [4, 5]), size)
    rows = [Rows(list(zip(arrays, WANTED))) for arrays in (faces, extra_masks)]
    with OpenCVAugmenter(size, size, [48, size], threads) as augment:
        from_rows, two = augment(*rows, draws), augment(*map(np.asarray, rows), draws)
    for name in ("feed", "targets", "masks"):
        for a, b in zip(getattr(from_rows, name), getattr(two, name)):
            assert (a == b).all() and a.any(), name
