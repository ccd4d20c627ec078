"""Arguments that nobody means: each is one line and code 2, and nothing is written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import cli
from swapfast.commands import argument_types

pytestmark = pytest.mark.slow  # a hundred and more commands

DIGITS = "9" * 5000
NESTED = "[" * 3000 + "]" * 3000
LONG = "x" * 300  # longer than a name may be
TRAIN = ["train", "-A", "faces/a", "-B", "faces/b", "-m", "model", "-t", "tiny"]
SWAP = ["swap", "-m", "model", "-i", "faces/a"]
AUGMENT = ["augment", "faces/a", "-o", "sheet.png"]

# Every argument that is a path: what comes before it and after it.
PATHS = {
    "train -A": ([*TRAIN, "-A"], []),
    "train -B": ([*TRAIN, "-B"], []),
    "train -m": ([*TRAIN, "-m"], []),
    "train -C": ([*TRAIN, "-C"], []),
    "train -l": ([*TRAIN, "-l"], []),
    "train -z": ([*TRAIN, "-z"], []),
    "train -x": ([*TRAIN, "-y", "faces/b", "-x"], []),
    "train -y": ([*TRAIN, "-x", "faces/a", "-y"], []),
    "train --cache-dir": ([*TRAIN, "--cache-dir"], []),
    "train --stop-file": ([*TRAIN, "--stop-file"], []),
    "synthesize": (["synthesize"], ["--faces", "1", "--size", "64", "--pairs", "0"]),
    "inspect": (["inspect"], []),
    "prepare FOLDER": (["prepare"], ["set"]),
    "prepare OUT": (["prepare", "faces/a"], []),
    "augment": (["augment"], ["-o", "sheet.png"]),
    "augment -o": (["augment", "faces/a", "-o"], []),
    "augment -B": ([*AUGMENT, "-B"], []),
    "cache": (["cache"], []),
    "log": (["log"], []),
    "log -o": (["log", "model", "-o"], []),
    "restore": (["restore"], []),
    "evaluate -m": (["evaluate", "--truth", "faces", "-m"], []),
    "evaluate -A": (["evaluate", "-m", "model", "--test", "-B", "faces/b", "-A"], []),
    "evaluate -B": (["evaluate", "-m", "model", "--test", "-A", "faces/a", "-B"], []),
    "import SOURCE": (["import"], ["-m", "new"]),
    "import -m": (["import", "faces/a", "-m"], []),
    "export -m": (["export", "--to", "safetensors", "-m"], []),
    "export -o": (["export", "--to", "safetensors", "-m", "model", "-o"], []),
    "export --template": (["export", "--to", "keras", "-m", "model", "--template"], []),
    "codes -m": (["codes", "-A", "faces/a", "-B", "faces/b", "-m"], []),
    "codes -A": (["codes", "-m", "model", "-B", "faces/b", "-A"], []),
    "codes -B": (["codes", "-m", "model", "-A", "faces/a", "-B"], []),
    "activations MODEL": (["activations"], ["faces/a/0.png", "-o", "sheet.png"]),
    "activations FACE": (["activations", "model"], ["-o", "sheet.png"]),
    "activations -o": (["activations", "model", "faces/a/0.png", "-o"], []),
    "swap -m": (["swap", "-i", "faces/a", "-o", "new", "-m"], []),
    "swap -i": (["swap", "-m", "model", "-o", "new", "-i"], []),
    "swap -o": ([*SWAP, "-o"], []),
    "swap -p": ([*SWAP, "-o", "new", "-p"], []),
    "swap --landmarks": ([*SWAP, "-o", "new", "--landmarks"], []),
    "swap --mask-dir": ([*SWAP, "-o", "new", "--mask-dir"], []),
    "swap -C": ([*SWAP, "-o", "new", "-C"], []),
    "swap --report": ([*SWAP, "-o", "new", "--report"], []),
    "inspect -o": (["inspect", "faces/a", "-o"], []),
    "inspect --skip-list": (["inspect", "faces/a", "--skip-list"], []),
    "extract -i": (["extract", "-o", "new", "--backend", "json", "-i"], []),
    "extract -o": (["extract", "-i", "faces/a", "--backend", "json", "-o"], []),
    "extract --get-models": (["extract", "--get-models"], []),
    "extract --models": (["extract", "-i", "faces/a", "-o", "new", "--models"], []),
    "extract --landmarks": (["extract", "-i", "faces/a", "-o", "new", "--backend", "json", "--landmarks"], []),
    "extract --collect": (["extract", "--collect"], []),
    "train --skip": ([*TRAIN, "--skip"], []),
    "prepare --skip": (["prepare", "faces/a", "set", "--skip"], []),
    "augment --skip": ([*AUGMENT, "--skip"], []),
    "preview": (["preview"], []),
    "timelapse": (["timelapse"], ["-o", "film.gif"]),
    "timelapse -o": (["timelapse", "model", "-o"], []),
    "timelapse --pictures": (["timelapse", "model", "-o", "film.gif", "--pictures"], []),
    "watch": (["watch"], []),
    "swap --sheet": (["swap", "-m", "model", "-o", "sheet.png", "--sheet"], []),
    "evaluate --truth": (["evaluate", "-m", "model", "--truth"], []),
}

NUMBERS = [
    *((["synthesize", "new", flag], number) for flag in ("--faces", "--pairs") for number in ("100001", "1" * 25)),
    *((["synthesize", "new", flag], DIGITS) for flag in ("--faces", "--size", "--pairs", "--seed")),
    (["synthesize", "new", "--faces"], "-3"),
    (["synthesize", "new", "--faces"], "1e9"),
    *((["prepare", "faces/a", "set", "--size"], number) for number in ("100000", DIGITS, "nan", "-5")),
    *(([*AUGMENT, flag], number) for flag in ("--size", "--faces") for number in ("100000", DIGITS, "inf")),
    *(([*AUGMENT, "--percentile"], number) for number in ("nan", "inf", "1e400", DIGITS)),
    *(
        ([*TRAIN, flag], number)
        for flag in ("-i", "-s", "-I", "-b", "-a")
        for number in (DIGITS, "1" * 30, "1e3", "-1")
    ),
    *(([*TRAIN, flag], DIGITS) for flag in ("--seed", "--preview-images", "--accumulation", "--epsilon-exponent")),
    *(([*TRAIN, "--learning-rate"], number) for number in ("nan", "inf", "-inf", "1e999", DIGITS)),
    *(([*TRAIN, "--loss-weights"], number) for number in ("nan", "1e999", DIGITS)),
    *(([*TRAIN, "--max-time"], number) for number in (DIGITS, "9" * 400, "36526d", "9" * 50 + "d", "1e9", "٣" * 61)),
    *(
        ([*SWAP, "-o", "new", flag], number)
        for flag in ("-O", "--min-size", "--erosion", "-S", "--batch-size")
        for number in ("nan", "1e400", DIGITS)
    ),
    *((["restore", "model", "--step"], number) for number in (DIGITS, "1" * 30, "-1", "nan")),
    *((["evaluate", "-m", "model", "--truth", "faces", "--checkpoint"], number) for number in (DIGITS, "1" * 30, "-1")),
]

SETTINGS = [
    f"seed={DIGITS}",
    f"seed={NESTED}",
    "seed=0x" + "f" * 20000,
    "seed=nan",
    "seed=1.0",
    "seed=[1]",
    "seed={a=1}",
    "seed=2026-01-01",
    "seed=1\nbatch_size = 3",
    "seed",
    "=3",
    "",
    f"{LONG}=3",
    "loss.weights=0x" + "f" * 20000,
    f"loss.weights=[{', '.join('1' for _ in range(5000))}]",
    "loss.weights=[0x" + "f" * 20000 + "]",
    "loss.weights=[[[[1]]]]",
    "loss.weights=[nan]",
    f"loss.functions=['{'x' * 5000}']",
    "optimizer.learning_rate=1" + "0" * 400,
    "optimizer.learning_rate=0x" + "f" * 20000,
    "run.max_time=0x" + "f" * 20000,
    "run.cache_dir=",
    "run.cache_dir=''",
    "run.cache_dir='a\\u0000b'",
    'run.cache_dir="a\\u0000b"',
    "loss.lpips_weights=ring",
]

FILES = {
    "nested lists": f"seed = {NESTED}",
    "nested tables": "seed = " + "{a=" * 3000 + "1" + "}" * 3000,
    "a long dotted key": "run.cache_dir" + ".a" * 5000 + " = 1",
    "a long unknown key": ".".join("a" * 5000) + " = 1",
    "thousands of digits": f"seed = {DIGITS}",
    "a number of 80,000 bits": "seed = 0x" + "f" * 20000,
    "a list for a number": "batch_size = [16]",
    "a table for a number": "[batch_size]\nx = 1",
    "a number for a table": "run = 3",
    "a list of tables": "[[run]]\niterations = 3",
    "a date": "seed = 2026-01-01T00:00:00",
    "nan": "[optimizer]\nlearning_rate = nan",
    "a NUL in a path": '[run]\nmodel_dir = "a\\u0000b"',
    "a link to itself": '[run]\nmodel_dir = "ring"',
    "a long name": f'[run]\nmodel_dir = "{LONG}"',
    "the same key twice": "seed = 1\nseed = 2",
    "no end": "#" * (2 << 20),
    "a control character": "seed = '\x1b[31m'",
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """``refused(words)`` runs a command that has to end in one line and code 2, and returns the line."""
    monkeypatch.chdir(tmp_path)
    Path("ring").symlink_to("ring")
    for folder in ("faces/a", "faces/b"):
        Path(folder).mkdir(parents=True)

    def run(words: list[str]) -> str:
        files = sorted(map(str, Path().rglob("*")))
        code = cli.main(words)
        _, message = capfd.readouterr()
        assert code == 2 and message.startswith("swapfast: ") and message.count("\n") == 1, (
            words[:2],
            code,
            message[:500],
        )
        assert len(message) < 1500, "a value is shown in full"
        assert sorted(map(str, Path().rglob("*"))) == files
        return message

    return run


@pytest.mark.long
@pytest.mark.parametrize("argument", PATHS)
def test_a_path_that_no_file_can_have_is_refused(argument, refused):
    prefix, suffix = PATHS[argument]
    ending = ".png" if prefix[-1] == "-o" else ""
    for path, reason in (
        ("", "''"),
        ("ring", "ring"),
        ("ring/below", "ring|no such|there is no"),
        (f"{LONG}{ending}", "too long"),
        ("/".join(["x" * 200] * 30) + ending, "too long"),
        ("a\0b" + ending, "null|NUL"),
    ):
        assert re.search(reason, refused([*prefix, path, *suffix])), (argument, path)


def test_no_command_takes_a_path_that_is_not_tried_here():
    """A new command or flag has to be in the table above."""
    parser = cli._make_parser()
    count = 0
    for command in parser.commands.values():
        count += sum(
            action.type is argument_types.path or action.metavar in ("DIR", "FILE") for action in command._actions
        )
    assert count == len(PATHS)


@pytest.mark.long
@pytest.mark.parametrize(("words", "number"), NUMBERS, ids=[f"{w[0]} {w[-1]} {n[:6]}" for w, n in NUMBERS])
def test_an_absurd_number_is_refused(words, number, refused):
    message = refused([*words[:-1], f"{words[-1]}={number}"])
    assert re.search(words[-1].lstrip("-") if len(words[-1]) > 2 else re.escape(words[-1]), message)


@pytest.mark.parametrize("text", SETTINGS, ids=[text[:24] for text in SETTINGS])
def test_an_odd_setting_is_refused(text, refused):
    refused([*TRAIN, "--set", text])


@pytest.mark.parametrize("case", FILES)
def test_an_odd_file_of_settings_is_refused(case, refused):
    Path("run.toml").write_text(FILES[case])
    assert "run.toml" in refused([*TRAIN, "-C", "run.toml"])


@pytest.mark.parametrize("content", [b"\xff\xfe\0s", b"seed = '\xe9'", b"\0" * 50, None])
def test_a_file_of_settings_that_is_no_text_is_refused(content, refused):
    if content is None:
        Path("run.toml").mkdir()
    else:
        Path("run.toml").write_bytes(content)
    assert "run.toml" in refused([*TRAIN, "-C", "run.toml"])


@pytest.mark.parametrize("text", [DIGITS, "nan", "1e5", "[3]", "1\n2", "-1"])
def test_an_absurd_variable_is_refused(text, refused, monkeypatch):
    monkeypatch.setenv("SWAPFAST_SEED", text)
    assert "SWAPFAST_SEED" in refused(TRAIN)


def test_a_variable_of_a_ring_is_refused(refused, monkeypatch):
    monkeypatch.setenv("SWAPFAST_CACHE_DIR", "ring")
    assert "SWAPFAST_CACHE_DIR" in refused(TRAIN)


@pytest.mark.parametrize("words", [["x" * 5000], ["train", "--" + "x" * 5000], ["log", "x", "y" * 5000], ["-" * 5000]])
def test_long_words_are_shown_in_part(words, refused):
    refused(words)


def test_a_set_is_not_made_at_the_root(refused):
    assert "root of the file system" in refused(["prepare", "faces/a", os.sep])


def test_pictures_are_not_made_where_the_folder_cannot_be_replaced(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "faces" / "a")
    assert "cannot be replaced" in refused(["synthesize", "."])


@pytest.mark.parametrize("command", [["log", "model"], ["augment", "faces/a"]])
def test_a_picture_is_not_made_where_a_folder_lies(command, refused):
    Path("picture.png").mkdir()
    assert "picture.png: is no file" in refused([*command, "-o", "picture.png"])


@pytest.mark.parametrize(("flag", "present"), [("-bs", "-b 8"), ("-it", "-i 100000"), ("-ss", "-I 25000")])
def test_flags_of_older_guides_are_answered_with_the_present_ones(capsys, flag, present):
    assert cli.main(["train", "-A", "a", "-B", "b", "-m", "m", flag, "8"]) == 2
    assert present in capsys.readouterr().err
