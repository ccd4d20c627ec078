"""What each model costs: parameters and work, counted, and the largest batch of a GPU, estimated."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from swapfast.batch import SIDES
from swapfast.config import ModelConfig, OptimizerConfig
from swapfast.models.autoencoder import FaceAutoencoder
from swapfast.models.registry import MODELS, plan_model
from swapfast.models.side_statistics import PLAIN
from swapfast.recipes import own_settings

GPU_GIB = (8, 16, 24, 80)
PASSES = 3  # the work of a training step in forward passes: the gradients of pictures and of weights take one each
_TRAINED_BYTES = 4 * 4  # a parameter, its gradient, and Adam's two averages, float32
_COPY_BYTES = 2  # of each parameter in bf16
_AVERAGE_BYTES = 4  # of each parameter, float32, for each half-life of --ema
_KEPT_BYTES = 2  # of each number that is kept for the gradients, bf16
_BESIDE = 1.5  # what the losses keep, gradients of pictures, workspaces and gaps, as a factor
_CONTEXT_GIB = 0.8  # CUDA's own, and the libraries'


@dataclass(frozen=True)
class ModelFigures:
    """What a model costs at one size.

    name: as -t takes it. size: px in and out. parameters: number of them, without a learned mask. gflop: 10^9 floating
    point operations to train on a face, and cycle_gflop with ``--cycle-weight``. trained_gib: weights, gradients and
    Adam's state in float32. largest_batch: by GiB of a GPU, faces per side in bf16, an estimate, 0 where not even one
    fits. purpose: what it is for.
    """

    name: str
    size: int
    parameters: int
    gflop: float
    cycle_gflop: float
    trained_gib: float
    largest_batch: dict[int, int]
    purpose: str

    def to_dict(self) -> dict:
        """Return what the JSON says."""
        return asdict(self)


def measure(config: ModelConfig, purpose: str = "", cycles: bool = False, averages: int = 0) -> ModelFigures:
    """Return the figures of the network that ``config`` names; nothing is computed and no memory is taken.

    cycles: count the largest batch for a training with ``--cycle-weight``. averages: and for so many of the weights
    beside them (``--ema``).
    """
    with torch.device("meta"):
        model = plan_model(config, learn_mask=False)
    own, kept = _forward_work(model, cycles=False)
    cycle_work, kept_of_both = _forward_work(model, cycles=True)
    swap = cycle_work - 2 * own  # has no gradients; the way back takes as much as the way there
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelFigures(
        config.name,
        model.input_size,
        parameters,
        PASSES * own / len(SIDES) / 1e9,
        (2 * PASSES * own + swap) / len(SIDES) / 1e9,
        parameters * _TRAINED_BYTES / 2**30,
        {gib: _largest_batch(gib, parameters, kept_of_both if cycles else kept, averages) for gib in GPU_GIB},
        purpose,
    )


def _forward_work(model: FaceAutoencoder, cycles: bool) -> tuple[int, int]:
    """Return the operations of a pass of one face a side, and how many numbers it keeps for the gradients."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        owner = tensor if tensor._base is None else tensor._base  # dense layers keep a view of their weights
        kept += 0 if isinstance(owner, nn.Parameter) else tensor.numel()
        return tensor

    faces = [torch.empty(1, 3, model.input_size, model.input_size, device="meta") for _ in SIDES]
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(faces, cycles=cycles)
    return counter.get_total_flops(), kept


def _largest_batch(gib: int, parameters: int, kept_numbers: int, averages: int) -> int:
    """Return how many faces of each side fit. kept_numbers: numbers that one of each keeps for the gradients."""
    of_a_parameter = _TRAINED_BYTES + _COPY_BYTES + averages * _AVERAGE_BYTES
    room = (gib - _CONTEXT_GIB) * 2**30 - parameters * of_a_parameter
    return max(0, int(room / (kept_numbers * _KEPT_BYTES * _BESIDE)))


def all_figures() -> list[ModelFigures]:
    """Return the figures of every model at its usual sizes, trained by its own recipe."""
    return [
        _figures(entry.example or name, size, "input_size" in entry.options, entry.purpose)
        for name, entry in MODELS.items()
        for size in entry.sizes
    ]


def _figures(name: str, size: int, has_sizes: bool, purpose: str) -> ModelFigures:
    own = own_settings(name)
    config = ModelConfig(name=name, code=str(own.get("model.code", PLAIN)))
    if has_sizes:
        config = dataclasses.replace(config, input_size=size)
    averages = OptimizerConfig(ema=str(own.get("optimizer.ema", "off"))).half_lives
    return measure(config, purpose, bool(own.get("loss.cycle_weight")), len(averages))


def describe(figures: list[ModelFigures]) -> str:
    """Return the figures as a table, each model's purpose below."""
    batches = "".join(f"{f'{gib} GiB':>8}" for gib in GPU_GIB)
    lines = [
        f"{'model':<12} {'px':>4} {'parameters':>12} {'GFLOP a face':>13} {'with cycle':>11} {'GiB trained':>12}  "
        f"largest -b on {batches}"
    ]
    for row in figures:
        numbers = "".join(f"{batch or '-':>8}" for batch in row.largest_batch.values())
        lines.append(
            f"{row.name:<12} {row.size:>4} {row.parameters:>12,} {row.gflop:>13.1f} {row.cycle_gflop:>11.1f} "
            f"{row.trained_gib:>12.2f}{'':<16}{numbers}"
        )
    lines += ["", *(f"{row.name:<12} {row.purpose}" for row in {row.name: row for row in figures}.values())]
    lines += [
        "",
        "GFLOP: to train on a face, without --cycle-weight and with it. GiB trained: weights, gradients and Adam's "
        "averages in float32. The largest batch per side is an estimate for bf16 and the model's own recipe; no GPU "
        "was asked.",
        "Letters behind df and liae: u normalises the features, d makes the picture of four, t adds layers, c changes "
        "the activation.",
    ]
    return "\n".join(lines)
