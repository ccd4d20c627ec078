"""`swapfast completion`: what completes commands, flags, values and paths in bash, zsh and fish, by shtab."""

from __future__ import annotations

import argparse

from swapfast.commands.argument_types import path
from swapfast.config import TrainConfig
from swapfast.errors import EXIT_DONE
from swapfast.options import settings
from swapfast.printing import say
from swapfast.requirements import check_import

SHELLS = ("bash", "zsh", "fish")
_FOLDERS = ("DIR", "FOLDER", "MODEL", "OUT", "FACES")
_FILES = ("FILE", "IN", "INPUT", "SOURCE", "FACE", "FRAME", "FILM", "TEMPLATE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="what the script is for")


def run(shell: str, program: argparse.ArgumentParser) -> int:
    """Print the script for ``shell``; return the exit code.

    program: the parser of all commands, which is changed: settings of few values get them as choices.
    """
    check_import("shtab", "completion")
    import shtab

    _describe(program)
    for command in program.commands.values():  # type: ignore[attr-defined]
        _describe(command)
    say(shtab.complete(program, shell))
    return EXIT_DONE


def _describe(parser: argparse.ArgumentParser) -> None:
    """Let arguments say what completes them: their values, files or folders."""
    import shtab

    by_name = settings(TrainConfig())
    for action in parser._actions:
        setting = by_name.get(action.dest)
        if setting is not None and setting.option.choices and action.choices is None and action.nargs != 0:
            action.choices = setting.option.choices
        is_path = action.type is path or (setting is not None and setting.option.is_path)
        if is_path or action.metavar in _FILES:
            is_folder = action.metavar in _FOLDERS
            action.complete = shtab.DIRECTORY if is_folder else shtab.FILE  # type: ignore[attr-defined]
