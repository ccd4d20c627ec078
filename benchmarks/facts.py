"""Print what a machine has, with nothing but Python's own library: python3 benchmarks/facts.py

Nothing here raises: what is missing is said.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "numba",
    "kornia",
    "kornia_rs",
    "pytest",
    "pytest-xdist",
    "pytest-timeout",
)
GIB = 2**30


def output(*command: str) -> str:
    """Return what a program prints, or why it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"missing ({type(error).__name__})"
    return (done.stdout or done.stderr).strip() or f"exit code {done.returncode}"


def package(name: str) -> str:
    """Return the version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def facts() -> dict[str, str]:
    """Return what is of interest, by name."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,pcie.link.gen.max,pcie.link.width.max"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "cores": str(cores),
        "memory": f"{memory:.0f} GiB",
        "disk": f"{shutil.disk_usage('/tmp').free / GIB:.0f} GiB free in /tmp",
        "gpu": output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        "gcc": output("gcc", "--version").splitlines()[0],
        "Python.h": str(header) if header.is_file() else f"missing ({header})",
        "xz": shutil.which("xz") or "missing",
        "commit": os.environ.get("SWAPFAST_COMMIT", "not told (SWAPFAST_COMMIT)"),
        **{name: package(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    for name, value in facts().items():
        print(f"{name:24}{value}", flush=True)
