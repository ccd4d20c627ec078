"""Synthetic faces: the landmarks are where the pixels are, the masks cover the face, the true swap is a true swap."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.synthetic import Expression, Pose, Scene, Spread, draw_identities, draw_scene, render, synthesize
from swapfast.synthetic.streams import SIDE_A, TRUTH, generator
from swapfast.synthetic.template import apply_expression, neutral_face

SIZE = 128
POSES = [
    Pose(),
    Pose(yaw=0.35, pitch=0.1, shift=(0.1, -0.1)),
    Pose(yaw=-0.35, pitch=-0.12, roll=0.2),
    Pose(yaw=0.2, roll=-0.22, zoom=1.05),
]


def scenes(count: int, seed: int = 5) -> list[Scene]:
    return [draw_scene(generator(seed, TRUTH, index)) for index in range(count)]


def change(scene: Scene, person, **traits) -> tuple[np.ndarray, np.ndarray]:
    """How much each pixel changes, 0..1, when the person changes in ``traits`` alone; and the landmarks."""
    before, after = (render(dataclasses.replace(person, **t), scene, SIZE) for t in ({}, traits))
    moved = np.abs(after.image.astype(np.float32) - before.image).sum(axis=2) / 765
    assert moved.max() > 0.05, "the trait does not show"
    return moved, before.landmarks


def centre(weight: np.ndarray) -> np.ndarray:
    y, x = np.indices(weight.shape)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def hull(points: np.ndarray, margin: int) -> np.ndarray:
    inside = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(np.round(points).astype(np.int32)), 1)
    return cv2.dilate(inside, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)) > 0


def psnr(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> float:
    error = np.square(first.astype(np.float64) - second)[where].mean()
    return -10 * math.log10(error / 255**2)


@pytest.mark.slow
@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("point", [27, 28, 30])
def test_a_mole_painted_at_a_landmark_shows_at_that_landmark(pose, point, within):
    person = dataclasses.replace(draw_identities(3)[1], mole=None, freckles=0.0)
    place = tuple(neutral_face(person.shape)[point])
    moved, landmarks = change(Scene(pose), person, mole=place)
    within("px from mole to landmark", np.linalg.norm(centre(moved) - landmarks[point]), 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("pose", POSES)
def test_iris_and_lip_colour_lie_inside_their_landmarks(pose, within):
    person = draw_identities(2)[0]
    scene = Scene(pose, Expression(mouth_open=0.4, smile=0.5))
    moved, landmarks = change(scene, person, iris=(0.0, 1.0, 0.2))
    eyes = landmarks[36:42], landmarks[42:48]
    outside = moved * ~(hull(eyes[0], 1) | hull(eyes[1], 1))
    within("iris colour outside the eyes", outside.sum() / moved.sum(), 0.02)
    for eye in eyes:
        here = moved * hull(eye, 1)
        within("px from iris to the eye's middle", np.linalg.norm(centre(here) - eye.mean(axis=0)), 2.0)
    moved, landmarks = change(scene, person, lips=(0.9, 0.2, 0.1))
    lips, square = hull(landmarks[48:60], 0) & ~hull(landmarks[60:68], 0), np.ones((3, 3))
    near = cv2.dilate(lips.astype(np.uint8), square) > 0
    within("lip colour outside the lips", moved[~near].sum() / moved.sum(), 0.1)
    assert (moved[cv2.erode(lips.astype(np.uint8), square) > 0] > 0.02).mean() > 0.9


@pytest.mark.slow
def test_the_mask_is_the_face_and_nothing_else():
    for seed, scene in enumerate(scenes(6), 1):
        for person in draw_identities(seed):
            face = render(person, scene, SIZE)
            changed = dataclasses.replace(scene, backdrop=scene.backdrop ^ 1, cloth=(0.0, 1.0, 0.0))
            other = render(person, changed, SIZE)
            assert np.array_equal(face.mask, other.mask)
            inside = face.mask == 255
            assert 0.12 < inside.mean() < 0.40
            assert np.array_equal(face.image[inside], other.image[inside]), "background or clothes inside the mask"
            assert not np.array_equal(face.image[:20, :20], other.image[:20, :20])
            x, y = np.round(face.landmarks).astype(int).T
            away = cv2.distanceTransform((face.mask < 128).astype(np.uint8), cv2.DIST_L2, 5)[y, x]
            assert (away[17:] == 0).mean() > 0.95 and away.max() < 4.0
            *_, areas, _ = cv2.connectedComponentsWithStats((face.mask > 127).astype(np.uint8))
            assert areas[1:, cv2.CC_STAT_AREA].max() > 0.99 * (face.mask > 127).sum(), "the mask is in pieces"


@pytest.mark.slow
def test_expression_moves_points_and_pixels_together():
    person = draw_identities(1)[0]
    closed, gaping = (render(person, Scene(expression=Expression(mouth_open=m)), 256) for m in (0.0, 0.9))
    gaps = [face.landmarks[66, 1] - face.landmarks[62, 1] for face in (closed, gaping)]
    assert gaps[0] < 2 and gaps[1] > 10
    assert gaping.landmarks[8, 1] - closed.landmarks[8, 1] > 4
    inside = gaping.landmarks[[62, 66]].mean(axis=0).round().astype(int)
    assert gaping.image[inside[1], inside[0]].mean() < 0.6 * gaping.image[inside[1] - 55, inside[0]].mean()
    lids = apply_expression(neutral_face(person.shape), Expression(blink=1.0))
    assert np.abs(lids[[37, 38], 1] - lids[[41, 40], 1]).max() < 0.02


@pytest.mark.slow
def test_a_truth_pair_differs_in_the_person_only(within):
    a, b = draw_identities(4)
    for scene in scenes(5, seed=4):
        first, second = render(a, scene, SIZE), render(b, scene, SIZE)
        same = (first.image == second.image).all(axis=2)
        assert same[:12, :25].all() and same[:12, -25:].all() and same.mean() > 0.25
        assert psnr(first.image, second.image, (first.mask > 127) & (second.mask > 127)) < 15
        rolls = []
        for face in (first, second):
            across = face.landmarks[42:48].mean(axis=0) - face.landmarks[36:42].mean(axis=0)
            rolls.append(-math.atan2(across[1], across[0]))
        within("roll between the two, rad", abs(rolls[0] - rolls[1]), 0.02)
        within("roll against the pose, rad", abs(rolls[0] - scene.pose.roll), 0.09)
        turned = [face.landmarks[30, 0] - face.landmarks[[0, 16], 0].mean() for face in (first, second)]
        assert all(np.sign(t) == np.sign(scene.pose.yaw) for t in turned) or abs(scene.pose.yaw) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_the_two_people_are_apart_whatever_the_seed(seed):
    a, b = draw_identities(seed)
    figures = []
    for scene in scenes(3, seed):
        first, second = render(a, scene, 64), render(b, scene, 64)
        figures.append(psnr(first.image, second.image, second.mask > 127))
    assert 9 < np.mean(figures) < 14.5
    assert a.hair != b.hair


@pytest.mark.parametrize("seed", (1, 2, 3))
def test_pose_and_light_spread(seed):
    spread = Spread.from_scenes([draw_scene(generator(seed, SIDE_A, index)) for index in range(80)])
    assert 0.2 <= spread.yaw_deviation < 0.3
    assert spread.pitch_deviation > 0.05 and spread.roll_deviation > 0.05
    assert spread.light_left < -30 and spread.light_right > 30
    assert f"{spread.yaw_deviation:.2f} rad" in str(spread) and "\n" not in str(spread)


@pytest.mark.slow
@pytest.mark.parametrize("size", (64, 100, 512))
def test_landmarks_scale_with_the_picture(size, within):
    person, scene = draw_identities(1)[1], scenes(3)[2]
    reference = (render(person, scene, 256).landmarks + 0.5) / 256
    face = render(person, scene, size)
    assert face.image.shape == (size, size, 3) and face.mask.shape == (size, size)
    assert face.image.dtype == face.mask.dtype == np.uint8 and face.landmarks.dtype == np.float32
    assert face.landmarks.min() > 0 and face.landmarks.max() < size - 1
    within("of the picture's side", np.abs((face.landmarks + 0.5) / size - reference).max(), 0.004)


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_picture_depends_on_its_number_alone(tmp_path):
    told = []
    few = synthesize(tmp_path / "few", faces=2, size=64, pairs=1, seed=9, workers=1)
    synthesize(tmp_path / "many", 4, 64, 2, seed=9, workers=2, progress=lambda done, total: told.append((done, total)))
    first, second = files(tmp_path / "few"), files(tmp_path / "many")
    assert len(first) == 3 * (2 + 2 + 1 + 1) and len(second) == 36
    assert all(second[name] == data for name, data in first.items())
    assert first["a/0000.png"] != first["a/0001.png"] != first["b/0001.png"]
    assert told[-1] == (12, 12) and told == sorted(told)
    assert few.faces == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few", "many"]


@pytest.mark.slow
def test_what_is_written_is_what_was_drawn(tmp_path):
    synthesize(tmp_path / "out", faces=1, size=64, pairs=1, seed=3, workers=1)
    b = draw_identities(3)[1]
    face = render(b, draw_scene(generator(3, TRUTH, 0)), 64)
    folder = tmp_path / "out" / "truth" / "b"
    record = json.loads((folder / "0000.json").read_text())
    assert record["image"] == "0000.png" and record["mask"] == "0000_mask.png" and record["size"] == 64
    assert np.abs(np.array(record["landmarks"]) - face.landmarks).max() < 0.006
    assert np.array_equal(cv2.imread(str(folder / "0000.png")), face.image)
    assert np.array_equal(cv2.imread(str(folder / "0000_mask.png"), cv2.IMREAD_UNCHANGED), face.mask)


@pytest.mark.parametrize(
    "flag", ({"faces": 0}, {"size": 63}, {"size": 1025}, {"pairs": -1}, {"seed": -1}, {"seed": 2**64})
)
def test_numbers_out_of_range_name_the_flag(tmp_path, flag):
    ((name, value),) = flag.items()
    with pytest.raises(SwapfastError, match=f"--{name} {value}"):
        synthesize(tmp_path / "out", **flag)
    assert not any(tmp_path.iterdir())


def test_a_taken_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("keep")
    for out in (tmp_path, tmp_path / "mine", tmp_path / "mine" / "below"):
        with pytest.raises(SwapfastError, match=str(out)):
            synthesize(out, faces=1, size=64, pairs=0, workers=1)
    assert files(tmp_path) == {"mine": b"keep"}
    (tmp_path / "empty").mkdir()
    synthesize(tmp_path / "empty", faces=1, size=64, pairs=0, workers=1)
    assert not (tmp_path / "empty" / "truth").exists() and len(files(tmp_path / "empty")) == 6


KILLED = """
import os, signal, sys
from pathlib import Path
from swapfast.synthetic import synthesize
def progress(count, total):
    if len(sys.argv) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    print("drawing", flush=True)
    sys.stdin.read()
