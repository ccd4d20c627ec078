"""Makes the training sets of a run's two folders, and the feed of their bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from pipelines.cache import cached_store, has_space, store_path
from pipelines.dataset import TrainSet, bad_faces, open_source
from pipelines.feed import DecodeFeed, DeviceFeed, Feed, HostFeed, PreparedFeed
from pipelines.fill import UNUSABLE, FaceSource, Progress, fill_store
from pipelines.matches import cached_find_closest
from pipelines.sampler import Sampler
from pipelines.store import HostStore, StoreSpec
from swapfast.config import CropConfig, MaskConfig, TrainConfig
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.crop import crop_shares, spread_indices
from swapfast.faces.masks import DRAWN_TYPES, face_mask
from swapfast.faces.matching import LandmarkMatcher
from swapfast.faces.reader import BadFace
from swapfast.faces.skip_list import NO_SKIP, SkipList
from swapfast.faces.table import FaceTable, index_path, load_index, save_index
from swapfast.points import transform_points
from swapfast.system import available_memory, on_all_cores

FEW_FACES = 25  # fewer faces are mostly learned by heart
DEVICE_SHARE = 0.6  # of free GPU memory; the model, its optimizer and the batches need the rest
MEMORY_SHARE = 0.5
NEARLY_ALL = 0.9  # share of a side's faces that show one picture, from which on that is told
ALIKE_LANDMARKS = 0.015  # mean distance of aligned landmarks, in unit squares, of pictures that may be one
ALIKE_LEVELS = 2.0  # mean difference of their grays, of 255
COMPARED = 400  # faces of a side whose landmarks are compared
LOOKED_AT = 24  # pictures with the same landmarks that are decoded for that
MASKS_READ = 1000  # at the start, of a folder whose faces are decoded batch by batch

ProgressFactory = Callable[[str], Callable[[int, int], None]]  # description -> what is told (done, total)
Log = Callable[[str], None]  # is given a line


def no_progress(_description: str) -> Callable[[int, int], None]:
    """Return a callback that shows nothing."""
    return lambda count, total: None


def no_log(_line: str) -> None:
    """Print nothing."""


def scan_side(
    path: Path,
    mask_type: str,
    skip_bad: bool,
    progress: ProgressFactory = no_progress,
    cache: Path | None = None,
    skip: SkipList = NO_SKIP,
) -> FaceSource:
    """Read a folder's headers or open a prepared set, and check that its faces have masks of ``mask_type``.

    cache: folder of the index, which is updated if the folder exists.
    skip: faces to leave out.
    Raises SwapfastError listing every bad file unless ``skip_bad``, and if no face has such a mask.
    """
    index = None if cache is None else index_path(cache, path)
    table = None if index is None else load_index(index, path)
    source = open_source(path, progress(f"reading {path}"), table)
    if source.prepared is not None:
        return dataclasses.replace(source, folder=skip.apply(source.folder))
    folder = source.folder
    if index is not None and folder.records is not table and index.parent.is_dir():
        try_save_index(index, folder.records)
    folder = skip.apply(folder).with_mask(mask_type)
    folder.require_all_good(skip_bad)
    return FaceSource(folder)


def try_save_index(path: Path, table: FaceTable) -> None:
    """Save an index if possible. Without one, the next start reads the folder again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_index(path, table)


