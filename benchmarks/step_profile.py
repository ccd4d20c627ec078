"""What a few training steps launch, and how much of their time the GPU works.

    python -m benchmarks.step_profile --json FILE --traces FOLDER

Rows for ``original``: eager, graphed and compiled (see ``benchmarks/train.py``), each of one step, on average:
    launches      calls of the host that send work to the GPU; a CUDA graph is one
    kernels       of the GPU, copies and fills among them
    busy_share    of the time between the first and the last of them in which at least one runs
    kernel_ms     how long they take together; longest: the names and ms of the five that take most
    step_ms       with the profiler on, so more than ``benchmarks.train`` measures
On a CPU only ``operations``, those of torch that no other one calls.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Results, leave_without_gpu, parser, significant
from benchmarks.train import WARM_UP, Setup, opened
from swapfast.device import pick_device
from swapfast.models import MODELS
from swapfast.synthetic import synthesize
from swapfast.system import available_cores
from swapfast.training.graphed import SETTLING_STEPS

WAYS = {"eager": {"graphed": False}, "graphed": {}, "compiled": {"compiled": True, "graphed": False}}
LAUNCHING = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync", "LaunchCooperativeKernel")


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length that intervals cover together, each part once."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def of_the_gpu(events: Sequence[FunctionEvent], steps: int) -> dict:
    """Return the figures of a step on a GPU."""
    launches = Counter(event.name for event in events if event.device_type == DeviceType.CPU and _launches(event.name))
    work = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    if not work:
        return {"launches": sum(launches.values()) / steps, "problem": "the profiler saw no kernel"}
    spans = [(event.time_range.start, event.time_range.end) for event in work]
    took: dict[str, float] = defaultdict(float)
    for event in work:
        took[event.name[:60]] += event.time_range.elapsed_us() / 1000 / steps
    whole = max(last for _, last in spans) - min(first for first, _ in spans)
    return {
        "launches": round(sum(launches.values()) / steps, 1),
        "kernels": round(len(work) / steps, 1),
        "busy_share": significant(covered(spans) / whole),
        "kernel_ms": significant(sum(took.values())),
        "longest": {name: significant(ms) for name, ms in sorted(took.items(), key=lambda pair: -pair[1])[:5]},
    }


def _launches(name: str) -> bool:
    return name.startswith("cu") and any(part in name for part in LAUNCHING)


def of_the_cpu(events: Sequence[FunctionEvent], steps: int) -> dict:
    """Return how many operations of torch a step takes."""
    outermost = [
        event
        for event in events
        if event.name.startswith("aten::")
        and not (event.cpu_parent is not None and event.cpu_parent.name.startswith("aten::"))
    ]
    return {"operations": round(len(outermost) / steps, 1)}


def profiled(setup: Setup, way: str, steps: int, traces: Path | None) -> dict:
    """Return the row of one of WAYS."""
    on_gpu = setup.device == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with opened(setup, f"profile_{way}", **WAYS[way]) as trainer:
        for _ in range(WARM_UP + SETTLING_STEPS):
            trainer.train_one_batch()
        if on_gpu:
            torch.cuda.synchronize()
        with profile(activities=activities) as watched:
            begun = time.perf_counter()
            for _ in range(steps):
                trainer.train_one_batch()
            if on_gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begun
        figures = (of_the_gpu if on_gpu else of_the_cpu)(watched.events(), steps)
        if traces is not None:
            traces.mkdir(parents=True, exist_ok=True)
            watched.export_chrome_trace(str(traces / f"{setup.model}_{way}_{setup.batch}.json.gz"))
        labels = {"name": "step", "way": way, "batch": 2 * setup.batch, **setup.labels(trainer)}
        return labels | {"steps": steps, "step_ms": significant(1000 * seconds / steps), **figures}


def main() -> None:
    """Run the benchmark."""
    flags = parser("What a training step launches")
    flags.add_argument("--model", choices=sorted(MODELS), default="original")
    flags.add_argument("--batch", type=int, default=16, help="faces per side; default 16")
    flags.add_argument("--steps", type=int, default=10)
    flags.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    flags.add_argument("--traces", type=Path, metavar="FOLDER", help="write a Chrome trace of each way there")
    options = flags.parse_args()
    if options.device == "cuda":
        leave_without_gpu()
    device = pick_device(options.device).type
    results = Results(options.json)
    with TemporaryDirectory() as folder:
        synthesize(Path(folder) / "faces", faces=64, size=128, pairs=0, seed=1, workers=available_cores())
        setup = Setup(Path(folder), options.model, options.batch, device, "auto")
        for way in WAYS if device == "cuda" else ["eager"]:
            results.add(profiled(setup, way, options.steps, options.traces))


if __name__ == "__main__":
    main()
