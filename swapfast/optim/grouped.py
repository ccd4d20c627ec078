"""What our own optimizers share: state that is made when it is first needed, and weights taken many at a time."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter


class WeightGroup(NamedTuple):
    """Weights that have had equally many steps, for torch's operations on lists.

    step       their steps, the one that is being made included
    weights    themselves
    gradients  one per weight
    averages   per name of a state, one per weight
    """

    step: int
    weights: list[Tensor]
    gradients: list[Tensor]
    averages: list[list[Tensor]]


def by_step_count(
    state: MutableMapping[Any, Any], parameters: Sequence[Parameter], names: Sequence[str]
) -> Iterator[WeightGroup]:
    """Count a step for each weight that has a gradient, and give the weights grouped by their number of steps.

    state: torch's, by weight; the averages called ``names`` are made of zeros where they are missing. Usually all
    weights form one group. The counter lies on the host, where the numbers that follow from it are computed.
    """
    groups: dict[int, WeightGroup] = {}
    for parameter in parameters:
        if parameter.grad is None:
            continue
        averages = state[parameter]
        if not averages:
            averages["step"] = torch.tensor(0.0)
            averages.update({name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in names})
        averages["step"] += 1
        step = int(averages["step"])
        group = groups.setdefault(step, WeightGroup(step, [], [], [[] for _ in names]))
        group.weights.append(parameter)
        group.gradients.append(parameter.grad)
        for average, name in zip(group.averages, names):
            average.append(averages[name])
    yield from groups.values()
