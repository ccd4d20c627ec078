"""The loop on a toy: it learns, it resumes bit for bit, it saves what it says and stops when asked."""

from __future__ import annotations

import io
import itertools
import json
import re
import signal

import numpy as np
import pytest
import torch

from swapfast.batch import Batch, BatchMeta
from swapfast.checkpoints.after_save import AfterSave
from swapfast.checkpoints.folder import CheckpointFolder, model_folder
from swapfast.config import OPTIMIZER_NAMES, OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.logs.observer import LogObserver
from swapfast.logs.steplog import StepLog
from swapfast.logs.tensorboard import TorchTensorBoard
from swapfast.losses import LossCollator
from swapfast.optim.optimizer import Optimizer
from swapfast.stop import Stopped, StopRequest
from swapfast.training.observers import Observer
from swapfast.training.progress import ProgressLine
from swapfast.training.run import Run
from swapfast.training.trainer import Trainer
from tests.toy import SIZE, toy


def _batches(device, start=0, poison=()):
    """Batch n is a function of n, as the loader's are; those in ``poison`` hold a NaN on side A."""
    for step in itertools.count(start):
        generator = torch.Generator().manual_seed(step)
        faces = torch.rand(2, 3, 1, 1, 1, generator=generator) * torch.linspace(0, 1, SIZE)
        faces = faces.expand(2, 3, 3, SIZE, SIZE).clone()
        if step in poison:
            faces[0, 0, 0, 0, 0] = float("nan")
        faces = faces.to(device)
        masks = torch.ones(3, 2, 1, SIZE, SIZE, device=device)
        ordinals = np.arange(3 * step, 3 * step + 3, dtype=np.uint64)
        yield Batch([faces[0], faces[1]], [faces.transpose(0, 1)], BatchMeta([masks]), step, ordinals=ordinals)


class Rewindable:
    """``_batches`` of which any can be made again."""

    def __init__(self, device, start, poison):
        self.device, self.start, self.poison = device, start, poison

    def __iter__(self):
        return self.from_step(self.start)

    def from_step(self, step):
        return _batches(self.device, step, self.poison)


class Saves(Observer):
    """Notes which steps are saved."""

    def __init__(self):
        self.steps = []

    def on_save(self, step):
        self.steps.append(step)


def _trainer(
    tmp_path,
    device,
    iterations,
    step=0,
    interval=1000,
    poison=(),
    config=None,
    warmup=0,
    precision="fp32",
    rewinds=False,
    **run,
):
    model = toy().initialise(5).to(device, memory_format=torch.channels_last)
    optimizer = Optimizer(model, config or OptimizerConfig(learning_rate=1e-3), precision == "fp16", warmup)
    folder = CheckpointFolder(tmp_path / "model")
    loaded = folder.load()
    if loaded:
        step = loaded[0].step
        model.load_state_dict(loaded[0].tensors["model"])
        optimizer.load_state_dict(loaded[0].tensors["optimizer"])
    loss = LossCollator(["ssim", "mae"], [1.0, 1.0], "bgr", True, 1, 1, SIZE)
    output = run.pop("output", io.StringIO())
    batches = (Rewindable if rewinds else _batches)(device, step, poison)
    run = Run(folder, iterations, interval, progress=ProgressLine(output), saved_step=step if loaded else None, **run)
    return Trainer(model, loss, optimizer, batches, run, step, precision)


def _losses(trainer, steps):
    return [[side.total.item() for side in trainer.train_one_batch()] for _ in range(steps)]


def _same_weights(trainer, reference, device):
    """Bit for bit on a CPU; a GPU's atomics leave a little."""
    rtol, atol = (0, 0) if device.type == "cpu" else (1e-3, 1e-4)
    torch.testing.assert_close(
        dict(trainer.model.state_dict()), dict(reference.model.state_dict()), rtol=rtol, atol=atol
    )


@pytest.mark.slow
def test_the_loss_falls(tmp_path, device):
    losses = _losses(_trainer(tmp_path, device, 60), 60)
    assert sum(map(sum, losses[-5:])) < 0.7 * sum(map(sum, losses[:5]))


