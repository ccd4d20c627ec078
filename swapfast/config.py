"""Every setting of a run: typed, explained, range-checked at the door, and readable as TOML or JSON.

Names, ranges and defaults are those faceswap's users know; where ours differ the help says so. A config
travels as an object from the command line downward. Kernels take plain values and never see one.
What a setting is, is said in options.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swapfast.errors import SwapfastError, shortened, unknown_name
from swapfast.files import check_path
from swapfast.options import Config, option, settings
from swapfast.recipes import OWN, RECIPES
from swapfast.stop import parse_duration

MOST_WEIGHT = 1000.0  # of a loss, percent
CENTERINGS = ("face", "head", "legacy")
FACE_TYPE_NAMES = ("none", "f", "wf", "mf", "h", "head")
MOST_AVERAGES = 4  # each is a copy of all weights
MOST_PORT = 65535
MOST_ITERATIONS = 10**12  # thirty years at a thousand a second; the numbers of faces drawn stay within 63 bits


def _duration(value: object) -> object:
    """Return a duration as it is written ('3h30m', '5400'); whole seconds are taken as a number too."""
    if isinstance(value, int) and not isinstance(value, bool):
        text: object = shortened(value) if value.bit_length() > 64 else str(value)
    else:
        text = value
    if isinstance(text, str) and text:
        parse_duration(text)
    return text


def _port(value: object) -> object:
    """Return a port as it is written, 'auto' or '' for none; a whole number is taken too."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9 else value
    if not isinstance(text, str) or text in ("", "auto"):
        return text
    if not (text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= MOST_PORT):
        raise ValueError(f"{shortened(text)} is no port: give auto or a whole number from 1 to {MOST_PORT}")
    return str(int(text))


