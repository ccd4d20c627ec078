"""Measures what many faces cost at the first start, at a restart, in each step, and in memory.

A side of 500, one of 5,000 and one of 50,000 faces (--faces scales all three) beside a side of 1,000, at 64 px. Each
start is a process of its own and is timed from when its imports are done: python -m benchmarks.scale

    first_start     from nothing but the files to the first batch of float tensors
    restart         the same with index and store there
    restart_to_landmarks    a restart that warps to landmarks, with the matches there
    step            one batch made in the calling thread, after a restart
    memory          by how much the larger folder's process is larger, per face; mapped files do not count

The faces are a few drawn ones, hard-linked under other names: a file and a row each, and all of them different ones to
the program except that the files' contents are in the system's page cache, and that finding matches for the first time,
which is not measured here, leaves copies of a face out.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.common import Timing, alone, own_mib, parser, peak_mib, reset_peak, save, show, significant, summary
from benchmarks.faces import head_folders, link_faces
from pipelines.collate import Collate
from pipelines.loader import TrainLoader
from pipelines.run.build import make_augmenter
from pipelines.sampler import Sampler
from pipelines.sides import make_feed, make_matcher, make_train_set, no_log, scan_side, try_save_index
from pipelines.store import StoreSpec
from swapfast.batch import MASK_NAMES, SIDES
from swapfast.config import AugmentationConfig, TrainConfig
from swapfast.faces.table import index_path

SIZE, HEAD = 64, 96  # px of the store and of the files
DRAWN = 32  # different pictures per side; --quick: 2
OTHER_SIDE = 1000
BATCH = 16
WARM_UP = 20


@dataclass(frozen=True)
class Started:
    """The measurements of one start.

    faces: of both sides.
    seconds: until the first batch, and of its parts.
    steps: seconds of each further batch.
    feeds: seconds of drawing and copying the faces of a step, the part that depends on the number of faces.
    own_mib: memory at the end without mapped files.
    """

    faces: int
    seconds: dict[str, float]
    own_mib: float | None
    peak_mib: float
    steps: list[float] = field(default_factory=list)
    feeds: list[float] = field(default_factory=list)


def start(folders: list[Path], cache: Path, steps: int, to_landmarks: bool = False) -> Started:
    """Do what ``swapfast train`` does until the first batch, without the model, then make ``steps`` more batches."""
    reset_peak()
    times = [time.perf_counter()]
    config = TrainConfig(batch_size=BATCH, augmentation=AugmentationConfig(warp_to_landmarks=to_landmarks))
    sources = [scan_side(folder, config.mask.mask_type, False, cache=cache) for folder in folders]
    times.append(time.perf_counter())
    spec = StoreSpec(SIZE, config.crop, config.mask, MASK_NAMES)
    sets = [
        make_train_set(label, source, spec, "host", cache, False, 0.0)
        for label, source in zip(map(str.upper, SIDES), sources)
    ]
    for source in sources:
        try_save_index(index_path(cache, source.folder.path), source.folder.records)
    times.append(time.perf_counter())
    matcher = make_matcher(sets, config, cache)
    times.append(time.perf_counter())
    device = torch.device("cpu")
    sampler = Sampler(config.seed, tuple(map(len, sets)), BATCH)
    augment = make_augmenter("opencv", SIZE, SIZE, (SIZE,), device)
    feed = make_feed("host", sets, sampler, device, "opencv", no_log)
    loader = TrainLoader(feed, sampler, Collate(augment, False, MASK_NAMES), config.augmentation, SIZE, matcher=matcher)
    with contextlib.closing(iter(loader)) as batches:
        next(batches)
        times.append(time.perf_counter())
    parts = dict(zip(("read_s", "store_s", "match_s", "loader_s"), (b - a for a, b in itertools.pairwise(times))))
    seconds = {"whole_s": times[-1] - times[0], **parts}
    step_seconds, feed_seconds = step_times(loader, steps)
    gc.collect()
    return Started(sum(map(len, sets)), seconds, own_mib(), peak_mib(), step_seconds, feed_seconds)


def step_times(loader: TrainLoader, steps: int) -> tuple[list[float], list[float]]:
    """Return the seconds of steps and of their feeds, made in the calling thread."""
    step_seconds, feed_seconds = [], []
    for step in range(1, steps + WARM_UP if steps else 0):
        begun = time.perf_counter()
        loader.batch(step)
        step_seconds.append(time.perf_counter() - begun)
    for step in range(steps + WARM_UP, 2 * steps + WARM_UP):
        begun = time.perf_counter()
        for pixels in loader.feed(step, loader.sampler.ids(step))[:2]:
            np.asarray(pixels)  # faces on the host are read on access
        feed_seconds.append(time.perf_counter() - begun)
    return step_seconds[WARM_UP - 1 :], feed_seconds


def median_parts(starts: list[Started]) -> dict[str, float]:
    return {name: significant(statistics.median(run.seconds[name] for run in starts)) for name in starts[0].seconds}


def rows_of(state: str, faces: int, starts: list[Started]) -> list[dict]:
    """Return the row of a start, and the row of its steps if it made any."""
    labels = {"state": state, "faces": faces, "size": SIZE}
    memory = [run.own_mib for run in starts if run.own_mib is not None]
    extra = {**median_parts(starts), "own_mib": round(statistics.median(memory), 1) if memory else None}
    peak = max(run.peak_mib for run in starts)
    timing_to_batch = Timing([run.seconds["whole_s"] for run in starts], peak)
    rows = [summary(timing_to_batch, starts[0].faces, name=state, **labels, **extra)]
    steps = [seconds for run in starts for seconds in run.steps]
    if steps:
        feeds = [seconds for run in starts for seconds in run.feeds]
        feed_ms, worst_ms = (significant(1000 * ms) for ms in (statistics.median(feeds), max(steps)))
        timing = Timing(steps, peak)
        rows.append(summary(timing, 2 * BATCH, name="step", **labels, feed_median_ms=feed_ms, worst_ms=worst_ms))
    return rows


def growth(rows: list[dict], state: str, small: int, large: int) -> dict:
    """Return the row of the KiB by which a process grows with each face."""
    process_mib = {row["faces"]: row["own_mib"] for row in rows if row["name"] == state}
    known = process_mib[small] is not None and process_mib[large] is not None
    kib = round(1024 * (process_mib[large] - process_mib[small]) / (large - small), 3) if known else None
    return {"name": "memory", "state": state, "size": SIZE, "faces": [small, large], "kib_per_face": kib}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--faces", type=int, default=50_000, help="of the largest folder; default 50000")
    options = arguments.parse_args()
    repeats, steps, different = (1, 5, 2) if options.quick else (5, 200, DRAWN)
    scales = sorted({max(1, options.faces // share) for share in (100, 10, 1)})
    with head_folders(min(different, options.faces), HEAD) as drawn, TemporaryDirectory(dir=drawn[0].parent) as work:
        pictures = [sorted(folder.glob("*.png")) for folder in drawn]
        other_folder = link_faces(pictures[1], Path(work) / "b", min(OTHER_SIDE, options.faces))
        folders = {n: [link_faces(pictures[0], Path(work) / f"a{n}", n), other_folder] for n in scales}
        caches = {n: Path(work) / f"cache{n}" for n in scales}
        firsts = {n: [alone(start, folders[n], caches[n], 0)] for n in scales}
        again: dict[int, list[Started]] = {n: [] for n in scales}
        to_landmarks: dict[int, list[Started]] = {n: [] for n in scales}
        for n in scales:
            alone(start, folders[n], caches[n], 0, True)  # finds the matches
        for _ in range(repeats):
            for n in scales:
                again[n].append(alone(start, folders[n], caches[n], steps))
                to_landmarks[n].append(alone(start, folders[n], caches[n], 0, True))
    results = []
    for state, starts in (("first_start", firsts), ("restart", again), ("restart_to_landmarks", to_landmarks)):
        for n in scales:
            results += rows_of(state, n, starts[n])
        if len(scales) > 1:
            results.append(growth(results, state, *scales[-2:]))
    show(results)
    save(results, options.json)


if __name__ == "__main__":
    main()
