"""A training step as one CUDA graph: hundreds of launches, each dearer than its work at 64 px, become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from swapfast.batch import Batch
from swapfast.config import OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.losses import BatchLoss
from swapfast.optim.optimizer import HOST_FREE, Optimizer, Phase

WARM_UP_STEPS = 3  # of the weights: averages, tables and cuDNN's plans must be there when the step is captured
SETTLING_STEPS = WARM_UP_STEPS + 4  # of a run: three memories' graphs are captured, and one is replayed and compared

# How far a graph may be from the same step without. Kernels that add in another order each time are 1e-3 apart in bf16;
# losses of other faces or of former weights differ by more, face by face. A move that is left out, doubled or made by a
# former gradient is as far from the right one as that is long; rounding turns round what Adam makes of tiny gradients.
LOSS_TOLERANCE = 1e-2
MOVE_TOLERANCE = 0.25

T = TypeVar("T")


@dataclass
class StepResult:
    """What an iteration computes on the device. The next one writes into the same tensors where it is a graph.

    losses     of side A, B, ..., detached
    values     the scalars that logs are given
    report     the optimizer's (``Optimizer.report``)
    gradients  one per weight where they wait for the rest of their step, else none
    """

    losses: list[BatchLoss]
    values: dict[str, Tensor]
    report: dict[str, Tensor]
    gradients: list[Tensor | None]


class Capturing(Protocol):
    """How a function of the device becomes one that can be replayed."""

    def warm_up(self, function: Callable[[], T]) -> T:
        """Call ``function`` as it will be captured."""

    def capture(self, function: Callable[[], T]) -> Callable[[], T]:
        """Return what does again all that ``function`` does on the device, and gives the same tensors each time.

        Nothing has been done on the device then. ``function`` reads and writes tensors where they lie now.
        """

    def release(self) -> None:
        """Give memory back, after what was captured has been dropped."""


class CudaGraphs:
    """Captures CUDA graphs that share their memory; they must not be replayed at the same time.

    One may write over all that another left there but its results, which are kept as long as it can be replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], T]) -> T:
        """See ``Capturing``. Not on the usual stream: what autograd keeps of a stream must be of the captured one."""
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            result = function()
        usual.wait_stream(self._stream)
        return result

    def capture(self, function: Callable[[], T]) -> Callable[[], T]:
        """See ``Capturing``."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: the loader's thread goes on to pin memory and to ask for events meanwhile.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            result = function()

        def replay() -> T:
            graph.replay()
            return result

        return replay

    def release(self) -> None:
        """See ``Capturing``."""
        torch.cuda.empty_cache()


@dataclass
class _Trial:
    """A step that was made by graphs, to be made again without; all of it on the host.

    weights, optimizer  before it
    batches             of the step so far
    values              for each batch what it gave
    captures            whether a graph was captured for it
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    batches: list[Batch] = field(default_factory=list)
    values: list[dict[str, Tensor]] = field(default_factory=list)
    captures: bool = False


