"""Partners of the warp to landmarks: faceswap's, exact whatever the arithmetic, and chosen by the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from swapfast.config import CropConfig
from swapfast.errors import SwapfastError
from swapfast.faces.alignment import align, to_68
from swapfast.faces.folder import scan_folder
from swapfast.faces.matching import MATCH_BLOCK, LandmarkMatcher, nearest
from swapfast.faces.record import FaceRecord
from swapfast.philox import STREAM_AUGMENT, random_words
from tests.faces.face_samples import a_face, a_picture, as_the_peer, write_plain

SETTINGS = ["64_face_1.0_0.0", "256_face_0.875_0.05", "128_head_1.0_0.0", "128_legacy_0.75_0.0"]


class LazyRecords(Sequence):
    """Faces made when asked for, as a large folder's are, and the indices asked for."""

    def __init__(self, landmarks: np.ndarray) -> None:
        self.landmarks = landmarks
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.landmarks)

    def __getitem__(self, index: int) -> FaceRecord:
        points = to_68(self.landmarks[index])
        self.asked.append(index)
        return FaceRecord(Path("x.png"), "head", 512, 512, points, align(points))


def on_the_peers_crop(points: np.ndarray, records: LazyRecords, setting: str) -> np.ndarray:
    """(n, 68, 2): our landmarks of heads, where the peer has them (``as_the_peer``)."""
    size, centering, coverage, offset = setting.split("_")
    crop = CropConfig(centering=centering, coverage=100 * float(coverage), vertical_offset=100 * float(offset))
    asked = list(records.asked)
    moved = [as_the_peer(face, record, crop, int(size)) for face, record in zip(points, records)]
    records.asked = asked
    return np.array(moved)


def faces(n: int, seed: int, spread: float = 4.0) -> np.ndarray:
    """(n, 68, 2) float32: one random shape of about 100 px and each face's own noise, ``spread`` px."""
    shape = np.random.default_rng(0).uniform(0, 100, (68, 2))
    return (shape + np.random.default_rng(seed).normal(0, spread, (n, 68, 2))).astype(np.float32)


def brute_force(own: np.ndarray, others: np.ndarray, count: int) -> np.ndarray:
    """The nearest by float64 distances of all pairs, of equal ones the lower index first."""
    return np.argsort(distances(own, others), axis=1, kind="stable")[:, :count]


