"""Checkpoints that are kept beyond the newest two, and the way back to them.

    snapshot-00025000/   every --snapshot-interval iterations, and what a restore put aside; stays until it is removed
    backup-00024750/     the best checkpoint so far: by its swap where there is validation, else by its loss

Each is a whole checkpoint. Its files are hard links where the file system has them, so it takes no room of its own
until the checkpoint itself is dropped; no file of a checkpoint is ever written twice.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from swapfast.checkpoints.folder import UNREADABLE, CheckpointFolder, has_all_files, read_json
from swapfast.errors import SwapfastError
from swapfast.files import cannot_write, flush, temporary_name

Kind = Literal["checkpoint", "snapshot", "backup"]
_NAME = re.compile(rf"({'|'.join(get_args(Kind))})-([0-9]{{8,}})(?:-[0-9]+)?")


@dataclass(frozen=True)
class RestorePoint:
    """One folder to go back to.

    average_loss: since the save before it. saved: when, in ISO 8601. whole: judged by its step and the sizes of its
    files.
    """

    path: Path
    kind: Kind
    step: int
    average_loss: float | None
    saved: str | None
    bytes: int
    whole: bool

    def to_dict(self) -> dict:
        """Return plain values, as JSON has them."""
        return asdict(self) | {"path": str(self.path)}

    def __str__(self) -> str:
        loss = "" if self.average_loss is None else f"  average loss {self.average_loss:.5f}"
        return (
            f"{self.path.name:<22} iteration {self.step:>8}  {self.bytes / 2**20:>8.1f} MiB  {self.saved or '':<25}"
            f"{loss}{'' if self.whole else '  damaged'}"
        )


def _state(path: Path) -> dict:
    try:
        state = read_json(path / "state.json")
        return state if isinstance(state, dict) else {}
    except (OSError, ValueError):
        return {}


def _point(path: Path) -> RestorePoint | None:
    """Return what a folder holds, None where it is not called as a checkpoint, snapshot or backup is."""
    match = _NAME.fullmatch(path.name)
    if match is None or not path.is_dir():
        return None
    kind, step = cast(Kind, match[1]), int(match[2])
    state = _state(path)
    metrics, saved = state.get("metrics"), state.get("saved")
    average = metrics.get("average_loss") if isinstance(metrics, dict) else None
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return RestorePoint(
        path,
        kind,
        step,
        average if isinstance(average, float) and math.isfinite(average) else None,  # state.json may have been edited
        saved if isinstance(saved, str) else None,
        size,
        state.get("step") == step and has_all_files(path, state),
    )


def _hold_the_same(first: Path, second: Path) -> bool:
    """Return whether two folders hold the same checkpoint, by the digests that their state.json names."""
    states = _state(first), _state(second)
    return (
        "files" in states[0]
        and all(states[0].get(key) == states[1].get(key) for key in ("step", "files"))
        and all(map(has_all_files, (first, second), states))
    )


class Snapshots:
    """What is kept of one model folder beside its newest checkpoints. The folder must be locked by who changes it."""

    def __init__(self, checkpoints: CheckpointFolder) -> None:
        self.checkpoints = checkpoints
        self.folder = checkpoints.folder

    def points(self) -> list[RestorePoint]:
        """Return everything to go back to, oldest first."""
        if not self.folder.is_dir():
            return []
        points = [point for path in self.folder.iterdir() if (point := _point(path)) is not None]
        return sorted(points, key=lambda point: (point.step, point.path.name))

    def snapshot(self, step: int) -> Path:
        """Keep the checkpoint of ``step`` until somebody removes it; SwapfastError (code 1) where there is no room."""
        source = self.checkpoints.path(step)
        target = self._free_name(source, step)
        if not target.exists():
            self._copy(source, target)
        return target

    def back_up(self, step: int) -> Path:
        """Keep the checkpoint of ``step`` in place of the backup before it.

        One of a later step, from which this run did not go on, becomes a snapshot. Nothing is dropped where the new
        backup has not come out whole.
        """
        self.checkpoints.require_lock()
        source, target = self.checkpoints.path(step), self.folder / f"backup-{step:08d}"
        if not _hold_the_same(source, target):
            if target.exists():
                self._put_aside(target)
            self._copy(source, target)
        points = self.points()
        if any(point.path == target and point.whole for point in points):
            for point in points:
                if point.kind == "backup" and point.path != target:
                    self.checkpoints.drop(point.path) if point.step < step else self._put_aside(point.path)
        return target

    def set_aside_newer_than(self, step: int) -> None:
        """Make way for a run that goes on from ``step``: rename damaged checkpoints, and keep newer backups for good.

        Such a backup may be the only whole copy of the newest model, and the next backup would take its place.
        """
        newer = [p for p in self.points() if p.step > step and p.kind == "backup"]
        self.checkpoints.set_aside_newer_than(step)
        for point in newer:
            self._put_aside(point.path)

    def find(self, step: int | None = None, name: str | None = None) -> RestorePoint:
        """Return the point with this folder name or step, or without either the backup.

        Raises SwapfastError naming what there is where no point fits, or several that differ.
        """
        if step is not None and name is not None:
            raise SwapfastError(f"--step {step} with --from {name}: give one of them")
        points = self.points()
        if name is not None:
            matches = [point for point in points if point.path.name == name]
            request = f"--from {name}"
        elif step is not None:
            matches = [point for point in points if point.step == step]
            request = f"--step {step}"
        else:
            matches = [point for point in points if point.kind == "backup"]
            request = "no --step given"
        if not matches:
            problem = "there is no backup" if name is None and step is None else "there is none such"
            raise SwapfastError(
                f"{request}: {problem} in {self.folder}; `swapfast restore {self.folder} --list` shows what there is"
            )
        if len({json.dumps(_state(point.path).get("files")) for point in matches if point.whole}) > 1:
            names = ", ".join(point.path.name for point in matches)
            raise SwapfastError(f"{request}: there are several that differ: {names}; say which with --from NAME")
        return next((point for point in matches if point.whole), matches[0])

    def restore(self, point: RestorePoint) -> list[tuple[Path, Path]]:
        """Make ``point`` the checkpoint that training goes on from; return (old, new path) of what was put aside.

        Nothing is lost, also where this is killed half-way: the checkpoint is there before those that are newer are
        renamed to snapshots. Raises SwapfastError where ``point`` is damaged, before anything is changed.
        """
        try:
            step = self.checkpoints.read(point.path).step
        except UNREADABLE as error:
            raise SwapfastError(f"{point.path}: is damaged ({error}); choose another with --step or --from") from error
        target = self.checkpoints.path(step)
        renamed: list[tuple[Path, Path]] = []
        try:
            if point.path != target and not _hold_the_same(point.path, target):
                if target.exists():
                    renamed.append((target, self._put_aside(target)))
                self._copy(point.path, target)
            newer = [p for p in self.points() if p.step > step and p.kind != "snapshot"]
            renamed += [(p.path, self._put_aside(p.path)) for p in reversed(newer)]
            flush(self.folder)
        except OSError as error:
            raise cannot_write(target, error, self._way_out()) from error
        return renamed

    def _put_aside(self, path: Path) -> Path:
        """Rename a checkpoint or backup to a snapshot, and return the new path.

        One that is a snapshot already is removed; a damaged one is marked as such.
        """
        try:
            step = self.checkpoints.read(path).step
        except UNREADABLE:
            return self.checkpoints.set_aside_damaged(path)
        target = self._free_name(path, step)
        if target.exists():
            self.checkpoints.drop(path)
        else:
            path.rename(target)
        return target

    def _free_name(self, source: Path, step: int) -> Path:
        """Return a name for a snapshot that is free, or that of the snapshot that holds the same already."""
        target, number = self.folder / f"snapshot-{step:08d}", 1
        while target.exists() and not _hold_the_same(source, target):
            number += 1
            target = self.folder / f"snapshot-{step:08d}-{number}"
        return target

    def _way_out(self) -> str:
        return f"remove snapshots that are not needed{self.checkpoints.assurance()}"

    def _copy(self, source: Path, target: Path) -> None:
        self.checkpoints.require_lock()
        temporary = temporary_name(target)
        try:
            temporary.mkdir()
            for file in sorted(source.iterdir()):
                if file.is_file():  # a network drive or a notebook may have put a folder of its own there
                    _link(file, temporary / file.name)
            flush(temporary)
            temporary.rename(target)
            flush(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise cannot_write(target, error, self._way_out()) from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links, such as object storage that is mounted
        shutil.copyfile(source, target)
        flush(target)


def describe(folder: Path, points: list[RestorePoint]) -> str:
    """Return the text of ``swapfast restore MODEL --list``."""
    if not points:
        return f"{folder}: nothing to go back to"
    newest = max((p.step for p in points if p.kind == "checkpoint" and p.whole), default=None)
    lines = [f"{point}{'  <- training goes on here' if _goes_on(point, newest) else ''}" for point in points]
    return "\n".join(lines)


def _goes_on(point: RestorePoint, newest: int | None) -> bool:
    return point.kind == "checkpoint" and point.step == newest
