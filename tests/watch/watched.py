"""Model folders as a run leaves them, and the page's server in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from swapfast.watch.access import Token, allowed_hosts
from swapfast.watch.folder import WatchedFolder, unique_names
from swapfast.watch.start import bind, serve

CELL = 32
GREEN, RED, TINT = (0, 200, 0), (0, 0, 200), (160, 60, 160)


def wait_until(is_so: Callable[[], object], what: str, seconds: float = 30.0) -> object:
    """Return the first true value of ``is_so``. The limit is only there so that a failure ends."""
    end = time.monotonic() + seconds
    while not (value := is_so()):
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)
    return value


def sheet(swap=RED, outside=None) -> np.ndarray:
    """A sheet of two rows of two sides, (71, 192, 3): A's faces are green and their swaps of colour ``swap``."""
    picture = np.full((int(CELL / 4.5) + 2 * CELL, 6 * CELL, 3), 255, np.uint8)
    for column in range(6):
        cell = picture[int(CELL / 4.5) :, column * CELL : (column + 1) * CELL]
        cell[:] = {0: GREEN, 2: swap}.get(column, (90, 90, 90))
        if outside is not None:
            cell[:6] = outside
    return picture


def write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())
    path.with_suffix(".new").replace(path)


def row(step: int, **values: float) -> str:
    return json.dumps({"step": step, "time": 1.7e9 + step, **values}) + "\n"


def report(step: int) -> str:
    """A line of the log with all that a page shows."""
    loss = 1 / (1 + step / 100)
    return row(
        step,
        loss_a=loss,
        loss_b=2 * loss,
        loss=3 * loss,
        ssim_a=0.9 * loss,
        ssim_b=1.8 * loss,
        learning_rate=5e-5,
        iterations_per_s=10.0,
        faces_per_s=160.0,
        data_wait=0.025,
        memory_host_mib=900.0,
        memory_gpu_mib=2048.0,
        memory_gpu_peak_mib=3072.0,
    )


def held_out(step: int, last: int) -> str:
    """A line of what was measured on held-out faces.

    Up to iteration ``last`` A gains 0.31 dB in 1,000 iterations, 0.62 before, B loses 0.05 and the swap gains 0.14.
    """
    left = (step - last) / 1000
    early = min(0, step - 2 * last // 5) / 1000
    return row(
        step,
        validation_loss_a=0.5,
        validation_loss_b=0.6,
        validation_psnr_a=24.5 + 0.31 * (left + early),
        validation_psnr_b=25.5 - 0.05 * left,
        swap_quality=21.5 + 0.14 * left,
        swap_leak=0.125,
    )


def make_model(folder: Path, steps: int = 300) -> Path:
    """A model folder with a log of ``steps`` steps, two kept pictures and a preview."""
    (folder / "logs").mkdir(parents=True)
    lines = [
        json.dumps({"run_from": 0, "time": 1.7e9, "iterations": 1000, "batch_size": 8, "precision": "bf16"}) + "\n"
    ]
    for step in range(1, steps + 1):
        lines.append(report(step))
        if step * 5 % steps == 0:
            lines.append(held_out(step, steps))
    (folder / "logs/steps.jsonl").write_text("".join(lines))
    for step, swap in ((100, (200, 0, 0)), (200, RED)):
        write_picture(folder / f"preview_history/{step:08}-plain.jpg", sheet(swap))
        write_picture(folder / f"preview_history/{step:08}.jpg", sheet(swap, TINT))
        (folder / f"checkpoint-{step:08}").mkdir()
    write_picture(folder / "preview.png", sheet(RED, TINT))
    return folder


# Stands for a run: holds the lock, and notes the signals that it has been sent.
_RUN = """
import fcntl, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
lock = open(folder / ".lock", "ab")
fcntl.lockf(lock, fcntl.LOCK_EX)
if sys.argv[2] == "answers":
    signal.signal(signal.SIGUSR1, lambda *_: (folder / "saved").touch())
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "stopped").touch(), sys.exit(3)))
(folder / "ready").touch()
while True:
    time.sleep(0.02)
"""


@contextlib.contextmanager
def training(folder: Path, kind: str = "answers"):
    """Let a process hold the folder's lock as a run does. kind: whether it 'answers' signals."""
    process = subprocess.Popen([sys.executable, "-S", "-c", _RUN, str(folder), kind])
    try:
        wait_until((folder / "ready").exists, "the folder is locked")
        (folder / "ready").unlink()
        yield process
    finally:
        process.kill()
        process.wait()


class Page:
    """A server that runs in a thread. url: its address without a token."""

    def __init__(self, folders: list[Path], host: str = "127.0.0.1") -> None:
        self.folders, self.token = folders, Token.new()
        self._is_over = threading.Event()
        self._listener: socket.socket = bind(host, 0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        watched = [WatchedFolder(folder, name) for folder, name in zip(folders, unique_names(folders))]
        work = serve(watched, self._listener, self.token, allowed_hosts(host), self._is_over.is_set)
        self._thread = threading.Thread(target=lambda: asyncio.run(work))
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(30)
        self._listener.close()
        assert not self._thread.is_alive()

    def ask(self, method: str, path: str, headers: dict | None = None, body: str | None = None):
        """Return (status, headers, body) of a request that has the whole token as a cookie unless told otherwise."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Cookie": f"{self.token.cookie}={self.token.whole}"} | (headers or {})
        given = {name: value for name, value in given.items() if value is not None}
        try:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def post(self, wanted: object, **headers: str | None):
        """Ask for something as the page does. headers: with _ in place of -, None to leave one away."""
        usual = {"Origin": self.url.rstrip("/"), "Content-Type": "application/json"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", "/do", usual | named, wanted if isinstance(wanted, str) else json.dumps(wanted))

    def events(self, last_id: str | None = None):
        """Open a stream; return its connection and a function that returns the next (event, id, data)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Cookie": f"{self.token.cookie}={self.token.read}"}
        connection.request("GET", "/events", headers=headers | ({"Last-Event-ID": last_id} if last_id else {}))
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()

        def following():
            event: dict[str, str] = {}
            while True:
                line = answer.readline().decode().rstrip("\n")
                if not line and "data" in event:
                    return event["event"], event["id"], json.loads(event["data"])
                name, _, value = line.partition(": ")
                if name:
                    event[name] = value

        return connection, following
