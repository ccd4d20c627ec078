"""Frames per second of a swapped video, beside a loop over its frames: python -m benchmarks.swap_video

A clip of 1080p with a camera's noise and one drawn face, H.264, from file to file:

    program     as `swapfast swap -i clip.mp4 -o new.mp4` does it, its first pass over the video with it
    loop        decode by PyAV, cut, predict, warp and blend whole frames in floats, encode; one frame after the other
    decode      the clip decoded and nothing else
    encode      the decoded frames encoded and nothing else
    model       the same faces through the model alone
    open        the model opened and the digest of its file, once for a whole video; the program's time holds it

All have the same model, mask (extended, blurred), colours (mean), and x264 with the same settings, whose own threads
run beside in both ways. CPU time is of all threads together; on a machine that others use it tells more than the
clock. The program decodes twice, once for the number of frames and the cuts; what is neither decoding, model nor
encoding, nor opening the model, is ``other_cpu_ms``; ``cpu_ms_by_stage`` has it by stage.

Rows of the name ``memory`` have the peak of a process of its own, for clips of four lengths, and by how much it rose
for each frame more than in the shortest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
import torch

from benchmarks.common import Results, alone, compare, cpu_seconds, parser, peak_mib, reset_peak, summary
from benchmarks.swap import CROP, run_model, swap_whole_frame
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.config import ModelConfig, TrainConfig
from swapfast.models import FaceAutoencoder, build_model
from swapfast.swap.frames import Frame, FrameFace
from swapfast.swap.landmark_file import header_line, landmark_line
from swapfast.swap.masks import frame_matrix
from swapfast.swap.request import SwapRequest, fingerprint_of, open_swap_model
from swapfast.swap.run_video import VideoSettings, plan_video, swap_video
from swapfast.swap.stages import Stopwatch
from swapfast.swap.swapper import FrameSwapper
from swapfast.synthetic.film import Film
from swapfast.synthetic.identity import draw_identities
from swapfast.synthetic.render import render
from swapfast.video.encoding import EncodeSettings, choose_encoding
from swapfast.video.film import RATE, write_video
from swapfast.video.reader import VideoFrame, VideoReader

WIDTH, HEIGHT = 1920, 1080
DRAWN = 512  # px that a face is drawn at; larger ones are enlarged
NOISE = 2.0  # levels: a camera's
CLIP_CRF = 20  # of x264: a camera's file of good quality
_PASSES = 2  # that the program decodes


@dataclass(frozen=True)
class Clip:
    """A video and the one face of each of its frames; landmarks lie beside it."""

    path: Path
    faces: list[FrameFace]


def draw_clip(folder: Path, edge: int, count: int, size: tuple[int, int] = (WIDTH, HEIGHT), seed: int = 1) -> Clip:
    """Write a clip of ``count`` frames whose face's crop has an edge of about ``edge`` px. size: width, height, px."""
    film, person = Film(seed), draw_identities(seed)[0]
    rng = np.random.default_rng(seed)
    background = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), size)
    noise = np.rint(rng.normal(0, NOISE, (size[1], size[0], 3))).astype(np.int16)
    scale = edge / crop_edge(FrameFace.from_landmarks(render(person, film.scene(0), DRAWN).landmarks))
    points = []

    def pictures() -> Iterator[np.ndarray]:
        for index in range(count):
            drawn = render(person, film.scene(index / RATE), DRAWN)
            image = drawn.image
            if scale < 1:
                image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            grown = image.shape[0] / DRAWN
            matrix = np.array([[1, 0, (size[0] - DRAWN * scale) / 2], [0, 1, (size[1] - DRAWN * scale) / 2]])
            matrix[:, :2] *= scale / grown
            frame = cv2.warpAffine(
                image, matrix, size, background.copy(), cv2.INTER_CUBIC, borderMode=cv2.BORDER_TRANSPARENT
            )
            # The scaled picture's pixel centres lie half a pixel of the drawing off its own.
            points.append((drawn.landmarks * grown + (grown - 1) / 2) @ matrix[:, :2].T + matrix[:, 2])
            moved = np.roll(noise, tuple(rng.integers(0, size[::-1])), (0, 1))
            yield np.clip(frame + moved, 0, 255).astype(np.uint8)

    path = folder / "clip.mp4"
    write_video(path, pictures(), *size, crf=CLIP_CRF)
    lines = [header_line(path.name, count, size)]
    lines += [landmark_line(face, frame=index, track=0) for index, face in enumerate(points)]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    return Clip(path, [FrameFace.from_landmarks(face) for face in points])