synthesize(Path(sys.argv[1]), faces=2, size=64, pairs=0, workers=1, progress=progress)
"""


@pytest.mark.slow
def test_what_a_killed_run_left_is_replaced_and_nothing_else(tmp_path):
    root = Path(__file__).resolve().parents[2]
    program = [sys.executable, "-c", KILLED, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run([*program, "kill"], env=environment).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.") and left.name.endswith(".partial")
    mine = tmp_path / ".out.mine.partial"  # of that name, and not made by a run
    (mine / "a").mkdir(parents=True)
    with subprocess.Popen(program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as drawing:
        assert drawing.stdout.readline() == b"drawing\n"
        assert not left.exists() and mine.exists()
        (unfinished,) = (path for path in tmp_path.iterdir() if path != mine)
        synthesize(tmp_path / "out", faces=1, size=64, pairs=0, workers=1)
        assert unfinished.exists(), "another run draws there"
        drawing.kill()
    (tmp_path / "new").mkdir()
    synthesize(tmp_path / "new", faces=1, size=64, pairs=0, workers=1)
    assert mine.exists() and len(files(tmp_path / "out")) == len(files(tmp_path / "new")) == 6
    assert not any(path.name == ".drawing" for path in tmp_path.glob("[a-z]*/*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", (0o022, 0o077))
def test_the_folder_has_the_rights_of_any_new_folder(tmp_path, number):
    former = os.umask(number)
    try:
        synthesize(tmp_path / "out", faces=1, size=64, pairs=0, workers=1)
    finally:
        os.umask(former)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~number


@pytest.mark.slow
@pytest.mark.parametrize("workers", (1, 2))
def test_an_interrupted_run_leaves_nothing(tmp_path, workers):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "out", faces=6, size=64, pairs=0, workers=workers, progress=stop)
    assert not any(tmp_path.iterdir())
