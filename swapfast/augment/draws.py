"""Every random amount of the augmentation: a pure function of the run's seed and a face's ordinal.

Numbers come from ``swapfast/philox.py``, one counter for each sample.

The ordinal of a face counts the faces drawn before it on its side. Every amount has a fixed slot within its sample, so
that switching one augmentation off does not move the others:

    blocks 0..2    12 uniforms: L* a* b*, CLAHE?, CLAHE grid, rotation, scale, shift x y, flip?, light, 1 spare
    blocks 3..15   52 normals: 25 x and 25 y offsets of the 5x5 warp, 2 spare
    blocks 16..49  136 normals: the noise of the warp to landmarks, x and y of point after point
    block 50       which of the nearest faces the warp to landmarks goes to (faces/matching.py)

Shapes are (N, ...) with all sides of the batch together. Positions are px of the processing size, see batch.py.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from swapfast.augment.constants import CLIP_LIMIT, ConstantsAugmentation, ConstantsWarp, check_size
from swapfast.augment.landmarks import Each, landmark_nodes
from swapfast.batch import SIDES
from swapfast.config import AugmentationConfig
from swapfast.philox import STREAM_AUGMENT, normals, random_words, uniforms
from swapfast.points import transform_points

GRID = 5  # nodes per edge of the warp
_UNIFORM_BLOCKS = 3
_WARP_BLOCKS = 13
_LANDMARK_BLOCKS = 34
(_L, _A, _B, _CLAHE, _CLAHE_GRID, _ROTATION, _SCALE, _SHIFT_X, _SHIFT_Y, _FLIP, _LIGHT, _COLOR) = range(12)


@dataclass(frozen=True)
class Draws:
    """What happens to each of N faces. All arrays are NumPy's, one entry per face; plain numbers hold for all.

    The face is jittered in colour, then moved (rotation, scale, shift), then flipped: that is the target. The
    feed is the target warped, by ``landmark_nodes`` where they are set (``with_landmarks``), else by ``warp``.
    """

    size: int  # the processing size the pixel amounts refer to
    lab: np.ndarray  # (N, 3) amounts of L*, a*, b* in -1..1: towards the lowest or highest value
    clahe_grid: np.ndarray  # (N,) tiles per edge, 0 for no CLAHE
    rotation: np.ndarray  # (N,) degrees, positive anticlockwise on the screen
    scale: np.ndarray  # (N,) factor, above 1 enlarges
    shift: np.ndarray  # (N, 2) px, x and y
    flip: np.ndarray  # (N,) bool
    warp: np.ndarray  # (N, 2, 5, 5) px added to where a node of the grid reads, [:, 0] x, [:, 1] y
    landmark_nodes: np.ndarray | None = None  # (N, K, K, 2) px (x, y) of the target: where each node reads
    clip_limit: float = CLIP_LIMIT  # of every face's CLAHE: the highest a histogram bin may be, in mean heights

    def __post_init__(self) -> None:
        check_size(self.size)
        if not 0 < self.clip_limit < math.inf:  # OpenCV takes 0 for no limit at all
            raise ValueError(f"Draws.clip_limit: expected a number above 0, got {self.clip_limit}")
        n = len(self.rotation)
        shapes = {
            "lab": (n, 3),
            "clahe_grid": (n,),
            "rotation": (n,),
            "scale": (n,),
            "shift": (n, 2),
            "flip": (n,),
            "warp": (n, 2, GRID, GRID),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"Draws.{name}: expected shape {shape}, got {getattr(self, name).shape}")
        if self.landmark_nodes is not None:
            shape = self.landmark_nodes.shape
            # Five nodes lie elsewhere than any other number of them, see ``taps.hat_taps``.
            if len(shape) != 4 or shape != (n, shape[1], shape[1], 2) or shape[1] < 2 or shape[1] == GRID:
                raise ValueError(f"Draws.landmark_nodes: expected shape ({n}, K, K, 2), K not {GRID}, got {shape}")

    @classmethod
    def identity(cls, n: int, size: int) -> Draws:
        """Return draws of N faces to which nothing happens, the start of hand-made ones (``dataclasses.replace``)."""
        return cls(
            size=size,
            lab=np.zeros((n, 3)),
            clahe_grid=np.zeros(n, np.int64),
            rotation=np.zeros(n),
            scale=np.ones(n),
            shift=np.zeros((n, 2)),
            flip=np.zeros(n, bool),
            warp=np.zeros((n, 2, GRID, GRID)),
        )

    def __len__(self) -> int:
        return len(self.rotation)

    def __getitem__(self, index: slice | ArrayLike) -> Draws:
        """Return the draws of some faces: a slice, or an array of indices or booleans."""
        if not isinstance(index, slice):
            index = np.asarray(index)
            if index.ndim != 1:
                raise TypeError("Draws take a slice or a one-dimensional array of indices")
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts: dict[str, Any] = {name: value[index] for name, value in values.items() if isinstance(value, np.ndarray)}
        return dataclasses.replace(self, **parts)

    def lab_affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (N, 3) factors and (N, 3) offsets of the jitter ``v * factor + offset`` of 8-bit LAB levels.

        An amount r >= 0 moves a level v the share r of the way to 255, r < 0 the share -r of the way to 0.
        """
        return 1 - np.abs(self.lab), 255 * np.maximum(self.lab, 0)

    def forward(self) -> np.ndarray:
        """Return (N, 3, 3) float64: px of the face -> px of the moved face, about its centre, before the flip."""
        angle = np.deg2rad(self.rotation)
        a, b = self.scale * np.cos(angle), self.scale * np.sin(angle)
        centre = (self.size - 1) / 2
        matrix = np.zeros((len(self), 3, 3))
        matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 0, 2] = a, b, (1 - a - b) * centre + self.shift[:, 0]
        matrix[:, 1, 0], matrix[:, 1, 1], matrix[:, 1, 2] = -b, a, (1 - a + b) * centre + self.shift[:, 1]
        matrix[:, 2, 2] = 1
        return matrix

    def matrix(self) -> np.ndarray:
        """Return (N, 2, 3) float64: px of the face -> px of the target, movement and flip in one matrix."""
        return (self._mirror() @ self.forward())[:, :2]

    def inverse(self) -> np.ndarray:
        """Return (N, 2, 3) float64: px of the target -> px of the face, flip and movement undone in one matrix."""
        return (np.linalg.inv(self.forward()) @ self._mirror())[:, :2]

    def _mirror(self) -> np.ndarray:
        """Return (N, 3, 3) float64, the flip: its own inverse."""
        flip = np.zeros((len(self), 3, 3))
        flip[:, 0, 0] = np.where(self.flip, -1, 1)
        flip[:, 0, 2] = np.where(self.flip, self.size - 1, 0)
        flip[:, 1, 1] = flip[:, 2, 2] = 1
        return flip

    def move_points(self, points: np.ndarray) -> np.ndarray:
        """Return where points (N, ..., 2) of the faces, px (x, y), lie in the targets: moved and flipped."""
        result = transform_points(self.forward(), points).astype(np.result_type(points, np.float32), copy=False)
        return flip_points(result, self.flip, self.size)

    def warp_nodes(self) -> np.ndarray:
        """Return where each node of the warp, [row, column], reads: (N, K, K, 2) px (x, y) of the target.

        K is 5, or that of ``landmark_nodes``; ``taps.hat_taps`` says where the nodes lie.

        Peer: nodes at linspace(0, size, 5), which reads half a pixel to the right and below with no noise at all.
        Ours: half a pixel less, so no noise is no change.
        """
        if self.landmark_nodes is not None:
            return self.landmark_nodes
        axis = np.linspace(0, self.size, GRID) - 0.5
        nodes = np.empty((len(self), GRID, GRID, 2))
        nodes[..., 0] = self.warp[:, 0] + axis
        nodes[..., 1] = self.warp[:, 1] + axis[:, None]
        return nodes

    def control_grid(self) -> np.ndarray:
        """Return where each node of the feed reads: (N, K, K, 2) px (x, y) of the face, see ``warp_nodes``.

        Movement, flip and warp in one. The nodes' weights at any pixel add up to one, so an affine map of the
        nodes is the same as that map of every pixel.
        """
        return transform_points(self.inverse(), self.warp_nodes())


