"""How good a swap is, told from held-out faces alone: nobody has true swaps of people of their own.

``swap_quality`` is the figure of a run: each face of A that was never trained on is swapped, and compared with the
faces of B, as they are and mirrored, whose landmarks are most like A's; the nearest of them counts. A swap with A's
skin, brows or eyes is near to none of them, and one in another pose or expression than A's neither, since those in A's
pose alone are looked at. It is no measure of a true swap: light or a pose that B never shows has no face to be near to.
docs/learning.md has how well it follows the figures that need the truth.

``signs`` are this and whatever else can be told without the truth, for trying out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from swapfast.batch import SIDES, Batch
from swapfast.faces.orientation import MIRRORED
from swapfast.models import FaceAutoencoder
from swapfast.swap.apply import swap_faces
from swapfast.swap.figures import masked_psnr, match_colors, mean_colors
from swapfast.swap.leak import LEAK, LeakMeter

ALIKE = 10  # faces of B that a swap is compared with: those with landmarks most like A's
COMPARED = 64  # px, at most, at which they are compared
LOW = 16  # px, to which faces are shrunk for a classifier
QUALITY = "swap/quality"  # tags of TensorBoard; steps.jsonl has swap_quality and so on
NEAR, NEAR_MATCHED = "swap/near", "swap/near_matched"


def swap_quality(swaps: Tensor, faces: Tensor, masks: Tensor, points: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    """Return how near swaps of A come to B's faces of the same pose, in dB by tag; waits for the device.

    swap/near is the mean over swaps of the PSNR to the nearest of ALIKE faces inside that face's mask,
    swap/near_matched the same after mean colours inside the mask were set equal, swap/quality the mean of both. Faces
    are mirrored too, so that a B who mostly looks to one side has poses to the other.

    swaps: (n, 3, S, S), faces: (m, 3, S, S), masks: (m, 1, S, S), all in 0..1.
    points: landmarks (n, 68, 2) of A's faces and (m, 68, 2) of B's, in shares of the edge, 0..1; without them all
        faces count as alike, and a swap may take any pose.
    """
    faces, masks = (torch.cat([images, images.flip(3)]) for images in (faces, masks))
    raw, matched = _errors(*(images.double() for images in (swaps, faces, masks)))
    if points is not None:
        alike = _alike(points[0], torch.cat([points[1], _mirrored(points[1])])).to(raw.device)
        raw, matched = raw.gather(1, alike), matched.gather(1, alike)
    near, near_matched = torch.stack([_decibels(raw.amin(1)).mean(), _decibels(matched.amin(1)).mean()]).tolist()
    return {QUALITY: (near + near_matched) / 2, NEAR: near, NEAR_MATCHED: near_matched}


def _decibels(errors: Tensor) -> Tensor:
    return -10 * errors.clamp(min=1e-10).log10()


def _mirrored(points: Tensor) -> Tensor:
    """Return (m, 68, 2) landmarks in shares of the edge as they lie in the mirrored pictures."""
    return points[:, list(MIRRORED)] * points.new_tensor((-1, 1)) + points.new_tensor((1, 0))


def _alike(points_a: Tensor, points_b: Tensor) -> Tensor:
    """Return the numbers of the faces of B that are most like each of A's, (n, ALIKE or fewer)."""
    distances = torch.cdist(points_a.flatten(1).double(), points_b.flatten(1).double())
    return distances.topk(min(ALIKE, len(points_b)), largest=False).indices


