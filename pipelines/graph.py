"""DALI pipelines that decode files or encoded bytes, as plain functions of graph nodes.

One definition serves the CPU and, with "mixed", a GPU's JPEG engine; the CPU decodes PNGs in both cases. The pipelines
use pipeline mode with the default executor. Only there do outputs keep their memory while they are referenced, and only
there can a pipeline go on after a bad picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode


def decode(encoded: DataNode, device: str, gray: bool = False, hw_decoder_load: float = 1.0) -> DataNode:
    """Return nodes of decoded pictures, (H, W, 3) uint8 BGR or (H, W, 1) gray, without EXIF rotation.

    device: "cpu" or "mixed"
    hw_decoder_load: the share of a batch that the GPU's JPEG engine gets with "mixed": all is fastest with few cores
    """
    load: dict[str, Any] = {} if device == "cpu" else {"hw_decoder_load": hw_decoder_load}
    kind = types.GRAY if gray else types.BGR
    return fn.decoders.image(encoded, device=device, output_type=kind, adjust_orientation=False, **load)


def as_bytes(path: str) -> np.ndarray:
    """Return a file name in the form that ``fn.io.file.read`` takes, (length,) uint8."""
    return np.frombuffer(path.encode("utf-8", "surrogateescape"), np.uint8)


def decoding_pipeline(
    paths_of: Callable[[int], list[str]], batch_size: int, threads: int, device_id: int | None = None
) -> Pipeline:
    """Return a pipeline whose run k decodes the files ``paths_of(k)``.

    paths_of: a pure function that never raises; DALI calls it ahead of the run.
    device_id: a GPU, or None for the CPU.
    A file that cannot be decoded makes ``run`` raise RuntimeError, for its batch alone.
    """

    def source(iteration: int) -> list[np.ndarray]:
        return [as_bytes(path) for path in paths_of(iteration)]

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=2)
    def graph() -> DataNode:
        paths = fn.external_source(source, batch=True, dtype=types.UINT8, ndim=1)
        return decode(fn.io.file.read(paths), "cpu" if device_id is None else "mixed")

    return graph()


def fed_pipeline(batch_size: int, threads: int, device_id: int | None = None) -> Pipeline:
    """Return a pipeline that decodes what its input "encoded" is fed with, bytes as (length,) uint8 each.

    device_id: a GPU, or None for the CPU.
    A picture that cannot be decoded makes ``run`` raise RuntimeError.
    """

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=1)
    def graph() -> DataNode:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        return decode(encoded, "cpu" if device_id is None else "mixed")

    pipeline = graph()
    pipeline.build()
    return pipeline


def encoded_pipeline(
    bytes_of: Callable[[int], tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
    batch_size: int,
    threads: int,
    device_id: int | None = None,
) -> Pipeline:
    """Return a pipeline whose run k decodes the colour and gray pictures ``bytes_of(k)``; see ``decoding_pipeline``."""

    @pipeline_def(batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=2)
    def graph() -> tuple[DataNode, DataNode]:
        device = "cpu" if device_id is None else "mixed"
        faces, masks = fn.external_source(bytes_of, num_outputs=2, batch=True, dtype=types.UINT8, ndim=1)
        return decode(faces, device), decode(masks, device, gray=True)

    return graph()
