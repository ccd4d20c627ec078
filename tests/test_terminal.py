"""Keys while training, and a terminal that is as before whatever happens."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import cli
from tests import preloaded

pytestmark = pytest.mark.slow  # windows, servers, networks and terminals are waited for

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-t", "tiny", "--recipe", "faceswap", "-b", "2", "--preview-images", "2", "--device", "cpu"]
# Says each key it is told of, until Enter.
LISTENING = """
import sys, time
from swapfast.terminal import TerminalKeys
ended = []
def say(word): print(f"<{word}>", flush=True)
with TerminalKeys({"\\n": lambda: ended.append(1), "s": lambda: say("s")}, lambda key: say("other " + key)):
    say("listens")
    while not ended:
        time.sleep(0.02)
        if WORDS == "raises" and (say("raises") or True):
            raise SystemExit(5)
say("ended")
"""


class Terminal:
    """A terminal of its own with a program in its foreground."""

    def __init__(self, words: list[str], **variables: str) -> None:
        self.text = b""
        self.pid, self.number = pty.fork()
        if self.pid == 0:
            try:
                os.execve(words[0], words, os.environ | {"TERM": "xterm", "PYTHONPATH": str(ROOT)} | variables)
            finally:
                os._exit(127)

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """Read until the text since the last match has ``pattern``; return what matches."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern.encode(), self.text)):
            assert time.monotonic() < end, self.text
            if select.select([self.number], [], [], 0.2)[0]:
                self.text += os.read(self.number, 65536)
        self.text = self.text[match.end() :]
        return match[0].decode()

    def send(self, keys: bytes) -> None:
        os.write(self.number, keys)

    @property
    def is_plain(self) -> bool:
        """Whether the terminal shows what is typed, and gives whole lines."""
        modes = termios.tcgetattr(self.number)[3]
        return bool(modes & termios.ECHO) and bool(modes & termios.ICANON)

    def wait_until_plain(self, plain: bool) -> None:
        end = time.monotonic() + 60
        while self.is_plain is not plain:
            assert time.monotonic() < end
            time.sleep(0.02)

    def code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.number)


@pytest.fixture
def terminal():
    opened: list[Terminal] = []

    def start(words: list[str], **variables: str) -> Terminal:
        opened.append(Terminal(words, **variables))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def _listening(words: str = "") -> list[str]:
    return [sys.executable, "-S", "-c", LISTENING.replace("WORDS", repr(words))]


def test_keys_are_answered_and_the_terminal_given_back(terminal):
    listening = terminal(_listening())
    listening.wait_until_plain(False)
    for typed, answer in ((b"s", "<s>"), (b"S", "<s>"), (b"x", "<other x>"), (b"sss", "<s>")):
        listening.send(typed)
        listening.wait_for(answer)
    listening.send(b"\x1bOS")  # F4
    time.sleep(0.1)
    listening.send(b"saved\nlater\n")  # pasted
    time.sleep(0.1)
    listening.send(b"x")
    assert listening.wait_for("<other .>") == "<other x>"
    listening.send(b"\r")
    listening.wait_for("<ended>")
    assert listening.code() == 0 and listening.is_plain


def test_a_program_that_fails_gives_the_terminal_back(terminal):
    failing = terminal(_listening("raises"))
    failing.wait_for("<raises>")
    assert failing.code() == 5 and failing.is_plain


