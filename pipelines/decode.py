"""Every picture of a list decoded once, in order: by DALI, or by OpenCV where DALI has no wheel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from swapfast.faces.image import read_image

Decoded = np.ndarray | str  # (H, W, 3) uint8 BGR, or in one phrase why there is none

BATCH = 16


def dali_version() -> str | None:
    """DALI's version, or None where it is not installed or does not load."""
    try:
        import nvidia.dali
    except (ImportError, OSError):
        return None
    return nvidia.dali.__version__


def decode_pictures(
    paths: Sequence[Path], threads: int, device_id: int | None = None, use_dali: bool | None = None
) -> Iterator[list[Decoded]]:
    """Yields the decoded pictures of ``paths`` in order, some at a time.

    An array is valid until the next batch is asked for. use_dali: None takes it where it is installed.
    """
    if not paths:
        return iter(())
    if use_dali is None:
        use_dali = dali_version() is not None
    return _with_dali(paths, threads, device_id) if use_dali else _with_opencv(paths, threads)


def _try_read(path: Path) -> Decoded:
    try:
        return read_image(path)
    except ValueError as error:
        return str(error)


def _with_opencv(paths: Sequence[Path], threads: int) -> Iterator[list[Decoded]]:
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(paths), BATCH):
            yield list(pool.map(_try_read, paths[start : start + BATCH]))


def _with_dali(paths: Sequence[Path], threads: int, device_id: int | None) -> Iterator[list[Decoded]]:
    from pipelines.graph import decoding_pipeline

    names = [str(path) for path in paths]
    size = min(BATCH, len(names))

    def paths_of(run: int) -> list[str]:
        """DALI asks ahead, also beyond the end; there any picture will do."""
        return names[run * size : (run + 1) * size] or names[:1]

    pipeline = decoding_pipeline(paths_of, size, threads, device_id)
    for start in range(0, len(names), size):
        try:
            (output,) = pipeline.run()
            if device_id is not None:
                output = output.as_cpu()
            yield [output.at(i) for i in range(len(output))]
        except RuntimeError:
            # DALI says that the batch is bad and seldom which file: decode it again, one by one.
            yield [_try_read(path) for path in paths[start : start + size]]
