"""faceswap's .keras files: what is read of them, what is written, and what is refused."""

from __future__ import annotations

import copy
import io
import json
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
import torch

from swapfast.config import ModelConfig
from swapfast.errors import SwapfastError
from swapfast.interop import keras_archive
from swapfast.interop.keras import (
    KerasTemplate,
    check_fits,
    describe,
    read_keras,
    read_numbers,
    write_keras,
)
from swapfast.interop.keras_architecture import identify, read_architecture
from swapfast.interop.keras_archive import looks_like_keras, parse_archive, read_archive
from swapfast.models.registry import plan_model
from swapfast.models.tiny import tiny
from tests.interop.keras_files import (
    PLANS,
    config_of,
    files_of,
    model_of,
    random_numbers,
    read_back,
    save,
    save_plan,
    weights_file,
)

pytestmark = pytest.mark.slow  # hostile files by the dozen

NARROW = {name: plan.divided(16) for name, plan in PLANS.items()}


def _read(path, plan):
    """A narrow file in the network of its plan, and the template that the file is."""
    archive = read_archive(path)
    architecture = read_architecture(archive)
    model = model_of(plan)
    return model, KerasTemplate(archive, architecture, read_numbers(model, archive, architecture))


def _equal(first, second) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True)
    )


@pytest.mark.parametrize("name", NARROW)
def test_weights_come_back_to_the_bit(name, tmp_path):
    path, plan = tmp_path / "a.keras", NARROW[name]
    numbers = random_numbers(config_of(plan)[1])
    save_plan(path, plan, numbers)
    model, template = _read(path, plan)
    write_keras(model, template, tmp_path / "b.keras")
    assert _equal(read_back(tmp_path / "b.keras"), numbers)
    with zipfile.ZipFile(path) as first, zipfile.ZipFile(tmp_path / "b.keras") as second:
        assert [info.compress_type for info in second.infolist()] == [zipfile.ZIP_STORED] * 3
        for member in ("config.json", "metadata.json"):
            assert first.read(member) == second.read(member)
    again, _ = _read(tmp_path / "b.keras", plan)
    assert all(torch.equal(weight, again.state_dict()[key]) for key, weight in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.keras", "b.keras"]


def test_names_decide_and_not_places(tmp_path):
    """Groups are called by class and number, in any order; the name that a group keeps says whose numbers it has."""
    plan = NARROW["original+mask"]
    files = files_of(plan)
    shuffled = io.BytesIO()
    with h5py.File(io.BytesIO(files["model.weights.h5"])) as source, h5py.File(shuffled, "w") as target:
        for part, group in source["layers"].items():
            names = list(group.get("layers", []))
            new_part = {"functional": "functional_2", "functional_2": "functional"}.get(part, part)
            if not names:
                source.copy(f"layers/{part}", target.require_group("layers"), new_part)
                continue
            source.copy(f"layers/{part}/vars", target.require_group(f"layers/{new_part}"), "vars")
            for name, other in zip(names, names[::-1], strict=True):
                source.copy(f"layers/{part}/layers/{name}", target.require_group(f"layers/{new_part}/layers"), other)
        source.copy("vars", target, "vars")
    moved = save(tmp_path / "moved.keras", files | {"model.weights.h5": shuffled.getvalue()})
    plain, _ = _read(save(tmp_path / "plain.keras", files), plan)
    model, _ = _read(moved, plan)
    assert all(torch.equal(weight, plain.state_dict()[key]) for key, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "option"), [("original", {}), ("original+mask", {}), ("lowmem", {"lowmem": True}), ("lightweight", {})]
)
def test_a_file_is_recognised(name, option, tmp_path):
    """By its config.json alone, which is of the whole size here."""
    archive = parse_archive(tmp_path / "x.keras", json.dumps(config_of(PLANS[name])[0]).encode(), b"{}")
    architecture = read_architecture(archive)
    config = identify(archive.path, architecture)
    family = "lightweight" if name == "lightweight" else "original"
    assert (config.name, config.lowmem) == (family, option.get("lowmem", False))
    assert architecture.learns_mask == ("mask" in name) and architecture.size == 64
    assert (config.encoder_width, config.dense, config.bottleneck, config.input_size) == (0, 0, "", 0)


