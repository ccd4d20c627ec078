"""Output that nobody takes: what is trained, saved and returned is the same."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapfast import printing
from swapfast.bars import Bars
from swapfast.printing import GuardedOutput, printable, shown_name, write_text
from swapfast.training.progress import ProgressLine
from tests import preloaded

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-t", "tiny", "--recipe", "faceswap", "-b", "4", "--preview-images", "2", "--device", "cpu"]
ENDLESS = ["-i", "1000000", "-s", "1000000"]

_started: list[subprocess.Popen] = []


def _start(*arguments, start=preloaded.Popen, **options) -> subprocess.Popen:
    """Start a process that ends with its test, whatever becomes of that."""
    _started.append(start(*arguments, **options))
    return _started[-1]


@pytest.fixture(autouse=True)
def _end_processes():
    yield
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


NARROW = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


@pytest.fixture(scope="module")
def faces(drawn) -> Path:
    return drawn(8, 64)


def _command(*words) -> list[str]:
    return [sys.executable, "-m", "swapfast", *map(str, words)]


def _train(faces: Path, model: Path, *flags) -> list[str]:
    return _command("train", "-A", faces / "a", "-B", faces / "b", "-m", model, *FLAGS, *flags)


def _environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def _finished(words: list[str], streams: dict[str, tuple[int, ...]], **variables: str) -> subprocess.CompletedProcess:
    """Run a command of which some streams are ``closed``, ``full``, or pipes whose reader is ``gone``."""
    given = {0: subprocess.DEVNULL, 1: subprocess.PIPE, 2: subprocess.PIPE}
    with open("/dev/full", "w") as full, _gone_reader() as gone:
        given |= dict.fromkeys(streams.get("full", ()), full) | dict.fromkeys(streams.get("gone", ()), gone)
        options = {"closed": streams["closed"]} if "closed" in streams else {}
        result = preloaded.run(
            words, stdin=given[0], stdout=given[1], stderr=given[2], text=True, timeout=120,
            env=_environment(**variables), **options,
        )  # fmt: skip
    result.stderr = result.stderr or ""
    return result


@contextlib.contextmanager
def _gone_reader() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def _saved(model: Path) -> list[str]:
    return sorted(path.name for path in model.glob("checkpoint-*"))


def _wait_for_step(descriptor: int) -> None:
    """Read until the first loss line."""
    text = b""
    while not re.search(rb"\[#0", text):
        part = os.read(descriptor, 4096)
        assert part, text
        text += part


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bäckerei 中\tb\nc", "bäckerei 中\tb\nc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\rb\x00\x7f\x9b", "a\\rb\\x00\\x7f\\x9b"),
        ("\udcff\ud800", "\\xff\\ud800"),
        ("gpj\u202ecod", "gpj\\u202ecod"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, expected):
    assert printable(text) == expected


def test_a_name_stays_on_its_line():
    assert shown_name(Path("a\nb\t\udcffä.png")) == "a\\nb\\t\\xffä.png"


def test_text_for_a_narrow_stream_is_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii", write_through=True)
    write_text(stream, "ä \ud800\n")
    assert raw.getvalue() == b"\\xe4 \\ud800\n"


def test_streams_that_are_closed_or_missing_take_everything(monkeypatch):
    closed = io.StringIO()
    closed.close()
    write_text(closed, "text")
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    printing.say("text")
    printing.complain("text")
    ProgressLine().log("text")
    with Bars() as bars:
        bars("reading")(1, 2)


@pytest.mark.slow
def test_a_reader_that_is_gone_or_stands_still_loses_the_rest(monkeypatch):
    monkeypatch.setattr(printing, "_keeps_waiting", False)
    reader, writer = os.pipe()
    output = GuardedOutput(io.FileIO(writer, "w"))
    assert output.write(bytes(1_000_000)) == 1_000_000  # fifteen times what a pipe holds
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while os.read(reader, 65536):
            pass
    assert output.write(b"again") == 5 and os.read(reader, 10) == b"again"
    os.close(reader)
    assert output.write(b"gone") == 4


def test_a_folder_named_like_a_command_of_rich_has_a_bar():
    master, slave = pty.openpty()
    with open(slave, "w") as stream, Bars(stream=stream) as bars:
        progress = bars("decoding a[/red]/[bold]")
        progress(1, 2)
        progress(2, 2)
    assert b"decoding a[/red]/[bold]" in os.read(master, 65536)
    os.close(master)


@pytest.fixture(scope="module")
def weights(faces, tmp_path_factory) -> bytes:
    """What three iterations come to where all that is printed is read."""
    model = tmp_path_factory.mktemp("read") / "m"
    result = _finished(_train(faces, model, "-i", 3), {})
    assert result.returncode == 0 and "on cpu in fp32, 1 thread, batch" in result.stdout, result.stderr
    return (model / "checkpoint-00000003" / "model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(
    ("streams", "variables"),
    [
        ({"closed": (0, 1, 2)}, {}),
        ({"full": (1, 2)}, {}),
        ({"gone": (1, 2)}, {}),
        ({}, NARROW),
        ({}, {"LC_ALL": "C"}),
    ],
)
def test_training_comes_to_the_same(faces, weights, tmp_path, streams, variables):
    model = tmp_path / "modèle 中"
    result = _finished(_train(faces, model, "-i", 3), streams, **variables)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    assert (model / "checkpoint-00000003" / "model.safetensors").read_bytes() == weights


@pytest.mark.long
@pytest.mark.parametrize("streams", [{"closed": (1,)}, {"closed": (2,)}, {"full": (1, 2)}, {"gone": (1,)}])
@pytest.mark.parametrize("words", [["inspect", "FACES", "--json"], ["inspect", "FACES"], ["--help"], ["inspect", "no"]])
def test_results_that_nobody_takes_leave_the_code_alone(faces, streams, words):
    words = [str(faces / "a") if word == "FACES" else word for word in words]
    result = _finished(_command(*words), streams)
    assert result.returncode == (2 if "no" in words else 0)
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr


@pytest.mark.slow
def test_notes_do_not_stray_into_a_result(faces, tmp_path):
    """Without standard error Python prints what is meant for it on standard output."""
    result = _finished(_command("inspect", faces / "a", "--json"), {"closed": (2,)})
    assert json.loads(result.stdout)["faces"] == 8


@pytest.mark.slow
def test_pipe_gone_and_then_sigterm(faces, tmp_path):
    reader, writer = os.pipe()
    process = _start(_train(faces, tmp_path / "m", *ENDLESS), stdout=writer, stderr=subprocess.PIPE, env=_environment())
    os.close(writer)
    _wait_for_step(reader)
    os.close(reader)
    process.send_signal(signal.SIGTERM)
    complaints = process.communicate(timeout=60)[1]
    assert process.returncode == 3 and not complaints and _saved(tmp_path / "m")


def _wait_until_full(reader: int, process: subprocess.Popen) -> None:
    """Wait until a pipe holds something and gets no more, though its writer prints a line a step."""
    before, waiting = bytes(4), bytearray(4)
    while before != waiting or not any(waiting):
        assert process.poll() is None
        before = bytes(waiting)
        signal.sigtimedwait([], 1.0)
        fcntl.ioctl(reader, termios.FIONREAD, waiting)


@pytest.mark.slow
def test_a_reader_that_stands_still_does_not_keep_a_stop_waiting(faces, tmp_path):
    """Nothing is read behind the first loss line, and a pipe of one page is full at once."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = _start(
        _train(faces, tmp_path / "m", "-i", 1000000, "-s", 1), stdout=writer, stderr=writer, env=_environment()
    )
    os.close(writer)
    _wait_for_step(reader)
    _wait_until_full(reader, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 3
    os.close(reader)


@pytest.mark.long
def test_terminal_gone(faces, tmp_path):
    master, slave = pty.openpty()
    process = _start(
        _train(faces, tmp_path / "m", *ENDLESS),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        terminal=True,
        env=_environment(),
    )
    os.close(slave)
    _wait_for_step(master)
    os.close(master)
    assert process.wait(timeout=60) == 3 and _saved(tmp_path / "m")


def _signal_until_gone(process: subprocess.Popen, number: int) -> int:
    """Send a signal each 0.1 s, for two minutes at most; return the exit code."""
    for _ in range(1200):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.1)
    raise AssertionError(f"signal {number} has not ended the process in two minutes")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_that_insists_gets_the_same_code(faces, tmp_path, number):
    process = _start(
        _train(faces, tmp_path / "m", *ENDLESS),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        torn_down=True,
    )
    _wait_for_step(process.stdout.fileno())
    assert _signal_until_gone(process, number) == 3
    assert _saved(tmp_path / "m") and not process.stderr.read()


