"""Random amounts: the generator against its published answers, independence, ranges."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from swapfast.augment.augmentation import ConstantsAugmentation
from swapfast.augment.draws import Draws, draw, landmark_noise, with_landmarks
from swapfast.config import AugmentationConfig
from swapfast.errors import SwapfastError
from swapfast.faces.matching import MATCH_BLOCK
from swapfast.philox import STREAM_AUGMENT, STREAM_ORDER, philox4x32, random_words

FIELDS = [f.name for f in dataclasses.fields(Draws) if f.name not in ("size", "landmark_nodes", "clip_limit")]

# Random123's tests/kat_vectors, lines "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def test_philox_gives_the_published_answers():
    for counter, key, answer in KNOWN_ANSWERS:
        low, high = words(key)
        assert philox4x32(np.array(words(counter), np.uint32), low | high << 32).tolist() == words(answer)


def test_philox_is_the_same_for_one_counter_and_for_many():
    counters = np.random.default_rng(0).integers(0, 2**32, (7, 3, 4), dtype=np.uint32)
    together = philox4x32(counters, 2**63 + 5)
    for index in np.ndindex(7, 3):
        assert np.array_equal(philox4x32(counters[index], 2**63 + 5), together[index])


def test_ordinal_side_block_and_stream_have_their_own_counter_words():
    """Any two samples that differ in one of them get unrelated words, beyond 2**32 samples too."""
    samples = [(0, 0), (0, 1), (1, 0), (2**32, 0), (2**32, 1), (2**62, 1)]
    seen = [
        random_words(3, [o], [s], range(4), stream) for o, s in samples for stream in (STREAM_AUGMENT, STREAM_ORDER)
    ]
    assert len(np.unique(np.concatenate(seen))) == 4 * 4 * len(seen)
    counter = np.array([5, 3 << 1 | 1, 2, STREAM_ORDER], np.uint32)
    assert np.array_equal(random_words(9, [5 + (3 << 32)], [1], range(2, 3), STREAM_ORDER)[0], philox4x32(counter, 9))


@pytest.mark.parametrize("bad", [{"sides": [2]}, {"ordinals": [2**63]}, {"seed": -1}, {"seed": 2**64}])
def test_numbers_that_do_not_fit_the_counter_are_refused(bad):
    with pytest.raises(ValueError):
        draw(**{"seed": 0, "ordinals": [0], "sides": [0], "size": 64} | bad)


def test_what_a_face_draws_does_not_depend_on_its_batch():
    ordinals, sides = np.arange(40), np.arange(40) % 2
    together = draw(7, ordinals, sides, 128)
    order = np.random.default_rng(1).permutation(40)
    shuffled = draw(7, ordinals[order], sides[order], 128)
    for name in FIELDS:
        assert np.array_equal(getattr(shuffled, name), getattr(together, name)[order]), name
        for i in (0, 17, 39):
            assert np.array_equal(getattr(draw(7, [i], [i % 2], 128), name)[0], getattr(together, name)[i]), name
            assert np.array_equal(getattr(together[i : i + 1], name)[0], getattr(together, name)[i]), name


def test_seed_ordinal_and_side_change_everything():
    base = draw(7, [5], [0], 128)
    for changed in (draw(8, [5], [0], 128), draw(7, [6], [0], 128), draw(7, [5], [1], 128)):
        assert not np.intersect1d(base.warp, changed.warp).size
        assert base.rotation[0] != changed.rotation[0]


@pytest.mark.parametrize("off, idle", [("color", ["lab", "clahe_grid"]), ("flip", ["flip"]), ("warp", ["warp"])])
def test_a_switch_turns_its_amounts_off_and_moves_no_other(off, idle):
    everything = draw(3, np.arange(200), 0, 256)
    without = draw(3, np.arange(200), 0, 256, AugmentationConfig(**{off: False}))
    identity = Draws.identity(200, 256)
    for name in FIELDS:
        expected = identity if name in idle else everything
        assert np.array_equal(getattr(without, name), getattr(expected, name)), name
        assert name not in idle or not np.array_equal(getattr(everything, name), getattr(identity, name))


@pytest.mark.slow
def test_amounts_fill_their_ranges_evenly(within):
    n, size = 100_000, 512
    config = AugmentationConfig(
        rotation_range=25.0, zoom_amount=20.0, shift_range=10.0, flip_chance=30.0, color_clahe_chance=40.0
    )
    d = draw(11, np.arange(n), np.arange(n) % 2, size, config)
    ranges = {
        "L": (d.lab[:, 0], 0, 0.3),
        "a": (d.lab[:, 1], 0, 0.08),
        "b": (d.lab[:, 2], 0, 0.08),
        "rotation": (d.rotation, 0, 25),
        "scale": (d.scale, 1, 0.2),
        "shift x": (d.shift[:, 0], 0, 51.2),
        "shift y": (d.shift[:, 1], 0, 51.2),
    }
    # 1.63 / sqrt(n) is the Kolmogorov-Smirnov distance that a uniform sample exceeds once in a hundred.
    for name, (values, middle, reach) in ranges.items():
        unit = np.sort((values - middle) / reach + 1) / 2
        assert unit[0] > 0 and unit[-1] < 1
        within(f"{name}: distance from uniform", np.abs(unit - (np.arange(n) + 0.5) / n).max(), 1.63 / np.sqrt(n))
    within("share of flips", abs(d.flip.mean() - 0.3), 4 * np.sqrt(0.3 * 0.7 / n))
    within("share of CLAHE", abs((d.clahe_grid > 0).mean() - 0.4), 4 * np.sqrt(0.4 * 0.6 / n))
    grids, counts = np.unique(d.clahe_grid[d.clahe_grid > 0], return_counts=True)
    assert grids.tolist() == [4, 6, 8, 10, 12]
    within("share of each grid", np.abs(counts / counts.sum() - 0.2).max(), 4 * np.sqrt(0.2 * 0.8 / counts.sum()))

    warp = d.warp.reshape(n, 50) / (size * 5 / 256)
    within("warp mean", np.abs(warp.mean(0)).max(), 4.5 / np.sqrt(n))
    within("warp deviation", np.abs(warp.std(0) - 1).max(), 4.5 / np.sqrt(2 * n))
    within("warp kurtosis", np.abs((warp**4).mean(0) - 3).max(), 4.5 * np.sqrt(96 / n))
    all_slots = np.column_stack([v for v, _, _ in ranges.values()] + [d.flip, d.clahe_grid > 0, warp])
    correlation = np.corrcoef(all_slots, rowvar=False) - np.eye(all_slots.shape[1])
    within("largest correlation of two slots", np.abs(correlation).max(), 5 / np.sqrt(n))


@pytest.mark.long
def test_noise_of_landmarks_is_normal(within):
    """N(0, 2/256 of the size), the peer's, over a hundred thousand draws: each number, and any two, x and y too."""
    n, size = 100_000, 512
    deviation = ConstantsAugmentation.from_config(size).warp.lm_scale
    within("deviation of the peer's, px", abs(deviation - 2 / 256 * size), 0)
    sums = np.zeros((4, 136))
    products = np.zeros((136, 136))
    for start in range(0, n, 20_000):
        ordinals = np.arange(start, start + 20_000)
        noise = landmark_noise(11, ordinals, ordinals % 2).reshape(-1, 136)
        sums += [(noise**k).sum(0) for k in (1, 2, 3, 4)]
        products += noise.T @ noise
    mean, square, cube, fourth = sums / n
    within("mean", np.abs(mean).max(), 4.5 / np.sqrt(n))
    within("deviation", np.abs(np.sqrt(square) - 1).max(), 4.5 / np.sqrt(2 * n))
    within("skew", np.abs(cube).max(), 4.5 * np.sqrt(15 / n))
    within("kurtosis", np.abs(fourth - 3).max(), 4.5 * np.sqrt(96 / n))
    within("largest correlation of two", np.abs(products / n - np.eye(136)).max(), 5.5 / np.sqrt(n))


