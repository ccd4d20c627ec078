"""What the networks have answered so far, so that a run which was killed need not ask them again.

    answers-000003.jsonl   one answer a line, as they came
    meshes-000003.bin      the meshes of those answers, float64: a face is followed from the mesh of the frame before
A part ends after some answers. Meshes of all parts but the last two are removed: nobody goes back so far. So the files
are no larger than landmarks.jsonl and some 30 MB.

A run that goes on does all again but what takes the time: it reads the frames, takes the answers from here, in the same
order, and makes the faces that are missing. So it ends in the same tracks and files as one that was never killed.
"""

from __future__ import annotations

import base64
import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swapfast.extract.backends import FoundPoints, FrameFindings, LandmarkBackend
from swapfast.extract.landmark_map import MESH_POINTS
from swapfast.faces.alignment import align
from swapfast.files import open_plain, write_all
from swapfast.swap.frames import Frame

PART_ANSWERS = 2000  # of a part at least; more where faces are looked for more rarely than that
_LONGEST_LINE, _MOST_BYTES = 16 << 20, 1 << 29  # of an answer, of a part
_MESH_BYTES = MESH_POINTS * 2 * 8
_FIND, _FOLLOW = "find", "follow"
Key = tuple[int, int, str]  # footage, frame, kind of question


