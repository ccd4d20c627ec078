"""Averages of the weights over the steps of a training: those are shown, measured and taken away.

Late weights circle around what they are drawn to; their mean lies nearer to it, as if the learning rate had been taken
back for a while, at no cost of the training. Several half-lives may be kept and chosen from afterwards
(Karras et al., "Analyzing and improving the training dynamics of diffusion models", 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn

from swapfast.checkpoints.averages import average_name, averages_of, choose_average, require_fitting, stored_half_lives
from swapfast.models import FaceAutoencoder
from swapfast.models.autoencoder import without_reader

EVERY = 16  # steps of the weights from one update to the next: one a step would be a tenth of a step of large models
DENSE_STEPS = 64  # at the beginning, in which every step is followed by one
# A half-life is never longer than this share of the steps so far, as in EDM: the weights that the training began with
# have no weight of their own.
RAMP = 0.1
_STEPS, _WAITING = "@steps", "@waiting"


class WeightAverages:
    """Exponential moving averages of all weights that are trained and of all buffers that are fractions.

    All tensors stay where they are and are written in place, and nothing waits for the device, so this may be called
    beside steps that are CUDA graphs. Steps that were left out are not counted. Make it once the model lies on its
    device with the weights that it begins with. It takes as much memory as these weights for each half-life.

    half_lives: iterations after which a step has half of its weight, all different. accumulation: iterations to a step.
    """

    def __init__(self, model: FaceAutoencoder, half_lives: Sequence[int], accumulation: int = 1) -> None:
        self.half_lives = tuple(half_lives)
        self._model = model
        self._weights = {
            name: tensor.detach()
            for name, tensor in without_reader(model.state_dict(keep_vars=True)).items()
            if tensor.is_floating_point() and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
        }
        self._averages = {
            half_life: {name: tensor.clone() for name, tensor in self._weights.items()} for half_life in half_lives
        }
        device = next(model.parameters()).device
        self._reach = torch.tensor(half_lives, dtype=torch.float64, device=device) / accumulation  # steps
        self._steps = torch.zeros(len(half_lives), dtype=torch.int64, device=device)  # since each average began
        self._waiting = torch.zeros((), dtype=torch.int64, device=device)  # steps since the last update

    def add_step(self, number: int, left_out: Tensor) -> None:
        """Count a step of the weights, and let the averages follow where that is due.

        number: of the step, from 1, as the host counts. left_out: whether the weights were not moved, a bool on the
        device.
        """
        is_moved = ~left_out
        self._steps += is_moved
        self._waiting += is_moved
        if number > DENSE_STEPS and number % EVERY:
            return
        reach = torch.minimum(self._reach, RAMP * self._steps.clamp(min=1))
        shares = -torch.expm1(-log(2) * self._waiting / reach)  # 1 - 2 ** -(waiting / reach), also where it is tiny
        weights = list(self._weights.values())
        for averages, share in zip(self._averages.values(), shares.float().unbind()):
            torch._foreach_lerp_(list(averages.values()), weights, [share] * len(weights))
        self._waiting.zero_()

    def averaged_model(self, half_life: int) -> FaceAutoencoder:
        """Return a model, in evaluation mode, whose weights are those averages now and later.

        It has no memory of its own: what is not averaged is the model's.
        """
        averages = self._averages[half_life]
        in_place_of: dict[int, object] = {}
        for name, tensor in [*self._model.named_parameters(), *self._model.named_buffers()]:
            average = averages.get(name)
            if average is None:
                in_place_of[id(tensor)] = tensor
            elif isinstance(tensor, nn.Parameter):
                in_place_of[id(tensor)] = nn.Parameter(average, requires_grad=False)
            else:
                in_place_of[id(tensor)] = average
        return copy.deepcopy(self._model, in_place_of).eval()

    def model_for(self, weights: str) -> FaceAutoencoder:
        """Return the model that ``weights`` names, see ``choose_average``: of averages, or the one in training."""
        half_life = choose_average(weights, self.half_lives, "the run")
        return self._model if half_life is None else self.averaged_model(half_life)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that is needed to go on bit for bit; the averages are those in use, not copies."""
        state = {_WAITING: self._waiting}
        for (half_life, averages), steps in zip(self._averages.items(), self._steps):
            state |= {f"{half_life}/{name}": average for name, average in averages.items()}
            state[f"{half_life}/{_STEPS}"] = steps.clone()  # what shares memory cannot be saved
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], path: Path = Path()) -> list[str]:
        """Go on from what ``state_dict`` gave; return the names of the averages that begin anew.

        An average that is not there begins with the weights as they are, and so does a weight that was frozen.
        path: of the checkpoint, for errors. Raises SwapfastError where something does not fit the model.
        """
        half_lives = stored_half_lives(state)
        self._waiting.fill_(_count(state, _WAITING))
        for index, (half_life, averages) in enumerate(self._averages.items()):
            earlier = averages_of(state, half_life)
            require_fitting(earlier, self._model.state_dict(), path)
            for name, average in averages.items():
                average.copy_(earlier.get(name, self._weights[name]))
            self._steps[index] = _count(state, f"{half_life}/{_STEPS}") if half_life in half_lives else 0
        return [average_name(half_life) for half_life in self.half_lives if half_life not in half_lives]


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """Return a counter; 0 where it is missing or somebody's hand made something else of it."""
    value = state.get(name)
    return max(int(value), 0) if value is not None and value.numel() == 1 and value.dtype == torch.int64 else 0
