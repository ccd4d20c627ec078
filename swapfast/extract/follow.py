"""Follows faces from frame to frame: tracks, faces that come in, and gaps.

Faces are looked for in every ``interval``-th frame, where one is lost and where none is known; else a face is sought
where it was in the frame before, which takes a fifth of the time. A face that is found between two looks is followed
back to the frame in which it appeared. Where a track is taken up again after fewer than five frames, the frames between
are followed backwards, and what is still missing is interpolated and counted.

A track is one person's. Where another face takes its place from one frame to the next, by a cut that leaves the rest
of the picture nearly as it was, or as two people cross, a face looks suddenly different, and then remains so: another
track begins. A hand that passes in front changes it in several frames one after the other, and the track goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from swapfast.extract.backends import FoundPoints, LandmarkBackend, interpolated, is_among
from swapfast.extract.face_file import thumbnail
from swapfast.extract.people import signature
from swapfast.swap.frames import Frame
from swapfast.swap.tracks import LEAST_OVERLAP, LONGEST_GAP, overlaps
from swapfast.video.cuts import LEAST, SIZE, TIMES

INTERVAL = 10  # frames between two looks for faces
# How much a face looks different from one frame to the next, Lab, where another one has taken its place. Drawn people
# who talk and turn change by 1, at most 2.4, and by 8 in five frames; 105 pairs of people in photographs differ by 6
# to 23.
ANOTHER, ANOTHER_MORE = 5.0, 1.0  # and for each frame that lies between
_LOOK_EDGE = 48  # px of the crops that are compared
_THOROUGH_EVERY = 10  # looks without a face from one thorough look to the next
_THOROUGH_BESIDE = 3  # looks beside known faces from one thorough look, for small ones, to the next


@dataclass(eq=False)
class TrackedFace:
    """A face of a frame. is_filled: between two frames in which it was found."""

    points: FoundPoints
    track: int | None = None
    is_filled: bool = False


@dataclass(eq=False)
class FollowedFrame:
    """A frame and its faces. rejected: why others were left out."""

    frame: Frame
    faces: list[TrackedFace] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)


@dataclass(eq=False)
class _Track:
    number: int
    points: FoundPoints
    last: int  # index of the frame in which it was seen
    look: np.ndarray
    changes: deque[float] = field(default_factory=lambda: deque(maxlen=4))

    before_change: _Track | None = None  # the track as it was, where its face looks suddenly different since
    is_restless: bool = False  # whether it has looked different twice and more, one frame after the other

    def is_another(self, index: int, look: np.ndarray) -> bool:
        """Return whether a face of a frame looks unlike this track's, by far more than this one changes of itself."""
        change, least = difference(self.look, look), another_limit(index - self.last)
        # How fast a face moves that was seen once is not known yet.
        return change >= max(least, TIMES * float(np.median(self.changes)) if self.changes else 2 * least)

    def move(self, points: FoundPoints, index: int, look: np.ndarray) -> bool:
        """Take up where and how the face is in a frame; return whether it is another one since the frame before."""
        changes, former = self.is_another(index, look), self.before_change
        is_first = changes and former is None and not self.is_restless
        self.is_restless = changes and not is_first
        self.before_change = replace(self, changes=self.changes.copy()) if is_first else None
        self.changes.append(difference(self.look, look))
        self.points, self.last, self.look = points, index, look
        return former is not None and not changes


def another_limit(frames: int) -> float:
    """Return from what change on a face is another one's, ``frames`` later."""
    return ANOTHER + ANOTHER_MORE * (frames - 1)


