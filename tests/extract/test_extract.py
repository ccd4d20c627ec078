"""`swapfast extract` on points that are known: files, limits, gaps, tracks, and requests that cannot be met."""

from __future__ import annotations

import ast
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from swapfast.config import CropConfig
from swapfast.extract.backends import JsonBackend
from swapfast.extract.people import link
from swapfast.extract.run import LANDMARKS, REPORT, ExtractRequest, extract
from swapfast.faces.alignment import align
from swapfast.faces.crop import crop_face, crop_matrix, sample_square
from swapfast.faces.image import decode_image
from swapfast.faces.png import read_header
from swapfast.faces.reader import read_face
from swapfast.faces.record import FaceRecord
from swapfast.swap.landmark_file import header_line, landmark_line, read_landmark_file
from swapfast.video.film import write_video
from tests.extract.conftest import place, write_landmarks, write_pictures

pytestmark = pytest.mark.slow  # windows, servers, networks and terminals are waited for

KNOWN = ("--backend", "json")


def face_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


@pytest.fixture
def pictures(tmp_path, people) -> Path:
    """Two frames, the second with two people."""
    first, points = place(people[0])
    second, left = place(people[1], width=420, x=10)
    other, right = place(people[3], width=420, x=220)
    second[:, 210:] = other[:, 210:]
    return write_pictures(tmp_path / "shots", (first, [points]), (second, [left, right]))


@pytest.fixture
def film(tmp_path, people) -> tuple[Path, dict[int, list[np.ndarray]]]:
    """Twelve frames of a face that moves to the right, as pictures, and its landmarks."""
    folder, faces = tmp_path / "film", {}
    folder.mkdir()
    for index in range(12):
        pixels, points = place(people[0], x=40 + 4 * index)
        cv2.imwrite(str(folder / f"shot_{index + 1:04d}.png"), pixels)
        faces[index] = [points]
    return folder, faces


def test_faces_are_what_both_programs_read(run, pictures, within):
    code, out, err = run("-i", pictures, "-o", "faces", "--size", 256, *KNOWN)
    assert code == 0, err
    assert "3 faces in 2 of 2 frames, 3 written to faces" in out
    assert face_files(Path("faces")) == ["shot_0001_0.png", "shot_0002_0.png", "shot_0002_1.png"]
    frame = cv2.imread(str(pictures / "shot_0001.png"))
    truth = json.loads((pictures / "shot_0001.json").read_text())["faces"][0]["landmarks"]
    data = Path("faces/shot_0001_0.png").read_bytes()
    header = read_header(data)
    assert (header.version, header.face_index, header.source_filename) == (2.4, 0, "shot_0001.png")
    assert (header.frame_dims, header.source_is_video, header.original_filename) == (
        (240, 320),
        False,
        "shot_0001_0.png",
    )
    within("landmarks, px", np.abs(header.landmarks - truth).max(), 0.001)  # written to three decimals
    # The crop is made again from frame and header alone, to the bit.
    matrix = align(header.landmarks).matrix(256, "head", whole_padding=True)
    np.testing.assert_array_equal(decode_image(data), sample_square(frame, matrix, 256))


def test_the_header_is_exactly_what_faceswap_takes(run, pictures):
    """Its loader raises for a key too many or missing, and reads the first chunk iTXt before the pixels."""
    run("-i", pictures, "-o", "faces", *KNOWN)
    data = Path("faces/shot_0002_1.png").read_bytes()
    length, kind = struct.unpack(">I4s", data[33:41])  # behind the signature and IHDR
    assert kind == b"iTXt" and data.find(b"iTXt") == 37
    content = data[41 : 41 + length]
    assert content.startswith(b"faceswap" + bytes(5)) and zlib.crc32(kind + content) == int.from_bytes(
        data[41 + length : 45 + length], "big"
    )
    header = ast.literal_eval(content[13:].decode())
    points = header["alignments"].pop("landmarks_xy")
    assert [[type(number) for number in point] for point in points] == [[float, float]] * 68
    box = [header["alignments"].pop(key) for key in "xywh"]
    assert list(map(type, box)) == [int] * 4 and box[2] > 20 and box[3] > 20
    assert header == {
        "alignments": {"mask": {}, "identity": {}},
        "source": {
            "alignments_version": 2.4,
            "original_filename": "shot_0002_1.png",
            "face_index": 1,
            "source_filename": "shot_0002.png",
            "source_is_video": False,
            "source_frame_dims": (240, 420),
        },
    }
    types = {key: type(value) for key, value in header["source"].items()}
    assert types["alignments_version"] is float and types["face_index"] is int and types["source_is_video"] is bool
    assert decode_image(data).shape == (512, 512, 3) and data[24:26] == b"\x08\x02"  # 8 bits, three channels


