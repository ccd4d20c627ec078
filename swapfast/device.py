"""Which device, augmentation backend and precision a run uses."""

from __future__ import annotations

import torch

from swapfast.errors import SwapfastError


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
    """Return the backend of a name; 'auto' is 'opencv' on a CPU, where it is several times faster, else 'kornia'."""
    return ("opencv" if device.type == "cpu" else "kornia") if name == "auto" else name


def pick_precision(name: str, device: torch.device) -> str:
    """Return the precision of a name; 'auto' is 'bf16' on a GPU that computes in it, 'fp32' elsewhere.

    A GPU that only emulates bf16 does not count.
    """
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
