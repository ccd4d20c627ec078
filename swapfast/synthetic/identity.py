"""Describes synthetic people by shape, colours and hair, drawn in pairs that cannot be confused."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .streams import IDENTITIES, generator

Colour = tuple[float, float, float]  # BGR, 0..1, as a screen shows it


@dataclass(frozen=True)
class Shape:
    """Shape traits, each in -1..1 relative to an average adult face."""

    face_width: float = 0.0
    jaw_square: float = 0.0
    chin_length: float = 0.0
    eye_gap: float = 0.0
    eye_size: float = 0.0
    eye_tilt: float = 0.0
    brow_height: float = 0.0
    brow_arch: float = 0.0
    brow_weight: float = 0.0
    nose_length: float = 0.0
    nose_width: float = 0.0
    nose_bridge: float = 0.0
    mouth_width: float = 0.0
    mouth_height: float = 0.0
    lip_fullness: float = 0.0
    cheekbones: float = 0.0
    ears: float = 0.0
    neck: float = 0.0


@dataclass(frozen=True)
class Hair:
    """A haircut.

    hairline: heights where hair begins (y down, eyes at 0, in eye distances) at the longitudes 0, 35, 55, 70, 82, 100
        and 180 degrees from the middle of the face.
    thickness: relative to the head's radius.
    curl: 0..1, turns strands into locks.
    part: -1..1, moves the parting sideways.
    length: of the hair behind: 0 none, 0.6 to the jaw, 1 to the shoulders.
    """

    hairline: tuple[float, ...]
    thickness: float
    curl: float = 0.0
    part: float = 0.0
    length: float = 0.0
    bun: bool = False


@dataclass(frozen=True)
class Identity:
    """One person. Colours are BGR in 0..1; amounts are in 0..1."""

    key: int  # seed of the person's fixed details: freckles, strands, single brow hairs
    shape: Shape
    skin: Colour
    hair_colour: Colour
    iris: Colour
    lips: Colour
    hair: Hair
    freckles: float = 0.0
    stubble: float = 0.0
    beard: float = 0.0
    makeup: float = 0.0
    blush: float = 0.0
    age: float = 0.0
    glasses: float = 0.0  # cover of the frames
    mole: tuple[float, float] | None = None  # position in the face plane, in eye distances


def _rgb(*values: int) -> Colour:
    red, green, blue = values
    return blue / 255, green / 255, red / 255


# Human skin from pale to deep, at these depths.
_SKIN_DEPTH = (0.0, 0.25, 0.5, 0.75, 1.0)
_SKIN_TONES = np.array(
    [_rgb(246, 216, 200), _rgb(232, 188, 160), _rgb(197, 145, 111), _rgb(143, 96, 70), _rgb(92, 60, 44)]
)

_LIGHT_HAIR = {
    "blond": _rgb(202, 164, 104),
    "ginger": _rgb(168, 84, 38),
    "chestnut": _rgb(104, 64, 38),
    "grey": _rgb(168, 164, 160),
    "dark brown": _rgb(62, 40, 28),
}
_DARK_HAIR = {"black": _rgb(26, 22, 22), "dark brown": _rgb(52, 34, 26), "salt and pepper": _rgb(96, 92, 90)}
_LIGHT_IRIS = (_rgb(74, 130, 178), _rgb(92, 140, 96), _rgb(120, 140, 150), _rgb(128, 90, 52))
_DARK_IRIS = (_rgb(84, 52, 30), _rgb(60, 38, 26), _rgb(112, 82, 44))

_SHORT_CUTS = {
    "crop": Hair((-1.12, -1.05, -0.72, -0.35, 0.20, 0.95, 1.35), thickness=0.09),
    "side part": Hair((-1.10, -1.00, -0.70, -0.30, 0.25, 1.0, 1.4), thickness=0.15, part=0.6),
    "quiff": Hair((-1.16, -1.06, -0.78, -0.45, 0.10, 0.9, 1.3), thickness=0.19, curl=0.25),
    "receding": Hair((-1.24, -1.34, -1.02, -0.45, 0.15, 0.95, 1.35), thickness=0.055),
    "curls": Hair((-1.08, -1.0, -0.78, -0.38, 0.15, 0.95, 1.35), thickness=0.21, curl=1.0),
}
_LONG_CUTS = {
    "long": Hair((-1.14, -1.02, -0.66, -0.05, 0.75, 1.5, 1.7), thickness=0.12, part=0.15, length=1.0),
    "fringe": Hair((-0.66, -0.64, -0.60, -0.05, 0.80, 1.5, 1.7), thickness=0.14, length=1.0),
    "wavy": Hair((-1.12, -0.98, -0.60, 0.0, 0.80, 1.5, 1.7), thickness=0.18, curl=0.6, part=-0.5, length=1.0),
    "bun": Hair((-1.12, -1.05, -0.76, -0.36, 0.08, 0.85, 1.2), thickness=0.075, bun=True),
    "bob": Hair((-1.02, -0.95, -0.64, -0.08, 0.70, 1.3, 1.5), thickness=0.17, part=0.7, length=0.55),
}


def _mixed(first: Colour, second: Colour, amount: float) -> Colour:
    blue, green, red = (float(a + (b - a) * amount) for a, b in zip(first, second, strict=True))
    return blue, green, red


def skin_tone(depth: float) -> Colour:
    """Return the skin colour at ``depth``, from 0 (pale) to 1 (deep)."""
    blue, green, red = (float(np.interp(depth, _SKIN_DEPTH, _SKIN_TONES[:, channel])) for channel in range(3))
    return blue, green, red


def _apart_shapes(rng: np.random.Generator) -> tuple[Shape, Shape]:
    """Return two shapes on opposite sides of the average in every trait, and clearly off it."""
    count = len(fields(Shape))
    signs = rng.choice((-1.0, 1.0), count)
    first, second = rng.uniform(0.35, 1.0, (2, count))
    return Shape(*(signs * first).tolist()), Shape(*(-signs * second).tolist())


def _marks(rng: np.random.Generator, masculine: bool, dark: bool) -> dict:
    """Return the marks on the skin, at most one strong feature of each kind, so that a person stays plausible."""
    marks: dict[str, float | tuple[float, float]] = {
        "blush": float(rng.uniform(0.1, 0.5)),
        "age": float(rng.uniform(0, 0.85) ** 2.5),
    }
    if masculine:
        growth = rng.choice(("none", "stubble", "beard"), p=(0.3, 0.4, 0.3))
        if growth != "none":
            marks[str(growth)] = float(rng.uniform(0.55, 1.0))
    else:
        marks["makeup"] = float(rng.uniform(0.15, 1.0))
    if not dark and rng.random() < 0.45:
        marks["freckles"] = float(rng.uniform(0.4, 1.0))
    if rng.random() < 0.4:
        side = rng.choice((-1.0, 1.0))
        marks["mole"] = (float(side * rng.uniform(0.4, 0.75)), float(rng.uniform(0.5, 1.2)))
    return marks


CUTS = _SHORT_CUTS | _LONG_CUTS


def draw_person(rng: np.random.Generator, shape: Shape, depth: float, masculine: bool, cut: str) -> Identity:
    """Return a person whose details are drawn. depth: of the skin, see ``skin_tone``. cut: a name in CUTS."""
    dark = depth > 0.42
    skin = skin_tone(depth)
    marks = _marks(rng, masculine, dark)
    hairs = _DARK_HAIR if dark else _LIGHT_HAIR
    grey = np.array(["grey" in name or "salt" in name for name in hairs])
    chances = np.where(grey, 0.1 + marks["age"], 1.0)
    hair_colour = hairs[str(rng.choice(list(hairs), p=chances / chances.sum()))]
    irises = _DARK_IRIS if dark else _LIGHT_IRIS
    lips = _mixed(skin, _rgb(176, 72, 78) if not dark else _rgb(140, 62, 66), 0.5)
    lips = _mixed(lips, _rgb(170, 34, 52), 0.65 * marks.get("makeup", 0.0))
    return Identity(
        key=int(rng.integers(2**63)),
        shape=shape,
        skin=skin,
        hair_colour=hair_colour,
        iris=irises[int(rng.integers(len(irises)))],
        lips=lips,
        hair=CUTS[cut],
        **marks,
    )


def draw_identities(seed: int) -> tuple[Identity, Identity]:
    """Return the persons A and B of ``seed``. They differ in skin depth, haircut and every shape trait."""
    rng = generator(seed, IDENTITIES, 0)
    shapes = _apart_shapes(rng)
    pale = rng.uniform(0.07, 0.24)
    depths = [pale, pale + rng.uniform(0.40, 0.47)]
    if rng.random() < 0.5:
        depths.reverse()
    masculine = rng.random(2) < 0.5
    people: list[Identity] = []
    used_cuts: set[str] = set()
    for shape, depth, man in zip(shapes, depths, masculine, strict=True):
        cuts = [name for name in (_SHORT_CUTS if man else _LONG_CUTS) if name not in used_cuts]
        cut = str(rng.choice(cuts))
        used_cuts.add(cut)
        people.append(draw_person(rng, shape, float(depth), bool(man), cut))
    return people[0], people[1]
