"""Where settings come from: flags, variables of the environment and a TOML file, in this order of rank.

Below them rank the settings a model keeps (a resumed run), a recipe (a new one) and the defaults. Each value is checked
here, so that a wrong one is answered with the flag, variable or file that gave it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swapfast.config import FACE_TYPES, TrainConfig, updated
from swapfast.errors import SwapfastError, shortened, unknown_name
from swapfast.files import check_path
from swapfast.options import KINDS, Setting, former_names, parsed_toml, read_toml, settings
from swapfast.recipes import OWN, PLAIN_CODES, recipe_settings

PREFIX = "SWAPFAST_"
# Those that the program sets for --after-save, and the folder that the tests compare with.
NO_SETTINGS = ("SWAPFAST_CHECKPOINT", "SWAPFAST_STEP", "SWAPFAST_GOLDEN")
_FACE_TYPE = "run.face_type"
_LISTED = "every setting of `swapfast train --print-config`"
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True)
class Choice:
    """What a person chose.

    changes: settings by dotted name. config: the same over the recipe (the model's own where they name none) and the
    defaults. notes: lines to print.
    """

    changes: dict[str, object]
    config: TrainConfig
    notes: list[str]


def choose(
    flags: Mapping[str, object] | None = None,
    texts: Sequence[str] = (),
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    prefixes: tuple[str, ...] = ("",),
) -> Choice:
    """Put the sources together; raise SwapfastError naming the one that gave a wrong value or an unknown name.

    flags: settings by dotted name. texts: NAME=VALUE of --set. file: of --config. prefixes: which settings are read
    from the environment; the variables of others are left alone.
    """
    by_name = settings(TrainConfig())
    notes: list[str] = []
    layers = [
        _file_values(file, by_name, notes) if file else {},
        _variable_values(environment or {}, by_name, prefixes, notes),
        _flag_values(flags or {}, by_name, notes) | _text_values(texts, by_name, notes),
    ]
    changes: dict[str, object] = {}
    for layer in layers:
        if "loss.functions" in layer:
            layer.setdefault("loss.weights", [])  # 100 for each: those of a lower rank are of other functions
        changes |= _crop_of(layer) | layer
    _check_crop(changes, by_name)
    model = str(changes.get("model.name", by_name["model.name"].value))
    usual = recipe_settings(str(changes.get("run.recipe", OWN)), model)
    if changes.get("model.code") == PLAIN_CODES["model.code"]:
        usual = {**usual, **PLAIN_CODES}
    return Choice(changes, updated(TrainConfig(), {**usual, **changes}), notes)


def recipe_differences(model: str, other: str = "faceswap") -> list[str]:
    """Return in what a model's own recipe differs from another one: 'learning_rate 0.001 (5e-05)', the other's last.

    Raises SwapfastError where a recipe holds what is no setting, or not its value.
    """
    own, others = (settings(choose({"model.name": model, "run.recipe": name}).config) for name in (OWN, other))
    return [
        f"{name.rpartition('.')[2]} {_words(setting.value)} ({_words(others[name].value)})"
        for name, setting in own.items()
        if setting.value != others[name].value and name != "run.recipe"
    ]


def _words(value: object) -> str:
    return " ".join(map(_plain_number, value)) if isinstance(value, list) else _plain_number(value)


def _crop_of(layer: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of the crop that the face type of a layer stands for."""
    crop = FACE_TYPES.get(str(layer.get(_FACE_TYPE)))
    return {} if crop is None else {f"crop.{name}": value for name, value in crop.to_dict().items()}


def _check_crop(changes: Mapping[str, object], known: Mapping[str, Setting]) -> None:
    """Raise SwapfastError where a setting of the crop contradicts the face type."""
    for name, value in _crop_of(changes).items():
        if changes[name] != value:
            flag, other = known[_FACE_TYPE].option.flag, known[name].option.flag
            raise SwapfastError(
                f"{flag} {changes[_FACE_TYPE]}: is {other} {_plain_number(value)}, and {_plain_number(changes[name])} "
                "is given too; leave one of the two out"
            )


def _plain_number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def variable_names(names: Iterable[str]) -> dict[str, str]:
    """Return variable -> setting: the full dotted name of each, and its last part where no other setting ends so.

    The last part of a setting of the run is always its variable too: SWAPFAST_ITERATIONS is ``run.iterations``.
    """
    names = list(names)
    count = Counter(name.rpartition(".")[2] for name in names)
    short = {_variable(name.rpartition(".")[2]): name for name in names if count[name.rpartition(".")[2]] == 1}
    of_run = {_variable(name.removeprefix("run.")): name for name in names if name.startswith("run.")}
    return short | of_run | {_variable(name): name for name in names}


def require(config: TrainConfig, *names: str) -> None:
    """Raise SwapfastError where one of the settings of ``run`` is missing, with the three ways to give it."""
    by_name = settings(config)
    missing = [name for name in names if not by_name[name].value]
    if missing:
        flags = ", ".join(by_name[name].option.flag for name in missing)
        variables = ", ".join(_variable(name.removeprefix("run.")) for name in missing)
        keys = ", ".join(name.removeprefix("run.") for name in missing)
        raise SwapfastError(
            f"required: {flags}; give it as a flag, as a variable ({variables}) or under [run] in the file of "
            f"-C/--config ({keys})"
        )


def _variable(name: str) -> str:
    return PREFIX + name.replace(".", "_").upper()


def _checked(setting: Setting, value: object, name: str, notes: list[str]) -> object:
    checked = setting.check(value, name)
    if isinstance(value, str) and value in setting.option.former:
        notes.append(f"{name} {value} is called {checked} now")
    return checked


def _file_values(path: Path, known: Mapping[str, Setting], notes: list[str]) -> dict[str, object]:
    values = _flat(read_toml(path), known, path)
    return {name: _checked(known[name], value, f"{path}: {name}", notes) for name, value in values.items()}


def _flat(table: Mapping[str, object], known: Mapping[str, Setting], path: Path, prefix: str = "") -> dict[str, object]:
    """Return dotted name -> value of a nested table; raise SwapfastError for a name that is no setting."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        name = prefix + key
        is_part = any(setting.startswith(f"{name}.") for setting in known)
        if is_part and not isinstance(value, Mapping):
            raise SwapfastError(f"{path}: {name} {shortened(value)}: expected a table of settings")
        if is_part and isinstance(value, Mapping):
            flat |= _flat(value, known, path, f"{name}.")
        elif former_names(known).get(name, name) in known:
            flat[former_names(known).get(name, name)] = value
        else:
            if isinstance(value, Mapping):
                raise unknown_name(f"table in {path}", name, {setting.rpartition(".")[0] for setting in known} - {""})
            raise unknown_name(f"setting in {path}", name, known, _LISTED)
    return flat


def _variable_values(
    environment: Mapping[str, str], known: Mapping[str, Setting], prefixes: tuple[str, ...], notes: list[str]
) -> dict[str, object]:
    """Return the settings among the variables. An empty variable is one that is not set."""
    names = variable_names([*known, *former_names(known)])
    values: dict[str, object] = {}
    variables: dict[str, str] = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable in NO_SETTINGS or not text:
            continue
        if variable not in names:
            raise unknown_name("variable", variable, names, _LISTED)
        name = former_names(known).get(names[variable], names[variable])
        if not name.startswith(prefixes):
            continue
        if name in variables:
            raise SwapfastError(f"{variables[name]} and {variable}: both are {name}; give one of them")
        variables[name] = variable
        values[name] = _checked(known[name], _parsed(known[name], variable, text), variable, notes)
    return values


def _parsed(setting: Setting, variable: str, text: str) -> object:
    """Return the value that the text of a variable stands for."""
    try:
        if setting.kind is bool:
            return _truth(text)
        if setting.kind is list:
            return [(setting.element or str)(item) for item in re.split(r"[\s,]+", text.strip()) if item]
        return setting.kind(text)
    except ValueError:
        element_kind = f", each {KINDS[setting.element or str]}" if setting.kind is list else ""
        raise SwapfastError(f"{variable} {shortened(text)}: expected {KINDS[setting.kind]}{element_kind}") from None


def _truth(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


def _flag_values(flags: Mapping[str, object], known: Mapping[str, Setting], notes: list[str]) -> dict[str, object]:
    return {
        name: _checked_flag(known[name], value, known[name].option.flag or f"--set {name}", notes)
        for name, value in flags.items()
    }


def _checked_flag(setting: Setting, value: object, name: str, notes: list[str]) -> object:
    """Return ``value`` as the setting keeps it. An empty path is none in a file and a mistake on the command line."""
    if setting.option.is_path and isinstance(value, str):
        check_path(value, name)
    return _checked(setting, value, name, notes)


def _text_values(texts: Sequence[str], known: Mapping[str, Setting], notes: list[str]) -> dict[str, object]:
    """Return the settings of NAME=VALUE; a value that is no TOML is a string."""
    values: dict[str, object] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise SwapfastError(f"--set {shortened(text)}: give it as NAME=VALUE")
        name = former_names(known).get(name, name)
        if name not in known:
            raise unknown_name("setting in --set", name, known, _LISTED)
        values[name] = _checked_flag(known[name], _plain(value), known[name].option.flag or name, notes)
    return values


def _plain(text: str) -> object:
    """Return what the text is in TOML: a number, a list, ...; itself where it is none, or holds more than a value."""
    try:
        table = parsed_toml(f"value = {text}", "--set")
    except SwapfastError:
        return text
    return table["value"] if len(table) == 1 else text
