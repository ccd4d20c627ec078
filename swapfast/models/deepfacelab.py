"""The families df and liae, layer for layer as DeepFaceLab's SAEHD trains and stores them.

df has a decoder for each person, as ``original``. liae has one decoder for both: a person owns half of the code that
the decoder is given. Letters behind the name change the layers: u normalises the features, d makes the picture of four
interleaved ones, t adds layers, c replaces each activation by x cos(x).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swapfast.batch import SIDES
from swapfast.errors import SwapfastError
from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import PixelShuffle, SameConv, Unflatten
from swapfast.models.side_statistics import Rows, code_layers

LETTERS = "udtc"
SMALLEST, LARGEST = 64, 512  # px
LEAK, RESIDUAL_LEAK = 0.1, 0.2
EPSILON = 1e-6  # of the features' normalisation
USUAL_SIZE = 128
USUAL_AE_DIMS, USUAL_E_DIMS, USUAL_D_DIMS = 256, 64, 64


@dataclass(frozen=True)
class Plan:
    """The sizes of a network.

    size: px in and out. letters: of the variant. ae, e, d, mask: channels of the bottleneck, the encoder, the decoder's
    face branch and its mask branch.
    """

    size: int
    letters: frozenset[str]
    ae: int
    e: int
    d: int
    mask: int

    @property
    def features(self) -> int:
        """Return how many numbers the encoder makes of a face."""
        return 8 * self.e * (self.size // (32 if "t" in self.letters else 16)) ** 2

    @property
    def low(self) -> int:
        """Return the edge of the smallest picture behind the bottleneck, px."""
        return self.size // (32 if "d" in self.letters else 16)

    def activation(self, leak: float = LEAK) -> nn.Module:
        """Return a new activation layer."""
        return CosineUnit() if "c" in self.letters else nn.LeakyReLU(leak)


class CosineUnit(nn.Module):
    """The activation x cos(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * x.cos()


class Residual(nn.Module):
    """Two convolutions whose result is added to what they are given."""

    def __init__(self, channels: int, activation: Callable[[float], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.conv2 = SameConv(channels, channels, 3), SameConv(channels, channels, 3)
        self.inner, self.outer = activation(RESIDUAL_LEAK), activation(RESIDUAL_LEAK)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) of ``x`` (N, C, H, W)."""
        return self.outer(x + self.conv2(self.inner(self.conv1(x))))


class NormalisedFeatures(nn.Module):
    """Divides the features of each face by the root of their mean square."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, features) of ``x`` (N, features)."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + EPSILON)).to(x.dtype)


class InterleavedOutput(nn.Module):
    """Four convolutions to three channels, each of which makes one pixel of every 2 x 2 of a picture twice as large."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([SameConv(inputs, 3, 1), *(SameConv(inputs, 3, 3) for _ in range(3))])

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 3, 2 H, 2 W) of ``x`` (N, C, H, W). Convolution k makes the pixel in row k // 2, column k % 2."""
        return F.pixel_shuffle(torch.stack([conv(x) for conv in self.convs], 2).flatten(1, 2), 2)


def _down(inputs: int, outputs: int, plan: Plan) -> nn.Sequential:
    """Return what halves the size. It pads two pixels on every side, where Keras pads one before and two after."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 5, 2, padding=2), plan.activation())


def _up(inputs: int, outputs: int, plan: Plan) -> nn.Sequential:
    return nn.Sequential(SameConv(inputs, 4 * outputs, 3), plan.activation(), PixelShuffle(2))


def _encoder(plan: Plan) -> nn.Sequential:
    e, deep = plan.e, "t" in plan.letters
    widths = [3, e, 2 * e, 4 * e, 8 * e, *([8 * e] if deep else [])]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths), 1):
        layers[f"down{number}"] = _down(inputs, outputs, plan)
        if deep and number in (1, 5):
            layers[f"res{number}"] = Residual(outputs, plan.activation)
    layers["flatten"] = nn.Flatten()
    if "u" in plan.letters:
        layers["normalise"] = NormalisedFeatures()
    return nn.Sequential(layers)


def _inter(plan: Plan, outputs: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        dense1=nn.Linear(plan.features, plan.ae),
        dense2=nn.Linear(plan.ae, plan.low**2 * outputs),
        unflatten=Unflatten(outputs, plan.low),
    )
    if "t" not in plan.letters:
        layers["upscale1"] = _up(outputs, outputs, plan)
    return nn.Sequential(layers)


def _decoder(plan: Plan, inputs: int, learn_mask: bool) -> Decoder:
    multiples = [8, 8, 4, 2] if "t" in plan.letters else [8, 4, 2]
    face: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate(itertools.pairwise([inputs, *(m * plan.d for m in multiples)])):
        face[f"upscale{number}"] = _up(before, after, plan)
        face[f"res{number}"] = Residual(after, plan.activation)
    face["output"] = InterleavedOutput(2 * plan.d) if "d" in plan.letters else SameConv(2 * plan.d, 3, 1)
    face["sigmoid"] = nn.Sigmoid()
    return Decoder(nn.Sequential(face), _mask_branch(plan, inputs, multiples) if learn_mask else None)


def _mask_branch(plan: Plan, inputs: int, multiples: list[int]) -> nn.Sequential:
    widths = [inputs, *(m * plan.mask for m in multiples), *([plan.mask] if "d" in plan.letters else [])]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        layers[f"upscale{number}"] = _up(before, after, plan)
    layers["output"] = SameConv(widths[-1], 1, 1)
    layers["sigmoid"] = nn.Sigmoid()
    return nn.Sequential(layers)


class SharedDecoderAutoencoder(FaceAutoencoder):
    """An autoencoder whose sides share the decoder and own the code that it is given.

    A face is coded twice: by what has seen both sides, and by what has seen side A alone. Side A's code is the two
    together, side B's is the first one twice. So the pose is in the shared half, and what makes A look like A in the
    other.
    """

    def __init__(self, *arguments: Any, inters: dict[str, nn.Module], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.inters = nn.ModuleDict(inters)

    def shared_layers(self) -> dict[str, int]:
        """See FaceAutoencoder: the encoder's layers and the first of each of the two that code its features."""
        layers = code_layers(self.encoder, "encoder")[0]
        for part, inter in self.inters.items():
            layers |= code_layers(inter, f"inters.{part}")[0]
        return layers

    def bottleneck(self) -> dict[str, int]:
        """See FaceAutoencoder: what the encoder gives to both, as one of them never sees side B."""
        first = next(layer for layer in self.inters["both"].modules() if isinstance(layer, nn.Linear))
        return {"encoder": first.in_features}

    def code_layer(self) -> str:
        """See FaceAutoencoder: with statistics behind every layer, the last of those that both sides go through."""
        if self.code_kind != "encoder":
            return super().code_layer()
        return list(code_layers(self.inters["both"], "inters.both")[0])[-1]

    def side_code(self, features: Tensor, rows: Rows, kept: dict[str, Tensor | None] | None = None) -> Tensor:
        """See FaceAutoencoder."""
        both = self.run_layers(self.inters["both"], "inters.both", features, [rows], kept)
        own = both
        if rows.wanted == SIDES[0]:  # whose own code knows the statistics of A alone
            own = self.run_layers(self.inters["a"], "inters.a", features, [rows._replace(shown=SIDES[0])])
        return torch.cat([own, both], 1)


