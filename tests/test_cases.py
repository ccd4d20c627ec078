"""The quick ones among the scripts that show former faults, where their folder is beside this checkout."""

from __future__ import annotations

import pytest

from tests.preloaded import stand_in
from tests.run_cases import CASES, NOT_TRIED, run_case

QUICK = (
    "field/case04.sh",
    "field/case12.sh",
    "field/case13.sh",
    "field/case16.sh",
    "field/case17.sh",
    "field/case19.sh",
    "field/case21.sh",
    "head_shift.py",
    "hostile/empty_paths.sh",
    "hostile/full_disk_code.sh",
    "hostile/link_guess.sh",
    "hostile/log_numbers.sh",
    "hostile/odd_arguments.sh",
    "ms_ssim_spikes.py",
    "plain_scale.py",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_former_fault_is_gone(name):
    script = CASES / name
    if not script.exists():
        pytest.skip(f"there is no {script}")
    code, output = run_case(script, make_program=lambda path: stand_in(path, ["-m", "swapfast"]))
    if code == NOT_TRIED:
        pytest.skip("it cannot be tried on this machine")
    assert code == 0, output[-3000:]
