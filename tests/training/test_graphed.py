"""Steps by graphs: here without a GPU, by functions that are called again in place of graphs that are replayed."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch

from swapfast.batch import Batch, BatchMeta
from swapfast.config import OPTIMIZER_NAMES, OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.losses import LossCollator
from swapfast.optim.optimizer import OPTIMIZERS, Optimizer
from swapfast.training.averages import WeightAverages
from swapfast.training.graphed import WARM_UP_STEPS, CudaGraphs, StepResult, obstacle_to_graphs, pick_cuda_graph
from swapfast.training.observers import Observer
from swapfast.training.progress import ProgressLine
from swapfast.training.run import Run
from swapfast.training.trainer import Trainer
from tests.toy import SIZE, toy

pytestmark = pytest.mark.slow  # dozens of training steps each

CUDA = torch.device("cuda")


def _tensors(result: StepResult) -> list[torch.Tensor]:
    losses = [value for loss in result.losses for out in (*loss.weighted, *loss.unweighted) for value in out.values()]
    gradients = [gradient for gradient in result.gradients if gradient is not None]
    return [*losses, *result.values.values(), *result.report.values(), *gradients]


class Again:
    """Calls a function again where a CUDA graph would be replayed, and puts what it gives into the same tensors.

    refuses: from which capture on there is no memory.
    """

    def __init__(self, refuses: int | None = None) -> None:
        self.refuses, self.captures, self.replays, self.warm_ups, self.releases = refuses, 0, 0, 0, 0

    def release(self):
        self.releases += 1

    def warm_up(self, function):
        self.warm_ups += 1
        return function()

    def capture(self, function):
        if self.captures == self.refuses:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd much more.")
        self.captures += 1
        first = []

        def replay():
            self.replays += 1
            result = function()
            if not first:
                first.append(result)
            for place, value in zip(_tensors(first[0]), _tensors(result), strict=True):
                place.copy_(value)
            return first[0]

        return replay


class Faulty(Again):
    """Replays that are wrong from the second on, by ``spoil``, which is given what a replay gives."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def capture(self, function):
        replay, counted = super().capture(function), itertools.count(1)

        def faulty():
            result = replay()
            if next(counted) > 1:
                self.spoil(result)
            return result

        return faulty


def _batches(device, poison=(), small=(), memories=0):
    written = {}
    for step in itertools.count():
        generator = torch.Generator().manual_seed(step)
        count = 1 if step in small else 2
        faces = torch.rand(2, count, 3, 1, 1, generator=generator) * torch.linspace(0, 1, SIZE)
        faces = faces.expand(2, count, 3, SIZE, SIZE).clone()
        if step in poison:
            faces[0, 0, 0, 0, 0] = float("nan")
        faces = faces.to(device)
        masks = torch.ones(count, 2, 1, SIZE, SIZE, device=device)
        batch = Batch([faces[0], faces[1]], [faces.transpose(0, 1)], BatchMeta([masks]), step)
        if memories:
            batch.slot = step % memories
            place = written.setdefault(batch.slot, batch)
            torch._foreach_copy_(place.tensors, batch.tensors)
            batch.inputs, batch.targets, batch.meta = place.inputs, place.targets, place.meta
        yield batch


def _trainer(device, capturing=None, precision="fp32", warmup=0, batches=None, **config) -> Trainer:
    model = toy().initialise(5).to(device, memory_format=torch.channels_last)
    settings = OptimizerConfig(learning_rate=1e-3, **config)
    optimizer = Optimizer(model, settings, precision == "fp16", warmup)
    loss = LossCollator(["ssim", "mae"], [1.0, 1.0], "bgr", True, 1, 1, SIZE)
    run = Run(progress=ProgressLine(io.StringIO()))
    batches = _batches(device) if batches is None else batches
    return Trainer(model, loss, optimizer, batches, run, precision=precision, capturing=capturing)


def _numbers(trainer, steps) -> list[list[float]]:
    """Losses, and all that the optimizer reports."""
    return [
        [side.total.item() for side in trainer.train_one_batch()]
        + [value.item() for value in trainer.optimizer.report.values()]
        for _ in range(steps)
    ]


def _assert_same(trainer, reference) -> None:
    """Weights and all that the optimizer keeps, to the bit. Gradients that wait may hold a NaN."""
    for part in ("model", "optimizer"):
        states = (dict(getattr(one, part).state_dict()) for one in (trainer, reference))
        torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)


