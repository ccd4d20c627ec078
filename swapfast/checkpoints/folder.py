"""Checkpoints that a crash cannot tear.

A model folder holds one folder per checkpoint:

    checkpoint-00002500/   model.safetensors   optimizer.safetensors   faces.safetensors   state.json

Each is written under a temporary name, flushed to the disk, and renamed when it is whole, so a checkpoint is
either there or not. ``state.json`` is readable and holds the step, the config, the versions and the size and
SHA-256 of the other files. The newest two are kept, so that a damaged one leaves its predecessor, and one that a
user's command is copying (after_save.py); what is kept beyond that is the matter of snapshots.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from swapfast.checkpoints.tensor_file import write_tensors
from swapfast.errors import EXIT_FAILED, SwapfastError
from swapfast.files import (
    TEMPORARY,
    NotAFile,
    cannot_write,
    code_of,
    flush,
    is_disk_full,
    not_a_folder,
    open_lock,
    open_plain,
    read_plain,
    temporary_name,
    try_lock,
)

FORMAT = 1
KEPT = 2
SYNTHETIC_MEDIA = "pictures made with this model are synthetic and should say so"  # in every state.json
_NAME = re.compile(r"checkpoint-([0-9]{8,})")
_STEP_IN_NAME = re.compile(r"(?:checkpoint|snapshot|backup)-([0-9]{8,})(?:-[0-9]+)?")
_KEPT_ASIDE = re.compile(r"(?:snapshot|backup)-[0-9]{8,}(?:-[0-9]+)?")
_FAULTS = (errno.EIO, errno.ENOMEM)  # may pass; they say nothing of what the file system can do
# What reading a damaged one may raise. Other errors of the system say nothing of it: a disk or a network that does not
# answer now may do so later, and the checkpoint be whole.
UNREADABLE = (
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    NotAFile,
    ValueError,
    KeyError,
    TypeError,
    SafetensorError,
)


@dataclass
class Checkpoint:
    """What one checkpoint holds. tensors: named tensors on the CPU, by file stem ('model', 'optimizer', 'faces')."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> object:
    """Return what a file of JSON means. Raises OSError or ValueError, also where it is nested without end."""
    try:
        return json.loads(read_plain(path).decode())
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def has_all_files(path: Path, state: object) -> bool:
    """Return whether a checkpoint has the files that its state.json names, of the right sizes."""
    try:
        files = state["files"].items()  # type: ignore[index]
        return all((path / Path(name).name).stat().st_size == file["bytes"] for name, file in files)
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        return False


def _read_state(folder: Path) -> dict:
    """Return what state.json says, checked as far as ``read`` relies on it. Raises as that does."""
    state = read_json(folder / "state.json")
    if not isinstance(state, dict) or type(state["format"]) is not int:
        raise ValueError("state.json is not what was written")
    if state["format"] != FORMAT:
        raise SwapfastError(
            f"{folder}: has format {state['format']} and this swapfast reads {FORMAT}; go on with the swapfast that "
            "wrote it"
        )
    if not isinstance(state["files"], dict):
        raise ValueError("state.json has no table of files")
    name_match = _STEP_IN_NAME.fullmatch(folder.name)  # a copy may have any name
    if type(state["step"]) is not int or (name_match and int(name_match[1]) != state["step"]):
        raise ValueError(f"state.json has step {state['step']!r}")
    return state


def _read_tensors(path: Path, expected: dict) -> dict[str, Tensor]:
    """Return the tensors of a file, checked against what state.json says of it. Raises as ``read`` does."""
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes and should have {expected['bytes']}")
    if _sha256(path) != expected["sha256"]:
        raise ValueError(f"{path.name} is not what was written")
    try:
        return load_file(path)
    except SafetensorError as error:
        if "os error" in str(error):  # such as no memory to map it
            raise as_os_error(error) from error
        raise


