"""Measures swaps against the true swap.

The truth folders show every pose, expression and light twice: ``a/NAME`` with identity A, ``b/NAME`` with identity B.
Both pictures of a pair are cropped with A's alignment, at the model's size and centering. The model swaps A to B, and
the result is compared with the true B inside B's face mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from swapfast.batch import SIDES
from swapfast.config import MaskConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_with, shrink
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.masks import FRAME_TYPES, face_mask_in
from swapfast.faces.record import FaceRecord
from swapfast.models import FaceAutoencoder
from swapfast.swap.apply import swap_faces


@dataclass(frozen=True)
class Evaluation:
    """The mean PSNR over all pairs, in dB, against the true B inside B's face mask.

    swap_psnr: of A swapped to B.
    mean_b_psnr: of the mean training face of B, the output of a model that learned only an average.
    unchanged_psnr: of A itself.
    reconstruction_psnr: of B reconstructed by its own decoder.
    """

    swap_psnr: float
    mean_b_psnr: float
    unchanged_psnr: float
    reconstruction_psnr: float
    pairs: int

    def to_dict(self) -> dict:
        """Return the values rounded to a thousandth, JSON-ready."""
        return {name: round(value, 3) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return (
            f"swap A > B {self.swap_psnr:.2f} dB to the true swap over {self.pairs} pairs "
            f"(mean face of B {self.mean_b_psnr:.2f}, A unchanged {self.unchanged_psnr:.2f}, "
            f"B > B {self.reconstruction_psnr:.2f})"
        )


def masked_psnr(images: np.ndarray, expected: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return each image's PSNR in dB, weighted by its mask.

    images, expected: (n, H, W, 3) in 0..1.
    masks: (n, H, W) in 0..1, none of them empty.
    Returns (n,) float64.
    """
    squares = ((images.astype(np.float64) - expected) ** 2).mean(-1)
    error = (squares * masks).sum((1, 2)) / masks.sum((1, 2))
    return -10 * np.log10(np.maximum(error, 1e-10))


def _pairs(truth: Path) -> list[tuple[FaceRecord, FaceRecord]]:
    sides = []
    for side in SIDES:
        folder = scan_folder(truth / side)
        folder.require_all_good()
        sides.append({record.path.stem: record for record in folder.records})
    missing = sorted(set(sides[0]) ^ set(sides[1]))
    if missing:
        raise SwapfastError(f"--truth {truth}: {missing[0]} is not in both a and b; every picture needs its pair")
    return [(sides[0][name], sides[1][name]) for name in sorted(sides[0])]


def face_mask_for(reference: FaceRecord, record: FaceRecord, config: TrainConfig, size: int) -> np.ndarray:
    """Return the face mask of ``record`` on the crop of ``reference``.

    The mask has the type the model was trained with if that type comes from landmarks or a mask file, otherwise the
    type "extended".
    Returns (size, size) uint8. Raises SwapfastError where it is empty.
    """
    mask = config.mask
    if mask.mask_type not in FRAME_TYPES or (mask.mask_type == "file" and record.mask_file is None):
        mask = MaskConfig()
    pixels = face_mask_in(reference, record, config.crop, mask, size)
    if not pixels.any():
        raise SwapfastError(
            f"{record.path}: its face mask ({mask.mask_type}) is empty where {reference.path} has its face: "
            "mend the mask, or remove the pair if these two do not belong together"
        )
    return pixels


def _picture(record: FaceRecord) -> np.ndarray:
    try:
        return read_image(record.path)
    except ValueError as error:
        raise SwapfastError(f"{record.path}: {error}") from error


def evaluate(
    model: FaceAutoencoder,
    config: TrainConfig,
    mean_b: np.ndarray,
    truth: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure ``model`` on the pairs in the folder ``truth``.

    mean_b: (H, W, 3) in 0..1 BGR, the mean training face of B at the model's largest output size.
    progress: called with (pictures decoded, pictures in total).
    Raises SwapfastError for missing, damaged or unpaired pictures, and for a B without a face mask.
    """
    pairs = _pairs(truth)
    size = model.output_sizes[-1]

    def crops(side: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a side's model inputs (n, 3, h, w) and true outputs (n, size, size, 3), in 0..1."""
        inputs = np.empty((len(pairs), model.input_size, model.input_size, 3), np.float32)
        expected = np.empty((len(pairs), size, size, 3), np.float32)
        for index, pair in enumerate(pairs):
            # As in training: cropped once, at the largest size, and shrunk to the others.
            crop = crop_with(pair[0], pair[side], _picture(pair[side]), config.crop, max(model.input_size, size))
            for stack in (inputs, expected):
                stack[index] = shrink(crop, stack.shape[1])
            if progress is not None:
                progress(side * len(pairs) + index + 1, 2 * len(pairs))
        return np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)) / 255, expected / 255

    masks = np.stack([face_mask_for(a, b, config, size) for a, b in pairs]) / 255
    (inputs_a, true_a), (inputs_b, true_b) = crops(0), crops(1)

    def psnr(images: np.ndarray) -> float:
        return float(masked_psnr(images[..., :3], true_b, masks).mean())

    return Evaluation(
        swap_psnr=psnr(swap_faces(model, inputs_a, "b")),
        mean_b_psnr=psnr(np.broadcast_to(mean_b, true_b.shape)),
        unchanged_psnr=psnr(true_a),
        reconstruction_psnr=psnr(swap_faces(model, inputs_b, "b")),
        pairs=len(pairs),
    )
