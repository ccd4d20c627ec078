"""What this machine has and what swapfast will use of it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch

from pipelines.augmenters import make_augmenter
from pipelines.run.run_state import versions
from swapfast.augment.draws import draw
from swapfast.augment.fused.verified import LEAST_DB, compare, reason
from swapfast.device import pick_backend, pick_device
from swapfast.requirements import import_problem
from swapfast.system import available_cores, total_memory


def memory_gib() -> float | None:
    """Return the memory of this machine or container, or None where the system does not say."""
    return total_memory() / 2**30 or None


def gpus() -> list[str]:
    """Return name and memory of every GPU that torch sees."""
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return names


def compare_fused(device: torch.device, size: int = 256, count: int = 64) -> dict:
    """Return how far the fused augmentation is from kornia's, in dB, and the microseconds that both take of a batch.

    size: px of the drawn-up faces. count: of them in a batch. Where the kernels cannot run, "problem" says why. Times
    are of a GPU, its waits for the host included; None elsewhere.
    """
    coarse = torch.rand((count, 4, 9, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    faces = torch.nn.functional.interpolate(coarse * 255, (size, size), mode="bicubic").clamp(0, 255).to(torch.uint8)
    batch = faces.permute(0, 2, 3, 1).contiguous().to(device), None, draw(0, np.arange(count), 0, size)
    composed = make_augmenter("kornia", size, size, [size], device)
    try:
        from swapfast.augment.fused.augmenter import FusedAugmenter

        fused = FusedAugmenter(size, size, [size])
        comparison = compare(fused(*batch), composed(*batch))
    except Exception as error:  # Triton, its compiler, the driver: whatever it is, it is what a user wants to know
        return {"problem": reason(error)}
    return {
        "problem": None if comparison.worst >= LEAST_DB else f"differs from kornia on this card, {comparison}",
        **asdict(comparison),
        "triton_us": _microseconds(lambda: fused(*batch), device),
        "kornia_us": _microseconds(lambda: composed(*batch), device),
    }


def _microseconds(call: Callable[[], object], device: torch.device, repeats: int = 20) -> float | None:
    if device.type != "cuda":
        return None
    call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return round(1000 * start.elapsed_time(end) / repeats, 1)


def examine() -> dict:
    """Return what this machine has and what will be used, as plain values."""
    device = pick_device("auto")
    have, memory = versions(), memory_gib()
    kornia_problem = import_problem("kornia")
    return {
        "system": platform.platform(),
        "cores": available_cores(),
        "memory_gib": memory and round(memory, 1),
        "gpus": gpus(),
        "versions": have,
        "numba_problem": import_problem("numba"),
        "kornia_problem": kornia_problem,
        "fused_kernels": compare_fused(device) if device.type == "cuda" and kornia_problem is None else None,
        "will_use": {
            "decoder": "DALI on the CPU" if have["dali"] else "OpenCV",
            "augmentation": pick_backend("auto", device),
            "training": str(device),
        },
    }


def describe(report: dict) -> str:
    """Return the same as text for a person, a line each."""
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in report["versions"].items())
    use = report["will_use"]
    lines = [
        f"system     {report['system']}",
        f"cores      {report['cores']}, {report['memory_gib']} GiB of memory",
        f"GPUs       {'; '.join(report['gpus']) or 'none that torch sees: training runs on the CPU'}",
        f"versions   {versions}",
        f"will use   decode: {use['decoder']}; augment: {use['augmentation']}; train: {use['training']}",
    ]
    fused = report["fused_kernels"]
    if fused and fused["problem"]:
        lines.append(f"triton     {fused['problem']}; kornia augments instead")
    elif fused:
        lines.append(
            f"triton     64 faces of 256 px in {fused['triton_us']} us, kornia {fused['kornia_us']} us; apart by "
            f"{fused['feed']:.0f} dB in the feed, {fused['target']:.0f} in targets, {fused['masks']:.0f} in masks"
        )
    if not report["versions"]["dali"]:
        lines.append("note       DALI is missing (it has wheels for Linux only): faces are decoded by OpenCV instead")
    if report["numba_problem"]:
        lines.append(
            f"note       Numba cannot run ({report['numba_problem']}): --backend opencv, -M and `swapfast augment` "
            "need it; `pip install -U numba`"
        )
    if report["kornia_problem"]:
        lines.append(
            f"note       kornia cannot run ({report['kornia_problem']}): --backend kornia and `evaluate --test` need "
            "it; `pip install -U kornia`"
        )
    return "\n".join(lines)
