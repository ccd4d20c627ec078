"""The training loop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from swapfast.batch import Batch
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.losses import BatchLoss, LossCollator
from swapfast.models import SIDES, FaceAutoencoder
from swapfast.training.checkpoint import Checkpoint, CheckpointFolder
from swapfast.training.optimizer import Optimizer
from swapfast.training.progress import ProgressLine, SpeedMeter
from swapfast.training.stop import StopRequest
from swapfast.training.tensorboard import TorchTensorBoard


def step_values(losses: list[BatchLoss]) -> dict[str, Tensor]:
    """The scalars of one step under the peer's TensorBoard tags, still on the device.

    batch_total; per side batch_face_A (all functions), batch_unweighted_A/<function>, batch_weighted_A/<function>
    and batch_mask_A where a mask is learned. Several outputs are added.
    """
    values: dict[str, Tensor] = {}
    for side, loss in zip(SIDES, losses):
        label = side.upper()
        for kind in ("unweighted", "weighted"):
            for output in getattr(loss, kind):
                for name, items in output.items():
                    tag = f"batch_{kind}_{label}/{name}"
                    values[tag] = values.get(tag, 0) + items.detach().mean()
        if loss.mask is not None:
            values[f"batch_mask_{label}"] = loss.mask.detach().mean()
        values[f"batch_face_{label}"] = loss.total.detach()
    values["batch_total"] = sum(values[f"batch_face_{side.upper()}"] for side, _ in zip(SIDES, losses))
    return values


@dataclass
class _Pending:
    """Losses of the steps since the last report: on the device, fetched in one copy."""

    tags: list[str] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    last_step: int = 0

    def add(self, step: int, losses: list[BatchLoss]) -> None:
        values = step_values(losses)
        self.tags = list(values)
        self.rows.append(torch.stack([value.float() for value in values.values()]))
        self.last_step = step

    def take(self) -> list[tuple[int, dict[str, float]]]:
        """(step, tag -> value) in order. Waits for the device."""
        table = torch.stack(self.rows).cpu().tolist() if self.rows else []
        first = self.last_step - len(table) + 1
        self.rows = []
        return [(first + i, dict(zip(self.tags, row))) for i, row in enumerate(table)]


@dataclass
class Run:
    """Where a training run keeps things and when it does them.

    iterations: train up to this many in all. save_interval: iterations between checkpoints.
    state: kept in every checkpoint's JSON (config, versions, data). tensors: kept beside the model's, by file.
    preview: called with the step at every save. saved_step: the step of the newest checkpoint.
    """

    checkpoints: CheckpointFolder
    iterations: int
    save_interval: int
    state: dict = field(default_factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    preview: Callable[[int], None] | None = None
    tensorboard: TorchTensorBoard | None = None
    progress: ProgressLine = field(default_factory=ProgressLine)
    stop: StopRequest = field(default_factory=StopRequest)
    saved_step: int | None = None


class Trainer:
    """Trains ``model`` on ``batches`` until the run's iterations are done or it is asked to stop.

    batches: any iterable of Batch; where it ends, so does training. step: how many iterations the model has had.
    The model, its optimizer and the batches must be on one device.
    """

    def __init__(
        self,
        model: FaceAutoencoder,
        loss: LossCollator,
        optimizer: Optimizer,
        batches: Iterable[Batch],
        run: Run | None = None,
        step: int = 0,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.batches = iter(batches)
        self.run = run
        self.step = step
        self._meter = SpeedMeter()
        self._pending = _Pending()
        self._since_save: list[float] = []

    @property
    def exit_early(self) -> bool:
        """True if there is nothing left to train."""
        return self.step >= self.run.iterations

    def train_one_batch(self) -> list[BatchLoss]:
        """One step on the next batch; the losses of side A, B, ... still on the device.

        Raises StopIteration where there is no further batch.
        """
        start = time.perf_counter()
        batch = next(self.batches)
        self._meter.add(batch.faces, time.perf_counter() - start)

        outputs = self.model(batch.inputs)
        losses = [
            self.loss([target[:, side] for target in batch.targets], predictions, batch.meta[side])
            for side, predictions in enumerate(outputs)
        ]
        self.optimizer.backward(sum(loss.total for loss in losses))
        self.optimizer.step()
        self.step += 1
        return losses

    def train(self) -> None:
        """Run to the end, or until asked to stop; save either way.

        Raises SwapfastError (code 1) where the loss is no longer finite or a checkpoint cannot be written.
        """
        run = self.run
        run.stop.training = True
        reported = float("-inf")
        while not self.exit_early and not run.stop:
            try:
                losses = self.train_one_batch()
            except StopIteration:
                break
            self._pending.add(self.step, losses)
            if time.perf_counter() - reported >= run.progress.interval_s or self.exit_early:
                self._report()
                reported = time.perf_counter()
            if self.step % run.save_interval == 0:
                self.save()
        self._report()
        self.save(is_exit=True)

    def save(self, is_exit: bool = False) -> None:
        """Write a checkpoint and the preview, unless this step is saved already."""
        run = self.run
        if run.saved_step != self.step:
            self._collect()
            weights = self.model.state_dict()
            self._refuse_broken(weights)
            trained = {"model": weights, "optimizer": self.optimizer.state_dict()}
            run.checkpoints.save(Checkpoint(self.step, run.tensors | trained, run.state))
            run.saved_step = self.step
            average = sum(self._since_save) / max(len(self._since_save), 1)
            run.progress.say(f"[Saved model] - Average total loss since last save: {average:.5f}")
            self._since_save.clear()
            if run.preview is not None:
                run.preview(self.step)
        if run.tensorboard is not None:
            run.tensorboard.on_train_end() if is_exit else run.tensorboard.on_save()

    def _refuse_broken(self, weights: dict[str, Tensor]) -> None:
        """A step's loss is taken before its weights move, so finite losses do not prove finite weights."""
        finite = torch.stack([weight.isfinite().all() for weight in weights.values()])
        if not finite.all():
            name = next(n for n, good in zip(weights, finite.tolist()) if not good)
            raise SwapfastError(self._broken(f"the weights ({name})", self.step), EXIT_FAILED)

    def _collect(self) -> dict[str, float]:
        """Fetch the pending losses, log them, and return the last step's. Raises where one is not finite."""
        latest: dict[str, float] = {}
        for step, latest in self._pending.take():
            total = latest["batch_total"]
            if total - total != 0:  # NaN or infinite
                which = [tag for tag, value in latest.items() if value - value != 0 and "_unweighted_" in tag]
                raise SwapfastError(self._broken(f"the loss ({', '.join(which) or 'mask'})", step), EXIT_FAILED)
            self._since_save.append(total)
            if self.run.tensorboard is not None:
                self.run.tensorboard.on_train_batch_end(step, latest)
        return latest

    def _broken(self, what: str, step: int) -> str:
        saved = self.run.saved_step
        kept = f"the checkpoint of iteration {saved} is finite" if saved is not None else "nothing had been saved"
        return f"{what} became non-finite at iteration {step}; {kept}. Start again with a lower --learning-rate"

    def _report(self) -> None:
        values = self._collect()
        if not values:
            return
        speed = self._meter.take()
        sides = {side: values[f"batch_face_{side.upper()}"] for side in SIDES}
        self.run.progress.losses(self.step, sides, speed)
        if self.run.tensorboard is not None:
            scalars = {f"speed/{name}": value for name, value in dataclasses.asdict(speed).items()}
            self.run.tensorboard.on_train_batch_end(self.step, scalars)


def model_folder(path: str | Path) -> CheckpointFolder:
    """The model folder at ``path``; SwapfastError where it is a file or belongs to another program."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise SwapfastError(f"--model-dir {folder}: is a file; give a folder")
    checkpoints = CheckpointFolder(folder)
    if folder.is_dir() and not checkpoints.steps():
        foreign = sorted(p.name for p in folder.iterdir() if p.suffix in {".keras", ".h5", ".dat", ".npy"})
        if foreign:
            raise SwapfastError(
                f"--model-dir {folder}: holds another program's model ({foreign[0]}); give a new folder"
            )
    return checkpoints
