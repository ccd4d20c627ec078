"""Which faces make up a step."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.sampler import Sampler, _order_of_many
from swapfast.errors import SwapfastError


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


@pytest.mark.slow
def test_the_order_is_uniform():
    """Over many epochs every face comes first about equally often: chi-square of 10 faces, 99.9 % quantile 27.9."""
    sampler = Sampler(5, (10, 10), 10)
    first = np.bincount([sampler.ids(step)[0][0] for step in range(2000)], minlength=10)
    assert ((first - 200) ** 2 / 200).sum() < 27.9


def test_ordinals_count_faces_and_not_steps():
    sampler = Sampler(1, (5, 5), 16)
    assert sampler.ordinals(2**40)[3] == 2**44 + 3
    assert np.array_equal(np.concatenate([Sampler(1, (5, 5), 4).ordinals(s) for s in range(4)]), sampler.ordinals(0))


@pytest.mark.parametrize("worlds", [(1, 1, 1), (1, 3, 2), (4, 2, 8)])
def test_another_batch_size_neither_repeats_nor_leaves_out_a_face(worlds):
    """Over -b 8, 4 and 16, in any number of processes, the ordinals are 0, 1, 2, ... as at one batch size."""
    counts, step, ordinal = (50, 37), 0, 0
    seen, chosen = [], [[], []]
    for batch, steps, world in zip((8, 4, 16), (5, 7, 6), worlds):
        starts = {"start_step": step, "start_ordinal": ordinal}
        ranks = [Sampler(2, counts, batch, rank, world, **starts) for rank in range(world)]
        for _ in range(steps):
            for rank in ranks:
                seen.append(rank.ordinals(step))
                for side, ids in enumerate(rank.ids(step)):
                    chosen[side].append(ids)
            step += 1
        ordinal = ranks[-1].drawn_before(step)
    total = 8 * 5 + 4 * 7 + 16 * 6
    assert ordinal == total and np.array_equal(np.concatenate(seen), np.arange(total))
    for side in (0, 1):
        assert np.array_equal(np.concatenate(chosen[side]), Sampler(2, counts, total).ids(0)[side])


def test_a_sampler_that_goes_on_at_the_same_batch_size_is_the_one_that_began():
    began, goes_on = Sampler(2, (50, 37), 8), Sampler(2, (50, 37), 8, start_step=9, start_ordinal=72)
    assert np.array_equal(began.ordinals(11), goes_on.ordinals(11)) and np.array_equal(began.ids(11), goes_on.ids(11))
    with pytest.raises(ValueError, match="begins at step 9"):
        goes_on.ordinals(8)


# --- several processes ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("batch", [8, 9, 11, 16, 33])
@pytest.mark.parametrize("world", range(1, 9))
def test_ranks_in_their_order_are_one_process(world, batch):
    counts = (10, 37)
    one = Sampler(6, counts, batch)
    ranks = [Sampler(6, counts, batch, rank, world) for rank in range(world)]
    sizes = [sampler.batch_size for sampler in ranks]
    assert sum(sizes) == batch and max(sizes) - min(sizes) <= 1
    for step in (0, 1, 7, 2**29):
        assert np.array_equal(np.concatenate([r.ids(step) for r in ranks], axis=1), one.ids(step))
        assert np.array_equal(np.concatenate([r.ordinals(step) for r in ranks]), one.ordinals(step))
        for sampler in ranks:
            assert sampler.ids(step).shape == (2, sampler.batch_size)
            assert len(sampler.ordinals(step)) == sampler.batch_size
    assert {r.spare(1, 50, 2) for r in ranks} == {one.spare(1, 50, 2)}


def test_every_rank_has_ordinals_of_its_own():
    """Three processes and eleven faces a step: nobody's draws are another's, and none is left out."""
    ranks = [Sampler(1, (5, 5), 11, rank, 3) for rank in range(3)]
    assert [sampler.ordinals(2).tolist() for sampler in ranks] == [
        [22, 23, 24],
        [25, 26, 27, 28],
        [29, 30, 31, 32],
    ]


def test_more_processes_than_faces_a_step_are_refused():
    assert Sampler(1, (5, 5), 4, 3, 4).batch_size == 1
    with pytest.raises(SwapfastError, match=r"--batch-size 4: 5 processes need at least one face each"):
        Sampler(1, (5, 5), 4, 0, 5)


@pytest.mark.parametrize(
    "counts, batch, rank, world", [((0, 5), 4, 0, 1), ((5, 5), 0, 0, 1), ((5, 5), 4, 2, 2), ((5, 5), 4, -1, 2)]
)
def test_what_makes_no_sampler(counts, batch, rank, world):
    with pytest.raises(ValueError, match="a sampler needs"):
        Sampler(1, counts, batch, rank, world)


def test_another_order_may_be_given():
    """Asked for by side, by how often the side has been gone through, and by how many faces it has."""

    def backwards(side: int, epoch: int, faces: int) -> np.ndarray:
        return np.roll(np.arange(faces)[::-1], epoch + 10 * side)

    sampler = Sampler(1, (4, 3), 5, permutation=backwards)
    assert _stream(sampler, 0, 2).tolist() == [3, 2, 1, 0, 0, 3, 2, 1, 1, 0]
    assert _stream(sampler, 1, 2).tolist() == [0, 2, 1, 1, 0, 2, 2, 1, 0, 0]


# --- in the place of a face that cannot be read -----------------------------------------------------------


def test_a_spare_is_a_pure_function_within_its_side():
    one, again = Sampler(9, (50, 3), 8), Sampler(9, (50, 3), 64, 1, 2)
    asked = [(side, ordinal, attempt) for side in (0, 1) for ordinal in (0, 7, 2**40) for attempt in range(8)]
    given = [one.spare(*what) for what in asked]
    assert given == [again.spare(*what) for what in reversed(asked)][::-1], "whatever was asked before"
    for (side, _, _), spare in zip(asked, given):
        assert type(spare) is int and 0 <= spare < one.counts[side]
    assert given != [Sampler(10, (50, 3), 8).spare(*what) for what in asked]
    wide = Sampler(9, (10**6, 10**6), 8)
    assert len({wide.spare(*what) for what in asked}) == len(asked), "each attempt, ordinal and side has its own"
    assert {Sampler(9, (1, 1), 8).spare(*what) for what in asked} == {0}


@pytest.mark.slow
def test_spares_are_uniform():
    """Chi-square of 10 faces, 99.9 % quantile 27.9: over ordinals, and over the attempts at one."""
    sampler = Sampler(5, (10, 10), 8)
    for spares in (
        [sampler.spare(0, ordinal, 0) for ordinal in range(3000)],
        [sampler.spare(1, 17, attempt) for attempt in range(3000)],
    ):
        counts = np.bincount(spares, minlength=10)
        assert len(counts) == 10 and ((counts - 300) ** 2 / 300).sum() < 27.9


def test_a_small_side_does_not_drive_out_the_order_of_a_large_one():
    """Else every step would sort the large one anew, and cost the more the more faces there are."""
    several = Sampler(5, (3000, 2), 16)
    before = _order_of_many.cache_info().misses
    for step in range(50):
        several.ids(step)
    assert _order_of_many.cache_info().misses - before == 1
