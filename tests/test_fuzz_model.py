"""Damaged and hostile settings, checkpoints, logs, caches and prepared sets are refused in one line or do no harm.

None is used as if it were whole unless the damage cannot matter, or is found and another file takes its place.

    python -m tests.test_fuzz_model --seeds 5000        more of them, by hand
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import cli
from pipelines.cache import cached_store, describe_cache, list_cache
from pipelines.matches import load_matches, save_matches
from pipelines.run.plan import plan_run
from pipelines.run.request import TrainRequest
from pipelines.run.run_state import inherited_metrics, inherited_state
from pipelines.sides import scan_side
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.checkpoints.snapshots import Snapshots, describe
from swapfast.checkpoints.trained import open_model
from swapfast.checkpoints.transfer import trained_state
from swapfast.config import TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.prepared import open_prepared
from swapfast.logs.loss_plot import draw_losses
from swapfast.logs.records import RecordIterator
from swapfast.logs.summary import describe as describe_log
from swapfast.logs.summary import load_history, summarise
from swapfast.optim.optimizer import Optimizer
from swapfast.sources import choose
from swapfast.synthetic import synthesize

SEEDS = 200
CPU_S = 30  # of one seed; whoever needs longer hangs
MEMORY = 2 << 30  # that all seeds together may add
STEPS = (1, 2)
CHECKPOINTS = ("checkpoint-00000002", "checkpoint-00000001", "snapshot-00000001", "snapshot-00000002")

Mutation = Callable[[bytes, random.Random], bytes]


# --- damage to bytes --------------------------------------------------------------------------------------


def flip(data: bytes, rng: random.Random) -> bytes:
    """Turn one to eight bits over, half of the time near the beginning, where the headers are."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(data) if rng.random() < 0.5 else min(200, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice([0, 1, 7, 8, 9, rng.randrange(len(data)), len(data) - 1])]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    first, length = rng.randrange(len(data)), rng.randint(1, 4096)
    length = len(data[first : first + length])
    return data[:first] + (bytes(length) if rng.random() < 0.5 else rng.randbytes(length)) + data[first + length :]


def omit(data: bytes, rng: random.Random) -> bytes:
    first = rng.randrange(len(data))
    return data[:first] + data[first + rng.randint(1, 500) :]


def append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([rng.randbytes(99), data, bytes(5000), b"\n", b"}"])