@pytest.mark.slow
def test_a_stop_before_the_first_step_lets_the_last_copy_finish(tmp_path, device):
    """--nan rollback saves before the first step; a second request must not break off what runs after that save."""
    limit, copied, said = tmp_path / "limit", tmp_path / "copied", []
    copier = AfterSave(f"touch {limit}; sleep 1; touch {copied}", tmp_path / "model", said.append)

    def never():
        signal.raise_signal(signal.SIGTERM)
        yield

    with StopRequest().listening() as stop, stop.watching(limit):
        trainer = _trainer(tmp_path, device, 4, nan="rollback", rewinds=True, stop=stop, observers=[copier])
        trainer.batches = never()
        with pytest.raises(Stopped, match="SIGTERM"):
            trainer.train()
    assert copied.exists() and said == [] and CheckpointFolder(tmp_path / "model").steps() == [0]


@pytest.mark.slow
def test_same_seed_same_bits(tmp_path, device):
    first, again = (_losses(_trainer(tmp_path, device, 9), 6) for _ in range(2))
    assert first == again if device.type == "cpu" else first == pytest.approx(again, rel=1e-5)


@pytest.mark.slow
def test_resuming_is_exact(tmp_path, device):
    """20 losses after a stop equal those of a run without one, bit for bit on a CPU."""
    stop = 5
    straight = _losses(_trainer(tmp_path, device, 99), stop + 20)[stop:]
    _trainer(tmp_path, device, stop).train()
    resumed = _trainer(tmp_path, device, 99)
    assert resumed.step == stop
    continued = _losses(resumed, 20)
    assert continued == straight if device.type == "cpu" else continued == pytest.approx(straight, rel=1e-5)


@pytest.mark.slow
def test_saving_at_intervals_and_at_the_end(tmp_path, device):
    saves = Saves()
    trainer = _trainer(tmp_path, device, 7, interval=3, observers=[saves])
    trainer.train()
    assert trainer.exit_early and trainer.step == 7
    assert saves.steps == [3, 6, 7] and trainer.run.checkpoints.steps() == [6, 7]


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


