"""The compiled colour of the CPU: against the formula in float64, OpenCV's L and 8 bits, on memory of any kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from swapfast.augment.device import color
from swapfast.augment.draws import draw
from swapfast.augment.host import color as host_color
from swapfast.augment.host.recycle import Scratch
from swapfast.augment.kernels.jit import load_kernels
from swapfast.config import AugmentationConfig
from tests.augment.array_versions import recolor_in_8_bits
from tests.augment.slow_references import pictures

ROOT = Path(__file__).resolve().parents[3]
kernels = load_kernels("color")
NOTHING = np.array([1, 1, 1, 0, 0, 0], np.float32)


def all_colours(step: int) -> np.ndarray:
    """(P, 3) uint8: every ``step``th level of each channel, 0 and 255 among them."""
    level = np.arange(0, 256, step, dtype=np.uint8)
    return np.stack(np.meshgrid(level, level, level), -1).reshape(-1, 3)


def exact(colours: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """(P, 3) BGR levels to LAB, jittered, and back, by the device's formulas in float64, not rounded."""
    bgr = torch.from_numpy(colours.T.copy()).double()[None, :, :, None] / 255
    factor, offset = torch.from_numpy(amounts.astype(np.float64)).view(2, 1, 3)
    changed = color.lab_to_bgr(color.jitter(color.bgr_to_lab(bgr), factor, offset))
    return 255 * changed[0, :, :, 0].T.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("amounts", [(1, 1, 1, 0, 0, 0), (1.3, 0.9, 1.1, -40, 9, -14), (0.5, 1.4, 0.2, 90, -60, 70)])
def test_every_colour_is_the_formulas_rounded_once(within, amounts, channels):
    """Down to black and beyond what a screen shows; 17^3 - 1 pixels are no multiple of a block."""
    amounts = np.array(amounts, np.float32)
    colours = all_colours(5)[1:]
    faces = np.concatenate([colours, colours[:, ::-1]], 1)[None, :, :channels].copy()
    out = np.zeros_like(faces)
    kernels.jitter_faces(faces.reshape(1, -1), len(colours), channels, amounts[None], np.array([0]), out.reshape(1, -1))
    within("jitter, levels", np.abs(out[0, :, :3] - exact(colours, amounts)).max(), 0.6)
    assert np.array_equal(out[..., 3:], faces[..., 3:])


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 4])
def test_lightness_is_opencvs_and_the_rest_the_formulas(within, channels):
    colours = all_colours(3)
    faces = np.concatenate([colours, colours[:, :1]], 1)[:, :channels].ravel()
    room = -(-len(colours) // kernels.BLOCK) * kernels.BLOCK
    lightness, a, b = np.zeros(room, np.uint8), np.zeros(room, np.float32), np.zeros(room, np.float32)
    kernels.bgr_to_lab(faces, len(colours), channels, NOTHING, *kernels.lightness_tables(), lightness, a, b)
    lightness, a, b = (plane[: len(colours)] for plane in (lightness, a, b))
    expected = cv2.cvtColor(colours[None], cv2.COLOR_BGR2LAB)[0]
    assert np.array_equal(lightness, expected[:, 0])
    lab = color.bgr_to_lab(torch.from_numpy(colours.T.copy()).double()[None, :, :, None] / 255)
    for name, ours, formula in zip("ab", (a, b), lab[0, 1:]):
        within(f"{name}, levels", np.abs(ours - formula.ravel().numpy()).max(), 0.02)


def test_memory_that_may_not_be_written_to_is_read(tmp_path):
    """A store is a mapped file."""
    faces = pictures(3, 64, 4)
    faces.tofile(tmp_path / "store")
    mapped = np.memmap(tmp_path / "store", np.uint8, "r", shape=faces.shape)
    d = draw(3, np.arange(3), 0, 64, AugmentationConfig(color_clahe_chance=60))
    assert d.clahe_grid.any() and not d.clahe_grid.all()
    results = [
        host_color.recolor(images, host_color.jitter_matrices(d), d.clahe_grid.tolist(), Scratch())
        for images in (faces, mapped)
    ]
    assert np.array_equal(*results) and not np.array_equal(results[0], faces)


def test_colours_are_those_of_8_bits_but_for_its_rounding(within):
    faces = pictures(6, 64, 4)
    d = draw(3, np.arange(6), 0, 64)
    matrices, grids = host_color.jitter_matrices(d), d.clahe_grid.tolist()
    ours = host_color.recolor(faces, matrices, grids, Scratch(), d.clip_limit)
    difference = np.abs(recolor_in_8_bits(faces, matrices, grids, d.clip_limit).astype(int) - ours)
    within("8 bits against compiled, mean, levels", difference[..., :3].mean(), 0.8)
    assert difference[..., :3].any() and not difference[..., 3].any()


@pytest.mark.long
@pytest.mark.parametrize("obstacle", ["no folder", "a full disk"])
def test_compiled_anew_where_nothing_can_be_kept(obstacle, tmp_path):
    """One kernel that compiles fast stands for all."""
    folder, most_bytes = tmp_path / "cache", -1
    if obstacle == "no folder":
        (tmp_path / "file").write_text("no folder")
        folder = tmp_path / "file" / "cache"
    else:
        folder.mkdir()
        most_bytes = 1000
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, {most_bytes})); "
        "import numpy as np; from swapfast.augment.kernels.jit import load_kernels; floats = np.zeros(3, np.float32); "
        "load_kernels('copies').to_floats(np.array([0, 51, 255], np.uint8), floats); print(floats.tolist())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder)}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0 and np.allclose(json.loads(ended.stdout), [0, 0.2, 1]), ended.stderr
    assert not list(tmp_path.rglob("*.nbc"))
