"""The program's door opens its own command line, whatever else is called ``cli`` or ``pipelines``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swapfast import __version__
from swapfast.__main__ import limit_spinning

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = "import sys; from swapfast.__main__ import main; sys.exit(main())"  # what pip makes the command `swapfast` of


@pytest.fixture
def other_project(tmp_path) -> Path:
    """A folder with a ``cli.py`` and a ``pipelines`` of somebody else."""
    (tmp_path / "cli.py").write_text("raise SystemExit('somebody else')\n")
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__init__.py").write_text("raise SystemExit('somebody else')\n")
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("start", [["-m", "swapfast"], ["-c", PROGRAM]])
@pytest.mark.parametrize("words", [["--version"], ["doctor", "--json"]])
def test_somebody_elses_cli_is_not_run(other_project, start, words):
    paths = os.pathsep.join([str(other_project), str(ROOT)])
    result = subprocess.run(
        [sys.executable, *start, *words],
        capture_output=True,
        text=True,
        cwd=other_project,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert result.returncode == 0, result.stderr
    assert "somebody else" not in result.stdout + result.stderr
    assert words != ["--version"] or result.stdout.strip() == __version__


@pytest.mark.slow
def test_exit_codes_pass_through(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "swapfast", "inspect", "nowhere"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "nowhere" in result.stderr


LOST = """
import signal, time
from swapfast.stop import Stopped, StopRequest

class Resource:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

StopRequest().listen_to_the_end()
try:
    Resource()
    time.sleep(30)
except Stopped as error:
    print("stopped by", error)
"""


def test_a_request_is_not_lost_where_nothing_can_be_raised():
    """Python prints what a ``__del__`` raises, and goes on."""
    result = subprocess.run(
        [sys.executable, "-c", LOST], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "stopped by SIGTERM\n", "")


@pytest.mark.parametrize(
    ("variables", "count"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(variables, count, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # put back at the end, whatever happens to it
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == count
