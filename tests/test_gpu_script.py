"""benchmarks/gpu.sh on a machine without a GPU: its limits, its unpacking, and that each part says "no GPU"."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from benchmarks.common import NO_GPU, Results
from benchmarks.step_profile import covered, of_the_gpu

pytestmark = pytest.mark.slow  # whole programs

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ("curves", "color", "geometry")
CALL_S = 560  # of the ten minutes of a call
PROGRAMS = ("bash", "dirname", "mkdir", "tail", "tee", "timeout", "cat")  # all that the script may need


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of a machine with no more programs than PROGRAMS and no GPU that torch sees."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in PROGRAMS:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed here")
        (folder / name).symlink_to(path)
    return os.environ | {
        "PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHON": sys.executable,
        "OUT": str(tmp_path / "out"),
        "SITE": str(tmp_path / "site"),
        "BUNDLE": str(tmp_path / "bundle"),
        "CUDA_VISIBLE_DEVICES": "",
        "SWAPFAST_COMMIT": "a1b2c3d4e5",
    }


def _run(environment: dict[str, str], *steps: str) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *steps]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def _parts(environment: dict[str, str]) -> dict[str, dict[str, int]]:
    parts: dict[str, dict[str, int]] = {}
    for line in _run(environment, "list").stdout.splitlines():
        step, name, limit = line.split()
        parts.setdefault(step, {})[name] = int(limit)
    return parts


def _bundle(folder: Path) -> None:
    """A small archive in two pieces: a package, and a wheel within it."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("of_the_wheel.py", "VALUE = 2\n")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as tar:
        for name, data in (("package/__init__.py", b"VALUE = 1\n"), ("wheel-1-py3-none-any.whl", wheel.getvalue())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    folder.mkdir()
    data = archive.getvalue()
    (folder / "site.tar.xz.00").write_bytes(data[:100])
    (folder / "site.tar.xz.01").write_bytes(data[100:])


def test_all_limits_of_a_call_fit_into_it(bare):
    parts = _parts(bare)
    assert set(parts) == {"first", "second"}
    assert list(parts["first"]) == ["facts", "unpack", "first_minutes", "train", "profile", "checks", "tests", "mixed"]
    for step, limits in parts.items():
        assert sum(limits.values()) < CALL_S, step


def test_packages_are_unpacked_without_xz_and_tar(bare, tmp_path):
    _bundle(tmp_path / "bundle")
    result = _run(bare, "unpack")
    assert result.returncode == 0, result.stdout + result.stderr
    site = tmp_path / "site"
    assert (site / "package" / "__init__.py").read_text() == "VALUE = 1\n"
    assert (site / "of_the_wheel.py").read_text() == "VALUE = 2\n"
    (site / "package" / "__init__.py").write_text("kept")
    assert _run(bare, "unpack").returncode == 0
    assert (site / "package" / "__init__.py").read_text() == "kept", "what is there is not unpacked again"


def test_a_bundle_that_lacks_a_piece_is_one_line(bare, tmp_path):
    assert _run(bare, "unpack").returncode == 0, "no bundle, nothing to unpack"
    (tmp_path / "bundle").mkdir()
    empty = _run(bare, "unpack")
    assert empty.returncode == 1 and "holds no .tar.xz" in empty.stdout
    (tmp_path / "bundle").rmdir()
    _bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "site.tar.xz.01").unlink()
    damaged = _run(bare, "unpack")
    assert damaged.returncode == 1 and "unpack.py: " in damaged.stdout and "Traceback" not in damaged.stdout


def test_every_part_says_that_there_is_no_gpu(bare, tmp_path):
    parts = {name for limits in _parts(bare).values() for name in limits} - {"facts", "unpack", "first_minutes"}
    result = _run(bare, "facts", *sorted(parts))
    assert result.returncode == NO_GPU, result.stdout + result.stderr
    assert "Traceback" not in result.stdout and not result.stderr
    for name in parts:
        assert (tmp_path / "out" / f"{name}.txt").read_text() == "no GPU\n"
    facts = (tmp_path / "out" / "facts.txt").read_text()
    assert all(word in facts for word in ("Python.h", "gcc", "gpu", "cores", "xz", "a1b2c3d4e5"))