def test_a_request_that_came_before_saves_nothing(tmp_path, device):
    trainer = _trainer(tmp_path, device, 100)
    trainer.run.stop.request("SIGTERM")
    with pytest.raises(Stopped, match="SIGTERM"):
        trainer.train()
    assert trainer.step == 0 and not trainer.run.checkpoints.steps()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_resuming_is_exact_in_the_middle_of_everything(name, tmp_path, device):
    """Warm-up, an accumulation and a history of norms that has begun to forget, through checkpoints on the disk."""
    config = OptimizerConfig(
        optimizer=name,
        learning_rate=1e-3,
        gradient_accumulation=3,
        gradient_clipping="autoclip",
        autoclip_history=2,
        weight_decay=0.01,
    )
    straight = _losses(_trainer(tmp_path / "whole", device, 99, config=config, warmup=5), 14)
    pieces = []
    for stop in (4, 8, 14):
        trainer = _trainer(tmp_path, device, stop, config=config, warmup=5)
        pieces += _losses(trainer, stop - trainer.step)
        trainer.save()
    assert pieces == straight if device.type == "cpu" else pieces == pytest.approx(straight, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_no_answer_changes_a_run_that_needs_none(policy, tmp_path, device):
    trainer = _trainer(tmp_path / policy, device, 5, interval=2, nan=policy)
    trainer.train()
    reference = _trainer(tmp_path / "other", device, 5)
    reference.train()
    _same_weights(trainer, reference, device)


@pytest.mark.slow
def test_a_broken_loss_stops_the_run_and_is_never_saved(tmp_path, device):
    said = (
        r"the loss \(ssim of side A, mae of side A\) became non-finite at iteration 5 \(ordinals 12 to 14 of each "
        r"side\) and did not reach the weights; the checkpoint of iteration 4 is finite. .*--nan skip or --nan rollback"
    )
    log = StepLog(tmp_path / "logs")
    with pytest.raises(SwapfastError, match=said) as caught:
        _trainer(tmp_path, device, 9, interval=4, poison=(4,), observers=[LogObserver(log)]).train()
    assert caught.value.code == 1
    steps = [json.loads(line).get("step") for line in log.path.read_text().splitlines()]
    assert [step for step in steps if step] == [1, 2, 3, 4], "those before it are what one wants to see"
    folder = CheckpointFolder(tmp_path / "model")
    assert folder.steps() == [4]
    assert all(torch.isfinite(w).all() for w in folder.load()[0].tensors["model"].values())


def _poison_gradient(trainer, *steps):
    """One infinite gradient in each of these steps; their losses are finite."""
    add_gradients = trainer.optimizer.add_gradients

    def poisoned(loss):
        add_gradients(loss)
        if trainer.step in steps:
            trainer.model.encoder[2][0].weight.grad[0, 0, 0, 0] = float("inf")

    trainer.optimizer.add_gradients = poisoned
    return trainer


def test_a_broken_gradient_stops_the_run(tmp_path, device):
    trainer = _poison_gradient(_trainer(tmp_path, device, 9, interval=4), 5)
    said = r"the gradient \(encoder.2.0.weight\) became non-finite at iteration 6 \(ordinals 15 to 17.*iteration 4"
    with pytest.raises(SwapfastError, match=said):
        trainer.train()
    assert CheckpointFolder(tmp_path / "model").steps() == [4]
    assert all(torch.isfinite(w).all() for w in trainer.model.state_dict().values())


def test_weights_that_overflow_are_never_saved(tmp_path, device):
    trainer = _trainer(tmp_path, device, 4, interval=4)
    with torch.no_grad():
        trainer.model.decoders["b"].face[0][0].bias[0] = float("inf")
    trainer.optimizer.report = {}
    trainer.step, trainer.run.saved_step = 4, 3
    with pytest.raises(SwapfastError, match=r"the weights \(decoders.b.*bias\) became non-finite at iteration 4;"):
        trainer.save()
    assert CheckpointFolder(tmp_path / "model").steps() == []


@pytest.mark.slow
@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_skipping_leaves_out_the_step_and_no_more(part, tmp_path, device):
    """The run equals one whose batches lack the broken ones, but for the count; resuming is exact too."""
    output = io.StringIO()
    poison = (2, 5) if part == "loss" else ()
    trainer = _trainer(tmp_path / "skip", device, 8, interval=3, poison=poison, nan="skip", output=output)
    if part == "gradient":
        _poison_gradient(trainer, 2, 5)
    trainer.train()
    clean = _trainer(tmp_path / "clean", device, 6)
    clean.batches = (batch for batch in _batches(device) if batch.step not in (2, 5))
    clean.train()
    _same_weights(clean, trainer, device)
    text = output.getvalue()
    assert trainer.step == 8 and text.count("was left out") == 2
    assert f"warning: the {part} (" in text and "iteration 3 (ordinals 6 to 8" in text and "iteration 6" in text
    averages = re.findall(r"since last save: (\S+)", text)
    assert averages and all(np.isfinite(float(value)) for value in averages)


@pytest.mark.slow
def test_skipping_has_an_end(tmp_path, device):
    trainer = _trainer(tmp_path, device, 99, interval=5, poison=range(7, 99), nan="skip")
    with pytest.raises(SwapfastError, match=r"iteration 17 .*the 10th step in a row; the checkpoint of iteration 15"):
        trainer.train()


@pytest.mark.slow
def test_skipping_has_an_end_where_batches_are_added_up(tmp_path, device):
    """One broken batch of two leaves out the step, and the good one after it is no reason to hope."""
    config = OptimizerConfig(gradient_accumulation=2)
    trainer = _trainer(tmp_path, device, 60, interval=4, poison=range(0, 60, 2), nan="skip", config=config)
    with pytest.raises(SwapfastError, match="10th step in a row"):
        trainer.train()
    assert trainer.step < 30


def test_a_gradient_of_several_batches_names_them_all(tmp_path, device):
    config = OptimizerConfig(gradient_accumulation=3)
    trainer = _trainer(tmp_path, device, 9, config=config)
    _poison_gradient(trainer, 2)
    with pytest.raises(
        SwapfastError, match=r"gradient of 3 batches .* at iteration 3 \(ordinals 0 to 8 of each side\)"
    ):
        trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["loss", "gradient"])
@pytest.mark.parametrize("noticed", [0.0, 1e9])
def test_going_back_takes_the_last_checkpoint_and_the_next_batch(part, noticed, tmp_path, device):
    """Whenever the host hears of it: weights of iteration 3, half the rate, batches from 5 on."""
    output = io.StringIO()
    poison = (4,) if part == "loss" else ()
    arguments = {"interval": 3, "poison": poison, "nan": "rollback", "rewinds": True}
    trainer = _trainer(tmp_path / "model", device, 9, output=output, **arguments)
    trainer.run.progress.interval_s = noticed
    if part == "gradient":
        _poison_gradient(trainer, 4)
    trainer.train()
    assert trainer.step == 9 and trainer.optimizer.learning_rate == 0.5e-3
    said = "went back to the weights of iteration 3 and goes on behind it at learning rate 0.0005 (rollback 1 of 5)"
    assert output.getvalue().count(said) == 1

    by_hand = _trainer(tmp_path / "hand", device, 3)
    by_hand.train()
    by_hand.optimizer.set_lr(0.5e-3)
    by_hand.batches = _batches(device, 5)
    _losses(by_hand, 4)
    _same_weights(by_hand, trainer, device)
    resumed = _trainer(tmp_path / "model", device, 12, **arguments)
    assert resumed.step == 9 and resumed.optimizer.learning_rate == 0.5e-3 and resumed.optimizer.rollbacks == 1


