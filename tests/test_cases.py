"""The quick ones among the scripts that show former faults, where their folder is beside this checkout."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapfast.synthetic import synthesize
from tests.preloaded import stand_in
from tests.run_cases import CASES, NOT_TRIED, run_case

FIELD = ("01", "02", "03", "04", "05", "06", "07", "08", "09", "11", "12", "13", "15", "16", "17", "18", "19", "21")
HOSTILE = (
    "backup_lost",
    "deep_state",
    "empty_paths",
    "folder_removed",
    "full_disk_code",
    "import_signal",
    "link_guess",
    "log_numbers",
    "name_bytes",
    "odd_arguments",
    "pipe_state",
    "pool_thread",
    "prepare_two_pids",
    "rank_numbers",
    "reader_gone",
    "second_term",
    "stalled_read",
)
QUICK = (
    *(f"field/case{number}.sh" for number in FIELD),
    *(f"hostile/{name}.sh" for name in HOSTILE),
    "head_shift.py",
    "ms_ssim_spikes.py",
    "plain_scale.py",
    "smaller_batch.py",
)
# What a script sets where the program's own imports are what it tries: they are not made beforehand then.
TRIES_IMPORTS = ("AT",)
# Those whose own start of Python, or whose namespace, a fork cannot have.
STARTED_ANEW = ("field/case17.sh", "field/case19.sh")
# What signals until the process is gone needs the end of Python in full.
SIGNALLED_TO_THE_END = ("hostile/second_term.sh",)

# second_term.sh may still read the log of its first half as it waits for a step of the second.
SIGNALLED_TOO_SOON = "HUP, 1 times: code 129"


DRAWN = 8  # faces of a side; where a script wants more it has these again and again


def _repeat(drawn: Path, target: Path, faces: int) -> None:
    """Copy a drawn set so that each side has ``faces`` faces."""
    shutil.copytree(drawn / "truth", target / "truth")
    for side in "ab":
        (target / side).mkdir()
        for number in range(faces):
            name, source = f"{number:04}", f"{number % DRAWN:04}"
            for ending in (".png", "_mask.png"):
                shutil.copyfile(drawn / side / f"{source}{ending}", target / side / f"{name}{ending}")
            record = (drawn / side / f"{source}.json").read_text().replace(f'"{source}', f'"{name}')
            (target / side / f"{name}.json").write_text(record)


@pytest.fixture(scope="module")
def make_programs(tmp_path_factory):
    """Give the scripts forks in place of starts, and the faces most of them draw first."""
    place, made = tmp_path_factory.mktemp("made"), {}
    synthesize(place / str(DRAWN), faces=DRAWN, size=128, pairs=1, workers=1)
    for faces in (DRAWN, 40, 120):
        if faces != DRAWN:
            _repeat(place / str(DRAWN), place / str(faces), faces)
        made["synthesize", "base", "--faces", str(faces), "--pairs", "1", "--size", "128"] = place / str(faces)

    @contextlib.contextmanager
    def make(folder: Path, torn_down: bool) -> Iterator[tuple[Path, Path]]:
        program, python = folder / "swapfast", folder / "python"
        with stand_in({program: ["-m", "swapfast"], python: []}, TRIES_IMPORTS, made, torn_down):
            yield program, python

    return make


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK)
def test_a_former_fault_is_gone(name, make_programs):
    script = CASES / name
    if not script.exists():
        pytest.skip(f"there is no {script}")
    forks = {"make_programs": functools.partial(make_programs, torn_down=name in SIGNALLED_TO_THE_END)}
    for _ in range(3):
        code, output = run_case(script, **({} if name in STARTED_ANEW else forks))
        if SIGNALLED_TOO_SOON not in output:
            break
    if code == NOT_TRIED:
        pytest.skip("it cannot be tried on this machine")
    assert code == 0, output[-3000:]
