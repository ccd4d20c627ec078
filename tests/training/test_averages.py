"""Averaged weights: the sum they are, what they leave out, and that they go on to the bit."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch

from swapfast.batch import Batch, BatchMeta
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.checkpoints.transfer import freeze
from swapfast.config import OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.losses import LossCollator
from swapfast.optim.optimizer import Optimizer
from swapfast.training.averages import DENSE_STEPS, EVERY, RAMP, WeightAverages
from swapfast.training.observers import Observer
from swapfast.training.progress import ProgressLine
from swapfast.training.run import Run
from swapfast.training.trainer import Trainer
from tests.toy import SIZE, toy


def _move(model, number):
    """Set every weight to its first value plus the number of the step."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float(number))


def _stepped(averages, model, steps, first=1, left_out=()):
    for number in range(first, first + steps):
        if number not in left_out:
            _move(model, number)
        averages.add_step(number, torch.tensor(number in left_out))


def _reference(steps, half_life, left_out=()):
    """The average of the numbers of the steps, as the docstrings define it."""
    average, moved, waiting, value = None, 0, 0, 0.0
    for number in range(1, steps + 1):
        if number not in left_out:
            moved, waiting, value = moved + 1, waiting + 1, float(number)
        if number <= DENSE_STEPS or number % EVERY == 0:
            share = 1 - 0.5 ** (waiting / min(half_life, RAMP * max(moved, 1)))
            average, waiting = (value if average is None else average + share * (value - average)), 0
    return average


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [(), (3, 40, 200, 201, 203)])
def test_an_average_is_the_sum_that_its_half_life_says(within, left_out):
    model = toy().initialise(1)
    averages = WeightAverages(model, [10, 1000])
    steps = 20 * EVERY
    _stepped(averages, model, steps, left_out=left_out)
    for half_life in averages.half_lives:
        weight = next(averages.averaged_model(half_life).parameters()).flatten()[0].item()
        expected = _reference(steps, half_life, left_out)
        # The first weight's own value counts 2 ** -10; then float32 rounds 84 updates by 6e-8 of a value.
        within(f"half-life {half_life}, relative", abs(weight / expected - 1), 1e-5)
    lag = steps - _reference(steps, 10, left_out)
    assert 5 < lag < 25, "a half-life of 10 lies 14 steps behind"


@pytest.mark.slow
def test_a_half_life_counts_iterations_and_not_steps():
    first, second = toy().initialise(1), toy().initialise(1)
    averages, accumulated = WeightAverages(first, [40]), WeightAverages(second, [80], accumulation=2)
    _stepped(averages, first, 100)
    _stepped(accumulated, second, 100)
    for name, weight in averages.averaged_model(40).named_parameters():
        assert torch.equal(weight, accumulated.averaged_model(80).get_parameter(name))


def test_averages_go_on_to_the_bit_and_stay_in_place():
    model = toy().initialise(1)
    through = WeightAverages(model, [30, 500])
    _stepped(through, model, 100)
    saved = {name: tensor.clone() for name, tensor in through.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in through.state_dict().items()}
    _stepped(through, model, 100, first=101)
    resumed = toy().initialise(2)
    again = WeightAverages(resumed, [30, 500])
    assert again.load_state_dict(saved) == []
    _stepped(again, resumed, 100, first=101)
    for name, tensor in through.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert "@" in name or tensor.data_ptr() == places[name], name


def test_what_is_frozen_has_no_average_and_what_is_new_begins_with_the_weights():
    model = toy().initialise(1)
    freeze(model, ["encoder"])
    averages = WeightAverages(model, [20])
    assert not any("/encoder" in name for name in averages.state_dict())
    averaged = averages.averaged_model(20)
    assert (
        averaged.get_parameter("encoder.0.0.weight").data_ptr() == model.get_parameter("encoder.0.0.weight").data_ptr()
    )
    _stepped(averages, model, 10)
    thawed = toy().initialise(3)
    again = WeightAverages(thawed, [20, 70])
    assert again.load_state_dict(averages.state_dict()) == ["ema-70"]
    for name, weight in again.averaged_model(20).named_parameters():
        source = thawed if name.startswith("encoder") else averaged
        assert torch.equal(weight, source.get_parameter(name)), name
    assert torch.equal(
        again.averaged_model(70).get_parameter("encoder.0.0.weight"), thawed.get_parameter("encoder.0.0.weight")
    )


