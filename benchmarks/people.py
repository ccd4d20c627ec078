"""Pairs of drawn people that recipes are tried on: from easy to hard, some with other poses or light on one side.

Pairs to choose by and pairs to report are different people. Of each pair the faces trained on, those held out and the
true swaps are drawn from seeds of their own. The true swaps show what the footage of A shows, since it is A's footage
that a swap is made of.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import cv2
import numpy as np

from swapfast.synthetic import Expression, Identity, Pose, RenderedFace, Scene, Shape, draw_person, draw_scene, render
from swapfast.synthetic.scene import LIGHT_LIMIT, YAW_LIMIT

SIZE = 128  # px of the pictures
COUNTS = (200, 48, 30)  # of faces a side that are trained on and held out, and of true pairs
SPLITS = {"train/a": 0, "train/b": 1, "held_out/a": 2, "held_out/b": 3, "truth": 4}  # the stream of each
VERSION = 1  # of what is drawn: another one draws anew


@dataclass(frozen=True)
class Traits:
    """What a person looks like; whatever is not given is drawn. skin: 0 (pale) to 1 (deep), see ``skin_tone``."""

    skin: float
    man: bool
    cut: str
    age: float = 0.0
    beard: float = 0.0
    stubble: float = 0.0
    glasses: float = 0.0
    makeup: float = 0.0
    freckles: float = 0.0


@dataclass(frozen=True)
class Footage:
    """What the pictures of a person show.

    yaw: rad, from and to. pitch: rad that they look further down than usual. azimuth: of the light in degrees, from and
    to. strength, ambient, warmth: what the light is multiplied by, and how much warmer it is. talks: share of the
    pictures that keep an open or smiling mouth.
    """

    yaw: tuple[float, float] = (-YAW_LIMIT, YAW_LIMIT)
    pitch: float = 0.0
    azimuth: tuple[float, float] = (-LIGHT_LIMIT, LIGHT_LIMIT)
    strength: float = 1.0
    ambient: float = 1.0
    warmth: float = 0.0
    talks: float = 1.0

    def draw(self, rng: np.random.Generator) -> Scene:
        """Return a scene of this footage."""
        scene = draw_scene(rng)

        def moved(value: float, limit: float, span: tuple[float, float]) -> float:
            return span[0] + (value + limit) / (2 * limit) * (span[1] - span[0])

        yaw = moved(scene.pose.yaw, YAW_LIMIT, self.yaw)
        pose = replace(scene.pose, yaw=yaw, pitch=scene.pose.pitch + self.pitch)
        light = replace(
            scene.light,
            azimuth=moved(scene.light.azimuth, LIGHT_LIMIT, self.azimuth),
            strength=scene.light.strength * self.strength,
            ambient=scene.light.ambient * self.ambient,
            warmth=scene.light.warmth + self.warmth,
        )
        expression = scene.expression
        if rng.random() > self.talks:
            expression = replace(expression, mouth_open=0.0, smile=min(expression.smile, 0.1))
        return replace(scene, pose=pose, light=light, expression=expression)


@dataclass(frozen=True)
class Pair:
    """Two people, A who is replaced by B, and their footage.

    seed: everything that is drawn follows from it. alike: how near their shapes are, 0 (on opposite sides of the
    average in every trait) to 1 (equal).
    """

    name: str
    seed: int
    a: Traits
    b: Traits
    about: str
    alike: float = 0.0
    footage_a: Footage = field(default_factory=Footage)
    footage_b: Footage = field(default_factory=Footage)

    @property
    def is_balanced(self) -> bool:
        """Return whether both sides show the same poses, light and expressions."""
        return self.footage_a == self.footage_b

    def people(self) -> tuple[Identity, Identity]:
        """Return A and B."""
        rng = np.random.default_rng([self.seed, 99])
        count = len(fields(Shape))
        signs = rng.choice((-1.0, 1.0), count)
        first, second = rng.uniform(0.35, 1.0, (2, count))
        shapes = signs * first, (2 * self.alike - 1) * signs * second
        people = []
        for traits, shape in zip((self.a, self.b), shapes, strict=True):
            person = draw_person(rng, Shape(*shape.tolist()), traits.skin, traits.man, traits.cut)
            own = {f.name: getattr(traits, f.name) for f in fields(Traits) if f.name not in ("skin", "man", "cut")}
            people.append(replace(person, mole=None, **own))
        return people[0], people[1]

    def scene(self, split: str, index: int) -> Scene:
        """Return picture ``index`` of one of the SPLITS."""
        footage = self.footage_b if split.endswith("b") else self.footage_a
        return footage.draw(np.random.default_rng([self.seed, SPLITS[split], index]))


_DAY, _NIGHT = Footage(strength=1.1), Footage(strength=0.45, ambient=0.6, warmth=-1.5)
_LEFT, _RIGHT = Footage(yaw=(-YAW_LIMIT, 0.0)), Footage(yaw=(0.0, YAW_LIMIT))

CHOOSE = [
    Pair("deep_to_pale", 101, Traits(0.85, True, "crop"), Traits(0.10, False, "long", makeup=0.6), "hard: skin, sex"),
    Pair("beard", 102, Traits(0.30, True, "quiff", beard=0.9), Traits(0.35, True, "side part"), "A has a beard", 0.3),
    Pair(
        "glasses",
        103,
        Traits(0.20, False, "bob", makeup=0.3),
        Traits(0.45, True, "curls", glasses=1.0, stubble=0.6),
        "B wears glasses; sex",
    ),
    Pair("alike", 104, Traits(0.25, True, "crop"), Traits(0.32, True, "quiff", stubble=0.7), "easy", 0.6),
    Pair(
        "turned",
        105,
        Traits(0.15, False, "fringe", freckles=0.7),
        Traits(0.65, False, "bun", makeup=0.5),
        "A looks to the left, B to the right",
        0.2,
        _LEFT,
        _RIGHT,
    ),
    Pair(
        "day_night",
        106,
        Traits(0.55, True, "crop", age=0.7),
        Traits(0.18, True, "receding", age=0.3),
        "A by day, B by night; age",
        0.2,
        _DAY,
        _NIGHT,
    ),
    Pair(
        "raised",
        107,
        Traits(0.24, True, "curls", stubble=0.3),
        Traits(0.60, False, "bob", makeup=0.4),
        "A looks up, B down",
        0.2,
        Footage(pitch=-0.12),
        Footage(pitch=0.12),
    ),
    Pair(
        "still",
        109,
        Traits(0.4, True, "quiff", stubble=0.3),
        Traits(0.20, False, "bob", makeup=0.4),
        "A hardly turns, B does",
        0.2,
        Footage(yaw=(-0.1, 0.1)),
        Footage(),
    ),
]
REPORT = [
    Pair("pale_to_deep", 201, Traits(0.08, False, "wavy"), Traits(0.92, True, "crop", beard=0.6), "hard: skin, sex"),
    Pair(
        "old_to_young",
        202,
        Traits(0.22, True, "receding", age=1.0, glasses=1.0),
        Traits(0.48, False, "long", makeup=0.8),
        "age, sex; A wears glasses",
    ),
    Pair("sisters", 203, Traits(0.40, False, "bob"), Traits(0.46, False, "wavy", makeup=0.4), "easy", 0.7),
    Pair(
        "bearded",
        204,
        Traits(0.60, True, "curls", stubble=0.5),
        Traits(0.14, True, "side part", beard=1.0, freckles=0.4),
        "B has a beard",
        0.2,
    ),
    Pair(
        "turned_away",
        205,
        Traits(0.70, True, "quiff"),
        Traits(0.28, False, "bun", makeup=0.3),
        "A looks to the right, B to the left",
        0.1,
        Footage(yaw=(0.05, 0.45)),
        Footage(yaw=(-0.45, -0.05)),
    ),
    Pair(
        "night_day",
        206,
        Traits(0.12, False, "fringe", age=0.4),
        Traits(0.52, True, "side part", stubble=0.8),
        "A by night, B by day",
        0.2,
        _NIGHT,
        _DAY,
    ),
    Pair(
        "silent",
        207,
        Traits(0.35, True, "crop", stubble=0.4),
        Traits(0.75, False, "long", makeup=0.5),
        "A talks in light from the left, B is silent in light from the right",
        0.1,
        Footage(azimuth=(-60.0, 0.0)),
        Footage(azimuth=(0.0, 60.0), talks=0.25),
    ),
    Pair(
        "lowered",
        208,
        Traits(0.50, False, "fringe", makeup=0.3),
        Traits(0.20, True, "crop", age=0.4),
        "A looks down, B up",
        0.2,
        Footage(pitch=0.13),
        Footage(pitch=-0.13),
    ),
]
SETS = {"choose": CHOOSE, "report": REPORT}
PAIRS = {pair.name: pair for pairs in SETS.values() for pair in pairs}

# Of a scene, what a landmark detector may be asked about.
AMOUNTS = ("yaw", "pitch", "mouth_open", "smile", "brows", "blink")


def amounts(scene: Scene) -> list[float]:
    """Return the AMOUNTS of a scene: yaw and pitch in rad, the others as ``Expression`` has them."""
    pose: Pose = scene.pose
    face: Expression = scene.expression
    return [pose.yaw, pose.pitch, face.mouth_open, face.smile, face.brows, face.blink]


def _draw(pair: Pair, folder: Path, split: str, index: int) -> list[float]:
    scene = pair.scene(split, index)
    for name, person in zip("ab", pair.people(), strict=True):
        if split != "truth" and not split.endswith(name):
            continue
        path = folder / (f"truth/{name}" if split == "truth" else split) / f"{index:04d}.png"
        write_face(render(person, scene, SIZE), path)
    return amounts(scene)


def write_face(face: RenderedFace, path: Path) -> None:
    """Write a drawn picture of SIZE px, and its landmarks beside it."""
    cv2.imwrite(str(path), face.image)
    record = {"image": path.name, "size": SIZE, "landmarks": np.round(face.landmarks.astype(float), 2).tolist()}
    path.with_suffix(".json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def _start_worker() -> None:
    cv2.setNumThreads(1)


def draw_pair(pair: Pair, cache: Path, counts: tuple[int, int, int] = COUNTS, workers: int = 1) -> Path:
    """Draw the pair's faces into ``cache`` unless they are there; return their folder.

    It holds train/a, train/b, held_out/a, held_out/b, truth/a, truth/b, and amounts.json, by split the AMOUNTS of each
    picture. counts: of faces trained on and held out a side, and of true pairs.
    """
    folder = cache / f"{pair.name}-{pair.seed}-v{VERSION}-{'-'.join(map(str, counts))}"
    if (folder / "amounts.json").exists():
        return folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")  # another process may draw the same
    shutil.rmtree(partial, ignore_errors=True)
    for name in (*(split for split in SPLITS if split != "truth"), "truth/a", "truth/b"):
        (partial / name).mkdir(parents=True)
    trained, held_out, true = counts
    jobs = [
        (split, index)
        for split in SPLITS
        for index in range({"train": trained, "held_out": held_out, "truth": true}[split.split("/")[0]])
    ]
    draw = functools.partial(_draw, pair, partial)
    if workers > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
            drawn = list(pool.map(draw, *zip(*jobs), chunksize=8))
    else:
        drawn = [draw(*job) for job in jobs]
    by_split: dict[str, list[list[float]]] = {split: [] for split in SPLITS}
    for (split, _), values in zip(jobs, drawn, strict=True):
        by_split[split].append(values)
    (partial / "amounts.json").write_text(json.dumps(by_split), encoding="utf-8")
    try:
        partial.rename(folder)
    except OSError:  # the other one was first; both drew the same
        shutil.rmtree(partial)
    return folder


def draw_pairs(pairs: list[Pair], cache: Path, log: Callable[[str], None] = print, workers: int = 1) -> dict[str, Path]:
    """Draw all of ``pairs`` that are not in ``cache``; return their folders by name."""
    folders = {}
    for pair in pairs:
        folders[pair.name] = draw_pair(pair, cache, workers=workers)
        log(f"{pair.name}: {folders[pair.name]}")
    return folders