class CheckpointFolder:
    """The checkpoints of one model folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._locked_folder: int | None = None  # an open descriptor, so that no other folder can get its number
        self._locked_file: int | None = None

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(m[1]) for p in self.folder.iterdir() if (m := _NAME.fullmatch(p.name)))

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of ``step``."""
        return self.folder / f"checkpoint-{step:08d}"

    def save(self, checkpoint: Checkpoint, in_use: Collection[int] = ()) -> Path:
        """Write a checkpoint, then drop all but the newest KEPT and those of the steps ``in_use``; return its folder.

        Raises SwapfastError (code 1) where it cannot be written.
        """
        final = self._write(checkpoint, lambda temporary, final: temporary.rename(final))
        for step in self._superfluous():
            if step not in in_use:
                self.drop(self.path(step))
        self._clean()
        return final

    def replace(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint in place of the one that there is of its step; return its folder.

        The earlier one goes only when the new one is whole. Raises SwapfastError (code 1) where it cannot be written.
        """

        def exchange(temporary: Path, final: Path) -> None:
            earlier = temporary_name(final)
            final.rename(earlier)
            try:
                temporary.rename(final)
            except OSError:
                earlier.rename(final)
                raise

        final = self._write(checkpoint, exchange)
        self._clean()
        return final

    def _write(self, checkpoint: Checkpoint, put: Callable[[Path, Path], object]) -> Path:
        """Write a checkpoint under a temporary name, let ``put(temporary, final)`` give it its own; return that."""
        self.require_lock()
        final = self.path(checkpoint.step)
        temporary = temporary_name(final)
        try:
            self._clean()
            temporary.mkdir(parents=self._locked_folder is None)
            files = {}
            for stem, tensors in checkpoint.tensors.items():
                path = temporary / f"{stem}.safetensors"
                write_tensors(tensors, path)
                flush(path)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            state = {"format": FORMAT, "step": checkpoint.step, **checkpoint.state, "files": files}
            path = temporary / "state.json"
            path.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
            flush(path)
            flush(temporary)
            put(temporary, final)
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            cause = error if isinstance(error, OSError) else as_os_error(error)
            way_out = f"choose another --model-dir, then start again{self.assurance()}"
            raise cannot_write(final, cause, way_out) from error
        return final

    def _superfluous(self) -> list[int]:
        """Return the steps before the newest KEPT whole checkpoints: a damaged one takes no whole one's place."""
        steps, whole = self.steps(), 0
        while steps and whole < KEPT:
            whole += self._looks_whole(self.path(steps.pop()))
        return steps

    @staticmethod
    def _looks_whole(path: Path) -> bool:
        """Return whether a checkpoint has all files, by their sizes."""
        try:
            return has_all_files(path, _read_state(path))
        except (*UNREADABLE, OSError, SwapfastError):
            return False

    def assurance(self) -> str:
        """Return what to add to the error of a full disk: nothing where there is no checkpoint yet."""
        return "; the last checkpoint is whole" if self.steps() else ""

    def drop(self, path: Path) -> None:
        """Remove a checkpoint, snapshot or backup: at once, so that a kill leaves no half of it under its name."""
        self.require_lock()
        temporary = temporary_name(path)
        with contextlib.suppress(OSError):
            path.rename(temporary)
            shutil.rmtree(temporary)

    def _clean(self) -> None:
        """Remove what an interrupted save left behind."""
        for path in self.folder.glob(f"{TEMPORARY}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:  # of a preview; the folder is locked, so nobody is writing it
                with contextlib.suppress(OSError):
                    path.unlink()

    def load(self, flag: str = "--model-dir") -> tuple[Checkpoint, list[str]] | None:
        """Return the newest whole checkpoint and a remark for each damaged one, None in an empty folder.

        flag: by which a person gave the folder. Raises SwapfastError where every checkpoint is damaged, or only
        snapshots are left: a run must not start over silently. Likewise where one cannot be judged, see ``read``.
        """
        remarks: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.read(self.path(step)), remarks
            except UNREADABLE as error:
                remarks.append(f"{self.path(step)} is damaged ({error})")
        restore_points = self.kept_aside()
        if not remarks and not restore_points:
            return None
        problem = f"no checkpoint can be read: {'; '.join(remarks)}" if remarks else "its checkpoints are gone"
        way_out = f"`swapfast restore {self.folder} --list` shows what was kept" if restore_points else "Restore a copy"
        raise SwapfastError(f"{self.folder}: {problem}. {way_out}, or choose another {flag}")

    def kept_aside(self) -> list[Path]:
        """Return the folders of snapshots and backups, from which a run goes on only after a restore."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _KEPT_ASIDE.fullmatch(path.name))

    def set_aside_newer_than(self, step: int) -> None:
        """Rename damaged checkpoints, so that the run that goes on from ``step`` does not meet them again."""
        for newer in (s for s in self.steps() if s > step):
            self.set_aside_damaged(self.path(newer))

    def set_aside_damaged(self, path: Path) -> Path:
        """Rename a damaged checkpoint to damaged-NAME and return that path."""
        self.require_lock()
        target = path.with_name(f"damaged-{path.name}")
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)
        path.rename(target)
        return target

    @staticmethod
    def read(folder: Path) -> Checkpoint:
        """Read a checkpoint, snapshot or backup and check all of it. Raises one of UNREADABLE where it is damaged.

        Raises SwapfastError where that cannot be told: the system fails to read it, or a newer swapfast wrote it.
        """
        try:
            state = _read_state(folder)
            paths = {folder / Path(name).name: expected for name, expected in state["files"].items()}
            tensors = {path.stem: _read_tensors(path, expected) for path, expected in paths.items()}
        except UNREADABLE:
            raise
        except OSError as error:
            raise SwapfastError(
                f"{folder}: cannot be read ({error.strerror or error}), though it may be whole; nothing was changed: "
                "start again once it can",
                EXIT_FAILED,
            ) from error
        return Checkpoint(state["step"], tensors, state)

    @contextlib.contextmanager
    def locked(self, warn: Callable[[str], None] = warnings.warn) -> Iterator[None]:
        """Hold the folder for one process; SwapfastError where another one trains in it.

        warn: is told where the disk has no locks, and nobody would be kept out.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self.folder / ".lock")
        except OSError as error:
            raise SwapfastError(f"--model-dir {self.folder}: {error.strerror or error}", code_of(error)) from error
        with lock:
            is_mine = try_lock(lock)
            if is_mine is False:
                raise SwapfastError(
                    f"--model-dir {self.folder}: another run is training in this folder; wait for it or choose "
                    "another folder"
                )
            if is_mine is None:
                warn(
                    f"warning: --model-dir {self.folder}: this disk has no locks; see to it yourself that no other run "
                    "trains there"
                )
            if os.name == "nt":  # folders cannot be opened there, nor removed while a file in them is open
                yield
                return
            self._locked_folder, self._locked_file = os.open(self.folder, os.O_RDONLY), lock.fileno()
            try:
                yield
            finally:
                os.close(self._locked_folder)
                self._locked_folder = self._locked_file = None

    def require_lock(self) -> None:
        """Raise SwapfastError (code 1) unless the folder is still the one that ``locked`` holds, if that is in use.

        It may have been moved, or its disk unmounted, and another model may lie in its place.
        """
        if self._locked_folder is None or self._locked_file is None:
            return
        try:
            is_same = os.path.samestat(os.stat(self.folder), os.fstat(self._locked_folder)) and os.path.samestat(
                os.stat(self.folder / ".lock"), os.fstat(self._locked_file)
            )
        except FileNotFoundError:
            is_same = False
        except OSError as error:
            raise SwapfastError(f"--model-dir {self.folder}: {error.strerror or error}", EXIT_FAILED) from error
        if not is_same:
            raise SwapfastError(
                f"--model-dir {self.folder}: the folder or its .lock was removed or replaced while training; nothing "
                "more is written there. Put it back and start again",
                EXIT_FAILED,
            )

    def try_save(self) -> None:
        """Try once what every save needs of the disk, with an empty checkpoint. Leaves nothing behind.

        Raises SwapfastError before hours of training are lost: code 1 where the disk is full, otherwise code 2.
        """
        first, second = temporary_name(self.folder / "first"), temporary_name(self.folder / "second")
        try:
            first.mkdir()
            write_tensors({"empty": torch.zeros(1)}, first / "empty.safetensors")
            flush(first / "empty.safetensors")
            flush(first)
            first.rename(second)
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            cause = error if isinstance(error, OSError) else as_os_error(error)
            if is_disk_full(cause) or cause.errno in _FAULTS:
                raise cannot_write(self.folder / "a checkpoint", cause, "choose another --model-dir") from error
            raise SwapfastError(
                f"--model-dir {self.folder}: no checkpoint can be saved on this disk ({cause.strerror or cause}); "
                "train on a local disk and copy every checkpoint from there with --after-save"
            ) from error
        finally:
            for folder in (first, second):
                shutil.rmtree(folder, ignore_errors=True)


def model_folder(path: str | Path) -> CheckpointFolder:
    """Return the model folder at ``path``; SwapfastError where it is a file or belongs to another program."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise not_a_folder(folder, f"--model-dir {folder}")
    checkpoints = CheckpointFolder(folder)
    if folder.is_dir() and not checkpoints.steps():
        foreign = sorted(p.name for p in folder.iterdir() if p.suffix in {".keras", ".h5", ".dat", ".npy"})
        if foreign:
            raise SwapfastError(
                f"--model-dir {folder}: holds another program's model ({foreign[0]}); give a new folder"
            )
    return checkpoints


def as_os_error(error: SafetensorError) -> OSError:
    """Return the system's error that safetensors wraps in a text: 'I/O error: File too large (os error 27)'."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))
