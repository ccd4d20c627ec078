"""Runs killed at random moments: does each go on, and is nothing lost but the steps since the last save?

    python -m benchmarks.crash --runs 100 --json benchmarks/results/crash_MACHINE.json

One model is trained by one run after the other, each by the command line as it is, in a process of its own. Each is
aimed at a phase and killed by SIGKILL at a random moment within its usual length; it may be in the next one by then:
    start      reading folders, decoding (every other time the cache is removed before), building
    train      between and in steps
    saving     a checkpoint being written
    keeping    a snapshot or backup being made
    preview    the picture being drawn and written
After each kill every checkpoint, snapshot and backup there is must be whole, the newest no older than before, and no
more than one save interval behind the step the run had reached. The next run must go on from it. When all are killed,
one more run finishes; its weights must be, to the bit, those of a run that nobody killed.

Rows: one per phase that kills hit, and their sum. lost: steps that had to be made again. restart_ms: from the process'
beginning (its imports done) to the end of its first step, where that came. A problem ends the benchmark with code 1.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import PRELOADED, parser, save, show
from swapfast.checkpoints.folder import UNREADABLE, CheckpointFolder
from swapfast.checkpoints.snapshots import Snapshots

PHASES = ("start", "reading", "decoding", "train", "saving", "keeping", "preview")
AIMS = ("start", "train", "saving", "keeping", "preview")
INTERVAL, SNAPSHOTS = 4, 12
KEPT_SNAPSHOTS = 3  # of those that were found whole; the others are removed, as a user would
TINY = ["-t", "tiny", "-b", "4", "--learning-rate", "1e-3", "--preview-images", "2"]
TRAIN = [*TINY, "-s", str(INTERVAL), "-I", str(SNAPSHOTS)]
_POLL_S = 0.0002
_PATIENCE_S = 120.0


class Marks:
    """Where a run is, in a file that outlives it: its phase, how often and how long it was in each, its steps."""

    _FORMAT = struct.Struct(f"<iqqd{len(PHASES)}q{len(PHASES)}d")

    def __init__(self, path: Path, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(self._FORMAT.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self._FORMAT.size)
        self._values = list(self._FORMAT.unpack(self._map))

    def _put(self) -> None:
        self._map[:] = self._FORMAT.pack(*self._values)

    def look(self) -> Marks:
        """Read what the run has written since."""
        self._values = list(self._FORMAT.unpack(self._map))
        return self

    @property
    def phase(self) -> str:
        """The one it is in, or died in."""
        return PHASES[self._values[0]]

    @property
    def first(self) -> int:
        """The step it went on from, valid once ``step`` is not 0."""
        return self._values[1]

    @property
    def step(self) -> int:
        """How many iterations the model has had; 0: none in this run."""
        return self._values[2]

    @property
    def first_at(self) -> float:
        """When its first step ended, by the clock that ``time.monotonic`` reads; 0: not yet."""
        return self._values[3]

    def entered(self, phase: str) -> int:
        """How often it began."""
        return self._values[4 + PHASES.index(phase)]

    def mean_s(self, phase: str) -> float:
        """How long it took."""
        return self._values[4 + len(PHASES) + PHASES.index(phase)] / max(1, self.entered(phase))

    def enter(self, phase: str) -> None:
        """The run is there now."""
        self._values[0] = PHASES.index(phase)
        self._values[4 + self._values[0]] += 1
        self._put()

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """The run is there during the block, and then where it was before."""
        before, began = self._values[0], time.perf_counter()
        self.enter(phase)
        try:
            yield
        finally:
            self._values[4 + len(PHASES) + PHASES.index(phase)] += time.perf_counter() - began
            self._values[0] = before
            self._put()

    def stepped(self, before: int, after: int) -> None:
        """A step has ended."""
        if not self._values[2]:
            self._values[1], self._values[3] = before, time.monotonic()
        self._values[2] = after
        self._put()


def _mark_calls(marks: Marks, owner: type, name: str, phase: str) -> None:
    plain = getattr(owner, name)

    def marked(*arguments, **more):
        with marks.within(phase):
            return plain(*arguments, **more)

    setattr(owner, name, marked)


def _mark_everything(marks: Marks) -> None:
    """Let the parts of this process' run tell where they are; what they do stays the same."""
    import cli
    from pipelines.preview import PreviewWriter
    from swapfast.training.trainer import Trainer

    class MarkingBars(cli.Bars):
        def __call__(self, description: str):
            update = super().__call__(description)
            phase = {"reading": "reading", "decoding": "decoding"}.get(description.split()[0], "start")
            marks.enter(phase)

            def marked(done: int, total: int) -> None:
                marks.enter(phase if done < total else "start")
                update(done, total)

            return marked

    cli.Bars = MarkingBars
    _mark_calls(marks, CheckpointFolder, "save", "saving")
    _mark_calls(marks, Snapshots, "snapshot", "keeping")
    _mark_calls(marks, Snapshots, "back_up", "keeping")
    _mark_calls(marks, PreviewWriter, "__call__", "preview")
    plain = Trainer.train_one_batch

    def train_one_batch(trainer: Trainer):
        before = trainer.step
        if not marks.step:
            marks.enter("train")
        losses = plain(trainer)
        marks.stepped(before, trainer.step)
        marks.enter("train")
        return losses

    Trainer.train_one_batch = train_one_batch


