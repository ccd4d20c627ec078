"""Where the time of a training step goes, and what live augmentation, logs and a restart cost.

    python -m benchmarks.train --json benchmarks/results/train_MACHINE.json

The runs are built as ``swapfast train`` builds them, on made-up faces whose cache exists. Rows for each model and
batch, written as they are measured, in the order of --rows:
    parts       a step: data_wait_ms (the mean, as several batches may be made at once), forward_ms (model and loss),
                backward_ms, optimizer_ms, rest_ms. On a GPU the middle three are the device's, between CUDA events
    live        steps with live augmentation beside the same steps on one fixed batch, in turns: slower is the median of
                the pairs, 0.05 for 5 %, slower_iqr its quartiles. cpu_ms is what all threads used. Other --threads: of
                torch, for the step. --cuda-graph auto off: both ways, of which only the first differs from the other
                where a step can be a graph
    graphed, compiled, both
                on a GPU: steps by CUDA graphs, of a compiled model, or both, beside steps of the same precision whose
                operations are launched one by one; faster is their ratio. host_ms is what the host does for a step
    logging     the share of the time that logs and loss lines cost at their interval and the preview at its own
    start       from the request to the end of the first step in a new process, imports apart, when caches exist
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec, TypeVar

import torch

from benchmarks.common import (
    Results,
    Timing,
    alone,
    cpu_seconds,
    leave_without_gpu,
    parser,
    peak_mib,
    reset_peak,
    significant,
    summary,
    timed,
)
from pipelines.loader import PREFETCH, BatchSchedule
from pipelines.preview import PreviewWriter
from pipelines.run.build import build_trainer
from pipelines.run.plan import plan_run
from pipelines.run.request import TrainRequest
from pipelines.sides import no_log
from swapfast.batch import Batch
from swapfast.config import ModelConfig, RunConfig, TrainConfig
from swapfast.device import pick_backend, pick_device
from swapfast.models import MODELS
from swapfast.stop import StopRequest
from swapfast.synthetic import synthesize
from swapfast.system import available_cores
from swapfast.training.progress import ProgressLine
from swapfast.training.trainer import Trainer

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

FACES = 256  # a side
LOGGED_S = 10.0  # between loss lines that go to no terminal
BLOCK_S = 1.0  # of steps with and without live augmentation: few seconds apart, for the machine's moods
PAIRS, FEW_PAIRS = 61, 5
WARM_UP = PREFETCH + 1  # steps
SAVES = RunConfig.save_interval  # and previews


@dataclass(frozen=True)
class Setup:
    """What all runs of a model have in common. folder: holds the faces and the cache."""

    folder: Path
    model: str
    batch: int
    device: str
    precision: str

    def open(self, name: str, logs: bool = False, compiled: bool = False, graphed: bool = True) -> Trainer:
        """A run of a new model, ready for its first step."""
        run = RunConfig(
            input_a=str(self.folder / "faces" / "a"),
            input_b=str(self.folder / "faces" / "b"),
            model_dir=str(self.folder / name),
            snapshot_interval=0,
            device=self.device,
            cache_dir=str(self.folder / "cache"),
            logs=logs,
            compile=compiled,
            cuda_graph="auto" if graphed else "off",
        )
        model = ModelConfig(name=self.model)
        config = TrainConfig(run=run, model=model, batch_size=self.batch, precision=self.precision)
        request = TrainRequest(config, {})
        trainer = build_trainer(plan_run(request), StopRequest(), no_log)
        trainer.run.progress = ProgressLine(io.StringIO())
        return trainer

    def batches_per_call(self, trainer: Trainer) -> int:
        """Return how many batches one call of the augmentation makes."""
        device, pixels = torch.device(self.device), 2 * self.batch * trainer.model.output_sizes[-1] ** 2
        return BatchSchedule.for_training("host", pick_backend("auto", device), device, 1, pixels).batches_per_call

    def labels(self, trainer: Trainer) -> dict:
        return {
            "model": self.model,
            "size": trainer.model.output_sizes[-1],
            "device": self.device,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
        }


def live_batches(trainer: Trainer) -> Generator[Batch, None, None]:
    """Return the batches that a run's loader makes; closing them ends its threads."""
    assert isinstance(trainer.batches, Generator)
    return trainer.batches


