"""Puts the faces of folders of tracks or people together, once a person has deleted the folders of those not wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swapfast.errors import SwapfastError
from swapfast.extract.run import LANDMARKS, REPORT, SHEETS, track_folder
from swapfast.files import cannot_write, not_a_folder, read_plain, write_file

FLAG = "--collect"


def collect(folder: Path) -> tuple[int, int]:
    """Move the faces of the folders that are left into ``folder``; return how many tracks and faces these are.

    Lines of landmarks and sheets of the tracks that are gone are removed. Raises SwapfastError where ``folder`` is not
    one of extract with folders.
    """
    if not folder.is_dir():
        raise not_a_folder(folder, f"{FLAG} {folder}", "a folder that extract made")
    report = _report(folder)
    names = {track["track"]: _folder_name(track, folder) for track in report["tracks"]}
    named_people = {number for number, name in names.items() if name is not None}
    if not named_people:
        raise SwapfastError(
            f"{FLAG} {folder}: holds no folder of a track or person; extract with --folders track, then delete some"
        )
    try:
        lines = _kept_lines(folder / LANDMARKS, named_people)
        faces = _move(folder, {name for name in names.values() if name is not None})
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_file(folder / LANDMARKS, lines)
    for number in names.keys() - named_people:
        (folder / SHEETS / f"{track_folder(number)}.jpg").unlink(missing_ok=True)
    report["tracks"] = [track for track in report["tracks"] if track["track"] in named_people]
    report["written"] = faces
    report["is_collected"] = True  # what was chosen by hand is not gone on with
    write_file(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    return len(named_people), faces


def _report(folder: Path) -> dict[str, Any]:
    try:
        report = json.loads(read_plain(folder / REPORT))
        assert isinstance(report["tracks"], list)
        assert all(isinstance(t, dict) and type(t["track"]) is int and t["track"] >= 0 for t in report["tracks"])
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise SwapfastError(f"{FLAG} {folder}: holds no {REPORT} of extract; give a folder that it made") from error
    return report


def _folder_name(track: dict[str, Any], folder: Path) -> str | None:
    """Return the folder that holds a track's faces, None where it is gone."""
    person = track.get("person")
    names = [track_folder(track["track"]), *([f"person_{person}"] if type(person) is int else [])]
    return next((name for name in names if (folder / name).is_dir()), None)


def _kept_lines(path: Path, tracks: set[int]) -> bytes:
    header, *lines = read_plain(path).splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, 2):
        try:
            track = json.loads(line)["track"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SwapfastError(f"{path}: line {number} is no face with a track; extract again") from error
        if track in tracks:
            kept.append(line)
    return b"".join([header, *kept])


def _move(folder: Path, names: set[str]) -> int:
    faces = 0
    for name in sorted(names):
        for path in sorted((folder / name).iterdir()):
            path.rename(folder / path.name)
            faces += path.suffix == ".png"
        (folder / name).rmdir()
    return faces