def format_bytes(count: int) -> str:
    """Return a number of bytes as text: 1234567 -> '1.2 MiB'."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def choose_cache(
    requested: str,
    needed: int,
    cache: Path,
    device: torch.device,
    backend: str,
    already_cached: int = 0,
    processes: int = 1,
) -> tuple[str, str]:
    """Return the cache mode ("gpu", "host", "memory" or "off") and a line that explains it.

    requested: --cache.
    needed: bytes of all faces.
    already_cached: how many of them the cache folder has.
    processes: of this machine; they share the cache folder but not their memory.
    Raises SwapfastError (code 1) if the faces do not fit into the requested place.
    """
    size = format_bytes(needed)
    on_gpu = device.type == "cuda"
    if requested == "gpu" or (requested == "auto" and on_gpu and backend != "opencv"):
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
        share = DEVICE_SHARE if on_gpu else MEMORY_SHARE
        if needed * (1 if on_gpu else processes) <= share * free:
            return "gpu", f"cache: gpu, {size} of {format_bytes(free)} that are free there"
        if requested == "gpu":
            raise SwapfastError(
                f"--cache gpu: the faces take {size}, and of the {format_bytes(free)} that are free there at most "
                f"{share:.0%} are used for them; train with --cache host",
                EXIT_FAILED,
            )
    if requested == "off":
        return "off", "cache: off, every batch is decoded"
    if requested == "host" or has_space(cache, needed - already_cached):
        return "host", f"cache: host, {size} in {cache}"
    if needed * processes <= MEMORY_SHARE * available_memory():
        return "memory", f"cache: {size} in memory, for the disk of {cache} has no room: the next start decodes again"
    return "off", f"cache: off, for neither the disk of {cache} nor memory has room for {size}"


def _fits_on_disk(cache: Path, spec: StoreSpec, source: FaceSource) -> bool:
    """Return whether a store exists already or the disk has room for it."""
    return store_path(cache, spec, source).is_file() or has_space(cache, len(source) * spec.bytes_per_face)


def make_train_set(
    side: str,
    source: FaceSource,
    spec: StoreSpec,
    cache_mode: str,
    cache: Path,
    skip_bad: bool,
    share: float,
    progress: ProgressFactory = no_progress,
    log: Log = no_log,
) -> TrainSet:
    """Return a side's training faces, decoded and stored.

    cache_mode: from ``choose_cache``.
    share: of the faces, held out for validation.
    Raises SwapfastError listing the faces that cannot be decoded unless ``skip_bad``.
    """
    rows, store, bad = None, None, []
    decoding = progress(f"decoding {source.folder.path}")
    if cache_mode == "host" or (cache_mode == "gpu" and _fits_on_disk(cache, spec, source)):
        copying = progress(f"copying decoded faces of {source.folder.path}")
        cached = cached_store(cache, spec, source, progress=decoding, log=log, copying=copying)
        store, bad = cached.store, cached.bad
        if cached.reused:
            log(f"side {side}: {cached.reused} of {len(source)} faces were decoded before")
    elif cache_mode in ("memory", "gpu"):
        store = HostStore.in_memory(spec, len(source))
        bad = bad_faces(source, fill_store(spec, source, store, progress=decoding))
    elif "face" in spec.masks and source.prepared is None:
        bad = faces_without_mask(source, spec, progress(f"reading masks of {source.folder.path}"))
    if bad:
        names = {face.path.name for face in bad}
        rows = np.array([i for i in range(len(source)) if source.folder.records.name(i) not in names], np.int64)
        source = source.without(bad)
    source.folder.require_all_good(skip_bad)
    return TrainSet.from_source(side, source, spec, store, rows, share)


def faces_without_mask(source: FaceSource, spec: StoreSpec, progress: Progress) -> list[BadFace]:
    """Return the faces whose masks do not show them, of MASKS_READ spread over a folder that is not decoded at once.

    The masks of the others are judged when they are decoded. Drawn masks need no look.
    """
    if spec.mask.mask_type in DRAWN_TYPES:
        return []
    indices = np.unique(spread_indices(len(source), MASKS_READ)).tolist()

    def reason_of(index: int) -> str | None:
        record = source.folder.records[index]
        try:
            face_mask(record, spec.crop, spec.mask, spec.size)
        except UNUSABLE as error:
            return str(error).removeprefix(f"{record.path}: ")
        return None

    reasons = on_all_cores(reason_of, indices, None, progress)
    return bad_faces(source, {index: reason for index, reason in zip(indices, reasons) if reason})


def make_feed(
    cache_mode: str,
    sets: list[TrainSet],
    sampler: Sampler,
    device: torch.device,
    backend: str,
    log: Log,
    threads: int | None = None,
) -> Feed:
    """Return the feed of a step's bytes. threads: for decoding, by default one per core."""
    if cache_mode == "off":
        device_id = (device.index or 0) if device.type == "cuda" else None
        feed = DecodeFeed(sets, sampler, threads, device_id, warn=log)
        return PreparedFeed(feed) if backend != "opencv" and PreparedFeed.fits(sets) else feed
    if cache_mode == "gpu":
        return DeviceFeed(sets, device, gathers=backend != "triton")
    return HostFeed(sets, device if backend != "opencv" else None)


