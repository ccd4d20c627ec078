"""The training loader: sampler -> stored bytes -> augmentation -> ``Batch``."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.augmenters import make_augmenter
from pipelines.collate import Collate, Pixels
from pipelines.dataset import TrainSet, get_label
from pipelines.feed import Feed, HostFeed
from pipelines.pose_covariates import PoseCovariates
from pipelines.sampler import Sampler
from pipelines.side_light import SideLight, side_light
from pipelines.target_points import TargetPoints
from swapfast.augment.device.transfer import send
from swapfast.augment.draws import Draws, draw, landmark_noise, light_shares, with_landmarks
from swapfast.augment.kernels.jit import load_kernels
from swapfast.batch import Batch
from swapfast.config import AugmentationConfig, TrainConfig
from swapfast.device import pick_backend
from swapfast.faces.crop import crop_shares
from swapfast.faces.masks import needed_masks
from swapfast.faces.matching import LandmarkMatcher
from swapfast.stop import Stopped
from swapfast.threads import PATIENCE_S, ThreadPool

PREFETCH = 2  # batches made ahead: one is in use while the next is made
PIXELS_PER_CALL = 2**20  # of all faces that one call augments: 256 faces of 64 px
MAX_BATCHES_PER_CALL = 8


@dataclass(frozen=True)
class BatchSchedule:
    """When batches are made and with how many threads.

    prefetch: number of batches made ahead, beside the training. 0 makes them between the steps; the training waits.
    workers: number of batches made at the same time; only with prefetch.
    batches_per_call: number of batches one call makes; only without prefetch.
    threads: number of threads of all workers.
    """

    prefetch: int = PREFETCH
    workers: int = 1
    batches_per_call: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if self.prefetch and self.batches_per_call > 1:
            raise ValueError("a prefetching schedule makes one batch per call")

    @property
    def threads_per_batch(self) -> int:
        """Return the number of threads that make one batch."""
        return max(1, self.threads // self.workers)

    @classmethod
    def prefetched(cls, cache: str, backend: str, threads: int) -> BatchSchedule:
        """Return the schedule that makes batches beside the training.

        Two workers are a tenth faster than one where OpenCV augments stored faces on several threads: while one worker
        draws and looks up, the other keeps the cores busy. Decoding feeds must see the steps in order, and a GPU makes
        one batch after another; both get one worker. cache: the cache mode.
        """
        return cls(workers=min(2, threads) if backend == "opencv" and cache != "off" else 1, threads=threads)

    @classmethod
    def for_training(cls, cache: str, backend: str, device: torch.device, threads: int, pixels: int) -> BatchSchedule:
        """Return the fastest schedule for training on ``device``. pixels: of all faces of a batch.

        Where the CPU trains and OpenCV augments stored faces, batches are made between the steps. A thread beside the
        training would delay one of the step's threads, and all others wait for that one: 5 ms of augmentation cost the
        step 6 to 9 ms. Between the steps all threads share the work and need 3 ms. Drawing and looking up for several
        batches takes hardly longer than for one.
        """
        if device.type == "cpu" and backend == "opencv" and cache != "off":
            return cls(
                prefetch=0,
                batches_per_call=max(1, min(MAX_BATCHES_PER_CALL, PIXELS_PER_CALL // pixels)),
                threads=threads,
            )
        # Training on the CPU leaves no core free. One thread keeps up with two thirds of the CPU time that two need.
        return cls.prefetched(cache, backend, 1 if device.type == "cpu" else threads)


class TrainLoader:
    """An endless iterable of training batches.

    Batch n is a pure function of the seed, n and the sampler's rank.

    feed: gives the bytes of a step's faces (feed.py).
    collate: augments them and makes a ``Batch``.
    size: edge of the stored faces, px.
    start: the first step.
    matcher: replaces the random warp by a warp to the landmarks of similar faces. ``Batch.unwarped`` counts the faces
        for which that is impossible; they are fed as they are.
    schedule: when batches are made. Several batches per call need a store on the host.
    points: gives each batch the landmarks of its targets, None for none.
    light: shows each face in the light of both sides, None for its own.
    covariates: gives each batch what its codes are compared by, None for nothing.

    The landmark warps of a batch are shared by the schedule's threads. Each takes 0.2 ms, more than everything else
    where a GPU augments. On a GPU, batches are made on a separate stream, so copies and augmentation run beside the
    training. Where they are written over former ones (``Collate.memories``), a batch is valid until the next is taken;
    what is launched until then may read it.
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
        schedule: BatchSchedule = BatchSchedule(),
        points: TargetPoints | None = None,
        light: SideLight | None = None,
        covariates: PoseCovariates | None = None,
    ) -> None:
        self.feed, self.sampler, self.collate = feed, sampler, collate
        self.config, self.size = config, size
        self.start, self.matcher, self.schedule = start, matcher, schedule
        self.points, self.light, self.covariates = points, light, covariates
        self._in_place: dict[tuple[str, int], Tensor] = {}  # by what it is, and slot
        if collate.memories and collate.memories <= schedule.prefetch:
            raise ValueError(
                f"{collate.memories} memories for {schedule.prefetch} batches made ahead: one more is in use"
            )
        if matcher is not None:
            load_kernels("nodes")  # compiled now and not in the first batch: it may take some seconds
        shared = matcher is not None and schedule.threads_per_batch > 1
        self._landmark_pool = ThreadPool(schedule.threads_per_batch, "landmarks") if shared else None
        self._iterator: Iterator[Batch] | None = None
        self.device = collate.device
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @classmethod
    def from_folders(
        cls,
        input_folders: Sequence[str | Path],
        input_size: int,
        output_sizes: Sequence[int],
        color_order: str = "bgr",
        config: TrainConfig | None = None,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        start: int = 0,
    ) -> TrainLoader:
        """Return the loader of folders of faces or prepared sets, one per side, decoded into memory.

        config: gives the batch size, the seed, and what is cropped, masked and augmented.
        backend: "opencv", "kornia" or "triton", by default the one that is faster on ``device``.
        Raises SwapfastError for folders without faces, and listing every bad file.
        """
        config, device = config or TrainConfig(), torch.device(device)
        backend = pick_backend(backend, device)
        masks = needed_masks(config)
        size = max(input_size, *output_sizes)
        sets = [
            TrainSet.from_folder(get_label(number, len(input_folders)), folder, size, config.crop, config.mask, masks)
            for number, folder in enumerate(input_folders)
        ]
        sampler = Sampler(config.seed, tuple(map(len, sets)), config.batch_size)
        augmentation = config.augmentation
        augment = make_augmenter(backend, size, input_size, output_sizes, device, augmentation)
        collate = Collate(augment, backend != "opencv", masks, color_order, device)
        matcher = None
        if augmentation.warp_to_landmarks:
            records = [side.source.folder.records for side in sets]
            matcher = LandmarkMatcher.from_records(records, size, config.crop.centering, *crop_shares(config.crop))
        feed = HostFeed(sets, device if backend != "opencv" else None)
        covariates = PoseCovariates.from_sides(sets, config)
        points = TargetPoints.from_sides(sets, config, covariates)
        light = side_light(sets, config)
        return cls(
            feed,
            sampler,
            collate,
            augmentation,
            size,
            start,
            matcher,
            points=points,
            light=light,
            covariates=covariates,
        )

    def get_loader(self) -> Iterator[Batch]:
        """Return the batches of both sides, as ``iter`` does."""
        return iter(self)

    def draws(self, ordinals: np.ndarray, ids: np.ndarray) -> tuple[Draws, np.ndarray]:
        """Return the random amounts of some faces, and (sides, B) bool: which of them stay unwarped.

        ordinals: (B,) from ``Sampler.ordinals``.
        ids: (sides, B) from ``Sampler.ids``.
        """
        seed = self.sampler.seed
        sides = np.repeat(np.arange(len(ids)), len(ordinals))
        all_ordinals = np.tile(ordinals, len(ids))
        drawn = draw(seed, all_ordinals, sides, self.size, self.config)
        if self.matcher is None:
            return drawn, np.zeros(ids.shape, bool)
        pairs = self.matcher.get_close_landmarks(ids, self.matcher.choices(seed, ordinals))
        map_faces = self._landmark_pool.map if self._landmark_pool else map
        drawn, warped = with_landmarks(drawn, pairs, landmark_noise(seed, all_ordinals, sides), self.config, map_faces)
        return drawn, np.logical_not(warped).reshape(ids.shape)

    def batch(self, step: int) -> Batch:
        """Return the batch of ``step``, made on the current stream."""
        return self.batches(step, 1)[0]

    def batches(self, first: int, count: int) -> list[Batch]:
        """Return the batches of ``count`` steps from ``first`` on, made by one call of the augmentation."""
        steps = range(first, first + count)
        faces, extra_masks, ids = self.feed(first, np.concatenate([self.sampler.ids(step) for step in steps], axis=1))
        ordinals = np.concatenate([self.sampler.ordinals(step) for step in steps])
        draws, unwarped = self.draws(ordinals, ids)
        batches = self.make_batch(faces, extra_masks, ids, ordinals, draws, first).split(count)
        for batch, unwarped_faces in zip(batches, np.split(unwarped, count, axis=1)):
            batch.unwarped = int(unwarped_faces.sum())
        return batches

    def make_batch(
        self, faces: Pixels, extra_masks: Pixels, ids: np.ndarray, ordinals: np.ndarray, draws: Draws, step: int = 0
    ) -> Batch:
        """Return a batch to whose faces happens what ``draws`` says, with all that belongs to it.

        faces, extra_masks, ids: see ``pipelines.feed``. ordinals: (B,), by which the light is drawn.
        """
        merged = self.collate.batch(faces, extra_masks, draws, ids, step)
        merged.ordinals = ordinals
        if self.light is not None:
            self.light.apply(merged, self._light_shares(ordinals, len(ids)), self.collate.color_order)
        if self.points is not None:
            merged.landmarks = self._sent("landmarks", self.points.of(ids, draws), merged.slot)
        if self.covariates is not None:
            merged.covariates = self._sent("covariates", self.covariates.of(ids, draws.flip), merged.slot)
        return merged

    def _light_shares(self, ordinals: np.ndarray, sides: int) -> np.ndarray:
        """Return how much of the way to the other side's light each face is taken, (sides, B)."""
        numbers = np.repeat(np.arange(sides), len(ordinals))
        return light_shares(self.sampler.seed, np.tile(ordinals, sides), numbers).reshape(sides, len(ordinals))

    def _sent(self, name: str, values: np.ndarray, slot: int | None) -> list[Tensor]:
        """Return values (sides, B, ...) on the device, per side; for a slot where its last ones of that name lay."""
        sent = send(values, self.device)
        if slot is not None:
            sent = self._in_place.setdefault((name, slot), sent).copy_(sent)
        return list(sent)

    def _released(self) -> torch.cuda.Event | None:
        """Return the event behind all that reads the batches taken so far, where others are written over them."""
        if self._stream is None or not self.collate.memories:
            return None
        return torch.cuda.current_stream(self.device).record_event()

    def _make(self, step: int, released: torch.cuda.Event | None) -> tuple[Batch, torch.cuda.Event | None]:
        if self._stream is None:
            return self.batch(step), None
        with torch.cuda.stream(self._stream):
            if released is not None:
                self._stream.wait_event(released)
            batch = self.batch(step)
            return batch, self._stream.record_event()

    def __next__(self) -> Batch:
        """Return the next batch; the first call begins at ``start``."""
        if self._iterator is None:
            self._iterator = iter(self)
        return next(self._iterator)

    def close(self) -> None:
        """End the landmark threads and the feed's threads. An iteration ends its workers itself."""
        if self._landmark_pool is not None:
            self._landmark_pool.shutdown(cancel_futures=True, patience_s=PATIENCE_S)
        getattr(self.feed, "close", lambda: None)()

    def from_step(self, step: int) -> Iterator[Batch]:
        """Return an iterator over the batches from ``step`` on; an iteration that was begun before must have ended."""
        self.start = step
        return iter(self)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Return an iterator over the batches from ``start`` on; closing it ends its workers."""
        return self._prefetched() if self.schedule.prefetch else self._between_steps()

    def _between_steps(self) -> Generator[Batch, None, None]:
        count = self.schedule.batches_per_call
        for first in itertools.count(self.start, count):
            yield from self.batches(first, count)

    def _prefetched(self) -> Generator[Batch, None, None]:
        worker = ThreadPool(self.schedule.workers, "swapfast-loader")
        # None: an iteration that begins behind this one must not meet its last batch. A request to stop needs no batch.
        patience_s: float | None = None
        try:
            steps = itertools.count(self.start)
            released = self._released()
            queue = deque(worker.submit(self._make, next(steps), released) for _ in range(self.schedule.prefetch))
            while True:
                batch, ready = queue.popleft().result()
                queue.append(worker.submit(self._make, next(steps), self._released()))
                if ready is not None:
                    hand_over(batch, ready)
                yield batch
        except Stopped:
            patience_s = PATIENCE_S
            raise
        finally:
            worker.shutdown(cancel_futures=True, patience_s=patience_s)


def hand_over(batch: Batch, ready: torch.cuda.Event) -> None:
    """Make a batch of another stream safe to use on the current one.

    The current stream waits for ``ready``, and the allocator learns that it uses the batch's memory.
    """
    stream = torch.cuda.current_stream()
    stream.wait_event(ready)
    for tensor in batch.tensors:
        tensor.record_stream(stream)