def flip_points(points: np.ndarray, flip: np.ndarray, size: int) -> np.ndarray:
    """Return points (N, ..., 2) mirrored where ``flip`` (N,) says so. They keep their order: left stays named left."""
    mirrored = points.copy()
    mirrored[flip, ..., 0] = (size - 1) - points[flip, ..., 0]
    return mirrored


def draw(
    seed: int, ordinals: ArrayLike, sides: ArrayLike, size: int, config: AugmentationConfig | None = None
) -> Draws:
    """Draw the amounts of N faces.

    seed: the run's, 64 bit
    ordinals: (N,) the position of each face among all faces drawn on its side, from 0
    sides: (N,) or one for all, 0 or 1
    size: processing size, px

    The same arguments give the same bits; each face's result depends on its own ordinal and side only.
    """
    words = random_words(seed, ordinals, sides, range(_UNIFORM_BLOCKS + _WARP_BLOCKS), STREAM_AUGMENT)
    u = uniforms(words[:, : 4 * _UNIFORM_BLOCKS])
    draws = _amounts(u, normals(words[:, 4 * _UNIFORM_BLOCKS :]), size, config)
    if config is None or set(SIDES) <= set(config.flip_sides):
        return draws
    mirrored = [SIDES.index(side) for side in config.flip_sides]
    return dataclasses.replace(draws, flip=draws.flip & np.isin(sides, mirrored))


