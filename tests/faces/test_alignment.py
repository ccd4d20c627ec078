"""Where a face lies: faceswap's numbers, and properties that must hold whatever they are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from swapfast.faces.alignment import CENTERINGS, PADDING_SHARE, align, padding, to_68, umeyama
from swapfast.points import transform_points
from tests.faces.face_samples import a_face

# The golden numbers were made with OpenCV 5; version 4.13's solvePnP stops elsewhere, see cv413_compare.json.
SAME_SOLVER = cv2.__version__.startswith("5.")
# faceswap takes the landmarks' centre in float32: off by 3e-5 at x near 1000, times the scale of a crop, which the pose
# reads in turn. Its matrices are off by up to 7.4e-5 px here. Ours is float64, and agrees with exact arithmetic to 1e-9
# (test_umeyama_...). Its points are float32 besides: 3.5 roundings of the terms they are summed from, up to 2,000 px;
# 1.5e-4 px here. Five times as much is allowed, as for the numbers of the pose.
PIXELS = 4e-4 if SAME_SOLVER else 0.01
POINTS = 8e-4 if SAME_SOLVER else 0.01


@pytest.fixture(scope="module")
def numbers(golden):
    return golden("align_math")


@pytest.fixture(scope="module")
def aligned(numbers):
    return [align(to_68(points)) for points in numbers["frame_landmarks"]]


@pytest.mark.golden
def test_pose_and_offsets_are_faceswaps(numbers, aligned, within):
    def worst(what, ours):
        return max(np.abs(ours(one) - theirs).max() for one, theirs in zip(aligned, numbers[what], strict=True))

    loose = 1 if SAME_SOLVER else 100
    within("legacy matrix", worst("legacy_matrix", lambda a: a.legacy_matrix), 4e-6)
    within("rotation", worst("rotation", lambda a: a.rotation), 2e-6 * loose)
    within("translation", worst("translation", lambda a: a.translation), 1e-4 * loose)
    order = ("legacy", "face", "head")
    within("offsets", worst("offsets", lambda a: np.stack([a.offsets[c] for c in order])), 7e-6 * loose)
    angles = worst("pitch_yaw_roll", lambda a: np.array([a.pitch, a.yaw, a.roll]))
    within("pitch, yaw, roll, degrees", angles, 2e-4 * loose)
    within("head axes", worst("xyz_2d", lambda a: a.head_axes()), 1e-6 * loose)
    within("average distance", worst("average_distance", lambda a: a.average_distance), 1e-6)


@pytest.mark.golden
def test_matrices_points_and_padding_are_faceswaps(numbers, aligned, within):
    error = {"matrix": 0.0, "points": 0.0, "padding": 0.0}
    for key in numbers.files:
        what, _, rest = key.partition("_")
        if what == "adjusted":
            centering, coverage = rest.removeprefix("matrix_").split("_")
            for one, theirs in zip(aligned, numbers[key]):
                ours = one.matrix(256, centering, float(coverage), whole_padding=True)
                error["matrix"] = max(error["matrix"], np.abs(ours - theirs).max())
        elif what == "landmarks":
            centering, coverage, offset = rest.split("_")
            for one, frame, theirs in zip(aligned, numbers["frame_landmarks"], numbers[key]):
                ours = transform_points(one.matrix(256, centering, float(coverage), float(offset), True), frame)
                error["points"] = max(error["points"], np.abs(ours - theirs).max())
        elif what == "padding":
            centering, coverage = rest.split("_")
            ours = [padding(size, centering, float(coverage)) for size in (64, 96, 128, 192, 256, 384, 512)]
            error["padding"] = max(error["padding"], np.abs(np.rint(ours) - numbers[key]).max())
    within("adjusted matrix, px", error["matrix"], PIXELS)
    within("aligned points, px", error["points"], POINTS)
    within("padding, px", error["padding"], 0)


def test_exact_padding_moves_faceswaps_crop_by_a_known_amount(within):
    """The core has its exact share of the crop, around the same middle as that of whole px."""
    one, points = align(a_face()), a_face()
    for size, centering, coverage in ((64, "face", 0.875), (128, "head", 0.7), (256, "legacy", 1.0)):
        exact, whole = (one.matrix(size, centering, coverage, whole_padding=flag) for flag in (False, True))
        cores = [size - 2 * margin for margin in (padding(size, centering, coverage),)]
        cores.append(size - 2 * round(padding(size, centering, coverage)))
        expected = (transform_points(whole, points) - size / 2) * cores[0] / cores[1] + size / 2
        within(f"{size} {centering}", np.abs(transform_points(exact, points) - expected).max(), 1e-9)
        assert cores[0] == pytest.approx(size * (1 - PADDING_SHARE[centering]) / coverage)


@pytest.mark.parametrize("seed", range(5))
def test_umeyama_is_the_textbooks_singular_value_solution(seed, within):
    rng = np.random.default_rng(seed)
    source, target = rng.normal(500, 200, (51, 2)), rng.normal(0.5, 0.3, (51, 2))
    if seed % 2:
        target = source * (-0.01, 0.01) + 3  # a mirror image: reflections must stay excluded
    a, b = source - source.mean(0), target - target.mean(0)
    u, singular, vt = np.linalg.svd(b.T @ a / len(a))
    signs = np.array([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    turn = (singular * signs).sum() / (a**2).sum(1).mean() * (u * signs) @ vt
    expected = np.column_stack([turn, target.mean(0) - turn @ source.mean(0)])
    within("matrix", np.abs(umeyama(source, target) - expected).max(), 1e-9)


def test_aligning_follows_the_face_through_any_move():
    still, moved = a_face(), a_face(scale=37, shift=(800, 20), degrees=25)
    for centering in CENTERINGS:
        expected = transform_points(align(still).matrix(128, centering, 0.8, 0.1), still)
        found = transform_points(align(moved).matrix(128, centering, 0.8, 0.1), moved)
        assert np.abs(found - expected).max() < 0.02


def test_a_mirrored_face_looks_the_other_way(golden):
    swap = [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *range(27, 31),
        *range(35, 30, -1),
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
        *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65),
    ]
    points = golden("align_math")["frame_landmarks"][1].astype(float)
    one, other = align(points), align((points * (-1, 1) + (1280, 0))[swap])
    assert abs(one.yaw) > 5
    assert other.yaw == pytest.approx(-one.yaw, abs=0.1)
    assert other.roll == pytest.approx(-one.roll, abs=0.1)
    assert other.pitch == pytest.approx(one.pitch, abs=0.1)


def test_a_positive_offset_moves_the_face_down_by_that_share_of_the_core():
    one, points = align(a_face()), a_face()
    for size, centering, coverage in ((128, "face", 1.0), (96, "head", 0.7)):
        level = transform_points(one.matrix(size, centering, coverage), points)
        lowered = transform_points(one.matrix(size, centering, coverage, 0.1), points)
        core = size - 2 * padding(size, centering, coverage)
        np.testing.assert_allclose(lowered - level, np.broadcast_to((0, 0.1 * core), (68, 2)), atol=1e-9)


def test_98_points_become_the_68_they_contain():
    points = np.stack([np.arange(98), np.arange(98) * 2], axis=1).astype(float)
    chosen = to_68(points)[:, 0].astype(int).tolist()
    assert chosen[:17] == list(range(0, 33, 2))
    assert chosen[17:27] == [33, 34, 35, 36, 37, 42, 43, 44, 45, 46]
    assert chosen[27:36] == list(range(51, 60))
    assert chosen[36:48] == [60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75]
    assert chosen[48:] == list(range(76, 96))


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (np.zeros((4, 2)), "4-point"),
        (np.zeros((67, 2)), "67x2"),
        (np.zeros((68, 3)), "68x3"),
        (np.full((68, 2), np.nan), "finite"),
        (np.full((68, 2), np.inf), "finite"),
        (np.full((68, 2), 1e30), "finite"),
        (np.full((68, 2), 7.0), "one spot"),
        (a_face() * (-1, 1), "not look like a face"),
        (np.random.default_rng(0).uniform(0, 500, (68, 2)), "not look like a face"),
    ],
)
def test_points_that_are_no_face_are_refused_with_a_reason(points, reason):
    with pytest.raises(ValueError, match=reason):
        align(to_68(points))
