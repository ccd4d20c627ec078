"""Swaps the faces of a video, and goes on where a killed run stopped."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from swapfast.bars import Progress
from swapfast.checkpoints.trained import OpenedModel
from swapfast.errors import SwapfastError
from swapfast.files import check_folder, check_new_file, write_file
from swapfast.swap.check import check_figures, count_faces
from swapfast.swap.found_faces import FacesOfFrame, FaceTable, read_faces_folder
from swapfast.swap.frames import Frame, FrameSink
from swapfast.swap.landmark_file import read_landmark_file
from swapfast.swap.manifest import RunFolder, file_manifest
from swapfast.swap.paste import Box
from swapfast.swap.picture_file import read_gray_mask
from swapfast.swap.pictures import MASKS, PATCHES, MaskFolder, PictureOutput, PictureSink
from swapfast.swap.pipeline import GROUP, SwapCounts, SwapPipeline, crop_edge
from swapfast.swap.regions import measured_boxes, swapped_box, union
from swapfast.swap.report import make_report
from swapfast.swap.request import SwapRequest, fingerprint_of, open_swap_model, table_digest
from swapfast.swap.run import one_opencv_thread
from swapfast.swap.smoothing import MOST_FRAMES, ColourSmoother
from swapfast.swap.stability import Stability
from swapfast.swap.stages import Stopwatch
from swapfast.swap.swapper import FrameSwapper
from swapfast.swap.video_faces import VideoFaces
from swapfast.swap.videos import MaskVideo, ScannedVideo, TimedSink, VideoSink, VideoSource, scan_video
from swapfast.system import available_cores
from swapfast.threads import ThreadPool
from swapfast.video.encoding import CONTAINERS, EncodeSettings, choose_encoding
from swapfast.video.probe import VideoInfo, is_video
from swapfast.video.reader import VideoReader
from swapfast.video.writer import SEGMENT_FRAMES, SYNTHETIC, VideoWriter

_LONGEST_SEGMENT = 100_000


@dataclass(frozen=True)
class VideoSettings:
    """What is asked for besides where the output is a video.

    smooth, smooth_landmarks    frames on either side, 0 for none
    segment                     frames of a segment: a killed run loses no more
    encode                      the encoder's settings
    """

    smooth: int = 12
    smooth_landmarks: int = 3
    segment: int = SEGMENT_FRAMES
    encode: EncodeSettings = field(default_factory=EncodeSettings)

    def __post_init__(self) -> None:
        for flag, frames in (("--smooth", self.smooth), ("--smooth-landmarks", self.smooth_landmarks)):
            if not 0 <= frames <= MOST_FRAMES:
                raise SwapfastError(f"{flag} {frames}: give 0 (not at all) to {MOST_FRAMES} frames on either side")
        if not 1 <= self.segment <= _LONGEST_SEGMENT:
            raise SwapfastError(f"--segment {self.segment}: give 1 to {_LONGEST_SEGMENT} frames")


@dataclass(frozen=True)
class VideoPlan:
    """A checked request whose input is a video. indices: of the frames that are written."""

    request: SwapRequest
    settings: VideoSettings
    opened: OpenedModel
    video: ScannedVideo
    table: FaceTable
    faces: VideoFaces
    masks: MaskFolder | MaskVideo | None
    indices: Sequence[int]

    def is_swapped(self, index: int) -> bool:
        """Whether the faces of a frame are swapped: it lies in the ranges, which count from 1."""
        return self.request.ranges is None or index + 1 in self.request.ranges

    def find(self, frame: Frame) -> FacesOfFrame:
        """Return the faces of a frame that are swapped."""
        return self.faces(frame) if self.is_swapped(frame.index) else FacesOfFrame([], [])

    def swapper(self) -> FrameSwapper:
        """Return what swaps a frame's faces."""
        request = self.request
        return FrameSwapper(
            self.opened.model,
            self.opened.config.crop,
            lambda index: request.settings.of(index + 1),
            request.to,
            scale=request.scale / 100,
            batch_size=request.batch_size,
            wants_alpha=request.write_mask,
            wants_patches=request.writer == "patch",
            is_transparent=request.transparent,
        )

    def occlusion(self, frame: Frame) -> np.ndarray | None:
        """Return the mask of what is in front of a frame's faces, None without one."""
        if isinstance(self.masks, MaskVideo):
            return self.masks.of(frame.index)
        path = None if self.masks is None else self.masks.path_of(frame.name)
        return None if path is None else read_gray_mask(path, frame.size)

    @property
    def target(self) -> VideoInfo | None:
        """Size and pixels of the new video where they are not the old one's."""
        return target_of(self.request, self.video.reader)

    def box_of(self, index: int) -> Box:
        """Return what of a frame, by its number, is read or changed."""
        size, is_measured = self.video.reader.info.size, self.request.report is not None
        faces = self.faces.of(index).faces if self.is_swapped(index) else []
        boxes = [swapped_box(faces, self._usual_swapper, index, size)]
        if is_measured:
            before = self.faces.of(index - 1).faces
            boxes.append(measured_boxes([*before, *self.faces.of(index).faces], size))
        return union(boxes, size)

    @cached_property
    def _usual_swapper(self) -> FrameSwapper:
        return self.swapper()

    @property
    def mask_path(self) -> Path:
        """Where the masks go: a lossless gray video beside the new one."""
        assert self.request.out is not None
        return self.request.out.with_name(f"{self.request.out.stem}.mask.mkv")

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides over the frames that are written: a run goes on only where all of it is the same."""
        faces = {"source": self.table.source, "sha256": table_digest(self.table)}
        more: dict[str, Any] = {"smooth": self.settings.smooth, "smooth_landmarks": self.settings.smooth_landmarks}
        return {**fingerprint_of(self.request, self.opened, faces), **more}


def target_of(request: SwapRequest, reader: VideoReader) -> VideoInfo | None:
    """Return size and pixels of the new video where they are not the old one's."""
    if request.transparent:
        name = "yuva444p" if reader.format.bits == 8 else "yuva444p10le"
    elif request.scale == 100:
        return None
    else:
        name = reader.format.name
    return reader.info.with_pixels(name, request.scale / 100)


