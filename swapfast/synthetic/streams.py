"""Where randomness comes from: one generator per (seed, stream, index), so no picture depends on another."""

from __future__ import annotations

import numpy as np

IDENTITIES, SIDE_A, SIDE_B, TRUTH = range(4)


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """The generator of item ``index`` in ``stream``: the same whoever asks, in whatever order."""
    return np.random.default_rng(np.random.SeedSequence([seed, stream, index]))