def test_a_network_is_described():
    count = sum(int(np.prod(shape)) for shapes in config_of(NARROW["lowmem"])[1].values() for shape in shapes)
    assert describe(model_of(NARROW["lowmem"])) == (
        f"64 px in and out, encoder 8 16 32 32 1024 128, decoders 64 32 16 3; {count:,} parameters"
    )


def _refused(path, words: str) -> None:
    with pytest.raises(SwapfastError, match=words) as raised:
        read_keras(path)
    assert raised.value.code == 2 and "\n" not in str(raised.value) and str(path) in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("name", ["phaze_a", "dfl_sae", "dfaker", "villain", "dfl_h128"])
def test_other_models_of_faceswap_are_refused_by_name(name, tmp_path):
    files = files_of(NARROW["original"])
    model = json.loads(files["config.json"])
    model["config"]["name"] = name
    path = save(tmp_path / "a.keras", files | {"config.json": json.dumps(model).encode()})
    _refused(path, f"is faceswap's model '{name}'; of faceswap's models original and lightweight can be read")


def test_a_network_of_other_parts_or_sizes_is_refused(tmp_path):
    files = files_of(NARROW["original"])
    path = save(tmp_path / "narrow.keras", files)
    _refused(path, "layer 13 of the encoder is a convolution 3x3 of stride 1 to 128 and should be .* to 2048")
    model = json.loads(files["config.json"])
    model["config"]["name"] = "mine"
    model["config"]["layers"][2]["config"]["name"] = "inter"
    path = save(tmp_path / "parts.keras", files | {"config.json": json.dumps(model).encode()})
    _refused(path, "is the model 'mine' of 'inter, decoder_a, decoder_b'; of faceswap's models")
    plan = NARROW["original"]
    path = save_plan(tmp_path / "relu.keras", plan)
    for layer in model["config"]["layers"][2]["config"]["layers"]:
        layer["config"].pop("negative_slope", None)
    model["config"]["layers"][2]["config"]["name"] = "encoder"
    path = save(tmp_path / "relu.keras", files | {"config.json": json.dumps(model).encode()})
    _refused(path, r"its config.json describes no model of faceswap's \(KeyError 'negative_slope'\)")


def _changed(layer: dict, kind: str, **config) -> None:
    layer["class_name"] = kind
    layer["config"].update(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layer: _changed(layer, "ReflectionPadding2D"), "has reflect padding"),
        (lambda layer: _changed(layer, "InstanceNormalization"), "has instance normalisation"),
        (lambda layer: _changed(layer, "BatchNormalization"), "has batch normalisation"),
        (lambda layer: _changed(layer, "PReLU"), "has the activation PReLU"),
        (lambda layer: _changed(layer, "Activation", activation="swish"), "has the activation swish"),
        (lambda layer: _changed(layer, "Gremlin"), "has a layer Gremlin"),
        (lambda layer: _changed(layer, "X" * 5000), "has a layer XXXX"),
        (lambda layer: _changed(layer, "\n\nX"), "has a layer X "),
        (lambda layer: layer["config"].update(negative_slope=0.2), "leaky ReLU 0.2 and should be leaky ReLU 0.1"),
    ],
)
def test_layers_that_faceswap_adds_by_setting_are_refused_by_name(change, words, tmp_path):
    """In place of the encoder's first activation."""
    files = files_of(NARROW["original"])
    model = json.loads(files["config.json"])
    change(model["config"]["layers"][2]["config"]["layers"][2])
    _refused(save(tmp_path / "a.keras", files | {"config.json": json.dumps(model).encode()}), words)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"padding": "valid"}, "has padding 'valid'"),
        ({"use_bias": False}, "has no bias"),
        ({"activation": "relu"}, "has the activation relu"),
        ({"groups": 2}, "has groups 2"),
        ({"filters": 10**30}, "describes no model of faceswap's"),
        ({"filters": "many"}, "describes no model of faceswap's"),
        ({"kernel_size": [5, 3]}, r"a kernel of \[5, 3\]"),
        ({"kernel_size": None}, "describes no model of faceswap's"),
    ],
)
def test_convolutions_of_another_kind_are_refused(setting, words, tmp_path):
    files = files_of(NARROW["original"])
    model = json.loads(files["config.json"])
    model["config"]["layers"][2]["config"]["layers"][1]["config"].update(setting)
    _refused(save(tmp_path / "a.keras", files | {"config.json": json.dumps(model).encode()}), words)


