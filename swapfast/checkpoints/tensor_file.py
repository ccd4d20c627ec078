"""Writes a .safetensors file that others may read as they may read any new file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write ``tensors`` to ``path`` with the permissions of any new file there: save_file's are for nobody else.

    A model that was trained as another user, in a container say, can then be read by who started it. Raises OSError or
    SafetensorError where it cannot be written.
    """
    path.touch()
    permissions = path.stat().st_mode & 0o777
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    with contextlib.suppress(OSError):  # some shared folders know no permissions
        path.chmod(permissions)
