"""Packages that a part of the program needs, and what is said where one of them cannot be imported."""

from __future__ import annotations

import importlib
from functools import cache

from swapfast.errors import SwapfastError


@cache
def import_problem(module: str) -> str | None:
    """Return why a module cannot be imported here, or None where it can. The first call imports it."""
    try:
        importlib.import_module(module)
    # Missing, or without a library of its own; what was made for another protobuf raises TypeError, for another numpy
    # AttributeError.
    except Exception as error:
        return " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return None


def check_import(name: str, user: str, alternative: str = "") -> None:
    """Raise SwapfastError where a package cannot be imported.

    name: the package's, such as 'Numba'; in small letters it is that of the module
    user: what needs it, a flag and its value
    alternative: what to do instead of installing it
    """
    problem = import_problem(name.lower())
    if problem is not None:
        way_out = f"`pip install -U {name.lower()}`" + (f", or {alternative}" if alternative else "")
        raise SwapfastError(f"{user}: needs {name}, which cannot run here ({problem}); {way_out}")
