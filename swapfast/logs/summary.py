"""The summary of a model's log, for ``swapfast log``."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.files import not_a_folder
from swapfast.logs.gain import Gain, best_step, describe_gains, gain_of
from swapfast.logs.steplog import NAME, History, read_steps
from swapfast.logs.verdict import describe_leak

WINDOW = 100  # steps that a loss is averaged over: one step's says little
_LARGEST = np.finfo(float).max
_WRITTEN_OUT = 1e9  # from here on a number is shown with its power of ten
_SPEED = ("iterations_per_s", "faces_per_s", "data_wait")


def load_history(model_dir: str | Path) -> History:
    """Return the log of the model in ``model_dir``. Raises SwapfastError where there is no model, log or step."""
    folder = Path(model_dir)
    if not folder.is_dir():
        raise not_a_folder(folder, str(folder), "a model folder")
    path = folder / "logs" / NAME
    if not path.exists():
        raise SwapfastError(
            f"{folder}: holds no logs/{NAME}; give the folder of a model that was trained without -n/--no-logs"
        )
    history = read_steps(path)
    if not history.steps:
        raise SwapfastError(f"{path}: no step is logged; train the model first")
    return history


def _means(history: History, key: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (M,) steps and the mean of the last ``window`` values of ``key`` at each, or of all where fewer exist."""
    values = np.array(history.column(key))
    is_finite = np.isfinite(values)
    steps, values = np.array(history.steps)[is_finite], values[is_finite]
    window = min(window, len(values))
    if window <= 1:
        return steps, values
    # Not by running sums: behind one loss of 1e20 they hold nothing of the others any more.
    with np.errstate(over="ignore", under="ignore"):
        means = np.lib.stride_tricks.sliding_window_view(values / window, window).sum(axis=-1)
    return steps[window - 1 :], np.clip(means, -_LARGEST, _LARGEST)


def _course(history: History, key: str, window: int, is_loss: bool = True) -> dict | None:
    steps, means = _means(history, key, window)
    if not len(means):
        return None
    best = int(np.argmin(means) if is_loss else np.argmax(means))
    return {"latest": float(means[-1]), "best": float(means[best]), "best_step": int(steps[best])}


def _sides(history: History, prefix: str, window: int) -> dict[str, dict]:
    matches = (re.fullmatch(f"{prefix}([a-z])", key) for key in history.columns)
    sides = sorted(match[1] for match in matches if match)
    return {side: course for side in sides if (course := _course(history, f"{prefix}{side}", window))}


def _latest(history: History, keys: list[str]) -> dict[str, float]:
    return {key: value for key in keys if (value := history.latest(key)) is not None}


def functions(history: History) -> list[str]:
    """Return the keys of the losses by function and side, such as ssim_a."""
    ends = tuple(f"_{key.removeprefix('loss_')}" for key in history.columns if re.fullmatch("loss_[a-z]", key))
    return sorted(key for key in history.columns if key.endswith(ends) and not key.startswith(("loss_", "validation_")))


def summarise(history: History) -> dict:
    """Return the summary as plain values. Losses are means of ``window`` steps; the best is the lowest such mean."""
    runs = [run for run in history.runs if run.lines]
    columns = ["learning_rate", "gradient_norm", *sorted(key for key in history.columns if key.endswith("_mib"))]
    return {
        "iterations": history.steps[-1],
        "runs": len(runs),
        "hours": sum(run.seconds for run in runs) / 3600,
        "logged_steps": len(history.steps),
        "void_steps": history.void,
        "damaged_lines": history.damaged,
        "window": min(WINDOW, len(history.steps)),
        "loss": _sides(history, "loss_", WINDOW),
        "functions": {key: course["latest"] for key in functions(history) if (course := _course(history, key, WINDOW))},
        "validation": _sides(history, "validation_loss_", 1),
        **({"swap_quality": swap} if (swap := _course(history, "swap_quality", 1, is_loss=False)) else {}),
        **_gains(history),
        "speed": _speed(history),
        **_latest(history, ["swap_leak", *columns]),
    }


