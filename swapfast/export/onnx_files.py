"""ONNX files: the whole swap as one graph, for anything that runs ONNX, and DFM, the same under the names of
DeepFaceLive, which facefusion and VisoMaster read too.

Both take (n, h, w, 3) and give (n, h, w, c), float32 in 0..1, BGR. Only n is open: such programs read the sizes off the
graph. Each file is run beside the model before it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.export.mask import constant_masks, crop_note
from swapfast.export.request import Export
from swapfast.models import FaceAutoencoder
from swapfast.requirements import import_problem
from swapfast.system import available_cores

# In this order: they are read by position.
DFM_INPUT = "in_face:0"
DFM_MASK, DFM_FACE, DFM_FACE_MASK = DFM_OUTPUTS = ("out_face_mask:0", "out_celeb_face:0", "out_celeb_face_mask:0")
ONNX_INPUT, ONNX_FACE, ONNX_MASK = "face", "swap", "mask"
CHECKED_FACES = 8
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-3  # of any value of a picture or mask
_LARGEST_FILE = 2**31 - 2**20  # bytes; a protobuf ends at 2 GiB


def write_onnx(export: Export, path: Path) -> list[str]:
    """Write the face of ``export.side`` and its mask, where one is learned; see the module."""
    return _write(export, path, "onnx")


def write_dfm(export: Export, path: Path) -> list[str]:
    """Write a DFM: the mask of the picture's own face, the face of ``export.side``, and that face's mask.

    A model that learns no mask gives constant ones.
    """
    return [*_write(export, path, "dfm"), *crop_note(export.opened.config.crop)]


def _write(export: Export, path: Path, to: str) -> list[str]:
    _check_packages(to)
    size = sum(weight.numel() for weight in export.opened.model.parameters()) * (2 if export.is_half else 4)
    if size > _LARGEST_FILE:
        way_out = "use --to safetensors" if export.is_half else "add --fp16, or use --to safetensors"
        raise SwapfastError(
            f"--to {to}: {size / 2**30:.1f} GiB of weights are more than such a file can hold; {way_out}"
        )
    masks: dict[str, np.ndarray] = {}
    notes: list[str] = []
    if to == "dfm" and not export.opened.model.learns_mask:
        of_side, notes = constant_masks(export)
        masks = {DFM_MASK: of_side[export.other_side], DFM_FACE_MASK: of_side[export.side]}
    faces = np.random.default_rng(1).random((CHECKED_FACES, *(export.opened.model.input_size,) * 2, 3), np.float32)
    expected = _expected(export, faces, masks, to)
    if not all(np.isfinite(value).all() for value in expected.values()):
        raise SwapfastError(
            f"{export.opened.metadata.path}: what the model makes of random faces is not finite: the training has "
            "failed there; choose an earlier one with --checkpoint N"
        )
    if to == "dfm":
        _save_dfm(export, masks, path)
    else:
        _save_onnx(export, path)
    error = _largest_error(path, faces, expected)
    tolerance = HALF_TOLERANCE if export.is_half else TOLERANCE
    if not error <= tolerance:
        way_out = "leave --fp16 out" if export.is_half else "that is a fault of swapfast: please report it"
        raise SwapfastError(
            f"--to {to}: what the file makes of {CHECKED_FACES} random faces differs by {error:.2g} from the model, "
            f"and {tolerance:g} is allowed; {way_out}",
            EXIT_FAILED,
        )
    return [*notes, f"checked in onnxruntime: differs from the model by {error:.1e} at most ({tolerance:g} is allowed)"]


def _check_packages(to: str) -> None:
    for module in ("onnx", "onnxruntime"):
        if problem := import_problem(module):
            raise SwapfastError(
                f"--to {to}: needs the package {module} ({problem}); pip install 'swapfast[export]'", EXIT_FAILED
            )


@torch.no_grad()
def _expected(export: Export, faces: np.ndarray, masks: Mapping[str, np.ndarray], to: str) -> dict[str, np.ndarray]:
    """Return the outputs that the model itself gives, by name."""
    model = export.opened.model
    images = torch.from_numpy(faces).permute(0, 3, 1, 2)
    images = images if model.color_order == "bgr" else images.flip(1)

    def swapped(side: str) -> list[np.ndarray]:
        outputs = model.swap(images, side, of=export.other_side)
        mask = [outputs.pop()] if model.learns_mask else []
        face = outputs[-1] if model.color_order == "bgr" else outputs[-1].flip(1)
        return [value.permute(0, 2, 3, 1).numpy() for value in (face, *mask)]

    if to == "onnx":
        return dict(zip((ONNX_FACE, ONNX_MASK), swapped(export.side), strict=False))
    if model.learns_mask:
        face, face_mask = swapped(export.side)
        return dict(zip(DFM_OUTPUTS, (swapped(export.other_side)[1], face, face_mask), strict=True))
    repeated = {name: np.repeat(mask[None], len(faces), 0) for name, mask in masks.items()}
    return {DFM_FACE: swapped(export.side)[0], **repeated}


def _save_onnx(export: Export, path: Path) -> None:
    from swapfast.export.graph import Graph, code_of

    model = export.opened.model
    graph = Graph(model, export.is_half)
    code = code_of(graph, model, graph.picture_in(ONNX_INPUT, model), export.other_side, export.side)
    decoder = model.decoder(export.side)
    outputs = {ONNX_FACE: _face_shape(model)}
    graph.picture_out(graph.layer(decoder.face, code), ONNX_FACE, model)
    if decoder.mask is not None:
        outputs[ONNX_MASK] = _mask_shape(model)
        graph.picture_out(graph.layer(decoder.mask, code), ONNX_MASK)
    graph.save(path, {ONNX_INPUT: _input_shape(model)}, outputs, _metadata(export))


def _save_dfm(export: Export, masks: Mapping[str, np.ndarray], path: Path) -> None:
    from swapfast.export.graph import Graph, code_of

    model = export.opened.model
    graph = Graph(model, export.is_half)
    picture = graph.picture_in(DFM_INPUT, model)
    code, decoder = code_of(graph, model, picture, export.other_side, export.side), model.decoder(export.side)
    own_mask = model.decoder(export.other_side).mask
    if own_mask is not None and decoder.mask is not None:
        own_code = code_of(graph, model, picture, export.other_side, export.other_side)
        graph.picture_out(graph.layer(own_mask, own_code), DFM_MASK)
        graph.picture_out(graph.layer(decoder.mask, code), DFM_FACE_MASK)
    for name, mask in masks.items():
        graph.repeated(mask, DFM_INPUT, name)
    graph.picture_out(graph.layer(decoder.face, code), DFM_FACE, model)
    shapes = (_mask_shape(model), _face_shape(model), _mask_shape(model))
    outputs = dict(zip(DFM_OUTPUTS, shapes, strict=True))
    graph.save(path, {DFM_INPUT: _input_shape(model)}, outputs, _metadata(export))


def _metadata(export: Export) -> dict[str, str]:
    return export.metadata() | {"pictures_of": export.other_side, "face_of": export.side}


def _input_shape(model: FaceAutoencoder) -> tuple[int, int, int]:
    return model.input_size, model.input_size, 3


def _face_shape(model: FaceAutoencoder) -> tuple[int, int, int]:
    return model.output_sizes[-1], model.output_sizes[-1], 3


def _mask_shape(model: FaceAutoencoder) -> tuple[int, int, int]:
    return model.output_sizes[-1], model.output_sizes[-1], 1


def _largest_error(path: Path, faces: np.ndarray, expected: Mapping[str, np.ndarray]) -> float:
    """Return by how much the file's outputs differ from what is expected, at most; infinity where one is missing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {session.get_inputs()[0].name: faces}), strict=True))
    if outputs.keys() != expected.keys():
        return float("inf")
    return max(float(np.abs(outputs[name] - value).max()) for name, value in expected.items())
