"""Arguments that no backend takes: all of them the calling program's mistakes, hence ValueError."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swapfast.augment.constants import check_size, whole_pixels
from swapfast.augment.draws import Draws


def check_sizes(processing_size: int, input_size: int, output_sizes: Sequence[int]) -> tuple[int, int, list[int]]:
    """Return the sizes as ints, outputs smallest first; raise ValueError where one exceeds the processing size."""
    processing_size = check_size(processing_size)
    outputs = sorted(whole_pixels("output size", size) for size in output_sizes)
    if not outputs or len(set(outputs)) != len(outputs):
        raise ValueError(f"output sizes {list(output_sizes)}: need at least one, each once")
    input_size = whole_pixels("input size", input_size)
    for size in (input_size, *outputs):
        if not 0 < size <= processing_size:
            raise ValueError(f"size {size}: must lie within 1 and the processing size, {processing_size} px")
    return processing_size, input_size, outputs


def check_inputs(faces: Any, extra_masks: Any, draws: Draws, size: int, kinds: tuple[type, ...], uint8: object) -> None:
    """Raise ValueError for anything but bytes of one of ``kinds`` with a draw for each face.

    faces: (N, S, S, 3 or 4)
    extra_masks: (N, K, S, S) or None
    draws: of N faces, for S px
    size: S
    kinds: the types an array may have, ``uint8`` being their name for bytes
    """
    for name, array in (("faces", faces), ("extra_masks", extra_masks)):
        if array is None and name == "extra_masks":
            continue
        if not isinstance(array, kinds) or getattr(array, "dtype", None) != uint8:
            raise ValueError(
                f"{name}: expected a {kinds[0].__module__}.{kinds[0].__name__} of bytes, got {type(array)} "
                f"{getattr(array, 'dtype', '')}"
            )
    check_faces(faces, size)
    if extra_masks is not None:
        check_masks(extra_masks, len(faces), size)
    check_draws(draws, len(faces), size)


def check_faces(faces: Any, size: int) -> None:
    """Raise ValueError where faces are not (N, size, size, 3 or 4)."""
    if faces.ndim != 4 or tuple(faces.shape[1:3]) != (size, size) or faces.shape[-1] not in (3, 4):
        raise ValueError(f"faces: expected (N, {size}, {size}, 3 or 4), got {tuple(faces.shape)}")


def check_masks(extra_masks: Any, n: int, size: int) -> None:
    """Raise ValueError where masks beside those of n faces are not (n, K, size, size)."""
    if extra_masks.ndim != 4 or tuple(extra_masks.shape) != (n, extra_masks.shape[1], size, size):
        raise ValueError(f"extra_masks: expected ({n}, K, {size}, {size}), got {tuple(extra_masks.shape)}")


def check_draws(draws: Draws, n: int, size: int) -> None:
    """Raise ValueError where draws are not of n faces for ``size`` px."""
    if len(draws) != n or draws.size != size:
        raise ValueError(f"draws: {len(draws)} made for {draws.size} px do not fit {n} faces of {size} px")


def check_colors(draws: Draws, recolors: bool, largest_grid: int) -> None:
    """Raise ValueError for draws from another configuration than the one that an augmenter was made for."""
    grids = draws.clahe_grid
    if len(grids) and not 0 <= grids.min() <= grids.max() <= largest_grid:
        raise ValueError(f"draws: CLAHE grids {grids.min()} to {grids.max()}, made for 0 to {largest_grid}")
    if not recolors and draws.lab.any():
        raise ValueError("draws: colours change, but the configuration given says they do not")
