"""What the system grants, and signals while a pool starts."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from swapfast.system import available_cores, on_all_cores, signals_held

ROOT = Path(__file__).resolve().parents[1]

ON_ONE_CORE = """
import os, sys
from pathlib import Path
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from swapfast.augment.host.augmenter import OpenCVAugmenter
from swapfast.synthetic import dataset
from swapfast.system import available_cores
assert available_cores() == 1
assert OpenCVAugmenter(64, 64, [64]).threads == 1
dataset.ProcessPoolExecutor = None  # one core: nobody may ask for processes
dataset.synthesize(Path(sys.argv[1]), faces=1, size=64, pairs=0)
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_cores_are_those_granted_and_not_those_there(tmp_path):
    assert available_cores() == len(os.sched_getaffinity(0))
    command = [sys.executable, "-c", ON_ONE_CORE, str(tmp_path / "made")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "made/b/0000.png").is_file()


def test_a_signal_is_answered_when_the_block_ends():
    before = signal.getsignal(signal.SIGINT)
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with signals_held():
            signal.raise_signal(signal.SIGINT)
            steps.append("the block went on to its end")
        steps.append("nobody gets here")
    assert len(steps) == 1 and signal.getsignal(signal.SIGINT) is before
    with signals_held():
        pass  # nothing came, nothing is raised


def test_outside_the_main_thread_nothing_is_held():
    done = []

    def work() -> None:
        with signals_held():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


class _OfTheParent:
    """What ends any other process that destroys it, as a DALI pipeline does; and it refers to itself."""

    def __init__(self) -> None:
        self.itself, self.process = self, os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.process:
            os._exit(139)


def _collect(item: int) -> int:
    gc.collect()
    return os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_workers_do_not_destroy_what_their_parent_has_left():
    gc.collect()
    gc.disable()
    try:
        _OfTheParent()  # garbage, which nothing but a collection finds
        found = list(on_all_cores(_collect, range(64), workers=2))
    finally:
        gc.enable()
    assert len(found) == 64 and os.getpid() not in found, "threads of this process did what workers should have done"
