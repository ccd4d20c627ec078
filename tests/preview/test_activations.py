"""The picture of what a network makes of a face: its stages, its scales, and requests that cannot be met."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
import torch

import cli
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.config import CropConfig, LossConfig, ModelConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face
from swapfast.faces.image import read_image
from swapfast.faces.reader import read_face
from swapfast.models import build_model
from swapfast.models.side_statistics import Rows
from swapfast.preview.activations import CELL, GAP, LABEL, TITLE, _caption, draw_activations, find_activations
from swapfast.swap.apply import swap_faces
from tests.faces.face_samples import a_face, a_picture, png_bytes, write_head, write_plain

HALVINGS, UPWARDS = "halving halving halving halving", "doubling residual doubling residual doubling residual"
DIMS = {"input_size": 64, "ae_dims": 16, "e_dims": 8, "d_dims": 8}


def _model(name: str, learn_mask: bool = False, **sizes):
    return build_model(ModelConfig(name=name, **sizes), learn_mask, 3)


def _faces(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, size, size), np.float32)


def _captions(found) -> list[list[tuple[str, str]]]:
    return [[_caption(stage, row) for stage in row] for row in (found.shared, *found.sides.values())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "learn_mask", "sizes", "shared", "a", "b"),
    [
        ("tiny", True, {}, f"{HALVINGS} code bottleneck doubling", "doubling " * 3, "doubling " * 3),
        ("df-ud", False, DIMS, f"{HALVINGS} code bottleneck doubling", UPWARDS, UPWARDS),
        ("liae", False, DIMS, f"{HALVINGS} code bottleneck doubling", f"code bottleneck doubling {UPWARDS}", UPWARDS),
        (
            "liae-t",
            True,
            DIMS,
            f"halving residual {HALVINGS} residual code bottleneck",
            f"code bottleneck doubling residual {UPWARDS}",
            f"doubling residual {UPWARDS}",
        ),
    ],
)
def test_stages_of_every_family(name, learn_mask, sizes, shared, a, b):
    """What both sides share comes first: of liae the code of what has seen both people too."""
    model, faces = _model(name, learn_mask, **sizes), _faces(2)
    found = find_activations(model, faces)
    kinds = [[stage.kind for stage in row] for row in (found.shared, found.sides["a"], found.sides["b"])]
    assert kinds == [shared.split(), a.split(), b.split()]
    assert all(len(stage.values) == 2 for row in (found.shared, *found.sides.values()) for stage in row)
    for side in "ab":
        made = swap_faces(model, faces, side)
        np.testing.assert_array_equal(found.faces[side], made[..., :3])
        assert (side in found.masks) == learn_mask
        if learn_mask:
            np.testing.assert_array_equal(found.masks[side], made[..., 3])
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_stages_are_what_the_layers_give():
    model, faces = _model("tiny"), _faces(2)
    found = find_activations(model, faces)
    images = torch.from_numpy(faces)
    with torch.no_grad():
        features = model.encode(images, [Rows(len(images), "a", "a")])
        first = model.decoder("b").face[0](features)
    assert torch.equal(found.shared[-1].values, features) and torch.equal(found.sides["b"][0].values, first)
    assert _captions(found)[0] == [
        *((f"halving {n + 1}", f"{32 >> n}x{32 >> n}x{16 << n}") for n in range(4)),
        ("code", "128 values"),
        ("bottleneck", "4x4x64"),
        ("doubling", "8x8x64"),
    ]
    liae = _captions(find_activations(_model("liae-t", **DIMS), faces))
    assert ("inter both: code", "16 values") in liae[0] and ("inter a: bottleneck", "4x4x32") in liae[1]


def _cell(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    y, x = TITLE + GAP + row * (CELL + LABEL + GAP) + LABEL, GAP + column * (CELL + GAP)
    return sheet[y : y + CELL, x : x + CELL].astype(int)


@pytest.mark.slow
def test_a_sheet_shows_the_face_and_the_channels_that_vary():
    """One channel of the first stage follows the picture, all others are constant: it stands first."""
    model = _model("tiny", True)
    conv = model.encoder[0][0]
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[11, :, 2, 2] = 1
    faces = np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[None, None, None], 64, 2).repeat(3, 1).repeat(2, 0)
    faces[1] *= 0.5
    pictures = faces.transpose(0, 2, 3, 1)
    found = find_activations(model, faces)
    one = draw_activations(find_activations(model, faces[:1]), pictures[:1], ["dark"], "title")
    sheet = draw_activations(found, pictures, ["bright", "dark"], "title")
    assert sheet.dtype == np.uint8 and sheet.shape == (one.shape[0], 2 * one.shape[1], 3)
    face = _cell(sheet, 0, 0)
    assert np.abs(face[100] - np.linspace(0, 255, CELL)[:, None]).max() < 6
    first, tile = _cell(sheet, 0, 1), CELL // 3
    brightness = first[: tile - 2, : tile - 2].sum(-1).mean(0)
    assert brightness[-1] > 500 > 60 > brightness[0] and (np.diff(brightness) > -40).all()
    assert (first[tile:] == first[tile, 0]).all(-1)[: tile - 2, : tile - 2].all() and first[tile, 0].sum() < 30
    dark = _cell(sheet[:, one.shape[1] :], 0, 1)[: tile - 2, : tile - 2].sum(-1).mean(0)
    np.testing.assert_allclose(dark, brightness, atol=60)  # the encoder of tiny sees each face at one contrast
    learned = _cell(sheet, 1, 7)
    assert (learned == learned[..., :1]).all(), "the last cell of a side is its mask, grey"


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 9, 50])
def test_any_number_of_channels(channels):
    found, faces = find_activations(_model("tiny"), _faces(1)), _faces(1).transpose(0, 2, 3, 1)
    assert (
        draw_activations(found, faces, ["x"], "t", channels).shape == draw_activations(found, faces, ["x"], "t").shape
    )


def test_a_model_that_failed_is_refused():
    model = _model("tiny")
    with torch.no_grad():
        model.encoder[1][0].weight[0] = float("nan")
    with pytest.raises(SwapfastError, match=r"^encoder.1 of the model gives a value that is not finite"):
        find_activations(model, _faces(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, a head of faceswap's and a plain picture."""
    folder = tmp_path_factory.mktemp("activations")
    config = TrainConfig(
        model=ModelConfig(name="tiny"), loss=LossConfig(learn_mask=True), crop=CropConfig(centering="head", coverage=80)
    )
    weights = build_model(config.model, True, 3).state_dict()
    means = {f"mean_{side}": torch.full((64, 64, 3), 0.5) for side in "ab"}
    state = {"config": config.to_dict(), "metrics": {"average_loss": 0.5}}
    checkpoint = Checkpoint(7, {"model": weights, "optimizer": {}, "faces": means}, state)
    CheckpointFolder(folder / "model").save(checkpoint)
    write_head(folder / "head.png", 256)
    write_plain(folder / "plain.png", a_picture(400, 400), a_face())
    (folder / "bare.png").write_bytes(png_bytes(a_picture(64, 64)))
    (folder / "text.txt").write_text("hello")
    return folder


