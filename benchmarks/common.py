"""Timing, the record of the environment and the form of results, for all benchmarks.

``python -m benchmarks.NAME --json FILE`` writes {"environment": {...}, "results": [{...}, ...]}. Where the files are a
copy without git, SWAPFAST_COMMIT says which commit they are of.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import torch

from pipelines.doctor import gpus, memory_gib
from pipelines.run.run_state import versions
from swapfast.system import available_cores

Result = TypeVar("Result")
Name = TypeVar("Name", bound=Hashable)  # of a call: a string, or whatever tells it from the others

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = 3  # exit code of a benchmark whose figures are of a GPU, where there is none
PRELOADED = [
    "benchmarks.faces",
    "pipelines.run.build",
    "swapfast.augment.host.augmenter",  # make_augmenter imports it late
]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _commit() -> str | None:
    if commit := os.environ.get("SWAPFAST_COMMIT"):
        return commit
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _command() -> str:
    """Return the command line without the path of the result."""
    arguments = sys.argv[1:]
    if "--json" in arguments:
        at = arguments.index("--json")
        del arguments[at : at + 2]
    spec = sys.modules["__main__"].__spec__  # None where a benchmark is a library, as in a worker of its tests
    return " ".join(["python -m", spec.name, *arguments] if spec else arguments)


@functools.cache
def environment() -> dict:
    """Return hardware, driver, versions, threads, load and commit at the time of the first call."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": available_cores(),
        "memory_gib": memory_gib(),
        "load_average": os.getloadavg()[0],
        "gpus": gpus(),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "versions": versions(),
        "torch_threads": torch.get_num_threads(),
        "opencv_threads": cv2.getNumThreads(),
        "commit": _commit(),
        "command": _command(),
    }


def reset_peak() -> None:
    """Reset the peak that ``peak_mib`` returns."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status_mib(*names: str) -> float | None:
    """Return the sum of some entries of /proc/self/status, None if they are missing."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    entries = [re.search(rf"{name}:\s+(\d+)", status) for name in names]
    return sum(int(entry[1]) for entry in entries if entry) / 1024 if all(entries) else None


def peak_mib(on_gpu: bool | None = None) -> float:
    """Return the largest memory since ``reset_peak``, of the GPU if one is in use and otherwise of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized() and on_gpu is not False:
        return torch.cuda.max_memory_allocated() / 2**20
    peak = _status_mib("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if peak is None else peak


def own_mib() -> float | None:
    """Return the memory of this process without mapped files, which the system can reclaim."""
    return _status_mib("RssAnon", "RssShmem")


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its ended children."""
    usages = [resource.getrusage(scope) for scope in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def alone(call: Callable[..., Result], *arguments: object) -> Result:
    """Return the result of ``call`` in a new process, forked from one that has only done the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(call, *arguments).result()


@dataclass(frozen=True)
class Timing:
    """The seconds of each run of one call, and the largest memory during them, None if not measured."""

    seconds: Sequence[float]
    peak_mib: float | None


def _sync() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of one call, including the device's work."""
    _sync()
    start = time.perf_counter()
    call()
    _sync()
    return time.perf_counter() - start


def compare(
    calls: Mapping[Name, Callable[[], object]], repeats: int, warm_up: int = 2, in_a_row: bool = False
) -> dict[Name, Timing]:
    """Time all calls in turn, so that a change of the machine's speed affects all of them.

    in_a_row: runs each call once untimed right before, so that it finds its own data in the caches, as in a run that
        makes batch after batch.
    """
    peaks = {}
    for name, call in calls.items():
        reset_peak()
        for _ in range(warm_up):
            call()
        peaks[name] = peak_mib()
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if in_a_row:
                call()
            times[name].append(timed(call))
    return {name: Timing(times[name], peaks[name]) for name in calls}


def significant(value: float, digits: int = 5) -> float:
    """Return a measured value by its leading digits, so that what takes microseconds is told as exactly as hours."""
    return float(f"{value:.{digits}g}")


def summary(timing: Timing, faces: int, /, **labels: object) -> dict:
    """Return one result: labels, median and interquartile range in ms, faces per second at the median."""
    seconds = timing.seconds
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (seconds[0],) * 3
    return {
        **labels,
        "batch": faces,
        "median_ms": significant(1000 * median),
        "iqr_ms": significant(1000 * (high - low)),
        "faces_per_s": significant(faces / median),
        "repeats": len(seconds),
        "peak_mib": None if timing.peak_mib is None else round(timing.peak_mib, 1),
    }


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of all benchmarks, and record the environment at the start."""
    environment()
    flags = argparse.ArgumentParser(description=description)
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    flags.add_argument("--quick", action="store_true", help="few repeats: to see that it runs, not to quote")
    return flags


def show(results: list[dict]) -> None:
    """Print one result per line."""
    for row in results:
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def save(results: list[dict], file: Path | None) -> None:
    """Write results and environment to ``file``, if given. Whoever is killed meanwhile leaves what was there before."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.part")
        unfinished.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")
        unfinished.replace(file)


class Results(list[dict]):
    """Rows that are printed and written one by one, so that a time limit loses none of them."""

    def __init__(self, file: Path | None) -> None:
        super().__init__()
        self._file = file

    def add(self, row: dict) -> None:
        """Append a row; numbers should be rounded."""
        self.append(row)
        show([row])
        save(self, self._file)


def leave_without_gpu() -> None:
    """End the program with the exit code NO_GPU and one line where torch sees no GPU."""
    if not torch.cuda.is_available():
        print("no GPU", flush=True)
        raise SystemExit(NO_GPU)
