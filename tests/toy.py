"""A network of 42 thousand weights, for tests of what is around it: a step takes a quarter of the time of ``tiny``."""

from __future__ import annotations

from torch import nn

from swapfast.batch import SIDES
from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import SameConv, Unflatten, down, up

SIZE = 32  # px in and out


def toy() -> FaceAutoencoder:
    """Return the network: the layers and the shape of ``tiny``, fewer and narrower."""
    encoder = nn.Sequential(
        down(3, 8, 3),
        down(8, 16, 3),
        down(16, 32, 3),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 16),
        nn.Linear(16, 16 * 4 * 4),
        Unflatten(16, 4),
        up(16, 16),
    )
    decoders = {side: Decoder(nn.Sequential(up(16, 8), up(8, 8), SameConv(8, 3, 3), nn.Sigmoid())) for side in SIDES}
    return FaceAutoencoder("toy", SIZE, (SIZE,), encoder, decoders, standardise=True)
