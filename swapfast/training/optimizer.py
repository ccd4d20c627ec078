"""The optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swapfast.config import OptimizerConfig
from swapfast.errors import SwapfastError


class Optimizer:
    """The chosen torch optimizer over all of a model's trainable weights.

    State goes in and out as a flat dict of tensors keyed '<parameter>.<quantity>', so it can be stored without
    pickle. Make it after the model has been moved to its device.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._torch = torch.optim.Adam(
            self._parameters.values(),
            lr=config.learning_rate,
            betas=(config.beta_1, config.beta_2),
            eps=10.0**config.epsilon_exponent,
            fused=True,  # one kernel for all weights, on the CPU too
        )

    @property
    def learning_rate(self) -> float:
        """The step size in use."""
        return self._torch.param_groups[0]["lr"]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss`` (a scalar) to the weights'."""
        loss.backward()

    def step(self) -> None:
        """Move the weights and clear the gradients."""
        self._torch.step()
        self._torch.zero_grad(set_to_none=True)

    def set_lr(self, lr: float) -> None:
        """Use step size ``lr`` from here on."""
        for group in self._torch.param_groups:
            group["lr"] = lr

    def state_dict(self) -> dict[str, Tensor]:
        """Every moving average and step counter; empty before the first step."""
        state = self._torch.state_dict()["state"]
        return {
            f"{name}.{quantity}": value
            for index, name in enumerate(self._parameters)
            for quantity, value in state.get(index, {}).items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave; SwapfastError where it belongs to other weights."""
        indices = {name: index for index, name in enumerate(self._parameters)}
        by_index: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, quantity = key.rpartition(".")
            if name not in indices:
                raise SwapfastError(f"the stored optimizer state belongs to another model: it has {key!r}")
            parameter = self._parameters[name]
            if value.shape == parameter.shape:
                # Files know no memory format, and the fused kernel walks weights and averages side by side.
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            by_index.setdefault(indices[name], {})[quantity] = value
        groups = self._torch.state_dict()["param_groups"]
        self._torch.load_state_dict({"state": by_index, "param_groups": groups})
