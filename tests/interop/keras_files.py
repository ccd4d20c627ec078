"""Writes .keras files as Keras 3 saves faceswap's models, by h5py and zipfile alone; widths as one likes.

The form is Keras 3.15's, which test_keras_itself.py loads and saves.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from torch import nn

from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import SameConv, Unflatten, down, up

METADATA = {"keras_version": "3.15.1", "date_saved": "2026-06-01@12:00:00"}


@dataclass(frozen=True)
class Plan:
    """Widths of a network: encoder, dense layer, picture behind it, code, decoders."""

    encoder: tuple[int, ...]
    dense: int
    picture: int
    code: int
    decoder: tuple[int, ...]
    learn_mask: bool = False
    name: str = "original"

    def divided(self, by: int) -> Plan:
        encoder, decoder = (tuple(n // by for n in widths) for widths in (self.encoder, self.decoder))
        return replace(
            self,
            encoder=encoder,
            decoder=decoder,
            dense=self.dense // by,
            picture=self.picture // by,
            code=self.code // by,
        )


PLANS = {
    "original": Plan((128, 256, 512, 1024), 1024, 1024, 512, (256, 128, 64)),
    "original+mask": Plan((128, 256, 512, 1024), 1024, 1024, 512, (256, 128, 64), True),
    "lowmem": Plan((128, 256, 512), 512, 1024, 512, (256, 128, 64)),
    "lightweight": Plan((128, 256, 512), 512, 512, 256, (512, 256, 128), name="lightweight"),
}
# What options make of ``original`` where its decoders are as narrow as in ``narrow_original``.
SMALL = Plan((8, 16, 32, 64), 64, 64, 64, (32, 16, 8))


def model_of(plan: Plan) -> FaceAutoencoder:
    """The network of a plan, made of our own layers."""
    widths = (3, *plan.encoder)
    low = 64 >> len(plan.encoder)
    encoder = nn.Sequential(
        *(down(*pair) for pair in itertools.pairwise(widths)),
        nn.Flatten(),
        nn.Linear(widths[-1] * low * low, plan.dense),
        nn.Linear(plan.dense, 16 * plan.picture),
        Unflatten(plan.picture, 4),
        up(plan.picture, plan.code),
    )

    def branch(channels: int) -> nn.Sequential:
        widths = (plan.code, *plan.decoder)
        ups = (up(*pair) for pair in itertools.pairwise(widths))
        return nn.Sequential(*ups, SameConv(widths[-1], channels, 5), nn.Sigmoid())

    decoders = {side: Decoder(branch(3), branch(1) if plan.learn_mask else None) for side in "ab"}
    return FaceAutoencoder(plan.name, 64, (64,), encoder, decoders)


def _tensor(name: str, shape: list) -> dict:
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": shape, "dtype": "float32", "keras_history": [name, 0, 0]},
    }


class _Part:
    """Collects the layers of a part; ``shapes`` are those of the numbers of its layers with weights."""

    def __init__(self, name: str, shape: list) -> None:
        self.name, self.layers, self.shapes = name, [], {}
        entry = f"input_{name}"
        self.layers.append(_layer("InputLayer", entry, {"batch_shape": shape, "dtype": "float32"}))
        self.start = (entry, shape)

    def add(self, at: tuple[str, list], kind: str, name: str, shape: list, **config) -> tuple[str, list]:
        above, shape_above = at
        self.layers.append(_layer(kind, name, config, [{"args": [_tensor(above, shape_above)], "kwargs": {}}]))
        return name, shape

    def conv(self, at, name: str, filters: int, kernel: int, stride: int = 1):
        shape = at[1]
        self.shapes[name] = ((kernel, kernel, shape[3], filters), (filters,))
        return self.add(
            at,
            "Conv2D",
            name,
            [None, shape[1] // stride, shape[2] // stride, filters],
            filters=filters,
            kernel_size=[kernel] * 2,
            strides=[stride] * 2,
            padding="same",
            data_format="channels_last",
            dilation_rate=[1, 1],
            groups=1,
            activation="linear",
            use_bias=True,
        )

    def dense(self, at, name: str, units: int):
        self.shapes[name] = ((at[1][1], units), (units,))
        return self.add(at, "Dense", name, [None, units], units=units, activation="linear", use_bias=True)

    def leaky(self, at, name: str):
        return self.add(at, "LeakyReLU", name, at[1], negative_slope=0.1)

    def up(self, at, name: str, filters: int):
        at = self.leaky(self.conv(at, f"{name}_conv2d", 4 * filters, 3), f"{name}_leakyrelu")
        _, height, width, _ = at[1]
        shape = [None, 2 * height, 2 * width, filters]
        return self.add(at, "PixelShuffler", f"{name}_pixelshuffler", shape, size=[2, 2], data_format=None)


def _layer(kind: str, name: str, config: dict, inbound: list | None = None) -> dict:
    module = {"PixelShuffler": None, "Functional": "keras.src.models.functional"}.get(kind, "keras.layers")
    registered = kind if kind in ("PixelShuffler", "Functional") else None
    return {
        "module": module,
        "class_name": kind,
        "config": {"name": name, "trainable": True, **config},
        "registered_name": registered,
        "name": name,
        "inbound_nodes": inbound or [],
    }


def _encoder(plan: Plan) -> tuple[_Part, list, list]:
    part = _Part("encoder", [None, 64, 64, 3])
    at = part.start
    for number, width in enumerate(plan.encoder):
        at = part.leaky(part.conv(at, f"conv_{number}_conv2d", width, 5, 2), f"conv_{number}_leakyrelu")
    at = part.add(at, "Flatten", "flatten", [None, at[1][1] * at[1][2] * at[1][3]], data_format="channels_last")
    at = part.dense(part.dense(at, "dense", plan.dense), "dense_1", 16 * plan.picture)
    at = part.add(at, "Reshape", "reshape", [None, 4, 4, plan.picture], target_shape=[4, 4, plan.picture])
    return part, *part.up(at, "upscale_0", plan.code)


def _decoder(plan: Plan, side: str) -> tuple[_Part, list[list]]:
    """Both branches, their layers interleaved by depth as Keras sorts them."""
    part = _Part(f"decoder_{side}", [None, 8, 8, plan.code])
    branches = dict.fromkeys(("face", "mask") if plan.learn_mask else ("face",), part.start)
    for number, width in enumerate(plan.decoder):
        branches = {name: part.up(at, f"up_{name}_{number}_{side}", width) for name, at in branches.items()}
    outputs = []
    for name, at in branches.items():
        channels = 3 if name == "face" else 1
        at = part.conv(at, f"{name}_out_{side}_conv2d", channels, 5)
        outputs.append(part.add(at, "Activation", f"{name}_out_{side}", at[1], activation="sigmoid"))
    return part, outputs


Numbers = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]


def config_of(plan: Plan) -> tuple[dict, dict[tuple[str, str], tuple]]:
    """What config.json says, and the shapes of kernel and bias by (part, layer)."""
    encoder, code, code_shape = _encoder(plan)
    inputs = [
        _layer("InputLayer", f"face_in_{side}", {"batch_shape": [None, 64, 64, 3], "dtype": "float32"}) for side in "ab"
    ]
    layers, outputs, shapes = list(inputs), [], {("encoder", name): s for name, s in encoder.shapes.items()}
    called = [{"args": [_tensor(f"face_in_{side}", [None, 64, 64, 3])], "kwargs": {"mask": None}} for side in "ab"]
    own = {"layers": encoder.layers, "input_layers": [encoder.start[0], 0, 0], "output_layers": [code, 0, 0]}
    layers.append(_layer("Functional", "encoder", own, called))
    for number, side in enumerate("ab"):
        part, ends = _decoder(plan, side)
        ends_named = [[name, 0, 0] for name, _ in ends]
        own = {
            "layers": part.layers,
            "input_layers": [part.start[0], 0, 0],
            "output_layers": ends_named if plan.learn_mask else ends_named[0],
        }
        tensor = _tensor("encoder", code_shape)
        tensor["config"]["keras_history"][1] = number
        layers.append(_layer("Functional", part.name, own, [{"args": [tensor], "kwargs": {"mask": None}}]))
        shapes |= {(part.name, name): s for name, s in part.shapes.items()}
        outputs += [[part.name, 0, index] for index in range(len(ends))]
    config = {
        "name": plan.name,
        "trainable": True,
        "layers": layers,
        "input_layers": [[f"face_in_{side}", 0, 0] for side in "ab"],
        "output_layers": outputs,
    }
    model = {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": config,
        "registered_name": "Functional",
        "build_config": {"input_shape": None},
    }
    return model, shapes


def random_numbers(shapes: dict, seed: int = 1) -> Numbers:
    """Glorot-uniform kernels, and biases that are not zero."""
    rng = np.random.default_rng(seed)
    numbers = {}
    for key, (kernel, bias) in shapes.items():
        window = int(np.prod(kernel[:-2]))
        bound = (6 / (window * (kernel[-2] + kernel[-1]))) ** 0.5
        values = rng.random(kernel, np.float32) * (2 * bound) - bound
        numbers[key] = (values.astype(np.float32), rng.normal(0, 0.05, bias).astype(np.float32))
    return numbers


def _snake(kind: str) -> str:
    """The name of a layer's class as Keras spells it in paths."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()