@contextlib.contextmanager
def opened(setup: Setup, name: str, **options: bool) -> Iterator[Trainer]:
    """A run whose threads end with the block."""
    trainer = setup.open(name, **options)
    live = live_batches(trainer)
    try:
        yield trainer
    finally:
        live.close()


class Stopwatch:
    """Milliseconds spent in the calls that it is wrapped around, by name: of the host, or between CUDA events."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._events: dict[str, list[tuple]] = defaultdict(list)

    def around(
        self, name: str, call: Callable[Arguments, Result], on_host: bool = False
    ) -> Callable[Arguments, Result]:
        """``call``, watched. on_host: never by events."""

        def watched(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
            if self._on_gpu and not on_host:
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                result = call(*arguments, **options)
                last.record()
                self._events[name].append((first, last))
                return result
            begun = time.perf_counter()
            result = call(*arguments, **options)
            self._seconds[name].append(time.perf_counter() - begun)
            return result

        return watched

    def take(self, name: str) -> list[float]:
        """Milliseconds of each call, in order. Waits for the device."""
        if self._events[name]:
            torch.cuda.synchronize()
        between = [first.elapsed_time(last) for first, last in self._events.pop(name, [])]
        return between or [1000 * seconds for seconds in self._seconds.pop(name, [])]


class _Watched:
    """Batches whose coming is watched."""

    def __init__(self, batches: Generator[Batch, None, None], watch: Stopwatch) -> None:
        self._batches = batches
        self._next = watch.around("data_wait", lambda: next(batches), on_host=True)

    def __iter__(self) -> _Watched:
        return self

    def __next__(self) -> Batch:
        return self._next()

    def close(self) -> None:
        self._batches.close()


def parts(setup: Setup, steps: int) -> dict:
    """The row of a step's parts: medians."""
    with opened(setup, "parts", graphed=False) as trainer:
        for _ in range(WARM_UP):
            trainer.train_one_step()
        watch = Stopwatch(torch.device(setup.device).type == "cuda")
        trainer.batches = _Watched(live_batches(trainer), watch)
        places: list[tuple[object, str, str]] = [
            (trainer, "_forward", "forward"),
            (trainer.optimizer, "add_gradients", "backward"),
            (trainer.optimizer, "move_weights", "optimizer"),
        ]
        for owner, method, name in places:
            setattr(owner, method, watch.around(name, getattr(owner, method)))
        reset_peak()
        seconds = [timed(trainer.train_one_step) for _ in range(steps)]
        row = summary(Timing(seconds, peak_mib()), 2 * setup.batch, name="parts", **setup.labels(trainer))
        names = ("data_wait", "forward", "backward", "optimizer")
        parts_ms = {name: watch.take(name) for name in names}
        rest = [1000 * total - sum(part_ms) for total, *part_ms in zip(seconds, *parts_ms.values(), strict=True)]
        middle = {name: statistics.median(values) for name, values in (parts_ms | {"rest": rest}).items()}
        middle["data_wait"] = statistics.mean(parts_ms["data_wait"])
        return row | {f"{name}_ms": significant(values) for name, values in middle.items()}


def _block(trainer: Trainer, steps: int) -> tuple[float, float]:
    """Seconds and CPU seconds of a step, the mean of some, after what was made ahead is used up."""
    for _ in range(WARM_UP):
        trainer.train_one_batch()
    cpu_start = cpu_seconds()
    seconds = timed(lambda: [trainer.train_one_batch() for _ in range(steps)])
    return seconds / steps, (cpu_seconds() - cpu_start) / steps


