"""A checkpoint is whole or absent, and a run never starts over one."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from swapfast.checkpoints import folder as checkpoint
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.errors import SwapfastError
from swapfast.files import write_file
from tests import preloaded


def _checkpoint(step: int) -> Checkpoint:
    tensors = {"model": {"weight": torch.full((4, 3), float(step))}, "optimizer": {"weight.step": torch.tensor(step)}}
    return Checkpoint(step, tensors, {"config": {"batch_size": step}})


def test_what_is_saved_is_loaded(tmp_path):
    folder = CheckpointFolder(tmp_path / "model")
    assert folder.load() is None
    folder.save(_checkpoint(7))
    loaded, remarks = folder.load()
    assert (loaded.step, remarks, loaded.state["config"]) == (7, [], {"batch_size": 7})
    assert torch.equal(loaded.tensors["model"]["weight"], torch.full((4, 3), 7.0))
    assert loaded.tensors["optimizer"]["weight.step"].shape == ()
    readable = json.loads((folder.path(7) / "state.json").read_text())
    assert set(readable["files"]) == {"model.safetensors", "optimizer.safetensors"}


def test_the_newest_two_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2, 3, 4):
        folder.save(_checkpoint(step))
    assert folder.steps() == [3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000003", "checkpoint-00000004"]


def _edit(path: Path, **values) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | values))


def test_what_is_held_is_not_dropped(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2, 3, 4):
        folder.save(_checkpoint(step), in_use={1})
    assert folder.steps() == [1, 3, 4]
    folder.save(_checkpoint(5))
    assert folder.steps() == [4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["zeros", "cut", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, name, damage):
    folder = CheckpointFolder(tmp_path)
    folder.save(_checkpoint(1))
    path = folder.save(_checkpoint(2)) / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(len(content)) if damage == "zeros" else content[: len(content) // 2])
    loaded, remarks = folder.load()
    assert loaded.step == 1 and len(remarks) == 1 and "checkpoint-00000002 is damaged" in remarks[0]
    folder.set_aside_newer_than(1)
    assert folder.steps() == [1] and (tmp_path / "damaged-checkpoint-00000002").is_dir()
    folder.save(_checkpoint(2))
    assert folder.load()[0].step == 2


_EDITS = [
    {"files": []},
    {"files": None},
    {"files": {"model.safetensors": 3}},
    {"step": "abc"},
    {"step": 99},
    {"step": True},
    {"format": "x"},
]


@pytest.mark.parametrize("edit", _EDITS)
def test_an_edited_state_is_damage(tmp_path, edit):
    folder = CheckpointFolder(tmp_path)
    folder.save(_checkpoint(1))
    _edit(folder.save(_checkpoint(2)), **edit)
    loaded, remarks = folder.load()
    assert loaded.step == 1 and len(remarks) == 1 and "checkpoint-00000002 is damaged" in remarks[0]


def test_a_copy_may_have_any_name(tmp_path):
    path = CheckpointFolder(tmp_path).save(_checkpoint(2))
    assert CheckpointFolder.read(path.rename(tmp_path / "copy")).step == 2


def test_a_newer_programs_checkpoint_is_not_called_damaged(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(_checkpoint(1))
    _edit(folder.save(_checkpoint(2)), format=2)
    with pytest.raises(SwapfastError, match=r"checkpoint-00000002: has format 2 and this swapfast reads 1; go on with"):
        folder.load()
    assert folder.steps() == [1, 2]


@pytest.mark.parametrize("function", ["_sha256", "load_file"])
def test_a_read_error_that_passes_costs_nothing(tmp_path, monkeypatch, function):
    """One EIO, or what safetensors makes of no memory; the next start finds the newest checkpoint as it was."""
    error = OSError(5, "Input/output error")
    if function == "load_file":
        error = SafetensorError("I/O error: Cannot allocate memory (os error 12)")

    def fail(_):
        raise error

    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        folder.save(_checkpoint(step))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, function, fail)
        said = r"checkpoint-00000002: cannot be read \((Input/output error|Cannot allocate memory)\)"
        with pytest.raises(SwapfastError, match=said) as raised:
            folder.load()
    assert raised.value.code == 1 and folder.steps() == [1, 2]
    assert folder.load()[0].step == 2


def test_nothing_but_damage_is_an_error_and_not_a_new_start(tmp_path):
    folder = CheckpointFolder(tmp_path)
    (folder.save(_checkpoint(1)) / "model.safetensors").write_bytes(b"")
    with pytest.raises(SwapfastError, match=r"no checkpoint can be read.*model.safetensors has 0 bytes"):
        folder.load()


@pytest.mark.long
def test_a_folder_is_held_by_one_process(tmp_path):
    folder = CheckpointFolder(tmp_path)
    program = "from swapfast.checkpoints.folder import CheckpointFolder as F\nwith F({!r}).locked(): print('mine')"
    with folder.locked():
        result = preloaded.run([sys.executable, "-c", program.format(str(tmp_path))], capture_output=True, text=True)
    assert "another run is training in this folder" in result.stderr and "mine" not in result.stdout
    free = preloaded.run([sys.executable, "-c", program.format(str(tmp_path))], capture_output=True, text=True)
    assert free.stdout == "mine\n"


@pytest.mark.long
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    """A limit on the size of written files stands for the disk: the kernel answers EFBIG."""
    folder = CheckpointFolder(tmp_path)
    folder.save(_checkpoint(1))
    program = textwrap.dedent(f"""
        import resource, signal, torch
        from swapfast.errors import SwapfastError
        from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        try:
            CheckpointFolder({str(tmp_path)!r}).save(Checkpoint(2, {{"model": {{"w": torch.zeros(1 << 20)}}}}, {{}}))
        except SwapfastError as error:
            print(error.code, error)
    """)
    result = preloaded.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.startswith("1 ") and "the disk is full" in result.stdout, result
    assert "the last checkpoint is whole" in result.stdout and folder.load()[0].step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000001"]
    folder.drop(folder.path(1))
    result = preloaded.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "the disk is full" in result.stdout and "is whole" not in result.stdout, "the first save has no other"


def test_who_may_read_new_files_may_read_a_checkpoint(tmp_path):
    before = os.umask(0o022)
    try:
        folder = CheckpointFolder(tmp_path)
        saved = folder.save(_checkpoint(1))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o644}


@pytest.mark.slow
@pytest.mark.parametrize("files", range(3))
def test_a_kill_while_dropping_an_old_one_leaves_no_half_of_it(tmp_path, files):
    """Death at each file that is unlinked; what has a checkpoint's name is whole."""
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        folder.save(_checkpoint(step))
    child = os.fork()
    if not child:
        remaining = [files]

        def until(*arguments, unlink=os.unlink, **options):
            if not remaining[0]:
                os._exit(9)
            remaining[0] -= 1
            return unlink(*arguments, **options)

        os.unlink = until
        try:
            folder.save(_checkpoint(3))
            os._exit(0)
        finally:  # else an error would go on here as a second pytest
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [folder.read(folder.path(step)).step for step in folder.steps()] == [2, 3]
    folder.save(_checkpoint(4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000003", "checkpoint-00000004"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["write_tensors", "replace"])
def test_a_kill_while_writing_leaves_the_last_checkpoint(tmp_path, moment):
    """The process dies in the middle of the second save; the third run finds the first and cleans up."""
    folder = CheckpointFolder(tmp_path)
    folder.save(_checkpoint(1))
    program = textwrap.dedent(f"""
        import os, torch
        from swapfast.checkpoints import folder as checkpoint
        die = lambda *a, **k: os._exit(9)
        if {moment!r} == "write_tensors":
            checkpoint.write_tensors = die
        else:
            checkpoint.Path.rename = die
        checkpoint.CheckpointFolder({str(tmp_path)!r}).save(checkpoint.Checkpoint(2, {{"model": {{}}}}, {{}}))
    """)
    assert preloaded.run([sys.executable, "-c", program]).returncode == 9
    assert any(p.name.startswith(".writing-") for p in tmp_path.iterdir())
    assert folder.load()[0].step == 1
    folder.save(_checkpoint(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000001", "checkpoint-00000003"]


def test_what_a_killed_preview_left_is_removed(tmp_path):
    folder = CheckpointFolder(tmp_path)
    (tmp_path / ".writing-123-preview.png").write_bytes(b"half")
    folder.save(_checkpoint(1))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000001"]


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "preview.png"
    for content in (b"first", b"second"):
        write_file(path, content)
        assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["preview.png"]
