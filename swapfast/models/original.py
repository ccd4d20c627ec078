"""The 64 px autoencoder that started face swapping, layer for layer as faceswap's plugin 'original'."""

from __future__ import annotations

import itertools

from torch import nn

from swapfast.batch import SIDES
from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import SameConv, Unflatten, down, up


def _encoder(lowmem: bool) -> nn.Sequential:
    widths = (3, 128, 256, 512) if lowmem else (3, 128, 256, 512, 1024)
    side = 64 >> (len(widths) - 1)
    bottleneck = 512 if lowmem else 1024
    return nn.Sequential(
        *(down(*pair) for pair in itertools.pairwise(widths)),
        nn.Flatten(),
        nn.Linear(widths[-1] * side * side, bottleneck),  # no activation between the two, as the peer
        nn.Linear(bottleneck, 1024 * 4 * 4),
        Unflatten(1024, 4),
        up(1024, 512),
    )


def _branch(channels: int) -> nn.Sequential:
    return nn.Sequential(up(512, 256), up(256, 128), up(128, 64), SameConv(64, channels, 5), nn.Sigmoid())


def original(lowmem: bool = False, learn_mask: bool = False) -> FaceAutoencoder:
    """Return the network: 64 px in and out, BGR, 82,062,470 parameters.

    lowmem: an encoder layer less and half the bottleneck.
    """
    decoders = {side: Decoder(_branch(3), _branch(1) if learn_mask else None) for side in SIDES}
    return FaceAutoencoder("original", 64, (64,), _encoder(lowmem), decoders)