def test_going_back_at_the_very_beginning(tmp_path, device):
    """The first weights are kept for that, so the first batch may be a bad one."""
    trainer = _trainer(tmp_path, device, 4, poison=(0,), nan="rollback", rewinds=True)
    trainer.train()
    assert trainer.step == 4 and CheckpointFolder(tmp_path / "model").steps() == [0, 4]


@pytest.mark.slow
def test_going_back_has_an_end(tmp_path, device):
    trainer = _trainer(tmp_path, device, 40, interval=2, poison=range(5, 40), nan="rollback", rewinds=True)
    with pytest.raises(SwapfastError, match=r"iteration 11 .*--nan rollback: it went back 5 times already.*lower") as e:
        trainer.train()
    assert e.value.code == 1
    assert trainer.optimizer.learning_rate == pytest.approx(1e-3 / 32)


def test_going_back_over_weights_that_overflowed(tmp_path, device):
    trainer = _trainer(tmp_path, device, 9, interval=3, nan="rollback", rewinds=True)
    trainer.run.iterations = 3
    trainer.train()
    with torch.no_grad():
        trainer.model.decoders["b"].face[0][0].bias[0] = float("inf")
    trainer.step = 4
    trainer.save()
    assert trainer.optimizer.rollbacks == 1 and CheckpointFolder(tmp_path / "model").steps() == [3, 4]
    assert all(
        torch.isfinite(w).all() for w in CheckpointFolder(tmp_path / "model").load()[0].tensors["model"].values()
    )


@pytest.mark.long
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(precision, tmp_path, device):
    """And saves and resumes; the weights stay float32."""
    given = {"precision": precision, "config": OptimizerConfig(learning_rate=1e-2)}
    losses = _losses(_trainer(tmp_path / "whole", device, 99, **given), 14)
    assert sum(losses[-1]) < 0.9 * sum(losses[0])
    _trainer(tmp_path, device, 4, **given).train()
    resumed = _trainer(tmp_path, device, 99, **given)
    assert all(weight.dtype == torch.float32 for weight in resumed.model.parameters())
    continued = _losses(resumed, 3)
    assert continued == losses[4:7] if device.type == "cpu" else continued == pytest.approx(losses[4:7], rel=1e-3)
    if precision == "fp16":
        assert resumed.optimizer.state_dict()["@scaler.scale"] <= 2**16


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
    board._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    _trainer(tmp_path, device, 3, observers=[LogObserver(board)]).train()
    assert CheckpointFolder(tmp_path / "model").steps() == [3]
    assert len(said) == 1 and "No space left" in said[0]


@pytest.mark.slow
def test_the_line_and_the_scalars(tmp_path, device):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = io.StringIO()
    board = TorchTensorBoard(tmp_path / "logs")
    _trainer(tmp_path, device, 4, observers=[LogObserver(board)], output=output).train()
    lines = output.getvalue().splitlines()
    number = r"\d+\.\d+"
    line = rf"\[\d\d:\d\d:\d\d\] \[#00004\] Loss A: {number}, Loss B: {number} \| {number} it/s, \d+ faces/s, "
    assert any(re.match(line + rf"waiting for data {number} %$", text) for text in lines), lines
    assert any(text.startswith("[Saved model] - Average total loss since last save: ") for text in lines)
    events = EventAccumulator(str(tmp_path / "logs" / "train"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"batch_total", "batch_face_A", "batch_unweighted_B/ssim", "batch_weighted_A/mae", "speed/data_wait"} <= tags
    assert {"gradient/norm", "learning_rate"} <= tags and not any(tag.startswith("nonfinite") for tag in tags)
    totals = events.Scalars("batch_total")
    assert [event.step for event in totals] == [1, 2, 3, 4]
    sides = [events.Scalars(f"batch_face_{side}")[-1].value for side in "AB"]
    assert totals[-1].value == pytest.approx(sum(sides), rel=1e-6)


def test_state_of_another_model_is_refused(tmp_path):
    model = toy().initialise(1)
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
