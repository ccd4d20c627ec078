"""A counter-based random generator: every number is a pure function of a key and a counter.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). A sample has its own counter, so
what is drawn for it does not depend on the batch it is in, on the worker, on the device or on the number of processes,
and there is no generator state to save.

    key            the run's seed, 64 bit
    counter words  ordinal low | ordinal high << 1 + side | block | stream
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

STREAM_AUGMENT = 0  # the amounts of augment/draws.py
STREAM_ORDER = 1  # which faces make up a step (the sampler)
STREAM_SPARE = 2  # which face takes the place of one that cannot be read
STREAM_DROPOUT = 3  # the seed of a step's dropout (optim/lr_dropout.py); ordinals are steps of the weights

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(counter: np.ndarray, key: int) -> np.ndarray:
    """Return (..., 4) uint32 random words: ten rounds of Philox4x32.

    counter: (..., 4) uint32
    key: 64 bit
    """
    counter = np.asarray(counter)
    if counter.dtype != np.uint32 or counter.shape[-1:] != (4,):
        raise ValueError(f"philox4x32: need (..., 4) uint32 counters, got {counter.shape} {counter.dtype}")
    if not 0 <= int(key) < 2**64:
        raise ValueError(f"philox4x32: the key {key} does not fit 64 bit")
    c0, c1, c2, c3 = np.moveaxis(counter, -1, 0).astype(np.uint64, order="C")
    k0, k1 = int(key) & 0xFFFFFFFF, int(key) >> 32
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (product1 >> _32) ^ c1 ^ np.uint64(k0), (product0 >> _32) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def random_words(seed: int, ordinals: ArrayLike, sides: ArrayLike, blocks: range, stream: int) -> np.ndarray:
    """Return (N, 4 * len(blocks)) uint32, the random words of N samples.

    seed: the key
    ordinals, sides: (N,) or one for all; below 2**63, and 0 or 1
    blocks, stream: the other counter words
    """
    ordinals, sides = np.broadcast_arrays(np.asarray(ordinals, np.uint64), np.asarray(sides, np.uint64))
    if ordinals.ndim != 1:
        raise ValueError(f"ordinals and sides must be one-dimensional, got {ordinals.shape}")
    if np.any(sides > 1) or np.any(ordinals >= 2**63):
        raise ValueError("sides must be 0 or 1 and ordinals below 2**63: they share one counter word")
    counter = np.empty((len(ordinals), len(blocks), 4), np.uint32)
    counter[..., 0] = (ordinals & _LOW)[:, None]
    counter[..., 1] = (((ordinals >> _32) << np.uint64(1)) | sides)[:, None]
    counter[..., 2] = np.arange(blocks.start, blocks.stop, blocks.step, dtype=np.uint32)
    counter[..., 3] = stream
    return philox4x32(counter, seed).reshape(len(ordinals), 4 * len(blocks))


def uniforms(words: np.ndarray) -> np.ndarray:
    """Return uint32 words as float64 in the open interval 0..1, centred in their 2**-32 wide cells."""
    return (words + 0.5) * 2.0**-32


def normals(words: np.ndarray) -> np.ndarray:
    """Return (N, 2k) standard normals in float64 of (N, 2k) uint32 words, two of each two (Box and Muller)."""
    u = uniforms(words)
    radius = np.sqrt(-2 * np.log(u[:, 0::2]))
    angle = 2 * np.pi * u[:, 1::2]
    result = np.empty_like(u)
    result[:, 0::2] = radius * np.cos(angle)
    result[:, 1::2] = radius * np.sin(angle)
    return result
