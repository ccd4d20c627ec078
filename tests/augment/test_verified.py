"""What stands between the fused kernels and a run: a comparison on its first faces, a line where they are not used."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from pipelines.augmenters import make_augmenter
from pipelines.doctor import compare_fused, describe, examine
from swapfast.augment.draws import draw
from swapfast.augment.fused.rows import StoredRows
from swapfast.augment.fused.verified import VerifiedAugmenter, compare
from swapfast.device import pick_backend
from swapfast.errors import SwapfastError
from tests.augment.slow_references import mask_images, pictures

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch() -> tuple:
    faces, masks = pictures(10, 32, 4), mask_images(10, 1, 32)
    return torch.from_numpy(faces), torch.from_numpy(masks), draw(1, np.arange(10), 0, 32)


def test_rows_of_a_store_are_gathered_for_kornia(batch):
    faces, masks, draws = batch
    rows, lines = torch.tensor([7, 2, 2]), []
    augment = make_augmenter("triton", 32, 32, [32], CPU, warn=lines.append)
    result = augment(StoredRows(faces, rows), StoredRows(masks, rows), draws[:3])
    wanted = make_augmenter("kornia", 32, 32, [32], CPU)(faces[rows], masks[rows], draws[:3])
    assert len(lines) == 1 and all(map(torch.equal, _all(result), _all(wanted)))


def _all(result) -> list[torch.Tensor]:
    return [result.feed, *result.targets, *result.masks]


def test_where_the_kernels_cannot_run_one_line_says_so_and_kornia_augments(batch):
    """On a CPU they never can: Triton is missing, or finds no driver."""
    lines: list[str] = []
    augment = make_augmenter("triton", 32, 32, [16, 32], CPU, warn=lines.append)
    wanted = make_augmenter("kornia", 32, 32, [16, 32], CPU)(*batch)
    for _ in range(2):
        assert all(map(torch.equal, _all(augment(*batch)), _all(wanted)))
    assert len(lines) == 1 and "\n" not in lines[0]
    assert lines[0].startswith("--backend triton: ") and lines[0].endswith("; augmenting by kornia")


def _raise(error: Exception):
    raise error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), "and Python.h"),
        (ValueError("5 masks: the fused kernels take 4"), "triton: 5 masks: the fused kernels take 4; augmenting"),
        (RuntimeError("first line\nsecond line"), r"RuntimeError: first line\)"),
        (KeyError(), "KeyError: no message"),
    ],
)
def test_whatever_goes_wrong_is_one_line(batch, error, words):
    lines: list[str] = []
    reference = make_augmenter("kornia", 32, 32, [32], CPU)
    VerifiedAugmenter(lambda: _raise(error), reference, lines.append)(*batch)
    assert len(lines) == 1 and words.replace("\\", "") in lines[0] and "\n" not in lines[0]


@pytest.mark.parametrize(("noise", "kept"), [(1e-4, True), (0.01, False), (float("nan"), False)])
def test_kernels_that_differ_are_not_used(batch, noise, kept):
    """A hundredth is 40 dB; what is compared are eight faces, and what comes back are all of them."""
    reference, sizes, lines = make_augmenter("kornia", 32, 32, [32], CPU), [], []

    def other(faces, extra_masks, draws):
        sizes.append(len(faces))
        result = reference(faces, extra_masks, draws)
        return dataclasses.replace(result, masks=[mask + noise for mask in result.masks])

    result = VerifiedAugmenter(lambda: other, reference, lines.append)(*batch)
    assert sizes == ([8, 10] if kept else [8]) and len(result.feed) == 10
    assert bool(lines) != kept and all("differs from kornia on this card" in line for line in lines)


def test_equal_results_are_infinitely_alike(batch):
    result = make_augmenter("kornia", 32, 32, [32], CPU)(*batch)
    assert compare(result, result).worst == float("inf")
    assert compare(dataclasses.replace(result, masks=None), result).masks == float("inf")


def test_auto_is_the_fastest_that_the_device_has():
    assert pick_backend("auto", CPU) == "opencv"
    assert pick_backend("auto", torch.device("cuda")) == ("triton" if find_spec("triton") else "kornia")
    assert pick_backend("triton", torch.device("cuda", 1)) == "triton"
    with pytest.raises(SwapfastError, match="--backend triton: needs a CUDA device, and this is for cpu; give kornia"):
        pick_backend("triton", CPU)


def test_the_doctor_says_what_the_kernels_do_on_a_gpu():
    """On a CPU they fail for want of a driver, or of Triton; what a GPU would show is written down here."""
    problem = compare_fused(CPU, size=32, count=2)
    assert list(problem) == ["problem"]
    text = describe(examine() | {"fused_kernels": problem})
    assert "\ntriton     the fused kernels cannot run here (" in text and "); kornia augments instead" in text
    figures = {"feed": 74.2, "target": 74.4, "masks": float("inf"), "triton_us": 105.3, "kornia_us": 4210.0}
    text = describe(examine() | {"fused_kernels": {"problem": None} | figures})
    line = "64 faces of 256 px in 105.3 us, kornia 4210.0 us; apart by 74 dB in the feed, 74 in targets, inf in masks"
    assert f"\ntriton     {line}\n" in text + "\n"