CASES = {
    "plain": {},
    "accumulated over two, broken": {"gradient_accumulation": 2, "poison": (1, 12)},
    "accumulated over four": {"gradient_accumulation": 4, "gradient_clipping": "autoclip", "autoclip_history": 3},
    "fp16, warm-up, clipped": {"precision": "fp16", "warmup": 8, "gradient_clipping": "norm", "poison": (6,)},
    "adamw, bf16": {"precision": "bf16", "optimizer": "adamw", "gradient_clipping": "autoclip"},
    "a smaller batch": {"gradient_accumulation": 2, "small": (11,)},
    "memories in turn": {"memories": 3, "steps": 10},
    "memories in turn, accumulated": {"memories": 3, "gradient_accumulation": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_steps_by_graphs_are_those_without_to_the_bit(name):
    config = dict(CASES[name])
    accumulation = config.get("gradient_accumulation", 1)
    given = {key: config.pop(key) for key in ("poison", "small", "memories") if key in config}
    steps = config.pop("steps", 6 * accumulation + accumulation // 2)  # in the middle of a step
    cpu, again = torch.device("cpu"), Again()
    plain = _trainer(cpu, batches=_batches(cpu, **given), **config)
    graphed = _trainer(cpu, again, batches=_batches(cpu, **given), **config)
    expected, numbers = _numbers(plain, steps), _numbers(graphed, steps)
    torch.testing.assert_close(numbers, expected, rtol=0, atol=0, equal_nan=True)
    _assert_same(graphed, plain)
    without = WARM_UP_STEPS * accumulation + len(given.get("small", ()))  # whose step was begun by a graph
    graphs = given.get("memories", 1) if accumulation == 1 else min(accumulation, 3)
    tried = 2 * accumulation if accumulation > 1 else graphs + 1
    assert (again.replays, again.warm_ups) == (steps - without, without + tried)
    assert again.captures == graphs


def test_memories_that_lie_elsewhere_all_at_once_are_copied():
    """A loader that begins anew writes its batches in other memory."""
    cpu, again = torch.device("cpu"), Again()
    plain, graphed = _trainer(cpu), _trainer(cpu, again, batches=_batches(cpu, memories=2))
    expected, numbers = _numbers(plain, 8), _numbers(graphed, 6)
    graphed.batches = itertools.islice(_batches(cpu, memories=2), 6, None)
    assert numbers + _numbers(graphed, 2) == expected
    assert (again.captures, again.replays) == (3, 5)


def test_graphs_hold_while_states_are_put_back():
    """What is overwritten in place needs no new graph, what is replaced does."""
    cpu, again = torch.device("cpu"), Again()
    trainers = _trainer(cpu), _trainer(cpu, again)
    for trainer in trainers:
        fresh = trainer.snapshot()
        _numbers(trainer, 5)
        trained = trainer.snapshot()
        _numbers(trainer, 2)
        trainer.put_back(trained)
    assert _numbers(trainers[1], 2) == _numbers(trainers[0], 2) and (again.captures, again.replays) == (1, 6)
    for trainer in trainers:
        trainer.put_back(fresh)  # without averages: the graph's are not those that the next step makes
    assert _numbers(trainers[1], 5) == _numbers(trainers[0], 5) and again.captures == 2
    for trainer in trainers:
        trainer.optimizer.roll_back(trained.optimizer)
    assert _numbers(trainers[1], 2) == _numbers(trainers[0], 2) and again.captures == 2


def test_gradients_that_are_put_back_within_a_step_are_not_those_of_a_graph():
    cpu, again = torch.device("cpu"), Again()
    trainers = _trainer(cpu, gradient_accumulation=2), _trainer(cpu, again, gradient_accumulation=2)
    for trainer in trainers:
        _numbers(trainer, 9)
        waiting = trainer.snapshot()
        _numbers(trainer, 2)
        trainer.put_back(waiting)
    before = again.replays
    assert _numbers(trainers[1], 3) == _numbers(trainers[0], 3) and again.replays == before + 2
    _assert_same(*trainers)


@pytest.mark.long
def test_a_search_for_a_learning_rate_runs_without_graphs_and_they_come_back():
    cpu, again = torch.device("cpu"), Again()
    trainers = _trainer(cpu, gradient_accumulation=3), _trainer(cpu, again, gradient_accumulation=3)
    found = []
    for trainer in trainers:
        _numbers(trainer, 15)
        before = again.replays
        trainer.optimizer.find_learning_rate(trainer, 8, 1e-6, 1e-3)
        assert again.replays == before
        found.append(trainer.optimizer.finder.curve.losses)
    assert found[0] == found[1] and len(found[0]) == 8
    assert _numbers(trainers[1], 3) == _numbers(trainers[0], 3)
    assert again.replays == before + 3 and again.captures == 3


@pytest.mark.parametrize("refuses", [0, 1, 2])
def test_without_memory_for_a_graph_training_goes_on_without(refuses):
    cpu, again = torch.device("cpu"), Again(refuses)
    plain, graphed = _trainer(cpu, gradient_accumulation=3), _trainer(cpu, again, gradient_accumulation=3)
    said = []
    graphed._graphed._log = said.append
    assert _numbers(graphed, 16) == _numbers(plain, 16)
    _assert_same(graphed, plain)
    assert again.captures == again.replays == refuses and again.releases == 1
    assert said == [
        "warning: the step cannot be captured as a CUDA graph and is computed without one: CUDA out of memory. "
        "Tried to allocate 2.00 GiB."
    ]


@pytest.mark.parametrize("apart", ["losses", "gradients", "weights", "memory"])
def test_a_graph_that_gives_something_else_is_not_used(apart):
    """And what it did is undone."""
    cpu = torch.device("cpu")

    def spoil(result):
        if apart == "losses":
            result.losses[0].unweighted[0]["mae"][1] *= 1.03
        elif apart == "gradients":
            result.report.get("gradient/norm", torch.ones(())).mul_(0.97)
        elif apart == "weights":  # a former move once more
            for weight in graphed.model.parameters():
                weight.data.add_(weight.data.sign(), alpha=3e-4)
        else:
            again.warm_up = refuse

    def refuse(function):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    again, said = Faulty(spoil), []
    accumulation = 2 if apart == "memory" else 1
    plain, graphed = (_trainer(cpu, c, gradient_accumulation=accumulation) for c in (None, again))
    graphed._graphed._log = said.append
    steps = 6 * accumulation
    expected, numbers = _numbers(plain, steps), _numbers(graphed, steps)
    assert numbers[-accumulation:] == expected[-accumulation:]
    _assert_same(graphed, plain)
    assert again.replays == 2 * accumulation and again.releases == 1
    other = f"gives other {apart} than without" if apart != "memory" else "leaves no memory to compare it"
    assert len(said) == 1 and said[0].startswith(f"warning: the step as a CUDA graph {other}"), said


class Reports(Observer):
    """Keeps the losses that logs are given."""

    def __init__(self):
        self.values = []

    def on_report(self, step, values, time=None):
        self.values.append((step, {tag: value for tag, value in values.items() if tag.startswith(("batch", "grad"))}))


def test_logs_are_given_the_losses_of_every_step():
    """Though the next step writes into the same tensors before they are fetched."""
    reports = []
    for capturing in (None, Again()):
        reports.append(Reports())
        trainer = _trainer(torch.device("cpu"), capturing)
        trainer.run.observers, trainer.run.iterations = [reports[-1]], 9
        trainer._shown_at = math.inf  # shows none before the end
        for _ in range(8):
            trainer.train_one_step()
        trainer.fetch_losses()
    assert len(reports[0].values) == 8 and reports[0].values == reports[1].values


def test_what_cannot_be_a_graph_is_said():
    known = {name for name in OPTIMIZER_NAMES if not obstacle_to_graphs(CUDA, OptimizerConfig(optimizer=name), 1)}
    weight = torch.zeros(1, requires_grad=True)
    host_free = {
        name
        for name, make in OPTIMIZERS.items()
        if getattr(make([{"params": [weight]}], OptimizerConfig()), "_step_supports_amp_scaling", False)
    }
    assert known == host_free == {"adam", "adamw", "muon"}
    endless = OptimizerConfig(gradient_clipping="autoclip", autoclip_history=0)
    for config, world, reason in [
        (OptimizerConfig(optimizer="lion"), 1, "--optimizer lion asks the host at every step"),
        (endless, 1, "--autoclip-history 0 needs other memory"),
        (OptimizerConfig(), 2, "several processes"),
    ]:
        assert pick_cuda_graph("auto", CUDA, config, world) is False
        with pytest.raises(SwapfastError, match=f"^--cuda-graph on: {reason}.*; give --cuda-graph auto$"):
            pick_cuda_graph("on", CUDA, config, world)
    assert pick_cuda_graph("auto", CUDA, OptimizerConfig(), 1) and pick_cuda_graph("on", CUDA, OptimizerConfig(), 1)
    assert not pick_cuda_graph("off", CUDA, OptimizerConfig(), 1)
    assert not pick_cuda_graph("auto", torch.device("cpu"), OptimizerConfig(), 1)


def test_a_gpus_graphs_compute_what_launches_do(device, within):
    """Where there is one: the losses of captured steps against those launched one by one."""
    if device.type != "cuda":
        pytest.skip("needs a GPU (--device cuda)")
    for config in ({}, {"gradient_accumulation": 3, "gradient_clipping": "autoclip"}, {"precision": "fp16"}):
        plain, graphed = _trainer(device, **config), _trainer(device, CudaGraphs(device), **config)
        steps = 8 * config.get("gradient_accumulation", 1)
        expected, numbers = (torch.tensor(_numbers(trainer, steps))[:, :2] for trainer in (plain, graphed))
        assert graphed._graphed._replays, "nothing was captured"
        # Adam makes steps of 1e-3 of what is rounding in a gradient; a graph that reads old state is apart by far more.
        within(f"losses, {config}", ((numbers - expected).abs() / expected.abs()).max(), 1e-2)


def test_averages_follow_steps_by_graphs_as_those_without():
    """Broken steps and such as are made twice, to be compared, included."""
    cpu, states = torch.device("cpu"), []
    for capturing in (None, Again()):
        trainer = _trainer(cpu, capturing, batches=_batches(cpu, poison=(7,)))
        trainer.averages = WeightAverages(trainer.model, [3])
        _numbers(trainer, 10)
        states.append(trainer.averages.state_dict())
    assert states[0]["3/@steps"] == 9
    torch.testing.assert_close(*states, rtol=0, atol=0)
