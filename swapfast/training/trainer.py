"""The training loop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from swapfast.batch import Batch
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.losses import BatchLoss, LossCollator
from swapfast.models import SIDES, FaceAutoencoder
from swapfast.training.checkpoint import Checkpoint, CheckpointFolder
from swapfast.training.nonfinite import MAX_IN_A_ROW, MAX_ROLLBACKS, Broken, Faces, NanPolicy, broken_step
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
    """Scalars of the steps since the last report: on the device, fetched in one copy."""

    tags: list[list[str]] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    marks: list[tuple[int, Faces]] = field(default_factory=list)

    def add(self, step: int, faces: Faces, values: dict[str, Tensor]) -> None:
        self.tags.append(list(values))
        self.rows.append(torch.stack([value.float() for value in values.values()]))
        self.marks.append((step, faces))

    def take(self) -> list[tuple[int, Faces, dict[str, float]]]:
        """(step, its faces, tag -> value) in order. Waits for the device."""
        numbers = iter(torch.cat(self.rows).cpu().tolist() if self.rows else [])
        taken = [(*mark, {tag: next(numbers) for tag in tags}) for mark, tags in zip(self.marks, self.tags)]
        self.tags, self.rows, self.marks = [], [], []
        return taken


@dataclass
class _Snapshot:
    """A trainer's state on the host, to be put back to the bit."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


