"""A display of its own for windows: Xvfb, with real key presses by xdotool."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

PATIENCE_S = 60  # on a machine with other work


@pytest.fixture(scope="session")
def xvfb():
    """The name of a display that nobody sees, such as ':7'."""
    if shutil.which("Xvfb") is None or shutil.which("xdotool") is None:
        pytest.skip("no Xvfb or xdotool (apt-get install xvfb xdotool)")
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1280x900x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL) as server:
        os.close(writer)
        try:
            assert select.select([reader], [], [], PATIENCE_S)[0], "Xvfb does not start"
            yield f":{os.read(reader, 20).decode().strip()}"
        finally:
            os.close(reader)
            server.terminate()


@pytest.fixture
def display(xvfb, monkeypatch) -> str:
    """Let windows open on the display that nobody sees."""
    monkeypatch.setenv("DISPLAY", xvfb)
    return xvfb


@pytest.fixture
def press(display):
    """``press("m")`` presses a key on the keyboard of the display."""

    def call(*keys: str) -> None:
        subprocess.run(["xdotool", "key", *keys], check=True, timeout=PATIENCE_S)

    return call


@pytest.fixture
def until():
    """``until(condition, pump)`` calls ``pump`` until the condition holds."""

    def call(condition: Callable[[], object], pump: Callable[[], object] = lambda: None) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it does not come"
            pump()
            time.sleep(0.01)

    return call
