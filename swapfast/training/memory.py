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
_ASKED = re.compile(r"(?:tried|unable) to allocate (\d+(?:\.\d+)? ?(?:bytes|[KMGTPE]?i?B))", re.IGNORECASE)
_NO_THREAD = "can't start new thread"  # Python's words; a thread's stack is memory too
_DEVICE = ("cuda error: out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")
_HOST = ("can't allocate memory", "cannot allocate memory", "not enough memory", "std::bad_alloc", _NO_THREAD)


def is_out_of_memory(error: BaseException) -> bool:
    """torch says it with an exception of its own on a GPU and in words on a CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError)) and any(words in str(error).lower() for words in (*_HOST, *_DEVICE))
    )


def on_gpu(error: BaseException) -> bool:
    """Whether it was a GPU's memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in _DEVICE)


def shown_size(count: float) -> str:
    """1234567 -> '1.2 MiB'."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"


def _asked(error: BaseException) -> str | None:
    found = _ASKED.search(str(error))
    if found is None:
        return None
    number, unit = re.match(r"([\d.]+) ?(\w+)", found[1]).groups()
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
    """The one line for ``error``. ways_out: what would help, the best first."""
    asked, free = _asked(error), _free(on_gpu(error))
    facts = "; ".join(filter(None, [asked and f"{asked} were asked for", free]))
    where = "the GPU ran out of memory" if on_gpu(error) else "out of memory"
    if _NO_THREAD in str(error):
        where = "no room for another thread, in memory or within the limit on processes (ulimit -u)"
    return SwapfastError(f"{where}{f' ({facts})' if facts else ''}: {', or '.join(ways_out)}", EXIT_FAILED)


@contextlib.contextmanager
def memory_explained(ways_out: Callable[[bool], list[str]]) -> Iterator[None]:
    """Turn running out of memory in the block into a SwapfastError. ways_out: asked whether it was a GPU's memory."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise memory_error(error, ways_out(on_gpu(error))) from error
