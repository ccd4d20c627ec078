"""Where Numba or kornia cannot run, what needs it says so in one line, and what does not need it runs."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests import preloaded

pytestmark = pytest.mark.slow  # whole programs

ROOT = Path(__file__).resolve().parents[2]
# Words of several requests to what each of them gave: exit code, stdout, stderr. One process for all; nothing of ours
# is loaded in it before, and the package that is to be absent is forgotten.
PROGRAM = """
import contextlib, io, json, sys
absent, requests = json.loads(sys.argv[1])
for name in [name for name in sys.modules if name.split(".")[0] == absent]:
    del sys.modules[name]
import cli
results = {}
for name, words in requests.items():
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main(words)
    results[name] = code, out.getvalue(), err.getvalue()
json.dump(results, sys.stdout)
"""
REASONS = {
    "missing": "No module named 'numba'",
    "does not know this NumPy": "Numba needs NumPy 2.5 or less. Got NumPy 9.9.",
}


@pytest.fixture(scope="module", params=REASONS)
def reason(request) -> str:
    return REASONS[request.param]


def _train(made_faces: Path) -> list[str]:
    faces = ["-A", str(made_faces / "a"), "-B", str(made_faces / "b"), "--no-logs", "--device", "cpu", "-b", "2"]
    return ["train", *faces, "-t", "tiny", "-i", "1"]


@pytest.fixture(scope="module")
def results(reason, made_faces, tmp_path_factory) -> dict[str, tuple[int, str, str]]:
    folder = tmp_path_factory.mktemp("no numba")
    (folder / "numba.py").write_text(f"raise ImportError({reason!r})\n")
    train = _train(made_faces)
    requests = {
        "opencv": [*train, "-m", str(folder / "opencv"), "--backend", "opencv"],
        "auto": [*train, "-m", str(folder / "auto")],
        "landmarks": [*train, "-m", str(folder / "landmarks"), "--backend", "kornia", "-M"],
        "sheet": ["augment", str(made_faces / "a"), "-o", str(folder / "sheet.png")],
        "doctor": ["doctor"],
        "kornia": [*train, "-m", str(folder / "kornia"), "--backend", "kornia"],
    }
    results = _answers(folder, "numba", requests)
    assert not any((folder / name).exists() for name in ("opencv", "auto", "landmarks", "sheet.png"))
    return results


def _answers(folder: Path, absent: str, requests: dict[str, list[str]]) -> dict[str, tuple[int, str, str]]:
    """Return what the requests give where the module ``absent`` in ``folder`` stands before the installed one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    run = preloaded.run(
        [sys.executable, "-c", PROGRAM, json.dumps([absent, requests])],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "flag", "way_out"),
    [
        ("opencv", "--backend opencv", "give --backend kornia"),
        ("auto", "--backend auto", "give --backend kornia"),
        ("landmarks", "-M/--warp-to-landmarks", "leave it out"),
        ("sheet", "swapfast augment", "`pip install -U numba`"),
    ],
)
def test_what_needs_numba_says_so_in_one_line(results, reason, name, flag, way_out):
    code, out, err = results[name]
    assert code == 2 and not out
    assert re.fullmatch(rf".*{re.escape(flag)}: needs Numba.*\n", err), err
    assert reason.rstrip(".") in err and "pip install -U numba" in err and way_out in err


@pytest.mark.long
def test_the_doctor_tells(results, reason):
    code, out, err = results["doctor"]
    assert code == 0 and not err
    (note,) = [line for line in out.splitlines() if "Numba" in line]
    assert reason.rstrip(".") in note and "pip install -U numba" in note


def test_the_kornia_backend_trains_without_it(results):
    code, _, err = results["kornia"]
    assert code == 0, err


def test_what_needs_kornia_says_so_in_one_line(made_faces, tmp_path):
    """And OpenCV's backend trains without it; a former name says so too."""
    (tmp_path / "kornia.py").write_text("raise ImportError(\"No module named 'kornia'\")\n")
    train = _train(made_faces)
    requests = {
        "kornia": [*train, "-m", str(tmp_path / "model"), "--backend", "kornia"],
        "torch": [*train, "-m", str(tmp_path / "model"), "--backend", "torch"],
        "doctor": ["doctor"],
        "opencv": [*train, "-m", str(tmp_path / "opencv"), "--backend", "opencv"],
    }
    results = _answers(tmp_path, "kornia", requests)
    for name, lines in (("kornia", 1), ("torch", 2)):
        code, out, err = results[name]
        assert code == 2 and not out and len(err.splitlines()) == lines
        assert re.search(r"--backend kornia: needs kornia, .*No module named 'kornia'.*give --backend opencv\n$", err)
    assert not (tmp_path / "model").exists()
    (note,) = [line for line in results["doctor"][1].splitlines() if line.startswith("note       kornia")]
    assert results["doctor"][0] == 0 and "pip install -U kornia" in note
    assert results["opencv"][0] == 0, results["opencv"][2]
