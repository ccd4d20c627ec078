"""Runs exported .onnx and .dfm files in whichever onnxruntime is at hand, and compares one with another.

    python benchmarks/onnx_files.py FOLDER     # writes what it gives to FOLDER/outputs.npz, or compares with that

It needs numpy and onnxruntime alone, so that an old one can be asked too: 1.15.1 is the one that DeepFaceLive has
(pip install onnxruntime==1.15.1 "numpy<2" into an environment of its own). Batches of 1 and 5 faces; outputs are
written to buffers whose sizes are read off the graph.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

BATCHES = (1, 5)


def run(path: Path) -> dict[str, np.ndarray]:
    """Return the outputs of a file by 'FILE BATCH OUTPUT'."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (picture,) = session.get_inputs()
    outputs = {}
    for count in BATCHES:
        faces = np.random.default_rng(count).random((count, *picture.shape[1:]), np.float32)
        binding = session.io_binding()
        binding.bind_cpu_input(picture.name, faces)
        for output in session.get_outputs():
            buffer = np.full((count, *output.shape[1:]), np.nan, np.float32)
            outputs[f"{path.name} {count} {output.name}"] = buffer
            binding.bind_output(output.name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        session.run_with_iobinding(binding)
    return outputs


def main(folder: Path) -> int:
    """Print one JSON object a file; return 1 where one fails or differs by more than 1e-4 (fp16: 2e-3)."""
    stored = folder / "outputs.npz"
    expected = dict(np.load(stored)) if stored.exists() else {}
    everything: dict[str, np.ndarray] = {}
    failed = False
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".dfm", ".onnx")):
        outputs = run(path)
        everything |= outputs
        errors = [np.abs(value - expected.get(name, value)).max() for name, value in outputs.items()]
        failed |= not max(errors) <= (2e-3 if "fp16" in path.name else 1e-4)
        row = {"file": path.name, "onnxruntime": onnxruntime.__version__, "outputs": len(outputs) // len(BATCHES)}
        print(json.dumps(row | {"largest_difference": float(f"{max(errors):.2g}"), "compared": bool(expected)}))
    if not expected:
        np.savez(stored, **everything)  # type: ignore[arg-type]  # all are arrays: none is named allow_pickle
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
