"""What a training step is made of. All other modules use the letters, ranges and orders of this page.

Letters
    N           faces of all sides, A's first, then B's
    B           faces per side
    S           processing size, px: the edge of the stored faces
    h, w        model input size, px
    H, W        one output size, px
    M           masks per face; K are those beside the face mask (``extra_masks``)

Conventions
    images      (N, 3, H, W) as torch counts dimensions. uint8 0..255 in the store, float32 (or bf16, fp16) 0..1 at the
                model. In memory the channels of a pixel lie together (channels_last), as decoders and OpenCV write
                them and convolutions like them.
    colour      BGR from the decoder to the model. Batches for a model that is trained in RGB are turned once, when
                they are put together.
    masks       One channel, 0 outside, 255 or 1.0 inside; soft edges are allowed. Order: MASK_NAMES.
    points      (x, y) in px. Pixel centres lie at integers, so an image spans -0.5 .. S - 0.5.
    angles      Degrees. A positive rotation turns anticlockwise on the screen, where y points down.
    sizes       The processing size is the largest of the model's input and output sizes. Images are square.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # who reads and draws faces takes MASK_NAMES from here and starts without torch
    import torch
    from torch import Tensor

SIDES = ("a", "b")  # in capitals where a person reads them
MASK_NAMES = ("face", "eye", "mouth")


@dataclass
class BatchMeta:
    """The masks of a batch: for each, a list of one tensor per output size, or None where the loss needs no such mask.

    mask_face, mask_eye, mask_mouth: (B, sides, 1, H, W) float 0..1, smallest output first

    ``meta[i]`` is side i alone, with (B, 1, H, W) tensors.
    """

    mask_face: list[Tensor] | None = None
    mask_eye: list[Tensor] | None = None
    mask_mouth: list[Tensor] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> BatchMeta:
        """Return the masks of what ``function`` makes of each."""

        def mapped(masks: list[Tensor] | None) -> list[Tensor] | None:
            return None if masks is None else [function(mask) for mask in masks]

        return BatchMeta(mapped(self.mask_face), mapped(self.mask_eye), mapped(self.mask_mouth))

    def __getitem__(self, side: int) -> BatchMeta:
        return self.map(lambda mask: mask[:, side])

    def faces(self, rows: slice) -> BatchMeta:
        """Return views of the masks of those faces."""
        return self.map(lambda mask: mask[rows])

    def to(self, device: str | torch.device) -> BatchMeta:
        """Return the masks on ``device``."""
        return self.map(lambda mask: mask.to(device, non_blocking=True))


@dataclass
class Batch:
    """The faces of one training step.

    inputs: per side (B, 3, h, w), augmented and warped: what the model sees
    targets: per output size, smallest first, (B, sides, 3, H, W): what the model should make of it
    meta: the masks of the targets
    step: the step it belongs to, from 0
    landmarks: per side (B, 136) float: where the targets' landmarks are (``TargetPoints.of``), None where no loss asks
    covariates: per side (B, 3) float: what their codes are compared by (``PoseCovariates.of``), None for nothing
    ids: (sides, B) int, the faces' numbers in their folders
    ordinals: (B,) int, how many faces of its side were drawn before each; the same on every side
    unwarped: how many faces should have been warped to landmarks and could not be
    slot: which memory of the loader the tensors lie in, where a later batch is written over this one; None where they
        are the batch's own
    """

    inputs: list[Tensor]
    targets: list[Tensor]
    meta: BatchMeta
    step: int
    landmarks: list[Tensor] | None = None
    covariates: list[Tensor] | None = None
    ids: np.ndarray | None = None
    ordinals: np.ndarray | None = None
    unwarped: int = 0
    slot: int | None = None

    def to(self, device: str | torch.device) -> Batch:
        """Return the batch on ``device``; copies from pinned memory do not wait."""

        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch of what ``function`` makes of each tensor."""
        inputs, targets = ([function(tensor) for tensor in tensors] for tensors in (self.inputs, self.targets))
        landmarks, covariates = (
            None if of_sides is None else [function(side) for side in of_sides]
            for of_sides in (self.landmarks, self.covariates)
        )
        return dataclasses.replace(
            self,
            inputs=inputs,
            targets=targets,
            meta=self.meta.map(function),
            landmarks=landmarks,
            covariates=covariates,
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All its tensors: inputs, targets, masks, landmarks and covariates."""
        masks = (self.meta.mask_face, self.meta.mask_eye, self.meta.mask_mouth)
        of_masks = (mask for sizes in masks for mask in sizes or ())
        of_faces = (self.landmarks, self.covariates)
        return [*self.inputs, *self.targets, *of_masks, *(tensor for of_sides in of_faces for tensor in of_sides or ())]

    def split(self, count: int) -> list[Batch]:
        """Return the batches of ``count`` steps, whose faces lie in this one step after step.

        Their tensors are views. ``unwarped`` is 0: the caller knows which step's faces it counts.
        """
        faces_per_side = len(self.inputs[0]) // count

        def part(index: int) -> Batch:
            rows = slice(index * faces_per_side, (index + 1) * faces_per_side)
            return Batch(
                inputs=[side[rows] for side in self.inputs],
                targets=[target[rows] for target in self.targets],
                meta=self.meta.faces(rows),
                step=self.step + index,
                landmarks=None if self.landmarks is None else [side[rows] for side in self.landmarks],
                covariates=None if self.covariates is None else [side[rows] for side in self.covariates],
                ids=None if self.ids is None else self.ids[:, rows],
                ordinals=None if self.ordinals is None else self.ordinals[rows],
                slot=self.slot if count == 1 else None,
            )

        return [part(index) for index in range(count)]

    @property
    def faces(self) -> int:
        """How many faces there are in this batch, all sides together."""
        return sum(len(side) for side in self.inputs)
