"""The cache folder: indexes of face folders and stores of decoded faces, which the next run maps.

    index-FOLDER.safetensors            the result of reading a folder (swapfast/faces/table.py)
    store-OPTIONS-FACES.safetensors     crops and masks of one side
    matches-LANDMARKS.safetensors       similar faces of two sides (matches.py)

A store's name consists of two digests: of all options that shape a crop, and of the faces' contents in order. So a
store is never out of date, only unused. Files are written under temporary names and renamed when they are complete. The
next run removes what a killed one leaves behind.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.fill import FaceSource, Progress, fill_store
from pipelines.store import HostStore, StoreSpec, shared_array
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.reader import BadFace, read_unchanged
from swapfast.files import TEMPORARY, cannot_write, is_recent, open_lock, open_plain, try_lock, writer_lives
from swapfast.mapped import NewArrays, open_arrays

STORE_FORMAT = 2  # raised whenever a face or a mask is made another way than before
REASON_BYTES = 200
WAY_OUT = "choose another --cache-dir, or train with --cache off"
_NAMES = re.compile(r"(index-[0-9a-f]{16}|matches-[0-9a-f]{16}|store-[0-9a-f]{16}-[0-9a-f]{16}(-begun)?)\.safetensors")
_KINDS = ("swapfast index", "swapfast store", "swapfast matches")
_SPARE_BYTES = 64 << 20  # left free on the disk


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _options_digest(spec: StoreSpec) -> str:
    """Return a digest of all options that a crop depends on."""
    options = {"format": STORE_FORMAT, "opencv": cv2.__version__, **spec.to_dict()}
    return _digest(json.dumps(options, sort_keys=True).encode())


def store_path(cache: Path, spec: StoreSpec, source: FaceSource) -> Path:
    """Return the path of the store of these faces."""
    return cache / f"store-{_options_digest(spec)}-{_digest(_contents(source).tobytes())}.safetensors"


def _contents(source: FaceSource) -> np.ndarray:
    """Return a digest of each face's content, (N, 16) uint8."""
    contents = source.folder.records.column("content")
    if source.prepared is None:
        return contents
    # A prepared face has the digest of its source picture, whatever its size and quality.
    checksums = np.stack([source.folder.records.column(name) for name in ("face_crc", "masks_crc")], axis=1)
    pairs = zip(contents, checksums)
    digests = (hashlib.sha256(content.tobytes() + crc.tobytes()).digest()[:16] for content, crc in pairs)
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(source), 16)


@dataclass(frozen=True)
class CachedStore:
    """A side's store and the faces that could not be decoded."""

    store: HostStore
    bad: list[BadFace]
    reused: int  # number of faces that were decoded before


def _open(path: Path, spec: StoreSpec, count: int | None = None) -> dict[str, np.ndarray] | None:
    """Return the arrays of a store file, None if it is missing or damaged."""
    try:
        arrays, metadata = open_arrays(path)
        count = len(arrays["content"]) if count is None else count
        expected = _shapes(spec, count)
        if metadata.get("what") != "swapfast store" or {n: a.shape for n, a in arrays.items()} != {
            name: shape for name, (_, shape) in expected.items()
        }:
            return None
        return arrays if all(array.dtype == np.uint8 for array in arrays.values()) else None
    except (OSError, ValueError, KeyError):
        return None


def _shapes(spec: StoreSpec, count: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        "faces": ("u1", (count, *spec.face_shape)),
        "extra_masks": ("u1", (count, *spec.extra_masks_shape)),
        "content": ("u1", (count, 16)),
        "reasons": ("u1", (count, REASON_BYTES)),  # of bad faces; zeros for good ones
    }


_TEMPORARY_REASONS = ("cannot be read", "MemoryError")  # parts of reasons that may disappear


def _bad(source: FaceSource, reasons: np.ndarray) -> list[BadFace]:
    records = source.folder.records
    rows = np.flatnonzero(reasons.any(1)).tolist()
    texts = (bytes(reasons[row]).rstrip(b"\0").decode("utf-8", "replace") for row in rows)
    return [BadFace(records[row].path, text) for row, text in zip(rows, texts)]


