"""Measures how a model reconstructs the faces held out for the test, which no step, sheet or choice has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.collate import Collate
from pipelines.dataset import check_prepared, only_tested
from pipelines.fill import FaceSource
from pipelines.run.build import make_augmenter
from pipelines.run.known_faces import refuse_exchanged
from pipelines.run.plan import loss_collator
from pipelines.run.validation import NO_AUGMENTATION
from pipelines.sides import Log, ProgressFactory, no_log, no_progress, scan_side
from pipelines.store import StoreSpec
from swapfast.augment.draws import draw
from swapfast.batch import SIDES, Batch
from swapfast.config import TrainConfig
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.faces.masks import needed_masks
from swapfast.models import FaceAutoencoder
from swapfast.training.validation import OneSided, evaluating, validation_losses

FACES_AT_ONCE = 64


@dataclass(frozen=True)
class SideReconstruction:
    """How one side's decoder reconstructs that side's test faces, in the mean over them.

    loss: of the functions and weights the model was trained with. psnr: dB, inside the face mask where the model was
    trained with one.
    """

    faces: int
    loss: float
    psnr: float


def describe(sides: Mapping[str, SideReconstruction]) -> str:
    """Return a line for each side."""
    return "\n".join(
        f"{name.upper()} > {name.upper()}: loss {side.loss:.5f}, {side.psnr:.2f} dB over {side.faces} test faces"
        for name, side in sides.items()
    )


def to_dict(sides: Mapping[str, SideReconstruction]) -> dict[str, dict]:
    """Return the values, rounded, JSON-ready."""
    return {
        name: asdict(side) | {"loss": round(side.loss, 6), "psnr": round(side.psnr, 3)} for name, side in sides.items()
    }


def trained_folders(state: Mapping, chosen: Mapping[str, Path | None], flag: str = "--test") -> dict[str, Path]:
    """Return each side's folder: as ``chosen``, else the one that a checkpoint's ``state`` says it was trained on.

    flag: what the folders are for. Raises SwapfastError where there is none.
    """
    data = state.get("data")
    folders = {}
    for side in SIDES:
        path = chosen.get(side)
        if path is None:
            faces = data.get(side) if isinstance(data, Mapping) else None
            name = faces.get("folder") if isinstance(faces, Mapping) else None
            path = Path(name) if isinstance(name, str) else None
            if path is None or not path.is_dir():
                known = "names none" if path is None else f"names {path}, which is not there"
                raise SwapfastError(f"{flag}: the model's state.json {known}; give -{side.upper()} and the folder")
        folders[side] = path
    return folders


def reconstruct(
    model: FaceAutoencoder,
    config: TrainConfig,
    folders: Mapping[str, Path],
    known_faces: Mapping[str, Tensor],
    progress: ProgressFactory = no_progress,
    warn: Log = no_log,
) -> dict[str, SideReconstruction]:
    """Return what becomes of each side's test faces, by side.

    folders: of the faces of each side, as they were trained on; the share for the test is found by its pixels.
    known_faces: what the model was trained on, see ``ModelMetadata``.
    Raises SwapfastError where the model has no such share, the sides are exchanged, a folder has no test face, or none
    of them can be read.
    """
    if not config.test:
        raise SwapfastError("--test: the model was trained without a share for the test; train one with --test 0.1")
    device = next(model.parameters()).device
    masks = needed_masks(config)
    spec = StoreSpec(max(model.input_size, *model.output_sizes), config.crop, config.mask, masks)
    augment = make_augmenter("kornia", spec.size, model.input_size, model.output_sizes, device, NO_AUGMENTATION)
    collate = Collate(augment, True, masks, model.color_order, device)
    loss = loss_collator(config, model)
    sources = {side: scan_side(folders[side], config.mask.mask_type, True, progress) for side in SIDES}
    refuse_exchanged(sources, known_faces)
    results = {}
    for number, side in enumerate(SIDES):
        for line in check_prepared(sources[side], spec):
            warn(line)
        source = only_tested(sources[side], config.test)
        psnr_of_batches: list[Tensor] = []
        batches = decoded_batches(number, source, spec, collate, progress(f"decoding {folders[side]}"), warn)
        values = validation_losses(model, loss, _with_psnr(model, batches, psnr_of_batches))
        if not psnr_of_batches:
            raise SwapfastError(f"{folders[side]}: no test face of it can be read", EXIT_FAILED)
        psnr = torch.cat(psnr_of_batches)
        results[side] = SideReconstruction(len(psnr), values[f"validation_face_{side.upper()}"], float(psnr.mean()))
    return results


def decoded_batches(
    number: int,
    source: FaceSource,
    spec: StoreSpec,
    collate: Collate,
    progress: Callable[[int, int], None],
    warn: Log,
) -> Iterator[OneSided]:
    """Yield a side's faces, decoded and not augmented; less those that cannot be read, of which ``warn`` is told."""
    for first in range(0, len(source), FACES_AT_ONCE):
        members = range(first, min(first + FACES_AT_ONCE, len(source)))
        faces = np.empty((len(members), *spec.face_shape), np.uint8)
        extra_masks = np.empty((len(members), *spec.extra_masks_shape), np.uint8)
        good = np.ones(len(members), bool)
        for place, member in enumerate(members):
            reason = source.put(spec, member, faces[place], extra_masks[place])
            if reason is not None:
                good[place] = False
                warn(f"warning: {source.folder.records[member].path}: {reason}; left out")
        progress(members.stop, len(source))
        if good.any():
            ids = np.flatnonzero(good) + first
            draws = draw(0, ids.astype(np.uint64), np.full(len(ids), number), spec.size, NO_AUGMENTATION)
            yield number, collate.batch(faces[good], extra_masks[good], draws, ids[None])


def _with_psnr(
    model: FaceAutoencoder, batches: Iterable[OneSided], psnr_of_batches: list[Tensor]
) -> Iterator[OneSided]:
    """Yield the batches, and add each face's PSNR to ``measured``, (B,) dB."""
    for number, batch in batches:
        with evaluating(model):
            outputs = model.swap(batch.inputs[0], to=SIDES[number], of=SIDES[number])
        psnr_of_batches.append(_psnr(outputs[-2 if model.learns_mask else -1].float(), batch).cpu())
        yield number, batch


def _psnr(images: Tensor, batch: Batch) -> Tensor:
    """Return each face's PSNR against the batch's largest target, (B,) dB, inside its face mask if it has one."""
    squares = (images - batch.targets[-1][:, 0]).square().mean(1)
    masks = batch.meta[0].mask_face
    inside = torch.ones_like(squares) if masks is None else masks[-1][:, 0]
    inside = torch.where(inside.sum((1, 2), keepdim=True) > 0, inside, torch.ones_like(inside))
    error = (squares * inside).sum((1, 2)) / inside.sum((1, 2))
    return -10 * error.clamp(min=1e-10).log10()
