"""Kill training runs at random moments and check that each next run resumes with nothing lost but unsaved steps.

    python -m tests.crash_harness --runs 100 --json crash.json

One model is trained by a series of runs. Each run is the real command line in a process of its own. Each kill aims at
a phase and sends SIGKILL at a random moment within that phase's usual length; by then the run may be in the next one:
    start      reading folders, decoding (every other time the cache is removed before), building
    train      between and in steps
    saving     a checkpoint being written
    keeping    a snapshot or backup being made
    preview    the picture being drawn and written
After each kill every checkpoint, snapshot and backup must be whole, the newest no older than before, and at most one
save interval behind the step that the run had reached. The next run must resume from it. After the last kill one more
run finishes; its weights must equal, to the bit, those of a run that nobody killed.

Results: one row per phase that kills hit, and one for all. lost: steps that must be made again. restart_ms: from the
start of the process (its imports done, the kernels loaded) to the end of its first step. A violated guarantee ends the
command with code 1.
``tests/test_running.py`` runs it with a few kills and uses its processes for signals.
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
KEPT_SNAPSHOTS = 3  # after a check the older ones are removed, as a user would
TINY = ["-t", "tiny", "--recipe", "faceswap", "-b", "4", "--learning-rate", "1e-3", "--preview-images", "2"]
TRAIN = [*TINY, "-s", str(INTERVAL), "-I", str(SNAPSHOTS)]
# What the process that runs are forked from has loaded: whoever starts it first chooses, so all tests choose this.
FORKED = [*PRELOADED, "cli", "torch._dynamo", "swapfast.logs.tensorboard", "tests.loaded_kernels"]
_POLL_S = 0.002
_PATIENCE_S = 120.0


class PhaseMarks:
    """A file that outlives a run and holds its phase, how often and how long it was in each phase, and its step."""

    _FORMAT = struct.Struct(f"<iqqd{len(PHASES)}q{len(PHASES)}d")

    def __init__(self, path: Path, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(self._FORMAT.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self._FORMAT.size)
        self._values = list(self._FORMAT.unpack(self._map))

    def _put(self) -> None:
        self._map[:] = self._FORMAT.pack(*self._values)

    def refresh(self) -> PhaseMarks:
        """Read the values that the run has written since."""
        self._values = list(self._FORMAT.unpack(self._map))
        return self

    @property
    def phase(self) -> str:
        """The phase that the run is in, or died in."""
        return PHASES[self._values[0]]

    @property
    def resumed_step(self) -> int:
        """The step that the run resumed from, valid once ``step`` is not 0."""
        return self._values[1]

    @property
    def step(self) -> int:
        """The model's iterations; 0 before the first step of this run."""
        return self._values[2]

    @property
    def first_step_s(self) -> float:
        """The end of the run's first step by ``time.monotonic``, s; 0 before it."""
        return self._values[3]

    def entries(self, phase: str) -> int:
        """Return how often the run entered a phase."""
        return self._values[4 + PHASES.index(phase)]

    def mean_s(self, phase: str) -> float:
        """Return the mean duration of a phase, s."""
        return self._values[4 + len(PHASES) + PHASES.index(phase)] / max(1, self.entries(phase))

    def enter(self, phase: str) -> None:
        """Mark that the run is in ``phase`` now."""
        self._values[0] = PHASES.index(phase)
        self._values[4 + self._values[0]] += 1
        self._put()

    @contextlib.contextmanager
    def phase_of_block(self, phase: str) -> Iterator[None]:
        """Mark ``phase`` during the block, and the phase before it afterwards."""
        outer_phase, start = self._values[0], time.perf_counter()
        self.enter(phase)
        try:
            yield
        finally:
            self._values[4 + len(PHASES) + PHASES.index(phase)] += time.perf_counter() - start
            self._values[0] = outer_phase
            self._put()

    def end_step(self, previous: int, step: int) -> None:
        """Mark that a step has ended: the model had ``previous`` iterations and has ``step`` now."""
        if not self._values[2]:
            self._values[1], self._values[3] = previous, time.monotonic()
        self._values[2] = step
        self._put()


def _mark_calls(marks: PhaseMarks, owner: type, name: str, phase: str) -> None:
    method = getattr(owner, name)

    def marked(*arguments, **keywords):
        with marks.phase_of_block(phase):
            return method(*arguments, **keywords)

    setattr(owner, name, marked)


