"""Runs the scripts that show former faults, with the program of this checkout: ``make cases``.

A script exits 0 where the program does right, 1 where it does not, and 9 where it cannot be tried on this machine.

    python -m tests.run_cases [NAME ...]        those whose path holds one of the names; default all
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT.parent / "shared" / "cases"
NOT_TRIED = 9
LIMIT_S = 900
# What smaller_batch.py imports is not there; tests/test_running.py holds the right value.
_LACKS_HELPER = "No module named 'ranks'"

_PROGRAM = """#!{python}
import sys
sys.path.insert(0, {root!r})
from swapfast.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""


def find_cases(names: list[str]) -> list[Path]:
    """Return the scripts whose path holds one of ``names``, all without names."""
    scripts = sorted([*CASES.glob("*/*.sh"), *CASES.glob("*.py")])
    return [path for path in scripts if not names or any(name in str(path.relative_to(CASES)) for name in names)]


@contextlib.contextmanager
def _program(program: Path) -> Iterator[None]:
    program.write_text(_PROGRAM.format(python=sys.executable, root=str(ROOT)))
    program.chmod(0o755)
    yield


def run_case(script: Path, limit_s: float = LIMIT_S, make_program=_program) -> tuple[int, str]:
    """Run a script and whatever it starts; return its exit code, 124 where it took too long, and what it printed.

    ``make_program(path)`` is a context in which the program can be started from that path.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output, contextlib.ExitStack() as stack:
        program = Path(folder, "swapfast")
        stack.enter_context(make_program(program))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable if script.suffix == ".py" else "bash", str(script)],
            env={**os.environ, "SWAPFAST": str(program), "PYTHON": sys.executable, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = 124
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
        return NOT_TRIED if _LACKS_HELPER in text else code, text


def main() -> int:
    """Run the scripts, print a line each, and return 0 where none failed."""
    scripts = find_cases(sys.argv[1:])
    if not scripts:
        print(f"there are no scripts in {CASES}")
        return 1
    for number, handler in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
        if signal.getsignal(number) == signal.SIG_IGN:  # nohup and the background of a shell: scripts would inherit it
            signal.signal(number, handler)
    codes = []
    for script in scripts:
        start = time.monotonic()
        code, output = run_case(script)
        codes.append(code)
        note = "  (cannot be tried here)" if code == NOT_TRIED else ""
        print(f"{code:4} {time.monotonic() - start:7.1f} s  {script.relative_to(CASES)}{note}", flush=True)
        if code not in (0, NOT_TRIED):
            print("".join(f"       {line}\n" for line in output.splitlines()[-12:]), end="", flush=True)
    failures = sum(code not in (0, NOT_TRIED) for code in codes)
    print(f"{codes.count(0)} right, {failures} wrong, {codes.count(NOT_TRIED)} not tried, of {len(codes)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
