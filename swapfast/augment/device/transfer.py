"""From the host to the device without making the host wait for the work the device still has to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps

import numpy as np
import torch
from torch import Tensor


def send(amounts: np.ndarray, device: torch.device | str) -> Tensor:
    """A batch's amounts on ``device``, in their own dtype."""
    return send_tensor(torch.from_numpy(amounts), device)


def send_tensor(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on ``device``; itself where it is there already.

    On a GPU through pinned memory: from pageable memory the copy would wait until the stream is done.
    """
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(len(values),) on ``device``: sent when it is first asked for and kept. Not to be written to."""
    return torch.tensor(values, dtype=dtype).to(device)


def table(make: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    """Turns a function of plain values to an array into one of the same values and a device to a tensor.

    It is made and sent when it is first asked for and kept. Not to be written to. A plain dictionary, because
    ``torch.compile`` takes what is in one for an input, and looks behind ``lru_cache``.
    """
    kept: dict[tuple, Tensor] = {}

    @wraps(make)
    def on_device(*values) -> Tensor:
        if values not in kept:
            kept[values] = torch.from_numpy(np.ascontiguousarray(make(*values[:-1]))).to(values[-1])
        return kept[values]

    return on_device
