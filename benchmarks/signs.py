"""Everything that can be told of swaps from held-out faces alone, to see what follows the truth.

``swap_quality`` is the one that the program has; docs/learning.md has how well each follows the figures that need true
swaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from swapfast.batch import SIDES
from swapfast.models import FaceAutoencoder
from swapfast.swap.apply import swap_faces
from swapfast.swap.figures import masked_psnr, match_colors, mean_colors
from swapfast.swap.quality import NEAR, NEAR_MATCHED, QUALITY, SideFaces, swap_quality

LOW = 16  # px, to which faces are shrunk for a classifier


@dataclass(frozen=True)
class MadeFaces:
    """What a model makes of held-out faces, (n, H, W, 3) BGR in 0..1 each, and the light that swaps are shown in.

    swaps: of A's faces. swap_inputs: the same as a model takes them, (n, 3, h, w). again: B's faces by B's decoder.
    own: A's by A's. lit: B's own faces in A's light.
    """

    swaps: np.ndarray
    swap_inputs: np.ndarray
    again: np.ndarray
    own: np.ndarray
    lit: np.ndarray

    @classmethod
    def of(cls, model: FaceAutoencoder, a: SideFaces, b: SideFaces, light: tuple[float, float, float]) -> MadeFaces:
        """Return what the model makes; see ``signs``."""
        swaps = swap_faces(model, a.inputs, "b")[..., :3]
        again, own = (swap_faces(model, side.inputs, to, of=to)[..., :3] for side, to in ((b, "b"), (a, "a")))
        swap_inputs = np.ascontiguousarray(swaps.transpose(0, 3, 1, 2))
        if swap_inputs.shape != a.inputs.shape:
            swap_inputs = _resized(swap_inputs, a.inputs.shape[-1])
        return cls(swaps, swap_inputs, again, own, np.minimum(b.faces * np.asarray(light, np.float32), 1))


def signs(
    model: FaceAutoencoder, a: SideFaces, b: SideFaces, light: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> dict[str, float]:
    """Return everything that can be told without the truth, by name.

    light: by what B's faces are multiplied (B, G, R) to have A's light, in which swaps are compared with them.

    skin            how far the mean colour of the swaps is from that of B's faces, 0..1, root mean square over B, G, R
    skin_a          the same of A's own faces: what a swap that keeps A's skin would have
    auc, distance   how well the sides are told apart by their codes, see ``separability``
    quality, pose_near, pose_near_matched   see ``swap_quality``; without landmarks the same as the next two
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
    made = MadeFaces.of(model, a, b, light)
    return (
        code_signs(model, made, a, b)
        | color_signs(made, a, b)
        | reconstruction_signs(model, made, a, b)
        | nearness_signs(made, a, b)
        | shape_signs(made, a, b)
    )


def code_signs(model: FaceAutoencoder, made: MadeFaces, a: SideFaces, b: SideFaces) -> dict[str, float]:
    """Return auc, distance and recode, see ``signs``."""
    code_a, code_b, code_swap = (
        codes_of(model, inputs, of) for inputs, of in ((a.inputs, "a"), (b.inputs, "b"), (made.swap_inputs, "b"))
    )
    auc, distance = separability(code_a, code_b)
    recode = _correlation((code_a - code_a.mean(0)).ravel(), (code_swap - code_swap.mean(0)).ravel())
    return {"auc": auc, "distance": distance, "recode": recode}


def color_signs(made: MadeFaces, a: SideFaces, b: SideFaces) -> dict[str, float]:
    """Return skin and skin_a, see ``signs``."""
    pairs = {"skin": (made.swaps, a.masks), "skin_a": (a.faces, a.masks)}
    of_b = mean_colors(made.lit, b.masks).mean(0)
    return {name: float(np.sqrt(((mean_colors(*pair).mean(0) - of_b) ** 2).mean())) for name, pair in pairs.items()}


