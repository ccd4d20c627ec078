"""The augmentation on the CPU: OpenCV on a pool of threads. The CPU backend, and the reference of the other one.

What makes it fast (ms per 32 faces of 256 px on one core of a 2.5 GHz Xeon, OpenCV 5.0):
* OpenCV has fast warps for 1, 3 and 4 channels. One channel costs about as much as four (10 and 11), three cost
  more (18). So BGR travels with the face mask as its fourth channel; of the other masks only what is not black is
  moved. The peer's six channels in one go take a slow path.
* Threads over faces, OpenCV itself single-threaded. Intermediate images stay in each thread's own memory, and
  results go to memory that earlier ones have left (``Recycler``).
* Small faces are handled several at a time, stacked to one tall image: at 64 px it is the number of calls that
  counts (``stacked``).
* Colour is one pass over the pixels: ``host_color``.
* Movement and flip are one matrix; the map of the feed is one small product.
Between these steps everything is in 8 bits, until ``Augmented.to_float``.

The plain functions above the class are what ``ImageAugmentation`` uses too.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import cv2
import numpy as np
import torch

from swapfast.augment.checks import check_inputs, check_sizes
from swapfast.augment.draws import Draws
from swapfast.augment.host.color import jitter_matrices, recolor
from swapfast.augment.host.recycle import Recycler, Scratch
from swapfast.augment.host.rows import Rows
from swapfast.augment.host.stacked import STACK_PIXELS, STACKED_UP_TO, affine_maps, node_maps, read_stacked, tall
from swapfast.augment.kernels.jit import HOST_KERNELS, load_kernels
from swapfast.augment.result import Augmented
from swapfast.augment.taps import hat_weights
from swapfast.system import available_cores

Images = np.ndarray | Rows

PRODUCT_LIMIT = 2**18  # multiplications at once; OpenBLAS starts threads above
STRIP_PIXELS = 2**16  # handled at once by one thread: most of seven images of 3 or 4 bytes a pixel fit its cache


def read_some(images: Images, strip: slice, name: str, scratch: Scratch) -> np.ndarray:
    """Consecutive images, not to be written to; several ``Rows`` are gathered in scratch memory of that name."""
    if not isinstance(images, Rows):
        return images[strip]
    count = strip.stop - strip.start
    return images.one(strip.start) if count == 1 else images.take(strip, scratch(name, count, *images.shape[1:]))


def move(image: np.ndarray, matrix: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Resample one image by a (2, 3) matrix, px of the result -> px of the image; edges are repeated."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (image.shape[1], image.shape[0])
    return cv2.warpAffine(image, matrix, size, dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def move_all(images: np.ndarray, matrices: np.ndarray, out: np.ndarray, scratch: Scratch) -> None:
    """``move`` of (N, S, S, C) images, each by its matrix."""
    if _stacks(images.shape[1]):
        read_stacked(images, affine_maps(matrices, images.shape[1], scratch), out)
        return
    for image, matrix, moved in zip(images, matrices, out):
        move(image, matrix, out=moved)


def _stacks(size: int) -> bool:
    return size <= STACKED_UP_TO and load_kernels("maps") is not None


def move_masks(
    extra_masks: np.ndarray, matrices: np.ndarray, out: np.ndarray, first_mask: int, first_face: int, scratch: Scratch
) -> None:
    """``move`` of (N, K, S, S) masks most of which are black, such as eyes and mouth; with Numba where they are not.

    out: (M, N', S, S) bytes, or floats in 0..1; they go to M from ``first_mask`` on, faces to N' from ``first_face``
    on.
    """
    compiled = load_kernels("masks")
    if compiled is not None:
        white = np.float32(1 if out.dtype == np.uint8 else 255)
        compiled.move_masks(extra_masks, matrices, white, first_mask, first_face, out)
        return
    for face, (parts, matrix) in enumerate(zip(extra_masks, matrices), first_face):
        for index, plane in enumerate(parts, first_mask):
            _put(move(plane, matrix, out=scratch("plane", *plane.shape)), out[index, face])


def node_rows(nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N, K, K, 2) positions of nodes -> (N, K, 2 S) float32: filled in along each row of nodes, x y x y ...

    weights: ``hat_weights(S, K)`` as float32.
    """
    rows = weights @ nodes.astype(np.float32)
    return rows.reshape(len(nodes), nodes.shape[1], 2 * len(weights))


def positions(rows: np.ndarray, weights: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """One face's (K, 2 S) ``node_rows`` -> (H, S, 2) px where each px reads, for the H rows of ``weights``."""
    filled = np.matmul(weights, rows, out=out)
    return filled.reshape(*filled.shape[:1], -1, 2)


def read_warped(image: np.ndarray, rows: np.ndarray, weights: np.ndarray, out: np.ndarray, scratch: Scratch) -> None:
    """Read one image (S, S, C) where its ``node_rows`` say, into ``out``; edges are repeated.

    Peer: black outside. Ours: the edge, as everywhere else; a black rim is nothing a face ever has.
    """
    size = len(weights)
    # Some rows at a time: the map stays in cache, and numpy's BLAS would start threads of its own for a larger
    # product, which at 512 px beside ours cost ten times the product itself.
    for some, between in bands(size, len(rows)):
        buffer = scratch("map", some.stop - some.start, 2 * size, kind=np.float32)
        at = positions(rows[between], weights[some, between], buffer)
        cv2.remap(image, at, None, cv2.INTER_LINEAR, dst=out[some], borderMode=cv2.BORDER_REPLICATE)


def warp_all(images: np.ndarray, nodes: np.ndarray, out: np.ndarray, scratch: Scratch) -> None:
    """Read (N, S, S, C) images where their nodes (N, K, K, 2) say, px (x, y); edges are repeated."""
    size = images.shape[1]
    if _stacks(size):
        read_stacked(images, node_maps(nodes, size, scratch), out)
        return
    weights = weights_for(size, nodes.shape[1])
    for image, rows, warped in zip(images, node_rows(nodes, weights), out):
        read_warped(image, rows, weights, warped, scratch)


@lru_cache(maxsize=64)
def bands(size: int, nodes: int) -> tuple[tuple[slice, slice], ...]:
    """The px rows in bands, each with the nodes that it lies between: the product of the two is within the limit.

    A band of h rows touches at most h (nodes - 1) / size + 3 of the nodes; all others have no weight there.
    """
    per_row = (nodes - 1) / size
    most = PRODUCT_LIMIT / (2 * size)  # rows times nodes
    height = max(1, int((math.sqrt(9 + 4 * per_row * most) - 3) / (2 * per_row)))
    edges = [(first, min(first + height, size)) for first in range(0, size, height)]
    return tuple((slice(a, b), slice(a * (nodes - 1) // size, -(-b * (nodes - 1) // size) + 1)) for a, b in edges)


@lru_cache(maxsize=64)
def weights_for(size: int, nodes: int) -> np.ndarray:
    """``hat_weights`` as float32, shared and so read-only."""
    weights = hat_weights(size, nodes).astype(np.float32)
    weights.flags.writeable = False
    return weights


def shrink(images: np.ndarray, size: int, scratch: Scratch) -> np.ndarray:
    """Square (N, S, S, ...) images to ``size`` px by the mean of the area each px covers.

    Returns scratch memory, or the images themselves if they have that size.
    """
    if images.shape[1] == size:
        return images
    small = scratch("small", len(images), size, size, *images.shape[3:])
    for image, out in zip(images, small):
        cv2.resize(image, (size, size), dst=out, interpolation=cv2.INTER_AREA)
    return small


def strips(count: int, size: int, threads: int) -> list[slice]:
    """A batch of ``count`` faces in strips: few enough to stay in a core's cache, and several for each thread.

    Of small faces each thread gets a single strip, if that is not too large.
    """
    if size <= STACKED_UP_TO:
        length = max(1, min(STACK_PIXELS // size**2, -(-count // threads)))
    else:
        length = max(1, min(STRIP_PIXELS // size**2, -(-count // (3 * threads))))
    return [slice(i, min(i + length, count)) for i in range(0, count, length)]


class OpenCVAugmenter:
    """Augments whole batches of bytes on the CPU.

    processing_size: px of the faces that come in. input_size: px of the feed. output_sizes: px of the targets.
    threads: by default one per core this process may use; the result does not depend on it. as_float: give
    float32 0..1 at once, as ``Augmented.to_float`` would, but by all threads and while the pixels are in cache.
    callers: how many threads call it at the same time, among whom ``threads`` are shared out.

    Sets ``cv2.setNumThreads(1)``, which holds for the whole process: OpenCV's own threads under ours would only
    wait for each other. This is the one place that sets it. ``close()`` ends the threads, as does leaving a
    ``with`` block. One augmenter may be called from several threads.
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
        self._per_call = -(-self.threads // callers)
        self.dtype = np.float32 if as_float else np.uint8
        cv2.setNumThreads(1)
        for name in HOST_KERNELS:
            load_kernels(name)  # which may take some seconds: now, not in the first batch
        # The calling threads work too.
        helpers = callers * (self._per_call - 1)
        self._pool = ThreadPoolExecutor(helpers, "augment") if helpers else None
        self._local = threading.local()
        # A feed, and a target and masks per size, of two calls: where batches are made ahead of the training, 4 % of
        # the arrays are then made anew, and 20 % with room for one call only.
        self.recycled = Recycler(keep=(1 + callers) * (1 + 2 * len(self.output_sizes)))

    def close(self) -> None:
        """End the threads and free the memory of results as soon as nobody holds them; twice does no harm."""
        if self._pool is not None:
            self._pool.shutdown()
        self.recycled.close()

    def __enter__(self) -> OpenCVAugmenter:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __call__(self, faces: Images, extra_masks: Images | None, draws: Draws) -> Augmented:
        """Augment N faces of S px.

        faces: (N, S, S, 3) uint8 BGR, or (N, S, S, 4) with the face mask last. extra_masks: (N, K, S, S) uint8, the
        other masks, or None. ``Rows`` are read by the threads, a few at a time. No later call writes to a result, or
        a part of one, that is still held.
        """
        check_inputs(faces, extra_masks, draws, self.processing_size, (np.ndarray, Rows), np.uint8)
        batch = _Batch(self, faces, extra_masks, draws)
        todo = iter(strips(len(faces), self.processing_size, self._per_call))
        lock = threading.Lock()

        def work() -> None:
            scratch = self._scratch()
            while True:
                with lock:
                    strip = next(todo, None)
                if strip is None:
                    return
                batch.augment(strip, scratch)

        helpers = [self._pool.submit(work) for _ in range(min(self._per_call, len(faces)) - 1)] if self._pool else []
        try:
            work()
        finally:
            for helper in helpers:
                helper.result()
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
        self.faces, self.extra_masks = (
            p if isinstance(p, Rows) else np.ascontiguousarray(p) for p in (faces, extra_masks)
        )
        self.face_masks = channels - 3
        self.jitter = jitter_matrices(draws)
        self.grids, self.clip_limit = draws.clahe_grid.tolist(), draws.clip_limit
        self.matrices = np.ascontiguousarray(draws.inverse(), np.float64)
        self.nodes = draws.control_grid()
        masks = self.face_masks + self.extra_masks.shape[1]
        self.feed = owner.recycled((n, owner.input_size, owner.input_size, 3), owner.dtype)
        self.targets = [owner.recycled((n, s, s, 3), owner.dtype) for s in owner.output_sizes]
        self.masks = [owner.recycled((masks, n, s, s), owner.dtype) for s in owner.output_sizes]

    def augment(self, strip: slice, scratch: Scratch) -> None:
        faces = read_some(self.faces, strip, "faces", scratch)
        faces = recolor(faces, self.jitter[strip], self.grids[strip], scratch, self.clip_limit)
        self._make_targets(faces, strip, scratch)
        self._make_masks(strip, scratch)
        self._make_feed(faces, strip, scratch)

    def _make_targets(self, faces: np.ndarray, strip: slice, scratch: Scratch) -> None:
        moved = scratch("moved", *faces.shape)
        move_all(faces, self.matrices[strip], moved, scratch)
        for target, masks in zip(self.targets, self.masks):
            small = shrink(moved, target.shape[1], scratch)
            _put_bgr(small, target[strip], scratch)
            if self.face_masks:
                _put_fourth(small, masks[0, strip], scratch)

    def _make_masks(self, strip: slice, scratch: Scratch) -> None:
        """All but the face's."""
        extra_masks = read_some(self.extra_masks, strip, "extra masks of the store", scratch)
        n, count, size, _ = extra_masks.shape
        if all(masks.shape[-1] == size for masks in self.masks):
            for masks in self.masks:
                move_masks(extra_masks, self.matrices[strip], masks, self.face_masks, strip.start, scratch)
            return
        moved = scratch("moved extra masks", count, n, size, size)
        move_masks(extra_masks, self.matrices[strip], moved, 0, 0, scratch)
        for masks in self.masks:
            for plane, out in zip(moved, masks[self.face_masks :, strip]):
                _put(shrink(plane, out.shape[-1], scratch), out)

    def _make_feed(self, faces: np.ndarray, strip: slice, scratch: Scratch) -> None:
        # Peer: warps the finished target, a second sampling that blurs. Ours: reads the face once, at the place
        # that movement, flip and warp together point to; what the target has cut off can come in at its edge.
        warped = scratch("warped", *faces.shape)
        warp_all(faces, self.nodes[strip], warped, scratch)
        _put_bgr(shrink(warped, self.feed.shape[1], scratch), self.feed[strip], scratch)

    def result(self) -> Augmented:
        return Augmented(
            feed=torch.from_numpy(self.feed).permute(0, 3, 1, 2),
            targets=[torch.from_numpy(t).permute(0, 3, 1, 2) for t in self.targets],
            masks=[torch.from_numpy(m).transpose(0, 1) for m in self.masks] if len(self.masks[0]) else None,
        )


def _put_bgr(images: np.ndarray, out: np.ndarray, scratch: Scratch) -> None:
    """The colours of (N, S, S, 3 or 4) images to ``out`` (N, S, S, 3), contiguous, bytes or floats."""
    copies = load_kernels("copies")
    if copies is not None and images.shape[-1] == 4 and out.dtype != np.uint8:
        copies.bgr_to_floats(images.ravel(), out.ravel())
        return
    if images.shape[-1] == 4:
        bgr = out if out.dtype == np.uint8 else scratch("bgr", *out.shape)
        cv2.cvtColor(tall(images), cv2.COLOR_BGRA2BGR, dst=tall(bgr))
        images = bgr
    if images is not out:
        _put(images, out)


def _put_fourth(images: np.ndarray, out: np.ndarray, scratch: Scratch) -> None:
    """The fourth channel of (N, S, S, 4) images to ``out`` (N, S, S), contiguous, bytes or floats."""
    copies = load_kernels("copies")
    if copies is not None and out.dtype != np.uint8:
        copies.every_fourth_to_floats(images.ravel()[3:], out.ravel())
        return
    plane = out if out.dtype == np.uint8 else scratch("fourth", *out.shape)
    cv2.extractChannel(tall(images), 3, dst=tall(plane))
    if plane is not out:
        _put(plane, out)


def _put(values: np.ndarray, out: np.ndarray) -> None:
    """Copy bytes, or divide them by 255 where ``out`` holds floats."""
    copies = load_kernels("copies")
    if out.dtype == np.uint8:
        out[...] = values
    elif copies is not None and out.flags.c_contiguous and values.flags.c_contiguous:
        copies.to_floats(values.ravel(), out.ravel())
    else:
        np.divide(values, np.float32(255), out=out)