def make_matcher(
    sides: list[TrainSet], config: TrainConfig, cache: Path, progress: ProgressFactory = no_progress
) -> LandmarkMatcher | None:
    """Return the matcher of the warp to landmarks, None without that warp. cache: folder of its matches."""
    if not config.augmentation.warp_to_landmarks:
        return None
    folders = " and ".join(str(side.source.folder.path.resolve()) for side in sides)
    options = {"size": sides[0].spec.size, "crop": config.crop.to_dict(), "validation": config.validation}
    return LandmarkMatcher.from_records(
        [side.source.folder.records.select(side.members) for side in sides],
        sides[0].spec.size,
        config.crop.centering,
        *crop_shares(config.crop),
        progress=progress("matching landmarks"),
        find=cached_find_closest(cache, folders, options),
    )


def faces_digest(sides: list[TrainSet]) -> str:
    """Return a digest of the training faces' content in order, equal on machines that hold the same faces."""
    digest = hashlib.sha256()
    for side in sides:
        digest.update(np.ascontiguousarray(side.source.folder.records.column("content")[side.members]).tobytes())
    return digest.hexdigest()


def describe_sides(sides: list[TrainSet]) -> list[str]:
    """Return lines that describe the folders for a person, with warnings."""
    lines = []
    for side in sides:
        folder = side.source.folder
        notes = "".join(f", {count} with {note}" for note, count in folder.notes.items())
        held = f", {len(side.validation)} more held out for validation" if len(side.validation) else ""
        held += f", {side.source.tested} more for the test" if side.source.tested else ""
        lines.append(f"side {side.side}: {len(side)} faces from {folder.path}{held}{notes}")
        if folder.skipped:
            lines.append(f"side {side.side}: {folder.skipped} faces left out by --skip")
        if folder.bad:
            lines.append(f"side {side.side}: {len(folder.bad)} bad files left out")
        lines += [f"warning: side {side.side}: {warning}" for warning in folder.warnings]
        if len(side) < FEW_FACES:
            lines.append(f"warning: side {side.side} has {len(side)} faces; below {FEW_FACES} it learns them by heart")
        if (count := count_alike(side.source)) >= max(2, NEARLY_ALL * len(side.source)):
            lines.append(
                f"warning: side {side.side}: {count} of {len(side.source)} faces are the same picture or nearly so; it "
                "learns that picture by heart"
            )
    return lines + describe_overlap(sides)


def describe_overlap(sides: list[TrainSet]) -> list[str]:
    """Return a line where two sides show the same pictures, which some do on purpose and others by mistake."""
    first, second = sides
    keys, opposite = (side.source.folder.records.column("pixels").view("<u8")[:, 0] for side in sides)
    count = int(np.isin(keys, opposite).sum())
    if not count:
        return []
    is_all = count == len(keys) and np.isin(opposite, keys).all()
    return [
        f"warning: both sides show the same faces: {'all' if is_all else count} of the {len(keys)} pictures of side "
        f"{first.side} are on side {second.side} too; a swap needs two people"
    ]


def count_alike(source: FaceSource) -> int:
    """Return how many faces are the same picture as the most frequent one, or nearly.

    Faces with nearly the same aligned landmarks are looked at: LOOKED_AT of them, spread over the folder.
    """
    records = source.folder.records
    counts = np.unique(records.column("pixels"), axis=0, return_counts=True)[1]
    equal = int(counts.max())
    if equal >= NEARLY_ALL * len(source):
        return equal
    rows = np.unique(spread_indices(len(source), COMPARED))
    points = transform_points(*(records.columns[name][records.rows[rows]] for name in ("legacy_matrix", "landmarks")))
    gaps = np.abs(points - np.median(points, axis=0)).mean((1, 2))
    alike = rows[gaps < ALIKE_LANDMARKS]
    if len(alike) < NEARLY_ALL * len(rows):
        return equal
    decoded = (_thumbnail(source, int(index)) for index in alike[spread_indices(len(alike), LOOKED_AT)])
    thumbnails = [thumbnail for thumbnail in decoded if thumbnail is not None]
    if not thumbnails:
        return equal
    differences = np.abs(np.stack(thumbnails) - np.median(thumbnails, axis=0)).mean((1, 2))
    return int(len(source) * len(alike) / len(rows) * (differences < ALIKE_LEVELS).mean())


def _thumbnail(source: FaceSource, index: int) -> np.ndarray | None:
    """Return a face in 16 x 16 grays, None where it cannot be read."""
    spec = StoreSpec(64, CropConfig() if source.prepared is None else source.prepared.crop, MaskConfig(), ())
    face = np.empty(spec.face_shape, np.uint8)
    if source.put(spec, index, face, np.empty(spec.extra_masks_shape, np.uint8)):
        return None
    return cv2.resize(cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32)
