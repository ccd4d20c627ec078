"""The program's door: ``python -m swapfast``, ``torchrun -m swapfast`` and the command ``swapfast``.

``cli`` and ``pipelines`` are common names. A user's own ``cli.py``, in the working folder or on PYTHONPATH, would be
imported in their place, so both are loaded from beside this package, whatever else has their names.

Before that, what is printed is made harmless and signals are listened for: the imports take seconds.
"""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from swapfast.errors import EXIT_STOPPED
from swapfast.printing import complain, guard_streams
from swapfast.stop import StopRequest, stopped_line
from swapfast.threads import leave

ROOT = Path(__file__).resolve().parents[1]


def load_from(path: Path, name: str) -> ModuleType:
    """Return the module or package at ``path``, imported as ``name``; itself where it is imported already."""
    source = path / "__init__.py" if path.is_dir() else path
    imported = sys.modules.get(name)
    if imported is not None and imported.__file__ and Path(imported.__file__).resolve() == source:
        return imported
    spec = spec_from_file_location(name, source, submodule_search_locations=[str(path)] if path.is_dir() else None)
    if spec is None or spec.loader is None:
        raise ImportError(f"{source} cannot be imported", name=name)
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def limit_spinning() -> None:
    """Let threads that wait for others sleep soon, unless the user has chosen; before torch loads its OpenMP.

    They spin for 300,000 rounds and more. Where one of them has no core, because another program has it, the others
    spin in vain: how much that costs depends on the machine, from nothing (benchmarks/beside.py) to most of the speed.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"


def _run(stop: StopRequest) -> int:
    limit_spinning()
    load_from(ROOT / "pipelines", "pipelines")
    return load_from(ROOT / "cli.py", "cli").main(stop=stop)


def main() -> int:
    """Run the command line; return its exit code. Signals are heard, and no longer answered, until the process ends."""
    guard_streams()
    stop = StopRequest()
    try:
        stop.listen_to_the_end()
        code = _run(stop)
    except KeyboardInterrupt as error:  # between what the command line answers itself
        code = EXIT_STOPPED
        complain(f"swapfast: {stopped_line(error)}")
    stop.leaving = True
    return leave(code)


if __name__ == "__main__":
    sys.exit(main())