def crop_edge(face: FrameFace) -> float:
    """Return the edge of a face's crop in its frame, px."""
    return float(1 / np.sqrt(np.linalg.det(frame_matrix(face, CROP, 1)[:, :2])))


def save_model(folder: Path, name: str) -> FaceAutoencoder:
    """Write a model folder with untrained weights, and return the model."""
    config = TrainConfig(model=ModelConfig(name=name))
    model = build_model(config.model, False, 1).eval()
    size = model.output_sizes[-1]
    faces = {f"mean_{side}": torch.full((size, size, 3), 0.5) for side in "ab"}
    state = {"config": config.to_dict(), "metrics": {"average_loss": 0.5}}
    CheckpointFolder(folder).save(Checkpoint(1, {"model": model.state_dict(), "optimizer": {}, "faces": faces}, state))
    return model


def run_program(model: Path, clip: Path, out: Path, clock: Stopwatch | None = None) -> None:
    """Swap the faces of a clip as the program does."""
    request = SwapRequest(model, clip, out, device="cpu", overwrite=True)
    swap_video(plan_video(request, VideoSettings()), clock=clock)


def open_once(model: Path, clip: Path) -> None:
    """Open a model as the program does."""
    request = SwapRequest(model, clip, None, device="cpu")
    fingerprint_of(request, open_swap_model(request), {})


def run_loop(model: FaceAutoencoder, clip: Clip, out: Path) -> None:
    """Swap frame after frame, with floats of the whole frame."""
    with av.open(str(clip.path)) as source, av.open(str(out), "w") as target:
        decoded = source.streams.video[0]
        decoded.thread_type = "AUTO"
        encoding = choose_encoding(VideoReader(clip.path).info, out, EncodeSettings())
        stream = cast(av.VideoStream, target.add_stream(encoding.encoder, rate=RATE))
        encoding.set_up(stream.codec_context)
        for frame, face in zip(source.decode(decoded), clip.faces, strict=True):
            pixels = swap_whole_frame(model, frame.to_ndarray(format="bgr24", src_colorspace="ITU709"), face)
            new = av.VideoFrame.from_ndarray(pixels, format="bgr24").reformat(
                format=encoding.pix_fmt, dst_colorspace="ITU709"
            )
            new.pts, new.time_base = frame.pts, frame.time_base
            target.mux(stream.encode(new))
        target.mux(stream.encode(None))


def run_decoder(clip: Path) -> list[VideoFrame]:
    """Return all frames of a clip, decoded on all cores."""
    return list(VideoReader(clip))


def run_encoder(clip: Path, frames: list[VideoFrame], out: Path) -> None:
    """Encode decoded frames as the program does; nothing is written."""
    reader = VideoReader(clip)
    encoding = choose_encoding(reader.info, out, EncodeSettings())
    context = encoding.open()
    for frame in frames:
        new = encoding.frame(frame.planes, reader.format)
        new.pts, new.time_base = frame.pts, frame.time_base
        context.encode(new)
    context.encode(None)


def measure(folder: Path, name: str, clip: Clip, repeats: int) -> list[dict]:
    """Return the rows of one clip and one model. folder: for what is written."""
    model = save_model(folder / f"{name}-model", name)
    clocks: list[Stopwatch] = []

    def program() -> None:
        clocks.append(Stopwatch())
        run_program(folder / f"{name}-model", clip.path, folder / "program.mp4", clocks[-1])

    decoded = run_decoder(clip.path)
    swapper = FrameSwapper(model, CROP)
    blank = np.broadcast_to(np.uint8(128), (*decoded[0].planes[0].shape, 3))
    cut = [swapper.prepare(Frame("", i, None, blank), [face]) for i, face in enumerate(clip.faces)]
    calls: dict[str, Callable[[], object]] = {
        "program": program,
        "loop": lambda: run_loop(model, clip, folder / "loop.mp4"),
        "decode": lambda: run_decoder(clip.path),
        "encode": lambda: run_encoder(clip.path, decoded, folder / "new.mp4"),
        "model": lambda: run_model(model, swapper, cut),
        "open": lambda: open_once(folder / f"{name}-model", clip.path),
    }
    cpu: dict[str, list[float]] = {way: [] for way in calls}
    timings = compare({way: partial(_with_cpu, call, cpu[way]) for way, call in calls.items()}, repeats, warm_up=1)
    count = len(clip.faces)
    cpu_ms = {way: 1000 * float(np.median(seconds[1:])) / count for way, seconds in cpu.items()}
    loop = float(np.median(timings["loop"].seconds))
    rows = []
    for way, timing in timings.items():
        row = summary(timing, count, way=way)
        row["frames_per_s"] = row.pop("faces_per_s")
        row["frames"] = row.pop("batch")
        row["cpu_ms_per_frame"] = round(cpu_ms[way], 2)
        row["times_the_loop"] = round(loop / float(np.median(timing.seconds)), 2)
        row["times_the_loop_by_cpu"] = round(cpu_ms["loop"] / cpu_ms[way], 2)
        rows.append(row)
    rows[0] |= _of_program(cpu_ms, clocks[1:], count)
    return rows


