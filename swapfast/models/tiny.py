"""A 0.84 M-parameter autoencoder that learns a swap in minutes on two CPU cores: for the demo and CI."""

from __future__ import annotations

from torch import nn

from swapfast.batch import SIDES
from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import SameConv, Unflatten, down, up


def _branch(channels: int) -> nn.Sequential:
    return nn.Sequential(up(64, 32), up(32, 16), up(16, 12), SameConv(12, channels, 3), nn.Sigmoid())


def tiny(learn_mask: bool = False) -> FaceAutoencoder:
    """Return the network: 64 px in and out, BGR. The encoder's input is standardised per image."""
    encoder = nn.Sequential(
        down(3, 16),
        down(16, 32, 3),
        down(32, 64, 3),
        down(64, 128, 3),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 128),
        nn.Linear(128, 64 * 4 * 4),
        Unflatten(64, 4),
        up(64, 64),
    )
    decoders = {side: Decoder(_branch(3), _branch(1) if learn_mask else None) for side in SIDES}
    return FaceAutoencoder("tiny", 64, (64,), encoder, decoders, standardise=True)