class GraphedStep:
    """Computes iterations by graphs, once enough of them have been made without.

    A graph is captured for each phase of an accumulated step: the first batch, those between and the last one, or for
    the only one. Batches are copied to where the graphs read, but those that lie in a few memories in turn
    (``Batch.slot``): there each memory has a graph, unless gradients wait for another batch's graph. Without graphs are
    made: the first WARM_UP_STEPS, again after the optimizer's state was replaced; a search for a learning rate; what is
    left of a step behind a batch of another shape or gradients that were put back; and all that follows where a step
    cannot be captured, which ``log`` is told in one line.

    Steps that capture a graph, and the next one, are made a second time without, from the same state; it is this second
    time that counts. Where the two differ ``log`` is told, and all that follows is made without graphs.

    compute    what an iteration does on the device, and nothing of what it does on the host: it is called with the
               batch and whether the weights are to move, but not when its graph is replayed
    capturing  makes graphs
    """

    def __init__(
        self,
        compute: Callable[[Batch, bool], StepResult],
        model: nn.Module,
        optimizer: Optimizer,
        capturing: Capturing,
        log: Callable[[str], None],
    ) -> None:
        self._compute, self._model, self._optimizer, self._log = compute, model, optimizer, log
        self._capturing: Capturing | None = capturing
        self._replays: dict[tuple[int | None, Phase], Callable[[], StepResult]] = {}
        self._inputs: dict[int | None, Batch] = {}  # where the graphs read: by slot, and None where they are copied to
        self._warm = 0  # steps since the optimizer's state lies where it does
        self._generation = optimizer.generation
        self._replays_this_step = False
        self._loads = optimizer.loads  # before this step
        self._trial: _Trial | None = None
        self._is_proven = False

    def __call__(self, batch: Batch) -> StepResult:
        """Compute the next iteration; the optimizer's share of the host is the caller's (``count_batch``)."""
        phase = self._optimizer.phase
        if phase.is_first:
            self._replays_this_step, self._loads = self._is_ready(), self._optimizer.loads
            tries = self._replays_this_step and not self._is_proven
            self._trial = _Trial(_on_host(self._model), _on_host(self._optimizer)) if tries else None
        if self._replays_this_step and self._optimizer.loads == self._loads:
            result = self._replayed(batch, phase)
            if result is not None:
                return result if self._trial is None else self._tried(self._trial, batch, phase, result)
        self._replays_this_step, self._trial = False, None
        return self._without(batch, phase)

    def _is_ready(self) -> bool:
        """Return whether the step that begins may be made by graphs."""
        if self._optimizer.generation != self._generation:
            self._generation, self._warm, self._is_proven = self._optimizer.generation, 0, False
            self._replays.clear()
        return self._capturing is not None and not self._optimizer.is_searching and self._warm >= WARM_UP_STEPS

    def _inputs_of(self, batch: Batch) -> tuple[int | None, Batch] | None:
        """Return the batch where graphs read it, and that place's key; copied there unless it lies there already.

        None where it does not fit.
        """
        if batch.slot is not None and self._optimizer.accumulation == 1:
            inputs = self._inputs.setdefault(batch.slot, batch)
            if _places(inputs) == _places(batch):
                return batch.slot, inputs
        if None not in self._inputs:
            self._inputs[None] = batch.map(torch.empty_like)
        inputs = self._inputs[None]
        if [t.shape for t in inputs.tensors] != [t.shape for t in batch.tensors]:
            return None
        torch._foreach_copy_(inputs.tensors, batch.tensors)
        return None, inputs

    def _replayed(self, batch: Batch, phase: Phase) -> StepResult | None:
        """Return the result of the graph, captured where there is none yet, or None where that cannot be."""
        capturing = self._capturing
        placed = self._inputs_of(batch)
        if capturing is None or placed is None:
            return None
        slot, inputs = placed
        replay = self._replays.get((slot, phase))
        if replay is None:
            reason = ""
            try:
                replay = capturing.capture(lambda: self._compute(inputs, phase.is_last))
            except Exception as error:
                reason = _first_cause(error)
            if replay is None:  # only here is the error gone, and all that it held
                self._give_up(f"cannot be captured as a CUDA graph and is computed without one: {reason}")
                if phase.is_first:
                    self._optimizer.drop_gradients()  # of memory that nothing was written to
                return None
            self._replays[slot, phase] = replay
            if self._trial is not None:
                self._trial.captures = True
        return replay()

    def _give_up(self, reason: str) -> None:
        """Go on without graphs."""
        capturing, self._capturing = self._capturing, None
        self._inputs.clear()
        self._replays.clear()
        if capturing is not None:
            capturing.release()
        self._log(f"warning: the step {reason}")

    def _without(self, batch: Batch, phase: Phase) -> StepResult:
        self._warm += phase.is_last
        return self._launched(batch, phase.is_last)

    def _launched(self, batch: Batch, is_last: bool) -> StepResult:
        if self._capturing is None or self._optimizer.is_searching:
            return self._compute(batch, is_last)
        return self._capturing.warm_up(lambda: self._compute(batch, is_last))

    # --- trials -----------------------------------------------------------------------------------------------

    def _tried(self, trial: _Trial, batch: Batch, phase: Phase, result: StepResult) -> StepResult:
        """Return the result of the iteration: where its step is complete, of the same step made without graphs."""
        trial.batches.append(batch.map(lambda tensor: tensor.to("cpu", copy=True)))
        trial.values.append(_compared(result))
        if not phase.is_last:
            return result
        by_graphs = _on_host(self._model)
        again, apart = self._made_again(trial)
        if again is None:
            self._give_up("as a CUDA graph leaves no memory to compare it with one without, so it is computed without")
            again, apart = self._made_again(trial)
            assert again is not None
        elif not apart and not _moved_alike(self._model, by_graphs, trial.weights):
            apart = "weights"
        if apart and self._capturing is not None:
            self._give_up(f"as a CUDA graph gives other {apart} than without, so it is computed without")
        self._trial, self._is_proven = None, not trial.captures
        return again

    def _made_again(self, trial: _Trial) -> tuple[StepResult | None, str]:
        """Make the step without graphs; return its last result, and what of it is other than by graphs, or nothing.

        The result is None where there is no memory for it while there are graphs.
        """
        self._model.load_state_dict(trial.weights)
        self._optimizer.load_state_dict(trial.optimizer)
        apart = ""
        for batch, values in zip(trial.batches, trial.values):
            is_last = self._optimizer.completes_step
            device = next(self._model.parameters()).device
            try:
                result = self._launched(batch.to(device), is_last)
            except torch.OutOfMemoryError:
                if self._capturing is None:
                    raise
                return None, ""
            apart = apart or next(
                (name for name, value in _compared(result).items() if not _close(value, values[name])), ""
            )
            if not is_last:
                self._optimizer.count_batch(result.report, result.gradients)
        return result, apart


