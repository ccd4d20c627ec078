"""Threads that get no core are noticed, and training goes on with fewer."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from swapfast.training.core_watch import STARVED, WINDOW_S, CoreWatch, runnable_wait_s
from tests.training.test_trainer import _batches, _trainer

BUSY = """
import hashlib, os, threading, time
from swapfast.training.core_watch import runnable_wait_s
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
end = time.monotonic() + 1.5
def work():
    while time.monotonic() < end:
        hashlib.sha256(bytes(1 << 20)).digest()
threads = [threading.Thread(target=work) for _ in range(3)]
before, start = runnable_wait_s(), time.monotonic()
for thread in threads: thread.start()
time.sleep(1.2)
print((runnable_wait_s() - before) / (time.monotonic() - start))
for thread in threads: thread.join()
"""


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def watched(lacking_cores: list[float]) -> tuple[list[str], list[int]]:
    """Return the lines and the number of torch's threads after each window with so many cores lacking."""
    lines: list[str] = []
    readings = itertools.accumulate((share * WINDOW_S for share in lacking_cores), initial=5.0)
    times = itertools.count(100.0, WINDOW_S)
    watch = CoreWatch(lines.append, wait_s=lambda: next(readings), clock=lambda: next(times))
    watch.on_step(None)
    threads = []
    for _ in lacking_cores:
        watch.on_step(None)
        threads.append(torch.get_num_threads())
    return lines, threads


def test_two_starved_windows_in_a_row_take_a_thread(two_threads):
    lines, threads = watched([0.01, 0.6, 0.6, 0.6, 0.6])
    assert threads == [2, 2, 1, 1, 1]
    assert len(lines) == 1 and "1 thread instead of 2" in lines[0] and "OMP_NUM_THREADS" in lines[0]


@pytest.mark.parametrize("lacking", [[0.05] * 6, [0.9, 0.1] * 3, [STARVED * 0.9] * 6])
def test_a_program_that_passes_changes_nothing(two_threads, lacking):
    lines, threads = watched(lacking)
    assert lines == [] and set(threads) == {2}


def test_where_the_system_does_not_tell_nothing_changes(two_threads):
    times, lines = itertools.count(0.0, WINDOW_S), []
    watch = CoreWatch(lines.append, wait_s=lambda: None, clock=lambda: next(times))
    for _ in range(6):
        watch.on_step(None)
    assert lines == [] and torch.get_num_threads() == 2


@pytest.mark.skipif(not sys.platform.startswith("linux") or runnable_wait_s() is None, reason="no schedstat here")
@pytest.mark.slow
def test_threads_that_share_a_core_lack_some():
    """Three threads on one core: each waits for two thirds of the time, two cores are lacking in all."""
    result = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) > 2 * STARVED


def test_a_run_that_loses_a_thread_comes_to_the_same(tmp_path, device, two_threads, within):
    """Losses differ by the rounding of sums taken in other parts: five printed digits, as with several processes."""
    if device.type != "cpu":
        pytest.skip("torch's threads are the CPU's")
    losses = {}
    for switches in (False, True):
        torch.set_num_threads(2)
        trainer = _trainer(tmp_path / str(switches), device, 8)
        batches = _batches(device)
        trainer.batches = batches
        totals = []
        for step in range(8):
            if switches and step == 4:
                torch.set_num_threads(1)
            totals.append(sum(float(loss.total.detach()) for loss in trainer.train_one_batch()))
        losses[switches] = torch.tensor(totals)
    assert torch.equal(losses[True][:4], losses[False][:4])
    error = ((losses[True] - losses[False]).abs() / losses[False]).max()
    within("loss after the switch, relative", float(error), 5e-5)
