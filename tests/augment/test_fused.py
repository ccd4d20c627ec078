"""The fused kernels under Triton's interpreter: against float64, and whole batches against the other device backend."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipelines.augmenters import make_augmenter
from swapfast.augment.draws import Draws, draw
from swapfast.augment.fused import amounts
from tests.augment.fused_cases import make_cases
from tests.augment.slow_references import (
    affine_positions,
    area_mean,
    bilinear,
    jittered,
    lab_of_bgr,
    node_positions,
    psnr,
)

ROOT = Path(__file__).resolve().parents[2]
# Ten bits a channel round by half a quarter level; the reference's white, whose rows add up to one, adds 0.01.
QUARTER = 0.155
# Positions are float32: 1e-5 px at 64 px, times the steepest edge of 255 levels. A tenfold room.
FLOAT = 0.03

triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def cases() -> dict[str, dict]:
    return make_cases()


@pytest.fixture(scope="module")
def results(device, tmp_path_factory) -> dict[str, list[np.ndarray]]:
    """Feed, targets and masks of each case, from one process, whose interpreter takes a minute."""
    folder = tmp_path_factory.mktemp("fused")
    command = [sys.executable, "-m", "tests.augment.fused_process", folder / "results.pt"]
    interpreted = {} if device.type == "cuda" else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, str(device)], cwd=ROOT, env=os.environ | interpreted, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: [tensor.double().numpy() * 255 for tensor in tensors]
        for name, tensors in torch.load(folder / "results.pt", weights_only=True).items()
    }


def _bgr_of_lab(lab: np.ndarray) -> np.ndarray:
    """(..., 3) LAB in 8-bit units -> BGR levels 0..255 in float64."""
    y = (lab[..., 0] / 2.55 + 16) / 116
    f = np.stack([y + (lab[..., 1] - 128) / 500, y, np.maximum(y - (lab[..., 2] - 128) / 200, 0)], axis=-1)
    xyz = np.where(f > 0.2068966, f**3, (f - 4 / 29) / 7.787) * [0.95047, 1, 1.08883]
    to_xyz = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    rgb = xyz @ np.linalg.inv(to_xyz).T
    srgb = np.where(rgb > 0.0031308, 1.055 * np.maximum(rgb, 0) ** (1 / 2.4) - 0.055, 12.92 * rgb)
    return 255 * np.clip(srgb, 0, 1)[..., ::-1]


@pytest.mark.long
@triton
def test_color_is_that_of_float64(cases, results, device, within):
    case = cases["color"]
    faces, draws = case["faces"].numpy()[case["rows"].numpy()], case["draws"]
    lab = jittered(lab_of_bgr(faces / 255), draws.lab)
    for k, grid in enumerate(draws.clahe_grid):
        if grid:
            whole = cv2.cvtColor(faces[k], cv2.COLOR_BGR2LAB)[..., 0]
            level = np.clip(np.rint(jittered(np.repeat(whole[None, ..., None], 3, -1), draws.lab[k : k + 1])), 0, 255)
            clahe = cv2.createCLAHE(draws.clip_limit, (int(grid), int(grid)))
            lab[k, ..., 0] = clahe.apply(level[0, ..., 0].astype(np.uint8))
    wanted = _bgr_of_lab(lab).transpose(0, 3, 1, 2)
    feed, target = results["color"]
    np.testing.assert_allclose(target[0], faces[0].transpose(2, 0, 1), atol=1e-3)  # untouched: no way there and back
    for k, grid in enumerate(draws.clahe_grid):
        tie = 4 if grid and device.type == "cuda" else 0  # a GPU may end a tie one level of L off
        within(f"grid {grid}, levels", np.abs(target[k] - wanted[k]).max(), QUARTER + tie)
        within(f"grid {grid}: feed, levels", np.abs(feed[k] - wanted[k]).max(), QUARTER + tie)


def _moved(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S, C) faces with all masks at float64 where the target reads them, and where the feed does."""
    rows, draws, size = case["rows"].numpy(), case["draws"], case["make"]["processing_size"]
    layers = [case["faces"].numpy()[rows]]
    if case["extra_masks"] is not None:
        layers.append(case["extra_masks"].numpy()[rows].transpose(0, 2, 3, 1))
    y, x = np.mgrid[:size, :size].astype(float)
    still, warped = [], []
    for image, matrix, nodes in zip(np.concatenate(layers, axis=-1), draws.inverse(), draws.control_grid()):
        still.append(bilinear(image, *affine_positions(matrix, x, y)))
        if len(nodes) == 5:
            warped.append(bilinear(image, *node_positions(nodes, x, y, size)))
        else:
            scale = (len(nodes) - 1) / (size - 1)
            warped.append(bilinear(image, *np.moveaxis(bilinear(nodes, x * scale, y * scale), -1, 0)))
    return np.stack(still), np.stack(warped)


