"""What is asked for, and what has been found possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.fill import FaceSource
from pipelines.store import StoreSpec
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.transfer import Transfer
from swapfast.config import TrainConfig
from swapfast.device import pick_device, pick_precision
from swapfast.losses import LossCollator
from swapfast.models import FaceAutoencoder
from swapfast.preview.samples import Samples
from swapfast.processes import SINGLE_PROCESS, Processes


@dataclass(frozen=True)
class TrainRequest:
    """What the command line asks for.

    changes: settings by dotted name, over those of a resumed model or of ``config``. resume: 'auto' goes on where a
    model is and starts one where none is, 'never' refuses where one is, 'must' where none is. override: accept a change
    of fixed settings where that is possible. load_weights: a model whose weights a new one begins with. after_save: a
    shell command. compile: model and, with the torch backend, augmentation. timelapse: the folder of a picture for
    every save, if there is to be one. timelapse_inputs: folders of the faces on them; none for those of the preview.
    """

    input_a: Path
    input_b: Path
    model_dir: Path
    config: TrainConfig
    changes: dict[str, object]
    iterations: int = 1_000_000
    save_interval: int = 250
    resume: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    skip_bad: bool = False
    logs: bool = True
    cache_mode: str = "auto"
    cache_dir: Path | None = None
    lr_finder: bool = False
    snapshot_interval: int = 0
    override: bool = False
    load_weights: Path | None = None
    after_save: str | None = None
    compile: bool = False
    timelapse: Path | None = None
    timelapse_inputs: tuple[Path, ...] = ()

    @property
    def cache(self) -> Path:
        """The cache folder, by default beside the model."""
        return self.cache_dir or self.model_dir / "cache"


@dataclass(frozen=True)
class Plan:
    """A request that has been found possible. Nothing has been written so far.

    steps: the checkpoints there were. lines: what to tell a person. transfer: what came from another model.
    timelapse_sources: what is in the request's ``timelapse_inputs``.
    """

    request: TrainRequest
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

    @property
    def step(self) -> int:
        """Iterations the model has had."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def device(self) -> torch.device:
        """What to train on."""
        return self.processes.device or pick_device(self.request.device)

    @property
    def precision(self) -> str:
        """What the model computes in: 'fp32', 'bf16' or 'fp16'."""
        return pick_precision(self.config.precision, self.device)

    @property
    def only_graph(self) -> bool:
        """Whether to look for a learning rate and leave."""
        return self.request.lr_finder and self.config.lr_finder.mode == "graph_and_exit"

    @property
    def finds_rate(self) -> bool:
        """Whether to look for a learning rate: once per model, but for the mode that only looks."""
        found = self.checkpoint is not None and "lr_finder" in self.checkpoint.state
        return self.request.lr_finder and (self.only_graph or not found)
