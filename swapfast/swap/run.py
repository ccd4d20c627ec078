"""Swaps the faces of a folder of pictures, and goes on where a killed run stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

from swapfast.bars import Progress
from swapfast.files import write_file
from swapfast.swap.found_faces import FacesOfFrame
from swapfast.swap.frames import Frame
from swapfast.swap.manifest import RunFolder
from swapfast.swap.picture_file import PictureDecoder
from swapfast.swap.pictures import MASKS, PATCHES, PictureSink, PictureSource
from swapfast.swap.pipeline import GROUP, SwapCounts, SwapPipeline
from swapfast.swap.report import make_report
from swapfast.swap.request import PicturePlan
from swapfast.swap.stages import Stopwatch
from swapfast.system import available_cores
from swapfast.threads import ThreadPool


def swap_pictures(
    plan: PicturePlan, progress: Progress | None = None, decoder: PictureDecoder | None = None
) -> dict[str, Any]:
    """Write the swapped frames of a plan; return the report. decoder: of ``PictureSource``.

    Frames that an earlier run of the same request has written are left. Raises SwapfastError where a frame cannot be
    read or written; the whole groups of frames before it are in their place.
    """
    output, names = plan.output, plan.pictures.names
    parts = [MASKS] * output.writes_mask + [PATCHES] * (output.writer == "patch")
    run = RunFolder(output.folder, plan.fingerprint(), plan.request.overwrite, parts)
    try:
        missing = {i for i in plan.indices if not (run.goes_on and output.path_of(names[i]).is_file())}
        groups = {i // GROUP for i in missing}  # whole groups, so that the faces of a batch are always the same
        read = [i for i in plan.indices if i // GROUP in groups]
        clock, start = Stopwatch(), time.perf_counter()
        counts = _go_through(plan, run, read, missing, clock, progress, decoder)
        report = make_report(counts, time.perf_counter() - start, clock, plan.opened.model.output_sizes[-1])
        report["frames_written_before"] = len(plan.indices) - len(missing)
        run.finish((output.path_of(names[i]) for i in plan.indices), report)
    finally:
        run.close()
    if plan.request.report is not None:
        write_file(plan.request.report, (json.dumps(report, indent=1) + "\n").encode())
    return report


def _go_through(
    plan: PicturePlan,
    run: RunFolder,
    read: list[int],
    missing: set[int],
    clock: Stopwatch,
    progress: Progress | None,
    decoder: PictureDecoder | None,
) -> SwapCounts:
    workers = plan.request.workers or available_cores()
    ahead = workers + 1

    def find(frame: Frame) -> FacesOfFrame:
        return plan.find(frame) if plan.is_swapped(frame.index) else FacesOfFrame([], [])

    def note(path: Path, content: bytes) -> None:
        run.note(path, content)

    with one_opencv_thread(), ThreadPool(workers, "swap") as pool:
        pipeline = SwapPipeline(
            plan.swapper(),
            find,
            pool,
            ahead,
            plan.request.choice,
            plan.occlusion if plan.masks is not None else None,
            clock=clock,
        )
        source = PictureSource(plan.pictures, read, missing.__contains__, pool, ahead, clock, decoder)
        sink = PictureSink(plan.output, pool, ahead, note, clock)

        def shown(completed: int, total: int) -> None:
            if progress is not None:
                progress(completed, len(missing))

        return pipeline.run(source, sink, shown)


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Let OpenCV work in the thread that calls it: the pool's threads have the cores already."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