def _errors(swaps: Tensor, faces: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared errors of each swap to each face inside its mask, as they are and colour-matched, (n, m).

    Written as products of matrices: the squares of differences would take n times as much memory as the faces.
    """
    weights = masks.flatten(1) / masks.sum((1, 2, 3)).clamp(min=1e-6)[:, None]  # (m, pixels)
    swaps, faces = swaps.flatten(2), faces.flatten(2)  # (n, 3, pixels), (m, 3, pixels)
    squares = swaps.square().sum(1) @ weights.T + (faces.square().sum(1) * weights).sum(1)
    products = torch.einsum("ncp,mcp->nm", swaps, faces * weights[:, None])
    raw = (squares - 2 * products) / 3
    colors = torch.einsum("ncp,mp->nmc", swaps, weights) - torch.einsum("mcp,mp->mc", faces, weights)
    return raw, raw - colors.square().mean(2)


@dataclass
class QualityProbe:
    """Measures ``swap_quality`` and the leak on the batches of held-out faces that pass through ``watch``.

    model: what is measured. precision: what it computes in, None for float32. points: of A's and B's faces in their
    order, see ``swap_quality``. leak: measures how much of A's skin the swaps keep, where there is such a meter.
    light: by what B's faces are multiplied to have A's light, (3,) in the model's colour order, where swaps have it.
    """

    model: FaceAutoencoder
    precision: torch.dtype | None = None
    points: tuple[np.ndarray, np.ndarray] | None = None
    leak: LeakMeter | None = None
    light: Tensor | None = None
    _originals: list[Tensor] = field(default_factory=list)
    _swaps: list[Tensor] = field(default_factory=list)
    _faces: list[Tensor] = field(default_factory=list)
    _masks: list[Tensor] = field(default_factory=list)
    _again: list[Tensor] = field(default_factory=list)

    def watch(self, batches: Iterable[tuple[int, Batch]]) -> Iterator[tuple[int, Batch]]:
        """Yield the batches, swap A's faces and reconstruct B's. The model is in evaluation mode, without gradients."""
        for number, batch in batches:
            side = SIDES[number]
            images = _shrunk(batch.targets[-1][:, 0])
            if side == "a":
                self._swaps.append(self._made(batch, side))
                self._originals.append(images)
            else:
                masks = batch.meta[0].mask_face
                self._faces.append(self._in_light_of_a(images))
                self._masks.append(torch.ones_like(images[:, :1]) if masks is None else _shrunk(masks[-1]))
                if self.leak is not None:
                    self._again.append(self._made(batch, side))
            yield number, batch

    def _in_light_of_a(self, images: Tensor) -> Tensor:
        return images if self.light is None else (images * self.light.to(images)[:, None, None]).clamp(max=1)

    def _made(self, batch: Batch, of: str) -> Tensor:
        """Return what B's decoder makes of the faces, those of side ``of``."""
        (images,) = batch.inputs
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            outputs = self.model.swap(images, to="b", of=of)
        return _shrunk(outputs[-2 if self.model.learns_mask else -1].float())

    def values(self) -> dict[str, float]:
        """Return the figures by tag; none where a side had no face."""
        if not self._swaps or not self._faces:
            return {}
        swaps, faces, masks = map(torch.cat, (self._swaps, self._faces, self._masks))
        leak = {}
        if self.leak is not None:
            leak[LEAK] = self.leak.leak(torch.cat(self._originals), swaps, faces, torch.cat(self._again))
        masks = torch.where(masks.sum((1, 2, 3), keepdim=True) > 0, masks, torch.ones_like(masks))
        points = None if self.points is None else (torch.from_numpy(self.points[0]), torch.from_numpy(self.points[1]))
        if points is not None and (len(points[0]), len(points[1])) != (len(swaps), len(faces)):
            return {}  # a request to stop came in between
        return swap_quality(swaps, faces, masks, points) | leak


def _shrunk(images: Tensor) -> Tensor:
    return images if images.shape[-1] <= COMPARED else F.interpolate(images, (COMPARED, COMPARED), mode="area")


@dataclass(frozen=True)
class SideFaces:
    """Faces of one side that were never trained on, BGR in 0..1.

    inputs: (n, 3, h, w) at the model's input size.
    faces: (n, H, W, 3) at its largest output size.
    masks: (n, H, W), where the face is.
    points: (n, 68, 2), landmarks in shares of the edge, 0..1.
    """

    inputs: np.ndarray
    faces: np.ndarray
    masks: np.ndarray
    points: np.ndarray | None = None


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
    figures = {"auc": auc, "distance": distance}
    figures["recode"] = _correlation((code_a - code_a.mean(0)).ravel(), (code_swap - code_swap.mean(0)).ravel())

    lit = np.minimum(b.faces * np.asarray(light, np.float32), 1)
    colors = [mean_colors(*pair).mean(0) for pair in ((swaps, a.masks), (lit, b.masks), (a.faces, a.masks))]
    figures["skin"] = float(np.sqrt(((colors[0] - colors[1]) ** 2).mean()))
    figures["skin_a"] = float(np.sqrt(((colors[2] - colors[1]) ** 2).mean()))
    mean_b = np.broadcast_to(b.faces.mean(0), b.faces.shape)
    for name, images, faces, masks in (
        ("back", back, a.faces, a.masks),
        ("own", own, a.faces, a.masks),
        ("again", again, b.faces, b.masks),
        ("mean", mean_b, b.faces, b.masks),
    ):
        figures[name] = float(masked_psnr(images, faces, masks).mean())
        figures[f"{name}_matched"] = float(masked_psnr(match_colors(images, faces, masks), faces, masks).mean())

    plain = {"swaps": swaps, "again": again, "a": a.faces, "b": lit}
    masks_of = {"swaps": a.masks, "again": b.masks, "a": a.masks, "b": b.masks}
    grey = {name: _matched(faces, masks_of[name]) for name, faces in plain.items()}
    is_b = np.arange(len(a.faces) + len(b.faces)) >= len(a.faces)
    halves = np.arange(len(b.faces)) % 2 == 0
    low: dict[str, np.ndarray] = {}
    points = None if a.points is None or b.points is None else (a.points, b.points)
    posed = _nearest(swaps, lit, b.masks, points)
    figures |= {"quality": posed[QUALITY], "pose_near": posed[NEAR], "pose_near_matched": posed[NEAR_MATCHED]}
    for prefix, images, faces, masks in (
        ("", swaps, lit, b.masks),
        ("face_", again[halves], b.faces[~halves], b.masks[~halves]),
    ):
        nearest = _nearest(images, faces, masks)
        figures |= {f"{prefix}near": nearest[NEAR], f"{prefix}near_matched": nearest[NEAR_MATCHED]}
    for suffix, faces_of in (("", plain), ("_matched", grey)):
        low = {name: _low(faces, masks_of[name]) for name, faces in faces_of.items()}
        known_faces = np.concatenate([low["a"], low["b"]])
        figures[f"likeness{suffix}"] = float(direction_scores(known_faces, is_b, low["swaps"]).mean())
    figures["structure"] = _correlation(_distances(low["a"]), _distances(low["swaps"]))
    spread = [np.sqrt(((low[name] - low[name].mean(0)) ** 2).sum(1).mean()) for name in ("swaps", "again")]
    figures["spread"] = float(spread[0] / max(spread[1], 1e-12))
    return figures


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    return torch.nn.functional.interpolate(torch.from_numpy(images), (size, size), mode="area").numpy()