def test_noise_of_landmarks_has_its_own_slots():
    """Blocks 16 to 49: no word of the other amounts or of the choice of the match, whatever else is switched."""
    noise = landmark_noise(3, [5, 6], [0, 1])
    assert noise.shape == (2, 68, 2)
    assert np.array_equal(noise[1:], landmark_noise(3, [6], [1]))
    ahead, in_place, behind = (
        random_words(3, [5], [0], blocks, STREAM_AUGMENT) for blocks in (range(16), range(16, 50), range(50, 51))
    )
    assert MATCH_BLOCK == 50 and in_place.shape == (1, 136)
    assert not np.isin(in_place, ahead).any() and not np.isin(in_place, behind).any()
    radius = np.sqrt(-2 * np.log((in_place[0, :2] + 0.5) / 2**32))[0]  # Box and Muller, by hand
    angle = 2 * np.pi * (in_place[0, 1] + 0.5) / 2**32
    assert np.allclose(noise[0, 0], [radius * np.cos(angle), radius * np.sin(angle)], rtol=1e-12)
    assert not np.intersect1d(noise, draw(3, [5, 6], [0, 1], 256).warp).size


def landmark_pairs(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1 * size, 0.9 * size, (n, 2, 68, 2)).astype(np.float32)


@pytest.mark.parametrize("off", [{}, {"color": False}, {"flip": False}, {"warp": False}])
def test_warp_to_landmarks_takes_the_place_of_the_random_warp_and_of_nothing_else(off):
    n, size = 6, 64
    ordinals, sides = np.arange(n), np.arange(n) % 2
    plain = draw(3, ordinals, sides, size, AugmentationConfig(**off))
    d, warped = with_landmarks(plain, landmark_pairs(n, size), landmark_noise(3, ordinals, sides))
    for name in FIELDS:
        assert np.array_equal(getattr(d, name), getattr(plain, name)), name
    assert warped.all() and plain.landmark_nodes is None
    assert d.warp_nodes().shape == d.control_grid().shape == (n, 33, 33, 2)
    assert plain.control_grid().shape == (n, 5, 5, 2)
    without = dataclasses.replace(d, warp=np.zeros_like(d.warp))
    assert np.array_equal(d.control_grid(), without.control_grid())


