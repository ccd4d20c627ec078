"""What the host and the device say to each other in a step, seen without a GPU.

Torch's meta device has shapes and no values. Whatever reads one raises, where it would make the host wait for a GPU;
so does most of what takes tensors of two devices, and the rest is watched.
"""

from __future__ import annotations

import contextlib
import importlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.build import make_augmenter
from pipelines.collate import Collate
from pipelines.dataset import TrainSet
from pipelines.feed import DeviceFeed
from pipelines.loader import TrainLoader
from pipelines.sampler import Sampler
from swapfast.batch import BatchMeta
from swapfast.config import AugmentationConfig, OptimizerConfig
from swapfast.faces.synthetic import synthesize
from swapfast.losses import LossCollator
from swapfast.losses.registry import LOSSES
from swapfast.models.tiny import tiny
from swapfast.training.optimizer import Optimizer
from swapfast.training.trainer import Trainer, step_values

META = torch.device("meta")
MASKS = ("face", "eye", "mouth")
FACES = 3


class Watch(TorchDispatchMode):
    """``copies``: operations that send something to the device. ``mixed``: those that take tensors of both."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []
        self.mixed: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        # A scalar of the host travels with the kernel that takes it.
        taken = {t.device.type for t in _tensors((args, kwargs)) if t.ndim or t.is_meta}
        made = {t.device.type for t in _tensors(out)}
        if taken == {"cpu"} and made == {"meta"}:
            self.copies.append(str(function))
        if taken == {"cpu", "meta"}:
            self.mixed.append(str(function))
        return out


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.fixture(autouse=True)
def meta_is_supported(monkeypatch):
    """Neither autocast nor the fused optimizers know the meta device by name, though nothing else is in their way."""
    monkeypatch.setattr(torch, "autocast", lambda *_args, **_kwargs: contextlib.nullcontext())
    name = "_get_fused_kernels_supported_devices"
    for module in ("torch.utils._foreach_utils", "torch.optim.adam", "torch.optim.optimizer"):
        module = importlib.import_module(module)
        if hasattr(module, name):
            monkeypatch.setattr(module, name, lambda: ["cuda", "cpu", "meta"])


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> list[TrainSet]:
    out = tmp_path_factory.mktemp("device_path") / "faces"
    synthesize(out, faces=4, size=96, pairs=0, seed=4)
    return [TrainSet.from_folder(side.upper(), out / side, 64) for side in "ab"]


def _loader(sets) -> TrainLoader:
    sampler = Sampler(1, tuple(map(len, sets)), FACES)
    collate = Collate(make_augmenter("device", 64, 64, (64,), META), True, MASKS, "bgr", META)
    return TrainLoader(DeviceFeed(sets, META), sampler, collate, AugmentationConfig(), 64)


def test_the_watch_sees_what_it_is_for():
    with Watch() as watch:
        images, kernel = torch.empty(1, 3, 8, 8, device=META), torch.zeros(2, 3, 3, 3)
        torch.nn.functional.conv2d(images, kernel)
        torch.zeros(3).to(META)
        images * 2 + torch.tensor(1.0)
        with pytest.raises(RuntimeError, match="item"):
            bool(images.sum() > 0)
    assert watch.mixed == ["aten.convolution.default"] and watch.copies == ["aten._to_copy.default"]


def test_a_batch_takes_two_copies_and_no_answer(sets):
    """Which faces, and the amounts by which they are augmented."""
    loader = _loader(sets)
    loader.batch(0)  # tables are made and sent once
    for step in (1, 2):
        with Watch() as watch:
            batch = loader.batch(step)
        assert batch.inputs[0].shape == (FACES, 3, 64, 64) and batch.inputs[0].is_meta
        assert watch.copies == ["aten._to_copy.default"] * 2 and watch.mixed == []


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("lpips")])
def test_a_loss_keeps_its_tables_on_the_device(name):
    size = 256 if name == "ms_ssim" else 64
    loss = LossCollator([name], [1.0], "bgr", True, 3, 2, size, "mse")
    masks = [torch.empty(FACES, 2, 1, size, size, device=META)]
    for is_first in (True, False):
        predicted = [torch.empty(FACES, n, size, size, device=META, requires_grad=True) for n in (3, 1)]
        with Watch() as watch:
            target = torch.empty(FACES, 3, size, size, device=META)
            loss([target], predicted, BatchMeta(masks, masks, masks)[0]).total.backward()
        assert all(tensor.grad.is_meta for tensor in predicted)
        assert watch.mixed == [] and (is_first or watch.copies == [])


@pytest.mark.parametrize(
    ("precision", "method"),  # autoclip's history begins with values
    [("fp32", "none"), ("fp16", "none"), ("fp16", "global_norm"), ("fp16", "norm"), ("fp16", "value")],
)
def test_a_step_sends_nothing_and_asks_for_nothing(sets, precision, method):
    """From the batch to the scalars that wait for the next report."""
    model = tiny().to(META)
    config = OptimizerConfig(gradient_clipping=method)
    optimizer = Optimizer(model, config, mixed_precision=precision == "fp16", warmup_steps=3)
    loader = _loader(sets)
    batches = [loader.batch(step) for step in range(3)]
    loss = LossCollator(["ssim", "mse"], [1.0, 1.0], "bgr", True, 3, 2, 64)
    trainer = Trainer(model, loss, optimizer, batches, precision=precision)
    trainer.train_one_batch()
    for _ in batches[1:]:
        with Watch() as watch:
            values = step_values(trainer.train_one_batch()) | optimizer.report
        assert all(value.is_meta for value in values.values())
        assert watch.copies == watch.mixed == []
    assert trainer.step == 3 and np.isfinite(optimizer.learning_rate)
