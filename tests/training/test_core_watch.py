"""Threads that get no core are noticed, and training goes on with fewer."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time

import pytest
import torch

from swapfast.training.core_watch import STARVED, WINDOW_S, CoreWatch, idle_s, runnable_wait_s
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


def watched(lacking_cores: list[float], free_cores: float | list[float] = 0.0) -> tuple[list[str], list[int]]:
    """Return the lines and the number of torch's threads after each window with so many cores lacking and free."""
    lines: list[str] = []
    free = free_cores if isinstance(free_cores, list) else [free_cores] * len(lacking_cores)
    waited, idle = (
        itertools.accumulate((share * WINDOW_S for share in shares), initial=5.0) for shares in (lacking_cores, free)
    )
    times = itertools.count(100.0, WINDOW_S)
    watch = CoreWatch(lines.append, wait_s=lambda: next(waited), free_s=lambda: next(idle), clock=lambda: next(times))
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


def test_a_thread_comes_back_when_a_core_is_free(two_threads):
    lines, threads = watched([0.6] * 2 + [0.0] * 5, [0.0] * 3 + [1.0] * 4)
    assert threads == [2, 1, 1, 1, 2, 2, 2], "and never more than there were"
    assert len(lines) == 2 and "free again" in lines[1] and "2 threads instead of 1" in lines[1]


def test_where_a_program_comes_and_goes_the_thread_comes_back_later_each_time(two_threads):
    lacking = [0.6, 0.6, 0, 0, 0.6, 0.6, 0, 0, 0, 0]
    _, threads = watched(lacking, [0.0 if share else 1.0 for share in lacking])
    assert threads == [2, 1, 1, 2, 2, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("lacking", [[0.05] * 6, [0.9, 0.1] * 3, [STARVED * 0.9] * 6])
def test_a_program_that_passes_changes_nothing(two_threads, lacking):
    lines, threads = watched(lacking, free_cores=1.0)
    assert lines == [] and set(threads) == {2}


def test_where_the_system_does_not_tell_nothing_changes(two_threads):
    times, lines = itertools.count(0.0, WINDOW_S), []
    watch = CoreWatch(lines.append, wait_s=lambda: None, free_s=lambda: None, clock=lambda: next(times))
    for _ in range(6):
        watch.on_step(None)
    assert lines == [] and torch.get_num_threads() == 2


@pytest.mark.slow
@pytest.mark.skipif(idle_s() is None, reason="this system does not tell")
def test_idle_time_is_no_more_than_all_cores_have():
    before, start = idle_s(), time.monotonic()
    time.sleep(0.5)
    free = (idle_s() - before) / (time.monotonic() - start)
    assert 0 <= free <= len(os.sched_getaffinity(0)) * 1.1, "counted in hundredths of a second"


@pytest.mark.skipif(not sys.platform.startswith("linux") or runnable_wait_s() is None, reason="no schedstat here")
@pytest.mark.slow
def test_threads_that_share_a_core_lack_some():
    """Three threads on one core: each waits for two thirds of the time, two cores are lacking in all."""
    result = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) > 2 * STARVED


@pytest.mark.slow
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