def cached_store(
    cache: Path,
    spec: StoreSpec,
    source: FaceSource,
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda line: None,
    copying: Progress | None = None,
) -> CachedStore:
    """Return the store of ``source``, mapped from the cache folder; makes it there if it is missing.

    Faces that another store of the same options holds are copied from it.
    progress: called with (faces decoded, faces to decode).
    copying: called before that, with (faces copied, faces to copy).
    Raises SwapfastError (code 1) where the store cannot be written.
    """
    path = store_path(cache, spec, source)
    count = len(source)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(path, log):
            arrays, reused = _open(path, spec, count), count
            if arrays is None:
                _put_aside(path, log)
                _check_space(cache, count * spec.bytes_per_face)
                arrays, reused = _make(path, spec, source, progress, copying)
    except OSError as error:
        raise cannot_write(path, error, WAY_OUT) from error
    return CachedStore(HostStore(spec, arrays["faces"], arrays["extra_masks"]), _bad(source, arrays["reasons"]), reused)


def _put_aside(path: Path, log: Callable[[str], None]) -> None:
    """Rename what lies in a store's place and cannot be replaced by one: a folder."""
    if path.is_dir() and not path.is_symlink():
        target = path.with_name(f"damaged-{secrets.token_hex(4)}-{path.name}")
        path.rename(target)
        log(f"{path} is a folder and no store; it is now {target.name}")


