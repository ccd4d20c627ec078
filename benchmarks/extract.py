"""Extracts the one face of a video of 1080p: frames/s of the whole command, and its parts, each alone on one thread.

    python -m benchmarks.extract                speed, on a drawn film with a camera's noise
    python -m benchmarks.extract --sizes        detection by size and roll instead, of drawn people on 1080p

The film has a head that sways and talks; the whole runs with faces followed between looks, and with a look at every
frame. Each part has the CPU time of its thread beside the clock: on a machine that others use it tells more. PNGs of a
512 px crop by several encoders have their size beside them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import Results, compare, cpu_seconds, parser, significant, summary
from benchmarks.landmark_map import errors
from swapfast.extract.backends import AcceptanceLimits, FoundPoints, MeshBackend
from swapfast.extract.face_file import FaceFormat, cut_face, encode_face, sharpness
from swapfast.extract.follow import INTERVAL
from swapfast.extract.model_files import read_models
from swapfast.extract.networks import Detector, MeshNetwork, Region
from swapfast.extract.run import ExtractRequest, extract
from swapfast.faces.alignment import align
from swapfast.points import transform_points
from swapfast.swap.frames import Frame
from swapfast.swap.png_writer import encode_pixels
from swapfast.swap.run import one_opencv_thread
from swapfast.synthetic.film import Film
from swapfast.synthetic.identity import draw_identities
from swapfast.synthetic.render import RenderedFace, render
from swapfast.synthetic.scene import draw_scene
from swapfast.synthetic.streams import generator
from swapfast.video.film import RATE, write_video
from swapfast.video.reader import VideoReader

WIDTH, HEIGHT, DRAWN = 1920, 1080, 384
CRF = 17  # of this film about 18 Mbit/s, as cameras have
FACE_SHARE = 0.35  # of the frame's height, from brows to chin
HEIGHTS = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05)
ROLLS = (0, 30, 45, 60, 90, 120, 150, 180)
FOUND = 0.1  # largest error of landmarks, over the eyes' distance, of a face that counts as found
_SEED = 20_001  # of other people than those of the map's fit


def put_on_frame(
    face: RenderedFace, share: float, roll: float = 0.0, seed: int = 0, noise: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return a 1080p frame that shows a drawn face, and its landmarks.

    share: of the frame's height that the landmarks take when upright. roll: degrees, anticlockwise.
    """
    rng = np.random.default_rng(seed)
    points = face.landmarks.astype(np.float64)
    scale = share * HEIGHT / np.ptp(points[:, 1])
    turn: np.ndarray = cv2.getRotationMatrix2D((0, 0), roll, scale)
    place = np.array([rng.uniform(0.35, 0.65) * WIDTH, rng.uniform(0.45, 0.55) * HEIGHT])
    turn[:, 2] = place - turn[:, :2] @ points.mean(0)
    coarse = rng.integers(40, 216, (9, 16, 3), np.uint8)
    background = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    picture, matrix = face.image, turn
    if scale < 0.5:  # averaged first, so that nothing aliases
        picture = cv2.resize(face.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        real = len(picture) / len(face.image)
        matrix = turn.copy()
        matrix[:, :2] /= real
        matrix[:, 2] += matrix[:, :2] @ np.full(2, (real - 1) / 2)
    frame = cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT), background, borderMode=cv2.BORDER_TRANSPARENT)
    frame = np.clip(frame + rng.normal(0, noise, frame.shape), 0, 255).astype(np.uint8)
    return frame, transform_points(turn, points)


