"""Runs swapfast's commands as a person would, showing each before it begins."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

Start = Callable[..., Any]  # as subprocess.run


def swapfast(*words: object, start: Start = subprocess.run, keep: bool = False) -> str:
    """Run a command and return what it printed, where that is to be kept; otherwise it is shown.

    Raises SystemExit with the command's exit code where it failed: it has said why.
    """
    command = ["swapfast", *map(str, words)]
    print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
    done = start([sys.executable, "-m", *command], stdout=subprocess.PIPE if keep else None, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""
