"""A .keras file through the program: imported, trained on, exported; and requests that cannot be met."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import cli
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.trained import open_model
from swapfast.checkpoints.transfer import load_weights_from
from swapfast.config import ModelConfig, TrainConfig
from swapfast.models import build_model
from swapfast.models.registry import plan_model
from tests.interop.keras_files import (
    SMALL,
    config_of,
    files_of,
    model_of,
    random_numbers,
    read_back,
    save,
    save_plan,
)

pytestmark = pytest.mark.slow  # whole commands

NUMBERS = random_numbers(config_of(SMALL)[1])


@pytest.fixture(scope="module", autouse=True)
def narrow_original():
    """The decoders of ``original`` with an eighth of their channels; its encoder has few by options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swapfast.models.original.UP_WIDTHS", (64, 64, 32, 16, 8))
        patch.setattr("swapfast.models.original.CODE_CHANNELS", 64)
        yield


@pytest.fixture(scope="module")
def imported(narrow_original, tmp_path_factory):
    """The folder of a file, and the model made of it by the program."""
    folder = tmp_path_factory.mktemp("keras")
    save_plan(folder / "original.keras", SMALL, NUMBERS)
    state = {"iterations": 1234, "config": {"centering": "head", "coverage": 87.5, "learn_mask": False}}
    (folder / "original_state.json").write_text(json.dumps(state))
    assert cli.main(["import", str(folder / "original.keras"), "-m", str(folder / "model")]) == 0
    return folder


