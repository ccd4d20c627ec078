"""Which device, augmentation backend and precision a run uses."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any, Literal, cast

import torch

from swapfast.errors import SwapfastError

Precision = Literal["fp32", "bf16", "fp16"]


def pick_device(name: str) -> torch.device:
    """Return the device of a name ('auto', 'cpu', 'cuda', 'cuda:1'); raise SwapfastError where there is none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SwapfastError(f"--device {name}: is no device of torch; give auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SwapfastError(f"--device {name}: torch sees no CUDA device here; `swapfast doctor` says more")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise SwapfastError(f"--device {name}: torch sees {count} CUDA devices here; give cuda:0 to cuda:{count - 1}")
    return device


def pick_backend(name: str, device: torch.device) -> str:
    """Return the backend of a name; 'auto' is the fastest that the device has.

    On a CPU that is 'opencv', by several times; on CUDA 'triton' where Triton is installed, else 'kornia'. Raises
    SwapfastError for 'triton' on anything but CUDA.
    """
    if name == "triton" and device.type != "cuda":
        raise SwapfastError(
            f"--backend triton: needs a CUDA device, and this is for {device}; give kornia or opencv, or --device cuda"
        )
    if name != "auto":
        return name
    if device.type == "cpu":
        return "opencv"
    return "triton" if device.type == "cuda" and find_spec("triton") else "kornia"


def pick_precision(name: str, device: torch.device) -> Precision:
    """Return the precision of a name; 'auto' is 'bf16' on a GPU that computes in it, 'fp32' elsewhere.

    A GPU that only emulates bf16 does not count.
    """
    if name != "auto":
        return cast(Precision, name)
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def set_products(precision: str, device: torch.device) -> None:
    """Let 'fp32' mean products of float32 on a GPU, in convolutions too.

    torch rounds the factors of convolutions to TF32, of 10 bits, where nobody says otherwise. Whoever wants speed takes
    bf16, which is the default there. Of the other precisions nothing is changed.
    """
    if device.type != "cuda" or precision != "fp32":
        return
    if not hasattr(torch.backends.cudnn, "conv"):  # before torch 2.9
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        return
    backends: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    for backend in backends:  # RNNs too: torch refuses to tell what cuDNN does where the two differ
        backend.fp32_precision = "ieee"


def set_deterministic(device: torch.device) -> None:
    """Let a GPU compute the same bits from the same numbers each time, which a CPU does anyway.

    Call it before the first product: cuBLAS reads its variable once. An operation that has no such algorithm is named
    by a warning of torch and runs all the same.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    switches: Any = torch.utils.deterministic
    switches.fill_uninitialized_memory = False  # no step reads what it has not written
