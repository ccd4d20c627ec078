"""Decodes pictures with DALI, or with OpenCV where DALI has no wheel: a list in order, or step by step."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

from swapfast.faces.faceset_pack import is_pack
from swapfast.faces.image import read_image
from swapfast.faces.jpeg import CMYK_CONVERTED
from swapfast.faces.png import LONG_TEXT_IGNORED, PROFILE_IGNORED
from swapfast.faces.prepared import PreparedSet
from swapfast.threads import PATIENCE_S, ThreadPool

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

Decoded = np.ndarray | str  # (H, W, 3) uint8 BGR, or the reason of a failure in one phrase

BATCH = 16
_ANY_JPEG = cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes()
# DALI decodes 16 pictures at once and 16 ahead. Larger pictures are decoded one by one on each core: a JPEG of a few kB
# may claim 134 Mpx, and three of them took 3 GiB.
DALI_PIXELS = 1 << 23
# Notes of pictures that DALI's decoders disagree on, or on which libpng writes to stderr.
NOT_FOR_DALI = frozenset((CMYK_CONVERTED, PROFILE_IGNORED, LONG_TEXT_IGNORED))


def dali_version() -> str | None:
    """Return DALI's version, None if it is not installed or does not load."""
    try:
        import nvidia.dali
    except (ImportError, OSError):
        return None
    return nvidia.dali.__version__


def decode_pictures(paths: Sequence[Path], threads: int, use_dali: bool | None = None) -> Iterator[list[Decoded]]:
    """Yield the decoded pictures of ``paths`` in order, in batches. Arrays are valid until the next batch.

    use_dali: by default whether it is installed.
    """
    if not paths:
        return iter(())
    if use_dali is None:
        use_dali = dali_version() is not None
    return _with_dali(paths, threads) if use_dali else _with_opencv(paths, threads)


def _try_read(path: Path) -> Decoded:
    try:
        return read_image(path)
    except ValueError as error:
        return str(error)


def _with_opencv(paths: Sequence[Path], threads: int) -> Iterator[list[Decoded]]:
    with ThreadPool(threads) as pool:
        for start in range(0, len(paths), BATCH):
            yield list(pool.map(_try_read, paths[start : start + BATCH]))


def _with_dali(paths: Sequence[Path], threads: int) -> Iterator[list[Decoded]]:
    from pipelines.graph import decoding_pipeline

    names = [str(path) for path in paths]
    size = min(BATCH, len(names))

    def paths_of(run: int) -> list[str]:
        """Return the pictures of a run, or any picture for the runs beyond the end that DALI prefetches."""
        return names[run * size : (run + 1) * size] or names[:1]

    pipelines = [decoding_pipeline(paths_of, size, threads)]
    runner = ThreadPool(1, "dali")  # it reads the files itself, where no signal is heard
    try:
        for start in range(0, len(names), size):
            try:
                (output,) = runner.submit(pipelines[0].run).result()
                yield [output.at(i) for i in range(len(output))]
            except RuntimeError:
                # DALI reports a bad batch but seldom the file, so the batch is decoded again, one by one.
                yield [_try_read(path) for path in paths[start : start + size]]
    finally:
        runner.submit(pipelines.clear)  # a pipeline that ends waits for the files that it has begun to read ahead
        runner.shutdown(patience_s=PATIENCE_S)


