"""A new watcher of a run is one class and one entry of a list; a trainer needs no run at all."""

from __future__ import annotations

import itertools

import pytest
import torch

from swapfast.batch import Batch, BatchMeta
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.config import OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.losses import LossCollator
from swapfast.optim.optimizer import Optimizer
from swapfast.processes import Processes
from swapfast.training.observers import Observer
from swapfast.training.run import Run
from swapfast.training.trainer import Trainer
from tests.toy import SIZE, toy


class StepCounter(Observer):
    """Counts the steps and writes their number to a file at the end."""

    def __init__(self, path):
        self.path, self.steps = path, 0

    def on_step(self, training):
        self.steps += 1

    def on_end(self, training, error=None):
        self.path.write_text(f"{self.steps} steps to iteration {training.step}, {error or 'no error'}")


class Recorder(Observer):
    """Notes every call."""

    def __init__(self):
        self.calls = []

    def on_step(self, training):
        self.calls.append(("step", training.step))

    def on_report(self, step, values, time=None):
        self.calls += [("report", step)] if "batch_total" in values else []

    def flush(self):
        self.calls.append(("flush",))

    def on_save(self, step):
        self.calls.append(("save", step))

    def on_end(self, training, error=None):
        self.calls.append(("end", error))


class Broken(Observer):
    """Fails when it is told of a save and of the end."""

    def on_save(self, step):
        raise SwapfastError(f"no room at {step}", 1)

    def on_end(self, training, error=None):
        raise SwapfastError("cannot end", 1)


def _batches(poison=()):
    for step in itertools.count():
        faces = torch.rand(2, 2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(step))
        if step in poison:
            faces[0, 0, 0, 0, 0] = float("nan")
        yield Batch([faces[0], faces[1]], [faces.transpose(0, 1)], BatchMeta([torch.ones(2, 2, 1, SIZE, SIZE)]), step)


def _trainer(run=None, batches=None, **options):
    model = toy().initialise(5)
    loss = LossCollator(["mae"], [1.0], "bgr", True, 1, 1, SIZE)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=1e-3))
    return Trainer(model, loss, optimizer, _batches() if batches is None else batches, run, **options)


def test_a_watcher_is_one_class_and_one_entry(tmp_path):
    _trainer(Run(CheckpointFolder(tmp_path), 5, observers=[StepCounter(tmp_path / "counted")])).train()
    assert (tmp_path / "counted").read_text() == "5 steps to iteration 5, no error"


def test_the_end_is_told_after_a_failure_too(tmp_path):
    run = Run(CheckpointFolder(tmp_path), 9, 1, observers=[StepCounter(tmp_path / "counted")])
    with pytest.raises(SwapfastError, match="iteration 3"):
        _trainer(run, _batches(poison=(2,))).train()
    assert (tmp_path / "counted").read_text().startswith("3 steps to iteration 3, the loss (mae of side A) became non-")


def test_the_order_of_calls_at_a_save(tmp_path):
    """Losses are reported and written before the checkpoint they led to."""
    recorder = Recorder()
    run = Run(CheckpointFolder(tmp_path), 2, 2, observers=[recorder])
    run.progress.interval_s = float("inf")
    _trainer(run).train()
    assert [call for call in recorder.calls if call[0] != "flush"] == [
        ("report", 1), ("step", 1), ("report", 2), ("step", 2), ("save", 2), ("end", None)
    ]  # fmt: skip
    assert recorder.calls[recorder.calls.index(("save", 2)) - 1] == ("flush",)


def test_no_watcher_keeps_others_from_being_told(tmp_path):
    recorder = Recorder()
    trainer = _trainer(Run(CheckpointFolder(tmp_path), 2, observers=[Broken(), recorder]))
    with pytest.raises(SwapfastError, match="no room at 2"):
        trainer.train()
    (kind, error) = recorder.calls[-1]
    assert kind == "end" and str(error) == "no room at 2" and ("save", 2) in recorder.calls


def test_saving_on_exit_tells_the_end(tmp_path):
    """For callers that drive the steps themselves."""
    trainer = _trainer(Run(CheckpointFolder(tmp_path), 9, observers=[StepCounter(tmp_path / "counted")]))
    trainer.train_one_step()
    trainer.save(is_exit=True)
    assert (tmp_path / "counted").read_text() == "1 steps to iteration 1, no error"
    assert trainer.run.checkpoints.steps() == [1]


def test_a_trainer_without_a_run_trains_and_saves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer = _trainer(batches=itertools.islice(_batches(), 3))
    weight = next(trainer.model.parameters()).clone()
    trainer.train()
    trainer.toggle_mask()
    assert trainer.step == trainer.iterations == 3 and not torch.equal(weight, next(trainer.model.parameters()))
    assert trainer.history == trainer.runs == [] and not trainer.exit_early
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_without_checkpoints_there_is_nothing_to_go_back_to():
    with pytest.raises(SwapfastError, match="--nan rollback: there is no checkpoint"):
        _trainer(Run(nan="rollback"), _batches(poison=(0,))).train()


def test_several_processes_need_the_batch_size():
    with pytest.raises(ValueError, match="batch_size: 2 processes"):
        _trainer(processes=Processes(0, 2))
