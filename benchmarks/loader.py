"""Measures how fast faces are fed, and where the time goes.

Each stage apart (read, decode, crop and masks, augment, to tensor) and the whole, from 512 px faceswap PNGs to float
tensors, beside a loader written the peer's way, in one run: python -m benchmarks.loader

The whole, rows ``end_to_end``, by state:
    cold            a first start, cache folder empty: read every header, decode all faces, one epoch of batches; on
                    --cold-faces a side, the drawn ones linked under other names
    warm            the store is there and mapped
    warm_uint8      the same, batches handed on as bytes: what the CPU does where a GPU makes the floats
    cache_gpu       --cache gpu: the store in the device's memory; without a GPU that is kornia's on the CPU
    cache_off       --cache off: every batch is decoded
``device`` says where batches end: with a GPU there are rows of both kinds, and the peer's are on the CPU either way.
The files are in the system's page cache throughout.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks import peer
from benchmarks.common import (
    Timing,
    alone,
    compare,
    own_mib,
    parser,
    peak_mib,
    reset_peak,
    save,
    show,
    significant,
    summary,
    timed,
)
from benchmarks.faces import head_folders, link_faces
from pipelines.cache import cached_store
from pipelines.collate import Collate, Pixels, collate
from pipelines.dataset import TrainSet
from pipelines.decode import dali_version, decode_pictures
from pipelines.loader import PREFETCH, BatchSchedule, TrainLoader
from pipelines.run.build import make_augmenter
from pipelines.sampler import Sampler
from pipelines.sides import make_feed, no_log, scan_side, try_save_index
from pipelines.store import StoreSpec
from swapfast.augment.draws import Draws
from swapfast.augment.fused.verified import Augment
from swapfast.augment.host.augmenter import OpenCVAugmenter
from swapfast.batch import MASK_NAMES, SIDES, Batch
from swapfast.config import AugmentationConfig, CropConfig, MaskConfig
from swapfast.faces.crop import crop_face
from swapfast.faces.folder import scan_folder
from swapfast.faces.masks import training_masks
from swapfast.faces.table import index_path, load_index
from swapfast.system import available_cores

HEAD = 512  # px of the PNGs
THREADS = available_cores()
PEER_AHEAD = 2 * peer.WORKERS * 2  # twice what its processes have ready
PROBE = 2  # steps, to find out how many fill the time
PUBLISHED = {64: 223, 128: 156, 256: 93, 512: 32}  # faceswap itself on two cores, faces/s


@dataclass(frozen=True)
class Way:
    """One way to feed.

    state: see the module.
    cache_mode: --cache.
    device: of the batches.
    """

    state: str
    cache_mode: str = "host"
    backend: str = "opencv"
    device: str = "cpu"

    def labels(self) -> dict[str, str]:
        return {"backend": self.backend, "state": self.state, "device": self.device}


WARM = Way("warm")
ON_CPU = (
    WARM,
    Way("warm_uint8"),
    Way("cache_gpu", "gpu"),
    Way("cache_gpu", "gpu", "kornia"),
    Way("cache_off", "off"),
)
ON_GPU = (
    Way("warm", device="cuda"),
    Way("warm", "host", "kornia", "cuda"),
    Way("cache_gpu", "gpu", "kornia", "cuda"),
    Way("cache_off", "off", "kornia", "cuda"),
)


class BytesCollate(Collate):
    """A ``Collate`` that returns the augmenter's bytes instead of floats."""

    def batch(self, faces: Pixels, extra_masks: Pixels, draws: Draws, ids: np.ndarray, step: int = 0) -> Batch:
        return collate(self.augment(faces, extra_masks, draws), ids, self.masks, self.color_order, step)


def read_sides(folders: list[Path], cache: Path) -> list:
    """Return the faces of both folders, read through the index in the cache folder as a run does."""
    return [scan_side(folder, MaskConfig().mask_type, False, cache=cache) for folder in folders]