class Signalling(Marks):
    """Marks whose process sends itself ``number`` when it enters a phase for the ``nth`` time."""

    def __init__(self, path: Path, number: int, phase: str, nth: int) -> None:
        super().__init__(path)
        self._number, self._phase, self._nth = number, phase, nth

    def enter(self, phase: str) -> None:
        """See Marks."""
        super().enter(phase)
        if phase == self._phase and self.entered(phase) == self._nth:
            signal.raise_signal(self._number)


def _child(
    arguments: list[str], marks: Path, output: Path, sends: tuple[int, str, int] | None, variables: dict[str, str]
) -> None:
    """The command line with ``arguments``; sends: (signal, phase, nth), to itself."""
    os.setsid()
    os.environ.update(variables)
    with output.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    import cli

    _mark_everything(Marks(marks) if sends is None else Signalling(marks, *sends))
    sys.exit(cli.main(arguments))


class Started:
    """A run of its own process, forked from one that has done the imports.

    sends: (signal, phase, nth), what it sends to itself when it enters the phase. variables: of its environment.
    """

    def __init__(
        self,
        arguments: list,
        folder: Path,
        sends: tuple[int, str, int] | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.txt"
        self.output.write_bytes(b"")
        self.marks = Marks(folder / "marks", create=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, "cli", "torch._dynamo", "torch.utils.tensorboard"])
        given = [str(argument) for argument in arguments]
        needed = (given, folder / "marks", self.output, sends, variables or {})
        self.process = context.Process(target=_child, args=needed)
        self.process.start()
        self.began = time.monotonic()

    def wait_for(self, phase: str, nth: int) -> bool:
        """Until it enters ``phase`` for the ``nth`` time; False if it ends before."""
        while self.marks.look().entered(phase) < nth:
            if not self.process.is_alive():
                return False
            if time.monotonic() - self.began > _PATIENCE_S:
                raise RuntimeError(f"a run did not come to phase {phase}: {self.said()}")
            time.sleep(_POLL_S)
        return True

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.join()
        self.marks.look()

    def wait(self) -> int:
        """Its exit code."""
        self.process.join(_PATIENCE_S)
        if self.process.exitcode is None:
            self.kill()
            raise RuntimeError(f"a run does not end: {self.said()}")
        self.marks.look()
        return self.process.exitcode

    def said(self) -> str:
        """Its output."""
        return self.output.read_text(errors="replace")

    @property
    def restart_ms(self) -> float | None:
        """From its beginning to the end of its first step."""
        return 1000 * (self.marks.first_at - self.began) if self.marks.first_at else None


@dataclass
class Killed:
    """One kill: in which phase, at which step, what was the newest checkpoint then, and how long the start took."""

    phase: str
    step: int
    newest: int
    restart_ms: float | None

    @property
    def lost(self) -> int:
        """Steps that have to be made again."""
        return max(0, self.step - self.newest)


class Broken(Exception):
    """What must not happen."""


