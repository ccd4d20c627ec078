"""Recipes: what they hold, what ranks over them, and a run that has one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cli
from benchmarks.learning import narrower_networks
from pipelines.run.build import code_line
from swapfast.augment.draws import draw
from swapfast.config import AugmentationConfig, ModelConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.export.targets import TARGETS
from swapfast.models import MODELS
from swapfast.options import settings
from swapfast.recipes import PLAIN_CODES, RECIPES, own_settings
from swapfast.sources import choose, recipe_differences


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_a_recipe_is_taken(name):
    config = choose({"run.recipe": name}).config
    values = {setting: item.value for setting, item in settings(config).items()}
    for setting, value in RECIPES[name].settings.items():
        assert values.pop(setting) == value
    others = {setting: item.value for setting, item in settings(TrainConfig()).items() if setting in values}
    assert values == others | {"run.recipe": name}


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_a_new_model_begins_with_its_own_recipe(family):
    name = MODELS[family].example or family
    own = own_settings(name)
    assert own and not [setting for setting in own if setting.startswith("run.") or setting == "model.name"]
    assert {"optimizer.learning_rate", "optimizer.schedule", "optimizer.ema", "model.code"} <= own.keys()
    choice = choose({"model.name": name})
    values = {setting: item.value for setting, item in settings(choice.config).items()}
    assert {setting: values[setting] for setting in own} == own
    assert choice.changes == {"model.name": name}, "a model that goes on keeps its own"
    assert choose({"model.name": name, "optimizer.ema": "7"}).config.optimizer.ema == "7"
    plain = choose({"model.name": name, "run.recipe": "faceswap"}).config
    listed = recipe_differences(name)
    assert len(listed) == sum(
        values[setting] != item.value for setting, item in settings(plain).items() if setting != "run.recipe"
    )
    assert [line for line in listed if line.startswith("precision")] == ["precision auto (fp32)"]


def test_names_that_lead_elsewhere_are_no_recipe(tmp_path):
    (tmp_path / "x.toml").write_text("batch_size = 3")
    for name in ("none", "", f"{tmp_path}/x", "../models/tiny", "tiny.toml"):
        assert own_settings(name) == {}


# The defaults of faceswap acdcfa8 by its own names, as they were read there, and where ours are.
PEER = {
    "optimizer.optimizer": "adam",
    "optimizer.learning_rate": 5e-5,
    "optimizer.epsilon_exponent": -7,
    "optimizer.gradient_clipping": "none",
    "optimizer.weight_decay": 0.0,
    "optimizer.gradient_accumulation": 1,
    "optimizer.warmup": 0,
    "optimizer.schedule": "constant",
    "optimizer.ema": "off",
    "optimizer.beta_1": 0.9,
    "optimizer.beta_2": 0.999,
    "model.code": "plain",
    "precision": "fp32",
    "batch_size": 16,
    "loss.functions": ["ssim", "mse"],
    "loss.weights": [100.0, 100.0],
    "loss.eye_multiplier": 3.0,
    "loss.mouth_multiplier": 2.0,
    "loss.penalized_mask_loss": True,
    "loss.learn_mask": False,
    "mask.mask_type": "extended",
    "crop.centering": "face",
    "crop.coverage": 100.0,
    "augmentation.zoom_amount": 5.0,
    "augmentation.rotation_range": 10.0,
    "augmentation.shift_range": 5.0,
    "augmentation.flip_chance": 50.0,
    "augmentation.color_lightness": 30.0,
    "augmentation.color_ab": 8.0,
    "augmentation.color_clahe_chance": 50.0,
    "augmentation.color_clahe_max_size": 4,
}


@pytest.mark.parametrize("model", ["original", "tiny", "liae-ud"])
def test_the_reference_is_the_peers_defaults_whatever_the_model_brings(model):
    values = settings(choose({"run.recipe": "faceswap", "model.name": model}).config)
    assert {name: values[name].value for name in PEER} == PEER
    others = own_settings(model).keys() - RECIPES["faceswap"].settings.keys()
    defaults = settings(TrainConfig())
    assert {name: values[name].value for name in others} == {name: defaults[name].value for name in others}


def test_a_model_of_an_earlier_version_goes_on_as_it_was():
    """Its config knows nothing of schedules, averages and codes."""
    stored = TrainConfig(model=ModelConfig(name="tiny")).checkpoint_dict()
    for name in ("schedule", "decay_share", "final_rate", "plateau_patience", "ema"):
        del stored["optimizer"][name]
    del stored["model"]["code"]
    config = TrainConfig.from_dict(stored)
    assert (config.optimizer.schedule, config.optimizer.ema, config.model.code) == ("constant", "off", "plain")


@pytest.mark.slow
def test_former_names_are_taken(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text("[run]\npreset = 'saehd'\n")
    for choice in (
        choose(file=file),
        choose(environment={"SWAPFAST_PRESET": "saehd"}),
        choose(environment={"SWAPFAST_RUN_PRESET": "saehd"}),
        choose(texts=["run.preset=saehd"]),
    ):
        assert choice.config.batch_size == 8 and choice.changes == {"run.recipe": "saehd"}
    assert choose({"run.recipe": "none"}).config == choose().config
    printed = []
    for flag in ("--preset", "--recipe"):
        assert cli.main(["train", flag, "saehd", "--print-config"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and 'recipe = "saehd"' in printed[0]


def test_what_a_person_gives_ranks_over_the_recipe(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("batch_size = 3\n[optimizer]\nclipping_value = 2.0\n[run]\nrecipe = 'saehd-finish'\n")
    environment = {"SWAPFAST_RECIPE": "saehd", "SWAPFAST_LEARNING_RATE": "1e-4"}
    choice = choose({"loss.functions": ["mae"], "augmentation.zoom_amount": 1.0}, [], file, environment)
    config = choice.config
    assert config.run.recipe == "saehd" and not config.optimizer.lr_dropout
    assert (config.batch_size, config.optimizer.clipping_value, config.optimizer.learning_rate) == (3, 2.0, 1e-4)
    assert config.loss.functions == ["mae"] and config.loss.weights == [100.0]
    assert config.augmentation.zoom_amount == 1.0 and config.augmentation.flip_sides == ["a"]
    assert "loss.soft_mask" not in choice.changes, "a model that goes on keeps its own"


def test_an_unknown_recipe_is_answered_with_the_nearest(capsys):
    with pytest.raises(SwapfastError, match=r"unknown --recipe 'seahd'\. Did you mean 'saehd'\?"):
        choose({"run.recipe": "seahd"})
    assert cli.main(["train", "--recipe", "seahd"]) == 2
    assert capsys.readouterr().err == (
        "swapfast: unknown --recipe 'seahd'. Did you mean 'saehd'? "
        "Known: faceswap, one-code, own, saehd, saehd-finish\n"
    )


@pytest.mark.parametrize("model", [entry.example or name for name, entry in MODELS.items() if name != "tiny"])
def test_a_model_to_be_used_has_one_code_by_itself_and_all_that_belongs_to_it(model):
    own, shared = (choose({"run.recipe": name, "model.name": model}).config for name in ("own", "one-code"))
    values = {name: item.value for name, item in settings(own).items()}
    assert {name: values[name] for name in RECIPES["one-code"].settings} == RECIPES["one-code"].settings
    different = {name for name, item in settings(shared).items() if item.value != values[name]}
    assert different - {"optimizer.learning_rate"} == {"run.recipe"}, "the rate depends on the network"


@pytest.mark.parametrize(
    ("model", "rate"), [("original", 2e-4), ("lightweight", 5e-5), ("df-ud", 5e-5), ("liae-ud", 5e-5), ("tiny", 2e-3)]
)
def test_each_model_has_a_rate_of_its_own_and_the_peers_recipe_the_peers(model, rate):
    rates = {
        recipe: choose({"run.recipe": recipe, "model.name": model}).config.optimizer.learning_rate
        for recipe in ("own", "faceswap")
    }
    assert rates == {"own": rate, "faceswap": 5e-5}


@pytest.mark.parametrize(
    ("name", "size", "is_new", "line"),
    [
        ("original", 64, True, "; for export --to keras begin a model with --recipe faceswap"),
        ("original", 128, True, ""),  # faceswap has none of that size
        ("liae-ud", 128, True, "; for export --to saehd begin a model with --recipe saehd"),
        ("liae-ud", 128, False, ""),
        ("tiny", 64, True, ""),
    ],
)
def test_the_start_says_what_code_is_learned_and_what_it_shuts_out(name, size, is_new, line):
    assert code_line(name, size, "encoder", is_new) == f"one for both people (--code encoder){line}"
    assert code_line(name, size, "plain", is_new) == "plain"


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.recipe])
def test_the_recipe_of_a_file_has_the_codes_that_it_holds(name):
    for family in TARGETS[name].families:
        model = MODELS[family].example or family
        config = choose({"run.recipe": TARGETS[name].recipe, "model.name": model}).config
        assert config.model.code == "plain"


@pytest.mark.parametrize("model", [entry.example or name for name, entry in MODELS.items()])
def test_plain_codes_come_without_what_one_code_alone_has_a_use_for(model):
    """A twofold cost and unlike colours would be for nothing. What a person gives stays."""
    asked = {"model.name": model, "model.code": "plain"}
    values = settings(choose(asked).config)
    usual = settings(choose({"model.name": model}).config)
    assert {name: values[name].value for name in PLAIN_CODES} == PLAIN_CODES
    assert all(values[name].value == usual[name].value for name in usual.keys() - PLAIN_CODES.keys())
    given = choose({**asked, "loss.cycle_weight": 30.0}).config
    assert given.loss.cycle_weight == 30.0 and given.loss.landmark_weight == 0


def test_help_names_the_defaults_that_models_have(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    config = choose().config
    for flag, value in {"--code CODE": config.model.code, "--cycle-weight CYCLE_WEIGHT": "50"}.items():
        assert said.split(f"{flag} ")[-1].split("default: ")[1].split()[0] == value
    assert "Step size; default: the model's own (swapfast models)" in said


def test_one_code_that_was_asked_for_is_never_replaced_by_plain_codes(faces, tmp_path, capsys):
    model = tmp_path / "model"
    given = ["train", "-A", faces / "a", "-B", faces / "b", "-m", model, "-t", "tiny", "--recipe", "one-code", "-b", 2]
    assert cli.main([*map(str, given), "-i", "1", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "-b/--batch-size 2: --code encoder" in error and "give -b 4 or more" in error
    assert not model.exists()


@pytest.mark.parametrize("flag", ["--print-config", "--summary"])
def test_an_unknown_model_is_no_settings_to_print(flag, capsys):
    assert cli.main(["train", "-t", "liea", flag]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "unknown model 'liea'. Known: df-ud, liae-ud" in error


def test_a_printed_recipe_is_a_file_to_begin_with(tmp_path, capsys):
    flags = ["train", "--recipe", "saehd", "--clip", "none", "--flip-sides", "a", "b", "--loss-reduction", "mean"]
    assert cli.main([*flags, "--print-config"]) == 0
    text = capsys.readouterr().out
    table = tomllib.loads(text)
    assert table["loss"]["functions"] == ["dssim", "mse"] and table["optimizer"]["gradient_clipping"] == "none"
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert cli.main(["train", "-C", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.slow
def test_a_printed_file_has_the_settings_that_a_run_takes_in_place_of_the_usual_ones(faces, tmp_path, capsys, device):
    """A small batch, weights of another code, a model that is there: such a file is never refused or warned of."""

    def printed(*flags: object) -> tuple[dict, str]:
        file = tmp_path / "run.toml"
        assert cli.main(["train", *map(str, flags), "--print-config"]) == 0
        text, remarks = capsys.readouterr()
        file.write_text(text)
        assert cli.main(["train", "-C", str(file), "--print-config"]) == 0
        assert capsys.readouterr() == (text, "")
        return tomllib.loads(text), remarks

    table, remarks = printed("-t", "tiny", "-b", 2)
    assert (table["model"]["code"], table["loss"]["cycle_weight"], table["batch_size"]) == ("plain", 0.0, 2)
    assert remarks.startswith("--code plain, since -b 2 is too small")
    old = tmp_path / "old"
    run = ["train", "-A", str(faces / "a"), "-B", str(faces / "b"), "--device", device.type]
    assert cli.main([*run, "-m", str(old), "-t", "tiny", "-b", "4", "-i", "1", "--code", "plain", "-P"]) == 0
    capsys.readouterr()
    table, remarks = printed("-t", "tiny", "-l", old)
    assert table["model"]["code"] == "plain" and "which the weights of -l" in remarks
    table, remarks = printed(*run[1:5], "-m", old, "--mouth-multiplier", 4)
    assert (table["batch_size"], table["augmentation"]["flip"], table["loss"]["mouth_multiplier"]) == (4, False, 4.0)
    assert table["model"]["name"] == "tiny" and table["model"]["code"] == "plain" and remarks == ""
    assert cli.main(["train", "-C", str(tmp_path / "run.toml"), "-i", "2", "--device", device.type]) == 0
    assert "going on from iteration 1" in capsys.readouterr().out


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
def faces(drawn) -> Path:
    return drawn(8, 64)


# Of each family what its own recipe trains, small: what depends on the network's kind is there.
SMALL_MODELS = {
    "tiny": (),
    "lightweight": (),  # as narrow as the benchmark makes it
    "original": ("model.encoder_width=16", "model.dense=32", "model.bottleneck=4x4x32"),
    "df": ("model.input_size=64", "model.ae_dims=16", "model.e_dims=16", "model.d_dims=16"),
    "liae": ("model.input_size=64", "model.ae_dims=16", "model.e_dims=16", "model.d_dims=16"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_every_model_trains_goes_on_and_swaps_by_its_own_recipe(name, faces, tmp_path, capsys, device):
    """Far enough for all that is not done at each step; with the averages that are used."""
    assert set(SMALL_MODELS) == set(MODELS), "each model in the registry"
    sizes = [word for size in SMALL_MODELS[name] for word in ("--set", size)]
    words = ["-A", faces / "a", "-B", faces / "b", "-t", name, *sizes, "-b", 4, "-n", "--preview-images", 1]

    def train(folder: str, iterations: int) -> dict[str, torch.Tensor]:
        given = [*words, "-m", tmp_path / folder, "-i", iterations, "--device", device.type]
        with narrower_networks(8):
            assert cli.main(["train", *map(str, given)]) == 0, capsys.readouterr().err
        return load_file(tmp_path / folder / f"checkpoint-{iterations:08}" / "ema.safetensors")

    last = 6
    whole = train("whole", last)
    train("parts", 3)
    parts = train("parts", last)
    assert whole.keys() == parts.keys()
    # On the same processor one run ends as two do, to the bit.
    assert device.type != "cpu" or all(torch.equal(whole[tensor], parts[tensor]) for tensor in whole)
    seen = [tensor for tensor, value in whole.items() if tensor.endswith("uncolored_faces") and (value > 0).all()]
    config = TrainConfig.from_dict(json.loads(_state_file(tmp_path / "whole", last).read_text())["config"], "state")
    assert config.model.code == "encoder" and config.loss.cycle_weight and config.loss.landmark_weight
    assert len(seen) == (1 if config.augmentation.color_chance < 100 else 0)
    capsys.readouterr()
    with narrower_networks(8):
        assert cli.main(["evaluate", "-m", str(tmp_path / "whole"), "--truth", str(faces / "truth"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert np.isfinite(figures["swap_psnr"]) and figures["swap_psnr"] > 5


def _state_file(model: Path, iteration: int) -> Path:
    return model / f"checkpoint-{iteration:08}" / "state.json"


@pytest.mark.slow
def test_a_run_has_all_pieces_and_goes_on_to_the_bit(faces, tmp_path, capsys, device):
    """With every piece on; stopped in between or not, and the second start without the recipe."""

    def train(model: str, iterations: int, *flags: str) -> str:
        given = ["-A", faces / "a", "-B", faces / "b", "-m", tmp_path / model, "-i", iterations, *flags]
        given += ["--device", device.type, "--preview-images", 1]
        assert cli.main(["train", *map(str, given)]) == 0
        return capsys.readouterr().out

    start = ["--recipe", "saehd-finish", "-t", "tiny", "-b", "2"]
    train("whole", 4, *start)
    train("parts", 2, *start)
    assert "--recipe saehd: not used, for the model has settings of its own" in train("parts", 3, "--recipe", "saehd")
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
