"""What a setting is: a typed field with its explanation, range and flag, checked at the door, readable as TOML.

One ``option(...)`` defines all of a setting: the flag and its help, the range or the choices, the key in a TOML file
and the variable ``SWAPFAST_...`` (sources.py). The parts that hold the settings are in config.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from swapfast.errors import SwapfastError, shortened, unknown_name
from swapfast.files import check_path, open_plain

_LARGEST_TOML = 1 << 20  # bytes; all settings take 12 KiB
_LONGEST_REASON = 300  # characters
# What a person is told of a type.
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}


@dataclass(frozen=True)
class Option:
    """What is known of a setting beside its type and default.

    fixed: it cannot change once a model exists, unless it is overridden. shapes: nor then, for the weights have its
    shape. flag: how the command line spells it, such as '-b/--batch-size'; a switch that is on by default is spelled as
    its negation. metavar: what stands for the value in the help. bare: what the flag means without a value; 'none' as
    the only value of such a list empties it. former: values that were called otherwise -> what they are called now.
    parse: from what a person gives to the value, or ValueError. former_name: what the setting was called within its
    part, which is still taken as its flag, key and variable.
    """

    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    fixed: bool = False
    flag: str = ""
    metavar: str = ""
    bare: list[str] | str | None = None
    shapes: bool = False
    former: Mapping[str, str] = dataclasses.field(default_factory=dict)
    parse: Callable[[object], object] | None = None
    former_name: str = ""

    @property
    def is_path(self) -> bool:
        """Whether the value names a file or a folder."""
        return self.metavar in ("DIR", "FILE")

    @property
    def limits(self) -> str:
        """Return the range in words: 'must lie within 1 and 5'; empty where there is none."""
        if self.low is None:
            return ""
        return f"must be at least {self.low}" if self.high is None else f"must lie within {self.low} and {self.high}"


def option(
    default: Any, help: str, low: float | None = None, high: float | None = None, *, flag: str = "", **details: Any
) -> Any:
    """Return a dataclass field with its default, explanation and limits. details: see ``Option``."""
    metadata = {"option": Option(help, low, high, flag=flag, **details)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Setting(NamedTuple):
    """A setting of a config. kind: bool, int, float, str or list. element: the type of a list's items, else None."""

    option: Option
    kind: type
    element: type | None
    value: Any

    def as_given(self, name: str) -> tuple[str, str]:
        """Return the flag (or ``name``) and the value in its words: a switch is 'on' or 'off', also one of a negation.

        '--no-penalized-mask' is on where the setting ``penalized_mask_loss`` is false.
        """
        flag = self.option.flag or name
        if self.kind is not bool:
            return flag, repr(self.value)
        return flag, "on" if self.value != ("--no-" in flag) else "off"

    def check(self, value: object, name: str) -> object:
        """Return ``value`` as the setting keeps it; raise SwapfastError naming ``name`` where it does not fit."""
        option, kind = self.option, self.kind
        if option.parse is not None:
            try:
                value = option.parse(value)
            except ValueError as error:
                raise SwapfastError(f"{name}: {error}") from None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = _as_float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise SwapfastError(f"{name} {shortened(value)}: expected {KINDS[kind]}")
        if isinstance(value, list):
            self._check_items(value, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise SwapfastError(f"{name} {value!r}: expected a finite number")
        if isinstance(value, str):
            value = option.former.get(value, value)
            if option.is_path and value:
                check_path(value, name)
        if option.choices:
            value = [] if option.bare is not None and value == ["none"] else value
            for item in value if isinstance(value, list) else [value]:
                if item not in option.choices:
                    raise unknown_name(name, item, [*option.choices, *(["none"] if option.bare is not None else [])])
        if isinstance(value, (int, float)):
            low = -math.inf if option.low is None else option.low
            high = math.inf if option.high is None else option.high
            if not low <= value <= high:
                raise SwapfastError(f"{name} {shortened(value)}: {option.limits}")
        return value

    def _check_items(self, values: list, name: str) -> None:
        element = self.element or str
        for item in values:
            if isinstance(item, bool) or not isinstance(item, (int, float) if element is float else element):
                raise SwapfastError(f"{name} {shortened(item)}: expected {KINDS[element]}")


def _as_float(value: int) -> float:
    """Return the nearest float; infinity for a number of more than 308 digits."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@dataclass(kw_only=True)
class Config:
    """Base of all parts: checks itself on construction and raises SwapfastError naming the setting."""

    def __post_init__(self) -> None:
        for name, setting in _own_settings(self).items():
            setattr(self, name, setting.check(setting.value, setting.option.flag or name))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, nested by part; ``from_dict`` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object, source: str = "config") -> Self:
        """Build from plain values. An unknown name is answered with the known ones."""
        if not isinstance(values, Mapping):
            raise SwapfastError(f"{source}: expected a table of settings, got {shortened(values)}")
        hints = typing.get_type_hints(cls)
        field_names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in field_names:
                raise unknown_name(f"setting in {source}", name, field_names, elsewhere=settings(cls()))
        parts = {
            name: hints[name].from_dict(value, f"{source}.{name}")
            if isinstance(hints[name], type) and issubclass(hints[name], Config)
            else value
            for name, value in values.items()
        }
        return cls(**parts)

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read a TOML file (see ``to_toml``)."""
        return cls.from_dict(read_toml(path), source=str(path))

    def to_toml(self) -> str:
        """Return all settings with their explanations as comments: a file to edit and give to ``--config``."""
        lines = [line for name, setting in _own_settings(self).items() for line in _toml_lines(name, setting)]
        for name, part in _parts(self).items():
            lines += [f"[{name}]", part.to_toml()]
        return "\n".join(lines) + "\n"


def _own_settings(config: Config) -> dict[str, Setting]:
    """Return the settings of ``config`` itself, without those of its parts."""
    hints = typing.get_type_hints(type(config))
    return {
        f.name: Setting(
            f.metadata["option"],
            typing.get_origin(hints[f.name]) or hints[f.name],
            next(iter(typing.get_args(hints[f.name])), None),
            getattr(config, f.name),
        )
        for f in dataclasses.fields(config)
        if "option" in f.metadata
    }


def _parts(config: Config) -> dict[str, Config]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if "option" not in f.metadata}


