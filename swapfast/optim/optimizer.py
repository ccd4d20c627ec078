"""The optimizer: which way the weights move, how far, and when they must not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from swapfast.config import OptimizerConfig
from swapfast.errors import SwapfastError, unknown_name
from swapfast.optim.adabelief import AdaBelief
from swapfast.optim.clip import GradClip
from swapfast.optim.deepfacelab import EPSILON, RMS_DECAY, PlainAdaBelief
from swapfast.optim.lion import Lion
from swapfast.optim.loss_scale import LossScaler
from swapfast.optim.lr_dropout import LearningRateDropout
from swapfast.optim.lr_finder import LearningRateFinder, SearchTrainer
from swapfast.optim.lr_warmup import WarmupScheduler
from swapfast.optim.muon import Muon
from swapfast.optim.schedules import Decay, make_schedule
from swapfast.processes import SINGLE_PROCESS, Processes

Group = Literal["decay", "no_decay"]
ROLLBACK_FACTOR = 0.5  # of the learning rate, for each time a run went back to a checkpoint


def _betas(config: OptimizerConfig) -> dict:
    return {"lr": config.learning_rate, "betas": (config.beta_1, config.beta_2)}


def _usual(config: OptimizerConfig) -> dict:
    return {**_betas(config), "eps": 10.0**config.epsilon_exponent}


def _rms_prop(groups: list[dict], config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=config.learning_rate, eps=10.0**config.epsilon_exponent, foreach=True)


def _rms_prop_dfl(groups: list[dict], config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=config.learning_rate, alpha=RMS_DECAY, eps=EPSILON, foreach=True)


# Fused: one kernel for all weights, on the CPU too. torch has it for Adam and AdamW; foreach is a few kernels each.
# Weight decay is decoupled (of the weights, not of the gradient) for adamw, adabelief, lion and muon.
OPTIMIZERS: dict[str, Callable[[list[dict], OptimizerConfig], torch.optim.Optimizer]] = {
    "adabelief": lambda groups, c: AdaBelief(groups, **_usual(c), amsgrad=c.amsgrad),
    "adabelief-dfl": lambda groups, c: PlainAdaBelief(groups, **_betas(c)),
    "adam": lambda groups, c: torch.optim.Adam(groups, **_usual(c), amsgrad=c.amsgrad, fused=True),
    "adamax": lambda groups, c: torch.optim.Adamax(groups, **_usual(c), foreach=True),
    "adamw": lambda groups, c: torch.optim.AdamW(groups, **_usual(c), amsgrad=c.amsgrad, fused=True),
    "lion": lambda groups, c: Lion(groups, **_betas(c)),
    "muon": lambda groups, c: Muon(groups, **_usual(c)),
    "nadam": lambda groups, c: torch.optim.NAdam(groups, **_usual(c), foreach=True),
    "rms-prop": _rms_prop,
    "rms-prop-dfl": _rms_prop_dfl,
}


HOST_FREE = ("adam", "adamw", "muon")  # those that leave a broken step out on the device


class Phase(NamedTuple):
    """Where a batch stands among those of which the weights make one step."""

    is_first: bool
    is_last: bool


def get_parameter_group_ids(trainable_variables: Iterable[Parameter | tuple[str, Parameter]]) -> dict[int, Group]:
    """Return the group of each weight by its index: kernels decay, biases and other 1-D weights do not.

    trainable_variables: parameters, or pairs of name and parameter: a bias of more than one dimension, such as
        LayerNorm's, is known by its name only.
    """
    named = (item if isinstance(item, tuple) else ("", item) for item in trainable_variables)
    return {
        index: "decay" if parameter.ndim > 1 and not name.endswith("bias") else "no_decay"
        for index, (name, parameter) in enumerate(named)
    }


def _lacking(entry: str) -> SwapfastError:
    return SwapfastError(
        f"the stored optimizer state lacks {entry!r}; restore a copy of the checkpoint, or start a new "
        "model with --load-weights"
    )


def _grouped(parameter_of: dict[str, Parameter]) -> dict[Group, list[str]]:
    ids = get_parameter_group_ids(parameter_of.items())
    names = list(parameter_of)
    groups: dict[Group, list[str]] = {"decay": [], "no_decay": []}
    for index, group in ids.items():
        groups[group].append(names[index])
    return {group: members for group, members in groups.items() if members}


class Optimizer:
    """The chosen torch optimizer over all of a model's trainable weights, with what belongs to a step around it.

    A step whose loss or gradient is not finite never reaches the weights; ``report`` says so, on the device. Adam,
    AdamW and Muon find that out there. For the others the host looks once a step, and waits for a GPU to do so.

    mixed_precision: scale the loss for float16 (bfloat16 needs no help). warmup_steps: raise the rate linearly over
    so many steps of the weights. processes: those whose gradients the weights move by; when ``step`` is called they
    must be averaged. seed: of what ``lr_dropout`` draws. Make it after the model has been moved to its device.
    State goes in and out as a flat dict of tensors, so it can be stored without pickle: '<parameter>.<quantity>', and
    '@...' for what belongs to no parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        mixed_precision: bool = False,
        warmup_steps: int = 0,
        processes: Processes = SINGLE_PROCESS,
        seed: int = 0,
    ) -> None:
        if config.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer (--optimizer)", config.optimizer, OPTIMIZERS)
        parameter_of = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups = _grouped(parameter_of)
        if not groups:
            raise SwapfastError("the model has no weight left to train: freeze fewer of them (--freeze-weights)")
        decay = {"decay": config.weight_decay, "no_decay": 0.0}
        self._parameters = {name: parameter_of[name] for members in groups.values() for name in members}
        self._torch = OPTIMIZERS[config.optimizer](
            [
                {"params": [parameter_of[n] for n in names], "weight_decay": decay[group]}
                for group, names in groups.items()
            ],
            config,
        )
        self._device = next(iter(self._parameters.values())).device
        self._on_device = getattr(self._torch, "_step_supports_amp_scaling", False)  # torch's name for found_inf
        keeps_rate_there = self._on_device and self._device.type == "cuda"
        for settings in self._torch.param_groups if keeps_rate_there else ():
            settings["capturable"] = True  # their counters lie on the device already, being fused
        self.schedule = make_schedule(config)
        self._warmup = WarmupScheduler(
            self._torch,
            warmup_steps,
            tensor_device=self._device if keeps_rate_there else None,
            cycles=config.lr_dropout,
            schedule=self.schedule,
        )
        self._dropout = LearningRateDropout(seed) if config.lr_dropout else None
        self._scaler = LossScaler(self._device) if mixed_precision else None
        self._clip: GradClip | None = None
        if config.gradient_clipping != "none":
            self._clip = GradClip(config.gradient_clipping, config.clipping_value, config.autoclip_history)
            self._clip.to(self._device)
        self.accumulation = config.gradient_accumulation
        self.processes = processes
        self.report: dict[str, Tensor] = {}
        self.finder: LearningRateFinder | None = None  # of the last search
        self.is_searching = False  # whether a search for a learning rate is under way
        self.generation = 0  # goes up where tensors of the state were replaced and not written in place
        self.loads = 0  # of a state; each replaces the gradients that wait
        self.rollbacks = 0
        self._configured = config.learning_rate
        self._collected = 0  # losses whose gradients wait for the rest of their step
        # Whether one of them was not finite. torch.tensor(False) would wait for a GPU.
        self._lost = torch.zeros((), dtype=torch.bool, device=self._device)
        self._moved: list[str] = []  # names of the weights that had a gradient in the last step

    @property
    def learning_rate(self) -> float:
        """The step size of the next step, as warm-up and schedule have it."""
        return self._warmup.get_lr()[0]

    @property
    def base_rate(self) -> float:
        """The step size without warm-up and schedule."""
        return self._warmup.base_lrs[0]

    @property
    def steps(self) -> int:
        """Steps of the weights so far, with those that were left out."""
        return self._warmup.last_epoch

    def parameter_name(self, index: int) -> str:
        """Return the name of the weight that the report's 'nonfinite/parameter' means."""
        return self._moved[index] if index < len(self._moved) else "?"

    @property
    def completes_step(self) -> bool:
        """Whether the next loss is the last one that ``step`` waits for."""
        return self._collected + 1 >= self.accumulation

    @property
    def phase(self) -> Phase:
        """Where the next loss stands among those that are accumulated."""
        return Phase(self._collected == 0, self.completes_step)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss`` (a scalar) to the weights', as its share of a mean over the accumulation."""
        self.add_gradients(loss)
        self._collected += 1

    def step(self) -> None:
        """Move the weights and clear the gradients, if as many losses as are accumulated have been given.

        ``report`` holds then, on the device: 'gradient/norm' (before clipping), 'nonfinite/gradient' (though all losses
        were finite), 'nonfinite/parameter' (the first that has such a one, or the largest where only the norm of all
        overflows), 'nonfinite/step' (it was left out for one of both) and 'nonfinite/left_out' (for these, or for an
        overflow that only says that the scale of float16 was too large).
        """
        if self._collected >= self.accumulation:
            self.move_weights()
            self._end_step()

    # ``backward`` and ``step`` in two shares: the device's can be a CUDA graph, the host's is made each time.

    def add_gradients(self, loss: Tensor) -> None:
        """Do what ``backward`` does on the device."""
        bad = ~loss.detach().isfinite()
        self._lost |= bad
        self.report = {"nonfinite/loss": bad}
        if self.accumulation > 1:
            loss = loss / self.accumulation
        if self._scaler is not None:
            loss = loss * self._scaler.scale
        loss.backward()

    def move_weights(self) -> None:
        """Do what a complete ``step`` does on the device; gradients stay until ``count_batch``."""
        # A loss is one process' own, and all must leave out the same step.
        lost = self.processes.any_on_devices(self._lost)
        with_gradient = {name: p for name, p in self._parameters.items() if p.grad is not None}
        self._moved = list(with_gradient)
        gradients = [p.grad for p in with_gradient.values() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)) if gradients else torch.zeros(1, device=self._device)
        if self._scaler is not None:
            norms = norms / self._scaler.scale
        norm = torch.linalg.vector_norm(norms)
        bad = ~norm.isfinite()
        self._report(norm, norms, bad, lost)
        self._apply(norm, bad | lost, gradients, list(with_gradient.values()))
        if self._scaler is not None:
            self._scaler.update(bad & ~lost)
        self._lost.zero_()

    @property
    def gradients(self) -> list[Tensor | None]:
        """The gradient of each weight, in one order."""
        return [parameter.grad for parameter in self._parameters.values()]

    def count_batch(self, report: dict[str, Tensor], gradients: list[Tensor | None]) -> None:
        """Do what ``backward`` and ``step`` do on the host.

        report, gradients: what there was after the device's share; a graph that is replayed writes into them, but sets
        neither ``report`` nor any weight's ``grad``. Gradients are not looked at where the step is complete.
        """
        self.report = report
        if self.completes_step:
            self._end_step()
            return
        self._collected += 1
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient

    def _end_step(self) -> None:
        self._warmup.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget the gradients that wait for the rest of their step."""
        self._torch.zero_grad(set_to_none=True)
        self._collected = 0

    def _report(self, norm: Tensor, norms: Tensor, bad: Tensor, lost: Tensor) -> None:
        broken = bad & ~lost
        if self._scaler is not None:
            broken = broken & self._scaler.exhausted  # else it is an overflow of float16 and no surprise
        first = norms.nan_to_num(nan=torch.inf, posinf=torch.inf).argmax()
        self.report |= {
            "gradient/norm": norm,
            "nonfinite/gradient": broken,
            "nonfinite/parameter": first,
            "nonfinite/step": broken | lost,
            "nonfinite/left_out": bad | lost,
        }

    def _apply(self, norm: Tensor, skip: Tensor, gradients: list[Tensor], parameters: list[Parameter]) -> None:
        """Unscale, clip and step, in as few passes over the gradients as the optimizer allows."""
        factor: Tensor | None = None if self._scaler is None else 1 / self._scaler.scale
        clip_each = None if self._clip is None or self._clip.is_global else self._clip
        if self._clip is not None and self._clip.is_global:
            clipped = self._clip.factor(torch.where(skip, torch.nan, norm))
            factor = clipped if factor is None else clipped * factor
        if not self._on_device and skip:  # the host waits here
            return
        if factor is not None and (clip_each is not None or not self._on_device):
            torch._foreach_mul_(gradients, factor)
            factor = None
        if clip_each is not None:
            clip_each(parameters)
        if not self._on_device:
            self._torch_step(parameters)
            return
        # The attributes by which torch's GradScaler speaks to fused optimizers: they divide by the one, and do nothing
        # where the other is 1.
        fused: Any = self._torch  # torch declares neither of them
        fused.found_inf = skip.float()
        fused.grad_scale = None if factor is None else (1 / factor).float()
        try:
            self._torch_step(parameters)
        finally:
            del fused.found_inf, fused.grad_scale

    def _torch_step(self, parameters: list[Parameter]) -> None:
        """Let torch's optimizer move the weights, or some of their entries. A search for a rate moves all."""
        if self._dropout is None or self.is_searching or not parameters:
            self._torch.step()
            return
        with self._dropout.limiting(parameters, self._warmup.last_epoch):
            self._torch.step()

    def set_lr(self, lr: float) -> None:
        """Use step size ``lr`` from here on; what is left of a warm-up leads up to it, and a schedule down from it."""
        self._configured = lr
        self.rollbacks = 0
        self._warmup.set_base(lr)

    @property
    def has_end(self) -> bool:
        """Whether a schedule lets the rate fall towards an end that is known."""
        return isinstance(self.schedule, Decay) and self.schedule.steps is not None

    def plan_end(self, iterations: int) -> None:
        """Let a schedule that needs an end have it after so many further iterations; it is the same at every start."""
        if isinstance(self.schedule, Decay):
            self.schedule.steps = self.steps + (iterations + self._collected) // self.accumulation
            self.apply_schedule()

    def apply_schedule(self) -> None:
        """Use the rate that the schedule says now."""
        self._warmup.apply()

    @contextlib.contextmanager
    def sweeping(self) -> Iterator[Callable[[float], None]]:
        """Give a function that sets the rate of the next step, whatever else says of it. Restore the state after."""
        steps, self._warmup.steps = self._warmup.steps, 0
        cycles, self._warmup.cycles = self._warmup.cycles, False
        schedule, self._warmup.schedule = self._warmup.schedule, None
        self.is_searching = True
        try:
            yield self._warmup.set_base
        finally:
            self._warmup.steps, self._warmup.cycles, self._warmup.schedule = steps, cycles, schedule
            self.is_searching = False

    def find_learning_rate(
        self,
        trainer: SearchTrainer,
        steps: int,
        start_lr: float,
        end_lr: float,
        strength: str = "default",
        mode: str = "set",
        **options: Any,
    ) -> bool:
        """Look for a good rate with ``trainer`` and, unless the mode is to exit, use it. True if one was found.

        options: what else LearningRateFinder takes.
        """
        finder = LearningRateFinder(trainer, None, steps, strength, mode, start_lr=start_lr, end_lr=end_lr, **options)
        finder.find()
        self.finder = finder
        if finder.best_lr is None:
            return False
        if mode != "graph_and_exit":
            self.set_lr(finder.best_lr)
        return True

    def to(self, device: torch.device | str) -> None:
        """Follow a model that has been moved to ``device``."""
        state = self.state_dict()
        self.generation += 1
        self._device = torch.device(device)
        self._lost = self._lost.to(device)
        if self._clip is not None:
            self._clip.to(device)
        if self._scaler is not None:
            self._scaler = LossScaler(device)
        self.load_state_dict(state)

    def roll_back(self, state: dict[str, Tensor]) -> None:
        """Restore an older state and go on from it at a lower rate than now."""
        rollbacks = self.rollbacks + 1
        self.load_state_dict(state)
        self._slow_down(rollbacks)

    def _slow_down(self, rollbacks: int) -> None:
        self.rollbacks = rollbacks
        self._warmup.set_base(self._configured * ROLLBACK_FACTOR**rollbacks)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a run needs to go on bit for bit: averages, counters, gradients that wait, history, scale.

        Averages and gradients are those in use, not copies. Of several processes all must ask, where gradients wait:
        they are given as the mean, which is what all can go on from.
        """
        state = {
            f"{name}.{quantity}": value
            for name, parameter in self._parameters.items()
            for quantity, value in self._torch.state.get(parameter, {}).items()
        }
        state["@steps"] = torch.tensor(self._warmup.last_epoch)
        state["@rate"] = torch.tensor([self._configured, self.rollbacks], dtype=torch.float64)
        state |= {} if self.schedule is None else self.schedule.state_dict()
        if self._collected:
            state["@collected"] = torch.tensor([self._collected, self.accumulation])
            state["@lost"] = self.processes.any_on_devices(self._lost.clone())
            waiting = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
            waiting = self.processes.mean_over_processes(waiting)
            state |= {f"{name}.waiting_grad": gradient for name, gradient in waiting.items()}
        for prefix, part in (("@clip", self._clip), ("@scaler", self._scaler)):
            state |= {} if part is None else {f"{prefix}.{name}": value for name, value in part.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave; SwapfastError where it belongs to other weights or lacks entries.

        Gradients that waited for the rest of a step are dropped where another number is accumulated now, and the rates
        of past roll-backs and plateaus where another rate is configured. Tensors that exist already and fit are written
        in place.
        """
        self.loads += 1
        counters = {key: value for key, value in state.items() if key.startswith("@")}
        waiting: dict[str, Tensor] = {}
        self._load_averages({key: value for key, value in state.items() if key not in counters}, waiting)
        for prefix, part in (("@clip.", self._clip), ("@scaler.", self._scaler)):
            if part is not None:
                stored = {k.removeprefix(prefix): v for k, v in counters.items() if k.startswith(prefix)}
                try:
                    part.load_state_dict(stored)
                except KeyError as error:
                    raise _lacking(f"{prefix}{error.args[0]}") from error
        self.drop_gradients()
        self._lost.zero_()
        collected, of = counters.get("@collected", torch.tensor([0, 1])).tolist()
        if collected and of == self.accumulation:
            if "@lost" not in counters:
                raise _lacking("@lost")
            # They are as many times too large as the loss was: that may have changed with --precision.
            scale = 1.0 if self._scaler is None else float(self._scaler.scale)
            waiting = {name: g * (scale / float(counters.get("@scaler.scale", 1.0))) for name, g in waiting.items()}
            self._collected = collected
            self._lost.copy_(counters["@lost"])
            for name, gradient in waiting.items():
                self._parameters[name].grad = gradient
        self._warmup.go_to(int(counters.get("@steps", 0)))
        configured, rollbacks = counters.get("@rate", torch.tensor([self._configured, 0.0])).tolist()
        is_same = configured == self._configured
        if self.schedule is not None:
            self.schedule.load_state_dict(counters if is_same else {})
        self._slow_down(int(rollbacks) if is_same else 0)

    def _load_averages(self, state: dict[str, Tensor], waiting: dict[str, Tensor]) -> None:
        indices = {name: index for index, name in enumerate(self._parameters)}
        by_index: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, quantity = key.rpartition(".")
            if name not in indices or (value.ndim and value.shape != self._parameters[name].shape):
                raise SwapfastError(f"the stored optimizer state belongs to another model: it has {key!r}")
            if quantity == "waiting_grad":
                waiting[name] = _copy_like(self._parameters[name], value)
            else:
                by_index.setdefault(indices[name], {})[quantity] = value
        names, kinds = list(self._parameters), [self._kind_of(p) for p in self._parameters.values()]
        quantities: dict[str, set[str]] = {}
        for index, averages in by_index.items():
            quantities.setdefault(kinds[index], set()).update(averages)
        for index, averages in by_index.items():
            if missing := sorted(quantities[kinds[index]] - averages.keys()):
                raise _lacking(f"{names[index]}.{missing[0]}")
        if not self._overwrite_averages(by_index):
            self._replace_averages(by_index)

    def _kind_of(self, parameter: Parameter) -> str:
        """Return which weights have the same averages as this one: mostly all."""
        return self._torch.kind_of(parameter) if isinstance(self._torch, Muon) else ""

    def _overwrite_averages(self, by_index: dict[int, dict[str, Tensor]]) -> bool:
        """Copy averages and counters into those in use; False, and nothing done, where these are others."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for index, parameter in enumerate(self._parameters.values()):
            in_use, stored_averages = self._torch.state.get(parameter, {}), by_index.get(index, {})
            if in_use.keys() != stored_averages.keys():
                return False
            pairs += [(in_use[quantity], value) for quantity, value in stored_averages.items()]
            if any(average.ndim and average.device != parameter.device for average in in_use.values()):
                return False
        if any(average.shape != value.shape for average, value in pairs):
            return False
        for average, value in pairs:
            average.copy_(value)
        return True

    def _replace_averages(self, by_index: dict[int, dict[str, Tensor]]) -> None:
        self.generation += 1
        parameters = list(self._parameters.values())
        copies = {
            index: {quantity: _copy_like(parameters[index], value) for quantity, value in stored.items()}
            for index, stored in by_index.items()
        }
        groups = self._torch.state_dict()["param_groups"]
        self._torch.load_state_dict({"state": copies, "param_groups": groups})
        for index, averages in copies.items():
            if "mu_product" in averages:  # of nadam: the host reads it, and torch has moved it away
                self._torch.state[parameters[index]]["mu_product"] = averages["mu_product"].cpu()


def _copy_like(parameter: Parameter, value: Tensor) -> Tensor:
    """Return a copy of ``value``, where it has the weight's shape with its device and memory format."""
    if value.shape != parameter.shape:
        return value.clone()
    # Files know no memory format, and the fused kernel walks weights and averages side by side.
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