def test_buffers_are_averaged_and_counters_are_not():
    model = toy().initialise(1)
    model.encoder.register_buffer("mean", torch.zeros(4))
    model.encoder.register_buffer("count", torch.zeros((), dtype=torch.int64))
    averages = WeightAverages(model, [10])
    averaged = averages.averaged_model(10)
    for number in range(1, 31):
        model.encoder.mean.fill_(number)
        model.encoder.count.fill_(number)
        averages.add_step(number, torch.tensor(False))
    assert 15 < averaged.encoder.mean[0] < 30 and averaged.encoder.count == 30


def test_averages_of_another_model_are_refused():
    model = toy().initialise(1)
    averages = WeightAverages(model, [10])
    for name, value in (("10/other", torch.zeros(3)), ("10/encoder.0.0.bias", torch.zeros(3))):
        with pytest.raises(
            SwapfastError, match=r"checkpoint: \S+ in ema.safetensors is no weight of the model; .*--ema off"
        ):
            averages.load_state_dict({name: value}, "checkpoint")


# --- within a run -----------------------------------------------------------------------------------------


def _batches(start=0, poison=()):
    for step in itertools.count(start):
        generator = torch.Generator().manual_seed(step)
        faces = torch.rand(2, 2, 1, 1, 1, generator=generator) * torch.linspace(0, 1, SIZE)
        faces = faces.expand(2, 2, 3, SIZE, SIZE).clone()
        if step in poison:
            faces[0, 0, 0, 0, 0] = float("nan")
        ordinals = np.arange(2 * step, 2 * step + 2, dtype=np.uint64)
        meta = BatchMeta([torch.ones(2, 2, 1, SIZE, SIZE)])
        yield Batch([faces[0], faces[1]], [faces.transpose(0, 1)], meta, step, ordinals=ordinals)


class _Rewindable:
    def __init__(self, start, poison):
        self.start, self.poison = start, poison

    def __iter__(self):
        return self.from_step(self.start)

    def from_step(self, step):
        return _batches(step, self.poison)


class _Shown(Observer):
    """Notes a weight of the model that is shown and of the one in training, at every step."""

    def __init__(self):
        self.pairs = []

    def on_step(self, training):
        shown, trained = (next(model.parameters()).detach().clone() for model in (training.evaluated, training.model))
        self.pairs.append((shown, trained))


