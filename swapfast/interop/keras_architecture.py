"""What network the config.json of a .keras file describes, and which of ours that is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from swapfast.config import ModelConfig
from swapfast.errors import SwapfastError, shortened
from swapfast.interop.keras_archive import KerasArchive
from swapfast.interop.keras_layout import Branch, Step, branches, steps_of, text_of
from swapfast.models import FaceAutoencoder
from swapfast.models.registry import plan_model

PARTS = ("encoder", "decoder_a", "decoder_b")
READ = "original and lightweight"  # faceswap's, that we have too
OTHERS = (
    "dfaker",
    "dfl_h128",
    "dfl_sae",
    "dlight",
    "iae",
    "phaze_a",
    "realface",
    "unbalanced",
    "villain",
)  # faceswap's
_UNKNOWN_LAYERS = {  # by how the name of their class begins
    "Reflect": "reflect padding",
    "ZeroPadding": "padding of its own",
    "InstanceNorm": "instance normalisation",
    "BatchNorm": "batch normalisation",
    "LayerNorm": "layer normalisation",
    "GroupNorm": "group normalisation",
    "RMSNorm": "RMS normalisation",
    "AdaInstanceNorm": "adaptive instance normalisation",
    "PReLU": "the activation PReLU",
    "Swish": "the activation swish",
    "SeparableConv": "separable convolutions",
    "UpSampling": "plain upsampling",
}


@dataclass(frozen=True)
class KerasBranch:
    """A chain of layers from a part's input to one of its outputs.

    steps: what they do. names: of those with weights, in order.
    """

    steps: list[Step]
    names: list[str]


@dataclass(frozen=True)
class Architecture:
    """A network as config.json describes it. name: the model's. size: px in."""

    name: str
    size: int
    branches: Mapping[Branch, KerasBranch]

    @property
    def learns_mask(self) -> bool:
        """Whether a decoder has a mask as well."""
        return any(kind == "mask" for _, kind in self.branches)


def read_architecture(archive: KerasArchive) -> Architecture:
    """Return the network of an archive.

    Raises SwapfastError where it is one that we have not, naming it, or config.json is not as Keras writes it.
    """
    try:
        return _architecture(archive.path, archive.model)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise SwapfastError(
            f"{archive.path}: its config.json describes no model of faceswap's ({problem}); give the .keras file that "
            "faceswap saved"
        ) from error


def _architecture(path: Path, model: Mapping[str, Any]) -> Architecture:
    config = model["config"]
    name = str(config["name"])
    if name in OTHERS:
        raise SwapfastError(f"{path}: is faceswap's model {name!r}; of faceswap's models {READ} can be read")
    layers = {str(layer["config"]["name"]): layer for layer in config["layers"]}
    parts = [part for part in layers if "layers" in layers[part]["config"]]
    if sorted(parts) != sorted(PARTS):
        consists = shortened(", ".join(parts)) if parts else "no parts"
        raise SwapfastError(
            f"{path}: is the model {shortened(name)} of {consists}; of faceswap's models {READ} can be read, which "
            f"have {', '.join(PARTS)}"
        )
    shapes = [layer["config"]["batch_shape"] for layer in layers.values() if layer["class_name"] == "InputLayer"]
    if len(shapes) != 2 or shapes[0] != shapes[1] or shapes[0][1] != shapes[0][2] or shapes[0][3] != 3:
        raise SwapfastError(f"{path}: takes pictures of {shortened(shapes)}; two of the same square size belong there")
    branches: dict[Branch, KerasBranch] = {}
    for part in PARTS:
        for kind, branch in _branches(path, layers[part]["config"], part).items():
            branches[part, kind] = branch
    if len(branches) == len(PARTS) + 1:
        raise SwapfastError(f"{path}: one of its decoders makes a mask and one does not; give a .keras of faceswap's")
    return Architecture(name, _whole(shapes[0][1]), branches)


def _branches(path: Path, part: Mapping[str, Any], name: str) -> dict[str, KerasBranch]:
    """Return the chains of a part: 'code', or 'face' and 'mask'."""
    layers = {str(layer["config"]["name"]): layer for layer in part["layers"]}
    outputs = part["output_layers"]
    outputs = outputs if isinstance(outputs[0], list) else [outputs]
    result: dict[str, KerasBranch] = {}
    for output in outputs:
        branch = _chain(path, layers, str(output[0]))
        channels = [step[-1] for step in branch.steps if step[0] == "convolution"][-1]
        kind = "code" if name == "encoder" else {3: "face", 1: "mask"}.get(int(channels), "")
        if not kind or kind in result:
            raise SwapfastError(
                f"{path}: the {name.replace('_', ' ')} makes {len(outputs)} outputs, one of {channels} channels; "
                f"of faceswap's models {READ} can be read, at one size"
            )
        result[kind] = branch
    if name != "encoder" and "face" not in result:
        raise SwapfastError(f"{path}: the {name.replace('_', ' ')} makes no face; give a .keras file of faceswap's")
    return result


