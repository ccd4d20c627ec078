"""A training step as one CUDA graph: hundreds of launches, each dearer than its work at 64 px, become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from swapfast.batch import Batch
from swapfast.config import OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.losses import BatchLoss
from swapfast.optim.optimizer import HOST_FREE, Optimizer, Phase

WARM_UP_STEPS = 3  # of the weights: averages, tables and cuDNN's plans must be there when the step is captured

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


class CudaGraphs:
    """Captures CUDA graphs that share their memory. They must be replayed in the order in which they were captured."""

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


class GraphedStep:
    """Computes iterations by graphs, once enough of them have been made without.

    A graph is captured for each phase of an accumulated step: the first batch, those between and the last one, or for
    the only one. Without graphs are made: the first WARM_UP_STEPS, again after the optimizer's state was replaced; a
    search for a learning rate; batches of another shape, with what is left of their step; and all that follows where a
    step cannot be captured, which ``log`` is told in one line.

    compute    what an iteration does on the device, and nothing of what it does on the host: it is called with the
               batch and whether the weights are to move, but not when its graph is replayed
    capturing  makes graphs
    """

    def __init__(
        self,
        compute: Callable[[Batch, bool], StepResult],
        optimizer: Optimizer,
        capturing: Capturing,
        log: Callable[[str], None],
    ) -> None:
        self._compute, self._optimizer, self._log = compute, optimizer, log
        self._capturing: Capturing | None = capturing
        self._replays: dict[Phase, Callable[[], StepResult]] = {}
        self._inputs: Batch | None = None  # where the graphs read
        self._warm = 0  # steps since the optimizer's state lies where it does
        self._generation = optimizer.generation
        self._replays_this_step = False

    def __call__(self, batch: Batch) -> StepResult:
        """Compute the next iteration; the optimizer's share of the host is the caller's (``count_batch``)."""
        phase = self._optimizer.phase
        if phase.is_first:
            self._replays_this_step = self._is_ready(batch)
        if self._replays_this_step and self._fits(batch):
            result = self._replayed(batch, phase)
            if result is not None:
                return result
        self._replays_this_step = False
        return self._without(batch, phase)

    def _is_ready(self, batch: Batch) -> bool:
        """Return whether the step that begins may be made by graphs."""
        if self._optimizer.generation != self._generation:
            self._generation, self._warm = self._optimizer.generation, 0
            self._replays.clear()
        if self._capturing is None or self._optimizer.is_searching or self._warm < WARM_UP_STEPS:
            return False
        if self._inputs is None:
            self._inputs = batch.map(torch.empty_like)
        return True

    def _fits(self, batch: Batch) -> bool:
        assert self._inputs is not None
        return [t.shape for t in self._inputs.tensors] == [t.shape for t in batch.tensors]

    def _replayed(self, batch: Batch, phase: Phase) -> StepResult | None:
        """Return the result of the graph, captured where there is none yet, or None where that cannot be."""
        inputs, capturing = self._inputs, self._capturing
        assert inputs is not None and capturing is not None
        torch._foreach_copy_(inputs.tensors, batch.tensors)
        replay = self._replays.get(phase)
        if replay is None:
            try:
                replay = capturing.capture(lambda: self._compute(inputs, phase.is_last))
            except Exception as error:
                self._give_up(error, phase)
                return None
            self._replays[phase] = replay
        return replay()

    def _give_up(self, error: Exception, phase: Phase) -> None:
        """Go on without graphs; nothing of this iteration has been computed."""
        self._capturing, self._inputs = None, None
        self._replays.clear()
        if phase.is_first:
            self._optimizer.drop_gradients()  # of memory that nothing was written to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._log(f"warning: the step cannot be captured as a CUDA graph and is computed without one: {reason}")

    def _without(self, batch: Batch, phase: Phase) -> StepResult:
        self._warm += phase.is_last
        if self._capturing is None or self._optimizer.is_searching:
            return self._compute(batch, phase.is_last)
        return self._capturing.warm_up(lambda: self._compute(batch, phase.is_last))


def obstacle_to_graphs(device: torch.device, config: OptimizerConfig, world: int) -> str:
    """Return why steps cannot be CUDA graphs, such as '--optimizer lion: ...', or nothing where they can be."""
    if device.type != "cuda":
        return "a CPU has none"
    if config.optimizer not in HOST_FREE:
        return f"--optimizer {config.optimizer} asks the host at every step ({' and '.join(HOST_FREE)} do not)"
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