def _run(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_a_file_becomes_a_model(imported, within):
    model, config, metadata = open_model(imported / "model")
    assert (metadata.step, config.model.name, config.crop.centering, config.crop.coverage) == (
        1234,
        "original",
        "head",
        87.5,
    )
    assert (config.model.encoder_width, config.model.dense, config.model.bottleneck) == (8, 64, "4x4x64")
    assert (imported / "model/imported/config.json").read_bytes() == files_of(SMALL, NUMBERS)["config.json"]
    assert metadata.state["imported"]["kind"] == "keras"
    faces = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert all(output.isfinite().all() and output.std() > 0.01 for output in model.swap(faces, "b"))
    _close_to_float64(model, faces, within)


def _close_to_float64(model, faces, within) -> None:
    """The outputs are those of the file's numbers by Keras' conventions, computed slowly."""
    from tests.models.test_models import _keras_forward

    names = {part: [name for owner, name in NUMBERS if owner == part] for part, _ in NUMBERS}
    layers = {part: [NUMBERS[part, name] for name in names[part]] for part in names}
    code = _keras_forward(faces[0].permute(1, 2, 0).numpy(), layers["encoder"], "ddddnnru")
    expected = _keras_forward(code, layers["decoder_b"], "uuuo")
    with torch.no_grad():
        ours = model.swap(faces, "b")[0][0].permute(1, 2, 0).numpy()
    # Sums of up to 1024 products, each rounded by 2^-24 of the sum, seven layers deep.
    within("a file's numbers against float64", np.abs(ours - expected).max(), 1e-5)


def test_faceswap_gets_its_file_back_to_the_bit(imported, tmp_path, capsys):
    code, said, _ = _run(capsys, "export", "-m", imported / "model", "--to", "keras", "-o", tmp_path / "original.keras")
    assert code == 0 and "beside the original_state.json of a run; the optimizer begins anew" in said
    written = read_back(tmp_path / "original.keras")
    assert written.keys() == NUMBERS.keys()
    assert all(np.array_equal(written[key][index], NUMBERS[key][index]) for key in NUMBERS for index in (0, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["original.keras"]


def test_what_was_said_of_a_file(imported, tmp_path, capsys):
    shutil.copy(imported / "original.keras", tmp_path / "mine.keras")
    code, said, _ = _run(capsys, "import", tmp_path / "mine.keras", "-m", tmp_path / "m")
    assert code == 0
    assert "faceswap's original: 64 px in and out, encoder 8 16 32 64 64 1024 256, decoders 128 64 32 3; " in said
    assert "there is no mine_state.json beside it: iterations are counted from 0" in said
    assert "the optimizer's state was left behind" in said and "iteration 0, without an optimizer's state" in said
    assert open_model(tmp_path / "m").metadata.step == 0
    shutil.copy(imported / "original.keras", tmp_path / "original.keras.bk")
    shutil.copy(imported / "original_state.json", tmp_path / "original_state.json.bk")
    assert _run(capsys, "import", tmp_path / "original.keras.bk", "-m", tmp_path / "backup")[0] == 0
    assert open_model(tmp_path / "backup").metadata.step == 1234
    (tmp_path / "mine_state.json").write_text('{"iterations": -3, "config": {"coverage": "all", "centering": 3}}')
    shutil.rmtree(tmp_path / "m")
    assert _run(capsys, "import", tmp_path / "mine.keras", "-m", tmp_path / "m")[0] == 0
    config = open_model(tmp_path / "m").config
    assert (config.crop.centering, config.crop.coverage) == ("face", 100)
    code, _, error = _run(capsys, "import", tmp_path / "mine.keras", "-m", tmp_path / "m")
    assert code == 2 and "holds a model already; give a new folder" in error


@pytest.mark.parametrize("damage", ["cut", "config", "nan", "folder"])
def test_a_bad_file_leaves_nothing_behind(damage, tmp_path, capsys):
    path, model = tmp_path / "a.keras", tmp_path / "model"
    files = files_of(SMALL, NUMBERS)
    if damage == "config":
        del files["config.json"]
    if damage == "nan":
        bad = {**NUMBERS, ("decoder_a", "face_out_a_conv2d"): (np.full((5, 5, 8, 3), np.nan, "f4"), np.zeros(3, "f4"))}
        files = files_of(SMALL, bad)
    save(path, files)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    if damage == "folder":
        path.unlink()
        path.mkdir()
    code, said, error = _run(capsys, "import", path, "-m", model)
    assert code == 2 and said == "" and error.count("\n") == 1 and str(path) in error
    assert not model.exists()


def _own(folder, **options) -> None:
    """A model that no other program wrote."""
    config = TrainConfig(model=ModelConfig(name="original", **options))
    weights = build_model(config.model, False, 3).state_dict()
    faces = {f"mean_{side}": torch.full((64, 64, 3), 0.5) for side in "ab"}
    state = {"config": config.to_dict(), "metrics": {"average_loss": 0.5}}
    CheckpointFolder(folder).save(Checkpoint(5, {"model": weights, "optimizer": {}, "faces": faces}, state))


def test_a_model_of_our_own_needs_a_template(imported, tmp_path, capsys):
    _own(tmp_path / "m", encoder_width=8, dense=64, bottleneck="4x4x64")
    words = ["export", "-m", tmp_path / "m", "--to", "keras", "-o", tmp_path / "a.keras"]
    code, _, error = _run(capsys, *words)
    assert code == 2 and "was not imported from a .keras file" in error and "--template FILE.keras" in error
    code, _, error = _run(capsys, *words, "--template", imported / "original.keras")
    assert code == 0, error
    weights = read_back(tmp_path / "a.keras")
    assert weights.keys() == NUMBERS.keys()
    code, _, _ = _run(capsys, "import", tmp_path / "a.keras", "-m", tmp_path / "again")
    first, again = (open_model(tmp_path / name).model.state_dict() for name in ("m", "again"))
    assert code == 0 and all(torch.equal(weight, again[name]) for name, weight in first.items())
    code, _, error = _run(capsys, *words, "--template", imported / "original.keras")
    assert code == 2 and "exists; give another name, or replace it with --overwrite" in error


def test_templates_that_do_not_fit_are_refused(imported, tmp_path, capsys):
    _own(tmp_path / "m", encoder_width=8, dense=32, bottleneck="4x4x64")
    words = ["export", "-m", tmp_path / "m", "--to", "keras", "-o", tmp_path / "a.keras", "--template"]
    for template, words_of_error in (
        (imported / "original.keras", "give a template of the same network"),
        (imported / "original_state.json", "is no .keras file (no zip archive)"),
        (tmp_path / "none.keras", "cannot be read (No such file or directory)"),
    ):
        code, _, error = _run(capsys, *words, template)
        assert code == 2 and words_of_error in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    others = ["export", "-m", imported / "model", "--to"]
    for kind, flags, words_of_error in (
        ("safetensors", ["--template", "x.keras"], "--template with --to safetensors"),
        ("keras", ["--fp16"], "--fp16 with --to keras"),
        ("keras", ["--side", "a"], "--side a with --to keras"),
    ):
        code, _, error = _run(capsys, *others, kind, *flags, "-o", tmp_path / "x")
        assert code == 2 and words_of_error in error


def test_a_damaged_keepsake_names_the_way_out(imported, tmp_path, capsys):
    model = tmp_path / "m"
    shutil.copytree(imported / "model", model)
    for content in ("[", '{"a": 1}', '{"../x": "y"}'):
        (model / "imported/layout.json").write_text(content)
        code, _, error = _run(capsys, "export", "-m", model, "--to", "keras", "-o", tmp_path / "a.keras")
        assert code == 2 and "is damaged" in error and "give --template FILE.keras" in error
    assert not (tmp_path / "a.keras").exists()


def test_an_imported_model_begins_one_of_another_size(imported):
    config = ModelConfig(name="original", input_size=128, encoder_width=8, dense=64, bottleneck="4x4x64")
    model = plan_model(config, False)
    transfer = load_weights_from(model, imported / "model")
    assert dict(transfer.loaded) == {"encoder": 14, "decoder_a": 8, "decoder_b": 8} and transfer.step == 1234
    assert torch.equal(model.encoder[6].bias, torch.from_numpy(NUMBERS["encoder", "dense"][1]))


@pytest.mark.long
def test_a_whole_lightweight_goes_both_ways(tmp_path, capsys):
    """Of its real size: 51 M parameters."""
    from tests.interop.keras_files import PLANS

    plan = PLANS["lightweight"]
    with torch.no_grad():
        count = sum(parameter.numel() for parameter in model_of(plan).parameters())
    numbers = random_numbers(config_of(plan)[1])
    save_plan(tmp_path / "lightweight.keras", plan, numbers)
    code, said, _ = _run(capsys, "import", tmp_path / "lightweight.keras", "-m", tmp_path / "m")
    assert code == 0 and f"{count:,} parameters" in said and count == 51_066_374
    assert _run(capsys, "export", "-m", tmp_path / "m", "--to", "keras", "-o", tmp_path / "back.keras")[0] == 0
    written = read_back(tmp_path / "back.keras")
    assert all(np.array_equal(written[key][index], numbers[key][index]) for key in numbers for index in (0, 1))