def _half_lives(value: object) -> object:
    """Return half-lives as they are written: 'off', or whole numbers with commas such as '500,4000'."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or text in ("", "off"):
        return "off" if text == "" else text
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > MOST_AVERAGES or not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise ValueError(
            f"{shortened(text)} is neither off nor one to {MOST_AVERAGES} half-lives in iterations, such as 500 or "
            "500,4000"
        )
    numbers = [str(int(part)) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{shortened(text)} names a half-life twice")
    return ",".join(numbers)


def _listed(values: Sequence[object]) -> str:
    """Return the first few values as they are given on a command line."""
    texts = [value[:40] if isinstance(value, str) else shortened(value) for value in values[:8]]
    return " ".join([*texts, "..."] if len(values) > len(texts) else texts)


@dataclass(kw_only=True)
class RunConfig(Config):
    """What one start of ``train`` is asked for. A model does not keep it: the next start is asked anew.

    Folders and files are as they were given, relative to the working directory; '' stands for none.
    """

    input_a: str = option("", "Folder of the faces of A, who gets replaced.", flag="-A/--input-A", metavar="DIR")
    input_b: str = option("", "Folder of the faces of B.", flag="-B/--input-B", metavar="DIR")
    model_dir: str = option("", "Folder of the model.", flag="-m/--model-dir", metavar="DIR")
    face_type: str = option(
        "none",
        "A crop by DeepFaceLab's name, in place of --centering, --coverage and --vertical-offset: f (full face), wf "
        "(whole face, which DFM programs cut), mf (mid), h (half) or head.",
        choices=FACE_TYPE_NAMES,
        flag="--face-type",
    )
    iterations: int = option(1_000_000, "Train up to this many in all.", 1, MOST_ITERATIONS, flag="-i/--iterations")
    save_interval: int = option(250, "Iterations between saves.", 1, MOST_ITERATIONS, flag="-s/--save-interval")
    snapshot_interval: int = option(
        25000,
        "Iterations between snapshots, checkpoints that are never dropped; 0 for none.",
        0,
        MOST_ITERATIONS,
        flag="-I/--snapshot-interval",
    )
    after_save: str = option(
        "",
        "Run this shell command after every save, beside the training, with SWAPFAST_MODEL_DIR, SWAPFAST_CHECKPOINT "
        "and SWAPFAST_STEP among its variables: to copy the model elsewhere.",
        flag="--after-save",
        metavar="CMD",
    )
    stop_file: str = option(
        "", "Save and stop, with code 3, when this file appears.", flag="--stop-file", metavar="FILE"
    )
    max_time: str = option(
        "",
        "Save and stop, with code 3, after so long, the start included: seconds, or such as 3h30m.",
        flag="--max-time",
        metavar="TIME",
        parse=_duration,
    )
    watch: str = option(
        "",
        "Start a page in the browser that follows the run, as `swapfast watch` does, at this port of 127.0.0.1; alone: "
        "the first free one from 8420 on. It is a process of its own and stays when the run has ended.",
        flag="--watch",
        metavar="PORT",
        bare="auto",
        parse=_port,
    )
    quiet: bool = option(
        False,
        "Print warnings and errors only, on standard error.",
        flag="-q/--quiet",
    )
    json: bool = option(
        False,
        "Print one JSON object a line, for programs: start, losses, validation, saved, end and others; docs/logs.md.",
        flag="--json",
    )
    timelapse_output: str = option(
        "",
        "Timelapse: add a picture like the preview to this folder at every save; auto, where -z stands alone or -x and "
        "-y are given: MODEL/timelapse.",
        flag="-z/--timelapse-output",
        metavar="DIR",
        bare="auto",
    )
    timelapse_input_a: str = option(
        "",
        "Faces of A for the timelapse, with -y; without both the preview's.",
        flag="-x/--timelapse-input-A",
        metavar="DIR",
    )
    timelapse_input_b: str = option(
        "",
        "Faces of B for the timelapse, with -x; without both the preview's.",
        flag="-y/--timelapse-input-B",
        metavar="DIR",
    )
    preview: bool = option(
        False,
        "Open a window that shows the preview. Keys: M mask, R refresh, S save, F fit, Enter save and end; closing it "
        "ends nothing.",
        flag="-p/--preview",
    )
    logs: bool = option(True, "Write logs for TensorBoard and `swapfast log`.", flag="-n/--no-logs")
    resume: str = option(
        "auto",
        "Go on with the model in the folder: auto, where there is one; never, refuse to; must, refuse to begin anew.",
        choices=("auto", "never", "must"),
        flag="--resume",
    )
    override: bool = option(
        False,
        "Accept another value of a setting that is fixed once a model exists, where that is possible.",
        flag="--override",
    )
    recipe: str = option(
        OWN,
        "Settings of a new model that belong together, below all others that are given: own, those that the model (-t) "
        "brings along; " + "; ".join(f"{name}, {recipe.purpose}" for name, recipe in RECIPES.items()) + ".",
        choices=(OWN, *RECIPES),
        flag="--recipe",
        former={"none": OWN},
        former_name="preset",
    )
    load_weights: str = option(
        "",
        "Begin a new model with the weights of this one, of one of its snapshots, or of a .safetensors file that "
        "`swapfast export` wrote, as far as they fit; also one of another size.",
        flag="-l/--load-weights",
        metavar="DIR",
    )
    shown_weights: str = option(
        "auto",
        "Which weights preview, timelapse and validation show, and -l takes from the other model: auto, averaged ones "
        "where there are (--ema); raw, those in training; ema, or such as ema-500 where there are several.",
        flag="--weights",
    )
    device: str = option(
        "auto",
        "Train on: auto (a GPU where torch sees one), cpu or cuda.",
        choices=("auto", "cpu", "cuda"),
        flag="--device",
    )
    compile: bool = option(
        False,
        "Compile the model by torch: a slower start, faster steps.",
        flag="--compile",
    )
    cuda_graph: str = option(
        "auto",
        "Launch each step on a GPU as one CUDA graph: auto, where that can be; on, or refuse to begin; off, one "
        "operation at a time.",
        choices=("auto", "on", "off"),
        flag="--cuda-graph",
    )
    gradient_exchange: str = option(
        "fp32",
        "What several processes send each other their gradients in: fp32, or bf16 for half the bytes, of 8 bits each.",
        choices=("fp32", "bf16"),
        flag="--gradient-exchange",
    )
    deterministic: bool = option(
        False,
        "Compute the same bits each time on a GPU too, more slowly; on a CPU it is so anyway.",
        flag="--deterministic",
    )
    backend: str = option(
        "auto",
        "What augments faces: opencv, on the CPU; kornia, on the device; triton, on CUDA, by fused kernels; auto, the "
        "fastest there.",
        choices=("auto", "opencv", "kornia", "triton"),
        flag="--backend",
        former={"torch": "kornia", "device": "kornia"},
    )
    lr_finder: bool = option(
        False,
        "Look for a learning rate first, once per model, and train at it instead of --learning-rate; what was found is "
        "kept in MODEL/lr_finder.json, the curve in lr_finder.png (--lr-finder-mode).",
        flag="-r/--lr-finder",
    )
    skip_bad: bool = option(False, "Leave bad files out instead of stopping.", flag="--skip-bad")
    skip: list[str] = option(
        [],
        "Lists of faces to leave out of both sides, as `swapfast inspect --skip-list` writes them; or of file names.",
        flag="--skip",
        metavar="FILE",
    )
    cache: str = option(
        "auto",
        "Where decoded faces are kept: gpu, in its memory; host, in a mapped file that the next run reuses; off, "
        "nowhere; auto, the first of these that has room.",
        choices=("auto", "gpu", "host", "off"),
        flag="--cache",
        former={"device": "gpu"},
    )
    cache_dir: str = option(
        "", "Folder of that file, shared by models; by default MODEL/cache.", flag="--cache-dir", metavar="DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quiet and self.json:
            raise SwapfastError("--quiet with --json: one prints nothing, the other one object a line; leave one out")
        if bool(self.timelapse_input_a) != bool(self.timelapse_input_b):
            flags = ("--timelapse-input-A", "--timelapse-input-B")
            present, missing = flags if self.timelapse_input_a else flags[::-1]
            raise SwapfastError(
                f"{present} {self.timelapse_input_a or self.timelapse_input_b}: give {missing} too, or neither for "
                "the faces of the preview"
            )

    @property
    def inputs(self) -> tuple[Path, Path]:
        """The folders of the faces of A and B."""
        return Path(self.input_a), Path(self.input_b)

    @property
    def skip_lists(self) -> tuple[Path, ...]:
        """The lists of faces to leave out. Raises SwapfastError for what no file can be called."""
        for path in self.skip:
            check_path(path, "--skip")
        return tuple(map(Path, self.skip))

    @property
    def model_folder(self) -> Path:
        """The folder of the model."""
        return Path(self.model_dir)

    @property
    def cache_folder(self) -> Path:
        """The folder of decoded faces, by default beside the model."""
        return Path(self.cache_dir) if self.cache_dir else self.model_folder / "cache"

    @property
    def timelapse_folder(self) -> Path | None:
        """The folder of a picture for every save, or None where none is to be made."""
        if self.timelapse_output not in ("", "auto"):
            return Path(self.timelapse_output)
        return self.model_folder / "timelapse" if self.timelapse_output or self.timelapse_inputs else None

    @property
    def timelapse_inputs(self) -> tuple[Path, ...]:
        """The folders of the faces on those pictures; none for the faces of the preview."""
        folders = (self.timelapse_input_a, self.timelapse_input_b)
        return tuple(Path(folder) for folder in folders if folder)

    @property
    def time_limit_s(self) -> int | None:
        """The time after which to stop, s, or None."""
        return parse_duration(self.max_time) if self.max_time else None


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


# DeepFaceLab's crops as ours. They differ from it by 1 to 2 % of the edge, head by 4 %: its own follows the yaw.
FACE_TYPES = {
    "f": CropConfig(centering="legacy", coverage=90),
    "wf": CropConfig(centering="face", coverage=90, vertical_offset=-7.5),
    "mf": CropConfig(centering="legacy", coverage=70),
    "h": CropConfig(centering="legacy", coverage=62.5),
    "head": CropConfig(centering="head", coverage=90, vertical_offset=25),
}


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
    flip_sides: list[str] = option(
        ["a", "b"], "The sides whose faces are mirrored by chance.", choices=("a", "b"), flag="--flip-sides"
    )
    flip_chance: float = option(50.0, "Chance that a face is mirrored, percent.", 0.0, 75.0)
    exchange_light: str = option(
        "off",
        "Show each side's faces in the light of both, as the whites of the eyes tell it: auto does where the sides are "
        "lit differently, always whatever the difference, off never. A swap then has the light of the frame it is put "
        "into.",
        choices=("off", "auto", "always"),
        flag="--exchange-light",
    )
    color_chance: float = option(
        100.0,
        "Chance that a face's colours are augmented, percent. Below 100 a model with one code for both people learns "
        "where codes of faces in their own colours lie, and its swaps have B's own colours.",
        1.0,
        100.0,
    )
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
    cycle_weight: float = option(
        0.0,
        "Weight of the loss of each face after it was swapped to the other side and back, percent: it teaches the "
        "encoder to code both people alike. An iteration takes about twice as long. 0 for none.",
        0.0,
        MOST_WEIGHT,
        flag="--cycle-weight",
    )
    landmark_weight: float = option(
        0.0,
        "Weight of the loss with which each face's landmarks are read off its code by one linear layer for both "
        "people, percent: so a code means the same pose and expression to both decoders. 0 for none.",
        0.0,
        MOST_WEIGHT,
        flag="--landmark-weight",
    )
    learn_mask: bool = option(
        False,
        "Let the model predict the face mask as its last output.",
        fixed=True,
        flag="--learn-mask",
        shapes=True,
    )
    mask_loss_function: str = option("mse", "Loss of the predicted mask.", choices=("mse", "mae"))
    mask_loss_weight: float = option(100.0, "Its weight, percent.", 0.0, MOST_WEIGHT, flag="--mask-loss-weight")
    soft_mask: bool = option(
        False,
        "With the penalized mask: let the mask have a soft rim beyond the face, and cover the target and what the "
        "model makes with it, in place of the loss of each pixel.",
        flag="--soft-mask",
    )
    blur_out_mask: bool = option(
        False, "Blur what the target shows outside the face mask, close to it.", flag="--blur-out-mask"
    )
    eye_mouth_priority: float = option(
        0.0,
        "Add this many times the mean absolute difference within eyes and mouth; DeepFaceLab's is 300, 0 is none.",
        0.0,
        1000.0,
        flag="--eye-mouth-priority",
    )
    dssim_window: int = option(
        0,
        "Edge of the window of the loss dssim, px; 0 for an 11.6th of the size, and from 256 px on a 23.2nd beside it.",
        0,
        512,
        flag="--dssim-window",
    )
    reduction: str = option(
        "mean",
        "Which gradient is followed: of the mean over the faces of a step, or of their sum, as DeepFaceLab. It "
        "matters to what does not forget the scale: --clip and --epsilon-exponent.",
        choices=("mean", "sum"),
        flag="--loss-reduction",
    )
    lpips_weights: str = option(
        "", "Folder of the networks' weights that lpips_* need: see docs/losses.md.", metavar="DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights = self.weights or [100.0] * len(self.functions)
        if not 1 <= len(self.functions) <= 4 or len(self.weights) != len(self.functions):
            raise SwapfastError(
                f"--loss {_listed(self.functions)} with --loss-weights {_listed(self.weights)}: "
                "give one to four functions and one weight for each"
            )
        for weight in self.weights:
            if not 0 <= weight <= MOST_WEIGHT:
                raise SwapfastError(
                    f"--loss-weights {shortened(weight)}: must lie within 0 and {MOST_WEIGHT:.0f} percent"
                )


DEEPFACELABS_OPTIMIZERS = ("adabelief-dfl", "rms-prop-dfl")
OPTIMIZER_NAMES = (
    "adabelief",
    "adam",
    "adamax",
    "adamw",
    "lion",
    "muon",
    "nadam",
    "rms-prop",
    *DEEPFACELABS_OPTIMIZERS,
)


@dataclass(kw_only=True)
class OptimizerConfig(Config):
    """How the weights move. The peer's ``save_optimizer`` is not here: a run that resumes exactly needs its state."""

    optimizer: str = option(
        "adam",
        "adam, adamw and muon (fewer steps, each of them dearer the wider the model), which never wait for a GPU, or "
        "adabelief (with --epsilon-exponent -16), adamax, lion (with a tenth of adam's learning rate), nadam or "
        "rms-prop, which do once a step. adabelief-dfl and rms-prop-dfl are DeepFaceLab's own forms.",
        choices=OPTIMIZER_NAMES,
        fixed=True,
        flag="--optimizer",
    )
    learning_rate: float = option(5e-5, "Step size.", 1e-8, 1.0, flag="--learning-rate")
    warmup: int = option(
        0,
        "Steps of the weights over which the step size rises linearly, each of --accumulation iterations; 0 for none.",
        0,
        5000,
        flag="-a/--warmup",
    )
    schedule: str = option(
        "constant",
        "How the step size goes on behind the warm-up: constant; cosine, to nothing over all iterations (-i); linear, "
        "constant and then in a line to nothing over the last --decay-share of them, best for runs that may be "
        "prolonged; plateau, halved where the loss, that of --validation if there is one, stands still.",
        choices=("constant", "cosine", "linear", "plateau"),
        flag="--schedule",
    )
    decay_share: float = option(
        25.0, "Share of the iterations over which linear lets it fall, percent.", 1.0, 100.0, flag="--decay-share"
    )
    final_rate: float = option(
        0.0, "What cosine, linear and plateau let it fall to, percent of it.", 0.0, 100.0, flag="--final-learning-rate"
    )
    plateau_patience: int = option(
        5000,
        "Iterations without a lower loss after which plateau halves it.",
        10,
        10_000_000,
        flag="--plateau-patience",
    )
    epsilon_exponent: int = option(
        -7,
        "What keeps a division from being by zero is ten to this power; lion has none, DeepFaceLab's have -6.",
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
    lr_dropout: bool = option(
        False,
        "Move 30 percent of the entries of each weight at a step, drawn anew each time, by a rate that falls to "
        "nothing and rises again every 500 steps: for the end of a training.",
        flag="--lr-dropout",
    )
    ema: str = option(
        "off",
        "Keep averages of the weights beside them, which are then shown, measured and exported (--weights): off, or "
        "their half-lives in iterations, such as 500 or 500,4000, the first of which is taken unless told otherwise. "
        "Each takes as much memory as the weights.",
        flag="--ema",
        metavar="off|N[,N]",
        parse=_half_lives,
    )
    beta_1: float = option(0.9, "Decay of the gradient's mean; rms-prop has none.", 0.0, 0.9999)
    beta_2: float = option(
        0.999, "Decay of the squared gradient's mean; rms-prop has its own, 0.99, and rms-prop-dfl 0.9.", 0.0, 0.999999
    )
    amsgrad: bool = option(
        False, "Divide by the largest variance so far; adabelief, adam and adamw.", fixed=True, flag="--amsgrad"
    )

    @property
    def half_lives(self) -> tuple[int, ...]:
        """The half-lives of the weights' averages, in iterations; none for none."""
        return () if self.ema == "off" else tuple(map(int, self.ema.split(",")))

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


def _width(flag: str, most: int, help: str) -> int:
    """Return an option that gives a network its shape, 0 for what is usual."""
    return option(0, f"{help}; 0 for what is usual.", 0, most, fixed=True, flag=flag, shapes=True)


@dataclass(kw_only=True)
class ModelConfig(Config):
    """Which network is trained."""

    name: str = option(
        "original",
        "The model: original, lightweight, df or liae with letters such as liae-ud, or tiny (to try things out). "
        "`swapfast models` tells of each.",
        fixed=True,
        flag="-t/--trainer",
        shapes=True,
    )
    lowmem: bool = option(False, "original with a smaller encoder.", fixed=True, flag="--lowmem", shapes=True)
    input_size: int = _width("--input-size", 512, "Edge of the faces that the model takes and makes, px")
    bottleneck: str = option(
        "",
        "original: height, width and channels of the picture behind the dense layers, such as 8x8x512.",
        fixed=True,
        flag="--bottleneck",
        metavar="HxWxC",
        shapes=True,
    )
    encoder_width: int = _width("--encoder-width", 256, "original: channels of the encoder's first layer")
    dense: int = _width("--dense", 4096, "original: size of the layer between encoder and bottleneck")
    dropout: float = option(
        0.0,
        "original: share of the code, the values between its dense layers, that is zeroed in each step of the "
        "training; for models that do well on their own faces alone. 0 for none.",
        0.0,
        0.9,
        flag="--dropout",
    )
    ae_dims: int = _width("--ae-dims", 1024, "df and liae: channels of the bottleneck")
    e_dims: int = _width("--e-dims", 256, "df and liae: channels of the encoder's first layer")
    d_dims: int = _width("--d-dims", 256, "df and liae: half of the channels of the decoder's last layer")
    d_mask_dims: int = _width("--d-mask-dims", 256, "df and liae: the same of the branch that makes the mask")
    code: str = option(
        "plain",
        "How one code is made for both people: encoder normalises what each layer of the encoder makes by the side's "
        "own statistics, bottleneck the code alone, plain nothing.",
        choices=("encoder", "bottleneck", "plain"),
        fixed=True,
        flag="--code",
    )
    comparable_poses: str = option(
        "off",
        "Make the codes of both people alike, or exchange the means of plain ones, at the same yaw, pitch and open "
        "mouth, and not at what each side shows on average: a swap then looks where A does though B's pictures look up "
        "or down. auto: as far as two heads alone do not explain the difference; always: in full; off: not at all.",
        choices=("off", "auto", "always"),
        flag="--comparable-poses",
    )
    exchange_codes: bool = option(
        True,
        "Let the swap of a model with plain codes exchange the sides' mean codes, and of others those of faces in "
        "their own colours.",
        flag="--no-code-exchange",
    )
    freeze: list[str] = option(
        [],
        "Parts that are not trained: encoder, decoder_a, decoder_b (of liae inter_a, inter_both, decoder_shared), or "
        "none; without a value the encoder.",
        choices=("encoder", "decoder_a", "decoder_b", "inter_a", "inter_both", "decoder_shared"),
        flag="-f/--freeze-weights",
        bare=["encoder"],
    )


@dataclass(kw_only=True)
class PreviewConfig(Config):
    """How preview.png looks, and how many of it are kept."""

    images: int = option(14, "Faces per side in the preview.", 1, 256, flag="--preview-images")
    mask_opacity: int = option(
        30, "How strongly what lies outside the mask is tinted, percent.", 0, 100, flag="--mask-opacity"
    )
    mask_color: str = option("#ff0000", "The tint, as #rrggbb.", flag="--mask-color")
    history: int = option(
        100,
        "Previews that are kept in MODEL/preview_history, spread evenly over the iterations so far; 0 for none.",
        0,
        10_000,
        flag="--preview-history",
    )


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
    test: float = option(
        0.0,
        "Share of each side's faces, others than those of --validation, that the run never sees, 0 to 0.5: for "
        "`swapfast evaluate --test`, when the model is done.",
        0.0,
        0.5,
        fixed=True,
        flag="--test",
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
        "What the model computes in: auto (bf16 on a GPU that has it, else fp32), fp32 (no TF32 in it), bf16, or fp16 "
        "with a scaled loss. The weights are kept in fp32.",
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
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_finder: LearningRateFinderConfig = field(default_factory=LearningRateFinderConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)

    def checkpoint_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the settings of the model, without ``run``."""
        values = self.to_dict()
        del values["run"]
        return values


def updated(config: TrainConfig, changes: Mapping[str, object], source: str = "--set") -> TrainConfig:
    """Return a copy with some settings changed, by their dotted names ('loss.eye_multiplier')."""
    values = config.to_dict()
    by_name = settings(config)
    for name, value in changes.items():
        if name not in by_name:
            raise unknown_name(f"setting in {source}", name, by_name)
        *parts, last = name.split(".")
        table: dict[str, Any] = values
        for part in parts:
            table = table[part]
        table[last] = value
    return TrainConfig.from_dict(values)
