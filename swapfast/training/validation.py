"""The loss on faces that are never trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from swapfast.batch import SIDES, Batch
from swapfast.losses import LossCollator
from swapfast.models import FaceAutoencoder

OneSided = tuple[int, Batch]  # the side's number, and a batch that has that side alone


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every part goes back to the mode that it was in, frozen ones too."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def validation_losses(
    model: FaceAutoencoder,
    loss: LossCollator,
    batches: Iterable[OneSided],
    precision: torch.dtype | None = None,
) -> dict[str, float]:
    """Mean losses over ``batches``, each face counting the same; nothing of the model changes. Waits for the device.

    precision: what the model computes in, None for float32. Tags: validation_total, and per side validation_face_A (all
    functions, weighted) and validation_unweighted_A/<function>, as in TensorBoard.
    """
    sums: dict[str, Tensor] = {}
    faces: dict[str, int] = {}
    with evaluating(model):
        for side, batch in batches:
            for tag, value in _losses(model, loss, side, batch, precision).items():
                sums[tag] = sums.get(tag, 0) + value * batch.faces
                faces[tag] = faces.get(tag, 0) + batch.faces
    if not sums:
        return {}
    means = torch.stack([total / faces[tag] for tag, total in sums.items()]).tolist()
    values = dict(zip(sums, means))
    return {"validation_total": sum(v for tag, v in values.items() if "_face_" in tag)} | values


def _losses(
    model: FaceAutoencoder, loss: LossCollator, side: int, batch: Batch, precision: torch.dtype | None
) -> dict[str, Tensor]:
    (images,) = batch.inputs
    with torch.autocast(images.device.type, precision, enabled=precision is not None):
        outputs = model.swap(images, to=SIDES[side])
    targets = [target[:, 0] for target in batch.targets]
    found = loss(targets, [output.float() for output in outputs], batch.meta[0])
    label = SIDES[side].upper()
    values: dict[str, Tensor] = {f"validation_face_{label}": found.total}
    for output in found.unweighted:
        for name, items in output.items():
            tag = f"validation_unweighted_{label}/{name}"
            values[tag] = values.get(tag, 0) + items.mean()
    return {tag: value.float() for tag, value in values.items()}
