"""What makes a swap better? Recipes on pairs of drawn people, measured against the true swap while they train.

    python -m benchmarks.learning --pairs choose --recipes plain adam-1e-3 --iterations 4000 --seeds 3 --out DIR
    python -m benchmarks.learning --out DIR --report            # plots, tables and sheets of what is there

A recipe is settings of the program (RECIPES, or NAME:setting=value,setting=value for one more), trained by the
program's own loader and trainer. Pairs to choose by and pairs to report (people.py) are different people; of each pair
the faces trained on, those held out and the true swaps have seeds of their own. What is measured is opened from the
checkpoint, as a user opens it, so that nothing is disturbed and averaged weights or statistics count as they would.

Each run has a folder OUT/runs/PAIR/RECIPE/ITERATIONS-SEED and a JSON file beside it, written whole after each
measurement. The same command goes on where it was cut off, and leaves alone what is done. Figures of a row:
    step, seconds, cpu_seconds    of training alone; the second does not count what else the machine does
    swap_psnr ... color_error     against the true swap, as ``swapfast evaluate --truth`` says
    landmark_error                of the swap to the true swap, percent of the eyes' distance, and ..._floor, the same
                                  of the true picture itself: what the network that finds landmarks gets wrong
    pose_error                    mean of yaw and pitch, degrees, and pose_error_floor
    yaw_turn, pitch_turn          degrees that swaps are turned too far to the right or down on average, see turned.py
    expression_error              mean of mouth, smile, brows, 0..1, and expression_error_floor
    signs                         what can be told without the truth, see signs.py; auc and distance
                                  among them say how well the sides are told apart by their codes
    faces                         each pair's own swap_psnr, matched, landmark error
    other_weights                 the first figures with the other weights that the checkpoint keeps (--ema, raw)
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common import ROOT, environment, save
from benchmarks.landmark_net import LandmarkNet, landmark_errors, landmark_net
from benchmarks.people import AMOUNTS, COUNTS, PAIRS, SETS, Pair, draw_pair
from benchmarks.signs import signs
from benchmarks.turned import TurnedPictures, draw_turned
from pipelines.run.build import build_trainer
from pipelines.run.light import STATE as LIGHT
from pipelines.run.plan import plan_run
from pipelines.run.request import TrainRequest
from pipelines.side_light import SideLight
from pipelines.sides import no_log
from swapfast.batch import SIDES
from swapfast.checkpoints.averages import average_name
from swapfast.checkpoints.trained import OpenedModel, open_model
from swapfast.config import TrainConfig
from swapfast.errors import SwapfastError, unknown_name
from swapfast.faces.crop import crop_face, crop_landmarks, crop_matrix, shrink
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.models import FaceAutoencoder, build_model, lightweight, original
from swapfast.models.side_statistics import Rows, SideStatistics, normalised
from swapfast.options import settings as settings_of
from swapfast.points import transform_points
from swapfast.sources import choose
from swapfast.stop import StopRequest
from swapfast.swap.apply import swap_faces
from swapfast.swap.evaluate import TruePairs, face_mask_for, read_pairs, true_records
from swapfast.swap.figures import each_distance
from swapfast.swap.quality import SideFaces
from swapfast.training.progress import ProgressLine

FORMAT = 1  # of the JSON files
SHEET_FACES = 8  # of each run, kept for the sheets

TINY = {"model.name": "tiny", "batch_size": 16}
PLAIN: dict[str, object] = {"run.recipe": "faceswap"}  # what each but the model's own changes
CONTROL = "control"  # a setting of this benchmark alone: statistics over both sides together
NARROWER = "narrower"  # likewise: how many times narrower original and lightweight are where no setting says it
BENCHMARK_SETTINGS = (CONTROL, NARROWER)
KNOWN = [*settings_of(TrainConfig()), *BENCHMARK_SETTINGS]
NARROW_ORIGINAL = {
    "model.name": "original",
    NARROWER: 4,
    "model.encoder_width": 32,
    "model.dense": 256,
    "model.bottleneck": "4x4x256",
    "batch_size": 8,
    "optimizer.learning_rate": 4e-4,
}
NARROW_LIGHTWEIGHT = {
    "model.name": "lightweight",
    NARROWER: 4,
    "batch_size": 8,
    "optimizer.learning_rate": 4e-4,
}
# df and liae of 64 px.
NARROW_DIMS = {
    "model.input_size": 64,
    "model.ae_dims": 64,
    "model.e_dims": 16,
    "model.d_dims": 16,
    "batch_size": 8,
    "optimizer.learning_rate": 1e-3,
}
NARROW_DF = {"model.name": "df", **NARROW_DIMS}
NARROW_LIAE = {"model.name": "liae", **NARROW_DIMS}
# Plain codes, whose means swaps exchange at the same pose.
EXCHANGED = {**PLAIN, "model.exchange_codes": True, "model.comparable_poses": "auto"}
RECIPES: dict[str, dict[str, object]] = {
    "own": {"run.recipe": "own"},
    "faceswap": PLAIN,
    **{f"adam-{rate}": {**PLAIN, "optimizer.learning_rate": float(rate)} for rate in ("3e-4", "1e-3", "2e-3", "4e-3")},
    "bottleneck": {**PLAIN, "optimizer.learning_rate": 1e-3, "model.code": "bottleneck"},
    "encoder": {**PLAIN, "optimizer.learning_rate": 1e-3, "model.code": "encoder"},
    "together-control": {**PLAIN, "optimizer.learning_rate": 1e-3, "model.code": "encoder", CONTROL: True},
    "own-control": {"run.recipe": "own", CONTROL: True},
    "own-plain-code": {"run.recipe": "own", "model.code": "plain", "loss.cycle_weight": 0.0},
    "own-without-cycle": {"run.recipe": "own", "loss.cycle_weight": 0.0},
    "own-without-landmarks": {"run.recipe": "own", "loss.landmark_weight": 0.0},
    "own-without-poses": {"run.recipe": "own", "model.comparable_poses": "off"},
    "own-without-light": {"run.recipe": "own", "augmentation.exchange_light": "off"},
    "own-adam": {"run.recipe": "own", "optimizer.optimizer": "adam"},
    "own-color": {"run.recipe": "own", "augmentation.color": True},
    "narrow-original": {"run.recipe": "own", **NARROW_ORIGINAL},
    "narrow-original-faceswap": {**PLAIN, **NARROW_ORIGINAL},
    "narrow-original-one-code": {"run.recipe": "one-code", **NARROW_ORIGINAL},
    "narrow-original-exchanged": {**EXCHANGED, **NARROW_ORIGINAL},
    "narrow-lightweight": {"run.recipe": "own", **NARROW_LIGHTWEIGHT},
    "narrow-lightweight-faceswap": {**PLAIN, **NARROW_LIGHTWEIGHT},
    "narrow-lightweight-one-code": {"run.recipe": "one-code", **NARROW_LIGHTWEIGHT},
    "narrow-lightweight-exchanged": {**EXCHANGED, **NARROW_LIGHTWEIGHT},
    "narrow-df": {"run.recipe": "own", **NARROW_DF},
    "narrow-df-faceswap": {**PLAIN, **NARROW_DF},
    "narrow-liae": {"run.recipe": "own", **NARROW_LIAE},
    "narrow-liae-faceswap": {**PLAIN, **NARROW_LIAE},
    "averaged": {**PLAIN, "optimizer.learning_rate": 1e-3, "optimizer.ema": "500"},
    "linear": {**PLAIN, "optimizer.learning_rate": 2e-3, "optimizer.schedule": "linear"},
    "together": {
        **PLAIN,
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "linear",
        "optimizer.ema": "500",
        "model.code": "encoder",
    },
}


class StatisticsOfBoth(SideStatistics):
    """The control of ``--code encoder``: one pair of statistics for both people, as batch normalisation has it."""

    def forward(self, features: Tensor, rows: Sequence[Rows]) -> Tensor:
        """Return the features normalised by the whole batch's statistics, which are each side's."""
        if not self.training:
            return super().forward(features, rows)
        made = any(part.are_swaps for part in rows)
        result, sums, number = normalised(features)
        for side in () if made else SIDES:
            self._add(side, sums, number)
        return result


def use_control(model: FaceAutoencoder) -> None:
    """Let a model that normalises its code by each side's statistics do so by both sides' together."""
    for statistics in model.statistics.values():
        statistics.__class__ = StatisticsOfBoth


@contextlib.contextmanager
def narrower_networks(times: int) -> Iterator[None]:
    """Divide the widths of ``original`` and ``lightweight`` that no setting makes narrower, while the block runs."""
    whole_lightweight = ("ENCODER_WIDTHS", "DENSE", "BOTTLENECK_WIDTH", "CODE_CHANNELS", "UP_WIDTHS")
    named = [(original, ("CODE_CHANNELS", "UP_WIDTHS")), (lightweight, whole_lightweight)]
    whole = [(module, name, getattr(module, name)) for module, names in named for name in names]
    try:
        for module, name, value in whole:
            narrow = value // times if isinstance(value, int) else tuple(width // times for width in value)
            setattr(module, name, narrow)
        yield
    finally:
        for module, name, value in whole:
            setattr(module, name, value)


def recipe_of(text: str) -> tuple[str, dict[str, object]]:
    """Return the name and the settings of a recipe: a name in RECIPES, or NAME:setting=value,...

    The latter changes the recipe NAME where there is one, and otherwise what the program brings along for the model.
    Values are JSON, or text where they are none. Raises SwapfastError for a name that is not there.
    """
    name, _, more = text.partition(":")
    if name not in RECIPES and not more:
        raise SwapfastError(f"--recipes {text}: there are {', '.join(RECIPES)}; or give NAME:setting=value,...")
    settings = dict(RECIPES.get(name, {}))
    for part in filter(None, more.split(",")):
        setting, equals, value = part.partition("=")
        if not equals:
            raise SwapfastError(f"--recipes {text}: {part} is no setting=value")
        if setting not in KNOWN:
            raise unknown_name("setting in --recipes", setting, KNOWN)
        try:
            settings[setting] = json.loads(value)
        except ValueError:
            settings[setting] = value
    label = name if not more or name not in RECIPES else f"{name}+{more}".replace("/", "-")
    return label, settings


def measured_steps(iterations: int) -> list[int]:
    """Return when to measure: 250, then twice a doubling, and the last iteration."""
    steps = {iterations}
    step = 250
    while step < iterations:
        steps |= {step, step + step // 2}
        step *= 2
    return sorted(step for step in steps if step <= iterations)


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Everything that models of one pair are measured on, decoded once.

    held_out: A's and B's faces that are never trained on. landmarks: (n, 68, 2) of the true B in px of 64. amounts: (n,
    AMOUNTS), see people.py. net: finds them, None where they are not measured. floor: what it gets wrong on the true
    pictures themselves. turned: the true B at other angles.
    """

    pairs: TruePairs
    held_out: tuple[SideFaces, SideFaces]
    landmarks: np.ndarray
    amounts: np.ndarray
    net: LandmarkNet | None = None
    floor: dict[str, float] = field(default_factory=dict)
    turned: TurnedPictures | None = None

    def positions(self, images: np.ndarray) -> tuple[dict[str, float], list[float]]:
        """Return the errors of landmarks, pose and expression of images in 0..1 BGR, and each image's of landmarks."""
        if self.net is None:
            return {}, []
        found = self.net.find(images)
        apart = np.abs(found.amounts - self.amounts)
        columns = {name: apart[:, AMOUNTS.index(name)] for name in AMOUNTS}
        errors = landmark_errors(found.landmarks, self.landmarks)
        means = {
            "landmark_error": float(errors.mean()),
            "pose_error": float(np.degrees((columns["yaw"] + columns["pitch"]) / 2).mean()),
            "expression_error": float(np.mean([columns[name].mean() for name in ("mouth_open", "smile", "brows")])),
        }
        return means, errors.round(3).tolist()


