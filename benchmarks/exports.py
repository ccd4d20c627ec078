"""Measures what leaving and coming back takes: the whole program, from its start to its end.

    python -m benchmarks.exports --json benchmarks/results/exports_MACHINE.json

Rows: the seconds and the largest memory of `swapfast export` and `swapfast import` in a process of their own, the size
of what they wrote. Models have drawn weights and Adam's state, as a run leaves them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import ROOT, Results, alone, parser
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.config import FACE_TYPES, LossConfig, ModelConfig, TrainConfig
from swapfast.models import build_model

# Each model: its name, px, whether it learns a mask, and what it is exported as.
MODELS = [
    ("original", 64, False, ("dfm", "dfm --fp16", "onnx", "safetensors")),
    ("original", 64, True, ("dfm",)),
    ("original", 256, False, ("dfm",)),
    ("liae-ud", 128, True, ("dfm", "saehd")),
]
QUICK_MODELS = [("tiny", 64, True, ("dfm", "safetensors"))]


def make_model(folder: Path, name: str, size: int, learn_mask: bool) -> None:
    """Save a checkpoint of a model that has not been trained."""
    model = ModelConfig(name=name) if name == "tiny" else ModelConfig(name=name, input_size=size)
    config = TrainConfig(model=model, loss=LossConfig(learn_mask=learn_mask), crop=FACE_TYPES["wf"])
    weights = build_model(config.model, learn_mask, config.seed).state_dict()
    averages = {
        f"{key}.{part}": torch.zeros_like(value) for key, value in weights.items() for part in ("exp_avg", "exp_avg_sq")
    }
    faces = {f"mean_{side}": torch.full((size, size, 3), 0.5) for side in "ab"}
    faces |= {f"mean_mask_{side}": torch.ones(size, size, 1) for side in "ab"}
    tensors = {"model": weights, "optimizer": averages, "faces": faces}
    CheckpointFolder(folder).save(Checkpoint(1, tensors, {"config": config.to_dict()}))


def measure(words: Sequence[str], out: Path) -> dict:
    """Run the program; return its seconds, its peak memory and the size of ``out``."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "swapfast", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"swapfast {' '.join(words)} failed")
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return {
        "seconds": round(seconds, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        "mib": round(sum(path.stat().st_size for path in files) / 2**20, 1),
    }


def main() -> None:
    """See the module."""
    arguments = parser(__doc__).parse_args()
    results = Results(arguments.json)
    with tempfile.TemporaryDirectory() as temporary:
        for number, (name, size, learn_mask, targets) in enumerate(QUICK_MODELS if arguments.quick else MODELS):
            folder = Path(temporary) / f"{number}"
            alone(make_model, folder, name, size, learn_mask)  # a program's peak begins with that of who starts it
            for target in targets:
                kind, *flags = target.split()
                out = Path(temporary) / f"out{'' if kind == 'saehd' else f'.{kind}'}"
                words = ["export", "-m", str(folder), "-o", str(out), "--to", kind, *flags]
                labels = {"model": name, "px": size, "learned_mask": learn_mask}
                results.add(labels | {"command": f"export --to {target}"} | measure(words, out))
                if kind == "saehd":
                    back = Path(temporary) / "back"
                    results.add(labels | {"command": "import"} | measure(["import", str(out), "-m", str(back)], back))
                else:
                    out.unlink()


if __name__ == "__main__":
    main()
