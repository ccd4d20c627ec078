"""Frames through a model that returns its input: geometry, masks, alpha and depth to the level."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from swapfast.config import CropConfig
from swapfast.errors import SwapfastError
from swapfast.swap.frames import Frame, FrameFace
from swapfast.swap.masks import erode, erode_side, feather_ramp, finished_mask
from swapfast.swap.paste import blend, touched_box, warp_into
from swapfast.swap.settings import ColorSettings, FaceSettings, MaskSettings, SwapSettings
from swapfast.swap.swapper import FrameSwapper
from tests.swap.echo import drawn_face, echo, ramp

FACE = drawn_face(0)


def settings(mask: str = "extended", color: str = "none", **face) -> SwapSettings:
    return SwapSettings(mask=MaskSettings(type=mask), color=ColorSettings(type=color), face=FaceSettings(**face))


def swapped(pixels, chosen, landmarks=FACE.landmarks, model=None, crop=None, **options):
    swapper = FrameSwapper(model or echo(), crop or CropConfig(), chosen, wants_alpha=True, **options)
    return swapper.swap(Frame("frame", 0, None, pixels), [FrameFace.from_landmarks(landmarks)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("mask", ["none", "rect", "extended", "components"])
@pytest.mark.parametrize(
    "crop",
    [CropConfig(), CropConfig(centering="head", vertical_offset=10), CropConfig(centering="legacy", coverage=70)],
)
def test_a_model_that_returns_its_input_gives_the_frame_back(mask, kind, crop, within):
    """An even change of colour survives any chain of linear filters: a shift of 0.1 px would show as 0.06 levels a px.

    Of 256 px with 0.6 of the range, a level of 255 is 1.7 px. Off by a pixel of the 64 px crop, 4 px, is 2.4 levels.
    """
    frame = ramp(256, 256, kind)
    out = swapped(frame, settings(mask), crop=crop)
    changed = out.alpha > 0
    assert changed.mean() > 0.05
    # The crop's border is repeated outside the frame: there nothing can come back.
    inner = (slice(8, -8), slice(8, -8))
    error = np.abs(out.pixels.astype(int) - frame)[inner]
    # Cut and pasted, both rounded to levels. OpenCV's samples lie on a grid of 1/32 px of the crop, of up to 5 levels
    # each, twice.
    within("levels of 255", error.max() / np.iinfo(kind).max * 255, 1.0 + 0.35 if kind is np.uint8 else 0.7)
    assert (out.pixels == frame)[~changed].all()


def test_what_lies_outside_the_mask_stays_to_the_bit():
    noise = np.random.default_rng(1).integers(0, 256, (256, 256, 3), np.uint8)
    out = swapped(noise, settings(), model=echo(gain=0.5))
    assert 0.1 < (out.alpha > 0).mean() < 0.4
    assert (out.pixels == noise)[out.alpha == 0].all()
    assert (out.pixels != noise)[out.alpha > 128].any(1).mean() > 0.9


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_alpha_is_applied_once(kind):
    highest = np.iinfo(kind).max
    frame = np.zeros((8, 8, 3), kind)
    blend(frame, np.ones((8, 8, 3), np.float32), np.full((8, 8), 0.5, np.float32), (0, 0, 8, 8))
    assert np.abs(frame.astype(int) - highest / 2).max() <= 0.5


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_blend_is_rounded_once_within_its_box(kind, within):
    """Noise that goes beyond 0 and 1, as a cubic filter's does, against float64."""
    rng, highest = np.random.default_rng(1), np.iinfo(kind).max
    frame = rng.integers(0, highest, (40, 50, 3), kind, endpoint=True)
    face, alpha = rng.normal(0.5, 0.5, (20, 30, 3)).astype(np.float32), rng.uniform(0, 1, (20, 30)).astype(np.float32)
    alpha[:4] = 0
    new, box = frame.copy(), (slice(7, 27), slice(11, 41))
    blend(new, face, alpha, (11, 7, 41, 27))
    exact = frame.astype(np.float64)
    exact[box] += (np.clip(face.astype(np.float64), 0, 1) * highest - exact[box]) * alpha[..., None]
    within("levels of what it is rounded from", np.abs(new - exact).max(), 0.51)
    np.testing.assert_array_equal(new[7:11], frame[7:11])