def encode_otherwise(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return rng.choice([text.encode("utf-16"), b"\xef\xbb\xbf" + data, text.encode("utf-32-be"), b"\xff" + data])


BYTES: tuple[Mutation, ...] = (flip, flip, flip, cut, overwrite, omit, append, encode_otherwise)


# --- damage to JSON and TOML ------------------------------------------------------------------------------

DEEP = "[" * 50_000 + "]" * 50_000
VALUES = (
    *("null", "true", "-1", "0", "1", "3.5", "1e308", "-1e-320", "1e999", "NaN", "-Infinity", "9" * 400, "9" * 5000),
    *("9223372036854775808", '""', '"x"', '"\\ud800"', '"\\u001b[31m"', '"\\u0000"', f'"{"x" * 100_000}"'),
    *("[]", "{}", "[[1]]", '{"a": 1}', "[null]", DEEP, '{"a":' * 5000 + "1" + "}" * 5000, '"../../etc/passwd"'),
)
_MARK = "\x02mark\x02"


def _places(value: object) -> Iterator[tuple[dict | list, str | int]]:
    keys: list = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change, remove, rename or repeat one value anywhere in a JSON text."""
    root = [json.loads(data)]
    holder, key = rng.choice(list(_places(root)))
    way = rng.choice(["value", "value", "value", "remove", "rename", "repeat", "bits"])
    if way == "remove" and holder is not root:
        del holder[key]
    elif way == "rename" and isinstance(holder, dict):
        holder[rng.choice(["", "x", "step", "../x", "\x1b[31m", "x" * 1000])] = holder.pop(key)
    elif way == "bits" and isinstance(holder[key], (int, float)) and holder[key] < 2**60:
        holder[key] += rng.choice([-1, 1, 0.5, 1 << rng.randrange(60)])
    else:
        original = json.dumps(holder[key])
        holder[key] = _MARK
        text = json.dumps(root[0])
        mark, value = json.dumps(_MARK), rng.choice(VALUES)
        if way == "repeat" and isinstance(holder, dict):
            return text.replace(mark, f"{original}, {json.dumps(key)}: {value}").encode()
        return text.replace(mark, value).encode()
    return json.dumps(root[0], indent=1).encode()


def mutate_toml(data: bytes, rng: random.Random) -> bytes:
    """Change, remove or repeat one line of a TOML text."""
    lines = data.decode().splitlines()
    index = rng.choice([number for number, line in enumerate(lines) if line and line[0] != "#"])
    key = lines[index].partition("=")[0].strip()
    odd = rng.choice([*VALUES, "2026-01-01", "nan", "0x" + "f" * 9000, "'''\n'''", '"a\\u0000b"', "{a={}}", "1_0"])
    lines[index : index + 1] = rng.choice(
        [[f"{key} = {odd}"], [f"{key} = {odd}"], [], [lines[index]] * 2, [f"[{key}]"], [f"[[{key}]]"], [f"{key}.a = 1"]]
    )
    return "\n".join(lines).encode()


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """Change one line of a text of JSON lines, repeat it or move it."""
    lines = data.splitlines(keepends=True)
    index = rng.randrange(len(lines))
    way = rng.choice(["mutate", "mutate", "mutate", "repeat", "shuffle", "many"])
    if way == "mutate":
        lines[index] = mutate_json(lines[index], rng).replace(b"\n", b"") + b"\n"
    elif way == "repeat":
        lines.insert(rng.randrange(len(lines)), lines[index])
    elif way == "shuffle":
        rng.shuffle(lines)
    else:
        values = [rng.choice([1e308, 1.7e308, -1e308, 1e-320, 0.0, 1e300]) for _ in range(300)]
        lines += [b'{"step": %d, "time": 1e9, "loss_a": %r, "loss_b": 1}\n' % (n, v) for n, v in enumerate(values)]
    return b"".join(lines)


def mutate_tensors(data: bytes, rng: random.Random) -> bytes:
    """Change the JSON header of a file of tensors or arrays and keep the rest; or the length that it says."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.15:
        return rng.choice([0, 1, length + 1, 2**40, 2**63, 2**64 - 1]).to_bytes(8, "little") + data[8:]
    header = mutate_json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def sealed(mutation: Mutation) -> Mutation:
    """Return the mutation with the checksums of a file of arrays made right again, as a forger would."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        damaged = mutation(data, rng)
        length = int.from_bytes(damaged[:8], "little")
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            entries = json.loads(damaged[8 : 8 + length])
            metadata = entries["__metadata__"]
            if "checksum" in metadata:
                covered = {name: text for name, text in metadata.items() if name not in ("checksum", "crc32")}
                metadata["checksum"] = str(zlib.crc32(json.dumps(covered, sort_keys=True).encode()))
            metadata["crc32"] = "0" * 8
            header = json.dumps(entries).encode()
            damaged = len(header).to_bytes(8, "little") + header + damaged[8 + length :]
            return damaged.replace(b'"crc32": "00000000"', f'"crc32": "{zlib.crc32(damaged):08x}"'.encode(), 1)
        return damaged

    return mutate


# --- what is whole ----------------------------------------------------------------------------------------


@dataclass
class Whole:
    """What there was before anything was damaged."""

    folder: Path
    tensors: dict[int, dict[str, dict[str, torch.Tensor]]]
    records: list[bytes]
    landmarks: np.ndarray
    pixels: list[tuple[np.ndarray, np.ndarray]]
    matches: tuple[np.ndarray, np.ndarray]

    @property
    def train(self) -> list[str]:
        faces = self.folder / "faces"
        return [
            "train",
            "-A",
            f"{faces / 'a'}",
            "-B",
            f"{faces / 'b'}",
            "-t",
            "tiny",
            "--recipe",
            "faceswap",
            "-b",
            "2",
            "--preview-images",
            "1",
        ]


def make_whole(folder: Path) -> Whole:
    """Draw faces, train a model of two checkpoints on them and prepare a set."""
    synthesize(folder / "faces", faces=3, size=64, pairs=0, workers=1)
    whole = Whole(folder, {}, [], np.empty(0), [], (np.empty(0), np.empty(0)))
    words = [*whole.train, "--cache", "host", "-s", "1", "-I", "1", "-m", f"{folder / 'model'}"]
    for steps in STEPS:
        assert _command([*words, "-i", str(steps)]) == 0
    assert _command(["prepare", f"{folder / 'faces' / 'a'}", f"{folder / 'set'}", "--size", "64"]) == 0
    checkpoints = CheckpointFolder(folder / "model")
    whole.tensors = {step: checkpoints.read(checkpoints.path(step)).tensors for step in STEPS}
    events = sorted((folder / "model" / "logs").rglob("*tfevents*"))[-1]
    events = events.rename(folder / "model" / "logs" / "events")
    whole.records = list(RecordIterator(events))
    assert len(whole.records) > 2
    prepared = open_prepared(folder / "set")
    whole.pixels = [prepared.read(row) for row in range(len(prepared))]
    whole.landmarks = prepared.folder.records.column("landmarks")
    whole.matches = tuple(np.arange(6, dtype=np.int32).reshape(3, 2) % 3 for _ in "ab")
    cache = folder / "model" / "cache"
    save_matches(cache / "matches-0123456789abcdef.safetensors", "digest", whole.matches, {"folder": "x"})
    (folder / "run.toml").write_text(TrainConfig().to_toml())
    return whole


def _copy(whole: Whole, target: Path) -> None:
    """Copy the model, the set and the settings; big files that are never written again are linked."""

    def copy(source: str, destination: str) -> None:
        (os.link if source.endswith((".safetensors", ".tar")) else shutil.copyfile)(source, destination)

    for name in ("model", "set"):
        shutil.copytree(whole.folder / name, target / name, copy_function=copy)
    shutil.copyfile(whole.folder / "run.toml", target / "run.toml")


# --- what is done with it ---------------------------------------------------------------------------------


def _command(words: list[str]) -> int:
    """Run a command in this process, return its code; AssertionError where it does not end as a command should."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = cli.main(words)
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("swapfast: ")]
    says_why = len(lines) == (code != 0) or words[0] == "inspect"  # which lists the bad faces
    assert code in (0, 1, 2) and says_why, (code, errors.getvalue()[-2000:])
    assert "Traceback" not in errors.getvalue()
    assert "\x1b[31m" not in out.getvalue() + errors.getvalue(), "an escape sequence of a file reaches the terminal"
    return code