def _make(
    path: Path, spec: StoreSpec, source: FaceSource, progress: Progress | None, copying: Progress | None
) -> tuple[dict[str, np.ndarray], int]:
    """Write a store. Returns its arrays and the number of faces copied from other stores."""
    count, contents = len(source), _contents(source)
    metadata = {
        "what": "swapfast store",
        "folder": str(source.folder.path.resolve()).encode("utf-8", "backslashreplace").decode(),
        "options": json.dumps(spec.to_dict()),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    with NewArrays(path, _shapes(spec, count), metadata) as new:
        arrays = new.arrays
        arrays["content"][:] = contents
        store = HostStore(spec, arrays["faces"], arrays["extra_masks"])
        missing = _copy_known(path, spec, store, contents, copying)
        good = shared_array((count,))
        # A store that lacks faces only for now gets another name; the next start copies from it.
        unfinished_path = path.with_name(f"{path.stem}-begun.safetensors")
        try:
            bad = fill_store(spec, source, store, missing, progress=progress, good=good)
        except KeyboardInterrupt:
            for index in missing[good[missing] == 0]:
                _put_reason(arrays["reasons"][index], "not decoded yet")
            new.path = unfinished_path
            new.commit()
            raise
        for index, reason in bad.items():
            _put_reason(arrays["reasons"][index], reason)
        if not all(_is_permanent(spec, source, index) for index in bad):
            new.path = unfinished_path
        new.commit()
    for other_path in _other_stores(path, spec):
        if other_path != new.path and describe_file(other_path).get("folder") == metadata["folder"]:
            other_path.unlink(missing_ok=True)  # of this folder's former state; a run that maps it can go on
    return arrays, count - len(missing)


def _is_permanent(spec: StoreSpec, source: FaceSource, index: int) -> bool:
    """Return whether a face with this content is always bad; False if it only could not be read this time."""
    if source.prepared is not None:
        return False  # another copy of the set has the same key and may be intact
    try:
        read_unchanged(source.folder.records[index])
    except ValueError:
        return False
    reason = source.put(spec, index, np.empty(spec.face_shape, np.uint8), np.empty(spec.extra_masks_shape, np.uint8))
    return reason is not None and not any(words in reason for words in _TEMPORARY_REASONS)


def _put_reason(row: np.ndarray, reason: str) -> None:
    text = reason.encode("utf-8", "replace")[: len(row)]
    row[: len(text)] = np.frombuffer(text, np.uint8)


def _other_stores(path: Path, spec: StoreSpec) -> list[Path]:
    """Return the paths of the other stores of the same options."""
    return sorted(store for store in path.parent.glob(f"store-{_options_digest(spec)}-*.safetensors") if store != path)


def _copy_known(
    path: Path, spec: StoreSpec, store: HostStore, contents: np.ndarray, copying: Progress | None
) -> np.ndarray:
    """Copy faces from other stores of the same options. Returns the indices of the faces that none of them holds."""
    missing = np.arange(len(contents))
    for other_path in _other_stores(path, spec):
        if not len(missing):
            break
        arrays = _open(other_path, spec)
        if arrays is None:
            continue
        good = np.flatnonzero(~arrays["reasons"].any(1))
        row_of = {bytes(arrays["content"][row]): row for row in good}
        copied_indices = [index for index in missing if bytes(contents[index]) in row_of]
        for count, index in enumerate(copied_indices, 1):
            row = row_of[bytes(contents[index])]
            store.faces[index], store.extra_masks[index] = arrays["faces"][row], arrays["extra_masks"][row]
            if copying:
                copying(count, len(copied_indices))
        missing = np.setdiff1d(missing, copied_indices)
    return missing


def _check_space(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if free < needed + _SPARE_BYTES:
        raise SwapfastError(
            f"{cache}: the decoded faces need {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of disk are free; "
            f"{WAY_OUT}",
            EXIT_FAILED,
        )


def has_space(cache: Path, needed: int) -> bool:
    """Return whether the disk of the cache folder, which may not exist yet, has room for ``needed`` bytes."""
    nearest = next(path for path in (cache, *cache.absolute().parents) if path.is_dir())
    return shutil.disk_usage(nearest).free >= needed + _SPARE_BYTES


@contextmanager
def _locked(path: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Let only one process write a store. Others that need the same store wait, then use it."""
    with open_lock(path.parent / f".lock-{path.stem}") as lock:
        announced = False
        while (is_mine := try_lock(lock)) is False:
            if not announced:
                log(f"another run is decoding the same faces into {path.parent}; waiting for it")
                announced = True
            time.sleep(0.2)
        _remove_leftovers(path, is_mine is True)  # without locks two runs may do the same work
        yield
    (path.parent / f".lock-{path.stem}").unlink(missing_ok=True)


def _leftovers(cache: Path) -> list[Path]:
    """Return the temporary files of dead writers. They must be an hour old: a writer may run on another machine."""
    files = (path for path in cache.glob(f"{TEMPORARY}*") if path.is_file())
    return [path for path in files if not is_recent(path) and not writer_lives(path)]


def _remove_leftovers(path: Path, locked: bool) -> None:
    """Remove the files of killed writers: old ones, and with the lock of ``path`` all of its own."""
    unfinished = path.parent.glob(f"{TEMPORARY}*-{path.name}") if locked else ()
    dead = [file for file in unfinished if file.is_file() and not writer_lives(file)]
    for file in (*dead, *_leftovers(path.parent)):
        with suppress(PermissionError):  # another user's, in a folder for all
            file.unlink(missing_ok=True)


# --- for a person -----------------------------------------------------------------------------------------


def describe_file(path: Path) -> dict[str, str]:
    """Return the metadata of a cache file, empty if it cannot be read."""
    try:
        return open_arrays(path)[1]
    except (OSError, ValueError):
        return {}


def _options(metadata: dict[str, str]) -> dict | None:
    """Return the options of a store or matches, None for an index and for damaged ones."""
    try:
        options = json.loads(metadata["options"])
        return options if isinstance(options["size"], int) else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def list_cache(cache: Path) -> list[dict]:
    """Return one entry per file of a cache folder: file name, kind, bytes, folder of the faces, options.

    Raises SwapfastError if the folder does not exist.
    """
    if not cache.is_dir():
        raise SwapfastError(f"{cache}: no such folder; give a cache folder or a model folder that has one")
    entries = []
    for path in sorted(path for path in cache.iterdir() if _NAMES.fullmatch(path.name) and path.is_file()):
        metadata = describe_file(path)
        kind = metadata.get("what", "damaged")
        if kind not in (*_KINDS, "damaged"):
            continue
        entries.append(
            {
                "file": path.name,
                "what": kind.removeprefix("swapfast "),
                "bytes": path.stat().st_size,
                "folder": metadata.get("folder"),
                "options": _options(metadata),
            }
        )
    leftovers = _leftovers(cache)
    return entries + [{"file": p.name, "what": "left by a kill", "bytes": p.stat().st_size} for p in leftovers]


def describe_cache(cache: Path, entries: list[dict]) -> str:
    """Return the entries of ``list_cache`` as text for a person."""
    lines = [f"{cache}: {len(entries)} files, {sum(entry['bytes'] for entry in entries) / 2**20:.1f} MiB"]
    for entry in entries:
        options = entry.get("options")
        kind = f"{entry['what']}, {options['size']} px" if options else entry["what"]
        lines.append(f"  {entry['bytes'] / 2**20:9.1f} MiB  {kind:16}  {entry.get('folder') or ''}  ({entry['file']})")
    return "\n".join(lines)


def clear_cache(cache: Path) -> int:
    """Remove every file that ``list_cache`` lists and return their bytes. Runs that have files mapped can go on."""
    total = 0
    for entry in list_cache(cache):
        (cache / entry["file"]).unlink(missing_ok=True)
        total += entry["bytes"]
    for lock in cache.glob(".lock-store-*"):
        if not _is_held(lock):  # removing a held lock would let a third run take a new one
            lock.unlink(missing_ok=True)
    return total


def _is_held(lock: Path) -> bool:
    try:
        with open_plain(lock, "rb+") as file:
            return try_lock(file) is False
    except OSError:
        return True  # no lock of ours, or another user's
