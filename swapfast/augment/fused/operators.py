"""The fused kernels as operators of torch, ``torch.ops.swapfast``: they write into their last arguments.

As such they can be traced and captured. On a CPU they run under Triton's interpreter only (``TRITON_INTERPRET=1``
before the start), which is what tests do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from swapfast.augment.fused.amounts import NODES
from swapfast.augment.fused.color import color_kernel
from swapfast.augment.fused.curves import INTERPRETED, curves_kernel
from swapfast.augment.fused.geometry import ONE_BITS, geometry_kernel

COLOR_BLOCK, COLOR_WARPS = 512, 4
CURVES_TURNS = 16  # of a program over its tile, at most, up to 256 px
CELLS = 4  # of the random warp's five nodes per edge

torch.library.define(
    "swapfast::curves",
    "(Tensor faces, Tensor rows, Tensor amounts, Tensor steps, Tensor levels, Tensor(a!) curves) -> ()",
)
torch.library.define(
    "swapfast::color",
    "(Tensor faces, Tensor extra_masks, Tensor rows, Tensor amounts, Tensor steps, Tensor levels, Tensor light, "
    "Tensor curves, Tensor(a!) colors, Tensor(b!) masks) -> ()",
)
torch.library.define(
    "swapfast::geometry",
    "(Tensor colors, Tensor mask_words, Tensor amounts, Tensor(a!) feed, Tensor(b!) target, Tensor(c!) masks, "
    "bool rgb) -> ()",
)
curves = torch.ops.swapfast.curves.default
color = torch.ops.swapfast.color.default
geometry = torch.ops.swapfast.geometry.default


class Tiling(NamedTuple):
    """How the geometry kernel cuts a result into tiles, and what follows from it."""

    height: int
    width: int
    one_cell: bool  # whether the px of each tile of the feed lie between the same four nodes

    @property
    def warps(self) -> int:
        """Return the warps of a program: four px a thread."""
        return self.height * self.width // 128


def tiling(size: int, feed: int, nodes: int) -> Tiling:
    """Return the tiling of a launch.

    size: px of the faces
    feed: px of the feed, 0 where none is made
    nodes: per edge, of the warp
    """
    if nodes == CELLS + 1 and feed and size % feed == 0 and feed % CELLS == 0:
        for height, width in ((8, 64), (16, 32), (16, 16)):
            if (feed // CELLS) % height == 0 and (feed // CELLS) % width == 0:
                return Tiling(height, width, True)
    return Tiling(32, 64, False) if INTERPRETED else Tiling(8, 32, False)  # as for the colour kernel's block


def taps(size: int, smaller: int) -> int:
    """Return how many px per edge a px of a smaller result covers, at most; 1 where none is made."""
    if smaller == 0:
        return 1
    return max(-(-(i + 1) * size // smaller) - i * size // smaller for i in range(smaller))


def _words(faces: Tensor) -> Tensor:
    """Return four bytes as one word, for one load a px."""
    return faces.view(torch.int32) if faces.dtype == torch.uint8 and faces.shape[-1] == 4 else faces


@torch.library.impl("swapfast::curves", ("cpu", "cuda"))
def _curves(faces: Tensor, rows: Tensor, amounts: Tensor, steps: Tensor, levels: Tensor, curves: Tensor) -> None:
    n, tiles, _ = curves.shape
    curves_kernel[(tiles, n)](
        _words(faces),
        rows,
        amounts,
        steps,
        levels,
        curves,
        **curves_constants(faces.shape[1], amounts.shape[1], math.isqrt(tiles), faces.shape[-1]),
        num_warps=curves_warps(faces.shape[1]),
    )


def curves_block(size: int) -> int:
    """Return how many px of a tile a program of the curves' kernel counts at a time.

    Few for small faces, whose finest tiles would leave most of a larger block empty; enough for few turns over the
    coarsest tile, of which a face has four.
    """
    coarsest = (min(size, 256) // 2) ** 2
    return max(128, triton.next_power_of_2(coarsest // CURVES_TURNS))


def curves_warps(size: int) -> int:
    """Return the warps of a program of the curves' kernel: eight px a thread, four where a warp has no more."""
    return max(1, curves_block(size) // 256)


def curves_constants(size: int, width: int, grid: int, channels: int) -> dict[str, int]:
    """Return the compile-time values of the curves' kernel. width: columns of the amounts."""
    return {"A": width, "S": size, "G": grid, "CHANNELS": channels, "BLOCK": curves_block(size)}


@torch.library.impl("swapfast::color", ("cpu", "cuda"))
def _color(
    faces: Tensor,
    extra_masks: Tensor,
    rows: Tensor,
    amounts: Tensor,
    steps: Tensor,
    levels: Tensor,
    light: Tensor,
    curves: Tensor,
    colors: Tensor,
    masks: Tensor,
) -> None:
    n, size, _ = colors.shape
    extra = extra_masks.shape[1] if extra_masks.ndim == 4 else 0
    constants = color_constants(size, amounts.shape[1], math.isqrt(curves.shape[1]), faces.shape[-1], extra)
    color_kernel[(triton.cdiv(size**2, constants["BLOCK"]), n)](
        _words(faces),
        extra_masks,
        rows,
        amounts,
        steps,
        levels,
        light,
        curves,
        colors,
        masks,
        **constants,
        num_warps=COLOR_WARPS,
    )


def color_constants(size: int, width: int, grid: int, channels: int, extra: int) -> dict[str, int]:
    """Return the compile-time values of the colour kernel. extra: masks beside the face's."""
    block = 4096 if INTERPRETED else COLOR_BLOCK  # which takes as long for few px as for many
    return {"A": width, "S": size, "G": grid, "CHANNELS": channels, "EXTRA": extra, "BLOCK": block}


@torch.library.impl("swapfast::geometry", ("cpu", "cuda"))
def _geometry(
    colors: Tensor, mask_words: Tensor, amounts: Tensor, feed: Tensor, target: Tensor, masks: Tensor, rgb: bool
) -> None:
    n, size, _ = colors.shape
    feed_size, target_size = (images.shape[-1] if len(images) else 0 for images in (feed, target))
    count = masks.shape[1] if masks.ndim == 4 else 0
    constants = geometry_constants(size, amounts.shape[1], feed_size, target_size, count, rgb)
    height, width = constants["TH"], constants["TW"]
    tiles = sum(triton.cdiv(edge, height) * triton.cdiv(edge, width) for edge in (feed_size, target_size))
    geometry_kernel[(tiles, n)](
        colors,
        mask_words,
        amounts,
        feed.permute(0, 2, 3, 1),
        target.permute(0, 2, 3, 1),
        masks,
        ONE_BITS,
        **constants,
        num_warps=Tiling(height, width, bool(constants["ONE_CELL"])).warps,
    )


def geometry_constants(size: int, width: int, feed: int, target: int, masks: int, rgb: bool) -> dict[str, int | bool]:
    """Return the compile-time values of the geometry kernel; sizes in px, 0 for what is not made."""
    nodes = math.isqrt((width - NODES) // 2)
    tile = tiling(size, feed, nodes)
    return {
        "A": width,
        "S": size,
        "K": nodes,
        "FEED": feed,
        "TARGET": target,
        "MASKS": masks,
        "FEED_TAPS": taps(size, feed),
        "TARGET_TAPS": taps(size, target),
        "RGB": rgb,
        "TH": tile.height,
        "TW": tile.width,
        "ONE_CELL": tile.one_cell,
    }


def _writes_only(*arguments: object) -> None:
    """Stand for an operator while its arguments have shapes and no values: it returns nothing."""


for _name in ("curves", "color", "geometry"):
    torch.library.register_fake(f"swapfast::{_name}", _writes_only)
