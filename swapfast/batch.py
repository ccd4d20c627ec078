"""What a training step is made of: the legend every other module refers to.

Letters   N  faces of all sides, A's first, then B's     B  faces per side      S  processing size in px
          h, w  model input size       H, W  one output size       M  masks per face
Images    logically NCHW. uint8 0..255 in the store, float32 (or bf16 / fp16) 0..1 at the model. Memory is
          channels_last, which is how decoders and OpenCV lay pixels out and what convolutions like.
Colour    BGR from the decoder to the model's door; a model that wants RGB gets it in collate, once.
Masks     one channel, 0 outside, 255 or 1.0 inside, soft edges allowed; order: face, eye, mouth.
Points    (x, y) in pixels, pixel centres at integers: the image spans -0.5 .. S - 0.5.
Angles    degrees; a positive rotation turns anticlockwise on the screen (y down).
Sizes     the processing size is the largest of the model's input and output sizes. Images are square.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # who reads and draws faces takes MASK_NAMES from here and starts without torch
    import torch
    from torch import Tensor

SIDES = ("a", "b")  # in capitals where a person reads them
MASK_NAMES = ("face", "eye", "mouth")


def _each(masks: list[Tensor] | None, change) -> list[Tensor] | None:
    return None if masks is None else [change(mask) for mask in masks]


@dataclass
class BatchMeta:
    """The masks of a batch, for each output size, smallest first.

    Every list holds one (B, sides, 1, H, W) float tensor in 0..1 per output size, or the whole field is None
    where the loss does not need that mask. ``meta[i]`` is side i alone, with (B, 1, H, W) tensors.
    """

    mask_face: list[Tensor] | None = None
    mask_eye: list[Tensor] | None = None
    mask_mouth: list[Tensor] | None = None

    def _map(self, change) -> BatchMeta:
        return BatchMeta(**{f.name: _each(getattr(self, f.name), change) for f in dataclasses.fields(self)})

    def __getitem__(self, side: int) -> BatchMeta:
        return self._map(lambda mask: mask[:, side])

    def faces(self, some: slice) -> BatchMeta:
        """The masks of some of the faces: views."""
        return self._map(lambda mask: mask[some])

    def to(self, device: str | torch.device) -> BatchMeta:
        """The same masks on ``device``."""
        return self._map(lambda mask: mask.to(device, non_blocking=True))


@dataclass
class Batch:
    """One training step's faces.

    inputs: per side a (B, 3, h, w) tensor, augmented and warped: what the model sees.
    targets: per output size, smallest first, a (B, sides, 3, H, W) tensor: what it should make of it.
    step: the step it belongs to, from 0; ids: (sides, B) the faces' numbers in their folders.
    ordinals: (B,) the how-manieth face of its side each one is, the same on every side.
    unwarped: how many of its faces were to be warped to landmarks and could not be.
    """

    inputs: list[Tensor]
    targets: list[Tensor]
    meta: BatchMeta
    step: int
    ids: object = None
    ordinals: np.ndarray | None = None
    unwarped: int = 0

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on ``device``; copies from pinned memory do not wait."""

        def move(tensors: list[Tensor]) -> list[Tensor]:
            return [t.to(device, non_blocking=True) for t in tensors]

        return dataclasses.replace(
            self, inputs=move(self.inputs), targets=move(self.targets), meta=self.meta.to(device)
        )

    def split(self, count: int) -> list[Batch]:
        """The batches of ``count`` steps, of which this one has the faces, one step's after the other's.

        Their tensors are views; ``unwarped`` is for the caller to tell.
        """
        each = len(self.inputs[0]) // count

        def part(index: int) -> Batch:
            some = slice(index * each, (index + 1) * each)
            return Batch(
                inputs=[side[some] for side in self.inputs],
                targets=[target[some] for target in self.targets],
                meta=self.meta.faces(some),
                step=self.step + index,
                ids=None if self.ids is None else self.ids[:, some],
                ordinals=None if self.ordinals is None else self.ordinals[some],
            )

        return [part(index) for index in range(count)]

    @property
    def faces(self) -> int:
        """Faces in this batch, all sides together."""
        return sum(len(side) for side in self.inputs)
