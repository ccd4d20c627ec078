"""How fast are faces fed, and where does the time go?

Each stage apart (read, decode, crop and masks, augment, to tensor) and the whole, cold and warm, from 512 px faceswap
PNGs to float tensors on the CPU, beside a loader written the peer's way, in one run: python -m benchmarks.loader
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks import peer
from benchmarks.common import Timing, compare, parser, peak_mib, reset_peak, save, show, summary, timed
from benchmarks.faces import head_folders
from pipelines.build import make_augmenter
from pipelines.decode import dali_version, decode_pictures
from pipelines.loader import TrainLoader
from pipelines.sampler import Sampler
from pipelines.store import StoreSpec, fill_store
from swapfast.augment.opencv import OpenCVAugmenter
from swapfast.config import AugmentationConfig, CropConfig, MaskConfig
from swapfast.faces.crop import crop_face
from swapfast.faces.folder import scan_folder
from swapfast.faces.masks import training_masks
from swapfast.system import available_cores

BATCH = 16
MASKS = ("face", "eye", "mouth")
THREADS = available_cores()
PEER_AHEAD = 2 * peer.WORKERS * 2  # twice what its processes have ready
PUBLISHED = {64: 223, 128: 156, 256: 93, 512: 32}  # faceswap itself on two cores, faces/s


def spec(size: int) -> StoreSpec:
    return StoreSpec(size, CropConfig(), MaskConfig(), MASKS)


def make_loader(stores, size: int) -> TrainLoader:
    sampler = Sampler(1, tuple(len(store) for store in stores), BATCH)
    augment = make_augmenter("opencv", size, size, (size,), torch.device("cpu"))
    return TrainLoader(stores, sampler, augment, False, AugmentationConfig())


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def read_and_fill(folders: list[Path], size: int) -> list:
    """What a first start does: parse every header, decode, crop and mask every face."""
    return [fill_store(spec(size), scan_folder(folder).records)[0] for folder in folders]


def cold(folders: list[Path], size: int) -> None:
    """The first epoch: everything from the files to the last batch of float tensors."""
    stores = read_and_fill(folders, size)
    steps = -(-len(stores[0]) // BATCH)
    take(iter(make_loader(stores, size)), steps)


def take(batches: Iterator, count: int) -> None:
    """Consume some batches and keep none, as training does."""
    for _ in range(count):
        next(batches)


def peer_seconds(folders: list[Path], size: int, steps: int) -> float:
    """Seconds a step of the peer's way takes, its processes started and their queues drained before."""
    batches = iter(peer.loader(folders, size, steps + PEER_AHEAD, BATCH))
    take(batches, PEER_AHEAD)
    return timed(lambda: take(batches, steps)) / steps


def our_seconds(stores, size: int, steps: int) -> float:
    """Seconds a step of ours takes, store warm, what was made ahead drained before."""
    batches = iter(make_loader(stores, size))
    take(batches, 20)
    seconds = timed(lambda: take(batches, steps)) / steps
    batches.close()
    return seconds


def fill_memory(folders: list[Path], size: int) -> tuple[float, float]:
    """MiB that the store takes, and that filling it left beside it in a fresh process (DALI's own included)."""
    before = resident_mib()
    stores = read_and_fill(folders, size)
    kept = sum(store.nbytes for store in stores) / 2**20
    return kept, resident_mib() - before - kept