def test_what_is_no_archive_is_refused(tmp_path):
    files = files_of(NARROW["original"])
    whole = save(tmp_path / "whole.keras", files).read_bytes()
    for name, content, words in (
        ("old.h5", files["model.weights.h5"], r"is a model of Keras 2 \(\.h5\); open it once in a current faceswap"),
        ("text.keras", b"hello", r"is no \.keras file \(no zip archive\)"),
        ("empty.keras", b"", r"is no \.keras file \(no zip archive\)"),
        ("short.keras", whole[:-1000], r"is damaged \(File is not a zip file\)"),
        ("flipped.keras", _flipped(whole), r"is damaged \(Bad CRC-32"),
    ):
        (tmp_path / name).write_bytes(content)
        _refused(tmp_path / name, words)
    _refused(tmp_path / "none.keras", r"cannot be read \(No such file")
    for missing in files:
        path = save(tmp_path / "part.keras", {name: content for name, content in files.items() if name != missing})
        if missing != "model.weights.h5":  # which is not looked at in this narrow file
            _refused(path, f"{missing} is missing; give a .keras file as Keras 3 saves it")
    for content, words in (
        (b"{", "config.json is damaged"),
        (b"[1]", "config.json is no table"),
        (b"[" * 100_000, r"config.json is damaged \(nested too deeply\)"),
        (b"{}", r"describes no model of faceswap's \(KeyError 'config'\)"),
        (b"\xff\xfe", "config.json is damaged"),
        (b'{"config": {"name": "x", "layers": [{"config": 3}]}}', "describes no model of faceswap's"),
        (b" " * (5 << 20), r"config.json has 5,242,880 bytes, where at most 4,194,304 belong"),
    ):
        _refused(save(tmp_path / "json.keras", files | {"config.json": content}), words)
    about = json.dumps({"keras_version": "2.15.0"}).encode()
    _refused(save(tmp_path / "two.keras", files | {"metadata.json": about}), "was saved by Keras '2.15.0'")


def _flipped(whole: bytes) -> bytes:
    """With one bit of the config changed, which is stored as it is."""
    at = whole.index(b'"module"')
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


def test_layers_in_a_circle_are_refused(tmp_path):
    files = files_of(NARROW["original"])
    model = json.loads(files["config.json"])
    layers = model["config"]["layers"][2]["config"]["layers"]
    layers[1]["inbound_nodes"] = copy.deepcopy(layers[3]["inbound_nodes"])
    _refused(save(tmp_path / "a.keras", files | {"config.json": json.dumps(model).encode()}), "round in a circle")


