"""The flags of every command that opens a trained model: with which of its weights, and how it swaps."""

from __future__ import annotations

import argparse


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights`` and ``--no-code-exchange``, which ``open_model`` is given."""
    parser.add_argument(
        "--weights",
        default="auto",
        metavar="KIND",
        help="raw: as they were in training; ema, or such as ema-500: averaged over it (train --ema); auto: averaged "
        "where the model has such; default auto",
    )
    parser.add_argument(
        "--no-code-exchange",
        dest="exchange_codes",
        action="store_const",
        const=False,
        help="leave codes as they are, instead of exchanging both people's means: of --code plain, and of faces in "
        "their own colours where a share of them was augmented",
    )
