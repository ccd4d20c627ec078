"""Extracts by a backend that is made of known points, and kills its own process at a chosen question.

    python -m tests.extract.killed FOLDER OUT QUESTION

FOLDER has the pictures of a film and points.jsonl. What a face is followed to depends on the mesh before, as with the
real networks, so a mesh that is lost or mixed up shows in the landmarks.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

from swapfast.extract import journal
from swapfast.extract.backends import AcceptanceLimits, FoundPoints, FrameFindings, JsonBackend, accepted
from swapfast.extract.face_file import FaceFormat
from swapfast.extract.landmark_map import MESH_POINTS
from swapfast.extract.run import ExtractRequest, FaceLimits
from swapfast.swap.frames import Frame
from swapfast.swap.landmark_file import read_landmark_file
from swapfast.swap.tracks import overlaps

PART = 24  # answers of a part of the journal


class ChainedBackend:
    """Known points, moved by an amount that goes from mesh to mesh. kill_at: the question that ends the process."""

    can_follow = True

    def __init__(self, points: Path, kill_at: int | None = None) -> None:
        self._known = JsonBackend(read_landmark_file(points).faces)
        self._kill_at, self.questions = kill_at, 0

    def _count(self) -> None:
        self.questions += 1
        if self.questions == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def find(self, frame: Frame, is_thorough: bool = True) -> FrameFindings:
        self._count()
        faces = self._known.find(frame).faces
        return FrameFindings([self._moved(frame, face, np.zeros((MESH_POINTS, 2))) for face in faces], ["odd"])

    def follow(self, frame: Frame, face: FoundPoints) -> FoundPoints | None:
        self._count()
        for found in self._known.find(frame).faces:
            if overlaps(face.box[None], found.box[None])[0, 0] > 0.5:
                return self._moved(frame, found, (face.state + 1.0) % 7)
        return None

    def _moved(self, frame: Frame, face: FoundPoints, state: np.ndarray) -> FoundPoints:
        moved = accepted(frame, face.landmarks + 0.1 * state.mean(), AcceptanceLimits(), 0.9996, state)
        assert isinstance(moved, FoundPoints)
        return moved


def request(folder: Path, out: Path, kill_at: int | None = None, **changes: object) -> ExtractRequest:
    """Return the request of one worker, so that questions come one after the other."""
    journal.PART_ANSWERS = PART
    settings = {
        "inputs": (folder / "shots",),
        "out": out,
        "make_backend": lambda: ChainedBackend(folder / "points.jsonl", kill_at),
        "limits": FaceLimits(duplicates=0.2),
        "format": FaceFormat(64),
        "is_sequence": True,
        "folders": "person",
        "workers": 2,
    }
    return ExtractRequest(**(settings | changes))


def main() -> None:
    """Extract, until the process is killed."""
    from swapfast.extract.run import extract

    folder, out, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    extract(request(folder, out, kill_at, is_sequence=len(sys.argv) < 5))


if __name__ == "__main__":
    main()