class Journal:
    """Answers of the networks in a folder. Threads may use it side by side.

    The answers of an earlier run are read part by part as they are asked for. Whatever is torn ends them.
    """

    def __init__(self, folder: Path, part_answers: int | None = None) -> None:
        self._folder, self._part_answers = folder, part_answers or PART_ANSWERS
        self._known: dict[Key, deque[FrameFindings | None]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._part = self._in_part = 0
        self._is_read = False
        self._answers: BinaryIO | None = None
        self._meshes: BinaryIO | None = None
        self.recalled = 0

    def answer(self, key: Key, ask: Callable[[], FrameFindings | None]) -> FrameFindings | None:
        """Return what is known, or ask and remember the answer."""
        with self._lock:
            while not self._known.get(key) and not self._is_read:
                self._read_part()
            kept_answer = self._known.get(key)
            if kept_answer:
                answer = kept_answer.popleft()
                if not kept_answer:
                    del self._known[key]
                self.recalled += 1
                return answer
        answer = ask()
        with self._lock:
            self._write(key, answer)
        return answer

    def close(self) -> None:
        """Close the files."""
        for file in (self._answers, self._meshes):
            if file is not None:
                file.close()
        self._answers = self._meshes = None

    # --- reading ------------------------------------------------------------------------------------------

    def _paths(self, part: int) -> tuple[Path, Path]:
        return self._folder / f"answers-{part:06d}.jsonl", self._folder / f"meshes-{part:06d}.bin"

    def _read_part(self) -> None:
        """Read the next part; behind the last one go on writing where it ends."""
        path, meshes = self._paths(self._part)
        lines = meshes_read = length = 0
        data, states = _read(path) or b"", _read(meshes)
        is_last = not self._paths(self._part + 1)[0].is_file()
        for line in data.splitlines(keepends=True):
            entry = _parsed(line, states, meshes_read)
            if entry is None:
                is_last = True
                break
            key, answer, count = entry
            self._known[key].append(answer)
            lines, length, meshes_read = lines + 1, length + len(line), meshes_read + count
        if not is_last:
            self._part += 1
            return
        self._is_read = True
        self._cut(length, meshes_read * _MESH_BYTES)
        # A part whose meshes are removed is not written on: theirs would take the place of the first ones.
        self._in_part = self._part_answers if states is None and meshes_read else lines

    def _cut(self, length: int, mesh_length: int) -> None:
        """Remove what follows the last whole answer."""
        for path, size in zip(self._paths(self._part), (length, mesh_length), strict=True):
            if path.is_file():
                with open_plain(path, "rb+") as file:
                    file.truncate(size)
        later = self._part + 1
        while self._paths(later)[0].is_file():
            for path in self._paths(later):
                path.unlink(missing_ok=True)
            later += 1

    # --- writing ------------------------------------------------------------------------------------------

    def _write(self, key: Key, answer: FrameFindings | None) -> None:
        if self._answers is None or self._in_part >= self._part_answers:
            self._open_part()
        assert self._answers is not None and self._meshes is not None
        faces = [] if answer is None else answer.faces
        states = [np.ascontiguousarray(face.state, np.float64).tobytes() for face in faces if face.state is not None]
        if states:  # before the line that speaks of them
            write_all(self._meshes, b"".join(states))
        rejected = None if answer is None else answer.rejected
        table = {"at": list(key), "faces": [_to_table(face) for face in faces], "rejected": rejected}
        write_all(self._answers, (json.dumps(table) + "\n").encode())
        self._in_part += 1

    def _open_part(self) -> None:
        if self._in_part >= self._part_answers:
            self._part, self._in_part = self._part + 1, 0
        self.close()
        answers, meshes = self._paths(self._part)
        self._answers, self._meshes = open_plain(answers, "ab"), open_plain(meshes, "ab")
        if self._part >= 2:
            self._paths(self._part - 2)[1].unlink(missing_ok=True)


def _read(path: Path) -> bytes | None:
    try:
        with open_plain(path) as file:
            return file.read(_MOST_BYTES)
    except OSError:
        return None


def _to_table(face: FoundPoints) -> dict[str, Any]:
    landmarks = base64.b64encode(face.landmarks.astype("<f4").tobytes()).decode()  # which they are exactly
    return {"landmarks": landmarks, "confidence": face.confidence, "mesh": face.state is not None}


def _parsed(line: bytes, states: bytes | None, first: int) -> tuple[Key, FrameFindings | None, int] | None:
    """Return an answer's key, the answer and how many meshes it has; None where the line is torn.

    states: the meshes of its part, None where they are removed. first: number of the answer's first one.
    """
    if not line.endswith(b"\n") or len(line) > _LONGEST_LINE:
        return None
    try:
        table = json.loads(line)
        footage, frame, kind = table["at"]
        faces, count = [], 0
        for entry in table["faces"]:
            state = None
            if entry["mesh"] is True:
                if states is not None:
                    begin = (first + count) * _MESH_BYTES
                    state = (
                        np.frombuffer(states[begin : begin + _MESH_BYTES], np.float64).reshape(MESH_POINTS, 2).copy()
                    )
                count += 1
            landmarks = np.frombuffer(base64.b64decode(entry["landmarks"]), "<f4").reshape(68, 2).astype(np.float64)
            faces.append(FoundPoints(landmarks, align(landmarks), float(entry["confidence"]), state))
        rejected = table["rejected"]
        answer = None if rejected is None else FrameFindings(faces, [str(reason) for reason in rejected])
        return (int(footage), int(frame), str(kind)), answer, count
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class RememberedBackend:
    """A backend whose answers are kept in a journal. footage: number of the one whose frames it sees."""

    def __init__(self, backend: LandmarkBackend, journal: Journal, footage: int) -> None:
        self._backend, self._journal, self._footage = backend, journal, footage
        self.can_follow = backend.can_follow

    def find(self, frame: Frame, is_thorough: bool = True) -> FrameFindings:
        """Return the faces of a frame."""
        key = (self._footage, frame.index, _FIND)
        answer = self._journal.answer(key, lambda: self._backend.find(frame, is_thorough))
        assert answer is not None
        return answer

    def follow(self, frame: Frame, face: FoundPoints) -> FoundPoints | None:
        """Return where a face of a neighbouring frame is in this one, None where it is lost."""

        def ask() -> FrameFindings | None:
            # Without its mesh, which a damaged journal may lack, a face is lost and found anew.
            points = None if face.state is None else self._backend.follow(frame, face)
            return None if points is None else FrameFindings([points])

        answer = self._journal.answer((self._footage, frame.index, _FOLLOW), ask)
        return None if answer is None else answer.faces[0]
