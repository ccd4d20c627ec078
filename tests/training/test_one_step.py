"""The trainer's single steps, as the API text names them."""

from __future__ import annotations

import itertools
import signal

import numpy as np
import pytest
import torch

from swapfast.batch import Batch, BatchMeta
from swapfast.checkpoints.after_save import AfterSave
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.checkpoints.requests import SNAPSHOT_REQUEST
from swapfast.checkpoints.snapshots import Snapshots
from swapfast.config import OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.losses import LossCollator
from swapfast.optim.optimizer import Optimizer
from swapfast.training.observers import Observer, Viewer
from swapfast.training.run import Run
from swapfast.training.trainer import Trainer
from tests.toy import SIZE, toy


class Preview(Observer):
    """A preview that is as bright as its mask is on, and remembers when it was written."""

    def __init__(self) -> None:
        self.mask, self.steps = True, []

    def on_save(self, step: int) -> None:
        self.steps.append(step)

    def on_view(self, viewer: Viewer) -> None:
        viewer(np.full((4, 6, 3), 200 if self.mask else 100, np.uint8), "a preview")

    def on_toggle_mask(self) -> None:
        self.mask = not self.mask


class Film(Observer):
    """A timelapse that remembers of which steps it has a picture."""

    def __init__(self) -> None:
        self.steps = []

    def on_save(self, step: int) -> None:
        self.steps.append(step)

    def on_timelapse(self, step: int) -> None:
        self.steps.append(step)


class FullDisk(Observer):
    """Has no room for a picture."""

    def on_save(self, step: int) -> None:
        raise SwapfastError("the disk is full", 1)


def _batches():
    for step in itertools.count():
        faces = torch.rand(2, 2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(step))
        yield Batch([faces[0], faces[1]], [faces.transpose(0, 1)], BatchMeta([torch.ones(2, 2, 1, SIZE, SIZE)]), step)


def _trainer(tmp_path, **run) -> Trainer:
    model = toy().initialise(5)
    run = Run(CheckpointFolder(tmp_path), 100, **run)
    loss = LossCollator(["mae"], [1.0], "bgr", True, 1, 1, SIZE)
    return Trainer(model, loss, Optimizer(model, OptimizerConfig(learning_rate=1e-3)), _batches(), run)


@pytest.mark.slow
def test_one_step_does_what_is_due(tmp_path):
    """A checkpoint every third, a snapshot every fourth; a picture of each and where one is asked for."""
    sheets, preview, film = [], Preview(), Film()
    trainer = _trainer(tmp_path, save_interval=3, snapshot_interval=4, observers=[preview, film])
    for step in range(1, 9):
        trainer.train_one_step(lambda *arguments: sheets.append(arguments), do_timelapse=step == 5)
        trainer.toggle_mask()
    assert trainer.iterations == 8 and not trainer.exit_early
    assert preview.steps == [3, 4, 6, 8] and trainer.run.checkpoints.steps() == [6, 8]
    assert [image[0, 0, 0] for image, _ in sheets] == [200, 100] * 4 and film.steps == [3, 4, 5, 6, 8]
    points = {(point.kind, point.step) for point in Snapshots(trainer.run.checkpoints).points()}
    assert points >= {("snapshot", 4), ("snapshot", 8)}
    assert [step for step, _ in trainer.history] == [3, 4, 6, 8]
    trainer.run.iterations = 8
    assert trainer.exit_early


def test_a_checkpoint_is_copied_though_no_picture_of_it_can_be_written(tmp_path):
    copied = tmp_path / "copied"
    copier = AfterSave(f'echo "$SWAPFAST_STEP" > {copied}', tmp_path, print)
    trainer = _trainer(tmp_path, save_interval=2, observers=[FullDisk(), copier])
    trainer.train_one_step()
    with pytest.raises(SwapfastError, match="full"):
        trainer.train_one_step()
    copier.finish(trainer.run.stop)
    assert copied.read_text() == "2\n" and trainer.run.checkpoints.steps() == [2]


@pytest.mark.slow
def test_the_backup_is_the_lowest_average_of_enough_steps(tmp_path):
    trainer = _trainer(tmp_path, save_interval=4)
    for _ in range(12):
        trainer.train_one_step()
    trainer.train_one_step()
    trainer.save()  # one step after the last: too few to count
    averages = dict(trainer.history)
    best = min((4, 8, 12), key=averages.get)
    points = Snapshots(trainer.run.checkpoints).points()
    (backup,) = [point for point in points if point.kind == "backup"]
    assert backup.step == best and backup.average_loss == averages[best]
    assert trainer.run.metrics["lowest_average_loss"] == averages[best]


def test_what_a_kill_kept_from_being_kept_is_kept_later(tmp_path):
    """Death between the checkpoint and its snapshot and backup; the next run makes up for it."""
    trainer = _trainer(tmp_path, save_interval=2, snapshot_interval=2)
    trainer.run.snapshot_interval = 0
    for _ in range(2):
        trainer.train_one_step()
    for point in Snapshots(trainer.run.checkpoints).points():
        if point.kind == "backup":
            for file in point.path.iterdir():
                file.unlink()
            point.path.rmdir()
    again = _trainer(
        tmp_path, save_interval=2, snapshot_interval=2, saved_step=2, state={"metrics": trainer.run.metrics}
    )
    again.step = again.run.iterations = 2
    again.train()
    points = [(point.kind, point.step) for point in Snapshots(trainer.run.checkpoints).points()]
    assert sorted(points) == [("backup", 2), ("checkpoint", 2), ("snapshot", 2)]


def test_a_snapshot_is_kept_where_a_file_asks_for_one(tmp_path):
    """As the page's button does: the file, then a request to save."""
    trainer = _trainer(tmp_path, save_interval=100)
    trainer.train_one_step()
    (tmp_path / SNAPSHOT_REQUEST).touch()
    with trainer.stop.listening():
        for _ in range(2):
            signal.raise_signal(signal.SIGUSR1)
            trainer.train_one_step()
    points = [(point.kind, point.step) for point in Snapshots(trainer.run.checkpoints).points()]
    assert sorted(points) == [("checkpoint", 2), ("checkpoint", 3), ("snapshot", 2)]
    assert not (tmp_path / SNAPSHOT_REQUEST).exists()


@pytest.mark.slow
def test_the_checkpoint_that_is_being_copied_is_held(tmp_path):
    copier = AfterSave(f"while [ ! -e {tmp_path / 'go'} ]; do sleep 0.02; done", tmp_path, print)
    trainer = _trainer(tmp_path, save_interval=1, observers=[copier])
    for _ in range(4):
        trainer.train_one_step()
    assert trainer.run.checkpoints.steps() == [1, 3, 4]
    (tmp_path / "go").touch()
    copier.finish(trainer.run.stop)
    trainer.train_one_step()
    assert trainer.run.checkpoints.steps() == [4, 5]
    copier.finish(trainer.run.stop)


def test_no_further_batch_is_told(tmp_path):
    trainer = _trainer(tmp_path, save_interval=3)
    trainer.batches = iter(())
    with pytest.raises(StopIteration):
        trainer.train_one_step()
