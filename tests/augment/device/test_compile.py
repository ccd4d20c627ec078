"""The device backend as one compiled function: no break in it, no new one between batches, the same pictures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from swapfast.augment.constants import CLIP_LIMIT
from swapfast.augment.device import clahe
from swapfast.augment.device.augmenter import DeviceAugmenter
from swapfast.augment.draws import Draws, draw
from swapfast.augment.host import color as host_color
from tests.augment.slow_references import mask_images, pictures

SIZE, N = 48, 3


def batch(device, seed: int = 0, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    faces = np.concatenate([pictures(n, SIZE, 3, seed), mask_images(n, 1, SIZE).transpose(0, 2, 3, 1)], axis=-1)
    return torch.from_numpy(faces).to(device), torch.from_numpy(mask_images(n, 2, SIZE, seed=3)).to(device)


def images(result) -> list[torch.Tensor]:
    return [result.feed, *result.targets]


@pytest.mark.slow
def test_eager_and_compiled_agree_and_nothing_is_compiled_twice(device, within):
    torch._dynamo.reset()
    counters.clear()
    eager, compiled = DeviceAugmenter(SIZE, 32, [24, SIZE]), DeviceAugmenter(SIZE, 32, [24, SIZE], compile=True)
    drawn = [draw(5, np.arange(N) + N * step, [0, 1, 0], SIZE) for step in range(4)]
    cases = {f"step {step}": (batch(device, step), d) for step, d in enumerate(drawn)}
    still = Draws.identity(N, SIZE)
    cases["nothing drawn"] = batch(device), still
    cases["CLAHE for all"] = batch(device), dataclasses.replace(still, clahe_grid=np.array([2, 3, 10]))
    cases["another clip limit"] = batch(device), dataclasses.replace(cases["CLAHE for all"][1], clip_limit=9.0)
    cases["CLAHE for none"] = batch(device), dataclasses.replace(drawn[0], clahe_grid=np.zeros(N, np.int64))
    with torch._dynamo.config.patch(error_on_recompile=True):
        results = {name: (eager(*pixels, d), compiled(*pixels, d)) for name, (pixels, d) in cases.items()}
        (faces, extra_masks), d = cases["step 0"]
        order = [2, 0, 1]
        turned = compiled(faces[order].contiguous(), extra_masks[order].contiguous(), d[order])
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]

    for name, (one, two) in results.items():
        equalized = torch.from_numpy(cases[name][1].clahe_grid > 0).to(device)
        plain, changed = [], []
        for a, b in zip(images(one), images(two)):
            assert b.dtype == a.dtype and b.is_contiguous(memory_format=torch.channels_last)
            plain.append((a - b)[~equalized].abs().flatten())
            changed.append((a - b)[equalized].abs().flatten())
        for a, b in zip(one.masks, two.masks):
            assert b.is_contiguous()
            plain.append((a - b).abs().flatten())
        within(f"{name}: without CLAHE", float(torch.cat(plain).max()), 1e-5)
        # Fused sums round otherwise. A lightness that lies between two levels, one px in tens of thousands, then goes
        # to the other one, and what its tile has to spare is spread over other bins: one level more or less there.
        changed = torch.cat(changed)
        if len(changed):
            within(f"{name}: with CLAHE, mean", float(changed.mean()), 5e-3)
            within(f"{name}: with CLAHE, worst", float(changed.max()), 0.06)
    for a, b in zip([*images(results["step 0"][1]), *results["step 0"][1].masks], [*images(turned), *turned.masks]):
        assert torch.equal(a[order], b), "a face has the same bits in any order"
    assert images(compiled(faces[:0], extra_masks[:0], d[:0]))[0].shape == (0, 3, 32, 32), "no faces need no compiler"
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_clahe_is_opencvs(device, within):
    """On whole levels, where nothing lies between two."""
    torch._dynamo.reset()
    lightness = np.ascontiguousarray(pictures(N, SIZE, 1)[..., 0])
    at, grids = torch.from_numpy(lightness).to(device).float(), np.array([2, 5, 4])
    limits = torch.from_numpy(clahe.bin_limits(grids, SIZE, CLIP_LIMIT).astype(np.int32)).to(device)
    tiles = torch.from_numpy(grids).to(device)
    clahe.equalize(at, tiles, limits, 5)  # makes the tables
    compiled = torch.compile(clahe.equalize, fullgraph=True, dynamic=False)
    expected = np.stack([host_color.equalize(plane, int(grid)) for plane, grid in zip(lightness, grids)])
    error = np.abs(compiled(at, tiles, limits, 5).cpu().numpy() - expected)
    within("levels", error.max(), 0 if device.type == "cpu" else 1)
    torch._dynamo.reset()
