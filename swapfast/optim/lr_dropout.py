"""Learning-rate dropout (Lin et al., "Learning rate dropout", 2019): each step moves some entries of the weights only.

Which ones follows from the run's seed and the number of the step, so a run that goes on draws what it would have drawn,
and there is no state to save.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch.nn import Parameter

from swapfast.philox import STREAM_DROPOUT, random_words

MOVED_TENTHS = 3  # of the entries of each weight, in tenths; DeepFaceLab's share
PERIOD = 500  # steps in which the rate falls to nothing and rises again


def rate_factor(step: int) -> float:
    """Return what the rate of a step is multiplied with, 0..1. step: counted from 1."""
    return (math.cos(2 * math.pi * (step % PERIOD) / PERIOD) + 1) / 2


class LearningRateDropout:
    """Undoes a step for seven entries in ten of each weight, drawn by chance.

    seed: the run's, 64 bit. Averages of the optimizer change as they do without.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @contextlib.contextmanager
    def limiting(self, parameters: Sequence[Parameter], step: int) -> Iterator[None]:
        """Let what moves the weights inside move some of their entries. step: its number, from 0.

        On a GPU the bits are those of its own generator.
        """
        before = [parameter.detach().clone() for parameter in parameters]
        yield
        low, high = random_words(self.seed, [step], 0, range(1), STREAM_DROPOUT)[0, :2].tolist()
        generator = torch.Generator(parameters[0].device).manual_seed(high << 32 | low)
        with torch.no_grad():
            for parameter, old in zip(parameters, before):
                # Drawn in the order of the shape: no memory format changes who is drawn.
                tenths = torch.empty(parameter.shape, dtype=torch.uint8, device=parameter.device)
                moves = tenths.random_(0, 10, generator=generator) < MOVED_TENTHS
                parameter.copy_(torch.where(moves, parameter, old))
