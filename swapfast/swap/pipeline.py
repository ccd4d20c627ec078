"""Takes frames through a swapper: read, cut, made, pasted and written side by side, in order, in bounded memory.

The model runs in a thread of its own, everything else in a pool. While it makes the faces of one group of frames the
group before is pasted and written, and the one behind is read and cut: the model waits for neither. Which faces share
a batch depends on the frames' indices alone: a group is GROUP frames. So a run that goes on where another was killed
makes the same bytes.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from swapfast.bars import Progress
from swapfast.errors import SwapfastError
from swapfast.swap.found_faces import FaceChoice, FaceFinder
from swapfast.swap.frames import Frame, FrameFace, FrameSink, FrameSource, SwappedFrame
from swapfast.swap.masks import frame_matrix
from swapfast.swap.stages import Stopwatch, ordered
from swapfast.swap.swapper import FrameInWork, FrameSwapper
from swapfast.threads import ThreadPool

GROUP = 16  # frames whose faces are predicted together
_GROUPS_AHEAD = 2  # one that the model works on, and one that is being collected

# Takes frames in order once their colours are measured, and yields them in order with the statistics it wants.
Smoother = Callable[[Iterable[FrameInWork]], Iterable[FrameInWork]]


@dataclass
class SwapCounts:
    """What became of frames and faces.

    edges: of the swapped faces' crops, px of their frames.
    """

    frames: int = 0
    written: int = 0
    frames_with_faces: int = 0
    faces: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    frames_without_mask: int = 0
    edges: array[float] = field(default_factory=lambda: array("d"))


@dataclass(eq=False)
class _Prepared:
    work: FrameInWork
    skipped: list[str]
    edges: list[float]
    lacks_mask: bool


@dataclass(frozen=True)
class SwapPipeline:
    """How frames go through a swapper.

    find: the faces of a frame. choose: which of them.
    occlusion: returns a frame's mask of what is in front of its faces, None without one.
    smoother: of colours, for videos. ahead: frames between two stages.
    """

    swapper: FrameSwapper
    find: FaceFinder
    pool: ThreadPool
    ahead: int
    choose: FaceChoice = field(default_factory=FaceChoice)
    occlusion: Callable[[Frame], np.ndarray | None] | None = None
    smoother: Smoother | None = None
    clock: Stopwatch = field(default_factory=Stopwatch)

    def run(self, source: FrameSource, sink: FrameSink, progress: Progress | None = None) -> SwapCounts:
        """Take all frames from ``source`` to ``sink``; progress is told (frames, their count).

        Where a frame cannot be read, the whole groups before it are written.
        """
        counts = SwapCounts()
        try:
            self._go_through(source, sink, progress, counts)
        except SwapfastError:
            with contextlib.suppress(SwapfastError):  # the first one tells
                sink.close()
            raise
        sink.close()
        return counts

    def _go_through(self, source: FrameSource, sink: FrameSink, progress: Progress | None, counts: SwapCounts) -> None:
        with ThreadPool(1, "model") as model:
            works: Iterable[FrameInWork] = self._predicted(source, counts, model)
            works = ordered(self.pool, self._measure, works, self.ahead)
            if self.smoother is not None:
                works = self.smoother(works)
            for swapped in ordered(self.pool, self._compose, (w for w in works if w.frame.is_wanted), self.ahead):
                sink.write(swapped)
                counts.written += 1
                if progress is not None and source.count is not None:
                    progress(counts.written, source.count)

    def _predicted(self, source: FrameSource, counts: SwapCounts, model: ThreadPool) -> Iterator[FrameInWork]:
        for group in ordered(model, self._predict, self._groups(source, counts), _GROUPS_AHEAD):
            while group:  # what is yielded is no longer held here
                yield group.popleft()

    def _groups(self, source: FrameSource, counts: SwapCounts) -> Iterator[deque[FrameInWork]]:
        """Yield the frames whose faces are predicted together."""
        prepared = ordered(self.pool, self._prepare, source, self.ahead)
        for _, group in groupby(prepared, key=lambda p: p.work.frame.index // GROUP):
            works: deque[FrameInWork] = deque()
            for member in group:
                _count(member, counts)
                works.append(member.work)
            # A smoother needs the frames before too.
            if self.smoother is not None or any(work.frame.is_wanted for work in works):
                yield works

    def _predict(self, group: deque[FrameInWork]) -> deque[FrameInWork]:
        with self.clock("model"):
            self.swapper.predict(list(group))
        return group

    def _prepare(self, frame: Frame) -> _Prepared:
        with self.clock("cut"):
            frame_faces = self.find(frame)
            edges = [self.edge(face) for face in frame_faces.faces]
            faces, skipped = self.choose(frame_faces, frame, edges)
            occlusion = self.occlusion(frame) if self.occlusion is not None and faces else None
            lacks_mask = self.occlusion is not None and bool(faces) and occlusion is None
            work = self.swapper.prepare(frame, faces, occlusion)
        return _Prepared(work, skipped, [self.edge(face) for face in faces], lacks_mask)

    def edge(self, face: FrameFace) -> float:
        """Return the edge of a face's crop in its frame, px."""
        return crop_edge(face, self.swapper)

    def _measure(self, work: FrameInWork) -> FrameInWork:
        with self.clock("masks and colours"):
            return self.swapper.measure(work)

    def _compose(self, work: FrameInWork) -> SwappedFrame:
        with self.clock("paste"):
            return self.swapper.compose(work)


def crop_edge(face: FrameFace, swapper: FrameSwapper) -> float:
    """Return the edge of a face's crop in its frame, px."""
    matrix = frame_matrix(face, swapper.crop, swapper.output_size)
    return float(swapper.output_size / np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


def _count(prepared: _Prepared, counts: SwapCounts) -> None:
    if not prepared.work.frame.is_wanted:
        return
    counts.frames += 1
    counts.frames_with_faces += bool(prepared.work.faces)
    counts.faces += len(prepared.work.faces)
    counts.skipped.update(prepared.skipped)
    counts.frames_without_mask += prepared.lacks_mask
    counts.edges.extend(prepared.edges)