@pytest.mark.long
@triton
@pytest.mark.parametrize("name", ["odd", "smaller", "landmarks"])
def test_geometry_is_that_of_float64(cases, results, within, name):
    case, (feed, *others) = cases[name], results[name]
    still, warped = _moved(case)
    order = [2, 1, 0] if case["make"].get("color_order") == "rgb" else [0, 1, 2]
    sizes = sorted(case["make"]["output_sizes"])
    assert [len(image) for image in others] == [len(still)] * (2 * len(sizes))
    wanted = np.stack([area_mean(image, feed.shape[-1]) for image in warped])[..., order].transpose(0, 3, 1, 2)
    within(f"{name}: feed, levels", np.abs(feed - wanted).max(), FLOAT)
    for k, size in enumerate(sizes):
        small = np.stack([area_mean(image, size) for image in still]).transpose(0, 3, 1, 2)
        within(f"{name}: target of {size} px, levels", np.abs(others[k] - small[:, order]).max(), FLOAT)
        within(f"{name}: masks of {size} px, levels", np.abs(others[len(sizes) + k] - small[:, 3:]).max(), FLOAT)


@pytest.mark.long
@triton
def test_a_batch_is_that_of_the_other_device_backend(cases, results, device, at_least):
    case = cases["whole"]
    make = {name: case["make"][name] for name in ("processing_size", "input_size", "output_sizes")}
    other = make_augmenter("kornia", *make.values(), device)
    rows = case["rows"]
    wanted = other(case["faces"][rows].to(device), case["extra_masks"][rows].to(device), case["draws"])
    for name, ours, theirs, floor in zip(
        ("feed", "target", "masks"),
        results["whole"],
        (wanted.feed, wanted.targets[0], wanted.masks[0]),
        (70, 70, 100),  # a rounding to quarter levels is 71 dB at worst, faces without it lift the mean
    ):
        assert ours.shape == tuple(theirs.shape)
        at_least(f"{name} of the two device backends, dB", psnr(ours, theirs.double().cpu().numpy() * 255), floor)


@pytest.mark.long
@triton
def test_floats_in_give_what_their_bytes_give(results):
    for ours, of_bytes in zip(results["float"], results["small"]):
        np.testing.assert_array_equal(ours, of_bytes)


@pytest.mark.long
@triton
def test_bf16_is_the_same_but_rounded(results, within):
    """A GPU rounds to the nearest, half a level; the interpreter cuts off, a whole one."""
    for ours, of_float in zip(results["bf16"], results["small"]):
        within("bf16, levels", np.abs(ours - of_float).max(), 1.0)


def test_amounts_hold_what_the_draws_say():
    draws = draw(3, np.arange(5), 1, 96)
    packed = amounts.pack_amounts(draws)
    assert packed.shape == (5, amounts.NODES + 50) and packed.dtype == np.float32
    np.testing.assert_allclose(packed[:, amounts.MATRIX : amounts.TILE].reshape(-1, 2, 3), draws.inverse(), atol=1e-5)
    np.testing.assert_allclose(packed[:, amounts.NODES :].reshape(-1, 5, 5, 2), draws.control_grid(), atol=1e-5)
    assert (packed[:, amounts.GRID] == draws.clahe_grid).all() and packed[:, amounts.RECOLORED].all()
    assert (packed[:, amounts.TILE] == np.ceil(96 / np.maximum(draws.clahe_grid, 1))).all()
    assert (packed[:, amounts.PER_TILE] == np.float32(1) / packed[:, amounts.TILE]).all()
    assert not amounts.pack_amounts(Draws.identity(2, 64))[:, amounts.RECOLORED].any()


def test_levels_are_those_of_opencv():
    """Each of 4,096 colours, and all greys."""
    rng = np.random.default_rng(0)
    colors = np.concatenate([rng.integers(0, 256, (4096, 3)), np.repeat(np.arange(256)[:, None], 3, 1)])
    steps = amounts.steps_of_quarters()[colors * 4]
    luminance = (steps @ [296, 2929, 871] + 2048) >> 12
    theirs = cv2.cvtColor(colors[None].astype(np.uint8), cv2.COLOR_BGR2LAB)[0, :, 0]
    np.testing.assert_array_equal(amounts.level_bytes()[luminance], theirs)