# Sends SIGTERM as a module begins to be imported, once the trainer listens, and leaves the file `sent`.
SIGNALLING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("AT") and callable(signal.getsignal(signal.SIGTERM)):
            os.environ["AT"] = ""
            open("sent", "w").close()
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "insists"),
    [
        ("argparse", False),
        ("numpy.linalg", False),
        ("torch._C", True),
        ("cv2", False),
        ("pipelines.run.build", True),
    ],
)
def test_a_signal_within_an_import(faces, tmp_path, module, insists):
    (tmp_path / "sitecustomize.py").write_text(SIGNALLING)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = _start(
        _train(faces, tmp_path / "m", "-i", 3),
        start=subprocess.Popen,  # the imports are what is tried here
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=_environment(AT=module, PYTHONPATH=paths),
    )
    while not (tmp_path / "sent").exists():
        assert process.poll() is None, process.stderr.read()
        signal.sigtimedwait([], 0.02)
    if insists:
        _signal_until_gone(process, signal.SIGTERM)
    complaints = process.communicate(timeout=60)[1]
    assert process.returncode == 3
    assert not _saved(tmp_path / "m")
    assert complaints.count("\n") == 1 and "stopped by SIGTERM before anything new was saved" in complaints, complaints


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_of_a_run_that_is_leaving(faces, tmp_path, number):
    process = _start(
        _train(faces, tmp_path / "m", "-i", 3),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        torn_down=True,
    )
    assert any(line.startswith("done") for line in process.stdout)
    assert _signal_until_gone(process, number) == 0 and not process.stderr.read()


def test_everything_is_printed_in_one_place():
    """A bare print raises where nobody takes what it prints."""
    sources = [ROOT / "cli.py", *(ROOT / "pipelines").rglob("*.py"), *(ROOT / "swapfast").rglob("*.py")]
    assert not [path for path in sources if re.search(r"(?<![\w.])print\(", path.read_text())]