def plan_video(request: SwapRequest, settings: VideoSettings, progress: Progress | None = None) -> VideoPlan:
    """Check a request and open what it names; the video is gone through once.

    Raises SwapfastError naming what is wrong with it.
    """
    if request.report is not None:
        check_new_file(request.report, "--report", (".json",))
    if request.out is not None:
        _check_output(request, request.out)
    reader = VideoReader(request.input)
    if request.out is not None and not writes_pictures(request):
        choose_encoding(target_of(request, reader) or reader.info, request.out, settings.encode).open()
    table, frames = find_video_faces(request)
    masks = None if request.mask_dir is None else _open_masks(request.mask_dir)
    opened = open_swap_model(request)
    video = scan_video(reader, progress)
    _check_table(request, table, frames, video)
    if isinstance(masks, MaskVideo):
        masks.check(video)
    faces = VideoFaces(table, video, settings.smooth_landmarks)
    plan = VideoPlan(request, settings, opened, video, table, faces, masks, range(video.frames))
    if not any(map(plan.is_swapped, plan.indices)):
        raise SwapfastError(
            f"-R/--frame-ranges: none of the {video.frames} frames lies in it; they are numbered 1 to {video.frames}"
        )
    if request.keep_unchanged or request.ranges is None:
        return plan
    return replace(plan, indices=[index for index in plan.indices if plan.is_swapped(index)])


def _open_masks(path: Path) -> MaskFolder | MaskVideo:
    return MaskVideo(path) if is_video(path) else MaskFolder.open(path)


def writes_pictures(request: SwapRequest) -> bool:
    """Whether a video's frames are written as pictures: the output has the name of a folder."""
    return request.out is not None and (request.out.suffix == "" or request.out.is_dir())


def _check_output(request: SwapRequest, out: Path) -> None:
    if writes_pictures(request):
        if request.format == "jpg":
            raise SwapfastError("--format jpg: the frames of a video are written as PNG; leave --format away")
        check_folder(out, "-o/--out")
        return
    if request.writer != "picture" or request.format != "same":
        raise SwapfastError("-w/--writer, --format: are for pictures; give -o a folder, or leave them away")
    if out.suffix.lower() not in CONTAINERS:
        endings = ", ".join(CONTAINERS)
        raise SwapfastError(f"-o/--out {out}: give a video a name that ends in {endings}; or a folder for its frames")
    if not out.absolute().parent.is_dir():
        raise SwapfastError(f"-o/--out {out}: there is no folder {out.absolute().parent}")
    names = [out, manifest_path(out)]
    for path in names:
        if path.is_dir() or (path.exists() and not request.overwrite):
            raise SwapfastError(f"-o/--out {path}: is there already; give another name, or --overwrite")
    if request.report is not None and request.report.absolute() == manifest_path(out).absolute():
        raise SwapfastError(f"--report {request.report}: is the name of the video's own manifest; give another one")
    if out.exists() and out.samefile(request.input):
        raise SwapfastError(f"-o/--out {out}: is the video that is read; give another name")


def manifest_path(out: Path) -> Path:
    """Return where the manifest of a video lies: OUT.mp4.json."""
    return out.with_name(f"{out.name}.json")


