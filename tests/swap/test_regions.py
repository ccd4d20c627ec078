"""A frame of which only the faces' surroundings were turned into colours is swapped as the whole one is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from swapfast.config import CropConfig
from swapfast.swap.frames import Frame, FrameFace
from swapfast.swap.regions import NOTHING, measured_boxes, swapped_box, union
from swapfast.swap.settings import ColorSettings, FaceSettings, MaskSettings, SwapSettings
from swapfast.swap.stability import Stability
from swapfast.swap.swapper import FrameSwapper
from swapfast.video.pixels import part_of
from tests.swap.echo import drawn_face, echo

SIZE = (460, 340)  # width and height, px
FACE = drawn_face(0, 256)


def placed_face(edge: float, x: float, y: float, turn: float = 0, track: int | None = None) -> FrameFace:
    """A face as if drawn ``edge`` px wide with its middle at (x, y), turned by degrees."""
    matrix = cv2.getRotationMatrix2D((128, 128), turn, edge / 256)
    matrix[:, 2] += (x - 128, y - 128)
    return FrameFace.from_landmarks(FACE.landmarks @ matrix[:, :2].T + matrix[:, 2], track=track)


PLACES = [
    [placed_face(60, 230, 170, 30)],
    [placed_face(250, 20, 330, 200)],
    [placed_face(40, 60, 60), placed_face(130, 350, 200, -80)],
    [placed_face(900, 200, 100, 10)],
]


@pytest.mark.slow
@pytest.mark.parametrize("faces", PLACES, ids=["small", "at a corner", "two", "larger than the frame"])
@pytest.mark.parametrize(("mask", "scale"), [("extended", 0.0), ("none", 10.0), ("rect", -10.0)])
def test_the_box_holds_all_that_a_swap_reads_and_writes(faces, mask, scale):
    noise = np.random.default_rng(7).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    settings = SwapSettings(
        mask=MaskSettings(type=mask), color=ColorSettings(type="linear"), face=FaceSettings(scale=scale)
    )
    swapper = FrameSwapper(echo(64, gain=0.6), CropConfig(centering="head"), settings, wants_alpha=True)
    box = swapped_box(faces, swapper, 0, SIZE)
    part = np.zeros_like(noise)
    part[part_of(box)] = noise[part_of(box)]
    whole = swapper.swap(Frame("f", 0, None, noise), faces)
    parted = swapper.swap(Frame("f", 0, None, part, box=box), faces)
    expected = np.zeros_like(noise)
    expected[part_of(box)] = whole.pixels[part_of(box)]
    np.testing.assert_array_equal(parted.pixels, expected)
    np.testing.assert_array_equal(parted.alpha, whole.alpha)
    outside = np.ones(noise.shape[:2], bool)
    outside[part_of(box)] = False
    assert whole.alpha.any() and not whole.alpha[outside].any()
    assert (whole.pixels == noise)[outside].all()


def test_the_box_holds_all_that_the_figures_look_at():
    """Two tracks that move, over four frames of noise that moves with one of them."""
    rng = np.random.default_rng(3)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (SIZE[1] + 40, SIZE[0] + 40, 3), np.uint8), (0, 0), 2)
    whole, parted = Stability(), Stability()
    before: list[FrameFace] = []
    for index in range(4):
        faces = [placed_face(90, 120 + 9 * index, 100 - 4 * index, 10 * index, 0), placed_face(200, 330, 230, 0, 1)]
        frame = noise[4 * index : 4 * index + SIZE[1], 20 - 3 * index :][:, : SIZE[0]].copy()
        swapped = np.where(rng.random(frame.shape[:2])[..., None] < 0.1, 255 - frame, frame)
        box = measured_boxes([*before, *faces], SIZE)
        parts = [np.zeros_like(frame) for _ in range(2)]
        for part, pixels in zip(parts, (frame, swapped), strict=True):
            part[part_of(box)] = pixels[part_of(box)]
        whole.add(index, frame, swapped, faces)
        parted.add(index, *parts, faces)
        before = faces
    assert whole.figures() == parted.figures() and whole.figures()["triples"] == 4
    assert 0 < np.prod(np.subtract(box[2:], box[:2])) < np.prod(SIZE)


def test_a_frame_without_faces_has_nothing_to_convert():
    swapper = FrameSwapper(echo(), CropConfig())
    assert swapped_box([], swapper, 0, SIZE) == NOTHING
    assert swapped_box([placed_face(60, 2000, 2000)], swapper, 0, SIZE) == NOTHING
    assert union([NOTHING, (3, 4, 900, 10)], SIZE) == (3, 4, 460, 10)
