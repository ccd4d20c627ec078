"""The autoencoder that started face swapping, layer for layer as faceswap's plugin 'original' at 64 px.

At 128 and 256 px each doubling of the picture adds a halving to the encoder and, where the bottleneck's picture stays
as it is, a doubling to the decoders.
"""

from __future__ import annotations

import itertools
import re

from torch import nn

from swapfast.batch import SIDES
from swapfast.errors import SwapfastError
from swapfast.models.autoencoder import Decoder, FaceAutoencoder
from swapfast.models.blocks import SameConv, Unflatten, down, up
from swapfast.models.dropout import dense as dense_layer

USUAL_SIZE, USUAL_WIDTH, USUAL_DENSE = 64, 128, 1024
LOW = 4  # px of the picture in front of the dense layers
CODE_CHANNELS = 512
UP_WIDTHS = (512, 512, 256, 128, 64)  # of the decoders, small to large; smaller pictures begin further down
_BOTTLENECKS = {64: (4, 1024), 128: (8, 512), 256: (8, 512)}  # by input size: px and channels
_BOTTLENECK = re.compile(r"(\d{1,4})x(\d{1,4})x(\d{1,5})")


def _bottleneck(text: str, size: int) -> tuple[int, int]:
    """Return the edge in px and the channels of 'HxWxC', or of the usual bottleneck where the text is empty."""
    usual = _BOTTLENECKS[size]
    if not text:
        return usual
    match = _BOTTLENECK.fullmatch(text)
    height, width, channels = map(int, match.groups()) if match else (0, 0, 0)
    edges = [edge for edge in (4, 8, 16, 32) if 4 * edge <= size]
    if height != width or height not in edges or not 1 <= channels <= 4096:
        shapes = ", ".join(f"{edge}x{edge}xC" for edge in edges)
        raise SwapfastError(
            f"--bottleneck {text!r}: must be one of {shapes} at {size} px, with C from 1 to 4096, as in "
            f"{usual[0]}x{usual[0]}x{usual[1]}"
        )
    return height, channels


def _doublings(start: int, end: int) -> int:
    """Return how often ``start`` is doubled to become ``end``."""
    return (end // start).bit_length() - 1


def _encoder(size: int, width: int, dense: int, low: int, bottleneck: tuple[int, int], dropout: float) -> nn.Sequential:
    """low: px of the picture in front of the dense layers. bottleneck: px and channels of the one behind them."""
    widths = [3, *(width * min(2**step, 8) for step in range(_doublings(low, size)))]
    edge, channels = bottleneck
    return nn.Sequential(
        *(down(*pair) for pair in itertools.pairwise(widths)),
        nn.Flatten(),
        dense_layer(widths[-1] * low * low, dense, dropout),  # no activation between the two, as the peer
        nn.Linear(dense, channels * edge * edge),
        Unflatten(channels, edge),
        up(channels, CODE_CHANNELS),
    )


def _branch(channels: int, doublings: int) -> nn.Sequential:
    widths = [CODE_CHANNELS, *UP_WIDTHS[-doublings:]]
    return nn.Sequential(
        *(up(*pair) for pair in itertools.pairwise(widths)), SameConv(widths[-1], channels, 5), nn.Sigmoid()
    )


def original(
    lowmem: bool = False,
    learn_mask: bool = False,
    input_size: int = 0,
    bottleneck: str = "",
    encoder_width: int = 0,
    dense: int = 0,
    dropout: float = 0.0,
) -> FaceAutoencoder:
    """Return the network, BGR; 64 px in and out and 82,062,470 parameters where nothing else is asked for.

    lowmem: an encoder layer less and half the dense layer, at 64 px. input_size: px in and out, 64, 128 or 256.
    bottleneck: 'HxWxC' of the picture behind the dense layers. encoder_width: channels of the first halving. dense:
    size of the layer between the two, whose outputs are the code. dropout: share of the code that is zeroed in each
    step of the training. 0 and '' stand for what is usual. Raises SwapfastError for what cannot be.
    """
    size = input_size or USUAL_SIZE
    if size not in _BOTTLENECKS:
        sizes = ", ".join(map(str, _BOTTLENECKS))
        raise SwapfastError(f"--input-size {size}: the model original takes {sizes} px; give one of them")
    if lowmem and size != USUAL_SIZE:
        raise SwapfastError(f"--lowmem with --input-size {size}: is for {USUAL_SIZE} px; leave one of the two out")
    shape = _bottleneck(bottleneck, size)
    encoder = _encoder(
        size, encoder_width or USUAL_WIDTH, dense or USUAL_DENSE // (1 + lowmem), LOW * (1 + lowmem), shape, dropout
    )
    doublings = _doublings(2 * shape[0], size)
    decoders = {side: Decoder(_branch(3, doublings), _branch(1, doublings) if learn_mask else None) for side in SIDES}
    return FaceAutoencoder("original", size, (size,), encoder, decoders)