def decode_encoded(
    prepared: PreparedSet, rows: Sequence[int], threads: int
) -> Iterator[list[tuple[np.ndarray, np.ndarray] | str]]:
    """Yield the decoded JPEGs of a prepared set in order, in batches. Arrays are valid until the next batch.

    A face is a (S, S, 3) BGR picture and its (3, S, S) masks, or the reason why it is damaged. Needs DALI.
    """
    from pipelines.graph import encoded_pipeline

    size = min(BATCH, len(rows))

    def bytes_of(run: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the pictures of a run, or any picture for the runs beyond the end that DALI prefetches."""
        return _as_arrays([(prepared, row) for row in rows[run * size : (run + 1) * size] or rows[:1]])

    pipeline = encoded_pipeline(bytes_of, size, threads)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        damage = [prepared.damage(row) for row in batch]
        try:
            faces, masks = pipeline.run()
        except RuntimeError:
            yield [_try_prepared(prepared, row) for row in batch]
            continue
        edge = prepared.size
        yield [reason or (faces.at(i), masks.at(i).reshape(3, edge, edge)) for i, reason in enumerate(damage)]


def _as_arrays(faces: Sequence[tuple[PreparedSet, int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return encoded faces and masks in the form that DALI takes, with any picture in the place of an unreadable one.

    Nothing may be raised while DALI calls. ``PreparedSet.damage`` tells which faces are unreadable.
    """
    pairs = []
    for prepared, row in faces:
        try:
            pairs.append(prepared.fitting_bytes(row))
        except ValueError:
            pairs.append((_ANY_JPEG, _ANY_JPEG))
    return [np.frombuffer(face, np.uint8) for face, _ in pairs], [np.frombuffer(mask, np.uint8) for _, mask in pairs]


def _try_prepared(prepared: PreparedSet, row: int) -> tuple[np.ndarray, np.ndarray] | str:
    try:
        return prepared.read(row)
    except ValueError as error:
        return str(error)


Member = tuple[int, int]  # (side, index of the face in its source)
LEFT_OUT = "left out"


class BatchDecoder:
    """Decodes the faces of a step by ``decoder(step)``, fastest for consecutive steps.

    sources: of all sides.
    members_of: returns the faces of a step, as a pure function.
    threads: for decoding and for everything that DALI does not decode.
    device_id: the GPU that decodes prepared JPEGs, None for the CPU.

    The result has one entry per member: its (H, W, 3) BGR picture, a pair of picture and (3, S, S) masks for a prepared
    set, or the reason of a failure. Arrays are valid until the next call.
    """

    def __init__(
        self,
        sources: Sequence,
        members_of: Callable[[int], list[Member]],
        threads: int,
        device_id: int | None = None,
        use_dali: bool | None = None,
    ) -> None:
        self.sources, self.members_of = sources, members_of
        self.threads, self.device_id = threads, device_id
        self.use_dali = dali_version() is not None if use_dali is None else use_dali
        self._pipelines: dict[bool, tuple[int, Pipeline]] = {}  # is prepared -> next step, pipeline
        self._pool = ThreadPool(threads, "decode")
        self._outputs: list = []  # kept alive, since a device may still read them
        self._dummy: str | None = None
        self.left_out: set[Member] = set()  # unreadable faces, which are no longer decoded

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True, patience_s=PATIENCE_S)

    def __call__(self, step: int) -> list:
        members = self.members_of(step)
        results: list = [LEFT_OUT if member in self.left_out else None for member in members]
        del self._outputs[:-2]
        for prepared in (False, True):
            positions = [i for i, member in enumerate(members) if self._for_dali(member, prepared)]
            if positions:
                decoded_by_dali = self._by_dali(step, [members[i] for i in positions], prepared)
                for i, decoded in zip(positions, decoded_by_dali):
                    results[i] = results[i] or decoded
        remaining = [i for i, decoded in enumerate(results) if decoded is None]
        for i, decoded in zip(remaining, self._pool.map(self._decode_one, [members[i] for i in remaining])):
            results[i] = decoded
        return results

    def tensors(self, step: int) -> tuple[Tensor, Tensor] | None:
        """Return the faces of a step from prepared JPEGs of one size, on the device that decoded them.

        On a GPU the tensors are ready for the current stream, and no pixel passes through the host. They must not be
        changed, and are valid until the call after next.
        Returns (N, S, S, 3) BGR and (N, 3, S, S) masks of all sides; None if a face is damaged.
        """
        members = self.members_of(step)
        if any(self._damage(member) for member in members):
            return None
        pipeline = self._pipeline(step, prepared=True)
        try:
            faces, masks = pipeline.run() if self.device_id is None else pipeline.run(torch.cuda.current_stream())
        except RuntimeError:
            return None
        pixels, extra = (torch.from_dlpack(output.as_tensor()) for output in (faces, masks))
        self._outputs = [*self._outputs[-2:], pixels, extra]
        return pixels, extra.reshape(len(members), 3, *pixels.shape[1:3])

    def _for_dali(self, member: Member, prepared: bool) -> bool:
        """Return whether DALI decodes this face in the pipeline of prepared faces, or in that of files."""
        source = self.sources[member[0]]
        if not self.use_dali or (source.prepared is not None) != prepared:
            return False
        if prepared:
            return source.prepared.encoding == "jpeg"
        if is_pack(source.folder.records.folder):
            return False  # DALI reads whole files
        row = source.folder.records.rows[member[1]]
        if not NOT_FOR_DALI.isdisjoint(source.folder.records.note_sets[source.folder.records.columns["notes"][row]]):
            return False
        width, height = (int(source.folder.records.columns[name][row]) for name in ("width", "height"))
        return width * height <= DALI_PIXELS

    def _decode_one(self, member: Member) -> Any:
        source = self.sources[member[0]]
        if source.prepared is not None:
            return _try_prepared(source.prepared, self._row(member))
        return _try_read(source.folder.records[member[1]].path)

    def _row(self, member: Member) -> int:
        return int(self.sources[member[0]].folder.records.rows[member[1]])

    def _path(self, member: Member) -> str:
        if member in self.left_out:
            return self._any_picture()
        records = self.sources[member[0]].folder.records
        return str(records.folder / records.name(member[1]))

    def _any_picture(self) -> str:
        """Return a file that DALI can decode, in the place of one that is left out."""
        if self._dummy is None:
            with tempfile.NamedTemporaryFile(suffix=".jpg", delete=False) as file:
                file.write(_ANY_JPEG)
            self._dummy = file.name
            weakref.finalize(self, Path(file.name).unlink, missing_ok=True)
        return self._dummy

    def _by_dali(self, step: int, members: list[Member], prepared: bool) -> list:
        pipeline = self._pipeline(step, prepared)
        damage = [self._damage(member) if prepared else None for member in members]
        try:
            outputs = [out if self.device_id is None else out.as_cpu() for out in pipeline.run()]
        except RuntimeError:
            # DALI reports a bad batch but seldom the file, so the batch is decoded again, one by one.
            return list(self._pool.map(self._decode_one, members))
        if any(len(output) != len(members) for output in outputs):
            return list(self._pool.map(self._decode_one, members))
        self._outputs += outputs
        if not prepared:
            return [outputs[0].at(i) for i in range(len(members))]
        sizes = [self.sources[side].prepared.size for side, _ in members]
        return [
            reason or (outputs[0].at(i), outputs[1].at(i).reshape(3, size, size))
            for i, (reason, size) in enumerate(zip(damage, sizes))
        ]

    def _pipeline(self, step: int, prepared: bool) -> Pipeline:
        """Return a pipeline whose next run is ``step``: the last one if steps are consecutive, otherwise a new one.

        Its batch has room for all faces of a step, since the number that DALI decodes differs from step to step.
        """
        size = len(self.members_of(step))
        next_step, pipeline = self._pipelines.get(prepared, (None, None))
        if pipeline is None or next_step != step:
            pipeline = (self._encoded_from if prepared else self._files_from)(step, size)
        self._pipelines[prepared] = step + 1, pipeline
        return pipeline

    def _damage(self, member: Member) -> str | None:
        return self.sources[member[0]].prepared.damage(self._row(member))

    def _files_from(self, step: int, size: int) -> Pipeline:
        from pipelines.graph import decoding_pipeline

        def paths_of(run: int) -> list[str]:
            members = self.members_of(step + run)
            return [self._path(m) for m in members if self._for_dali(m, False)] or [self._path(members[0])]

        return decoding_pipeline(paths_of, size, self.threads, self.device_id)

    def _encoded_from(self, step: int, size: int) -> Pipeline:
        from pipelines.graph import encoded_pipeline

        def bytes_of(run: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
            step_members = self.members_of(step + run)
            members = [m for m in step_members if self._for_dali(m, True)]
            return _as_arrays([(self.sources[m[0]].prepared, self._row(m)) for m in members or step_members[:1]])

        return encoded_pipeline(bytes_of, size, self.threads, self.device_id)
