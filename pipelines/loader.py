"""Sampler -> bytes -> augmentation -> Batch."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipelines.collate import Collate
from pipelines.feed import Feed
from pipelines.sampler import Sampler
from swapfast.augment.compiled import kernels
from swapfast.augment.draws import Draws, draw, landmark_noise, with_landmarks
from swapfast.batch import Batch
from swapfast.config import AugmentationConfig
from swapfast.faces.matching import LandmarkMatcher

PREFETCH = 2  # batches made ahead: one in hand while the other is being made


def made_at_once(cache: str, backend: str, threads: int) -> int:
    """How many batches to make side by side: two where OpenCV augments faces of a store on several threads.

    While one is being looked up, drawn and sorted, the other keeps the cores busy: a tenth is gained. What decodes
    goes through the steps in their order, and a GPU through one batch after another. cache: --cache.
    """
    return min(2, threads) if backend == "opencv" and cache != "off" else 1


class TrainLoader:
    """An endless iterable of training batches; batch n is a pure function of (seed, n) and the sampler's rank.

    feed: where the bytes come from (feed.py). collate: what becomes of them. size: px of the faces. start: first step.
    matcher: faces are warped to the landmarks of those it finds, in place of the random warp; ``Batch.unwarped`` counts
    the faces for which that was not possible, which are fed as they are.
    at_once: batches made at the same time, by a thread each; see ``made_at_once``. landmark_threads: those that share
    the faces of a batch which are warped to landmarks: .2 ms each (.4 without Numba), more than all else where a GPU
    augments.
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
        prefetch: int = PREFETCH,
        matcher: LandmarkMatcher | None = None,
        at_once: int = 1,
        landmark_threads: int = 1,
    ) -> None:
        self.feed, self.sampler, self.collate = feed, sampler, collate
        self.config, self.size = config, size
        self.start, self.prefetch = start, prefetch
        self.matcher, self.at_once = matcher, at_once
        if matcher is not None:
            kernels("nodes")  # which may take some seconds: now, not in the first batch
        shared = matcher is not None and landmark_threads > 1
        self._landmark_pool = ThreadPoolExecutor(landmark_threads, "landmarks") if shared else None
        self._own: Iterator[Batch] | None = None
        self.device = collate.device
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def draws(self, step: int, ids: np.ndarray) -> tuple[Draws, int]:
        """The random amounts of step ``step``, whose faces are ``ids``, and how many of these are ``unwarped``."""
        seed, ordinals = self.sampler.seed, self.sampler.ordinals(step)
        sides = np.repeat(np.arange(len(ids)), len(ordinals))
        all_ordinals = np.tile(ordinals, len(ids))
        drawn = draw(seed, all_ordinals, sides, self.size, self.config)
        if self.matcher is None:
            return drawn, 0
        pairs = self.matcher.get_close_landmarks(ids, self.matcher.choices(seed, ordinals))
        each = self._landmark_pool.map if self._landmark_pool else map
        drawn, warped = with_landmarks(drawn, pairs, landmark_noise(seed, all_ordinals, sides), self.config, each)
        return drawn, int(len(warped) - warped.sum())

    def batch(self, step: int) -> Batch:
        """The batch of step ``step``, on the current stream."""
        ids = self.sampler.ids(step)
        faces, planes, ids = self.feed(step, ids)
        draws, unwarped = self.draws(step, ids)
        batch = self.collate.batch(faces, planes, draws, ids, step)
        batch.ordinals, batch.unwarped = self.sampler.ordinals(step), unwarped
        return batch

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
        """Batches from ``start`` on, made ahead by threads of their own."""
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(ThreadPoolExecutor(self.at_once, "swapfast-loader"))
            stack.callback(worker.shutdown, cancel_futures=True)
            steps = itertools.count(self.start)
            ahead = deque(worker.submit(self._ahead, next(steps)) for _ in range(self.prefetch))
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
