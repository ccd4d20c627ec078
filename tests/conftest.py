"""Shared by the whole suite: the device switch and the golden vectors."""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

# Threads that wait for work sleep: those that spin, as they do while training, would take another test's core. The
# program's own processes are told too. Before torch loads its OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Of several workers (pytest-xdist) each takes its share of the cores: a second thread on a core that has its own work
# costs a quarter more processor time, and gains nothing.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import numpy as np
import pytest
import torch

from swapfast.device import set_deterministic
from swapfast.synthetic import synthesize

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
GOLDEN = Path(os.environ.get("SWAPFAST_GOLDEN", SHARED / "golden"))

# Started in the background a shell has SIGINT ignored, and nohup has SIGHUP: what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# torch finds its compiled code again by the program alone: what was made for AVX-512 crashes under another instruction
# set. So each that is asked for has a folder of its own.
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}_{capability}"
    )


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where tensors live in the suite")


def pytest_ignore_collect(collection_path, config):
    """Leave files of slow tests alone where none is wanted: what they import takes seconds of every worker."""
    is_named = any(str(collection_path) in word for word in config.args)
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py" or is_named:
        return None
    return "\npytestmark = pytest.mark.slow" in collection_path.read_text() or None


def pytest_itemcollected(item):
    """Let what takes long count as slow."""
    if item.get_closest_marker("long"):
        item.add_marker("slow")


def pytest_collection_modifyitems(config, items):
    """Let each of several processes (pytest-xdist) begin with its share of the whole programs.

    It is given one piece of the list, and whoever is done takes from the end of another's: a long test there would
    leave the others with nothing to do.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    kinds = [[item for item in items if bool(item.get_closest_marker("slow")) is slow] for slow in (True, False)]
    items[:] = [
        item
        for worker in range(workers)
        for kind in kinds
        for item in kind[worker * len(kind) // workers : (worker + 1) * len(kind) // workers]
    ]


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device cuda: torch sees no CUDA device", returncode=2)
    set_deterministic(torch.device(name))  # Adam makes of a sum's last bit a whole step
    return torch.device(name)


@pytest.fixture(scope="session")
def golden():
    """``golden("align_math")`` opens one file of numbers from faceswap; ``golden.folder`` holds its faces."""
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden vectors in {GOLDEN} (set SWAPFAST_GOLDEN)")

    def load(name: str):
        return np.load(GOLDEN / f"{name}.npz")

    load.folder = GOLDEN
    return load


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Real faces with 68 points and masks beside each."""
    folder = SHARED / "faces"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Callable[..., Path]:
    """``drawn(40, 64)`` is a folder of that many faces a side, drawn once for all workers: nobody writes into it."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def draw(faces: int, size: int, pairs: int = 1) -> Path:
        folder = place / f"drawn-{faces}-{size}-{pairs}" / "faces"
        folder.parent.mkdir(exist_ok=True)
        with open(folder.with_name("lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                synthesize(folder, faces, size, pairs, seed=6, workers=1)
        return folder

    return draw


_measured: list[str] = []


@pytest.fixture
def within(request):
    """``within("what", error, tolerance)`` asserts and keeps the measured error for the closing table."""

    def check(what: str, error: float, tolerance: float) -> None:
        _measured.append(f"{request.node.name:55.55} {what:40.40} {float(error):10.3g} of {tolerance:g}")
        assert error <= tolerance, f"{what}: measured {error:g}, tolerance {tolerance:g}"

    return check


@pytest.fixture
def at_least():
    """Like ``within`` for figures that must not fall below a floor, such as a PSNR in dB."""

    def check(what: str, figure: float, floor: float) -> None:
        _measured.append(f"{what:96.96} {float(figure):10.3g} at least {floor:g}")
        assert figure >= floor, f"{what}: measured {figure:g}, at least {floor:g} wanted"

    return check


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several processes (pytest-xdist): the first one prints
        session.config.workeroutput["measured"] = _measured


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _measured.extend(getattr(node, "workeroutput", {}).get("measured", []))


def pytest_terminal_summary(terminalreporter):
    if _measured:
        terminalreporter.section("measured error of tolerance")
        for line in sorted(_measured):
            terminalreporter.write_line(line)