def write_film(path: Path, frames: int) -> list[np.ndarray]:
    """Write a film of 1080p; return its landmarks. A drawn scene is shown for a frame, there and back again."""
    person, film = draw_identities(_SEED)[0], Film(_SEED)
    drawn = [render(person, film.scene(index / RATE), DRAWN) for index in range(min(frames, 25))]
    order = [*range(len(drawn)), *range(len(drawn) - 2, 0, -1)]
    landmarks: list[np.ndarray] = []

    def pictures() -> Iterator[np.ndarray]:
        for index in range(frames):
            frame, points = put_on_frame(drawn[order[index % len(order)]], FACE_SHARE, seed=_SEED)
            noise = np.random.default_rng(index).normal(0, 2, (HEIGHT, WIDTH, 1))
            landmarks.append(points)
            yield np.clip(frame + noise, 0, 255).astype(np.uint8)

    write_video(path, pictures(), WIDTH, HEIGHT, crf=CRF)
    return landmarks


def measure_parts(path: Path, repeats: int, results: Results) -> None:
    """Time each part alone, on the film's frames."""
    models = read_models()
    detector, network, backend = Detector(models), MeshNetwork(models), MeshBackend(models)
    decoded = next(iter(VideoReader(path)))
    frame = Frame("film_000001.mp4", 0, 0.0, decoded.pixels())
    points = backend.find(frame).faces[0]
    region, format = Region.of_mesh(points.state), FaceFormat()
    crop = cut_face(frame, points, format)
    frames = iter(VideoReader(path))
    calls: dict[str, Callable[[], object]] = {
        "decode": lambda: next(frames),
        "colour": decoded.pixels,
        "detect, whole frame": lambda: detector(frame.pixels),
        "detect, and tiles of 1/2": lambda: detector(frame.pixels, (1, 2)),
        "detect, and tiles of 1/4": lambda: detector(frame.pixels, (1, 2, 4)),
        "detect, and quarter turns": lambda: detector(frame.pixels, (1, 2, 4), (0, 1, 2, 3)),
        "mesh": lambda: network(frame.pixels, region),
        "mesh, map and checks": lambda: backend.follow(frame, points),
        "align": lambda: align(points.landmarks),
        "crop of 512 px": lambda: cut_face(frame, points, format),
        "sharpness": lambda: sharpness(frame, points),
        "png with header": lambda: encode_face(frame, points, 0, crop, format, True),
    }
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    timings = compare({name: partial(_with_cpu, call, cpu[name]) for name, call in calls.items()}, repeats, warm_up=1)
    for name, timing in timings.items():
        row = summary(timing, 1, part=name)
        results.add({**_short(row), "cpu_ms": significant(1000 * float(np.median(cpu[name][1:])))})
    measure_encoders(crop, repeats, results)


def measure_encoders(crop: np.ndarray, repeats: int, results: Results) -> None:
    """Time encoders of a face, with the size of what they write."""
    encoders: dict[str, Callable[[], bytes]] = {"libdeflate": lambda: encode_pixels(crop)}
    for level in (0, 1, 3, 6, 9):
        flags = [cv2.IMWRITE_PNG_COMPRESSION, level]
        encoders[f"OpenCV level {level}"] = partial(_encoded, crop, flags)
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    encoders["OpenCV RLE, up"] = partial(_encoded, crop, [*fast, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP])
    cpu: dict[str, list[float]] = {name: [] for name in encoders}
    timings = compare({n: partial(_with_cpu, call, cpu[n]) for n, call in encoders.items()}, repeats, warm_up=1)
    for name, timing in timings.items():
        row = _short(summary(timing, 1, encoder=name))
        cpu_ms = significant(1000 * float(np.median(cpu[name][1:])))
        results.add({**row, "cpu_ms": cpu_ms, "kib": round(len(encoders[name]()) / 1024, 1)})


def _encoded(crop: np.ndarray, flags: list[int]) -> bytes:
    return cv2.imencode(".png", crop, flags)[1].tobytes()


def _with_cpu(call: Callable[[], object], seconds: list[float]) -> None:
    start = time.thread_time()
    call()
    seconds.append(time.thread_time() - start)


def _short(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("batch", "faces_per_s", "peak_mib")}


