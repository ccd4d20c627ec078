"""What this machine has and what swapfast will use of it."""

from __future__ import annotations

import platform

import torch

from pipelines.run.run_state import versions
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


def examine() -> dict:
    """Return what this machine has and what will be used, as plain values."""
    device = pick_device("auto")
    have = versions()
    return {
        "system": platform.platform(),
        "cores": available_cores(),
        "memory_gib": memory_gib() and round(memory_gib(), 1),
        "gpus": gpus(),
        "versions": have,
        "numba_problem": import_problem("numba"),
        "kornia_problem": import_problem("kornia"),
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
