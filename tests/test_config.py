"""Settings: one definition of each, and where their values come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swapfast.config import RunConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.options import settings
from swapfast.sources import choose, require, variable_names

KNOWN = settings(TrainConfig())


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _another(name: str) -> object:
    """Return a value of the setting that is not its default."""
    setting = KNOWN[name]
    option, default = setting.option, setting.value
    if isinstance(default, bool):
        return not default
    if isinstance(default, list):
        lists = {"loss.functions": ["mae", "mse"], "loss.weights": [30.0, 70.0], "run.skip": ['a"b.txt', "c"]}
        return lists.get(name, list(option.choices[:1]))
    if isinstance(default, (int, float)):
        return type(default)(option.low if default != option.low else option.high or option.low + 1)
    if option.choices:
        return next(choice for choice in option.choices if choice != default)
    return {"run.max_time": "3h30m", "run.watch": "8420", "optimizer.ema": "500,4000"}.get(name, 'a "b" \\ é 😀\x7f')


@pytest.mark.long
def test_a_file_of_another_value_for_everything_comes_back_unchanged(tmp_path):
    """One by one, so that no two settings have to get along."""
    for name in KNOWN:
        if name in ("run.timelapse_input_a", "run.timelapse_input_b", "augmentation.warp_to_landmarks"):
            continue
        changes = {name: _another(name)}
        if name == "lr_finder.end":
            changes["lr_finder.start"] = 1e-12
        config = choose(changes).config
        assert settings(config)[name].value == _another(name) != KNOWN[name].value
        again = choose(file=_write(tmp_path / "run.toml", config.to_toml()))
        assert again.config == config and again.config.to_toml() == config.to_toml(), name
        assert again.changes.keys() == KNOWN.keys() and not again.notes


def test_a_name_that_toml_cannot_hold_is_refused():
    with pytest.raises(SwapfastError, match=r"model_dir .*not valid UTF-8"):
        choose({"run.model_dir": "caf\udce9"}).config.to_toml()


@pytest.mark.slow
def test_every_setting_has_its_variable(tmp_path):
    variables = variable_names(KNOWN)
    for name in KNOWN:
        value = _another(name)
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        full = f"SWAPFAST_{name.replace('.', '_').upper()}"
        assert variables[full] == name
        if name not in ("run.timelapse_input_a", "run.timelapse_input_b", "lr_finder.end"):
            extra = {"SWAPFAST_LOSS_WEIGHTS": "1 2"} if name == "loss.functions" else {}
            config = choose(environment={full: text} | extra).config
            assert settings(config)[name].value == value, name


def test_the_short_variable_is_the_last_name_where_that_is_unique():
    variables = variable_names(KNOWN)
    assert variables["SWAPFAST_BATCH_SIZE"] == "batch_size" and variables["SWAPFAST_MODEL_DIR"] == "run.model_dir"
    assert variables["SWAPFAST_LEARNING_RATE"] == "optimizer.learning_rate"
    assert variables["SWAPFAST_ITERATIONS"] == "run.iterations", "and not those of the search for a learning rate"
    assert variables["SWAPFAST_LR_FINDER_ITERATIONS"] == "lr_finder.iterations"
    assert len({*variables.values()}) == len(KNOWN)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("Yes", True), ("false", False), ("0", False), ("NO", False)]
)
def test_a_switch_is_read(text, value):
    environment = {"SWAPFAST_FLIP": text, "SWAPFAST_COMPILE": text}
    assert choose(environment=environment).changes == {"augmentation.flip": value, "run.compile": value}


@pytest.mark.parametrize("text", ["mae mse", "mae,mse", " mae, mse ", "mae\tmse"])
def test_a_list_is_split(text):
    loss = choose(environment={"SWAPFAST_LOSS_FUNCTIONS": text}).config.loss
    assert loss.functions == ["mae", "mse"] and loss.weights == [100.0, 100.0]


def test_a_flag_ranks_over_a_variable_and_that_over_the_file(tmp_path):
    file = _write(tmp_path / "run.toml", "batch_size = 2\nseed = 2\n[run]\niterations = 2\nsave_interval = 2\n")
    environment = {"SWAPFAST_BATCH_SIZE": "3", "SWAPFAST_RUN_ITERATIONS": "3", "SWAPFAST_SEED": "3"}
    choice = choose({"batch_size": 4}, ["run.iterations=5"], file, environment)
    assert choice.changes == {"batch_size": 4, "seed": 3, "run.iterations": 5, "run.save_interval": 2}
    assert choice.config.run.snapshot_interval == RunConfig().snapshot_interval


def test_weights_of_other_functions_are_not_taken(tmp_path):
    """A file has two functions and weights, a flag another function alone."""
    file = _write(tmp_path / "run.toml", '[loss]\nfunctions = ["ssim", "mse"]\nweights = [10, 20]\n')
    assert choose({"loss.functions": ["mae"]}, file=file).config.loss.weights == [100.0]
    assert choose(file=file).config.loss.weights == [10.0, 20.0]


def test_only_the_settings_of_a_command_are_read():
    environment = {"SWAPFAST_BATCH_SIZE": "0", "SWAPFAST_COVERAGE": "80"}
    assert choose(environment=environment, prefixes=("crop.", "mask.")).changes == {"crop.coverage": 80.0}


def test_variables_that_are_no_settings_are_left_alone():
    own = {"SWAPFAST_CHECKPOINT": "x", "SWAPFAST_STEP": "3", "SWAPFAST_GOLDEN": "x", "SWAPFAST_SEED": "", "PATH": "x"}
    assert choose(environment=own).changes == {}


def test_former_names_are_taken_everywhere_with_a_note(tmp_path):
    file = _write(tmp_path / "run.toml", '[run]\nbackend = "device"\ncache = "device"\n')
    sources = (
        ({"flags": {"run.backend": "device", "run.cache": "device"}}, "--backend"),
        ({"texts": ["run.backend=device", "run.cache=device"]}, "--backend"),
        ({"environment": {"SWAPFAST_BACKEND": "device", "SWAPFAST_CACHE": "device"}}, "SWAPFAST_BACKEND"),
        ({"file": file}, f"{file}: run.backend"),
    )
    for source, name in sources:
        choice = choose(**source)
        assert (choice.config.run.backend, choice.config.run.cache) == ("kornia", "gpu")
        assert choice.notes[0] == f"{name} device is called kornia now" and len(choice.notes) == 2
    assert RunConfig(backend="device").backend == RunConfig(backend="torch").backend == "kornia"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SWAPFAST_BTCH_SIZE": "3"}, r"unknown variable 'SWAPFAST_BTCH_SIZE'. Did you mean 'SWAPFAST_BATCH_SIZE'\?"),
        ({"SWAPFAST_BATCH_SIZE": "many"}, r"SWAPFAST_BATCH_SIZE 'many': expected a whole number"),
        ({"SWAPFAST_BATCH_SIZE": "0"}, r"SWAPFAST_BATCH_SIZE 0: must lie within 1 and 65536"),
        ({"SWAPFAST_COMPILE": "maybe"}, r"SWAPFAST_COMPILE 'maybe': expected true or false"),
        ({"SWAPFAST_LOSS_WEIGHTS": "1, x"}, r"SWAPFAST_LOSS_WEIGHTS '1, x': expected a list, each a number"),
        ({"SWAPFAST_BACKEND": "cupy"}, r"unknown SWAPFAST_BACKEND 'cupy'.*Known: auto, kornia, opencv, triton$"),
        ({"SWAPFAST_MAX_TIME": "soon"}, r"SWAPFAST_MAX_TIME: 'soon' is no duration: give seconds or such as 3h30m"),
        (
            {"SWAPFAST_COVERAGE": "80", "SWAPFAST_CROP_COVERAGE": "90"},
            r"SWAPFAST_COVERAGE and SWAPFAST_CROP_COVERAGE: both are crop.coverage; give one",
        ),
    ],
)
def test_a_wrong_variable_is_named(environment, message):
    with pytest.raises(SwapfastError, match=message) as error:
        choose(environment=environment)
    assert error.value.code == 2 and "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("btch_size = 3", r"unknown setting in .*run.toml 'btch_size'. Did you mean 'batch_size'\?"),
        ("[run]\ninput_c = 'x'", r"unknown setting in .*run.toml 'run.input_c'. Did you mean 'run.input_[ab]'\?"),
        ("learning_rat = 1e-4", r"'learning_rat'. Did you mean 'optimizer.learning_rate'\?"),
        ("[optimizer]\nbatch_size = 3", r"'optimizer.batch_size'. Did you mean 'batch_size'\?"),
        ("[optimiser]\nlearning_rate = 1e-4", r"unknown table in .*run.toml 'optimiser'. Did you mean 'optimizer'\?"),
        ("run = 3", r"run.toml: run 3: expected a table of settings"),
        ("[run]\niterations = 0", r"run.toml: run.iterations 0: must lie within 1 and 1000000000000"),
        ("[run]\ncompile = 'yes'", r"run.toml: run.compile 'yes': expected true or false"),
        ("[run]\nmodel_dir = 3", r"run.toml: run.model_dir 3: expected a text"),
        ("[run]\nmax_time = 0", r"run.toml: run.max_time: '0': give at least one second"),
        ("[run]\nmax_time = 1.5", r"run.toml: run.max_time 1.5: expected a text"),
        ("[run]\ntimelapse_input_a = 'x'", r"--timelapse-input-A x: give --timelapse-input-B too"),
        ("[batch_size]\nx = 3", r"run.toml: batch_size .*: expected a whole number"),
        ("batch_size = ", r"--config .*run.toml: not valid TOML"),
    ],
)
def test_a_wrong_file_is_named(text, message, tmp_path):
    with pytest.raises(SwapfastError, match=message) as error:
        choose(file=_write(tmp_path / "run.toml", text))
    assert error.value.code == 2 and "\n" not in str(error.value)


def test_whole_seconds_are_a_duration_too(tmp_path):
    config = choose(file=_write(tmp_path / "run.toml", "[run]\nmax_time = 90\n")).config
    assert config.run.time_limit_s == 90 and choose({"run.max_time": "1m30s"}).config.run.time_limit_s == 90


def test_what_is_required_is_named_with_the_three_ways():
    config = choose({"run.input_a": "x"}).config
    with pytest.raises(SwapfastError) as error:
        require(config, "run.input_a", "run.input_b", "run.model_dir")
    assert re.fullmatch(
        r"required: -B/--input-B, -m/--model-dir; give it as a flag, as a variable \(SWAPFAST_INPUT_B, "
        r"SWAPFAST_MODEL_DIR\) or under \[run\] in the file of -C/--config \(input_b, model_dir\)",
        str(error.value),
    )


def test_a_checkpoint_keeps_nothing_of_the_run():
    config = TrainConfig(run=RunConfig(input_a="x", iterations=3), batch_size=5)
    stored = config.checkpoint_dict()
    assert "run" not in stored and TrainConfig.from_dict(stored) == TrainConfig(batch_size=5)


def test_where_a_run_writes():
    run = RunConfig(input_a="a", input_b="b", model_dir="m")
    assert (run.cache_folder, run.timelapse_folder, run.timelapse_inputs) == (Path("m/cache"), None, ())
    run = RunConfig(model_dir="m", cache_dir="c", timelapse_output="auto")
    assert (run.cache_folder, run.timelapse_folder) == (Path("c"), Path("m/timelapse"))
    run = RunConfig(model_dir="m", timelapse_input_a="x", timelapse_input_b="y")
    assert run.timelapse_folder == Path("m/timelapse") and run.timelapse_inputs == (Path("x"), Path("y"))
    assert RunConfig(timelapse_output="film").timelapse_folder == Path("film")