def measure_whole(path: Path, truth: list[np.ndarray], repeats: int, results: Results) -> None:
    """Time the whole command: with faces followed, and with a look at every frame."""
    models = read_models()
    for name, interval in (("followed", INTERVAL), ("looked for in every frame", 1)):
        rates, cpu_ms, report = [], [], {}
        with tempfile.TemporaryDirectory() as folder:
            for run in range(repeats + 1):
                out = Path(folder) / f"{run}"
                request = ExtractRequest((path,), out, lambda: MeshBackend(models), interval=interval)
                before, start = cpu_seconds(), time.perf_counter()
                report = extract(request)
                rates.append(report["frames"] / (time.perf_counter() - start))
                cpu_ms.append(1000 * (cpu_seconds() - before) / report["frames"])
            found = _landmarks_of(out / "landmarks.jsonl", len(truth))
        kept = [index for index, points in enumerate(found) if points is not None]
        error = errors(np.array([found[i] for i in kept]), np.array([truth[i] for i in kept]))
        results.add(
            {
                "whole": name,
                "frames": report["frames"],
                "faces": report["faces"],
                "frames_per_s": round(float(np.median(rates[1:])), 1),  # the first one compiles
                "fastest": round(max(rates[1:]), 1),
                "cpu_ms_per_frame": round(float(np.median(cpu_ms[1:])), 1),
                "inner_51": error["inner_51"],
                "seconds_by_stage": report["seconds_by_stage"],
            }
        )


def _landmarks_of(path: Path, frames: int) -> list[np.ndarray | None]:
    from swapfast.swap.landmark_file import read_landmark_file

    by_index = read_landmark_file(path).faces.by_index
    return [by_index[i][0].landmarks if i in by_index else None for i in range(frames)]


def measure_sizes(people: int, results: Results) -> None:
    """Say how many of some drawn faces are found, by their size and by their roll."""
    faces = []
    for seed in range(_SEED, _SEED + people):
        for number, person in enumerate(draw_identities(seed)):
            faces.append(render(person, draw_scene(generator(seed, number + 1, 0)), DRAWN))
    cases = [("height", share, 0.0) for share in HEIGHTS] + [("roll", 0.3, float(roll)) for roll in ROLLS]
    for what, share, roll in cases:
        frames = [put_on_frame(face, share, roll, seed) for seed, face in enumerate(faces)]
        for way, turns, is_thorough in (("quick", "never", False), ("tiles", "never", True), ("turns", "auto", True)):
            backend = MeshBackend(read_models(), AcceptanceLimits(), turns)
            start, found = time.perf_counter(), []
            for pixels, truth in frames:
                best = _best(backend.find(Frame("", 0, None, pixels), is_thorough).faces, truth)
                found += [best] if best < FOUND else []
            row = {what: share if what == "height" else roll, "way": way, "found": len(found), "of": len(frames)}
            row["error"] = round(float(np.mean(found)), 4) if found else None
            row["ms"] = round(1000 * (time.perf_counter() - start) / len(frames), 1)
            results.add(row)


def _best(faces: list[FoundPoints], truth: np.ndarray) -> float:
    """Return the smallest error of the faces that are found, over the eyes' distance."""
    each = [errors(face.landmarks[None], truth[None])["all_68"] for face in faces]
    return min(each, default=float("inf"))


def main() -> None:
    """Run the benchmark."""
    flags = parser(__doc__ or "")
    flags.add_argument("--sizes", action="store_true", help="detection by size and roll in place of speed")
    flags.add_argument("--frames", type=int, default=150)
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--people", type=int, default=10, help="pairs of drawn people of --sizes")
    arguments = flags.parse_args()
    results = Results(arguments.json)
    if arguments.sizes:
        with one_opencv_thread():
            measure_sizes(2 if arguments.quick else arguments.people, results)
        return
    frames, repeats = (20, 1) if arguments.quick else (arguments.frames, arguments.repeats)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        truth = write_film(path, frames)
        measure_whole(path, truth, repeats, results)
        with one_opencv_thread():
            measure_parts(path, min(4 * repeats, frames - 2), results)


if __name__ == "__main__":
    main()
