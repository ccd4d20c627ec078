"""How a face is put into a frame: the settings of one swap. Peers' names of the values are taken too."""

from __future__ import annotations

from dataclasses import dataclass, field

from swapfast.options import Config, option

NO_MASK, RECT = "none", "rect"
LEARNED, LEARNED_OTHER, LEARNED_MIN = "learned", "learned-other", "learned-min"
LEARNED_TYPES = (LEARNED, LEARNED_OTHER, LEARNED_MIN)
DECODERS = {  # of pictures
    "auto": "dali for JPEGs where the model runs on a GPU, else opencv",
    "dali": "NVIDIA's, for JPEGs and plain PNGs",
    "opencv": "on threads, kornia_rs for PNGs",
}
ORDERS = ("all", "largest", "smallest", "leftmost", "rightmost", "topmost", "bottommost", "central")  # --face
COLORS = ("none", "mean", "reinhard", "linear", "histogram", "seamless", "manual")


@dataclass(kw_only=True)
class MaskSettings(Config):
    """Where the face ends. Lengths are percent, so that they hold for every model and every size of a face."""

    type: str = option(
        "extended",
        "extended or components (drawn from the landmarks), rect (the whole crop), none (the whole crop, its edge not "
        "softened), learned (of the side that comes out), learned-other (of the side in the picture), learned-min "
        "(the smaller of both), or the name of a mask stored in faceswap's PNG headers, such as bisenet-fp_face.",
        flag="-M/--mask-type",
        former={
            "facehull": "components",
            "predicted": LEARNED,
            "full": RECT,
            "learned-prd": LEARNED,
            "learned-dst": LEARNED_OTHER,
            "learned-prd*learned-dst": LEARNED_MIN,
        },
    )
    erosion: float = option(
        0.0,
        "Shrink the mask, or grow it where negative, percent of half its mean width.",
        -100.0,
        100.0,
        flag="--erosion",
    )
    erosion_top: float = option(0.0, "The same, from above alone.", -100.0, 100.0, flag="--erosion-top")
    erosion_bottom: float = option(0.0, "The same, from below alone.", -100.0, 100.0, flag="--erosion-bottom")
    erosion_left: float = option(0.0, "The same, from the left alone.", -100.0, 100.0, flag="--erosion-left")
    erosion_right: float = option(0.0, "The same, from the right alone.", -100.0, 100.0, flag="--erosion-right")
    move_x: float = option(0.0, "Move the mask to the right, percent of the crop's edge.", -50.0, 50.0, flag="--move-x")
    move_y: float = option(0.0, "Move the mask down, percent of the crop's edge.", -50.0, 50.0, flag="--move-y")
    blur: str = option(
        "normalized",
        "How its edge is blurred.",
        choices=("normalized", "gaussian", "none"),
        flag="--mask-blur",
    )
    blur_kernel: int = option(3, "Width of the blur, px of a mask of 128 px.", 1, 99, flag="--blur-kernel")
    blur_passes: int = option(4, "How often it is blurred, each time less than before.", 1, 8, flag="--blur-passes")
    threshold: float = option(
        4.0, "Push a stored or learned mask's values this near to the ends all the way, percent.", 0.0, 50.0,
        flag="--mask-threshold",
    )  # fmt: skip
    feather: float = option(
        4.0, "Soften the crop's own edge over this much of it, percent; never with none.", 0.0, 50.0, flag="--feather"
    )


@dataclass(kw_only=True)
class ColorSettings(Config):
    """How the face's colours are fitted to what it replaces, measured inside the mask."""

    type: str = option(
        "mean",
        "none; mean (the mean colour's difference); reinhard (mean and spread of L*a*b*); linear (all of mean and "
        "covariance, Monge-Kantorovich); histogram (each channel's distribution); seamless (the edge's difference, "
        "spread inwards; it flickers in videos); manual (see --balance, --contrast, --brightness).",
        choices=COLORS,
        flag="-c/--color-adjustment",
        former={
            "avg-color": "mean",
            "color-transfer": "reinhard",
            "rct": "reinhard",
            "lct": "linear",
            "mkl": "linear",
            "match-hist": "histogram",
            "hist-match": "histogram",
            "seamless-clone": "seamless",
            "manual-balance": "manual",
        },
    )
    threshold: float = option(
        99.0, "With histogram: the share of the pixels that is fitted, without the extremes, percent.", 50.0, 100.0,
        flag="--histogram-threshold",
    )  # fmt: skip
    colorspace: str = option(
        "hsv", "With manual: the channels of --balance.", choices=("hsv", "lab", "bgr"), flag="--colorspace"
    )
    balance: list[float] = option(
        [0.0, 0.0, 0.0], "With manual: raise or lower each channel, -100 to 100 percent.", flag="--balance"
    )
    contrast: float = option(0.0, "With manual: percent.", -100.0, 100.0, flag="--contrast")
    brightness: float = option(0.0, "With manual: percent.", -100.0, 100.0, flag="--brightness")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.balance) != 3 or max(map(abs, self.balance)) > 100:
            from swapfast.errors import SwapfastError

            raise SwapfastError(f"--balance {self.balance}: give three numbers within -100 and 100")


@dataclass(kw_only=True)
class FaceSettings(Config):
    """Changes of the face itself."""

    scale: float = option(
        0.0, "Make the pasted face larger, or smaller where negative, percent.", -10.0, 10.0, flag="-S/--face-scale"
    )
    sharpen: str = option(
        "none",
        "Sharpen the face.",
        choices=("none", "box", "gaussian", "unsharp"),
        flag="--sharpen",
        former={"unsharp_mask": "unsharp"},
    )
    sharpen_amount: float = option(150.0, "How much of the detail is added, percent.", 0.0, 500.0, flag="--amount")
    sharpen_radius: float = option(
        1.0, "How large the detail is, percent of the crop's edge.", 0.1, 5.0, flag="--radius"
    )
    sharpen_threshold: float = option(
        5.0, "With unsharp: detail weaker than this many of 255 levels stays.", 0.0, 255.0, flag="--sharpen-threshold"
    )


@dataclass(kw_only=True)
class SwapSettings(Config):
    """All settings of a swap that may change from frame to frame."""

    mask: MaskSettings = field(default_factory=MaskSettings)
    color: ColorSettings = field(default_factory=ColorSettings)
    face: FaceSettings = field(default_factory=FaceSettings)
