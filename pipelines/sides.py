"""The two sides of a run: from the folders that are asked for to training sets and the feed of their bytes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipelines.cache import cached_store, has_space, store_path
from pipelines.dataset import TrainSet, bad_faces, open_source
from pipelines.feed import DecodeFeed, DeviceFeed, Feed, HostFeed, PreparedFeed
from pipelines.fill import FaceSource, fill_store
from pipelines.matches import cached_find_closest
from pipelines.sampler import Sampler
from pipelines.store import HostStore, StoreSpec
from swapfast.config import TrainConfig
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.crop import crop_shares
from swapfast.faces.matching import LandmarkMatcher
from swapfast.faces.table import FaceTable, index_path, load_index, save_index
from swapfast.system import available_memory

FEW_FACES = 25  # below this a model mostly learns the faces by heart
DEVICE_SHARE = 0.6  # of free GPU memory; the model, its optimizer and the batches want the rest
MEMORY_SHARE = 0.5

ProgressFactory = Callable[[str], Callable[[int, int], None]]  # description -> what is told (done, total)
Log = Callable[[str], None]  # is given a line


def no_progress(_description: str) -> Callable[[int, int], None]:
    """Return a callback that shows nothing."""
    return lambda done, total: None


def no_log(_line: str) -> None:
    """Print nothing."""


def scan_side(
    path: Path, mask_type: str, skip_bad: bool, progress: ProgressFactory = no_progress, cache: Path | None = None
) -> FaceSource:
    """Read a folder's headers, or open a prepared set, and see that its faces have the mask asked for.

    cache: where its index lies, if there is one; it is brought up to date where that folder exists. Raises
    SwapfastError listing every bad file, unless they are to be skipped, and where no face has that mask.
    """
    kept = None if cache is None else index_path(cache, path)
    known = None if kept is None else load_index(kept, path)
    source = open_source(path, progress(f"reading {path}"), known)
    if source.prepared is not None:
        return source
    folder = source.folder
    if kept is not None and folder.records is not known and cache.is_dir():
        try_save_index(kept, folder.records)
    folder = folder.with_mask(mask_type)
    folder.require_all_good(skip_bad)
    return FaceSource(folder)


def try_save_index(path: Path, table: FaceTable) -> None:
    """Save an index. Where that fails there is none: the next start reads the folder again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_index(path, table)


def format_bytes(count: int) -> str:
    """1234567 -> '1.2 MiB'."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def choose_cache(
    asked: str, needed: int, cache: Path, device: torch.device, backend: str, there: int = 0, copies: int = 1
) -> tuple[str, str]:
    """Where decoded faces are kept, 'gpu', 'host', 'memory' or 'off', and a line that says why.

    asked: --cache. needed: bytes of all faces, of which ``there`` are in the cache folder already. copies:
    processes of this machine, which share that folder and its files but not their memory.
    Raises SwapfastError (code 1) where they do not fit where they should.
    """
    size = format_bytes(needed)
    on_gpu = device.type == "cuda"
    if asked == "gpu" or (asked == "auto" and on_gpu and backend == "torch"):
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
        room = DEVICE_SHARE if on_gpu else MEMORY_SHARE
        if needed * (1 if on_gpu else copies) <= room * free:
            return "gpu", f"cache: gpu, {size} of {format_bytes(free)} that are free there"
        if asked == "gpu":
            raise SwapfastError(
                f"--cache gpu: the faces take {size}, and of the {format_bytes(free)} that are free there at most "
                f"{room:.0%} are used for them; train with --cache host",
                EXIT_FAILED,
            )
    if asked == "off":
        return "off", "cache: off, every batch is decoded"
    if asked == "host" or has_space(cache, needed - there):
        return "host", f"cache: host, {size} in {cache}"
    if needed * copies <= MEMORY_SHARE * available_memory():
        return "memory", f"cache: {size} in memory, for the disk of {cache} has no room: the next start decodes again"
    return "off", f"cache: off, for neither the disk of {cache} nor memory has room for {size}"


def _may_lie_on_disk(cache: Path, spec: StoreSpec, source: FaceSource) -> bool:
    """Whether a store is there already or the disk has room for it."""
    return store_path(cache, spec, source).is_file() or has_space(cache, len(source) * spec.bytes_per_face)


def make_train_set(
    side: str,
    source: FaceSource,
    spec: StoreSpec,
    where: str,
    cache: Path,
    skip_bad: bool,
    share: float,
    progress: ProgressFactory = no_progress,
    log: Log = no_log,
) -> TrainSet:
    """A side's training faces, decoded and kept as ``where`` says (see ``choose_cache``).

    Raises SwapfastError listing those that do not decode, unless they are to be skipped.
    """
    rows, store, bad = None, None, []
    decoding = progress(f"decoding {source.folder.path}")
    if where == "host" or (where == "gpu" and _may_lie_on_disk(cache, spec, source)):
        copying = progress(f"copying decoded faces of {source.folder.path}")
        cached = cached_store(cache, spec, source, progress=decoding, log=log, copying=copying)
        store, bad = cached.store, cached.bad
        if cached.reused:
            log(f"side {side}: {cached.reused} of {len(source)} faces were decoded before")
    elif where in ("memory", "gpu"):
        store = HostStore.in_memory(spec, len(source))
        bad = bad_faces(source, fill_store(spec, source, store, progress=decoding))
    if bad:
        names = {one.path.name for one in bad}
        rows = np.array([i for i in range(len(source)) if source.folder.records.name(i) not in names], np.int64)
        source = source.without(bad)
    source.folder.require_all_good(skip_bad)
    return TrainSet.from_source(side, source, spec, store, rows, share)


def make_feed(
    where: str,
    sets: list[TrainSet],
    sampler: Sampler,
    device: torch.device,
    backend: str,
    log: Log,
    threads: int | None = None,
) -> Feed:
    """Where the loader takes a step's bytes from. threads: for decoding, by default one per core."""
    if where == "off":
        device_id = (device.index or 0) if device.type == "cuda" else None
        feed = DecodeFeed(sets, sampler, threads, device_id, warn=log)
        return PreparedFeed(feed) if backend == "torch" and PreparedFeed.fits(sets) else feed
    if where == "gpu":
        return DeviceFeed(sets, device)
    return HostFeed(sets, device if backend == "torch" else None)


def make_matcher(
    sides: list[TrainSet], config: TrainConfig, cache: Path, progress: ProgressFactory = no_progress
) -> LandmarkMatcher | None:
    """Which faces of the other side are warped to, where that is asked for. cache: remembers them."""
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
    """Of what the training faces show, in their order: equal where several machines hold the same."""
    digest = hashlib.sha256()
    for side in sides:
        digest.update(np.ascontiguousarray(side.source.folder.records.column("content")[side.members]).tobytes())
    return digest.hexdigest()


def describe_sides(sides: list[TrainSet]) -> list[str]:
    """What a person should know of the folders, a line each."""
    lines = []
    for side in sides:
        folder = side.source.folder
        notes = "".join(f", {count} with {note}" for note, count in folder.notes.items())
        held = f", {len(side.validation)} more held out for validation" if len(side.validation) else ""
        lines.append(f"side {side.side}: {len(side)} faces from {folder.path}{held}{notes}")
        if folder.bad:
            lines.append(f"side {side.side}: {len(folder.bad)} bad files left out")
        if len(side) < FEW_FACES:
            lines.append(f"warning: side {side.side} has {len(side)} faces; below {FEW_FACES} it learns them by heart")
    return lines