@dataclass
class Run:
    """Where a training run keeps things and when it does them.

    iterations: train up to this many in all. save_interval: iterations between checkpoints.
    state: kept in every checkpoint's JSON (config, versions, data). tensors: kept beside the model's, by file.
    preview: called with the step at every save. saved_step: the step of the newest checkpoint.
    nan: what becomes of a step whose loss or gradient is not finite, see nonfinite.py. batches_from: makes the batches
    from a step on; without it a run that goes back to a checkpoint takes what comes next.
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
    nan: NanPolicy = "stop"
    batches_from: Callable[[int], Iterable[Batch]] | None = None


class Trainer:
    """Trains ``model`` on ``batches`` until the run's iterations are done or it is asked to stop.

    batches: any iterable of Batch; where it ends, so does training. step: how many iterations the model has had.
    precision: what the model computes in; weights, losses and gradients are float32 always, and 'fp16' wants an
    optimizer made with ``mixed_precision``. The model, its optimizer and the batches must be on one device.
    """

    def __init__(
        self,
        model: FaceAutoencoder,
        loss: LossCollator,
        optimizer: Optimizer,
        batches: Iterable[Batch],
        run: Run | None = None,
        step: int = 0,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
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
        self._left_out = 0  # steps in a row
        self._device = next(model.parameters()).device
        self._autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._faces: Faces = None

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

        self._faces = batch.ordinals
        losses = self._losses(batch)
        self.optimizer.backward(sum(loss.total for loss in losses))
        self.optimizer.step()
        self.step += 1
        return losses

    def _losses(self, batch: Batch) -> list[BatchLoss]:
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            outputs = self.model(batch.inputs)
        return [
            self.loss([target[:, side] for target in batch.targets], [p.float() for p in predictions], batch.meta[side])
            for side, predictions in enumerate(outputs)
        ]

    def train(self) -> None:
        """Run to the end, or until asked to stop; save either way.

        Raises SwapfastError (code 1) where the loss is no longer finite and the policy does not help, or a checkpoint
        cannot be written.
        """
        run = self.run
        run.stop.training = True
        if run.nan == "rollback" and run.saved_step is None:
            self.save()  # something to go back to
        reported = float("-inf")
        ended = False
        while not run.stop and not (ended or self.exit_early):
            try:
                losses = self.train_one_batch()
            except StopIteration:
                ended = True
            else:
                self._pending.add(self.step, self._faces, step_values(losses) | self.optimizer.report)
            if time.perf_counter() - reported >= run.progress.interval_s or ended or self.exit_early:
                self._report()  # which may go back to a checkpoint: then there is more to do
                reported = time.perf_counter()
            if self.step % run.save_interval == 0 and not ended:
                self.save()
        self._report()
        self.save(is_exit=True)

    def snapshot(self) -> _Snapshot:
        """All that training changes, copied to the host."""

        def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

        return _Snapshot(self.step, copied(self.model.state_dict()), copied(self.optimizer.state_dict()))

    def put_back(self, snapshot: _Snapshot) -> None:
        """Be as at the time of ``snapshot``, the batches included where the run can make them again."""
        self.model.load_state_dict(snapshot.model)
        self.optimizer.load_state_dict(snapshot.optimizer)
        self._go_to(snapshot.step)
        self._meter = SpeedMeter()

    def _go_to(self, step: int) -> None:
        """Let the batch of ``step`` come next."""
        if self.run is None or self.run.batches_from is None:
            return
        close = getattr(self.batches, "close", None)
        if close is not None:
            close()  # of a generator: ends the threads that make batches ahead
        self.batches = iter(self.run.batches_from(step))
        self.step = step

    def save(self, is_exit: bool = False) -> None:
        """Write a checkpoint and the preview, unless this step is saved already."""
        run = self.run
        self._collect()
        if run.saved_step != self.step:
            weights = self.model.state_dict()
            self._check(weights)
            trained = {"model": weights, "optimizer": self.optimizer.state_dict()}
            run.checkpoints.save(Checkpoint(self.step, run.tensors | trained, run.state))
            run.saved_step = self.step
            if self._since_save:
                average = sum(self._since_save) / len(self._since_save)
                run.progress.say(f"[Saved model] - Average total loss since last save: {average:.5f}")
            self._since_save.clear()
            if run.preview is not None:
                run.preview(self.step)
        if run.tensorboard is not None:
            run.tensorboard.on_train_end() if is_exit else run.tensorboard.on_save()

    def _check(self, weights: dict[str, Tensor]) -> None:
        """No broken weights are saved. They can overflow though every loss and gradient was finite."""
        finite = torch.stack([weight.isfinite().all() for weight in weights.values()])
        if finite.all():
            return
        name = next(n for n, good in zip(weights, finite.tolist()) if not good)
        broken = Broken(self.step, f"the weights ({name})", None)
        if self.run.nan != "rollback":
            raise SwapfastError(f"{broken}; {self._kept()}. Start again with a lower --learning-rate", EXIT_FAILED)
        self._roll_back(broken)

    def _collect(self) -> dict[str, float]:
        """Fetch what is pending, log it, and return the last good step's values; answers steps that were not."""
        latest: dict[str, float] = {}
        for step, faces, values in self._pending.take():
            broken = broken_step(step, faces, values, self.optimizer.parameter_name)
            if broken is not None:
                self._answer(broken)
                if self.run.nan == "rollback":
                    break  # what came after it is undone
                continue
            if "gradient/norm" in values:
                self._left_out = 0
            latest = {t: value for t, value in values.items() if not t.startswith("nonfinite/") and isfinite(value)}
            self._since_save.append(latest["batch_total"])
            if self.run.tensorboard is not None:
                self.run.tensorboard.on_train_batch_end(step, latest)
        return latest

    def _kept(self) -> str:
        saved = self.run.saved_step
        return f"the checkpoint of iteration {saved} is finite" if saved is not None else "nothing had been saved"

    def _answer(self, broken: Broken) -> None:
        """Do what the policy says about a step that was left out."""
        if self.run.nan == "rollback":
            self._roll_back(broken)
            return
        if self.run.nan == "stop":
            raise SwapfastError(
                f"{broken} and did not reach the weights; {self._kept()}. Start again with a lower --learning-rate, or "
                "with --nan skip or --nan rollback",
                EXIT_FAILED,
            )
        self._left_out += 1
        if self._left_out >= MAX_IN_A_ROW:
            raise SwapfastError(
                f"{broken}, the {MAX_IN_A_ROW}th step in a row; {self._kept()}. Start again with a lower "
                "--learning-rate or --nan rollback, or look at the faces",
                EXIT_FAILED,
            )
        self.run.progress.say(f"warning: {broken}; that step was left out (--nan skip)")

    def _roll_back(self, broken: Broken) -> None:
        """Take the newest checkpoint's weights and go on behind the broken step, more slowly."""
        found = self.run.checkpoints.load()
        if found is None or self.optimizer.rollbacks >= MAX_ROLLBACKS:
            why = "there is no checkpoint" if found is None else f"it went back {MAX_ROLLBACKS} times already"
            raise SwapfastError(
                f"{broken}; --nan rollback: {why}. Start again with a lower --learning-rate", EXIT_FAILED
            )
        checkpoint, _ = found
        self.model.load_state_dict(checkpoint.tensors["model"])
        self.optimizer.roll_back(checkpoint.tensors["optimizer"])
        self._since_save.clear()
        self._go_to(broken.step)
        self.run.progress.say(
            f"warning: {broken}; went back to the weights of iteration {checkpoint.step} and goes on behind it "
            f"at learning rate {self.optimizer.base_rate:g} (rollback {self.optimizer.rollbacks} of {MAX_ROLLBACKS})"
        )

    def _report(self) -> None:
        values = self._collect()
        if not values:
            return
        speed = self._meter.take()
        sides = {side: values[f"batch_face_{side.upper()}"] for side in SIDES}
        self.run.progress.losses(self.step, sides, speed)
        if self.run.tensorboard is not None:
            scalars = {f"speed/{name}": value for name, value in dataclasses.asdict(speed).items()}
            scalars["learning_rate"] = self.optimizer.learning_rate
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
