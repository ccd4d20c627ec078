"""The weights by themselves, under our own names, as safetensors: for other programs, and for `train -l`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from swapfast.checkpoints.folder import as_os_error
from swapfast.export.request import Export


def write_safetensors(export: Export, path: Path) -> list[str]:
    """Write all weights of the model to ``path``, of both sides. Raises OSError where it cannot be written."""
    kind = torch.float16 if export.is_half else torch.float32
    weights = {name: weight.detach().to(kind).contiguous() for name, weight in export.opened.model.named_parameters()}
    try:
        path.touch()
        permissions = path.stat().st_mode & 0o777
        save_file(weights, path, export.metadata())
        path.chmod(permissions)  # save_file's are for nobody else
    except SafetensorError as error:
        raise as_os_error(error) from error
    return [f"{len(weights)} weights; `swapfast train -l` begins a new model with them"]
