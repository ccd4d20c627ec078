"""What our own optimizers share: state that is made when it is first needed, and weights taken many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

Lists = tuple[int, list[Tensor], list[Tensor], list[list[Tensor]]]


def with_state(state: dict, parameters: Sequence[Parameter], names: Sequence[str]) -> Iterator[Lists]:
    """Per number of steps made: (that number, this one included; weights, gradients, the state of each name).

    Weights usually have equally many steps behind them, so that is one lot for torch's operations on lists. The counter
    lies on the host, where the numbers that follow from it are computed.
    """
    lots: dict[int, list[Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            continue
        own = state[parameter]
        if not own:
            own["step"] = torch.tensor(0.0)
            own.update({name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in names})
        own["step"] += 1
        lots.setdefault(int(own["step"]), []).append(parameter)
    for step, lot in lots.items():
        kept = [[state[parameter][name] for parameter in lot] for name in names]
        yield step, lot, [parameter.grad for parameter in lot], kept