def stored_sets(sources: list, size: int, cache: Path) -> list[TrainSet]:
    """Return both sides' faces from stores in the cache folder, which are made if they are missing."""
    spec = StoreSpec(size, CropConfig(), MaskConfig(), MASK_NAMES)
    sets = []
    for label, source in zip(map(str.upper, SIDES), sources):
        sets.append(TrainSet.from_source(label, source, spec, cached_store(cache, spec, source).store))
        try_save_index(index_path(cache, source.folder.path), source.folder.records)
    return sets


def make_loader(sets: list[TrainSet], batch: int, way: Way = WARM) -> TrainLoader:
    """Return a prefetching loader for a model whose inputs and outputs have the store's size."""
    size, device = sets[0].spec.size, torch.device(way.device)
    sampler = Sampler(1, tuple(map(len, sets)), batch)
    schedule = BatchSchedule.prefetched(way.cache_mode, way.backend, THREADS)
    if way.state == "warm_uint8":
        as_bytes: Augment = OpenCVAugmenter(size, size, (size,), THREADS, callers=schedule.workers)
        batch_collate: Collate = BytesCollate(as_bytes, False, MASK_NAMES)
    else:
        augment = make_augmenter(
            way.backend, size, size, (size,), device, AugmentationConfig(), THREADS, callers=schedule.workers
        )
        batch_collate = Collate(augment, way.backend != "opencv", MASK_NAMES, device=device)
    feed = make_feed(way.cache_mode, sets, sampler, device, way.backend, no_log)
    return TrainLoader(feed, sampler, batch_collate, AugmentationConfig(), size, schedule=schedule)


@contextmanager
def batches_of(sets: list[TrainSet], batch: int, way: Way) -> Iterator[Generator[Batch, None, None]]:
    """Yield a loader's batches, then free its threads and memory before the next loader."""
    loader = make_loader(sets, batch, way)
    batches = iter(loader)
    try:
        yield batches
    finally:
        batches.close()
        if isinstance(loader.collate.augment, OpenCVAugmenter):
            loader.collate.augment.close()
        del loader, batches
        gc.collect()


def take(batches: Iterator, count: int) -> None:
    """Consume ``count`` batches, as training does."""
    for _ in range(count):
        next(batches)


def peer_seconds(folders: list[Path], size: int, batch: int, steps: int) -> float:
    """Return the seconds of one of the peer's steps, after its processes have started and their queues are drained."""
    batches = iter(peer.loader(folders, size, steps + PEER_AHEAD, batch))
    take(batches, PEER_AHEAD)
    return timed(lambda: take(batches, steps)) / steps


def our_seconds(sets: list[TrainSet], batch: int, way: Way, steps: int, warm_up: float) -> float:
    """Return the seconds of one of our steps, after ``warm_up`` seconds and with the prefetched batches drained."""
    with batches_of(sets, batch, way) as batches:
        begun = time.perf_counter()
        take(batches, PREFETCH + 1)
        while time.perf_counter() - begun < warm_up:
            next(batches)
        return timed(lambda: take(batches, steps)) / steps


