"""The training loop."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from math import isfinite
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from swapfast.batch import SIDES, Batch
from swapfast.checkpoints.averages import FILE as AVERAGES_FILE
from swapfast.checkpoints.transfer import trained_state
from swapfast.device import Precision
from swapfast.losses import BatchLoss, LossCollator
from swapfast.models import FaceAutoencoder
from swapfast.optim.optimizer import Optimizer
from swapfast.processes import SINGLE_PROCESS, Processes
from swapfast.stop import StalledWait, Stopped, StopRequest, interruptible
from swapfast.system import memory_in_use
from swapfast.training.averages import WeightAverages
from swapfast.training.code_statistics import CodeStatistics
from swapfast.training.graphed import Capturing, GraphedStep, StepResult
from swapfast.training.nonfinite import (
    MAX_ROLLBACKS,
    Faces,
    NonFiniteStep,
    SkippedSteps,
    nonfinite_step,
    nonfinite_weights,
    rollback_error,
    weights_error,
)
from swapfast.training.observers import call_all
from swapfast.training.pending import Fetched, Pending
from swapfast.training.progress import NoProgress, SpeedMeter
from swapfast.training.run import Run
from swapfast.training.saver import Saver
from swapfast.training.step_values import step_values

Exchange = Literal["fp32", "bf16"]  # what processes send gradients in
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@runtime_checkable
class RewindableBatches(Protocol):
    """Batches of which any can be made again."""

    def from_step(self, step: int) -> Iterator[Batch]:
        """Return the batches from ``step`` on, counted from 0."""


@dataclass
class TrainerState:
    """What training changes, copied to the host, to be put back to the bit."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


