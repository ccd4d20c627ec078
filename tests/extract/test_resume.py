"""A run that is killed, stopped or out of room goes on from where it was, and ends as one that nobody stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from swapfast.errors import SwapfastError
from swapfast.extract.backends import FoundPoints, FrameFindings
from swapfast.extract.collect import collect
from swapfast.extract.journal import Journal
from swapfast.extract.run import LANDMARKS, REPORT, extract
from tests.extract.conftest import place, write_landmarks
from tests.extract.killed import request
from tests.preloaded import Popen
from tests.same_files import check_same

pytestmark = pytest.mark.slow  # programs are started and killed

FRAMES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory, people) -> Path:
    """A film of two people, one of whom is gone for three frames, then for eight; and their points."""
    folder, faces = tmp_path_factory.mktemp("film"), {}
    (folder / "shots").mkdir()
    for index in range(FRAMES):
        pixels, left = place(people[0], width=420, x=10 + index % 9)
        other, right = place(people[3], width=420, x=220 + index % 7)
        pixels[:, 210:] = other[:, 210:]
        pixels = pixels // 2 + np.uint8(index % 31)  # a few frames are near-duplicates of others
        cv2.imwrite(str(folder / "shots" / f"shot_{index + 1:04d}.png"), pixels)
        is_gone = index in (12, 13, 14) or 20 <= index < 28
        faces[index] = [left] if is_gone else [left, right]
    write_landmarks(folder / "points.jsonl", faces)
    return folder


def contents(out: Path) -> dict[str, bytes | list]:
    """All files by their path; of the report what does not depend on the clock."""
    found: dict[str, bytes | list] = {
        path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
    }
    report = json.loads(found.pop(REPORT))
    keys = ("frames", "frames_with_faces", "faces", "filled", "written", "left_out", "people", "tracks", "is_stopped")
    return found | {"report": [report[key] for key in keys]}


@pytest.mark.long
def test_kills_leave_no_trace(folder, tmp_path):
    extract(request(folder, tmp_path / "whole"))
    expected = contents(tmp_path / "whole")
    assert sum(name.endswith(".png") for name in expected) > 50
    assert len(expected["report"][-2]) == 4  # one of them after a gap that is too long, two after a cut
    for question in (2, 17, 20, 9):  # each counted from where the one before was killed
        words = [sys.executable, "-m", "tests.extract.killed", str(folder), str(tmp_path / "out"), str(question)]
        with Popen(words) as process:
            assert process.wait(60) == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
    left = {path.name for path in (tmp_path / ".out.extract").iterdir()}
    assert {"faces", "request.json", ".lock"} < left and sum(name.startswith("answers-") for name in left) >= 2
    report = extract(request(folder, tmp_path / "out"))
    assert report["written_before"] > 10
    check_same(contents(tmp_path / "out"), expected)
    assert not (tmp_path / ".out.extract").exists()


def test_pictures_that_are_no_sequence_go_on_too(folder, tmp_path):
    changes = {"is_sequence": False, "folders": "none"}
    extract(request(folder, tmp_path / "whole", **changes))
    expected = contents(tmp_path / "whole")
    asked = iter([False] * 25 + [True] * 9)
    report = extract(request(folder, tmp_path / "out", **changes), is_stopped=lambda: next(asked))
    assert report["is_stopped"] and report["frames"] == 26
    assert extract(request(folder, tmp_path / "out", **changes))["written_before"] > 25
    check_same(contents(tmp_path / "out"), expected)


def test_a_stopped_run_goes_on(folder, tmp_path):
    extract(request(folder, tmp_path / "whole"))
    for frames in (15, 5, 30):  # the second one stops before the first did
        asked = iter([False] * (frames - 1) + [True] * 99)
        report = extract(request(folder, tmp_path / "out"), is_stopped=lambda: next(asked))  # noqa: B023
        assert (report["is_stopped"], report["frames"]) == (True, frames)
        lines = (tmp_path / "out" / LANDMARKS).read_text().splitlines()[1:]
        assert {json.loads(line)["name"] for line in lines} == {f"shot_{n + 1:04d}.png" for n in range(frames)}
        names = {path.name.rpartition("_")[0] for path in (tmp_path / "out").glob("person_*/*.png")}
        assert names <= {f"shot_{n + 1:04d}" for n in range(frames)}
    extract(request(folder, tmp_path / "out"))
    check_same(contents(tmp_path / "out"), contents(tmp_path / "whole"))
    with pytest.raises(SwapfastError, match="faces of another run; give a new folder, or --overwrite"):
        extract(request(folder, tmp_path / "out"))


def test_another_request_does_not_go_on(folder, tmp_path):
    asked = iter([False] * 9 + [True])
    extract(request(folder, tmp_path / "out"), is_stopped=lambda: next(asked))
    before = contents(tmp_path / "out")
    with pytest.raises(SwapfastError, match=r"an unfinished run of another request \(folders, interval differs\)"):
        extract(request(folder, tmp_path / "out", interval=4, folders="none"))
    check_same(contents(tmp_path / "out"), before)
    report = extract(request(folder, tmp_path / "out", interval=4, folders="none", overwrite=True))
    extract(request(folder, tmp_path / "whole", interval=4, folders="none"))
    assert report["written_before"] == 0
    check_same(contents(tmp_path / "out"), contents(tmp_path / "whole"))


def test_what_was_chosen_by_hand_is_not_gone_on_with(folder, tmp_path):
    asked = iter([False] * 9 + [True])
    out = tmp_path / "out"
    extract(request(folder, out, folders="track"), is_stopped=lambda: next(asked))
    collect(out)
    before = contents(out)
    with pytest.raises(SwapfastError, match="faces of another run"):
        extract(request(folder, out, folders="track"))
    check_same(contents(out), before)


def test_a_full_disk_keeps_what_is_done(folder, tmp_path):
    """The disk is full for the files, as for a quota: a limit of the system on the size of one."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(SwapfastError, match="the disk is full"):
            extract(request(folder, tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    assert not (tmp_path / "out").exists() and list((tmp_path / ".out.extract").glob("answers-*"))
    extract(request(folder, tmp_path / "whole"))
    extract(request(folder, tmp_path / "out"))
    check_same(contents(tmp_path / "out"), contents(tmp_path / "whole"))


def test_a_request_of_which_nothing_comes_leaves_nothing(folder, tmp_path):
    limits = request(folder, tmp_path / "out").limits
    with pytest.raises(SwapfastError, match="no face was found in 40 frames"):
        extract(request(folder, tmp_path / "out", limits=type(limits)(min_size=9000)))
    assert not list(tmp_path.iterdir())


def test_something_else_in_the_way_is_left_alone(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / ".out.extract").symlink_to("mine")
    with pytest.raises(SwapfastError, match="is in the way, and no folder of an unfinished run"):
        extract(request(folder, tmp_path / "out", overwrite=True))
    (tmp_path / ".out.extract").unlink()
    (tmp_path / "mine").rename(tmp_path / ".out.extract")
    with pytest.raises(SwapfastError, match="is in the way, and no folder of an unfinished run"):
        extract(request(folder, tmp_path / "out", overwrite=True))
    assert (tmp_path / ".out.extract" / "thesis.txt").read_text() == "years of work"


# --- the journal ------------------------------------------------------------------------------------------


def answers(people, count: int) -> list[FrameFindings | None]:
    """Answers of no, one and two faces, and that a face is lost."""
    faces = []
    for number in range(count):
        landmarks = (people[0].landmarks + number / 8).astype(np.float32).astype(np.float64)
        from swapfast.faces.alignment import align

        faces.append(FoundPoints(landmarks, align(landmarks), 1 - 1 / (number + 3), np.full((468, 2), number / 3)))
    return [None if n % 4 == 3 else FrameFindings(faces[n : n + n % 4], [str(n)]) for n in range(count)]


def fail() -> None:
    raise AssertionError("it is known already")


def check(journal: Journal, expected: list[FrameFindings | None], meshes_from: int) -> None:
    for frame, truth in enumerate(expected):
        found = journal.answer((0, frame, "find"), fail)
        if truth is None:
            assert found is None
            continue
        assert found.rejected == truth.rejected and len(found.faces) == len(truth.faces)
        for face, known in zip(found.faces, truth.faces, strict=True):
            np.testing.assert_array_equal(face.landmarks, known.landmarks)
            np.testing.assert_array_equal(face.alignment.legacy_matrix, known.alignment.legacy_matrix)
            assert face.confidence == known.confidence
            if frame >= meshes_from:
                np.testing.assert_array_equal(face.state, known.state)


def test_answers_are_known_again(people, tmp_path):
    expected = answers(people, 30)
    journal = Journal(tmp_path, 7)
    for frame, answer in enumerate(expected):
        assert journal.answer((0, frame, "find"), lambda answer=answer: answer) is answer
    journal.close()
    assert [path.name for path in sorted(tmp_path.glob("meshes-*"))] == ["meshes-000003.bin", "meshes-000004.bin"]
    again = Journal(tmp_path, 7)
    check(again, expected, 21)
    assert again.recalled == 30
    assert again.answer((0, 30, "find"), lambda: expected[1]) is expected[1]
    again.close()
    check(Journal(tmp_path, 7), [*expected, expected[1]], 21)


@pytest.mark.parametrize("cut", ["answer", "mesh", "middle", "noise"])
def test_a_torn_journal_ends_before_the_tear(people, tmp_path, cut):
    expected = answers(people, 30)
    journal = Journal(tmp_path, 7)
    for frame, answer in enumerate(expected):
        journal.answer((0, frame, "find"), lambda answer=answer: answer)
    journal.close()
    last, meshes, middle = (
        tmp_path / name for name in ("answers-000004.jsonl", "meshes-000004.bin", "answers-000001.jsonl")
    )
    known = 29
    if cut == "answer":
        os.truncate(last, last.stat().st_size - 5)
    elif cut == "mesh":
        os.truncate(meshes, meshes.stat().st_size - 5)
    else:
        lines = middle.read_bytes().splitlines(keepends=True)
        lines[2] = lines[2][:40] if cut == "middle" else bytes(len(lines[2]) - 1) + b"\n"
        middle.write_bytes(b"".join(lines))
        known = 9
    torn = Journal(tmp_path, 7)
    check(torn, expected[:known], 28)
    for frame in range(known, 30):
        assert torn.answer((0, frame, "find"), lambda frame=frame: expected[frame]) is expected[frame]
    torn.close()
    check(Journal(tmp_path, 7), expected, 21)
