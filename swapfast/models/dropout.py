"""Dropout whose draws follow from a counter that is kept with the weights.

So a run that goes on draws what it would have drawn, on any device, within a CUDA graph too, and torch's own generators
are left alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

COUNTER = "draws"  # its name beside the layer's weights
_WORD = 0xFFFFFFFF
_RANK_STEP = 0x9E3779B1  # between the numbers of two processes' first values


class DroppedDense(nn.Linear):
    """A dense layer of whose outputs a share is zeroed in training, and the others raised so that their mean stays.

    share: 0 to 1, of the values of each face, drawn anew for each.
    draws: counts the batches, from where the seed put it; it is saved and loaded with the weights.
    """

    draws: Tensor

    def __init__(self, inputs: int, outputs: int, share: float) -> None:
        super().__init__(inputs, outputs)
        self.share = share
        self.register_buffer(COUNTER, torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_keep_counter)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs) of ``x`` (N, inputs)."""
        x = super().forward(x)
        if not self.training:
            return x
        kept = _words(self.draws, x.numel()).view(x.shape) >= self.share * 2**32
        self.draws.add_(1)
        return x * kept / (1 - self.share)


def dense(inputs: int, outputs: int, dropout: float = 0.0) -> nn.Linear:
    """Return a dense layer with dropout, or a plain one for 0. Either loads the weights of the other."""
    if dropout:
        return DroppedDense(inputs, outputs, dropout)
    layer = nn.Linear(inputs, outputs)
    layer.register_load_state_dict_pre_hook(_leave_counter)
    return layer


def start_counters(module: nn.Module, seed: int) -> None:
    """Let every dropout in ``module`` begin at a place that follows from the seed."""
    for layer in module.modules():
        if isinstance(layer, DroppedDense):
            layer.draws.fill_((seed % 2**31) << 32)


def _keep_counter(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.setdefault(prefix + COUNTER, layer.draws)


def _leave_counter(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.pop(prefix + COUNTER, None)


def _words(counter: Tensor, count: int) -> Tensor:
    """Return ``count`` numbers of 32 random bits, (count,) int64. They follow from the counter and the rank alone."""
    processes = torch.distributed
    rank = processes.get_rank() if processes.is_available() and processes.is_initialized() else 0
    index = torch.arange(count, device=counter.device) + rank * _RANK_STEP
    key = _mixed(counter & _WORD) + _mixed((counter >> 32) ^ 0x5BF03635)
    return _mixed(_mixed(index & _WORD) + key & _WORD)


def _mixed(words: Tensor) -> Tensor:
    """Mix the bits of int64 numbers below 2^32; no two give the same (lowbias32 of Wellons' hash prospector)."""
    words = (words ^ (words >> 16)) * 0x7FEB352D & _WORD
    words = (words ^ (words >> 15)) * 0x846CA68B & _WORD
    return words ^ (words >> 16)
