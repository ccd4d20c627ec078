"""The cache folder: what the next run need not decode again, and what it must not trust."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipelines.cache import cached_store, clear_cache, list_cache, store_path
from pipelines.dataset import TrainSet, check_prepared, open_source
from pipelines.decode import dali_version
from pipelines.feed import DecodeFeed, HostFeed, PreparedFeed
from pipelines.fill import fill_store
from pipelines.prepare import prepare
from pipelines.sampler import Sampler
from pipelines.sides import choose_cache, scan_side
from pipelines.store import HostStore, StoreSpec
from swapfast import system
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.files import TEMPORARY
from tests import preloaded

ROOT = Path(__file__).resolve().parents[2]
SPEC = StoreSpec(48, CropConfig(), MaskConfig(), ("face", "eye", "mouth"))


@pytest.fixture
def folder(made_faces, tmp_path):
    return Path(shutil.copytree(made_faces / "a", tmp_path / "a"))


def _expected(folder):
    source = open_source(folder)
    store = HostStore.in_memory(SPEC, len(source))
    assert fill_store(SPEC, source, store) == {}
    return store


def _same(one: HostStore, two: HostStore) -> bool:
    return np.array_equal(one.faces, two.faces) and np.array_equal(one.extra_masks, two.extra_masks)


def test_a_second_start_decodes_nothing(folder, tmp_path):
    source = open_source(folder)
    first = cached_store(tmp_path / "cache", SPEC, source)
    (path,) = (tmp_path / "cache").glob("store-*.safetensors")
    written = path.stat().st_mtime_ns
    for picture in folder.glob("*.png"):
        picture.write_bytes(b"")  # whoever decodes again will fail
    again = cached_store(tmp_path / "cache", SPEC, source)
    assert (first.reused, again.reused, again.bad) == (0, 14, []) and path.stat().st_mtime_ns == written
    assert _same(first.store, again.store)


def test_only_what_is_new_or_has_changed_is_decoded(folder, tmp_path):
    cached_store(tmp_path / "cache", SPEC, open_source(folder))
    for suffix in (".png", ".json", "_mask.png"):
        shutil.copy(folder / f"0001{suffix}", folder / f"9999{suffix}")  # the same face once more
        (folder / f"0002{suffix}").unlink()
    picture = cv2.imread(str(folder / "0004.png"))
    cv2.imwrite(str(folder / "0004.png"), 255 - picture)
    seen = []
    made = cached_store(tmp_path / "cache", SPEC, open_source(folder), progress=lambda *told: seen.append(told))
    assert made.reused == 13 and seen == [(1, 1)]
    assert _same(made.store, _expected(folder))
    assert len(list((tmp_path / "cache").glob("store-*"))) == 1, "the folder as it was is not kept"


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        StoreSpec(64, CropConfig(), MaskConfig(), SPEC.masks),
        StoreSpec(48, CropConfig(coverage=80), MaskConfig(), SPEC.masks),
        StoreSpec(48, CropConfig(), MaskConfig(dilation=2), SPEC.masks),
        StoreSpec(48, CropConfig(), MaskConfig(), ("face",)),
    ],
)
def test_other_options_have_another_store(folder, tmp_path, other):
    source = open_source(folder)
    cached_store(tmp_path, SPEC, source)
    made = cached_store(tmp_path, other, source)
    assert made.reused == 0 and len(list(tmp_path.glob("store-*"))) == 2
    assert (
        made.store.faces.shape[1:] == other.face_shape and made.store.extra_masks.shape[1:] == other.extra_masks_shape
    )


def test_a_store_is_a_safetensors_file_that_others_read(folder, tmp_path):
    made = cached_store(tmp_path, SPEC, open_source(folder))
    arrays = load_file(next(tmp_path.glob("store-*")))
    assert np.array_equal(arrays["faces"], made.store.faces) and arrays["reasons"].max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff" * len(data),
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: data.replace(b'"U8"', b'"F8"', 1),
        lambda data: data.replace(b"swapfast store", b"another's store", 1),
    ],
)
def test_a_store_that_is_not_one_is_made_anew(folder, tmp_path, damage):
    source = open_source(folder)
    cached_store(tmp_path, SPEC, source)
    path = store_path(tmp_path, SPEC, source)
    path.write_bytes(damage(path.read_bytes()))
    made = cached_store(tmp_path, SPEC, source)
    assert made.reused == 0 and _same(made.store, _expected(folder))


FILL = """
import sys, time
from pathlib import Path
from pipelines.sides import try_save_index, scan_side
from pipelines.cache import cached_store
from pipelines.store import StoreSpec
from swapfast import system
from swapfast.config import CropConfig, MaskConfig
from swapfast.faces.table import index_path

folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
cache.mkdir(exist_ok=True)
source = scan_side(folder, "extended", False, cache=cache)
spec = StoreSpec(48, CropConfig(), MaskConfig(), ("face", "eye", "mouth"))
system.PROCESSES_FROM = 2
def tell(done, total):
    print(done, flush=True)
    time.sleep(float(sys.argv[3]))

cached_store(cache, spec, source, progress=tell)
print("done", flush=True)
"""


def _filling(folder, cache, wait_s=0, **options):
    """Start a process that fills a store; it waits behind each face."""
    command = [sys.executable, "-c", FILL, str(folder), str(cache), str(wait_s)]
    return preloaded.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


@pytest.mark.long
def test_a_kill_while_a_store_is_written_leaves_nothing_that_is_trusted(folder, tmp_path):
    cache = tmp_path / "cache"
    process = _filling(folder, cache, wait_s=100, start_new_session=True)
    assert process.stdout.readline().strip() == "1"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert not list(cache.glob("store-*")) and list(cache.glob(f"{TEMPORARY}*")), "killed in the middle"
    made = cached_store(cache, SPEC, scan_side(folder, "extended", False, cache=cache))
    assert made.reused == 0 and _same(made.store, _expected(folder))
    assert not list(cache.glob(f"{TEMPORARY}*")), "and what it left is gone"


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["png", "jpg"])
def test_a_stop_while_a_store_is_written_keeps_what_is_decoded(folder, tmp_path, encoding, monkeypatch):
    """For the next start to go on from; by threads, by processes and by DALI."""
    for path in folder.glob("????.png") if encoding == "jpg" else ():
        cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)))
        path.unlink()
    for smallest in (1000, 2):
        monkeypatch.setattr(system, "PROCESSES_FROM", smallest)
        cache = tmp_path / f"cache {smallest}"

        def stop(done, total):
            if done >= 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cached_store(cache, SPEC, open_source(folder), progress=stop)
        made = cached_store(cache, SPEC, open_source(folder))
        assert 3 <= made.reused <= 14 and _same(made.store, _expected(folder)) and not made.bad
        assert len(list(cache.glob("store-*"))) == 1 and not list(cache.glob(f"{TEMPORARY}*"))


@pytest.mark.long
def test_two_runs_that_want_the_same_store_make_it_once(folder, tmp_path):
    processes = [_filling(folder, tmp_path / "cache") for _ in range(2)]
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert sorted(out.split().count("14") for out, _ in told) == [0, 1], "only one of them decoded"
    assert _same(cached_store(tmp_path / "cache", SPEC, open_source(folder)).store, _expected(folder))


@pytest.mark.long
def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    process = _filling(folder, tmp_path / "cache", preexec_fn=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot be written (the disk is full); free space or choose another --cache-dir" in errors.splitlines()[-1]
    assert not list((tmp_path / "cache").glob("store-*")) and not list((tmp_path / "cache").glob(f"{TEMPORARY}*"))


def test_a_file_that_changes_between_reading_and_decoding_is_named(folder, tmp_path):
    source = open_source(folder)
    picture = cv2.imread(str(folder / "0004.png"))
    cv2.imwrite(str(folder / "0004.png"), picture[::-1])
    made = cached_store(tmp_path, SPEC, source)
    assert [bad.path.name for bad in made.bad] == ["0004.png"] and "changed" in made.bad[0].reason


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["png", "jpg"])
def test_a_file_that_could_not_be_read_just_then_is_tried_again(folder, tmp_path, encoding):
    """Gone, or another one under its name: neither is taken for that face, and neither is held against it."""
    for path in folder.glob("????.png") if encoding == "jpg" else ():
        cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)))
        path.unlink()
    gone, other = folder / f"0003.{encoding}", folder / f"0004.{encoding}"
    whole = {path: path.read_bytes() for path in (gone, other)}
    source = open_source(folder)
    gone.unlink()
    other.write_bytes(cv2.imencode(f".{encoding}", 255 - cv2.imread(str(other)))[1].tobytes())
    made = cached_store(tmp_path / "cache", SPEC, source)
    assert [bad.path for bad in made.bad] == [gone, other]
    for path, content in whole.items():
        path.write_bytes(content)
    made = cached_store(tmp_path / "cache", SPEC, source)
    assert (made.bad, made.reused) == ([], 12) and _same(made.store, _expected(folder))
    assert len(list((tmp_path / "cache").glob("store-*"))) == 1


def test_a_mask_that_could_not_be_read_just_then_is_tried_again(folder, tmp_path):
    source = open_source(folder)
    spec = dataclasses.replace(SPEC, mask=MaskConfig(mask_type="file"))
    mask = folder / "0003_mask.png"
    content = mask.read_bytes()
    mask.unlink()
    made = cached_store(tmp_path / "cache", spec, source)
    assert [bad.path.name for bad in made.bad] == ["0003.png"]
    mask.write_bytes(content)
    made = cached_store(tmp_path / "cache", spec, source)
    assert (made.bad, made.reused) == ([], 13)


def test_what_a_live_run_is_writing_is_left_alone(folder, tmp_path):
    """Though its lock is gone, or the file system has none: it would fail at the end of its work."""
    source = open_source(folder)
    cached_store(tmp_path, SPEC, source)
    (path,) = tmp_path.glob("store-*")
    path.unlink()
    alive, dead = tmp_path / f"{TEMPORARY}1-{path.name}", tmp_path / f"{TEMPORARY}2-{path.name}"
    for left in (alive, dead):
        left.write_bytes(b"half")
    with held_by_another_process(alive):
        made = cached_store(tmp_path, SPEC, source)
    assert made.bad == [] and alive.read_bytes() == b"half" and not dead.exists()


@contextlib.contextmanager
def held_by_another_process(path):
    """Let another process hold the lock of a file meanwhile."""
    code = f"import fcntl; f = open({str(path)!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:
        holder.stdout.readline()
        yield
        holder.communicate("\n")


def test_foreign_entries_in_a_cache_folder_are_left_alone(folder, tmp_path):
    """What other programs leave there, under names like ours: two folders, and a number that is no process'."""
    source = open_source(folder)
    cached_store(tmp_path, SPEC, source)
    (path,) = tmp_path.glob("store-*")
    path.unlink()
    path.mkdir()
    (path / "notes").touch()
    aside, huge = tmp_path / f"{TEMPORARY}checkpoint-00000021", tmp_path / f"{TEMPORARY}{'9' * 20}-index"
    aside.mkdir()
    huge.touch()
    for old in (aside, huge):
        os.utime(old, (time.time() - 9999, time.time() - 9999))
    assert [entry["file"] for entry in list_cache(tmp_path)] == [huge.name]
    lines = []
    made = cached_store(tmp_path, SPEC, source, log=lines.append)
    (moved,) = tmp_path.glob("damaged-*")
    assert made.bad == [] and lines == [f"{path} is a folder and no store; it is now {moved.name}"]
    assert (moved / "notes").exists() and aside.exists() and not huge.exists()
    assert clear_cache(tmp_path) > 0 and aside.exists() and not path.exists()


