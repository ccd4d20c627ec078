"""The faces of a video's frames along their tracks, smoothed, in memory that does not grow with the video's faces.

A frame's faces are read, aligned and smoothed when the frame is asked for, from its own and the frames around it. Of
each face only the number of its track is held.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.swap.found_faces import FacesOfFrame, FaceTable
from swapfast.swap.frames import Frame, FrameFace
from swapfast.swap.smoothing import SHORTEST_TRACK, PointSmoother
from swapfast.swap.tracks import TrackFinder
from swapfast.swap.videos import ScannedVideo, turned_clockwise

_KEPT = 64  # frames whose faces are kept: each frame is asked for about three times in a row
_NO_TRACK = -1


class VideoFaces:
    """The faces of a video's frames, with their tracks, their landmarks smoothed along them. It finds a frame's faces.

    table: what is known of them. smooth: frames on either side over which landmarks are smoothed.
    Raises SwapfastError where no face fits a frame.
    """

    def __init__(self, table: FaceTable, video: ScannedVideo, smooth: int) -> None:
        self._table, self._video, self._smoother = table, video, PointSmoother(smooth)
        width, height = video.reader.info.size
        self._nothing = np.broadcast_to(np.uint8(0), (height, width, 3))  # takes no memory
        self._placed = _Recent(self._place, _KEPT + 2 * smooth)
        self._shown = _Recent(self._show, _KEPT)
        self._starts, self._numbers = self._find_tracks()
        self.count = len(self._numbers)
        self._lengths = np.bincount(self._numbers)
        self.tracks = int(np.count_nonzero(self._lengths))

    def __call__(self, frame: Frame) -> FacesOfFrame:
        """Return the faces of a frame."""
        return self.of(frame.index)

    def of(self, index: int) -> FacesOfFrame:
        """Return the faces of a frame by its number, counted from 0. It may be asked by several threads."""
        known = self._shown(index)
        return FacesOfFrame(list(known.faces), list(known.skipped))

    def _find_tracks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where the faces of each frame begin, (frames + 1,), and each face's track, (faces,).

        A track is the file's own, cut where a scene changes, or by overlap where a face says none.
        """
        finder, scenes = TrackFinder(self._video.cuts), np.array(self._video.cuts)
        own_numbers = dict[tuple[int, int], int]()
        starts, tracks, own, reason = array("q", [0]), array("q"), array("q"), ""
        for index in range(self._video.frames):
            faces, skipped = self._placed(index)
            scene = int(np.searchsorted(scenes, index, side="right"))
            tracks.extend(finder.add(index, [face.landmarks for face in faces]))
            for face in faces:
                key = (face.track or 0, scene)
                own.append(_NO_TRACK if face.track is None else own_numbers.setdefault(key, len(own_numbers)))
            starts.append(len(tracks))
            reason = reason or (skipped[0] if skipped else "")
        if not tracks:
            reason = reason or f"they are of other frames than the {self._video.frames} of {self._video.path}"
            raise SwapfastError(
                f"{self._table.source}: none of its faces fits ({reason}); give the faces of this video"
            )
        has_own = _NO_TRACK not in own
        return np.frombuffer(starts, np.int64), np.frombuffer(own if has_own else tracks, np.int64)

    def _place(self, index: int) -> FacesOfFrame:
        """Return the faces that fit a frame, as they were found, and why others do not."""
        turn = turned_clockwise(self._video.reader.info)
        return self._table(Frame(self._video.name_of(index), index, None, self._nothing, turned=turn))

    def _tracks_of(self, index: int) -> np.ndarray:
        return self._numbers[self._starts[index] : self._starts[index + 1]]

    def _show(self, index: int) -> FacesOfFrame:
        """Return the faces of a frame, smoothed."""
        if not 0 <= index < self._video.frames:
            return FacesOfFrame([], [])
        placed, reasons = self._placed(index)
        faces, skipped = [], list(reasons)
        for face, track in zip(placed, self._tracks_of(index).tolist(), strict=True):
            try:
                faces.append(self._smoothed(face, track, index))
            except ValueError as error:
                skipped.append(str(error))
        return FacesOfFrame(faces, skipped)

    def _smoothed(self, face: FrameFace, track: int, index: int) -> FrameFace:
        """Return a face with its track, and with the landmarks of the track there. Raises ValueError for no face."""
        reach = self._smoother.frames
        if reach < 1 or self._lengths[track] < SHORTEST_TRACK:
            return replace(face, track=track)
        points, distances = [], []
        for other in range(max(0, index - reach), min(self._video.frames, index + reach + 1)):
            here = np.flatnonzero(self._tracks_of(other) == track)
            points += [self._placed(other).faces[number].landmarks for number in here]
            distances += [other - index] * len(here)
        smoothed = self._smoother(np.stack(points), np.array(distances))
        return FrameFace.from_landmarks(
            smoothed, index=face.index, stored_masks=face.stored_masks, track=track, name=face.name
        )


class _Recent:
    """The last faces that were made by the number of their frame. Several threads may ask."""

    def __init__(self, make: Callable[[int], FacesOfFrame], most: int) -> None:
        self._make, self._most = make, most
        self._known: OrderedDict[int, FacesOfFrame] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, index: int) -> FacesOfFrame:
        """Return the faces of a frame; they are shared."""
        with self._lock:
            known = self._known.get(index)
        if known is None:
            known = self._make(index)
            with self._lock:
                self._known[index] = known
                while len(self._known) > self._most:
                    self._known.popitem(last=False)
        return known
