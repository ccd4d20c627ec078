"""Faces of many frames: held in a file, read when they are asked for, smoothed along their tracks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.faces.reader import landmarks_of
from swapfast.faces.record import StoredMask
from swapfast.swap import face_spool
from swapfast.swap.face_spool import BY_ORDER, FacesByIndex, FacesByName, FaceSpool, FoundFace, SpooledFaces
from swapfast.swap.found_faces import FaceTable
from swapfast.swap.frames import FrameFace
from swapfast.swap.landmark_file import header_line, landmark_line, read_landmark_file
from swapfast.swap.request import table_digest
from swapfast.swap.smoothing import smooth_track
from swapfast.swap.stability import Stability
from swapfast.swap.video_faces import VideoFaces
from swapfast.swap.videos import ScannedVideo
from swapfast.video.reader import VideoReader
from tests.swap.echo import drawn_face
from tests.video.clips import make_clip

FACE = drawn_face(0, 160)


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> VideoReader:
    return VideoReader(make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", size=(320, 320)))


def scanned(reader: VideoReader, frames: int, cuts: tuple[int, ...] = ()) -> ScannedVideo:
    return ScannedVideo(reader, frames, cuts, frames / 25, ())


def same(one: FoundFace, other: FoundFace) -> bool:
    simple = ("index", "name", "frame_size", "is_stored", "track", "stored_masks")
    return (
        one.landmarks.dtype == other.landmarks.dtype
        and np.array_equal(one.landmarks, other.landmarks)
        and all(getattr(one, key) == getattr(other, key) for key in simple)
    )


@pytest.mark.parametrize("in_memory", [100_000, face_spool.MOST_IN_MEMORY])
def test_faces_come_back_from_their_file_as_they_were(in_memory, monkeypatch):
    """Of any type, with masks longer than what is read at once, and names that are not valid text."""
    monkeypatch.setattr(face_spool, "MOST_IN_MEMORY", in_memory)
    mask = StoredMask(os.urandom(9000), 128, "head", ((1.5, 0.0, -3.25), (0.0, 1.5, 7.0)), 2)
    faces = [
        FoundFace(FACE.landmarks.astype(np.float32), 2, "a\udcff.png", (320, 200), True, 7, {"hull": mask}),
        FoundFace(FACE.landmarks, stored_masks={"b": mask, "a": StoredMask(b"x", 4, "face")}),
        *(FoundFace(FACE.landmarks + number, number) for number in range(2000)),
    ]
    spool = FaceSpool()
    places = [spool.add(face) for face in faces]
    spool.end()
    assert all(same(spool.read(place), face) for place, face in zip(places, faces, strict=True))
    some = SpooledFaces(spool, places)
    assert len(some) == len(faces) and same(some[-1], faces[-1]) and same(some[1:3][1], faces[2])
    with pytest.raises(IndexError):
        some[len(faces)]


def test_faces_are_found_by_frame_in_any_order():
    """The order in a frame is that of the lines; a face that says no index has its place there."""
    spool = FaceSpool()
    by_index, by_name = FacesByIndex(spool), FacesByName(spool)
    assert not by_index and not list(by_index) and 3 not in by_index and not by_name
    for frame, index in ((7, 5), (3, BY_ORDER), (7, BY_ORDER), (3, BY_ORDER), (0, 1)):
        by_index.add(frame, FoundFace(FACE.landmarks, index))
    by_name.add("x.png", FoundFace(FACE.landmarks, BY_ORDER))
    by_name.add("x.png", FoundFace(FACE.landmarks, BY_ORDER))
    spool.end()
    found = {frame: [face.index for face in faces] for frame, faces in by_index.items()}
    assert found == {0: [1], 3: [0, 1], 7: [5, 1]} and len(by_index) == 3 and max(by_index) == 7
    assert 4 not in by_index and by_index.get(4) is None
    assert [face.index for face in by_name["x.png"]] == [0, 1] and list(by_name) == ["x.png"]
    assert FaceTable("x", by_name, by_index).count == 7


def test_a_table_in_a_file_has_the_digest_of_one_in_memory(tmp_path):
    """A run goes on only where it is the same, so a new version of the program must find what it knew."""
    path = tmp_path / "x.jsonl"
    lines = [landmark_line(FACE.landmarks + i, frame=i, face=f) for i in range(12) for f in range(2)]
    path.write_text("\n".join([header_line(), *lines]) + "\n")
    kept = {
        index: [FoundFace(landmarks_of(json.loads(lines[2 * index + face])), face, "x.jsonl") for face in range(2)]
        for index in range(12)
    }
    assert table_digest(read_landmark_file(path).faces) == table_digest(FaceTable("x", {}, kept))


@pytest.mark.slow
def test_without_room_for_the_faces_one_line_tells(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    path = tmp_path / "x.jsonl"
    lines = [landmark_line(FACE.landmarks, frame=index) for index in range(200)]
    path.write_text("\n".join([header_line(), *lines]) + "\n")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from swapfast.errors import SwapfastError\n"
        "from swapfast.swap import face_spool\n"
        "from swapfast.swap.landmark_file import read_landmark_file\n"
        "face_spool.MOST_IN_MEMORY = 100_000\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    read_landmark_file(Path(sys.argv[1]))\n"
        "except SwapfastError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert result.stdout.count("\n") == 1 and "TMPDIR" in result.stdout and "cannot be written" in result.stdout


def test_smoothing_stays_within_its_track(reader):
    """Two faces, one of which is away for a while, and a cut: nobody's landmarks take from another's."""
    first = {index: FACE.landmarks + (0.5 * index, 0) for index in range(12)}
    second = {index: FACE.landmarks * 0.5 + (180, 0) for index in range(20) if index not in (5, 6, 7)}
    by_index = {
        index: [FoundFace(points[index], face) for face, points in enumerate((second, first)) if index in points]
        for index in range(20)
        if index in first or index in second
    }
    faces = VideoFaces(FaceTable("x", {}, by_index), scanned(reader, 20, (9,)), 3)
    tracks = {index: [face.track for face in faces.of(index).faces] for index in range(20)}
    assert tracks[0] == [0, 1] and tracks[5] == [1] and tracks[8] == [0, 1]  # back after three frames
    assert set(tracks[8]).isdisjoint(tracks[9]) and tracks[19] == [tracks[9][0]]
    assert faces.tracks == 4 and faces.count == 29 and not faces.of(-1).faces and not faces.of(20).faces
    for index in range(20):
        for former, face in zip(by_index[index], faces.of(index).faces, strict=True):
            assert np.abs(former.landmarks - face.landmarks).max() < 1e-6  # straight motion is a parabola


def test_a_files_own_tracks_are_smoothed_as_whole_tracks_are(reader):
    """Frames may be asked for in any order; a track is smoothed as if it were there as a whole, to the bit."""
    rng = np.random.default_rng(1)
    points = FACE.landmarks + rng.normal(0, 1, (40, 2, 68, 2)) + np.array([0, 150]).reshape(1, 2, 1, 1)
    present = rng.random((40, 2)) < 0.8
    by_index = {
        index: [FoundFace(points[index, face], face, track=5 + face) for face in range(2) if present[index, face]]
        for index in range(40)
    }
    faces = VideoFaces(FaceTable("x", {}, by_index), scanned(reader, 40), 4)
    smoothed = {index: {face.index: face.landmarks for face in faces.of(index).faces} for index in rng.permutation(40)}
    for face in range(2):
        indices = np.flatnonzero(present[:, face])
        expected = smooth_track(points[indices, face], indices, 4)
        assert np.array_equal(np.stack([smoothed[index][face] for index in indices]), expected)


def _bytes_held(path: Path, reader: VideoReader, frames: int) -> int:
    """Return the memory that the faces of a video hold, bytes."""
    lines = (landmark_line(FACE.landmarks + index % 7, frame=index, track=0) for index in range(frames))
    path.write_text("\n".join([header_line(), *lines]) + "\n")
    tracemalloc.start()
    try:
        faces = VideoFaces(read_landmark_file(path).faces, scanned(reader, frames), 3)
        assert faces.count == frames
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.long
def test_faces_of_a_longer_video_hold_next_to_no_more_memory(tmp_path, reader, within, monkeypatch):
    """Where each face lies, its frame and its track: 40 bytes, and what arrays hold ahead. Landmarks have 1,088."""
    monkeypatch.setattr(face_spool, "MOST_IN_MEMORY", 50_000)
    short, long = (_bytes_held(tmp_path / "x.jsonl", reader, frames) for frames in (300, 900))
    within("bytes a face", (long - short) / 600, 60)


@pytest.mark.slow
def test_figures_of_a_longer_video_hold_no_more_memory():
    """Each frame begins a track, as where scenes change often: the pictures of ended ones are let go."""
    stability, sizes = Stability(), []
    tracemalloc.start()
    try:
        for index in range(60):
            face = FrameFace.from_landmarks(FACE.landmarks, track=index // 3)
            stability.add(index, FACE.image, FACE.image, [face])
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[-1] - sizes[14] < FACE.image.shape[0] * FACE.image.shape[1]  # less than one gray picture
    assert stability.figures()["triples"] == 20


def test_faces_of_another_video_are_refused_by_the_first_reason(reader, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([header_line(size=(100, 100)), landmark_line(FACE.landmarks, frame=0)]) + "\n")
    with pytest.raises(SwapfastError, match=r"none of its faces fits .*100x100 px.*320x320"):
        VideoFaces(read_landmark_file(path).faces, scanned(reader, 5), 3)
