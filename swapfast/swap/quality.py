"""How good a swap is, told from held-out faces alone: nobody has true swaps of people of their own.

``signs`` are what can be computed from faces of A and B that were never trained on. Each tells of one way in which a
swap goes wrong; none is enough. A model that makes the mean face of B has B's skin and B's features in every picture,
and A's pose in none; one that keeps A's skin and brows has A's pose. docs/learning.md has how well each follows the
figures that need the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from swapfast.batch import SIDES
from swapfast.models import FaceAutoencoder
from swapfast.swap.apply import swap_faces
from swapfast.swap.figures import masked_psnr, match_colors, mean_colors

LOW = 16  # px, to which faces are shrunk for a classifier


@dataclass(frozen=True)
class SideFaces:
    """Faces of one side that were never trained on, BGR in 0..1.

    inputs: (n, 3, h, w) at the model's input size.
    faces: (n, H, W, 3) at its largest output size.
    masks: (n, H, W), where the face is.
    """

    inputs: np.ndarray
    faces: np.ndarray
    masks: np.ndarray


@torch.no_grad()
def codes_of(model: FaceAutoencoder, inputs: np.ndarray, of: str) -> np.ndarray:
    """Return what the decoder of B is given for faces of side ``of``, (n, numbers) float64.

    inputs: (n, 3, h, w) in 0..1 BGR.
    """
    was_training = model.training
    model.eval()
    images = torch.from_numpy(inputs).to(next(model.parameters()).device)
    codes = model.code(images.flip(1) if model.color_order == "rgb" else images, SIDES[1], of)
    model.train(was_training)
    return codes.float().flatten(1).double().cpu().numpy()


def direction_scores(features: np.ndarray, is_b: np.ndarray, others: np.ndarray, ridge: float = 0.1) -> np.ndarray:
    """Return where ``others`` lie on the line along which a ridge regression tells A from B: about 0 for A, 1 for B.

    features: (n, numbers), of which ``is_b`` (n,) says the side. others: (m, numbers). ridge: of the features' mean
    square. Written for fewer faces than numbers.
    """
    middle = features.mean(0)
    centred = features - middle
    gram = centred @ centred.T
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram) + 1e-12
    share = is_b.mean()
    return (others - middle) @ (centred.T @ np.linalg.solve(gram, is_b - share)) + share


def area_under_curve(scores: np.ndarray, is_b: np.ndarray) -> float:
    """Return the share of pairs of a face of A and one of B in which B's has the larger score; ties count half."""
    a, b = scores[~is_b], scores[is_b]
    return float(((b[:, None] > a).mean() + (b[:, None] >= a).mean()) / 2)


def separability(codes_a: np.ndarray, codes_b: np.ndarray) -> tuple[float, float]:
    """Return how well a linear classifier tells the sides apart by unseen codes, and how far apart their means lie.

    The first is the area under the curve, 0.5 where nothing tells them apart: of the half of the faces by the other
    half, both ways. The second is the distance of the mean codes, in root mean square distances of a code from its
    side's mean.
    """
    codes = np.concatenate([codes_a, codes_b])
    is_b = np.arange(len(codes)) >= len(codes_a)
    within = np.concatenate([codes_a - codes_a.mean(0), codes_b - codes_b.mean(0)])
    spread = np.sqrt((within**2).sum(1).mean())
    distance = float(np.linalg.norm(codes_a.mean(0) - codes_b.mean(0)) / max(spread, 1e-12))
    half = np.arange(len(codes)) % 2 == 0
    areas = [
        area_under_curve(direction_scores(codes[fit], is_b[fit], codes[~fit]), is_b[~fit]) for fit in (half, ~half)
    ]
    return sum(areas) / 2, distance