@pytest.mark.parametrize("size", [64, 128])
def test_a_face_s_training_crop_is_its_frame_s(run, pictures, at_least, size):
    run("-i", pictures, "-o", "faces", "--size", 512, *KNOWN)
    path = Path("faces/shot_0001_0.png").absolute()
    head = read_face(path.parent, path.name, frozenset(face_files(path.parent)))
    assert isinstance(head, FaceRecord) and head.kind == "head"
    frame = cv2.imread(str(pictures / "shot_0001.png"))
    crop = CropConfig()
    of_face = crop_face(head, decode_image(path.read_bytes()), crop, size).astype(float)
    of_frame = sample_square(frame, crop_matrix(head, crop, size), size).astype(float)
    # The face is sampled twice, the frame once: 42.7 dB and more over three faces of two sizes and heads of three.
    error = np.sqrt(((of_face - of_frame) ** 2).mean())
    at_least(f"crop of {size} px of the face against the frame's, dB", 20 * np.log10(255 / error), 40)


def test_landmarks_are_what_swap_takes(run, pictures):
    run("-i", pictures, "-o", "faces", *KNOWN)
    file = read_landmark_file(Path("faces") / LANDMARKS)
    assert {name: len(faces) for name, faces in file.faces.by_name.items()} == {"shot_0001.png": 1, "shot_0002.png": 2}
    for name, faces in file.faces.by_name.items():
        for face in faces:
            header = read_header(Path("faces", f"{Path(name).stem}_{face.index}.png"))
            np.testing.assert_array_equal(header.landmarks, face.landmarks)
            assert face.frame_size == (header.frame_dims[1], header.frame_dims[0])


@pytest.mark.parametrize("centering", ["face", "legacy"])
def test_other_crops_have_their_landmarks_beside_them(run, pictures, centering, within):
    code, _, err = run("-i", pictures, "-o", "faces", "--size", 128, "--centering", centering, *KNOWN)
    assert code == 0, err
    folder = Path("faces")
    record = read_face(folder, "shot_0001_0.png", frozenset(p.name for p in folder.iterdir()))
    assert isinstance(record, FaceRecord) and record.kind == "plain" and not record.notes
    # Its own crop of that centering is the whole picture.
    matrix = record.alignment.matrix(128, centering)
    within("crop matrix against none at all", np.abs(matrix - [[1, 0, 0], [0, 1, 0]]).max(), 0.01)


def test_limits(run, pictures, people):
    assert run("-i", pictures, "-o", "largest", "--max-faces", 1, *KNOWN)[0] == 0
    assert len(face_files(Path("largest"))) == 2
    assert json.loads(Path("largest", REPORT).read_text())["left_out"] == {"more than --max-faces": 1}
    code, _, err = run("-i", pictures, "-o", "none", "--min-size", 900, *KNOWN)
    assert code == 1 and "no face was found in 2 frames (left out: 3 smaller than --min-size)" in err
    assert not Path("none").exists()
    sharp, points = place(people[0])
    blurred = cv2.GaussianBlur(sharp, (0, 0), 6)
    write_pictures(Path("blur"), (sharp, [points]), (blurred, [points]), (sharp, [points]))
    assert run("-i", "blur", "-o", "sharp", "--blur-limit", 3, *KNOWN)[0] == 0
    assert face_files(Path("sharp")) == ["shot_0001_0.png", "shot_0003_0.png"]
    assert run("-i", "blur", "-o", "unlike", "--duplicates", 1, *KNOWN)[0] == 0
    assert face_files(Path("unlike")) == ["shot_0001_0.png", "shot_0002_0.png"]
    # What is not written for its looks is swapped nonetheless.
    assert len(Path("unlike", LANDMARKS).read_text().splitlines()) == 4


