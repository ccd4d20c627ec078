"""A network as an ONNX graph: one visitor over its modules, one or a few nodes for each.

torch's own exporters write opsets that older programs refuse, or leave the sizes of pictures open. Shapes in comments:
n faces, c channels, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from swapfast.batch import SIDES
from swapfast.errors import SwapfastError
from swapfast.files import open_new, write_all
from swapfast.models.autoencoder import FaceAutoencoder
from swapfast.models.blocks import PixelShuffle, SameConv, Unflatten
from swapfast.models.deepfacelab import (
    EPSILON,
    CosineUnit,
    InterleavedOutput,
    NormalisedFeatures,
    Residual,
    SharedDecoderAutoencoder,
)
from swapfast.models.dropout import DroppedDense
from swapfast.models.side_statistics import Rows, SideStatistics

OPSET, IR_VERSION = 12, 7  # what the runtimes of 2020 read already
BATCH = "n"  # the only open dimension
_CHANNELS_FIRST, _CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


class Graph:
    """Nodes and weights of a graph that is being written.

    Values are names of tensors. A weight that several nodes use is kept once.
    model: names the weights. is_half: weights and the values between them are float16, pictures float32.
    """

    def __init__(self, model: FaceAutoencoder, is_half: bool = False) -> None:
        self.is_half = is_half
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}  # weights are views of the model's
        self._names = {id(weight): name for name, weight in model.named_parameters()}
        self.results: dict[tuple[nn.Module, str], str] = {}  # of layers that were written, by what they were given

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node of one output; return its value."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def weight(self, weight: Tensor) -> str:
        """Return the value of a weight of the model."""
        name = self._names[id(weight)]
        if name not in self.arrays:
            self.arrays[name] = weight.detach().to(torch.float16 if self.is_half else torch.float32).numpy()
        return name

    def constant(self, array: np.ndarray) -> str:
        """Return the value of an array, of its own type."""
        name = f"constant_{len(self.arrays)}"
        self.arrays[name] = array
        return name

    def wide(self, value: str) -> str:
        """Return a value between layers as float32."""
        return self.node("Cast", value, to=TensorProto.FLOAT) if self.is_half else value

    def narrow(self, value: str) -> str:
        """Return a float32 value as layers take it."""
        return self.node("Cast", value, to=TensorProto.FLOAT16) if self.is_half else value

    def picture_in(self, name: str, model: FaceAutoencoder) -> str:
        """Return the input (n, h, w, 3), BGR in 0..1, as the model's first layer takes it: (n, 3, h, w)."""
        images = _in_color_order(self, self.node("Transpose", name, perm=_CHANNELS_FIRST), model)
        return self.narrow(_standardised(self, images) if model.standardise else images)

    def picture_out(self, value: str, name: str, model: FaceAutoencoder | None = None) -> None:
        """Make a decoder's (n, c, h, w) the output ``name``, (n, h, w, c) float32. model: of a face, for colours."""
        value = self.wide(value)
        if model is not None:
            value = _in_color_order(self, value, model)
        self.node("Transpose", value, output=name, perm=_CHANNELS_LAST)

    def repeated(self, picture: np.ndarray, source: str, name: str) -> None:
        """Make a constant (h, w, c) the output ``name``, once for each of the n faces of the input ``source``."""
        count = self.node("Gather", self.node("Shape", source), self.constant(np.array([0])))
        shape = self.node("Concat", count, self.constant(np.array(picture.shape)), axis=0)
        self.node("Expand", self.constant(picture), shape, output=name)

    def layer(self, module: nn.Module, value: str) -> str:
        """Return what a module makes of a value. Raises SwapfastError for a kind of layer that is not in LAYERS."""
        if (module, value) in self.results:
            return self.results[module, value]
        write = LAYERS.get(type(module))
        if write is None:
            raise SwapfastError(
                f"--to onnx or dfm: a layer of the kind {type(module).__name__} cannot be written to ONNX; use --to "
                "safetensors"
            )
        result = self.results[module, value] = write(self, module, value)
        return result

    def save(
        self,
        path: Path,
        inputs: Mapping[str, tuple[int, int, int]],
        outputs: Mapping[str, tuple[int, int, int]],
        metadata: Mapping[str, str],
    ) -> None:
        """Write the whole, with the height, width and channels of its inputs and outputs. Raises OSError.

        Weights go straight from the model into the file: onnx's own way through a message holds them three times more.
        """
        pictures_in, pictures_out = (
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape]) for name, shape in shapes.items()]
            for shapes in (inputs, outputs)
        )
        model = helper.make_model(
            helper.make_graph(self.nodes, "swapfast", pictures_in, pictures_out),
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="swapfast",
            producer_version=metadata["swapfast"],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, dict(metadata))
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        tensors = [_tensor_parts(name, array) for name, array in self.arrays.items()]
        size = len(graph) + sum(len(part) for tensor in tensors for part in tensor)
        with open_new(path) as file:
            for part in (model.SerializeToString(), _field(onnx.ModelProto, "graph", size), graph):
                write_all(file, part)
            for tensor in tensors:
                for part in tensor:
                    write_all(file, part)


