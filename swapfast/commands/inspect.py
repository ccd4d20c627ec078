"""`swapfast inspect`: what one or two folders of faces hold, as text, JSON or a picture; and faces to skip."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapfast.bars import Bars
from swapfast.commands.argument_types import path
from swapfast.errors import EXIT_DONE, EXIT_FAILED, SwapfastError
from swapfast.printing import complain, say
from swapfast.stop import StopRequest

if TYPE_CHECKING:
    from swapfast.faces.folder import FaceFolder
    from swapfast.faces.prepared import PreparedSet
    from swapfast.faces.survey import FaceLimits, Skipped, Survey

_EDGE = 64  # px of the faces that the picture shows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folders",
        type=path,
        nargs="+",
        metavar="FOLDER",
        help="a folder of faces, a faceset.pak or a prepared set; of two, A and B, the poses are compared",
    )
    parser.add_argument(
        "-o", "--out", type=path, metavar="FILE", help="draw poses, sharpness, sizes and faces to skip: .png"
    )
    parser.add_argument(
        "--skip-list",
        type=path,
        metavar="FILE",
        help="write the near-duplicates, blurred and small faces to this file, which train --skip takes",
    )
    parser.add_argument("--blur-limit", type=float, metavar="S", help="least sharpness; default: 0.4 of the median")
    parser.add_argument(
        "--duplicates", type=float, default=2.0, metavar="D", help="least difference of two faces, of 255; default 2"
    )
    parser.add_argument(
        "--min-size", type=float, default=0.0, metavar="PX", help="least width of the crop; default 0: any"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@dataclass(frozen=True)
class _Side:
    """What is known of one folder."""

    name: str
    folder: FaceFolder
    prepared: PreparedSet | None
    report: dict[str, Any]
    survey: Survey
    skipped: list[Skipped]


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Run the command. Returns its exit code."""
    from swapfast.faces.survey import FaceLimits, compare

    _check(arguments)
    limits = FaceLimits(arguments.blur_limit, arguments.duplicates, arguments.min_size)
    names = ["A", "B"] if len(arguments.folders) == 2 else [arguments.folders[0].resolve().name or "it"]
    with Bars() as bars:
        sides = [_examine(folder, name, limits, bars) for folder, name in zip(arguments.folders, names)]
    compared = compare(sides[0].survey, sides[1].survey) if len(sides) == 2 else []
    if arguments.json:
        reports = [side.report for side in sides]
        say(json.dumps(reports[0] if len(sides) == 1 else {"folders": reports, "advice": compared}, indent=1))
    else:
        _describe(sides, compared)
    _write(arguments, sides, limits)
    if not arguments.json:
        for path in filter(None, (arguments.out, arguments.skip_list)):
            complain(f"look at {path}" if path == arguments.out else f"{path}: for train --skip")
    return EXIT_FAILED if any(side.report["bad"] for side in sides) else EXIT_DONE


def _check(arguments: argparse.Namespace) -> None:
    from swapfast.files import check_new_file, real_path

    if len(arguments.folders) > 2:
        raise SwapfastError(f"inspect: {len(arguments.folders)} folders; give one, or two, A and B")
    for name, value in (("--blur-limit", arguments.blur_limit), ("--duplicates", arguments.duplicates)):
        if value is not None and not 0 <= value <= 255:
            raise SwapfastError(f"{name} {value:g}: must lie within 0 and 255")
    if not 0 <= arguments.min_size <= 1e6:
        raise SwapfastError(f"--min-size {arguments.min_size:g}: must be a number of pixels")
    if arguments.out is not None:
        check_new_file(arguments.out, "-o/--out", (".png",))
    if arguments.skip_list is not None:
        check_new_file(arguments.skip_list, "--skip-list", (".txt", ".list", ".tsv"))
    for flag, file in (("-o/--out", arguments.out), ("--skip-list", arguments.skip_list)):
        for folder in arguments.folders if file is not None else ():
            faces = folder.parent if folder.is_file() else folder  # a picture beside a pack would be taken for a face
            if real_path(faces) in real_path(file).parents:
                raise SwapfastError(f"{flag} {file}: lies in the faces' folder {folder}; choose another place")