def _run(folder, capsys, *words) -> tuple[int, str, str]:
    code = cli.main(["activations", str(folder / "model"), *map(str, words)])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_faces_are_cut_as_the_model_was_trained(folder, tmp_path, capsys):
    plain = folder / "plain.png"
    code, said, error = _run(folder, capsys, folder / "head.png", plain, "-o", tmp_path / "sheet.png")
    assert (code, said, error) == (0, f"look at {tmp_path / 'sheet.png'}\n", "")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    crop = CropConfig(centering="head", coverage=80)
    for path, part in ((folder / "head.png", sheet), (plain, sheet[:, sheet.shape[1] // 2 :])):
        record = read_face(folder, path.name, frozenset(p.name for p in folder.iterdir()))
        face = cv2.resize(crop_face(record, read_image(path), crop, 64), (CELL, CELL), interpolation=cv2.INTER_CUBIC)
        assert np.abs(_cell(part, 0, 0) - face).max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bare.png", "-o", "x.png"], "bare.png: no faceswap header in it"),
        (["text.txt", "-o", "x.png"], "text.txt: is no picture; give another picture of a face"),
        (["none.png", "-o", "x.png"], "none.png: No such file or directory; give a picture of a face"),
        (["none.txt", "-o", "x.png"], "none.txt: No such file or directory; give a picture of a face"),
        (["none/none.png", "-o", "x.png"], "No such file or directory; give a picture of a face"),
        ([".", "-o", "x.png"], ".: is a folder; give pictures of faces"),
        (["head.png", "-o", "x.gif"], "-o/--out x.gif: give a name that ends in .png"),
        (["head.png", "-o", "none/x.png"], "-o/--out none/x.png: there is no folder"),
        (["head.png", "-o", "x.png", "--channels", "0"], "--channels 0: must lie within 1 and 64"),
        (["head.png", "-o", "x.png", "--channels", "65"], "--channels 65: must lie within 1 and 64"),
        (["head.png", "-o", "x.png", "--channels", "many"], "--channels: 'many': must be a whole number"),
        (["head.png", "-o", "x.png", "--checkpoint", "9"], "--checkpoint 9"),
        (["head.png"] * 17 + ["-o", "x.png"], "17 faces: a sheet shows at most 16; give fewer"),
    ],
)
def test_requests_that_cannot_be_met(folder, words, said, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    code, out, error = _run(folder, capsys, *words)
    assert code == 2 and out == "" and said in error and error.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_a_face_in_the_models_place_is_called_so(folder, capsys):
    assert cli.main(["activations", str(folder / "head.png"), str(folder / "model"), "-o", str(folder / "x.png")]) == 2
    said = f"MODEL {folder / 'head.png'}: is a file; give a model folder, and the faces behind it\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_told_at_once(folder, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, error = _run(folder, capsys, folder / "head.png", "-o", tmp_path / "locked" / "x.png")
    assert code == 2 and "its folder may not be written to; give a file in another one" in error


@pytest.mark.slow
def test_a_face_is_never_replaced_by_the_sheet(folder, capsys, monkeypatch):
    """`-o *.png`: the shell makes the first face the sheet's name. A sheet of before is replaced."""
    monkeypatch.chdir(folder)
    for name in ("head.png", "plain.png"):
        before = (folder / name).read_bytes()
        code, _, error = _run(folder, capsys, "plain.png", "-o", name)
        assert code == 2 and f"-o/--out {name}: is a picture of a face; give another name" in error
        assert (folder / name).read_bytes() == before
    for _ in range(2):
        assert _run(folder, capsys, "plain.png", "-o", "sheet.png")[0] == 0
