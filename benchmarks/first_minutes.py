"""What the first minutes on a GPU should answer: its speed, and that of the device backends, kernel by kernel.

    python -m benchmarks.first_minutes --json FILE

Each row is printed and written as soon as it is measured. device_ms is the GPU's own time, by events, while the host is
ahead of it; host_ms what asking for it takes the host; both are medians. Rows, for a batch drawn from a store of four:

    copy            gb_per_s of the GPU's memory, read and written
    launch          host_us of one launch
    gather          the faces of a batch out of the store, three ways
    augment         ``kornia`` after a gather, and ``triton`` from the store, amounts drawn before; with db, how far
                    triton is from kornia
    kernel          each of Triton's, and graph: all three replayed as a CUDA graph
    tile            the geometry kernel by tile and warps; largest_difference to what it makes by its usual tile

Without a GPU it measures on the CPU what runs there, ends with the line "no GPU" and exit code 3. Triton's rows are
then made only under TRITON_INTERPRET=1: to see that they run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Results, leave_without_gpu, parser, significant
from pipelines.augmenters import make_augmenter
from swapfast.augment.draws import Draws, draw
from swapfast.augment.fused import amounts
from swapfast.augment.fused.verified import compare, reason
from swapfast.augment.result import Augmented

STORED = 4  # batches in the store
MASKS = 3
SIZES = [64, 256, 128, 512]  # what matters most first
CYCLES = 40_000_000  # of a GPU that sleeps, some 20 ms: the host asks for all of a call meanwhile
COPIED = 1 << 30
LAUNCHES = 100
REPEATS = 15
TILES = ((8, 32), (8, 64), (4, 64), (16, 16), (16, 32), (32, 32))  # height, width
WARPS = (4, 8)

Call = Callable[[], object]


class Times(TypedDict):
    """Medians of a call."""

    device_ms: float | None  # None on a CPU
    host_ms: float


def times(call: Call, device: torch.device, repeats: int) -> Times:
    """Return device_ms and host_ms of a call, medians; on a CPU there is only the host."""
    on_device, on_host = [], []
    for _ in range(min(2, repeats - 1)):
        call()
    for _ in range(repeats):
        if device.type != "cuda":
            begun = time.perf_counter()
            call()
            on_host.append(time.perf_counter() - begun)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(CYCLES)
        start.record()
        begun = time.perf_counter()
        call()
        on_host.append(time.perf_counter() - begun)
        end.record()
        torch.cuda.synchronize()
        on_device.append(start.elapsed_time(end))
    return {
        "device_ms": significant(statistics.median(on_device)) if on_device else None,
        "host_ms": significant(1000 * statistics.median(on_host)),
    }


@dataclass(frozen=True)
class Work:
    """A batch of ``count`` faces and where it comes from.

    faces: (M, S, S, 4) uint8, BGR and the face mask
    extra_masks: (M, 2, S, S) uint8
    rows: (N,) int64, which of the M faces
    """

    size: int
    faces: Tensor
    extra_masks: Tensor
    rows: Tensor
    draws: Draws
    repeats: int

    @classmethod
    def smooth(cls, size: int, count: int, repeats: int, device: torch.device) -> Work:
        """Return faces of soft blotches: noise alone would have a histogram unlike any picture's."""
        generator = torch.Generator().manual_seed(1)
        coarse = torch.rand((STORED * count, 3 + MASKS, 9, 9), generator=generator).to(device)
        channels = torch.cat(
            [
                torch.nn.functional.interpolate(part * 255, (size, size), mode="bicubic").clamp(0, 255).byte()
                for part in coarse.split(64)
            ]
        )
        return cls(
            size=size,
            faces=channels[:, :4].permute(0, 2, 3, 1).contiguous(),
            extra_masks=channels[:, 4:].contiguous(),
            rows=torch.randperm(len(channels), generator=generator)[:count].to(device),
            draws=draw(1, np.arange(count), 0, size),
            repeats=repeats,
        )

    @property
    def device(self) -> torch.device:
        return self.faces.device

    @property
    def labels(self) -> dict:
        return {"size": self.size, "batch": len(self.rows), "device": self.device.type}

    def timed(self, name: str, call: Call, **labels: object) -> dict:
        """Return the row of a call."""
        return {"name": name, **self.labels, **labels, **times(call, self.device, self.repeats)}

    def gathered(self) -> tuple[Tensor, Tensor]:
        return self.faces.index_select(0, self.rows), self.extra_masks.index_select(0, self.rows)