def distances(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) float64 px^2."""
    own, others = own.reshape(len(own), -1).astype(np.float64), others.reshape(len(others), -1).astype(np.float64)
    return np.stack([np.square(face - others).sum(axis=1) for face in own])


def squares(points: np.ndarray) -> np.ndarray:
    """(n,) float64: |a|^2."""
    return np.square(points.astype(np.float64)).sum(axis=(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_table_is_aligned_as_its_records_are(setting, tmp_path):
    """To the bit, though a table is worked on in parts of some thousands."""
    for index in range(11):
        points = a_face(40 + index, (15 + index, 12)) + np.random.default_rng(index).normal(0, 0.5, (68, 2))
        write_plain(tmp_path / f"{index:02d}.png", a_picture(90, 100, index), points)
    table = scan_folder(tmp_path).records.select(np.arange(4100)[::-1] % 11)
    size, centering, coverage, y_offset = setting.split("_")
    crop = int(size), centering, float(coverage), float(y_offset)
    of_table, of_records = (LandmarkMatcher.from_records([s, s[2:4]], *crop) for s in (table, list(table)))
    for ours, theirs in zip(of_table.landmarks, of_records.landmarks, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert of_table.landmarks[0].shape == (4100, 68, 2)


# --- faceswap's -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("setting", SETTINGS)
def test_landmarks_of_records_are_faceswaps(golden, setting, within):
    vectors = golden("landmark_matcher")
    size, centering, coverage, y_offset = setting.split("_")
    sides = [LazyRecords(vectors["frame_a"]), LazyRecords(vectors["frame_b"])]
    matcher = LandmarkMatcher.from_records(sides, int(size), centering, float(coverage), float(y_offset))
    for side, ours, records in zip("ab", matcher.landmarks, sides):
        # The peer's are float32: a few roundings of terms up to 2,000 px, 1.5e-4 px here (see test_alignment).
        # Ours lie where the pixels do, which differs from where faceswap has them by a known map.
        ours = on_the_peers_crop(ours, records, setting)
        within(f"{setting} {side}, px", np.abs(ours - vectors[f"aligned_{side}_{setting}"]).max(), 8e-4)
        assert records.asked[: len(records)] == list(range(len(records)))
        assert len(records.asked) <= len(records) + 1, "a face was made twice"


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("source", ["aligned", "frame"])
def test_the_ten_nearest_are_faceswaps(golden, setting, source, within):
    """Other faces only where faceswap's float32 cannot tell them apart.

    It takes |a|^2 + |b|^2 - 2ab of uncentred points, so each distance is off by some roundings of |a|^2 + |b|^2, and
    a face up to twice that farther away may be taken for a nearer one. In ten draws of such faces, moved by 2 %,
    distances in float32 are off by up to 12.6 roundings and a face 12.3 farther is taken; five or six faces of 1,250
    are others. Five times that is allowed.
    """
    vectors = golden("landmark_matcher")
    size, centering, coverage, y_offset = setting.split("_")
    a, b = (vectors[f"aligned_{side}_{setting}"] for side in "ab")
    if source == "aligned":
        matcher = LandmarkMatcher(a, b)
    else:
        sides = [LazyRecords(vectors[f"frame_{side}"]) for side in "ab"]
        matcher = LandmarkMatcher.from_records(sides, int(size), centering, float(coverage), float(y_offset))
        moved = (on_the_peers_crop(points, side, setting) for points, side in zip(matcher.landmarks, sides))
        matcher = LandmarkMatcher(*moved)
    exact, rounding = distances(a, b), 2.0**-24 * (squares(a)[:, None] + squares(b))
    different, excess = 0, 0.0
    for side, ours, far, unit in zip("ab", matcher.closest, (exact, exact.T), (rounding, rounding.T)):
        for face, (our, peer) in enumerate(zip(ours, vectors[f"closest_{side}_{setting}"])):
            only_ours, only_peers = np.setdiff1d(our, peer), np.setdiff1d(peer, our)
            assert len(our) == len(np.unique(our)) == 10
            different += len(only_ours)
            if len(only_ours):
                gap = far[face, only_peers].max() - far[face, only_ours].min()
                excess = max(excess, gap / unit[face, only_peers].max())
    within("farther, in roundings", excess, 62)
    within(f"other faces of {10 * (len(a) + len(b))}", different, 30)


@pytest.mark.golden
def test_distances_are_faceswaps(golden, within):
    vectors = golden("landmark_matcher")
    a, b = (vectors[f"aligned_{side}_64_face_1.0_0.0"] for side in "ab")
    exact = vectors["dist2_64"]
    within("distances, relative", np.abs(distances(a, b) / exact - 1).max(), 1e-6)
    closest_a, closest_b = LandmarkMatcher(a, b).closest
    for rows, pairs in ((closest_a, exact), (closest_b, exact.T)):
        ours = np.take_along_axis(pairs, rows.astype(np.int64), axis=1)
        assert np.array_equal(ours, np.sort(pairs, axis=1)[:, :10]), "not the nearest, or not nearest first"


@pytest.mark.golden
def test_pairs_are_faceswaps(golden):
    """faceswap's columns refer to its own order; ours hold the same faces, nearest first."""
    vectors = golden("landmark_matcher")
    setting = next(s for s in SETTINGS if np.array_equal(vectors[f"aligned_a_{s}"][0], vectors["pairs_out"][0, 0]))
    matcher = LandmarkMatcher(vectors[f"aligned_a_{setting}"], vectors[f"aligned_b_{setting}"])
    columns = []
    for side, indices, closest in zip("ab", vectors["pairs_indices"], matcher.closest):
        drawn = vectors[f"pairs_unsorted_closest_{side}"][indices, vectors[f"pairs_draw_{side}"]]
        columns.append([list(closest[index]).index(face) for index, face in zip(indices, drawn)])
    pairs = matcher.get_close_landmarks(vectors["pairs_indices"], np.array(columns))
    assert pairs.dtype == np.float32
    assert np.array_equal(pairs, vectors["pairs_out"])


# --- the nearest ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 33])
@pytest.mark.parametrize("m", [1, 9, 10, 11, 40])
def test_any_number_of_faces_is_enough(n, m):
    a, b = faces(n, 1), faces(m, 2)
    matcher = LandmarkMatcher(a, b)
    for closest, own, others in ((matcher.closest[0], a, b), (matcher.closest[1], b, a)):
        assert closest.shape == (len(own), min(10, len(others))) and closest.dtype == np.int32
        assert np.array_equal(closest, brute_force(own, others, 10))
    pairs = matcher.get_close_landmarks(np.zeros((2, 3), int), matcher.choices(1, np.arange(3)))
    assert pairs.shape == (6, 2, 68, 2)