def test_frames_are_chosen(run, film):
    folder, faces = film
    points = write_landmarks(Path("points.jsonl"), faces)
    words = ("-i", folder, *KNOWN, "--landmarks", points)
    assert run(*words, "-o", "third", "-n", 3)[0] == 0
    assert [name[5:9] for name in face_files(Path("third"))] == ["0001", "0004", "0007", "0010"]
    assert run(*words, "-o", "range", "-R", "3-4", "11-")[0] == 0
    assert [name[5:9] for name in face_files(Path("range"))] == ["0003", "0004", "0011", "0012"]
    code, _, err = run(*words, "-o", "beyond", "-R", "90-")
    assert code == 2 and "they are numbered 1 to 12" in err


@pytest.mark.parametrize("missing", [1, 4, 5])
def test_short_gaps_are_filled_and_counted(run, film, missing, within):
    folder, faces = film
    known = {index: found for index, found in faces.items() if not 4 <= index < 4 + missing}
    points = write_landmarks(Path("points.jsonl"), known)
    assert run("-i", folder, "-o", "faces", "--sequence", *KNOWN, "--landmarks", points)[0] == 0
    report = json.loads(Path("faces", REPORT).read_text())
    filled = missing if missing < 5 else 0
    assert (report["filled"], report["faces"]) == (filled, 12 - missing + filled)
    assert len(report["tracks"]) == (1 if missing < 5 else 2)
    if filled:
        file = read_landmark_file(Path("faces") / LANDMARKS).faces.by_name
        for index in range(4, 4 + missing):  # it moved evenly
            found = file[f"shot_{index + 1:04d}.png"][0].landmarks
            within("interpolated landmarks, px", np.abs(found - faces[index][0]).max(), 0.002)


def test_another_person_in_the_same_place_is_another_track(run, tmp_path, people):
    frames = [place(people[3 * (4 <= index < 8)], width=640, height=480, x=300 + index) for index in range(12)]
    write_pictures(tmp_path / "shots", *((pixels, [points]) for pixels, points in frames))
    assert run("-i", "shots", "-o", "faces", "--sequence", "--folders", "person", *KNOWN)[0] == 0
    tracks = [json.loads(line)["track"] for line in Path("faces", LANDMARKS).read_text().splitlines()[1:]]
    assert tracks == [0] * 4 + [1] * 4 + [0] * 4  # the first one is back before five frames are over
    assert [len(face_files(Path(f"faces/person_{person}"))) for person in (0, 1)] == [8, 4]  # by looks


@pytest.fixture
def two_tracks(tmp_path, people) -> tuple[Path, Path]:
    """Six frames with two people, and their landmarks with tracks 0 and 1."""
    frames, faces = [], {}
    for index in range(6):
        pixels, left = place(people[0], width=420, x=10 + index)
        other, right = place(people[3], width=420, x=220 + index)
        pixels[:, 210:] = other[:, 210:]
        frames.append((pixels, []))
        faces[index] = [left, right]
    folder = write_pictures(tmp_path / "couple", *frames)
    return folder, write_landmarks(tmp_path / "couple.jsonl", faces, tracks=True)


def test_tracks_are_chosen(run, two_tracks):
    folder, points = two_tracks
    words = ("-i", folder, "--sequence", *KNOWN, "--landmarks", points)
    code, out, _ = run(*words, "-o", "all")
    assert code == 0 and "2 tracks, by looks of 2 people" in out
    for track in (0, 1):
        sheet = decode_image(Path(f"all/tracks/track_00{track}.jpg").read_bytes())
        assert sheet.shape == (26 + 112, 8 * 112, 3)
        assert sheet[26:, : 6 * 112].std() > 20  # faces
        assert sheet[26:, 6 * 112 + 8 :].std() < 3  # paper
    # From the landmarks of a run that is done, without looking for anything again.
    assert run(*words[:4], "json", "--landmarks", "all/landmarks.jsonl", "-o", "one", "--tracks", 1)[0] == 0
    assert {name[-5] for name in face_files(Path("one"))} == {"1"} and len(face_files(Path("one"))) == 6
    assert {json.loads(line)["track"] for line in Path("one", LANDMARKS).read_text().splitlines()[1:]} == {1}
    code, _, err = run(*words, "-o", "gone", "--tracks", "7")
    assert code == 2 and "--tracks 7: there is no such track; the tracks are 0, 1" in err
    code, _, err = run(*words, "-o", "some", "--tracks", "1,7")
    assert code == 0 and "--tracks 7: there is no such track" in err and len(face_files(Path("some"))) == 6
    assert run("-i", folder, *words[3:], "-o", "pictures", "--tracks", 1)[0] == 0  # their file has tracks


