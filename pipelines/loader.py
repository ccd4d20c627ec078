"""Sampler -> store -> augmentation -> Batch."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipelines.collate import collate
from pipelines.sampler import Sampler
from pipelines.store import HostStore
from swapfast.augment.draws import Draws, draw
from swapfast.augment.result import Augmented
from swapfast.batch import Batch
from swapfast.config import AugmentationConfig

PREFETCH = 2  # batches made ahead: one in hand while the other is being made


def _upload(pixels: Tensor, device: torch.device) -> Tensor:
    """Bytes to the device: six times less to copy than floats, and from pinned memory nobody waits."""
    if device.type == "cpu":
        return pixels
    return pixels.pin_memory().to(device, non_blocking=True)


class TrainLoader:
    """An endless iterable of training batches on ``device``; batch n is a pure function of (seed, n).

    stores: one per side. augment: ``augment(faces, planes, draws)`` -> Augmented, either backend's. on_device: the
    augmenter takes tensors on ``device`` (the torch backend) and not arrays (OpenCV). start: first step.
    """

    def __init__(
        self,
        stores: Sequence[HostStore],
        sampler: Sampler,
        augment: Callable[[object, object, Draws], Augmented],
        on_device: bool,
        config: AugmentationConfig,
        color_order: str = "bgr",
        device: torch.device | str = "cpu",
        start: int = 0,
        prefetch: int = PREFETCH,
    ) -> None:
        self.stores = stores
        self.sampler = sampler
        self.augment = augment
        self.on_device = on_device
        self.config = config
        self.color_order = color_order
        self.device = torch.device(device)
        self.start = start
        self.prefetch = prefetch

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(sides, B) indices -> (N, S, S, C) faces and (N, K, S, S) planes, A's first, as bytes."""
        size = ids.shape[1]
        faces = np.empty((ids.size, *self.stores[0].faces.shape[1:]), np.uint8)
        planes = np.empty((ids.size, *self.stores[0].planes.shape[1:]), np.uint8)
        for side, (store, wanted) in enumerate(zip(self.stores, ids, strict=True)):
            here = slice(side * size, (side + 1) * size)
            np.take(store.faces, wanted, axis=0, out=faces[here])
            np.take(store.planes, wanted, axis=0, out=planes[here])
        return faces, planes

    def draws(self, step: int) -> Draws:
        """The random amounts of step ``step``."""
        sides, size = len(self.stores), self.sampler.batch_size
        ordinals = np.tile(self.sampler.ordinals(step), sides)
        return draw(
            self.sampler.seed, ordinals, np.repeat(np.arange(sides), size), self.stores[0].spec.size, self.config
        )

    def batch(self, step: int) -> Batch:
        """The batch of step ``step``."""
        ids = self.sampler.ids(step)
        faces, planes = self.gather(ids)
        if self.on_device:
            faces, planes = (_upload(torch.from_numpy(array), self.device) for array in (faces, planes))
        augmented = self.augment(faces, planes, self.draws(step))
        if not self.on_device:
            augmented = _uploaded(augmented, self.device)
        return collate(augmented.to_float(), ids, self.stores[0].spec.masks, self.color_order, step)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from ``start`` on, made ahead by a thread of their own."""
        with ThreadPoolExecutor(1, "swapfast-loader") as worker:
            steps = itertools.count(self.start)
            ahead = deque(worker.submit(self.batch, next(steps)) for _ in range(self.prefetch))
            while True:
                batch = ahead.popleft().result()
                ahead.append(worker.submit(self.batch, next(steps)))
                yield batch


def _uploaded(augmented: Augmented, device: torch.device) -> Augmented:
    return dataclasses.replace(
        augmented,
        feed=_upload(augmented.feed, device),
        targets=[_upload(target, device) for target in augmented.targets],
        masks=None if augmented.masks is None else [_upload(mask, device) for mask in augmented.masks],
    )