def live(setup: Setup, steps: int, pairs: int, cuda_graph: str = "auto") -> list[dict]:
    """The rows of live augmentation and of one fixed batch."""
    with opened(setup, "live", graphed=cuda_graph == "auto") as trainer:
        batches = trainer.batches
        # The fixed batch may be written over by live ones, where these lie in a few memories in turn: the same work.
        sources: dict[str, Iterator[Batch]] = {"live": batches, "fixed": itertools.repeat(next(batches))}
        blocks_of: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
        reset_peak()
        for turn in range(pairs + 1):
            for name, source in sources.items():
                trainer.batches = source
                block = _block(trainer, steps)
                if turn:  # the first is for warming up
                    blocks_of[name].append(block)
        peak = peak_mib()
        slower = [live[0] / fixed[0] - 1 for live, fixed in zip(blocks_of["live"], blocks_of["fixed"])]
        low, middle, high = (significant(part) for part in statistics.quantiles(slower, method="inclusive"))
        rows = []
        for name, blocks_of_name in blocks_of.items():
            timing = Timing([seconds for seconds, _ in blocks_of_name], peak)
            rows.append(summary(timing, 2 * setup.batch, name=name, steps_each=steps, **setup.labels(trainer)))
            rows[-1]["cuda_graph"] = cuda_graph
            rows[-1]["cpu_ms"] = significant(1000 * statistics.median(cpu for _, cpu in blocks_of_name))
        rows[0] |= {"slower": middle, "slower_iqr": [low, high]}
        return rows


FASTER: dict[str, dict[str, bool]] = {
    "graphed": {},
    "compiled": {"compiled": True, "graphed": False},
    "both": {"compiled": True},
}


def faster(setup: Setup, name: str, steps: int, pairs: int) -> dict:
    """The row of one of FASTER beside a run that launches operation by operation."""
    with opened(setup, f"eager_{name}", graphed=False) as eager, opened(setup, name, **FASTER[name]) as fast:
        seconds_of = {trainer: [_block(trainer, steps)[0] for _ in range(pairs + 1)][1:] for trainer in (eager, fast)}
        timing = Timing(seconds_of[fast], peak_mib())
        row = summary(timing, 2 * setup.batch, name=name, steps_each=steps, **setup.labels(fast))
        fast.batches = itertools.repeat(next(fast.batches))
        row["host_ms"] = significant(1000 * _launch_seconds(fast, steps))
        return row | {
            "faster": significant(statistics.median(a / b for a, b in zip(seconds_of[eager], seconds_of[fast])))
        }


def _launch_seconds(trainer: Trainer, steps: int) -> float:
    """Seconds until the host is done with a step, whose batch is there, and may begin the next one."""
    seconds = []
    for _ in range(steps):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        trainer.train_one_batch()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def logging(setup: Setup, steps: int, repeats: int) -> dict:
    """The row of what logs, loss lines and the preview cost. steps: behind every loss line."""
    with opened(setup, "logged", logs=True) as trainer:
        trainer.run.progress.interval_s = float("inf")
        trainer.run.save_interval = trainer.run.snapshot_interval = 10**9  # a checkpoint is no log
        (setup.folder / "logged").mkdir(exist_ok=True)
        writer = next(observer for observer in trainer.run.observers if isinstance(observer, PreviewWriter))
        trainer.train_one_step()
        reports, previews, step_seconds = [], [], []

        def some_steps() -> None:
            for _ in range(steps):
                trainer.train_one_step()

        for _ in range(repeats):
            step_seconds.append(timed(some_steps) / steps)
            reports.append(timed(lambda: trainer._show_losses(wait=True)))
            previews.append(timed(lambda: writer.on_save(trainer.step)))
        step, report, preview = map(statistics.median, (step_seconds, reports, previews))
        per_step = report / steps + preview / SAVES  # a report writes a line of the log for every step
        row = summary(Timing(step_seconds, peak_mib()), 2 * setup.batch, name="logging", **setup.labels(trainer))
        return row | {
            "steps_each": steps,
            "report_ms": significant(1000 * report),
            "preview_ms": significant(1000 * preview),
            "save_interval": SAVES,
            "share": significant(per_step / (step + per_step)),
        }


def first_step(setup: Setup, number: int, threads: int) -> tuple[float, float, int]:
    """Seconds from the request to the end of the first step, the peak in MiB, and how many faces there are."""
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    with opened(setup, f"start{number}", logs=True) as trainer:
        timed(trainer.train_one_step)
        seconds = time.perf_counter() - begun
        return seconds, peak_mib(), sum(side["faces"] for side in trainer.run.state["data"].values())


