"""The flag of every command that opens a trained model: with which of its weights."""

from __future__ import annotations

import argparse


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights``, which ``open_model`` is given."""
    parser.add_argument(
        "--weights",
        default="auto",
        metavar="KIND",
        help="raw: as they were in training; ema, or such as ema-500: averaged over it (train --ema); auto: averaged "
        "where the model has such; default auto",
    )