def settings(config: Config, prefix: str = "") -> dict[str, Setting]:
    """Return every setting of all parts by its dotted name, such as 'loss.eye_multiplier'."""
    by_name = {prefix + name: setting for name, setting in _own_settings(config).items()}
    for name, part in _parts(config).items():
        by_name |= settings(part, f"{prefix}{name}.")
    return by_name


def former_names(known: Mapping[str, Setting]) -> dict[str, str]:
    """Return what settings were called, by dotted name -> what they are called now."""
    return {
        f"{name.rpartition('.')[0]}.{setting.option.former_name}": name
        for name, setting in known.items()
        if setting.option.former_name
    }


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds; raise SwapfastError where it cannot be read or is no TOML."""
    try:
        with open_plain(Path(path)) as file:
            text = file.read(_LARGEST_TOML + 1).decode().replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise SwapfastError(f"--config {path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise SwapfastError(f"--config {path}: cannot be read ({error})") from error
    if len(text) > _LARGEST_TOML:
        raise SwapfastError(f"--config {path}: is longer than {_LARGEST_TOML >> 20} MiB and holds no settings")
    return parsed_toml(text, f"--config {path}")


def parsed_toml(text: str, source: str) -> dict[str, Any]:
    """Return what TOML means; raise SwapfastError naming ``source`` where it is none, or nested without end."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise SwapfastError(f"{source}: is nested too deeply; no setting needs that") from None
    except ValueError as error:  # no TOML, or a number of thousands of digits
        raise SwapfastError(f"{source}: not valid TOML: {_in_one_line(error)}") from error


def _in_one_line(error: ValueError) -> str:
    words = " ".join(str(error).split())
    return words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]} ..."


def _toml_lines(name: str, setting: Setting) -> list[str]:
    option = setting.option
    limits = f" ({option.low} to {option.high})" if option.high is not None else ""
    limits = f" (at least {option.low})" if option.low is not None and option.high is None else limits
    choices = f" One of: {', '.join(option.choices)}." if option.choices else ""
    return [f"# {option.help}{limits}{choices}", f"{name} = {_toml_value(name, setting.value)}"]


def _toml_value(name: str, value: object) -> str:
    """JSON but for two characters: TOML has no surrogates, and no bare DEL."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SwapfastError(f"{name} {value!r}: is not valid UTF-8, which TOML needs; give it another name") from None
    return text
