"""A request for a run, and the plan of a run that is possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.fill import FaceSource
from pipelines.store import StoreSpec
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.transfer import Transfer
from swapfast.config import TrainConfig
from swapfast.device import Precision, pick_device, pick_precision
from swapfast.losses import LossCollator
from swapfast.models import FaceAutoencoder
from swapfast.preview.samples import Samples
from swapfast.processes import SINGLE_PROCESS, Processes
from swapfast.training.graphed import pick_cuda_graph


@dataclass(frozen=True)
class TrainRequest:
    """A request for a run: ``config`` for a new model, ``changes`` (settings by dotted name) for one that goes on.

    ``config.run`` is taken either way: it is of this start, and a model keeps none of it.
    """

    config: TrainConfig
    changes: dict[str, object]


@dataclass(frozen=True)
class KnownFaces:
    """The faces that a model knows once it is trained on those of this start.

    tensors: side -> sorted digests, int64, as a checkpoint keeps them.
    remarks: side -> how many of its faces are new to the model.
    lines: what to tell a person.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """A run that is possible. Nothing has been written so far.

    steps: the checkpoints there were. lines: what to tell a person. transfer: what came from another model.
    timelapse_sources: what is in ``config.run.timelapse_inputs``. known: the faces that the model knows.
    has_end: whether somebody asked for so many iterations.
    """

    checkpoints: CheckpointFolder
    steps: list[int]
    config: TrainConfig
    checkpoint: Checkpoint | None
    sources: list[FaceSource]
    model: FaceAutoencoder
    loss: LossCollator
    spec: StoreSpec
    samples: Samples
    lines: list[str]
    processes: Processes = SINGLE_PROCESS
    transfer: Transfer | None = None
    timelapse_sources: Sequence[FaceSource] = ()
    known: KnownFaces = field(default_factory=KnownFaces)
    has_end: bool = False

    @property
    def step(self) -> int:
        """Iterations the model has had."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def device(self) -> torch.device:
        """What to train on."""
        return self.processes.device or pick_device(self.config.run.device)

    @property
    def precision(self) -> Precision:
        """What the model computes in: 'fp32', 'bf16' or 'fp16'."""
        return pick_precision(self.config.precision, self.device)

    @property
    def uses_cuda_graph(self) -> bool:
        """Whether to make a CUDA graph of a step; SwapfastError where it is asked for and cannot be."""
        config = self.config
        return pick_cuda_graph(config.run.cuda_graph, self.device, config.optimizer, self.processes.world)

    @property
    def only_graph(self) -> bool:
        """Whether to look for a learning rate and leave."""
        return self.config.run.lr_finder and self.config.lr_finder.mode == "graph_and_exit"

    @property
    def finds_rate(self) -> bool:
        """Whether to look for a learning rate: once per model, but for the mode that only looks."""
        has_rate = self.checkpoint is not None and "lr_finder" in self.checkpoint.state
        return self.config.run.lr_finder and (self.only_graph or not has_rate)