@pytest.mark.slow
@pytest.mark.parametrize("num_choices", [1, 10, 50, 5000])
def test_both_ways_are_the_exact_neighbours(num_choices):
    a, b = faces(700, 1), faces(1300, 2)
    matcher = LandmarkMatcher(a, b, num_choices)
    assert np.array_equal(matcher.closest[0], brute_force(a, b, num_choices))
    assert np.array_equal(matcher.closest[1], brute_force(b, a, num_choices))


@pytest.mark.slow
@pytest.mark.parametrize("copies", [200, 600])
@pytest.mark.parametrize("offset", [0.0, 4000.0])
def test_near_duplicates_far_from_the_origin_are_told_apart(copies, offset):
    """Copies with 1e-3 px of noise: they differ by 1e-4 px^2, float32 products of such faces err by far more."""
    noise = np.random.default_rng(3).normal(0, 1e-3, (copies, 68, 2))
    # A second cluster keeps the centre away from the copies, so that centring alone does not save float32.
    b = (np.concatenate([faces(1, 5) + noise, faces(copies, 6) + 100.0]) + offset).astype(np.float32)
    a = (np.concatenate([faces(1, 5) + noise[::-1] / 2, faces(50, 7)]) + offset).astype(np.float32)
    exact = brute_force(a, b, 10)
    assert not np.array_equal(in_float32(a, b, 10), exact), "these faces do not tax float32"
    assert np.array_equal(nearest(a, b, 10), exact)
    assert np.array_equal(nearest(b, a, 10), brute_force(b, a, 10))


def in_float32(own: np.ndarray, others: np.ndarray, count: int) -> np.ndarray:
    """What a preselection of 32 by a float32 product of the centred faces finds when nobody checks its error."""
    centre = np.concatenate([own, others]).reshape(-1, 136).astype(np.float64).mean(0)
    a, b = ((side.reshape(-1, 136) - centre).astype(np.float32) for side in (own, others))
    rough = np.argsort((b * b).sum(1) - 2 * (a @ b.T), axis=1, kind="stable")[:, :32]
    exact = np.take_along_axis(distances(own, others), rough, axis=1)
    order = np.lexsort((rough, exact), axis=1)[:, :count]
    return np.take_along_axis(rough, order, axis=1)


def test_of_equal_faces_the_first_come_first():
    few = faces(7, 1)
    b = few[np.random.default_rng(2).integers(0, 7, 500)]
    a = np.concatenate([few, faces(20, 3)])
    assert np.array_equal(nearest(a, b, 10), brute_force(a, b, 10))
    same = np.repeat(few[:1], 3000, axis=0)
    assert np.array_equal(nearest(same, same, 10), np.tile(np.arange(10), (3000, 1)))


def test_one_face_far_off_does_no_harm():
    a, b = faces(60, 1), faces(900, 2)
    b[17] += 1e6
    assert np.array_equal(nearest(a, b, 10), brute_force(a, b, 10))
    assert np.array_equal(nearest(b, a, 10), brute_force(b, a, 10))


@pytest.mark.slow
def test_block_size_does_not_matter():
    a, b = faces(500, 1, spread=1e-3), faces(2500, 2, spread=1e-3)
    whole = nearest(a, b, 10)
    assert np.array_equal(whole, brute_force(a, b, 10))
    for block_bytes in (1, 4 * 2500 * 7, 1 << 20):
        assert np.array_equal(nearest(a, b, 10, block_bytes=block_bytes), whole)


def test_progress_counts_the_faces_of_both_sides():
    told = []
    LandmarkMatcher(faces(30, 1), faces(12, 2), progress=lambda done, total: told.append((done, total)))
    assert told == [(30, 42), (42, 42)]


# --- the choice -------------------------------------------------------------------------------------------


def test_choices_are_uniform():
    matcher = LandmarkMatcher(faces(40, 1), faces(7, 2))  # 7 choices for A's faces, 10 for B's
    drawn = matcher.choices(11, np.arange(70_000))
    for columns, k, limit in zip(drawn, (7, 10), (22.5, 27.9)):  # chi-square of 6 and 9 degrees, 1 in 1000
        counts = np.bincount(columns, minlength=k)
        assert len(counts) == k
        expected = len(columns) / k
        assert ((counts - expected) ** 2 / expected).sum() < limit
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.02, "the sides choose alike"
    assert abs(np.corrcoef(drawn[0, 1:], drawn[0, :-1])[0, 1]) < 0.02, "neighbours choose alike"


