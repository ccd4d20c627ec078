"""Backups and snapshots, and going back to one without losing what came after."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from swapfast.checkpoints import folder as checkpoint
from swapfast.checkpoints import snapshots as snapshots_module
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.checkpoints.snapshots import Snapshots
from swapfast.errors import SwapfastError


def _save(folder: CheckpointFolder, *steps: int, value: float | None = None) -> Snapshots:
    for step in steps:
        tensors = {"model": {"weight": torch.full((4, 3), float(step) if value is None else value)}}
        folder.save(Checkpoint(step, tensors, {"metrics": {"average_loss": 1 / (step + 1)}}))
    return Snapshots(folder)


def _names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.folder.iterdir() if not path.name.startswith("."))


def _weight(folder: CheckpointFolder, name: str) -> float:
    return folder.read(folder.folder / name).tensors["model"]["weight"][0, 0].item()


def test_snapshots_outlive_their_checkpoints_and_there_is_one_backup(tmp_path):
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1)
    snapshots.snapshot(1)
    snapshots.back_up(1)
    assert os.path.samefile(tmp_path / "snapshot-00000001/model.safetensors", folder.path(1) / "model.safetensors")
    _save(folder, 2, 3, 4)
    snapshots.back_up(3)
    snapshots.back_up(3)
    assert snapshots.snapshot(4) == snapshots.snapshot(4)
    assert _names(folder) == [
        "backup-00000003",
        "checkpoint-00000003",
        "checkpoint-00000004",
        "snapshot-00000001",
        "snapshot-00000004",
    ]
    assert _weight(folder, "snapshot-00000001") == 1 and _weight(folder, "backup-00000003") == 3
    assert [(p.kind, p.step, p.average_loss, p.whole) for p in snapshots.points()][:2] == [
        ("snapshot", 1, 0.5, True),
        ("backup", 3, 0.25, True),
    ]


def test_without_links_files_are_copied(tmp_path, monkeypatch):
    """Object storage that is mounted as a folder refuses links."""

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(snapshots_module.os, "link", refuse)
    folder = CheckpointFolder(tmp_path)
    path = _save(folder, 1).snapshot(1)
    assert _weight(folder, path.name) == 1 and (path / "model.safetensors").stat().st_nlink == 1


def test_going_back_puts_what_is_newer_aside(tmp_path):
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1)
    snapshots.snapshot(1)
    _save(folder, 2, 3)
    snapshots.back_up(2)
    renamed = snapshots.restore(snapshots.find(step=1))
    assert {old.name: new.name for old, new in renamed} == {
        "checkpoint-00000002": "snapshot-00000002",
        "checkpoint-00000003": "snapshot-00000003",
        "backup-00000002": "snapshot-00000002",
    }
    assert folder.load()[0].step == 1
    assert _names(folder) == ["checkpoint-00000001", *(f"snapshot-0000000{step}" for step in (1, 2, 3))]
    assert [_weight(folder, f"snapshot-0000000{step}") for step in (1, 2, 3)] == [1, 2, 3]
    snapshots.restore(snapshots.find(step=3))
    assert folder.load()[0].step == 3 and folder.steps() == [1, 3], "and forth again"


def test_another_history_of_the_same_step_is_kept_too(tmp_path):
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1, 2)
    snapshots.restore(snapshots.find(step=1))
    _save(folder, 2, value=22.0)
    snapshots.snapshot(2)
    assert [_weight(folder, name) for name in ("snapshot-00000002", "snapshot-00000002-2")] == [2, 22]
    with pytest.raises(SwapfastError, match=r"--step 2: there are several that differ: .*say which with --from NAME"):
        snapshots.find(step=2)
    snapshots.restore(snapshots.find(name="snapshot-00000002"))
    assert _weight(folder, "checkpoint-00000002") == 2 and _weight(folder, "snapshot-00000002-2") == 22


def test_without_a_step_the_backup_is_meant(tmp_path):
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1, 2, 3)
    with pytest.raises(SwapfastError, match=r"no --step given: there is no backup in .*--list"):
        snapshots.find()
    snapshots.back_up(2)
    snapshots.restore(snapshots.find())
    assert folder.load()[0].step == 2
    for request, said in (({"step": 9}, r"--step 9: there is none such"), ({"name": "x"}, r"--from x: there is none")):
        with pytest.raises(SwapfastError, match=said):
            snapshots.find(**request)


def test_a_damaged_one_is_refused_and_nothing_changes(tmp_path):
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1)
    path = snapshots.snapshot(1)
    _save(folder, 2, 3)
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-1] + b"\x01")
    names = _names(folder)
    with pytest.raises(SwapfastError, match=r"snapshot-00000001: is damaged \(model.safetensors is not what was"):
        snapshots.restore(snapshots.find(step=1))
    assert _names(folder) == names
    (path / "model.safetensors").write_bytes(b"")
    assert [point.whole for point in snapshots.points()] == [False, True, True]


def test_a_damaged_newest_checkpoint_gives_way_to_its_own_snapshot(tmp_path):
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1, 2)
    snapshot = snapshots.snapshot(2)
    (folder.path(2) / "model.safetensors").unlink()
    snapshots.restore(snapshots.find(name=snapshot.name))
    loaded, remarks = folder.load()
    assert (loaded.step, remarks) == (2, [])
    assert "damaged-checkpoint-00000002" in _names(folder)


def test_snapshots_alone_are_no_reason_to_start_anew(tmp_path):
    folder = CheckpointFolder(tmp_path)
    _save(folder, 1).snapshot(1)
    shutil.rmtree(folder.path(1))
    with pytest.raises(SwapfastError, match=r"its checkpoints are gone. `swapfast restore .* --list`"):
        folder.load()


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(4))
def test_a_kill_while_going_back_loses_nothing(tmp_path, moment):
    """Death at each rename there is; going back again then succeeds."""
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1)
    snapshots.snapshot(1)
    _save(folder, 2, 3)
    child = os.fork()
    if not child:
        remaining = [moment]

        def until(path, target, rename=Path.rename):
            if not remaining[0]:
                os._exit(9)
            remaining[0] -= 1
            return rename(path, target)

        Path.rename = until
        try:
            snapshots.restore(snapshots.find(name="snapshot-00000001"))
            os._exit(0)
        finally:  # else an error would go on here as a second pytest
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (9 if moment < 3 else 0)
    assert folder.load() is not None
    everything = {point.step for point in snapshots.points() if point.whole}
    assert everything == {1, 2, 3}
    snapshots.restore(snapshots.find(name="snapshot-00000001"))
    assert folder.load()[0].step == 1 and {p.step for p in snapshots.points()} == {1, 2, 3}


def test_no_room_for_a_copy_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots_module, "_link", full)
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1)
    with pytest.raises(
        SwapfastError, match=r"snapshot-00000001: cannot be written \(the disk is full\).*is whole"
    ) as e:
        snapshots.snapshot(1)
    assert e.value.code == 1 and _names(folder) == ["checkpoint-00000001"]


def test_one_point_is_asked_for_by_one_flag(tmp_path):
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1)
    with pytest.raises(SwapfastError, match=r"--step 1 with --from checkpoint-00000001: give one of them"):
        snapshots.find(1, "checkpoint-00000001")


@pytest.mark.parametrize(
    "edit",
    [
        {"metrics": {"average_loss": "x"}},
        {"metrics": {"average_loss": float("inf")}},
        {"metrics": [1]},
        {"saved": [1]},
        {"step": 99},
    ],
)
def test_an_edited_state_is_listed(tmp_path, edit):
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1)
    path = folder.path(1) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    (point,) = snapshots.points()
    assert "checkpoint-00000001" in snapshots_module.describe(tmp_path, [point]) and point.whole == ("step" not in edit)
    json.dumps(point.to_dict(), allow_nan=False)


def test_what_cannot_be_read_now_is_not_marked_as_damaged(tmp_path, monkeypatch):
    """Going back to 1 while the system fails to read the newer 2: its name stays."""
    folder = CheckpointFolder(tmp_path)
    snapshots = _save(folder, 1, 2)
    plain = checkpoint._sha256

    def fail(path):
        if path.parent.name.endswith("2"):
            raise OSError(5, "Input/output error")
        return plain(path)

    monkeypatch.setattr(checkpoint, "_sha256", fail)
    with pytest.raises(SwapfastError, match=r"checkpoint-00000002: cannot be read \(Input/output error\)"):
        snapshots.restore(snapshots.find(step=1))
    assert _names(folder) == ["checkpoint-00000001", "checkpoint-00000002"]
