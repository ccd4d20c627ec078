"""The form that later checks of benchmark results lean on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_loader_benchmark_writes_what_it_promises(tmp_path):
    file = tmp_path / "loader.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.loader",
        "--quick",
        "--sizes",
        "64",
        "--faces",
        "6",
        "--json",
        str(file),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    written = json.loads(file.read_text())
    environment = written["environment"]
    for name in ("processor", "cores", "gpus", "driver", "versions", "torch_threads", "opencv_threads", "commit"):
        assert name in environment
    assert {"torch", "dali", "kornia", "opencv"} <= set(environment["versions"])
    rows = written["results"]
    needed = {"name", "size", "backend", "state", "batch", "median_ms", "iqr_ms", "faces_per_s", "peak_mib"}
    assert all(needed <= set(row) for row in rows)
    assert {"decode", "crop_and_masks", "augment", "to_tensor", "end_to_end"} <= {row["name"] for row in rows}
    whole = {(row["backend"], row["state"]) for row in rows if row["name"] == "end_to_end"}
    assert whole == {("opencv", "warm"), ("opencv", "cold"), ("peer_loop", "warm")}
    for row in rows:
        assert (
            row["median_ms"] > 0
            and abs(row["faces_per_s"] - 1000 * row["batch"] / row["median_ms"]) < 0.01 * row["faces_per_s"]
        )
