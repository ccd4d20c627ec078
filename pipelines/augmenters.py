"""Makes the augmentation of a backend: OpenCV's, kornia's or Triton's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from swapfast.augment.fused.verified import Augment, VerifiedAugmenter
from swapfast.config import AugmentationConfig
from swapfast.printing import complain
from swapfast.requirements import check_import


def make_augmenter(
    backend: str,
    processing_size: int,
    input_size: int,
    output_sizes: Sequence[int],
    device: torch.device,
    config: AugmentationConfig | None = None,
    threads: int | None = None,
    callers: int = 1,
    warn: Callable[[str], None] = complain,
) -> Augment:
    """Return the augmentation of ``backend``, 'opencv', 'kornia' or 'triton', for batches that end on ``device``.

    On the way to a GPU OpenCV's results stay bytes, a quarter of the copy; for the CPU its threads make the floats.

    threads  of OpenCV, by default one per core
    callers  how many threads call it at the same time and share OpenCV's
    warn     prints the line that says why kornia takes Triton's place

    Raises SwapfastError where kornia cannot be imported.
    """
    if backend == "opencv":
        from swapfast.augment.host.augmenter import OpenCVAugmenter

        as_float = device.type == "cpu"
        return OpenCVAugmenter(processing_size, input_size, output_sizes, threads, as_float, callers)
    check_import("kornia", "augmentation by kornia")
    from swapfast.augment.device.augmenter import DeviceAugmenter

    composed = DeviceAugmenter(processing_size, input_size, output_sizes, config)
    if backend == "kornia":
        return composed

    def fused() -> Augment:
        from swapfast.augment.fused.augmenter import FusedAugmenter

        return FusedAugmenter(processing_size, input_size, output_sizes, config)

    return VerifiedAugmenter(fused, composed, warn)
