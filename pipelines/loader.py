"""Sampler -> bytes -> augmentation -> Batch."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.collate import Collate
from pipelines.feed import Feed
from pipelines.sampler import Sampler
from swapfast.augment.draws import Draws, draw, landmark_noise, with_landmarks
from swapfast.augment.kernels.jit import kernels
from swapfast.batch import Batch
from swapfast.config import AugmentationConfig
from swapfast.faces.matching import LandmarkMatcher

PREFETCH = 2  # batches made ahead: one in hand while the other is being made
TOGETHER_PIXELS = 2**20  # of the faces that are made in one go: 256 of 64 px
MOST_TOGETHER = 8


@dataclass(frozen=True)
class Making:
    """When batches are made, and by how many ``threads`` in all.

    prefetch: how many ahead, beside the training, ``at_once`` at the same time. 0 for between the steps, ``together``
    of them in one go, while the training waits.
    """

    prefetch: int = PREFETCH
    at_once: int = 1
    together: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if self.prefetch and self.together > 1:
            raise ValueError("batches that are made ahead are made one by one")

    @property
    def threads_each(self) -> int:
        """How many threads make one batch."""
        return max(1, self.threads // self.at_once)

    @classmethod
    def ahead(cls, cache: str, backend: str, threads: int) -> Making:
        """Beside the training: two at once where OpenCV augments faces of a store on several threads.

        While one is being looked up, drawn and sorted, the other keeps the cores busy: a tenth is gained. What decodes
        goes through the steps in their order, and a GPU through one batch after another. cache: --cache.
        """
        return cls(at_once=min(2, threads) if backend == "opencv" and cache != "off" else 1, threads=threads)

    @classmethod
    def fitting(cls, cache: str, backend: str, device: torch.device, threads: int, pixels: int) -> Making:
        """For training on ``device``: between the steps where the CPU trains and OpenCV augments faces of a store.

        There a thread beside the training holds up one of the step's threads, for which all others wait: 5 ms of CPU
        cost the step 6 to 9. All threads together, between steps, take 3. What is drawn and looked up for several
        batches takes hardly longer than for one. pixels: of all faces of a batch.
        """
        if device.type == "cpu" and backend == "opencv" and cache != "off":
            return cls(prefetch=0, together=max(1, min(MOST_TOGETHER, TOGETHER_PIXELS // pixels)), threads=threads)
        # Beside a CPU's training no core is free: one thread stays ahead, in two thirds of the CPU time of two.
        return cls.ahead(cache, backend, 1 if device.type == "cpu" else threads)


class TrainLoader:
    """An endless iterable of training batches; batch n is a pure function of (seed, n) and the sampler's rank.

    feed: where the bytes come from (feed.py). collate: what becomes of them. size: px of the faces. start: first step.
    matcher: faces are warped to the landmarks of those it finds, in place of the random warp; ``Batch.unwarped`` counts
    the faces for which that was not possible, which are fed as they are.
    making: when they are made; several together only of a store on the host.
    Its threads share the faces of a batch which are warped to landmarks: .2 ms each (.4 without Numba), more than all
    else where a GPU augments.
    On a GPU batches are made on a stream of their own, so that copies and augmentation run beside the training.
    """

    def __init__(
        self,
        feed: Feed,
        sampler: Sampler,
        collate: Collate,
        config: AugmentationConfig,
        size: int,
        start: int = 0,
        matcher: LandmarkMatcher | None = None,
        making: Making = Making(),
    ) -> None:
        self.feed, self.sampler, self.collate = feed, sampler, collate
        self.config, self.size = config, size
        self.start, self.matcher, self.making = start, matcher, making
        if matcher is not None:
            kernels("nodes")  # which may take some seconds: now, not in the first batch
        shared = matcher is not None and making.threads_each > 1
        self._landmark_pool = ThreadPoolExecutor(making.threads_each, "landmarks") if shared else None
        self._own: Iterator[Batch] | None = None
        self.device = collate.device
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def draws(self, ordinals: np.ndarray, ids: np.ndarray) -> tuple[Draws, np.ndarray]:
        """The random amounts of faces with these ``ids``, and (sides, B) bool: which of them are ``unwarped``."""
        seed = self.sampler.seed
        sides = np.repeat(np.arange(len(ids)), len(ordinals))
        all_ordinals = np.tile(ordinals, len(ids))
        drawn = draw(seed, all_ordinals, sides, self.size, self.config)
        if self.matcher is None:
            return drawn, np.zeros(ids.shape, bool)
        pairs = self.matcher.get_close_landmarks(ids, self.matcher.choices(seed, ordinals))
        each = self._landmark_pool.map if self._landmark_pool else map
        drawn, warped = with_landmarks(drawn, pairs, landmark_noise(seed, all_ordinals, sides), self.config, each)
        return drawn, np.logical_not(warped).reshape(ids.shape)

    def batch(self, step: int) -> Batch:
        """The batch of step ``step``, on the current stream."""
        return self.batches(step, 1)[0]

    def batches(self, first: int, count: int) -> list[Batch]:
        """Those of ``count`` steps from ``first`` on, made in one go."""
        steps = range(first, first + count)
        faces, planes, ids = self.feed(first, np.concatenate([self.sampler.ids(step) for step in steps], axis=1))
        ordinals = np.concatenate([self.sampler.ordinals(step) for step in steps])
        draws, unwarped = self.draws(ordinals, ids)
        whole = self.collate.batch(faces, planes, draws, ids, first)
        whole.ordinals = ordinals
        batches = whole.split(count)
        for batch, its_own in zip(batches, np.split(unwarped, count, axis=1)):
            batch.unwarped = int(its_own.sum())
        return batches

    def _ahead(self, step: int) -> tuple[Batch, torch.cuda.Event | None]:
        if self._stream is None:
            return self.batch(step), None
        with torch.cuda.stream(self._stream):
            batch = self.batch(step)
            return batch, self._stream.record_event()

    def __next__(self) -> Batch:
        """The next batch of an iteration of its own, begun at the first call."""
        if self._own is None:
            self._own = iter(self)
        return next(self._own)

    def close(self) -> None:
        """End the threads that are not an iteration's, where there are some."""
        if self._landmark_pool is not None:
            self._landmark_pool.shutdown()
        getattr(self.feed, "close", lambda: None)()

    def __iter__(self) -> Iterator[Batch]:
        """Batches from ``start`` on."""
        return self._made_ahead() if self.making.prefetch else self._made_between()

    def _made_between(self) -> Iterator[Batch]:
        together = self.making.together
        for first in itertools.count(self.start, together):
            yield from self.batches(first, together)

    def _made_ahead(self) -> Iterator[Batch]:
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(ThreadPoolExecutor(self.making.at_once, "swapfast-loader"))
            stack.callback(worker.shutdown, cancel_futures=True)
            steps = itertools.count(self.start)
            ahead = deque(worker.submit(self._ahead, next(steps)) for _ in range(self.making.prefetch))
            while True:
                batch, made = ahead.popleft().result()
                ahead.append(worker.submit(self._ahead, next(steps)))
                if made is not None:
                    hand_over(batch, made)
                yield batch


def hand_over(batch: Batch, made: torch.cuda.Event) -> None:
    """Let the current stream wait for a batch made on another one, and tell the allocator who uses it now."""
    stream = torch.cuda.current_stream()
    stream.wait_event(made)
    for tensor in _tensors(batch):
        tensor.record_stream(stream)


def _tensors(batch: Batch) -> Iterator[Tensor]:
    yield from batch.inputs
    yield from batch.targets
    for field in dataclasses.fields(batch.meta):
        yield from getattr(batch.meta, field.name) or ()
