"""One flag for each setting that names one: its help, default and type come from the config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from swapfast.config import TrainConfig
from swapfast.options import Setting, settings
from swapfast.recipes import own_values


class _Bare(argparse.Action):
    """A list that means ``const`` where the flag stands alone."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        setattr(namespace, self.dest, values or self.const)


def add_setting_flags(parser: argparse.ArgumentParser, prefixes: Sequence[str], title: str) -> None:
    """Add a group of the flags of settings. prefixes: how the names of those settings begin."""
    group, own = parser.add_argument_group(title), own_values()
    for name, setting in settings(TrainConfig()).items():
        if setting.option.flag and name.startswith(tuple(prefixes)):
            former = [f"--{setting.option.former_name}"] if setting.option.former_name else []
            group.add_argument(
                *setting.option.flag.split("/"), *former, dest=name, **flag_arguments(name, setting, own.get(name, []))
            )


def add_set_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``, which reaches the settings without a flag too."""
    text = "any other setting, such as augmentation.rotation_range=5"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)


def flag_arguments(name: str, setting: Setting, own: Sequence[object] = ()) -> dict[str, Any]:
    """Return what ``add_argument`` needs for a setting. own: the values that models' own recipes give it."""
    option, default = setting.option, setting.value
    help = option.help.replace("%", "%%")
    if setting.kind is bool:
        help = f"do not: {help[0].lower()}{help[1:]}" if default else help
        return {"action": "store_const", "const": not default, "help": help}
    metavar = option.metavar or name.rpartition(".")[2].upper()
    if option.bare is not None and setting.kind is list:
        return {"nargs": "*", "action": _Bare, "const": option.bare, "metavar": metavar, "help": help}
    if len(own) > 1 or None in own:
        default = "the model's own (swapfast models)"
    elif own:
        (default,) = own
    if isinstance(default, list):
        default = " ".join(map(str, default))
    elif isinstance(default, float):
        default = f"{default:g}"
    if default != "":
        help = f"{help} Default: {default}".replace(". Default", "; default")
    several: dict[type, str | None] = {list: "+", str: "?" if option.bare is not None else None}
    kind = setting.element if setting.kind is list else str if option.parse else setting.kind
    return {"type": kind, "nargs": several.get(setting.kind), "const": option.bare, "metavar": metavar, "help": help}
