"""Random generators, one per (seed, stream, index), so that no picture depends on another."""

from __future__ import annotations

import numpy as np

IDENTITIES, SIDE_A, SIDE_B, TRUTH, FILM = range(5)


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Return the generator of item ``index`` in ``stream``, as a pure function of its arguments."""
    return np.random.default_rng(np.random.SeedSequence([seed, stream, index]))
