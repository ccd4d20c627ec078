"""Where each weight of df and liae lies in DeepFaceLab's SAEHD files, under which name, and in which order.

    encoder.npy inter.npy decoder_src.npy decoder_dst.npy      df
    encoder.npy inter_AB.npy inter_B.npy decoder.npy           liae

Each is a pickle of one dictionary, name -> float32 array. Its *dst* is our side A, whose frame it is, and its *src* is
B. Convolutions are (height, width, in, out) there and dense layers (in, out). Where a picture is made larger, it counts
the channels fastest, (row, column, channel), and torch (channel, row, column).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from swapfast.models import FaceAutoencoder

PARTS = {
    "df": {
        "encoder.features": "encoder",
        "encoder.inter": "inter",
        "decoders.b": "decoder_src",
        "decoders.a": "decoder_dst",
    },
    "liae": {
        "encoder": "encoder",
        "inters.both": "inter_AB",
        "inters.a": "inter_B",
        "decoders.shared": "decoder",
    },
}
OPTIMIZER = "src_dst_opt"
# The names of an average in the optimizer's file and of ours, by the name of the optimizer.
AVERAGES = {
    "adabelief-dfl": {"ms": "exp_avg", "vs": "exp_avg_var"},
    "rms-prop-dfl": {"acc": "square_avg"},
}
_LAYERS = (  # of ours, theirs
    (r"down(\d)\.0", "down{0}/conv1"),
    (r"(?:face\.)?res(\d)\.conv(\d)", "res{0}/conv{1}"),
    (r"dense(\d)", "dense{0}"),
    (r"(?:face\.)?upscale(\d)\.0", "upscale{0}/conv1"),
    (r"face\.output(?:\.convs\.0)?", "out_conv"),
    (r"face\.output\.convs\.(\d)", "out_conv{0}"),
    (r"mask\.upscale(\d)\.0", "upscalem{0}/conv1"),
    (r"mask\.output", "out_convm"),
)


class Place(NamedTuple):
    """Where a weight lies in the files.

    part: the file's name without ending. key: in it. shuffled: its outputs are the pixels of a larger picture.
    """

    part: str
    key: str
    shuffled: bool

    def average_key(self, prefix: str) -> str:
        """Return the name of one of the optimizer's averages of it."""
        return f"{prefix}_{self.part}/{self.key.removesuffix(':0')}_0:0"


def family_of(model: FaceAutoencoder) -> str:
    """Return 'df' or 'liae', or the name of another model."""
    return model.name.partition("-")[0]


def places(model: FaceAutoencoder) -> dict[str, Place]:
    """Return where each weight of a df or liae lies, in the order of the files."""
    names = [name for name, _ in model.named_parameters()]
    parts, deep = PARTS[family_of(model)], "t" in model.name.partition("-")[2]
    return {
        name: Place(part, _key(name.removeprefix(f"{ours}."), deep), "upscale" in name)
        for ours, part in parts.items()
        for name in names
        if name.startswith(f"{ours}.")
    }


def _key(name: str, deep: bool) -> str:
    layer, _, kind = name.rpartition(".")
    if not deep and (match := re.fullmatch(r"down(\d)\.0", layer)):
        return f"down1/downs_{int(match[1]) - 1}/conv1/{kind}:0"
    for pattern, theirs in _LAYERS:
        if match := re.fullmatch(pattern, layer):
            return f"{theirs.format(*match.groups())}/{kind}:0"
    raise ValueError(f"{name}: no layer of DeepFaceLab's")  # a layer was added to the model and not here


def shape_there(shape: torch.Size) -> tuple[int, ...]:
    """Return the shape that a weight of ours has in the files."""
    if len(shape) == 4:
        outputs, inputs, height, width = shape
        return height, width, inputs, outputs
    return tuple(reversed(shape))


def to_ours(array: np.ndarray, place: Place) -> Tensor:
    """Return a weight, or an average of it, in our order; a copy."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array.T
    if place.shuffled:
        shape = array.shape
        array = np.moveaxis(array.reshape(2, 2, shape[0] // 4, *shape[1:]), 2, 0).reshape(shape)
    return torch.from_numpy(np.array(array, np.float32, order="C"))


def to_theirs(tensor: Tensor, place: Place) -> np.ndarray:
    """Return a weight, or an average of it, in the files' order."""
    array = tensor.numpy()
    if place.shuffled:
        shape = array.shape
        array = np.moveaxis(array.reshape(shape[0] // 4, 2, 2, *shape[1:]), 0, 2).reshape(shape)
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array, np.float32)


def averages_of(optimizer: str, place_of: dict[str, Place]) -> Iterator[tuple[str, str, Place, str]]:
    """Give each average that an optimizer keeps: the weight, our name of it, the weight's place, and its key."""
    for prefix, quantity in AVERAGES[optimizer].items():
        for name, place in place_of.items():
            yield name, quantity, place, place.average_key(prefix)
