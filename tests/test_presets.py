"""Presets: what they hold, what ranks over them, and a run that has one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

import cli
from swapfast.augment.draws import draw
from swapfast.config import AugmentationConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.options import settings
from swapfast.presets import PRESETS
from swapfast.sources import choose


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_of_a_preset_is_taken(name):
    config = choose({"run.preset": name}).config
    values = {setting: item.value for setting, item in settings(config).items()}
    for setting, value in PRESETS[name].settings.items():
        assert values.pop(setting) == value
    others = {setting: item.value for setting, item in settings(TrainConfig()).items() if setting in values}
    assert values == others | {"run.preset": name}


def test_what_a_person_gives_ranks_over_the_preset(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("batch_size = 3\n[optimizer]\nclipping_value = 2.0\n[run]\npreset = 'saehd-finish'\n")
    environment = {"SWAPFAST_PRESET": "saehd", "SWAPFAST_LEARNING_RATE": "1e-4"}
    choice = choose({"loss.functions": ["mae"], "augmentation.zoom_amount": 1.0}, [], file, environment)
    config = choice.config
    assert config.run.preset == "saehd" and not config.optimizer.lr_dropout
    assert (config.batch_size, config.optimizer.clipping_value, config.optimizer.learning_rate) == (3, 2.0, 1e-4)
    assert config.loss.functions == ["mae"] and config.loss.weights == [100.0]
    assert config.augmentation.zoom_amount == 1.0 and config.augmentation.flip_sides == ["a"]
    assert "loss.soft_mask" not in choice.changes, "a model that goes on keeps its own"


def test_an_unknown_preset_is_answered_with_the_nearest(capsys):
    with pytest.raises(SwapfastError, match=r"unknown --preset 'seahd'\. Did you mean 'saehd'\?"):
        choose({"run.preset": "seahd"})
    assert cli.main(["train", "--preset", "seahd"]) == 2
    assert capsys.readouterr().err == (
        "swapfast: unknown --preset 'seahd'. Did you mean 'saehd'? Known: none, saehd, saehd-finish\n"
    )


def test_a_printed_preset_is_a_file_to_begin_with(tmp_path, capsys):
    flags = ["train", "--preset", "saehd", "--clip", "none", "--flip-sides", "a", "b", "--loss-reduction", "mean"]
    assert cli.main([*flags, "--print-config"]) == 0
    text = capsys.readouterr().out
    table = tomllib.loads(text)
    assert table["loss"]["functions"] == ["dssim", "mse"] and table["optimizer"]["gradient_clipping"] == "none"
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert cli.main(["train", "-C", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == text


def test_only_the_sides_asked_for_are_mirrored():
    ordinals = list(range(200)) * 2
    sides = [0] * 200 + [1] * 200
    both = draw(1, ordinals, sides, 64)
    only_a = draw(1, ordinals, sides, 64, AugmentationConfig(flip_sides=["a"]))
    assert (only_a.flip[:200] == both.flip[:200]).all() and both.flip[:200].any() and both.flip[200:].any()
    assert not only_a.flip[200:].any()
    assert (only_a.warp == both.warp).all() and (only_a.rotation == both.rotation).all()
    assert not draw(1, ordinals, 1, 64, AugmentationConfig(flip_sides=["a"])).flip.any()
    assert not draw(1, ordinals, sides, 64, AugmentationConfig(flip_sides=[])).flip.any()


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("preset") / "faces"
    assert cli.main(["synthesize", str(out), "--faces", "6", "--size", "96", "--pairs", "1", "--seed", "6"]) == 0
    return out


@pytest.mark.slow
def test_a_run_has_all_pieces_and_goes_on_to_the_bit(faces, tmp_path, capsys, device):
    """With every piece on; stopped in between or not, and the second start without the preset."""

    def train(model: str, iterations: int, *flags: str) -> str:
        given = ["-A", faces / "a", "-B", faces / "b", "-m", tmp_path / model, "-i", iterations, *flags]
        given += ["--device", device.type, "--preview-images", 1]
        assert cli.main(["train", *map(str, given)]) == 0
        return capsys.readouterr().out

    start = ["--preset", "saehd-finish", "-t", "tiny", "-b", "2"]
    train("whole", 4, *start)
    train("parts", 2, *start)
    assert "--preset saehd: not used, for the model has settings of its own" in train("parts", 3, "--preset", "saehd")
    train("parts", 4)
    states = [tmp_path / model / "checkpoint-00000004" for model in ("whole", "parts")]
    config = json.loads((states[1] / "state.json").read_text())["config"]
    assert config["loss"]["eye_mouth_priority"] == 300.0 and config["optimizer"]["lr_dropout"]
    assert config["model"]["name"] == "tiny" and config["batch_size"] == 2
    if device.type == "cpu":
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (states[0] / file).read_bytes() == (states[1] / file).read_bytes()
    logged = (tmp_path / "whole" / "logs").glob("*.jsonl")
    assert any("eye_mouth" in path.read_text() for path in logged)
