"""A network as a table: its layers, what comes out of each, and how many weights it has."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from swapfast.models.autoencoder import FaceAutoencoder

_ROW = "{:<34} {:<14} {:<22} {:>14}"


def layer_rows(model: FaceAutoencoder) -> list[tuple[str, str, str, int, bool]]:
    """(name, kind, output shape of one face, parameters, trained) of every layer in the order they are run in."""
    ghost = copy.deepcopy(model).to("meta")
    rows: list[tuple[str, str, str, int, bool]] = []
    hooks = []
    for name, layer in ghost.named_modules():
        if next(layer.children(), None) is None:

            def note(layer: nn.Module, _inputs, output: Tensor, name: str = name) -> None:
                own = list(layer.parameters())
                shape = " x ".join(map(str, output.shape[1:]))
                trained = any(parameter.requires_grad for parameter in own)
                rows.append((name, type(layer).__name__, shape, sum(p.numel() for p in own), trained))

            hooks.append(layer.register_forward_hook(note))
    size = model.input_size
    with torch.no_grad():
        ghost([torch.empty(1, 3, size, size, device="meta") for _ in model.decoders])
    for hook in hooks:
        hook.remove()
    return rows


def summary(model: FaceAutoencoder) -> str:
    """The table, with totals by part and of all. Frozen layers are marked with an asterisk."""
    lines = [
        f"model {model.name}: {model.input_size} px in, {', '.join(map(str, model.output_sizes))} px out, "
        f"{model.color_order}",
        _ROW.format("layer", "kind", "output of one face", "parameters"),
    ]
    for name, kind, shape, count, trained in layer_rows(model):
        mark = "*" if count and not trained else " "
        lines.append(_ROW.format(name, kind, shape, f"{count:,}{mark}" if count else ""))
    counts = {"encoder": model.encoder, **{f"decoder {side}": one for side, one in model.decoders.items()}}
    lines.append("")
    for name, part in counts.items():
        lines.append(f"{name:<34} {_count(part):>14,} parameters")
    total = _count(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines.append(f"{'all':<34} {total:>14,} parameters, {total * 4 / 2**20:.1f} MiB in float32")
    if trained != total:
        lines.append(f"{'trained':<34} {trained:>14,} parameters, the others (*) are frozen")
    return "\n".join(lines)


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
