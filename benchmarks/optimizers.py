"""Measures what moving the weights costs, beside a whole training step of the same model.

    python -m benchmarks.optimizers --json benchmarks/results/optimizers_MACHINE.json

Rows, all of the model's weights at once, batch = faces of both sides per step:
    train_step  forward, loss, backward and adam's step, on one batch over and over
    optimizer   a step alone, the check that loss and gradients are finite included; ratio_to_adam from pairs taken in
                turn. torch_adam is torch.optim.Adam as it comes, without that check
    clip        adam's step with each way of clipping; added_ms from pairs with no clipping, taken in turn, and
                share_of_train_step. torch_clip_grad_norm is torch's own function before torch_adam
    ema         EVERY steps of the weights' averages, of which the last one moves them, for one half-life and for three;
                share_of_train_step is that of one step
The gradients lie ready; clipping makes them smaller once. Autoclip's history is full: it looks back on 10 000 norms.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.common import Results, Timing, compare, parser, significant, summary
from pipelines.run.plan import loss_collator
from swapfast.batch import SIDES, Batch, BatchMeta
from swapfast.config import OPTIMIZER_NAMES, ModelConfig, OptimizerConfig, TrainConfig
from swapfast.device import pick_device, pick_precision
from swapfast.models import FaceAutoencoder, build_model
from swapfast.optim.clip import METHODS
from swapfast.optim.optimizer import Optimizer
from swapfast.training.averages import DENSE_STEPS, EVERY, WeightAverages
from swapfast.training.trainer import Trainer

RATE = 1e-6  # small, so that hundreds of steps along one gradient leave the weights where they are
HISTORY = 10000
Call = Callable[[], object]


def make_batch(model: FaceAutoencoder, per_side: int, device: torch.device) -> Batch:
    """Noise of the right shapes."""
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.rand(per_side, 3, model.input_size, model.input_size, generator=generator) for _ in SIDES]
    targets = [torch.rand(per_side, 2, 3, size, size, generator=generator) for size in model.output_sizes]
    masks = [torch.rand(per_side, 2, 1, size, size, generator=generator) for size in model.output_sizes]
    return Batch(inputs, targets, BatchMeta(masks, masks, masks), 0).to(device)


def train_step(model: FaceAutoencoder, batch: Batch, config: TrainConfig) -> Call:
    """A whole step as training makes it."""
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=RATE), config.precision == "fp16")
    device = batch.inputs[0].device
    loss, precision = loss_collator(config, model).to(device), pick_precision(config.precision, device)
    trainer = Trainer(model, loss, optimizer, itertools.repeat(batch), precision=precision)
    return trainer.train_one_batch


class Stepper:
    """Steps of a model's weights along gradients that lie ready."""

    def __init__(self, model: FaceAutoencoder) -> None:
        self.model = model
        self.parameters = list(model.parameters())
        generator = torch.Generator().manual_seed(2)
        self.gradients: list[Tensor] = []
        for parameter in self.parameters:
            gradient = torch.empty_like(parameter, requires_grad=False)
            self.gradients.append(gradient.copy_(torch.randn(parameter.shape, generator=generator) * 1e-3))
        self.device = self.parameters[0].device

    def _give(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient

    def ours(self, name: str = "adam", clip: str = "none") -> Call:
        """Our optimizer ``name`` with this clipping."""
        config = OptimizerConfig(
            optimizer=name, learning_rate=RATE, gradient_clipping=clip, clipping_value=1.0, autoclip_history=HISTORY
        )
        optimizer = Optimizer(self.model, config)
        if clip == "autoclip":
            full = {"ring": torch.rand(HISTORY) + 1, "seen": torch.tensor(HISTORY)}
            optimizer.load_state_dict({f"@clip.{key}": value for key, value in full.items()})

        def step() -> None:
            self._give()
            # A loss without a weight in it: the gradients are there.
            optimizer.backward(torch.zeros((), device=self.device, requires_grad=True))
            optimizer.step()

        return step

    def torchs(self, clip: bool = False) -> Call:
        """torch's fused Adam as it comes, after torch's clipping to a norm or not."""
        optimizer = torch.optim.Adam(self.parameters, lr=RATE, fused=True)

        def step() -> None:
            self._give()
            if clip:
                torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


def _pairs(baseline: Timing, changed: Timing) -> tuple[float, float]:
    """Return the medians over pairs taken in turn of changed - baseline in ms, and of changed / baseline."""
    pairs = list(zip(baseline.seconds, changed.seconds))
    return 1000 * statistics.median(b - a for a, b in pairs), statistics.median(b / a for a, b in pairs)


def measure(
    model_name: str, per_side: int, device: torch.device, config: TrainConfig, repeats: int, names: Sequence[str]
) -> Iterator[dict]:
    """Yield all rows."""
    model = build_model(ModelConfig(name=model_name), False, 1)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it
    faces = 2 * per_side
    labels = {"model": model_name, "size": model.output_sizes[-1], "device": device.type}
    step = compare({"step": train_step(model, make_batch(model, per_side, device), config)}, repeats, 1)["step"]
    yield summary(step, faces, name="train_step", precision=config.precision, **labels)
    step_ms = 1000 * statistics.median(step.seconds)

    stepper = Stepper(model)
    for name in (*(n for n in names if n != "adam"), "torch_adam"):
        candidate = stepper.torchs() if name == "torch_adam" else stepper.ours(name)
        timings = compare({"adam": stepper.ours(), name: candidate}, 3 * repeats)
        _, ratio = _pairs(timings["adam"], timings[name])
        shares = _shared({"ratio_to_adam": ratio}, timings[name], step_ms)
        yield summary(timings[name], faces, name="optimizer", optimizer=name, **labels) | shares
    shares = _shared({"ratio_to_adam": 1.0}, timings["adam"], step_ms)
    yield summary(timings["adam"], faces, name="optimizer", optimizer="adam", **labels) | shares
    del candidate, timings
    for method in (*METHODS, "torch_clip_grad_norm"):
        theirs = method == "torch_clip_grad_norm"
        plain, clipped = stepper.ours(), stepper.torchs(clip=True) if theirs else stepper.ours(clip=method)
        timings = compare({"plain": plain, "clipped": clipped}, 3 * repeats)
        added, _ = _pairs(timings["plain"], timings["clipped"])
        shares = {"added_ms": significant(added), "share_of_train_step": significant(added / step_ms)}
        yield summary(timings["clipped"], faces, name="clip", method=method, **labels) | shares

    for half_lives in ((500,), (500, 4000, 30000)):
        timing = compare({"ema": averaging(model, half_lives)}, 3 * repeats)["ema"]
        share = 1000 * statistics.median(timing.seconds) / EVERY / step_ms
        about = {"half_lives": len(half_lives), "share_of_train_step": significant(share)}
        yield summary(timing, EVERY * faces, name="ema", **labels) | about


def averaging(model: FaceAutoencoder, half_lives: Sequence[int]) -> Call:
    """What EVERY steps add to their own work where averages are kept."""
    averages, moved = WeightAverages(model, half_lives), torch.tensor(False, device=next(model.parameters()).device)
    numbers = itertools.count(DENSE_STEPS + 1)

    def steps() -> None:
        for _ in range(EVERY):
            averages.add_step(next(numbers), moved)

    return steps


def _shared(values: dict[str, float], timing: Timing, step_ms: float) -> dict:
    share = 1000 * statistics.median(timing.seconds) / step_ms
    return {key: significant(value) for key, value in values.items()} | {"share_of_train_step": significant(share)}


def main() -> None:
    """See the module."""
    flags = parser("Step time per optimizer and the cost of clipping")
    flags.add_argument("--model", default="original", help="default original")
    flags.add_argument("--batch", type=int, default=16, help="faces per side; default 16")
    flags.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the training step")
    flags.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    flags.add_argument("--optimizers", nargs="+", choices=OPTIMIZER_NAMES, default=OPTIMIZER_NAMES)
    flags.add_argument("--repeats", type=int, default=9)
    options = flags.parse_args()
    repeats = 1 if options.quick else options.repeats
    config = dataclasses.replace(TrainConfig(), precision=options.precision)
    results = Results(options.json)
    for row in measure(options.model, options.batch, pick_device(options.device), config, repeats, options.optimizers):
        results.add(row)


if __name__ == "__main__":
    main()