def _of_program(cpu_ms: dict[str, float], clocks: list[Stopwatch], count: int) -> dict:
    """Return what the program's CPU time went to. Stages are of the pool's threads, without the codecs' own."""
    needed = _PASSES * cpu_ms["decode"] + cpu_ms["encode"] + cpu_ms["model"]
    of_frames = cpu_ms["program"] - cpu_ms["open"]
    stages = {
        stage: round(1000 * float(np.median([clock.cpu_seconds[stage] for clock in clocks])) / count, 3)
        for stage in sorted(clocks[0].cpu_seconds)
    }
    return {
        "needed_share": round(needed / of_frames, 3),
        "other_cpu_ms": round(of_frames - needed, 2),
        "cpu_ms_by_stage": stages,
    }


def _with_cpu(call: Callable[[], object], seconds: list[float]) -> None:
    before = cpu_seconds()
    call()
    seconds.append(cpu_seconds() - before)


def measure_peak(model: str, clip: str, out: str) -> float:
    """Return the peak of this process's memory while it swaps a clip, MiB."""
    reset_peak()
    run_program(Path(model), Path(clip), Path(out))
    return peak_mib(on_gpu=False)


def repeat_clip(clip: Clip, times: int, path: Path) -> Path:
    """Write a clip that shows another one several times, with its landmarks."""
    frames = run_decoder(clip.path)
    height, width = frames[0].planes[0].shape
    write_video(path, (frame.pixels() for _ in range(times) for frame in frames), width, height, crf=CLIP_CRF)
    lines = [header_line(path.name, times * len(frames), (width, height))]
    for number in range(times * len(frames)):
        lines.append(landmark_line(clip.faces[number % len(frames)].landmarks, frame=number, track=0))
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    return path


def measure_memory(folder: Path, name: str, clip: Clip, times: int) -> list[dict]:
    """Return the peaks of processes of their own: of a clip that is repeated ``times``, and 2, 4 and 8 times as often.

    All are longer than what lies between decoder and encoder, and than what x264 looks ahead.
    """
    model = str(folder / f"{name}-model")
    rows: list[dict] = []
    for number in (times, 2 * times, 4 * times, 8 * times):
        path = repeat_clip(clip, number, folder / f"long{number}.mp4")
        peak = alone(measure_peak, model, str(path), f"{path}.mp4")
        rows.append({"name": "memory", "frames": number * len(clip.faces), "peak_mib": round(peak, 1)})
    for row in rows[1:]:
        more = row["frames"] - rows[0]["frames"]
        row["kib_per_frame"] = round(1024 * (row["peak_mib"] - rows[0]["peak_mib"]) / more, 2)
    return rows


def main() -> None:
    """Run the benchmark."""
    flags = parser(__doc__ or "")
    flags.add_argument("--edges", type=int, nargs="+", default=[200, 400, 1000], help="px of the face's crop")
    flags.add_argument("--models", nargs="+", default=["original", "tiny"])
    flags.add_argument("--frames", type=int, default=48)
    flags.add_argument(
        "--longer", type=int, default=2, help="repeats of the clip whose memory is measured, and of that 2, 4 and 8"
    )
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--size", type=int, nargs=2, default=(WIDTH, HEIGHT), metavar=("W", "H"))
    flags.add_argument("--memory-alone", action="store_true", help="measure nothing else")
    arguments = flags.parse_args()
    frames, repeats = (4, 1) if arguments.quick else (arguments.frames, arguments.repeats)
    results = Results(arguments.json)
    for edge in arguments.edges:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            clip = draw_clip(folder, edge, frames, tuple(arguments.size))
            for name in arguments.models:
                labels = {"model": name, "crop_px": edge, "size": arguments.size}
                if arguments.memory_alone:
                    save_model(folder / f"{name}-model", name)
                    continue
                for row in measure(folder, name, clip, repeats):
                    results.add({**labels, **row})
            if edge == arguments.edges[-1]:
                for row in measure_memory(folder, name, clip, arguments.longer):
                    results.add({**labels, **row})


if __name__ == "__main__":
    main()