def _gains(history: History) -> dict[str, object]:
    """Return what held-out faces and their swap have gained of late; nothing where that was not measured."""
    matches = (re.fullmatch("validation_psnr_([a-z])", key) for key in sorted(history.columns))
    keys = {match[1]: match[0] for match in matches if match} | {"swap": "swap_quality"}
    steps = np.array(history.steps)
    gains = {name: gain for name, key in keys.items() if (gain := gain_of(steps, history.column(key))) is not None}
    if not gains:
        return {}
    return {
        "gain": {name: gain.to_dict() for name, gain in gains.items()},
        "swap_not_better_since": best_step(steps, history.column("swap_quality")),
    }


def _described_gains(summary: dict) -> list[str]:
    gains = {
        name: Gain(gain["iterations"], gain["per_1000"], gain["per_1000_before"])
        for name, gain in summary.get("gain", {}).items()
    }
    lines = [describe_gains(gains, summary["swap_not_better_since"])] if gains else []
    leak = summary.get("swap_leak")
    return lines if leak is None else [*lines, describe_leak(leak)]


def _speed(history: History) -> dict[str, dict]:
    """Return nothing before the first report."""
    latest = _latest(history, list(_SPEED))
    if len(latest) < len(_SPEED):
        return {}
    return {key: {"latest": value, "mean": _mean(history, key)} for key, value in latest.items()}


def _mean(history: History, key: str) -> float | None:
    """Return the mean over the reports, each weighted by the seconds that it covers."""
    values, rates = np.array(history.column(key)), np.array(history.column("iterations_per_s"))
    is_finite = np.isfinite(values) & np.isfinite(rates)
    if not is_finite.any():
        return history.latest(key)
    iterations = np.diff(np.array(history.steps)[is_finite], prepend=0)
    seconds = iterations / np.clip(rates[is_finite], 1e-9, 1e9)
    with np.errstate(over="ignore", under="ignore"):
        mean = (values[is_finite] * (seconds / max(seconds.sum(), 1e-9))).sum()
    return float(np.clip(mean, -_LARGEST, _LARGEST))


def _figure(value: float, digits: int) -> str:
    """Return ``value`` with so many digits behind the point; 1.7e+308 where it is absurd."""
    return f"{value:.{digits}f}" if abs(value) < _WRITTEN_OUT else f"{value:.3g}"


def _losses(name: str, sides: dict[str, dict], note: str) -> list[str]:
    return [
        f"{name} {side.upper()}: {_figure(course['latest'], 5)}{note}, best {_figure(course['best'], 5)} "
        f"at iteration {course['best_step']}"
        for side, course in sides.items()
    ]


def describe(summary: dict, folder: Path) -> str:
    """Return the summary as text of several lines."""
    runs = f"{summary['runs']} run{'s' if summary['runs'] != 1 else ''}"
    lines = [f"{folder}: {summary['iterations']} iterations in {summary['hours']:.2f} h, {runs}"]
    lines += _losses("loss", summary["loss"], f" (mean of {summary['window']} steps)")
    if summary["functions"]:
        lines.append(
            "  of which " + ", ".join(f"{key} {_figure(value, 5)}" for key, value in summary["functions"].items())
        )
    lines += _losses("validation", summary["validation"], "")
    if swap := summary.get("swap_quality"):
        latest, best = (_figure(swap[key], 2) for key in ("latest", "best"))
        lines.append(f"swap of held-out faces: {latest} dB, best {best} at iteration {swap['best_step']}")
    lines += _described_gains(summary)
    speed = summary["speed"]
    if speed:
        for statistic in ("latest", "mean"):
            rate, faces, wait = (speed[key][statistic] for key in _SPEED)
            lines.append(
                f"speed, {statistic}: {_figure(rate, 2)} it/s, {_figure(faces, 0)} faces/s, "
                f"waiting for data {_figure(100 * wait, 1)} %"
            )
    names = {"learning_rate": "learning rate", "gradient_norm": "gradient norm"}
    figures = [f"{name} {summary[key]:.3g}" for key, name in names.items() if key in summary]
    figures += [
        f"{key.removesuffix('_mib').replace('_', ' ')} {_figure(value, 0)} MiB"
        for key, value in summary.items()
        if key.endswith("_mib")
    ]
    lines += [", ".join(figures)] if figures else []
    if summary["void_steps"]:
        lines.append(f"{summary['void_steps']} steps were lost and done again")
    if summary["damaged_lines"]:
        lines.append(f"{summary['damaged_lines']} lines of the log cannot be read and were left out")
    return "\n".join(lines)