def test_warp_to_landmarks_depends_on_the_face_alone():
    n, size = 7, 64
    ordinals, sides, pairs = np.arange(n) + 2**33, np.arange(n) % 2, landmark_pairs(n, size)
    d, _ = with_landmarks(draw(3, ordinals, sides, size), pairs, landmark_noise(3, ordinals, sides))
    for pick in (slice(2, 5), np.array([6, 0, 3]), np.arange(n) > 4):
        noise = landmark_noise(3, ordinals[pick], sides[pick])
        part, _ = with_landmarks(draw(3, ordinals[pick], sides[pick], size), pairs[pick], noise)
        assert np.array_equal(part.landmark_nodes, d.landmark_nodes[pick])
        assert np.array_equal(part.landmark_nodes, d[pick].landmark_nodes)
        assert np.array_equal(part.control_grid(), d[pick].control_grid())
    for seed, shift in ((4, 0), (3, 1)):
        changed, _ = with_landmarks(d, pairs, landmark_noise(seed, ordinals + shift, sides))
        assert not np.array_equal(changed.landmark_nodes, d.landmark_nodes)


@pytest.mark.parametrize("steps", [1, 8])
def test_clahe_grids_follow_their_base(steps):
    for size, base in ((64, 2), (383, 2), (384, 3), (1024, 8)):
        config = AugmentationConfig(color_clahe_chance=75.0, color_clahe_max_size=steps)
        grids = set(draw(1, np.arange(500), 0, size, config).clahe_grid.tolist()) - {0}
        assert grids == {base + k * (base // 2) for k in range(steps + 1)}


@pytest.mark.golden
def test_constants_match_the_peer(golden, within):
    constants = json.loads((golden.folder / "aug_constants.json").read_text())["constants"]
    assert constants
    errors = {"warp_scale": 0.0, "lm_scale": 0.0, "shift_px": 0.0}
    for size, theirs in constants.items():
        ours = ConstantsAugmentation.from_config(int(size), batch_size=16)
        assert ours.color.clahe_base_contrast == theirs["clahe_base"]
        values = {"warp_scale": ours.warp.scale, "lm_scale": ours.warp.lm_scale, "shift_px": ours.transform.shift}
        errors = {name: max(errors[name], abs(value - theirs[name])) for name, value in values.items()}
    for name, error in errors.items():
        within(name, error, 1e-9)


def test_a_wrong_range_is_the_users_error_and_a_wrong_shape_the_programs():
    with pytest.raises(SwapfastError, match="rotation_range"):
        AugmentationConfig(rotation_range=90.0)
    for limit in (0.5, 41.0):
        with pytest.raises(SwapfastError, match=r"color_clahe_clip_limit .*must lie within 1.0 and 40.0"):
            AugmentationConfig(color_clahe_clip_limit=limit)
    with pytest.raises(ValueError, match="clip_limit"):
        dataclasses.replace(Draws.identity(3, 64), clip_limit=0.0)
    for size in (8, 64.5):
        with pytest.raises(ValueError, match="processing size"):
            draw(0, [0], [0], size)
    with pytest.raises(ValueError, match="lab"):
        dataclasses.replace(Draws.identity(3, 64), lab=np.zeros((2, 3)))
    for shape in ((3, 5, 5, 2), (2, 33, 33, 2), (3, 33, 32, 2), (3, 33, 33), (3, 1, 1, 2)):
        with pytest.raises(ValueError, match="landmark_nodes"):
            dataclasses.replace(Draws.identity(3, 64), landmark_nodes=np.zeros(shape))
    with pytest.raises(TypeError):
        Draws.identity(3, 64)[1]


def test_no_faces_draw_nothing():
    d = draw(0, [], [], 64)
    assert len(d) == 0 and d.control_grid().shape == (0, 5, 5, 2) and d.inverse().shape == (0, 2, 3)
    d, warped = with_landmarks(d, np.zeros((0, 2, 68, 2)), landmark_noise(0, [], []))
    assert d.control_grid().shape == (0, 33, 33, 2) and warped.shape == (0,)


def test_a_share_of_the_faces_keeps_its_colors(within):
    n = 10_000
    every = draw(5, np.arange(n), 0, 64)
    some = draw(5, np.arange(n), 0, 64, AugmentationConfig(color_chance=75.0))

    def keeps_colors(draws):
        return (draws.clahe_grid == 0) & ~draws.lab.any(axis=1)

    assert not keeps_colors(every).any() and AugmentationConfig().color_chance == 100
    keeps = keeps_colors(some)
    within("share that keeps them", abs(keeps.mean() - 0.25), 4 * np.sqrt(0.25 * 0.75 / n))
    colored = ~keeps
    for name in FIELDS:
        expected, found = getattr(every, name), getattr(some, name)
        assert np.array_equal(found[colored], expected[colored]), name
        same = name not in ("lab", "clahe_grid")
        assert np.array_equal(found[keeps], expected[keeps] if same else 0 * found[keeps])
    assert keeps_colors(draw(5, np.arange(9), 0, 64, AugmentationConfig(color=False))).all()
