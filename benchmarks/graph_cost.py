"""What the augmentation of the device backends costs before any clock runs: launches, bytes, instructions.

    python -m benchmarks.graph_cost --size 256 --batch 32

Launches are PyTorch's operations that are not views; the one copy of a batch's amounts from the host is none. Bytes are
what each launch reads and writes, each tensor once, as far as it is stored: no cache is assumed. A pixel is one of the
processing size. The floor reads bytes once and writes float targets, masks and feed once: 42 bytes with three masks.
Bytes alone bound nothing where instructions take longer.

Instructions of the fused kernels are counted in their machine code (``benchmarks/kernels.py``). Those of ``kornia`` are
not counted (null): PyTorch brings its kernels compiled, and what could be said without them, an instruction for each
number that is written and one for each 16 bytes, is less than the fused kernels take and so says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import parser, save, show
from swapfast.augment.device.augmenter import DeviceAugmenter
from swapfast.augment.draws import draw
from swapfast.config import AugmentationConfig

# Operations that make a view or memory without touching it, beside those that PyTorch marks as views.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view", "lift_fresh"}


def _is_sent(name: str, args: tuple, result: object) -> bool:
    """Whether an operation is the copy of a batch's amounts from the host, which is no kernel."""
    return name == "_to_copy" and isinstance(result, torch.Tensor) and args[0].device != result.device


class Operations(TorchDispatchMode):
    """Counts the operations that run inside it, and the bytes they touch."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _FREE and not _is_sent(name, args, result):
            self.launches.append(name)
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            stored = {(x.data_ptr() or id(x), x.shape): min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors}
            self.bytes += sum(stored.values())
        return result


def made_batch(size: int, batch: int, masks: int, config: AugmentationConfig, device: torch.device) -> tuple:
    """Faces with their mask, the other masks, and draws: noise, as launches and bytes do not depend on pixels."""
    pixels = torch.randint(0, 256, (batch, size, size, 4 if masks else 3), dtype=torch.uint8)
    extra_masks = torch.randint(0, 256, (batch, masks - 1, size, size), dtype=torch.uint8) if masks > 1 else None
    return (
        pixels.to(device),
        None if extra_masks is None else extra_masks.to(device),
        draw(0, np.arange(batch), 0, size, config),
    )


def operations(size: int, batch: int, masks: int, config: AugmentationConfig, device: torch.device) -> tuple[int, int]:
    """(launches, bytes) of one batch. On the meta device nothing is computed, and the counts are the same."""
    augment, arguments = DeviceAugmenter(size, size, [size], config), made_batch(size, batch, masks, config, device)
    augment(*arguments)  # makes the tables
    with Operations() as counted:
        augment(*arguments)
    return len(counted.launches), counted.bytes


def fused_operations(size: int, batch: int, masks: int, config: AugmentationConfig) -> tuple[int, int]:
    """(launches, bytes) of one batch by the fused kernels, on tensors without values.

    The curves' kernel counts as if each face had CLAHE.
    """
    from swapfast.augment.fused.augmenter import FusedAugmenter

    augment, arguments = (
        FusedAugmenter(size, size, [size], config),
        made_batch(size, batch, masks, config, torch.device("meta")),
    )
    augment(*arguments)  # makes the tables
    with Operations() as counted:
        augment(*arguments)
    return len(counted.launches), counted.bytes


def fused_instructions(size: int, masks: int, config: AugmentationConfig, arch: int) -> float:
    """A warp's instructions for a px of each of its threads: of feed, target and masks together, on average."""
    from benchmarks import kernels

    share = config.color_clahe_chance / 100 * config.color
    channels, extra = (4, masks - 1) if masks else (3, 0)
    with_clahe = kernels.compiled_color(size, arch, channels, extra).instructions_per_pixel
    without = kernels.compiled_color(size, arch, channels, extra, grid=0).instructions_per_pixel
    curves = kernels.compiled_curves(size, arch, channels).instructions_per_pixel
    color = share * (curves + with_clahe) + (1 - share) * without
    return round(color + kernels.compiled_geometry(size, arch, masks=masks).instructions_per_pixel, 1)


def cost(
    size: int,
    batch: int,
    masks: int,
    config: AugmentationConfig | None = None,
    device: str | torch.device = "meta",
    arch: int = 90,
) -> list[dict]:
    """Launches of a batch and bytes per px, and the share of the memory's speed that the bytes alone would allow.

    masks: 0 to 4, the face's first. One feed and one target of the processing size.
    arch: the GPU whose instructions are counted. Without Triton there is no row of the fused kernels.
    """
    config = config or AugmentationConfig()
    counts: dict[str, tuple[int, int, float | None]] = {
        "kornia": (*operations(size, batch, masks, config, torch.device(device)), None)
    }
    if find_spec("triton"):
        instructions = fused_instructions(size, masks, config, arch)
        counts["triton"] = (*fused_operations(size, batch, masks, config), instructions)
    pixels = batch * size**2
    floor = (3 + masks) * (1 + 4) + 3 * 4
    return [
        {
            "backend": backend,
            "size": size,
            "batch": batch,
            "masks": masks,
            "launches": launches,
            "bytes_per_pixel": round(touched / pixels, 1),
            "floor_bytes_per_pixel": floor,
            "floor_fraction": round(floor * pixels / touched, 4),
            "instructions_per_pixel": instructions,
        }
        for backend, (launches, touched, instructions) in counts.items()
    ]


def main() -> None:
    flags = parser("launches, bytes and instructions of the device backends")
    flags.add_argument("--size", type=int, nargs="+", default=[64, 256])
    flags.add_argument("--batch", type=int, default=32)
    flags.add_argument("--masks", type=int, default=3)
    flags.add_argument("--device", default="meta", help="that kornia runs on; default meta")
    flags.add_argument("--arch", type=int, default=90)
    arguments = flags.parse_args()
    results = [
        row
        for size in arguments.size
        for row in cost(size, arguments.batch, arguments.masks, device=arguments.device, arch=arguments.arch)
    ]
    show(results)
    save(results, arguments.json)


if __name__ == "__main__":
    main()
