"""Frames per second of a swap, beside a loop over frames: python -m benchmarks.swap

Frames are of 1080p with one drawn face each, JPEG of quality 95 or PNG, read from files and written to files.

    pipeline    as `swapfast swap` does it: threads beside the model, batches over frames, the box of the face
    loop        as a convert does it: decode, cut, predict one face, warp face and mask into a frame of floats, blend
                the whole frame, encode; one frame after the other, all cores for each operation
    model       the same faces through the model alone, in the pipeline's batches: how fast it could be at most
    opencv      the frames decoded and nothing else, by OpenCV in threads as the pipeline does
    dali        the same by DALI's CPU decoder, which gives the same pixels
    encoder     of PNGs: the frames encoded and nothing else, one after the other, by the program's own writer
    opencv png  the same by OpenCV's fastest settings, which the loop has

Both sides have the same model, mask (extended, blurred) and colours (mean), and the same quality of JPEGs. CPU time is
of all threads together; on a machine that others use it tells more than the clock. Rows of the pipeline have besides:

    model_share             of the seconds from its first faces to its last: how much of them the model was at work
    model_share_of_cpu      the model's CPU time alone over the pipeline's: what the model cannot exceed on these cores
    seconds_by_stage        over all threads; stages that share the cores make each other longer
    cpu_ms_by_stage         of a frame, without what the model's own threads take
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.common import Results, compare, cpu_seconds, parser, summary
from pipelines.decode import decode_pictures
from swapfast.config import CropConfig, ModelConfig
from swapfast.faces.masks import blur, draw_face
from swapfast.models import FaceAutoencoder, build_model
from swapfast.points import transform_points
from swapfast.swap.found_faces import FacesOfFrame
from swapfast.swap.frames import Frame, FrameFace
from swapfast.swap.masks import frame_matrix
from swapfast.swap.picture_file import JPEG_QUALITY
from swapfast.swap.pictures import PictureFolder, PictureOutput, PictureSink, PictureSource
from swapfast.swap.pipeline import SwapPipeline
from swapfast.swap.png_writer import encode_pixels
from swapfast.swap.run import one_opencv_thread
from swapfast.swap.stages import Stopwatch
from swapfast.swap.swapper import FrameSwapper
from swapfast.synthetic.identity import draw_identities
from swapfast.synthetic.render import render
from swapfast.synthetic.scene import draw_scene
from swapfast.synthetic.streams import SIDE_A, generator
from swapfast.system import available_cores
from swapfast.threads import ThreadPool

WIDTH, HEIGHT = 1920, 1080
DRAWN = 512  # px that a face is drawn at; larger ones are enlarged
CROP = CropConfig()
# PNGs of the loop: OpenCV's fastest, of which the files are smallest. A convert's own level 3 takes longer.
_FAST_PNG = [
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
]
_ENCODED = 16  # frames that are encoded and nothing else
_QUALITY = {"jpg": [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY], "png": _FAST_PNG}


@dataclass(frozen=True)
class Footage:
    """Frames in a folder, and the one face of each."""

    folder: Path
    names: list[str]
    faces: list[FrameFace]


def draw_footage(folder: Path, edge: int, count: int, suffix: str, seed: int = 1) -> Footage:
    """Write ``count`` frames whose face's crop has an edge of about ``edge`` px."""
    person, rng = draw_identities(seed)[0], np.random.default_rng(seed)
    names, faces = [], []
    for index in range(count):
        drawn = render(person, draw_scene(generator(seed, SIDE_A, index)), DRAWN)
        face = FrameFace.from_landmarks(drawn.landmarks)
        crop_edge = 1 / np.sqrt(np.linalg.det(frame_matrix(face, CROP, 1)[:, :2]))
        scale = edge / crop_edge
        size = round(DRAWN * scale)
        picture = cv2.resize(drawn.image, (size, size), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        middle = drawn.landmarks.mean(0) * scale
        shift = np.array([WIDTH / 2, HEIGHT / 2]) - middle + rng.uniform(-20, 20, 2)
        background = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), (WIDTH, HEIGHT))
        moved = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
        frame = cv2.warpAffine(picture, moved, (WIDTH, HEIGHT), background, borderMode=cv2.BORDER_TRANSPARENT)
        # Noise of a camera's strength: a drawing's file would be too small.
        frame = np.clip(frame + rng.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)
        names.append(f"frame_{index:04d}.{suffix}")
        cv2.imwrite(str(folder / names[-1]), frame, _QUALITY[suffix])
        faces.append(FrameFace.from_landmarks(drawn.landmarks * scale + shift))
    return Footage(folder, names, faces)


