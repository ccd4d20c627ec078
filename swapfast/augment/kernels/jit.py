"""Numba for the kernels of this folder: how they are compiled, and whether they can be.

The first import of one compiles it, which takes some seconds; Numba keeps the result beside the file or in the user's
cache folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

HOST_KERNELS = ("color", "copies", "maps", "masks")  # of the augmentation on the CPU; "nodes" are of both backends


@lru_cache(maxsize=8)
def load_kernels(name: str) -> ModuleType | None:
    """``swapfast.augment.kernels.NAME``, or None where Numba is missing or does not know this version of NumPy."""
    try:
        return importlib.import_module(f"swapfast.augment.kernels.{name}")
    except ImportError:
        return None


def kernel(*signature, **options) -> Callable:
    """``numba.njit`` as all kernels want it.

    A product and a sum may become one; nothing else may be reordered, so bits are kept. The interpreter's lock is let
    go. What a kernel takes from other modules is compiled in: Numba looks for changes in the kernel's own file only.
    """
    from numba import njit

    options = {"fastmath": {"contract", "nsz"}, "error_model": "numpy", "nogil": True, **options}

    def compiled(function: Callable) -> Callable:
        try:
            return njit(*signature, cache=True, **options)(function)
        except (RuntimeError, OSError):  # no folder that may be written to, or a full disk: nothing is kept
            return njit(*signature, **options)(function)

    return compiled


def inline(function: Callable) -> Callable:
    """A function that becomes part of the kernels that call it."""
    return kernel(inline="always")(function)


def read(kind, dimensions: int = 1):
    """The type of a contiguous array that is not written to: those that may not be are accepted too."""
    from numba import types

    return types.Array(kind, dimensions, "C", readonly=True)
