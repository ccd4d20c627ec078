"""Threads that the system refuses, and threads that never come back."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.decode import dali_version
from swapfast.system import on_all_cores
from swapfast.threads import PATIENCE_S, ThreadPool, wait_in_thread

pytestmark = pytest.mark.slow  # programs, and waits

ROOT = Path(__file__).resolve().parents[1]
# Refuses threads as the system does (ulimit -u, pids.max), for a process of its own.
REFUSE = """
import threading
start = threading.Thread.start
def refuse(thread):
    global free
    if {refused}:
        raise RuntimeError("can't start new thread")
    free -= 1
    start(thread)
free = {free}
threading.Thread.start = refuse
"""


def run_refused(program: str, refused: str = "free < 1", free: int = 0) -> subprocess.CompletedProcess:
    """Run a program where no more than ``free`` threads, or none that is ``refused``, can be started."""
    code = REFUSE.format(refused=refused, free=free) + program
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_results_come_in_order_and_errors_where_they_are_asked_for():
    with ThreadPool(3) as pool:
        assert list(pool.map(lambda n: n * n, range(100))) == [n * n for n in range(100)]
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 / 0).result()
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(int)


@pytest.mark.parametrize("free", [0, 1, 2])
def test_a_pool_makes_do_with_the_threads_that_it_gets(free):
    program = """
from swapfast.threads import ThreadPool
with ThreadPool(3) as pool:
    print(list(pool.map(lambda n: n + 1, range(5))), pool.size)
with ThreadPool(3) as pool:
    print(pool.submit(len, "ab").result())
"""
    process = run_refused(program, free=free)
    # The last thread is asked for beside the work: it may be done before that is refused.
    sizes = {free, 3} if free == 2 else {free}
    outputs = [f"[1, 2, 3, 4, 5] {size}\n2\n" for size in sizes]
    assert process.returncode == 0 and process.stdout in outputs, process.stderr
    assert process.stderr.count("\n") == 1 and "no more threads" in process.stderr


def test_processes_without_the_thread_that_feeds_them_are_ended_and_threads_do_their_work():
    program = """
import multiprocessing
from swapfast.system import on_all_cores
print(list(on_all_cores(lambda n: n * 2, range(64), workers=2)) == [2 * n for n in range(64)])
print(multiprocessing.active_children())
"""
    process = run_refused(program, refused="type(thread).__name__ == '_ExecutorManagerThread'")
    assert (process.returncode, process.stdout) == (0, "True\n[]\n"), process.stderr
    assert process.stderr.count("\n") == 1


def test_drawing_without_that_thread_goes_on_in_one_process(tmp_path):
    program = f"""
from pathlib import Path
from swapfast.synthetic import synthesize
if __name__ == "__main__":
    synthesize(Path({str(tmp_path)!r}) / "drawn", faces=2, size=64, pairs=0, workers=2)
"""
    process = run_refused(program, refused="type(thread).__name__ == '_ExecutorManagerThread'")
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "drawn").glob("?/*_mask.png"))) == 4


def test_an_error_of_a_task_is_not_taken_for_a_refusal():
    def fail(number):
        raise RuntimeError(f"task {number}")

    with pytest.raises(RuntimeError, match="task 0"):
        list(on_all_cores(fail, range(64), workers=2))


def test_what_never_ends_is_left_behind_and_what_has_not_begun_is_dropped():
    forever, begun = threading.Event(), threading.Event()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), ThreadPool(1) as pool:
            pool.submit(lambda: (begun.set(), forever.wait()))
            later = pool.submit(int)
            assert begun.wait(30)
            raise KeyboardInterrupt
        assert time.monotonic() - started >= PATIENCE_S
        with pytest.raises(CancelledError):
            later.result(0)
    finally:
        forever.set()


def test_a_pool_that_nobody_holds_ends_its_threads():
    pool = ThreadPool(2, "forgotten")
    list(pool.map(int, range(8)))
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("forgotten")]
    assert threads
    del pool
    gc.collect()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_a_process_leaves_with_its_code_though_a_thread_never_ends():
    """DALI waits at the end for its own reads; so does this program for its thread."""
    program = """