class Trainer:
    """Trains ``model`` on ``batches`` until the run's iterations are done or it is asked to stop.

    The model, its optimizer and the batches must be on one device. Losses that are shown, logged and averaged are means
    over all faces of all processes. Without a run it trains for as long as there are batches, silently, and saves
    nothing. Raises ValueError where several processes are given no ``batch_size``.

    batches     any iterable of Batch; where it ends, so does training. Where it has ``from_step`` (RewindableBatches) a
                run that goes back to a checkpoint takes the batch behind the broken one, otherwise the next
    step        iterations the model has had
    precision   what the model computes in; weights, losses and gradients are float32 always, and 'fp16' wants an
                optimizer made with ``mixed_precision``
    processes   those that train this model together, each with batches of its own
    batch_size  faces a side of one step, of all processes
    exchange    what several processes send gradients in, 'fp32' or 'bf16'
    capturing   what makes a CUDA graph of a step (``CudaGraphs``), or None to launch its operations one by one
    averages    of the weights, or None; of several processes rank 0 alone has them
    evaluated   the model that observers show and measure, or None for ``model``
    statistics  measures those of both models' codes before they are shown or saved, or None for the running ones; of
                several processes rank 0 alone has it
    """

    def __init__(
        self,
        model: FaceAutoencoder,
        loss: LossCollator,
        optimizer: Optimizer,
        batches: Iterable[Batch],
        run: Run | None = None,
        step: int = 0,
        precision: Precision = "fp32",
        processes: Processes = SINGLE_PROCESS,
        batch_size: int | None = None,
        capturing: Capturing | None = None,
        exchange: Exchange = "fp32",
        averages: WeightAverages | None = None,
        evaluated: FaceAutoencoder | None = None,
        statistics: CodeStatistics | None = None,
    ) -> None:
        if batch_size is None and processes.world > 1:
            raise ValueError(f"batch_size: {processes.world} processes need to know how many faces a step has in all")
        self.model = model
        self.averages = averages
        self._statistics = CodeStatistics([], []) if statistics is None else statistics
        self._evaluated = model if evaluated is None else evaluated
        self.loss = loss
        self.optimizer = optimizer
        self.batches = iter(batches)
        self.run = Run(progress=NoProgress()) if run is None else run
        self.step = step
        self.autocast = AUTOCAST[precision]
        self.processes = processes
        self.faces = self.unwarped = 0  # of this process so far, and how many of them ``Batch.unwarped``
        self._rewindable = batches if isinstance(batches, RewindableBatches) else None
        self._batch_size = batch_size or 0  # 0 only where each batch is a whole step
        self._share = 1.0  # of a step's faces that are this process'
        self._ordinals: Faces = None  # of the last step
        self._parallel = processes.wrap(model, exchange)
        self._device = next(model.parameters()).device
        self._saver = Saver(self.run, processes)
        self._pending = Pending(self.mean_over_faces)
        self._meter = SpeedMeter()
        self._shown_at = float("-inf")  # when the loss line was last shown
        self._skipped = SkippedSteps()
        self._stops = False  # whether all stop now
        self._values: dict[str, Tensor] = {}  # the last batch's scalars, for the logs
        self._graphed: GraphedStep | None = None
        if capturing is not None:
            self._graphed = GraphedStep(self._compute, model, optimizer, capturing, self.run.progress.log)

    # --- training ---------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run to the end, or until asked to stop; save either way.

        Raises SwapfastError (code 1) where the loss is no longer finite and the policy does not help, or a checkpoint
        cannot be written, and Stopped where a request to stop comes before the first iteration.
        """
        failure: BaseException | None = None
        self._saver.keep_aside()
        if self.run.nan == "rollback" and self.run.saved_step is None:
            self.save()  # something to go back to
        try:
            self._stops = self.asked_to_stop()
            if self._stops and not self.stop.training:  # put off by an import that was awaited
                raise Stopped(self.stop.reason)
            while not self.exit_early and not self._stops:
                try:
                    self.train_one_step()
                except StopIteration:
                    break
                except StalledWait:
                    if self.processes.world > 1:
                        raise  # the others wait for this one's share of the step: there is no saving together
                    self.run.progress.log("warning: a face is being read and does not come; it is not waited for")
                    break
            self._show_losses(wait=True)
            self.save()
        except BaseException as error:
            failure = error
            raise
        finally:
            self.stop.training = True  # if it never was: what is left to do is not to be interrupted by a request
            self._end(failure)

    def train_one_step(
        self, viewer: Callable[[np.ndarray, str], None] | None = None, do_timelapse: bool = False
    ) -> None:
        """Train on a batch and do all that is due with it: the loss line, observers, a checkpoint, a snapshot.

        viewer: is given the preview sheet (H, W, 3) uint8 BGR and its title. do_timelapse: add a picture to the
        timelapse, where the run makes one, though nothing is saved. Raises StopIteration where there is no further
        batch.
        """
        rate = self.optimizer.learning_rate
        self.train_one_batch()
        self.stop.training = True  # from here on there is something to save
        values = self._values | self.optimizer.report
        self._pending.add(self.step, time.time(), self._ordinals, values, {"learning_rate": rate})
        shows, saves = self._agree()
        if shows or self.exit_early:
            is_first = self._shown_at < 0  # a person wants to see at once that it goes
            self._show_losses(wait=self.exit_early or is_first)  # may go back to a checkpoint: then more is to do
            self._shown_at = time.perf_counter()
        for observer in self.run.observers:
            observer.on_step(self)
        if saves or self._saver.is_due(self.step):
            self.save()
        for observer in self.run.observers:
            if viewer is not None:
                observer.on_view(viewer)
            if do_timelapse:
                observer.on_timelapse(self.step)
        if self.processes.world == 1:
            self._stops = bool(self.stop)  # what was asked for while observers worked

    def _agree(self) -> tuple[bool, bool]:
        """Return whether to show losses and to save, and note whether to stop: what one asks for, all do.

        One exchange for all three: at steps of a millisecond a second one would cost as much as the gradients'.
        """
        is_late = time.perf_counter() - self._shown_at >= self.run.progress.interval_s
        shows, saves, stops = self.processes.any_on_hosts(is_late, self.stop.save_asked(), bool(self.stop))
        self._note_stop(stops)
        return shows, saves

    def train_one_batch(self) -> list[BatchLoss]:
        """Move the weights by the next batch; return the losses of side A, B, ... still on the device.

        Where steps are CUDA graphs the next one writes into the same tensors. Raises StopIteration where there is no
        further batch.
        """
        start = time.perf_counter()
        with interruptible():
            batch = next(self.batches)
        if self.processes.world > 1:
            self._share = batch.faces / (len(batch.inputs) * self._batch_size)
        self._meter.add(round(batch.faces / self._share), time.perf_counter() - start)
        self.faces += batch.faces
        self.unwarped += batch.unwarped
        self._ordinals = self._ordinals_of_all(batch)

        completes_step = self.optimizer.completes_step
        result = self._compute(batch, completes_step) if self._graphed is None else self._graphed(batch)
        self.optimizer.count_batch(result.report, result.gradients)
        if self.averages is not None and completes_step and not self.optimizer.is_searching:
            self.averages.add_step(self.optimizer.steps, result.report["nonfinite/left_out"])
        self._values = result.values
        self._statistics.note_change()
        self.step += 1
        return result.losses

    @property
    def evaluated(self) -> FaceAutoencoder:
        """The model that observers show and measure, with the statistics of its newest weights."""
        self._statistics.measure()
        return self._evaluated

    def _compute(self, batch: Batch, completes_step: bool) -> StepResult:
        """Do what an iteration does on the device, all in tensors that stay where they are but for the result's."""
        with self.processes.gradient_sync(self._parallel, completes_step):
            losses = self._forward(batch)
            total = reduce(torch.add, (loss.total for loss in losses))
            if self.processes.world > 1:
                # Gradients become means over processes; they should be means over faces, and some have one more.
                total = total * (self._share * self.processes.world)
            if self.loss.sums:
                total = total * round(len(batch.inputs[0]) / self._share)
            self.optimizer.add_gradients(total)
        if completes_step:
            self.optimizer.move_weights()
            self.model.update_statistics()
        losses = [loss.detach() for loss in losses]
        gradients = [] if completes_step else self.optimizer.gradients
        return StepResult(losses, step_values(losses), self.optimizer.report, gradients)

    def _ordinals_of_all(self, batch: Batch) -> Faces:
        """Return the ordinals of all processes' faces: whichever has a loss that is not finite, all skip the step."""
        if batch.ordinals is None or self.processes.world == 1:
            return batch.ordinals
        own_first = self.processes.rank * self._batch_size // self.processes.world  # within the step, as Sampler has it
        first = int(batch.ordinals[0]) - own_first
        return np.array([first, first + self._batch_size - 1])

    def _forward(self, batch: Batch) -> list[BatchLoss]:
        with torch.autocast(self._device.type, self.autocast, enabled=self.autocast is not None):
            outputs = self._parallel(batch.inputs, self.loss.cycle_weight > 0, batch.covariates)
        read = outputs.pop() if self.model.landmark_reader is not None else []
        losses = [
            self.loss([target[:, side] for target in batch.targets], [p.float() for p in predictions], batch.meta[side])
            for side, predictions in zip(itertools.cycle(range(len(batch.inputs))), outputs)
        ]
        own, back = losses[: len(batch.inputs)], losses[len(batch.inputs) :]
        if back:
            own = [loss.with_cycle(cycle, self.loss.cycle_weight) for loss, cycle in zip(own, back, strict=True)]
        if not read or batch.landmarks is None or not self.loss.landmark_weight:
            return own
        return [
            loss.with_landmarks(points.float(), truth, self.loss.landmark_weight)
            for loss, points, truth in zip(own, read, batch.landmarks, strict=True)
        ]

    def mean_over_faces(self, values: Tensor) -> Tensor:
        """Turn means over this process' faces of the last batch into means over all processes' faces."""
        return self.processes.mean_over_faces(values, self._share)

    # --- the end ----------------------------------------------------------------------------------------------

    @property
    def exit_early(self) -> bool:
        """True if there is nothing left to train."""
        return self.step >= self.run.iterations

    @property
    def stop(self) -> StopRequest:
        """The request to stop, true once somebody has asked this process."""
        return self.run.stop

    def asked_to_stop(self) -> bool:
        """Return whether any process is asked to stop, so that all stop at the same step. Every process must call."""
        return self._note_stop(self.processes.any_on_hosts(bool(self.stop))[0])

    def _note_stop(self, stops: bool) -> bool:
        self._stops = stops
        if stops:
            self.stop.request("another process")
        return stops

    def _end(self, error: BaseException | None = None) -> None:
        try:
            call_all(partial(observer.on_end, self, error) for observer in self.run.observers)
        except Exception:
            if error is None:  # else the first failure is what a person must hear of
                raise

    # --- losses -----------------------------------------------------------------------------------------------

    def fetch_losses(self, wait: bool = True) -> Fetched | None:
        """Fetch what is pending, report it, and return the last good step; answers steps that were not.

        Without ``wait`` only what the device is done with. Every process must call it at the same step, and waiting.
        """
        latest: Fetched | None = None
        for fetched in self._pending.take(wait):
            step, values = fetched.step, fetched.values
            bad = nonfinite_step(
                step, fetched.faces, values, self.optimizer.parameter_name, self.optimizer.accumulation
            )
            if bad is not None:
                self._answer(bad)
                if self.run.nan == "rollback":
                    break  # what came after it is undone
                continue
            if "gradient/norm" in values and not values["nonfinite/step"]:
                self._skipped.end_row()
            scalars = {t: value for t, value in values.items() if not t.startswith("nonfinite/") and isfinite(value)}
            self._saver.add_loss(scalars["batch_total"])
            for observer in self.run.observers:
                observer.on_report(step, scalars, fetched.time)
            latest = dataclasses.replace(fetched, values=scalars)
        return latest

    def report(self, values: Mapping[str, float]) -> None:
        """Give scalars of this iteration, by TensorBoard's tag, to all observers and to what keeps the best."""
        self._saver.add_report(self.step, values)
        for observer in self.run.observers:
            observer.on_report(self.step, values)

    def _show_losses(self, wait: bool = False) -> None:
        """Show the loss line, with the losses and the speed of the steps that are fetched for it."""
        # Several processes must hear of a broken step at the same time.
        latest = self.fetch_losses(wait or self.processes.world > 1)
        if latest is None:
            return
        speed = self._meter.take()
        sides = {side: latest.values[f"batch_face_{side.upper()}"] for side in SIDES}
        self.run.progress.losses(latest.step, sides, speed)
        scalars = {f"speed/{name}": value for name, value in dataclasses.asdict(speed).items()}
        scalars |= {f"memory/{name}_mib": value / 2**20 for name, value in memory_in_use(self._device).items()}
        for observer in self.run.observers:
            observer.on_report(latest.step, scalars)
            observer.flush()

    # --- saving and going back --------------------------------------------------------------------------------

    def save(self, is_exit: bool = False) -> None:
        """Write a checkpoint, unless this step is saved already, and tell the observers.

        is_exit: this was the last step, which the observers are told too. ``train`` does so itself.
        """
        self.fetch_losses()
        for observer in self.run.observers:
            observer.flush()  # before the checkpoint: killed in between, the run goes on behind steps without a log
        if not self._saver.is_saved(self.step):
            self._statistics.measure()
            weights = self.model.state_dict()
            self._require_finite(weights)
            in_use = {step for observer in self.run.observers for step in observer.checkpoints_in_use}
            tensors = {"model": weights, "optimizer": self.optimizer.state_dict()}
            if self.averages is not None:
                tensors[AVERAGES_FILE] = self.averages.state_dict()
            self._saver.save(self.step, tensors, in_use)
            # All of them: a checkpoint is copied though there is no room for a picture of it.
            call_all(partial(observer.on_save, self.step) for observer in self.run.observers)
        if is_exit:
            self._end()

    def _require_finite(self, weights: dict[str, Tensor]) -> None:
        """Let no broken weights be saved."""
        bad = nonfinite_weights(self.step, weights)
        if bad is None:
            return
        if self.run.nan != "rollback":
            raise weights_error(bad, self.run.saved_step)
        self._roll_back(bad)

    def _answer(self, bad: NonFiniteStep) -> None:
        """Do what the policy says about a step that was left out."""
        if self.run.nan == "rollback":
            self._roll_back(bad)
        else:
            self.run.progress.log(self._skipped.skip(bad, self.run.nan, self.run.saved_step))

    def _roll_back(self, bad: NonFiniteStep) -> None:
        """Take the newest checkpoint's weights and go on behind the broken step, more slowly."""
        tensors = self._saver.newest_tensors()
        if tensors is None or self.optimizer.rollbacks >= MAX_ROLLBACKS:
            raise rollback_error(bad, has_checkpoint=tensors is not None)
        self.model.load_trained(tensors["model"])
        self.optimizer.roll_back(trained_state(self.model, tensors["optimizer"]))
        if self.averages is not None:
            self.averages.load_state_dict(tensors.get(AVERAGES_FILE, {}))
        self._statistics.note_change()
        self._saver.forget_losses()
        self._pending.clear()
        self._rewind(bad.step)
        if self.optimizer.has_end:
            self.optimizer.plan_end(self.run.iterations - self.step)
        self.run.progress.log(
            f"warning: {bad}; went back to the weights of iteration {self.run.saved_step} and goes on behind it "
            f"at learning rate {self.optimizer.base_rate:g} (rollback {self.optimizer.rollbacks} of {MAX_ROLLBACKS})"
        )

    def snapshot(self) -> TrainerState:
        """Copy all that training changes to the host."""

        def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

        return TrainerState(self.step, copied(self.model.state_dict()), copied(self.optimizer.state_dict()))

    def put_back(self, snapshot: TrainerState) -> None:
        """Be as at the time of ``snapshot``, the batches included where they can be made again."""
        self.model.load_state_dict(snapshot.model)
        self.optimizer.load_state_dict(snapshot.optimizer)
        self._statistics.note_change()
        self._rewind(snapshot.step)
        self.step = snapshot.step
        self._meter = SpeedMeter()

    def _rewind(self, step: int) -> None:
        """Let the batch of ``step`` come next, where batches can be made again."""
        if self._rewindable is None:
            return
        close = getattr(self.batches, "close", None)
        if close is not None:
            close()  # of a generator: ends the threads that make batches ahead
        self.batches = self._rewindable.from_step(step)
        self.step = step

    # --- what a person asks -----------------------------------------------------------------------------------

    def toggle_mask(self) -> None:
        """Show the mask in the preview if it is hidden, hide it if it is shown; from the next sheet on."""
        for observer in self.run.observers:
            observer.on_toggle_mask()

    def refresh_preview(self) -> None:
        """Draw the preview in the model folder anew, after the step in progress. Any thread may ask."""
        for observer in self.run.observers:
            observer.refresh_preview()

    @property
    def iterations(self) -> int:
        """Iterations the model has had."""
        return self.step

    @property
    def runs(self) -> list[dict]:
        """One entry for each start of this model's training, oldest first, as its checkpoints tell them."""
        return self.run.state.get("runs", [])

    @property
    def history(self) -> list[tuple[int, float]]:
        """(step, average total loss since the save before) of each save of this run, oldest first."""
        return self._saver.history
