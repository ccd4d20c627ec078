"""How good a swap is, where the true swap is known.

The truth folders hold the same pose, expression and light twice: ``a/NAME`` shows identity A and ``b/NAME`` identity B.
Both pictures of a pair are cut by A's window at the model's size and centering. The model is shown A and asked for B,
and what it makes is compared with the true B inside B's face mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from swapfast.config import MaskConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_with
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.masks import FRAME_TYPES, face_mask_in
from swapfast.faces.record import FaceRecord
from swapfast.models import FaceAutoencoder
from swapfast.swap.apply import swap_faces


@dataclass(frozen=True)
class Evaluation:
    """Means over the pairs of the PSNR in dB inside B's face mask, against the true B.

    swap_psnr: A swapped to B. mean_b_psnr: the mean training face of B, what a model that learned nothing but an
    average would make. unchanged_psnr: A as it is. reconstruction_psnr: B through its own decoder.
    """

    swap_psnr: float
    mean_b_psnr: float
    unchanged_psnr: float
    reconstruction_psnr: float
    pairs: int

    def to_dict(self) -> dict:
        """Plain values, rounded to a thousandth."""
        return {name: round(value, 3) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return (
            f"swap A > B {self.swap_psnr:.2f} dB to the true swap over {self.pairs} pairs "
            f"(mean face of B {self.mean_b_psnr:.2f}, A unchanged {self.unchanged_psnr:.2f}, "
            f"B > B {self.reconstruction_psnr:.2f})"
        )


def masked_psnr(made: np.ndarray, true: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """PSNR in dB of each (n, H, W, 3) picture in 0..1 inside its (n, H, W) mask, weighted by it."""
    squares = ((made.astype(np.float64) - true) ** 2).mean(-1)
    error = (squares * mask).sum((1, 2)) / mask.sum((1, 2))
    return -10 * np.log10(np.maximum(error, 1e-10))


def _pairs(truth: Path) -> list[tuple[FaceRecord, FaceRecord]]:
    sides = []
    for side in "ab":
        folder = scan_folder(truth / side)
        folder.require_all_good()
        sides.append({record.path.stem: record for record in folder.records})
    missing = sorted(set(sides[0]) ^ set(sides[1]))
    if missing:
        raise SwapfastError(f"--truth {truth}: {missing[0]} is not in both a and b; every picture needs its pair")
    return [(sides[0][name], sides[1][name]) for name in sorted(sides[0])]


def face_mask_for(window_of: FaceRecord, record: FaceRecord, config: TrainConfig, size: int) -> np.ndarray:
    """(size, size) uint8: the face mask of ``record`` in the window of ``window_of``, never empty.

    As the model was trained with where it can be had from landmarks or a mask file, else extended.
    """
    mask = config.mask
    if mask.mask_type not in FRAME_TYPES or (mask.mask_type == "file" and record.mask_file is None):
        mask = MaskConfig()
    made = face_mask_in(window_of, record, config.crop, mask, size)
    if not made.any():
        raise SwapfastError(
            f"{record.path}: its face mask ({mask.mask_type}) is empty where {window_of.path} has its face: "
            "mend the mask, or remove the pair if these two do not belong together"
        )
    return made


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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure ``model`` on the pairs under ``truth``; mean_b: (H, W, 3) in 0..1 BGR at the largest output size.

    progress: told (done, total) of the pictures decoded. Raises SwapfastError for missing, damaged or unpaired
    pictures, and for a B without a face mask.
    """
    pairs = _pairs(truth)
    size = model.output_sizes[-1]

    def cut(side: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3, h, w) as the model is shown a side, and (n, size, size, 3) as it would be right; in 0..1."""
        shown = np.empty((len(pairs), model.input_size, model.input_size, 3), np.float32)
        true = np.empty((len(pairs), size, size, 3), np.float32)
        for index, pair in enumerate(pairs):
            picture = _picture(pair[side])
            for stack in (shown, true):
                stack[index] = crop_with(pair[0], pair[side], picture, config.crop, stack.shape[1])
            progress(side * len(pairs) + index + 1, 2 * len(pairs))
        return np.ascontiguousarray(shown.transpose(0, 3, 1, 2)) / 255, true / 255

    masks = np.stack([face_mask_for(a, b, config, size) for a, b in pairs]) / 255
    (shown_a, true_a), (shown_b, true_b) = cut(0), cut(1)

    def against_b(made: np.ndarray) -> float:
        return float(masked_psnr(made[..., :3], true_b, masks).mean())

    return Evaluation(
        swap_psnr=against_b(swap_faces(model, shown_a, "b")),
        mean_b_psnr=against_b(np.broadcast_to(mean_b, true_b.shape)),
        unchanged_psnr=against_b(true_a),
        reconstruction_psnr=against_b(swap_faces(model, shown_b, "b")),
        pairs=len(pairs),
    )
