"""One shared encoder, one decoder per identity: the shape every model here has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from swapfast.batch import SIDES
from swapfast.errors import SwapfastError, unknown_name
from swapfast.models.blocks import initialise


class Decoder(nn.Module):
    """A face branch and, where a mask is learned, a second one from the same input."""

    def __init__(self, face: nn.Module, mask: nn.Module | None = None) -> None:
        super().__init__()
        self.face = face
        self.mask = mask

    def forward(self, code: Tensor) -> list[Tensor]:
        """Return the face (N, 3, S, S) and, where it is learned, the mask (N, 1, S, S), both in 0..1.

        code: (N, C, s, s).
        """
        outputs = [self.face(code)]
        return outputs if self.mask is None else [*outputs, self.mask(code)]


class FaceAutoencoder(nn.Module):
    """A shared encoder and a decoder for each side.

    name: in the registry. input_size, output_sizes: px. color_order: of the images it takes and makes.
    standardise: the encoder sees each image with mean 0.5 and deviation 0.25, so light does not name the side.
    """

    def __init__(
        self,
        name: str,
        input_size: int,
        output_sizes: tuple[int, ...],
        encoder: nn.Module,
        decoders: Mapping[str, Decoder],
        color_order: str = "bgr",
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.input_size = input_size
        self.output_sizes = output_sizes
        self.color_order = color_order
        self.standardise = standardise
        self.encoder = encoder
        self.decoders = nn.ModuleDict(dict(decoders))

    def initialise(self, seed: int) -> FaceAutoencoder:
        """Draw all weights from ``seed``; return the model."""
        initialise(self, torch.Generator().manual_seed(seed % 2**63))
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Return the code that all decoders share.

        images: (N, 3, S, S) in 0..1.
        """
        if self.standardise:
            spread, mean = torch.std_mean(images.float(), dim=(1, 2, 3), keepdim=True, correction=0)
            images = ((images - mean) / (spread + 1e-3) * 0.25 + 0.5).to(images.dtype)
        return self.encoder(images)

    def forward(self, images: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return each side's outputs of its own decoder, small to large, a mask last.

        images: per side (N, 3, S, S) in 0..1. All sides go through the encoder as one batch.
        """
        codes = self.encode(torch.cat(list(images))).split([len(side) for side in images])
        return [decoder(code) for decoder, code in zip(self.decoders.values(), codes, strict=True)]

    def swap(self, images: Tensor, to: str) -> list[Tensor]:
        """Return the outputs of the decoder of side ``to``, 'a' or 'b'.

        images: (N, 3, S, S) in 0..1, of any side. Raises SwapfastError for another side or shape.
        """
        if to not in self.decoders:
            raise unknown_name("side of the model", to, list(self.decoders))
        edge = self.input_size
        if images.dim() != 4 or images.shape[1:] != (3, edge, edge):
            raise SwapfastError(f"images of shape {tuple(images.shape)}: {self.name} takes (N, 3, {edge}, {edge})")
        return self.decoders[to](self.encode(images))

    @property
    def learns_mask(self) -> bool:
        """Whether the last output of a side is a mask."""
        return self.decoders[SIDES[0]].mask is not None
