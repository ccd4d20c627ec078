"""Recycled memory: nothing that somebody holds is written to, and what nobody holds is used again, within bounds."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from swapfast.augment.draws import draw
from swapfast.augment.host.augmenter import OpenCVAugmenter
from swapfast.augment.host.recycle import Recycler
from tests.augment.slow_references import mask_images, pictures

PARTS: dict[str, Callable[[torch.Tensor], object]] = {  # what somebody may keep of a tensor (N, C, H, W)
    "all": lambda t: t,
    "one face": lambda t: t[2],
    "slice": lambda t: t[1:, :, ::2, 3:9],
    "permuted": lambda t: t.permute(2, 3, 0, 1)[5],
    "view of a view": lambda t: t.transpose(2, 3)[1:][:2][..., 5:].unsqueeze(0)[0, 1],
    "numpy": lambda t: t.numpy()[0, 1],
    "storage": lambda t: t.untyped_storage(),
    "detached": lambda t: t.detach()[3:],
    "kept for backward": lambda t: (t[0] * torch.ones(t.shape[1:], requires_grad=True)).grad_fn,
    "dlpack": lambda t: torch.from_dlpack(t)[1],
    "memoryview": lambda t: memoryview(t.numpy())[1:2],
    "in a cycle": lambda t: _cycle(t[1]),
}


def _cycle(value: object) -> list:
    itself = [value]
    itself.append(itself)
    return itself


def _content(part: object) -> np.ndarray:
    """A copy of the pixels of any of PARTS."""
    if isinstance(part, torch.UntypedStorage):
        part = torch.tensor([], dtype=torch.uint8).set_(part)
    if isinstance(part, list):
        part = part[0]
    if hasattr(part, "_saved_self"):  # a node of torch's graph
        part = part._saved_self
    return (part.numpy() if isinstance(part, torch.Tensor) else np.asarray(part)).copy()


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.long
@pytest.mark.parametrize("name", PARTS)
def test_memory_comes_back_with_the_last_view_and_not_before(name):
    recycled, shape = Recycler(capacity=2), (4, 16, 16, 3)
    array = recycled(shape, np.float32)
    array[...] = np.arange(array.size).reshape(shape)
    at = _address(array)
    part = PARTS[name](torch.from_numpy(array).permute(0, 3, 1, 2))
    content_before = _content(part)
    del array
    gc.collect()
    second = recycled(shape, np.float32)
    second[...] = -1
    assert _address(second) != at and np.array_equal(_content(part), content_before)
    del part
    gc.collect()
    assert _address(recycled(shape, np.float32)) == at


def test_other_shapes_and_types_use_the_same_bytes_and_other_amounts_do_not():
    recycled = Recycler(capacity=4)
    array = recycled((2, 8, 8), np.float32)
    assert array.shape == (2, 8, 8) and array.dtype == np.float32
    assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
    at = _address(array)
    del array
    larger = recycled((3, 8, 8), np.float32)
    reused = recycled((8, 64), np.uint8)
    assert _address(larger) != at and _address(reused) == at
    assert recycled((0, 5, 5), np.uint8).shape == (0, 5, 5)


def test_as_much_is_kept_as_was_asked_for_and_nothing_after_close():
    recycled = Recycler(capacity=3)
    held = [recycled((100 + i,), np.uint8) for i in range(10)]
    assert len(recycled._idle) == 0
    last = held.pop()
    held.clear()
    assert len(recycled._idle) == 3, "of nine"
    recycled.close()
    recycled.close()
    last[...] = 7
    assert len(recycled._idle) == 0
    del last
    assert len(recycled._idle) == 0
    assert recycled((4,), np.uint8).shape == (4,), "goes on, as plain memory"


def test_threads_that_hand_arrays_on_never_share_one():
    """Arrays made in one thread go in another, in the middle of other threads' calls."""
    recycled, handed, wrong = Recycler(capacity=6), queue.Queue(8), []

    def make(number: int) -> None:
        for i in range(400):
            array = recycled((64 + 64 * (i % 3),), np.int64)
            array[...] = number * 1000 + i
            handed.put((number * 1000 + i, torch.from_numpy(array)[5:]))

    def drop() -> None:
        while (item := handed.get()) is not None:
            if not (item[1] == item[0]).all():
                wrong.append(item)

    makers = [threading.Thread(target=make, args=[i]) for i in range(3)]
    droppers = [threading.Thread(target=drop) for _ in range(3)]
    for thread in makers + droppers:
        thread.start()
    for thread in makers:
        thread.join()
    for _ in droppers:
        handed.put(None)
    for thread in droppers:
        thread.join()
    assert not wrong and len(recycled._idle) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("as_float", [False, True])
def test_a_kept_part_of_a_batch_is_never_written_to(as_float):
    """One part of one tensor is kept of each batch, the rest goes; then come 20 more batches."""
    n, size = 6, 64
    mask = mask_images(n, 1, size).transpose(0, 2, 3, 1)
    faces, extra_masks = np.concatenate([pictures(n, size), mask], axis=-1), mask_images(n, 2, size, seed=3)
    steps = iter(range(1000))
    with OpenCVAugmenter(size, size, [32, size], threads=2, as_float=as_float) as augment:

        def tensors() -> list[torch.Tensor]:
            step = next(steps)
            result = augment(faces, extra_masks, draw(1, np.arange(n) + n * step, 0, size))
            return [result.feed, *result.targets, *result.masks]

        names = [name for name in PARTS if as_float or name != "kept for backward"]
        held_parts = [
            (name, tensor_index, PARTS[name](tensors()[tensor_index])) for name in names for tensor_index in range(5)
        ]
        content_before = [_content(part) for *_, part in held_parts]
        seen = set()
        for _ in range(20):
            seen |= {tensor.data_ptr() for tensor in tensors()}
        for (name, tensor_index, part), content in zip(held_parts, content_before):
            assert np.array_equal(_content(part), content), f"{name} of tensor {tensor_index}"
        assert len(seen) <= 10, "batches that nobody holds share the memory of one or two"


def test_a_closed_augmenter_leaves_held_results_alone():
    faces = pictures(3, 64)
    with OpenCVAugmenter(64, 64, [64], threads=1) as augment:
        result = augment(faces, None, draw(1, np.arange(3), 0, 64))
        content_before = result.feed.clone()
        recycled = augment.recycled
    assert torch.equal(result.feed, content_before)
    del result
    assert len(recycled._idle) == 0
