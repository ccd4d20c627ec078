"""`swapfast export`: what is written, what it says of itself, and requests that cannot be met."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import cli
from swapfast import __version__
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.snapshots import Snapshots
from swapfast.checkpoints.transfer import load_weights_from
from swapfast.config import CropConfig, ModelConfig, TrainConfig
from swapfast.models import build_model
from swapfast.swap.request import SwapRequest, open_swap_model

CONFIG = TrainConfig(
    model=ModelConfig(name="tiny"), crop=CropConfig(centering="face", coverage=90, vertical_offset=-7.5)
)


def save(
    folder: Path, step: int, config: TrainConfig = CONFIG, metrics: dict | None = None, **changes: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Save a checkpoint of weights drawn from ``step``, some of them changed; return them."""
    weights = build_model(config.model, config.loss.learn_mask, seed=step).state_dict()
    weights |= {name.replace("__", "."): value for name, value in changes.items()}
    faces = {f"mean_{side}": torch.full((64, 64, 3), 0.5) for side in "ab"}
    state = {"config": config.to_dict(), "metrics": {"average_loss": 0.5} | (metrics or {})}
    CheckpointFolder(folder).save(Checkpoint(step, {"model": weights, "optimizer": {}, "faces": faces}, state))
    return weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A model folder: a backup of iteration 2, checkpoints of 4 and 6."""
    folder = tmp_path_factory.mktemp("trained") / "anna"
    for step in (2, 4, 6):
        save(folder, step)
        if step == 2:
            Snapshots(CheckpointFolder(folder)).back_up(step)
    return folder


@pytest.fixture
def export(trained, tmp_path, monkeypatch, capsys):
    """Run the command on that folder with more words, in an empty folder; return its code, output and error."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*words: str, model: Path = trained) -> tuple[int, str, str]:
        code = cli.main(["export", "-m", str(model), *words])
        return code, *capsys.readouterr()

    return call


def refused(result: tuple[int, str, str], code: int = 2) -> str:
    """Return the only line that was printed; nothing was left in the working directory."""
    assert result[0] == code and result[1] == "", result
    lines = result[2].splitlines()
    assert len(lines) == 1 and lines[0].startswith("swapfast: "), lines
    assert not [path.name for path in Path().iterdir() if path.name.startswith(".writing")]
    return lines[0]


def test_safetensors_hold_the_weights_and_say_what_they_are(export):
    code, out, _ = export("--to", "safetensors", "-o", "w.safetensors")
    assert code == 0 and "iteration 6 of" in out and "w.safetensors" in out
    expected = dict(build_model(CONFIG.model, False, seed=6).named_parameters())
    weights = load_file("w.safetensors")
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)
    transfer = load_weights_from(build_model(CONFIG.model, False, seed=1), Path("w.safetensors"))
    assert transfer.step == 6 and transfer.skipped == []
    with safe_open("w.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["swapfast"] == __version__ and metadata["name"] == "anna" and metadata["iteration"] == "6"
    assert (metadata["centering"], metadata["coverage"], metadata["vertical_offset"]) == ("face", "90", "-7.5")
    assert metadata["model"] == "tiny" and metadata["synthetic_media"] == "true" and metadata["sides"] == "a b"
    assert ModelConfig.from_dict(json.loads(metadata["model_settings"])) == CONFIG.model


def test_statistics_of_the_sides_come_along(tmp_path, monkeypatch, capsys):
    config = TrainConfig(model=ModelConfig(name="tiny", code="encoder"))
    seen = {"statistics__encoder_0__steps": torch.ones(2), "statistics__encoder_0__moments": torch.rand(2, 2, 16)}
    seen |= {"statistics__encoder_0__slopes": torch.rand(3, 16), "statistics__encoder_0__side_means": torch.rand(2, 3)}
    seen["statistics__encoder_0__side_covariances"] = torch.rand(2, 3, 3)
    weights = save(tmp_path / "anna", 3, config, **seen)
    out = tmp_path / "w.safetensors"
    assert cli.main(["export", "-m", str(tmp_path / "anna"), "--to", "safetensors", "-o", str(out), "--fp16"]) == 0
    for part in ("moments", "slopes", "side_means", "side_covariances"):
        written, name = load_file(out), f"statistics.encoder_0.{part}"
        assert written[name].dtype == torch.float32 and torch.equal(written[name], weights[name]), part
    assert "statistics.encoder_1.moments" not in load_file(out), "of a layer that saw no face there are none"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "model", "words"),
    [
        ("keras", {"name": "original"}, "begin a new model with --recipe faceswap"),
        ("saehd", {"name": "df"}, "begin a new model with --recipe saehd"),
        ("keras", {"name": "original", "input_size": 128}, "holds original and lightweight of 64 px, and "),
        ("saehd", {"name": "original"}, "holds df and liae, and "),
        ("keras", {"name": "tiny"}, "holds original and lightweight of 64 px, and "),
    ],
    ids=["keras", "saehd", "another size", "another family", "tiny"],
)
def test_a_program_that_knows_no_statistics_is_not_given_them(to, model, words, tmp_path, capsys):
    """A model that it has not is refused for that, and not for its code, which another one would not mend."""
    narrow = {
        "original": {"encoder_width": 8, "dense": 32, "bottleneck": "4x4x32"},
        "df": {"input_size": 64, "ae_dims": 16, "e_dims": 16, "d_dims": 16},
    }
    config = ModelConfig(**{**narrow.get(model["name"], {}), **model}, code="encoder")
    save(tmp_path / "anna", 3, TrainConfig(model=config))
    out = tmp_path / {"keras": "m.keras", "saehd": "m"}[to]
    code = cli.main(["export", "-m", str(tmp_path / "anna"), "--to", to, "-o", str(out)])
    error = capsys.readouterr().err
    assert code == 2 and not out.exists() and error.count("\n") == 1 and words in error
    assert ("cannot hold the sides' statistics of a model with --code encoder" in error) == ("begin" in words)


