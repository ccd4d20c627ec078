"""`swapfast extract`: frames in, aligned faces, their landmarks and their tracks out.

    OUT/NAME_INDEX.png           faces; with folders of tracks or people in track_003/ or person_0/
    OUT/landmarks.jsonl          every face that was found, for `swap --landmarks`; see docs/swap.md
    OUT/tracks/track_003.jpg     a contact sheet of each track
    OUT/extract.json             the report: settings, counts, tracks
OUT appears when it is complete, or when the run is stopped, with what was found by then. Until then all is in the
hidden folder .OUT.extract beside it, from which the same request goes on after a kill, a full disk or a stop:
    faces/                       what becomes OUT; each file appears when it is whole
    answers-, meshes-...         what the networks have said so far, see journal.py
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from swapfast.extract.footage import Footage, FrameChoice, PictureFootage, VideoFootage, footage_digest, open_footage
from swapfast.extract.journal import Journal, RememberedBackend
from swapfast.extract.people import TrackRecord, draw_sheet, group_people
from swapfast.files import TEMPORARY, cannot_write, real_path, temporary_name
from swapfast.swap.frames import Frame
from swapfast.swap.landmark_file import header_line, landmark_line
from swapfast.swap.run import one_opencv_thread
from swapfast.swap.stages import Stopwatch
from swapfast.system import available_cores
from swapfast.threads import ThreadPool
from swapfast.work_folder import WorkFolder, work_path

LANDMARKS, REPORT, SHEETS = "landmarks.jsonl", "extract.json", "tracks"
WORK, _FACES, _FORMER = "extract", "faces", "former"  # the hidden folder's kind, and folders within it
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
FOLDERS = ("none", "track", "person")
DUPLICATE_EDGE, _MOST_COMPARED = 32, 2000  # px of the crops that are compared; the latest faces of a track
_MOST_NAMED = 20  # tracks of a message
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
    """What to extract.

    make_backend    called once a thread that looks for faces
    backend         what decides over its answers, for telling whether an unfinished run goes on
    """

    inputs: tuple[Path, ...]
    out: Path
    make_backend: Callable[[], LandmarkBackend]
    backend: Mapping[str, Any] = field(default_factory=dict)
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
    work = open_work(out, request, footage)
    try:
        with one_opencv_thread():
            run = _Run(request, footage, work, progress, is_stopped)
            report = run.carry_out()
        report["seconds"] = round(time.perf_counter() - start, 2)
        report["frames_per_s"] = round(report["frames"] / max(report["seconds"], 1e-3), 1)
        (work.path / _FACES / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        _put_in_place(work.path, out)
        if not report["is_stopped"]:
            work.remove()
    except OSError as error:
        raise cannot_write(out, error) from error
    except SwapfastError as error:
        if not isinstance(error.__cause__, OSError):  # nothing comes of this request, however often it is made
            work.remove()
        raise
    finally:
        work.close()
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
    if not request.overwrite and not _was_stopped(out):
        count = sum(name.endswith(".png") for name in names)
        raise SwapfastError(
            f"{flag}: holds {count} faces of another run; give a new folder, or --overwrite to replace them"
        )


def _was_stopped(out: Path) -> bool:
    """Return whether a folder is what a stopped run had found, so that the run may go on in it."""
    try:
        report = json.loads((out / REPORT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    is_unfinished = isinstance(report, dict) and report.get("is_stopped") is True and "is_collected" not in report
    return is_unfinished and work_path(out, WORK).is_dir()


def open_work(out: Path, request: ExtractRequest, footage: Sequence[Footage]) -> WorkFolder:
    """Return the hidden folder of the unfinished run, with the faces of an earlier part of the same request.

    Raises SwapfastError where the unfinished run is another one, unless that may be overwritten.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SwapfastError(
            f"-o/--out {request.out}: cannot be made ({error.strerror or error}); give another folder"
        ) from error
    work = WorkFolder(out, WORK, fingerprint(request, footage), "-o/--out")
    try:
        faces, has_output = work.path / _FACES, out.is_dir() and any(out.iterdir())
        if not work.goes_on:
            if not request.overwrite and not work.is_new:
                differing = ", ".join(work.differing()) or "its request"
                held = f"holds {_count_faces(out)} faces of" if has_output else "there is"
                raise SwapfastError(
                    f"-o/--out {request.out}: {held} an unfinished run of another request ({differing} differs); make "
                    "the same request to go on, give a new folder, or --overwrite to begin anew"
                )
            work.begin_anew()
        elif has_output and _was_stopped(out):
            if not faces.exists():
                out.rename(faces)
        elif has_output and not request.overwrite:
            raise SwapfastError(
                f"-o/--out {request.out}: holds faces of another run; give a new folder, or --overwrite"
            )
        faces.mkdir(exist_ok=True)
        _remove_summaries(faces)
    except OSError as error:
        work.close()
        raise cannot_write(out, error) from error
    except SwapfastError:
        work.close()
        raise
    return work