def read_side(folder: Path, config: TrainConfig, input_size: int, size: int) -> SideFaces:
    """Return the faces of a folder as ``signs`` takes them."""
    inputs, faces, masks, points = [], [], [], []
    for record in scan_folder(folder).records:
        crop = crop_face(record, read_image(record.path), config.crop, max(input_size, size))
        inputs.append(shrink(crop, input_size))
        faces.append(shrink(crop, size))
        masks.append(face_mask_for(record, record, config, size))
        points.append((crop_landmarks(record, config.crop, size) + 0.5) / size)
    pixels = np.stack(inputs).transpose(0, 3, 1, 2).astype(np.float32) / 255
    faces_01 = np.stack(faces).astype(np.float32) / 255
    return SideFaces(np.ascontiguousarray(pixels), faces_01, np.stack(masks) / 255, np.stack(points))


def read_bench(
    folder: Path,
    config: TrainConfig,
    input_size: int,
    size: int,
    with_landmarks: bool = True,
    pair: Pair | None = None,
) -> Bench:
    """Return what the models of a pair are measured on. folder: of ``draw_pair``. pair: given where turns count too."""
    records = true_records(folder / "truth")
    landmarks = [transform_points(crop_matrix(a, config.crop, 64), b.landmarks) for a, b in records]
    known = json.loads((folder / "amounts.json").read_text(encoding="utf-8"))
    bench = Bench(
        read_pairs(folder / "truth", config, input_size, size),
        (
            read_side(folder / "held_out" / "a", config, input_size, size),
            read_side(folder / "held_out" / "b", config, input_size, size),
        ),
        np.stack(landmarks),
        np.array(known["truth"]),
        landmark_net(folder) if with_landmarks else None,
        turned=None if pair is None else draw_turned(pair, folder, config, size, len(records)),
    )
    floor, _ = bench.positions(bench.pairs.true_b)
    return dataclasses.replace(bench, floor={f"{name}_floor": value for name, value in floor.items()})