def end_to_end(folders: list[Path], size: int, repeats: int, seconds: float) -> list[dict]:
    """Ours warm and the peer's way in turn, each alone on the machine; then ours cold."""
    stores = read_and_fill(folders, size)
    theirs_s = [peer_seconds(folders, size, 4)]
    ours_s = [our_seconds(stores, size, 20)]
    steps = [max(4, round(seconds / probe[0])) for probe in (theirs_s, ours_s)]
    theirs_s, ours_s, peak = [], [], 0.0
    for _ in range(repeats):
        theirs_s.append(peer_seconds(folders, size, steps[0]))
        reset_peak()
        ours_s.append(our_seconds(stores, size, steps[1]))
        peak = max(peak, peak_mib())
    faces = 2 * BATCH
    per_batch = faces / sum(len(store) for store in stores)
    reset_peak()
    first_s = [timed(lambda: cold(folders, size)) * per_batch for _ in range(repeats)]
    first = Timing(first_s, peak_mib())
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        kept, beside = alone.submit(fill_memory, folders, size).result()

    def ratio(ours: list[float]) -> float:
        return round(statistics.median(their / our for their, our in zip(theirs_s, ours)), 2)

    row = {"name": "end_to_end", "size": size}
    memory = {"store_mib": round(kept, 1), "process_mib_beside_store": round(beside, 1)}
    warm = Timing(ours_s, peak)
    return [
        summary(warm, faces, **row, backend="opencv", state="warm", ratio_to_peer=ratio(ours_s), **memory),
        summary(first, faces, **row, backend="opencv", state="cold", ratio_to_peer=ratio(first_s)),
        # The peer's memory is in its own processes and not measured here.
        summary(Timing(theirs_s, None), faces, **row, backend="peer_loop", state="warm", published=PUBLISHED.get(size)),
    ]


def stages(folders: list[Path], size: int, repeats: int) -> list[dict]:
    """Each stage alone, per 32 faces: ours and the peer's way, in turn, on the same faces."""
    records = [scan_folder(folder).records for folder in folders]
    mixed = (records[0][:BATCH] + records[1][:BATCH])[: 2 * BATCH]
    paths = [record.path for record in mixed]
    images = [p.copy() for batch in decode_pictures(paths, THREADS) for p in batch]
    stores = read_and_fill(folders, size)
    loader = make_loader(stores, size)
    faces, planes = loader.gather(loader.sampler.ids(0))
    draws = loader.draws(0)
    as_bytes = OpenCVAugmenter(size, size, (size,))
    augmented = as_bytes(faces, planes, draws)
    six = np.concatenate([faces, planes.transpose(0, 2, 3, 1)], axis=3)
    rng = np.random.default_rng(1)

    def crop_and_masks() -> None:
        for record, image in zip(mixed, images):
            crop_face(record, image, CropConfig(), size)
            training_masks(record, CropConfig(), MaskConfig(), size, MASKS)

    calls = {
        ("decode", "dali"): lambda: list(decode_pictures(paths, THREADS, use_dali=True)),
        ("decode", "opencv"): lambda: list(decode_pictures(paths, THREADS, use_dali=False)),
        ("crop_and_masks", "opencv"): crop_and_masks,
        ("sample_and_gather", "opencv"): lambda: (loader.gather(loader.sampler.ids(0)), loader.draws(0)),
        ("augment", "opencv"): lambda: as_bytes(faces, planes, draws),
        ("augment_and_to_tensor", "opencv"): lambda: loader.augment(faces, planes, draws),
        ("to_tensor", "opencv"): lambda: augmented.to_float(),
        ("read_parse_crop_masks", "peer_loop"): lambda: [peer.item(path, size) for path in paths],
        ("augment_and_to_tensor", "peer_loop"): lambda: peer.augment(six.copy(), rng),
    }
    if dali_version() is None:
        del calls["decode", "dali"]
    times = compare(calls, repeats)
    rows = [
        summary(timing, len(mixed), name=name, size=size, backend=backend, state="warm")
        for (name, backend), timing in times.items()
    ]
    scans = compare({"scan": lambda: [scan_folder(folder) for folder in folders]}, repeats, warm_up=1)
    found = sum(map(len, records))
    rows.append(summary(scans["scan"], found, name="read_headers", size=size, backend="opencv", state="warm"))
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    arguments.add_argument("--faces", type=int, default=96, help="per side; default 96")
    options = arguments.parse_args()
    repeats = 3 if options.quick else 5
    results = []
    with head_folders(options.faces) as folders:
        for size in options.sizes:
            rows = stages(folders, size, repeats)
            rows += end_to_end(folders, size, repeats, 1.0 if options.quick else 5.0)
            show(rows)
            results += rows
    save(results, options.json)


if __name__ == "__main__":
    main()