def light_shares(seed: int, ordinals: ArrayLike, sides: ArrayLike) -> np.ndarray:
    """Return how much of the way to the other side's light each face is taken, (N,) in 0..1; see ``draw``."""
    words = random_words(seed, ordinals, sides, range(_LIGHT // 4, _LIGHT // 4 + 1), STREAM_AUGMENT)
    shares: np.ndarray = uniforms(words)[:, _LIGHT % 4]
    return shares


def draw_at(share: float, faces: int, size: int, config: AugmentationConfig | None = None) -> Draws:
    """Return draws in which every amount stands at one point of its distribution, to look at the extremes.

    share: strictly within 0..1; 0.5 is the middle of all

    Neighbours among the nodes are pulled opposite ways, or the image would be shifted and not bent. The chance of a
    flip is taken below ``share``: at 0.01 every face is mirrored that may be, at 0.99 none. CLAHE is always drawn, or
    the finer of its grids would never be seen, and colours always change. Raises ValueError for another share.
    """
    if not 0 < share < 1:
        raise ValueError(f"share {share}: must lie between 0 and 1, both excluded")
    u = np.full((faces, 4 * _UNIFORM_BLOCKS), share)
    u[:, [_CLAHE, _COLOR]] = 0.0
    return _amounts(u, NormalDist().inv_cdf(share) * _alternating((faces, 4 * _WARP_BLOCKS)), size, config)


def landmark_noise_at(share: float, faces: int) -> np.ndarray:
    """Return (N, 68, 2), the ``landmark_noise`` of ``draw_at``; neighbours are pulled opposite ways here too."""
    return NormalDist().inv_cdf(share) * _alternating((faces, 2, 68)).transpose(0, 2, 1)


def _alternating(shape: tuple[int, ...]) -> np.ndarray:
    """Return 1 and -1 by turns along the last axis."""
    return np.broadcast_to(1.0 - 2 * (np.arange(shape[-1]) % 2), shape)


def _amounts(u: np.ndarray, z: np.ndarray, size: int, config: AugmentationConfig | None) -> Draws:
    """Return the draws of (N, 12) uniforms in 0..1 and (N, 52) standard normals."""
    constants = ConstantsAugmentation.from_config(size, config=config)
    color, transform = constants.color, constants.transform
    warp = z[:, : 2 * GRID * GRID]
    either_way = 2 * u - 1
    step = np.floor(u[:, _CLAHE_GRID] * (color.clahe_max_size + 1)).astype(np.int64)
    grid = color.clahe_base_contrast + step * (color.clahe_base_contrast // 2)
    is_colored = u[:, _COLOR] < color.chance
    return Draws(
        size=int(size),
        lab=np.where(is_colored[:, None], either_way[:, _L : _B + 1] * color.lab_adjust, 0.0),
        # Peer: CLAHE is skipped for the whole batch when the only face drawn for it is the first.
        # Ours: every face has its own chance, whatever the others drew.
        clahe_grid=np.where(is_colored & (u[:, _CLAHE] < color.clahe_chance), grid, 0),
        clip_limit=color.clahe_clip_limit,
        rotation=either_way[:, _ROTATION] * transform.rotation,
        scale=1 + either_way[:, _SCALE] * transform.zoom,
        shift=either_way[:, _SHIFT_X : _SHIFT_Y + 1] * transform.shift,
        flip=u[:, _FLIP] < transform.flip,
        warp=warp.reshape(-1, 2, GRID, GRID) * constants.warp.scale,
    )


def with_landmarks(
    draws: Draws,
    pairs: np.ndarray,
    noise: np.ndarray,
    config: AugmentationConfig | None = None,
    each: Each = map,
) -> tuple[Draws, np.ndarray]:
    """Return the draws with the warp to landmarks in the random warp's place, and (N,) bool: which faces are warped.

    pairs: (N, 2, 68, 2) landmarks of each face and of its match, px of the crop as it comes in, the match's in its
        own crop (``LandmarkMatcher.get_close_landmarks``)
    noise: (N, 68, 2) ``landmark_noise`` for the arguments of ``draw``
    each: see ``landmark_nodes``

    The match moves as the face does, then noise is added to it. A face that cannot be warped (``landmark_nodes``) is
    fed unwarped. Raises ValueError for pairs of another shape, SwapfastError where Numba cannot run.
    """
    if pairs.shape[1:] != (2, 68, 2) or len(pairs) != len(draws):
        raise ValueError(f"pairs: expected ({len(draws)}, 2, 68, 2), got {pairs.shape}")
    with np.errstate(invalid="ignore"):  # points that are no numbers: such a face is not warped
        source, match = np.moveaxis(draws.move_points(pairs), 1, 0)
    scale = ConstantsWarp.from_config(draws.size, config).lm_scale
    nodes, warped = landmark_nodes(source, match, noise * scale, draws.size, each=each)
    return dataclasses.replace(draws, landmark_nodes=nodes), warped


def landmark_noise(seed: int, ordinals: ArrayLike, sides: ArrayLike) -> np.ndarray:
    """Return (N, 68, 2) standard normals: what moves each landmark of the match, before it is scaled to px."""
    start = _UNIFORM_BLOCKS + _WARP_BLOCKS
    blocks = range(start, start + _LANDMARK_BLOCKS)
    return normals(random_words(seed, ordinals, sides, blocks, STREAM_AUGMENT)).reshape(-1, 68, 2)