def test_a_bomb_is_not_unpacked(tmp_path):
    """Zeros that deflate a thousandfold: refused by what the archive says of them, before a byte is read."""
    files = files_of(NARROW["original"])
    weights = sum(
        4 * kernel.size + 4 * bias.size for kernel, bias in read_back(save(tmp_path / "a.keras", files)).values()
    )
    zeros = bytes(keras_archive.BESIDE_WEIGHTS + keras_archive.COPIES * weights + 1)
    path = save(tmp_path / "bomb.keras", files | {"model.weights.h5": zeros}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    archive = read_archive(path)
    with pytest.raises(SwapfastError, match=rf"bomb.keras: model.weights.h5 has {len(zeros):,} bytes, where at most"):
        read_numbers(model_of(NARROW["original"]), archive, read_architecture(archive))
    for member in ("config.json", "metadata.json"):
        path = save(tmp_path / "json.keras", files | {member: b" " * (5 << 20)}, zipfile.ZIP_DEFLATED)
        _refused(path, f"{member} has 5,242,880 bytes, where at most 4,194,304 belong")


def test_an_entry_that_is_larger_than_it_says_is_damaged(tmp_path):
    """No more is unpacked than the archive says, and that has another checksum."""
    files = files_of(NARROW["original"])
    path = save(tmp_path / "a.keras", files | {"config.json": b" " * (50 << 20)}, zipfile.ZIP_DEFLATED)
    size, smaller = (number.to_bytes(4, "little") for number in (50 << 20, 100))
    content = path.read_bytes()
    assert content.count(size) == 2  # in front of the entry, and in the directory at the end
    path.write_bytes(content.replace(size, smaller))
    tracemalloc.start()
    _refused(path, r"is damaged \(Bad CRC-32 for file 'config.json'\)")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_an_archive_within_the_archive_is_refused(tmp_path):
    plan = NARROW["original"]
    files = files_of(plan)
    inner = save(tmp_path / "inner.keras", files).read_bytes()
    archive = read_archive(save(tmp_path / "outer.keras", files | {"model.weights.h5": inner}))
    with pytest.raises(SwapfastError, match=r"outer.keras: model.weights.h5 is damaged \(.*file signature not found"):
        read_numbers(model_of(plan), archive, read_architecture(archive))


def _first(file: h5py.File) -> h5py.Group:
    return file["layers/functional/layers/conv2d/vars"]


def _link(file, kind) -> None:
    del _first(file)["0"]
    _first(file)["0"] = kind


def _replaced(file, **dataset) -> None:
    del _first(file)["0"]
    _first(file).create_dataset("0", **dataset)


def _not_finite(file, value: float) -> None:
    _first(file)["0"][0, 0, 0, 0] = value


def _virtual(file) -> None:
    layout = h5py.VirtualLayout((5, 5, 3, 8), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (5, 5, 3, 8))
    del _first(file)["0"]
    _first(file).create_virtual_dataset("0", layout)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: _not_finite(file, np.nan), "layer 'conv_0_conv2d' of encoder has numbers that are not finite"),
        (lambda file: _not_finite(file, np.inf), "has numbers that are not finite"),
        (lambda file: _link(file, h5py.ExternalLink("/etc/passwd", "/x")), "conv2d/vars/0 is a link"),
        (lambda file: _link(file, h5py.SoftLink("/vars")), "conv2d/vars/0 is a link"),
        (lambda file: _replaced(file, shape=(10**6, 10**6), dtype="f8", chunks=(1, 1)), "has shape .1000000, 1000000"),
        (lambda file: _replaced(file, data=np.zeros((5, 5, 3, 8), "i4")), "has shape"),
        (
            lambda file: _replaced(file, shape=(5, 5, 3, 8), dtype="f4", external=[("/etc/passwd", 0, 2400)]),
            "vars/0 holds no numbers",
        ),
        (_virtual, "vars/0 holds no numbers"),
        (
            lambda file: _replaced(
                file, shape=(5, 5, 3, 8), dtype="f4", maxshape=(None,) * 4, chunks=(1000, 1000, 30, 30), compression=9
            ),
            "vars/0 is stored in pieces of .1000, 1000, 30, 30., larger than itself",
        ),
        (lambda file: _first(file).__delitem__("1"), "conv2d/vars/1 is missing"),
        (lambda file: _first(file).attrs.__delitem__("name"), "has no name"),
        (lambda file: _first(file).attrs.__setitem__("name", 3), "is no text"),
        (lambda file: _first(file).attrs.__setitem__("name", np.bytes_(b"x" * 60_000)), "is too long"),
        (lambda file: _first(file).attrs.__setitem__("name", "x" * 60_000), "is no text"),
        (lambda file: _first(file).attrs.__setitem__("name", ["conv_0_conv2d"] * 9), "is too long"),
        (lambda file: _first(file).attrs.__setitem__("name", "other"), "no weights of the layer 'conv_0_conv2d' of"),
        (lambda file: file.__delitem__("layers"), "no weights of the layer"),
        (lambda file: file["layers"].move("functional", "../x"), "layers"),
        (lambda file: [file.create_group(f"layers/g{n}") for n in range(1001)], "is no group of at most 1000 layers"),
    ],
)
def test_a_weights_file_that_is_not_what_it_says_is_refused(damage, words, tmp_path):
    plan = NARROW["original"]
    files = files_of(plan)
    content = io.BytesIO(files["model.weights.h5"])
    with h5py.File(content, "r+") as file:
        damage(file)
    path = save(tmp_path / "a.keras", files | {"model.weights.h5": content.getvalue()})
    with pytest.raises(SwapfastError, match=words) as raised:
        _read(path, plan)
    assert "\n" not in str(raised.value) and "is damaged" in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize("seed", range(3))
def test_a_weights_file_with_broken_bytes_is_refused_or_read(seed, tmp_path):
    """Whatever is broken of the structure, what is raised is a SwapfastError."""
    plan, rng = NARROW["lightweight"], np.random.default_rng(seed)
    files = files_of(plan)
    for _ in range(20):
        content = bytearray(files["model.weights.h5"])
        for at in rng.integers(0, 4096, 8):
            content[at] = rng.integers(0, 256)
        path = save(tmp_path / "a.keras", files | {"model.weights.h5": bytes(content)})
        try:
            model, _ = _read(path, plan)
        except SwapfastError as error:
            assert "\n" not in str(error)
        else:
            assert all(weight.isfinite().all() for weight in model.state_dict().values())


