"""Measures the statistics of both people's codes anew, by the weights that are saved or shown.

Running ones are of weights that were, some fifty steps ago, and averages of them are not those of averaged weights. As
long as weights move fast, a finished model's features lie elsewhere than in training: those of a narrow df's first
layer by half a deviation and more after 250 iterations. Batch normalisation has the same trouble with averaged weights
(Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018), and the same way out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from swapfast.batch import SIDES
from swapfast.models import FaceAutoencoder
from swapfast.models.side_statistics import Rows, SideStatistics, with_mean
from swapfast.training.validation import evaluating

FACES_AT_ONCE = 32  # of each side: as many as a batch normalises together
COLOR_DIRECTIONS = 5  # of a code: three of L*, a* and b*, which bend, and CLAHE
SHORTEST = 1e-6  # of the furthest one: what is less is rounding


@dataclass(frozen=True)
class SampleFaces:
    """Some faces of a side, augmented as in training.

    images: (n, 3, S, S) uint8 in the model's colour order. covariates: (n, 3) float32, by which codes are compared;
    None for nothing.
    """

    images: np.ndarray
    covariates: np.ndarray | None


@dataclass(frozen=True)
class OwnColorFaces:
    """Some faces of a side as they are, and in other colours.

    images: (n, 3, S, S) uint8. weights: (n,), what each counts in a mean. covariates: (3,), their mean, 0 where codes
    are not compared by them. recolored_images: (m, 3, S, S) uint8, the first m in colours as training changes them.
    """

    images: np.ndarray
    weights: np.ndarray
    covariates: np.ndarray
    recolored_images: np.ndarray


class CodeStatistics:
    """Puts statistics of both sides' codes into each of ``models``.

    faces: per side as many, as training shows them, by which codes are normalised or their means are exchanged.
    own_colors: faces of each side that tell where codes of faces in their own colours lie; None where nothing is to be
    known of that. autocast: what the models compute in, None for float32. Nothing is computed twice
    for the same weights, nothing that is trained changes, no other process is needed.
    """

    def __init__(
        self,
        models: Sequence[FaceAutoencoder],
        faces: Sequence[SampleFaces],
        own_colors: Sequence[OwnColorFaces] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._models, self._faces, self._autocast = list(models), list(faces), autocast
        self._own_colors = own_colors
        self._twins = [_twin(model) for model in self._models]
        self._is_current = False

    def note_change(self) -> None:
        """Weights have changed."""
        self._is_current = False

    def measure(self) -> None:
        """Bring the statistics of all models up to date."""
        if self._is_current:
            return
        for model, twin in zip(self._models, self._twins, strict=True):
            with evaluating(model):
                self._measure_moments(model, twin)
                if self._own_colors is not None:
                    self._measure_own_colors(model, self._own_colors)
        self._is_current = True

    def _measure_moments(self, model: FaceAutoencoder, twin: FaceAutoencoder) -> None:
        """Let the twin see batches as in training, and the model take over the moments that it finds."""
        pairs = list(zip(_layers(model), _layers(twin), strict=True))
        for own, found in pairs:
            found.forget_features()
            for name in ("side_means", "side_covariances", "slopes"):
                getattr(found, name).copy_(getattr(own, name))
            found.train()
        for first in range(0, len(self._faces[0].images), FACES_AT_ONCE):
            part = slice(first, first + FACES_AT_ONCE)
            images = _images(model, np.concatenate([faces.images[part] for faces in self._faces]))
            images = images.contiguous(memory_format=torch.channels_last)
            rows = [_rows(side, faces, part, images.device) for side, faces in zip(SIDES, self._faces, strict=True)]
            with torch.autocast(images.device.type, self._autocast, enabled=self._autocast is not None):
                features = twin.encode(images, rows)
                for of_side, values in zip(rows, features.split([of_side.faces for of_side in rows]), strict=True):
                    twin.side_code(values, of_side)
        for own, found in pairs:
            found.take_slopes()  # those of the model stay: training goes by them
            found.update()
            own.moments.copy_(torch.where((found.steps > 0)[:, None, None], found.moments, own.moments))

    def _measure_own_colors(self, model: FaceAutoencoder, faces: Sequence[OwnColorFaces]) -> None:
        """Tell the model where the codes of faces in their own colours lie.

        Two people's faces differ in more than colours, in how large and how high they are in their crops above all, and
        a swap of A is to stand where A does: only that counts which other colours change too.
        """
        codes = [self._features(model, side, part.images) for side, part in zip(SIDES, faces, strict=True)]
        recolored = [
            self._features(model, side, part.recolored_images) for side, part in zip(SIDES, faces, strict=True)
        ]
        if not all(values.isfinite().all() for values in (*codes, *recolored)):
            return  # of weights that are broken: what was known stays
        moves = [moved - own[: len(moved)] for own, moved in zip(codes, recolored, strict=True)]
        directions = main_directions(torch.cat(moves), COLOR_DIRECTIONS)
        device = next(model.parameters()).device
        for side, part, values in zip(SIDES, faces, codes, strict=True):
            mean = torch.from_numpy(np.average(values.numpy(), axis=0, weights=part.weights)).to(device)
            covariates = torch.from_numpy(part.covariates).to(device)
            model.put_uncolored(side, mean, covariates, len(values), directions.to(device))

    def _features(self, model: FaceAutoencoder, side: str, faces: np.ndarray) -> Tensor:
        """Return the features of the code of each face, (n, C) float64 on the host."""
        features = []
        for first in range(0, len(faces), FACES_AT_ONCE):
            images = _images(model, faces[first : first + FACES_AT_ONCE])
            with torch.autocast(images.device.type, self._autocast, enabled=self._autocast is not None):
                features.append(model.code_features(images, side).cpu().double())
        return torch.cat(features)


def main_directions(moves: Tensor, most: int) -> Tensor:
    """Return the directions in which rows (n, C) float64 lie furthest from zero, (k, C) orthonormal.

    most: of them. Rows that are all zero have none.
    """
    _, lengths, directions = torch.linalg.svd(moves, full_matrices=False)
    return directions[:most][lengths[:most] > SHORTEST * lengths.max()]


def _images(model: FaceAutoencoder, faces: np.ndarray) -> Tensor:
    """Return faces (n, 3, S, S) uint8 in 0..1 on the model's device."""
    return torch.from_numpy(faces).to(next(model.parameters()).device).float() / 255


def _rows(side: str, faces: SampleFaces, part: slice, device: torch.device) -> Rows:
    """Return what some faces of a side are, and their covariates, compared among themselves."""
    number = len(faces.images[part])
    if faces.covariates is None:
        return Rows(number, side, side)
    covariates = torch.from_numpy(faces.covariates[part]).to(device)
    return Rows(number, side, side, covariates=with_mean(covariates, of_all_processes=False))


def _layers(model: FaceAutoencoder) -> list[SideStatistics]:
    return [cast(SideStatistics, layer) for layer in model.statistics.values()]


def _twin(model: FaceAutoencoder) -> FaceAutoencoder:
    """Return a model of the same weights, now and later, with statistics of its own that are of this process alone."""
    shared = {id(tensor): tensor for tensor in model.parameters()}
    twin = copy.deepcopy(model, shared).eval()
    for layer in _layers(twin):
        layer.is_of_all_processes = False
    return twin