def find_video_faces(request: SwapRequest) -> tuple[FaceTable, int | None]:
    """Return what is known of a video's faces, and how many frames their video has, if that is known."""
    if request.faces is not None:
        return read_faces_folder(request.faces, "-p/--faces"), None
    path = request.landmarks or request.input.with_suffix(".jsonl")
    if request.landmarks is None and not path.is_file():
        raise SwapfastError(
            f"-i {request.input}: where are the faces? Looked for {path.name} beside it; give --landmarks FILE, or "
            "-p FACES, the folder of faceswap's extracted faces"
        )
    file = read_landmark_file(path)
    return file.faces, file.frames


def _check_table(request: SwapRequest, table: FaceTable, frames: int | None, video: ScannedVideo) -> None:
    """Raise SwapfastError where the faces are of another video, by its frames, if they are known, or by their names."""
    if frames is not None and frames != video.frames:
        raise SwapfastError(
            f"{table.source}: is of a video of {frames} frames, {request.input} has {video.frames}; give the file of "
            'this video, or take "frames" out of its first line'
        )
    table.check_frames([video.name_of(index) for index in range(video.frames)])
    last = max(table.by_index, default=-1)
    if last >= video.frames:
        raise SwapfastError(
            f"{table.source}: speaks of frame {last}, but there are {video.frames} in {request.input}; give the file "
            "of this video"
        )


def swap_video(plan: VideoPlan, progress: Progress | None = None, clock: Stopwatch | None = None) -> dict[str, Any]:
    """Write the swapped video of a plan; return the report.

    Segments that an earlier run of the same request has finished are kept. clock: what adds up the stages' seconds.
    Raises SwapfastError where a frame cannot be written; what is finished stays for the next start.
    """
    request, out = plan.request, plan.request.out
    assert out is not None, "asked for by whoever writes"
    clock, start = clock or Stopwatch(), time.perf_counter()
    stability = Stability() if request.report is not None and plan.target is None else None
    fingerprint = plan.fingerprint()  # which reads the whole model
    with _writers(plan, out, fingerprint) as (writer, masks):
        done = writer.frames_done

        def make_sink(pool: ThreadPool, ahead: int, moved: Callable[[float], None]) -> VideoSink:
            return VideoSink(writer, pool, ahead, masks, stability, moved, clock)

        box_of = plan.box_of if plan.target is None else None
        counts = _go_through(plan, plan.indices[done:], make_sink, clock, progress, box_of)
        with clock("join"):
            if masks is not None:
                masks.finish("The mask of a swap by swapfast: white where a face was replaced.")
            writer.finish(SYNTHETIC)
    report = make_report(counts, time.perf_counter() - start, clock, plan.opened.model.output_sizes[-1])
    report["frames_written_before"] = done
    report["video"] = _of_video(plan, writer, stability)
    write_file(manifest_path(out), file_manifest(out, fingerprint, report))
    if request.report is not None:
        write_file(request.report, (json.dumps(report, indent=1) + "\n").encode())
    return report


def swap_video_to_pictures(plan: VideoPlan, progress: Progress | None = None) -> dict[str, Any]:
    """Write the swapped frames of a plan as PNGs, or their faces as patches; return the report."""
    request, video = plan.request, plan.video
    assert request.out is not None, "asked for by whoever writes"
    output = PictureOutput(
        request.out, ".png", request.writer, request.write_mask, request.transparent, request.scale / 100
    )
    parts = [MASKS] * output.writes_mask + [PATCHES] * (output.writer == "patch")
    run = RunFolder(output.folder, plan.fingerprint(), request.overwrite, parts)
    try:
        paths = {index: output.path_of(video.name_of(index)) for index in plan.indices}
        missing = [index for index, path in paths.items() if not (run.goes_on and path.is_file())]
        clock, start = Stopwatch(), time.perf_counter()

        def make_sink(pool: ThreadPool, ahead: int, moved: Callable[[float], None]) -> FrameSink:
            return TimedSink(PictureSink(output, pool, ahead, run.note, clock), moved)

        counts = _go_through(plan, missing, make_sink, clock, progress)
        report = make_report(counts, time.perf_counter() - start, clock, plan.opened.model.output_sizes[-1])
        report["frames_written_before"] = len(plan.indices) - len(missing)
        report["video"] = _of_scan(plan)
        run.finish(paths.values(), report)
    finally:
        run.close()
    if request.report is not None:
        write_file(request.report, (json.dumps(report, indent=1) + "\n").encode())
    return report


@contextlib.contextmanager
def _writers(plan: VideoPlan, out: Path, request: dict[str, Any]) -> Iterator[tuple[VideoWriter, VideoWriter | None]]:
    """Yield the writers of the video and of its masks, with equally many frames done. request: of ``VideoWriter``."""
    reader, settings = plan.video.reader, plan.settings.encode
    how: dict[str, Any] = {
        "is_cut": len(plan.indices) < plan.video.frames,
        "segment_frames": plan.settings.segment,
    }
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(reader, out, settings, request, plan.target, **how))
        if not plan.request.write_mask:
            yield writer, None
            return
        gray = replace(reader.info.with_pixels("gray", plan.request.scale / 100), copied=())
        lossless = EncodeSettings("lossless")
        masks = stack.enter_context(VideoWriter(reader, plan.mask_path, lossless, request, gray, **how))
        done = min(writer.frames_done, masks.frames_done)
        writer.drop_behind(done)
        masks.drop_behind(done)
        yield writer, masks


