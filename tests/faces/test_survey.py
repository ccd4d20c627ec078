"""The survey of a folder: poses, sharpness, duplicates, advice, lists of faces to skip, and its picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import cli
from pipelines.sides import scan_side
from swapfast.errors import SwapfastError
from swapfast.faces.folder import scan_folder
from swapfast.faces.skip_list import HEADER, SkipList, read_skip_lists, skip_list_text
from swapfast.faces.survey import BLURRED, DUPLICATE, SMALL, FaceLimits, advice, compare, faces_to_skip, survey_folder
from swapfast.synthetic.identity import draw_identities
from swapfast.synthetic.render import render
from swapfast.synthetic.scene import Pose, draw_scene
from tests.faces.face_samples import write_plain

SIZE = 128


@pytest.fixture(scope="module")
def drawn():
    """(yaw, pitch) in degrees -> a drawn face of one person in one light."""
    person = draw_identities(3)[0]
    scene = draw_scene(np.random.default_rng(5))

    def draw(yaw: float, pitch: float):
        return render(
            person, dataclasses.replace(scene, pose=Pose(np.deg2rad(yaw), np.deg2rad(pitch), 0.0, (0, 0), 1.0)), SIZE
        )

    return draw


@pytest.fixture(scope="module")
def faces(tmp_path_factory, drawn) -> Path:
    """Seven poses, a copy with a little noise, a blurred one, and a face a third as wide."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for index, yaw in enumerate((-30, -20, -10, 0, 10, 20, 30)):
        face = drawn(yaw, 0)
        write_plain(folder / f"pose{index}.png", face.image, face.landmarks)
    face = drawn(-30, 0)
    noisy = np.clip(face.image + rng.normal(0, 1, face.image.shape), 0, 255).astype(np.uint8)
    write_plain(folder / "same.png", cv2.GaussianBlur(noisy, (0, 0), 0.6), face.landmarks)
    face = drawn(5, 12)
    write_plain(folder / "soft.png", cv2.GaussianBlur(face.image, (0, 0), 5), face.landmarks)
    face = drawn(-5, -14)
    small = cv2.resize(face.image, (SIZE // 3, SIZE // 3), interpolation=cv2.INTER_AREA)
    write_plain(folder / "tiny.png", small, (face.landmarks + 0.5) / 3 - 0.5)
    return folder


@pytest.fixture(scope="module")
def survey(faces):
    return survey_folder(scan_folder(faces))[1]


def index_of(survey, name: str) -> int:
    return [survey.records.name(i) for i in range(len(survey))].index(name)


def test_yaw_is_positive_to_the_left_of_the_picture_and_pitch_downwards(survey):
    poses = [index_of(survey, f"pose{i}.png") for i in range(7)]
    # The scene's yaw turns the nose to the right of the picture.
    assert (np.diff(survey.yaw[poses]) < -4).all()
    assert survey.yaw[poses[0]] > 15 and survey.yaw[poses[6]] < -15
    assert survey.pitch[index_of(survey, "soft.png")] > survey.pitch[poses[3]] + 5
    assert survey.pitch[index_of(survey, "tiny.png")] < survey.pitch[poses[3]] - 5


def test_what_adds_nothing_is_found(survey):
    skipped = {survey.records.name(s.index): s for s in faces_to_skip(survey, FaceLimits(edge=60))}
    assert {name: s.reason for name, s in skipped.items()} == {
        "same.png": DUPLICATE,
        "soft.png": BLURRED,
        "tiny.png": SMALL,
    }
    assert survey.records.name(skipped["same.png"].like) == "pose0.png"
    assert not faces_to_skip(survey, FaceLimits(blur=0, difference=0))


def test_sizes_are_those_of_the_picture(survey, within):
    large, small = (survey.edges[index_of(survey, name)] for name in ("pose3.png", "tiny.png"))
    # Other poses of one head: the crop follows the landmarks, whose spread changes with the pose by some percent.
    within("a face a third as wide, share", abs(large / small / 3 - 1), 0.15)


def test_a_pose_that_is_missing_is_named(survey):
    right = survey.records.select([i for i in range(len(survey)) if survey.yaw[i] < 5])
    lines = advice(survey_folder_of(right), [], "A")
    assert any(line.startswith("A has no face turned left beyond 20 degrees") for line in lines)
    assert not any("turned right" in line for line in lines)


def survey_folder_of(records):
    return survey_folder(dataclasses.replace(scan_folder(records.folder), records=records))[1]


def test_poses_that_only_a_shows_are_named(survey):
    right = survey_folder_of(survey.records.select([i for i in range(len(survey)) if survey.yaw[i] < -5]))
    (line,) = compare(survey, right)
    assert "of A's faces have a pose that no face of B has" in line and "turned left" in line
    assert compare(right, survey) == []


def test_a_list_is_read_as_it_was_written_and_follows_the_pixels(faces, tmp_path):
    folder = scan_folder(faces)
    chosen = [(index_of_name(folder, name), "why") for name in ("same.png", "soft.png")]
    path = tmp_path / "skip.txt"
    path.write_text(skip_list_text(folder, chosen) + "tiny.png\n")
    skip = read_skip_lists([path])
    left = skip.apply(folder)
    assert left.skipped == 3 and len(left.records) == 7
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("same", "pose1"):
        for suffix in (".png", ".json"):
            (moved / f"other{name}{suffix}").write_bytes((faces / f"{name}{suffix}").read_bytes())
    assert [r.path.name for r in skip.apply(scan_folder(moved)).records] == ["otherpose1.png"]
    assert SkipList().apply(folder) is folder


def index_of_name(folder, name: str) -> int:
    return [folder.records.name(i) for i in range(len(folder.records))].index(name)


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"12ab\tname\n", "line 1 begins with '12ab'"),
        (b"# x\n\nzzzzzzzzzzzzzzzz\ta\n", "line 3"),
        (b"\x89PNG\0\0", "no list of faces"),
        (None, "No such file"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, phrase):
    path = tmp_path / "skip.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SwapfastError, match=phrase) as caught:
        read_skip_lists([path])
    assert str(caught.value).startswith(f"--skip {path}: ")


def test_a_list_of_every_face_is_refused(faces):
    folder = scan_folder(faces)
    names = frozenset(folder.records.name(i) for i in range(len(folder.records)))
    with pytest.raises(SwapfastError, match="names every face of"):
        SkipList(names=names).apply(folder)


@pytest.mark.long
def test_the_command_writes_a_picture_and_a_list(faces, tmp_path, capsys):
    sheet, skip = tmp_path / "sheet.png", tmp_path / "skip.txt"
    assert cli.main(["inspect", str(faces), "-o", str(sheet), "--skip-list", str(skip), "--min-size", "60"]) == 0
    printed = capsys.readouterr().out
    assert "to skip   1 near-duplicate, 1 blurred, 1 small" in printed
    assert "advice: " in printed
    picture = cv2.imread(str(sheet))
    assert picture.shape == (900, 1280, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000, "faces are in it"
    assert skip.read_text().startswith(HEADER) and len(read_skip_lists([skip]).digests) == 3

    assert cli.main(["inspect", str(faces), str(faces), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [report["faces"] for report in result["folders"]] == [10, 10] and result["advice"] == []
    assert result["folders"][0]["skip"][0] == {"file": "same.png", "reason": DUPLICATE, "like": "pose0.png"}

    source = scan_side(faces, "extended", False, skip=read_skip_lists([skip]))
    assert len(source) == 7


@pytest.mark.slow
def test_a_list_that_a_person_has_changed_is_kept(faces, tmp_path, capsys):
    skip = tmp_path / "skip.txt"
    words = ["inspect", str(faces), "--skip-list", str(skip)]
    assert cli.main(words) == 0
    whole = skip.read_bytes()
    assert cli.main(words) == 0 and skip.read_bytes() == whole  # the same list may be written again
    changed = b"".join(whole.splitlines(keepends=True)[:-1])
    skip.write_bytes(changed)
    capsys.readouterr()
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "holds another list, perhaps with changes of your own; give another name, or remove it" in error
    assert skip.read_bytes() == changed


@pytest.mark.slow
def test_prepare_and_train_leave_out_what_a_list_names(faces, tmp_path, capsys):
    skip = tmp_path / "skip.txt"
    assert cli.main(["inspect", str(faces), "--skip-list", str(skip)]) == 0
    assert cli.main(["prepare", str(faces), str(tmp_path / "set"), "--size", "64", "--skip", str(skip)]) == 0
    assert "8 faces at 64 px" in (out := capsys.readouterr().out) and "2 left out by --skip" in out
    assert cli.main(["inspect", str(tmp_path / "set"), "-o", str(tmp_path / "set.png")]) == 0
    request = ["-A", str(faces), "-B", str(tmp_path / "set"), "-m", str(tmp_path / "model"), "-t", "tiny", "-b", "2"]
    assert cli.main(["train", *request, "-i", "1", "--cache", "off", "--skip", str(skip)]) == 0
    out = "".join(capsys.readouterr())
    assert "side A: 2 faces left out by --skip" in out and "side B: 8 faces" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["a", "b", "c"], "3 folders; give one, or two"),
        (["a", "--blur-limit", "-1"], "--blur-limit -1"),
        (["a", "--duplicates", "nan"], "--duplicates nan"),
        (["a", "--min-size", "-3"], "--min-size -3"),
        (["a", "-o", "a.gif"], "a.gif"),
        (["a", "--skip-list", "skip.png"], "skip.png"),
        (["a", "-o", "a/sheet.png"], "lies in the faces' folder a"),
        (["nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_requests_are_named(tmp_path, monkeypatch, capsys, words, phrase):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert cli.main(["inspect", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert phrase in line
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
