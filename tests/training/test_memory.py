"""Out of memory, said in one line: with errors that numpy and torch really raise."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from swapfast.errors import SwapfastError
from swapfast.training.memory import is_out_of_memory, memory_explained, shown_size

WAYS = ["train with a smaller -b", "--cache off"]


def _explained(call) -> SwapfastError:
    with pytest.raises(SwapfastError) as caught, memory_explained(lambda on_gpu: ["on a GPU"] if on_gpu else WAYS):
        call()
    return caught.value


def test_numpy_and_torch_on_a_cpu():
    for call, requested in (
        (lambda: np.empty(1 << 50, np.uint8), "1.00 PiB"),
        (lambda: torch.empty(1 << 50, dtype=torch.uint8), "1048576.0 GiB"),
    ):
        error = _explained(call)
        facts = rf"{requested} were asked for; [\d.]+ [MG]iB are free"
        said = rf"out of memory \({facts}\): train with a smaller -b, or --cache off"
        assert error.code == 1 and re.fullmatch(said, str(error)), error


def test_the_words_of_a_gpu():
    """torch's text of 2.9; the exception is its own, made by hand."""

    def run_out():
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB"
        )

    text = str(_explained(run_out))
    assert text.startswith("the GPU ran out of memory (2.00 GiB were asked for") and text.endswith(": on a GPU")


@pytest.mark.parametrize("status", ["CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "out of memory"])
def test_a_gpu_that_says_it_in_other_words(status):
    def run_out():
        raise RuntimeError(f"CUDA error: {status} when calling something")

    assert str(_explained(run_out)).startswith("the GPU ran out of memory")


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shapes"), memory_explained(lambda on_gpu: []):
        raise RuntimeError("shapes do not fit")
    assert not is_out_of_memory(RuntimeError("x")) and is_out_of_memory(MemoryError())
    assert [shown_size(n) for n in (1, 2048, 3 << 30)] == ["1 bytes", "2.0 KiB", "3.0 GiB"]


def test_a_real_gpu(device):
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    text = str(_explained(lambda: torch.empty(1 << 50, dtype=torch.uint8, device=device)))
    facts = r"1048576.00 GiB were asked for; [\d.]+ GiB are free on the GPU"
    assert re.match(rf"the GPU ran out of memory \({facts}\)", text)