def _mark_all_phases(marks: PhaseMarks) -> None:
    """Wrap the parts of this process' run so that they mark their phase and do what they did."""
    from pipelines.preview import PreviewWriter
    from swapfast.bars import Bars
    from swapfast.training.trainer import Trainer

    unmarked_bar = Bars.__call__

    def marking_bar(bars: Bars, description: str):
        update = unmarked_bar(bars, description)
        phase = {"reading": "reading", "decoding": "decoding"}.get(description.split()[0], "start")
        marks.enter(phase)

        def marked(completed: int, total: int) -> None:
            marks.enter(phase if completed < total else "start")
            update(completed, total)

        return marked

    Bars.__call__ = marking_bar
    _mark_calls(marks, CheckpointFolder, "save", "saving")
    _mark_calls(marks, Snapshots, "snapshot", "keeping")
    _mark_calls(marks, Snapshots, "back_up", "keeping")
    _mark_calls(marks, PreviewWriter, "on_save", "preview")
    unmarked = Trainer.train_one_batch

    def train_one_batch(trainer: Trainer):
        previous = trainer.step
        if not marks.step:
            marks.enter("train")
        losses = unmarked(trainer)
        marks.end_step(previous, trainer.step)
        marks.enter("train")
        return losses

    Trainer.train_one_batch = train_one_batch


class SignallingMarks(PhaseMarks):
    """Marks whose process sends itself signal ``number`` when it enters a phase for the ``nth`` time."""

    def __init__(self, path: Path, number: int, phase: str, nth: int) -> None:
        super().__init__(path)
        self._number, self._phase, self._nth = number, phase, nth

    def enter(self, phase: str) -> None:
        """Mark the phase, then send the signal where it is due."""
        super().enter(phase)
        if phase == self._phase and self.entries(phase) == self._nth:
            signal.raise_signal(self._number)


def _child(
    arguments: list[str], marks: Path, output: Path, signal_at: tuple[int, str, int] | None, variables: dict[str, str]
) -> None:
    """Run the command line with ``arguments`` in this process."""
    os.setsid()
    os.environ.update(variables)
    with output.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    import cli

    _mark_all_phases(PhaseMarks(marks) if signal_at is None else SignallingMarks(marks, *signal_at))
    sys.exit(cli.main(arguments))


