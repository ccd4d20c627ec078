"""The fused kernels compiled for GPUs that are not here: no spills, few registers."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks import kernels
from benchmarks.graph_cost import fused_instructions, fused_operations
from swapfast.config import AugmentationConfig

pytestmark = pytest.mark.slow  # compiles

MOST_REGISTERS = 128  # of a thread: at 128, 512 threads at a time on each multiprocessor


def _check(within, what: str, arch: int, used: kernels.Resources, most_instructions: float) -> None:
    within(f"{what}, sm_{arch}: spilled bytes", used.spills, 0)
    within(f"{what}, sm_{arch}: registers", used.registers, MOST_REGISTERS)
    within(f"{what}, sm_{arch}: shared bytes", used.shared, 16 << 10)
    within(f"{what}, sm_{arch}: instructions per px", used.instructions_per_pixel, most_instructions)


# Bounds of instructions are a tenth above what Triton 3.6 makes for the costliest, so that a change that costs shows.
ARCHITECTURES = [pytest.param(arch, marks=() if arch == 90 else pytest.mark.slow) for arch in kernels.ARCHITECTURES]


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_curves_and_color_fit_the_registers(within, arch):
    _check(within, "curves", arch, kernels.compiled_curves(256, arch), 167)
    _check(within, "color", arch, kernels.compiled_color(256, arch), 239)


@pytest.mark.long
@pytest.mark.parametrize("dtype", kernels.TYPES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_geometry_fits_the_registers(within, arch, dtype):
    _check(within, f"geometry in {dtype}", arch, kernels.compiled_geometry(256, arch, dtype), 277)


@pytest.mark.long
@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_a_pixel_of_each_size_takes_few_instructions(within, size):
    """On average with CLAHE for half of the faces, on an H200."""
    within(f"{size} px: instructions a px", fused_instructions(size, 3, AugmentationConfig(), 90), 480)


@pytest.mark.long
def test_every_other_case_fits_the_registers(within):
    """Three channels, no CLAHE, sizes that four do not divide, nodes of landmarks, smaller results: each compiles."""
    _check(within, "curves of 3 channels", 90, kernels.compiled_curves(250, 90, channels=3), 171)
    _check(within, "color of 3 channels without CLAHE", 90, kernels.compiled_color(250, 90, 3, 0, 0), 136)
    _check(within, "geometry at 250 px", 90, kernels.compiled_geometry(250, 90), 255)
    _check(within, "geometry with 65 nodes", 90, kernels.compiled_geometry(256, 90, nodes=65), 243)
    _check(within, "geometry of two sizes", 90, kernels.compiled_geometry(256, 90, feed=128, target=192), 261)


@pytest.mark.parametrize(
    ("masks", "config", "launches", "least", "most"),
    [
        (3, AugmentationConfig(), 3, 60, 75),  # 4 for the curves, 14 for colour, 12 + 24 + 8 for geometry, and tables
        (3, AugmentationConfig(color_clahe_chance=0), 2, 50, 60),
        (0, AugmentationConfig(color=False), 2, 35, 40),
    ],
)
def test_a_batch_is_few_launches_and_few_bytes(masks, config, launches, least, most):
    """Counted on tensors without values, from which nothing can be asked."""
    counted, touched = fused_operations(64, 16, masks, config)
    assert counted == launches and least < touched / (16 * 64**2) < most