@pytest.mark.parametrize("name", ["store", "lock"])
def test_a_pipe_in_a_cache_folder_is_not_waited_for(folder, tmp_path, name):
    source = open_source(folder)
    cached_store(tmp_path, SPEC, source)
    (path,) = tmp_path.glob("store-*")
    pipe = path if name == "store" else tmp_path / f".lock-{path.stem}"
    path.unlink()
    os.mkfifo(pipe)
    if name == "store":
        assert cached_store(tmp_path, SPEC, source).bad == [] and path.is_file()
    else:
        with pytest.raises(SwapfastError, match="a pipe or a device"):
            cached_store(tmp_path, SPEC, source)
    assert clear_cache(tmp_path) >= 0


def test_clearing_leaves_the_lock_of_a_run_that_decodes(folder, tmp_path):
    held, free = tmp_path / ".lock-store-1", tmp_path / ".lock-store-2"
    free.touch()
    with held_by_another_process(held):
        clear_cache(tmp_path)
        assert held.exists() and not free.exists()
    clear_cache(tmp_path)
    assert not held.exists()


def test_listing_and_clearing(folder, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    source = scan_side(folder, "extended", False, cache=cache)
    cached_store(cache, SPEC, source)
    (cache / "notes.txt").write_text("not ours")
    for name in ("store-mine.safetensors", f"store-{'0' * 16}-{'1' * 16}.safetensors"):
        save_file({"x": np.zeros(3, np.float32)}, cache / name, {"what": "somebody else's", "options": "{"})
    left = cache / f"{TEMPORARY}999999999-store-0-0.safetensors"
    left.write_bytes(b"0123")
    os.utime(left, (time.time() - 9999, time.time() - 9999))
    found = list_cache(cache)
    assert [(one["what"], one.get("folder")) for one in found] == [
        ("index", str(folder)),
        ("store", str(folder)),
        ("left by a kill", None),
    ]
    assert found[1]["options"]["size"] == 48 and found[1]["bytes"] > 14 * SPEC.bytes_per_face
    assert clear_cache(cache) == sum(one["bytes"] for one in found)
    assert len(list(cache.iterdir())) == 3 and list_cache(cache) == [], "what is not ours stays"
    with pytest.raises(SwapfastError, match="no such folder"):
        list_cache(tmp_path / "nowhere")


def test_where_faces_are_kept(tmp_path, device):
    cpu = choose_cache("auto", 10**6, tmp_path / "cache", device, "kornia")
    assert cpu[0] == ("gpu" if device.type == "cuda" else "host") and "1.0 MiB" in cpu[1]
    assert choose_cache("off", 10**6, tmp_path, device, "kornia")[0] == "off"
    assert choose_cache("host", 10**18, tmp_path, device, "kornia")[0] == "host"
    assert choose_cache("auto", 10**18, tmp_path, device, "kornia")[0] == "off", "no disk and no memory has room"
    with pytest.raises(SwapfastError, match="--cache gpu: the faces take"):
        choose_cache("gpu", 10**18, tmp_path, device, "kornia")


# --- prepared sets ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_prepared_set_trains_like_its_folder(folder, tmp_path, encoding, within):
    """A raw one to the bit, a JPEG one to its quality; from the store, from memory and batch by batch."""
    prepare(folder, tmp_path / "set", encoding, 48, CropConfig(), MaskConfig())
    expected = _expected(folder)
    source = open_source(tmp_path / "set")
    cached_store(tmp_path / "cache", SPEC, open_source(folder))
    made = cached_store(tmp_path / "cache", SPEC, source)
    assert made.reused == 0 and not made.bad, "the same faces, but other pixels"
    threads = HostStore.in_memory(SPEC, len(source))
    assert fill_store(SPEC, source, threads, threads=1) == {}
    assert _same(threads, made.store)
    apart = (
        np.abs(made.store.faces.astype(int) - expected.faces),
        np.abs(made.store.extra_masks.astype(int) - expected.extra_masks),
    )
    within("pixels, levels", apart[0][..., :3].max(), 0 if encoding == "raw" else 30)
    within("pixels, mean", apart[0][..., :3].mean(), 0 if encoding == "raw" else 1.5)
    within("masks, levels", max(apart[0][..., 3].max(), apart[1].max()), 0 if encoding == "raw" else 3)
    sampler = Sampler(3, (14, 14), 5)
    sets = [TrainSet.from_source(side, source, SPEC, made.store) for side in "AB"]
    kept, anew = HostFeed(sets), DecodeFeed(sets, sampler, threads=2)
    feeds = [anew, PreparedFeed(DecodeFeed(sets, sampler, threads=2))] if encoding == "jpeg" else [anew]
    assert PreparedFeed.fits(sets) == (encoding == "jpeg" and dali_version() is not None)
    for step, feed in itertools.product((0, 1, 2, 7), feeds):
        for one, two in zip(kept(step, sampler.ids(step)), feed(step, sampler.ids(step))):
            assert np.array_equal(one, two)


@pytest.mark.slow
def test_a_prepared_set_and_a_folder_train_together(folder, tmp_path):
    prepare(folder, tmp_path / "set", "jpeg", 48, CropConfig(), MaskConfig())
    sources = [open_source(tmp_path / "set"), open_source(folder)]
    sets = [
        TrainSet.from_source(s, one, SPEC, cached_store(tmp_path, SPEC, one).store) for s, one in zip("AB", sources)
    ]
    sampler = Sampler(3, (14, 14), 5)
    for one, two in zip(HostFeed(sets)(4, sampler.ids(4)), DecodeFeed(sets, sampler)(4, sampler.ids(4))):
        assert np.array_equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_damaged_face_of_a_prepared_set_is_named(folder, tmp_path, encoding):
    prepare(folder, tmp_path / "set", encoding, 48, CropConfig(), MaskConfig())
    whole = cached_store(tmp_path / "whole", SPEC, open_source(tmp_path / "set")).store
    made = open_source(tmp_path / "set").prepared
    at = made.folder.records.columns["face_at"][3] + 700
    shard = tmp_path / "set" / "shard-00000.tar"
    data = bytearray(shard.read_bytes())
    data[at] ^= 4
    shard.write_bytes(data)
    source = open_source(tmp_path / "set")
    told: list[str] = []
    cached = cached_store(tmp_path / "cache", SPEC, source)
    name = made.folder.records.name(3)
    assert [(bad.path.name, bad.reason) for bad in cached.bad] == [(name, "damaged (checksum)")]
    opened = open_source(tmp_path / "set")
    shard.rename(tmp_path / "elsewhere.tar")
    lost = cached_store(tmp_path / "lost", SPEC, opened)
    assert len(lost.bad) == 14, "a line each, and no traceback"
    (tmp_path / "elsewhere.tar").rename(shard)
    assert len(cached_store(tmp_path / "lost", SPEC, source).bad) == 1
    sampler = Sampler(3, (14, 14), 14)
    sets = [TrainSet.from_source(side, source, SPEC, None) for side in "AB"]
    ids = sampler.ids(0)
    feed = DecodeFeed(sets, sampler, warn=told.append)
    faces, _, _ = (PreparedFeed(feed) if PreparedFeed.fits(sets) else feed)(0, ids)
    assert len(told) == 2 and all(f"{name}: damaged (checksum)" in line for line in told)
    for place, face in enumerate(ids.reshape(-1)):
        assert np.array_equal(faces[place], whole.faces[face]) == (face != 3)


def test_other_sizes_crops_and_masks_of_a_prepared_set(folder, tmp_path):
    prepare(folder, tmp_path / "set", "raw", 96, CropConfig(), MaskConfig())
    source = open_source(tmp_path / "set")
    assert check_prepared(source, SPEC) == []
    made, whole = cached_store(tmp_path, SPEC, source).store, source.prepared
    for index in (0, 13):
        picture, masks = whole.read(index)
        smaller = cv2.resize(picture, (48, 48), interpolation=cv2.INTER_AREA)
        assert np.array_equal(made.faces[index, ..., :3], smaller)
        assert np.array_equal(made.extra_masks[index, 1], cv2.resize(masks[2], (48, 48), interpolation=cv2.INTER_AREA))
    larger = StoreSpec(128, CropConfig(), MaskConfig(), SPEC.masks)
    assert "enlarged to 128 px" in check_prepared(source, larger)[0]
    drawn = StoreSpec(96, CropConfig(), MaskConfig(mask_type="components"), SPEC.masks)
    anew = cached_store(tmp_path, drawn, source).store
    components = HostStore.in_memory(drawn, 14)
    fill_store(drawn, open_source(folder), components)
    assert np.array_equal(anew.faces[..., :3], components.faces[..., :3])
    assert np.mean(np.abs(anew.faces[..., 3].astype(int) - components.faces[..., 3]) > 2) < 0.001, "drawn anew"
    with pytest.raises(SwapfastError, match=r"set: was prepared with --coverage 100.0 there and 80.0 asked for"):
        check_prepared(source, StoreSpec(48, CropConfig(coverage=80), MaskConfig(), SPEC.masks))
    with pytest.raises(SwapfastError, match="set: was prepared with --mask-type extended; give the same"):
        check_prepared(source, StoreSpec(48, CropConfig(), MaskConfig(mask_type="file"), SPEC.masks))
