"""Runs the scripts that show former faults, with the program of this checkout: ``make cases``.

A script exits 0 where the program does right, 1 where it does not, and 9 where it cannot be tried on this machine.

Some scripts only print; for them ``SHOWN_FAULTS`` says what must not be printed.

    python -m tests.run_cases [NAME ...]        those whose path holds one of the names; default all
"""

from __future__ import annotations

import contextlib
import os
import re
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
HELPERS = ROOT / "tests" / "cases"  # modules that scripts import and that are not in their folder
# Of scripts that print and always exit 0: the lines that show the former fault.
SHOWN_FAULTS = {
    "head_shift.py": r"mean x [+-](0\.[1-9]|[1-9])",  # px; half a pixel once
    "ms_ssim_spikes.py": r"^ms_ssim .*: mean (0\.[2-9]|1)",  # share of the gradient; a quarter to a half once
    "plain_scale.py": r"coverage (\d\.\d*[1-9])0* instead of (?!\1;)",
    "smaller_batch.py": r"^[1-9]\d* of the ",
}

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
def _program(folder: Path) -> Iterator[tuple[Path, Path]]:
    program = folder / "swapfast"
    program.write_text(_PROGRAM.format(python=sys.executable, root=str(ROOT)))
    program.chmod(0o755)
    yield program, Path(sys.executable)


def run_case(script: Path, limit_s: float = LIMIT_S, make_programs=_program) -> tuple[int, str]:
    """Run a script and whatever it starts; return its exit code, 124 where it took too long, and what it printed.

    ``make_programs(folder)`` is a context that gives the paths of the program and of Python, for as long as it lasts.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output, contextlib.ExitStack() as stack:
        program, python = stack.enter_context(make_programs(Path(folder)))
        helpers = [str(HELPERS)] if script.suffix == ".py" else []
        path = os.pathsep.join(filter(None, [str(ROOT), *helpers, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable if script.suffix == ".py" else "bash", str(script)],
            cwd=ROOT,  # the faces beside it are found from there
            env={**os.environ, "SWAPFAST": str(program), "PYTHON": str(python), "PYTHONPATH": path},
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
        fault = SHOWN_FAULTS.get(script.name)
        if code == 0 and fault and (not text or re.search(fault, text, re.MULTILINE)):
            code = 1
        return code, text


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