def _low(faces: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return faces at LOW px, black outside their masks, (n, LOW * LOW * 3)."""
    import cv2

    edge = (LOW, LOW)
    small = [cv2.resize(f * m[..., None], edge, interpolation=cv2.INTER_AREA) for f, m in zip(faces, masks)]
    return np.stack(small).reshape(len(faces), -1).astype(np.float64)


def _matched(faces: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the faces with the mean colour inside each mask moved to mid-grey."""
    return faces - mean_colors(faces, masks)[:, None, None] + 0.5


def _nearest_psnr(swaps: np.ndarray, faces: np.ndarray, masks: np.ndarray) -> float:
    """Return the mean over swaps of the PSNR to the nearest of ``faces`` inside that one's mask, dB."""
    weights = masks / masks.sum((1, 2), keepdims=True) / 3
    m = weights.reshape(len(faces), -1)
    flat = swaps.reshape(len(swaps), -1, 3)
    of = faces.reshape(len(faces), -1, 3)
    squares = (flat**2).sum(2) @ m.T
    products = sum(flat[..., c] @ (of[..., c] * m).T for c in range(3))
    errors = squares - 2 * products + ((of**2).sum(2) * m).sum(1)
    return float(np.mean(-10 * np.log10(np.maximum(errors.min(1), 1e-10))))


def _distances(faces: np.ndarray) -> np.ndarray:
    """Return the distances between all pairs of (n, numbers), (n * (n - 1) / 2,)."""
    gram = faces @ faces.T
    squares = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
    return np.sqrt(np.maximum(squares[np.triu_indices(len(faces), 1)], 0))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if first.std() < 1e-9 or second.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def signs(model: FaceAutoencoder, a: SideFaces, b: SideFaces) -> dict[str, float]:
    """Return everything that can be told without the truth, by name.

    skin            how far the mean colour of the swaps is from that of B's faces, 0..1, root mean square over B, G, R
    skin_a          the same of A's own faces: what a swap that keeps A's skin would have
    auc, distance   how well the sides are told apart by their codes, see ``separability``
    near, near_matched          dB of a swap to the nearest face of B, as it is and with mean colours set equal
    face_near, face_near_matched  the same of B's faces reconstructed, of the nearest but themselves
    likeness, likeness_matched  where the swaps lie between faces of A (0) and of B (1) by a linear classifier
    back, back_matched          dB of a swap there and back to A's face
    again, again_matched        dB of B's faces reconstructed
    own, own_matched            dB of A's faces reconstructed
    mean, mean_matched          dB of the mean of B's faces to B's faces: what a model gets that makes nothing else
    recode          how much of A's code comes back from the swap: the correlation of both, less the means
    structure       correlation between the distances of A's faces from each other and those of their swaps
    spread          how much swaps differ from each other, relative to B's own faces reconstructed
    """
    swaps = swap_faces(model, a.inputs, "b")[..., :3]
    again, own = (swap_faces(model, side.inputs, to, of=to)[..., :3] for side, to in ((b, "b"), (a, "a")))
    swap_inputs = np.ascontiguousarray(swaps.transpose(0, 3, 1, 2))
    if swap_inputs.shape != a.inputs.shape:
        swap_inputs = _resized(swap_inputs, a.inputs.shape[-1])
    back = swap_faces(model, swap_inputs, "a")[..., :3]
    code_a, code_b, code_swap = (
        codes_of(model, inputs, of) for inputs, of in ((a.inputs, "a"), (b.inputs, "b"), (swap_inputs, "b"))
    )
    auc, distance = separability(code_a, code_b)
    found = {"auc": auc, "distance": distance}
    found["recode"] = _correlation((code_a - code_a.mean(0)).ravel(), (code_swap - code_swap.mean(0)).ravel())

    colors = [mean_colors(*pair).mean(0) for pair in ((swaps, a.masks), (b.faces, b.masks), (a.faces, a.masks))]
    found["skin"] = float(np.sqrt(((colors[0] - colors[1]) ** 2).mean()))
    found["skin_a"] = float(np.sqrt(((colors[2] - colors[1]) ** 2).mean()))
    mean_b = np.broadcast_to(b.faces.mean(0), b.faces.shape)
    for name, images, faces, masks in (
        ("back", back, a.faces, a.masks),
        ("own", own, a.faces, a.masks),
        ("again", again, b.faces, b.masks),
        ("mean", mean_b, b.faces, b.masks),
    ):
        found[name] = float(masked_psnr(images, faces, masks).mean())
        found[f"{name}_matched"] = float(masked_psnr(match_colors(images, faces, masks), faces, masks).mean())

    plain = {"swaps": swaps, "again": again, "a": a.faces, "b": b.faces}
    masks_of = {"swaps": a.masks, "again": b.masks, "a": a.masks, "b": b.masks}
    grey = {name: _matched(faces, masks_of[name]) for name, faces in plain.items()}
    is_b = np.arange(len(a.faces) + len(b.faces)) >= len(a.faces)
    halves = np.arange(len(b.faces)) % 2 == 0
    low: dict[str, np.ndarray] = {}
    for suffix, faces_of in (("", plain), ("_matched", grey)):
        found[f"near{suffix}"] = _nearest_psnr(faces_of["swaps"], b_faces := faces_of["b"], b.masks)
        found[f"face_near{suffix}"] = _nearest_psnr(faces_of["again"][halves], b_faces[~halves], b.masks[~halves])
        low = {name: _low(faces, masks_of[name]) for name, faces in faces_of.items()}
        known = np.concatenate([low["a"], low["b"]])
        found[f"likeness{suffix}"] = float(direction_scores(known, is_b, low["swaps"]).mean())
    found["structure"] = _correlation(_distances(low["a"]), _distances(low["swaps"]))
    spread = [np.sqrt(((low[name] - low[name].mean(0)) ** 2).sum(1).mean()) for name in ("swaps", "again")]
    found["spread"] = float(spread[0] / max(spread[1], 1e-12))
    return found


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    return torch.nn.functional.interpolate(torch.from_numpy(images), (size, size), mode="area").numpy()
