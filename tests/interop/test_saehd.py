"""DeepFaceLab's SAEHD models in and out: four that its own code wrote, and folders that are none."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import cli
from pipelines.run.plan import loss_collator
from swapfast.batch import SIDES, Batch, BatchMeta
from swapfast.checkpoints.trained import open_model
from swapfast.config import FACE_TYPES, TrainConfig, updated
from swapfast.errors import SwapfastError
from swapfast.interop.imported import KEPT, Imported, check_new_model, write_model
from swapfast.interop.pickle_writer import write_pickle
from swapfast.interop.pickles import read_pickle_file
from swapfast.interop.saehd_read import read_saehd
from swapfast.logs.summary import load_history
from swapfast.models import build_model
from swapfast.optim.optimizer import Optimizer
from swapfast.synthetic import synthesize
from swapfast.training.trainer import Trainer
from tests.interop.test_pickles import BeforeNumpy2, same

pytestmark = pytest.mark.slow  # hostile files by the dozen

NAMES = ("df_64", "df-ud_64", "liae-ud_96", "liae-udtc_64")


@pytest.fixture
def recorded(golden):
    """Return the folder of a model that DeepFaceLab wrote."""

    def folder(name: str) -> Path:
        path = golden.folder / "dfl" / name
        if not path.is_dir():
            pytest.skip(f"there is no {path}")
        return path

    return folder


@pytest.fixture
def model_copy(recorded, tmp_path):
    """Return a copy of a recorded model, to be damaged, and what changes a file of it."""

    def copied(name: str = "df_64", called: str = "new") -> Path:
        folder = tmp_path / "dfl"
        folder.mkdir(exist_ok=True)
        for path in recorded(name).iterdir():
            shutil.copy(path, folder / path.name.replace("new", called, 1))
        return folder

    return copied


def change(path: Path, edit) -> None:
    """Read a pickle, let ``edit`` change its value or give another one, and write it."""
    value = read_pickle_file(path)
    value = edit(value) or value
    path.unlink()
    with open(path, "wb", buffering=0) as file:
        write_pickle(file, value)


def pictures_of(golden, name: str) -> dict[str, torch.Tensor]:
    """Return the recorded pictures, (N, C, S, S)."""
    with np.load(golden.folder / "dfl" / f"{name}.npz") as data:
        return {key: torch.from_numpy(data[key]).permute(0, 3, 1, 2) for key in data if data[key].ndim == 4}


@pytest.mark.golden
@pytest.mark.parametrize("name", NAMES)
def test_an_imported_model_makes_the_recorded_pictures(name, recorded, golden, tmp_path, capsys, within):
    source, model_dir = recorded(name), tmp_path / "model"
    assert cli.main(["import", str(source), "-m", str(model_dir)]) == 0
    said = capsys.readouterr().out
    assert "iteration 3, with its optimizer's state" in said and f"swapfast train -A ... -B ... -m {model_dir}" in said
    assert f"swapfast codes -A ... -B ... -m {model_dir}" in said
    model, config, metadata = open_model(model_dir)
    assert (metadata.step, config.optimizer.optimizer, config.batch_size) == (3, "adabelief-dfl", 2)
    assert config.crop.centering == "legacy" and config.crop.coverage == 90
    pictures = pictures_of(golden, name)
    with torch.no_grad():
        a, b = model([pictures["warped_dst"], pictures["warped_src"]])
        swapped = model.swap(pictures["warped_dst"], "b")
    for what, outputs in {"dst_dst": a, "src_src": b, "src_dst": swapped}.items():
        for key, output in zip((what, f"{what}_mask"), outputs, strict=True):
            # Sums of up to 9 * 512 products in float32 in twelve layers one after another, squashed into 0..1.
            within(key, (output - pictures[key]).abs().max(), 1e-5)
    assert metadata.mean_faces["a"].shape == (model.input_size, model.input_size, 3)
    assert not np.array_equal(metadata.mean_faces["a"], metadata.mean_faces["b"])


@pytest.mark.golden
@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_as_there(name, recorded, golden, within):
    """Six steps of its own code on its own batch: their losses, each before the step that follows it."""
    imported = read_saehd(recorded(name))
    model, config = imported.model, imported.config
    optimizer = Optimizer(model, config.optimizer)
    optimizer.load_state_dict(dict(imported.optimizer))
    pictures = pictures_of(golden, name)
    batch = Batch(
        [pictures["warped_dst"], pictures["warped_src"]],
        [torch.stack([pictures["target_dst"], pictures["target_src"]], 1)],
        BatchMeta([torch.stack([pictures["mask_dst"], pictures["mask_src"]], 1)]),
        imported.step,
    )
    trainer = Trainer(model, loss_collator(config, model), optimizer, [batch] * 6, step=imported.step)
    with np.load(golden.folder / "dfl" / f"{name}.npz") as data:
        first = torch.from_numpy(np.stack([data["loss_dst"], data["loss_src"]]))
        expected = torch.from_numpy(data["losses_after"]).flip(1)  # src, dst there
    losses = []
    for _ in expected:
        sides = trainer.train_one_batch()
        losses.append(torch.stack([torch.stack([*side.weighted[0].values(), side.mask]).sum(0) for side in sides]))
    within("losses, of about 5", (losses[0] - first).abs().max(), 1e-4)
    # Each in float32, and of weights that up to five steps have moved; a step changes a loss by 1e-2 or so.
    within("losses of the next six steps", (torch.stack(losses) - expected).abs().max(), 2e-4)
    assert (expected[1:] - expected[:-1]).abs().min() > 2e-3


def test_a_model_is_found_by_its_name_and_in_a_backup(model_copy, tmp_path):
    folder = model_copy("df_64", "my model_2")
    model_copy("liae-ud_96", "other")
    for name, family in {"my model_2": "df", "other": "liae-ud"}.items():
        assert read_saehd(folder / name).model.name == family
    for file in ("data.dat", "encoder.npy"):
        assert read_saehd(folder / f"other_SAEHD_{file}").model.name == "liae-ud"
    backup = folder / "my model_2_SAEHD_autobackups" / "01"
    backup.mkdir(parents=True)
    for path in folder.glob("my model_2_SAEHD_*.*"):
        shutil.copy(path, backup)
    assert read_saehd(backup).model.name == "df" and read_saehd(backup / "my model_2").step == 3
    for path, said in {
        folder: "holds 2 models; give one, as in .*There are my model_2, other",
        folder / "third": "no model of that name; there are my model_2, other",
        backup.parent: "holds folders of models; give one of 01",
    }.items():
        with pytest.raises(SwapfastError, match=said):
            read_saehd(path)


def test_options_are_settings(model_copy):
    """Those that are usual are the recipe's; a person who reads both sees the same recipe."""
    folder = model_copy()
    usual = read_saehd(folder).config
    assert (usual.loss.functions, usual.loss.weights, usual.loss.reduction) == (["dssim", "mse"], [1000, 1000], "sum")
    assert usual.augmentation.flip_sides == ["a"] and not usual.augmentation.color and usual.loss.soft_mask
    changes = {
        "masked_training": False,
        "eyes_mouth_prio": True,
        "clipgrad": True,
        "lr_dropout": "cpu",
        "batch_size": 5,
    }
    changes |= {"random_src_flip": False, "random_dst_flip": False, "adabelief": False, "face_type": "wf"}
    change(folder / "new_SAEHD_data.dat", lambda data: data["options"].update(changes))
    (folder / "new_SAEHD_src_dst_opt.npy").unlink()
    imported = read_saehd(folder)
    config = imported.config
    assert (config.loss.penalized_mask_loss, config.loss.soft_mask, config.loss.eye_mouth_priority) == (
        False,
        False,
        300,
    )
    assert (config.optimizer.gradient_clipping, config.optimizer.clipping_value) == ("global_norm", 1)
    assert (config.optimizer.lr_dropout, config.optimizer.optimizer, config.batch_size) == (True, "rms-prop-dfl", 5)
    assert not config.augmentation.flip and config.crop == FACE_TYPES["wf"]
    assert not any("lacks" in line for line in imported.lines)