def test_folders_of_tracks_are_deleted_and_the_rest_collected(run, two_tracks):
    folder, points = two_tracks
    words = ("-i", folder, "--sequence", *KNOWN, "--landmarks", points)
    assert run(*words, "-o", "faces", "--folders", "track")[0] == 0
    assert [len(face_files(Path(f"faces/track_00{track}"))) for track in (0, 1)] == [6, 6]
    for path in Path("faces/track_000").iterdir():
        path.unlink()
    Path("faces/track_000").rmdir()
    code, out, err = run("--collect", "faces")
    assert code == 0 and "6 faces of 1 tracks are in faces now" in out, err
    assert len(face_files(Path("faces"))) == 6 and not Path("faces/track_001").exists()
    assert {json.loads(line)["track"] for line in Path("faces", LANDMARKS).read_text().splitlines()[1:]} == {1}
    assert [path.name for path in Path("faces/tracks").iterdir()] == ["track_001.jpg"]
    code, _, err = run("--collect", "faces")
    assert code == 2 and "holds no folder of a track" in err


def test_folders_of_people(run, two_tracks):
    folder, points = two_tracks
    assert run("-i", folder, "--sequence", *KNOWN, "--landmarks", points, "-o", "f", "--folders", "person")[0] == 0
    assert [len(face_files(Path(f"f/person_{person}"))) for person in (0, 1)] == [6, 6]


def test_tracks_are_linked_by_their_mean_distance():
    near, far, never = 1.0, 9.0, np.inf
    distances = np.array(
        [[0, near, far, 2.0], [near, 0, far, 2.0], [far, far, 0, far], [2.0, 2.0, far, 0]], dtype=np.float64
    )
    assert sorted(map(sorted, link(distances, 5.0))) == [[0, 1, 3], [2]]
    assert sorted(map(sorted, link(distances, 1.5))) == [[0, 1], [2], [3]]
    distances[1, 3] = distances[3, 1] = never  # seen in one frame
    assert sorted(map(sorted, link(distances, 5.0))) == [[0, 1], [2], [3]]


def test_output_with_other_faces_is_kept(run, pictures):
    assert run("-i", pictures, "-o", "faces", *KNOWN)[0] == 0
    before = {path.name: path.read_bytes() for path in Path("faces").iterdir() if path.is_file()}
    code, _, err = run("-i", pictures, "-o", "faces", *KNOWN)
    assert code == 2 and "holds 3 faces of another run; give a new folder, or --overwrite" in err
    assert {path.name: path.read_bytes() for path in Path("faces").iterdir() if path.is_file()} == before
    assert run("-i", pictures, "-o", "faces", "--max-faces", 1, "--overwrite", *KNOWN)[0] == 0
    assert len(face_files(Path("faces"))) == 2
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    code, _, err = run("-i", pictures, "-o", "mine", "--overwrite", *KNOWN)
    assert code == 2 and "not a folder that extract made" in err
    assert Path("mine/thesis.txt").read_text() == "years of work"
    code, _, err = run("-i", pictures, "-o", pictures, "--overwrite", *KNOWN)
    assert code == 2 and "holds what is read" in err
    assert not [path for path in Path().iterdir() if path.name.endswith((".partial", ".former"))]


