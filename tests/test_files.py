"""Files are opened without waiting for anybody, and written where nobody could put a link."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import stat

import pytest

from swapfast.errors import SwapfastError
from swapfast.files import (
    TEMPORARY,
    NotAFile,
    flush,
    open_lock,
    open_new,
    open_plain,
    read_plain,
    temporary_name,
    write_file,
)
from swapfast.logs.records import RecordIterator
from swapfast.logs.steplog import StepLog, read_steps
from swapfast.logs.tensorboard import TorchTensorBoard
from swapfast.mapped import open_arrays
from swapfast.options import read_toml


@pytest.fixture(params=["pipe", "socket", "device"])
def special(request, tmp_path, monkeypatch):
    """The path of something that is no file."""
    if request.param == "device":
        return tmp_path.joinpath("/dev/zero")
    if request.param == "pipe":
        os.mkfifo(tmp_path / "x")
    else:
        monkeypatch.chdir(tmp_path)  # a socket's name is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x")
    return tmp_path / "x"


@pytest.mark.parametrize("read", [read_plain, open_arrays, lambda path: open_plain(path, "ab"), open_lock])
def test_what_is_no_file_is_refused_at_once(special, read):
    with pytest.raises(NotAFile, match="a pipe or a device"):
        read(special)


@pytest.mark.parametrize("read", [read_toml, read_steps, RecordIterator])
def test_a_person_is_told_what_is_no_file(special, read):
    with pytest.raises(SwapfastError, match="a pipe or a device"):
        read(special)


def test_a_log_is_not_written_to_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "steps.jsonl")
    with pytest.raises(SwapfastError, match="a pipe or a device"):
        StepLog(tmp_path)


def test_temporary_names_cannot_be_guessed(tmp_path):
    names = {temporary_name(tmp_path / "x").name for _ in range(100)}
    assert len(names) == 100 and all(name.startswith(TEMPORARY) and name.endswith("-x") for name in names)


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        open_new(tmp_path / "link")
    with pytest.raises(OSError, match="symbolic link"):
        open_lock(tmp_path / "link")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "victim").read_text() == "precious" and (tmp_path / "link").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "victim"]


@pytest.mark.parametrize(("release", "is_ignored"), [("5.15.0-microsoft-standard", True), ("6.1.0", False)])
def test_an_input_output_error_of_a_folder_is_ignored_on_wsl_only(tmp_path, monkeypatch, release, is_ignored):
    def fsync(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr("platform.release", lambda: release)
    if is_ignored:
        flush(tmp_path)
    else:
        with pytest.raises(OSError, match="Input/output"):
            flush(tmp_path)
    with pytest.raises(OSError, match="Input/output"):
        flush(tmp_path / "file")


def test_new_files_have_ordinary_rights(tmp_path):
    (tmp_path / "plain").touch()
    write_file(tmp_path / "new", b"")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.fixture
def full_disk():
    """A limit of 0 bytes on the size of files stands for it: the kernel answers EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("log", [StepLog, TorchTensorBoard])
def test_a_disk_that_is_full_at_the_start_is_no_wrong_request(full_disk, tmp_path, log):
    with pytest.raises(SwapfastError) as caught:
        log(tmp_path)
    assert caught.value.code == 1


@pytest.mark.parametrize("log", [StepLog, TorchTensorBoard])
def test_a_log_in_a_place_of_another_kind_is_a_wrong_request(tmp_path, log):
    (tmp_path / "file").touch()
    with pytest.raises(SwapfastError) as caught:
        log(tmp_path / "file")
    assert caught.value.code == 2