def look_of(frame: Frame, points: FoundPoints) -> np.ndarray:
    """Return how a face looks, (n,) float32, see ``people.signature``."""
    return signature([thumbnail(frame, points, _LOOK_EDGE)])


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Return how much two faces look different: root mean square, Lab."""
    return float(np.sqrt(np.mean((first - second) ** 2)))


class _CutWatch:
    """Tells, frame by frame, where a scene begins. What comes after a frame is not known here, unlike in video/cuts."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._changes: deque[float] = deque(maxlen=4)

    def begins_scene(self, frame: Frame) -> bool:
        """Return whether a frame begins a new scene."""
        step = max(1, min(frame.size) // (8 * SIZE[1]))
        small = cv2.resize(frame.pixels[::step, ::step, 1], SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)
        change = 0.0 if self._last is None else float(np.abs(small - self._last).mean())
        usual = float(np.median(self._changes)) if self._changes else 0.0
        is_cut = change >= LEAST and change >= TIMES * usual
        self._last = small
        self._changes.append(change)
        return is_cut


class Follower:
    """Finds the faces of the frames of one film.

    backend: finds them. interval: frames between two looks. step: what the index of frames goes up by.
    first_track: the number of the first track.
    """

    def __init__(self, backend: LandmarkBackend, interval: int = INTERVAL, step: int = 1, first_track: int = 0) -> None:
        self._backend, self._interval, self._step = backend, interval if backend.can_follow else 1, step
        self._tracks: list[_Track] = []
        self._recent: deque[FollowedFrame] = deque()
        self._cuts = _CutWatch()
        self._looks_in_vain = self._looks_beside = 0
        self._since_look = self._interval
        self._scene_begins = 0
        self.next_track = first_track

    def follow(self, frames: Iterable[Frame]) -> Iterator[FollowedFrame]:
        """Yield each frame with its faces, once nothing that comes later can change them."""
        longest = max(self._interval, LONGEST_GAP + 1)
        for frame in frames:
            self._add(frame)
            while len(self._recent) > longest:
                yield self._recent.popleft()
        while self._recent:
            yield self._recent.popleft()

    def _add(self, frame: Frame) -> None:
        is_cut = self._cuts.begins_scene(frame)
        if is_cut or not self._recent or frame.index - self._recent[-1].frame.index != self._step:
            self._tracks.clear()
            self._scene_begins = frame.index  # no face is followed back behind it
        entry = FollowedFrame(frame)
        self._recent.append(entry)
        is_lost = self._go_on(entry)
        self._since_look += 1
        if is_lost or not entry.faces or self._since_look >= self._interval:
            self._look(entry)
        oldest = frame.index - LONGEST_GAP * self._step
        self._tracks = [track for track in self._tracks if track.last >= oldest]

    def _go_on(self, entry: FollowedFrame) -> bool:
        """Follow the faces of the frame before; return whether one of them is lost."""
        if not self._backend.can_follow:
            return False
        frame, is_lost = entry.frame, False
        for track in list(self._tracks):
            if track.last != frame.index - self._step:
                continue
            points = self._backend.follow(frame, track.points)
            look = None if points is None else look_of(frame, points)
            if points is None or look is None:
                is_lost = True
            elif not is_among(points, [face.points for face in entry.faces]):
                self._continue(track, entry, points, look)
        return is_lost

    def _continue(self, track: _Track, entry: FollowedFrame, points: FoundPoints, look: np.ndarray) -> None:
        """Put a face that goes on with a track; where it is another one since the frame before, it has its own."""
        face = TrackedFace(points, track.number)
        entry.faces.append(face)
        former = track.before_change
        if not track.move(points, entry.frame.index, look) or points.track is not None:
            return
        assert former is not None
        self._tracks.append(former)  # as it was: it may be found elsewhere
        former.before_change = None
        track.number = face.track = self._number_of(points)
        track.changes.clear()
        for earlier in self._recent:
            for earlier_face in earlier.faces:
                if earlier.frame.index > former.last and earlier_face.track == former.number:
                    earlier_face.track = track.number

    def _look(self, entry: FollowedFrame) -> None:
        """Look for faces in a frame; those that are new begin a track, or go on with one that was lost."""
        if entry.faces:
            self._looks_beside += 1
            is_thorough = self._looks_beside % _THOROUGH_BESIDE == 0
        else:
            is_thorough = self._looks_in_vain % _THOROUGH_EVERY == 0
        findings = self._backend.find(entry.frame, is_thorough)
        self._since_look = 0
        self._looks_in_vain = 0 if findings.faces or entry.faces else self._looks_in_vain + 1
        entry.rejected = findings.rejected
        face_points = [face.points for face in entry.faces]
        for points in findings.faces:
            if self._backend.can_follow and is_among(points, face_points):
                continue
            look = look_of(entry.frame, points)
            track = self._lost_track(entry, points, look)
            if track is None:
                track = _Track(self._number_of(points), points, entry.frame.index, look)
                self._tracks.append(track)
                entry.faces.append(TrackedFace(points, track.number))
                self._trace_back(track, self._scene_begins - self._step)
            else:
                before, last = track.points, track.last
                self._continue(track, entry, points, look)
                self._trace_back(track, last)
                self._fill(track, before, last)

    def _number_of(self, points: FoundPoints) -> int:
        """Return the number of a new track: a file's own where it has one."""
        number = self.next_track if points.track is None else points.track
        self.next_track = max(self.next_track, number + 1)
        return number

    def _lost_track(self, entry: FollowedFrame, points: FoundPoints, look: np.ndarray) -> _Track | None:
        """Return the track that a face goes on with: its last box overlaps most, and after a gap it looks the same."""
        lost = [track for track in self._tracks if track.last < entry.frame.index]
        if points.track is not None:  # whoever found it knows
            return next((track for track in lost if track.points.track == points.track), None)
        previous = entry.frame.index - self._step
        lost = [track for track in lost if track.last == previous or not track.is_another(entry.frame.index, look)]
        if not lost:
            return None
        shares = overlaps(points.box[None], np.array([track.points.box for track in lost]))[0]
        best = int(np.argmax(shares))
        return lost[best] if shares[best] >= LEAST_OVERLAP else None

    def _before(self, index: int) -> Iterator[FollowedFrame]:
        """Yield the frames before the newest one that are later than ``index``, backwards."""
        for entry in reversed(list(self._recent)[:-1]):
            if entry.frame.index <= index:
                return
            yield entry

    def _trace_back(self, track: _Track, end: int) -> None:
        """Follow a face backwards through the frames behind ``end`` that are still at hand, until it is lost."""
        if not self._backend.can_follow:
            return
        current, look = track.points, track.look
        for entry in self._before(end):
            earlier = self._backend.follow(entry.frame, current)
            if earlier is None or is_among(earlier, [face.points for face in entry.faces]):
                return
            former = look_of(entry.frame, earlier)
            if difference(former, look) >= another_limit(self._step):
                return
            entry.faces.append(TrackedFace(earlier, track.number))
            current, look = earlier, former

    def _fill(self, track: _Track, before: FoundPoints, last: int) -> None:
        """Interpolate a track between its last sight and the frame from which on it is known again."""
        missing = []
        after = track.points, track.last
        for entry in self._before(last):
            earlier_face = next((face for face in entry.faces if face.track == track.number), None)
            if earlier_face is not None:
                after = earlier_face.points, entry.frame.index
            else:
                missing.append(entry)
        for entry in missing:
            points = interpolated(before, after[0], (entry.frame.index - last) / (after[1] - last))
            if points is not None and not is_among(points, [face.points for face in entry.faces]):
                entry.faces.append(TrackedFace(points, track.number, is_filled=True))
