"""The command after a save: its variables, one at a time, and what its failure is worth."""

from __future__ import annotations

import signal
import threading
import time

import pytest
import torch

from swapfast.checkpoints.after_save import AfterSave
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.stop import POLL_S, SAME_S, StopRequest


def _wait(path, text: str) -> None:
    end = time.monotonic() + 20
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_is_told_where_and_when(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    after_save = AfterSave('echo "$SWAPFAST_STEP $SWAPFAST_MODEL_DIR" >> out', tmp_path / "model", said.append)
    for step in (5, 10):
        after_save.on_save(step)
        after_save.finish(StopRequest())
    assert (tmp_path / "out").read_text() == "".join(f"{step} {tmp_path / 'model'}\n" for step in (5, 10))
    assert said == []


def test_never_two_at_once_and_the_newest_at_last(tmp_path):
    """Four saves while the first command still runs: the second run is for the fourth."""
    out, go = tmp_path / "out", tmp_path / "go"
    command = f"echo begin $SWAPFAST_STEP >> {out}; while [ ! -e {go} ]; do sleep 0.02; done; echo end >> {out}"
    after_save = AfterSave(command, tmp_path, print)
    after_save.on_save(1)
    _wait(out, "begin 1")
    began = time.monotonic()
    for step in (2, 3, 4):
        after_save.on_save(step)
    assert time.monotonic() - began < 1, "nobody waits"
    go.touch()
    after_save.finish(StopRequest())
    assert out.read_text().split("\n") == ["begin 1", "end", "begin 4", "end", ""]


def test_failing_is_a_warning_with_its_last_words(tmp_path):
    said = []
    after_save = AfterSave("echo no such bucket >&2; exit 7", tmp_path, said.append)
    after_save.on_save(3)
    after_save.finish(StopRequest())
    assert said == ["warning: --after-save ended with code 7 for iteration 3: no such bucket"]


@pytest.mark.slow
@pytest.mark.parametrize("reason", [None, "another process"])
def test_a_further_signal_ends_the_waiting(tmp_path, reason):
    """After a run to its end the first one, after a stop a second one; a stop's own, handed on twice, does not."""
    said, go = [], tmp_path / "go"
    waits = f"for i in $(seq 1000); do [ -e {go} ] && break; sleep 0.02; done"
    after_save = AfterSave(f"{waits}; echo x > {tmp_path / 'late'}", tmp_path, said.append)

    with StopRequest().listening() as stop:
        stop.training = True
        if reason:
            stop.request(reason)
            signal.raise_signal(signal.SIGTERM)  # at once: that of the other process
            assert stop.signals == 0
        after_save.on_save(9)
        timer = threading.Timer(SAME_S + 0.2, signal.raise_signal, [signal.SIGTERM])
        timer.start()
        after_save.finish(stop)
        timer.join()
        assert said == ["warning: --after-save is still running for iteration 9; not waited for"]
        assert stop.signals == 1 and stop.reason == (reason or "SIGTERM")
    go.touch()
    _wait(tmp_path / "late", "x")


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["--stop-file", "--max-time"])
def test_a_limit_does_not_end_the_waiting(tmp_path, limit):
    """One process may see the file or the clock after another one did, while the last copy is being made."""
    said, file, copied = [], tmp_path / "limit", tmp_path / "copied"
    after_save = AfterSave(f"touch {file}; sleep {4 * POLL_S}; touch {copied}", tmp_path, said.append)
    watched = {"stop_file": file} if limit == "--stop-file" else {"max_time_s": POLL_S}
    with StopRequest().listening() as stop, stop.watching(**watched):
        stop.training = True
        stop.request("another process")
        after_save.on_save(9)
        after_save.finish(stop)
        assert stop._limit.startswith(limit), "it was seen"
        assert copied.exists() and said == []
        assert stop.reason == "another process" and stop.signals == 0


@pytest.mark.slow
def test_what_a_slow_command_copies_is_whole(tmp_path):
    """It takes its checkpoint file by file; saves that come meanwhile drop others, but not that one."""
    copies, go, out, said = tmp_path / "copies", tmp_path / "go", tmp_path / "out", []
    command = (
        f'to={copies}/$(basename "$SWAPFAST_CHECKPOINT"); mkdir -p $to; cp "$SWAPFAST_CHECKPOINT"/state.json $to; '
        f"echo $SWAPFAST_STEP >> {out}; while [ ! -e {go} ]; do sleep 0.02; done; "
        'cp "$SWAPFAST_CHECKPOINT"/*.safetensors $to'
    )
    folder = CheckpointFolder(tmp_path / "model")
    after_save = AfterSave(command, folder.folder, said.append)

    def save(step: int) -> None:
        folder.save(
            Checkpoint(step, {"model": {"weight": torch.full((9,), float(step))}}, {}), after_save.checkpoints_in_use
        )
        after_save.on_save(step)

    save(1)
    _wait(out, "1")
    for step in (2, 3, 4, 5):
        save(step)
    assert folder.steps() == [1, 4, 5]
    go.touch()
    after_save.finish(StopRequest())
    assert [folder.read(path).step for path in sorted(copies.iterdir())] == [1, 5] and said == []
    save(6)
    assert folder.steps() == [5, 6], "what is copied is dropped as any other"
    after_save.finish(StopRequest())
