"""Do the figures that tell when a run is done follow the truth? On drawn pairs, whose true swaps are known.

    python -m benchmarks.done --cache DIR --out DIR --json FILE

Two questions. The identity-leak meter is asked of pictures whose leak is known: of the true swaps themselves (0), of
A's own faces (1) and of half-way mixtures (0.5), on all pairs, without a model. And runs of the program (RUNS) are
trained with --validation; what steps.jsonl says at each save stands beside the true figures of that checkpoint.
True leak: on each true pair, at the meter's resolution inside the mask, where the swap lies between the true B (0) and
the true A (1).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

import cli
from benchmarks.common import environment
from benchmarks.learning import read_side, single_thread
from benchmarks.people import PAIRS, draw_pair
from swapfast.batch import SIDES
from swapfast.checkpoints.trained import OpenedModel, open_model
from swapfast.config import TrainConfig
from swapfast.logs.steplog import read_steps
from swapfast.swap.apply import swap_faces
from swapfast.swap.evaluate import TruePairs, read_pairs
from swapfast.swap.leak import LOW, LeakMeter

SIZE = 64  # px, at which pictures are compared without a model
PLAIN = ["--recipe", "faceswap", "--code", "plain", "--learning-rate", "1e-3"]
RUNS = {  # name: pair, iterations, flags
    "deep_to_pale, plain": ("deep_to_pale", 500, PLAIN),
    "deep_to_pale, own": ("deep_to_pale", 200, []),
    **{
        f"{pair}, {name}": (pair, 1000, flags)
        for pair in ("pale_to_deep", "old_to_young", "bearded")
        for name, flags in (("plain", PLAIN), ("own", []))
    },
}
FIELDS = ("swap_quality", "swap_leak", "validation_psnr_a", "validation_psnr_b")


def known_leaks(folder: Path) -> dict[str, float]:
    """Return what the meter of a pair says of pictures whose leak is 0, 0.5 and 1."""
    config = TrainConfig()
    sides = {side: read_side(folder / "train" / side, config, SIZE, SIZE) for side in SIDES}
    means = {f"mean_{side}": torch.from_numpy(faces.faces.mean(0)) for side, faces in sides.items()}
    means |= {f"mean_mask_{side}": torch.from_numpy(faces.masks.mean(0))[..., None] for side, faces in sides.items()}
    meter = LeakMeter.from_means(means)
    if meter is None:
        return {}
    pairs = read_pairs(folder / "truth", config, SIZE, SIZE)
    true_a, true_b = (_channels_first(images) for images in (pairs.true_a, pairs.true_b))
    shares = {"true_swap": 0.0, "half": 0.5, "a_itself": 1.0}
    leaks = {
        name: meter.leak(true_a, share * true_a + (1 - share) * true_b, true_b, true_b)
        for name, share in shares.items()
    }
    apart = float((meter.weights * meter.way.square()).mean(0).sum() / meter.weights.sum()) ** 0.5
    return {"sides_apart": apart, **leaks}


def true_leak(pairs: TruePairs, swaps: np.ndarray, again: np.ndarray) -> float:
    """Return where (n, H, W, 3) swaps lie between the true B and the true A in low frequencies, over all pairs.

    Less what B's own decoder gets wrong of the true B (again), as the meter has it.
    """
    a, b, made, own = (_low(images) for images in (pairs.true_a, pairs.true_b, swaps, again))
    weights = _low(pairs.masks[..., None])
    return float(((weights * (made - own) * (a - b)).sum() / (weights * (a - b).square()).sum()).item())


def _channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _low(images: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.interpolate(_channels_first(images).double(), (LOW, LOW), mode="area")


def _true_figures(opened: OpenedModel, faces: Path) -> dict[str, float]:
    model = opened.model
    pairs = read_pairs(faces / "truth", opened.config, model.input_size, model.output_sizes[-1])
    found = pairs.measure(model, opened.metadata.mean_faces["b"]).to_dict()
    swaps, again = (
        swap_faces(model, inputs, "b", of=of)[..., :3] for inputs, of in ((pairs.inputs_a, "a"), (pairs.inputs_b, "b"))
    )
    true = {key: found[key] for key in ("swap_psnr", "swap_psnr_matched", "color_error", "reconstruction_psnr")}
    return {**true, "true_leak": round(true_leak(pairs, swaps, again), 4)}


def train(name: str, arguments: argparse.Namespace) -> list[dict]:
    """Train one of RUNS unless it is there, and return a row for each of its saves."""
    pair, iterations, flags = RUNS[name]
    faces = draw_pair(PAIRS[pair], arguments.cache)
    model = arguments.out / name.replace(", ", "-")
    last, every = str(iterations), str(arguments.every)
    words = ["train", "-A", str(faces / "train/a"), "-B", str(faces / "train/b"), "-m", str(model), "-t", "tiny"]
    words += ["-b", "8", "-i", last, "-s", every, "--snapshot-interval", every, "--validation", "0.2"]
    words += ["--seed", "1", "--device", "cpu", *flags]
    if not (model / f"snapshot-{iterations:08d}").is_dir() and cli.main(words) != 0:
        raise SystemExit(f"{name}: the training failed")
    history = read_steps(model / "logs" / "steps.jsonl")
    rows = []
    for step in range(arguments.every, iterations + 1, arguments.every):
        opened = open_model(model, step)
        index = list(history.steps).index(step)
        logged = {key: round(history.column(key)[index], 4) for key in FIELDS}
        rows.append({"step": step, **logged, **_true_figures(opened, faces)})
        print(f"{name}: {rows[-1]}", flush=True)
    best = open_model(model, "best").metadata.step
    print(f"{name}: best is {best}", flush=True)
    return [{**row, "is_best": row["step"] == best} for row in rows]


def main(texts: list[str] | None = None) -> int:
    """Measure what the arguments ask for and write the JSON."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--cache", type=Path, required=True, metavar="DIR", help="where drawn faces are kept")
    flags.add_argument("--out", type=Path, required=True, metavar="DIR", help="where models go")
    flags.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    flags.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS), metavar="NAME")
    flags.add_argument("--every", type=int, default=50, help="iterations between two saves")
    arguments = flags.parse_args(texts)
    single_thread()
    known = {name: known_leaks(draw_pair(pair, arguments.cache)) for name, pair in PAIRS.items()}
    for name, leaks in known.items():
        print(name, {key: round(value, 3) for key, value in leaks.items()}, flush=True)
    result = {"environment": environment(), "known": known, "runs": {}}
    for name in arguments.runs:
        result["runs"][name] = train(name, arguments)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