def test_without_term_keys_are_left_alone(terminal):
    listening = terminal(_listening(), TERM="")
    listening.wait_for("<listens>")
    time.sleep(0.5)
    assert listening.is_plain


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="needs bash (apt-get install bash)")
def test_a_shell_that_stops_and_continues_the_program(terminal, tmp_path):
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable} -S\n{LISTENING.replace('WORDS', repr(''))}")
    program.chmod(0o755)
    shell = terminal(["/bin/bash", "--norc", "--noprofile", "-i"], PS1="prompt:", HISTFILE="")
    shell.wait_for("prompt:")
    shell.send(f"{program}\n".encode())
    shell.wait_for("<listens>")
    shell.wait_until_plain(False)
    shell.send(b"\x1a")  # Ctrl-Z
    shell.wait_for("Stopped")
    shell.send(b"stty -a; bg\n")
    assert shell.wait_for(r"-?icanon") == "icanon" and shell.wait_for(r" -?echo ") == " echo "
    shell.send(b"stty -a; echo in the back''ground\n")  # the program runs, and leaves the terminal to the shell
    assert shell.wait_for(r"-?icanon") == "icanon"
    shell.wait_for("in the background")
    shell.send(b"fg\n")
    shell.wait_for(str(program))
    time.sleep(0.6)  # until it has the terminal again: twice the time between two looks
    shell.send(b"s")
    shell.wait_for("<s>")
    shell.send(b"\n")
    shell.wait_for("<ended>")
    shell.send(b"stty -a\n")
    assert shell.wait_for(r"-?icanon") == "icanon" and shell.wait_for(r" -?echo ") == " echo "


# --- the whole program ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces(drawn) -> Path:
    return drawn(8, 64)


def _train(faces: Path, model: Path, *flags: str) -> list[str]:
    return ["train", "-A", str(faces / "a"), "-B", str(faces / "b"), "-m", str(model), *FLAGS, *flags]


@pytest.mark.slow
def test_training_answers_keys(faces, tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
    former = termios.tcgetattr(slave)
    endless = ("-i", "1000000", "-s", "1000000")
    process = preloaded.Popen(
        [sys.executable, "-m", "swapfast", *_train(faces, tmp_path / "m", *endless)],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True, terminal=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )  # fmt: skip
    shown = Terminal.__new__(Terminal)
    shown.text, shown.number, shown.pid = b"", master, process.pid
    try:
        shown.wait_for("Enter: save and leave")
        shown.send(b"q")
        shown.wait_for("'q' means nothing here")
        shown.send(b"p")
        shown.wait_for("P: draws")
        end = time.monotonic() + 60
        while not (tmp_path / "m" / "preview.png").exists():
            shown.wait_for("iteration")
            assert time.monotonic() < end
        shown.send(b"s")
        shown.wait_for(r"\[Saved model\]")
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 3, 15, 0, 0))
        shown.wait_for("iteration")
        shown.send(b"\n")
        shown.wait_for("stopped by Enter and saved at iteration")
        assert process.wait(timeout=60) == 3
        assert termios.tcgetattr(slave) == former
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


@pytest.mark.long
def test_without_a_terminal_and_without_a_place_to_write(faces, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TERM"}
    words = ["nohup", "setsid", "--wait", sys.executable, "-m", "swapfast", *_train(faces, tmp_path / "m", "-i", "2")]
    result = subprocess.run(
        words, cwd="/proc", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=200,
    )  # fmt: skip
    assert result.returncode == 0 and "done: 2 iterations" in result.stdout, result.stdout
    assert "[#00002] Loss A: " in result.stdout and "\x1b" not in result.stdout and "\r" not in result.stdout


@pytest.mark.slow
def test_json_and_quiet(faces, tmp_path, capsys):
    assert cli.main(_train(faces, tmp_path / "m", "-i", "2", "--json")) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "line"]
    assert kinds == ["start", "losses", "losses", "saved", "end"]
    assert events[-1]["code"] == 0 and events[-1]["step"] == 2
    assert cli.main(_train(faces, tmp_path / "m", "-i", "3", "--quiet")) == 0
    said = capsys.readouterr()
    assert said.out == "" and all(line.startswith("warning: ") for line in said.err.splitlines())
    assert cli.main(_train(faces, tmp_path / "m", "-i", "4", "-q", "--json")) == 2
    assert "--quiet with --json" in capsys.readouterr().err