class Endurance:
    """A model that is trained by runs that are killed."""

    def __init__(self, faces: Path, folder: Path, seed: int) -> None:
        self.faces, self.folder = faces, folder
        self.model = folder / "model"
        self.random = random.Random(seed)
        self.checkpoints = CheckpointFolder(self.model)
        self.newest = 0
        self.snapshots: set[str] = set()
        self.durations: dict[str, float] = {}

    def command(self, model: Path, iterations: int) -> list:
        """What a person would type."""
        return ["train", "-A", self.faces / "a", "-B", self.faces / "b", "-m", model, *TRAIN, "-i", iterations]

    def uninterrupted(self, name: str, iterations: int) -> Path:
        """A run that nobody kills; from it the length of each phase is known. Returns its last checkpoint."""
        started = Started(self.command(self.folder / name, iterations), self.folder / "runs" / name)
        if started.wait() != 0:
            raise Broken(f"the run that nobody killed failed: {started.said()}")
        self.durations = {phase: started.marks.mean_s(phase) for phase in PHASES}
        self.durations |= {"start": started.restart_ms / 1000, "train": 0.05}
        return CheckpointFolder(self.folder / name).path(iterations)

    def kill_one(self, number: int) -> Killed | None:
        """Start a run, kill it, and see what is left; None where it could not be killed in time."""
        aim = AIMS[number % len(AIMS)]
        if aim == "start" and number % (2 * len(AIMS)) == 0:
            shutil.rmtree(self.model / "cache", ignore_errors=True)
        started = Started(self.command(self.model, 10**6), self.folder / "runs" / "killed")
        there = aim == "start" or started.wait_for(aim, self.random.randint(1, 4))
        time.sleep(self.random.uniform(0, 0.9 * self.durations[aim]))
        started.kill()
        if not there:
            raise Broken(f"a run ended by itself: {started.said()}")
        marks = started.marks
        if marks.step and marks.first != self.newest:
            raise Broken(f"a run went on from iteration {marks.first} though {self.newest} was saved")
        self._look()
        killed = Killed(marks.phase, marks.step, self.newest, started.restart_ms)
        if killed.lost > INTERVAL:
            raise Broken(f"{killed.lost} steps are lost in phase {killed.phase}")
        return killed

    def _look(self) -> None:
        """Everything there is must be whole, and nothing that was there before may be gone."""
        points = Snapshots(self.checkpoints).points()
        for point in points:
            try:
                self.checkpoints.read(point.path)
            except UNREADABLE as error:
                raise Broken(f"{point.path.name} is damaged: {error}") from error
        steps = self.checkpoints.steps()
        if self.newest and (not steps or steps[-1] < self.newest):
            raise Broken(f"the checkpoint of iteration {self.newest} is gone")
        self.newest = steps[-1] if steps else 0
        snapshots = [point.path for point in points if point.kind == "snapshot"]
        gone = self.snapshots - {path.name for path in snapshots}
        if gone:
            raise Broken(f"snapshots are gone: {sorted(gone)}")
        for path in snapshots[:-KEPT_SNAPSHOTS]:
            shutil.rmtree(path)
        self.snapshots = {path.name for path in snapshots[-KEPT_SNAPSHOTS:]}

    def finish(self) -> None:
        """One more run to the end; it must come to the same weights as one that nobody killed."""
        last = self.newest + INTERVAL
        started = Started(self.command(self.model, last), self.folder / "runs" / "last")
        if started.wait() != 0:
            raise Broken(f"the last run failed: {started.said()}")
        whole = self.uninterrupted("whole", last)
        for name in ("model.safetensors", "optimizer.safetensors"):
            if (whole / name).read_bytes() != (self.checkpoints.path(last) / name).read_bytes():
                raise Broken(f"{name} of iteration {last} is not that of the run that nobody killed")


def _row(name: str, kills: list[Killed]) -> dict:
    restarts = [kill.restart_ms for kill in kills if kill.restart_ms is not None]
    return {
        "name": "crash",
        "phase": name,
        "kills": len(kills),
        "lost_mean": round(statistics.mean(kill.lost for kill in kills), 2),
        "lost_max": max(kill.lost for kill in kills),
        "save_interval": INTERVAL,
        "restart_ms": round(statistics.median(restarts), 1) if restarts else None,
    }


def measure(faces: Path, folder: Path, runs: int, seed: int = 1) -> list[dict]:
    """Kill ``runs`` runs and finish; the rows. Raises Broken where something is not as it should be."""
    endurance = Endurance(faces, folder, seed)
    endurance.uninterrupted("first", 2 * SNAPSHOTS)
    kills = [endurance.kill_one(number) for number in range(runs)]
    endurance.finish()
    by_phase = {phase: [kill for kill in kills if kill.phase == phase] for phase in PHASES}
    rows = [_row(phase, hit) for phase, hit in by_phase.items() if hit]
    return [*rows, _row("all", kills) | {"iterations": endurance.checkpoints.steps()[-1], "same_weights": True}]


def main() -> int:
    """See the module."""
    from swapfast.synthetic import synthesize

    flags = parser("Kill training runs and see that nothing is lost")
    flags.add_argument("--runs", type=int, default=100, help="how many are killed; default 100")
    flags.add_argument("--seed", type=int, default=1, help="of the moments; default 1")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faces = Path(folder) / "faces"
        synthesize(faces, 40, 64, 1, 6)
        try:
            rows = measure(faces, Path(folder), 8 if given.quick else given.runs, given.seed)
        except Broken as problem:
            print(f"broken: {problem}", file=sys.stderr)
            return 1
    show(rows)
    save(rows, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
