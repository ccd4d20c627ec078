"""Running a trained model on faces."""

from __future__ import annotations

import numpy as np
import torch

from swapfast.batch import SIDES
from swapfast.models import FaceAutoencoder


@torch.no_grad()
def swap_faces(
    model: FaceAutoencoder, faces: np.ndarray, to: str, batch_size: int = 64, of: str | None = None
) -> np.ndarray:
    """Return the faces that the decoder of side ``to`` ("a" or "b") makes of ``faces``.

    faces: (n, 3, h, w) float32 in 0..1 BGR, at the model's input size. of: the side that they show, by default the
    other one.
    Returns (n, H, W, 3) float32 in 0..1 BGR at the model's largest output size; (n, H, W, 4) with a learned mask.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    results = []
    for start in range(0, len(faces), batch_size):
        images = torch.from_numpy(faces[start : start + batch_size]).to(device)
        outputs = model.swap(images.flip(1) if model.color_order == "rgb" else images, to, of)
        mask = [outputs.pop()] if model.learns_mask else []
        face = outputs[-1].flip(1) if model.color_order == "rgb" else outputs[-1]
        results.append(torch.cat([face, *mask], dim=1).float().permute(0, 2, 3, 1).cpu().numpy())
    model.train(training)
    return np.concatenate(results)


def all_swaps(model: FaceAutoencoder, inputs: np.ndarray) -> np.ndarray:
    """Return what every decoder makes of every face.

    inputs: (sides, n, 3, h, w), see ``swap_faces``.
    Returns (source side, destination side, n, H, W, 3 or 4).
    """
    return np.stack(
        [[swap_faces(model, faces, to, of=side) for to in SIDES] for side, faces in zip(SIDES, inputs, strict=True)]
    )
