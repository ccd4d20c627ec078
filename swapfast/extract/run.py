"""`swapfast extract`: frames in, aligned faces, their landmarks and their tracks out.

    OUT/NAME_INDEX.png           faces; with folders of tracks or people in track_003/ or person_0/
    OUT/landmarks.jsonl          every face that was found, for `swap --landmarks`; see docs/swap.md
    OUT/tracks/track_003.jpg     a contact sheet of each track
    OUT/extract.json             the report: settings, counts, tracks
OUT appears when it is complete, or when the run is stopped, with what was found by then.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from swapfast.bars import Progress
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.extract.backends import FoundPoints, LandmarkBackend
from swapfast.extract.face_file import (
    FaceFormat,
    crop_edge,
    cut_face,
    encode_face,
    face_name,
    sharpness,
    thumbnail,
)
from swapfast.extract.follow import INTERVAL, FollowedFrame, Follower, TrackedFace
from swapfast.extract.footage import Footage, FrameChoice, PictureFootage, VideoFootage, open_footage
from swapfast.extract.people import TrackRecord, draw_sheet, group_people
from swapfast.files import cannot_write, real_path
from swapfast.swap.frames import Frame
from swapfast.swap.landmark_file import header_line, landmark_line
from swapfast.swap.run import one_opencv_thread
from swapfast.swap.stages import Stopwatch
from swapfast.synthetic.dataset import put_folder_in_place, unfinished_folder
from swapfast.system import available_cores
from swapfast.threads import ThreadPool

LANDMARKS, REPORT, SHEETS = "landmarks.jsonl", "extract.json", "tracks"
FOLDERS = ("none", "track", "person")
DUPLICATE_EDGE, _MOST_COMPARED = 32, 2000  # px of the crops that are compared; the latest faces of a track
_SHEET_EDGE = 112  # px of a face of a contact sheet
TOO_SMALL, TOO_MANY, OTHER_TRACK = "smaller than --min-size", "more than --max-faces", "another track"
BLURRED, DUPLICATE = "less sharp than --blur-limit", "near-duplicates of others"


@dataclass(frozen=True)
class FaceLimits:
    """Which faces are taken.

    min_size        px of the face's crop in the frame, 0 for all
    max_faces       of a frame, the largest ones, 0 for all
    blur            least sharpness, see ``sharpness``; what is less sharp is not written
    duplicates      least mean difference from the faces of the same track, levels of 255; what is nearer is not written
    tracks          numbers of tracks, all where empty
    """

    min_size: float = 0.0
    max_faces: int = 0
    blur: float = 0.0
    duplicates: float = 0.0
    tracks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for flag, value in (("--min-size", self.min_size), ("--blur-limit", self.blur)):
            if not 0 <= value < 1e6:
                raise SwapfastError(f"{flag} {value:g}: give 0 (no limit) or more")
        if not 0 <= self.duplicates < 255:
            raise SwapfastError(f"--duplicates {self.duplicates:g}: give 0 (no limit) to 254 levels")


@dataclass(frozen=True)
class ExtractRequest:
    """What to extract. make_backend: called once a thread that looks for faces."""

    inputs: tuple[Path, ...]
    out: Path
    make_backend: Callable[[], LandmarkBackend]
    choice: FrameChoice = field(default_factory=FrameChoice)
    limits: FaceLimits = field(default_factory=FaceLimits)
    format: FaceFormat = field(default_factory=FaceFormat)
    is_sequence: bool = False
    interval: int = INTERVAL
    folders: str = "none"
    writes_faces: bool = True
    overwrite: bool = False
    workers: int | None = None


def extract(
    request: ExtractRequest, progress: Progress | None = None, is_stopped: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Extract faces into the folder ``request.out``; return the report.

    is_stopped: asked after each frame; once it says so, what was found by then is kept. Raises SwapfastError where the
    request is wrong, where no face is found, and where the folder cannot be written.
    """
    footage = open_footage(request.inputs, request.choice, request.is_sequence)
    out = real_path(request.out)
    check_output(out, request)
    start = time.perf_counter()
    with one_opencv_thread(), unfinished_folder(out) as folder:
        (folder / "a").rmdir()  # of drawn data sets
        run = _Run(request, footage, folder, progress, is_stopped)
        try:
            report = run.carry_out()
            report["seconds"] = round(time.perf_counter() - start, 2)
            report["frames_per_s"] = round(report["frames"] / max(report["seconds"], 1e-3), 1)
            (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
            _put_in_place(folder, out)
        except OSError as error:
            raise cannot_write(out, error) from error
    return report


# --- the folder -------------------------------------------------------------------------------------------


def check_output(out: Path, request: ExtractRequest) -> None:
    """Raise SwapfastError where the faces cannot be written to ``out``."""
    flag = f"-o/--out {request.out}"
    if os.path.lexists(out) and not out.is_dir():
        raise SwapfastError(f"{flag}: is a file; give a new folder")
    try:
        names = os.listdir(out) if out.is_dir() else []
    except OSError as error:
        raise SwapfastError(f"{flag}: cannot be read ({error.strerror or error}); give a new folder") from error
    if out.is_dir() and (os.path.ismount(out) or out.samefile(Path.cwd())):
        raise SwapfastError(f"{flag}: is in use and cannot be replaced; give a new folder, such as {out / 'faces'}")
    for path in request.inputs:
        if out in (real_path(path), *real_path(path).parents):
            raise SwapfastError(f"{flag}: holds what is read ({path}); give a new folder")
    if not names:
        return
    if REPORT not in names or LANDMARKS not in names:
        raise SwapfastError(f"{flag}: is not empty, and not a folder that extract made; give a new folder")
    if not request.overwrite:
        count = sum(name.endswith(".png") for name in names)
        raise SwapfastError(
            f"{flag}: holds {count} faces of another run; give a new folder, or --overwrite to replace them"
        )


def _put_in_place(folder: Path, out: Path) -> None:
    """Give the finished folder its name; a former run's is removed once the new one has its place."""
    if not out.is_dir() or not any(out.iterdir()):
        put_folder_in_place(folder, out)
        return
    former = folder.with_name(f"{folder.name}.former")
    out.rename(former)
    try:
        put_folder_in_place(folder, out)
    except OSError:
        former.rename(out)
        raise
    shutil.rmtree(former, ignore_errors=True)


# --- the run ----------------------------------------------------------------------------------------------


@dataclass
class _Pending:
    """A face whose file a thread makes."""

    future: Future
    record: TrackRecord | None


class _Run:
    """One run: frames through the backend, faces through the limits, files through the threads."""

    def __init__(
        self,
        request: ExtractRequest,
        footage: Sequence[Footage],
        folder: Path,
        progress: Progress | None,
        is_stopped: Callable[[], bool],
    ) -> None:
        self._request, self._footage, self._folder = request, footage, folder
        self._progress, self._is_stopped = progress, is_stopped
        self._workers = request.workers or available_cores()
        self._clock = Stopwatch()
        self._local = threading.local()
        self._lines: list[str] = []
        self._records: dict[int, TrackRecord] = {}
        self._rejected: Counter[str] = Counter()
        self._compared: dict[int | None, deque[np.ndarray]] = {}
        self._pending: deque[_Pending] = deque()
        self._frames = self._frames_with_faces = self._found = self._filled = self._written = 0
        self._next_track = 0
        self._was_stopped = False

    def carry_out(self) -> dict[str, Any]:
        """Do it all; return the report."""
        expected = sum(part.expected for part in self._footage)
        with ThreadPool(self._workers, "extract") as pool:
            for part in self._footage:
                for followed in self._followed(part, pool):
                    self._take(part, followed, pool)
                    self._frames += 1
                    if self._progress is not None:
                        self._progress(min(self._frames, expected - 1), expected)
                    if self._is_stopped():
                        self._was_stopped = True
                        break
                if self._was_stopped:
                    break
            self._write_pending(0)
        if self._progress is not None:
            self._progress(expected, expected)
        self._check_found()
        group_people(self._records)
        self._write_descriptions()
        return self._report()

    def _backend(self) -> LandmarkBackend:
        """Return this thread's backend."""
        if not hasattr(self._local, "backend"):
            self._local.backend = self._request.make_backend()
        return self._local.backend

    def _followed(self, part: Footage, pool: ThreadPool) -> Iterator[FollowedFrame]:
        """Yield the frames of a footage with their faces."""
        ahead = self._workers + 1
        if not part.is_sequence:
            assert isinstance(part, PictureFootage)
            for followed in part.map(self._find, pool, ahead, self._clock):
                if followed is not None:
                    yield followed
            return
        step = self._request.choice.every
        follower = Follower(self._timed_backend(), self._request.interval, step, self._next_track)
        yield from follower.follow(part.frames(pool, ahead, self._clock))
        self._next_track = follower.next_track

    def _timed_backend(self) -> LandmarkBackend:
        return _Timed(self._backend(), self._clock)

    def _find(self, frame: Frame) -> FollowedFrame:
        """Return a picture with its faces, largest first."""
        with self._clock("find"):
            findings = self._backend().find(frame)
        faces = sorted(findings.faces, key=lambda points: -crop_edge(points))
        return FollowedFrame(frame, [TrackedFace(points, points.track) for points in faces], findings.rejected)

    def _take(self, part: Footage, followed: FollowedFrame, pool: ThreadPool) -> None:
        """Take the faces of a frame that pass the limits."""
        frame = followed.frame
        self._rejected.update(followed.rejected)
        if part.is_sequence:
            followed.faces.sort(key=lambda face: (face.track is None, face.track))
        faces = list(enumerate(followed.faces))
        edges = {index: crop_edge(face.points) for index, face in faces}
        kept = self._within_limits(faces, edges)
        self._frames_with_faces += bool(kept)
        for index, face in kept:
            self._found += 1
            self._filled += face.is_filled
            self._lines.append(self._line(part, frame, index, face))
            record = self._record(part, frame, face, edges[index])
            if self._request.writes_faces and self._is_worth_a_file(frame, face):
                task = pool.submit(self._write, part, frame, index, face, record)
                self._pending.append(_Pending(task, record))
        self._write_pending(4 * self._workers)

    def _within_limits(
        self, faces: list[tuple[int, TrackedFace]], edges: dict[int, float]
    ) -> list[tuple[int, TrackedFace]]:
        limits = self._request.limits
        kept = [pair for pair in faces if edges[pair[0]] >= limits.min_size]
        self._rejected[TOO_SMALL] += len(faces) - len(kept)
        if limits.tracks:
            chosen = [pair for pair in kept if pair[1].track in limits.tracks]
            self._rejected[OTHER_TRACK] += len(kept) - len(chosen)
            kept = chosen
        if limits.max_faces and len(kept) > limits.max_faces:
            largest = sorted(kept, key=lambda pair: -edges[pair[0]])[: limits.max_faces]
            self._rejected[TOO_MANY] += len(kept) - limits.max_faces
            kept = sorted(largest, key=lambda pair: pair[0])
        return kept

    def _line(self, part: Footage, frame: Frame, index: int, face: TrackedFace) -> str:
        details: dict[str, Any] = {"confidence": round(face.points.confidence, 3)}
        if face.is_filled:
            details["filled"] = True
        if len(self._footage) == 1 and part.is_video:
            return landmark_line(face.points.landmarks, frame.index, None, index, face.track, **details)
        return landmark_line(face.points.landmarks, None, frame.name, index, face.track, frame.size, **details)

    def _record(self, part: Footage, frame: Frame, face: TrackedFace, edge: float) -> TrackRecord | None:
        if face.track is None:
            return None
        number = part.number_of(frame.index)
        record = self._records.setdefault(face.track, TrackRecord(face.track, part.path.name, number))
        if record.add(frame.index, number, edge, face.is_filled):
            record.add_picture(thumbnail(frame, face.points, _SHEET_EDGE))
        return record

    def _is_worth_a_file(self, frame: Frame, face: TrackedFace) -> bool:
        """Return whether a face is sharp enough, and unlike those of its track that are written."""
        limits = self._request.limits
        if limits.blur and sharpness(frame, face.points) < limits.blur:
            self._rejected[BLURRED] += 1
            return False
        if not limits.duplicates:
            return True
        small = cv2.cvtColor(thumbnail(frame, face.points, DUPLICATE_EDGE), cv2.COLOR_BGR2GRAY).astype(np.int16)
        others = self._compared.setdefault(face.track, deque(maxlen=_MOST_COMPARED))
        if others and np.abs(np.array(others) - small).mean((1, 2)).min() < limits.duplicates:
            self._rejected[DUPLICATE] += 1
            return False
        others.append(small)
        return True

    def _write(self, part: Footage, frame: Frame, index: int, face: TrackedFace, record: TrackRecord | None) -> None:
        """Cut a face and write its file; a thread of the pool does it."""
        with self._clock("crop"):
            crop = cut_face(frame, face.points, self._request.format)
        with self._clock("png"):
            png, description = encode_face(frame, face.points, index, crop, self._request.format, part.is_video)
        folder = self._folder
        if self._request.folders != "none" and record is not None:
            folder = folder / track_folder(record.number)
            folder.mkdir(exist_ok=True)
        with self._clock("write"):
            path = folder / face_name(frame, index)
            path.write_bytes(png)
            if description is not None:
                path.with_suffix(".json").write_bytes(description)

    def _write_pending(self, most: int) -> None:
        """Wait until at most ``most`` files are being made."""
        while len(self._pending) > most:
            pending = self._pending.popleft()
            pending.future.result()
            self._written += 1
            if pending.record is not None:
                pending.record.written += 1

    # --- the end ------------------------------------------------------------------------------------------

    def _reasons(self) -> dict[str, int]:
        return {reason: count for reason, count in self._rejected.most_common() if count}

    def _check_found(self) -> None:
        names = ", ".join(str(path) for path in self._request.inputs)
        reasons = "; ".join(f"{count} {reason}" for reason, count in self._reasons().items())
        left_out = f" (left out: {reasons})" if reasons else ""
        if not self._frames:
            notes = [note for part in self._footage for note in part.notes()]
            raise SwapfastError(f"{names}: no frame can be read{': ' + notes[0] if notes else ''}", EXIT_FAILED)
        if not self._found:
            raise SwapfastError(
                f"{names}: no face was found in {self._frames} frames{left_out}; look at them, or loosen the limits",
                EXIT_FAILED,
            )
        if self._request.writes_faces and not self._written:
            raise SwapfastError(f"{names}: none of {self._found} faces is written{left_out}; loosen the limits")

    def _write_descriptions(self) -> None:
        (self._folder / LANDMARKS).write_text("\n".join([self._header(), *self._lines]) + "\n")
        if not self._records:
            return
        (self._folder / SHEETS).mkdir()
        for record in self._records.values():
            (self._folder / SHEETS / f"{track_folder(record.number)}.jpg").write_bytes(draw_sheet(record))
        if self._request.folders == "person":
            self._gather_people()

    def _header(self) -> str:
        first = self._footage[0]
        if len(self._footage) > 1 or not isinstance(first, VideoFootage):
            return header_line(", ".join(part.path.name for part in self._footage))
        is_whole = not self._was_stopped
        return header_line(first.path.name, first.frames_read if is_whole else None, first.size)

    def _gather_people(self) -> None:
        """Put the folders of a person's tracks together."""
        for record in self._records.values():
            source = self._folder / track_folder(record.number)
            if source.is_dir():
                target = self._folder / f"person_{record.person}"
                target.mkdir(exist_ok=True)
                for path in source.iterdir():
                    path.rename(target / path.name)
                source.rmdir()

    def _report(self) -> dict[str, Any]:
        request = self._request
        tracks = [record.to_dict() for _, record in sorted(self._records.items())]
        return {
            "inputs": [str(path) for path in request.inputs],
            "is_stopped": self._was_stopped,
            "frames": self._frames,
            "frames_with_faces": self._frames_with_faces,
            "faces": self._found,
            "filled": self._filled,
            "written": self._written,
            "left_out": self._reasons(),
            "people": len({track["person"] for track in tracks}),
            "tracks": tracks,
            "settings": {"format": asdict(request.format), "limits": asdict(request.limits)},
            "seconds_by_stage": {stage: round(s, 3) for stage, s in sorted(self._clock.seconds.items())},
            # Of a video that was not read to its end there is nothing to say.
            "notes": [] if self._was_stopped else [note for part in self._footage for note in part.notes()],
        }


class _Timed:
    """A backend whose time is taken."""

    def __init__(self, backend: LandmarkBackend, clock: Stopwatch) -> None:
        self._backend, self._clock, self.can_follow = backend, clock, backend.can_follow

    def find(self, frame: Frame, is_thorough: bool = True) -> Any:
        with self._clock("find"):
            return self._backend.find(frame, is_thorough)

    def follow(self, frame: Frame, face: FoundPoints) -> FoundPoints | None:
        with self._clock("follow"):
            return self._backend.follow(frame, face)


def track_folder(number: int) -> str:
    """Return the name of a track's folder and of its sheet, without its ending."""
    return f"track_{number:03d}"


def describe(report: dict[str, Any], out: Path) -> list[str]:
    """Return the lines that tell a person what came of it."""
    lines = [
        f"{report['faces']} faces in {report['frames_with_faces']} of {report['frames']} frames, {report['written']} "
        f"written to {out} ({report['frames_per_s']:g} frames/s)"
    ]
    if report["filled"]:
        lines.append(f"{report['filled']} of them lie in gaps of fewer than five frames and are interpolated")
    if report["left_out"]:
        lines.append("left out: " + "; ".join(f"{count} {reason}" for reason, count in report["left_out"].items()))
    if len(report["tracks"]) > 1:
        lines.append(
            f"{len(report['tracks'])} tracks, by looks of {report['people']} people: see {out / SHEETS}, and choose by "
            "--tracks 0,3"
        )
    return lines