def _same(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in tensors)


def use_settings(folder: Path, whole: Whole, rng: random.Random) -> None:
    config = choose(file=folder / "run.toml").config
    (folder / "again.toml").write_text(config.to_toml(), encoding="utf-8")
    assert choose(file=folder / "again.toml").config == config


def use_model(folder: Path, whole: Whole, rng: random.Random, exact: bool = True) -> None:
    """Load, list, open, plan and now and then train on. exact: whatever is read has to be what was written."""
    model = folder / "model"
    checkpoints = CheckpointFolder(model)
    points = Snapshots(checkpoints).points()
    assert json.dumps([point.to_dict() for point in points], allow_nan=False) and describe(model, points)
    failed = None
    try:
        checkpoint, _ = checkpoints.load()
        if exact:
            tensors = whole.tensors[checkpoint.step]
            assert all(_same(checkpoint.tensors[stem], tensors[stem]) for stem in checkpoint.tensors)
        opened, _, metadata = open_model(model)
        if exact:
            assert _same(opened.state_dict(), whole.tensors[metadata.step]["model"])
        choice = choose({"run.input_a": str(whole.folder / "faces/a"), "run.input_b": str(whole.folder / "faces/b")})
        choice.config.run.model_dir = str(model)
        plan = plan_run(TrainRequest(choice.config, {}))
        inherited_state(plan.checkpoint), inherited_metrics(plan.checkpoint, plan.config)
        optimizer = Optimizer(plan.model, plan.config.optimizer)
        optimizer.load_state_dict(trained_state(plan.model, plan.checkpoint.tensors["optimizer"]))
    except SwapfastError as error:
        failed = error
    if rng.random() < (0.02 if exact else 0.15):
        _command([*whole.train, "-m", str(model), "-i", "3"])
        _command(["restore", str(model), "--step", "1"])
        _command(["restore", str(model), "--list"])
    if failed is not None:
        raise failed


