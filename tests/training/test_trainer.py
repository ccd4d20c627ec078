"""The loop on a toy: it learns, it resumes bit for bit, it saves what it says and stops when asked."""

from __future__ import annotations

import io
import itertools
import json

import pytest
import torch

from swapfast.batch import Batch, BatchMeta
from swapfast.config import OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.losses import LossCollator
from swapfast.models.tiny import tiny
from swapfast.training.checkpoint import CheckpointFolder
from swapfast.training.optimizer import Optimizer
from swapfast.training.progress import ProgressLine
from swapfast.training.tensorboard import TorchTensorBoard
from swapfast.training.trainer import Run, Trainer, model_folder


def _batches(device, start=0, poison=None):
    """Batch n is a function of n, as the loader's are."""
    for step in itertools.count(start):
        generator = torch.Generator().manual_seed(step)
        faces = torch.rand(2, 3, 1, 1, 1, generator=generator) * torch.linspace(0, 1, 64)
        faces = faces.expand(2, 3, 3, 64, 64).clone()
        if step == poison:
            faces[0, 0, 0, 0, 0] = float("nan")
        faces = faces.to(device)
        masks = torch.ones(3, 2, 1, 64, 64, device=device)
        yield Batch([faces[0], faces[1]], [faces.transpose(0, 1)], BatchMeta([masks]), step)


def _trainer(tmp_path, device, iterations, step=0, interval=1000, poison=None, **run):
    model = tiny().initialise(5).to(device, memory_format=torch.channels_last)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=1e-3))
    folder = CheckpointFolder(tmp_path / "model")
    found = folder.load()
    if found:
        step = found[0].step
        model.load_state_dict(found[0].tensors["model"])
        optimizer.load_state_dict(found[0].tensors["optimizer"])
    loss = LossCollator(["ssim", "mae"], [1.0, 1.0], "bgr", True, 1, 1, 64)
    output = run.pop("output", io.StringIO())
    run = Run(folder, iterations, interval, progress=ProgressLine(output), saved_step=step if found else None, **run)
    return Trainer(model, loss, optimizer, _batches(device, step, poison), run, step)


def _losses(trainer, steps):
    return [[side.total.item() for side in trainer.train_one_batch()] for _ in range(steps)]


def test_the_loss_falls(tmp_path, device):
    losses = _losses(_trainer(tmp_path, device, 60), 60)
    assert sum(map(sum, losses[-5:])) < 0.7 * sum(map(sum, losses[:5]))


def test_same_seed_same_bits(tmp_path, device):
    first, again = (_losses(_trainer(tmp_path, device, 9), 6) for _ in range(2))
    assert first == again if device.type == "cpu" else first == pytest.approx(again, rel=1e-5)


@pytest.mark.parametrize("stop", [1, 5])
def test_resuming_is_exact(tmp_path, device, stop):
    """20 losses after a stop equal those of a run without one, bit for bit on a CPU."""
    straight = _losses(_trainer(tmp_path, device, 99), stop + 20)[stop:]
    _trainer(tmp_path, device, stop).train()
    resumed = _trainer(tmp_path, device, 99)
    assert resumed.step == stop
    after = _losses(resumed, 20)
    assert after == straight if device.type == "cpu" else after == pytest.approx(straight, rel=1e-5)


def test_saving_at_intervals_and_at_the_end(tmp_path, device):
    seen = []
    trainer = _trainer(tmp_path, device, 7, interval=3, preview=seen.append)
    trainer.train()
    assert trainer.exit_early and trainer.step == 7
    assert seen == [3, 6, 7] and trainer.run.checkpoints.steps() == [6, 7]


def test_a_request_to_stop_saves_that_step(tmp_path, device):
    trainer = _trainer(tmp_path, device, 100)
    step = trainer.train_one_batch

    def stop_in_the_third():
        if trainer.step == 2:
            trainer.run.stop.request("SIGTERM")
        return step()

    trainer.train_one_batch = stop_in_the_third
    trainer.train()
    assert trainer.run.stop.reason == "SIGTERM" and trainer.run.checkpoints.steps() == [3]