def run_pipeline(model: FaceAutoencoder, footage: Footage, out: Path, clock: Stopwatch) -> None:
    """Swap all frames as the program does."""
    workers = available_cores()
    with one_opencv_thread(), ThreadPool(workers) as pool:
        indices = range(len(footage.names))
        source = PictureSource(
            PictureFolder(footage.folder, footage.names), indices, lambda index: True, pool, workers + 1, clock
        )
        sink = PictureSink(PictureOutput(out), pool, workers + 1, clock=clock)
        pipeline = SwapPipeline(
            FrameSwapper(model, CROP),
            lambda frame: FacesOfFrame([footage.faces[frame.index]], []),
            pool,
            workers + 1,
            clock=clock,
        )
        pipeline.run(source, sink)


def read_frame(path: Path) -> np.ndarray:
    """Return a frame as OpenCV decodes it."""
    pixels = cv2.imread(str(path))
    assert pixels is not None
    return pixels


def run_loop(model: FaceAutoencoder, footage: Footage, out: Path, suffix: str) -> None:
    """Swap frame after frame, with floats of the whole frame."""
    for name, face in zip(footage.names, footage.faces):
        pixels = swap_whole_frame(model, read_frame(footage.folder / name), face)
        cv2.imwrite(str(out / name), pixels, _QUALITY[suffix])


@torch.no_grad()
def swap_whole_frame(model: FaceAutoencoder, pixels: np.ndarray, face: FrameFace) -> np.ndarray:
    """Return a frame, (H, W, 3) uint8, with one face swapped and blended in floats of the whole frame."""
    size, output_size = model.input_size, model.output_sizes[-1]
    frame = pixels.astype(np.float32) / 255
    matrix = frame_matrix(face, CROP, size)
    cut = cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_AREA)
    made = model.swap(torch.from_numpy(cut.transpose(2, 0, 1)[None]), "b")[-1][0].numpy().transpose(1, 2, 0)
    to_output = frame_matrix(face, CROP, output_size)
    points = transform_points(to_output, face.landmarks).astype(np.float32)
    mask = blur(draw_face(points, output_size), 3, 4, box=True).astype(np.float32)[..., None] / 255
    reference = cv2.warpAffine(frame, to_output, (output_size, output_size), flags=cv2.INTER_AREA)
    shift = ((reference - made) * mask).sum((0, 1)) / mask.sum()
    patch = np.dstack([made + shift.astype(np.float32), mask])
    layer = np.zeros((*frame.shape[:2], 4), np.float32)
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_CUBIC
    cv2.warpAffine(patch, to_output, frame.shape[1::-1], layer, flags, cv2.BORDER_TRANSPARENT)
    alpha = np.clip(layer[..., 3:], 0, 1)
    blended = frame * (1 - alpha) + layer[..., :3] * alpha
    return np.rint(np.clip(blended, 0, 1) * 255).astype(np.uint8)


def run_model(model: FaceAutoencoder, swapper: FrameSwapper, frames: list) -> None:
    """Predict the faces of frames that are cut already, in groups of 16."""
    for start in range(0, len(frames), 16):
        swapper.predict(frames[start : start + 16])


def run_decoder(footage: Footage, use_dali: bool) -> None:
    """Decode all frames on all cores."""
    with one_opencv_thread():
        for _ in decode_pictures([footage.folder / name for name in footage.names], available_cores(), use_dali):
            pass


def run_encoder(frames: list[np.ndarray], encode: Callable[[np.ndarray], bytes]) -> float:
    """Encode all frames; return the mean size of their files, bytes."""
    with one_opencv_thread():
        return sum(len(encode(frame)) for frame in frames) / len(frames)


def opencv_png(pixels: np.ndarray) -> bytes:
    """Return a PNG of (H, W, 3) uint8 BGR pixels by OpenCV's fastest settings."""
    return cv2.imencode(".png", pixels, _FAST_PNG)[1].tobytes()


