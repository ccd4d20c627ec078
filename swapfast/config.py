"""Every setting of a run: typed, explained, range-checked at the door, and readable as TOML or JSON.

Names, ranges and defaults are those faceswap's users know; where ours differ the help says so. A config
travels as an object from the command line downward. Kernels take plain values and never see one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swapfast.errors import SwapfastError, unknown_name


def option(
    default,
    help: str,
    low=None,
    high=None,
    choices=None,
    fixed: bool = False,
    flag: str = "",
    bare: list | None = None,
    shapes: bool = False,
):
    """A field with its explanation and limits.

    fixed: cannot change once a model exists, unless it is overridden; shapes: nor then, for the weights have its shape.
    flag: how the command line spells it, such as '-b/--batch-size'; a switch that is on by default is spelled as its
    negation. bare: of a list, what the flag means without a value; 'none' as its only value empties the list then.
    """
    meta = {"help": help, "low": low, "high": high, "choices": choices, "fixed": fixed, "flag": flag}
    meta |= {"bare": bare, "shapes": shapes}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(kw_only=True)
class Config:
    """Base of all parts: checks itself on construction and raises SwapfastError naming the setting."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            if f.metadata:
                setattr(self, f.name, _checked(f, hints[f.name], getattr(self, f.name)))

    def to_dict(self) -> dict:
        """Plain values, nested by part; ``from_dict`` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping, where: str = "config"):
        """Build from plain values. An unknown name is answered with the known ones."""
        if not isinstance(values, Mapping):
            raise SwapfastError(f"{where}: expected a table of settings, got {values!r}")
        hints = typing.get_type_hints(cls)
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name(f"setting in {where}", name, known)
        parts = {
            name: hints[name].from_dict(value, f"{where}.{name}")
            if isinstance(hints[name], type) and issubclass(hints[name], Config)
            else value
            for name, value in values.items()
        }
        return cls(**parts)

    @classmethod
    def from_toml(cls, path: Path):
        """Read a TOML file (see ``to_toml``)."""
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")), where=str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise SwapfastError(f"--config {path}: cannot be read ({error})") from error
        except tomllib.TOMLDecodeError as error:
            raise SwapfastError(f"--config {path}: not valid TOML: {error}") from error

    def to_toml(self) -> str:
        """All settings with their explanations as comments: a file to edit and give to ``--config``."""
        plain = [f for f in dataclasses.fields(self) if f.metadata]
        parts = [f for f in dataclasses.fields(self) if not f.metadata]
        lines = [line for f in plain for line in _toml_lines(f, getattr(self, f.name))]
        for f in parts:
            lines += [f"[{f.name}]", getattr(self, f.name).to_toml()]
        return "\n".join(lines) + "\n"


def _toml_lines(f: dataclasses.Field, value) -> list[str]:
    meta = f.metadata
    limits = f" ({meta['low']} to {meta['high']})" if meta["low"] is not None else ""
    choices = f" One of: {', '.join(meta['choices'])}." if meta["choices"] else ""
    return [f"# {meta['help']}{limits}{choices}", f"{f.name} = {json.dumps(value)}"]


def _checked(f: dataclasses.Field, kind: type, value):
    meta = f.metadata
    name = meta["flag"] or f.name
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    plain = typing.get_origin(kind) or kind
    if not isinstance(value, plain) or (plain is not bool and isinstance(value, bool)):
        raise SwapfastError(f"{name} {value!r}: expected {plain.__name__}")
    if plain is list:
        (element,) = typing.get_args(kind)
        for item in value:
            if isinstance(item, bool) or not isinstance(item, (int, float) if element is float else element):
                raise SwapfastError(f"{name} {item!r}: expected {element.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise SwapfastError(f"{name} {value!r}: expected a finite number")
    if meta["choices"]:
        value = [] if meta["bare"] is not None and value == ["none"] else value
        for item in value if plain is list else [value]:
            if item not in meta["choices"]:
                raise unknown_name(name, item, meta["choices"])
    too_low = meta["low"] is not None and value < meta["low"]
    if too_low or (meta["high"] is not None and value > meta["high"]):
        raise SwapfastError(f"{name} {value!r}: must lie within {meta['low']} and {meta['high']}")
    return value


CENTERINGS = ("face", "head", "legacy")


@dataclass(kw_only=True)
class CropConfig(Config):
    """Which part of a face image is trained on."""

    centering: str = option(
        "face",
        "Where the crop is centred: face, head or legacy (the bare landmarks).",
        choices=CENTERINGS,
        fixed=True,
        flag="--centering",
    )
    coverage: float = option(
        100.0, "Share of the centred crop that is trained, percent.", 62.5, 100.0, fixed=True, flag="--coverage"
    )
    vertical_offset: float = option(
        0.0,
        "Moves the crop window; a positive value moves the face down, percent.",
        -25.0,
        25.0,
        fixed=True,
        flag="--vertical-offset",
    )


@dataclass(kw_only=True)
class MaskConfig(Config):
    """Where the face mask comes from and how a stored one is cleaned."""

    mask_type: str = option(
        "extended",
        "extended or components (drawn from the landmarks), file (the mask beside the image), none, or the name "
        "of a mask stored in faceswap's PNG header, such as bisenet-fp_face.",
        fixed=True,
        flag="--mask-type",
    )
    dilation: float = option(0.0, "Grow (or, negative, shrink) the face mask, percent of its edge.", -5.0, 5.0)
    blur_kernel: int = option(3, "Gaussian blur of a stored mask, px at its stored size.", 0, 9)
    threshold: int = option(4, "Push a stored mask's values this near to the ends all the way, percent.", 0, 50)


@dataclass(kw_only=True)
class AugmentationConfig(Config):
    """How faces are varied. Amounts and ranges are faceswap's."""

    color: bool = option(True, "Vary lightness, colour and contrast.", flag="-c/--no-augment-color")
    flip: bool = option(True, "Mirror faces by chance.", flag="-P/--no-flip")
    warp: bool = option(True, "Warp what the model is fed with a random 5x5 grid.", flag="-W/--no-warp")
    warp_to_landmarks: bool = option(
        False,
        "Warp what the model is fed to the landmarks of a similar face of the other side, in place of the random grid.",
        flag="-M/--warp-to-landmarks",
    )
    zoom_amount: float = option(5.0, "Largest zoom in and out, percent.", 0.0, 25.0)
    rotation_range: float = option(10.0, "Largest rotation either way, degrees.", 0.0, 25.0)
    shift_range: float = option(5.0, "Largest shift in x and in y, percent of the size.", 0.0, 25.0)
    flip_chance: float = option(50.0, "Chance that a face is mirrored, percent.", 0.0, 75.0)
    color_lightness: float = option(30.0, "Largest change of L*, percent.", 0.0, 75.0)
    color_ab: float = option(8.0, "Largest change of a* and b*, percent.", 0.0, 50.0)
    color_clahe_chance: float = option(50.0, "Chance of local contrast equalisation (CLAHE), percent.", 0.0, 75.0)
    color_clahe_max_size: int = option(4, "Largest step of the CLAHE grid above its base.", 1, 8)
    color_clahe_clip_limit: float = option(
        2.0, "How far CLAHE may raise contrast: the highest a histogram's bin may be, in mean heights.", 1.0, 40.0
    )
    warp_deviation: float = option(
        100 * 5 / 256, "Deviation of a warp node, percent of the size (faceswap: 5 px of 256).", 0.0, 10.0
    )
    landmark_deviation: float = option(
        100 * 2 / 256, "Noise of the landmarks warped to, percent of the size (faceswap: 2 px of 256).", 0.0, 10.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warp_to_landmarks and not self.warp:
            raise SwapfastError("-M/--warp-to-landmarks with -W/--no-warp: give one of them")


@dataclass(kw_only=True)
class LossConfig(Config):
    """What the model is asked to get right."""

    functions: list[str] = option(
        ["ssim", "mse"], "Up to four loss functions, added: see docs/losses.md.", flag="--loss"
    )
    weights: list[float] = option(
        [],
        "Their weights, percent; 100 for each of --loss where they are not given.",
        flag="--loss-weights",
    )
    penalized_mask_loss: bool = option(
        True, "Count only what lies inside the face mask.", fixed=True, flag="--no-penalized-mask"
    )
    eye_multiplier: float = option(
        3.0,
        "Extra weight of the eyes: their loss counts 1 + this; 1 switches it off.",
        1.0,
        40.0,
        flag="--eye-multiplier",
    )
    mouth_multiplier: float = option(2.0, "Extra weight of the mouth, likewise.", 1.0, 40.0, flag="--mouth-multiplier")
    learn_mask: bool = option(
        False,
        "Let the model predict the face mask as its last output.",
        fixed=True,
        flag="--learn-mask",
        shapes=True,
    )
    mask_loss_function: str = option("mse", "Loss of the predicted mask.", choices=("mse", "mae"))
    lpips_weights: str = option("", "Folder of the networks' weights that lpips_* need: see docs/losses.md.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights = self.weights or [100.0] * len(self.functions)
        if not 1 <= len(self.functions) <= 4 or len(self.weights) != len(self.functions):
            raise SwapfastError(
                f"--loss {' '.join(map(str, self.functions))} with --loss-weights "
                f"{' '.join(map(str, self.weights))}: give one to four functions and one weight for each"
            )
        for weight in self.weights:
            if not 0 <= weight <= 400:
                raise SwapfastError(f"--loss-weights {weight!r}: must lie within 0 and 400 percent")


OPTIMIZER_NAMES = ("adabelief", "adam", "adamax", "adamw", "lion", "nadam", "rms-prop")


@dataclass(kw_only=True)
class OptimizerConfig(Config):
    """How the weights move. The peer's ``save_optimizer`` is not here: a run that resumes exactly needs its state."""

    optimizer: str = option(
        "adam",
        "adam and adamw, which never wait for a GPU, or adabelief (with --epsilon-exponent -16), adamax, lion (with a "
        "tenth of adam's learning rate), nadam or rms-prop, which do once a step.",
        choices=OPTIMIZER_NAMES,
        fixed=True,
        flag="--optimizer",
    )
    learning_rate: float = option(5e-5, "Step size.", 1e-8, 1.0, flag="--learning-rate")
    warmup: int = option(
        0, "Steps of the weights over which the step size rises linearly, 0 for none.", 0, 5000, flag="-a/--warmup"
    )
    epsilon_exponent: int = option(
        -7,
        "What keeps a division from being by zero is ten to this power; lion has none.",
        -20,
        0,
        flag="--epsilon-exponent",
    )
    gradient_clipping: str = option(
        "none",
        "Limit large steps: autoclip (the norm of all gradients, to a percentile of the norms so far), global_norm "
        "(the same, to a number), norm (of each weight) or value (of each element).",
        choices=("none", "autoclip", "global_norm", "norm", "value"),
        flag="--clip",
    )
    clipping_value: float = option(
        1.0, "That number, or for autoclip the percentile divided by ten.", 0.0, 10.0, flag="--clip-value"
    )
    autoclip_history: int = option(
        10000, "How many norms autoclip looks back on, 0 for all of them.", 0, 100_000, flag="--autoclip-history"
    )
    weight_decay: float = option(
        0.0, "Pull the weights towards zero, biases excepted.", 0.0, 1.0, flag="--weight-decay"
    )
    gradient_accumulation: int = option(
        1,
        "Batches of which the weights make one step, along the mean of their gradients.",
        1,
        100,
        flag="--accumulation",
    )
    beta_1: float = option(0.9, "Decay of the gradient's mean; rms-prop has none.", 0.0, 0.9999)
    beta_2: float = option(0.999, "Decay of the squared gradient's mean; rms-prop has its own, 0.99.", 0.0, 0.999999)
    amsgrad: bool = option(
        False, "Divide by the largest variance so far; adabelief, adam and adamw.", fixed=True, flag="--amsgrad"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clipping_value == 0 and self.gradient_clipping not in ("none", "autoclip"):
            raise SwapfastError(
                f"--clip-value 0.0 with --clip {self.gradient_clipping}: nothing would ever move; give a larger value"
            )


@dataclass(kw_only=True)
class LearningRateFinderConfig(Config):
    """How ``--lr-finder`` looks for a learning rate."""

    iterations: int = option(1000, "Steps of the search.", 100, 10000, flag="--lr-finder-iterations")
    mode: str = option(
        "set",
        "set (train at the rate found), graph_and_set (draw the curve too) or graph_and_exit (draw it and stop).",
        choices=("set", "graph_and_set", "graph_and_exit"),
        flag="--lr-finder-mode",
    )
    strength: str = option(
        "default",
        "The rate of the lowest loss is divided by 10 (default), 5 (aggressive) or 2.5 (extreme).",
        choices=("default", "aggressive", "extreme"),
        flag="--lr-finder-strength",
    )
    start: float = option(1e-10, "Rate at which the search begins.", 1e-12, 1e-2, flag="--lr-finder-start")
    end: float = option(1e-1, "Rate at which it ends.", 1e-9, 1.0, flag="--lr-finder-end")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start >= self.end:
            raise SwapfastError(
                f"--lr-finder-start {self.start:g} with --lr-finder-end {self.end:g}: the rate rises from start to "
                "end; give a larger end"
            )


@dataclass(kw_only=True)
class ModelConfig(Config):
    """Which network is trained."""

    name: str = option(
        "original",
        "The model: original (64 px, 82 M parameters) or tiny (0.84 M, to try things out).",
        fixed=True,
        flag="-t/--trainer",
        shapes=True,
    )
    lowmem: bool = option(False, "original with a smaller encoder.", fixed=True, flag="--lowmem", shapes=True)
    freeze: list[str] = option(
        [],
        "Parts that are not trained: encoder, decoder_a, decoder_b, or none; without a value the encoder.",
        choices=("encoder", "decoder_a", "decoder_b"),
        flag="-f/--freeze-weights",
        bare=["encoder"],
    )


@dataclass(kw_only=True)
class PreviewConfig(Config):
    """How preview.png looks."""

    images: int = option(14, "Faces per side in the preview.", 1, 256, flag="--preview-images")
    mask_opacity: int = option(
        30, "How strongly what lies outside the mask is tinted, percent.", 0, 100, flag="--mask-opacity"
    )
    mask_color: str = option("#ff0000", "The tint, as #rrggbb.", flag="--mask-color")


@dataclass(kw_only=True)
class TrainConfig(Config):
    """A whole run."""

    batch_size: int = option(16, "Faces per side and step, over the whole job.", 1, 65536, flag="-b/--batch-size")
    seed: int = option(1, "Everything random in the run follows from it.", 0, 2**64 - 1, fixed=True, flag="--seed")
    validation: float = option(
        0.0,
        "Share of each side's faces that is held out and never trained on, 0 to 0.5. The same picture is always on the "
        "same side, under any name.",
        0.0,
        0.5,
        fixed=True,
        flag="--validation",
    )
    validation_interval: int = option(
        0,
        "Iterations between two measurements of the loss on the faces that are held out, 0 for one at every save.",
        0,
        1_000_000,
        flag="--validation-interval",
    )
    precision: str = option(
        "auto",
        "What the model computes in: auto (bf16 on a GPU that has it, else fp32), fp32, bf16, or fp16 with a scaled "
        "loss. The weights are kept in fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
        flag="--precision",
    )
    nan: str = option(
        "stop",
        "What to do about a loss or gradient that is not finite; it never reaches the weights. stop: end the run. "
        "skip: leave the step out, give up at the tenth in a row. rollback: go back to the weights of the last "
        "checkpoint, halve the learning rate and go on behind that batch, five times at most.",
        choices=("stop", "skip", "rollback"),
        flag="--nan",
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_finder: LearningRateFinderConfig = field(default_factory=LearningRateFinderConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)


def settings(config: Config, prefix: str = "") -> dict[str, tuple[dataclasses.Field, object]]:
    """Every setting of all parts by its dotted name -> (its field with the explanation, its value)."""
    found: dict[str, tuple[dataclasses.Field, object]] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata:
            found[prefix + f.name] = (f, value)
        else:
            found |= settings(value, f"{prefix}{f.name}.")
    return found


def updated(config: TrainConfig, changes: Mapping[str, object], where: str = "--set") -> TrainConfig:
    """A copy with some settings changed, by their dotted names ('loss.eye_multiplier')."""
    values = config.to_dict()
    known = settings(config)
    for name, value in changes.items():
        if name not in known:
            raise unknown_name(f"setting in {where}", name, known)
        *parts, last = name.split(".")
        table = values
        for part in parts:
            table = table[part]
        table[last] = value
    return TrainConfig.from_dict(values)