def reconstruction_signs(model: FaceAutoencoder, made: MadeFaces, a: SideFaces, b: SideFaces) -> dict[str, float]:
    """Return back, own, again and mean with their matched ones, see ``signs``."""
    figures: dict[str, float] = {}
    back = swap_faces(model, made.swap_inputs, "a")[..., :3]
    mean_b = np.broadcast_to(b.faces.mean(0), b.faces.shape)
    for name, images, side in (("back", back, a), ("own", made.own, a), ("again", made.again, b), ("mean", mean_b, b)):
        matched = match_colors(images, side.faces, side.masks)
        figures[name] = float(masked_psnr(images, side.faces, side.masks).mean())
        figures[f"{name}_matched"] = float(masked_psnr(matched, side.faces, side.masks).mean())
    return figures


def nearness_signs(made: MadeFaces, a: SideFaces, b: SideFaces) -> dict[str, float]:
    """Return quality, near, face_near and their like, see ``signs``."""
    points = None if a.points is None or b.points is None else (a.points, b.points)
    posed = _nearest(made.swaps, made.lit, b.masks, points)
    figures = {"quality": posed[QUALITY], "pose_near": posed[NEAR], "pose_near_matched": posed[NEAR_MATCHED]}
    halves = np.arange(len(b.faces)) % 2 == 0
    for prefix, images, faces, masks in (
        ("", made.swaps, made.lit, b.masks),
        ("face_", made.again[halves], b.faces[~halves], b.masks[~halves]),
    ):
        nearest = _nearest(images, faces, masks)
        figures |= {f"{prefix}near": nearest[NEAR], f"{prefix}near_matched": nearest[NEAR_MATCHED]}
    return figures


def shape_signs(made: MadeFaces, a: SideFaces, b: SideFaces) -> dict[str, float]:
    """Return likeness, structure and spread, see ``signs``."""
    figures: dict[str, float] = {}
    parts = {"swaps": (made.swaps, a.masks), "again": (made.again, b.masks)}
    parts |= {"a": (a.faces, a.masks), "b": (made.lit, b.masks)}
    is_b = np.arange(len(a.faces) + len(b.faces)) >= len(a.faces)
    plain = {name: _low(faces, masks) for name, (faces, masks) in parts.items()}
    grey = {name: _low(_matched(faces, masks), masks) for name, (faces, masks) in parts.items()}
    for suffix, low in (("", plain), ("_matched", grey)):
        known_faces = np.concatenate([low["a"], low["b"]])
        figures[f"likeness{suffix}"] = float(direction_scores(known_faces, is_b, low["swaps"]).mean())
    figures["structure"] = _correlation(_distances(grey["a"]), _distances(grey["swaps"]))
    of_swaps, of_again = (
        np.sqrt(((part - part.mean(0)) ** 2).sum(1).mean()) for part in (grey["swaps"], grey["again"])
    )
    figures["spread"] = float(of_swaps / max(of_again, 1e-12))
    return figures


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
    edge = (LOW, LOW)
    small = [cv2.resize(f * m[..., None], edge, interpolation=cv2.INTER_AREA) for f, m in zip(faces, masks)]
    return np.stack(small).reshape(len(faces), -1).astype(np.float64)


def _matched(faces: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the faces with the mean colour inside each mask moved to mid-grey."""
    return faces - mean_colors(faces, masks)[:, None, None] + 0.5


def _nearest(
    swaps: np.ndarray, faces: np.ndarray, masks: np.ndarray, points: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, float]:
    """Return ``swap_quality`` of (n, H, W, 3) swaps, (m, H, W, 3) faces and (m, H, W) masks."""
    images = [torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2) for x in (swaps, faces, masks[..., None])]
    pair = None if points is None else (torch.from_numpy(points[0]), torch.from_numpy(points[1]))
    return swap_quality(images[0], images[1], images[2], pair)


def _distances(faces: np.ndarray) -> np.ndarray:
    """Return the distances between all pairs of (n, numbers), (n * (n - 1) / 2,)."""
    gram = faces @ faces.T
    squares = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
    return np.sqrt(np.maximum(squares[np.triu_indices(len(faces), 1)], 0))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if first.std() < 1e-9 or second.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    return torch.nn.functional.interpolate(torch.from_numpy(images), (size, size), mode="area").numpy()
