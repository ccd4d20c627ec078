"""The loss on held-out faces is the loss, per face, and measuring it leaves training as it was."""

from __future__ import annotations

import io
import itertools
import json
import re

import pytest
import torch

from swapfast.batch import Batch, BatchMeta
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.config import OptimizerConfig
from swapfast.logs.observer import LogObserver
from swapfast.logs.steplog import StepLog, read_steps
from swapfast.logs.tensorboard import TorchTensorBoard
from swapfast.losses import LossCollator
from swapfast.optim.optimizer import Optimizer
from swapfast.training.progress import NoProgress, ProgressLine
from swapfast.training.run import Run
from swapfast.training.trainer import Trainer
from swapfast.training.validation import Validation, evaluating, validation_losses
from tests.toy import SIZE, toy


def _faces(count, seed, device):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, SIZE, SIZE, generator=generator).to(device)


def _one_side(count, seed, device):
    faces = _faces(count, seed, device)
    return Batch([faces], [faces[:, None]], BatchMeta([torch.ones(count, 1, 1, SIZE, SIZE, device=device)]), 0)


def _held_out(device):
    """Five faces of A in batches of three and two, and one of B."""
    return [(0, _one_side(3, 1, device)), (0, _one_side(2, 2, device)), (1, _one_side(1, 3, device))]


def _loss():
    return LossCollator(["mae", "mse"], [1.0, 0.5], "bgr", True, 1, 1, SIZE)


def _batches(device):
    for step in itertools.count():
        sides = [_faces(2, 100 + 2 * step + side, device) for side in (0, 1)]
        masks = torch.ones(2, 2, 1, SIZE, SIZE, device=device)
        yield Batch(sides, [torch.stack(sides, 1)], BatchMeta([masks]), step)


def _trainer(folder, device, iterations=6, **run):
    model = toy().initialise(5).to(device, memory_format=torch.channels_last)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=1e-3))
    output = run.pop("output", io.StringIO())
    run = Run(CheckpointFolder(folder), iterations, 3, progress=ProgressLine(output), **run)
    return Trainer(model, _loss(), optimizer, _batches(device), run)


def test_every_face_counts_the_same(device):
    model, loss = toy().initialise(5).to(device), _loss()
    values = validation_losses(model, loss, _held_out(device))
    for side, seeds in (("a", (1, 2)), ("b", (3,))):
        faces = torch.cat([_faces({1: 3, 2: 2, 3: 1}[seed], seed, device) for seed in seeds])
        with torch.no_grad():
            swapped = model.swap(faces, to=side)[0]
        label = side.upper()
        mae, mse = (swapped - faces).abs().mean().item(), (swapped - faces).square().mean().item()
        assert values[f"validation_unweighted_{label}/mae"] == pytest.approx(mae, rel=1e-4)
        assert values[f"validation_unweighted_{label}/mse"] == pytest.approx(mse, rel=1e-4)
        assert values[f"validation_face_{label}"] == pytest.approx(mae + 0.5 * mse, rel=1e-4)
    assert values["validation_total"] == values["validation_face_A"] + values["validation_face_B"]


def test_nothing_held_out():
    assert validation_losses(toy(), _loss(), []) == {}


def test_parts_go_back_to_their_own_modes(device):
    """A frozen part is in evaluation mode for good, also where measuring fails."""
    model = toy()
    model.encoder.eval()
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        raise KeyboardInterrupt
    assert model.training and model.decoders.training and not model.encoder.training and torch.is_grad_enabled()


@pytest.mark.slow
def test_training_is_the_same_to_the_bit_with_and_without(tmp_path, device):
    plain = _trainer(tmp_path / "plain", device)
    plain.train()
    for interval in (1, 3, 4):
        validation = Validation(interval, _held_out(device), NoProgress())
        measured = _trainer(tmp_path / str(interval), device, observers=[validation])
        measured.train()
        rtol, atol = (0, 0) if device.type == "cpu" else (1e-3, 1e-4)
        for expected, actual in ((plain.model, measured.model), (plain.optimizer, measured.optimizer)):
            torch.testing.assert_close(dict(expected.state_dict()), dict(actual.state_dict()), rtol=rtol, atol=atol)


