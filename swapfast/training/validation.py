"""The loss on faces that are never trained on."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from math import isfinite, nan

import numpy as np
import torch
from torch import Tensor, nn

from swapfast.batch import SIDES, Batch
from swapfast.logs.verdict import LEAK_WARNING
from swapfast.losses import LossCollator
from swapfast.models import FaceAutoencoder
from swapfast.swap.leak import LEAK, LeakMeter
from swapfast.swap.quality import QUALITY, QualityProbe
from swapfast.training.measured import GAINS, PSNR, SWAP_GAIN, Measured
from swapfast.training.observers import Observer, Training
from swapfast.training.progress import ProgressLine

LEAKS_TO_WARN = 4  # measurements in a row: a young model of any recipe leaks for a while
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


class Validation(Observer):
    """Reports and shows the loss on the faces that are held out; nothing that is trained changes.

    And how good the swap of those of A is, as far as that can be told without the truth (swap/quality.py).

    interval: iterations between two measurements; the last iteration is measured too. batches: the faces, each time
    the same. Of several processes rank 0 alone has them, and all need the observer: they fetch losses together.
    points: returns the landmarks of A's and B's faces, in their order, once they are there. measured: what earlier
    measurements have found. leak: measures how much of A's skin the swaps keep, None where both people have the same.
    light: of A's faces over that of B's, see ``QualityProbe``.
    """

    def __init__(
        self,
        interval: int,
        batches: Iterable[OneSided] | None,
        progress: ProgressLine,
        points: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None,
        measured: Measured | None = None,
        leak: LeakMeter | None = None,
        light: Tensor | None = None,
    ) -> None:
        self.interval, self.batches, self.progress = interval, batches, progress
        self._points = points
        self._measured = Measured() if measured is None else measured
        self._light = light
        self._leak, self._leaks = leak, 0  # how many measurements in a row

    def on_step(self, training: Training) -> None:
        """Measure where it is due."""
        if training.step % self.interval and not training.exit_early:
            return
        training.fetch_losses()  # so that the logs are in the order of the steps
        if self.batches is None:
            return
        held_out = itertools.takewhile(lambda _: not training.stop, self.batches)
        probe = QualityProbe(training.evaluated, training.autocast, leak=self._leak, light=self._light)
        values = validation_losses(training.evaluated, training.loss, probe.watch(held_out), training.autocast)
        if training.stop:
            return  # the losses are of some of the faces only
        probe.points = self._points and self._points()
        values |= probe.values()
        values = {tag: value for tag, value in values.items() if isfinite(value)}
        gains = self._measured.add(training.step, values)
        sides = {side: values.get(f"validation_face_{side.upper()}", nan) for side in SIDES}
        shown_gains = {side.upper(): gains[tag] for side, tag in GAINS.items() if tag in gains}
        if SWAP_GAIN in gains:
            shown_gains["swap"] = gains[SWAP_GAIN]
        verdict = self._measured.verdict().gains
        self.progress.validation(training.step, sides, values.get(QUALITY), values.get(LEAK), shown_gains, verdict)
        self._warn_of_leak(training.step, values.get(LEAK, 0.0))
        training.report(values | gains)

    def _warn_of_leak(self, step: int, leak: float) -> None:
        """Print a line where the swap keeps A's skin for the LEAKS_TO_WARN-th time in a row, not behind that."""
        self._leaks = self._leaks + 1 if leak >= LEAK_WARNING else 0
        if self._leaks == LEAKS_TO_WARN:
            self.progress.log(
                f"warning: iteration {step}: the swap keeps {100 * leak:.0f} % of A's skin, unless A's faces are lit "
                "otherwise than B's; --code encoder --cycle-weight 50 keeps less (docs/learning.md)"
            )


def validation_losses(
    model: FaceAutoencoder,
    loss: LossCollator,
    batches: Iterable[OneSided],
    precision: torch.dtype | None = None,
) -> dict[str, float]:
    """Return the mean losses over ``batches``, each face counting the same. Waits for the device.

    precision: what the model computes in, None for float32. Tags: validation_total, and per side validation_face_A (all
    functions, weighted) and validation_unweighted_A/<function>, as in TensorBoard, and validation/psnr_a, the mean dB
    of the faces inside their masks.
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
        outputs = model.swap(images, to=SIDES[side], of=SIDES[side])
    targets = [target[:, 0] for target in batch.targets]
    losses = loss(targets, [output.float() for output in outputs], batch.meta[0])
    label = SIDES[side].upper()
    values: dict[str, Tensor] = {f"validation_face_{label}": losses.total}
    for output in losses.unweighted:
        for name, items in output.items():
            tag = f"validation_unweighted_{label}/{name}"
            values[tag] = values.get(tag, 0) + items.mean()
    values[PSNR[SIDES[side]]] = _psnr(outputs[-2 if model.learns_mask else -1], targets[-1], batch.meta[0].mask_face)
    return {tag: value.float() for tag, value in values.items()}


def _psnr(images: Tensor, faces: Tensor, masks: list[Tensor] | None) -> Tensor:
    """Return the mean over faces of their dB inside their masks, or over all of the crop where there are none."""
    squares = (images.float() - faces.float()).square().mean(1)
    weights = torch.ones_like(squares) if masks is None else masks[-1][:, 0].float()
    weights = torch.where(weights.sum((1, 2), keepdim=True) > 0, weights, torch.ones_like(weights))
    errors = (squares * weights).sum((1, 2)) / weights.sum((1, 2))
    return (-10 * errors.clamp(min=1e-10).log10()).mean()