def use_forged_model(folder: Path, whole: Whole, rng: random.Random) -> None:
    """Make the digests of damaged tensors right again, as a forger would, then use the model."""
    for state in (folder / "model").glob("*/state.json"):
        described = json.loads(state.read_bytes())
        for name, entry in described["files"].items():
            if (state.parent / name).exists():
                data = (state.parent / name).read_bytes()
                entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        state.write_text(json.dumps(described))
    use_model(folder, whole, rng, exact=False)


def use_steps(folder: Path, whole: Whole, rng: random.Random) -> None:
    history = load_history(folder / "model")
    summary = summarise(history)
    json.loads(json.dumps(summary, allow_nan=False))
    assert "\x1b" not in describe_log(summary, folder)
    if rng.random() < 0.3:
        assert draw_losses(history, "model")[:4] == b"\x89PNG"
    assert _command(["log", str(folder / "model")]) == 0


def use_events(folder: Path, whole: Whole, rng: random.Random) -> None:
    notes: list[str] = []
    records = list(RecordIterator(folder / "model/logs/events", warn=notes.append))
    assert records == whole.records[: len(records)] or not notes
    assert len(notes) <= 1


def use_cache(folder: Path, whole: Whole, rng: random.Random, exact: bool = True) -> None:
    cache = folder / "model" / "cache"
    entries = list_cache(cache)
    assert json.dumps(entries, allow_nan=False) and describe_cache(cache, entries)
    path = cache / "matches-0123456789abcdef.safetensors"
    matches = load_matches(path, "digest", (np.empty((3, 1)), np.empty((3, 1))), 2)
    assert matches is None or not exact or all(map(np.array_equal, matches, whole.matches))
    for side in "ab":
        source = scan_side(whole.folder / "faces" / side, "extended", True, cache=cache)
        assert len(source) == 3 or not exact
        spec = plan_spec(whole)
        store = cached_store(cache, spec, source).store
        assert store.faces.shape == (len(source), *spec.face_shape)


_SPECS: dict[Path, object] = {}


def plan_spec(whole: Whole):
    """Return the spec of the stores of the whole model; it is planned once."""
    if whole.folder not in _SPECS:
        choice = choose({"run.input_a": str(whole.folder / "faces/a"), "run.input_b": str(whole.folder / "faces/b")})
        choice.config.run.model_dir = str(whole.folder / "model")
        _SPECS[whole.folder] = plan_run(TrainRequest(choice.config, {})).spec
    return _SPECS[whole.folder]


def use_forged_cache(folder: Path, whole: Whole, rng: random.Random) -> None:
    use_cache(folder, whole, rng, exact=False)


def use_set(folder: Path, whole: Whole, rng: random.Random, exact: bool = True) -> None:
    prepared = open_prepared(folder / "set")
    bad = {fault.path.name for fault in prepared.verify(1)}
    records = [prepared.folder.records[row] for row in range(len(prepared))]
    for row, record in enumerate(records):
        if exact and record.path.name not in bad:
            assert all(map(np.array_equal, prepared.read(row), whole.pixels[row]))
            assert np.array_equal(record.landmarks, whole.landmarks[row])
    if rng.random() < 0.2:
        _command(["inspect", str(folder / "set")])


def use_forged_set(folder: Path, whole: Whole, rng: random.Random) -> None:
    use_set(folder, whole, rng, exact=False)


@dataclass(frozen=True)
class Subject:
    """What is damaged (glob patterns), how, and what is done with it then. weight: how often it is taken."""

    patterns: tuple[str, ...]
    mutations: tuple[Mutation, ...]
    use: Callable[[Path, Whole, random.Random], None]
    weight: int = 1