def measure(opened: OpenedModel, bench: Bench) -> tuple[dict, np.ndarray]:
    """Return a model's figures, and its swaps of the true pairs, (n, H, W, 3) in 0..1 BGR."""
    model, _, metadata = opened
    evaluation = bench.pairs.measure(model, metadata.mean_faces["b"])
    swaps = swap_faces(model, bench.pairs.inputs_a, "b")[..., :3]
    positions, landmark_error = bench.positions(swaps)
    each = each_distance(swaps, bench.pairs.true_b, bench.pairs.masks)
    faces = {name: each[name].round(3).tolist() for name in ("psnr", "psnr_matched", "color_error")}
    faces["landmark_error"] = landmark_error
    turns = {} if bench.turned is None else bench.turned.turns(swaps)
    figures = {**positions, **bench.floor, **turns}
    ratio = metadata.state.get(LIGHT)
    light = (1.0, 1.0, 1.0) if ratio is None else tuple(SideLight(tuple(ratio)).b_as_a().tolist())
    row = {
        **evaluation.to_dict(),
        **{name: round(value, 5) for name, value in figures.items()},
        "signs": {name: round(value, 5) for name, value in signs(model, *bench.held_out, light).items()},
        "faces": faces,
    }
    return row, swaps


def other_weights(folder: Path, step: int, opened: OpenedModel, bench: Bench) -> dict:
    """Return the figures with the checkpoint's other weights than those that were opened, by their name."""
    averages = [average_name(half_life) for half_life in opened.config.optimizer.half_lives]
    names = [name for name in ("raw", *averages) if name != opened.metadata.weights]
    if not averages:
        return {}
    others = {name: open_model(folder, step, weights=name) for name in names}
    figures = {
        name: bench.pairs.measure(other.model, other.metadata.mean_faces["b"]).to_dict()
        for name, other in others.items()
    }
    return {"weights": opened.metadata.weights, "other_weights": figures}


