"""Measures swaps against the true swap.

The truth folders show every pose, expression and light twice: ``a/NAME`` with identity A, ``b/NAME`` with identity B.
Both pictures of a pair are cropped with A's alignment, at the model's size and centering. The model swaps A to B, and
the result is compared with the true B inside B's face mask.

Two people of other proportions are aligned otherwise: the true B is larger, smaller or higher in A's crop than B's
faces are in those that the model learned from, by an amount that nobody knows who has no true swaps. So the result is
also compared with the true B in the crop of its own alignment.
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
from swapfast.swap.figures import Distances


@dataclass(frozen=True)
class Evaluation:
    """The mean figures over all pairs against the true B inside B's face mask; see figures.py.

    swap_psnr: of A swapped to B, in dB; swap_psnr_matched, after the swap's mean colour was set right; swap_ssim.
    color_error: how far the swap's mean colour is off, 0..1, as a root mean square over B, G and R.
    mean_b_psnr and so on: the same of the mean training face of B, the output of a model that learned only an average.
    unchanged_psnr: of A itself.
    reconstruction_psnr: of B reconstructed by its own decoder.
    swap_psnr_own_crop and so on: the same against the true B in the crop of its own alignment.
    own_crop_psnr: of the true B in its own crop against the one in A's: what a swap has that is right but for the crop.
    """

    swap_psnr: float
    swap_psnr_matched: float
    swap_ssim: float
    color_error: float
    mean_b_psnr: float
    mean_b_psnr_matched: float
    mean_b_ssim: float
    mean_b_color_error: float
    unchanged_psnr: float
    reconstruction_psnr: float
    swap_psnr_own_crop: float
    swap_psnr_matched_own_crop: float
    mean_b_psnr_own_crop: float
    mean_b_psnr_matched_own_crop: float
    own_crop_psnr: float
    pairs: int

    def to_dict(self) -> dict:
        """Return the values rounded, JSON-ready: dB to a thousandth, the others to a hundred-thousandth."""
        return {name: round(value, 3 if "psnr" in name else 5) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return (
            f"swap A > B {self.swap_psnr:.2f} dB to the true swap over {self.pairs} pairs "
            f"(mean face of B {self.mean_b_psnr:.2f}, A unchanged {self.unchanged_psnr:.2f}, "
            f"B > B {self.reconstruction_psnr:.2f})\n"
            f"colour-matched {self.swap_psnr_matched:.2f} dB (mean face of B {self.mean_b_psnr_matched:.2f}), "
            f"SSIM {self.swap_ssim:.3f} ({self.mean_b_ssim:.3f}), "
            f"colour off by {self.color_error:.3f} ({self.mean_b_color_error:.3f})\n"
            f"to the true swap cut as B's own faces are {self.swap_psnr_own_crop:.2f} dB "
            f"(mean face of B {self.mean_b_psnr_own_crop:.2f}), colour-matched {self.swap_psnr_matched_own_crop:.2f} "
            f"({self.mean_b_psnr_matched_own_crop:.2f}); right but for that cut is {self.own_crop_psnr:.2f} dB"
        )


def true_records(truth: Path) -> list[tuple[FaceRecord, FaceRecord]]:
    """Return A's and B's records of each pair in the folder ``truth``, in the order of their names.

    Raises SwapfastError for missing, damaged or unpaired pictures.
    """
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


@dataclass(frozen=True)
class TruePairs:
    """True swaps, as a model sees them and as it should make them: n pairs, BGR in 0..1.

    inputs_a, inputs_b: (n, 3, h, w) at the model's input size.
    true_a, true_b: (n, H, W, 3) at its largest output size.
    masks: (n, H, W), the face of B.
    own_b, own_masks: the same of B in the crop of its own alignment.
    """

    inputs_a: np.ndarray
    inputs_b: np.ndarray
    true_a: np.ndarray
    true_b: np.ndarray
    masks: np.ndarray
    own_b: np.ndarray
    own_masks: np.ndarray

    def distances(self, images: np.ndarray) -> Distances:
        """Return how far (n, H, W, 3 or 4) images lie from the true B."""
        return Distances.of(images[..., :3], self.true_b, self.masks)

    def measure(self, model: FaceAutoencoder, mean_b: np.ndarray) -> Evaluation:
        """Measure ``model``. mean_b: (H, W, 3) in 0..1 BGR, the mean training face of B."""
        swaps, means = swap_faces(model, self.inputs_a, "b"), np.broadcast_to(mean_b, self.true_b.shape)
        swap, mean = self.distances(swaps), self.distances(means)
        own_swap, own_mean = (Distances.of(images[..., :3], self.own_b, self.own_masks) for images in (swaps, means))
        return Evaluation(
            swap_psnr=swap.psnr,
            swap_psnr_matched=swap.psnr_matched,
            swap_ssim=swap.ssim,
            color_error=swap.color_error,
            mean_b_psnr=mean.psnr,
            mean_b_psnr_matched=mean.psnr_matched,
            mean_b_ssim=mean.ssim,
            mean_b_color_error=mean.color_error,
            unchanged_psnr=self.distances(self.true_a).psnr,
            reconstruction_psnr=self.distances(swap_faces(model, self.inputs_b, "b", of="b")).psnr,
            swap_psnr_own_crop=own_swap.psnr,
            swap_psnr_matched_own_crop=own_swap.psnr_matched,
            mean_b_psnr_own_crop=own_mean.psnr,
            mean_b_psnr_matched_own_crop=own_mean.psnr_matched,
            own_crop_psnr=self.distances(self.own_b).psnr,
            pairs=len(self.masks),
        )


def read_pairs(
    truth: Path,
    config: TrainConfig,
    input_size: int,
    output_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> TruePairs:
    """Read the pairs in the folder ``truth`` at a model's input and largest output size, px.

    progress: called with (pictures decoded, pictures in total).
    Raises SwapfastError for missing, damaged or unpaired pictures, and for a B without a face mask.
    """
    pairs = true_records(truth)
    edge = max(input_size, output_size)
    inputs = np.empty((len(SIDES), len(pairs), input_size, input_size, 3), np.float32)
    faces_of_sides = np.empty((len(SIDES), len(pairs), output_size, output_size, 3), np.float32)
    own_b = np.empty_like(faces_of_sides[1])
    for index, (a, b) in enumerate(pairs):
        for side, record in enumerate((a, b)):
            # As in training: cropped once, at the largest size, and shrunk to the others.
            picture = _picture(record)
            crop = crop_with(a, record, picture, config.crop, edge)
            inputs[side, index], faces_of_sides[side, index] = shrink(crop, input_size), shrink(crop, output_size)
            if record is b:
                own_b[index] = shrink(crop_with(b, b, picture, config.crop, edge), output_size)
            if progress is not None:
                progress(len(SIDES) * index + side + 1, len(SIDES) * len(pairs))
    masks, own_masks = (
        np.stack([face_mask_for(pair[reference], pair[1], config, output_size) for pair in pairs]) / 255
        for reference in (0, 1)
    )
    inputs_a, inputs_b = np.ascontiguousarray(inputs.transpose(0, 1, 4, 2, 3)) / 255
    true_a, true_b = faces_of_sides / 255
    return TruePairs(inputs_a, inputs_b, true_a, true_b, masks, own_b / 255, own_masks)


def evaluate(
    model: FaceAutoencoder,
    config: TrainConfig,
    mean_b: np.ndarray,
    truth: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure ``model`` on the pairs in the folder ``truth``.

    mean_b: (H, W, 3) in 0..1 BGR, the mean training face of B at the model's largest output size.
    progress, errors: as of ``read_pairs``.
    """
    return read_pairs(truth, config, model.input_size, model.output_sizes[-1], progress).measure(model, mean_b)