def _tensor_parts(name: str, array: np.ndarray) -> tuple[bytes, bytes, memoryview]:
    """Return an initializer as it lies in a file: what is before its values, in two parts, and the values."""
    values = np.ascontiguousarray(array).data.cast("B")
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    start = TensorProto(name=name, dims=array.shape, data_type=kind).SerializeToString()
    start += _field(TensorProto, "raw_data", len(values))
    return _field(onnx.GraphProto, "initializer", len(start) + len(values)), start, values


def _field(message: type, name: str, size: int) -> bytes:
    """Return what begins a field of a protobuf message, whose value takes ``size`` bytes: its number and the size."""
    return _varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | 2) + _varint(size)  # type: ignore[attr-defined]


def _varint(number: int) -> bytes:
    """Return a number as protobuf writes it: seven bits a byte, the lowest first."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def code_of(graph: Graph, model: FaceAutoencoder, images: str, shown: str, wanted: str) -> str:
    """Return what the decoder of the side ``wanted`` is given, as ``FaceAutoencoder.code``.

    images: of ``Graph.picture_in``, of the side ``shown``, whose statistics become numbers of the graph.
    """
    write = _SIDE_CODES.get(type(model))
    if write is None:
        raise SwapfastError(f"--to onnx or dfm: the model {model.name!r} cannot be written to ONNX yet")
    rows = Rows(0, shown, wanted)
    return write(graph, model, _layers(graph, model, "encoder", images, rows), rows)


def _layers(graph: Graph, model: FaceAutoencoder, path: str, value: str, rows: Rows) -> str:
    """Return what the module at ``path`` makes of a value, as ``FaceAutoencoder.run_layers``."""
    module = model.get_submodule(path)
    if model.has_statistics_within(path):
        for name, _ in module.named_children():
            value = _layers(graph, model, f"{path}.{name}", value, rows)
    else:
        value = graph.layer(module, value)
    statistics = model.statistics_behind(path)
    return value if statistics is None else _scaled(graph, statistics, value, rows)


def _scaled(graph: Graph, statistics: SideStatistics, value: str, rows: Rows) -> str:
    """Return a value (n, c, ...) scaled and moved by a side's statistics."""
    key = (statistics, f"{value} {rows.shown}{rows.wanted if statistics.is_code else ''}")
    if key not in graph.results:
        graph.results[key] = _scaled_anew(graph, statistics, value, rows)
    return graph.results[key]


def _scaled_anew(graph: Graph, statistics: SideStatistics, value: str, rows: Rows) -> str:
    scale, offset = (tensor.cpu().numpy() for tensor in statistics.scale_and_offset(rows.shown, rows.wanted))
    shape = (1, -1) if statistics.is_flat else (1, -1, 1, 1)
    wide = graph.wide(value)
    if (scale != 1).any():
        wide = graph.node("Mul", wide, graph.constant(scale.reshape(shape)))
    if offset.any():
        wide = graph.node("Add", wide, graph.constant(offset.reshape(shape)))
    return value if wide == value else graph.narrow(wide)


def _in_color_order(graph: Graph, value: str, model: FaceAutoencoder) -> str:
    """Return BGR (n, 3, h, w) in the model's order, or the other way round."""
    if model.color_order == "bgr":
        return value
    return graph.node("Gather", value, graph.constant(np.array([2, 1, 0])), axis=1)