def first_epoch(folders: list[Path], size: int, batch: int) -> dict[str, float]:
    """Return the seconds of a first start, from the files to the last batch of an epoch."""
    with TemporaryDirectory() as cache:
        times = [time.perf_counter()]
        sources = read_sides(folders, Path(cache))
        times.append(time.perf_counter())
        sets = stored_sets(sources, size, Path(cache))
        times.append(time.perf_counter())
        with batches_of(sets, batch, WARM) as batches:
            take(batches, -(-len(sets[0]) // batch))
            times.append(time.perf_counter())
    parts = {name: b - a for name, a, b in zip(("read_s", "fill_s", "batches_s"), times, times[1:])}
    return {"faces": sum(map(len, sets)), "whole_s": times[-1] - times[0], **parts}


def fill_memory(folders: list[Path], size: int) -> tuple[float, float | None]:
    """Return the MiB of the stores, and the growth of a new process that fills and maps them, DALI included."""
    start_mib = own_mib()
    with TemporaryDirectory() as cache:
        sets = stored_sets(read_sides(folders, Path(cache)), size, Path(cache))
        store_mib = sum(side.host_store.nbytes for side in sets) / 2**20
        end_mib = own_mib()
        return store_mib, None if start_mib is None or end_mib is None else end_mib - start_mib


def end_to_end(
    folders: list[Path],
    large: list[Path],
    sets: list[TrainSet],
    batch: int,
    repeats: int,
    seconds: float,
    ways: tuple[Way, ...],
) -> list[dict]:
    """Measure the peer, our ways and a first start on the ``large`` folders in turn. Returns their rows."""
    size, faces, warm_up = sets[0].spec.size, 2 * batch, seconds / 8

    probe = peer_seconds(folders, size, batch, 2 * peer.WORKERS)
    peer_steps = max(2, round(seconds / probe / peer.WORKERS)) * peer.WORKERS  # its processes come in turn
    steps = {way: max(PROBE, round(seconds / our_seconds(sets, batch, way, PROBE, warm_up))) for way in ways}
    theirs: list[float] = []
    ours: dict[Way, list[float]] = {way: [] for way in ways}
    peaks = dict.fromkeys([*ways, "cold"], 0.0)
    colds = []
    for _ in range(repeats):
        theirs.append(peer_seconds(folders, size, batch, peer_steps))
        for way in ways:
            reset_peak()
            ours[way].append(our_seconds(sets, batch, way, steps[way], warm_up))
            peaks[way] = max(peaks[way], peak_mib(way.device == "cuda"))
        reset_peak()
        colds.append(first_epoch(large, size, batch))
        peaks["cold"] = max(peaks["cold"], peak_mib(False))
    first = [cold["whole_s"] * faces / cold["faces"] for cold in colds]
    parts = {name: significant(statistics.median(cold[name] for cold in colds)) for name in colds[0]}
    store_mib, beside = alone(fill_memory, folders, size)
    memory = {
        "store_mib": round(store_mib, 1),
        "process_mib_beside_store": None if beside is None else round(beside, 1),
    }

    def ratio(seconds: list[float]) -> float:
        return significant(statistics.median(their / our for their, our in zip(theirs, seconds)))

    row: dict[str, object] = {"name": "end_to_end", "size": size}
    rows = []
    for way in ways:
        extra = memory if way is WARM else {}
        timing = Timing(ours[way], peaks[way])
        rows.append(summary(timing, faces, **row, **way.labels(), ratio_to_peer=ratio(ours[way]), **extra))
    labels = Way("cold").labels()
    rows.append(summary(Timing(first, peaks["cold"]), faces, **row, **labels, ratio_to_peer=ratio(first), **parts))
    # The peer's memory is in its own processes and not measured here.
    peer_labels = {"backend": "peer_loop", "state": "warm", "device": "cpu", "published": PUBLISHED.get(size)}
    return [*rows, summary(Timing(theirs, None), faces, **row, **peer_labels)]


def decoded_pictures(paths: list[Path]) -> list[np.ndarray]:
    """Return the pixels of pictures, all of which can be decoded."""
    images = []
    for pictures in decode_pictures(paths, THREADS):
        for picture in pictures:
            assert not isinstance(picture, str), picture
            images.append(picture.copy())
    return images


def stages(sets: list[TrainSet], batch: int, repeats: int) -> list[dict]:
    """Measure each stage per batch, ours and the peer's in turn, on the same faces. Returns their rows."""
    size = sets[0].spec.size
    mixed = [record for side in sets for record in side.source.folder.records[:batch]]
    paths = [record.path for record in mixed]
    images = decoded_pictures(paths)
    loader = make_loader(sets, batch)
    faces, extra_masks = map(np.asarray, loader.feed(0, loader.sampler.ids(0))[:2])
    draws, _ = loader.draws(loader.sampler.ordinals(0), loader.sampler.ids(0))
    as_floats, as_bytes = (OpenCVAugmenter(size, size, (size,), as_float=as_float) for as_float in (True, False))
    augmented = as_bytes(faces, extra_masks, draws)
    stacked = np.concatenate([faces, extra_masks.transpose(0, 2, 3, 1)], axis=3)
    rng = np.random.default_rng(1)

    def crop_and_masks() -> None:
        for record, image in zip(mixed, images):
            crop_face(record, image, CropConfig(), size)
            training_masks(record, CropConfig(), MaskConfig(), size, MASK_NAMES)

    # How many faces a call is for, and the call. A folder of fewer than a batch is drawn from more than once.
    calls: dict[tuple[str, str], tuple[int, Callable[[], object]]] = {
        ("decode", "dali"): (len(paths), lambda: list(decode_pictures(paths, THREADS, use_dali=True))),
        ("decode", "host"): (len(paths), lambda: list(decode_pictures(paths, THREADS, use_dali=False))),
        ("crop_and_masks", "opencv"): (len(paths), crop_and_masks),
        ("sample_and_gather", "opencv"): (
            len(faces),
            lambda: (
                *map(np.asarray, loader.feed(0, loader.sampler.ids(0))[:2]),
                loader.draws(loader.sampler.ordinals(0), loader.sampler.ids(0)),
            ),
        ),
        ("augment", "opencv"): (len(faces), lambda: as_bytes(faces, extra_masks, draws)),
        ("augment_and_to_tensor", "opencv"): (len(faces), lambda: as_floats(faces, extra_masks, draws)),
        ("to_tensor", "opencv"): (len(faces), lambda: augmented.to_float()),
        ("read_parse_crop_masks", "peer_loop"): (len(paths), lambda: [peer.item(path, size) for path in paths]),
        ("augment_and_to_tensor", "peer_loop"): (len(stacked), lambda: peer.augment(stacked.copy(), rng)),
    }
    if dali_version() is None:
        del calls["decode", "dali"]
    times = compare({key: call for key, (_, call) in calls.items()}, repeats)
    as_floats.close()
    as_bytes.close()
    return [
        summary(timing, calls[key][0], name=key[0], size=size, backend=key[1], state="warm")
        for key, timing in times.items()
    ]


def headers(folders: list[Path], repeats: int) -> list[dict]:
    """Measure reading both folders' headers, and checking them with an index. Returns the rows."""
    with TemporaryDirectory() as cache:
        faces = sum(len(source.folder.records) for source in read_sides(folders, Path(cache)))
        indexes = [index_path(Path(cache), folder) for folder in folders]

        def rescan() -> None:
            for index, folder in zip(indexes, folders):
                assert scan_folder(folder, known=load_index(index, folder)).read == 0

        calls: dict[str, Callable[[], object]] = {
            "read_headers": lambda: [scan_folder(folder) for folder in folders],
            "index_again": rescan,
        }
        times = compare(calls, repeats, warm_up=1)
    return [summary(times[name], faces, name=name, size=HEAD, backend="opencv", state="warm") for name in calls]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    arguments.add_argument("--faces", type=int, default=96, help="per side; default 96")
    arguments.add_argument("--cold-faces", type=int, default=512, help="per side of a first start; default 512")
    arguments.add_argument("--batch", type=int, default=16, help="faces per side and step; default 16")
    options = arguments.parse_args()
    repeats, seconds = (1, 0.02) if options.quick else (5, 4.0)
    ways = ON_CPU + (ON_GPU if torch.cuda.is_available() else ())
    with head_folders(options.faces, HEAD) as folders, TemporaryDirectory(dir=folders[0].parent) as work:
        large = [
            link_faces(sorted(folder.glob("*.png")), Path(work) / folder.name, options.cold_faces) for folder in folders
        ]
        results = headers(folders, repeats)
        show(results)
        for size in options.sizes:
            with TemporaryDirectory() as cache:
                sets = stored_sets(read_sides(folders, Path(cache)), size, Path(cache))
                rows = stages(sets, options.batch, repeats)
                rows += end_to_end(folders, large, sets, options.batch, repeats, seconds, ways)
            show(rows)
            results += rows
            save(results, options.json)  # after each size: the large ones take long


if __name__ == "__main__":
    main()
