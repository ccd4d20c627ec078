"""A fork of a process that has its packages loaded is what a start of the program would have been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests import preloaded

pytestmark = pytest.mark.slow  # the first one loads all packages

TELL = """
import os, sys
print(__name__, sys.argv, os.getcwd(), os.environ.get("MINE"), os.getppid() == int(sys.argv[1]), "torch" in sys.modules)
print(sys.stdin.read(), file=sys.stderr)
sys.exit(7)
"""
MODULE = """
import sys
print(__name__, __spec__.name, sys.argv[1:], sys.modules["__main__"].__file__ == __file__)
"""


def _streams(**options):
    return {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options


def test_a_fork_has_its_own_words_folder_environment_streams_and_code(tmp_path):
    words = [sys.executable, "-c", TELL, str(os.getpid())]
    with preloaded.Popen(words, cwd=tmp_path, env=os.environ | {"MINE": "yes"}, **_streams()) as process:
        out, complaints = process.communicate("words")
    assert (process.returncode, complaints) == (7, "words\n")
    assert out == f"__main__ ['-c', '{os.getpid()}'] {tmp_path} yes True True\n"


def test_what_is_read_before_python_runs_is_started_the_long_way(tmp_path):
    words = [sys.executable, "-c", TELL, str(os.getpid())]
    environment = os.environ | {"PYTHONOPTIMIZE": "1"}
    with preloaded.Popen(words, cwd=tmp_path, env=environment, **_streams()) as process:
        out, _ = process.communicate("")
    assert process.returncode == 7 and out.endswith(" None True False\n")


def test_a_module_and_a_file_run_as_main(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__main__.py").write_text(MODULE)
    (tmp_path / "script.py").write_text("import sys; print(sys.argv); raise ValueError('no')")
    module = preloaded.run([sys.executable, "-m", "mine", "x"], cwd=tmp_path, capture_output=True, text=True)
    assert module.stdout == "__main__ mine.__main__ ['x'] True\n", module.stderr
    script = preloaded.run([sys.executable, "script.py", "x"], cwd=tmp_path, capture_output=True, text=True)
    assert (script.returncode, script.stdout) == (1, "['script.py', 'x']\n")
    assert script.stderr.endswith("ValueError: no\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_ends_it_and_is_what_ended_it(number):
    waiting = [sys.executable, "-c", "import time; print(flush=True); time.sleep(100)"]
    with preloaded.Popen(waiting, **_streams(start_new_session=True)) as process:
        process.stdout.readline()
        assert os.getsid(process.pid) == process.pid
        process.send_signal(number)
        assert process.wait(60) == -number


def test_closed_streams_are_none():
    program = [sys.executable, "-c", "import os, sys; os._exit(sys.stdout is None and sys.stderr is not None)"]
    assert preloaded.run(program, closed=(1,)).returncode == 1
    assert preloaded.run(program).returncode == 0


def test_the_encoding_of_streams_and_a_sitecustomize_are_as_at_a_start(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.mine = 5\n")
    code = "import sys; print(mine, sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors, 'torch' in sys.modules)"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1:ignore", "PYTHONPATH": str(tmp_path)}
    result = preloaded.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.split() == ["5", "latin-1", "ignore", "backslashreplace", "True"], result


def test_a_fork_of_python_that_runs_a_stand_in_becomes_the_program(tmp_path):
    program, python = tmp_path / "program", tmp_path / "python"
    (tmp_path / "shim.py").write_text(
        f"import builtins, runpy; builtins.mine = 5; runpy.run_path({str(program)!r}, run_name='__main__')"
    )
    words = ["-c", "import os, sys; print(__name__, sys.argv[1:], mine, 'torch' in sys.modules); sys.exit(7)"]
    with preloaded.stand_in({program: words, python: []}):
        result = subprocess.run([python, tmp_path / "shim.py", "a"], capture_output=True, text=True)
        piped = subprocess.run([python, "-", "b"], input="import sys; print(sys.argv)", capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (7, "__main__ ['a'] 5 True\n"), result
    assert piped.stdout == "['-', 'b']\n", piped


def test_a_shell_starts_a_stand_in_as_it_would_the_program(tmp_path):
    program = tmp_path / "program"
    python = "import os, signal, sys, time; print(sys.argv[1:], os.getcwd(), 'torch' in sys.modules, flush=True); "
    script = f"""
        cd /
        {program} "sys.exit(3)" a b </dev/null; echo $?
        {program} "time.sleep(100)" >&2 & sleep 0.5; kill -TERM $!; wait $!; echo $?
        (ulimit -f 5; {program} "import resource; print(resource.getrlimit(resource.RLIMIT_FSIZE)[0])")
        LC_ALL=C {program} "" c
    """
    words = ["-c", python + "exec(sys.argv[1])"]
    with preloaded.stand_in({program: words}):
        result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=100)
    lines = result.stdout.splitlines()
    assert lines[:3] == ["['sys.exit(3)', 'a', 'b'] / True", "3", "143"], result
    assert lines[4] == "5120" and lines[5] == "['', 'c'] / False", result
