"""DALI's part of the data path: from files or encoded bytes to pixels, as plain functions of graph nodes.

The same definition serves the CPU and, with ``mixed``, a GPU's JPEG engine; PNGs are decoded by the CPU either
way. Pipeline mode with the default executor: only there do held outputs keep their own memory and can a pipeline
go on after a bad picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types


def decode(encoded, device: str, gray: bool = False):
    """Encoded pictures -> (H, W, 3) uint8 BGR nodes, or (H, W, 1), as stored: no EXIF rotation.

    device: 'cpu' or 'mixed'. A GPU's JPEG engine takes all it can: with few cores its share is better too large.
    """
    load = {} if device == "cpu" else {"hw_decoder_load": 1.0}
    kind = types.GRAY if gray else types.BGR
    return fn.decoders.image(encoded, device=device, output_type=kind, adjust_orientation=False, **load)


def as_bytes(path: str) -> np.ndarray:
    """A file name in the form that ``fn.io.file.read`` takes."""
    return np.frombuffer(path.encode("utf-8", "surrogateescape"), np.uint8)


def decoding_pipeline(
    paths_of: Callable[[int], list[str]], batch_size: int, threads: int, device_id: int | None = None
) -> Pipeline:
    """A pipeline whose run k decodes the files ``paths_of(k)``.

    ``paths_of`` must be a pure function that never raises: DALI calls it ahead of the run. A file that cannot be
    decoded makes ``run`` raise RuntimeError for its batch alone. device_id: a GPU, or None for the CPU.
    """

    def source(iteration: int) -> list[np.ndarray]:
        return [as_bytes(path) for path in paths_of(iteration)]

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=2)
    def graph():
        paths = fn.external_source(source, batch=True, dtype=types.UINT8, ndim=1)
        return decode(fn.io.file.read(paths), "cpu" if device_id is None else "mixed")

    return graph()


def encoded_pipeline(
    bytes_of: Callable[[int], tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
    batch_size: int,
    threads: int,
    device_id: int | None = None,
) -> Pipeline:
    """Like ``decoding_pipeline`` for pictures in memory: run k gives colour and gray pictures of ``bytes_of(k)``."""

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=2)
    def graph():
        device = "cpu" if device_id is None else "mixed"
        faces, masks = fn.external_source(bytes_of, num_outputs=2, batch=True, dtype=types.UINT8, ndim=1)
        return decode(faces, device), decode(masks, device, gray=True)

    return graph()