import atexit, sys, threading
from swapfast.threads import leave, wait_in_thread
atexit.register(lambda: threading.Event().wait())
def stop(*_): raise KeyboardInterrupt
import signal
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    wait_in_thread(threading.Event().wait, "stalled")
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(leave(3))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (process.returncode, process.stdout) == (3, "interrupted\n"), process.stderr


@pytest.mark.parametrize("ends_by_itself", [False, True])
def test_a_process_leaves_with_its_code_though_a_library_waits_for_ever(ends_by_itself):
    """No thread of this program stalls, so the library has a while; what ends in it is let end."""
    program = f"""
import atexit, sys, threading, time
from swapfast import threads
threads.ENDING_S = {30.0 if ends_by_itself else 0.5}
atexit.register(print, "the end")  # the last that is called
atexit.register(threading.Event().wait, {0.5 if ends_by_itself else None})
print("done", end=" ")
sys.exit(threads.leave(3))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    said = "done the end\n" if ends_by_itself else "done "
    assert (process.returncode, process.stdout) == (3, said), process.stderr


@pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")
@pytest.mark.parametrize("way", ["training", "filling a store"])
def test_a_process_leaves_while_dali_reads_ahead_what_never_comes(way, tmp_path):
    """A share that is away while nobody waits for a batch yet: only DALI's end would."""
    picture = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    names = [tmp_path / f"{number}.jpg" for number in range(32)]
    for number, name in enumerate(names):
        name.write_bytes(picture) if number < 16 else os.mkfifo(name)
    begin = {
        "training": "held = decoding_pipeline(lambda run: names[run * 16 : run * 16 + 16], 16, 2); held.run()",
        "filling a store": "batches = decode_pictures(list(map(Path, names)), 2, True); next(batches); del batches",
    }[way]
    program = f"""
import sys
from pathlib import Path
from pipelines.decode import decode_pictures
from pipelines.graph import decoding_pipeline
from swapfast import threads
threads.ENDING_S = 0.5
names = {list(map(str, names))}
{begin}
print("left", flush=True)
sys.exit(threads.leave(3))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (process.returncode, process.stdout) == (3, "left\n"), process.stderr


def test_a_call_in_a_thread_gives_what_it_returns_or_raises():
    assert wait_in_thread(lambda: 5, "five") == 5
    with pytest.raises(ValueError, match="no"):
        wait_in_thread(lambda: int("no"), "no")


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_workers_that_sleep_for_ever_are_given_up():
    """As a fork does that finds a lock which another thread held."""
    parent, earlier = os.getpid(), set(multiprocessing.active_children())

    def task(number: int) -> int:
        if number == 40 and os.getpid() != parent:
            threading.Event().wait()
        return 2 * number

    assert list(on_all_cores(task, range(64), workers=2, stall_s=1.0)) == [2 * number for number in range(64)]
    assert set(multiprocessing.active_children()) <= earlier


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_workers_that_work_are_waited_for():
    """One item takes longer than the patience with sleepers."""
    parent = os.getpid()

    def task(number: int) -> bool:
        end = time.monotonic() + (1.5 if number == 40 else 0)
        while time.monotonic() < end:
            pass
        return os.getpid() != parent

    assert all(on_all_cores(task, range(64), workers=2, stall_s=1.0))


# A worker stops in the middle of the pipe's message that holds its results, and is killed there.
CUT_OFF = """
import os, signal
from multiprocessing.connection import Connection
from swapfast.system import on_all_cores
parent = os.getpid()
def send_half(self, message):
    os.write(self.fileno(), bytes(message)[: len(message) // 2])
    os.kill(os.getpid(), signal.SIGSTOP)
def task(number):
    if number >= 8 and os.getpid() != parent:
        Connection._send = send_half
    return b"result"
try:
    for number, result in enumerate(on_all_cores(task, range(64), workers=2)):
        if number == 7:
            raise KeyboardInterrupt
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_a_worker_that_is_killed_within_a_result_keeps_nobody_from_leaving():
    result = subprocess.run([sys.executable, "-c", CUT_OFF], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "stopped\n", "")
