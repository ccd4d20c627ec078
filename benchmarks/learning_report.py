"""Tables, plots and sheets of the runs that ``python -m benchmarks.learning`` has left in a folder.

table.md          every recipe on every pair, those to choose by and those to report apart, with spreads over seeds
PAIR.png          the curves of a pair over iterations and over seconds of training
SET.png           the same in the mean over a set's pairs that have all recipes, as dB above the mean face of B
PAIR-faces.png    the same true pairs for every recipe side by side: A, the true B, each recipe at its last step
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean

import cv2
import numpy as np

from benchmarks.people import COUNTS, PAIRS, draw_pair
from swapfast.config import TrainConfig
from swapfast.errors import SwapfastError
from swapfast.swap.evaluate import read_pairs

Run = dict  # what a JSON file holds, see learning.py
Runs = list[Run]

# title -> a row's value, None where it was not measured
CURVES: dict[str, Callable[[dict], float | None]] = {
    "raw, dB": lambda row: row["swap_psnr"],
    "colour-matched, dB": lambda row: row["swap_psnr_matched"],
    "SSIM": lambda row: row["swap_ssim"],
    "colour error": lambda row: row["color_error"],
    "landmark error, % of the eyes' distance": lambda row: row.get("landmark_error"),
    "pose error, degrees": lambda row: row.get("pose_error"),
    "expression error": lambda row: row.get("expression_error"),
    "B > B, dB": lambda row: row["reconstruction_psnr"],
    "sides told apart (AUC)": lambda row: row["signs"]["auc"],
    "distance of mean codes": lambda row: row["signs"]["distance"],
}
LEVELS: dict[str, Callable[[dict], float | None]] = {  # dashed: what is got without learning, or at best
    "raw, dB": lambda row: row["mean_b_psnr"],
    "colour-matched, dB": lambda row: row["mean_b_psnr_matched"],
    "SSIM": lambda row: row["mean_b_ssim"],
    "colour error": lambda row: row["mean_b_color_error"],
    "landmark error, % of the eyes' distance": lambda row: row.get("landmark_error_floor"),
    "pose error, degrees": lambda row: row.get("pose_error_floor"),
    "expression error": lambda row: row.get("expression_error_floor"),
}
GAINS: dict[str, Callable[[dict], float | None]] = {
    "raw above the mean face, dB": lambda row: row["swap_psnr"] - row["mean_b_psnr"],
    "matched above the mean face, dB": lambda row: row["swap_psnr_matched"] - row["mean_b_psnr_matched"],
    **{title: value for title, value in CURVES.items() if title not in ("raw, dB", "colour-matched, dB", "SSIM")},
}


def _difference(name: str, base: str) -> Callable[[dict], float | None]:
    """Return what tells how far one figure of a row lies above another, None where the row has none of it."""
    return lambda row: row[name] - row[base] if row.get(name) is not None and row.get(base) is not None else None


OWN_CROP = {
    "raw": _difference("swap_psnr_own_crop", "mean_b_psnr_own_crop"),
    "matched": _difference("swap_psnr_matched_own_crop", "mean_b_psnr_matched_own_crop"),
}
TURNED: dict[str, Callable[[dict], float | None]] = {  # degrees
    "turned to the right": lambda row: row.get("yaw_turn"),
    "turned down": lambda row: row.get("pitch_turn"),
}
GAINS |= {f"{name} above the mean face, own crop, dB": value for name, value in OWN_CROP.items()}


def read_runs(out: Path) -> Runs:
    """Return the runs in ``out`` that have rows, by pair, recipe and seed; raise SwapfastError where there is none."""
    files = sorted((out / "runs").glob("*/*/*.json"))
    runs = [json.loads(path.read_text(encoding="utf-8")) | {"path": path} for path in files]
    measured = sorted((run for run in runs if run["rows"]), key=lambda run: (run["pair"], run["recipe"], run["seed"]))
    if not measured:
        raise SwapfastError(f"--out {out}: holds no runs; train some with --recipes")
    return measured


def kept_runs(out: Path) -> Runs:
    """Return the runs in ``out`` as benchmarks/results keeps them.

    The figures of each single face are left out, and the machine of each run, of whose folders its command tells.
    """
    return [
        {name: value for name, value in run.items() if name not in ("path", "environment")}
        | {"rows": [{name: value for name, value in row.items() if name != "faces"} for row in run["rows"]]}
        for run in read_runs(out)
    ]


def _grouped(runs: Iterable[Run], *keys: str) -> dict[tuple, Runs]:
    groups: dict[tuple, Runs] = defaultdict(list)
    for run in runs:
        groups[tuple(run[key] for key in keys)].append(run)
    return dict(groups)


def _span(values: Sequence[float], digits: int = 2) -> str:
    """Return a mean, with the half of the range over seeds where there are several."""
    text = f"{mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {(max(values) - min(values)) / 2:.{digits}f}"


def _known(rows: Sequence[dict], value: Callable[[dict], float | None]) -> list[float]:
    return [known for row in rows if (known := value(row)) is not None]


def _at(run: Run, step: int) -> dict:
    return next(row for row in run["rows"] if row["step"] == step)


def _common_steps(runs: Runs) -> list[int]:
    return sorted(set.intersection(*({row["step"] for row in run["rows"]} for run in runs)))


def fallen(run: Run, name: str) -> float:
    """Return by how much the last value of a figure lies below its best before."""
    values = [row[name] for row in run["rows"]]
    return max(values) - values[-1]


def table(runs: Runs) -> str:
    """Return all runs as text: per set, pair, number of iterations and recipe."""
    lines = [
        "# Runs",
        "",
        "Means over seeds, ± half of the range. In brackets: dB above the mean face of B. Own crop: the same, to the",
        "true swap in the crop of its own landmarks. Turned: degrees too far to the right and down, on average.",
        "",
    ]
    for (kind,), of_set in sorted(_grouped(runs, "set").items()):
        names = ", ".join(sorted({run["pair"] for run in of_set}))
        lines += [f"## Pairs to {kind} by: {names}" if kind == "choose" else f"## Pairs to {kind}: {names}", ""]
        lines += [
            "| pair | recipe | seeds | step | cpu-s | raw | matched | own crop, raw, matched | SSIM | colour "
            "| landmarks (floor) | pose | turned right, down | B > B | AUC, distance | fell raw, matched |",
            "|---" * 16 + "|",
        ]
        for (pair, recipe, _), group in sorted(_grouped(of_set, "pair", "recipe", "iterations").items()):
            lines.append(_line(pair, recipe, group))
        lines.append("")
    return "\n".join(lines)


def _line(pair: str, recipe: str, group: Runs) -> str:
    step = _common_steps(group)[-1]
    rows = [_at(run, step) for run in group]

    def span(title: str, digits: int = 2) -> str:
        known = _known(rows, CURVES[title])
        return _span(known, digits) if known else "-"

    raw, matched = (
        mean(GAINS[f"{name} above the mean face, dB"](row) or 0 for row in rows) for name in ("raw", "matched")
    )
    floor = rows[0].get("landmark_error_floor")
    landmarks = span("landmark error, % of the eyes' distance") + ("" if floor is None else f" ({floor:.2f})")
    own_crop = ", ".join(
        f"{mean(values):+.2f}" if (values := _known(rows, OWN_CROP[name])) else "-" for name in ("raw", "matched")
    )
    turned = ", ".join(f"{mean(values):+.1f}" if (values := _known(rows, turn)) else "-" for turn in TURNED.values())
    fell = ", ".join(f"{max(fallen(run, name) for run in group):.2f}" for name in ("swap_psnr", "swap_psnr_matched"))
    return (
        f"| {pair}{'' if group[0]['balanced'] else ' (unbalanced)'} | {recipe} | {len(group)} | {step} "
        f"| {mean(row['cpu_seconds'] for row in rows):.0f} "
        f"| {span('raw, dB')} ({raw:+.2f}) | {span('colour-matched, dB')} ({matched:+.2f}) | {own_crop} "
        f"| {span('SSIM', 3)} | {span('colour error', 3)} | {landmarks} | {span('pose error, degrees')} | {turned} "
        f"| {span('B > B, dB')} | {span('sides told apart (AUC)', 3)}, {span('distance of mean codes')} | {fell} |"
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's correlation of two lists, NaN where one of them has one value only."""
    ranks = []
    for values in (np.asarray(first, float), np.asarray(second, float)):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])  # equal ones share the mean of their ranks
    if min(rank.std() for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


TRUTHS = {
    "matched": lambda row: row["swap_psnr_matched"],
    "raw": lambda row: row["swap_psnr"],
    "matched above the mean face": GAINS["matched above the mean face, dB"],
    "raw above the mean face": GAINS["raw above the mean face, dB"],
}


def correlations(runs: Runs) -> dict[str, dict[str, dict[str, float]]]:
    """Return how each sign follows each of TRUTHS: per set over all pairs, recipes, seeds and steps, and within pairs.

    'within' is the mean over the pairs of the correlation over that pair's own runs: what a person who has one pair
    gets. By sign, truth, and set or within.
    """
    rows = [(run["set"], run["pair"], row) for run in runs for row in run["rows"]]
    names = sorted(set.intersection(*(set(row["signs"]) for _, _, row in rows)))
    pairs = sorted({pair for _, pair, _ in rows})
    return {name: {title: _correlation(rows, pairs, name, truth) for title, truth in TRUTHS.items()} for name in names}


def _correlation(rows: list[tuple[str, str, dict]], pairs: list[str], name: str, truth: Callable) -> dict[str, float]:
    """Return one sign's correlations with one truth. rows: with set and pair."""

    def over(chosen: Iterable[dict]) -> float:
        both = [(row["signs"][name], truth(row) or 0.0) for row in chosen]
        return rank_correlation([sign for sign, _ in both], [true for _, true in both])

    values = {kind: over(row for k, _, row in rows if k == kind) for kind in sorted({kind for kind, _, _ in rows})}
    within = np.array([over(row for _, p, row in rows if p == pair) for pair in pairs])
    values["within"] = float(np.nanmean(within)) if np.isfinite(within).any() else float("nan")
    return {key: round(value, 3) for key, value in values.items()}


def correlation_table(found: dict[str, dict[str, dict[str, float]]], count: int) -> str:
    """Return what ``correlations`` found as text. count: of measurements."""
    first = next(iter(found.values()))
    kinds = list(next(iter(first.values())))
    lines = [f"## What can be told without the truth: rank correlations over {count} measurements", ""]
    lines += [f"In each cell: {', '.join(kinds)} (the mean over pairs, of each by itself).", ""]
    lines += ["| sign | " + " | ".join(first) + " |", "|---|" + "---|" * len(first)]
    for name, of in sorted(found.items(), key=lambda item: -np.nan_to_num(item[1]["matched"]["within"])):
        lines.append(
            f"| {name} | " + " | ".join(", ".join(f"{v:+.2f}" for v in o.values()) for o in of.values()) + " |"
        )
    return "\n".join(lines)


def _draw_curves(groups: dict[str, Runs], curves: dict, levels: dict, title: str, path: Path) -> None:
    """Draw each curve over iterations (above) and seconds (below): the mean of each group, and its range as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = [
        t for t in curves if any(curves[t](run["rows"][-1]) is not None for runs in groups.values() for run in runs)
    ]
    columns = len(titles) if len(titles) <= 6 else -(-len(titles) // 2)
    bands = -(-len(titles) // columns)
    figure, axes = plt.subplots(2 * bands, columns, figsize=(3.6 * columns, 5.6 * bands), squeeze=False)
    for number, name in enumerate(titles):
        for row, over in enumerate(("step", "cpu_seconds")):
            axis = axes[2 * (number // columns) + row][number % columns]
            for color, (label, runs) in enumerate(groups.items()):
                steps = _common_steps(runs)
                values = np.array([[curves[name](_at(run, step)) for step in steps] for run in runs], float)
                at = steps if over == "step" else [mean(_at(run, step)[over] for run in runs) for step in steps]
                axis.plot(at, values.mean(0), ".-", color=f"C{color}", label=label, linewidth=1.2)
                if len(runs) > 1:
                    axis.fill_between(at, values.min(0), values.max(0), color=f"C{color}", alpha=0.15, linewidth=0)
            if name in levels:
                level = levels[name](next(iter(groups.values()))[0]["rows"][-1])
                if level is not None:
                    axis.axhline(level, color="0.4", linestyle="--", linewidth=1)
            axis.set_xlabel("iterations" if over == "step" else "seconds of training (processor time)", fontsize=8)
            axis.set_title(name, fontsize=9)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
    for axis in axes.ravel():
        axis.set_visible(bool(axis.lines))
    axes[0][0].legend(fontsize=7)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _sheet(faces: Path, groups: dict[str, Runs]) -> np.ndarray | None:
    """Return a picture of the same true pairs for each recipe, one a row, with the names at the left."""
    pairs = read_pairs(faces / "truth", TrainConfig(), 64, 64)
    strips: list[tuple[str, np.ndarray]] = []
    for label, runs in groups.items():
        path = runs[0]["path"]
        step = runs[0]["rows"][-1]["step"]
        picture = cv2.imread(str(path.with_suffix("") / f"swaps-{step:08d}.png"))
        if picture is not None:
            strips.append((f"{label} {step}", picture))
    if not strips:
        return None
    edge = strips[0][1].shape[0]
    count = strips[0][1].shape[1] // edge

    def strip(faces: np.ndarray) -> np.ndarray:
        shown = np.hstack(list(np.rint(faces[:count] * 255).astype(np.uint8)))
        return cv2.resize(shown, (count * edge, edge), interpolation=cv2.INTER_AREA)

    strips = [("A", strip(pairs.true_a)), ("true B", strip(pairs.true_b)), *strips]
    scale = max(1, 128 // edge)
    rows = []
    for label, picture in strips:
        if picture.shape != strips[0][1].shape:
            picture = cv2.resize(picture, strips[0][1].shape[1::-1], interpolation=cv2.INTER_AREA)
        large = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        margin = np.full((len(large), 190, 3), 255, np.uint8)
        for line, start in enumerate(range(0, min(len(label), 84), 21)):
            place = (4, 20 + 20 * line)
            cv2.putText(margin, label[start : start + 21], place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 0, 1, cv2.LINE_AA)
        rows.append(np.hstack([margin, large]))
    return np.vstack(rows)


def report(out: Path, cache: Path, counts: tuple[int, int, int] = COUNTS, log: Callable[[str], None] = print) -> None:
    """Write tables, plots and sheets of the runs in ``out`` beside them. counts: of faces, see ``draw_pair``."""
    runs = read_runs(out)
    found = correlations(runs)
    text = f"{table(runs)}\n{correlation_table(found, sum(len(run['rows']) for run in runs))}\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    (out / "correlations.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    log(str(out / "table.md"))

    def labelled(of: Runs) -> dict[str, Runs]:
        return {
            f"{recipe} ({iterations})": group
            for (recipe, iterations), group in _grouped(of, "recipe", "iterations").items()
        }

    for (pair, about), of_pair in _grouped(runs, "pair", "about").items():
        title = f"{pair}: {about} (dashed: the mean face of B; of landmarks, pose, expression the true picture itself)"
        _draw_curves(labelled(of_pair), CURVES, LEVELS, title, out / f"{pair}.png")
        sheet = _sheet(draw_pair(PAIRS[pair], cache, counts), labelled(of_pair))
        if sheet is not None:
            cv2.imwrite(str(out / f"{pair}-faces.png"), sheet)
        log(str(out / f"{pair}.png"))
    for (kind,), of_set in _grouped(runs, "set").items():
        groups = labelled(of_set)
        names = sorted(set.intersection(*({run["pair"] for run in group} for group in groups.values())))
        if not names:
            continue  # no pair has all recipes: their means would be of different people
        groups = {label: [run for run in group if run["pair"] in names] for label, group in groups.items()}
        title = (
            f"pairs to {kind}{' by' if kind == 'choose' else ''}: {', '.join(names)}; the band is the range over pairs"
        )
        _draw_curves(groups, GAINS, {}, title, out / f"{kind}.png")
        log(str(out / f"{kind}.png"))
