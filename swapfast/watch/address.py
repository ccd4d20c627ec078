"""Where the page of a model folder is found, for who starts one: nothing here needs the server's packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from swapfast.errors import EXIT_FAILED, EXIT_REQUEST, SwapfastError
from swapfast.files import open_plain
from swapfast.requirements import check_import
from swapfast.watch.lock_holder import find_holder

FIRST_PORT = 8420
PORTS = 20  # that are tried
RECORD = ".watch"  # holds the address of the page that follows a model folder; locked as long as that is there
LEAVE_AFTER = "12h"  # how long a page that a run has started stays when nobody needs it
_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 30.0
_LARGEST = 1 << 14


def recorded_address(folder: Path) -> str | None:
    """Return the address of the page that follows a model folder on this machine, None where there is none."""
    holder = find_holder(folder / RECORD)
    if holder is None or holder.pid is None:
        return None
    try:
        with open_plain(folder / RECORD) as file:
            address = json.loads(file.read(_LARGEST))["address"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return address if isinstance(address, str) else None


def start_page(folder: Path, port: str) -> list[str]:
    """Start ``swapfast watch`` for a model folder and return the lines that say where it is.

    It is a process of its own that outlives this one. port: a number, or 'auto'. Where a page follows the folder
    already, that is named. Raises SwapfastError naming --watch where none can be started.
    """
    present = recorded_address(folder)
    if present is not None:
        return [f"a page follows this model already: {present}"]
    for package in ("Starlette", "uvicorn"):
        check_import(package, "--watch")
    command = [sys.executable, "-m", "swapfast", "watch", str(folder), "--json", "--leave-after", LEAVE_AFTER]
    command += [] if port == "auto" else ["--port", port]
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # neither Ctrl-C nor the end of the terminal is for it
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdout is not None
    timer = threading.Timer(_PATIENCE_S, process.kill)
    timer.start()
    try:
        line = process.stdout.readline(_LARGEST).decode("utf-8", "replace").strip()
    finally:
        timer.cancel()
        process.stdout.close()
    try:
        content = json.loads(line)
        lines = [f"page: {content['address']}", f"for others, who may only look: {content['read_only']}"]
        ssh = f"from another computer: {content['ssh']}   and open the same address there"
        return [*lines, *([ssh] if content["ssh"] else []), f"it stays when the run has ended: kill {process.pid}"]
    except (ValueError, KeyError, TypeError):
        process.kill()
        process.wait()
        reason = line.removeprefix("swapfast: ").replace("--port", "--watch") or "the page does not start"
        raise SwapfastError(
            reason if reason.startswith("--watch") else f"--watch: {reason}",
            EXIT_REQUEST if "--watch" in reason else EXIT_FAILED,
        ) from None