def test_damaged_pictures_are_told_and_left_out(run, pictures):
    data = (pictures / "shot_0002.png").read_bytes()
    (pictures / "shot_0002.png").write_bytes(data[: len(data) // 2])
    code, _, err = run("-i", pictures, "-o", "faces", *KNOWN)
    assert code == 0 and "1 of 2 pictures cannot be read, such as" in err and "shot_0002.png: truncated" in err
    assert face_files(Path("faces")) == ["shot_0001_0.png"]
    (pictures / "shot_0001.png").write_bytes(data[:100])
    code, _, err = run("-i", pictures, "-o", "none", *KNOWN)
    assert code == 1 and "no frame can be read" in err and not Path("none").exists()


def test_points_that_are_no_face_are_left_out(run, tmp_path, people):
    pixels, points = place(people[0])
    noise = np.random.default_rng(1).uniform(0, 200, (68, 2))
    write_pictures(tmp_path / "odd", (pixels, [points, noise]))
    code, out, _ = run("-i", "odd", "-o", "faces", *KNOWN)
    assert (
        code == 0
        and "landmarks that do not look like a face" in out
        and face_files(Path("faces")) == ["shot_0001_0.png"]
    )
    away, far = place(people[0], x=270)  # two thirds of it beyond the edge
    write_pictures(tmp_path / "cut", (away, [far]))
    code, _, err = run("-i", "cut", "-o", "none", *KNOWN)
    assert code == 1 and "no face was found in 1 frames" in err


@pytest.mark.slow
def test_a_run_that_is_stopped_keeps_what_it_found(people, tmp_path):
    write_video(tmp_path / "film.mp4", iter([people[0].image] * 20), 160, 160)
    lines = [header_line(), *(landmark_line(people[0].landmarks, frame=index) for index in range(20))]
    (tmp_path / "film.jsonl").write_text("\n".join(lines))
    finder = read_landmark_file(tmp_path / "film.jsonl").faces
    asked = iter([False, False, True])
    request = ExtractRequest((tmp_path / "film.mp4",), tmp_path / "faces", lambda: JsonBackend(finder), workers=1)
    report = extract(request, is_stopped=lambda: next(asked))
    assert (report["is_stopped"], report["frames"], report["written"], report["notes"]) == (True, 3, 3, [])
    assert face_files(tmp_path / "faces") == [f"film_00000{number}_0.png" for number in (1, 2, 3)]
    file = read_landmark_file(tmp_path / "faces" / LANDMARKS)
    assert file.frames is None and sorted(file.faces.by_index) == [0, 1, 2]  # swap knows that it is not all


REFUSED = {
    "no input": (("-o", "f"), "required: -i/--input"),
    "no output": (("-i", "shots", *KNOWN), "required: -o/--out"),
    "no such input": (("-i", "nowhere", "-o", "f", *KNOWN), "-i nowhere: no such folder"),
    "no such backend": (("-i", "shots", "-o", "f", "--backend", "jsn"), "Did you mean 'json'"),
    "no such centering": (("-i", "shots", "-o", "f", *KNOWN, "--centering", "heads"), "Did you mean 'head'"),
    "no such turns": (("-i", "shots", "-o", "f", *KNOWN, "--turns", "some"), "--turns"),
    "no such folders": (("-i", "shots", "-o", "f", *KNOWN, "--folders", "tracks"), "Did you mean 'track'"),
    "size": (("-i", "shots", "-o", "f", *KNOWN, "--size", 9000), "--size 9000: give 64 to 2048 px"),
    "tracks": (("-i", "shots", "-o", "f", *KNOWN, "--tracks", "a,b"), "--tracks 'a,b': give the numbers of tracks"),
    "distance": (("-i", "shots", "-o", "f", *KNOWN, "--max-distance", 3), "--max-distance 3: give more than 0"),
    "confidence": (("-i", "shots", "-o", "f", *KNOWN, "--confidence", 3), "--confidence 3: give 0 to 0.99"),
    "no number": (("-i", "shots", "-o", "f", *KNOWN, "--min-size", "big"), "--min-size: 'big': must be a number"),
    "landmarks of mesh": (("-i", "shots", "-o", "f", "--landmarks", "l.jsonl"), "give --backend json too"),
    "no landmarks": (
        ("-i", "shots", "-o", "f", *KNOWN, "--landmarks", "l.jsonl"),
        "--landmarks l.jsonl: cannot be read",
    ),
    "models of json": (("-i", "shots", "-o", "f", *KNOWN, "--models", "m"), "--models: are for --backend mesh"),
    "twice": (("-i", "shots", "shots", "-o", "f", *KNOWN, "--landmarks", "p.jsonl"), "is there twice"),
    "file as output": (("-i", "shots", "-o", "p.jsonl", *KNOWN), "is a file; give a new folder"),
    "collect nothing": (("--collect", "nowhere"), "--collect nowhere: no such folder"),
    "collect others": (("--collect", "shots"), "holds no extract.json of extract"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_requests_that_cannot_be_met(run, pictures, case):
    _, points = place_of(pictures)
    write_landmarks(Path("p.jsonl"), {0: [points]})
    before = sorted(Path().iterdir())
    words, message = REFUSED[case]
    code, out, err = run(*words)
    assert code == 2 and message in err and err.count("\n") == 1 and not out, err
    assert sorted(Path().iterdir()) == before


def place_of(pictures: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first frame of a folder, and its first face's landmarks."""
    table = json.loads((pictures / "shot_0001.json").read_text())
    return cv2.imread(str(pictures / "shot_0001.png")), np.array(table["faces"][0]["landmarks"])