def _chain(path: Path, layers: Mapping[str, Any], output: str) -> KerasBranch:
    """Return the chain of layers that leads to ``output``, by what each says it is given."""
    steps: list[Step] = []
    names: list[str] = []
    name = output
    for _ in range(len(layers) + 1):
        layer = layers[name]
        config, kind = layer["config"], str(layer["class_name"])
        if kind == "InputLayer":
            return KerasBranch(steps[::-1], names[::-1])
        steps.append(_step(path, kind, config))
        if kind in ("Conv2D", "Dense"):
            names.append(name)
        name = str(layer["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0])
    raise ValueError("its layers go round in a circle")


def _step(path: Path, kind: str, config: Mapping[str, Any]) -> Step:
    """Return what a layer does. Raises SwapfastError where ours have no such layer."""
    name = str(config["name"])
    if kind in ("Conv2D", "Dense"):
        if config["activation"] != "linear" or not config["use_bias"]:
            raise _unknown(path, name, f"the activation {config['activation']}" if config["use_bias"] else "no bias")
        return _convolution(path, config) if kind == "Conv2D" else ("dense", _whole(config["units"]))
    if kind == "LeakyReLU":
        return ("leaky ReLU", round(1000 * float(config["negative_slope"])))
    if kind == "Activation":
        if config["activation"] != "sigmoid":
            raise _unknown(path, name, f"the activation {config['activation']}")
        return ("sigmoid",)
    if kind == "Flatten":
        return ("flatten",)
    if kind == "Reshape":
        return ("reshape", *map(_whole, config["target_shape"]))
    if kind == "PixelShuffler":
        if list(config["size"]) != [2, 2]:
            raise _unknown(path, name, f"a pixel shuffle of {shortened(config['size'])}")
        return ("pixel shuffle",)
    words = next((words for start, words in _UNKNOWN_LAYERS.items() if kind.startswith(start)), f"a layer {kind}")
    raise _unknown(path, name, words)


def _convolution(path: Path, config: Mapping[str, Any]) -> Step:
    kernel, strides = list(config["kernel_size"]), list(config["strides"])
    usual = {"padding": "same", "dilation_rate": [1, 1], "groups": 1, "data_format": "channels_last"}
    for key, value in usual.items():
        stored_value = config.get(key, value)
        if (list(stored_value) if isinstance(stored_value, (list, tuple)) else stored_value) != value:
            raise _unknown(path, str(config["name"]), f"{key.replace('_', ' ')} {shortened(stored_value)}")
    if len(set(kernel)) != 1 or len(set(strides)) != 1:
        raise _unknown(path, str(config["name"]), f"a kernel of {shortened(kernel)}, strides of {shortened(strides)}")
    return ("convolution", _whole(kernel[0]), _whole(strides[0]), _whole(config["filters"]))


def _unknown(path: Path, layer: str, words: str) -> SwapfastError:
    on_one_line = " ".join(words.split())[:100]
    return SwapfastError(
        f"{path}: has {on_one_line} (layer {shortened(layer)}), which faceswap's {READ} have not as they come and "
        "swapfast has not at all; train one without"
    )


def _whole(value: object) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(f"{shortened(value)} is no size")
    return value


def identify(path: Path, architecture: Architecture) -> ModelConfig:
    """Return which of our models an architecture is.

    path: of its file. Raises SwapfastError, which names the first layer that differs, where it is none.
    """
    most, nearest = -1, ""
    for config in (
        _as_original(architecture, False),
        _as_original(architecture, True),
        ModelConfig(name="lightweight"),
    ):
        try:
            with torch.device("meta"):
                model = plan_model(config, architecture.learns_mask)
        except SwapfastError:  # such as a size that there is not
            continue
        equal, difference = find_difference(model, architecture)
        if not difference:
            return config
        if equal > most:
            most, nearest = equal, difference
    raise SwapfastError(
        f"{path}: is a model {shortened(architecture.name)} of {architecture.size} px that swapfast has not: "
        f"{nearest}; of faceswap's models {READ} can be read"
    )


def _as_original(architecture: Architecture, lowmem: bool) -> ModelConfig:
    """Return the options that make an ``original`` most like the architecture; its usual ones are left out."""
    steps = architecture.branches["encoder", "code"].steps
    sizes = {kind: step for kind, *step in reversed(steps)}  # of the first of each kind
    base = ModelConfig(name="original", lowmem=lowmem)
    options: dict[str, Any] = {}
    if architecture.size != 64:
        options["input_size"] = architecture.size
    if "convolution" in sizes and sizes["convolution"][2] != 128:
        options["encoder_width"] = sizes["convolution"][2]
    if "dense" in sizes and sizes["dense"][0] != (512 if lowmem else 1024):
        options["dense"] = sizes["dense"][0]
    bottleneck = "x".join(map(str, sizes.get("reshape", ())))
    if bottleneck != ("4x4x1024" if architecture.size == 64 else "8x8x512"):
        options["bottleneck"] = bottleneck
    try:
        return ModelConfig(**{"name": "original", "lowmem": lowmem, **options})
    except SwapfastError:  # such as a width that no option takes
        return base


def find_difference(model: FaceAutoencoder, architecture: Architecture) -> tuple[int, str]:
    """Return how many steps a model shares with the architecture before they differ, and where; '' for nowhere."""
    if model.input_size != architecture.size:
        return 0, f"it takes {architecture.size} px and {model.name} {model.input_size} px"
    equal = 0
    for (part, kind), module in branches(model).items():
        ours, theirs = steps_of(module), architecture.branches[part, kind].steps
        for number, (our, their) in enumerate(itertools.zip_longest(ours, theirs), 1):
            if our != their:
                where = f"the {part.replace('_', ' ')}{'' if kind == 'code' else f', {kind},'}"
                return equal, f"layer {number} of {where} is {text_of(their)} and should be {text_of(our)}"
            equal += 1
    return equal, ""