def _even(flag: str, value: int, usual: int) -> int:
    """Return the width that is meant: ``usual`` for 0."""
    if value % 2 or value < 0:
        raise SwapfastError(f"{flag} {value}: must be even and positive; {usual} is usual")
    return value or usual


def make_plan(
    name: str, input_size: int = 0, ae_dims: int = 0, e_dims: int = 0, d_dims: int = 0, d_mask_dims: int = 0
) -> Plan:
    """Return the sizes of the network ``name``, such as 'liae-ud'; 0 stands for what is usual.

    Raises SwapfastError for letters and sizes that cannot be.
    """
    text = name.partition("-")[2]
    letters = frozenset(text)
    if (name.endswith("-") and not text) or len(letters) != len(text) or not letters <= set(LETTERS):
        raise SwapfastError(
            f"-t/--trainer {name}: a name may end in a dash and letters of {LETTERS}, each once, as in liae-ud"
        )
    size, step = input_size or USUAL_SIZE, 32 if letters & set("dt") else 16
    if size % step or not SMALLEST <= size <= LARGEST:
        raise SwapfastError(
            f"--input-size {size}: {name} takes multiples of {step} px from {SMALLEST} to {LARGEST}; give another size"
        )
    d = _even("--d-dims", d_dims, USUAL_D_DIMS)
    return Plan(
        size,
        letters,
        _even("--ae-dims", ae_dims, USUAL_AE_DIMS),
        _even("--e-dims", e_dims, USUAL_E_DIMS),
        d,
        _even("--d-mask-dims", d_mask_dims, d // 3 + d // 3 % 2),
    )


def _checked_plan(name: str, learn_mask: bool, sizes: dict[str, int]) -> Plan:
    """Return the plan; raise SwapfastError too where a branch is given a width that there will not be."""
    width = sizes.get("d_mask_dims", 0)
    if width and not learn_mask:
        raise SwapfastError(
            f"--d-mask-dims {width}: is the width of the branch that learns a mask; add --learn-mask or leave it out"
        )
    return make_plan(name, **sizes)


def df(name: str = "df", learn_mask: bool = False, **sizes: int) -> FaceAutoencoder:
    """Return the network with a decoder for each side, BGR. sizes: see ``make_plan``."""
    plan = _checked_plan(name, learn_mask, sizes)
    encoder = nn.Sequential(OrderedDict(features=_encoder(plan), inter=_inter(plan, plan.ae)))
    decoders = {side: _decoder(plan, plan.ae, learn_mask) for side in SIDES}
    return FaceAutoencoder(name, plan.size, (plan.size,), encoder, decoders, glorot=True)


def liae(name: str = "liae", learn_mask: bool = False, **sizes: int) -> FaceAutoencoder:
    """Return the network with one decoder for both sides, BGR. sizes: see ``make_plan``."""
    plan = _checked_plan(name, learn_mask, sizes)
    return SharedDecoderAutoencoder(
        name,
        plan.size,
        (plan.size,),
        _encoder(plan),
        {"shared": _decoder(plan, 4 * plan.ae, learn_mask)},
        inters={part: _inter(plan, 2 * plan.ae) for part in ("both", "a")},
        glorot=True,
    )