def _go_through(
    plan: VideoPlan,
    wanted: Sequence[int],
    make_sink: Callable[[ThreadPool, int, Callable[[float], None]], FrameSink],
    clock: Stopwatch,
    progress: Progress | None,
    box_of: Callable[[int], Box] | None = None,
) -> SwapCounts:
    if not wanted:
        return SwapCounts()
    workers = plan.request.workers or available_cores()
    ahead, smooth = workers + 1, plan.settings.smooth
    # The frames around, over which colours are smoothed, and whole groups: the faces of a batch are always the same.
    first = max(0, wanted[0] - smooth) // GROUP * GROUP
    last = ((wanted[-1] + smooth) // GROUP + 1) * GROUP - 1
    total = max(1, round(plan.video.end_s))

    def moved(time_s: float) -> None:
        if progress is not None:
            progress(min(total - 1, int(max(0.0, time_s))), total)

    with one_opencv_thread(), ThreadPool(workers, "swap") as pool:
        pipeline = SwapPipeline(
            plan.swapper(),
            plan.find,
            pool,
            ahead,
            plan.request.choice,
            plan.occlusion if plan.masks is not None else None,
            ColourSmoother(smooth) if smooth else None,
            clock,
        )
        relevant = _members(plan.indices).__contains__
        source = VideoSource(plan.video, _members(wanted), first, last, pool, ahead, clock, relevant, box_of)
        counts = pipeline.run(source, make_sink(pool, ahead, moved))
    if progress is not None:
        progress(total, total)
    return counts


def _members(numbers: Sequence[int]) -> Collection[int]:
    """Return what tells quickly whether a number is among these: a range does, and takes no memory."""
    return numbers if isinstance(numbers, range) else frozenset(numbers)


def _of_scan(plan: VideoPlan) -> dict[str, Any]:
    video = plan.video
    return {
        "frames": video.frames,
        "seconds": round(video.end_s, 3),
        "scenes": len(video.cuts) + 1,
        "tracks": plan.faces.tracks,
        "notes": list(video.notes),
    }


def _of_video(plan: VideoPlan, writer: VideoWriter, stability: Stability | None) -> dict[str, Any]:
    figures = _of_scan(plan)
    figures["notes"] += writer.notes()
    encoding = {"encoder": writer.encoding.encoder, "pix_fmt": writer.encoding.pix_fmt}
    return {**figures, **encoding, **({} if stability is None else stability.figures())}


def check_video(plan: VideoPlan) -> dict[str, Any]:
    """Return what would be done, JSON-ready, as of ``check_pictures``; nothing is decoded any more."""
    request, video, swapper = plan.request, plan.video, plan.swapper()
    width, height = video.reader.info.size
    nothing = np.broadcast_to(np.uint8(0), (height, width, 3))  # takes no memory
    counts = SwapCounts()
    for index in filter(plan.is_swapped, plan.indices):
        frame = Frame(video.name_of(index), index, None, nothing)
        lacks_mask = isinstance(plan.masks, MaskFolder) and plan.masks.path_of(frame.name) is None
        count_faces(counts, request, plan.find(frame), frame, swapper, lacks_mask)
    return check_figures(counts, request, plan.opened, plan.table.source, len(plan.indices))


def sheet_of_video(plan: VideoPlan, number: int) -> tuple[Frame, FacesOfFrame]:
    """Return one frame of a video, decoded, and its chosen faces. number: from 1.

    Raises SwapfastError where there is no such frame, or it has no face to swap.
    """
    video, swapper = plan.video, plan.swapper()
    if not 1 <= number <= video.frames:
        raise SwapfastError(f"--sheet {number}: {video.path} has frames 1 to {video.frames}; give one of them")
    decoded = next(iter(video.reader.frames(number - 1)))
    frame = Frame(video.name_of(decoded.index), decoded.index, decoded.time_s, decoded.pixels(), origin=decoded)
    frame_faces = plan.faces(frame)
    chosen_faces = plan.request.choice(frame_faces, frame, [crop_edge(face, swapper) for face in frame_faces.faces])
    if not chosen_faces.faces:
        reason = f" ({'; '.join(chosen_faces.skipped)})" if chosen_faces.skipped else ""
        raise SwapfastError(f"--sheet {number}: that frame has no face to swap{reason}; give another one")
    return frame, chosen_faces