def test_the_alpha_of_a_frame_is_kept():
    pixels = np.dstack([FACE.image, np.full(FACE.mask.shape, 128, np.uint8)])
    out = swapped(pixels, settings())
    assert out.pixels.shape == pixels.shape and (out.pixels[..., 3] == 128).all()
    np.testing.assert_array_equal(out.pixels[..., :3], swapped(FACE.image, settings()).pixels)


def test_a_face_that_is_partly_outside_changes_what_can_be_seen_of_it():
    for shift in ((-100, 0), (110, 0), (0, -120), (0, 130), (90, 90)):
        out = swapped(FACE.image, settings(), FACE.landmarks + shift, model=echo(gain=0.3))
        assert (out.pixels != FACE.image).any()
    gone = swapped(FACE.image, settings(), FACE.landmarks + 1000)
    np.testing.assert_array_equal(gone.pixels, FACE.image)


@pytest.mark.parametrize("edge", [40, 90, 700])
def test_the_box_of_a_face_holds_all_that_its_mask_touches(edge):
    """A mask of 256 px that shrinks or grows into a frame, turned: outside of its box nothing of it would be seen."""
    alpha = np.zeros((256, 256), np.float32)
    alpha[60:200, 80:190] = 1
    turn, scale = np.radians(20), edge / 256
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0]])
    matrix[:, 2] = 400, 300
    box = touched_box(alpha, matrix, 1200, 1200)
    everything = warp_into(alpha, matrix, (0, 0, 1200, 1200), cv2.BORDER_CONSTANT, cv2.INTER_LINEAR)
    x0, y0, x1, y1 = box
    touched = everything > 0
    assert touched[y0:y1, x0:x1].sum() == touched.sum() > 0 and (x1 - x0) * (y1 - y0) < 2.5 * touched.sum() + 200


