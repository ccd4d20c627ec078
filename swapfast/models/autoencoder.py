"""One shared encoder, one decoder per identity or for all: the shape every model here has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from swapfast.batch import SIDES
from swapfast.errors import SwapfastError, unknown_name
from swapfast.models.blocks import initialise
from swapfast.models.dropout import start_counters


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
    """A shared encoder and a decoder for each side, or one for all sides (``decoders`` has one entry then).

    name: in the registry. input_size, output_sizes: px. color_order: of the images it takes and makes.
    standardise: the encoder sees each image with mean 0.5 and deviation 0.25, so light does not name the side.
    glorot: convolutions are drawn Glorot-uniform, as dense layers are, and not He-uniform.
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
        glorot: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.input_size = input_size
        self.output_sizes = output_sizes
        self.color_order = color_order
        self.standardise = standardise
        self.glorot = glorot
        self.encoder = encoder
        self.decoders = nn.ModuleDict(dict(decoders))

    def initialise(self, seed: int) -> FaceAutoencoder:
        """Draw all weights from ``seed``; return the model."""
        initialise(self, torch.Generator().manual_seed(seed % 2**63), self.glorot)
        start_counters(self, seed)
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Return the features that all sides share, whatever the shape of a face's is.

        images: (N, 3, S, S) in 0..1.
        """
        if self.standardise:
            spread, mean = torch.std_mean(images.float(), dim=(1, 2, 3), keepdim=True, correction=0)
            images = ((images - mean) / (spread + 1e-3) * 0.25 + 0.5).to(images.dtype)
        return self.encoder(images)

    def side_code(self, features: Tensor, side: str) -> Tensor:
        """Return what the decoder of ``side`` is given: the features themselves where a side owns its decoder.

        features: of ``encode``. side: 'a' or 'b'.
        """
        return features

    def code(self, images: Tensor, side: str) -> Tensor:
        """Return what the decoder of ``side`` is given to make that side's face of ``images``: (N, C, s, s).

        images: (N, 3, S, S) in 0..1, of any side. Raises SwapfastError for another side or shape.
        """
        if side not in SIDES:
            raise unknown_name("side of the model", side, list(SIDES))
        edge = self.input_size
        if images.dim() != 4 or images.shape[1:] != (3, edge, edge):
            raise SwapfastError(f"images of shape {tuple(images.shape)}: {self.name} takes (N, 3, {edge}, {edge})")
        return self.side_code(self.encode(images), side)

    def decoder(self, side: str) -> Decoder:
        """Return the decoder of ``side``, 'a' or 'b'."""
        return cast(Decoder, self.decoders[side] if len(self.decoders) > 1 else next(iter(self.decoders.values())))

    def forward(self, images: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return each side's own face, outputs small to large, a mask last.

        images: per side (N, 3, S, S) in 0..1. All sides go through the encoder as one batch.
        """
        features = self.encode(torch.cat(list(images))).split([len(side) for side in images])
        return [
            self.decoder(side)(self.side_code(of_side, side)) for side, of_side in zip(SIDES, features, strict=True)
        ]

    def swap(self, images: Tensor, to: str) -> list[Tensor]:
        """Return the face of side ``to``, 'a' or 'b', with the pose and expression of ``images``; a mask last.

        images: (N, 3, S, S) in 0..1, of any side. Raises SwapfastError for another side or shape.
        """
        code = self.code(images, to)
        return self.decoder(to)(code)

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that can be frozen or counted by themselves, such as 'encoder' and 'decoder_a'."""
        return {
            name if part is child else f"{name[:-1]}_{part_name}": part
            for name, child in self.named_children()
            for part_name, part in (child.items() if isinstance(child, nn.ModuleDict) else [("", child)])
        }

    @property
    def learns_mask(self) -> bool:
        """Whether the last output of a side is a mask."""
        return self.decoder(SIDES[0]).mask is not None
