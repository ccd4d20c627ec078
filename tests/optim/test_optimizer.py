"""Optimizers against faceswap's trajectories and float64; warm-up, accumulation, broken steps, state."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from swapfast.config import DEEPFACELABS_OPTIMIZERS, OPTIMIZER_NAMES, OptimizerConfig
from swapfast.errors import SwapfastError
from swapfast.optim.adabelief import AdaBelief, rectification
from swapfast.optim.lion import Lion
from swapfast.optim.loss_scale import FIRST, GROWTH_INTERVAL, LossScaler
from swapfast.optim.lr_warmup import WarmupScheduler
from swapfast.optim.optimizer import OPTIMIZERS, Optimizer, get_parameter_group_ids

WEIGHTS = {"p0": (3, 4), "bias": (5,), "p2": (2, 2, 3)}  # as in the golden file, whose p1 is a bias


class Toy(nn.Module):
    """Weights without a network: a loss that is linear in them has whatever gradient one likes."""

    def __init__(self, device, initial=None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for i, (name, shape) in enumerate(WEIGHTS.items()):
            start = torch.randn(shape, generator=generator) if initial is None else torch.tensor(initial[i])
            self.register_parameter(name, nn.Parameter(start.to(device)))

    def loss(self, gradients) -> torch.Tensor:
        return sum((p * torch.as_tensor(g, device=p.device)).sum() for p, g in zip(self.parameters(), gradients))


def _gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) for shape in WEIGHTS.values()]


def _train(model, optimizer, steps, change=lambda step, gradients: gradients) -> None:
    for step in steps:
        optimizer.backward(model.loss(change(step, _gradients(step))))
        optimizer.step()


def _same(toy: Toy, other_toy: Toy) -> bool:
    return all(torch.equal(a, b) for a, b in zip(toy.parameters(), other_toy.parameters()))


def _golden_config(case: dict) -> OptimizerConfig:
    names = ("optimizer", "learning_rate", "epsilon_exponent", "gradient_clipping", "clipping_value", "weight_decay")
    renamed = {"beta_1": case["ada_beta_1"], "beta_2": case["ada_beta_2"], "amsgrad": case["ada_amsgrad"]}
    return OptimizerConfig(
        **{name: case[name] for name in names}, **renamed, gradient_accumulation=case["gradient_accumulation"]
    )


# Cases whose steps the peer's cache spoils from the 11th on; those named _fixed are computed without it.
SPOILT = ("adabelief", "adabelief_wd", "adabelief_betas", "adabelief_amsgrad")
# A float32 weight is rounded twice a step, by decay and by the step itself, and so is the peer's: each time by at most
# this share of it, or of 1 where it is smaller.
ROUNDING = 2.0**-24


def _peers_rectification_error(step: int, beta_2: float) -> float:
    """Return how far float32 may take the peer's rectification from the exact one, as a share of it.

    It leaves 5 of 2,000 at step 6: beta_2 is rounded in one of the two terms, and 1 - beta_2**step in the other.
    """
    longest = 2 / (1 - beta_2) - 1
    length = longest - 2 * step * beta_2**step / (1 - beta_2**step)
    if length < 5:
        return 0.0
    error = abs(2 / (1 - float(np.float32(beta_2))) - 1 - longest) + longest * ROUNDING / (1 - beta_2**step)
    return error * (1 / (length - 4) + 1 / (length - 2)) / 2


@pytest.mark.slow
@pytest.mark.golden
def test_every_trajectory_is_the_peers(golden, device, within):
    """Within what the arithmetic allows at each step, and so for any gradients, not only for the recorded ones."""
    stored = golden("optimizers")
    cases = json.loads((golden.folder / "manifest.json").read_text())["files"]["optimizers.npz"]["params"]["configs"]
    peers = set(OPTIMIZER_NAMES) - {*DEEPFACELABS_OPTIMIZERS, "muon"}
    assert len(cases) == 24 and {case["optimizer"] for case in cases.values()} == peers
    for name, case in cases.items():
        if name == "adam_warmup4":
            continue  # the peer's first step is at rate 0: see the next test
        model = Toy(device, [stored[f"init_p{i}"] for i in range(3)])
        optimizer = Optimizer(model, _golden_config(case))
        previous = [stored[f"init_p{i}"] for i in range(3)]
        allowed = [0.0, 0.0, 0.0]  # of each weight, as a share of it, or of 1 where it is smaller
        worst = 0.0
        for step in range(10 if name in SPOILT else case["steps"]):
            optimizer.backward(model.loss([stored[f"grad_p{i}"][step] for i in range(3)]))
            optimizer.step()
            peers_error = 0.0
            if case["optimizer"] == "adabelief":
                peers_error = _peers_rectification_error(step + 1, case["ada_beta_2"])
            for i, parameter in enumerate(model.parameters()):
                ours, expected = parameter.detach().cpu().numpy(), stored[f"{name}_p{i}"][step]
                allowed[i] = allowed[i] + 4 * ROUNDING + peers_error * np.abs(ours - previous[i])
                difference = np.abs(ours - expected) / np.maximum(np.abs(expected), 1)
                worst = max(worst, float((difference / allowed[i]).max()))
                previous[i] = ours.copy()
        within(f"{name}, of what rounding allows", worst, 1)


@pytest.mark.golden
def test_warm_up_is_the_peers_one_step_on(golden, device, within):
    stored, trajectory = golden("lr_warmup"), golden("optimizers")
    for steps in (1, 7, 10, 100):
        torch_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=5e-5)
        scheduler = WarmupScheduler(torch_optimizer, steps)
        rates = []
        for _ in stored[f"lr_{steps}"][1:]:
            rates.append(torch_optimizer.param_groups[0]["lr"])
            assert scheduler.get_lr() == rates[-1:]
            scheduler.step()
        within(f"{steps} steps", np.abs(np.array(rates) / stored[f"lr_{steps}"][1:] - 1).max(), 1e-12)
    model = Toy(device)
    optimizer = Optimizer(model, OptimizerConfig(learning_rate=1e-3), warmup_steps=4)
    for expected in trajectory["adam_warmup4_lr"][1:]:
        assert optimizer.learning_rate == pytest.approx(expected, rel=1e-12)
        _train(model, optimizer, [0])


def test_warm_up_goes_on_where_it_was():
    torch_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    assert WarmupScheduler(torch_optimizer, 8, last_epoch=4).get_lr() == [6 / 8]
    torch_optimizer.param_groups[0]["lr"] = 1.0
    assert WarmupScheduler(torch_optimizer, 0).get_lr() == [1.0]


def test_rates_in_tensors_are_written_in_place(within):
    """As fused optimizers on CUDA have them; fused Adam takes them on a CPU too."""
    numbers, tensors = Toy("cpu"), Toy("cpu")
    plain, there = (torch.optim.Adam(toy.parameters(), lr=0.5, fused=True) for toy in (numbers, tensors))
    schedules = WarmupScheduler(plain, 4), WarmupScheduler(there, 4, tensor_device="cpu")
    address = there.param_groups[0]["lr"].data_ptr()
    for step in range(7):
        if step == 5:
            for schedule in schedules:
                schedule.set_base(0.3)
        if step == 6:
            for schedule in schedules:
                schedule.go_to(1)
        rate = there.param_groups[0]["lr"]
        assert rate.data_ptr() == address and float(rate) == np.float32(plain.param_groups[0]["lr"])
        for toy, optimizer, schedule in zip((numbers, tensors), (plain, there), schedules):
            optimizer.zero_grad()
            toy.loss(_gradients(step)).backward()
            optimizer.step()
            schedule.step()
    apart = max((a - b).abs().max().item() for a, b in zip(numbers.parameters(), tensors.parameters()))
    # The rates are rounded to float32 once, and weights below 4 seven times on each side.
    within("weights", apart, 7 * (0.5 + 2 * 4) * ROUNDING)


def _adabelief_64(start, gradients, lr, betas, eps, decay, amsgrad):
    """The paper's algorithm 2 with RAdam's rectification, plainly, for one array."""
    weight, mean, variance, largest = start.astype(np.float64), 0.0, 0.0, 0.0
    (b1, b2), longest = betas, 2 / (1 - betas[1]) - 1
    for t, gradient in enumerate(gradients, 1):
        weight = weight * (1 - lr * decay)
        mean = b1 * mean + (1 - b1) * gradient
        variance = b2 * variance + (1 - b2) * (gradient - mean) ** 2 + eps
        largest = np.maximum(largest, variance)
        length = longest - 2 * t * b2**t / (1 - b2**t)
        if length < 5:
            weight = weight - lr * mean / (1 - b1**t)
            continue
        r = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
        root = np.sqrt(largest if amsgrad else variance) + eps
        weight = weight - lr * r * mean / (1 - b1**t) * math.sqrt(1 - b2**t) / root
    return weight


def _lion_64(start, gradients, lr, betas, decay):
    weight, mean = start.astype(np.float64), 0.0
    for gradient in gradients:
        direction = np.sign(betas[0] * mean + (1 - betas[0]) * gradient)
        weight = weight * (1 - lr * decay) - lr * direction
        mean = betas[1] * mean + (1 - betas[1]) * gradient
    return weight


@pytest.mark.slow
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_ours_are_what_their_papers_say(amsgrad, decay, betas, within):
    """100 steps in float64, gradients that shrink so that amsgrad matters."""
    rng = np.random.default_rng(4)
    start, gradients = rng.normal(size=(4, 3)), rng.normal(size=(100, 4, 3)) * np.linspace(2, 0.1, 100)[:, None, None]

    def run(make):
        weight = torch.nn.Parameter(torch.tensor(start))
        optimizer = make([weight])
        for gradient in gradients:
            weight.grad = torch.tensor(gradient)
            optimizer.step()
        return weight.detach().numpy()

    eps = 1e-12
    ours = run(lambda p: AdaBelief(p, lr=1e-2, betas=betas, eps=eps, weight_decay=decay, amsgrad=amsgrad))
    within("adabelief", np.abs(ours - _adabelief_64(start, gradients, 1e-2, betas, eps, decay, amsgrad)).max(), 1e-11)
    plain = _adabelief_64(start, gradients, 1e-2, betas, eps, decay, not amsgrad)
    assert betas[1] > 0.9 or np.abs(ours - plain).max() > 1e-4, "amsgrad matters where the variance forgets"
    ours = run(lambda p: Lion(p, lr=1e-2, betas=betas, weight_decay=decay))
    within("lion", np.abs(ours - _lion_64(start, gradients, 1e-2, betas, decay)).max(), 1e-12)


def test_rectification_begins_when_the_variance_can_be_trusted():
    trusted = [rectification(step, 0.999) for step in range(1, 40)]
    assert trusted[:4] == [None] * 4 and all(later > 0 for later in trusted[5:])
    assert rectification(100_000, 0.999) == pytest.approx(1.0, abs=1e-3)


def test_the_names_are_those_of_the_config():
    assert sorted(OPTIMIZERS) == sorted(OPTIMIZER_NAMES)


def test_only_kernels_decay(device):
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.LayerNorm([3, 1, 1]), nn.Linear(3, 2))
    ids = get_parameter_group_ids(model.named_parameters())
    assert ids == {0: "decay", 1: "no_decay", 2: "decay", 3: "no_decay", 4: "decay", 5: "no_decay"}
    bare = get_parameter_group_ids(list(model.parameters()))
    assert bare == ids | {3: "decay"}, "LayerNorm's bias has three dimensions, and here no name"
    for name in OPTIMIZER_NAMES:
        toy = Toy(device)
        weights = [p.detach().clone() for p in toy.parameters()]
        optimizer = Optimizer(toy, OptimizerConfig(optimizer=name, learning_rate=1e-2, weight_decay=0.5))
        optimizer.backward(toy.loss([torch.zeros(shape) for shape in WEIGHTS.values()]))
        optimizer.step()
        changed = [not torch.equal(p, old) for p, old in zip(toy.parameters(), weights)]
        assert changed == [True, False, True], name


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
@pytest.mark.parametrize("method", ["none", "autoclip", "norm"])
def test_state_goes_out_and_in_to_the_bit(name, method, device):
    """Through safetensors, at every point of a run with warm-up, accumulation and a scaled loss."""
    config = OptimizerConfig(
        optimizer=name,
        learning_rate=1e-2,
        gradient_clipping=method,
        autoclip_history=4,
        gradient_accumulation=3,
        weight_decay=0.01,
        amsgrad=True,
    )
    options = {"mixed_precision": True, "warmup_steps": 5}
    for stop in (0, 1, 2, 3, 7, 15):
        straight_toy, first, second = Toy(device), Toy(device), Toy(device)
        straight, stopped, resumed = (Optimizer(toy, config, **options) for toy in (straight_toy, first, second))
        _train(straight_toy, straight, range(24))
        _train(first, stopped, range(stop))
        second.load_state_dict(first.state_dict())
        resumed.load_state_dict(load(save({k: v.cpu().contiguous() for k, v in stopped.state_dict().items()})))
        _train(second, resumed, range(stop, 24))
        assert _same(straight_toy, second), stop
        ours, theirs = straight.state_dict(), resumed.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value.cpu(), theirs[key].cpu()) for key, value in ours.items())


def _addresses(optimizer) -> dict[str, int]:
    """Where all lies that a step reads and writes beside weights and gradients."""
    state = {key: value for key, value in optimizer.state_dict().items() if key[0] != "@" and "waiting" not in key}
    history, scaler = optimizer._clip.history, optimizer._scaler
    state |= {"lost": optimizer._lost, "scale": scaler.scale, "good_steps": scaler._good_steps}
    state |= {"ring": history._ring, "sorted": history._sorted, "seen": history._seen}
    return {name: tensor.data_ptr() for name, tensor in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_state_stays_where_it_lies(name, device):
    """A CUDA graph goes on reading and writing there, whatever has been restored in between."""
    config = OptimizerConfig(
        optimizer=name, gradient_clipping="autoclip", autoclip_history=4, gradient_accumulation=2, amsgrad=True
    )
    toy = Toy(device)
    optimizer = Optimizer(toy, config, mixed_precision=True, warmup_steps=3)
    _train(toy, optimizer, range(2))
    addresses = _addresses(optimizer)
    _train(toy, optimizer, range(2, 7))  # the last of which waits for the rest of its step
    state = {key: value.clone() for key, value in optimizer.state_dict().items()}
    assert _addresses(optimizer) == addresses
    _train(toy, optimizer, range(7, 12))
    optimizer.load_state_dict(state)
    assert _addresses(optimizer) == addresses
    restored = optimizer.state_dict()
    assert restored.keys() == state.keys() and all(torch.equal(restored[key], value) for key, value in state.items())
    optimizer.roll_back(state)
    _train(toy, optimizer, range(3))
    optimizer.set_lr(1e-3)
    assert _addresses(optimizer) == addresses


def test_accumulated_gradients_are_a_mean(device, within):
    alone, many = Toy(device), Toy(device)
    config = {"optimizer": "rms-prop", "learning_rate": 1e-2}
    single = Optimizer(alone, OptimizerConfig(**config))
    several = Optimizer(many, OptimizerConfig(**config, gradient_accumulation=5))
    _train(many, several, range(5))
    assert len([key for key in several.state_dict() if key.endswith("waiting_grad")]) == 0
    single.backward(alone.loss([sum(parts) / 5 for parts in zip(*map(_gradients, range(5)))]))
    single.step()
    within("weights", max((a - b).abs().max().item() for a, b in zip(alone.parameters(), many.parameters())), 1e-6)


def test_waiting_gradients_of_another_accumulation_are_dropped(device):
    toy = Toy(device)
    three = Optimizer(toy, OptimizerConfig(gradient_accumulation=3))
    _train(toy, three, range(2))
    two = Optimizer(toy, OptimizerConfig(gradient_accumulation=2))
    two.load_state_dict(three.state_dict())
    assert "@collected" not in two.state_dict()


@pytest.mark.parametrize("precision_before, precision_after", [(True, False), (False, True)])
def test_waiting_gradients_are_what_they_were_in_another_precision(device, precision_before, precision_after, within):
    """A scaled loss makes gradients 65,536 times as large: not what the other half is added to."""
    stays, changes = Toy(device), Toy(device)
    config = OptimizerConfig(optimizer="rms-prop", learning_rate=1e-2, gradient_accumulation=2)
    kept_precision, old = Optimizer(stays, config, precision_before), Optimizer(changes, config, precision_before)
    _train(stays, kept_precision, range(4))
    _train(changes, old, range(3))
    new = Optimizer(changes, config, precision_after)
    state = {name: value.clone() for name, value in old.state_dict().items()}
    for parameter in changes.parameters():
        parameter.grad = None
    new.load_state_dict(state)
    _train(changes, new, [3])
    assert new.report["gradient/norm"] < 10
    within("weights", max((a - b).abs().max().item() for a, b in zip(stays.parameters(), changes.parameters())), 1e-6)


def test_what_the_host_reads_of_nadam_stays_there():
    """torch moves it with the rest when a state is loaded."""
    toy = Toy("cpu")
    optimizer = Optimizer(toy, OptimizerConfig(optimizer="nadam"))
    _train(toy, optimizer, [0])
    restored = Optimizer(Toy("cpu").to("meta"), OptimizerConfig(optimizer="nadam"))
    restored.load_state_dict(optimizer.state_dict())
    kinds = {
        name.rpartition(".")[2]: value.device.type for name, value in restored.state_dict().items() if "@" not in name
    }
    assert kinds == {"step": "cpu", "mu_product": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_a_model_without_a_weight_to_train_is_refused():
    with pytest.raises(SwapfastError, match="no weight left to train"):
        Optimizer(Toy("cpu").requires_grad_(False), OptimizerConfig())


def test_a_norm_that_overflows_names_the_largest_gradient(device):
    model = torch.nn.Linear(1, 1).to(device)
    optimizer = Optimizer(model, OptimizerConfig())
    optimizer.backward((1.2e19 * model.weight + 1.5e19 * model.bias).sum())  # of which the squares' sum is too large
    optimizer.step()
    assert optimizer.report["nonfinite/gradient"]
    assert optimizer.parameter_name(int(optimizer.report["nonfinite/parameter"])) == "bias"


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
@pytest.mark.parametrize("part", ["loss", "gradient"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_broken_step_never_reaches_the_weights(name, part, scaled, device):
    """Weights, averages and counters go on as if it had not been; so does the history of norms."""
    config = OptimizerConfig(optimizer=name, learning_rate=1e-2, gradient_clipping="autoclip", autoclip_history=3)
    hurt, well = Toy(device), Toy(device)
    broken, sound = Optimizer(hurt, config, scaled), Optimizer(well, config, scaled)
    if scaled:
        for optimizer in (broken, sound):
            optimizer._scaler.scale.fill_(1.0)  # where float16's overflows are not to be blamed
    for step in range(6):
        _train(well, sound, [step])
        _train(hurt, broken, [step])
        assert not broken.report["nonfinite/loss"] and not broken.report["nonfinite/gradient"]
        if step in (0, 3):
            weights = [p.detach().clone() for p in hurt.parameters()]
            loss = hurt.loss(_gradients(9))
            if part == "loss":
                loss = loss + float("inf")  # whose gradient is finite
            else:
                handle = hurt.p2.register_hook(lambda g: torch.full_like(g, float("nan")))
            broken.backward(loss)
            assert bool(broken.report["nonfinite/loss"]) == (part == "loss")
            broken.step()
            assert bool(broken.report["nonfinite/gradient"]) == (part == "gradient")
            if part == "gradient":
                assert broken.parameter_name(int(broken.report["nonfinite/parameter"])) == "p2"
                handle.remove()
            assert all(torch.equal(p, old) for p, old in zip(hurt.parameters(), weights))
    assert _same(hurt, well)
    ours, theirs = broken.state_dict(), sound.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert key.startswith(("@steps", "@scaler")) or torch.equal(ours[key], theirs[key]), key


def test_one_broken_loss_of_several_spoils_their_step(device):
    toy = Toy(device)
    optimizer = Optimizer(toy, OptimizerConfig(gradient_accumulation=2))
    weights = [p.detach().clone() for p in toy.parameters()]
    optimizer.backward(toy.loss(_gradients(0)) + float("nan"))
    _train(toy, optimizer, [1])
    assert all(torch.equal(p, old) for p, old in zip(toy.parameters(), weights))
    assert not optimizer.report["nonfinite/gradient"], "said once, for the loss"
    assert optimizer.report["nonfinite/step"]
    _train(toy, optimizer, [2, 3])
    assert not torch.equal(toy.p0, weights[0])


def test_a_scaled_loss_makes_the_same_steps(device, within):
    """The scale is a power of two, so it goes out as it came in; an overflow halves it and is no breakage."""
    for method in ("none", "autoclip", "value"):
        plain, scaled = Toy(device), Toy(device)
        config = OptimizerConfig(learning_rate=1e-2, gradient_clipping=method)
        unscaled, with_scale = Optimizer(plain, config), Optimizer(scaled, config, mixed_precision=True)
        _train(plain, unscaled, range(8))
        _train(scaled, with_scale, range(4))
        with_scale.backward(scaled.loss([torch.full(shape, 1e35) for shape in WEIGHTS.values()]))
        with_scale.step()
        assert with_scale.state_dict()["@scaler.scale"] == FIRST / 2
        assert not with_scale.report["nonfinite/gradient"]
        _train(scaled, with_scale, range(4, 8))
        worst = max((a - b).abs().max().item() for a, b in zip(plain.parameters(), scaled.parameters()))
        within(method, worst, 1e-7)


@pytest.mark.slow
def test_the_scale_moves_as_torchs(device):
    """Overflows here and there over three growth intervals."""
    ours = LossScaler(device)
    theirs = torch.amp.GradScaler(device.type, init_scale=FIRST, growth_interval=GROWTH_INTERVAL)
    theirs.scale(torch.zeros((), device=device))
    weight = torch.zeros(1, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for step in range(3 * GROWTH_INTERVAL + 500):
        overflow = step in (5, 6, 700, 4000)
        weight.grad = torch.full_like(weight, torch.inf if overflow else 1.0)
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(overflow, device=device))
        if overflow or step % 499 == 0:
            assert ours.scale.item() == theirs.get_scale(), step
    assert ours.scale.item() == theirs.get_scale() == FIRST / 16 * 2**2


def test_the_rate_can_be_set_and_moved_to_a_device(device):
    toy = Toy(device)
    optimizer = Optimizer(toy, OptimizerConfig(learning_rate=1e-3, gradient_clipping="autoclip"), warmup_steps=4)
    _train(toy, optimizer, range(2))
    optimizer.set_lr(4e-3)
    assert optimizer.learning_rate == pytest.approx(3e-3) and optimizer.base_rate == 4e-3
    state = {key: value.clone() for key, value in optimizer.state_dict().items()}
    optimizer.to(device)
    assert all(torch.equal(value, optimizer.state_dict()[key]) for key, value in state.items())


def test_going_back_lowers_the_rate_until_another_is_asked_for(device):
    toy = Toy(device)
    optimizer = Optimizer(toy, OptimizerConfig(learning_rate=8e-3))
    _train(toy, optimizer, range(2))
    good = {key: value.clone() for key, value in optimizer.state_dict().items()}
    for rate in (4e-3, 2e-3):
        optimizer.roll_back(good)
        assert optimizer.learning_rate == rate
    state = optimizer.state_dict()
    for configured, rate in ((8e-3, 2e-3), (5e-3, 5e-3)):
        resumed = Optimizer(toy, OptimizerConfig(learning_rate=configured))
        resumed.load_state_dict(state)
        assert resumed.learning_rate == rate


@pytest.mark.parametrize("entry", ["p0.exp_avg", "bias.step", "@clip.seen", "@lost"])
def test_a_state_that_lacks_an_entry_is_refused(device, entry):
    config = OptimizerConfig(gradient_clipping="autoclip", gradient_accumulation=2)
    toy = Toy(device)
    optimizer = Optimizer(toy, config)
    _train(toy, optimizer, range(3))
    state = optimizer.state_dict()
    del state[entry]
    with pytest.raises(SwapfastError, match=f"the stored optimizer state lacks '{entry}'; restore a copy"):
        Optimizer(Toy(device), config).load_state_dict(state)


def test_what_cannot_be_is_refused(device):
    with pytest.raises(SwapfastError, match=r"unknown --optimizer 'adamm'. Did you mean 'adam\w*'\?.*lion.*rms-prop"):
        OptimizerConfig(optimizer="adamm")
    with pytest.raises(SwapfastError, match=r"--clip-value 0.0 with --clip norm: nothing would ever move"):
        OptimizerConfig(gradient_clipping="norm", clipping_value=0.0)
    with pytest.raises(SwapfastError, match="belongs to another model"):
        Optimizer(Toy(device), OptimizerConfig()).load_state_dict({"p0.exp_avg": torch.zeros(7, 7)})
