"""Makes the augmentation of a backend, OpenCV's or kornia's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swapfast.config import AugmentationConfig
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
):
    """Return the augmentation of ``backend``, 'opencv' or 'kornia', for batches that end on ``device``.

    On the way to a GPU OpenCV's results stay bytes, a quarter of the copy; for the CPU its threads make the floats.

    threads  of OpenCV, by default one per core
    callers  how many threads call it at the same time and share OpenCV's

    Raises SwapfastError where kornia cannot be imported.
    """
    if backend == "opencv":
        from swapfast.augment.host.augmenter import OpenCVAugmenter

        as_float = device.type == "cpu"
        return OpenCVAugmenter(processing_size, input_size, output_sizes, threads, as_float, callers)
    check_import("kornia", "augmentation by kornia")
    from swapfast.augment.device.augmenter import DeviceAugmenter

    return DeviceAugmenter(processing_size, input_size, output_sizes, config)
