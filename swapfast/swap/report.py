"""What a swap did, in numbers: for --report, and in a few lines for a person."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from swapfast.bars import format_rate
from swapfast.swap.pipeline import SwapCounts
from swapfast.swap.stages import Stopwatch


def face_sizes(edges: Sequence[float]) -> dict[str, float]:
    """Return smallest, median and largest edge of faces' crops, px; empty without faces."""
    if not edges:
        return {}
    return {
        "smallest": round(min(edges), 1),
        "median": round(statistics.median(edges), 1),
        "largest": round(max(edges), 1),
    }


def make_report(counts: SwapCounts, seconds: float, clock: Stopwatch, output_size: int) -> dict[str, Any]:
    """Return the report, JSON-ready.

    seconds: from the first frame to the last. clock: of the stages, whose seconds are over all threads.
    ``model_share`` is the share of the time, from its first faces to its last, in which the model was at work.
    """
    share = clock.share("model")
    return {
        "frames": counts.frames,
        "frames_written": counts.written,
        "frames_without_faces": counts.frames - counts.frames_with_faces,
        "frames_without_mask": counts.frames_without_mask,
        "faces": counts.faces,
        "faces_skipped": dict(counts.skipped.most_common()),
        "face_px": face_sizes(counts.edges),
        "model_px": output_size,
        "seconds": round(seconds, 3),
        "seconds_by_stage": {name: round(value, 3) for name, value in sorted(clock.seconds.items())},
        "model_share": None if share is None else round(share, 3),
        "frames_per_second": round(counts.written / seconds, 3) if seconds else 0.0,
    }


def describe(report: dict[str, Any]) -> list[str]:
    """Return a report in lines."""
    lines = [
        f"{report['faces']} faces swapped in {report['frames_written']} frames, "
        f"{format_rate(report['frames_per_second'])} frames/s"
    ]
    if report.get("frames_written_before"):
        lines.append(f"{report['frames_written_before']} more frames were written by an earlier run")
    if report["frames_without_faces"]:
        lines.append(f"{report['frames_without_faces']} frames have no face that is swapped")
    if report["frames_without_mask"]:
        lines.append(f"{report['frames_without_mask']} frames have no mask in --mask-dir: nothing is in front there")
    lines += [f"{number} faces left out: {reason}" for reason, number in report["faces_skipped"].items()]
    return [*lines, *size_lines(report["face_px"], report["model_px"])]


def size_lines(sizes: dict[str, float], output_size: int) -> list[str]:
    """Return how large faces are beside what the model makes."""
    if not sizes:
        return []
    line = f"faces are {sizes['median']:.0f} px in the frame ({sizes['smallest']:.0f} to {sizes['largest']:.0f})"
    line += f", the model makes {output_size}"
    if sizes["median"] > 1.5 * output_size:
        line += ": they will look soft; a larger model, or footage of less resolution, would not"
    return [line]
