"""Decodes the frames of a swap with DALI, several at a time: on a GPU by its JPEG engine, on the host by its threads.

On the host the pixels are those of OpenCV, to the bit, in three times its processor time (benchmarks/swap.py): there it
only serves to try this way out. A GPU takes the work off the host, and the pixels come back over the bus, for faces are
pasted and frames are encoded on the host; its JPEG engine rounds in its own way. DALI has no decoder of PNGs on a GPU,
and on the host one that takes four times as long as kornia_rs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipelines.decode import DALI_PIXELS, NOT_FOR_DALI, dali_version
from swapfast.errors import SwapfastError
from swapfast.faces.png import PngInfo
from swapfast.swap.picture_file import PictureOrigin
from swapfast.swap.pictures import BATCH

_PLAIN_PNG = (0, 2)  # colour types: gray and colours, without alpha
_PLAIN_JPEG = (1, 3)  # components


def open_decoder(name: str, device: str, threads: int) -> DaliDecoder | None:
    """Return what decodes pictures, None for OpenCV's way.

    name: 'auto', 'dali' or 'opencv'. device: the model's. threads: of the host.
    Raises SwapfastError where DALI is asked for and not there.
    """
    place = torch.device(device)
    device_id = (place.index or 0) if place.type == "cuda" else None
    if name == "opencv" or (name == "auto" and (device_id is None or dali_version() is None)):
        return None
    if dali_version() is None:
        raise SwapfastError("--decoder dali: DALI is not installed, or does not load here; leave --decoder away")
    return DaliDecoder(threads, device_id, takes_png=name == "dali")


class DaliDecoder:
    """Decodes JPEGs, and PNGs where it ``takes_png``. One thread calls it. device_id: a GPU, None for the host."""

    def __init__(self, threads: int, device_id: int | None = None, takes_png: bool = True) -> None:
        self._threads, self._device_id, self._takes_png = threads, device_id, takes_png
        self._pipeline: Any = None

    def takes(self, origin: PictureOrigin) -> bool:
        """Return whether DALI decodes a picture as OpenCV does: 8 bits, no alpha, no palette, no four inks."""
        info = origin.info
        if info.width * info.height > DALI_PIXELS or not NOT_FOR_DALI.isdisjoint(info.notes):
            return False
        if not isinstance(info, PngInfo):
            return info.components in _PLAIN_JPEG
        is_plain = info.bit_depth == 8 and info.colour_type in _PLAIN_PNG and not info.transparent
        return self._takes_png and is_plain

    def __call__(self, pictures: Sequence[PictureOrigin]) -> list[np.ndarray | None]:
        """Return the pixels of up to BATCH pictures, (H, W, 3) uint8 BGR; None for all where one is damaged."""
        if not pictures:
            return []
        if self._pipeline is None:
            from pipelines.graph import fed_pipeline

            self._pipeline = fed_pipeline(BATCH, self._threads, self._device_id)
        self._pipeline.feed_input("encoded", [np.frombuffer(picture.data, np.uint8) for picture in pictures])
        try:
            (output,) = self._pipeline.run()
        except RuntimeError:
            # DALI reports a bad batch but seldom the file, and what it was fed with lies in the way of the next.
            self._pipeline = None
            return [None] * len(pictures)
        if self._device_id is not None:
            output = output.as_cpu()
        return [np.array(output.at(index)) for index in range(len(pictures))]
