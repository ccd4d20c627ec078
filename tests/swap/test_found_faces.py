"""Faces that files speak of: turned frames, names, choices; and how far a pasted face is from what the model made."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from swapfast.config import CropConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import sample_square
from swapfast.faces.masks import draw_face
from swapfast.points import transform_points
from swapfast.swap.chosen import FrameRanges, choose_settings
from swapfast.swap.face_spool import FoundFace
from swapfast.swap.figures import masked_psnr
from swapfast.swap.found_faces import FaceTable, fitted
from swapfast.swap.frames import Frame, FrameFace
from swapfast.swap.masks import frame_matrix
from swapfast.swap.pictures import frame_numbers
from swapfast.swap.settings import ColorSettings, MaskSettings, SwapSettings
from swapfast.swap.swapper import FrameSwapper
from swapfast.synthetic.identity import draw_identities
from swapfast.synthetic.render import render
from swapfast.synthetic.scene import draw_scene
from swapfast.synthetic.streams import TRUTH, generator
from tests.swap.echo import drawn_face, echo

FACE = drawn_face(0, 128)
WIDE = cv2.copyMakeBorder(FACE.image, 0, 0, 30, 50, cv2.BORDER_REPLICATE)  # 208 x 128
POINTS = FACE.landmarks + (30, 0)
TURNS = {0: None, 90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@pytest.mark.parametrize("turn", TURNS)
def test_landmarks_of_the_stored_frame_are_turned_with_it(turn):
    """The frame is shown turned clockwise; its landmarks were measured on what is stored. Pixels go where points go."""
    stored, code = WIDE, TURNS[turn]
    shown = stored if code is None else cv2.rotate(stored, code)
    frame = Frame("f", 0, None, shown, turned=turn)
    found = fitted([FoundFace(POINTS, frame_size=(208, 128), is_stored=True)], frame)
    (face,) = found.faces
    for x, y in np.rint(face.landmarks).astype(int)[::9]:
        patch = shown[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(int)
        index = np.abs(np.rint(face.landmarks) - (x, y)).sum(1).argmin()
        u, v = np.rint(POINTS[index]).astype(int)
        assert np.abs(patch - stored[v, u].astype(int)).sum(1).min() == 0
    cut_shown = sample_square(shown, frame_matrix(face, CropConfig(), 32), 32)
    cut_stored = sample_square(stored, frame_matrix(FrameFace.from_landmarks(POINTS), CropConfig(), 32), 32)
    assert np.abs(cut_shown.astype(int) - cut_stored).mean() < 1.5, "the same upright face, however it is turned"


def test_where_nobody_says_the_size_tells_which_frame_was_measured():
    shown = cv2.rotate(WIDE, cv2.ROTATE_90_CLOCKWISE)
    frame = Frame("f", 0, None, shown, turned=90)
    of_stored = fitted([FoundFace(POINTS, frame_size=(208, 128))], frame)
    turned = fitted([FoundFace(of_stored.faces[0].landmarks, frame_size=(128, 208))], frame)
    np.testing.assert_allclose(turned.faces[0].landmarks, of_stored.faces[0].landmarks, atol=1e-3)
    other = fitted([FoundFace(POINTS, frame_size=(100, 100))], frame)
    assert not other.faces and other.skipped == ["landmarks of a frame of 100x100 px, but the frame has 128x208"]


def test_a_frame_is_found_by_its_name_whatever_its_ending():
    table = FaceTable("-p x", {"a.png": [FoundFace(POINTS)]}, {3: [FoundFace(POINTS, index=1)]})
    assert [len(table(Frame(name, index, None, WIDE)).faces) for name, index in (("a.jpg", 0), ("b.png", 3))] == [1, 1]
    assert table(Frame("b.png", 0, None, WIDE)).faces == []


def test_frames_are_numbered_by_their_names():
    assert frame_numbers(["s2_007.png", "s2_009.png"]) == [7, 9]
    assert frame_numbers(["a.png", "b1.png"]) == [1, 2], "not each has a number"
    assert frame_numbers(["a_1.jpg", "b_1.jpg"]) == [1, 2], "two are the same"
    ranges = FrameRanges.parse(["10-50", "7", "90-"])
    assert [n in ranges for n in (7, 8, 10, 50, 51, 10**9)] == [True, False, True, True, False, True]


def test_the_later_of_two_ranges_ranks_higher(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text(
        '[mask]\nerosion = 1.0\n[[range]]\nframes = "1-9"\nmask.erosion = 2.0\nface.scale = 3.0\n'
        '[[range]]\nframes = ["5"]\nmask.erosion = 4.0\n'
    )
    chosen = choose_settings({"mask.type": "rect"}, file)
    values = [(chosen.of(n).mask.type, chosen.of(n).mask.erosion, chosen.of(n).face.scale) for n in (0, 1, 5)]
    assert values == [("rect", 1.0, 0.0), ("rect", 2.0, 3.0), ("rect", 4.0, 3.0)]
    with pytest.raises(SwapfastError, match="--preset"):
        choose_settings(preset="dfm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "erosoin = 3.0",
            r"in .*s.toml 'erosoin'. Did you mean 'mask.erosion'\? Known: color, face, mask",
        ),
        ("[mask]\nErosion = 3.0", r"s.toml.mask 'Erosion'. Did you mean 'erosion'\?"),
        ("[maks]\nerosion = 3.0", r"s.toml 'maks'. Did you mean 'mask'\?"),
        ('[[rnage]]\nframes = "1"', r"s.toml 'rnage'. Did you mean 'range'\?"),
        ('[[range]]\nframes = "1"\ncolor.tpye = "mean"', r"s.toml: range 1.color 'tpye'. Did you mean 'type'\?"),
        ('[color]\ntype = "maen"', r"'maen'. Did you mean 'mean'\?"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest(text, message, tmp_path):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(SwapfastError, match=message) as error:
        choose_settings(file=tmp_path / "s.toml")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_pasted_face_is_as_near_to_the_truth_as_what_the_model_made(within):
    """The made face is the true swap plus noise that a model of 24 dB might have, pasted and cut out again.

    Measured inside B's extended mask. A's own mask is another one: what it leaves of A costs the rest.
    """
    a, b = draw_identities(1)
    crop, size, rng = CropConfig(), 64, np.random.default_rng(2)
    model = echo(size)
    losses: dict[str, list[float]] = {"none": [], "extended": []}
    for index in range(4):
        scene = draw_scene(generator(1, TRUTH, index))
        before, after = render(a, scene, 256), render(b, scene, 256)
        face = FrameFace.from_landmarks(before.landmarks)
        matrix = frame_matrix(face, crop, size)
        true = sample_square(after.image, matrix, size).astype(np.float32) / 255
        noise = cv2.GaussianBlur(rng.normal(0, 1, true.shape).astype(np.float32), (0, 0), 1.5)
        made = np.clip(true + noise * (10 ** (-24 / 20) / noise.std()), 0, 1)
        mask = draw_face(transform_points(matrix, after.landmarks).astype(np.float32), size)[None] / 255
        own = masked_psnr(made[None], true[None], mask)[0]
        for kind, lost in losses.items():
            chosen = SwapSettings(mask=MaskSettings(type=kind), color=ColorSettings(type="none"))
            swapper = FrameSwapper(model, crop, chosen)
            work = swapper.prepare(Frame("f", 0, None, before.image), [face])
            work.faces[0].made = made
            pixels = swapper.compose(swapper.measure(work)).pixels
            back = sample_square(pixels, matrix, size).astype(np.float32) / 255
            lost.append(own - masked_psnr(back[None], true[None], mask)[0])
    within("dB lost without a mask", float(np.mean(losses["none"])), 0.05)
    within("dB lost with extended", float(np.mean(losses["extended"])), 0.5)
    assert min(losses["extended"]) > -1, "nothing comes nearer to the truth than what was made"
