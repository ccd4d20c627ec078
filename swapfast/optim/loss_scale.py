"""Keeping small gradients alive in float16."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, HIGHEST, GROWTH_INTERVAL = 2.0**16, 2.0**24, 2000


class LossScaler:
    """The factor by which the loss is raised before backward: halved after an overflow, doubled after 2000 steps.

    torch's GradScaler with the same numbers, but that its parts can be used apart: clipping and unscaling become one
    factor that the fused optimizers apply as they go. It is never below 1, so an overflow there is no overflow but a
    broken gradient. All of it stays on the device, in tensors that are written in place: a CUDA graph reads and writes
    where they lay when it was captured.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.scale = torch.tensor(FIRST, device=device)
        self._good_steps = torch.tensor(0, device=device)

    @property
    def exhausted(self) -> Tensor:
        """Whether the scale cannot be lowered any more, a bool on the device."""
        return self.scale <= 1

    def update(self, overflow: Tensor) -> None:
        """Adapt the scale to a step. overflow: whether it was left out for one, a bool on the device."""
        good = torch.where(overflow, 0, self._good_steps + 1)
        grow = good >= GROWTH_INTERVAL
        scale = torch.where(overflow, self.scale / 2, torch.where(grow, self.scale * 2, self.scale))
        self.scale.copy_(scale.clamp(1.0, HIGHEST))
        self._good_steps.copy_(torch.where(grow, 0, good))

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of 'scale' and 'good_steps'."""
        return {"scale": self.scale.clone(), "good_steps": self._good_steps.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave, or begin anew where that is nothing."""
        self.scale.copy_(state.get("scale", torch.tensor(FIRST)))
        self._good_steps.copy_(state.get("good_steps", torch.tensor(0)))