def start(setup: Setup, repeats: int) -> dict:
    """The row of a restart, in processes of their own."""
    threads = torch.get_num_threads()
    starts = [alone(first_step, setup, number, threads) for number in range(repeats)]
    timing = Timing([seconds for seconds, *_ in starts], max(peak for _, peak, _ in starts))
    labels = {"model": setup.model, "size": 64, "device": setup.device, "faces": starts[0][2]}
    return summary(timing, 2 * setup.batch, name="start", **labels)


def blocks(step: float, batches_per_call: int, block_s: float = BLOCK_S, pairs: int | None = None) -> tuple[int, int]:
    """Return the number of steps of a timed block, and the number of pairs of blocks.

    step: seconds of one. batches_per_call: a block is a multiple of it, so that every block pays for its batches.
    block_s: seconds of a block, about. pairs: by default by how long they take
    """
    calls = max(1, min(400 // batches_per_call, round(block_s / step / batches_per_call)))
    block = batches_per_call * calls
    return block, pairs or (PAIRS if block * step < 2 * block_s else FEW_PAIRS)


@dataclass(frozen=True)
class Extent:
    """How much is measured. block, pairs: see ``blocks``. logged: steps behind a loss line."""

    block: int
    pairs: int
    logged: int
    repeats: int


def extent_of(setup: Setup, quick: bool, block_s: float, pairs: int | None) -> Extent:
    """Return the extent that suits the speed of a model's step."""
    with opened(setup, "probe") as trainer:
        trainer.train_one_step()
        step = timed(trainer.train_one_step)
        batches_per_call = setup.batches_per_call(trainer)
    if quick:
        return Extent(block=1, pairs=2, logged=2, repeats=1)
    block, pairs = blocks(step, batches_per_call, block_s, pairs)
    return Extent(block, pairs, logged=max(2, min(400, round(LOGGED_S / step))), repeats=5)


ROWS = ("parts", "live", *FASTER, "logging", "start")


def measure(
    setup: Setup, row: str, extent: Extent, threads: Sequence[int], cuda_graphs: Sequence[str]
) -> Iterator[dict]:
    """Yield the rows of one of ROWS, of one model and batch."""
    if row == "parts":
        yield parts(setup, 2 if extent.repeats == 1 else min(extent.block * 4, 200))
    elif row == "live":
        default = torch.get_num_threads()
        try:
            for cuda_graph in cuda_graphs:
                for count in threads:
                    torch.set_num_threads(count)
                    yield from live(setup, extent.block, extent.pairs, cuda_graph)
        finally:
            torch.set_num_threads(default)
    elif row in FASTER and setup.device == "cuda":
        yield faster(setup, row, extent.block, extent.pairs)
    elif row == "logging":
        yield logging(setup, extent.logged, extent.repeats)
    elif row == "start":
        yield start(setup, extent.repeats)


def main() -> None:
    """Run the benchmark."""
    flags = parser("Training steps: their parts, and what is around them")
    flags.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["tiny", "original"])
    flags.add_argument("--batch", type=int, nargs="+", default=[16], help="faces per side; default 16")
    flags.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="of what; default all")
    flags.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    flags.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    flags.add_argument("--threads", type=int, nargs="+", help="of torch, for the rows live; default as torch has it")
    flags.add_argument("--cuda-graph", nargs="+", choices=("auto", "off"), default=["auto"], help="for the rows live")
    flags.add_argument("--block", type=float, default=BLOCK_S, help="seconds of a timed block; default 1")
    flags.add_argument("--pairs", type=int, help=f"of blocks; default {PAIRS}, or {FEW_PAIRS} where a step is slow")
    options = flags.parse_args()
    if options.device == "cuda":
        leave_without_gpu()
    device = pick_device(options.device).type
    faces = 12 if options.quick else FACES
    results = Results(options.json)
    threads = options.threads or [torch.get_num_threads()]
    with TemporaryDirectory() as folder:
        synthesize(Path(folder) / "faces", faces=faces, size=128, pairs=0, seed=1, workers=available_cores())
        setups = [
            Setup(Path(folder), model, batch, device, options.precision)
            for model in options.models
            for batch in options.batch
        ]
        extents = {setup: extent_of(setup, options.quick, options.block, options.pairs) for setup in setups}
        for row in options.rows:
            for setup, extent in extents.items():
                for measured in measure(setup, row, extent, threads, options.cuda_graph):
                    results.add(measured)


if __name__ == "__main__":
    main()