def test_others_may_read_it(export):
    Path("any").touch()
    assert export("--to", "safetensors", "-o", "w.safetensors")[0] == 0
    assert Path("w.safetensors").stat().st_mode == Path("any").stat().st_mode


def test_half_the_bits(export):
    assert export("--to", "safetensors", "-o", "w.safetensors", "--fp16")[0] == 0
    expected = dict(build_model(CONFIG.model, False, seed=6).named_parameters())
    weights = load_file("w.safetensors")
    assert all(torch.equal(weights[name], expected[name].half()) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "step"), [((), 6), (("--checkpoint", "4"), 4), (("--checkpoint", "best"), 2)])
def test_the_checkpoint_that_is_meant(export, words, step):
    code, out, _ = export("--to", "safetensors", "-o", "w.safetensors", "--json", *words)
    result = json.loads(out)
    assert code == 0 and result["iteration"] == step and result["bytes"] == Path("w.safetensors").stat().st_size
    expected = build_model(CONFIG.model, False, seed=step).state_dict()
    assert torch.equal(load_file("w.safetensors")["encoder.0.0.weight"], expected["encoder.0.0.weight"])


@pytest.mark.slow
def test_every_command_takes_the_best_swap_and_says_so(export, tmp_path, capsys):
    """One line on stderr, of export, evaluate and swap; --checkpoint newest takes the newest without one."""
    model = tmp_path / "anna"
    save(model, 2)
    Snapshots(CheckpointFolder(model)).back_up(2)
    save(model, 4, metrics={"swap_quality": 20.0, "highest_swap_quality": 21.0})
    line = "iteration 2 had the best swap and is used; --checkpoint newest takes iteration 4\n"
    for words, step, said in (((), 2, line), (("--checkpoint", "newest"), 4, ""), (("--checkpoint", "4"), 4, "")):
        code, out, error = export("--to", "safetensors", "--overwrite", "--json", *words, model=model)
        assert (code, json.loads(out)["iteration"], error) == (0, step, said)
        # There are no true swaps: what is said comes before.
        assert cli.main(["evaluate", "-m", str(model), "--truth", str(tmp_path / "none"), *words]) == 2
        first, *others = capsys.readouterr().err.splitlines(keepends=True)
        assert first == said if said else first.startswith("swapfast: ") and not others
    assert open_swap_model(SwapRequest(model, tmp_path)).metadata.step == 2


