"""ONNX and DFM files: every model in onnxruntime beside torch, and what the programs that read them rely on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

import cli
from swapfast import __version__
from swapfast.checkpoints.trained import ModelMetadata, OpenedModel
from swapfast.config import FACE_TYPES, CropConfig, LossConfig, ModelConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.export.mask import average_outline, crop_note
from swapfast.export.onnx_files import HALF_TOLERANCE, TOLERANCE, write_dfm, write_onnx
from swapfast.export.request import Export
from swapfast.models import FaceAutoencoder
from swapfast.models.autoencoder import Decoder
from swapfast.models.registry import MODELS, plan_model
from swapfast.requirements import import_problem
from tests.export.test_export import refused, save

pytestmark = pytest.mark.slow  # onnxruntime and dozens of networks

DIMS = {"input_size": 64, "ae_dims": 16, "e_dims": 8, "d_dims": 8}
NARROW = {"encoder_width": 8, "dense": 16}
# Each model: its name and sizes, and whether a mask is learned.
CASES = [
    ("tiny", {}, False),
    ("tiny", {}, True),
    ("original", NARROW, False),
    ("original", NARROW, True),
    ("original", NARROW | {"lowmem": True}, True),
    ("original", NARROW | {"dropout": 0.5}, False),
    ("original", NARROW | {"input_size": 128, "bottleneck": "8x8x16"}, False),
    ("original", NARROW | {"input_size": 256, "bottleneck": "16x16x16"}, False),
    ("df", DIMS, False),
    ("df", DIMS, True),
    ("df-u", DIMS, True),
    ("df-d", DIMS | {"input_size": 96}, True),
    ("df-t", DIMS, True),
    ("df-c", DIMS, False),
    ("df-udtc", DIMS, True),
    ("liae", DIMS, False),
    ("liae-ud", DIMS, True),
    ("liae-t", DIMS | {"input_size": 96}, False),
    ("liae-udtc", DIMS, True),
    ("lightweight", {}, True),
]


def _job(
    name: str = "tiny",
    sizes: dict | None = None,
    learn_mask: bool = False,
    side: str = "b",
    is_half: bool = False,
    mean_masks: dict | None = None,
    crop: CropConfig = FACE_TYPES["wf"],
) -> Export:
    """A model of drawn weights, biases too, whose pictures differ from face to face."""
    config = TrainConfig(
        model=ModelConfig(name=name, **(sizes or {})), loss=LossConfig(learn_mask=learn_mask), crop=crop
    )
    model = plan_model(config.model, learn_mask).initialise(3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            elif name.startswith(("df", "liae")) and not is_half:
                parameter *= 1.5  # so narrow and drawn Glorot-uniform, pictures fade from layer to layer
    metadata = ModelMetadata(7, "checkpoint", Path("model"), {}, {}, mean_masks or {}, {}, [])
    return Export("anna", OpenedModel(model, config, metadata), side, is_half)


@pytest.fixture
def narrow(monkeypatch):
    """The decoders of ``original`` with few channels, as its encoder has by options, and all of ``lightweight``."""
    monkeypatch.setattr("swapfast.models.lightweight.ENCODER_WIDTHS", (8, 8, 16))
    monkeypatch.setattr("swapfast.models.lightweight.UP_WIDTHS", (16, 8, 8))
    for name, channels in (("DENSE", 16), ("BOTTLENECK_WIDTH", 16), ("CODE_CHANNELS", 8)):
        monkeypatch.setattr(f"swapfast.models.lightweight.{name}", channels)
    monkeypatch.setattr("swapfast.models.original.UP_WIDTHS", (16, 16, 8, 8, 8))
    monkeypatch.setattr("swapfast.models.original.CODE_CHANNELS", 16)


def _faces(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, size, size, 3), np.float32)


def _swap(model: FaceAutoencoder, faces: np.ndarray, side: str) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = model.swap(torch.from_numpy(faces).permute(0, 3, 1, 2), side)
    return [output.permute(0, 2, 3, 1).numpy() for output in outputs]


def _run(path: Path, faces: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs by name, in buffers whose sizes are read off the graph, as VisoMaster's are."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    (picture,) = session.get_inputs()
    assert picture.type == "tensor(float)" and tuple(picture.shape[1:]) == faces.shape[1:]
    binding.bind_cpu_input(picture.name, faces)
    outputs = {}
    for output in session.get_outputs():
        assert output.type == "tensor(float)" and not isinstance(output.shape[0], int)
        assert all(isinstance(edge, int) for edge in output.shape[1:])
        outputs[output.name] = np.full((len(faces), *output.shape[1:]), np.nan, np.float32)
        buffer = outputs[output.name]
        binding.bind_output(output.name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
    session.run_with_iobinding(binding)
    return outputs


def test_every_registered_model_is_among_the_cases():
    names = [name for name, *_ in CASES]
    assert {name.partition("-")[0] for name in names} == MODELS.keys()
    assert {letter for name in names for letter in name.partition("-")[2]} == set("udtc")


@pytest.mark.parametrize(("name", "sizes", "learn_mask"), CASES)
def test_every_model_gives_the_same_in_onnxruntime(name, sizes, learn_mask, narrow, tmp_path, within):
    """1e-4: float32 sums in another order; the largest error seen is 1e-5 of values up to 1."""
    job = _job(name, sizes, learn_mask)
    model = job.opened.model
    writers = {"dfm": write_dfm} if model.input_size == 256 else {"dfm": write_dfm, "onnx": write_onnx}
    for kind, write in writers.items():
        path = tmp_path / f"m.{kind}"
        write(job, path)
        onnx.checker.check_model(path, full_check=True)
        proto = onnx.load(path)
        assert proto.ir_version == 7 and [(o.domain, o.version) for o in proto.opset_import] == [("", 12)]
        for count in (1, 5):
            faces = _faces(count, model.input_size)
            face, *mask = _swap(model, faces, "b")
            own = _swap(model, faces, "a")[1:]
            outputs = _run(path, faces)
            if kind == "onnx":
                assert list(outputs) == ["swap", "mask"][: 1 + learn_mask]
                expected = dict(zip(outputs, (face, *mask), strict=True))
            else:
                assert list(outputs) == ["out_face_mask:0", "out_celeb_face:0", "out_celeb_face_mask:0"]
                expected = {"out_celeb_face:0": face}
                if learn_mask:
                    expected |= {"out_face_mask:0": own[0], "out_celeb_face_mask:0": mask[0]}
                    assert np.abs(own[0] - mask[0]).max() > 0.01, "each side's differs"
            assert count == 1 or face.std(axis=0).max() > 1e-3, "what does not depend on the face shows nothing"
            error = max(np.abs(outputs[key] - value).max() for key, value in expected.items())
            within(f"{kind}, {count} faces", error, TOLERANCE)


def _show_both_sides(model: FaceAutoencoder) -> None:
    """Let a model see dark faces of A and bright ones of B that look another way, so that it has statistics of both."""
    model.train()
    apart = torch.diag(torch.tensor([0.9, 0.0, 0.3])) * torch.tensor([-1.0, 1.0])[:, None, None]
    model.compare_poses(torch.tensor([[0.0, -1.4, 0.2], [0.0, 1.4, -0.2]]), apart)
    with torch.no_grad():
        faces = torch.from_numpy(_faces(8, model.input_size)).permute(0, 3, 1, 2)
        covariates = [faces.mean((2, 3)) * 100, faces.amax((2, 3)) * 100]
        model([faces * torch.tensor([0.2, 1, 1]).view(3, 1, 1), faces], covariates=covariates)
    model.update_statistics()
    for layer in model.statistics.values():  # as where colours are augmented for a share of the faces
        layer.uncolored_sums[1] = torch.linspace(-3, 3, layer.uncolored_sums.shape[1])
        layer.uncolored_faces.fill_(10)
    model.eval()


@pytest.mark.parametrize("case", ["tiny encoder", "tiny plain", "df-ut bottleneck", "liae-ud encoder", "liae-ud plain"])
def test_statistics_are_folded_into_the_graph(case, tmp_path, within):
    """Those of the side whose pictures go in, for each of the two outputs of a DFM."""
    name, code = case.split()
    sizes = {"code": code} | ({} if name == "tiny" else DIMS)
    job = _job(name, sizes, learn_mask=True)
    model, faces = job.opened.model, _faces(3, 64)
    unseen = _swap(model, faces, "b")
    _show_both_sides(model)
    face, mask = _swap(model, faces, "b")
    assert np.abs(face - unseen[0]).max() > 0.01, "they matter"
    with torch.no_grad():
        own = model.swap(torch.from_numpy(faces).permute(0, 3, 1, 2), "a", of="a")[1].permute(0, 2, 3, 1).numpy()
    write_dfm(job, tmp_path / "m.dfm")
    outputs = _run(tmp_path / "m.dfm", faces)
    for key, value in zip(outputs, (own, face, mask), strict=True):
        within(key, np.abs(outputs[key] - value).max(), TOLERANCE)
    weights = [node.input[1] for node in onnx.load(tmp_path / "m.dfm").graph.node if node.op_type == "Conv"]
    halvings = [name for name in weights if name.startswith("encoder") and not name.startswith("encoder.8")]
    assert len(halvings) == len(set(halvings)) >= 4, "both outputs share what is in front of the code"


@pytest.mark.parametrize("name", ["df-ud_64", "liae-udtc_64"])
def test_a_model_of_deepfacelabs_gives_its_own_pictures(golden, name, tmp_path, within):
    """Imported and exported: the dst picture's mask, the src face on it and that face's mask, as recorded there."""
    assert cli.main(["import", str(golden.folder / "dfl" / name), "-m", str(tmp_path / "m")]) == 0
    assert cli.main(["export", "-m", str(tmp_path / "m"), "--to", "dfm", "-o", str(tmp_path / "m.dfm")]) == 0
    recorded = golden(f"dfl/{name}")
    outputs = _run(tmp_path / "m.dfm", recorded["warped_dst"])
    for output, key in zip(outputs.values(), ("dst_dst_mask", "src_dst", "src_dst_mask"), strict=True):
        within(key, np.abs(output - recorded[key]).max(), 1e-5)


@pytest.mark.parametrize("name", ["df-ud", "liae-ud"])
def test_side_a_comes_out_where_it_is_asked_for(name, tmp_path, within):
    job = _job(name, DIMS, learn_mask=True, side="a")
    write_dfm(job, tmp_path / "m.dfm")
    faces = _faces(2, 64)
    outputs = _run(tmp_path / "m.dfm", faces)
    face, mask = _swap(job.opened.model, faces, "a")
    other_face, own_mask = _swap(job.opened.model, faces, "b")
    assert np.abs(face - other_face).max() > 0.05
    for key, value in zip(outputs, (own_mask, face, mask), strict=True):
        within(key, np.abs(outputs[key] - value).max(), TOLERANCE)


@pytest.mark.parametrize(("name", "sizes"), [("tiny", {}), ("liae-udtc", DIMS)])
def test_half_the_bits(name, sizes, tmp_path, within):
    """2e-3: float16 keeps 11 bits, and each layer rounds; the largest error seen is 3e-4."""
    job = _job(name, sizes, learn_mask=True, is_half=True)
    write_dfm(job, tmp_path / "m.dfm")
    write_dfm(Export("anna", job.opened), tmp_path / "wide.dfm")
    onnx.checker.check_model(tmp_path / "m.dfm", full_check=True)
    weights = [t for t in onnx.load(tmp_path / "m.dfm").graph.initializer if "." in t.name]
    assert len(weights) > 10 and {t.data_type for t in weights} == {TensorProto.FLOAT16}
    assert (tmp_path / "m.dfm").stat().st_size < 0.6 * (tmp_path / "wide.dfm").stat().st_size
    half, wide = (_run(tmp_path / f"{name}.dfm", _faces(5, 64)) for name in ("m", "wide"))
    within("5 faces", max(np.abs(half[key] - wide[key]).max() for key in wide), HALF_TOLERANCE)


def test_a_shared_decoder_is_kept_once(tmp_path):
    job = _job("liae-ud", DIMS, learn_mask=True)
    write_dfm(job, tmp_path / "m.dfm")
    names = [tensor.name for tensor in onnx.load(tmp_path / "m.dfm").graph.initializer]
    assert len(names) == len(set(names))
    assert {name for name in names if "." in name} == dict(job.opened.model.named_parameters()).keys()


def test_float16_too_coarse_for_a_model_is_refused(tmp_path):
    job = _job(is_half=True)
    with torch.no_grad():
        job.opened.model.decoders["b"].face[-2].weight *= 100
    with pytest.raises(SwapfastError, match=r"differs by .* from the model, and 0.002 is allowed; leave --fp16 out"):
        write_onnx(job, tmp_path / "m.onnx")


def test_pictures_that_are_not_finite_are_refused(tmp_path):
    job = _job()
    with torch.no_grad():
        for layer in job.opened.model.decoders["b"].face.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight *= 1e15
    with pytest.raises(SwapfastError, match="of random faces is not finite"):
        write_dfm(job, tmp_path / "m.dfm")


def test_a_model_that_takes_rgb(tmp_path, within):
    job = _job(learn_mask=True)
    job.opened.model.color_order = "rgb"
    write_onnx(job, tmp_path / "m.onnx")
    faces = _faces(2, 64)
    face, mask = _swap(job.opened.model, np.ascontiguousarray(faces[..., ::-1]), "b")
    outputs = _run(tmp_path / "m.onnx", faces)
    within("face", np.abs(outputs["swap"] - face[..., ::-1]).max(), TOLERANCE)
    within("mask", np.abs(outputs["mask"] - mask).max(), TOLERANCE)


def test_what_a_file_says_of_itself(tmp_path):
    job = _job("liae-ud", DIMS)
    write_dfm(job, tmp_path / "m.dfm")
    proto = onnx.load(tmp_path / "m.dfm")
    said = {entry.key: entry.value for entry in proto.metadata_props}
    assert (said["swapfast"], said["name"], said["model"], said["iteration"]) == (__version__, "anna", "liae-ud", "7")
    assert (said["centering"], said["coverage"], said["vertical_offset"]) == ("face", "90", "-7.5")
    assert (said["pictures_of"], said["face_of"], said["sides"]) == ("a", "b", "a b")
    assert said["synthetic_media"] == "true" and json.loads(said["model_settings"])["ae_dims"] == 16
    assert proto.producer_name == "swapfast"


def test_a_model_without_a_mask_gives_the_mean_training_masks(tmp_path):
    square = np.zeros((64, 64, 1), np.float32)
    square[16:48, 16:48] = 0.5
    job = _job(mean_masks={"a": square, "b": np.ones_like(square)})
    notes = write_dfm(job, tmp_path / "m.dfm")
    assert len(notes) == 1 and "checked in onnxruntime" in notes[0]
    outputs = _run(tmp_path / "m.dfm", _faces(5, 64))
    own, face = outputs["out_face_mask:0"], outputs["out_celeb_face_mask:0"]
    assert own.shape == face.shape == (5, 64, 64, 1) and (own == own[0]).all() and (face == face[0]).all()
    # By a deviation of 2 px: the middle keeps its value, an edge half of it, and nothing is left 16 px outside.
    assert own[0, 32, 32, 0] == pytest.approx(0.5, abs=1e-3) and own[0, 0, 0, 0] == pytest.approx(0, abs=1e-3)
    assert own[0, 32, 15:17, 0].mean() == pytest.approx(0.25, abs=1e-2)
    assert face[0, 32, 32, 0] == pytest.approx(1, abs=1e-3) and face[0, 32, 0, 0] < 0.65, "it fades towards the edge"


def test_a_model_without_mean_masks_gives_an_average_outline(tmp_path):
    notes = write_dfm(_job(), tmp_path / "m.dfm")
    assert len(notes) == 2 and "the model keeps no mean mask" in notes[0]
    mask = _run(tmp_path / "m.dfm", _faces(1, 64))["out_face_mask:0"][0, ..., 0]
    assert mask[32, 32] == pytest.approx(1, abs=1e-3) and mask[:2].max() < 0.05 and mask[:, :2].max() < 0.05
    assert 0.2 < mask.mean() < 0.6


@pytest.mark.parametrize("name", FACE_TYPES)
def test_an_average_outline_lies_in_every_crop(name):
    outline = average_outline(FACE_TYPES[name], 128)
    assert outline.max() == 1 and 0.1 < outline.mean() < 0.995
    assert abs(outline[:, :64].mean() - outline[:, 64:].mean()) < 0.02, "it is upright and in the middle"


@pytest.mark.parametrize(
    ("crop", "fits"),
    [
        (FACE_TYPES["wf"], True),
        (CropConfig(coverage=97.5, vertical_offset=-10), True),  # facefusion's
        (CropConfig(coverage=92.5, vertical_offset=-7.5), True),
        (FACE_TYPES["f"], False),
        (FACE_TYPES["head"], False),
        (CropConfig(centering="legacy"), False),
    ],
)
def test_a_crop_that_dfm_programs_do_not_cut_is_told(crop, fits):
    note = crop_note(crop)
    assert (note == []) == fits
    assert fits or ("--face-type wf" in note[0] and f"{crop.coverage:g}" in note[0])


def test_an_unknown_layer_is_named(tmp_path):
    job = _job()
    job.opened.model.encoder.append(nn.Hardswish())
    with pytest.raises(SwapfastError, match="layer of the kind Hardswish"):
        write_dfm(job, tmp_path / "m.dfm")
    job = _job()
    job.opened.model.encoder[0][0].dilation = (2, 2)
    job.opened.model.encoder[0][0].edges = (3, 4, 3, 4)
    with pytest.raises(SwapfastError, match=r"SameConv.*cannot be written"):
        write_dfm(job, tmp_path / "m.dfm")


def test_an_unknown_family_is_named(tmp_path):
    class Other(FaceAutoencoder):
        pass

    job = _job()
    model = job.opened.model
    decoders = {side: model.decoder(side) for side in "ab"}
    assert all(isinstance(decoder, Decoder) for decoder in decoders.values())
    other = Other("other", 64, (64,), model.encoder, decoders)
    job = Export("anna", job.opened._replace(model=other))
    with pytest.raises(SwapfastError, match="the model 'other' cannot be written to ONNX"):
        write_onnx(job, tmp_path / "m.onnx")


def test_more_than_a_file_can_hold_is_refused_at_once(tmp_path):
    with torch.device("meta"):
        sizes = {"input_size": 256, "bottleneck": "32x32x1024", "dense": 4096}
        model = plan_model(ModelConfig(name="original", **sizes), False)
    for is_half, way_out in ((False, "--fp16"), (True, "use --to safetensors")):
        job = _job(is_half=is_half)
        job = Export("anna", job.opened._replace(model=model), is_half=is_half)
        with pytest.raises(SwapfastError, match=f"GiB of weights are more than such a file can hold.*{way_out}"):
            write_dfm(job, tmp_path / "m.dfm")


@pytest.fixture
def export(tmp_path, monkeypatch, capsys):
    """Run the command on a model folder 'anna', in an empty folder; return its code, output and error."""
    save(tmp_path / "anna", 3)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(["export", "-m", str(tmp_path / "anna"), *words])
        return code, *capsys.readouterr()

    return call


def test_the_command(export):
    code, out, err = export("--to", "dfm")
    assert code == 0 and err == "" and "checked in onnxruntime" in out and "anna_face90-7.5_64.dfm" in out
    assert export("--to", "dfm", "--side", "A", "--fp16")[0] == 0
    assert export("--to", "onnx", "-o", "x.onnx")[0] == 0
    assert sorted(path.name for path in Path().iterdir()) == [
        "anna_a_face90-7.5_64_fp16.dfm",
        "anna_face90-7.5_64.dfm",
        "x.onnx",
    ]
    assert "give a name that ends in .dfm" in refused(export("--to", "dfm", "-o", "y.onnx"))


def test_a_model_folder_whose_name_is_no_text(tmp_path, monkeypatch):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe4\xff"))
    folder.mkdir()
    monkeypatch.chdir(folder)  # safetensors opens no file by such a path
    save(Path(), 3)
    for to in ("dfm", "safetensors"):
        assert cli.main(["export", "-m", ".", "--to", to]) == 0
    said = {entry.key: entry.value for entry in onnx.load("___face90-7.5_64.dfm").metadata_props}
    assert said["name"] == "__" and Path("___face90-7.5_64.safetensors").is_file()


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra(export, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    import_problem.cache_clear()
    try:
        line = refused(export("--to", "dfm"), 1)
    finally:
        import_problem.cache_clear()
    assert f"needs the package {module}" in line and "pip install 'swapfast[export]'" in line
    assert not list(Path().iterdir())
