"""How much of A's skin a swap keeps, told from held-out faces and the mean training faces of both sides.

A's held-out faces and their swaps are shrunk to LOW px, where little but skin, hair and light is left. The way from A's
mean training face to B's, inside the face, is what a swap has to go; the leak is the share of it that the swaps have
not gone: 0 of a swap with B's skin, 1 of A's own face. A's pose and light are in the face and in its swap, so they do
not count. What B's decoder gets wrong of B's own held-out faces is taken off: a decoder that has not learned B's skin
yet does not keep A's. Where one side shows other light than the other, that lies on the way too: docs/learning.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from swapfast.batch import SIDES

LOW = 8  # px, to which faces are shrunk
LEAST_APART = 0.02  # root mean square of the way, 0..1: nearer people have the same skin
LEAK = "swap/leak"  # tag of TensorBoard; steps.jsonl has swap_leak


@dataclass(frozen=True)
class LeakMeter:
    """The way from A's mean training face to B's, and where it counts.

    way: (3, LOW, LOW) float64, A's less B's, in the model's colour order. weights: (1, LOW, LOW), how much of a square
    lies inside both mean face masks.
    """

    way: Tensor
    weights: Tensor

    @classmethod
    def from_means(cls, means: Mapping[str, Tensor], color_order: str = "bgr") -> LeakMeter | None:
        """Return the meter of a run, None where both people's faces are too much alike for one.

        means: 'mean_a' and 'mean_b' (H, W, 3) in 0..1 BGR, and 'mean_mask_a', 'mean_mask_b' (H, W, 1) where there are
        masks; without them the whole crop counts.
        """
        faces = [_low(means[f"mean_{side}"].permute(2, 0, 1)[None].double())[0] for side in SIDES]
        masks = [means.get(f"mean_mask_{side}") for side in SIDES]
        weights = torch.ones(1, LOW, LOW, dtype=torch.float64)
        for mask in masks:
            if mask is not None:
                weights = weights * _low(mask.permute(2, 0, 1)[None].double())[0]
        way = faces[0] - faces[1]
        if color_order == "rgb":
            way = way.flip(0)
        meter = cls(way, weights)
        return meter if meter.apart >= LEAST_APART else None

    @property
    def apart(self) -> float:
        """Return how far the two people's skins differ, 0..1, as a root mean square over colours and squares."""
        return float(((self.way.square().mean(0) * self.weights[0]).sum() / self.weights.sum().clamp(min=1e-6)).sqrt())

    def leak(self, faces_a: Tensor, swaps: Tensor, faces_b: Tensor, again: Tensor) -> float:
        """Return the share of the way that swaps have not gone; waits for the device.

        All (n, 3, h, w) in 0..1, in the model's colour order. swaps: of A's faces. again: B's faces reconstructed.
        """
        return 1 - self._moved(faces_a, swaps) + self._moved(faces_b, again)

    def _moved(self, faces: Tensor, images: Tensor) -> float:
        """Return how far the images lie from the faces on the way to B, 0..1 and beyond."""
        way = (_low(faces.double()) - _low(images.double())).mean(0).cpu()
        return float((self.weights * self.way * way).sum() / (self.weights * self.way.square()).sum())


def _low(images: Tensor) -> Tensor:
    return F.interpolate(images, (LOW, LOW), mode="area")
