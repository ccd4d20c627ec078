"""The nearest name to one that nobody knows."""

from __future__ import annotations

import pytest

from swapfast.errors import nearest_name, unknown_name

SETTINGS = (
    "batch_size",
    "run.iterations",
    "run.input_a",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "loss.mask",
)
FLAGS = ("-A", "-b", "-m", "--input-A", "--input-B", "--batch-size", "--learning-rate", "--lr-finder", "--iterations")


@pytest.mark.parametrize(
    ("name", "known", "nearest"),
    [
        ("--bach-size", FLAGS, "--batch-size"),
        ("--batch_size", FLAGS, "--batch-size"),
        ("--Batch-Size", FLAGS, "--batch-size"),
        ("--learn", FLAGS, "--learning-rate"),
        ("--lr", FLAGS, "--lr-finder"),
        ("--input-x", FLAGS, "--input-A"),
        ("-a", FLAGS, "-A"),
        ("-x", FLAGS, None),
        ("--zzz", FLAGS, None),
        ("learning_rat", SETTINGS, "optimizer.learning_rate"),
        ("model.learning_rate", SETTINGS, "optimizer.learning_rate"),
        ("optimiser.weight_decay", SETTINGS, "optimizer.weight_decay"),
        ("iterations", SETTINGS, "run.iterations"),
        ("run.batch-size", SETTINGS, "batch_size"),
        ("", SETTINGS, None),
        ("x" * 10_000, SETTINGS, None),
        (7, SETTINGS, None),
        ("trian", ("train", "swap"), "train"),
        ("anything", (), None),
    ],
)
def test_the_nearest_name(name, known, nearest):
    assert nearest_name(name, known) == nearest


def test_what_is_elsewhere_is_near_and_not_listed():
    error = unknown_name("setting in swap.toml", "erosoin", ("mask", "color"), elsewhere=("mask.erosion",))
    assert str(error) == "unknown setting in swap.toml 'erosoin'. Did you mean 'mask.erosion'? Known: color, mask"
