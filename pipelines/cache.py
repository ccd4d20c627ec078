"""The cache folder: indexes of face folders and stores of decoded faces, which the next run maps.

    index-FOLDER.safetensors            what reading a folder found (swapfast/faces/table.py)
    store-OPTIONS-FACES.safetensors     crops and masks of one side
    matches-LANDMARKS.safetensors       which faces of two sides look alike (matches.py)

A store's name is made of digests: of everything that shapes a crop, and of the faces' contents in their order. So it
is never out of date, only unused. Files are written under temporary names and renamed when they are whole; what a kill
leaves behind is removed by the next run.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.fill import FaceSource, Progress, checked_bytes, fill_store
from pipelines.store import HostStore, StoreSpec, shared_array
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.reader import BadFace
from swapfast.files import TEMPORARY, cannot_write, writer_lives
from swapfast.mapped import NewArrays, open_arrays

STORE_FORMAT = 1
REASON_BYTES = 200
WAY_OUT = "choose another --cache-dir, or train with --cache off"
_NAMES = re.compile(r"(index-[0-9a-f]{16}|matches-[0-9a-f]{16}|store-[0-9a-f]{16}-[0-9a-f]{16}(-begun)?)\.safetensors")
_KINDS = ("swapfast index", "swapfast store", "swapfast matches")
_SPARE_BYTES = 64 << 20  # left free on the disk


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _options_digest(spec: StoreSpec) -> str:
    """Of everything but the faces that a crop depends on."""
    options = {"format": STORE_FORMAT, "opencv": cv2.__version__, **spec.to_dict()}
    return _digest(json.dumps(options, sort_keys=True).encode())


def store_path(cache: Path, spec: StoreSpec, source: FaceSource) -> Path:
    """Where the store of these faces lies."""
    return cache / f"store-{_options_digest(spec)}-{_digest(_contents(source).tobytes())}.safetensors"


def _contents(source: FaceSource) -> np.ndarray:
    """(N, 16) uint8 that tell each face from any other."""
    contents = source.folder.records.column("content")
    if source.prepared is None:
        return contents
    # A prepared face's content is that of the picture it was made from, at whatever size and quality.
    made = np.stack([source.folder.records.column(name) for name in ("face_crc", "masks_crc")], axis=1)
    digests = (hashlib.sha256(one.tobytes() + two.tobytes()).digest()[:16] for one, two in zip(contents, made))
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(source), 16)


@dataclass(frozen=True)
class CachedStore:
    """A side's store and the faces of it that turned out bad."""

    store: HostStore
    bad: list[BadFace]
    reused: int  # faces that did not have to be decoded


def _open(path: Path, spec: StoreSpec, count: int | None = None) -> dict[str, np.ndarray] | None:
    """The arrays of a store file, or None where there is none that is right."""
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
        "reasons": ("u1", (count, REASON_BYTES)),  # why a face is bad, zeros where it is good
    }


_PASSING = ("cannot be read", "MemoryError")  # in reasons that say nothing of the picture


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
    """The store of ``source``, mapped: found in the cache folder, or made there.

    Faces that a store of the same options has already are copied from it. progress, copying: told (done, total) of
    faces decoded, and before that of those in such a store. Raises SwapfastError (code 1) where it cannot be written.
    """
    path = store_path(cache, spec, source)
    count = len(source)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(path, log):
            arrays, reused = _open(path, spec, count), count
            if arrays is None:
                _check_space(cache, count * spec.bytes_per_face)
                arrays, reused = _make(path, spec, source, progress, copying)
    except OSError as error:
        raise cannot_write(path, error, WAY_OUT) from error
    return CachedStore(HostStore(spec, arrays["faces"], arrays["extra_masks"]), _bad(source, arrays["reasons"]), reused)


def _make(
    path: Path, spec: StoreSpec, source: FaceSource, progress: Progress | None, copying: Progress | None
) -> tuple[dict[str, np.ndarray], int]:
    """Write a store; returns its arrays and how many of its faces came from other stores."""
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
        # A store that lacks faces only for now is kept under another name, for the next start to copy from.
        begun = path.with_name(f"{path.stem}-begun.safetensors")
        try:
            bad = fill_store(spec, source, store, missing, progress=progress, good=good)
        except KeyboardInterrupt:
            for index in missing[good[missing] == 0]:
                _put_reason(arrays["reasons"][index], "not decoded yet")
            new.path = begun
            new.commit()
            raise
        for index, reason in bad.items():
            _put_reason(arrays["reasons"][index], reason)
        if not all(_for_good(spec, source, index) for index in bad):
            new.path = begun
        new.commit()
    for old in _others(path, spec):
        if old != new.path and describe_file(old).get("folder") == metadata["folder"]:
            old.unlink(missing_ok=True)  # this folder as it was; who has it mapped keeps it until the end
    return arrays, count - len(missing)


def _for_good(spec: StoreSpec, source: FaceSource, index: int) -> bool:
    """Whether a bad face stays bad as long as its key is the same: not where it only could not be read just then."""
    if source.prepared is not None:
        return False  # another copy of the set has the same key and may be whole
    try:
        checked_bytes(source.folder.records[index])
    except ValueError:
        return False
    reason = source.put(spec, index, np.empty(spec.face_shape, np.uint8), np.empty(spec.extra_masks_shape, np.uint8))
    return reason is not None and not any(words in reason for words in _PASSING)


