"""Run the fused augmentation in a process of its own: ``TRITON_INTERPRET`` has to be set before Triton is imported.

python -m tests.augment.fused_process results.pt cpu
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor

from pipelines.augmenters import make_augmenter
from pipelines.doctor import compare_fused
from swapfast.augment.fused import amounts, operators
from swapfast.augment.fused.augmenter import FusedAugmenter
from swapfast.augment.fused.rows import StoredRows
from tests.augment.fused_cases import make_cases


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
    rows, packed = torch.zeros(n, dtype=torch.int64, device=device), torch.zeros((n, amounts.NODES + 50), device=device)
    packed[:, amounts.GRID : amounts.LIMIT + 1] = 2
    packed[:, amounts.TILE] = size / 2
    packed[:, amounts.PER_TILE] = 2 / size
    steps, levels, light = (
        torch.from_numpy(make()).to(device)
        for make in (amounts.steps_of_quarters, amounts.level_bytes, amounts.light_of_quarters)
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


def _check_verified(case: dict, device: torch.device) -> None:
    """See that what compares the kernels with kornia keeps them, and that the doctor does."""
    arguments = [_moved(case[name], device) for name in ("faces", "extra_masks", "draws")]
    lines: list[str] = []
    augment = make_augmenter("triton", **case["make"], device=device, warn=lines.append)
    result, fused = augment(*arguments), FusedAugmenter(**case["make"])(*arguments)
    rows = torch.tensor([0], device=device)
    again = augment(StoredRows(arguments[0], rows), StoredRows(arguments[1], rows), arguments[2])
    assert torch.equal(again.feed, result.feed) and augment.is_fused and not lines, lines
    result.feed.zero_()
    assert augment(*arguments, out=result) is result and torch.equal(again.feed, result.feed)
    assert torch.equal(result.feed, fused.feed) and not torch.equal(result.feed, augment.reference(*arguments).feed)
    report = compare_fused(device, size=32, count=1)
    assert report["problem"] is None and min(report["feed"], report["target"], report["masks"]) > 60, report


def main() -> None:
    results, device = sys.argv[1:]
    warnings.simplefilter("ignore", RuntimeWarning)  # logarithms of what is not taken
    _check_operators(torch.device(device))
    cases = make_cases()
    _check_verified(cases.pop("verified"), torch.device(device))
    torch.save({name: _results(case, torch.device(device)) for name, case in cases.items()}, results)


if __name__ == "__main__":
    main()
