"""What a page shows of one model folder."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from swapfast.checkpoints.requests import SNAPSHOT_REQUEST
from swapfast.errors import SwapfastError
from swapfast.files import write_file
from swapfast.logs.steplog import NAME
from swapfast.stop import SAVE_SIGNAL
from swapfast.watch.follower import LogFollower
from swapfast.watch.lock_holder import find_holder, send_signal
from swapfast.watch.pictures import HISTORY, PREVIEW, KeptPicture, kept_pictures, picture_tag

REQUESTS = ("save", "snapshot", "stop")
_KEPT_STATE = re.compile(r"(checkpoint|snapshot|backup)-([0-9]{8,12})(?:-[0-9]+)?")


class WatchedFolder:
    """A model folder that is looked at again and again. name: what the page calls it.

    ``poll`` never raises for what becomes of the folder: it may be empty, be deleted, come back, or be another one.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.follower = LogFollower(folder / "logs" / NAME)
        self.pictures: dict[int, KeptPicture] = {}
        self._listed: dict[str, int | None] = {}  # folder -> its time when it was listed
        self._kept: dict[str, list[int]] = {}  # checkpoint, snapshot, backup -> steps
        self._checkpoint_age = (0.0, 0.0)  # s, and when that was, by a clock that does not jump
        self._checkpoint: int | None = None
        self._grown_at = time.monotonic()
        self._status = "idle"
        self._preview: str | None = None

    def poll(self) -> bool:
        """Look again; return whether more of the log can be read right now."""
        self._status = self._look()
        if self._status == "gone":
            self.follower.poll()
            self._listed.clear()
            self.pictures, self._kept, self._checkpoint, self._preview = {}, {}, None, None
            return False
        lines = self.follower.lines, self.follower.step
        has_more = self.follower.poll()
        if (self.follower.lines, self.follower.step) != lines:
            self._grown_at = time.monotonic()
        self._preview = picture_tag(self.folder / PREVIEW)
        changed = [name for name in HISTORY if self._has_changed(self.folder / name)]
        if changed:
            self.pictures = kept_pictures(self.folder)
        if self._has_changed(self.folder):
            self._list_checkpoints()
        return has_more

    def _look(self) -> str:
        try:
            if not self.folder.is_dir():
                return "gone"
        except OSError:  # a network share that is away, or a folder above it that may not be entered any more
            return "gone"
        return "training" if find_holder(self.folder / ".lock") is not None else "idle"

    def _has_changed(self, folder: Path) -> bool:
        """Return whether entries of ``folder`` may have changed since the last call."""
        try:
            changed: int | None = os.stat(folder).st_mtime_ns
        except OSError:
            changed = None
        has_changed = self._listed.get(str(folder), -1) != changed
        self._listed[str(folder)] = changed
        return has_changed

    def _list_checkpoints(self) -> None:
        steps_of_kind: dict[str, list[int]] = {}
        try:
            names = os.listdir(self.folder)
        except OSError:
            return
        for match in filter(None, map(_KEPT_STATE.fullmatch, names)):
            steps_of_kind.setdefault(match[1], []).append(int(match[2]))
        before, self._kept = self._kept, {kind: sorted(steps) for kind, steps in steps_of_kind.items()}
        newest = max(steps_of_kind.get("checkpoint", []), default=None)
        if newest != self._checkpoint:
            self._checkpoint = newest
            self._checkpoint_age = self._age_of(newest), time.monotonic()
            if before and newest is not None:
                self.follower.note(f"saved at iteration {newest}")
        if before and len(self._kept.get("snapshot", [])) > len(before.get("snapshot", [])):
            self.follower.note(f"snapshot of iteration {self._kept['snapshot'][-1]}")

    def _age_of(self, step: int | None) -> float:
        """Return the seconds since a checkpoint was written, 0 where the clock was set back since."""
        try:
            return max(0.0, time.time() - os.stat(self.folder / f"checkpoint-{step:08d}").st_mtime)
        except (OSError, TypeError, ValueError):
            return 0.0

    @property
    def is_training(self) -> bool:
        """Whether somebody trained in the folder when it was last looked at."""
        return self._status == "training"

    def state(self) -> dict:
        """Return what the page shows as text. What only time changes is left out; see ``ages``."""
        log = self.follower
        iterations = log.about.get("iterations")
        seconds_left = None
        if self._status == "training" and isinstance(iterations, int) and log.rate and log.step is not None:
            seconds_left = round(max(0, iterations - log.step) / log.rate)
        return {
            "status": self._status,
            "step": log.step,
            "about": log.about,
            "latest": dict(log.latest),
            "verdict": {"text": "; ".join(log.verdict.gains), "warning": log.verdict.leak if log.verdict.warns else ""},
            "time_left_s": seconds_left,
            "checkpoint": self._checkpoint,
            "backup": max(self._kept.get("backup", []), default=None),
            "snapshots": len(self._kept.get("snapshot", [])),
            "preview": self._preview,
            "has_plain": any(picture.plain for picture in self.pictures.values()),
            "damaged": log.damaged,
            "sampled": log.is_sampled,
            "reading": log.progress,
        }

    def ages(self) -> dict:
        """Return the seconds since the last checkpoint and since the log last grew, by a clock that does not jump."""
        age, at = self._checkpoint_age
        now = time.monotonic()
        return {"checkpoint": round(age + now - at), "log": round(now - self._grown_at)}

    def picture(self, step: int | None, masked: bool) -> Path | None:
        """Return the file of the picture of ``step`` or, without one, of now; None where there is none.

        masked: with what lies outside the mask tinted; else without where there is such a picture.
        """
        pictures = self.pictures
        if step is None:
            newest = pictures[max(pictures)] if pictures else None
            name = newest.plain if newest is not None and not masked else None
            return self.folder / (name or PREVIEW)
        kept = pictures.get(step)
        return None if kept is None else self.folder / (kept.plain if kept.plain and not masked else kept.name)

    def ask(self, request: str) -> str | None:
        """Ask the run for one of REQUESTS; return why that was not possible, None where it was."""
        if SAVE_SIGNAL is None:
            return "this system has no signal for it"
        if request == "stop":
            return send_signal(self.folder / ".lock", signal.SIGTERM)
        if find_holder(self.folder / ".lock") is None:
            return "nobody trains in this folder"
        if request == "snapshot":
            try:
                write_file(self.folder / SNAPSHOT_REQUEST, b"")
            except SwapfastError as error:
                return str(error)
        problem = send_signal(self.folder / ".lock", SAVE_SIGNAL)
        if problem is not None and request == "snapshot":
            (self.folder / SNAPSHOT_REQUEST).unlink(missing_ok=True)
        return problem


def unique_names(folders: list[Path]) -> list[str]:
    """Return a short name for each folder: its own, with as many of those above it as tell it from the others."""
    names = []
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    for own in parts:
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in parts) > 1:
            count += 1
        names.append("/".join(own[-count:]))
    return names