def _put_reason(row: np.ndarray, reason: str) -> None:
    text = reason.encode("utf-8", "replace")[: len(row)]
    row[: len(text)] = np.frombuffer(text, np.uint8)


def _others(path: Path, spec: StoreSpec) -> list[Path]:
    """The other stores of the same options."""
    return sorted(other for other in path.parent.glob(f"store-{_options_digest(spec)}-*.safetensors") if other != path)


def _copy_known(
    path: Path, spec: StoreSpec, store: HostStore, contents: np.ndarray, copying: Progress | None
) -> np.ndarray:
    """Copy the faces that other stores of the same options have; returns the indices of those that none has."""
    missing = np.arange(len(contents))
    for other in _others(path, spec):
        if not len(missing):
            break
        arrays = _open(other, spec)
        if arrays is None:
            continue
        good = np.flatnonzero(~arrays["reasons"].any(1))
        there = {bytes(arrays["content"][row]): row for row in good}
        known = [index for index in missing if bytes(contents[index]) in there]
        for done, index in enumerate(known, 1):
            row = there[bytes(contents[index])]
            store.faces[index], store.extra_masks[index] = arrays["faces"][row], arrays["extra_masks"][row]
            if copying:
                copying(done, len(known))
        missing = np.setdiff1d(missing, known)
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
    """Whether the disk of the cache folder, which need not be there yet, takes this many bytes more."""
    there = next(path for path in (cache, *cache.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free >= needed + _SPARE_BYTES


@contextmanager
def _locked(path: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Only one process writes a store; another that wants the same waits for it and then finds it."""
    with (path.parent / f".lock-{path.stem}").open("a") as lock:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield
            return
        told = held = False
        while True:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    break  # this file system has no locks: then two runs may do the same work, each for itself
                if not told:
                    log(f"another run is decoding the same faces into {path.parent}; waiting for it")
                    told = True
                time.sleep(0.2)
        _remove_leftovers(path, held)
        yield
    (path.parent / f".lock-{path.stem}").unlink(missing_ok=True)


def _leftovers(cache: Path) -> list[Path]:
    """What nobody writes to any more. An hour's grace, since the writer may live on another machine."""
    old = time.time() - 3600
    return [path for path in cache.glob(f"{TEMPORARY}*") if not writer_lives(path) and _time(path) < old]


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()  # somebody else has just removed it


def _remove_leftovers(path: Path, held: bool) -> None:
    """Remove what a kill has left: of other stores if it is old, of the store ``path`` at once if its lock is held."""
    own = path.parent.glob(f"{TEMPORARY}*-{path.name}") if held else ()
    for left in (*(one for one in own if not writer_lives(one)), *_leftovers(path.parent)):
        left.unlink(missing_ok=True)


# --- for a person -----------------------------------------------------------------------------------------


def describe_file(path: Path) -> dict[str, str]:
    """What a file of the cache is, by its metadata; empty where it is none that can be read."""
    try:
        return open_arrays(path)[1]
    except (OSError, ValueError):
        return {}


def _options(metadata: dict[str, str]) -> dict | None:
    """What a store or matches were made with; None for an index, and where it cannot be read."""
    try:
        options = json.loads(metadata["options"])
        return options if isinstance(options["size"], int) else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def list_cache(cache: Path) -> list[dict]:
    """Every file of a cache folder: its name, kind, bytes, what folder it is of and what of it.

    Raises SwapfastError where there is no such folder.
    """
    if not cache.is_dir():
        raise SwapfastError(f"{cache}: no such folder; give a cache folder or a model folder that has one")
    found = []
    for path in sorted(path for path in cache.iterdir() if _NAMES.fullmatch(path.name)):
        metadata = describe_file(path)
        what = metadata.get("what", "damaged")
        if what not in (*_KINDS, "damaged"):
            continue
        found.append(
            {
                "file": path.name,
                "what": what.removeprefix("swapfast "),
                "bytes": path.stat().st_size,
                "folder": metadata.get("folder"),
                "options": _options(metadata),
            }
        )
    left = _leftovers(cache)
    return found + [{"file": p.name, "what": "left by a kill", "bytes": p.stat().st_size} for p in left]


def describe_cache(cache: Path, found: list[dict]) -> str:
    """The answer of ``list_cache`` as lines for a person."""
    lines = [f"{cache}: {len(found)} files, {sum(one['bytes'] for one in found) / 2**20:.1f} MiB"]
    for one in found:
        options = one.get("options")
        what = f"{one['what']}, {options['size']} px" if options else one["what"]
        lines.append(f"  {one['bytes'] / 2**20:9.1f} MiB  {what:16}  {one.get('folder') or ''}  ({one['file']})")
    return "\n".join(lines)


def clear_cache(cache: Path) -> int:
    """Remove every file that ``list_cache`` finds; returns the bytes. Runs that have them mapped are not disturbed."""
    total = 0
    for entry in list_cache(cache):
        (cache / entry["file"]).unlink(missing_ok=True)
        total += entry["bytes"]
    for lock in cache.glob(".lock-store-*"):
        if not _is_held(lock):  # else a third run would get another lock of that name
            lock.unlink(missing_ok=True)
    return total


def _is_held(lock: Path) -> bool:
    try:
        import fcntl

        with lock.open("a") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return False
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False
