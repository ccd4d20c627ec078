"""How good a swap is, told from held-out faces alone: nobody has true swaps of people of their own.

``swap_quality`` is the figure of a run: each face of A that was never trained on is swapped, and compared with the
faces of B, as they are and mirrored, whose landmarks are most like A's; the nearest of them counts. A swap with A's
skin, brows or eyes is near to none of them, and one in another pose or expression than A's neither, since those in A's
pose alone are looked at. It is no measure of a true swap: light or a pose that B never shows has no face to be near to.
docs/learning.md has how well it follows the figures that need the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from swapfast.batch import SIDES, Batch
from swapfast.faces.orientation import MIRRORED
from swapfast.models import FaceAutoencoder
from swapfast.swap.leak import LEAK, LeakMeter

ALIKE = 10  # faces of B that a swap is compared with: those with landmarks most like A's
COMPARED = 64  # px, at most, at which they are compared
QUALITY = "swap/quality"  # tags of TensorBoard; steps.jsonl has swap_quality and so on
NEAR, NEAR_MATCHED = "swap/near", "swap/near_matched"


def swap_quality(swaps: Tensor, faces: Tensor, masks: Tensor, points: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    """Return how near swaps of A come to B's faces of the same pose, in dB by tag; waits for the device.

    swap/near is the mean over swaps of the PSNR to the nearest of ALIKE faces inside that face's mask,
    swap/near_matched the same after mean colours inside the mask were set equal, swap/quality the mean of both. Faces
    are mirrored too, so that a B who mostly looks to one side has poses to the other.

    swaps: (n, 3, S, S), faces: (m, 3, S, S), masks: (m, 1, S, S), all in 0..1.
    points: landmarks (n, 68, 2) of A's faces and (m, 68, 2) of B's, in shares of the edge, 0..1; without them all
        faces count as alike, and a swap may take any pose.
    """
    faces, masks = (torch.cat([images, images.flip(3)]) for images in (faces, masks))
    raw, matched = _errors(*(images.double() for images in (swaps, faces, masks)))
    if points is not None:
        alike = _alike(points[0], torch.cat([points[1], _mirrored(points[1])])).to(raw.device)
        raw, matched = raw.gather(1, alike), matched.gather(1, alike)
    near, near_matched = torch.stack([_decibels(raw.amin(1)).mean(), _decibels(matched.amin(1)).mean()]).tolist()
    return {QUALITY: (near + near_matched) / 2, NEAR: near, NEAR_MATCHED: near_matched}


def _decibels(errors: Tensor) -> Tensor:
    return -10 * errors.clamp(min=1e-10).log10()


def _mirrored(points: Tensor) -> Tensor:
    """Return (m, 68, 2) landmarks in shares of the edge as they lie in the mirrored pictures."""
    return points[:, list(MIRRORED)] * points.new_tensor((-1, 1)) + points.new_tensor((1, 0))


def _alike(points_a: Tensor, points_b: Tensor) -> Tensor:
    """Return the numbers of the faces of B that are most like each of A's, (n, ALIKE or fewer)."""
    distances = torch.cdist(points_a.flatten(1).double(), points_b.flatten(1).double())
    return distances.topk(min(ALIKE, len(points_b)), largest=False).indices


