"""Which device, augmentation backend and precision a run uses."""

from __future__ import annotations

import torch

from swapfast.errors import SwapfastError


def pick_device(name: str) -> torch.device:
    """'auto', 'cpu' or 'cuda' -> a device that is there; SwapfastError where it is not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SwapfastError("--device cuda: torch sees no CUDA device here; `swapfast doctor` says more")
    return torch.device(name)


def pick_backend(name: str, device: torch.device) -> str:
    """'auto' -> 'opencv' on a CPU, where it is several times faster than torch, 'torch' on a GPU."""
    return ("opencv" if device.type == "cpu" else "torch") if name == "auto" else name


def pick_precision(name: str, device: torch.device) -> str:
    """'auto' -> 'bf16' on a GPU that computes in it (not one that only pretends to), 'fp32' elsewhere."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
