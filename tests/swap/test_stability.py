"""Tracks, smoothing along them, and figures of flicker and jitter: they rise by what is injected, fall by smoothing."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from swapfast.config import CropConfig
from swapfast.swap.frames import Frame, FrameFace
from swapfast.swap.settings import ColorSettings, MaskSettings, SwapSettings
from swapfast.swap.smoothing import MOST_ROWS, ColourSmoother, PointSmoother, smooth_track
from swapfast.swap.stability import Stability
from swapfast.swap.swapper import FrameSwapper
from swapfast.swap.tracks import find_tracks
from swapfast.video.cuts import cuts_of
from tests.swap.echo import drawn_face, echo

FACE = drawn_face(0, 160)
FRAMES = 30


def path(frames: int = FRAMES) -> np.ndarray:
    """A head that sways, (n, 2) px: it speeds up and slows down, by up to 3 px a frame."""
    time = np.arange(frames)
    return np.stack([18 * np.sin(time / 6), 8 * np.cos(time / 9)], axis=1)


def shifted(picture: np.ndarray, move: np.ndarray) -> np.ndarray:
    matrix = np.array([[1, 0, move[0]], [0, 1, move[1]]])
    return cv2.warpAffine(picture, matrix, picture.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def pasted(source: np.ndarray, landmarks: np.ndarray, jitter: np.ndarray, flicker: np.ndarray) -> np.ndarray:
    """The source with its face moved by ``jitter`` px and its colours by ``flicker`` levels, in a soft mask."""
    mask = np.zeros(source.shape[:2], np.float32)
    cv2.fillConvexPoly(mask, cv2.convexHull(landmarks.astype(np.float32)).astype(np.int32), 1.0)
    mask = cv2.GaussianBlur(cv2.dilate(mask, np.ones((15, 15))), (0, 0), 3)[..., None]
    face = shifted(source, jitter).astype(np.float32) + flicker
    return np.clip(np.rint(source + (face - source) * mask), 0, 255).astype(np.uint8)


def figures(jitter: np.ndarray, flicker: np.ndarray) -> dict:
    stability = Stability()
    for index, move in enumerate(path(len(jitter))):
        source, landmarks = shifted(FACE.image, move), FACE.landmarks + move
        face = FrameFace.from_landmarks(landmarks, track=0)
        stability.add(index, source, pasted(source, landmarks, jitter[index], flicker[index]), [face])
    return stability.figures()


def noise(deviation: float, columns: int, frames: int = FRAMES) -> np.ndarray:
    return (
        np.random.default_rng(7).normal(0, deviation, (frames, columns)) if deviation else np.zeros((frames, columns))
    )


@pytest.mark.slow
def test_a_swap_that_changes_nothing_adds_nothing(within):
    found = figures(noise(0, 2), noise(0, 3))
    assert found["triples"] == FRAMES - 2
    within("flicker added, levels", found["flicker"]["difference"], 0)
    within("jitter, px", found["jitter"]["face"], 0)


@pytest.mark.slow
@pytest.mark.parametrize("deviation", [1.0, 3.0])
def test_flicker_of_known_size_is_measured(deviation, within):
    """Over 28 triples the figure of white noise itself spreads by some 11 %; rounding adds 0.05 levels."""
    found = figures(noise(0, 2), noise(deviation, 1).repeat(3, axis=1))
    within(f"flicker {deviation:g}", abs(found["flicker"]["difference"] / deviation - 1), 0.4)
    assert found["flicker"]["source"] < 0.5 * deviation
    assert found["flicker"]["swapped"] > 0.6 * deviation


@pytest.mark.slow
@pytest.mark.parametrize("deviation", [0.5, 1.5])
def test_jitter_of_known_size_is_measured(deviation, within):
    """Flow finds moves to a twentieth of a px; the figure of 28 triples spreads by some 14 %."""
    found = figures(noise(deviation, 2), noise(0, 3))
    within(f"jitter {deviation:g} px", abs(found["jitter"]["face"] / deviation - 1), 0.4)
    assert found["jitter"]["percent"] == pytest.approx(100 * found["jitter"]["face"] / 47.5, rel=0.3)  # a face of 48 px


def test_smoothed_landmarks_jitter_less_and_lag_nowhere(within):
    """Noise of 1 px a point falls to half by 5 frames on either side; exact landmarks hardly move."""
    exact = FACE.landmarks[None] + path()[:, None]
    noisy = exact + np.random.default_rng(3).normal(0, 1, exact.shape)
    indices = np.arange(FRAMES)
    remaining = smooth_track(noisy, indices, 5) - exact
    inner = slice(5, -5)
    within("noise left of 1 px", np.sqrt(np.square(remaining[inner]).mean()), 0.6)
    within("moved though exact, px", np.abs(smooth_track(exact, indices, 5) - exact)[inner].max(), 0.3)
    jitters = [np.diff(points.mean(1), 2, axis=0).std() for points in (noisy, smooth_track(noisy, indices, 5), exact)]
    assert jitters[1] - jitters[2] < 0.35 * (jitters[0] - jitters[2])
    np.testing.assert_array_equal(smooth_track(noisy, indices, 0), noisy)


def test_gaps_of_every_kind_do_not_fill_the_memory():
    """Each frame of a face that is missing here and there may have its own weights; only some of them are kept."""
    rng = np.random.default_rng(4)
    smoother = PointSmoother(40)
    for _ in range(3 * MOST_ROWS):
        distances = np.unique(np.append(rng.choice(np.arange(-40, 41), 30, replace=False), 0))
        line = FACE.landmarks + distances[:, None, None]
        assert np.abs(smoother(line, distances) - FACE.landmarks).max() < 1e-6  # straight motion is a parabola
    assert len(smoother._rows) <= MOST_ROWS


def test_a_long_gap_and_a_leap_end_a_track():
    points = FACE.landmarks
    tracks = find_tracks({0: [points], 1: [points + 150], 2: [points + 150], 8: [points + 150]})
    assert [tracks[i] for i in (0, 1, 2, 8)] == [[0], [1], [1], [2]]


def swap_all(landmarks: np.ndarray, measured: np.ndarray, frames_of_colours: int) -> dict:
    """Swap steady footage by a model that knows one picture of a face, and return the figures.

    landmarks: (n, 68, 2) that the swap has. measured: (n,) levels by which the footage's colour is measured wrongly,
    as where a hand or hair gets into the mask. frames_of_colours: that statistics are smoothed over on either side.
    """
    chosen = SwapSettings(mask=MaskSettings(type="extended"), color=ColorSettings(type="mean"))
    swapper = FrameSwapper(echo(), CropConfig(), chosen)
    exact = FrameFace.from_landmarks(FACE.landmarks)
    made = swapper.prepare(Frame("f", 0, None, FACE.image), [exact]).faces[0].cut
    works = []
    for index, move in enumerate(path(len(landmarks))):
        face = FrameFace.from_landmarks(landmarks[index], track=0)
        work = swapper.prepare(Frame("f", index, None, shifted(FACE.image, move)), [face])
        work.faces[0].made = made
        works.append(swapper.measure(work))
        works[-1].faces[0].statistics[12:15] += measured[index] / 255
    stability = Stability()
    for work in ColourSmoother(frames_of_colours)(works):
        stability.add(work.frame.index, work.frame.pixels, swapper.compose(work).pixels, [work.faces[0].face])
    return stability.figures()


@pytest.mark.slow
def test_flicker_falls_by_smoothing_colours(within):
    """Colours that are measured wrongly by 3 levels make a face flicker by as much as its mask covers of the cells."""
    exact = FACE.landmarks[None] + path(24)[:, None]
    wrong = noise(3.0, 1, 24)[:, 0]
    still, raw, smoothed = (
        swap_all(exact, wrong * on, frames)["flicker"]["difference"] for on, frames in ((0, 0), (1, 0), (1, 6))
    )
    assert still < 0.5 and raw > 1.5
    within("flicker left by 6 frames, share", smoothed / raw, 0.5)


@pytest.mark.slow
def test_jitter_falls_by_smoothing_landmarks(within):
    """Landmarks off by 1 px, all of a frame alike, move the face by as much."""
    exact = FACE.landmarks[None] + path(24)[:, None]
    noisy = exact + noise(1.0, 2, 24)[:, None]
    smooth = smooth_track(noisy, np.arange(24), 5)
    still, raw, smoothed = (swap_all(points, np.zeros(24), 0)["jitter"]["face"] for points in (exact, noisy, smooth))
    assert still < 0.2 and 0.6 < raw < 1.5
    within("jitter left by 5 frames, share", smoothed / raw, 0.5)


@pytest.mark.slow
def test_a_smoothed_frame_does_not_depend_on_where_a_run_began():
    flickers = noise(4.0, 1, 24).repeat(3, axis=1)
    chosen = SwapSettings(color=ColorSettings(type="reinhard"))
    swapper = FrameSwapper(echo(), CropConfig(), chosen)

    def statistics(first: int) -> list[np.ndarray]:
        works = []
        for index in range(first, 24):
            pixels = pasted(FACE.image, FACE.landmarks, np.zeros(2), flickers[index])
            face = FrameFace.from_landmarks(FACE.landmarks, track=3)
            work = swapper.prepare(Frame("f", index, None, pixels), [face])
            swapper.predict([work])
            works.append(swapper.measure(work))
        return [work.faces[0].statistics for work in ColourSmoother(4)(works)]

    np.testing.assert_array_equal(statistics(0)[12:], statistics(8)[4:])


def test_cuts_are_leaps_and_not_motion():
    changes = np.array([0, 2, 2, 60, 2, 3, 30, 35, 32, 30, 31, 2, 2.0, 45])
    assert cuts_of(changes) == [3, 13]
    assert cuts_of(np.array([0.0])) == [] and cuts_of(np.array([])) == []
