"""The augmentation on the CPU: OpenCV and Numba on a pool of threads. The CPU backend, and the other one's reference.

What makes it fast (ms per 32 faces of 256 px on one core of a 2.5 GHz Xeon, OpenCV 5.0):
* OpenCV has fast warps for 1, 3 and 4 channels. One channel costs about as much as four (10 and 11), three cost
  more (18). So BGR travels with the face mask as its fourth channel; of the extra masks only what is not black is
  moved. The peer's six channels in one go take a slow path.
* Threads over faces, OpenCV itself single-threaded. Intermediate images stay in each thread's own memory, and
  results go to memory that earlier ones have left (``Recycler``).
* Small faces are handled several at a time, stacked to one tall image: at 64 px it is the number of calls that
  counts (``stacked.py``).
* Colour is one pass over the pixels (``kernels/color.py``).
* Movement and flip are one matrix; the map of the feed is one small product.
Between these steps everything is in 8 bits, until ``Augmented.to_float``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from swapfast.augment.checks import check_inputs, check_sizes
from swapfast.augment.draws import Draws
from swapfast.augment.host.color import jitter_matrices, recolor
from swapfast.augment.host.geometry import move_all, move_masks, shrink, warp_all
from swapfast.augment.host.recycle import Recycler, Scratch
from swapfast.augment.host.rows import Rows
from swapfast.augment.host.stacked import STACK_PIXELS, STACKED_UP_TO, tall
from swapfast.augment.kernels.jit import HOST_KERNELS, load_kernels
from swapfast.augment.result import Augmented
from swapfast.system import available_cores
from swapfast.threads import ThreadPool

Images = np.ndarray | Rows

STRIP_PIXELS = 2**16  # handled at once by one thread: most of seven images of 3 or 4 bytes a pixel fit its cache


def read_strip(images: Images, strip: slice, name: str, scratch: Scratch) -> np.ndarray:
    """Return consecutive images, not to be written to; several ``Rows`` are gathered in scratch memory ``name``."""
    if not isinstance(images, Rows):
        return images[strip]
    count = strip.stop - strip.start
    return images.image(strip.start) if count == 1 else images.take(strip, scratch(name, count, *images.shape[1:]))


def strips(count: int, size: int, threads: int) -> list[slice]:
    """Return a batch of ``count`` faces cut into strips that fit a core's cache, several for each thread.

    Of small faces each thread gets a single strip, if that is not too large.
    """
    if size <= STACKED_UP_TO:
        length = max(1, min(STACK_PIXELS // size**2, -(-count // threads)))
    else:
        length = max(1, min(STRIP_PIXELS // size**2, -(-count // (3 * threads))))
    return [slice(start, min(start + length, count)) for start in range(0, count, length)]


class OpenCVAugmenter:
    """Augments whole batches of bytes on the CPU.

    processing_size: px of the faces that come in
    input_size: px of the feed
    output_sizes: px of the targets
    threads: by default one per core this process may use; the result does not depend on it
    as_float: give float32 0..1 at once, as ``Augmented.to_float`` would, but by all threads and while the pixels are in
        cache
    callers: how many threads call it at the same time; they share ``threads``

    Sets ``cv2.setNumThreads(1)``, which holds for the whole process: OpenCV's own threads under ours would only
    wait for each other. This is the one place that sets it. ``close()`` ends the threads, as does leaving a
    ``with`` block. One augmenter may be called from several threads. Raises SwapfastError where Numba cannot run.
    """

    def __init__(
        self,
        processing_size: int,
        input_size: int,
        output_sizes: Sequence[int],
        threads: int | None = None,
        as_float: bool = False,
        callers: int = 1,
    ) -> None:
        sizes = check_sizes(processing_size, input_size, output_sizes)
        self.processing_size, self.input_size, self.output_sizes = sizes
        self.threads = available_cores() if threads is None else int(threads)
        if min(self.threads, callers) < 1:
            raise ValueError(f"threads = {threads}, callers = {callers}: need at least one of each")
        self._threads_per_call = -(-self.threads // callers)
        self.dtype = np.dtype(np.float32 if as_float else np.uint8)
        cv2.setNumThreads(1)
        for name in HOST_KERNELS:
            load_kernels(name)  # compiled now and not in the first batch: it may take some seconds
        # The calling threads work too.
        helpers = callers * (self._threads_per_call - 1)
        self._pool = ThreadPool(helpers, "augment") if helpers else None
        self._local = threading.local()
        # A feed, and a target and masks per size, of two calls: where batches are made ahead of the training, 4 % of
        # the arrays are then made anew, and 20 % with room for one call only.
        self.recycled = Recycler(capacity=(1 + callers) * (1 + 2 * len(self.output_sizes)))

    def close(self) -> None:
        """End the threads and free the memory of results as soon as nobody holds them; twice does no harm."""
        if self._pool is not None:
            self._pool.shutdown()
        self.recycled.close()

    def __enter__(self) -> OpenCVAugmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, faces: Images, extra_masks: Images | None, draws: Draws) -> Augmented:
        """Return N faces augmented.

        faces: (N, S, S, 3) uint8 BGR, or (N, S, S, 4) with the face mask last
        extra_masks: (N, K, S, S) uint8, the masks beside the face's, or None
        draws: of N faces, for S px

        ``Rows`` are read by the threads, a few at a time. No later call writes to a result, or a part of one, that is
        still held. Raises ValueError where the arguments do not fit each other.
        """
        check_inputs(faces, extra_masks, draws, self.processing_size, (np.ndarray, Rows), np.uint8)
        batch = _Batch(self, faces, extra_masks, draws)
        pending = iter(strips(len(faces), self.processing_size, self._threads_per_call))
        lock = threading.Lock()

        def work() -> None:
            scratch = self._scratch()
            while True:
                with lock:
                    strip = next(pending, None)
                if strip is None:
                    return
                batch.augment(strip, scratch)

        helpers = min(self._threads_per_call, len(faces)) - 1
        futures = [self._pool.submit(work) for _ in range(helpers)] if self._pool else []
        try:
            work()
        finally:
            for future in futures:
                future.result()
        return batch.result()

    def _scratch(self) -> Scratch:
        if not hasattr(self._local, "scratch"):
            self._local.scratch = Scratch()
        return self._local.scratch


class _Batch:
    """One call's amounts and outputs; ``augment`` fills in a strip of consecutive faces."""

    def __init__(self, owner: OpenCVAugmenter, faces: Images, extra_masks: Images | None, draws: Draws) -> None:
        n, size, _, channels = faces.shape
        extra_masks = np.empty((n, 0, size, size), np.uint8) if extra_masks is None else extra_masks
        self.faces = faces if isinstance(faces, Rows) else np.ascontiguousarray(faces)
        self.extra_masks = extra_masks if isinstance(extra_masks, Rows) else np.ascontiguousarray(extra_masks)
        self.face_masks = channels - 3  # 0 or 1
        self.jitter = jitter_matrices(draws)
        self.grids, self.clip_limit = draws.clahe_grid.tolist(), draws.clip_limit
        self.matrices = np.ascontiguousarray(draws.inverse(), np.float64)
        self.nodes = draws.control_grid()
        masks = self.face_masks + self.extra_masks.shape[1]
        self.feed = owner.recycled((n, owner.input_size, owner.input_size, 3), owner.dtype)
        self.targets = [owner.recycled((n, s, s, 3), owner.dtype) for s in owner.output_sizes]
        self.masks = [owner.recycled((masks, n, s, s), owner.dtype) for s in owner.output_sizes]

    def augment(self, strip: slice, scratch: Scratch) -> None:
        faces = read_strip(self.faces, strip, "faces", scratch)
        faces = recolor(faces, self.jitter[strip], self.grids[strip], scratch, self.clip_limit)
        self._make_targets(faces, strip, scratch)
        self._make_extra_masks(strip, scratch)
        self._make_feed(faces, strip, scratch)

    def _make_targets(self, faces: np.ndarray, strip: slice, scratch: Scratch) -> None:
        moved_faces = scratch("moved faces", *faces.shape)
        move_all(faces, self.matrices[strip], moved_faces, scratch)
        for target, masks in zip(self.targets, self.masks):
            small = shrink(moved_faces, target.shape[1], scratch)
            _put_bgr(small, target[strip])
            if self.face_masks:
                _put_fourth(small, masks[0, strip])

    def _make_extra_masks(self, strip: slice, scratch: Scratch) -> None:
        extra_masks = read_strip(self.extra_masks, strip, "extra masks", scratch)
        n, count, size, _ = extra_masks.shape
        if all(masks.shape[-1] == size for masks in self.masks):
            for masks in self.masks:
                move_masks(extra_masks, self.matrices[strip], masks, self.face_masks, strip.start)
            return
        moved_masks = scratch("moved masks", count, n, size, size)
        move_masks(extra_masks, self.matrices[strip], moved_masks, 0, 0)
        for masks in self.masks:
            for mask, out in zip(moved_masks, masks[self.face_masks :, strip]):
                _put(shrink(mask, out.shape[-1], scratch), out)

    def _make_feed(self, faces: np.ndarray, strip: slice, scratch: Scratch) -> None:
        # Peer: warps the finished target, a second sampling that blurs. Ours: reads the face once, at the place
        # that movement, flip and warp together point to; what the target has cut off can come in at its edge.
        warped = scratch("warped", *faces.shape)
        warp_all(faces, self.nodes[strip], warped, scratch)
        _put_bgr(shrink(warped, self.feed.shape[1], scratch), self.feed[strip])

    def result(self) -> Augmented:
        return Augmented(
            feed=torch.from_numpy(self.feed).permute(0, 3, 1, 2),
            targets=[torch.from_numpy(target).permute(0, 3, 1, 2) for target in self.targets],
            masks=[torch.from_numpy(masks).transpose(0, 1) for masks in self.masks] if len(self.masks[0]) else None,
        )