def fingerprint(request: ExtractRequest, footage: Sequence[Footage]) -> dict[str, Any]:
    """Return what decides over the faces and tracks: an unfinished run goes on only where all of it is the same."""
    ranges = request.choice.ranges
    return {
        "inputs": [footage_digest(part) for part in footage],
        "frames": [request.choice.every, None if ranges is None else str(ranges)],
        "limits": asdict(request.limits),
        "format": asdict(request.format),
        "backend": dict(request.backend),
        "sequence": request.is_sequence,
        "interval": request.interval,
        "folders": request.folders,
        "faces": request.writes_faces,
    }


def _count_faces(folder: Path) -> int:
    return sum(path.suffix == ".png" for path in folder.rglob("*"))


def _remove_summaries(faces: Path) -> None:
    """Remove what speaks of all faces, which are not all there yet, and folders of people, who may become others."""
    for name in (LANDMARKS, REPORT):
        (faces / name).unlink(missing_ok=True)
    for folder in [faces / SHEETS, *faces.glob("person_*")]:
        if folder.is_dir():
            shutil.rmtree(folder)


def _put_in_place(work: Path, out: Path) -> None:
    """Give the finished folder its name; a former run's is removed once the new one has its place."""
    former, faces = work / _FORMER, work / _FACES
    shutil.rmtree(former, ignore_errors=True)
    if out.is_dir():
        if any(out.iterdir()):
            out.rename(former)
        else:
            out.rmdir()
    try:
        faces.rename(out)
    except OSError:
        if former.is_dir():
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
        work: WorkFolder,
        progress: Progress | None,
        is_stopped: Callable[[], bool],
    ) -> None:
        self._request, self._footage, self._folder = request, footage, work.path / _FACES
        self._journal = Journal(work.path)
        self._is_kept: set[Path] = set()  # files of this run
        self._progress, self._is_stopped = progress, is_stopped
        self._workers = request.workers or available_cores()
        self._clock = Stopwatch()
        self._local = threading.local()
        self._lines: list[str] = []
        self._records: dict[int, TrackRecord] = {}
        self._rejected: Counter[str] = Counter()
        self._compared: dict[int | None, deque[np.ndarray]] = {}
        self._pending: deque[_Pending] = deque()
        self._frames = self._frames_with_faces = self._found = self._filled = self._written = self._there_before = 0
        self._next_track = 0
        self._tracks_seen: set[int] = set()
        self._was_stopped = False

    def carry_out(self) -> dict[str, Any]:
        """Do it all; return the report."""
        expected = sum(part.expected for part in self._footage)
        with ThreadPool(self._workers, "extract") as pool:
            for number, part in enumerate(self._footage):
                for followed in self._followed(number, part, pool):
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
        self._journal.close()
        if self._progress is not None:
            self._progress(expected, expected)
        self._check_found()
        self._remove_others()
        group_people(self._records)
        self._write_descriptions()
        return self._report()

    def _backend(self) -> LandmarkBackend:
        """Return this thread's backend."""
        if not hasattr(self._local, "backend"):
            self._local.backend = _Timed(self._request.make_backend(), self._clock)
        return self._local.backend

    def _remembered(self, number: int) -> LandmarkBackend:
        """Return this thread's backend, whose answers of a footage are kept where it takes its time over them."""
        backend = self._backend()
        return RememberedBackend(backend, self._journal, number) if backend.can_follow else backend

    def _followed(self, number: int, part: Footage, pool: ThreadPool) -> Iterator[FollowedFrame]:
        """Yield the frames of a footage with their faces."""
        ahead = self._workers + 1
        if not part.is_sequence:
            assert isinstance(part, PictureFootage)
            for followed in part.map(lambda frame: self._find(number, frame), pool, ahead, self._clock):
                if followed is not None:
                    yield followed
            return
        step = self._request.choice.every
        follower = Follower(self._remembered(number), self._request.interval, step, self._next_track)
        yield from follower.follow(part.frames(pool, ahead, self._clock))
        self._next_track = follower.next_track

    def _find(self, number: int, frame: Frame) -> FollowedFrame:
        """Return a picture with its faces, largest first."""
        findings = self._remembered(number).find(frame)
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
        pairs = self._within_limits(faces, edges)
        self._frames_with_faces += bool(pairs)
        for index, face in pairs:
            self._found += 1
            self._filled += face.is_filled
            self._lines.append(self._line(part, frame, index, face))
            record = self._record(part, frame, face, edges[index])
            if self._request.writes_faces and self._is_worth_a_file(frame, face):
                path = self._path_of(frame, index, record)
                self._is_kept.add(path)
                if _is_whole(path):
                    self._there_before += 1
                    self._count_written(record)
                    continue
                task = pool.submit(self._write, part, frame, index, face, path)
                self._pending.append(_Pending(task, record))
        self._write_pending(4 * self._workers)

    def _within_limits(
        self, faces: list[tuple[int, TrackedFace]], edges: dict[int, float]
    ) -> list[tuple[int, TrackedFace]]:
        limits = self._request.limits
        kept = [pair for pair in faces if edges[pair[0]] >= limits.min_size]
        self._rejected[TOO_SMALL] += len(faces) - len(kept)
        if limits.tracks:
            self._tracks_seen |= {face.track for _, face in kept if face.track is not None}
            pairs = [pair for pair in kept if pair[1].track in limits.tracks]
            self._rejected[OTHER_TRACK] += len(kept) - len(pairs)
            kept = pairs
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

    def _path_of(self, frame: Frame, index: int, record: TrackRecord | None) -> Path:
        """Return where a face's file belongs; its folder is made."""
        folder = self._folder
        if self._request.folders != "none" and record is not None:
            folder = folder / track_folder(record.number)
            folder.mkdir(exist_ok=True)
        return folder / face_name(frame, index)

    def _write(self, part: Footage, frame: Frame, index: int, face: TrackedFace, path: Path) -> None:
        """Cut a face and write its file; a thread of the pool does it. The file appears when it is whole."""
        with self._clock("crop"):
            crop = cut_face(frame, face.points, self._request.format)
        with self._clock("png"):
            png, description = encode_face(frame, face.points, index, crop, self._request.format, part.is_video)
        with self._clock("write"):
            if description is not None:
                _write_whole(path.with_suffix(".json"), description)
            _write_whole(path, png)

    def _write_pending(self, most: int) -> None:
        """Wait until at most ``most`` files are being made."""
        while len(self._pending) > most:
            pending = self._pending.popleft()
            pending.future.result()
            self._count_written(pending.record)

    def _count_written(self, record: TrackRecord | None) -> None:
        self._written += 1
        if record is not None:
            record.written += 1

    def _remove_others(self) -> None:
        """Remove what an earlier part of the run wrote and this one, stopped before, did not come to."""
        if self._was_stopped or self._there_before:
            for path in [*self._folder.glob("*.png"), *self._folder.glob("*/*.png")]:
                if path not in self._is_kept:
                    path.unlink()
                    path.with_suffix(".json").unlink(missing_ok=True)
        for path in self._folder.rglob(f"{TEMPORARY}*"):
            path.unlink()

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
        if not self._found and self._rejected[OTHER_TRACK]:
            raise SwapfastError(self._missing_tracks() or f"{names}: no face of these tracks is left{left_out}")
        if not self._found:
            raise SwapfastError(
                f"{names}: no face was found in {self._frames} frames{left_out}; look at them, or loosen the limits",
                EXIT_FAILED,
            )
        if self._request.writes_faces and not self._written:
            raise SwapfastError(f"{names}: none of {self._found} faces is written{left_out}; loosen the limits")

    def _missing_tracks(self) -> str:
        """Return what to say where tracks are asked for that there are not, nothing otherwise."""
        missing = sorted(set(self._request.limits.tracks) - self._tracks_seen)
        if not missing or self._was_stopped:
            return ""
        numbers = sorted(self._tracks_seen)
        way_out = f"the tracks are {', '.join(map(str, numbers[:_MOST_NAMED]))}{' ...' * (len(numbers) > _MOST_NAMED)}"
        if not numbers:
            way_out = "these pictures have no tracks; give --sequence where they are frames of a film"
        return f"--tracks {', '.join(map(str, missing))}: there is no such track; {way_out}"

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

    def _notes(self) -> Iterator[str]:
        for part in self._footage:
            yield from part.notes()
        if self._request.limits.tracks and self._missing_tracks():
            yield self._missing_tracks()

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
            "written_before": self._there_before,
            "left_out": self._reasons(),
            "people": len({track["person"] for track in tracks}),
            "tracks": tracks,
            "settings": {"format": asdict(request.format), "limits": asdict(request.limits)},
            "seconds_by_stage": {stage: round(s, 3) for stage, s in sorted(self._clock.seconds.items())},
            # Of a video that was not read to its end there is nothing to say.
            "notes": [] if self._was_stopped else [*self._notes()],
        }


def _is_whole(path: Path) -> bool:
    """Return whether a face's file is there, to its end."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears when it is whole. It is not flushed: what a power cut takes is made again."""
    temporary = temporary_name(path)
    temporary.write_bytes(content)
    temporary.replace(path)


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
    lines = []
    if report["written_before"]:
        lines.append(f"went on: {report['written_before']} faces were there from an earlier start")
    lines.append(
        f"{report['faces']} faces in {report['frames_with_faces']} of {report['frames']} frames, {report['written']} "
        f"written to {out} ({report['frames_per_s']:g} frames/s)"
    )
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
