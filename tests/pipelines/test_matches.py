"""Matches that are remembered: the same as those that are found, and never trusted where something is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

import cli
from pipelines.cache import clear_cache, describe_cache, list_cache
from pipelines.matches import cached_find_closest, landmarks_digest, load_matches, save_matches
from swapfast.faces.matching import LandmarkMatcher
from swapfast.mapped import open_arrays, write_arrays
from tests.crash_harness import TINY

FOLDERS, OPTIONS = "faces/a and faces/b", {"size": 64, "validation": 0.0}


def _faces(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 64, (count, 68, 2)).astype(np.float32)


A, B = _faces(60, 1), _faces(7, 2)


def _matcher(cache, a=A, b=B, choices: int = 10, told: list | None = None, options=OPTIONS) -> LandmarkMatcher:
    """told: gets what ``progress`` is told, nothing where nothing is looked for."""
    told = [] if told is None else told
    return LandmarkMatcher(
        a, b, choices, lambda *counts: told.append(counts), cached_find_closest(cache, FOLDERS, options)
    )


def _same(one: LandmarkMatcher, two: LandmarkMatcher) -> bool:
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(one.closest, two.closest, strict=True))


def _files(cache) -> list:
    return sorted(path for path in cache.iterdir())


def test_the_second_start_looks_for_nothing(tmp_path):
    found, told = LandmarkMatcher(A, B), []
    first = _matcher(tmp_path / "cache", told=told)
    assert told[-1] == (67, 67) and _same(first, found)
    (path,) = _files(tmp_path / "cache")
    written = path.stat().st_mtime_ns
    told.clear()
    second = _matcher(tmp_path / "cache", told=told)
    assert not told and _same(second, found) and path.stat().st_mtime_ns == written
    assert [closest.shape for closest in second.closest] == [(60, 7), (7, 10)], "as many as the other side has"
    drawn = second.choices(5, np.arange(4))
    assert np.array_equal(
        second.get_close_landmarks(np.arange(8).reshape(2, 4) % 7, drawn),
        found.get_close_landmarks(np.arange(8).reshape(2, 4) % 7, drawn),
    )
    assert {name: array.shape for name, array in load_file(path).items()} == {"a": (60, 7), "b": (7, 10)}


def test_what_is_kept_is_what_is_used(tmp_path):
    """A file that says something else than what would be found, but is whole, is taken at its word."""
    path, told = _path(tmp_path), []
    save_matches(path, landmarks_digest((A, B), 10), _turned(), {})
    assert all(np.array_equal(x, y) for x, y in zip(_matcher(tmp_path, told=told).closest, _turned()))
    assert not told


def _path(cache, a=A, b=B, choices: int = 10):
    return cache / f"matches-{landmarks_digest((a, b), choices)[:16]}.safetensors"


def _turned() -> tuple[np.ndarray, np.ndarray]:
    """Valid, and not what is found: farthest first."""
    return tuple(np.ascontiguousarray(closest[:, ::-1]) for closest in LandmarkMatcher(A, B).closest)


def _flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def _rewrite(change):
    """Damage by writing the arrays anew, with a checksum that is right."""

    def damage(path) -> None:
        arrays, metadata = open_arrays(path)
        arrays, metadata = {name: array.copy() for name, array in arrays.items()}, dict(metadata)
        metadata.pop("crc32")
        change(arrays, metadata)
        write_arrays(path, arrays, metadata)

    return damage


def _no_checksum(path) -> None:
    arrays, metadata = open_arrays(path)
    arrays = {name: array.copy() for name, array in arrays.items()}
    path.unlink()
    save_file(arrays, path, {name: value for name, value in metadata.items() if name != "crc32"})


DAMAGE = {
    "a bit": _flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "a few bytes": lambda path: path.write_bytes(path.read_bytes()[:12]),
    "empty": lambda path: path.write_bytes(b""),
    "no file of arrays": lambda path: path.write_bytes(b"\x80\x04 a pickle, perhaps" * 100),
    "no checksum": _no_checksum,
    "an index beyond the faces": _rewrite(lambda arrays, _: arrays["a"].__setitem__((3, 2), 7)),
    "a negative index": _rewrite(lambda arrays, _: arrays["b"].__setitem__((0, 0), -1)),
    "fewer faces": _rewrite(lambda arrays, _: arrays.update(a=arrays["a"][:-1])),
    "fewer choices": _rewrite(lambda arrays, _: arrays.update(b=arrays["b"][:, :9])),
    "another type": _rewrite(lambda arrays, _: arrays.update(a=arrays["a"].astype(np.int64))),
    "one side": _rewrite(lambda arrays, _: arrays.pop("b")),
    "of other landmarks": _rewrite(lambda _, metadata: metadata.update(digest="0" * 64)),
    "something else": _rewrite(lambda _, metadata: metadata.update(what="swapfast index")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_whole_is_found_anew(damage, tmp_path):
    found = _matcher(tmp_path)
    (path,) = _files(tmp_path)
    whole = path.read_bytes()
    DAMAGE[damage](path)
    assert path.read_bytes() != whole
    assert load_matches(path, landmarks_digest((A, B), 10), (A, B), 10) is None
    told = []
    assert _same(_matcher(tmp_path, told=told), found) and told
    assert path.read_bytes() == whole, "and kept again"


def test_other_landmarks_or_choices_are_matched_anew(tmp_path):
    _matcher(tmp_path)
    moved = A.copy()
    moved[17, 3, 0] += 0.01
    for a, b, choices in ((moved, B, 10), (A, B[:-1], 10), (A, B, 3), (B, A, 10)):
        told = []
        assert _same(_matcher(tmp_path, a, b, choices, told), LandmarkMatcher(a, b, choices)) and told
        assert _files(tmp_path) == [_path(tmp_path, a, b, choices)], "these folders' former ones are of no use"


def test_models_that_share_a_folder_leave_each_others_matches(tmp_path):
    other = {**OPTIONS, "size": 128}
    for _ in range(2):
        first, second = [], []
        _matcher(tmp_path, told=first)
        _matcher(tmp_path, 2 * A, 2 * B, told=second, options=other)
    assert not first and not second and len(_files(tmp_path)) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert _same(_matcher(tmp_path / "file" / "cache"), LandmarkMatcher(A, B))
    _path(tmp_path).mkdir()
    assert _same(_matcher(tmp_path), LandmarkMatcher(A, B))
    assert _files(tmp_path) == [tmp_path / "file", _path(tmp_path)], "nothing half-written"


def test_listing_and_clearing(tmp_path):
    _matcher(tmp_path)
    (path,) = _files(tmp_path)
    (entry,) = list_cache(tmp_path)
    expected = {"file": path.name, "what": "matches", "bytes": path.stat().st_size, "folder": FOLDERS}
    assert entry == expected | {"options": OPTIONS}
    assert f"matches, 64 px    {FOLDERS}" in describe_cache(tmp_path, [entry])
    path.write_bytes(path.read_bytes()[:-4])
    assert [one["what"] for one in list_cache(tmp_path)] == ["damaged"]
    assert clear_cache(tmp_path) == expected["bytes"] - 4 and not _files(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("where", ["host", "off"])
def test_a_run_goes_on_with_the_matches_it_found(where, made_faces, tmp_path, capsys, device):
    """To the weights of a run that looked for them once, bit for bit on a CPU."""

    def train(model, until: int) -> None:
        folders = ["-A", made_faces / "a", "-B", made_faces / "b", "-m", tmp_path / model]
        more = ["-i", until, "-M", "--cache", where, "--device", device.type]
        assert cli.main([*map(str, ["train", *folders, *TINY, *more])]) == 0, capsys.readouterr()

    train("whole", 4)
    train("parts", 2)
    (path,) = (tmp_path / "parts" / "cache").glob("matches-*")
    written = path.stat().st_mtime_ns
    train("parts", 4)
    assert path.stat().st_mtime_ns == written
    weights = [load_tensors(tmp_path / m / "checkpoint-00000004" / "model.safetensors") for m in ("whole", "parts")]
    for name, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][name], atol=0 if device.type == "cpu" else 1e-3)

    capsys.readouterr()
    assert cli.main(["cache", str(tmp_path / "parts"), "--json", "--clear"]) == 0
    entries = json.loads(capsys.readouterr().out)["files"]
    (matches,) = (one for one in entries if one["what"] == "matches")
    assert matches["file"] == path.name and str(made_faces / "b") in matches["folder"]
    assert not path.exists()