def test_a_part_that_ends_late_keeps_no_other_from_running(bare, tmp_path):
    program = tmp_path / "program"
    waits = "if 'facts' in sys.argv[1]: time.sleep(100)"
    program.write_text(f"#!{sys.executable}\nimport sys, time\nprint('begun', flush=True)\n{waits}\n")
    program.chmod(0o755)
    result = _run(bare | {"PYTHON": str(program)}, "facts", "unpack")
    assert result.returncode == 1
    assert "== facts: out of time" in result.stdout and "== unpack: exit code 0" in result.stdout
    assert "KeyboardInterrupt" in (tmp_path / "out" / "facts.txt").read_text(), "told to end before it is killed"


def test_a_name_that_is_no_part_is_refused(bare):
    result = _run(bare, "everything")
    assert result.returncode == 2 and "unknown part 'everything'" in result.stderr


@pytest.mark.long
def test_the_first_minutes_measure_what_a_cpu_can_and_carry_the_commit(bare, tmp_path):
    file = tmp_path / "first.json"
    command = ["-m", "benchmarks.first_minutes", "--quick", "--json", file, "--sizes", "32", "--batch", "1"]
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=bare | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == NO_GPU, result.stderr
    assert result.stdout.splitlines()[-1] == "no GPU"
    content = json.loads(file.read_text())
    assert content["environment"]["commit"] == "a1b2c3d4e5"
    rows = content["results"]
    assert [row["name"] for row in rows[:4]] == ["gather"] * 3 + ["augment"]
    assert all(row["host_ms"] > 0 and row["device_ms"] is None for row in rows)
    fused = [row for row in rows if row.get("backend") == "triton"]
    if find_spec("triton"):
        assert [row["kernel"] for row in fused if row["name"] == "kernel"] == [*KERNELS, "all"] * 2
        # Ten bits a channel are 71 dB and more; the interpreter's bf16 is a level off, 48 dB at worst.
        assert [min(row["db_feed"], row["db_target"]) > db for row, db in zip(fused[::5], (65, 48))] == [True, True]
        assert all(row["largest_difference"] == 0 for row in rows if row["name"] == "tile")


def test_rows_are_in_the_file_as_soon_as_they_are_measured(tmp_path, capsys):
    file = tmp_path / "results.json"
    results = Results(file)
    for value in (1, 2):
        results.add({"name": "row", "value": value})
        assert json.loads(file.read_text())["results"][-1]["value"] == value
    assert capsys.readouterr().out.count("name row") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_time_that_several_kernels_share_counts_once():
    assert covered([(5, 6), (0, 2), (1, 3), (1.5, 2.5)]) == 4
    assert covered([]) == 0


def _event(name: str, start: float, end: float, on_gpu: bool = True) -> SimpleNamespace:
    """An event as torch's profiler gives it, with what is read of it."""
    return SimpleNamespace(
        name=name,
        device_type=DeviceType.CUDA if on_gpu else DeviceType.CPU,
        is_user_annotation=name.startswith("Optimizer"),
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
    )


def test_a_profile_counts_launches_and_the_time_in_which_a_kernel_runs():
    events = [
        _event("cudaLaunchKernel", 0, 1, on_gpu=False),
        _event("cudaGraphLaunch", 1, 2, on_gpu=False),
        _event("cudaStreamSynchronize", 2, 900, on_gpu=False),
        _event("aten::add", 0, 2, on_gpu=False),
        _event("Optimizer.step#Adam", 0, 1000),  # a mark, which no kernel fills
        _event("add_kernel", 100, 300),
        _event("conv_kernel", 200, 400),
        _event("add_kernel", 800, 900),
    ]
    row = of_the_gpu(events, steps=2)
    assert (row["launches"], row["kernels"]) == (1, 1.5)
    assert row["busy_share"] == 0.5, "100 to 400 and 800 to 900, of 800"
    assert row["longest"] == {"add_kernel": 0.15, "conv_kernel": 0.1} and row["kernel_ms"] == 0.25
    assert "no kernel" in of_the_gpu(events[:2], steps=1)["problem"]
