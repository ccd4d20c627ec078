"""What a training step in bf16 launches, and how much of it only casts weights and gradients: counted, without a clock.

    python -m benchmarks.step_cost --model original

Kernels are PyTorch's operations that are not views (``benchmarks/graph_cost.py``), on the CPU: a GPU's are the same but
for the optimizer's. Casts are those between float32 and bfloat16; their bytes are what they read and write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from benchmarks.common import parser, save, show
from benchmarks.graph_cost import Operations
from swapfast.batch import BatchMeta
from swapfast.config import ModelConfig, OptimizerConfig
from swapfast.losses import LossCollator
from swapfast.models import MODELS, build_model
from swapfast.optim.optimizer import Optimizer


class Casts(Operations):
    """Counts casts between float32 and bfloat16 beside all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.casts = self.cast_bytes = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        is_copy = func.overloadpacket.__name__ == "_to_copy"
        if is_copy and {args[0].dtype, result.dtype} == {torch.float32, torch.bfloat16}:
            self.casts += 1
            self.cast_bytes += args[0].nbytes + result.nbytes
        return result


def step_cost(name: str) -> list[dict]:
    """Return a row for each part of a step of the model after its first, with one face a side."""
    model = build_model(ModelConfig(name=name), False, 1)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it
    optimizer = Optimizer(model, OptimizerConfig())
    loss = LossCollator(["ssim", "mse"], [1.0, 1.0], "bgr", False, 1, 1, min(model.output_sizes))
    inputs = [torch.rand(1, 3, model.input_size, model.input_size) for _ in range(2)]
    targets = [torch.rand(1, 3, size, size) for size in model.output_sizes]
    for _ in range(2):  # the first makes averages and tables
        counted = {part: Casts() for part in ("forward", "loss", "backward", "optimizer")}
        with counted["forward"], torch.autocast("cpu", torch.bfloat16):
            outputs = model(inputs)
        with counted["loss"]:
            sides = [loss(targets, [p.float() for p in predictions], BatchMeta()).total for predictions in outputs]
            total = sides[0] + sides[1]
        with counted["backward"]:
            optimizer.add_gradients(total)
        with counted["optimizer"]:
            optimizer.move_weights()
        optimizer.count_batch(optimizer.report, [])
    return [
        {"part": part, "model": name, "kernels": len(c.launches), "casts": c.casts, "cast_bytes": c.cast_bytes}
        for part, c in counted.items()
    ]


def main() -> None:
    flags = parser("launches and casts of a training step in bf16")
    flags.add_argument("--model", choices=sorted(MODELS), nargs="+", default=["original"])
    arguments = flags.parse_args()
    results = [row for name in arguments.model for row in step_cost(name)]
    show(results)
    save(results, arguments.json)


if __name__ == "__main__":
    main()
