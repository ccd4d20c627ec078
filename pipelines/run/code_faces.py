"""Faces by which the statistics of both people's codes are measured, of those that are trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.augmenters import make_augmenter
from pipelines.collate import Collate
from pipelines.dataset import TrainSet
from pipelines.loader import BatchSchedule, TrainLoader
from pipelines.pose_covariates import mirrored_share
from pipelines.run.mean_face import face_of
from pipelines.sampler import Sampler
from swapfast.augment.draws import Draws, draw
from swapfast.batch import SIDES, Batch
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.models import FaceAutoencoder
from swapfast.models.side_statistics import COVARIATES
from swapfast.training.code_statistics import FACES_AT_ONCE, OwnColorFaces, SampleFaces

# Faces of each side; where a folder holds fewer they come again, those that are augmented in another way.
AUGMENTED = 256
AS_THEY_ARE = 128


class SingleFaces:
    """A feed that reads one face after another, from a store or a picture, and none twice; without masks.

    A face that cannot be read is replaced by the next one of its side.
    """

    def __init__(self, sides: Sequence[TrainSet]) -> None:
        self.sides = sides
        self._read: dict[tuple[int, int], tuple[int, np.ndarray]] = {}  # by number of the side, and of the face

    def __call__(self, step: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return faces (N, S, S, 3) uint8, extra masks (N, 0, S, S) and ids as they are read; see ``pipelines.feed``.

        Raises SwapfastError (code 1) where no face of a side can be read.
        """
        found = [[self._face(side, int(number)) for number in of_side] for side, of_side in enumerate(ids)]
        faces = np.stack([face for of_side in found for _, face in of_side])
        size = self.sides[0].spec.size
        read = np.array([[number for number, _ in of_side] for of_side in found])
        return faces, np.empty((len(faces), 0, size, size), np.uint8), read

    def _face(self, side: int, number: int) -> tuple[int, np.ndarray]:
        if (side, number) not in self._read:
            self._read[side, number] = _readable(self.sides[side], number)
        return self._read[side, number]


def _readable(side: TrainSet, number: int) -> tuple[int, np.ndarray]:
    """Return the face of that number, or the next one that can be read, and its number."""
    for offset in range(len(side)):
        face = face_of(side, (number + offset) % len(side))
        if not isinstance(face, str):
            return (number + offset) % len(side), np.ascontiguousarray(face[..., :3])
    raise SwapfastError(f"{side.source.folder.path}: no face of it can be read: {face}", EXIT_FAILED)


class SampleLoader:
    """Makes faces of each side by which statistics are measured, lit as ``loader``'s batches are.

    Raises SwapfastError (code 1) where no face of a side can be read.
    """

    def __init__(self, sides: Sequence[TrainSet], model: FaceAutoencoder, loader: TrainLoader) -> None:
        device, on_device = loader.device, loader.collate.on_device
        backend = "kornia" if on_device else "opencv"
        config = dataclasses.replace(loader.config, color=True)  # for faces in other colours, where training has none
        augment = make_augmenter(backend, loader.size, model.input_size, model.output_sizes, device, config)
        self._sides = sides
        self._loader = TrainLoader(
            SingleFaces(sides),
            Sampler(loader.sampler.seed, loader.sampler.counts, FACES_AT_ONCE),
            Collate(augment, on_device, (), model.color_order, device),
            loader.config,
            loader.size,
            matcher=loader.matcher,
            schedule=BatchSchedule(prefetch=0),
            light=loader.light,
            covariates=loader.covariates,
        )

    def augmented(self) -> list[SampleFaces]:
        """Return AUGMENTED faces of each side, augmented as in training."""
        batches = [self._loader.batch(step) for step in range(AUGMENTED // FACES_AT_ONCE)]
        return [_of_side(batches, number) for number in range(len(self._sides))]

    def own_colors(self) -> list[OwnColorFaces]:
        """Return AS_THEY_ARE faces of each side, the same mirrored where training does, and in other colours."""
        loader, batches = self._loader, range(AS_THEY_ARE // FACES_AT_ONCE)
        always_colored = dataclasses.replace(loader.config, color=True, color_chance=100.0)
        shown: dict[str, list[Batch]] = {"own": [], "mirrored": [], "recolored": []}
        for step in batches:
            faces, masks, ids = loader.feed(step, loader.sampler.ids(step))
            ordinals = loader.sampler.ordinals(step)
            untouched = Draws.identity(ids.size, loader.size)
            sides = np.repeat(np.arange(len(ids)), len(ordinals))
            draws_in_colors = draw(loader.sampler.seed, np.tile(ordinals, len(ids)), sides, loader.size, always_colored)
            recolored = dataclasses.replace(
                untouched,
                lab=draws_in_colors.lab,
                clahe_grid=draws_in_colors.clahe_grid,
                clip_limit=draws_in_colors.clip_limit,
            )
            for name, draws in (
                ("own", untouched),
                ("mirrored", dataclasses.replace(untouched, flip=np.ones(ids.size, bool))),
                ("recolored", recolored),
            ):
                shown[name].append(loader.make_batch(faces, masks, ids, ordinals, draws))
        return [self._own_colors_of(number, shown) for number in range(len(self._sides))]

    def _own_colors_of(self, number: int, shown: Mapping[str, Sequence[Batch]]) -> OwnColorFaces:
        faces = _of_side([*shown["own"], *shown["mirrored"]], number)
        share = mirrored_share(SIDES[number], self._loader.config)
        weights = np.repeat([1 - share, share], len(faces.images) // 2)
        covariates = np.zeros(COVARIATES)
        if faces.covariates is not None:
            covariates = np.average(faces.covariates.astype(np.float64), axis=0, weights=weights)
        return OwnColorFaces(faces.images, weights, covariates, _of_side(shown["recolored"], number).images)


def _of_side(batches: Sequence[Batch], number: int) -> SampleFaces:
    """Return the faces of one side of some batches. number: 0 for A."""
    images = [batch.inputs[number].mul(255).round().byte().cpu().numpy() for batch in batches]
    covariates = [batch.covariates[number].cpu().numpy() for batch in batches if batch.covariates is not None]
    return SampleFaces(np.concatenate(images), np.concatenate(covariates) if covariates else None)