def _errors(swaps: Tensor, faces: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared errors of each swap to each face inside its mask, as they are and colour-matched, (n, m).

    Written as products of matrices: the squares of differences would take n times as much memory as the faces.
    """
    weights = masks.flatten(1) / masks.sum((1, 2, 3)).clamp(min=1e-6)[:, None]  # (m, pixels)
    swaps, faces = swaps.flatten(2), faces.flatten(2)  # (n, 3, pixels), (m, 3, pixels)
    squares = swaps.square().sum(1) @ weights.T + (faces.square().sum(1) * weights).sum(1)
    products = torch.einsum("ncp,mcp->nm", swaps, faces * weights[:, None])
    raw = (squares - 2 * products) / 3
    colors = torch.einsum("ncp,mp->nmc", swaps, weights) - torch.einsum("mcp,mp->mc", faces, weights)
    return raw, raw - colors.square().mean(2)


@dataclass
class QualityProbe:
    """Measures ``swap_quality`` and the leak on the batches of held-out faces that pass through ``watch``.

    model: what is measured. precision: what it computes in, None for float32. points: of A's and B's faces in their
    order, see ``swap_quality``. leak: measures how much of A's skin the swaps keep, where there is such a meter.
    light: by what B's faces are multiplied to have A's light, (3,) in the model's colour order, where swaps have it.
    """

    model: FaceAutoencoder
    precision: torch.dtype | None = None
    points: tuple[np.ndarray, np.ndarray] | None = None
    leak: LeakMeter | None = None
    light: Tensor | None = None
    _originals: list[Tensor] = field(default_factory=list)
    _swaps: list[Tensor] = field(default_factory=list)
    _faces: list[Tensor] = field(default_factory=list)
    _masks: list[Tensor] = field(default_factory=list)
    _again: list[Tensor] = field(default_factory=list)

    def watch(self, batches: Iterable[tuple[int, Batch]]) -> Iterator[tuple[int, Batch]]:
        """Yield the batches, swap A's faces and reconstruct B's. The model is in evaluation mode, without gradients."""
        for number, batch in batches:
            side = SIDES[number]
            images = _shrunk(batch.targets[-1][:, 0])
            if side == "a":
                self._swaps.append(self._made(batch, side))
                self._originals.append(images)
            else:
                masks = batch.meta[0].mask_face
                self._faces.append(self._in_light_of_a(images))
                self._masks.append(torch.ones_like(images[:, :1]) if masks is None else _shrunk(masks[-1]))
                if self.leak is not None:
                    self._again.append(self._made(batch, side))
            yield number, batch

    def _in_light_of_a(self, images: Tensor) -> Tensor:
        return images if self.light is None else (images * self.light.to(images)[:, None, None]).clamp(max=1)

    def _made(self, batch: Batch, of: str) -> Tensor:
        """Return what B's decoder makes of the faces, those of side ``of``."""
        (images,) = batch.inputs
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            outputs = self.model.swap(images, to="b", of=of)
        return _shrunk(outputs[-2 if self.model.learns_mask else -1].float())

    def values(self) -> dict[str, float]:
        """Return the figures by tag; none where a side had no face."""
        if not self._swaps or not self._faces:
            return {}
        swaps, faces, masks = map(torch.cat, (self._swaps, self._faces, self._masks))
        leak = {}
        if self.leak is not None:
            leak[LEAK] = self.leak.leak(torch.cat(self._originals), swaps, faces, torch.cat(self._again))
        masks = torch.where(masks.sum((1, 2, 3), keepdim=True) > 0, masks, torch.ones_like(masks))
        points = None if self.points is None else (torch.from_numpy(self.points[0]), torch.from_numpy(self.points[1]))
        if points is not None and (len(points[0]), len(points[1])) != (len(swaps), len(faces)):
            return {}  # a request to stop came in between
        return swap_quality(swaps, faces, masks, points) | leak


def _shrunk(images: Tensor) -> Tensor:
    return images if images.shape[-1] <= COMPARED else F.interpolate(images, (COMPARED, COMPARED), mode="area")


@dataclass(frozen=True)
class SideFaces:
    """Faces of one side that were never trained on, BGR in 0..1.

    inputs: (n, 3, h, w) at the model's input size.
    faces: (n, H, W, 3) at its largest output size.
    masks: (n, H, W), where the face is.
    points: (n, 68, 2), landmarks in shares of the edge, 0..1.
    """

    inputs: np.ndarray
    faces: np.ndarray
    masks: np.ndarray
    points: np.ndarray | None = None
