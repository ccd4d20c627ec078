"""The faces of the preview sheet: the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from pipelines.decode import decode_pictures
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face
from swapfast.faces.masks import training_masks
from swapfast.faces.record import FaceRecord
from swapfast.system import available_cores


def evenly(records: Sequence[FaceRecord], count: int) -> list[FaceRecord]:
    """``count`` records spread over the folder, repeated where it is smaller."""
    return [records[i] for i in np.linspace(0, len(records) - 1, count).round().astype(int)]


def shrink(face: np.ndarray, size: int) -> np.ndarray:
    """(S, S, C) -> (size, size, C), area-averaged; unchanged where it has that size."""
    return face if len(face) == size else cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA)


class PreviewLoader:
    """What the preview needs of each side.

    inputs: (sides, n, 3, h, w) float32 in 0..1 BGR, what the model is shown. targets: (sides, n, H, W, 4) float32 in
    0..1, the whole face at coverage 100 % with its mask (1 everywhere without one); its middle H * coverage px are
    what the model makes.
    """

    def __init__(
        self,
        sides: Sequence[Sequence[FaceRecord]],
        input_size: int,
        output_size: int,
        crop: CropConfig,
        mask: MaskConfig,
        masked: bool,
        count: int,
    ) -> None:
        whole = CropConfig(centering=crop.centering, coverage=100.0, vertical_offset=crop.vertical_offset)
        size = 2 * round(output_size / (crop.coverage / 100) / 2)
        process = max(input_size, output_size)
        inputs, targets = [], []
        for records in sides:
            chosen = evenly(records, count)
            decoded = decode_pictures([record.path for record in chosen], available_cores())
            pictures = (picture for batch in decoded for picture in batch)
            for record, picture in zip(chosen, pictures):
                if isinstance(picture, str):
                    raise SwapfastError(f"{record.path}: {picture}; it was good a moment ago")
                inputs.append(shrink(crop_face(record, picture, crop, process), input_size))
                target = np.full((size, size, 4), 255, np.uint8)
                target[..., :3] = crop_face(record, picture, whole, size)
                if masked:
                    target[..., 3:] = training_masks(record, whole, mask, size, ["face"])
                targets.append(target)
        shape = (len(sides), count)
        self.inputs = np.stack(inputs).reshape(*shape, input_size, input_size, 3).transpose(0, 1, 4, 2, 3)
        self.inputs = np.ascontiguousarray(self.inputs, np.float32) / 255
        self.targets = np.stack(targets).reshape(*shape, size, size, 4).astype(np.float32) / 255
