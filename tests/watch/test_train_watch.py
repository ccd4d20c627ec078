"""`train --watch`: whole programs, with the page's process beside them."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from watched import wait_until

import cli
from swapfast.errors import EXIT_REQUEST, EXIT_STOPPED, SwapfastError
from swapfast.watch.address import recorded_address, start_page
from swapfast.watch.lock_holder import find_holder
from tests import crash_harness, preloaded

pytestmark = pytest.mark.slow  # whole programs
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def faces(drawn) -> Path:
    return drawn(40, 64)


def _words(faces: Path, model: Path, *flags: object) -> list[str]:
    words = ["train", "-A", faces / "a", "-B", faces / "b", "-m", model, *crash_harness.TINY, "--device", "cpu"]
    return [*map(str, [*words, *flags])]


def _ask(address: str, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    url = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    connection.request("GET", f"/?{url.query}")
    answer = connection.getresponse()
    answer.read()
    headers = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0], "Content-Type": "application/json"}
    connection.request(method, path, body, headers | {"Origin": f"http://{url.netloc}"})
    answer = connection.getresponse()
    status, data = answer.status, answer.read()
    connection.close()
    return status, data


def _end_page(model: Path) -> None:
    holder = find_holder(model / ".watch")
    assert holder is not None and holder.pid
    os.kill(holder.pid, signal.SIGTERM)
    wait_until(lambda: find_holder(model / ".watch") is None, "the page's process has ended")
    wait_until(lambda: not (model / ".watch").exists(), "its address is gone")


@pytest.mark.long
def test_a_page_goes_with_a_run_and_stays_behind_it(faces, tmp_path):
    """Its buttons keep a snapshot and stop the run; the next run finds it again."""
    model = tmp_path / "model"
    command = [sys.executable, "-m", "swapfast", *_words(faces, model, "-i", 10**6, "-s", 10**6, "--watch")]
    # A process of its own: a lock of this one no page can see.
    run = preloaded.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        for line in run.stdout:
            if "[#" in line:
                break
        address = recorded_address(model)
        assert _ask(address, "POST", "/do", '{"run": 0, "do": "snapshot"}')[0] == 200
        wait_until(lambda: list(model.glob("snapshot-*")), "the snapshot is there", 120)
        assert not (model / "snapshot.request").exists()
        assert _ask(address, "POST", "/do", '{"run": 0, "do": "stop"}')[0] == 200
        run.communicate(timeout=120)
        assert run.returncode == EXIT_STOPPED
    finally:
        run.kill()
        run.communicate()
    try:
        assert _ask(address, "GET", "/curves?run=0")[0] == 200, "the page has outlived the run"
        assert start_page(model, "auto") == [f"a page follows this model already: {address}"], "as the next run says"
    finally:
        _end_page(model)


def test_a_port_that_is_taken_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SwapfastError) as refused:
            start_page(tmp_path, str(port))
    message = f"--watch {port}: is taken; give another one, or none for the first free one"
    assert str(refused.value) == message and refused.value.code == EXIT_REQUEST
    assert recorded_address(tmp_path) is None and not list(tmp_path.iterdir())


def test_what_is_no_port_is_refused(tmp_path, capsys):
    for wrong in ("0", "70000", "x", "-1", "8420.5"):
        assert cli.main(_words(tmp_path, tmp_path / "model", "-i", 1, f"--watch={wrong}")) == EXIT_REQUEST
        assert "--watch: " in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
