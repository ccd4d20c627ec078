"""What the fused augmentation is tried with: made anew by the test and by the process that runs the kernels."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import torch

from swapfast.augment.draws import Draws, draw
from swapfast.config import AugmentationConfig
from tests.augment.slow_references import mask_images, pictures


def _shifted(size: int, nodes: int) -> np.ndarray:
    """(2, K, K, 2) nodes of a warp to landmarks: evenly spread, and moved by some px."""
    axis = np.linspace(0, size - 1, nodes)
    noise = np.random.default_rng(nodes).normal(0, 2, (2, nodes, nodes, 2))
    return np.stack(np.meshgrid(axis, axis), axis=-1) + np.stack([cv2.GaussianBlur(face, (5, 5), 2) for face in noise])


def _case(size: int, n: int, feed: int, targets: list[int], draws: Draws, channels=4, extra=2, **make) -> dict:
    """A store of one face more than is drawn for, taken in another order."""
    rows = np.random.default_rng(n).permutation(n + 1)[:n]
    return {
        "make": {"processing_size": size, "input_size": feed, "output_sizes": targets, **make},
        "faces": torch.from_numpy(pictures(n + 1, size, channels, seed=size)),
        "extra_masks": torch.from_numpy(mask_images(n + 1, extra, size)) if extra else None,
        "draws": draws,
        "rows": torch.from_numpy(rows),
    }


def make_cases() -> dict[str, dict]:
    """Return, by name, what ``FusedAugmenter`` takes: {"make": {...}, "faces", "extra_masks", "draws", "rows"}."""
    colors = dataclasses.replace(
        Draws.identity(5, 32),
        lab=np.array([[0, 0, 0], [0.2, -0.3, 0.1], [0, 0, 0], [0.1, 0, -0.1], [-0.2, 0.05, 0]]),
        clahe_grid=np.array([0, 0, 2, 3, 4]),
    )
    plain, few_tiles = AugmentationConfig(color=False), AugmentationConfig(color_clahe_max_size=2)
    landmarks = dataclasses.replace(draw(4, np.arange(2), 0, 64, plain), landmark_nodes=_shifted(64, 33))
    one = np.arange(1)
    small = _case(32, 1, 32, [32], draw(7, [2], 0, 32, few_tiles), config=few_tiles)
    return {
        "color": _case(32, 5, 32, [32], colors, channels=3, extra=0, config=few_tiles),
        "whole": _case(64, 2, 64, [64], draw(7, np.arange(2), 0, 64)),
        "small": small | {"twice": True},
        "verified": small | {name: small[name][one] for name in ("faces", "extra_masks")},
        "float": small | {"faces": small["faces"].float().div(255)},
        "bf16": small | {"make": small["make"] | {"dtype": torch.bfloat16}},
        "odd": _case(50, 2, 50, [50], draw(8, np.arange(2), 0, 50, plain), 3, 1, config=plain, color_order="rgb"),
        "smaller": _case(64, 1, 32, [64, 48, 16], draw(9, [1], 0, 64, plain), 4, 0, config=plain),
        "landmarks": _case(64, 2, 64, [64], landmarks, 4, 3, config=plain),
    }
