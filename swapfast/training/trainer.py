"""The training loop."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite, nan
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from swapfast.batch import SIDES, Batch
from swapfast.checkpoints.folder import Checkpoint
from swapfast.checkpoints.snapshots import Snapshots
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.logs.steplog import StepLog
from swapfast.logs.tensorboard import TorchTensorBoard
from swapfast.losses import BatchLoss, LossCollator
from swapfast.models import FaceAutoencoder
from swapfast.optim.optimizer import Optimizer
from swapfast.processes import SINGLE_PROCESS, Processes
from swapfast.system import memory_in_use
from swapfast.training.nonfinite import MAX_IN_A_ROW, MAX_ROLLBACKS, Broken, Faces, broken_step
from swapfast.training.pending import Fetched, Pending
from swapfast.training.progress import SpeedMeter
from swapfast.training.run import Run
from swapfast.training.validation import validation_losses


def step_values(losses: list[BatchLoss]) -> dict[str, Tensor]:
    """The scalars of one step under the peer's TensorBoard tags, still on the device.

    batch_total; per side batch_face_A (all functions), batch_unweighted_A/<function>, batch_weighted_A/<function>
    and batch_mask_A where a mask is learned. Several outputs are added.
    """
    tags: list[str] = []
    items: list[Tensor] = []
    ends: dict[str, slice] = {}
    for side, loss in zip(SIDES, losses):  # what adds up to a side's loss comes first, side by side
        first = len(items)
        for output in loss.weighted:
            tags += [f"batch_weighted_{side.upper()}/{name}" for name in output]
            items += output.values()
        if loss.mask is not None:
            tags.append(f"batch_mask_{side.upper()}")
            items.append(loss.mask)
        ends[side] = slice(first, len(items))
    for side, loss in zip(SIDES, losses):
        for output in loss.unweighted:
            tags += [f"batch_unweighted_{side.upper()}/{name}" for name in output]
            items += output.values()
    # One mean for all of them: on a GPU each small operation costs as much as a large one.
    means = torch.stack([item.detach().float() for item in items]).mean(dim=1)
    values: dict[str, Tensor] = {}
    for tag, mean in zip(tags, means.unbind()):
        values[tag] = values[tag] + mean if tag in values else mean
    values |= {f"batch_face_{side.upper()}": means[part].sum() for side, part in ends.items()}
    return values | {"batch_total": means[: ends[SIDES[len(losses) - 1]].stop].sum()}


@dataclass
class _Snapshot:
    """A trainer's state on the host, to be put back to the bit."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class Trainer:
    """Trains ``model`` on ``batches`` until the run's iterations are done or it is asked to stop.

    batches: any iterable of Batch; where it ends, so does training. step: how many iterations the model has had.
    precision: what the model computes in; weights, losses and gradients are float32 always, and 'fp16' wants an
    optimizer made with ``mixed_precision``. The model, its optimizer and the batches must be on one device.
    processes: those that train this model together, each with batches of its own, of ``batch_size`` faces a side in
    all (needed where there are several). Losses that are shown, logged and averaged are means over all faces.
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
        processes: Processes = SINGLE_PROCESS,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.batches = iter(batches)
        self.run = run
        self.step = step
        self._meter = SpeedMeter()
        self._pending = Pending(self.mean_over_faces)
        self._since_save: list[float] = []
        self._reported = float("-inf")
        self.history: list[tuple[int, float]] = []  # (step, average total loss since the save before) of this run
        self._left_out = 0  # steps in a row
        self.faces = self.unwarped = 0  # of this process so far, and how many of them ``Batch.unwarped``
        self._device = next(model.parameters()).device
        self._autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._faces: Faces = None
        self.processes = processes
        self._batch_size = batch_size
        self._share = 1.0  # of a step's faces
        self._parallel = processes.wrap(model)

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
        if self.processes.world > 1:
            self._share = batch.faces / (len(batch.inputs) * self._batch_size)
        self._meter.add(round(batch.faces / self._share), time.perf_counter() - start)
        self.faces += batch.faces
        self.unwarped += batch.unwarped

        self._faces = self._ordinals(batch)
        with self.processes.gradient_sync(self._parallel, self.optimizer.completes_step):
            losses = self._losses(batch)
            total = sum(loss.total for loss in losses)
            if self.processes.world > 1:
                # Gradients become means over processes; they should be means over faces, and some have one more.
                total = total * (self._share * self.processes.world)
            self.optimizer.backward(total)
        self.optimizer.step()
        self.step += 1
        return losses

    def _ordinals(self, batch: Batch) -> Faces:
        """Of all processes' faces: a loss that is not finite may be another's, and all leave the step out."""
        if batch.ordinals is None or self.processes.world == 1:
            return batch.ordinals
        first = batch.step * self._batch_size
        return np.array([first, first + self._batch_size - 1])

    def _losses(self, batch: Batch) -> list[BatchLoss]:
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            outputs = self._parallel(batch.inputs)
        return [
            self.loss([target[:, side] for target in batch.targets], [p.float() for p in predictions], batch.meta[side])
            for side, predictions in enumerate(outputs)
        ]

    def mean_over_faces(self, values: Tensor) -> Tensor:
        """From means over this process' faces of the last batch to means over all processes' faces."""
        return self.processes.mean_over_faces(values, self._share)

    def asked_to_stop(self) -> bool:
        """Whether any process is, so that all stop at the same step. To be called by all."""
        if self.processes.any_on_hosts(bool(self.run.stop))[0]:
            self.run.stop.request("another process")
            return True
        return False

    def train(self) -> None:
        """Run to the end, or until asked to stop; save either way.

        Raises SwapfastError (code 1) where the loss is no longer finite and the policy does not help, or a checkpoint
        cannot be written, and Stopped where a request to stop comes before the first iteration.
        """
        run = self.run
        self._keep_aside()
        if run.nan == "rollback" and run.saved_step is None:
            self.save()  # something to go back to
        try:
            while not self.exit_early and not self.asked_to_stop():
                try:
                    self.train_one_step()
                except StopIteration:
                    break
            self._report(wait=True)
            self.save(is_exit=True)
        finally:
            for log in self._logs():
                log.flush()  # the steps before a failure are those one wants to see
            run.stop.training = True  # if it never was: what is left to do is not to be interrupted by a request
            if run.after_save is not None:
                run.after_save.finish(run.stop)

    def train_one_step(
        self, viewer: Callable[[np.ndarray, str], None] | None = None, do_timelapse: bool = False
    ) -> None:
        """A batch and all that is due with it: the loss line, logs, validation, a checkpoint, a snapshot.

        viewer: is given the preview sheet (H, W, 3) uint8 BGR and its title. do_timelapse: add a picture to the
        timelapse, where the run makes one, though nothing is saved. Raises StopIteration where there is no further
        batch.
        """
        run = self.run
        rate = self.optimizer.learning_rate
        losses = self.train_one_batch()
        run.stop.training = True  # from here on there is something to save
        values = step_values(losses) | self.optimizer.report
        self._pending.add(self.step, time.time(), self._faces, values, {"learning_rate": rate})
        # Fetching and saving are done together; when, one decides.
        shows = time.perf_counter() - self._reported >= run.progress.interval_s
        shows, saves = self.processes.any_on_hosts(shows, run.stop.save_asked())
        if shows or self.exit_early:
            first = self._reported < 0  # a person wants to see at once that it goes
            self._report(self.exit_early or first)  # may go back to a checkpoint: then there is more to do
            self._reported = time.perf_counter()
        if self._validates():
            self._validate()
        if saves or self._saves():
            self.save()
        if run.after_save is not None:
            run.after_save.poll()
        if viewer is not None and run.preview is not None:
            viewer(run.preview.sheet(), "Training - A, B")
        if do_timelapse and run.timelapse is not None:
            run.timelapse(self.step)

    def _saves(self) -> bool:
        """Whether a checkpoint is due at this step."""
        return any(n and self.step % n == 0 for n in (self.run.save_interval, self.run.snapshot_interval))

    def toggle_mask(self) -> None:
        """Show the mask in the preview if it is hidden, hide it if it is shown; from the next sheet on."""
        if self.run is not None and self.run.preview is not None:
            self.run.preview.toggle_mask()

    @property
    def iterations(self) -> int:
        """How many the model has had."""
        return self.step

    @property
    def runs(self) -> list[dict]:
        """One entry for each start of this model's training, oldest first, as its checkpoints tell them."""
        return self.run.state.get("runs", [])

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
        self.step = snapshot.step
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
        """Write a checkpoint and the pictures, unless this step is saved already."""
        run, saved = self.run, False
        self._collect()
        for log in self._logs():
            log.flush()  # before the checkpoint: killed in between, the run goes on behind steps that are not logged
        if run.saved_step != self.step:
            weights = self.model.state_dict()
            self._check(weights)
            trained = {"model": weights, "optimizer": self.optimizer.state_dict()}
            average = self._take_average()
            if self.processes.is_first:
                held = () if run.after_save is None else run.after_save.held
                run.checkpoints.save(Checkpoint(self.step, run.tensors | trained, self._state()), held)
            run.saved_step = self.step
            backed_up = " [Model backed up]" if self._keep_aside() else ""
            if average is not None:
                text = f"[Saved model] - Average total loss since last save: {average:.5f}{backed_up}"
                run.progress.log(text)
            saved = True
        try:
            for draw in (run.preview, run.timelapse):
                if saved and draw is not None:
                    draw(self.step)
            for log in self._logs():
                log.on_train_end() if is_exit else log.on_save()
        finally:  # a checkpoint is copied though there is no room for a picture of it
            if saved and run.after_save is not None:
                run.after_save.saved(self.step)

    def _take_average(self) -> float | None:
        """The mean total loss since the last save, noted as the lowest where it is; None where there was no step."""
        losses, metrics = self._since_save, self.run.metrics
        self._since_save = []
        average = sum(losses) / len(losses) if losses else None
        metrics["average_loss"] = average
        if average is not None:
            self.history.append((self.step, average))
            lowest = metrics.get("lowest_average_loss")
            # That of a few steps is low by chance.
            if 2 * len(losses) >= self.run.save_interval and (lowest is None or average < lowest):
                metrics["lowest_average_loss"] = average
        return average

    def _state(self) -> dict:
        """What the checkpoint's JSON says."""
        if self.runs:
            self.runs[-1]["until_iteration"] = self.step
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return self.run.state | {"saved": now, "metrics": self.run.metrics}

    def _keep_aside(self) -> bool:
        """Make the snapshot and the backup that the newest checkpoint asks for; whether it asks for a backup.

        It says that itself, so a run that was killed before it could keep them does so when it goes on.
        """
        run, step = self.run, self.run.saved_step
        if step is None or not self.processes.is_first:
            return False
        kept = Snapshots(run.checkpoints)
        if step and run.snapshot_interval and step % run.snapshot_interval == 0:
            kept.snapshot(step)
        average = run.metrics.get("average_loss")
        is_lowest = average is not None and average == run.metrics.get("lowest_average_loss")
        if is_lowest:
            kept.back_up(step)
        return is_lowest

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

    def _logs(self) -> list[TorchTensorBoard | StepLog]:
        return [log for log in (self.run.tensorboard, self.run.step_log) if log is not None]

    def _collect(self, wait: bool = True) -> Fetched | None:
        """Fetch what is pending, log it, and return the last good step; answers steps that were not.

        Without ``wait`` only what the device is done with.
        """
        latest: Fetched | None = None
        for fetched in self._pending.take(wait):
            step, values = fetched.step, fetched.values
            accumulated = self.optimizer.accumulation
            broken = broken_step(step, fetched.faces, values, self.optimizer.parameter_name, accumulated)
            if broken is not None:
                self._answer(broken)
                if self.run.nan == "rollback":
                    break  # what came after it is undone
                continue
            if "gradient/norm" in values and not values["nonfinite/step"]:
                self._left_out = 0
            shown = {t: value for t, value in values.items() if not t.startswith("nonfinite/") and isfinite(value)}
            self._since_save.append(shown["batch_total"])
            for log in self._logs():
                log.on_train_batch_end(step, shown, fetched.time)
            latest = dataclasses.replace(fetched, values=shown)
        return latest

    def _validates(self) -> bool:
        """Whether the loss on the faces held out is due."""
        interval = self.run.validation_interval
        if self.run.validation is not None:
            interval = interval or self.run.save_interval
        return bool(interval) and (self.step % interval == 0 or self.exit_early)

    def _validate(self) -> None:
        """Log and show the loss on the faces that are held out; nothing that is trained changes."""
        self._collect()  # the logs are in the order of the steps; several processes fetch together
        if self.run.validation is None:
            return  # another process has the faces
        held_out = itertools.takewhile(lambda _: not self.run.stop, self.run.validation)
        values = validation_losses(self.model, self.loss, held_out, self._autocast)
        if self.run.stop:
            return  # of some of the faces only
        values = {tag: value for tag, value in values.items() if isfinite(value)}
        sides = {side: values.get(f"validation_face_{side.upper()}", nan) for side in SIDES}
        self.run.progress.validation(self.step, sides)
        for log in self._logs():
            log.on_train_batch_end(self.step, values)

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
        self.run.progress.log(f"warning: {broken}; that step was left out (--nan skip)")

    def _roll_back(self, broken: Broken) -> None:
        """Take the newest checkpoint's weights and go on behind the broken step, more slowly."""
        found = self.run.checkpoints.load() if self.processes.is_first else None
        # What rank 0 finds, for all: the others may not see its disk.
        tensors = self.processes.broadcast_tensors(found and found[0].tensors)
        if tensors is None or self.optimizer.rollbacks >= MAX_ROLLBACKS:
            why = "there is no checkpoint" if tensors is None else f"it went back {MAX_ROLLBACKS} times already"
            raise SwapfastError(
                f"{broken}; --nan rollback: {why}. Start again with a lower --learning-rate", EXIT_FAILED
            )
        self.model.load_state_dict(tensors["model"])
        self.optimizer.roll_back(tensors["optimizer"])
        self._since_save.clear()
        self._pending.clear()
        self._go_to(broken.step)
        self.run.progress.log(
            f"warning: {broken}; went back to the weights of iteration {self.run.saved_step} and goes on behind it "
            f"at learning rate {self.optimizer.base_rate:g} (rollback {self.optimizer.rollbacks} of {MAX_ROLLBACKS})"
        )

    def _report(self, wait: bool = False) -> None:
        # Several processes must hear of a broken step at the same time.
        latest = self._collect(wait or self.processes.world > 1)
        if latest is None:
            return
        speed = self._meter.take()
        sides = {side: latest.values[f"batch_face_{side.upper()}"] for side in SIDES}
        self.run.progress.losses(latest.step, sides, speed)
        scalars = {f"speed/{name}": value for name, value in dataclasses.asdict(speed).items()}
        scalars |= {f"memory/{name}_mib": value / 2**20 for name, value in memory_in_use(self._device).items()}
        for log in self._logs():
            log.on_train_batch_end(latest.step, scalars)
            log.flush()