@pytest.mark.long
@pytest.mark.parametrize("interval, steps", [(3, [3, 6, 8]), (2, [2, 4, 6, 8]), (5, [5, 8])])
def test_it_is_logged_and_shown(tmp_path, device, interval, steps):
    """At its interval and at the end; in the JSONL, for TensorBoard and as a line."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = io.StringIO()
    trainer = _trainer(
        tmp_path / "model",
        device,
        8,
        output=output,
        observers=[
            Validation(interval, _held_out(device), ProgressLine(output)),
            LogObserver(TorchTensorBoard(tmp_path / "logs")),
            LogObserver(StepLog(tmp_path / "logs")),
        ],
    )
    trainer.train()
    seen = EventAccumulator(str(tmp_path / "logs" / "train"), {"scalars": 0})
    seen.Reload()
    scalars = seen.Scalars("validation_face_A")
    assert [scalar.step for scalar in scalars] == steps
    path = tmp_path / "logs" / "steps.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    logged = [line for line in lines if "validation_loss_a" in line]
    assert [line["step"] for line in logged] == steps
    assert [line["validation_loss_a"] for line in logged] == pytest.approx([s.value for s in scalars], rel=1e-5)
    qualities = {line["step"]: line["swap_quality"] for line in logged}
    assert [s.value for s in seen.Scalars("swap/quality")] == pytest.approx(list(qualities.values()), rel=1e-5)
    halves = [(line["swap_near"] + line["swap_near_matched"]) / 2 for line in logged]
    assert halves == pytest.approx(list(qualities.values()), rel=1e-4), "the log rounds"
    assert list(read_steps(path).steps) == list(range(1, 9)) and read_steps(path).void == 0
    last = validation_losses(trainer.model, _loss(), _held_out(device))
    expected = f"Validation A: {last['validation_face_A']:.5f}, Validation B: {last['validation_face_B']:.5f}"
    gains = [line for line in logged if "validation_gain_b" in line]
    assert [line["step"] for line in gains] == steps[1:]
    decibels = {line["step"]: line["validation_psnr_b"] for line in logged}
    rise = 1000 * (decibels[steps[1]] - decibels[steps[0]]) / (steps[1] - steps[0])
    assert gains[0]["validation_gain_b"] == pytest.approx(rise, rel=1e-2, abs=0.5), "the log rounds to six digits"
    measured, verdict = output.getvalue().splitlines()[-3:-1]
    assert measured.endswith(f"[#00008] {expected}, swap {qualities[8]:.2f} dB")
    part = r"{} (gains|loses) [\d.]+ dB in 1,000 iterations(, -?[\d.]+ before)?"
    sides = "; ".join(map(part.format, "AB"))
    swap = rf"{part.format('the swap')}|the swap has not got better since \d"
    assert re.search(rf"\[#00008\] {sides}; ({swap})$", verdict), verdict


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_best_swap(tmp_path, device):
    """Of those saved and measured, though the loss falls: B's held-out faces are what the untrained model makes."""
    with torch.no_grad():
        swapped = toy().initialise(5).to(device).swap(_faces(3, 1, device), to="b")[0]
    face_b = Batch([swapped], [swapped[:, None]], BatchMeta([torch.ones(3, 1, 1, SIZE, SIZE, device=device)]), 0)
    held_out = [(0, _one_side(3, 1, device)), (1, face_b)]
    for interval, best in ((2, 2), (3, 6), (None, 8)):
        folder = tmp_path / str(interval)
        watchers = [LogObserver(StepLog(folder / "logs"))]
        watchers += [Validation(interval, held_out, NoProgress())] if interval else []
        trainer = _trainer(folder, device, 8, observers=watchers)
        trainer.run.save_interval = 2
        trainer.train()
        (backup,) = folder.glob("backup-*")
        assert backup.name == f"backup-{best:08d}", interval
        metrics = json.loads((backup / "state.json").read_text())["metrics"]
        if interval is None:
            assert metrics["average_loss"] == min(loss for _, loss in trainer.history)
            assert "swap_quality" not in metrics
            continue
        lines = [json.loads(line) for line in (folder / "logs" / "steps.jsonl").read_text().splitlines()]
        qualities = {line["step"]: line["swap_quality"] for line in lines if "swap_quality" in line}
        assert qualities[best] == max(value for step, value in qualities.items() if step % 2 == 0)
        assert metrics["swap_quality"] == metrics["highest_swap_quality"] == pytest.approx(qualities[best], rel=1e-4)
