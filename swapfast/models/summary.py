"""A network as a table: its layers, what comes out of each, and how many weights it has."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from swapfast.batch import SIDES
from swapfast.models.autoencoder import FaceAutoencoder

_ROW = "{:<34} {:<14} {:<22} {:>14}"


def layer_rows(model: FaceAutoencoder) -> list[tuple[str, str, str, int, bool]]:
    """Return every layer in the order they run in.

    Each is (name, kind, output shape of one face, number of parameters, whether they are trained).
    """
    ghost = copy.deepcopy(model).to("meta")
    rows: dict[str, tuple[str, str, str, int, bool]] = {}  # a decoder of both sides runs twice
    hooks = []
    for name, layer in ghost.named_modules():
        if next(layer.children(), None) is None:

            def add_row(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                parameters = list(layer.parameters())
                shape = " x ".join(map(str, output.shape[1:]))
                trained = any(parameter.requires_grad for parameter in parameters)
                rows[name] = (name, type(layer).__name__, shape, sum(p.numel() for p in parameters), trained)

            hooks.append(layer.register_forward_hook(add_row))
    size = model.input_size
    with torch.no_grad():
        ghost([torch.empty(1, 3, size, size, device="meta") for _ in SIDES])
    for hook in hooks:
        hook.remove()
    return list(rows.values())


def summary(model: FaceAutoencoder) -> str:
    """Return the table, with totals by part and of all. Frozen layers are marked with an asterisk."""
    lines = [
        f"model {model.name}: {model.input_size} px in, {', '.join(map(str, model.output_sizes))} px out, "
        f"{model.color_order}",
        _ROW.format("layer", "kind", "output of one face", "parameters"),
    ]
    for name, kind, shape, count, trained in layer_rows(model):
        mark = "*" if count and not trained else " "
        lines.append(_ROW.format(name, kind, shape, f"{count:,}{mark}" if count else ""))
    lines.append("")
    for name, part in model.parts().items():
        lines.append(f"{name.replace('_', ' '):<34} {_count(part):>14,} parameters")
    total = _count(model)
    total_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines.append(f"{'all':<34} {total:>14,} parameters, {total * 4 / 2**20:.1f} MiB in float32")
    if total_trained != total:
        lines.append(f"{'trained':<34} {total_trained:>14,} parameters, the others (*) are frozen")
    return "\n".join(lines)


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