def _standardised(graph: Graph, images: str) -> str:
    """Return images with the mean 0.5 and the deviation 0.25; see FaceAutoencoder."""

    def mean(value: str) -> str:
        return graph.node("ReduceMean", value, axes=[1, 2, 3], keepdims=1)

    def number(value: float) -> str:
        return graph.constant(np.array(value, np.float32))

    difference = graph.node("Sub", images, mean(images))
    spread = graph.node("Sqrt", mean(graph.node("Mul", difference, difference)))
    scaled = graph.node("Div", difference, graph.node("Add", spread, number(1e-3)))
    return graph.node("Add", graph.node("Mul", scaled, number(0.25)), number(0.5))


def _own_decoder(graph: Graph, model: FaceAutoencoder, value: str, rows: Rows) -> str:
    return value


def _shared_decoder(graph: Graph, model: FaceAutoencoder, value: str, rows: Rows) -> str:
    own = both = _layers(graph, model, "inters.both", value, rows)
    if rows.wanted == SIDES[0]:
        own = _layers(graph, model, "inters.a", value, rows._replace(shown=SIDES[0]))
    return graph.node("Concat", own, both, axis=1)


_SIDE_CODES: dict[type, Callable[[Graph, FaceAutoencoder, str, Rows], str]] = {
    FaceAutoencoder: _own_decoder,
    SharedDecoderAutoencoder: _shared_decoder,
}


def _conv(graph: Graph, layer: nn.Conv2d, value: str) -> str:
    if isinstance(layer, SameConv):
        before, after = layer.edges[:2]
        pads = [before, before, after, after]
    else:
        pads = [*layer.padding, *layer.padding]
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros" or layer.bias is None:
        raise SwapfastError(f"--to onnx or dfm: the layer {layer} cannot be written to ONNX; use --to safetensors")
    weights = graph.weight(layer.weight), graph.weight(layer.bias)
    return graph.node(
        "Conv", value, *weights, kernel_shape=list(layer.kernel_size), strides=list(layer.stride), pads=pads
    )


def _linear(graph: Graph, layer: nn.Linear, value: str) -> str:
    return graph.node("Gemm", value, graph.weight(layer.weight), graph.weight(layer.bias), transB=1)


def _sequential(graph: Graph, layers: nn.Sequential, value: str) -> str:
    for layer in layers:
        value = graph.layer(layer, value)
    return value


def _unflatten(graph: Graph, layer: Unflatten, value: str) -> str:
    return graph.node("Reshape", value, graph.constant(np.array([-1, *layer.shape])))


def _cosine_unit(graph: Graph, layer: CosineUnit, value: str) -> str:
    wide = graph.wide(value)
    return graph.narrow(graph.node("Mul", wide, graph.node("Cos", wide)))


def _residual(graph: Graph, layer: Residual, value: str) -> str:
    inner = graph.layer(layer.inner, graph.layer(layer.conv1, value))
    return graph.layer(layer.outer, graph.node("Add", value, graph.layer(layer.conv2, inner)))


def _normalised(graph: Graph, layer: NormalisedFeatures, value: str) -> str:
    wide = graph.wide(value)  # a sum of squares soon leaves float16
    mean = graph.node("ReduceMean", graph.node("Mul", wide, wide), axes=[1], keepdims=1)
    root = graph.node("Sqrt", graph.node("Add", mean, graph.constant(np.array(EPSILON, np.float32))))
    return graph.narrow(graph.node("Div", wide, root))


def _interleaved(graph: Graph, layer: InterleavedOutput, value: str) -> str:
    stacked = graph.node("Concat", *(graph.layer(conv, value) for conv in layer.convs), axis=1)
    return graph.node("DepthToSpace", stacked, blocksize=2, mode="DCR")


LAYERS: dict[type, Callable[..., str]] = {
    SameConv: _conv,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    DroppedDense: _linear,  # drops nothing of a finished model
    nn.Sequential: _sequential,
    Unflatten: _unflatten,
    CosineUnit: _cosine_unit,
    Residual: _residual,
    NormalisedFeatures: _normalised,
    InterleavedOutput: _interleaved,
    PixelShuffle: lambda graph, layer, value: graph.node(
        "DepthToSpace", value, blocksize=layer.upscale_factor, mode="CRD"
    ),
    nn.LeakyReLU: lambda graph, layer, value: graph.node("LeakyRelu", value, alpha=layer.negative_slope),
    nn.Flatten: lambda graph, layer, value: graph.node("Flatten", value, axis=1),
    nn.Sigmoid: lambda graph, layer, value: graph.node("Sigmoid", value),
    nn.Dropout: lambda graph, layer, value: value,  # it only trains
}