class Kernels:
    """The three kernels of a batch, each to be launched by itself into memory that is there already."""

    def __init__(self, work: Work, dtype: torch.dtype) -> None:
        from swapfast.augment.fused import augmenter, operators

        self.work, self.operators = work, operators
        self.augment = augmenter.FusedAugmenter(work.size, work.size, [work.size], dtype=dtype)
        self.out: Augmented = self.whole()
        device, count, size = work.device, len(work.rows), work.size
        tiles = self.augment.largest_grid**2
        self.amounts = torch.from_numpy(amounts.pack_amounts(work.draws)).to(device)
        self.steps, self.levels, self.light = (
            make(device) for make in (augmenter.steps_of_quarters, augmenter.level_bytes, augmenter.light_of_quarters)
        )
        self.lookup = torch.empty((count, tiles, amounts.BINS), dtype=torch.uint8, device=device)
        self.colors = torch.empty((count, size, size), dtype=torch.int32, device=device)
        self.mask_words = torch.empty_like(self.colors)
        self.all()

    def whole(self) -> Augmented:
        """Make a batch as a run does, with new memory."""
        work = self.work
        return self.augment(work.faces, work.extra_masks, work.draws, rows=work.rows)

    def curves(self) -> None:
        work = self.work
        self.operators.curves(work.faces, work.rows, self.amounts, self.steps, self.levels, self.lookup)

    def color(self) -> None:
        work, tables = self.work, (self.steps, self.levels, self.light, self.lookup)
        results = self.colors, self.mask_words
        self.operators.color(work.faces, work.extra_masks, work.rows, self.amounts, *tables, *results)

    def geometry(self) -> None:
        assert self.out.masks is not None
        results = self.out.feed, self.out.targets[0], self.out.masks[0]
        self.operators.geometry(self.colors, self.mask_words, self.amounts, *results, False)

    def all(self) -> None:
        self.curves()
        self.color()
        self.geometry()

    @cached_property
    def graph(self) -> torch.cuda.CUDAGraph:
        """The three launches, captured."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.all()
        return graph

    def geometry_by(self, height: int, width: int, warps: int) -> None:
        """Launch the geometry kernel by another tile."""
        from swapfast.augment.fused.geometry import ONE_BITS, geometry_kernel

        size, out = self.work.size, self.out
        assert out.masks is not None
        usual = self.operators.geometry_constants(size, self.amounts.shape[1], size, size, MASKS, False)
        cell = size // self.operators.CELLS
        one_cell = usual["ONE_CELL"] and cell % height == 0 and cell % width == 0
        tiles = 2 * -(-size // height) * -(-size // width)  # of feed and target
        geometry_kernel[(tiles, len(self.work.rows))](
            self.colors,
            self.mask_words,
            self.amounts,
            out.feed.permute(0, 2, 3, 1),
            out.targets[0].permute(0, 2, 3, 1),
            out.masks[0],
            ONE_BITS,
            **usual | {"TH": height, "TW": width, "ONE_CELL": one_cell},
            num_warps=warps,
        )


def machine(results: Results, repeats: int) -> None:
    """Add the rows of what a GPU can do at best."""
    device = torch.device("cuda")
    halves = torch.zeros((2, COPIED), dtype=torch.uint8, device=device)
    copy = times(lambda: halves[0].copy_(halves[1]), device, repeats)
    assert copy["device_ms"] is not None
    results.add({"name": "copy", **copy, "gb_per_s": significant(2 * COPIED / copy["device_ms"] / 1e6)})
    little = torch.zeros(8, device=device)
    launches = times(lambda: [little.add_(1) for _ in range(LAUNCHES)], device, repeats)
    results.add({"name": "launch", "host_us": significant(1000 * launches["host_ms"] / LAUNCHES)})


def gathers(work: Work, results: Results) -> None:
    """Add the rows of a batch's faces copied out of the store."""
    words = work.faces.view(len(work.faces), -1).view(torch.int64)
    ways = {
        "index_select of bytes": lambda: work.faces.index_select(0, work.rows),
        "index_select of int64": lambda: words.index_select(0, work.rows),
        "x[rows]": lambda: work.faces[work.rows],
    }
    for way, call in ways.items():
        results.add(work.timed("gather", call, way=way))


