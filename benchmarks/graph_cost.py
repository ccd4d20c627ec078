"""What the kornia backend's augmentation costs before any clock runs: kernels and bytes.

    python -m benchmarks.graph_cost --size 256 --batch 32

Kernels are PyTorch's operations that are not views. Bytes are what each of them reads and writes, each tensor once, as
far as it is stored: no cache is assumed. A pixel is one of the processing size. The floor reads bytes once and writes
float targets, masks and feed once: 42 bytes with three masks. Bytes alone bound nothing where instructions take longer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import parser, save, show
from swapfast.augment.device.augmenter import DeviceAugmenter
from swapfast.augment.draws import draw
from swapfast.config import AugmentationConfig

# Operations that make a view or memory without touching it, beside those that PyTorch marks as views.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view", "lift_fresh"}


class Operations(TorchDispatchMode):
    """Counts the operations that run inside it, and the bytes they touch."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _FREE:
            self.kernels.append(name)
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            stored = {(x.data_ptr(), x.shape): min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors}
            self.bytes += sum(stored.values())
        return result


def made_batch(size: int, batch: int, masks: int, device: torch.device) -> tuple:
    """Faces with their mask, the other masks, and draws: noise, as kernels and bytes do not depend on pixels."""
    pixels = torch.randint(0, 256, (batch, size, size, 4 if masks else 3), dtype=torch.uint8)
    extra_masks = torch.randint(0, 256, (batch, masks - 1, size, size), dtype=torch.uint8) if masks > 1 else None
    return (
        pixels.to(device),
        None if extra_masks is None else extra_masks.to(device),
        draw(0, np.arange(batch), 0, size),
    )


def operations(size: int, batch: int, masks: int, config: AugmentationConfig, device: torch.device) -> tuple[int, int]:
    """(kernels, bytes) of one batch."""
    augment, arguments = DeviceAugmenter(size, size, [size], config), made_batch(size, batch, masks, device)
    augment(*arguments)  # makes the tables
    with Operations() as counted:
        augment(*arguments)
    return len(counted.kernels), counted.bytes


def cost(
    size: int, batch: int, masks: int, config: AugmentationConfig | None = None, device: str | torch.device = "cpu"
) -> dict:
    """Kernels of a batch and bytes per px, and the share of the memory's speed that the bytes alone would allow.

    masks: 0 to any, the face's first. One feed and one target of the processing size.
    """
    config, device = config or AugmentationConfig(), torch.device(device)
    pixels = batch * size**2
    kernels, touched = operations(size, batch, masks, config, device)
    floor = (3 + masks) * (1 + 4) + 3 * 4
    return {
        "size": size,
        "batch": batch,
        "masks": masks,
        "kernels": kernels,
        "bytes_per_pixel": round(touched / pixels, 1),
        "floor_bytes_per_pixel": floor,
        "floor_fraction_estimate": round(floor * pixels / touched, 4),
    }


def main() -> None:
    flags = parser("kernels and bytes of the kornia backend")
    flags.add_argument("--size", type=int, nargs="+", default=[64, 256])
    flags.add_argument("--batch", type=int, default=32)
    flags.add_argument("--masks", type=int, default=3)
    flags.add_argument("--device", default="cpu")
    arguments = flags.parse_args()
    results = [cost(size, arguments.batch, arguments.masks, device=arguments.device) for size in arguments.size]
    show(results)
    save(results, arguments.json)


if __name__ == "__main__":
    main()
