"""Copies from the host to the device that do not wait for the work the device still has to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor


def send(amounts: np.ndarray, device: torch.device | str) -> Tensor:
    """Return a batch's amounts on ``device``, in their own dtype."""
    return send_tensor(torch.from_numpy(amounts), device)


def send_tensor(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on ``device``; itself where it is on it already.

    On a GPU through pinned memory: from pageable memory the copy would wait until the stream is done.
    """
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def table(make: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    """Turn a function of plain values to an array into one of the same values and a device to a tensor.

    The tensor is made and sent on first use and cached; it is not to be written to.
    """

    @cache
    @wraps(make)
    def on_device(*values: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(make(*values[:-1]))).to(values[-1])

    return on_device