def test_a_folder_gets_a_file_named_after_model_crop_and_size(export):
    Path("out").mkdir()
    assert export("--to", "safetensors", "-o", "out", "--fp16")[0] == 0
    assert export("--to", "safetensors")[0] == 0
    assert [path.name for path in Path("out").iterdir()] == ["anna_face90-7.5_64_fp16.safetensors"]
    assert Path("anna_face90-7.5_64.safetensors").is_file()


def test_a_file_that_exists_is_replaced_only_when_asked(export):
    Path("w.safetensors").write_text("mine")
    assert "--overwrite" in refused(export("--to", "safetensors", "-o", "w.safetensors"))
    assert Path("w.safetensors").read_text() == "mine"
    assert export("--to", "safetensors", "-o", "w.safetensors", "--overwrite")[0] == 0
    assert len(load_file("w.safetensors")) > 10
    Path("anna_face90-7.5_64.safetensors").write_text("mine")
    assert "anna_face90-7.5_64.safetensors: exists" in refused(export("--to", "safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--to", "tflite"), ("unknown --to 'tflite'", "safetensors")),
        ((), ("--to",)),
        (("--to", "saehd"), ("--to saehd: it writes a folder", "give a new one with -o")),
        (("--to", "safetensors", "--side", "b"), ("--side b", "both sides")),
        (("--to", "safetensors", "-o", "w.onnx"), ("w.onnx", ".safetensors")),
        (("--to", "safetensors", "-o", "no/w.safetensors"), ("no folder",)),
        (("--to", "safetensors", "--checkpoint", "5"), ("--checkpoint 5", "2, 4, 6")),
        (("--to", "safetensors", "--checkpoint", "good"), ("give an iteration, best or newest",)),
        (("--to", "safetensors", "--side", "c"), ("unknown --side 'c'", "a, b")),
    ],
)
def test_what_cannot_be_asked_for(export, words, parts):
    line = refused(export(*words))
    assert all(part in line for part in parts), line
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_models_that_cannot_be_exported(export, tmp_path, trained):
    words = ("--to", "safetensors")
    assert "no such folder" in refused(export(*words, model=tmp_path / "nobody"))
    (tmp_path / "empty").mkdir()
    assert "holds no model" in refused(export(*words, model=tmp_path / "empty"))
    bad = tmp_path / "bad"
    save(bad, 3, encoder__0__0__bias=torch.full((16,), float("nan")))
    line = refused(export(*words, model=bad))
    assert "encoder.0.0.bias holds a number that is not finite" in line and "--checkpoint" in line
    large = tmp_path / "large"
    save(large, 3, encoder__0__0__bias=torch.full((16,), 1e5))
    assert "leave --fp16 out" in refused(export(*words, "--fp16", model=large))
    assert export(*words, model=large)[0] == 0
    bare = tmp_path / "bare"
    tensors = {"model": build_model(CONFIG.model, False, seed=1).state_dict(), "optimizer": {}}
    CheckpointFolder(bare).save(Checkpoint(1, tensors, {"config": CONFIG.to_dict()}))
    assert "names no faces.safetensors" in refused(export(*words, model=bare))
    damaged = shutil.copytree(trained, tmp_path / "damaged")
    for path in damaged.glob("checkpoint-*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert "no checkpoint can be read" in refused(export(*words, model=damaged))


def test_a_folder_that_may_not_be_written_to(export, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may everything
    assert "may not be written to" in refused(export("--to", "safetensors"))
    assert "may not be written to" in refused(export("--to", "safetensors", "-o", "w.safetensors"))


def test_a_link_to_nothing_and_a_folder_in_the_way(export):
    Path("link.safetensors").symlink_to("nowhere")
    assert "exists" in refused(export("--to", "safetensors", "-o", "link.safetensors"))
    Path("anna_face90-7.5_64.safetensors").mkdir()
    assert "is no file" in refused(export("--to", "safetensors"))


def test_a_full_disk_leaves_nothing(export):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        result = export("--to", "safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert "the disk is full" in refused(result, 1)
    assert not list(Path().iterdir())