def composed(work: Work, results: Results) -> Augmented:
    """Add the row of kornia, and return what it makes."""
    augment = make_augmenter("kornia", work.size, work.size, [work.size], work.device)

    def call() -> Augmented:
        return augment(*work.gathered(), work.draws)

    results.add(work.timed("augment", call, backend="kornia", dtype="float32"))
    return call()


def fused(work: Work, wanted: Augmented, dtype: torch.dtype, results: Results) -> None:
    """Add the rows of triton's batch, of each of its kernels, and of their graph."""
    kernels, labels = Kernels(work, dtype), {"backend": "triton", "dtype": str(dtype).removeprefix("torch.")}
    apart = compare(kernels.out, wanted)
    db = {"db_feed": apart.feed, "db_target": apart.target, "db_masks": apart.masks}
    row = work.timed("augment", kernels.whole, **labels)
    results.add(row | {name: round(value, 1) for name, value in db.items()})
    for name in ("curves", "color", "geometry", "all"):
        results.add(work.timed("kernel", getattr(kernels, name), kernel=name, **labels))
    if work.device.type == "cuda":
        results.add(work.timed("kernel", kernels.graph.replay, kernel="graph", **labels))


def tiles(
    work: Work, results: Results, shapes: Sequence[tuple[int, int]] = TILES, warps: Sequence[int] = WARPS
) -> None:
    """Add the rows of the geometry kernel by other tiles."""
    kernels = Kernels(work, torch.float32)
    usual = kernels.out.targets[0].clone()
    for height, width in shapes:
        for count in warps:
            kernels.out.targets[0].fill_(7)
            row = work.timed("tile", partial(kernels.geometry_by, height, width, count), tile=[height, width])
            apart = float((kernels.out.targets[0] - usual).abs().max())
            results.add(row | {"warps": count, "largest_difference": apart})


def main() -> None:
    """Run what this machine can."""
    flags = parser("The first minutes on a GPU")
    flags.add_argument("--sizes", type=int, nargs="+", help=f"px; default {SIZES}, on a CPU {SIZES[:1]}")
    flags.add_argument("--batch", type=int, default=64, help="faces; default 64")
    options = flags.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    repeats = 1 if options.quick else 3 if device.type == "cpu" else REPEATS
    results = Results(options.json)
    failed = False

    def attempt(name: str, measure: Callable[..., object], *arguments: object) -> None:
        nonlocal failed
        try:
            measure(*arguments)
        except Exception as error:  # whatever it is: the next figures may still be had
            failed = True
            results.add({"name": name, "problem": reason(error)})

    if device.type == "cuda":
        machine(results, repeats)
    with_triton = device.type == "cuda" or _is_interpreted()
    sizes = options.sizes or (SIZES if device.type == "cuda" else SIZES[:1])
    for size in sizes:
        work = Work.smooth(size, options.batch, repeats, device)
        attempt("gather", gathers, work, results)
        wanted = composed(work, results)
        for dtype in (torch.float32, torch.bfloat16) if with_triton else ():
            attempt("augment", fused, work, wanted, dtype, results)
    if with_triton:
        shapes, warps = (TILES[:2], WARPS[:1]) if options.quick else (TILES, WARPS)
        for size in sizes[:2]:
            work = Work.smooth(size, options.batch, repeats, device)
            attempt("tile", tiles, work, results, shapes, warps)
    leave_without_gpu()
    raise SystemExit(failed)


def _is_interpreted() -> bool:
    try:
        from swapfast.augment.fused.curves import INTERPRETED
    except ImportError:
        return False
    return bool(getattr(INTERPRETED, "value", INTERPRETED))


if __name__ == "__main__":
    main()
