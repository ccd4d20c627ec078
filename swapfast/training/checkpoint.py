"""Checkpoints that a crash cannot tear.

A model folder holds one folder per checkpoint:

    checkpoint-00002500/   model.safetensors   optimizer.safetensors   faces.safetensors   state.json

Each is written under a temporary name, flushed to the disk, and renamed when it is whole, so a checkpoint is
either there or not. ``state.json`` is readable and holds the step, the config, the versions and the size and
SHA-256 of the other files. The newest two are kept, so that a damaged one leaves its predecessor; what is kept beyond
that is the matter of snapshots.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from swapfast.errors import SwapfastError
from swapfast.files import TEMPORARY, cannot_write, flush

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8,})")
_KEPT_ASIDE = re.compile(r"(?:snapshot|backup)-\d{8,}(?:-\d+)?")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, SafetensorError)  # what reading a damaged one may raise
_WAY_OUT = "choose another --model-dir, then start again: the last checkpoint is whole"


@dataclass
class Checkpoint:
    """What one checkpoint holds. tensors: file stem ('model', 'optimizer') -> named tensors, on the CPU."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class CheckpointFolder:
    """The checkpoints of one model folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(m[1]) for p in self.folder.iterdir() if (m := _NAME.fullmatch(p.name)))

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` lies."""
        return self.folder / f"checkpoint-{step:08d}"

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write one, then drop all but the newest. Raises SwapfastError (code 1) where it cannot be written."""
        final = self.path(checkpoint.step)
        temporary = self.folder / f"{TEMPORARY}{final.name}"
        try:
            self._clean()
            temporary.mkdir(parents=True)
            files = {}
            for stem, tensors in checkpoint.tensors.items():
                path = temporary / f"{stem}.safetensors"
                save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path)
                flush(path)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            state = {"format": FORMAT, "step": checkpoint.step, **checkpoint.state, "files": files}
            path = temporary / "state.json"
            path.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
            flush(path)
            flush(temporary)
            temporary.rename(final)
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            cause = error if isinstance(error, OSError) else _as_os_error(error)
            raise cannot_write(final, cause, _WAY_OUT) from error
        for step in self.steps()[:-KEPT]:
            self.drop(self.path(step))
        self._clean()
        return final

    def drop(self, path: Path) -> None:
        """Remove a checkpoint, snapshot or backup: at once, so that a kill leaves no half of it under its name."""
        temporary = self.folder / f"{TEMPORARY}{path.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.rename(temporary)
            shutil.rmtree(temporary)

    def _clean(self) -> None:
        """Remove what an interrupted save left behind."""
        for path in self.folder.glob(f"{TEMPORARY}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def load(self) -> tuple[Checkpoint, list[str]] | None:
        """The newest checkpoint that is whole and a remark per damaged one, or None where there is none at all.

        Raises SwapfastError where every checkpoint is damaged, or only snapshots are left: a run must not start over
        silently.
        """
        remarks: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.read(self.path(step)), remarks
            except UNREADABLE as error:
                remarks.append(f"{self.path(step)} is damaged ({error})")
        kept = self.kept_aside()
        if not remarks and not kept:
            return None
        why = f"no checkpoint can be read: {'; '.join(remarks)}" if remarks else "its checkpoints are gone"
        way = f"`swapfast restore {self.folder} --list` shows what was kept" if kept else "Restore a copy"
        raise SwapfastError(f"{self.folder}: {why}. {way}, or choose another --model-dir to start a new model")

    def kept_aside(self) -> list[Path]:
        """The folders of snapshots and backups, which are not gone on from without being asked for."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _KEPT_ASIDE.fullmatch(path.name))

    def set_aside_newer_than(self, step: int) -> None:
        """Rename damaged checkpoints, so that the run that goes on from ``step`` does not meet them again."""
        for newer in (s for s in self.steps() if s > step):
            self.set_aside_damaged(self.path(newer))

    def set_aside_damaged(self, path: Path) -> Path:
        """Rename a damaged checkpoint to damaged-NAME and give that path back."""
        target = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
        return target

    @staticmethod
    def read(folder: Path) -> Checkpoint:
        """A checkpoint, snapshot or backup, all of it checked. Raises one of UNREADABLE where it is damaged."""
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if not isinstance(state, dict) or state["format"] != FORMAT:
            raise ValueError(f"state.json has format {state['format']!r}, this program reads {FORMAT}")
        tensors = {}
        for name, expected in state["files"].items():
            path = folder / Path(name).name
            if path.stat().st_size != expected["bytes"]:
                raise ValueError(f"{path.name} has {path.stat().st_size} bytes and should have {expected['bytes']}")
            if _sha256(path) != expected["sha256"]:
                raise ValueError(f"{path.name} is not what was written")
            tensors[path.stem] = load_file(path)
        return Checkpoint(state["step"], tensors, state)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process; SwapfastError where another one trains in it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("a")
        except OSError as error:
            raise SwapfastError(f"--model-dir {self.folder}: {error.strerror or error}") from error
        with lock:
            try:
                import fcntl

                # A record lock, which child processes do not inherit: an orphan cannot keep the folder locked.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # no such locks on this system
                pass
            except OSError as error:
                raise SwapfastError(
                    f"--model-dir {self.folder}: another run is training in this folder; wait for it or choose "
                    "another folder"
                ) from error
            yield


def model_folder(path: str | Path) -> CheckpointFolder:
    """The model folder at ``path``; SwapfastError where it is a file or belongs to another program."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise SwapfastError(f"--model-dir {folder}: is a file; give a folder")
    checkpoints = CheckpointFolder(folder)
    if folder.is_dir() and not checkpoints.steps():
        foreign = sorted(p.name for p in folder.iterdir() if p.suffix in {".keras", ".h5", ".dat", ".npy"})
        if foreign:
            raise SwapfastError(
                f"--model-dir {folder}: holds another program's model ({foreign[0]}); give a new folder"
            )
    return checkpoints


def _as_os_error(error: SafetensorError) -> OSError:
    """safetensors wraps the system's error in a text: 'I/O error: File too large (os error 27)'."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))
