"""The weights by themselves, under our own names, as safetensors: for other programs, and for `train -l`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError

from swapfast.checkpoints.folder import as_os_error
from swapfast.checkpoints.tensor_file import write_tensors
from swapfast.export.request import Export
from swapfast.models.side_statistics import SideStatistics


def write_safetensors(export: Export, path: Path) -> list[str]:
    """Write all weights of the model to ``path``, of both sides, and the statistics that a swap needs beside them.

    The statistics are float32 always. Raises OSError where it cannot be written.
    """
    kind = torch.float16 if export.is_half else torch.float32
    model = export.opened.model
    weights = {name: weight.detach().to(kind) for name, weight in model.named_parameters()}
    statistics = {
        f"statistics.{name}.{buffer}": value
        for name, layer in model.statistics.items()
        if isinstance(layer, SideStatistics) and layer.is_known
        for buffer, value in layer.of_a_swap().items()
    }
    try:
        write_tensors(weights | statistics, path, export.metadata())
    except SafetensorError as error:
        raise as_os_error(error) from error
    return [f"{len(weights)} weights; `swapfast train -l` begins a new model with them"]
