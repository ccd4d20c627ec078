"""What only a GPU can show; run there with --device cuda, skipped elsewhere.

The rest of the suite runs on a GPU too, with the same switch.
"""

from __future__ import annotations

from contextlib import closing

import cv2
import numpy as np
import pytest
import torch

from pipelines.collate import Collate
from pipelines.dataset import TrainSet
from pipelines.decode import dali_version
from pipelines.feed import DecodeFeed, DeviceFeed, HostFeed, PreparedFeed
from pipelines.loader import TrainLoader
from pipelines.prepare import prepare
from pipelines.run.build import make_augmenter
from pipelines.sampler import Sampler
from pipelines.sides import scan_side
from pipelines.store import StoreSpec
from swapfast.augment.constants import CLIP_LIMIT
from swapfast.augment.device import clahe
from swapfast.augment.host import color as host_color
from swapfast.batch import MASK_NAMES
from swapfast.config import AugmentationConfig, CropConfig, MaskConfig
from swapfast.faces.image import read_image


@pytest.fixture(autouse=True)
def on_gpu(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU (--device cuda)")


@pytest.fixture(scope="module")
def prepared(made_faces, tmp_path_factory):
    """Both sides as JPEGs at 128 px."""
    out = tmp_path_factory.mktemp("prepared")
    for side in "ab":
        prepare(made_faces / side, out / side, "jpeg", 128, CropConfig(), MaskConfig())
    return [TrainSet.from_folder(side.upper(), out / side, 128) for side in "ab"]


def _loader(sets, device, feed, seed=3, batch=8) -> TrainLoader:
    size = sets[0].spec.size
    sampler = Sampler(seed, tuple(map(len, sets)), batch)
    collate = Collate(make_augmenter("kornia", size, size, (size,), device), True, MASK_NAMES, "bgr", device)
    return TrainLoader(feed(sets, sampler), sampler, collate, AugmentationConfig(), size)


def _made_alone(sets, device, feed, step):
    """A step's batch by a loader that made no other. Its threads and DALI's end with it."""
    with closing(_loader(sets, device, feed)) as loader:
        return loader.batch(step)


def _checksums(batch) -> list[float]:
    parts = [*batch.inputs, *batch.targets, *batch.meta.mask_face]
    return torch.stack([part.double().sum() for part in parts]).tolist()


def test_a_gpu_decodes_jpegs_nearly_as_the_cpu_does(prepared, device, within, at_least):
    if dali_version() is None:
        pytest.skip("DALI is not installed here")
    sampler = Sampler(1, tuple(map(len, prepared)), 8)
    with (
        closing(PreparedFeed(DecodeFeed(prepared, sampler, device_id=device.index or 0))) as on_device,
        closing(PreparedFeed(DecodeFeed(prepared, sampler))) as on_host,
    ):
        for step in range(3):
            ids = sampler.ids(step)
            for ours, theirs in zip(on_device(step, ids)[:2], on_host(step, ids)[:2]):
                assert ours.is_cuda and not theirs.is_cuda
                apart = (ours.cpu().int() - theirs.int()).abs()
                within(f"step {step}: mixed against cpu, levels, 99.9 of 100", np.percentile(apart, 99.9), 4)
                at_least(f"step {step}: dB", float(-10 * torch.log10(apart.float().square().mean() / 255**2)), 45)


def test_a_damaged_jpeg_does_not_end_the_run(made_faces, tmp_path, device):
    for side in "ab":
        prepare(made_faces / side, tmp_path / side, "jpeg", 128, CropConfig(), MaskConfig())
    shard = tmp_path / "a" / "shard-00000.tar"
    data = bytearray(shard.read_bytes())
    data[2000:2200] = bytes(200)
    shard.write_bytes(data)
    spec = StoreSpec(128, CropConfig(), MaskConfig(), MASK_NAMES)
    sets = [
        TrainSet.from_source(side.upper(), scan_side(tmp_path / side, "extended", False), spec, None) for side in "ab"
    ]
    told: list[str] = []

    def feed(sets, sampler):
        return PreparedFeed(DecodeFeed(sets, sampler, device_id=device.index or 0, warn=told.append))

    with closing(_loader(sets, device, feed)) as loader:
        batches = [loader.batch(step) for step in range(4)]
    assert len(told) == 1 and "damaged (checksum)" in told[0]
    assert all(torch.isfinite(batch.inputs[0]).all() for batch in batches)


@pytest.mark.parametrize("kind", ["host", "gpu", "prepared"])
def test_buffers_live_as_long_as_who_reads_them(prepared, device, kind):
    """A slow reader, tensors dropped at once, the allocator busy: every batch is what it is when made alone."""

    def feed(sets, sampler):
        if kind == "host":
            return HostFeed(sets, device)
        if kind == "gpu":
            return DeviceFeed(sets, device)
        return PreparedFeed(DecodeFeed(sets, sampler, device_id=device.index or 0))

    alone = [_checksums(_made_alone(prepared, device, feed, step)) for step in range(24)]
    busy = torch.randn(2048, 2048, device=device)
    seen = []
    with closing(_loader(prepared, device, feed)) as loader, closing(iter(loader)) as batches:
        for _ in range(24):
            batch = next(batches)
            for _ in range(8):
                busy = torch.nn.functional.normalize(busy @ busy)  # the stream is far behind the host
            parts = [*batch.inputs, *batch.targets, *batch.meta.mask_face]
            seen.append(torch.stack([part.double().sum() for part in parts]))
            del batch, parts
            torch.empty(4 << 20, device=device).fill_(7)  # would overwrite memory that was given back too early
    assert [one.tolist() for one in seen] == alone


def test_clahe_is_the_cpus_to_one_level(made_faces, device, within):
    paths = sorted((made_faces / "a").glob("*.png"))
    for size in (64, 128, 256):
        gray = [cv2.resize(read_image(path), (size, size))[..., 1] for path in paths]
        grids = np.resize([2, 3, 4, 6, 8], len(gray)).tolist()
        levels = torch.from_numpy(np.stack(gray)).to(device, torch.float32)
        equalized = [
            clahe.equalize(image[None], grid, clahe.bin_limit(grid, size, CLIP_LIMIT))
            for image, grid in zip(levels, grids)
        ]
        ours = torch.cat(equalized).cpu().numpy()
        theirs = np.stack([host_color.equalize(image.copy(), grid) for image, grid in zip(gray, grids)])
        apart = np.abs(ours - theirs.astype(np.float32))
        within(f"{size} px: levels", apart.max(), 1)
        within(f"{size} px: share of px that differ", (apart > 0).mean(), 1e-4)


def test_the_device_backend_on_a_gpu_is_that_on_the_cpu(prepared, device, at_least):
    cpu = torch.device("cpu")
    on_gpu = _made_alone(prepared, device, lambda sets, sampler: HostFeed(sets, device), 2)
    on_cpu = _made_alone(prepared, cpu, lambda sets, sampler: HostFeed(sets), 2)
    for name, one, two in (
        ("targets", on_gpu.targets[0], on_cpu.targets[0]),
        ("feeds", torch.cat(on_gpu.inputs), torch.cat(on_cpu.inputs)),
        ("face masks", on_gpu.meta.mask_face[0], on_cpu.meta.mask_face[0]),
    ):
        at_least(f"{name}, dB", float(-10 * torch.log10((one.cpu() - two).square().mean() + 1e-12)), 60)


def test_a_step_of_the_loader_does_not_wait_for_the_gpu(prepared, device):
    with closing(_loader(prepared, device, lambda sets, sampler: DeviceFeed(sets, device))) as loader:
        for step in range(3):
            loader.batch(step)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            batches = [loader.batch(step) for step in range(3, 6)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(batch.inputs[0]).all() for batch in batches)