class _Stops(Observer):
    """Asks the run to stop behind a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, training):
        if training.step == self.step:
            training.stop.request("a test")


def _trainer(
    folder, iterations, poison=(), half_lives=(5,), accumulation=1, nan="stop", observers=(), warmup=0, **config
):
    model = toy().initialise(5).to(memory_format=torch.channels_last)
    settings = OptimizerConfig(learning_rate=1e-3, gradient_accumulation=accumulation, **config)
    optimizer = Optimizer(model, settings, warmup_steps=warmup)
    checkpoints = CheckpointFolder(folder)
    loaded = checkpoints.load()
    step = 0
    averages = None
    if loaded:
        step = loaded[0].step
        model.load_state_dict(loaded[0].tensors["model"])
        optimizer.load_state_dict(loaded[0].tensors["optimizer"])
    if half_lives:
        averages = WeightAverages(model, half_lives, accumulation)
        if loaded:
            averages.load_state_dict(loaded[0].tensors.get("ema", {}))
    optimizer.plan_end(iterations - step)
    run = Run(
        checkpoints,
        iterations,
        4,
        progress=ProgressLine(io.StringIO()),
        saved_step=step if loaded else None,
        nan=nan,
        observers=observers,
    )
    loss = LossCollator(["mae"], [1.0], "bgr", True, 1, 1, SIZE)
    evaluated = None if averages is None else averages.averaged_model(half_lives[0])
    return Trainer(model, loss, optimizer, _Rewindable(step, poison), run, step, averages=averages, evaluated=evaluated)


def _stored(folder):
    return CheckpointFolder(folder).load()[0].tensors


@pytest.mark.slow
def test_a_resumed_run_has_the_averages_of_one_that_was_not_stopped(tmp_path):
    accumulation = 3
    shown = _Shown()
    _trainer(tmp_path / "through", 10, accumulation=accumulation, observers=[shown]).train()
    for iterations in (4, 10):
        _trainer(tmp_path / "stopped", iterations, accumulation=accumulation).train()
    _trainer(tmp_path / "off", 10, half_lives=(), accumulation=accumulation).train()
    through, stopped, off = (_stored(tmp_path / name) for name in ("through", "stopped", "off"))
    assert through.keys() - off.keys() == {"ema"}
    for name, tensor in through["ema"].items():
        assert torch.equal(tensor, stopped["ema"][name]), name
    for name, weight in off["model"].items():
        assert torch.equal(weight, through["model"][name]), "averaging moves no weight"
    assert through["ema"]["5/@steps"] == 10 // accumulation
    changes = [not torch.equal(a[0], b[0]) for a, b in itertools.pairwise(shown.pairs)]
    assert changes == [(step + 1) % accumulation == 0 for step in range(1, 10)], "only where weights move"
    assert not torch.equal(*shown.pairs[-1])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_run_that_is_stopped_in_warm_up_and_fall_goes_on_to_the_bit(tmp_path, schedule):
    """A step in a half-life of 5 iterations, and one of the warm-up, is lost in none of the stops."""
    config = {"accumulation": 2, "warmup": 2, "schedule": schedule, "decay_share": 50.0}
    _trainer(tmp_path / "through", 12, **config).train()
    for step in (3, 9):
        trainer = _trainer(tmp_path / "stopped", 12, observers=[_Stops(step)], **config)
        trainer.train()
        assert trainer.step == step
    last = _trainer(tmp_path / "stopped", 12, **config)
    assert 0 < last.optimizer.learning_rate < 1e-3
    last.train()
    through, stopped = (_stored(tmp_path / name) for name in ("through", "stopped"))
    for file in ("model", "optimizer", "ema"):
        assert through[file].keys() == stopped[file].keys()
        assert all(torch.equal(tensor, stopped[file][name]) for name, tensor in through[file].items()), file


@pytest.mark.slow
def test_steps_that_are_left_out_and_a_way_back_leave_no_trace(tmp_path):
    _trainer(tmp_path / "skip", 8, poison=(5,), nan="skip").train()
    assert _stored(tmp_path / "skip")["ema"]["5/@steps"] == 7
    trainer = _trainer(tmp_path / "back", 8, poison=(5,), nan="rollback", schedule="linear", decay_share=100.0)
    trainer.train()
    assert trainer.optimizer.steps == trainer.optimizer.schedule.steps == 6, "the rate still falls to the last one"
    back = _stored(tmp_path / "back")["ema"]
    assert back["5/@steps"] == 6, "of 4 saved and 2 behind the broken one"
    assert all(tensor.isfinite().all() for tensor in back.values())


@pytest.mark.slow
def test_a_search_for_a_rate_leaves_averages_and_schedule_alone(tmp_path):
    trainer = _trainer(tmp_path, 8, schedule="linear", decay_share=100.0)
    trainer.train_one_batch()
    before = {name: tensor.clone() for name, tensor in trainer.averages.state_dict().items()}
    optimizer = trainer.optimizer
    found = optimizer.find_learning_rate(trainer, 20, 1e-5, 1e-2)
    assert found and optimizer.learning_rate == optimizer.finder.best_lr * 7 / 8, "that of the second step of eight"
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.averages.state_dict().items())