_STEMS = ("model", "optimizer", "faces")
SUBJECTS = {
    "settings": Subject(("run.toml",), (*BYTES, *[mutate_toml] * 12), use_settings, 3),
    "state": Subject(tuple(f"model/{n}/state.json" for n in CHECKPOINTS), (*BYTES, *[mutate_json] * 12), use_model, 5),
    "tensors": Subject(
        tuple(f"model/{n}/{stem}.safetensors" for n in CHECKPOINTS[:2] for stem in _STEMS),
        (*BYTES, *[mutate_tensors] * 8),
        use_model,
        3,
    ),
    "forged tensors": Subject(
        tuple(f"model/{CHECKPOINTS[0]}/{stem}.safetensors" for stem in _STEMS),
        (*BYTES, *[mutate_tensors] * 12),
        use_forged_model,
        2,
    ),
    "steps": Subject(("model/logs/steps.jsonl",), (*BYTES, *[mutate_lines] * 12), use_steps, 3),
    "events": Subject(("model/logs/events",), BYTES, use_events, 2),
    "cache": Subject(
        ("model/cache/index-*", "model/cache/store-*", "model/cache/matches-*"),
        (*BYTES, *[mutate_tensors] * 8),
        use_cache,
        2,
    ),
    "forged cache": Subject(
        ("model/cache/index-*", "model/cache/matches-*"),
        (sealed(flip), sealed(overwrite), sealed(mutate_tensors)),
        use_forged_cache,
        2,
    ),
    "set": Subject(("set/index.safetensors", "set/*.tar"), (*BYTES, *[mutate_tensors] * 4), use_set, 2),
    "forged set": Subject(
        ("set/index.safetensors",), (sealed(flip), sealed(overwrite), sealed(mutate_tensors)), use_forged_set, 2
    ),
}


class Hangs(BaseException):
    """A seed took more than CPU_S of processor time."""


def _ring(number: int, frame: object) -> None:
    raise Hangs


def try_seed(seed: int, whole: Whole, subject: str | None = None) -> str | None:
    """Damage one file as ``seed`` says and use it; return what went wrong, None where nothing did."""
    rng = random.Random(seed)
    name = subject or rng.choices(list(SUBJECTS), [item.weight for item in SUBJECTS.values()])[0]
    chosen = SUBJECTS[name]
    with tempfile.TemporaryDirectory(dir=whole.folder) as place, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        folder = Path(place)
        _copy(whole, folder)
        file = rng.choice(sorted(folder.glob(rng.choice(chosen.patterns))))
        mutation = rng.choice(chosen.mutations)
        try:
            damaged = b"" if rng.random() < 0.02 else mutation(file.read_bytes(), rng)
        except (UnicodeDecodeError, ValueError):  # a mutation of JSON for a file that has none, such as a tar
            damaged = flip(file.read_bytes(), rng)
        file.unlink()
        if rng.random() > 0.02:
            file.write_bytes(damaged)
        what = f"seed {seed}: {name}, {file.relative_to(folder)}, {getattr(mutation, '__name__', mutation)}"
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
        try:
            chosen.use(folder, whole, rng)
        except SwapfastError as error:
            if error.code not in (1, 2) or "\n" in str(error) or len(str(error)) > 2000:
                return f"{what}: not one line: code {error.code}, {str(error)[:300]!r}"
        except (Exception, Hangs):
            return f"{what}\n{traceback.format_exc()[-3000:]}"
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    texts = [str(one.message) for one in heard if not issubclass(one.category, (DeprecationWarning, ResourceWarning))]
    return f"{what}: a warning: {texts[0]}" if texts else None


def try_seeds(
    seeds: range, whole: Whole, subject: str | None = None, tell: Callable[[str], None] = lambda fault: None
) -> list[str]:
    """Try many seeds; return what went wrong. ``tell`` hears of each fault at once."""
    former = signal.signal(signal.SIGVTALRM, _ring)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        faults = [fault for seed in seeds if (fault := try_seed(seed, whole, subject)) and tell(fault) is None]
    finally:
        signal.signal(signal.SIGVTALRM, former)
    added = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return [*faults, f"{added / 2**30:.1f} GiB of memory were taken"] if added > MEMORY else faults


@pytest.mark.long
def test_damaged_files_are_refused_in_one_line_or_do_not_matter(tmp_path):
    faults = try_seeds(range(SEEDS), make_whole(tmp_path))
    assert not faults, f"{len(faults)} of {SEEDS} seeds:\n" + "\n".join(faults[:5])


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_what_is_whole_is_used(name, tmp_path_factory, request):
    """Without damage nothing is refused: the functions above do reach the end."""
    whole = request.getfixturevalue("whole")
    folder = tmp_path_factory.mktemp("copy")
    _copy(whole, folder)
    SUBJECTS[name].use(folder, whole, random.Random(1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    return make_whole(tmp_path_factory.mktemp("whole"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--subject", choices=SUBJECTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        faults = try_seeds(seeds, make_whole(Path(folder)), arguments.subject, functools.partial(print, flush=True))
    print(f"{len(faults)} of {len(seeds)} seeds went wrong")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
