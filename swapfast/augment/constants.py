"""The ranges of every random amount, computed once from the processing size and the configuration.

Class and field names are those of the API text. Where it reads a global configuration, ``from_config`` takes an
``AugmentationConfig``. Amounts are in the unit in which they are applied: pixels, degrees, factors, shares 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swapfast.config import AugmentationConfig

SMALLEST_SIZE = 32  # px: below this a CLAHE tile or a cell of the warp grid would hold almost no pixels
LARGEST_SIZE = 1024  # px: a face crop above that is a mistake, and positions are exact to 1e-4 px up to it
DEFAULT = AugmentationConfig()
ANY_CONFIG = AugmentationConfig(color_clahe_max_size=8)  # the finest grids that a configuration can have
CLIP_LIMIT = DEFAULT.color_clahe_clip_limit


@dataclass(frozen=True)
class ConstantsColor:
    """Ranges of the colour jitter."""

    clahe_base_contrast: int  # tiles per edge of the coarsest CLAHE grid
    clahe_chance: float  # 0..1
    clahe_max_size: int  # grids are base + k * (base // 2), k from 0 to this
    lab_adjust: tuple[float, float, float]  # largest amount either way for L*, a*, b*; 0..1
    chance: float = 1.0  # that a face's colours change, 0..1; not the API's
    clahe_clip_limit: float = CLIP_LIMIT  # the highest a histogram bin may be, in mean heights; not the API's

    @classmethod
    def from_config(cls, processing_size: int, config: AugmentationConfig | None = None) -> ConstantsColor:
        processing_size, config = check_size(processing_size), config or DEFAULT
        on = float(config.color)
        ab = on * config.color_ab / 100
        return cls(
            clahe_base_contrast=max(2, processing_size // 128),
            clahe_chance=on * config.color_clahe_chance / 100,
            clahe_max_size=config.color_clahe_max_size,
            lab_adjust=(on * config.color_lightness / 100, ab, ab),
            chance=config.color_chance / 100,
            clahe_clip_limit=config.color_clahe_clip_limit,
        )

    @property
    def largest_grid(self) -> int:
        """Return the most tiles per edge that can be drawn; 0 where CLAHE is off."""
        if self.clahe_chance == 0:
            return 0
        return self.clahe_base_contrast + self.clahe_max_size * (self.clahe_base_contrast // 2)

    @property
    def recolors(self) -> bool:
        """Return whether colours can change at all."""
        return self.largest_grid > 0 or any(self.lab_adjust)


@dataclass(frozen=True)
class ConstantsTransform:
    """Ranges of rotation, zoom, shift and flip."""

    rotation: float  # degrees either way
    zoom: float  # the scale lies within 1 - zoom and 1 + zoom
    shift: float  # px either way, x and y apart
    flip: float  # chance, 0..1

    @classmethod
    def from_config(cls, processing_size: int, config: AugmentationConfig | None = None) -> ConstantsTransform:
        processing_size, config = check_size(processing_size), config or DEFAULT
        return cls(
            rotation=config.rotation_range,
            zoom=config.zoom_amount / 100,
            shift=config.shift_range / 100 * processing_size,
            flip=float(config.flip) * config.flip_chance / 100,
        )


@dataclass(frozen=True)
class ConstantsWarp:
    """Deviations of the warps.

    The API's ``maps``, ``pad`` and ``slices`` serve a resize-and-crop of a larger map; ours is written down
    directly (``taps.hat_taps``) and needs none. Anchors and grid of the landmark warp follow from the size alone
    (``landmarks.edge_anchors``, ``landmarks.landmark_nodes``).
    """

    scale: float  # standard deviation of a node of the 5x5 grid, px
    lm_scale: float  # standard deviation of a landmark in the warp to landmarks, px

    @classmethod
    def from_config(cls, processing_size: int, config: AugmentationConfig | None = None) -> ConstantsWarp:
        processing_size, config = check_size(processing_size), config or DEFAULT
        return cls(
            scale=float(config.warp) * config.warp_deviation / 100 * processing_size,
            lm_scale=config.landmark_deviation / 100 * processing_size,
        )


@dataclass(frozen=True)
class ConstantsAugmentation:
    """The ranges that the draws are made from.

    >>> ConstantsAugmentation.from_config(processing_size=256).color.clahe_base_contrast
    2
    """

    color: ConstantsColor
    transform: ConstantsTransform
    warp: ConstantsWarp

    @classmethod
    def from_config(
        cls, processing_size: int, batch_size: int | None = None, config: AugmentationConfig | None = None
    ) -> ConstantsAugmentation:
        """Return the ranges for a processing size. ``batch_size`` is the API's and has no effect."""
        return cls(
            color=ConstantsColor.from_config(processing_size, config),
            transform=ConstantsTransform.from_config(processing_size, config),
            warp=ConstantsWarp.from_config(processing_size, config),
        )


def check_size(processing_size: int) -> int:
    """Return the size as an int; raise ValueError where faces of that size cannot be augmented."""
    size = whole_pixels("processing size", processing_size)
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise ValueError(f"processing size {size}: must lie within {SMALLEST_SIZE} and {LARGEST_SIZE} px")
    return size


def whole_pixels(name: str, size: Any) -> int:
    """Return a size as an int, 64.0 and NumPy's integers included; raise ValueError for anything else."""
    try:
        pixels = int(size)
    except (TypeError, ValueError, OverflowError):
        pixels = None
    if pixels is None or pixels != size or isinstance(size, bool):
        raise ValueError(f"{name} {size!r}: need a whole number of px")
    return pixels
