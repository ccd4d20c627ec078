"""DALI's part of the data path: from file names to decoded pixels, as plain functions of graph nodes.

The same definition serves the CPU and, with ``mixed``, a GPU's JPEG engine; PNGs are decoded by the CPU either
way. Pipeline mode with the default executor: only there do held outputs keep their own memory and can a pipeline
go on after a bad picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types


def decode(encoded, device: str):
    """Encoded pictures -> (H, W, 3) uint8 BGR nodes, as stored: no EXIF rotation. device: 'cpu' or 'mixed'."""
    return fn.decoders.image(encoded, device=device, output_type=types.BGR, adjust_orientation=False)


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