def test_an_optimizer_in_the_weights_file_is_left_behind(tmp_path):
    """Keras itself keeps it there; twice the weights, for Adam."""
    plan = NARROW["original"]
    files = files_of(plan)
    content = io.BytesIO(files["model.weights.h5"])
    with h5py.File(content, "r+") as file:
        for number in range(2):
            file.create_dataset(f"optimizer/vars/{number}", data=np.ones(len(files["model.weights.h5"]) // 4, "f4"))
    path = save(tmp_path / "a.keras", files | {"model.weights.h5": content.getvalue()})
    model, template = _read(path, plan)
    write_keras(model, template, tmp_path / "b.keras")
    assert _equal(read_back(tmp_path / "b.keras"), read_back(path))
    assert (tmp_path / "b.keras").stat().st_size < 0.4 * path.stat().st_size


def test_a_model_that_does_not_fit_a_template_is_refused(tmp_path):
    _, template = _read(save_plan(tmp_path / "a.keras", NARROW["original"]), NARROW["original"])
    liae = plan_model(ModelConfig(name="liae", input_size=64, ae_dims=16, e_dims=8, d_dims=8), False)
    for model, problem in (
        (tiny(), "layer 1 of the encoder is a convolution 5x5 of stride 2 to 8 and should be .* to 16"),
        (liae, "the model consists of encoder, decoder_shared, inter_both, inter_a"),
        (model_of(NARROW["original+mask"]), "only the model learns a mask"),
        (
            model_of(NARROW["lowmem"]),
            "layer 7 of the encoder is a convolution 5x5 of stride 2 to 64 and should be flatten",
        ),
        (model_of(PLANS["lowmem"].divided(8)), "layer 1 .* should be a convolution 5x5 of stride 2 to 16"),
    ):
        message = (
            rf"a.keras: is of faceswap's 'original' and does not fit the model '{model.name}': {problem}.*; give a"
        )
        with pytest.raises(SwapfastError, match=message):
            check_fits(model, template)
        with pytest.raises(SwapfastError, match="give a template of the same network"):
            write_keras(model, template, tmp_path / "b.keras")
    assert not (tmp_path / "b.keras").exists()


def test_a_template_without_a_place_for_a_layer_is_refused(tmp_path):
    plan = NARROW["original"]
    model, template = _read(save_plan(tmp_path / "a.keras", plan), plan)
    layout = {path: name for path, name in template.layout.items() if name != "dense_1"}
    with pytest.raises(SwapfastError, match=r"a.keras: has no place for the layer 'dense_1' of encoder"):
        write_keras(model, KerasTemplate(template.archive, template.architecture, layout), tmp_path / "b.keras")
    assert not (tmp_path / "b.keras.h5").exists()


def test_what_looks_like_one(tmp_path):
    for name, expected in (
        ("a.keras", True),
        ("a.KERAS", True),
        ("a.h5", True),
        ("a.txt", False),
        ("a.keras.bk", True),
    ):
        assert looks_like_keras(tmp_path / name) is expected
    (tmp_path / "folder.keras").mkdir()
    assert not looks_like_keras(tmp_path / "folder.keras")


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    from swapfast.requirements import import_problem

    plan = NARROW["original"]
    path = save(tmp_path / "a.keras", files_of(plan))
    archive = read_archive(path)
    import_problem.cache_clear()
    monkeypatch.setitem(sys.modules, "h5py", None)
    try:
        with pytest.raises(
            SwapfastError, match=r"needs h5py, which cannot run here .*; `pip install 'swapfast\[keras\]'`"
        ):
            read_numbers(model_of(plan), archive, read_architecture(archive))
    finally:
        import_problem.cache_clear()


def test_weights_of_half_precision_are_read(tmp_path):
    plan = NARROW["original"]
    model, shapes = config_of(plan)
    numbers = {key: tuple(a.astype(np.float16) for a in pair) for key, pair in random_numbers(shapes).items()}
    files = files_of(plan, {}) | {"model.weights.h5": weights_file(model, numbers)}
    read, template = _read(save(tmp_path / "a.keras", files), plan)
    write_keras(read, template, tmp_path / "b.keras")
    assert _equal(read_back(tmp_path / "b.keras"), numbers)