# --- a run ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunOf:
    """One training: a recipe on a pair with a seed.

    set: the pair's, 'choose' or 'report'. recipe: its name. settings: what it sets.
    """

    pair: Pair
    set: str
    recipe: str
    settings: dict[str, object]
    seed: int
    iterations: int
    out: Path
    at: tuple[int, ...] = ()  # when to measure, and always at the end

    @property
    def steps(self) -> list[int]:
        """Return when to measure."""
        if not self.at:
            return measured_steps(self.iterations)
        return sorted({*(step for step in self.at if step < self.iterations), self.iterations})

    @property
    def folder(self) -> Path:
        """Return the folder of its model; its JSON lies beside it."""
        return self.out / "runs" / self.pair.name / self.recipe / f"{self.iterations}-{self.seed}"

    @property
    def json(self) -> Path:
        """Return the file of its figures."""
        return self.folder.with_name(f"{self.folder.name}.json")

    def about(self) -> dict:
        """Return what must be the same for a run to go on."""
        return {
            "format": FORMAT,
            "pair": self.pair.name,
            "set": self.set,
            "balanced": self.pair.is_balanced,
            "about": self.pair.about,
            "recipe": self.recipe,
            "settings": self.settings,
            "seed": self.seed,
            "iterations": self.iterations,
        }

    def config(self, faces: Path) -> TrainConfig:
        """Return the settings of the program. faces: of ``draw_pair``."""
        given = {
            **TINY,
            **{name: value for name, value in self.settings.items() if name not in BENCHMARK_SETTINGS},
            "seed": self.seed,
            "run.input_a": str(faces / "train" / "a"),
            "run.input_b": str(faces / "train" / "b"),
            "run.model_dir": str(self.folder),
            "run.cache_dir": str(faces / "store"),
            "run.cache": "host",
            "run.device": "cpu",
            "run.backend": "opencv",
            "run.iterations": self.iterations,
            "run.save_interval": self.iterations,
            "run.snapshot_interval": 0,
            "run.logs": False,
        }
        return choose(given).config


