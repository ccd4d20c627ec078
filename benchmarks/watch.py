"""What the page of `swapfast watch` costs: by open pages, and how fast a run trains with and without it.

    python -m benchmarks.watch [--seconds 30] [--pairs 20] [--json FILE]

Rows:

    name        page: the page's process, ``core_percent`` of a core and resident ``mib``, while ``pages`` streams of
                events are read and the log is that of a finished run or grows by ``steps_per_s``. training: iterations
                a second with one open page in neighbouring blocks, in which the page's process runs or is stopped
                (SIGSTOP), in turns; ``ratio`` is the median over pairs of blocks of the ratio of their median steps,
                ``low`` and ``high`` its interval of 95 % by resampling
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.beside import training
from benchmarks.common import parser, save, show, significant
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.synthetic.dataset import synthesize
from swapfast.system import available_cores

STEPS = 20_000  # of the log that a page begins with
STEPS_PER_S = 40
BLOCK_S = 5.0  # some 25 steps


def line(step: int) -> str:
    """Return a line as a run of two functions with validation writes it."""
    loss = 1 / (1 + step / 1000)
    keys = ("loss_a", "loss_b", "loss", "ssim_a", "ssim_b", "mse_a", "mse_b", "gradient_norm", "learning_rate")
    values = {key: round(loss * (1 + 0.1 * random.random()), 6) for key in keys}
    if step % 20 == 0:  # a report, twice a second as on a terminal
        values |= {"iterations_per_s": 40.0, "faces_per_s": 640.0, "data_wait": 0.01, "memory_host_mib": 900.0}
    return json.dumps({"step": step, "time": time.time(), **values}) + "\n"


@contextlib.contextmanager
def page(model: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run ``swapfast watch`` and return its process and its address."""
    command = [sys.executable, "-m", "swapfast", "watch", str(model), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())["address"]
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def streams(address: str, count: int) -> Iterator[list[int]]:
    """Read ``count`` streams as open pages do; the list has the bytes of each."""
    url = urllib.parse.urlsplit(address)
    assert url.hostname is not None
    opened, read = [], [0] * count

    def follow(place: int, answer: HTTPResponse) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError, HTTPException):
            while data := answer.read1(1 << 16):
                read[place] += len(data)

    for place in range(count):
        connection = HTTPConnection(url.hostname, url.port)
        connection.request("GET", f"/?{url.query}")
        answer = connection.getresponse()
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        answer.read()
        connection.request("GET", "/events", headers={"Cookie": cookie})
        answer = connection.getresponse()
        threading.Thread(target=follow, args=(place, answer), daemon=True).start()
        opened.append(answer)
    try:
        yield read
    finally:
        for answer in opened:
            with contextlib.suppress(OSError, ValueError):
                answer.fp.raw._sock.shutdown(2)  # type: ignore[attr-defined]  # ``raw`` is a SocketIO


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until_idle(pid: int) -> None:
    """Wait until a process has read what there is: it works less than 3 % of two seconds."""
    before, now = -1.0, cpu_seconds(pid)
    while now - before > 0.06:
        time.sleep(2)
        before, now = now, cpu_seconds(pid)


def resident_mib(pid: int) -> float:
    """Return the memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def cost(seconds: float, pages: int, grows: bool) -> dict:
    """Return the row of so many open pages."""
    with TemporaryDirectory() as folder:
        model = Path(folder)
        (model / "logs").mkdir()
        log = model / "logs/steps.jsonl"
        log.write_text("".join(map(line, range(1, STEPS + 1))))
        with page(model) as (process, address), streams(address, pages) as read, open(log, "a") as file:
            until_idle(process.pid)
            before, told, start = cpu_seconds(process.pid), sum(read), time.monotonic()
            step = STEPS
            while time.monotonic() < start + seconds:
                if grows:
                    file.writelines(line(step + more + 1) for more in range(STEPS_PER_S // 2))
                    file.flush()
                    step += STEPS_PER_S // 2
                time.sleep(0.5)
            elapsed = time.monotonic() - start
            used = cpu_seconds(process.pid) - before
            return {
                "name": "page",
                "pages": pages,
                "steps_per_s": STEPS_PER_S if grows else 0,
                "core_percent": round(100 * used / elapsed, 2),
                "mib": round(resident_mib(process.pid), 1),
                "kib_per_s_and_page": round((sum(read) - told) / 1024 / elapsed / max(pages, 1), 2),
            }


def paired(pairs: int) -> dict:
    """Return the row of the training's speed, with the page's process running and stopped in turns."""
    with TemporaryDirectory() as folder:
        faces, model = Path(folder) / "faces", Path(folder) / "model"
        synthesize(faces, faces=100, size=128, pairs=0, seed=1, workers=available_cores())
        with training(faces, model, {}), page(model) as (process, address), streams(address, 1):
            time.sleep(5)
            marks = []  # (whether it runs, start, end)
            for pair in range(pairs):
                for runs in (True, False) if pair % 2 else (False, True):
                    process.send_signal(signal.SIGCONT if runs else signal.SIGSTOP)
                    start = time.time()
                    time.sleep(BLOCK_S)
                    marks.append((runs, start, time.time()))
        times = [json.loads(text)["time"] for text in (model / "logs/steps.jsonl").read_text().splitlines()]
    rates = [(runs, rate(times, start, end)) for runs, start, end in marks]
    ratios = []
    for first, second in zip(rates[::2], rates[1::2]):
        with_page, without = (first, second) if first[0] else (second, first)
        if with_page[1] > 0 and without[1] > 0:  # else a block had too few steps
            ratios.append(with_page[1] / without[1])
    if not ratios:
        raise SwapfastError("no block had three steps: the machine does other things", EXIT_FAILED)
    generator = random.Random(1)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "name": "training",
        "pairs": len(ratios),
        "iterations_per_s": significant(statistics.median(value for _, value in rates if value > 0)),
        "ratio": significant(statistics.median(ratios)),
        "low": significant(medians[50]),
        "high": significant(medians[1949]),
    }


def rate(times: list[float], start: float, end: float) -> float:
    """Return the steps a second of a block, by the median of the steps that lie whole within it."""
    inside = [at for at in times if start <= at <= end]
    durations = [after - before for before, after in itertools.pairwise(inside)]
    return 1 / max(statistics.median(durations), 1e-6) if len(durations) > 1 else float("nan")


def main() -> None:
    """Run the benchmark."""
    flags = parser("What the page costs")
    flags.add_argument("--seconds", type=float, default=30.0, help="of each row; default 30")
    flags.add_argument("--pairs", type=int, default=20, help="blocks with and without the page; default 20, 0 for none")
    options = flags.parse_args()
    seconds, pairs = (2.0, 2) if options.quick else (options.seconds, options.pairs)
    rows = [cost(seconds, pages, grows) for grows in (False, True) for pages in (0, 1, 40)]
    rows += [paired(pairs)] if pairs else []
    show(rows)
    save(rows, options.json)


if __name__ == "__main__":
    main()