def test_a_broken_loss_is_never_saved(tmp_path, device):
    with pytest.raises(
        SwapfastError, match=r"the loss .* non-finite at iteration 5; .*iteration 4 is finite"
    ) as caught:
        _trainer(tmp_path, device, 9, interval=4, poison=4).train()
    assert caught.value.code == 1
    folder = CheckpointFolder(tmp_path / "model")
    assert folder.steps() == [4]
    assert all(torch.isfinite(w).all() for w in folder.load()[0].tensors["model"].values())


def test_broken_weights_are_never_saved(tmp_path, device):
    """One infinite gradient: the loss of that step is still finite, the weights after it are not."""
    trainer = _trainer(tmp_path, device, 9, interval=4)
    backward = trainer.optimizer.backward

    def poisoned(loss):
        backward(loss)
        if trainer.step == 7:
            next(trainer.model.parameters()).grad[0, 0, 0, 0] = float("inf")

    trainer.optimizer.backward = poisoned
    with pytest.raises(SwapfastError, match=r"the weights \(.*weight\) became non-finite at iteration 8.*iteration 4"):
        trainer.train()
    assert CheckpointFolder(tmp_path / "model").steps() == [4]


def test_where_the_batches_end_so_does_training(tmp_path, device):
    trainer = _trainer(tmp_path, device, 100)
    trainer.batches = itertools.islice(_batches(device), 3)
    trainer.train()
    assert trainer.step == 3 and trainer.run.checkpoints.steps() == [3]


def test_a_reader_that_is_gone_costs_nothing(tmp_path, device):
    """``| tee log`` dies of the same Ctrl-C as the run."""

    class Gone(io.StringIO):
        def write(self, _text):
            raise BrokenPipeError

    _trainer(tmp_path, device, 3, output=Gone()).train()
    assert CheckpointFolder(tmp_path / "model").steps() == [3]


def test_logs_that_cannot_be_written_do_not_stop_the_run(tmp_path, device):
    said = []
    board = TorchTensorBoard(tmp_path / "logs", warn=said.append)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    board._writer.add_scalar = refuse
    _trainer(tmp_path, device, 3, tensorboard=board).train()
    assert CheckpointFolder(tmp_path / "model").steps() == [3]
    assert len(said) == 1 and "No space left" in said[0]


def test_the_line_and_the_scalars(tmp_path, device):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = io.StringIO()
    board = TorchTensorBoard(tmp_path / "logs")
    _trainer(tmp_path, device, 4, tensorboard=board, output=output).train()
    lines = output.getvalue().splitlines()
    number = r"\d+\.\d+"
    line = rf"\[\d\d:\d\d:\d\d\] \[#00004\] Loss A: {number}, Loss B: {number} \| {number} it/s, \d+ faces/s, "
    assert any(__import__("re").match(line + rf"waiting for data {number} %$", text) for text in lines), lines
    assert any(text.startswith("[Saved model] - Average total loss since last save: ") for text in lines)
    events = EventAccumulator(str(tmp_path / "logs" / "train"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"batch_total", "batch_face_A", "batch_unweighted_B/ssim", "batch_weighted_A/mae", "speed/data_wait"} <= tags
    totals = events.Scalars("batch_total")
    assert [event.step for event in totals] == [1, 2, 3, 4]
    sides = [events.Scalars(f"batch_face_{side}")[-1].value for side in "AB"]
    assert totals[-1].value == pytest.approx(sum(sides), rel=1e-6)


def test_state_of_another_model_is_refused(tmp_path):
    model = tiny().initialise(1)
    optimizer = Optimizer(model, OptimizerConfig())
    with pytest.raises(SwapfastError, match="belongs to another model"):
        optimizer.load_state_dict({"decoders.c.weight.exp_avg": torch.zeros(1)})


def test_another_programs_model_is_not_touched(tmp_path):
    (tmp_path / "original.keras").write_bytes(b"x")
    with pytest.raises(SwapfastError, match="another program's model"):
        model_folder(tmp_path)
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(SwapfastError, match="is a file"):
        model_folder(tmp_path / "file")