def test_the_same_frame_gives_the_same_bytes():
    first, second = (swapped(FACE.image, settings(color="linear")).pixels for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_what_shares_a_batch_changes_no_face():
    """Batches of 1, 2 and 5 faces of the same frames: the echo has no sums whose order could change."""
    faces = [drawn_face(i) for i in range(5)]
    results = []
    for batch in (1, 2, 5):
        swapper = FrameSwapper(echo(), CropConfig(), settings(), batch_size=batch)
        works = [
            swapper.prepare(Frame(str(i), i, None, f.image), [FrameFace.from_landmarks(f.landmarks)])
            for i, f in enumerate(faces)
        ]
        swapper.predict(works)
        results.append([swapper.compose(swapper.measure(work)).pixels for work in works])
    for other in results[1:]:
        np.testing.assert_array_equal(np.stack(results[0]), np.stack(other))


def test_the_output_scale_moves_the_face_with_the_frame():
    for scale in (0.5, 2.0):
        out = swapped(ramp(256, 256), settings(), scale=scale)
        assert out.pixels.shape == (256 * scale, 256 * scale, 3)
        expected = ramp(int(256 * scale), int(256 * scale))
        inner = (slice(20, -20), slice(20, -20))
        # The ramp's ends lie half a pixel further out at another size: 0.6 levels at most.
        assert np.abs(out.pixels.astype(int) - expected)[inner].max() <= 3


def test_face_scale_keeps_the_centre_of_the_crop():
    """On a ramp a face that is 10 % larger about its crop's centre changes by 10 % of the distance from it."""
    frame = ramp(256, 256)
    larger = swapped(frame, settings("none", scale=10.0)).pixels.astype(float) - frame
    smaller = swapped(frame, settings("none", scale=-10.0)).pixels.astype(float) - frame
    alpha = swapped(frame, settings("none", scale=-10.0)).alpha > 250
    rows, columns = np.nonzero(alpha)
    x, y = round(columns.mean()), round(rows.mean())
    assert np.abs(larger[y, x]).max() <= 1 and np.abs(smaller[y, x]).max() <= 1
    assert np.abs(smaller[alpha]).max() > 4


# --- masks ------------------------------------------------------------------------------------------------


def test_learned_masks_are_those_of_either_side_and_the_smaller_of_both():
    heights = {}
    for kind in ("learned", "learned-other", "learned-min"):
        out = swapped(FACE.image, settings(kind), model=echo(masks=(0.4, 0.7)))
        heights[kind] = int((out.alpha > 127).sum())
    assert heights["learned-min"] == heights["learned-other"] < heights["learned"]
    with pytest.raises(SwapfastError, match="trained without --learn-mask"):
        swapped(FACE.image, settings("learned"))


def test_a_stored_mask_that_is_missing_is_named():
    with pytest.raises(SwapfastError, match=r"fp_face: a face has no such mask \(it has none\); give extended"):
        swapped(FACE.image, settings("bisenet-fp_face"))


def test_erosion_takes_its_px_from_each_side():
    mask = np.zeros((100, 100), np.uint8)
    mask[20:80, 30:70] = 255
    for side, rows, columns in (
        ("top", (25, 80), (30, 70)),
        ("bottom", (20, 75), (30, 70)),
        ("left", (20, 80), (35, 70)),
        ("right", (20, 80), (30, 65)),
    ):
        expected = np.zeros_like(mask)
        expected[slice(*rows), slice(*columns)] = 255
        np.testing.assert_array_equal(erode_side(mask, 5, side), expected)
        np.testing.assert_array_equal(erode_side(expected, -5, side), mask)
    assert erode(mask, 7)[27:73, 37:63].all() and np.count_nonzero(erode(mask, 7)) == 46 * 26
    grown = erode(mask, -7)
    assert grown[13:87, 50].all() and not grown[12, 50] and not grown[13, 23], "corners are round"


def test_moving_and_eroding_follow_the_settings():
    base = np.zeros((256, 256), np.uint8)
    base[64:192, 64:192] = 255
    moved = finished_mask(base, MaskSettings(move_x=10.0, move_y=-5.0, blur="none", feather=0.0))
    rows, columns = np.nonzero(moved)
    assert (rows.min(), columns.min()) == (64 - 13, 64 + 26)
    eroded = finished_mask(base, MaskSettings(erosion=25.0, blur="none", feather=0.0))  # 25 % of 64 px
    rows, columns = np.nonzero(eroded)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (80, 175, 80, 175)


def test_no_edge_of_a_crop_is_cut():
    ends = feather_ramp(256, 0.1)
    assert ends[0] == ends[-1] == 0 and ends[26:-26].min() == 1 and (np.diff(ends[:128]) >= 0).all()
    alpha = finished_mask(np.full((256, 256), 255, np.uint8), MaskSettings(type="rect"))
    assert alpha[0].max() == alpha[-1].max() == alpha[:, 0].max() == alpha[:, -1].max() == 0 and alpha.max() == 1
    assert finished_mask(np.full((64, 64), 255, np.uint8), MaskSettings(type="none")).min() == 1


def test_something_in_front_of_a_face_stays():
    occlusion = np.full(FACE.mask.shape, 255, np.uint8)
    occlusion[150:] = 0
    swapper = FrameSwapper(echo(gain=0.3), CropConfig(), settings(), wants_alpha=True)
    out = swapper.swap(Frame("f", 0, None, FACE.image), [FrameFace.from_landmarks(FACE.landmarks)], occlusion)
    # The blur of the mask, 6 px of 256 of the crop's 165 px in the frame, reaches beyond the edge.
    assert (out.pixels[160:] == FACE.image[160:]).all() and (out.pixels[:150] != FACE.image[:150]).any()
