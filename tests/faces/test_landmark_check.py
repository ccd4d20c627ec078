"""Landmarks that cannot be in px of their picture, or may not be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from swapfast.faces.folder import describe, inspect_folder, scan_folder
from swapfast.faces.orientation import stored_landmarks
from swapfast.synthetic.dataset import synthesize
from tests.faces.face_samples import a_face, a_picture, write_plain

# How a picture as stored becomes the one that its EXIF orientation asks for.
TURNS = {
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: np.rot90(picture, -1),
    7: lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
    8: lambda picture: np.rot90(picture, 1),
}
# And back: only the quarter turns are not their own.
BACK = TURNS | {6: TURNS[8], 8: TURNS[6]}


def _write_jpeg(path: Path, picture: np.ndarray, tag: int, landmarks: np.ndarray, **entries) -> None:
    """Write a JPEG with an EXIF orientation, and its json."""
    data = cv2.imencode(".jpg", np.ascontiguousarray(picture), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([tag, 0, 0, 0, 0, 0, 0, 0])
    exif = b"Exif\0\0" + tiff
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    path.with_suffix(".json").write_text(json.dumps({"landmarks": landmarks.astype(float).tolist(), **entries}))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[tuple[np.ndarray, np.ndarray]]:
    """Six upright pictures of 300 x 400 px with a drawn face in them, and its landmarks."""
    folder = tmp_path_factory.mktemp("drawn") / "faces"
    synthesize(folder, faces=6, pairs=0, size=128, seed=3)
    pictures = []
    for path in sorted((folder / "a").glob("????.png")):
        picture = np.full((400, 300, 3), (90, 120, 90), np.uint8)
        picture[40:168, 100:228] = cv2.imread(str(path))
        landmarks = np.array(json.loads(path.with_suffix(".json").read_text())["landmarks"]) + [100, 40]
        pictures.append((picture, landmarks))
    return pictures


@pytest.mark.parametrize("orientation", TURNS)
def test_landmarks_of_the_turned_picture_come_to_lie_where_the_face_is_stored(tmp_path, orientation):
    """A white spot at each landmark of the upright picture is at that landmark of the stored one."""
    points = np.rint(a_face())
    upright = np.zeros((400, 360), np.uint8)
    for x, y in points.astype(int):
        upright[y, x] = 255
    stored = BACK[orientation](upright)
    np.testing.assert_array_equal(TURNS[orientation](stored), upright)
    in_stored = stored_landmarks(points, orientation, *stored.shape[::-1])
    assert {(int(x), int(y)) for x, y in in_stored} == {(int(x), int(y)) for y, x in zip(*np.nonzero(stored))}
    _write_jpeg(tmp_path / "one.jpg", cv2.merge([stored] * 3), orientation, points, orientation="exif")
    (record,) = scan_folder(tmp_path).records
    np.testing.assert_array_equal(record.landmarks, in_stored)


@pytest.mark.slow
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_landmarks_of_the_turned_picture_are_refused_unless_the_json_says_so(tmp_path, photographs, orientation):
    for number, (picture, landmarks) in enumerate(photographs):
        _write_jpeg(tmp_path / f"{number}.jpg", BACK[orientation](picture), orientation, landmarks)
    folder = scan_folder(tmp_path)
    told = [face.reason for face in folder.bad] + folder.warnings
    assert told and all('"orientation": "exif"' in line for line in told)
    if orientation != 3:  # upside down a drawn face is still a symmetric one
        assert len(folder.bad) == len(photographs)
    for number, (picture, landmarks) in enumerate(photographs):
        _write_jpeg(tmp_path / f"{number}.jpg", BACK[orientation](picture), orientation, landmarks, orientation="exif")
    folder = scan_folder(tmp_path)
    assert (len(folder.records), folder.bad, folder.warnings) == (len(photographs), [], [])


@pytest.mark.slow
@pytest.mark.parametrize("orientation", TURNS)
def test_landmarks_in_stored_pixels_are_right_whatever_the_tag_says(tmp_path, photographs, orientation):
    for number, (picture, landmarks) in enumerate(photographs):
        stored = BACK[orientation](picture)
        in_stored = stored_landmarks(landmarks, orientation, stored.shape[1], stored.shape[0])
        _write_jpeg(tmp_path / f"{number}.jpg", stored, orientation, in_stored, orientation="stored")
        if orientation in (5, 6, 7, 8):  # lying: such landmarks need no word in the json
            _write_jpeg(tmp_path / f"without {number}.jpg", stored, orientation, in_stored)
    folder = scan_folder(tmp_path)
    assert (folder.bad, folder.warnings) == ([], []) and len(folder.records) >= len(photographs)


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_stale_tag_is_no_fault(tmp_path, photographs, orientation):
    """An editor has turned the pixels and left the tag."""
    for number, (picture, landmarks) in enumerate(photographs):
        _write_jpeg(tmp_path / f"{number}.jpg", picture, orientation, landmarks)
    folder = scan_folder(tmp_path)
    assert (len(folder.records), folder.bad, folder.warnings) == (len(photographs), [], [])


def test_a_tag_that_the_pixels_do_not_explain_is_told_of_in_one_line(tmp_path):
    for number in range(5):
        _write_jpeg(tmp_path / f"{number}.jpg", a_picture(400, 400, number), 6, a_face())
    report = inspect_folder(tmp_path)
    (line,) = report["warnings"]
    assert report["faces"] == 5 and "5 of 5 faces have upright landmarks and EXIF orientation 6 (0.jpg)" in line
    assert f"  warning: {line}" in describe(report)


def test_a_face_that_is_in_the_picture_only_once_it_is_turned_is_refused(tmp_path):
    _write_jpeg(tmp_path / "one.jpg", a_picture(400, 130), 6, a_face(60, (30, 300)))
    (bad,) = scan_folder(tmp_path).bad
    assert "outside the picture as it is stored, and nothing once it is turned" in bad.reason


@pytest.mark.parametrize("word", ["EXIF", 6, "upright", ["exif"]])
def test_another_orientation_is_refused(tmp_path, word):
    write_plain(tmp_path / "one.png", a_picture(400, 400), a_face(), orientation=word)
    (bad,) = scan_folder(tmp_path).bad
    assert 'neither "stored" nor "exif"' in bad.reason


def test_a_person_who_lies_on_their_side_is_good(tmp_path):
    for number, degrees in enumerate((90, -90, 180, 60)):
        write_plain(tmp_path / f"{number}.png", a_picture(400, 400, number), a_face(degrees=degrees))
    folder = scan_folder(tmp_path)
    assert (len(folder.records), folder.bad, folder.warnings) == (4, [], [])


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda points: points / 400, "shares of the picture's edge"),
        (lambda points: points / 200 - 1, "shares of the picture's edge"),
        (lambda points: points / 40, "px, which no face does"),
        (lambda points: points * 1.9, "outside the picture (400x400 px): measured before it was resized or cut"),
        (lambda points: points + [300, 0], "outside the picture (400x400 px): measured before it was resized or cut"),
    ],
)
def test_landmarks_in_other_units_are_refused(tmp_path, change, cause):
    write_plain(tmp_path / "one.png", a_picture(400, 400), change(a_face()))
    (bad,) = scan_folder(tmp_path).bad
    assert cause in bad.reason and bad.reason.isprintable()


@pytest.mark.slow
@pytest.mark.parametrize(("x", "y"), [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1)])
def test_faces_cut_20_px_at_the_border_are_good(tmp_path, x, y):
    low, high = a_face().min(0), a_face().max(0)
    shift = [(0, -low[0] - 20, 400 - high[0] + 19)[x], (0, -low[1] - 20, 400 - high[1] + 19)[y]]
    for number in range(5):
        write_plain(tmp_path / f"{number}.png", a_picture(400, 400, number), a_face() + shift)
    folder = scan_folder(tmp_path)
    assert (len(folder.records), folder.bad, folder.warnings) == (5, [], [])


def test_faces_that_reach_far_outside_are_told_of_in_one_line(tmp_path):
    for number in range(4):
        write_plain(tmp_path / f"{number}.png", a_picture(400, 400, number), a_face() - [190, 0])
    folder = scan_folder(tmp_path)
    assert not folder.bad and len(folder.warnings) == 1
    assert "4 of 4 faces lie more than a third outside their pictures (0.png)" in folder.warnings[0]


@pytest.mark.slow
def test_faces_in_the_corner_of_enlarged_pictures_are_told_of_in_one_line(tmp_path):
    for number in range(5):
        write_plain(tmp_path / f"{number}.png", a_picture(800, 800, number), a_face())
    folder = scan_folder(tmp_path)
    assert len(folder.warnings) == 1 and "upper left" in folder.warnings[0]
    write_plain(tmp_path / "5.png", a_picture(800, 800), a_face() + [300, 300])
    assert scan_folder(tmp_path).warnings == []


def test_two_pictures_of_one_json_must_have_one_size(tmp_path):
    write_plain(tmp_path / "one.png", a_picture(400, 400), a_face())
    cv2.imwrite(str(tmp_path / "one.jpg"), a_picture(400, 400))
    assert not scan_folder(tmp_path).bad
    cv2.imwrite(str(tmp_path / "one.jpg"), a_picture(500, 500))
    write_plain(tmp_path / "two.png", a_picture(400, 400), a_face())
    folder = scan_folder(tmp_path)
    assert [face.path.name for face in folder.bad] == ["one.jpg", "one.png"] and len(folder.records) == 1
    assert "shares one.json with one.png, of another size than its 500x500 px" in folder.bad[0].reason


def test_a_json_that_gives_another_size_is_told_of(tmp_path):
    for number, entries in enumerate(
        ({"size": 800}, {"width": 800, "height": 600}, {"size": [400, 400]}, {"size": 400})
    ):
        write_plain(tmp_path / f"{number}.png", a_picture(400, 400, number), a_face(), **entries)
    (line,) = scan_folder(tmp_path).warnings
    assert "2 of 4 faces have another size in their json than their pictures (0.png)" in line


def test_what_is_told_is_told_again_from_the_index(tmp_path):
    faces = tmp_path / "faces"
    faces.mkdir()
    for number in range(5):
        _write_jpeg(faces / f"{number}.jpg", a_picture(400, 400, number), 6, a_face())
    first = scan_folder(faces)
    again = scan_folder(faces, known=first.records)
    assert again.warnings == first.warnings != []
    shutil.rmtree(faces)
