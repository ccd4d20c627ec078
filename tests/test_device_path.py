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
from kornia.color import lab_to_rgb, rgb_to_lab
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.collate import Collate
from pipelines.dataset import TrainSet
from pipelines.feed import DeviceFeed
from pipelines.loader import TrainLoader
from pipelines.run.build import make_augmenter
from pipelines.sampler import Sampler
from swapfast.batch import MASK_NAMES, BatchMeta
from swapfast.config import AugmentationConfig, OptimizerConfig
from swapfast.losses import LossCollator
from swapfast.losses.registry import LOSSES
from swapfast.models.tiny import tiny
from swapfast.optim.optimizer import Optimizer
from swapfast.synthetic import synthesize
from swapfast.training.step_values import step_values
from swapfast.training.trainer import Trainer

META = torch.device("meta")
FACES = 3


class Watch:
    """``copies``: what sends something to the device. ``mixed``: operations that take tensors of both."""

    def __init__(self) -> None:
        self.copies: list[str] = []
        self.mixed: list[str] = []
        self._modes = contextlib.ExitStack()

    def __enter__(self) -> Watch:
        self._modes.enter_context(_Operations(self))
        self._modes.enter_context(_Calls(self))
        return self

    def __exit__(self, *error) -> None:
        self._modes.close()


class _Operations(TorchDispatchMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        operands = _tensors((args, kwargs))
        kinds = {t.device.type for t in operands}
        if kinds == {"cpu"} and {t.device.type for t in _tensors(out)} == {"meta"}:
            self.watch.copies.append(str(function))
        # A scalar of the host travels with the kernel that takes it.
        if {t.device.type for t in operands if t.ndim or t.is_meta} == {"cpu", "meta"}:
            self.watch.mixed.append(str(function))
        return out


class _Calls(TorchFunctionMode):
    """Numbers of Python that become tensors of the device, which operations no longer show."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        constructors = function in (torch.tensor, torch.as_tensor, torch.asarray) and out.is_meta
        indexed = function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].is_meta
        if constructors or (indexed and _holds_numbers(args[1])):
            self.watch.copies.append(function.__name__)
        return out


def _holds_numbers(index) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list | np.ndarray) for part in parts)


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
    collate = Collate(make_augmenter("kornia", 64, 64, (64,), META), True, MASK_NAMES, "bgr", META)
    return TrainLoader(DeviceFeed(sets, META), sampler, collate, AugmentationConfig(), 64)


def test_the_watch_sees_what_it_is_for():
    with Watch() as watch:
        images, kernel = torch.empty(1, 3, 8, 8, device=META), torch.zeros(2, 3, 3, 3)
        torch.nn.functional.conv2d(images, kernel)
        images * 2 + torch.tensor(1.0)
        with pytest.raises(RuntimeError, match="item"):
            bool(images.sum() > 0)
    assert watch.mixed == ["aten.convolution.default"] and watch.copies == []
    with Watch() as watch:
        torch.zeros(3).to(META)
        torch.tensor(1.0).to(META)
        torch.tensor(False, device=META)
        torch.as_tensor([1, 2], device=META)
        images[:, [0, 2]]
        images[[0]] = 1.0
    constructors = ["tensor", "as_tensor", "__getitem__", "__setitem__"]
    assert watch.mixed == [] and watch.copies == ["aten._to_copy.default"] * 2 + constructors


@pytest.mark.slow
def test_a_batch_takes_two_copies_and_no_answer(sets):
    """Which faces, and the amounts by which they are augmented."""
    loader = _loader(sets)
    loader.batch(0)  # tables are made and sent once
    for step in (1, 2):
        with Watch() as watch:
            batch = loader.batch(step)
        assert batch.inputs[0].shape == (FACES, 3, 64, 64) and batch.inputs[0].is_meta
        assert watch.copies == ["aten._to_copy.default"] * 2 and watch.mixed == []


def test_kornias_lab_would_wait():
    """Why ours stands in its place. Once this fails, kornia's own may do."""
    with Watch() as watch:
        lab_to_rgb(rgb_to_lab(torch.empty(FACES, 3, 64, 64, device=META)))
    assert watch.copies == ["tensor"] * 4


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert trainer.step == 3
