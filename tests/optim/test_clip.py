"""Clipping against faceswap's numbers and against numpy's percentiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from swapfast.config import OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.models.tiny import tiny
from swapfast.optim.clip import GradClip, NormHistory
from swapfast.optim.optimizer import Optimizer

CASES = {
    "autoclip_1": ("autoclip", 1.0, 10000),
    "autoclip_2.5_hist5": ("autoclip", 2.5, 5),
    "autoclip_5": ("autoclip", 5.0, 10000),
    "global_norm_1": ("global_norm", 1.0, 10000),
    "norm_0.5": ("norm", 0.5, 10000),
    "value_0.1": ("value", 0.1, 10000),
}


def _weights(device, arrays):
    weights = [torch.nn.Parameter(torch.zeros(a.shape, device=device)) for a in arrays]
    for weight, gradient in zip(weights, arrays):
        weight.grad = torch.tensor(gradient, device=device)
    return weights


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_every_method_clips_as_the_peer(case, golden, device, within):
    stored = golden("grad_clip")
    method, value, history = CASES[case]
    clip = GradClip(method, value, history)
    clip.to(device)
    worst = 0.0
    for step in range(12):
        weights = _weights(device, [stored[f"grad_p{i}"][step] for i in range(3)])
        clip(weights)
        for i, weight in enumerate(weights):
            expected = stored[f"{case}_p{i}"][step]
            worst = max(worst, np.abs(weight.grad.cpu().numpy() - expected).max() / np.abs(expected).max())
    within(case, worst, 1e-6)


@pytest.mark.golden
def test_a_broken_norm_is_neither_remembered_nor_clipped(golden, device, within):
    """The third step of four is infinite."""
    stored = golden("grad_clip")
    clip = GradClip("autoclip", 1.0)
    clip.to(device)
    for step in range(4):
        arrays = [stored[f"grad_p{i}"][step] for i in range(3)]
        if step == 2:
            arrays[0] = np.full_like(arrays[0], np.inf)
        weights = _weights(device, arrays)
        clip(weights)
        if step == 2:
            assert all(torch.equal(w.grad.cpu(), torch.tensor(a)) for w, a in zip(weights, arrays))
    norms, peers = clip.history.newest().cpu().double().numpy(), stored["autoclip_history_after_inf_step"]
    assert len(norms) == len(peers) == 3
    within("norms kept", np.abs(norms / peers - 1).max(), 1e-6)


@pytest.mark.long
@pytest.mark.parametrize("length", [0, 1, 5, 64])
@pytest.mark.parametrize("percent", [0.0, 10.0, 33.0, 100.0])
def test_percentiles_are_numpys(length, percent, device, within):
    """Of the newest norms; 0 keeps all, past the first enlargement."""
    values = np.random.default_rng(7).lognormal(size=1100 if length == 0 else 150).astype(np.float32)
    values[::10] = values[5]  # equal ones, and broken ones between
    values[3::25] = np.inf
    history, norms, worst = NormHistory(length, device), [], 0.0
    for calls, value in enumerate(values, 1):
        history.add(torch.tensor(value, device=device), calls)
        norms += [value] if np.isfinite(value) else []
        if calls % 37 == 0 or calls < 8:
            expected = np.percentile(np.array(norms[-length:], np.float64), percent)
            worst = max(worst, abs(history.percentile(percent).item() / expected - 1))
    within(f"length {length}, {percent:g} %", worst, 1e-6)
    assert len(history) == len(norms[-length:])


def test_a_history_goes_on_where_it_was(device):
    """Also one that has wrapped, and into one of another length: the newest norms are kept."""
    history, restored = NormHistory(8, device), NormHistory(8, device)
    for n in range(1, 21):
        history.add(torch.tensor(float(n * 7 % 19), device=device), n)
        if n == 13:
            restored.load_state_dict(history.state_dict())
        elif n > 13:
            restored.add(torch.tensor(float(n * 7 % 19), device=device), n)
    assert torch.equal(history.newest(), restored.newest()) and torch.equal(history._sorted, restored._sorted)
    for length in (3, 30, 0):
        resized = NormHistory(length, device)
        resized.load_state_dict(history.state_dict())
        assert torch.equal(resized.newest(), history.newest()[-min(length or 8, 8) :])


@pytest.mark.long
@pytest.mark.parametrize("method", ["none", "autoclip", "global_norm", "norm", "value"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_step_asks_the_host_for_nothing(optimizer, method):
    """Tensors without values: whoever asks for one raises. The others ask once, to leave a broken step out."""

    def step(name):
        with FakeTensorMode():
            model = tiny()
            config = OptimizerConfig(optimizer=name, gradient_clipping=method, autoclip_history=0)
            optimizer = Optimizer(model, config, mixed_precision=True, warmup_steps=3)
            for _ in range(2):
                optimizer.backward(sum(out.mean() for side in model([torch.zeros(2, 3, 64, 64)] * 2) for out in side))
                optimizer.step()

    step(optimizer)
    with pytest.raises(Exception, match=r"item|data-dependent|Bool|_local_scalar_dense"):
        step("adamax")


@pytest.mark.parametrize("method", ["none", "autoclip", "global_norm", "norm", "value"])
def test_a_step_does_not_wait_for_a_gpu(method, device):
    """As torch itself sees it; float16 and a checkpoint's worth of steps before."""
    if device.type != "cuda":
        pytest.skip("torch watches synchronisation on a GPU only")
    model = tiny().to(device)
    optimizer = Optimizer(model, OptimizerConfig(gradient_clipping=method), mixed_precision=True, warmup_steps=3)
    images = [torch.zeros(2, 3, 64, 64, device=device)] * 2
    for step in range(4):
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            optimizer.backward(sum(out.mean() for side in model(images) for out in side))
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("autoklip", 1.0), r"unknown gradient clipping \(--clip\) 'autoklip'. Did you mean 'autoclip'\?.*global_norm"),
        (("autoclip", 10.5), r"--clip-value 10.5: must lie within 0 and 10"),
        (("autoclip", -1.0), r"--clip-value -1"),
        (("norm", 0.0), r"--clip-value 0 with --clip norm: nothing would ever move"),
        (("autoclip", 1.0, 100_001), r"--autoclip-history 100001: must lie within 0 and 100000"),
        (("autoclip", 1.0, -1), r"--autoclip-history -1"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said):
    with pytest.raises(SwapfastError, match=said):
        GradClip(*arguments)
