"""What a training step of each registered model takes, beside its work and what the machine makes of matrix products.

    python -m benchmarks.models --json benchmarks/results/models_MACHINE.json

Rows for each model and size, one for each layout of pictures and weights in memory, written as they are measured:
    plain, channels_last    a step on a fixed batch of random pictures: forward, loss, backward, Adam, as ``Trainer``
                            makes it, one operation at a time. The two and a matrix product take turns
    gflop                   of the model in a step, counted (``swapfast models``), without loss and optimizer
    share                   the step's rate as a share of the matrix product's, the turns' median and quartiles
    faster                  channels_last: plain's time as a multiple of it, the median of the turns
    peak_mib                what a new process takes for model, optimizer and two steps, beyond its imports
The batch is what keeps a step near --gflop, at least one face a side; steps of more than 200 GFLOP are repeated less.
On a GPU the product and the model are in --precision. Small models come first.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.common import (
    Results,
    Timing,
    alone,
    compare,
    own_mib,
    parser,
    peak_mib,
    reset_peak,
    significant,
    summary,
)
from swapfast.batch import SIDES, Batch, BatchMeta
from swapfast.config import ModelConfig, OptimizerConfig
from swapfast.device import Precision, pick_device
from swapfast.losses import LossCollator
from swapfast.models import MODELS, build_model
from swapfast.models.figures import measure
from swapfast.optim.optimizer import Optimizer
from swapfast.training.trainer import Trainer

LAYOUTS = {"plain": torch.contiguous_format, "channels_last": torch.channels_last}
REPEATS, HEAVY_REPEATS, FEW_REPEATS = 7, 3, 2
HEAVY_GFLOP = 200.0  # work of a step from which there are fewer repeats
MOST_FACES = 16  # a side
MATRIX = 2048  # rows and columns of the product that the rate is taken from


@dataclass(frozen=True)
class Setup:
    """A model at one size and how it is trained."""

    config: ModelConfig
    batch: int
    device: str
    precision: Precision

    def trainer(self, layout: str) -> Trainer:
        """Return a trainer that has the same batch for ever."""
        format = LAYOUTS[layout]
        model = build_model(self.config, False, 1)
        model.to(self.device, memory_format=format)  # type: ignore[call-overload]  # torch has it
        loss = LossCollator(["ssim", "mse"], [1.0, 1.0], model.color_order, True, 1, 1, min(model.output_sizes))
        size = model.input_size
        inputs = [torch.rand(self.batch, 3, size, size, device=self.device).to(memory_format=format) for _ in SIDES]
        targets = [torch.rand(self.batch, 2, 3, edge, edge, device=self.device) for edge in model.output_sizes]
        masks = [torch.ones(self.batch, 2, 1, edge, edge, device=self.device) for edge in model.output_sizes]
        batch = Batch(inputs, targets, BatchMeta(masks), 0)
        optimizer = Optimizer(model, OptimizerConfig(), self.precision == "fp16")
        return Trainer(model, loss, optimizer, itertools.repeat(batch), precision=self.precision)


def memory_of(setup: Setup, layout: str) -> float:
    """Return the MiB that two steps take at most, beyond what this process has now."""
    gc.collect()
    before = 0.0 if setup.device == "cuda" else own_mib() or 0.0
    reset_peak()
    trainer = setup.trainer(layout)
    for _ in range(2):
        trainer.train_one_batch()
    return peak_mib(setup.device == "cuda") - before


def matrix_product(device: str, precision: str) -> Callable[[], object]:
    """Return what multiplies two matrices; ``MATRIX`` ** 3 products and as many sums."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    one, other = (torch.rand(MATRIX, MATRIX, device=device, dtype=kind) for _ in range(2))
    return lambda: one @ other


def rows_of(setup: Setup, repeats: int) -> list[dict]:
    """Return a row for each layout."""
    figures = measure(setup.config)
    faces = len(SIDES) * setup.batch
    trainers = {layout: setup.trainer(layout) for layout in LAYOUTS}
    calls: dict[str, Callable[[], object]] = {name: trainer.train_one_batch for name, trainer in trainers.items()}
    timings = compare({**calls, "product": matrix_product(setup.device, setup.precision)}, repeats, warm_up=1)
    product_gflops = [2 * MATRIX**3 / 1e9 / seconds for seconds in timings["product"].seconds]
    rows = []
    for layout in LAYOUTS:
        seconds = timings[layout].seconds
        shares = [figures.gflop * faces / s / rate for s, rate in zip(seconds, product_gflops, strict=True)]
        row = summary(
            Timing(seconds, alone(memory_of, setup, layout)),
            faces,
            part=layout,
            model=setup.config.name,
            size=figures.size,
            device=setup.device,
            precision=setup.precision,
            threads=torch.get_num_threads(),
        )
        row |= {
            "parameters": figures.parameters,
            "gflop": round(figures.gflop * faces, 1),
            "product_gflops": significant(statistics.median(product_gflops)),
            "share": significant(statistics.median(shares)),
            "share_iqr": [significant(quartile) for quartile in _quartiles(shares)],
        }
        if layout == "channels_last":
            ratios = [plain / s for plain, s in zip(timings["plain"].seconds, seconds, strict=True)]
            row |= {
                "faster": significant(statistics.median(ratios)),
                "faster_iqr": [significant(quartile) for quartile in _quartiles(ratios)],
            }
        rows.append(row)
    return rows


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def main() -> None:
    flags = parser("step time, memory and share of the matrix rate of each model")
    flags.add_argument("--model", choices=sorted(MODELS), nargs="+", default=list(MODELS))
    flags.add_argument("--largest", type=int, default=256, metavar="PX", help="leave out larger sizes; default 256")
    flags.add_argument("--gflop", type=float, default=50.0, help="work of a step to aim at; default 50")
    flags.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    flags.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    arguments = flags.parse_args()
    device = pick_device(arguments.device).type
    results = Results(arguments.json)
    sizes = [(size, name) for name in arguments.model for size in MODELS[name].sizes if size <= arguments.largest]
    for size, name in sorted(sizes, key=lambda pair: pair[0]):
        entry = MODELS[name]
        config = ModelConfig(name=entry.example or name)
        if "input_size" in entry.options:
            config = dataclasses.replace(config, input_size=size)
        gflop = len(SIDES) * measure(config).gflop
        batch = max(1, min(MOST_FACES, int(arguments.gflop / gflop)))
        repeats = HEAVY_REPEATS if batch * gflop > HEAVY_GFLOP else REPEATS
        setup = Setup(config, batch, device, arguments.precision)
        for row in rows_of(setup, FEW_REPEATS if arguments.quick else repeats):
            results.add(row)


if __name__ == "__main__":
    main()