def _with_cpu(call: Callable[[], object], seconds: list[float]) -> None:
    """Call, and append the CPU time that it took: it tells more than the clock where others use the cores too."""
    before = cpu_seconds()
    call()
    seconds.append(cpu_seconds() - before)


def measure(model: FaceAutoencoder, footage: Footage, suffix: str, repeats: int, out: Path) -> list[dict]:
    """Return the rows of one kind of frames."""
    clocks: list[Stopwatch] = []

    def pipeline() -> None:
        clocks.append(Stopwatch())
        run_pipeline(model, footage, out, clocks[-1])

    swapper = FrameSwapper(model, CROP)
    blank = np.broadcast_to(np.uint8(128), (HEIGHT, WIDTH, 3))
    cut = [swapper.prepare(Frame("", i, None, blank), [face]) for i, face in enumerate(footage.faces)]
    calls: dict[str, Callable[[], object]] = {
        "pipeline": pipeline,
        "loop": lambda: run_loop(model, footage, out, suffix),
        "model": lambda: run_model(model, swapper, cut),
        "opencv": lambda: run_decoder(footage, use_dali=False),
        "dali": lambda: run_decoder(footage, use_dali=True),
    }
    sizes: dict[str, float] = {}
    if suffix == "png":
        frames = [read_frame(footage.folder / name) for name in footage.names[:_ENCODED]]
        for way, encode in (("encoder", encode_pixels), ("opencv png", opencv_png)):
            sizes[way] = run_encoder(frames, encode)
            calls[way] = partial(run_encoder, frames, encode)
    counts = {name: len(frames) if name in sizes else len(footage.names) for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    timings = compare({n: partial(_with_cpu, call, cpu[n]) for n, call in calls.items()}, repeats, warm_up=1)
    cpu_ms = {name: 1000 * float(np.median(seconds[1:])) / counts[name] for name, seconds in cpu.items()}
    loop = sorted(timings["loop"].seconds)[repeats // 2]
    rows = []
    for name, timing in timings.items():
        row = summary(timing, counts[name], way=name)
        row["frames_per_s"] = row.pop("faces_per_s")
        row["frames"] = row.pop("batch")
        median = sorted(timing.seconds)[repeats // 2]
        if name in sizes:
            row["mib_a_frame"] = round(sizes[name] / (1 << 20), 3)
        else:
            row["times_the_loop"] = round(loop / median, 2)
        row["cpu_ms_per_frame"] = round(cpu_ms[name], 2)
        if name == "pipeline":
            row["model_share_of_cpu"] = round(cpu_ms["model"] / cpu_ms[name], 3)
            names = sorted(clocks[-1].seconds)
            runs = clocks[1:]
            row["model_share"] = round(float(np.median([clock.share("model") for clock in runs])), 3)
            row["seconds_by_stage"] = {s: round(float(np.median([c.seconds[s] for c in runs])), 4) for s in names}
            row["cpu_ms_by_stage"] = {
                s: round(1000 * float(np.median([c.cpu_seconds[s] for c in runs])) / len(footage.names), 3)
                for s in names
            }
        rows.append(row)
    return rows


def main() -> None:
    """Run the benchmark."""
    flags = parser(__doc__ or "")
    flags.add_argument("--edges", type=int, nargs="+", default=[200, 400, 1000], help="px of the face's crop")
    flags.add_argument("--models", nargs="+", default=["original"])
    flags.add_argument("--formats", nargs="+", default=["jpg", "png"], choices=("jpg", "png"))
    flags.add_argument("--frames", type=int, default=96, help="in groups of 16; the first one has nothing beside it")
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--folder", type=Path, help="where frames are written; default: a temporary one")
    arguments = flags.parse_args()
    frames, repeats = (4, 1) if arguments.quick else (arguments.frames, arguments.repeats)
    results = Results(arguments.json)
    for name in arguments.models:
        model = build_model(ModelConfig(name=name), False, 1).eval()
        for suffix in arguments.formats:
            for edge in arguments.edges:
                place = nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory()
                with place as folder:
                    (Path(folder) / "in").mkdir(exist_ok=True)
                    (Path(folder) / "out").mkdir(exist_ok=True)
                    footage = draw_footage(Path(folder) / "in", edge, frames, suffix)
                    for row in measure(model, footage, suffix, repeats, Path(folder) / "out"):
                        results.add({"model": name, "format": suffix, "crop_px": edge, **row})


if __name__ == "__main__":
    main()