def test_a_choice_depends_on_seed_ordinal_and_side_only():
    matcher = LandmarkMatcher(faces(20, 1), faces(20, 2))
    ordinals = np.array([5, 6, 7, 2**40 + 3])
    drawn = matcher.choices(3, ordinals)
    assert np.array_equal(matcher.choices(3, ordinals), drawn)
    assert np.array_equal(matcher.choices(3, np.stack([ordinals, ordinals])), drawn)
    assert np.array_equal(matcher.choices(3, ordinals[::-1])[:, ::-1], drawn)
    split = [matcher.choices(3, ordinals[i : i + 1]) for i in range(4)]
    assert np.array_equal(np.concatenate(split, axis=1), drawn)
    own = np.stack([ordinals, ordinals + 100])
    assert np.array_equal(matcher.choices(3, own)[0], drawn[0])
    many = np.arange(1000)
    assert not np.array_equal(matcher.choices(3, many), matcher.choices(4, many))
    a, b = matcher.choices(3, many)
    assert not np.array_equal(a, b)


def test_choices_have_a_block_of_their_own():
    """Behind the 136 normals of the noise: the same run's other draws do not tell which match is chosen."""
    assert MATCH_BLOCK == 16 + 136 // 4
    matcher = LandmarkMatcher(faces(20, 1), faces(20, 2))
    ordinals = np.arange(1000)
    for side, columns in enumerate(matcher.choices(3, ordinals)):
        words = random_words(3, ordinals, side, range(MATCH_BLOCK, MATCH_BLOCK + 1), STREAM_AUGMENT)
        assert np.array_equal(columns, np.floor(words[:, 0] * (10 / 2**32)))


def test_pairs_are_own_and_match_a_first():
    a, b = faces(12, 1), faces(15, 2)
    matcher = LandmarkMatcher(a, b)
    indices, columns = np.array([[3, 3, 11], [14, 0, 7]]), np.array([[0, 9, 4], [1, 2, 3]])
    pairs = matcher.get_close_landmarks(indices, columns)
    for i in range(3):
        assert np.array_equal(pairs[i], [a[indices[0, i]], b[matcher.closest[0][indices[0, i], columns[0, i]]]])
        assert np.array_equal(pairs[3 + i], [b[indices[1, i]], a[matcher.closest[1][indices[1, i], columns[1, i]]]])
    assert matcher.get_close_landmarks(np.zeros((2, 0), int), np.zeros((2, 0), int)).shape == (0, 2, 68, 2)


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "side"), [(0, 5, "A"), (5, 0, "B")])
def test_a_side_without_faces_is_refused(n, m, side):
    with pytest.raises(SwapfastError, match=f"side {side} has no faces"):
        LandmarkMatcher(faces(n, 1), faces(m, 2))
    with pytest.raises(SwapfastError, match="has no faces"):
        LandmarkMatcher.from_records([[], []], 64, "face", 1.0, 0.0)


def test_other_than_two_sides_are_refused():
    with pytest.raises(SwapfastError, match="two sides"):
        LandmarkMatcher.from_records([[], [], []], 64, "face", 1.0, 0.0)


def test_wrong_arguments_are_refused():
    good = faces(12, 1)
    with pytest.raises(ValueError, match=r"side B: expected \(n, 68, 2\)"):
        LandmarkMatcher(good, good[:, :51])
    with pytest.raises(ValueError, match="num_choices"):
        LandmarkMatcher(good, good, 0)
    broken = good.copy()
    broken[4, 2, 1] = np.nan
    with pytest.raises(ValueError, match="side A that are not finite"):
        LandmarkMatcher(broken, good)
    matcher = LandmarkMatcher(good, good)
    for indices, columns, message in (
        ([[12], [0]], [[0], [0]], "face of A 12"),
        ([[0], [-1]], [[0], [0]], "face of B -1"),
        ([[0], [0]], [[0], [10]], "choice of B 10"),
    ):
        with pytest.raises(IndexError, match=message):
            matcher.get_close_landmarks(np.array(indices), np.array(columns))
    with pytest.raises(ValueError, match=r"\(2, B\)"):
        matcher.get_close_landmarks(np.zeros((2, 3), int), np.zeros((2, 2), int))
