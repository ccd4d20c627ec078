"""What DALI alone can do of the augmentation, a part of benchmarks/augment.py: rotate, zoom, shift, flip and resize.

DALI has no LAB, no CLAHE of a chance and grid for each face, and no warp by a grid of nodes. So these pipelines make
the target and its masks from the same amounts as every other backend, in the original colours, and no feed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from swapfast.augment.draws import Draws

HALF_PIXEL = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])


def affine_matrices(draws: Draws) -> np.ndarray:
    """Return (N, 2, 3) float32, target to face, for DALI, whose pixels lie at halves and not at whole numbers."""
    square = np.concatenate([draws.inverse(), np.tile([[[0.0, 0.0, 1.0]]], (len(draws), 1, 1))], axis=1)
    return (HALF_PIXEL @ square @ np.linalg.inv(HALF_PIXEL))[:, :2].astype(np.float32)


def moved(images: DataNode, matrix: DataNode, kind: types.DALIDataType) -> DataNode:
    """Return nodes of images moved and flipped; outside are the pixels of the edge."""
    return fn.warp_affine(images, matrix=matrix, inverse_map=True, interp_type=types.INTERP_LINEAR, dtype=kind)


def unit(images: DataNode) -> DataNode:
    """Return nodes of float32 in 0..1, channels first."""
    return fn.transpose(images / 255.0, perm=[2, 0, 1])


def affine_calls(
    six: np.ndarray, make_draws: Callable[[], Draws], threads: int, device: str
) -> dict[str, Callable[[], object]]:
    """Return the steps that DALI has, by the names of benchmarks/augment.py.

    six: (N, S, S, 6) uint8, image and masks. With device "cuda" they lie in the GPU's memory before.
    make_draws: the amounts of a batch. The whole draws them in each call, as the other backends do.

    A call makes one batch and nothing ahead, so that it takes its turn like any other. It returns when the host is
    done; on a GPU what was launched by then is awaited by PyTorch's current stream.
    """
    half, on_gpu = six.shape[1] // 2, device == "cuda"
    images = torch.from_numpy(six).to(device) if on_gpu else six
    matrices = affine_matrices(make_draws())

    def pipeline(graph: Callable[[DataNode, DataNode], DataNode], source: Callable[[], np.ndarray]) -> Pipeline:
        @pipeline_def(
            batch_size=len(six),
            num_threads=threads,
            device_id=torch.cuda.current_device() if on_gpu else None,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        def made() -> DataNode:
            pixels = fn.external_source(
                lambda: images, batch=True, layout="HWC", device="gpu" if on_gpu else "cpu", no_copy=True
            )
            return graph(pixels, fn.external_source(source, batch=True))

        built = made()
        built.build()
        return built

    def run_on_stream(built: Pipeline) -> object:
        return built.run(torch.cuda.current_stream())

    graphs = {
        "transform": (lambda pixels, matrix: moved(pixels, matrix, types.UINT8), lambda: matrices),
        "masks_targets": (
            lambda pixels, _: fn.resize(pixels, size=[half, half], interp_type=types.INTERP_TRIANGULAR),
            lambda: matrices,
        ),
        "to_float": (lambda pixels, _: unit(fn.cast(pixels, dtype=types.FLOAT)), lambda: matrices),
        "whole": (
            lambda pixels, matrix: unit(moved(pixels, matrix, types.FLOAT)),
            lambda: affine_matrices(make_draws()),
        ),
    }
    pipelines = {name: pipeline(*parts) for name, parts in graphs.items()}
    if on_gpu:
        return {name: partial(run_on_stream, p) for name, p in pipelines.items()}
    return {name: p.run for name, p in pipelines.items()}
