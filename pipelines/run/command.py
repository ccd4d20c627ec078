"""``swapfast train``: one run, from what is asked for to the exit code."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.run.build import build_trainer, find_rate
from pipelines.run.plan import plan_run
from pipelines.run.request import Plan, TrainRequest
from pipelines.sides import Log
from swapfast.bars import Bars
from swapfast.config import RunConfig
from swapfast.errors import EXIT_DONE, SwapfastError
from swapfast.preview.buffer import check_display
from swapfast.printing import hurry, printable
from swapfast.processes import Processes, exit_code_when_stopped, join_processes, several_tasks
from swapfast.sources import require
from swapfast.stop import StopRequest, stop_file_exists
from swapfast.terminal import TerminalKeys, can_redraw, is_foreground
from swapfast.training.json_lines import JsonLines
from swapfast.training.live_block import KEYS, LiveBlock
from swapfast.training.memory import memory_explained
from swapfast.training.progress import NoProgress, ProgressLine, WarningsOnly
from swapfast.training.trainer import Trainer
from swapfast.watch.address import start_page


def train(request: TrainRequest, stop: StopRequest) -> int:
    """Train as one of the processes that torchrun started, or as the only one; return the exit code."""
    run = request.config.run
    stop_file = Path(run.stop_file) if run.stop_file else None
    is_old = stop_file is not None and stop_file.exists()  # looked at first: one that comes while ranks wait counts
    # The time limit counts from before the processes join: those that come last may take hours.
    with stop.watching(None if is_old else stop_file, run.time_limit_s), join_processes(run.device) as processes:
        if stop_file is not None and is_old:
            raise stop_file_exists(stop_file)  # where the others are told
        return _train(request, stop, processes)


def _train(request: TrainRequest, stop: StopRequest, processes: Processes) -> int:
    run = request.config.run
    progress = pick_progress(run) if processes.is_first else NoProgress()
    log = progress.log
    hurry()  # a reader that stands still must not hold up the training
    require(request.config, "run.input_a", "run.input_b", "run.model_dir")
    if run.preview and processes.is_first:
        _check_window()
    with Bars(processes.is_first and not run.quiet) as bars:
        plan = plan_run(request, bars, processes)
        if plan.step >= run.iterations and not plan.only_graph:
            processes.publish_files_ready()
            text = f"{plan.step} iterations are trained already; give a larger -i to train on"
            progress.end(plan.step, text, EXIT_DONE)
            return EXIT_DONE
    explained = memory_explained(functools.partial(_less_memory, plan))
    with explained, _locked(plan, log) if processes.is_first else contextlib.nullcontext():
        if processes.is_first:
            plan.checkpoints.try_save()
            if run.watch:
                for line in start_page(run.model_folder, run.watch):
                    log(line)
        with Bars(processes.is_first and not run.quiet) as bars:
            trainer = build_trainer(plan, stop, log, bars, progress)
            if plan.finds_rate:
                find_rate(plan, trainer, log, bars("looking for a learning rate"))
        if plan.only_graph:
            return exit_code_when_stopped() if stop else EXIT_DONE
        ended = False
        try:
            with keys(trainer, progress, plan.checkpoints.folder) if processes.is_first else contextlib.nullcontext():
                trainer.train()
            ended = True
        finally:
            if not ended:
                progress.end(trainer.step, "")
    return _report_end(trainer, run.model_folder, stop, progress)


def _check_window() -> None:
    """Raise SwapfastError where ``-p`` has no display to open a window on: nothing is lost yet."""
    try:
        check_display()
    except SwapfastError as error:
        raise SwapfastError(f"-p/--preview: {error}; leave -p out") from error


def pick_progress(run: RunConfig) -> ProgressLine:
    """Return what shows a person or a program how training goes."""
    if run.quiet:
        return WarningsOnly()
    if run.json:
        return JsonLines(iterations=run.iterations)
    if can_redraw(sys.stdout):
        return LiveBlock(iterations=run.iterations, has_keys=is_foreground(0))
    return ProgressLine(iterations=run.iterations)


def keys(trainer: Trainer, progress: ProgressLine, folder: Path) -> TerminalKeys:
    """Return what answers keys while training, where there is a terminal: Enter, S and P."""
    stop, preview = trainer.stop, folder / "preview.png"

    def leave() -> None:
        progress.log("Enter: saves and leaves after this iteration")
        stop.request_from_thread("Enter")

    def save() -> None:
        progress.log("S: saves after this iteration")
        stop.ask_to_save()

    def draw() -> None:
        progress.log(f"P: draws {preview} after this iteration")
        trainer.refresh_preview()

    told: set[str] = set()

    def other(key: str) -> None:
        if key not in told:
            told.add(key)
            progress.log(f"{printable(key)!r} means nothing here. {KEYS}   Ctrl-C: as Enter")

    forget = progress.forget if isinstance(progress, LiveBlock) else lambda: None
    return TerminalKeys({"\n": leave, "s": save, "p": draw}, other, forget)


@contextlib.contextmanager
def _locked(plan: Plan, log: Log) -> Iterator[None]:
    """Hold the model folder. Where it is taken in a job of several tasks, the error says how they train as one."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(plan.checkpoints.locked(log))
        except SwapfastError as error:
            raise SwapfastError(f"{error}{several_tasks(os.environ)}", error.code) from error
        yield


def _report_end(trainer: Trainer, model_folder: Path, stop: StopRequest, progress: ProgressLine) -> int:
    """Say how the training ended; return the exit code."""
    if trainer.unwarped:
        progress.log(
            f"{trainer.unwarped} of {trainer.faces} faces could not be warped to landmarks (theirs, or those of the "
            "face to warp to, lie on one line, in one place or far outside) and were fed unwarped"
        )
    if stop:
        code = exit_code_when_stopped()
        note = "; code 0, so that torchrun does not restart it" if code == EXIT_DONE else ""
        text = (
            f"stopped by {stop.reason} and saved at iteration {trainer.step}; the same command goes on from there{note}"
        )
        progress.end(trainer.step, text, code)
        return code
    text = f"done: {trainer.step} iterations in {model_folder}; look at {model_folder / 'preview.png'}"
    progress.end(trainer.step, text, EXIT_DONE)
    return EXIT_DONE


def _less_memory(plan: Plan, on_gpu: bool) -> list[str]:
    """Return the flags that need less memory than what is planned."""
    ways = ["train with a smaller -b"]
    cache = plan.config.run.cache
    if on_gpu:
        ways += ["--precision bf16"] * (plan.precision == "fp32")
        ways += ["--cache host"] * (cache in ("auto", "gpu"))
    else:
        ways += ["--cache host"] * (cache == "gpu")
        ways += ["--cache off"] * (cache in ("auto", "host"))
    ways += ["--ema off"] * bool(plan.config.optimizer.half_lives)
    model = plan.config.model
    return ways + ["start a new model with --lowmem"] * (model.name == "original" and not model.lowmem)