def _first_cause(error: BaseException) -> str:
    """Return the first line of what went wrong first: a capture that fails ends in an error of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _on_host(stateful: nn.Module | Optimizer) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in stateful.state_dict().items()}


def _places(batch: Batch) -> list[tuple]:
    return [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in batch.tensors]


def _compared(result: StepResult) -> dict[str, Tensor]:
    """Return copies of what a graph is to give as a step without does, by what a person calls it."""
    losses = [value for loss in result.losses for out in loss.unweighted for value in out.values()]
    values = {"losses": torch.cat([value.flatten() for value in losses])}
    if "gradient/norm" in result.report:
        values["gradients"] = result.report["gradient/norm"].clone()
    return values


def _close(value: Tensor, other: Tensor) -> bool:
    return torch.allclose(value, other, rtol=LOSS_TOLERANCE, atol=0, equal_nan=True)


def _moved_alike(model: nn.Module, other: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> bool:
    """Return whether ``other`` weights are where the model's are, measured by how far these have moved."""
    difference, move = 0.0, 0.0
    for name, weight in model.named_parameters():
        difference += _square_sum(other[name].to(weight.device) - weight)
        move += _square_sum(before[name].to(weight.device) - weight)
    return difference <= MOVE_TOLERANCE**2 * move


def _square_sum(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.float(), dtype=torch.float64)) ** 2


def obstacle_to_graphs(device: torch.device, config: OptimizerConfig, world: int) -> str:
    """Return why steps cannot be CUDA graphs, such as '--optimizer lion: ...', or nothing where they can be."""
    if device.type != "cuda":
        return "a CPU has none"
    if config.optimizer not in HOST_FREE:
        return f"--optimizer {config.optimizer} asks the host at every step ({' and '.join(HOST_FREE)} do not)"
    if config.lr_dropout:
        return "--lr-dropout draws anew at every step, by a number that the host counts"
    if config.gradient_clipping == "autoclip" and not config.autoclip_history:
        return "--autoclip-history 0 needs other memory from time to time (a number does not)"
    if world > 1:
        return "several processes exchange their gradients without, so far"
    return ""


def pick_cuda_graph(name: str, device: torch.device, config: OptimizerConfig, world: int) -> bool:
    """Return whether steps are to be CUDA graphs: for 'auto' where they can be; SwapfastError for 'on' elsewhere."""
    if name == "off":
        return False
    obstacle = obstacle_to_graphs(device, config, world)
    if name == "on" and obstacle:
        raise SwapfastError(f"--cuda-graph on: {obstacle}; give --cuda-graph auto")
    return not obstacle