class TrainingProcess:
    """A run in a process of its own, forked from one that has done the imports.

    folder: for its marks and output. signal_at: (signal, phase, nth), a signal that the run sends to itself when it
    enters ``phase`` for the ``nth`` time. variables: added to its environment.
    """

    def __init__(
        self,
        arguments: list,
        folder: Path,
        signal_at: tuple[int, str, int] | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._output = folder / "output.txt"
        self._output.write_bytes(b"")
        self.marks = PhaseMarks(folder / "marks", create=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(FORKED)
        command = [str(argument) for argument in arguments]
        child_arguments = (command, folder / "marks", self._output, signal_at, variables or {})
        self.process = context.Process(target=_child, args=child_arguments)
        self.process.start()
        self.start_s = time.monotonic()

    def wait_for(self, phase: str, nth: int) -> bool:
        """Wait until the run enters ``phase`` for the ``nth`` time; return False if it ends before."""
        while self.marks.refresh().entries(phase) < nth:
            if not self.process.is_alive():
                return False
            if time.monotonic() - self.start_s > _PATIENCE_S:
                raise RuntimeError(f"a run did not come to phase {phase}: {self.output()}")
            time.sleep(_POLL_S)
        return True

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.process.kill()
        self.process.join()
        self.marks.refresh()

    def wait(self) -> int:
        """Wait for the end of the run and return its exit code."""
        self.process.join(_PATIENCE_S)
        if self.process.exitcode is None:
            self.kill()
            raise RuntimeError(f"a run does not end: {self.output()}")
        self.marks.refresh()
        return self.process.exitcode

    def output(self) -> str:
        """Return what the run has printed."""
        return self._output.read_text(errors="replace")

    @property
    def restart_ms(self) -> float | None:
        """The time from the start of the run to the end of its first step; None before that."""
        return 1000 * (self.marks.first_step_s - self.start_s) if self.marks.first_step_s else None


@dataclass
class Kill:
    """One killed run: its phase and step at that moment, and the newest checkpoint that it left."""

    phase: str
    step: int
    newest_checkpoint: int
    restart_ms: float | None

    @property
    def lost(self) -> int:
        """The number of steps that must be made again."""
        return max(0, self.step - self.newest_checkpoint)


class GuaranteeViolated(Exception):
    """A kill has cost more than it may."""


class CrashTest:
    """A model that is trained by runs that are killed.

    faces: holds the folders a and b. folder: for the models and the runs' outputs. seed: chooses the moments.
    """

    def __init__(self, faces: Path, folder: Path, seed: int) -> None:
        self.faces, self.folder = faces, folder
        self.model = folder / "model"
        self.random = random.Random(seed)
        self.checkpoints = CheckpointFolder(self.model)
        self.newest_checkpoint = 0
        self.snapshots: set[str] = set()
        self.durations: dict[str, float] = {}

    def command(self, model: Path, iterations: int) -> list:
        """Return the arguments that a person would type."""
        return ["train", "-A", self.faces / "a", "-B", self.faces / "b", "-m", model, *TRAIN, "-i", iterations]

    def uninterrupted(self, name: str, iterations: int) -> Path:
        """Train without a kill, measure the length of each phase, and return the last checkpoint."""
        process = TrainingProcess(self.command(self.folder / name, iterations), self.folder / "runs" / name)
        if process.wait() != 0:
            raise GuaranteeViolated(f"the run that nobody killed failed: {process.output()}")
        self.durations = {phase: process.marks.mean_s(phase) for phase in PHASES}
        self.durations |= {"start": process.restart_ms / 1000, "train": 0.05}
        return CheckpointFolder(self.folder / name).path(iterations)

    def kill_one(self, number: int) -> Kill:
        """Start a run, kill it in the phase that ``number`` chooses, and check what it leaves."""
        aim = AIMS[number % len(AIMS)]
        if aim == "start" and number % (2 * len(AIMS)) == 0:
            shutil.rmtree(self.model / "cache", ignore_errors=True)
        process = TrainingProcess(self.command(self.model, 10**6), self.folder / "runs" / "killed")
        is_running = aim == "start" or process.wait_for(aim, self.random.randint(1, 4))
        time.sleep(self.random.uniform(0, 0.9 * self.durations[aim]))
        process.kill()
        if not is_running:
            raise GuaranteeViolated(f"a run ended by itself: {process.output()}")
        marks = process.marks
        if marks.step and marks.resumed_step != self.newest_checkpoint:
            raise GuaranteeViolated(
                f"a run went on from iteration {marks.resumed_step} though {self.newest_checkpoint} was saved"
            )
        self._check_files()
        kill = Kill(marks.phase, marks.step, self.newest_checkpoint, process.restart_ms)
        if kill.lost > INTERVAL:
            raise GuaranteeViolated(f"{kill.lost} steps are lost in phase {kill.phase}")
        return kill

    def _check_files(self) -> None:
        """Raise GuaranteeViolated where a file is damaged or an earlier checkpoint or snapshot is gone."""
        points = Snapshots(self.checkpoints).points()
        for point in points:
            try:
                self.checkpoints.read(point.path)
            except UNREADABLE as error:
                raise GuaranteeViolated(f"{point.path.name} is damaged: {error}") from error
        steps = self.checkpoints.steps()
        if self.newest_checkpoint and (not steps or steps[-1] < self.newest_checkpoint):
            raise GuaranteeViolated(f"the checkpoint of iteration {self.newest_checkpoint} is gone")
        self.newest_checkpoint = steps[-1] if steps else 0
        snapshots = [point.path for point in points if point.kind == "snapshot"]
        missing = self.snapshots - {path.name for path in snapshots}
        if missing:
            raise GuaranteeViolated(f"snapshots are gone: {sorted(missing)}")
        for path in snapshots[:-KEPT_SNAPSHOTS]:
            shutil.rmtree(path)
        self.snapshots = {path.name for path in snapshots[-KEPT_SNAPSHOTS:]}

    def finish(self) -> None:
        """Train to the end, and compare the weights with those of a run that nobody killed."""
        last = self.newest_checkpoint + INTERVAL
        process = TrainingProcess(self.command(self.model, last), self.folder / "runs" / "last")
        if process.wait() != 0:
            raise GuaranteeViolated(f"the last run failed: {process.output()}")
        expected = self.uninterrupted("whole", last)
        for name in ("model.safetensors", "optimizer.safetensors"):
            if (expected / name).read_bytes() != (self.checkpoints.path(last) / name).read_bytes():
                raise GuaranteeViolated(f"{name} of iteration {last} is not that of the run that nobody killed")


def _row(name: str, kills: list[Kill]) -> dict:
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


def kill_runs(faces: Path, folder: Path, runs: int, seed: int = 1) -> list[dict]:
    """Kill ``runs`` runs, finish the training and return the rows. Raises GuaranteeViolated."""
    crash_test = CrashTest(faces, folder, seed)
    crash_test.uninterrupted("first", 2 * SNAPSHOTS)
    kills = [crash_test.kill_one(number) for number in range(runs)]
    crash_test.finish()
    by_phase = {phase: [kill for kill in kills if kill.phase == phase] for phase in PHASES}
    rows = [_row(phase, phase_kills) for phase, phase_kills in by_phase.items() if phase_kills]
    return [*rows, _row("all", kills) | {"iterations": crash_test.checkpoints.steps()[-1], "same_weights": True}]


def main() -> int:
    """Kill runs, print the rows, and return the exit code."""
    from swapfast.synthetic import synthesize

    flags = parser("Kill training runs and see that nothing is lost")
    flags.add_argument("--runs", type=int, default=100, help="how many are killed; default 100")
    flags.add_argument("--seed", type=int, default=1, help="of the moments; default 1")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faces = Path(folder) / "faces"
        synthesize(faces, 40, 64, 1, 6)
        try:
            rows = kill_runs(faces, Path(folder), 8 if options.quick else options.runs, options.seed)
        except GuaranteeViolated as violation:
            print(f"violated: {violation}", file=sys.stderr)
            return 1
    show(rows)
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
