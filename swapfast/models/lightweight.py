"""Faceswap's 'lightweight' at 64 px: fewer weights than ``original``, and more work."""

from __future__ import annotations

import itertools

from torch import nn

from swapfast.batch import SIDES
from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import SameConv, Unflatten, down, up

ENCODER_WIDTHS = (128, 256, 512)
DENSE, BOTTLENECK_WIDTH, CODE_CHANNELS = 512, 512, 256
UP_WIDTHS = (512, 256, 128)  # of the decoders, small to large


def _branch(channels: int) -> nn.Sequential:
    ups = (up(*pair) for pair in itertools.pairwise([CODE_CHANNELS, *UP_WIDTHS]))
    return nn.Sequential(*ups, SameConv(UP_WIDTHS[-1], channels, 5), nn.Sigmoid())


def lightweight(learn_mask: bool = False) -> FaceAutoencoder:
    """Return the network: 64 px in and out, BGR, 51,066,374 parameters, 1.7 times the work of ``original``."""
    encoder = nn.Sequential(
        *(down(*pair) for pair in itertools.pairwise([3, *ENCODER_WIDTHS])),
        nn.Flatten(),
        nn.Linear(ENCODER_WIDTHS[-1] * 8 * 8, DENSE),
        nn.Linear(DENSE, BOTTLENECK_WIDTH * 4 * 4),
        Unflatten(BOTTLENECK_WIDTH, 4),
        up(BOTTLENECK_WIDTH, CODE_CHANNELS),
    )
    decoders = {side: Decoder(_branch(3), _branch(1) if learn_mask else None) for side in SIDES}
    return FaceAutoencoder("lightweight", 64, (64,), encoder, decoders)