def _put_bgr(images: np.ndarray, out: np.ndarray) -> None:
    """Write the colours of images to ``out``, bytes as they are or divided by 255 to floats.

    images: (N, S, S, 3 or 4) uint8, contiguous
    out: (N, S, S, 3) uint8 or float32, contiguous
    """
    if images.shape[-1] == 3:
        _put(images, out)
    elif out.dtype == np.uint8:
        cv2.cvtColor(tall(images), cv2.COLOR_BGRA2BGR, dst=tall(out))
    else:
        load_kernels("copies").bgr_to_floats(images.reshape(-1), out.reshape(-1))


def _put_fourth(images: np.ndarray, out: np.ndarray) -> None:
    """Write the fourth channel of (N, S, S, 4) images to ``out`` (N, S, S), as ``_put_bgr`` does the colours."""
    if out.dtype == np.uint8:
        cv2.extractChannel(tall(images), 3, dst=tall(out))
    else:
        load_kernels("copies").every_fourth_to_floats(images.reshape(-1)[3:], out.reshape(-1))


def _put(levels: np.ndarray, out: np.ndarray) -> None:
    """Copy bytes, or divide them by 255 where ``out`` holds floats; both contiguous and of one shape."""
    if out.dtype == np.uint8:
        out[...] = levels
    else:
        load_kernels("copies").to_floats(levels.reshape(-1), out.reshape(-1))