def _write_json(path: Path, value: object) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(value) + "\n", encoding="utf-8")
    partial.replace(path)


def _read_rows(run: RunOf) -> list[dict]:
    """Return the rows of a run so far. Raises SwapfastError where its file is of other settings."""
    if not run.json.exists():
        return []
    stored = json.loads(run.json.read_text(encoding="utf-8"))
    for key, value in run.about().items():
        if json.loads(json.dumps(value)) != stored.get(key):
            raise SwapfastError(f"{run.json}: is of another {key} ({stored.get(key)}); give a new --out")
    return stored["rows"]


def _print(line: str) -> None:
    print(line, flush=True)


def train_and_measure(
    run: RunOf, bench: Bench, faces: Path, keep: bool = False, log: Callable[[str], None] = _print
) -> list[dict]:
    """Train a run to its end, or the rest of it, and measure it on the way; return its rows.

    keep: the weights of each measurement, beside the model. log: is told of each.
    """
    rows = _read_rows(run)
    if rows and rows[-1]["step"] >= run.iterations:
        return rows
    run.folder.mkdir(parents=True, exist_ok=True)
    plan = plan_run(TrainRequest(run.config(faces), {}))
    if run.settings.get(CONTROL):
        use_control(plan.model)
    rows = [row for row in rows if row["step"] <= plan.step]
    seconds, cpu_seconds = (rows[-1]["seconds"], rows[-1]["cpu_seconds"]) if rows else (0.0, 0.0)
    due = [step for step in run.steps if step > (rows[-1]["step"] if rows else 0)]
    with plan.checkpoints.locked():
        trainer = build_trainer(plan, StopRequest(), no_log)
        trainer.run.progress = ProgressLine(io.StringIO())
        for step in due:
            while trainer.step < step:
                start, cpu_start = time.perf_counter(), time.process_time()
                trainer.train_one_step()
                seconds += time.perf_counter() - start
                cpu_seconds += time.process_time() - cpu_start
            trainer.save()
            opened = open_model(run.folder, step)
            row, swaps = measure(opened, bench)
            row |= other_weights(run.folder, step, opened, bench)
            rows.append({"step": step, "seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2), **row})
            if keep:
                save_file(opened.model.state_dict(), run.folder / f"weights-{step:08d}.safetensors")
            sheet = np.rint(swaps[:SHEET_FACES].clip(0, 1) * 255).astype(np.uint8)
            cv2.imwrite(str(run.folder / f"swaps-{step:08d}.png"), np.hstack(list(sheet)))
            _write_json(run.json, {**run.about(), "environment": environment(), "rows": rows})
            log(f"{run.pair.name} {run.recipe} seed {run.seed}: {_line(rows[-1])}")
        close = getattr(trainer.batches, "close", None)
        if close is not None:
            close()
    return rows


def _line(row: dict) -> str:
    return (
        f"{row['step']:>6} it {row['step'] / max(row['cpu_seconds'], 1e-9):5.1f} it/cpu-s  "
        f"raw {row['swap_psnr']:.2f} ({row['mean_b_psnr']:.2f})  matched {row['swap_psnr_matched']:.2f} "
        f"({row['mean_b_psnr_matched']:.2f})  own crop {row.get('swap_psnr_own_crop', nan):.2f}/"
        f"{row.get('swap_psnr_matched_own_crop', nan):.2f} ({row.get('mean_b_psnr_own_crop', nan):.2f}/"
        f"{row.get('mean_b_psnr_matched_own_crop', nan):.2f})  colour {row['color_error']:.3f}  "
        f"landmarks {row.get('landmark_error', nan):.2f} % ({row.get('landmark_error_floor', nan):.2f})  "
        f"B>B {row['reconstruction_psnr']:.2f}  "
        f"AUC {row['signs']['auc']:.3f}, {row['signs']['distance']:.2f} apart"
    )


def single_thread() -> None:
    """Let torch, OpenCV and Numba of this process use one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"  # also tells the program not to look after torch's threads
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def chosen_pairs(names: Iterable[str]) -> list[tuple[str, Pair]]:
    """Return set and pair of each of ``names``, which are of sets or of pairs. Raises SwapfastError for others."""
    found: list[tuple[str, Pair]] = []
    for name in names:
        if name in SETS:
            found += [(name, pair) for pair in SETS[name]]
        elif name in PAIRS:
            found += [(kind, pair) for kind, pairs in SETS.items() for pair in pairs if pair.name == name]
        else:
            raise SwapfastError(f"--pairs {name}: there are choose, report, {', '.join(PAIRS)}")
    return found


def _runs(arguments: argparse.Namespace) -> list[RunOf]:
    """Return all runs, the seeds outermost, so that every pair and recipe has one before any has two."""
    recipes = [recipe_of(text) for text in arguments.recipes]
    return [
        RunOf(pair, kind, recipe, settings, seed, arguments.iterations, arguments.out, tuple(arguments.at))
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        for kind, pair in chosen_pairs(arguments.pairs)
        for recipe, settings in recipes
    ]


def main(texts: list[str] | None = None) -> int:
    """Train, measure and report, as the arguments say; return the exit code."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "--pairs", nargs="+", default=["choose"], metavar="NAME", help="choose, report, or names of pairs"
    )
    flags.add_argument("--recipes", nargs="+", default=[], metavar="NAME[:SETTING=VALUE,...]", help=", ".join(RECIPES))
    flags.add_argument("--iterations", type=int, default=4000, help="of each run; default 4000")
    flags.add_argument("--seeds", type=int, default=1, help="how many of each run; default 1")
    flags.add_argument("--first-seed", type=int, default=1, help="the seeds are counted from here; default 1")
    flags.add_argument("--at", type=int, nargs="+", default=[], help="when to measure; by default ever more seldom")
    flags.add_argument("--out", type=Path, required=True, metavar="DIR", help="where figures and models go")
    flags.add_argument(
        "--cache", type=Path, default=ROOT / ".learning", metavar="DIR", help="where drawn faces are kept"
    )
    flags.add_argument("--threads", type=int, choices=(1,), help="train with one thread")
    flags.add_argument(
        "--faces", type=int, nargs=3, default=COUNTS, metavar="N", help=f"trained on, held out, true pairs; {COUNTS}"
    )
    flags.add_argument("--workers", type=int, default=1, help="processes that draw faces")
    flags.add_argument("--no-landmarks", action="store_true", help="measure no landmarks, pose and expression")
    flags.add_argument("--keep", action="store_true", help="keep the weights of every measurement")
    flags.add_argument("--drop-models", action="store_true", help="remove the model of a run that is done")
    flags.add_argument("--report", action="store_true", help="draw plots, tables and sheets of all runs in --out")
    flags.add_argument(
        "--json", type=Path, metavar="FILE", help="all runs in --out in one file, as results/ keeps them"
    )
    arguments = flags.parse_args(texts)
    if arguments.iterations < 1 or min(arguments.faces) < 2:
        flags.error("--iterations and --seeds are at least 1, --faces at least 2")
    if arguments.threads == 1:
        single_thread()
    environment()
    try:
        arguments.cache.mkdir(parents=True, exist_ok=True)
        benches: dict[tuple, Bench] = {}
        for run in _runs(arguments):
            faces = draw_pair(run.pair, arguments.cache, tuple(arguments.faces), arguments.workers)
            with narrower_networks(int(str(run.settings.get(NARROWER, 1)))):
                train_pair(run, faces, benches, arguments)
        if arguments.report:
            from benchmarks.learning_report import report

            report(arguments.out, arguments.cache, tuple(arguments.faces))
        if arguments.json:
            from benchmarks.learning_report import kept_runs

            save(kept_runs(arguments.out), arguments.json)
    except SwapfastError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


def train_pair(run: RunOf, faces: Path, benches: dict[tuple, Bench], arguments: argparse.Namespace) -> None:
    """Train and measure one run. benches: of earlier runs; a pair is read once for all runs of the same sizes."""
    config = run.config(faces)
    model = build_model(config.model, config.loss.learn_mask, config.seed)
    sizes = model.input_size, model.output_sizes[-1]
    key = (faces, json.dumps([config.crop.to_dict(), config.mask.to_dict()]), *sizes)
    if key not in benches:
        has_poses = not arguments.no_landmarks
        benches[key] = read_bench(faces, config, *sizes, has_poses, run.pair if has_poses else None)
    train_and_measure(run, benches[key], faces, arguments.keep)
    if arguments.drop_models:
        for path in run.folder.glob("*"):
            if path.is_dir():
                shutil.rmtree(path)


if __name__ == "__main__":
    sys.exit(main())