def _examine(path: Path, name: str, limits: FaceLimits, bars: Bars) -> _Side:
    from swapfast.faces.folder import report_on, scan_folder
    from swapfast.faces.prepared import inspect_prepared, is_prepared, open_prepared
    from swapfast.faces.survey import advice, faces_to_skip, survey_folder, survey_prepared

    prepared = None
    if is_prepared(path):
        report = inspect_prepared(path, progress=bars(f"checking {path}"))
        prepared = open_prepared(path)
        folder, survey = survey_prepared(prepared, bars(f"decoding {path}"))
    else:
        folder, survey = survey_folder(scan_folder(path, None, bars(f"reading {path}")), bars(f"decoding {path}"))
        report = report_on(folder)
    skipped = faces_to_skip(survey, limits)
    report |= {
        "sharpness": _quartiles(survey.sharpness),
        "face_px": _quartiles(survey.edges),
        "blur_limit": round(survey.blur_limit(limits), 2),
        "skip": [_to_dict(survey, skip) for skip in skipped],
        "advice": advice(survey, skipped, name),
    }
    return _Side(name, folder, prepared, report, survey, skipped)


def _to_dict(survey: Survey, skip: Skipped) -> dict[str, Any]:
    like = {} if skip.like is None else {"like": survey.records.name(skip.like)}
    return {"file": survey.records.name(skip.index), "reason": skip.reason, **like}


def _quartiles(values: Any) -> dict[str, float] | None:
    import numpy as np

    if not len(values):
        return None
    figures = np.percentile(values, [0, 25, 50, 75, 100])
    return {name: round(float(figure), 2) for name, figure in zip(("min", "25%", "median", "75%", "max"), figures)}


def _write(arguments: argparse.Namespace, sides: list[_Side], limits: FaceLimits) -> None:
    from swapfast.files import write_file

    if arguments.skip_list is not None:
        from swapfast.faces.skip_list import HEADER, skip_list_text

        texts = [skip_list_text(side.folder, [(skip.index, skip.reason) for skip in side.skipped]) for side in sides]
        text = HEADER + "".join(part.removeprefix(HEADER) for part in texts)
        _write_list(arguments.skip_list, text.encode("utf-8", "surrogateescape"))
    if arguments.out is not None:
        from swapfast.preview.survey_sheet import SurveyedSide, survey_sheet

        pictures = [
            SurveyedSide(side.name, side.survey, side.skipped, side.survey.blur_limit(limits), _reader(side))
            for side in sides
        ]
        write_file(arguments.out, survey_sheet(pictures))


def _write_list(path: Path, content: bytes) -> None:
    """Write a list of faces to skip, but not over another one: a person may have taken lines out of it."""
    from swapfast.files import read_plain, write_file

    try:
        former = read_plain(path) if path.exists() else content
    except OSError as error:
        raise SwapfastError(
            f"--skip-list {path}: cannot be read ({error.strerror or error}); give another name"
        ) from error
    if former != content:
        raise SwapfastError(
            f"--skip-list {path}: holds another list, perhaps with changes of your own; give another name, or remove it"
        )
    write_file(path, content)


def _reader(side: _Side) -> Callable[[int], Any]:
    """Return what reads a small crop of a side's face."""
    from swapfast.config import CropConfig
    from swapfast.faces.crop import crop_face
    from swapfast.faces.image import read_image

    def read(index: int) -> Any:
        record = side.folder.records[index]
        try:
            if side.prepared is None:
                picture = read_image(record.path)
            else:
                picture = side.prepared.read(int(side.folder.records.rows[index]))[0]
            return crop_face(record, picture, CropConfig(centering="face", coverage=100.0), _EDGE)
        except (ValueError, SwapfastError):
            return None

    return read


def _describe(sides: list[_Side], compared: list[str]) -> None:
    from swapfast.faces.folder import describe

    for side in sides:
        say(describe(side.report))
        for title, key, unit in (("sharpness", "sharpness", "levels"), ("size", "face_px", "px")):
            if figures := side.report[key]:
                say(f"  {title:10}{figures['min']:.4g} to {figures['max']:.4g} {unit}, median {figures['median']:.4g}")
        reasons = [skip.reason for skip in side.skipped]
        counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in dict.fromkeys(reasons))
        say(f"  to skip   {counts or 'none'}")
        for line in side.report["advice"]:
            say(f"  advice: {line}")
    for line in compared:
        say(f"advice: {line}")