def test_a_model_without_its_optimizer_is_said(model_copy, tmp_path, capsys):
    folder = model_copy()
    (folder / "new_SAEHD_src_dst_opt.npy").unlink()
    (folder / "new_SAEHD_GAN.npy").touch()
    change(
        folder / "new_SAEHD_data.dat",
        lambda data: data["options"].update(gan_power=0.1, uniform_yaw=True, **{"x\ny": 1}),
    )
    assert cli.main(["import", str(folder), "-m", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    assert "there is no new_SAEHD_src_dst_opt.npy: the optimizer begins anew" in said
    assert "options that swapfast lacks, kept for an export: uniform_yaw True, gan_power 0.1, 'x\\ny' 1\n" in said
    assert "left behind: GAN.npy" in said and "without an optimizer's state" in said


def _without(folder: Path, file: str) -> None:
    (folder / f"new_SAEHD_{file}").unlink()


def _options(**values):
    return "data.dat", lambda data: data["options"].update(values)


def _weights(file: str, **values):
    return file, lambda weights: weights.update({f"{key.replace('__', '/')}:0": value for key, value in values.items()})


DAMAGE = {
    "options of no network": (_options(archi="df-x"), r"options that make no network: .*df-x: a name may end"),
    "another family": (_options(archi="dfhd"), r"archi is 'dfhd', where df and liae are read"),
    "letters without end": (_options(archi="df-" + "u" * 10**5), r"archi is 'df-u{1,60}\.\.\."),
    "no family": (_options(archi=[1]), r"archi is \[1\]"),
    "no size": (_options(resolution="64"), r"resolution is '64' and should be a whole number"),
    "a size of no network": (_options(resolution=72), r"--input-size 72: df takes multiples of 16"),
    "a huge size": (_options(ae_dims=10**30), r"ae_dims is \d+ and should be"),
    "too many dims": (_options(d_dims=1000), r"options: cannot be settings of swapfast: .*1000"),
    "no batch": (_options(batch_size=0), r"batch_size is 0 and should"),
    "another size": (_options(resolution=128), r"_inter.npy: dense1/weight:0 is 512x8 and should be 2048x8"),
    "other widths": (
        _options(e_dims=8),
        r"_encoder.npy: down1/downs_0/conv1/weight:0 is 5x5x3x4 and should be 5x5x3x8",
    ),
    "no table": (("data.dat", lambda _: [1]), r"data.dat: is a list and no table"),
    "no options": (("data.dat", lambda data: {"iter": 3}), r"data.dat: options: is a NoneType"),
    "no iteration": (("data.dat", lambda data: data.pop("iter") and None), r"iter is missing"),
    "iterations before 0": (("data.dat", lambda data: data.update(iter=-1)), r"iter is -1"),
    "a weight missing": (
        ("inter.npy", lambda weights: weights.pop("dense1/bias:0") is None),
        r"_inter.npy: lacks dense1/bias:0",
    ),
    "a weight too many": (_weights("inter.npy", dense3__bias=np.zeros(2, np.float32)), r"has not: 'dense3/bias:0'"),
    "a weight of text": (_weights("inter.npy", dense1__bias="x"), r"dense1/bias:0 is str and should be an array"),
    "a weight of double": (_weights("inter.npy", dense1__bias=np.zeros(8)), r"is float64 and should be .*float32"),
    "a weight that is none": (
        _weights("inter.npy", dense1__bias=np.full(8, np.nan, np.float32)),
        r"dense1/bias:0 has values that are not finite",
    ),
    "an average missing": (
        ("src_dst_opt.npy", lambda averages: averages.pop("vs_inter/dense1/bias_0:0") is None),
        r"_src_dst_opt.npy: lacks vs_inter/dense1/bias_0:0",
    ),
    "averages of another size": (
        _weights("src_dst_opt.npy", ms_inter__dense1__bias_0=np.zeros(9, np.float32)),
        r"ms_inter/dense1/bias_0:0 is 9 and should be 8",
    ),
    "no count": (_weights("src_dst_opt.npy", iters="x"), r"iters:0 is 'x' and should be a count"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_refused_in_one_line(name, model_copy, tmp_path, capsys):
    (file, edit), said = DAMAGE[name]
    folder = model_copy()

    def edited(value):
        result = edit(value)
        return result if isinstance(result, (list, dict)) else None

    change(folder / f"new_SAEHD_{file}", edited)
    assert cli.main(["import", str(folder), "-m", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(folder) in error
    assert re.search(said, error), error
    assert not (tmp_path / "model").exists()


def test_parts_that_are_missing_are_named(model_copy):
    folder = model_copy()
    _without(folder, "inter.npy")
    _without(folder, "decoder_dst.npy")
    with pytest.raises(SwapfastError, match=r"lacks new_SAEHD_inter.npy, new_SAEHD_decoder_dst.npy; give a whole copy"):
        read_saehd(folder)
    _without(folder, "data.dat")
    with pytest.raises(SwapfastError, match=r"has no new_SAEHD_data.dat, which tells of the network"):
        read_saehd(folder)


def test_what_is_no_model_and_where_one_cannot_go(model_copy, tmp_path, capsys):
    folder, model_dir = model_copy(), tmp_path / "model"
    amp = tmp_path / "amp"
    amp.mkdir()
    (amp / "x_AMP_data.dat").touch()
    (tmp_path / "file.txt").touch()
    (tmp_path / "faceswap").mkdir()
    (tmp_path / "faceswap" / "original.keras").touch()
    for source, said in {
        amp: "holds a model of DeepFaceLab's AMP, and only SAEHD is read",
        tmp_path / "nowhere": "no such file or folder",
        tmp_path / "faceswap": f"the file is read; give {tmp_path / 'faceswap' / 'original.keras'}",
        tmp_path / "file.txt": "is no model that can be read",
        tmp_path: "holds folders of models; give one of dfl",
    }.items():
        assert cli.main(["import", str(source), "-m", str(model_dir)]) == 2
        error = capsys.readouterr().err
        assert said in error and str(source) in error and error.count("\n") == 1
    assert not model_dir.exists()
    spaced = tmp_path / "my model"
    assert cli.main(["import", str(folder), "-m", str(spaced)]) == 0
    assert f"-m '{spaced}'`" in capsys.readouterr().out
    assert cli.main(["import", str(folder), "-m", str(model_dir)]) == 0
    assert cli.main(["import", str(folder), "-m", str(model_dir)]) == 2
    assert "holds a model already; give a new folder" in capsys.readouterr().err
    assert cli.main(["import", str(folder), "-m", str(folder)]) == 2
    assert "holds another program's model" in capsys.readouterr().err
    beneath = tmp_path / "file.txt" / "model"
    assert cli.main(["import", str(folder), "-m", str(beneath)]) == 2
    assert f"--model-dir {beneath}: {beneath.parent}: is a file; give a folder" in capsys.readouterr().err
    assert sorted(path.name for path in model_dir.iterdir() if path.is_dir()) == ["checkpoint-00000003", KEPT, "logs"]


# --- and back -----------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, dict]:
    """Return what the files of a model hold, as DeepFaceLab would read them."""
    return {path.name: BeforeNumpy2(io.BytesIO(path.read_bytes())).load() for path in folder.iterdir()}


@pytest.mark.golden
@pytest.mark.parametrize("name", NAMES)
def test_a_model_goes_back_to_the_bit(name, recorded, tmp_path, capsys):
    model_dir, back = tmp_path / "model", tmp_path / "back"
    assert cli.main(["import", str(recorded(name)), "-m", str(model_dir)]) == 0
    assert cli.main(["export", "-m", str(model_dir), "--to", "saehd", "-o", str(back)]) == 0
    before, after = files_of(recorded(name)), files_of(back)
    assert before.keys() == after.keys() and "new_SAEHD_src_dst_opt.npy" in after
    for file, values in before.items():
        assert values.keys() == after[file].keys()
        assert all(same(values[key], after[file][key]) for key in values), file
    assert type(after["new_SAEHD_src_dst_opt.npy"]["iters:0"]) is np.int64
    for path in back.iterdir():
        assert path.read_bytes().startswith(b"\x80\x04") and b"numpy._core" not in path.read_bytes()


def test_a_model_of_ours_goes_there(tmp_path, capsys):
    """With the optimizer's state where DeepFaceLab has such an optimizer, and read again as what it was."""
    model_dir = tmp_path / "mine"
    config = updated(
        TrainConfig(),
        {
            **{"model.name": "liae-ud", "model.input_size": 64, "model.ae_dims": 8, "model.e_dims": 4},
            **{"model.d_dims": 4, "loss.learn_mask": True, "crop.coverage": 90.0, "crop.vertical_offset": -7.5},
            **{"optimizer.optimizer": "rms-prop-dfl", "batch_size": 3, "augmentation.warp": False},
            **{"augmentation.flip_sides": ["b"], "loss.blur_out_mask": True, "optimizer.lr_dropout": True},
        },
    )
    model = build_model(config.model, True, 1)
    optimizer = Optimizer(model, config.optimizer)
    for _ in range(2):
        faces = [torch.rand(2, 3, 64, 64) for _ in SIDES]
        optimizer.backward(sum(output.square().mean() for side in model(faces) for output in side))
        optimizer.step()
    write_model(Imported("test", Path(), 2, config, model, optimizer.state_dict()), check_new_model(model_dir))
    assert cli.main(["export", "-m", str(model_dir), "--to", "saehd", "-o", str(tmp_path / "there")]) == 0
    capsys.readouterr()
    files = files_of(tmp_path / "there")
    data = files["mine_SAEHD_data.dat"]
    assert data["iter"] == 2 and len(data["loss_history"]) == 2  # means are taken of them by number
    options = {"archi": "liae-ud", "resolution": 64, "face_type": "wf", "d_mask_dims": 2, "random_warp": False}
    options |= {"adabelief": False, "batch_size": 3, "lr_dropout": "y", "eyes_mouth_prio": False}
    options |= {"random_src_flip": True, "random_dst_flip": False, "blur_out_mask": True}
    assert files.keys() == {
        f"mine_SAEHD_{name}"
        for name in ("data.dat", "encoder.npy", "inter_AB.npy", "inter_B.npy", "decoder.npy", "src_dst_opt.npy")
    }
    assert {key: data["options"][key] for key in options} == options
    again = read_saehd(tmp_path / "there" / "mine")
    assert again.config.crop == config.crop and again.config.model.freeze == ["inter_both"]
    assert all(torch.equal(value, again.model.get_parameter(name)) for name, value in model.named_parameters())
    expected = optimizer.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.optimizer.items())


def test_what_does_not_go_there(tmp_path, capsys):
    """Another family, an optimizer that DeepFaceLab has not, and a mask that is not learned."""
    for name, code in {"tiny": 2, "df": 0}.items():
        sizes = {"input_size": 64, "ae_dims": 8, "e_dims": 4, "d_dims": 4} if name == "df" else {}
        config = updated(TrainConfig(), {"model.name": name, **{f"model.{key}": size for key, size in sizes.items()}})
        model_dir, out = tmp_path / name, tmp_path / f"{name} there"
        model = build_model(config.model, False, 1)
        write_model(Imported("test", Path(), 0, config, model), check_new_model(model_dir))
        assert cli.main(["export", "-m", str(model_dir), "--to", "saehd", "-o", str(out)]) == code
        assert out.exists() == (code == 0)
        said = capsys.readouterr()
        if code:
            assert said.err.startswith("swapfast: --to saehd: holds df and liae, and ") and said.err.count("\n") == 1
            continue
        assert "DeepFaceLab has no adam: the optimizer begins anew there" in said.out
        assert "no mask is learned here" in said.out and "is the nearest to the crop face 100 0" in said.out
        assert not any("upscalem" in key for key in files_of(out)["df_SAEHD_decoder_src.npy"])
        assert cli.main(["export", "-m", str(model_dir), "--to", "saehd", "-o", str(out)]) == 2
        assert "exists" in capsys.readouterr().err


# --- hostile folders ----------------------------------------------------------------------------------------


class _Calls:
    def __reduce__(self):
        return os.system, ("touch called",)


@pytest.mark.parametrize("file", ["data.dat", "inter.npy", "src_dst_opt.npy"])
def test_a_model_that_calls_something_is_refused(file, model_copy, tmp_path, monkeypatch, capsys):
    folder = model_copy()
    path = folder / f"new_SAEHD_{file}"
    path.write_bytes(pickle.dumps(read_pickle_file(path) | {"more": _Calls()}, 4))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", str(folder), "-m", "model"]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"{path}: holds the name '(posix|nt)\.system', .*; nothing in it was called", error)
    assert error.count("\n") == 1 and not (tmp_path / "called").exists() and not (tmp_path / "model").exists()


def test_what_was_kept_is_not_trusted(model_copy, tmp_path, capsys):
    model_dir, out = tmp_path / "model", tmp_path / "back"
    assert cli.main(["import", str(model_copy()), "-m", str(model_dir)]) == 0
    kept = model_dir / KEPT / "SAEHD_data.dat"
    options = read_pickle_file(kept)["options"]
    for value in (
        *([1], {"iter": 3}, {"options": {1: 2}}, {"options": {"archi": "df"}}, {"options": options, "x": _Calls()}),
        {"options": options | {"resolution": 128}},
    ):
        kept.write_bytes(pickle.dumps(value, 4))
        assert cli.main(["export", "-m", str(model_dir), "--to", "saehd", "-o", str(out)]) == 2
        error = capsys.readouterr().err
        assert str(kept) in error and error.count("\n") == 1 and not out.exists()


def _mutated(data: bytes, draw: random.Random) -> bytes:
    """Return ``data`` with a few bytes changed, taken out or repeated, most of them where its operations are."""
    changed = bytearray(data)
    names = [match.start() for match in re.finditer(rb"numpy|weight|bias|iter|options", data)] or [0]
    for _ in range(draw.randint(1, 3)):
        position = draw.choice([draw.randrange(len(changed)), min(draw.choice(names), len(changed) - 1)])
        position = max(0, min(len(changed) - 1, position + draw.randint(-12, 60)))
        kind = draw.random()
        if kind < 0.6:
            changed[position] = draw.randrange(256)
        elif kind < 0.7:
            del changed[position:]
        elif kind < 0.85:
            del changed[position : position + draw.randint(1, 30)]
        else:
            changed[position:position] = changed[position : position + draw.randint(1, 30)]
        changed = changed or bytearray(b"\x80")
    return bytes(changed)


@pytest.mark.long
def test_changed_files_are_read_or_refused(model_copy):
    """Whatever the bytes of one file, the answer is a model whose weights are finite, or one line."""
    folder = model_copy("df_64")
    whole = {path: path.read_bytes() for path in folder.iterdir() if path.stat().st_size < 500_000}
    outcomes = {"read": 0, "refused": 0}
    for seed in range(60):
        draw = random.Random(seed)
        path = draw.choice(sorted(whole))
        path.write_bytes(_mutated(whole[path], draw))
        try:
            imported = read_saehd(folder)
            assert all(bool(weight.isfinite().all()) for weight in imported.model.state_dict().values())
            outcomes["read"] += 1
        except SwapfastError as error:
            assert "\n" not in str(error) and str(folder) in str(error)
            outcomes["refused"] += 1
        path.write_bytes(whole[path])
    assert outcomes["refused"] > 12 and outcomes["read"] > 2


@pytest.mark.golden
def test_it_is_trained_here_and_goes_back(recorded, tmp_path, capsys):
    faces, model_dir, back = tmp_path / "faces", tmp_path / "model", tmp_path / "back"
    synthesize(faces, 4, 64, 1, 1)
    assert cli.main(["import", str(recorded("liae-ud_96")), "-m", str(model_dir)]) == 0
    sides = ["-A", str(faces / "a"), "-B", str(faces / "b"), "--preview-images", "1"]
    assert cli.main(["train", *sides, "-m", str(model_dir), "-i", "5"]) == 0
    assert cli.main(["export", "-m", str(model_dir), "--to", "saehd", "-o", str(back)]) == 0
    before, after = files_of(recorded("liae-ud_96")), files_of(back)
    data, there = after.pop("new_SAEHD_data.dat"), before.pop("new_SAEHD_data.dat")
    assert data["iter"] == 5 and after["new_SAEHD_src_dst_opt.npy"]["iters:0"] == 5
    assert data["options"] == there["options"] and same(data["sample_for_preview"], there["sample_for_preview"])
    assert data["loss_history"][:3] == there["loss_history"]
    assert len(data["loss_history"]) == 5 and all(0 < loss < 20 for pair in data["loss_history"] for loss in pair)
    for file, arrays in after.items():
        assert arrays.keys() == before[file].keys()
        assert all(arrays[key].shape == before[file][key].shape for key in arrays)
        assert not any(same(arrays[key], before[file][key]) for key in arrays)
    history = load_history(model_dir)
    assert list(history.steps) == [1, 2, 3, 4, 5]
    assert history.column("loss_b")[0] == pytest.approx(there["loss_history"][0][0], rel=1e-5)
    assert read_saehd(back).step == 5
    assert (
        cli.main(["export", "-m", str(model_dir), "--to", "saehd", "-o", str(tmp_path / "x"), "--checkpoint", "3"]) == 0
    )
    assert same(files_of(tmp_path / "x")["new_SAEHD_data.dat"], there)
