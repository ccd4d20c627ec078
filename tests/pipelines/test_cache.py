"""The cache folder: what the next run need not decode again, and what it must not trust."""

from __future__ import annotations

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
from safetensors.numpy import load_file

from pipelines.build import choose_cache, scan_side
from pipelines.cache import cached_store, clear_cache, list_cache, store_path
from pipelines.dataset import open_source
from pipelines.fill import fill
from pipelines.store import HostStore, StoreSpec
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.files import TEMPORARY

ROOT = Path(__file__).resolve().parents[2]
SPEC = StoreSpec(48, CropConfig(), MaskConfig(), ("face", "eye", "mouth"))


@pytest.fixture
def folder(made_faces, tmp_path):
    return Path(shutil.copytree(made_faces / "a", tmp_path / "a"))


def _expected(folder):
    source = open_source(folder)
    store = HostStore.in_memory(SPEC, len(source))
    assert fill(SPEC, source, store) == {}
    return store


def _same(one: HostStore, two: HostStore) -> bool:
    return np.array_equal(one.faces, two.faces) and np.array_equal(one.planes, two.planes)


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
    assert made.store.faces.shape[1:] == other.face_shape and made.store.planes.shape[1:] == other.planes_shape


def test_a_store_is_a_safetensors_file_that_others_read(folder, tmp_path):
    made = cached_store(tmp_path, SPEC, open_source(folder))
    arrays = load_file(next(tmp_path.glob("store-*")))
    assert np.array_equal(arrays["faces"], made.store.faces) and arrays["reasons"].max() == 0


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
import sys
from pathlib import Path
from pipelines.build import keep_index, scan_side
from pipelines.cache import cached_store
from pipelines.store import StoreSpec
from swapfast import system
from swapfast.config import CropConfig, MaskConfig
from swapfast.faces.table import index_path

folder, cache, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cache.mkdir(exist_ok=True)
source = scan_side(folder, "extended", False, cache=cache)
spec = StoreSpec(size, CropConfig(), MaskConfig(), ("face", "eye", "mouth"))
system.PROCESSES_FROM = 2
cached_store(cache, spec, source, progress=lambda done, total: print(done, flush=True))
print("done", flush=True)
"""


def _filling(folder, cache, size=48, **options):
    command = [sys.executable, "-c", FILL, str(folder), str(cache), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


def test_a_kill_while_a_store_is_written_leaves_nothing_that_is_trusted(folder, tmp_path):
    for copy in range(8):
        for path in list(folder.glob("000[0-9]*")):
            shutil.copy(path, folder / f"{copy}{path.name}")
    cache = tmp_path / "cache"
    process = _filling(folder, cache, 512, start_new_session=True)
    assert process.stdout.readline().strip() == "1"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert not list(cache.glob("store-*")) and list(cache.glob(f"{TEMPORARY}*")), "killed in the middle"
    spec = StoreSpec(512, CropConfig(), MaskConfig(), SPEC.masks)
    source = scan_side(folder, "extended", False, cache=cache)
    made = cached_store(cache, spec, source)
    whole = HostStore.in_memory(spec, len(source))
    fill(spec, source, whole)
    assert made.reused == 0 and _same(made.store, whole)
    assert not list(cache.glob(f"{TEMPORARY}*")), "and what it left is gone"


def test_two_runs_that_want_the_same_store_make_it_once(folder, tmp_path):
    processes = [_filling(folder, tmp_path / "cache") for _ in range(2)]
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert sorted(out.split().count("14") for out, _ in told) == [0, 1], "only one of them decoded"
    assert _same(cached_store(tmp_path / "cache", SPEC, open_source(folder)).store, _expected(folder))


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


def test_listing_and_clearing(folder, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    source = scan_side(folder, "extended", False, cache=cache)
    cached_store(cache, SPEC, source)
    (cache / "notes.txt").write_text("not ours")
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
    assert [path.name for path in cache.iterdir()] == ["notes.txt"] and list_cache(cache) == []
    with pytest.raises(SwapfastError, match="no such folder"):
        list_cache(tmp_path / "nowhere")


def test_where_faces_are_kept(tmp_path, device):
    cpu = choose_cache("auto", 10**6, tmp_path / "cache", device, "device")
    assert cpu[0] == ("device" if device.type == "cuda" else "host") and "1.0 MiB" in cpu[1]
    assert choose_cache("off", 10**6, tmp_path, device, "device")[0] == "off"
    assert choose_cache("host", 10**18, tmp_path, device, "device")[0] == "host"
    assert choose_cache("auto", 10**18, tmp_path, device, "device")[0] == "off", "no disk and no memory has room"
    with pytest.raises(SwapfastError, match="--cache device: the faces take"):
        choose_cache("device", 10**18, tmp_path, device, "device")
