"""Opens a model and writes it as one of TARGETS, whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from swapfast.batch import SIDES
from swapfast.checkpoints.trained import CheckpointChoice, OpenedModel, open_model
from swapfast.errors import SwapfastError, unknown_name
from swapfast.export.request import Export
from swapfast.export.targets import TARGETS, Target
from swapfast.files import cannot_write, check_folder, flush, put_in_place, real_path, temporary_name
from swapfast.models.side_statistics import PLAIN


@dataclass(frozen=True)
class ExportRequest:
    """What ``export`` is asked for.

    model_dir   the model folder
    to          one of TARGETS
    out         the file, or an existing folder for a file of the usual name; for a folder of its own, that folder
    side        whose face is to come out; None for B's
    is_half     float16 weights
    checkpoint  see ``open_model``
    overwrite   replace a file that exists
    template    a file of the other program's to make it from
    weights     'auto', 'raw', 'ema' or such as 'ema-500', see ``open_model``
    exchange_codes   see ``open_model``
    """

    model_dir: Path
    to: str
    out: Path = Path()
    side: str | None = None
    is_half: bool = False
    checkpoint: CheckpointChoice = "auto"
    overwrite: bool = False
    template: Path | None = None
    weights: str = "auto"
    exchange_codes: bool | None = None


@dataclass(frozen=True)
class Exported:
    """What has been written. notes: lines to tell a person. remarks: the same, on which checkpoint it is of."""

    path: Path
    bytes: int
    iteration: int
    notes: list[str]
    remarks: list[str]

    def to_dict(self) -> dict:
        """Return plain values, as JSON has them."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "iteration": self.iteration,
            "notes": [*self.remarks, *self.notes],
        }


def export(request: ExportRequest) -> Exported:
    """Write a trained model as a file of another program; nothing is left behind where that fails.

    Raises SwapfastError for a request that cannot be met, and (code 1) where the file cannot be written.
    """
    target = _target(request)
    if request.out.is_dir() and target.suffix:
        _check_writable(request.out / "any")
    else:
        _check_out(request, target, request.out)
    opened = open_model(
        request.model_dir, request.checkpoint, weights=request.weights, exchange_codes=request.exchange_codes
    )
    name = real_path(request.model_dir).name.encode(errors="replace").decode().replace("?", "_")
    job = Export(name, opened, request.side or SIDES[1], request.is_half, request.template)
    _check_held(request, target, opened)
    job.check_weights()
    out = request.out
    if out.is_dir() and target.suffix:
        out = out / f"{job.file_name()}{target.suffix}"
        _check_out(request, target, out)
    step, remarks = opened.metadata.step, opened.metadata.remarks
    notes = _written(target, job, out)
    files = [out] if target.suffix else [path for path in out.rglob("*") if path.is_file()]
    return Exported(out, sum(path.stat().st_size for path in files), step, notes, remarks)


def _check_held(request: ExportRequest, target: Target, opened: OpenedModel) -> None:
    """Raise SwapfastError where the other program has no such model, or no place for the sides' statistics."""
    model, code = opened.model, opened.config.model.code
    if not target.can_hold(model.name, model.input_size):
        sizes = f" of {' or '.join(map(str, target.sizes))} px" if target.sizes else ""
        raise SwapfastError(
            f"--to {request.to}: holds {' and '.join(target.families)}{sizes}, and {request.model_dir} holds "
            f"{model.name!r} of {model.input_size} px; choose another --to"
        )
    if target.recipe and code != PLAIN:
        raise SwapfastError(
            f"--to {request.to}: cannot hold the sides' statistics of a model with --code {code}; use --to dfm, onnx "
            f"or safetensors, or begin a new model with --recipe {target.recipe}"
        )


def _target(request: ExportRequest) -> Target:
    """Return what is asked for, or raise SwapfastError where it is unknown or cannot be had so."""
    target = TARGETS.get(request.to)
    if target is None:
        raise unknown_name("--to", request.to, TARGETS)
    if request.side is not None and request.side not in SIDES:
        raise unknown_name("--side", request.side, SIDES)
    if request.side is not None and not target.has_side:
        raise SwapfastError(f"--side {request.side} with --to {request.to}: it holds both sides; leave --side out")
    if request.is_half and not target.has_half:
        raise SwapfastError(f"--fp16 with --to {request.to}: it holds float32 only; leave --fp16 out")
    if request.template is not None and not target.has_template:
        raise SwapfastError(f"--template with --to {request.to}: it is made from the model alone; leave --template out")
    return target


def _check_out(request: ExportRequest, target: Target, out: Path) -> None:
    """Raise SwapfastError unless ``out`` can be written, and does not exist unless it is to be replaced."""
    if target.suffix and out.suffix.lower() != target.suffix:
        raise SwapfastError(f"-o/--out {out}: give a name that ends in {target.suffix}, or an existing folder")
    if not target.suffix and out == Path():
        raise SwapfastError(f"--to {request.to}: it writes a folder, which has no usual name; give a new one with -o")
    if not target.suffix and out.exists():
        raise SwapfastError(f"-o/--out {out}: exists; --to {request.to} writes a folder: give a new name")
    if out.exists() and not out.is_file():
        raise SwapfastError(f"-o/--out {out}: is no file; give another name")
    if (out.exists() or out.is_symlink()) and not request.overwrite:
        raise SwapfastError(f"-o/--out {out}: exists; give another name, or replace it with --overwrite")
    _check_writable(out)


def _check_writable(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise SwapfastError(f"-o/--out {path}: there is no folder {folder}")
    check_folder(folder, "-o/--out")


def _written(target: Target, job: Export, out: Path) -> list[str]:
    """Write under a temporary name, then rename; return the writer's lines."""
    temporary = temporary_name(out)
    try:
        notes = target.write(job, temporary)
        if temporary.is_dir():
            temporary.rename(out)
            flush(out.absolute().parent)
        else:
            put_in_place(temporary, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    return notes
