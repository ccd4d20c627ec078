"""The fused kernels compiled without a GPU: registers, spills, shared memory, instructions per pixel.

    python -m benchmarks.kernels --size 256 --arch 90

Triton's wheel has the assembler and the disassembler in it. Instructions are those of the kernel's machine code from
its first line to its last exit: what a program of the ordinary case runs, all branches together. For the colour kernel
that is a face with CLAHE, for the geometry one px of the feed and one of target and masks. The loop of the curves'
kernel counts as often as tiles of the grids drawn need it, each grid equally often.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.common import parser, save, show
from swapfast.augment.fused import operators
from swapfast.augment.fused.amounts import NODES

ARCHITECTURES = (80, 90, 120)  # A100, H100 and H200, RTX 50
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
GRID = 6  # tiles per edge of the finest CLAHE grid at up to 256 px
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", re.MULTILINE)
JUMP = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/.*BRA[^;]* (0x[0-9a-f]+)", re.MULTILINE)
INSTRUCTION_BYTES = 16
TYPES = {"fp32": "*fp32", "bf16": "*bf16"}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes."""

    registers: int  # of a thread
    spills: int  # bytes of a thread that lie in memory, stack included
    shared: int  # bytes of a program
    instructions: int
    instructions_per_pixel: float  # of a warp, per px of a thread


def compile_kernel(
    kernel: Any, pointers: Mapping[str, str], constants: Mapping[str, Any], arch: int, warps: int
) -> Any:
    """Return a kernel compiled for an architecture such as 90.

    pointers: type of each argument that is a tensor, aligned to 16 bytes as torch's are
    constants: the other arguments
    """
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: pointers.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})


def resources(compiled: Any, pixels: int, warps: int) -> Resources:
    """Return what a compiled kernel takes. pixels: of a program."""
    listing = _listing(compiled.asm["cubin"])
    figures = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    instructions = INSTRUCTION.findall(listing)
    last = max(k for k, name in enumerate(instructions) if name == "EXIT")
    count = sum(name != "NOP" for name in instructions[: last + 1])
    return Resources(
        registers=figures["REG"],
        spills=figures["STACK"] + figures["LOCAL"],
        shared=compiled.metadata.shared,
        instructions=count,
        instructions_per_pixel=round(count * warps * 32 / pixels, 1),
    )


def loop_instructions(compiled: Any) -> int:
    """Return the instructions of the longest loop of a compiled kernel."""
    jumps = JUMP.findall(_listing(compiled.asm["cubin"]))
    spans = [int(start, 16) - int(end, 16) for start, end in jumps]
    return max(spans) // INSTRUCTION_BYTES + 1


@functools.lru_cache(maxsize=1)
def _listing(binary: bytes) -> str:
    """Return what a kernel takes and its machine code: half a second of the disassembler, so it is asked once."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        command = [str(TOOLS / "cuobjdump"), "-res-usage", "-sass", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@functools.cache
def compiled_curves(size: int, arch: int, channels: int = 4) -> Resources:
    """Return what the kernel of CLAHE's curves takes; a px is one of the face, on average of the grids drawn."""
    constants = operators.curves_constants(size, NODES + 50, GRID, channels)
    pointers = {
        "faces": "*i32" if channels == 4 else "*u8",
        "rows": "*i64",
        "amounts": "*fp32",
        "steps": "*i32",
        "levels": "*u8",
        "curves": "*u8",
    }
    warps = operators.curves_warps(size)
    compiled = compile_kernel(operators.curves_kernel, pointers, constants, arch, warps)
    used, turn = resources(compiled, int(constants["BLOCK"]), warps), loop_instructions(compiled)
    coarsest = max(2, size // 128)
    grids = [coarsest + step * (coarsest // 2) for step in range(5)]
    turns = {grid: -(-(math.ceil(size / grid) ** 2) // int(constants["BLOCK"])) for grid in grids}
    of_faces = [grid**2 * (used.instructions + (turns[grid] - 1) * turn) for grid in grids]
    mean = sum(of_faces) / len(grids) * warps * 32 / size**2
    return dataclasses.replace(used, instructions_per_pixel=round(mean, 1))


@functools.cache
def compiled_color(size: int, arch: int, channels: int = 4, extra: int = 2, grid: int = GRID) -> Resources:
    """Return what the colour kernel takes. extra: masks beside the face's. grid: 0 without CLAHE."""
    constants = operators.color_constants(size, NODES + 50, grid, channels, extra)
    pointers = {
        "faces": "*i32" if channels == 4 else "*u8",
        "extra_masks": "*u8",
        "rows": "*i64",
        "amounts": "*fp32",
        "steps": "*i32",
        "levels": "*u8",
        "light": "*fp32",
        "curves": "*u8",
        "colors": "*i32",
        "masks": "*i32",
    }
    warps = operators.COLOR_WARPS
    compiled = compile_kernel(operators.color_kernel, pointers, constants, arch, warps)
    return resources(compiled, int(constants["BLOCK"]), warps)


@functools.cache
def compiled_geometry(
    size: int,
    arch: int,
    dtype: str = "fp32",
    feed: int | None = None,
    target: int | None = None,
    nodes: int = 5,
    masks: int = 3,
) -> Resources:
    """Return what the geometry kernel takes. feed, target: their px, by default those of the face."""
    feed, target = size if feed is None else feed, size if target is None else target
    constants = operators.geometry_constants(size, NODES + 2 * nodes**2, feed, target, masks, False)
    pointers = {
        "colors": "*i32",
        "mask_words": "*i32",
        "amounts": "*fp32",
        "feed": TYPES[dtype],
        "target": TYPES[dtype],
        "masks": TYPES[dtype],
        "one_bits": "i32",
    }
    warps = operators.Tiling(int(constants["TH"]), int(constants["TW"]), bool(constants["ONE_CELL"])).warps
    compiled = compile_kernel(operators.geometry_kernel, pointers, constants, arch, warps)
    return resources(compiled, int(constants["TH"]) * int(constants["TW"]), warps)


def main() -> None:
    flags = parser("registers, spills and instructions of the fused kernels, compiled without a GPU")
    flags.add_argument("--size", type=int, nargs="+", default=[64, 256])
    flags.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES))
    arguments = flags.parse_args()
    results = []
    for size in arguments.size:
        for arch in arguments.arch:
            kernels = {
                "curves": compiled_curves(size, arch),
                "color": compiled_color(size, arch),
                **{f"geometry, {dtype}": compiled_geometry(size, arch, dtype) for dtype in TYPES},
                "geometry, landmarks": compiled_geometry(size, arch, nodes=33),
                "geometry, half size": compiled_geometry(size, arch, feed=size // 2, target=size // 2),
            }
            results += [{"size": size, "arch": arch, "kernel": name, **vars(r)} for name, r in kernels.items()]
    show(results)
    save(results, arguments.json)


if __name__ == "__main__":
    main()
