"""Numba for the kernels of this folder: how they are compiled.

The first import of a kernel file compiles it, which takes some seconds. Numba keeps the result beside the file or in
the user's cache folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

from swapfast.requirements import check_import

HOST_KERNELS = ("color", "copies", "maps", "masks")  # of the OpenCV backend; "nodes" serves every backend


@lru_cache(maxsize=8)
def load_kernels(name: str) -> ModuleType:
    """Return ``swapfast.augment.kernels.NAME``, compiled. Raises SwapfastError where Numba cannot run."""
    check_import("Numba", "the warp to landmarks" if name == "nodes" else "augmentation by OpenCV")
    return importlib.import_module(f"swapfast.augment.kernels.{name}")


def kernel(*signature: Any, **options: Any) -> Callable:
    """Return ``numba.njit`` with the options that all kernels share.

    A product and a sum may become one operation. Nothing else is reordered, so results keep their bits. The
    interpreter's lock is released. Values from other modules are compiled in: Numba looks for changes in the kernel's
    own file only.
    """
    from numba import njit

    options = {"fastmath": {"contract", "nsz"}, "error_model": "numpy", "nogil": True, **options}

    def compiled(function: Callable) -> Callable:
        try:
            return njit(*signature, cache=True, **options)(function)
        except (RuntimeError, OSError):  # no folder that may be written to, or a full disk: nothing is cached
            return njit(*signature, **options)(function)

    return compiled


def inline(function: Callable) -> Callable:
    """Return a function that becomes part of the kernels that call it."""
    return kernel(inline="always")(function)


def read(kind: Any, dimensions: int = 1) -> Any:
    """Return the type of a contiguous array that is only read; arrays that may not be written to are accepted."""
    from numba import types

    return types.Array(kind, dimensions, "C", readonly=True)
