"""What to say when memory runs out: what was asked for, what is free, and which flags help."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch

from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.system import available_memory

# torch: "Tried to allocate 2.00 GiB."; numpy: "Unable to allocate 2.00 GiB for an array"; torch on a CPU: "you tried to
# allocate 123 bytes"
_REQUESTED = re.compile(r"(?:tried|unable) to allocate (\d+(?:\.\d+)?) ?(bytes|[KMGTPE]?i?B)", re.IGNORECASE)
_NO_THREAD = "can't start new thread"  # Python's words; a thread's stack is memory too
_DEVICE = ("cuda error: out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")
_HOST = ("can't allocate memory", "cannot allocate memory", "not enough memory", "std::bad_alloc", _NO_THREAD)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; torch has an exception for it on a GPU and only words on a CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError)) and any(words in str(error).lower() for words in (*_HOST, *_DEVICE))
    )


def on_gpu(error: BaseException) -> bool:
    """Return whether it was a GPU's memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in _DEVICE)


def shown_size(count: float) -> str:
    """Return a count of bytes as a person reads it: 1234567 -> '1.2 MiB'."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"


def _requested(error: BaseException) -> str | None:
    match = _REQUESTED.search(str(error))
    if match is None:
        return None
    number, unit = match.groups()
    return shown_size(float(number)) if unit == "bytes" else f"{number} {unit}"


def _free(gpu: bool) -> str | None:
    if gpu:
        try:
            return f"{shown_size(torch.cuda.mem_get_info()[0])} are free on the GPU"
        except (RuntimeError, AssertionError):
            return None
    free = available_memory()
    return f"{shown_size(free)} are free" if free else None


def memory_error(error: BaseException, ways_out: list[str]) -> SwapfastError:
    """Return the one line for ``error``. ways_out: what would help, the best first."""
    requested, free = _requested(error), _free(on_gpu(error))
    facts = "; ".join(filter(None, [requested and f"{requested} were asked for", free]))
    problem = "the GPU ran out of memory" if on_gpu(error) else "out of memory"
    if _NO_THREAD in str(error):
        problem = "no room for another thread, in memory or within the limit on processes (ulimit -u)"
    return SwapfastError(f"{problem}{f' ({facts})' if facts else ''}: {', or '.join(ways_out)}", EXIT_FAILED)


@contextlib.contextmanager
def memory_explained(ways_out: Callable[[bool], list[str]]) -> Iterator[None]:
    """Turn running out of memory in the block into a SwapfastError.

    ways_out: from whether it was a GPU's memory to what would help, the best first.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise memory_error(error, ways_out(on_gpu(error))) from error
