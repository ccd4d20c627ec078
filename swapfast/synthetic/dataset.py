"""Writes a data set of two synthetic people: OUT/a, OUT/b and the true swaps OUT/truth/a, OUT/truth/b.

Each NNNN.png has a NNNN.json, {"image", "mask", "size", "landmarks": 68 of [x, y]}, and a NNNN_mask.png with one
channel 0..255. The two pictures of a truth pair share pose, expression, light, clothes and background.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from swapfast.errors import EXIT_FAILED, SwapfastError, shortened
from swapfast.files import code_of, not_a_folder, real_path
from swapfast.system import abandon_pool, available_cores, start_worker
from swapfast.threads import is_thread_refused, note_refusal

from .identity import draw_identities
from .render import RenderedFace, render
from .scene import Scene, draw_scene
from .streams import SIDE_A, SIDE_B, TRUTH, generator

SIZES = (64, 1024)
MOST_FACES = 100_000  # of each person, and pairs
_LOCK = ".drawing"  # in an unfinished folder, held by the process that draws into it
_CHUNK = 4  # pictures per task of a worker


@dataclass(frozen=True)
class Spread:
    """The spread of the drawn scenes: standard deviations in rad, light in degrees, negative to the left."""

    faces: int
    yaw_deviation: float
    pitch_deviation: float
    roll_deviation: float
    light_left: float
    light_right: float

    @classmethod
    def from_scenes(cls, scenes: list[Scene]) -> Spread:
        """Return the spread of at least one scene."""
        angles = np.array([(s.pose.yaw, s.pose.pitch, s.pose.roll) for s in scenes])
        azimuths = [s.light.azimuth for s in scenes]
        yaw, pitch, roll = angles.std(axis=0).tolist()
        return cls(len(scenes), yaw, pitch, roll, min(azimuths), max(azimuths))

    def __str__(self) -> str:
        return (
            f"yaw deviation {self.yaw_deviation:.2f} rad, pitch {self.pitch_deviation:.2f}, "
            f"roll {self.roll_deviation:.2f}, light from {self.light_left:+.0f} to {self.light_right:+.0f} degrees, "
            f"over {self.faces} scenes"
        )


@dataclass(frozen=True)
class _Job:
    """One scene to draw with one person, or with both for the truth."""

    root: str
    seed: int
    stream: int
    index: int
    size: int


def _check(faces: int, size: int, pairs: int, seed: int, workers: int | None) -> None:
    if not 1 <= faces <= MOST_FACES:
        raise SwapfastError(f"--faces {shortened(faces)}: give 1 to {MOST_FACES} faces per person")
    if not SIZES[0] <= size <= SIZES[1]:
        raise SwapfastError(f"--size {shortened(size)}: pictures are {SIZES[0]} to {SIZES[1]} px wide")
    if not 0 <= pairs <= MOST_FACES:
        raise SwapfastError(f"--pairs {shortened(pairs)}: give 0 (no true swaps) to {MOST_FACES}")
    if not 0 <= seed < 2**64:
        raise SwapfastError(f"--seed {shortened(seed)}: must lie within 0 .. 2**64 - 1 ({2**64 - 1})")
    if workers is not None and workers < 1:
        raise SwapfastError(f"--workers {workers}: at least 1 process is needed")


def check_new_folder(out: Path) -> None:
    """Raise SwapfastError where ``out`` is neither free nor an empty folder that can be replaced."""
    if os.path.lexists(out) and not out.is_dir():
        raise not_a_folder(out, str(out), "a new folder for the faces")
    try:
        if out.is_dir() and any(out.iterdir()):
            raise SwapfastError(f"{out} is not empty: give a new folder, or remove that one first")
    except OSError as error:
        raise SwapfastError(f"{out}: {error.strerror}; give a folder you may write to", code_of(error)) from error
    if out.is_dir() and (os.path.ismount(out) or out.samefile(Path.cwd())):
        raise SwapfastError(f"{out}: is in use and cannot be replaced; give a new folder, such as {out / 'faces'}")


@contextlib.contextmanager
def unfinished_folder(out: Path) -> Iterator[Path]:
    """Yield a new, hidden folder beside ``out`` to draw into; it is removed at the end unless it was renamed.

    Folders that killed runs for the same ``out`` left behind are removed. One is known by its lock, which nobody holds.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in out.parent.iterdir():
            if re.fullmatch(rf"\.{re.escape(out.name)}\.\w+\.partial", path.name) and _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(".partial", f".{out.name}.", out.parent))
        (partial / "a").mkdir()
        partial.chmod((partial / "a").stat().st_mode & 0o777)  # mkdtemp's own are for nobody else
    except OSError as error:
        message = f"cannot write beside {out}: {error.strerror}; give a folder you may write to"
        raise SwapfastError(message, code_of(error)) from error
    try:
        with (partial / f"{_LOCK}-new").open("xb") as lock:
            _locks(lock.fileno())
            (partial / f"{_LOCK}-new").rename(partial / _LOCK)
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_folder_in_place(partial: Path, out: Path) -> None:
    """Give an unfinished folder its name, that of no folder or of an empty one."""
    (partial / _LOCK).unlink()
    if out.is_dir():
        out.rmdir()
    partial.rename(out)