def _paths(layers: list) -> list[tuple[str, str]]:
    """(path, name) of each layer within the group of its part."""
    counts: Counter = Counter()
    result = []
    for layer in layers:
        kind = _snake(layer["class_name"])
        number = counts[kind]
        counts[kind] += 1
        result.append((f"layers/{kind}_{number}" if number else f"layers/{kind}", layer["config"]["name"]))
    return result


def weights_file(model: dict, numbers: Numbers) -> bytes:
    """model.weights.h5."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_group("vars").attrs["name"] = model["config"]["name"]
        for (path, name), layer in zip(_paths(model["config"]["layers"]), model["config"]["layers"], strict=True):
            file.create_group(f"{path}/vars").attrs["name"] = name
            for inner, inner_name in _paths(layer["config"].get("layers", [])):
                group = file.create_group(f"{path}/{inner}/vars")
                group.attrs["name"] = inner_name
                for number, values in enumerate(numbers.get((name, inner_name), ())):
                    group.create_dataset(str(number), data=values)
    return content.getvalue()


def save(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def files_of(plan: Plan, numbers: Numbers | None = None) -> dict[str, bytes]:
    """The three files of an archive. numbers: random ones where there are none."""
    model, shapes = config_of(plan)
    return {
        "metadata.json": json.dumps(METADATA).encode(),
        "config.json": json.dumps(model).encode(),
        "model.weights.h5": weights_file(model, random_numbers(shapes) if numbers is None else numbers),
    }


def save_plan(path: Path, plan: Plan, numbers: Numbers | None = None) -> Path:
    return save(path, files_of(plan, numbers))


def read_back(path: Path) -> Numbers:
    """All numbers of an archive by (part, layer), by the names in it, read without the program."""
    numbers: Numbers = {}
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        for part in file["layers"].values():
            for layer in part["layers"].values() if "layers" in part else ():
                values = layer["vars"]
                if len(values):
                    numbers[part["vars"].attrs["name"], values.attrs["name"]] = (values["0"][()], values["1"][()])
    return numbers
