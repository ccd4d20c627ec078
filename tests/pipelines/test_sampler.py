"""Which faces make up a step."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.sampler import Sampler


def _stream(sampler: Sampler, side: int, steps: int) -> np.ndarray:
    return np.concatenate([sampler.ids(step)[side] for step in range(steps)])


@pytest.mark.parametrize("counts, batch", [((10, 7), 4), ((3, 100), 16), ((1, 5), 8), ((25, 25), 25)])
def test_every_face_is_seen_once_before_any_is_seen_twice(counts, batch):
    """Also on a side of another length than its partner, and on one smaller than the batch."""
    sampler = Sampler(3, counts, batch)
    for side, faces in enumerate(counts):
        stream = _stream(sampler, side, 30)
        whole = stream[: len(stream) // faces * faces].reshape(-1, faces)
        assert (np.sort(whole, axis=1) == np.arange(faces)).all()


def test_a_step_is_a_pure_function_of_the_seed():
    first, again, other = Sampler(9, (50, 40), 8), Sampler(9, (50, 40), 8), Sampler(10, (50, 40), 8)
    steps = [0, 5, 3, 1000, 3]
    assert all(np.array_equal(first.ids(step), again.ids(step)) for step in steps)
    assert np.array_equal(first.ids(3), first.ids(3))
    assert not np.array_equal(_stream(first, 0, 6), _stream(other, 0, 6))
    assert not np.array_equal(_stream(first, 0, 5), _stream(first, 1, 5))


def test_each_epoch_has_an_order_of_its_own():
    stream = _stream(Sampler(1, (64, 64), 64), 0, 4)
    assert len({tuple(epoch) for epoch in stream.reshape(4, 64)}) == 4


def test_the_order_is_uniform():
    """Over many epochs every face comes first about equally often: chi-square of 10 faces, 99.9 % quantile 27.9."""
    sampler = Sampler(5, (10, 10), 10)
    first = np.bincount([sampler.ids(step)[0][0] for step in range(2000)], minlength=10)
    assert ((first - 200) ** 2 / 200).sum() < 27.9


def test_ordinals_count_faces_and_not_steps():
    sampler = Sampler(1, (5, 5), 16)
    assert sampler.ordinals(2**40)[3] == 2**44 + 3
    assert np.array_equal(np.concatenate([Sampler(1, (5, 5), 4).ordinals(s) for s in range(4)]), sampler.ordinals(0))