def _is_abandoned(partial: Path) -> bool:
    """Return whether an unfinished folder has a lock that nobody holds."""
    try:
        with (partial / _LOCK).open("r+b") as lock:
            return _locks(lock.fileno())
    except OSError:
        return False


def _locks(descriptor: int) -> bool:
    """Return whether the lock of a file could be had; False where the system has no locks."""
    try:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _write(folder: Path, index: int, face: RenderedFace) -> None:
    name = f"{index:04d}"
    for stem, pixels in ((name, face.image), (f"{name}_mask", face.mask)):
        (folder / f"{stem}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    record = {
        "image": f"{name}.png",
        "mask": f"{name}_mask.png",
        "size": face.image.shape[0],
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in face.landmarks],
    }
    (folder / f"{name}.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def _draw(job: _Job) -> Scene:
    """Draw and write the job's pictures. Returns the scene for the report."""
    scene = draw_scene(generator(job.seed, job.stream, job.index))
    a, b = draw_identities(job.seed)
    pictures = {SIDE_A: {"a": a}, SIDE_B: {"b": b}, TRUTH: {"truth/a": a, "truth/b": b}}[job.stream]
    for folder, person in pictures.items():
        _write(Path(job.root, folder), job.index, render(person, scene, job.size))
    return scene


def _start_worker(parent: int) -> None:
    start_worker(parent)
    cv2.setNumThreads(1)


def _scenes(jobs: list[_Job], workers: int) -> Iterator[Scene]:
    """Draw the jobs in one or several processes and yield their scenes in order."""
    if workers > 1:
        try:
            yield from _drawn_by_processes(jobs, workers)
            return
        except RuntimeError as error:  # before the first scene
            if not is_thread_refused(error):
                raise
            note_refusal()
    yield from _drawn_here(jobs)


def _drawn_here(jobs: list[_Job]) -> Iterator[Scene]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield from map(_draw, jobs)
    finally:
        cv2.setNumThreads(threads)


def _drawn_by_processes(jobs: list[_Job], workers: int) -> Iterator[Scene]:
    context = multiprocessing.get_context("spawn")  # safe with any threads and devices of the parent
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(os.getpid(),))
    earlier = set(multiprocessing.active_children())
    try:
        yield from pool.map(_draw, jobs, chunksize=_CHUNK)
    except RuntimeError:  # without its own thread it waits for the workers for ever
        abandon_pool(pool, earlier)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _draw_all(jobs: list[_Job], workers: int, progress: Callable[[int, int], None] | None) -> list[Scene]:
    scenes: list[Scene] = []
    count, total = 0, sum(2 if job.stream == TRUTH else 1 for job in jobs)
    for job, scene in zip(jobs, _scenes(jobs, workers), strict=True):
        scenes.append(scene)
        count += 2 if job.stream == TRUTH else 1
        if progress is not None:
            progress(count, total)
    return scenes


def synthesize(
    out: Path,
    faces: int = 300,
    size: int = 256,
    pairs: int = 40,
    seed: int = 1,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Spread:
    """Write a data set to ``out``, which appears only when it is complete. Returns the spread of its scenes.

    faces: number of pictures of each person.
    size: edge of the pictures, px.
    pairs: number of true swaps.
    seed: 64 bits. Every picture depends on the seed, its folder and its number only.
    workers: number of processes, by default one per core. With more than one, a script must call this under
        ``if __name__ == "__main__"``.
    progress: called with (pictures drawn, pictures in total).
    Raises SwapfastError for arguments out of range, an ``out`` that is not empty, and where it cannot be written.
    """
    _check(faces, size, pairs, seed, workers)
    out = real_path(Path(out))
    check_new_folder(out)
    try:
        with unfinished_folder(out) as partial:
            for folder in ("b", *(("truth/a", "truth/b") if pairs else ())):
                (partial / folder).mkdir(parents=True)
            counts = {SIDE_A: faces, SIDE_B: faces, TRUTH: pairs}
            jobs = [_Job(str(partial), seed, stream, i, size) for stream, count in counts.items() for i in range(count)]
            workers = workers or min(available_cores(), len(jobs))
            scenes = _draw_all(jobs, workers, progress)
            put_folder_in_place(partial, out)
    except OSError as error:
        raise SwapfastError(f"could not write {out}: {error}", EXIT_FAILED) from error
    except BrokenProcessPool as error:
        raise SwapfastError(
            "a drawing process was killed, perhaps for memory: use fewer workers", EXIT_FAILED
        ) from error
    return Spread.from_scenes(scenes)
