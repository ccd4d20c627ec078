"""Run the fused augmentation in a process of its own: ``TRITON_INTERPRET`` has to be set before Triton is imported.

    python -m tests.augment.fused_process cases.pt results.pt cpu

A case is what ``FusedAugmenter`` takes: {"make": {...}, "faces", "extra_masks", "draws", "rows"}.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor

from swapfast.augment.fused import amounts, operators
from swapfast.augment.fused.augmenter import FusedAugmenter


def _moved(value, device: torch.device):
    return value.to(device) if isinstance(value, Tensor) else value


def _results(case: dict, device: torch.device) -> list[Tensor]:
    augment = FusedAugmenter(**case["make"])
    arguments = [_moved(case.get(name), device) for name in ("faces", "extra_masks", "draws", "rows")]
    result = augment(*arguments)
    tensors = [result.feed, *result.targets, *(result.masks or [])]
    if case.get("twice"):  # into the memory of the first, which is overwritten
        wanted = [tensor.clone() for tensor in tensors]
        for tensor in tensors:
            tensor.fill_(7)
        again = augment(*arguments, out=result)
        assert again is result and all(map(torch.equal, tensors, wanted))
    return [tensor.cpu() for tensor in tensors]


def _check_operators(device: torch.device) -> None:
    """Let torch check schemas, mutated arguments and the kernels for tensors without values."""
    n, size = 1, 32
    face = torch.randint(0, 256, (n, size, size, 4), dtype=torch.uint8, device=device)
    rows, packed = torch.zeros(n, dtype=torch.int64, device=device), torch.zeros((n, 66), device=device)
    packed[:, 7:9] = 2
    steps, levels, light = (
        torch.from_numpy(make()).to(device)
        for make in (amounts.steps_of_quarters, amounts.levels_of_luminance, amounts.light_of_quarters)
    )
    curves = torch.zeros((n, 4, 256), dtype=torch.uint8, device=device)
    colors = torch.zeros((n, size, size), dtype=torch.int32, device=device)
    image = torch.zeros((n, size, size, 3), device=device).permute(0, 3, 1, 2)
    masks = torch.zeros((n, 1, size, size), device=device)
    no_masks = face.new_empty(0)
    tests = ("test_schema", "test_faketensor")
    for operator, arguments in (
        (operators.curves, (face, rows, packed, steps, levels, curves)),
        (
            operators.color,
            (face, no_masks, rows, packed, steps, levels, light, curves, colors, colors.clone()),
        ),
        (operators.geometry, (colors, colors.clone(), packed, image, image.clone(), masks, False)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=tests)


def main() -> None:
    cases, results, device = sys.argv[1:]
    warnings.simplefilter("ignore", RuntimeWarning)  # logarithms of what is not taken
    _check_operators(torch.device(device))
    loaded = torch.load(cases, weights_only=False)
    torch.save({name: _results(case, torch.device(device)) for name, case in loaded.items()}, results)


if __name__ == "__main__":
    main()
