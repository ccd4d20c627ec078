"""One shared encoder, one decoder per identity or for all: the shape every model here has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swapfast.batch import SIDES
from swapfast.errors import SwapfastError, unknown_name
from swapfast.models.blocks import initialise
from swapfast.models.dropout import start_counters
from swapfast.models.side_statistics import CodeKind, Rows, SideStatistics, code_layers, of_faces, with_mean
from swapfast.optim.muon import leave_to_adam

LANDMARKS = 68 * 2  # coordinates of a face's landmarks
_READER = "landmark_reader."  # what the names of its weights begin with


def other_side(side: str) -> str:
    """Return the side that is not ``side``."""
    return SIDES[1 - SIDES.index(side)]


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
        color_order: Literal["bgr", "rgb"] = "bgr",
        standardise: bool = False,
        glorot: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.input_size = input_size
        self.output_sizes = output_sizes
        self.color_order: Literal["bgr", "rgb"] = color_order
        self.standardise = standardise
        self.glorot = glorot
        self.encoder = encoder
        self.decoders = nn.ModuleDict(dict(decoders))
        self.code_kind: CodeKind = "plain"
        self.statistics = nn.ModuleDict()  # by the path of the layer that they follow, dots made underscores
        self.landmark_reader: nn.Linear | None = None
        self._holders: set[str] = set()  # paths of modules within which there are some

    def with_code(self, kind: CodeKind, exchanges: bool = True) -> FaceAutoencoder:
        """Let the model keep each side's statistics of its codes; return the model.

        kind: 'encoder' normalises the features behind every layer up to the code by their side's own statistics,
        'bottleneck' those of the code alone. 'plain' normalises nothing. exchanges: at a swap a plain model exchanges
        the sides' mean codes.
        """
        self.code_kind = kind
        layers = self.shared_layers() if kind == "encoder" else self.bottleneck()
        for path, channels in layers.items():
            is_flat = path == "encoder" or isinstance(self.get_submodule(path), nn.Linear)
            is_code = path == self.code_layer()
            self.statistics[path.replace(".", "_")] = SideStatistics(channels, kind != "plain", is_flat, is_code)
            self._holders |= {path[:end] for end, letter in enumerate(path) if letter == "."}
        self.exchange_mean_codes(exchanges)
        return self

    def with_landmark_reader(self) -> FaceAutoencoder:
        """Let the model read each face's landmarks off its code in training; return the model.

        One linear layer reads both people's codes, so the same pose and expression have to be the same code. It begins
        with zeros. A model that is not trained needs none.
        """
        (channels,) = self.bottleneck().values()
        self.landmark_reader = nn.Linear(channels, LANDMARKS)
        nn.init.zeros_(self.landmark_reader.weight)
        nn.init.zeros_(self.landmark_reader.bias)
        leave_to_adam(self.landmark_reader.weight)
        return self

    def load_trained(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a checkpoint's weights by name; the landmark reader's where both have one.

        Raises RuntimeError where they are another model's.
        """
        of_reader = {name: weights.get(name, own) for name, own in self.state_dict().items() if _is_of_reader(name)}
        self.load_state_dict(without_reader(weights) | of_reader)

    def shared_layers(self) -> dict[str, int]:
        """Return the paths and channels of all layers up to the code."""
        return code_layers(self.encoder, "encoder")[0]

    def bottleneck(self) -> dict[str, int]:
        """Return the path and the channels of the layer that makes the code."""
        path, channels = list(self.shared_layers().items())[-1]
        return {path: channels}

    def code_layer(self) -> str:
        """Return the path of the last layer that has statistics on the way of a swap from A to B.

        Behind it a swap goes from where one side's faces in their own colours lie to where the other's do.
        """
        (path,) = self.bottleneck()
        return path

    def update_statistics(self) -> None:
        """Take what the sides' faces gave since the last step of the weights into their running statistics."""
        for layer in self.statistics.values():
            cast(SideStatistics, layer).update()

    @torch.no_grad()
    def code_features(self, images: Tensor, side: str) -> Tensor:
        """Return each face's mean features of the code layer, (N, C) float32, as a side's own face has them.

        images: (N, 3, S, S) in 0..1 of ``side``. The model must be in evaluation mode.
        """
        path = self.code_layer()
        code: dict[str, Tensor | None] = {path: None}
        rows = Rows(len(images), side, side)
        self.side_code(self.encode(images, [rows], code), rows, code)
        return of_faces(cast(Tensor, code[path]))

    def put_uncolored(self, side: str, mean: Tensor, covariates: Tensor, faces: int, directions: Tensor) -> None:
        """Take in where the codes of a side's faces lie that are not augmented, see ``SideStatistics``."""
        statistics = cast(SideStatistics, self.statistics_behind(self.code_layer()))
        statistics.put_uncolored(side, mean, covariates, faces, directions)

    def forget_uncolored(self) -> None:
        """Forget where the codes of faces lie that are not augmented."""
        for layer in self.statistics.values():
            cast(SideStatistics, layer).forget_uncolored()

    def compare_poses(self, side_means: Tensor, side_covariances: Tensor) -> None:
        """Compare the sides' features at the poses that both have in common; for both see ``SideStatistics``."""
        for layer in self.statistics.values():
            statistics = cast(SideStatistics, layer)
            statistics.side_means.copy_(side_means)
            statistics.side_covariances.copy_(side_covariances)

    def exchange_mean_codes(self, exchanges: bool) -> None:
        """Choose whether a swap goes from the mean code of one side's faces to that of the other's."""
        for layer in self.statistics.values():
            cast(SideStatistics, layer).exchanges = exchanges

    def initialise(self, seed: int) -> FaceAutoencoder:
        """Draw all weights from ``seed``; return the model."""
        initialise(self, torch.Generator().manual_seed(seed % 2**63), self.glorot)
        start_counters(self, seed)
        return self

    def encode(self, images: Tensor, rows: Sequence[Rows], kept: dict[str, Tensor | None] | None = None) -> Tensor:
        """Return the features that all sides share, whatever the shape of a face's is.

        images: (N, 3, S, S) in 0..1. rows: which side they show, in their order. kept: see ``run_layers``.
        """
        if self.standardise:
            spread, mean = torch.std_mean(images.float(), dim=(1, 2, 3), keepdim=True, correction=0)
            images = ((images - mean) / (spread + 1e-3) * 0.25 + 0.5).to(images.dtype)
        return self.run_layers(self.encoder, "encoder", images, rows, kept)

    def run_layers(
        self,
        module: nn.Module,
        path: str,
        x: Tensor,
        rows: Sequence[Rows],
        kept: dict[str, Tensor | None] | None = None,
    ) -> Tensor:
        """Return what the module at ``path`` makes of ``x``, with statistics behind the layers that have some.

        kept: is given what comes out of the layers whose paths it has, behind their statistics.
        """
        if self.has_statistics_within(path):
            for name, layer in module.named_children():
                x = self.run_layers(layer, f"{path}.{name}", x, rows, kept)
        else:
            x = module(x)
        statistics = self.statistics_behind(path)
        if statistics is not None:
            x = statistics(x, rows)
        if kept is not None and path in kept:
            kept[path] = x
        return x

    def has_statistics_within(self, path: str) -> bool:
        """Return whether there are statistics between the layers of the module at ``path``."""
        return path in self._holders

    def statistics_behind(self, path: str) -> SideStatistics | None:
        """Return the statistics of what the module at ``path`` makes, or None where there are none."""
        key = path.replace(".", "_")
        return cast(SideStatistics, self.statistics[key]) if key in self.statistics else None

    def side_code(self, features: Tensor, rows: Rows, kept: dict[str, Tensor | None] | None = None) -> Tensor:
        """Return what the decoder of the wanted side is given: the features themselves where a side owns its decoder.

        features: of ``encode``. rows: what all of them show and are to become. kept: see ``run_layers``.
        """
        return features

    def code(self, images: Tensor, side: str, of: str | None = None) -> Tensor:
        """Return what the decoder of ``side`` is given to make that side's face of ``images``: (N, C, s, s).

        images: (N, 3, S, S) in 0..1. of: the side that they show, by default the other one.
        Raises SwapfastError for another side or shape.
        """
        for name in (side, side if of is None else of):
            if name not in SIDES:
                raise unknown_name("side of the model", name, list(SIDES))
        edge = self.input_size
        if images.dim() != 4 or images.shape[1:] != (3, edge, edge):
            raise SwapfastError(f"images of shape {tuple(images.shape)}: {self.name} takes (N, 3, {edge}, {edge})")
        rows = Rows(len(images), other_side(side) if of is None else of, side)
        return self.side_code(self.encode(images, [rows]), rows)

    def decoder(self, side: str) -> Decoder:
        """Return the decoder of ``side``, 'a' or 'b'."""
        return cast(Decoder, self.decoders[side] if len(self.decoders) > 1 else next(iter(self.decoders.values())))

    def forward(
        self, images: Sequence[Tensor], cycles: bool = False, covariates: Sequence[Tensor] | None = None
    ) -> list[list[Tensor]]:
        """Return each side's own face, outputs small to large, a mask last.

        images: per side (N, 3, S, S) in 0..1. All sides go through the encoder as one batch.
        covariates: per side (N, 3), by which features are compared, see ``SideStatistics``; None for nothing.
        cycles: return also each side's own face made of its swap, behind the others. No gradient goes through the swap.
        Where there is a reader the last entry is what it reads off the codes of ``images``, per side (N, 136).
        """
        rows = [Rows(len(of_side), side, side) for side, of_side in zip(SIDES, images, strict=True)]
        if covariates is not None:
            rows = [
                part._replace(covariates=with_mean(of_side)) for part, of_side in zip(rows, covariates, strict=True)
            ]
        code: dict[str, Tensor | None] = {} if self.landmark_reader is None else dict.fromkeys(self.bottleneck())
        features = self.encode(torch.cat(list(images)), rows, code).split([part.faces for part in rows])
        own = [
            self.decoder(part.wanted)(self.side_code(of_side, part))
            for part, of_side in zip(rows, features, strict=True)
        ]
        outputs = [*own, *self._there_and_back(features, rows)] if cycles else own
        for of_both in code.values():
            outputs.append(self._landmarks(cast(Tensor, of_both), rows))
        return outputs

    def _landmarks(self, code: Tensor, rows: Sequence[Rows]) -> list[Tensor]:
        """Return what is read off a code (N, C) or (N, C, s, s), per side (N, 136)."""
        assert self.landmark_reader is not None
        flat = code if code.dim() == 2 else code.mean((2, 3))
        return list(self.landmark_reader(flat).split([part.faces for part in rows]))

    def _there_and_back(self, features: Sequence[Tensor], rows: Sequence[Rows]) -> list[list[Tensor]]:
        """Return each side's own face, made of what the other side's decoder makes of its features."""
        with torch.no_grad():
            swap_rows = [part._replace(wanted=other_side(part.shown), are_swaps=True) for part in rows]
            swaps = [
                self._as_input(self.decoder(part.wanted)(self.side_code(of_side, part)))
                for part, of_side in zip(swap_rows, features, strict=True)
            ]
        return_rows = [part._replace(shown=part.wanted, wanted=part.shown) for part in swap_rows]
        codes = self.encode(torch.cat(swaps), return_rows).split([part.faces for part in return_rows])
        return [
            self.decoder(part.wanted)(self.side_code(code, part)) for part, code in zip(return_rows, codes, strict=True)
        ]

    def _as_input(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the largest face of a decoder's outputs at the size of the model's input."""
        face = outputs[-2 if self.learns_mask else -1]
        if face.shape[-1] == self.input_size:
            return face
        return F.interpolate(face, size=self.input_size, mode="bilinear", antialias=True)

    def swap(self, images: Tensor, to: str, of: str | None = None) -> list[Tensor]:
        """Return the face of side ``to``, 'a' or 'b', with the pose and expression of ``images``; a mask last.

        images: (N, 3, S, S) in 0..1. of: the side that they show, by default the other one.
        Raises SwapfastError for another side or shape.
        """
        code = self.code(images, to, of)
        return self.decoder(to)(code)

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that can be frozen or counted by themselves, such as 'encoder' and 'decoder_a'."""
        return {
            name if part is child else f"{name[:-1]}_{part_name}": part
            for name, child in self.named_children()
            if child is not self.statistics and child is not self.landmark_reader
            for part_name, part in (child.items() if isinstance(child, nn.ModuleDict) else [("", child)])
        }

    @property
    def learns_mask(self) -> bool:
        """Whether the last output of a side is a mask."""
        return self.decoder(SIDES[0]).mask is not None


def without_reader(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's weights by name without those that only its training needs."""
    return {name: weight for name, weight in weights.items() if not _is_of_reader(name)}


def _is_of_reader(name: str) -> bool:
    return name.startswith(_READER)
