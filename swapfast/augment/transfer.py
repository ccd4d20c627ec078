"""From the host to the device without making the host wait for the work the device still has to do."""

from __future__ import annotations

from functools import lru_cache

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
