"""A disk that cannot do what a save needs is told before the first step; a folder that is gone is not made anew."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat

import pytest
import torch
from safetensors import SafetensorError

from swapfast.checkpoints import tensor_file
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.snapshots import Snapshots, describe
from swapfast.errors import SwapfastError
from swapfast.training.saver import FolderCheck


def _save(folder: CheckpointFolder, *steps: int) -> Snapshots:
    for step in steps:
        folder.save(Checkpoint(step, {"model": {"weight": torch.full((4, 3), float(step))}}, {}))
    return Snapshots(folder)


def _names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.folder.iterdir() if path.name != ".lock")


def _failing(code: int):
    def call(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_run_is_warned_and_goes_on(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "lockf", _failing(code))
    folder, lines = CheckpointFolder(tmp_path / "m"), []
    with folder.locked(lines.append):
        _save(folder, 1)
    assert folder.steps() == [1] and len(lines) == 1 and "this disk has no locks" in lines[0]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EAGAIN])
def test_a_held_lock_is_respected(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "lockf", _failing(code))
    with pytest.raises(SwapfastError, match="another run is training") as caught, CheckpointFolder(tmp_path).locked():
        pass
    assert caught.value.code == 2


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF])
def test_folders_that_cannot_be_flushed_are_no_fault(tmp_path, monkeypatch, code):
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: _failing(code)() if stat.S_ISDIR(os.fstat(d).st_mode) else real(d))
    folder = CheckpointFolder(tmp_path)
    folder.try_save()
    snapshots = _save(folder, 1)
    snapshots.snapshot(1)
    assert _names(folder) == ["checkpoint-00000001", "snapshot-00000001"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_file_that_cannot_be_flushed_is_a_fault(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", _failing(code))
    with pytest.raises(SwapfastError):
        _save(CheckpointFolder(tmp_path), 1)
    assert list(tmp_path.iterdir()) == []


def test_trying_a_save_leaves_nothing_behind(tmp_path):
    CheckpointFolder(tmp_path).try_save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [(errno.EMFILE, 2, "--after-save"), (errno.EPERM, 2, "--after-save"), (errno.ENOSPC, 1, "the disk is full")],
)
def test_a_disk_that_renames_no_folders_is_refused(tmp_path, monkeypatch, code, exit_code, words):
    real = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b, **k: _failing(code)() if os.listdir(a) else real(a, b, **k))
    with pytest.raises(SwapfastError, match=words) as caught:
        CheckpointFolder(tmp_path).try_save()
    assert caught.value.code == exit_code and list(tmp_path.iterdir()) == []


def test_a_disk_where_safetensors_cannot_save_is_refused(tmp_path, monkeypatch):
    def save_file(*_arguments):
        raise SafetensorError("Error while serializing: I/O error: Function not implemented (os error 38)")

    monkeypatch.setattr(tensor_file, "save_file", save_file)
    with pytest.raises(SwapfastError, match=r"no checkpoint can be saved.*Function not implemented.*--after-save") as e:
        CheckpointFolder(tmp_path).try_save()
    assert e.value.code == 2 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replacement", ["nothing", "another model", "another lock"])
def test_a_folder_that_is_gone_is_not_written(tmp_path, replacement):
    """Nor is anything dropped of the model that lies in its place by then."""
    folder = CheckpointFolder(tmp_path / "m")
    with folder.locked():
        snapshots = _save(folder, 1, 2)
        if replacement == "another lock":
            (folder.folder / ".lock").unlink()
        else:
            folder.folder.rename(tmp_path / "moved")
        if replacement != "nothing":
            other = CheckpointFolder(tmp_path / "m")
            with other.locked():
                _save(other, *(() if replacement == "another lock" else (1, 2)))
        before = sorted(tmp_path.rglob("*"))
        actions = (
            lambda: _save(folder, 3),
            lambda: folder.drop(folder.path(1)),
            lambda: folder.set_aside_damaged(folder.path(1)),
            lambda: snapshots.snapshot(2),
            lambda: snapshots.back_up(2),
            lambda: FolderCheck(folder).flush(),
            lambda: FolderCheck(folder).flush(),
        )
        for action in actions:
            with pytest.raises(SwapfastError, match="removed or replaced while training") as caught:
                action()
            assert caught.value.code == 1
        assert sorted(tmp_path.rglob("*")) == before


def test_a_newer_backup_becomes_a_snapshot_where_the_newest_checkpoint_is_damaged(tmp_path):
    """The backup may be the only whole copy of the newest model."""
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1, 2)
    snapshots.back_up(2)
    (folder.path(2) / "model.safetensors").unlink()
    (folder.path(2) / "model.safetensors").write_bytes(b"damaged")
    assert folder.load()[0].step == 1
    snapshots.set_aside_newer_than(1)
    _save(folder, 3).back_up(3)
    assert folder.read(tmp_path / "snapshot-00000002").step == 2
    assert folder.steps() == [1, 3] and (tmp_path / "backup-00000003").is_dir()


def test_a_backup_of_the_same_step_that_differs_is_not_lost(tmp_path):
    folder = CheckpointFolder(tmp_path)
    _save(folder, 1).back_up(1)
    folder.drop(folder.path(1))
    folder.save(Checkpoint(1, {"model": {"weight": torch.zeros(2)}}, {}))
    Snapshots(folder).back_up(1)
    weights = [folder.read(tmp_path / name).tensors["model"]["weight"] for name in _names(folder)]
    assert _names(folder) == ["backup-00000001", "checkpoint-00000001", "snapshot-00000001"]
    assert [weight.numel() for weight in weights] == [2, 2, 12]


def test_a_damaged_checkpoint_takes_no_whole_ones_place(tmp_path):
    folder = CheckpointFolder(tmp_path)
    _save(folder, 1, 2)
    (folder.path(2) / "model.safetensors").unlink()
    _save(folder, 3)
    assert folder.steps() == [1, 2, 3]
    _save(folder, 4)
    assert folder.steps() == [3, 4]


@pytest.mark.parametrize("content", ["deep", "pipe", "folder"])
def test_one_bad_state_file_spoils_nothing_else(tmp_path, content):
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1)
    snapshots.snapshot(1)
    _save(folder, 2, 3)
    for path in (tmp_path / "snapshot-00000001", folder.path(3)):
        (path / "state.json").unlink()
        if content == "deep":
            (path / "state.json").write_text('{"step": ' + "[" * 100_000 + "]" * 100_000 + "}")
        elif content == "pipe":
            os.mkfifo(path / "state.json")
        else:
            (path / "state.json").mkdir()
    loaded, remarks = folder.load()
    assert loaded.step == 2 and len(remarks) == 1 and str(folder.path(3)) in remarks[0]
    assert describe(tmp_path, snapshots.points()).count("damaged") == 2
    snapshots.set_aside_newer_than(2)
    _save(folder, 4).snapshot(4)
    assert folder.load()[0].step == 4


def test_a_pipe_in_place_of_the_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(SwapfastError, match="a pipe or a device"), CheckpointFolder(tmp_path).locked():
        pass


def test_foreign_entries_do_not_count(tmp_path):
    """What a network drive and a notebook leave there, and digits of another script."""
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1)
    snapshots.snapshot(1)
    (tmp_path / "snapshot-00000001" / "@eaDir").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "checkpoint-٠٠٠٠٠٠٩٩").mkdir()
    _save(folder, 2)
    snapshots.restore(snapshots.find(name="snapshot-00000001"))
    assert folder.load()[0].step == 1 and json.loads((folder.path(1) / "state.json").read_text())["step"] == 1
    assert not (folder.path(1) / "@eaDir").exists()
