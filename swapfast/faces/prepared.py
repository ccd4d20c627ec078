"""Reads and writes prepared sets: folders of faces cropped to training size, with their masks.

    OUT/shard-00000.tar     plain tar; of each face two members, one after the other
        NAME.jpg            jpeg: baseline, one scan, 4:4:4, quality 98; S x S px, which a GPU's JPEG engine decodes
        NAME.mask.jpg       jpeg: gray, quality 100; S x 3S px, the masks face, eye, mouth one below the other
        NAME.raw            raw: S*S*3 bytes BGR, then 3*S*S bytes of masks, lossless
    OUT/shard-00001.tar     ... begun when the last one is full (about 256 MiB)
    OUT/index.safetensors   the index of all faces, written last (layout: swapfast/mapped.py)
        columns             those of a FaceTable: kind is "prepared", names are the members', texts are the names of the
                            source files; landmarks and alignment in crop px; content, pixels and notes of the source
        shard               number of the face's shard, from 0
        face_at, face_bytes, face_crc       offset of its picture in the shard, its length, its CRC-32 (zlib)
        masks_at, masks_bytes, masks_crc    the same of its masks
        metadata            what, format, size, encoding, crop, mask, mask_names, shards (names and sizes), source,
                            count, notes; checksum: CRC-32 over all these

NAME is the source's name without its suffix and with _ for dots, made unique by a number. webdataset's tools therefore
take the two members of a jpeg face for one sample. A set gets its name OUT only when it is complete and on the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from swapfast.batch import MASK_NAMES
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError, unknown_name
from swapfast.faces.alignment import align
from swapfast.faces.crop import crop_landmarks
from swapfast.faces.folder import FaceFolder, make_report
from swapfast.faces.jpeg import read_jpeg
from swapfast.faces.reader import BadFace
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import ENCODINGS, KINDS, FaceTable, Packed, check_columns, pack
from swapfast.files import (
    TEMPORARY,
    flush,
    is_recent,
    open_new,
    open_plain,
    put_in_place,
    temporary_name,
    try_lock,
)
from swapfast.mapped import open_arrays, write_arrays
from swapfast.printing import shown_name
from swapfast.system import on_all_cores

INDEX = "index.safetensors"
PREPARED_FORMAT = 1  # raised whenever an older program would misread a set
FORMATS = ("jpeg", "raw")
MIN_SIZE, MAX_SIZE = 16, 2048
SHARD_BYTES = 256 << 20
FACE_QUALITY, MASK_QUALITY = 98, 100

_PLACE = ("shard", "face_at", "face_bytes", "face_crc", "masks_at", "masks_bytes", "masks_crc")
_BLOCK = 512  # tar headers and contents begin at multiples of it
_NAME_BYTES = 200  # most file systems take 255 with the suffix
_LOCK = ".lock"  # of an unfinished set, held by its writer
_MAX_OPEN = 256  # open shards
_AGAIN = "copy the set again, or make it again with swapfast prepare"


def check_format(encoding: str, size: int) -> None:
    """Raise SwapfastError for a format or size that no set can have."""
    if encoding not in FORMATS:
        raise unknown_name("--format", encoding, FORMATS)
    if type(size) is not int or not MIN_SIZE <= size <= MAX_SIZE:
        raise SwapfastError(f"--size {size!r}: must be a whole number of pixels from {MIN_SIZE} to {MAX_SIZE}")


# --- one face --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One face ready to be written.

    packed: its row (table.py), with the name of the source file as text.
    face, masks: its encoded picture and masks.
    """

    packed: Packed
    face: bytes
    masks: bytes


def encode(face: np.ndarray, masks: np.ndarray, encoding: str) -> tuple[bytes, bytes]:
    """Return a face and its masks encoded for a set.

    face: (S, S, 3) uint8 BGR.
    masks: (3, S, S) uint8.
    """
    if encoding == "raw":
        return face.tobytes(), masks.tobytes()
    full_colour = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _jpeg(face, FACE_QUALITY, full_colour), _jpeg(masks.reshape(-1, masks.shape[2]), MASK_QUALITY, [])


def _jpeg(image: np.ndarray, quality: int, options: list[int]) -> bytes:
    succeeded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality, *options])
    if not succeeded:
        raise ValueError("it cannot be encoded as JPEG")
    return data.tobytes()


def decode(face: bytes, masks: bytes, encoding: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the face and masks that ``encode`` encoded, as new arrays. Raises ValueError with a short reason."""
    face_shape, masks_shape = (size, size, 3), (3, size, size)
    if encoding == "raw":
        return _raw_pixels(face, face_shape), _raw_pixels(masks, masks_shape)
    return _jpeg_pixels(face, face_shape, cv2.IMREAD_COLOR), _jpeg_pixels(masks, masks_shape, cv2.IMREAD_GRAYSCALE)


def _check_jpeg(data: bytes, width: int, height: int, components: int) -> None:
    info = read_jpeg(data)
    if (info.width, info.height, info.components) != (width, height, components):
        actual = f"{info.width}x{info.height} px in {info.components}"
        raise ValueError(f"damaged (a JPEG of {actual} channels, expected {width}x{height} px in {components})")


def _raw_pixels(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        return np.frombuffer(data, np.uint8).reshape(shape).copy()
    except ValueError as error:
        raise ValueError("damaged (another length than its size)") from error


def _jpeg_pixels(data: bytes, shape: tuple[int, int, int], mode: int) -> np.ndarray:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        picture = None
    if picture is None or picture.size != math.prod(shape) or picture.shape[1] != shape[1]:
        raise ValueError("damaged (pixels that cannot be decoded)")
    return picture.reshape(shape)


def make_sample(
    record: FaceRecord, face: np.ndarray, masks: np.ndarray, crop: CropConfig, size: int, encoding: str
) -> Sample:
    """Return the sample of a cropped face. Raises ValueError with a short reason.

    face: (S, S, 3) uint8 BGR, the crop of ``record``.
    masks: (3, S, S) uint8.
    The digests remain those of the source, so the held-out share that they determine stays the same.
    """
    landmarks = crop_landmarks(record, crop, size)
    source = record.alignment
    alignment = dataclasses.replace(
        align(landmarks),
        pitch=source.pitch,
        yaw=source.yaw,
        roll=source.roll,
        average_distance=source.average_distance,
    )
    prepared = dataclasses.replace(
        record,
        kind="prepared",
        width=size,
        height=size,
        landmarks=landmarks,
        alignment=alignment,
        stored_masks={},
        mask_file=None,
        encoding="raw" if encoding == "raw" else "jpeg",
    )
    packed = dataclasses.replace(pack(prepared), text=record.path.name)
    return Sample(packed, *encode(face, masks, encoding))


# --- reading ---------------------------------------------------------------------------------------------------


class PreparedTable(FaceTable):
    """The faces of a prepared set. A record's path names its member, such as OUT/shard-00000.tar/NAME.jpg."""

    crop: CropConfig

    def __init__(
        self,
        folder: Path,
        columns: Mapping[str, np.ndarray],
        note_sets: Sequence[tuple[str, ...]],
        crop: CropConfig,
        shards: Sequence[tuple[str, int]],
        rows: np.ndarray | None = None,
    ) -> None:
        super().__init__(folder, columns, note_sets, [()], rows)
        self.crop, self.shards = crop, shards

    def select(self, indices: Sequence[int] | np.ndarray) -> PreparedTable:
        """Return the table of some of these faces, in the order of ``indices``."""
        rows = self.rows[np.asarray(indices, np.int64)]
        return PreparedTable(self.folder, self.columns, self.note_sets, self.crop, self.shards, rows)

    def source_name(self, index: int) -> str:
        """Return the name of the file that a face was made from."""
        return self._text("texts", int(self.rows[index]))

    def _record(self, row: int) -> FaceRecord:
        record = super()._record(row)
        shard, _ = self.shards[self.columns["shard"][row]]
        path = self.folder / shard / record.path.name
        return dataclasses.replace(record, path=path, mask_file=None, crop=self.crop)


class PreparedSet:
    """An open prepared set (``open_prepared``). Threads and forked processes may share it.

    path: its folder.
    size: edge of the faces S, px.
    encoding: "jpeg" or "raw".
    crop, mask: the settings its faces were made with.
    source: name of the folder it was made from.
    folder: its faces.
    shards: names and sizes in bytes.

    Methods take a face's ROW in the set: ``records.rows[index]`` of its index in ``folder.records``. The two are equal
    as long as no face is left out.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        encoding: str,
        crop: CropConfig,
        mask: MaskConfig,
        source: str,
        table: PreparedTable,
    ) -> None:
        self.path, self.source = path, source
        self.size, self.encoding, self.crop, self.mask = size, encoding, crop, mask
        self.folder = FaceFolder(path, table, [], table.note_counts())
        self.shards = table.shards
        self._columns = table.columns
        self._open: dict[int, BinaryIO] = {}
        self._fitting: set[int] = set()  # rows whose JPEGs have been found to have the set's size

    def __len__(self) -> int:
        return len(self._columns["shard"])

    def bytes_of(self, row: int) -> tuple[bytes, bytes]:
        """Return a face's encoded picture and masks, unchecked. Raises ValueError if its shard can no longer be read.

        Shards are read, not mapped: truncating a mapped file would kill the process without a message.
        """
        c = self._columns
        number = int(c["shard"][row])
        name, shard = self.shards[number][0], self._shard(number)
        face_bytes, masks_bytes = int(c["face_bytes"][row]), int(c["masks_bytes"][row])
        try:
            face = os.pread(shard.fileno(), face_bytes, int(c["face_at"][row]))
            masks = os.pread(shard.fileno(), masks_bytes, int(c["masks_at"][row]))
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error
        if len(face) != face_bytes or len(masks) != masks_bytes:
            raise ValueError(f"{name} has changed since the set was opened")
        return face, masks

    def _shard(self, number: int) -> BinaryIO:
        """Return a shard, opened on first access. There is no lock: two threads may open it twice, without harm."""
        shard = self._open.get(number)
        if shard is not None:
            return shard
        name, size = self.shards[number]
        try:
            shard = open_plain(self.path / name)  # closed with its last reference
            if os.fstat(shard.fileno()).st_size != size:
                raise ValueError(f"{name} has changed since the set was opened")
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error
        for oldest in list(self._open)[: 1 - _MAX_OPEN]:
            self._open.pop(oldest, None)  # a thread that still reads from it holds a reference
        self._open[number] = shard
        return shard

    def fitting_bytes(self, row: int) -> tuple[bytes, bytes]:
        """Return ``bytes_of`` a face, whose JPEGs have the set's size. Raises ValueError before anything is decoded.

        A JPEG of another size would break the batch it is decoded in, or take gigabytes.
        """
        face, masks = self.bytes_of(row)
        if self.encoding == "jpeg" and row not in self._fitting:
            _check_jpeg(face, self.size, self.size, 3)
            _check_jpeg(masks, self.size, 3 * self.size, 1)
            self._fitting.add(row)
        return face, masks

    def damage(self, row: int) -> str | None:
        """Return why a face is damaged in one phrase, None if its bytes are those that were written."""
        try:
            self._checked(row)
        except ValueError as error:
            return str(error)
        return None

    def _checked(self, row: int) -> tuple[bytes, bytes]:
        face, masks = self.fitting_bytes(row)
        c = self._columns
        if zlib.crc32(face) != c["face_crc"][row] or zlib.crc32(masks) != c["masks_crc"][row]:
            raise ValueError("damaged (checksum)")
        return face, masks

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a face and its masks. With mask type none the face mask is 255 everywhere.

        Returns (S, S, 3) uint8 BGR and (3, S, S) uint8 in the order of MASK_NAMES.
        Raises ValueError with a short reason.
        """
        return decode(*self._checked(row), self.encoding, self.size)

    def verify(self, workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> list[BadFace]:
        """Read every face and return the bad ones."""
        reasons = on_all_cores(self._reason, range(len(self)), workers, progress)
        return [BadFace(self.folder.records[row].path, reason) for row, reason in enumerate(reasons) if reason]

    def _reason(self, row: int) -> str | None:
        try:
            self.read(row)
        except ValueError as error:
            return str(error)
        return None


def inspect_prepared(
    path: Path, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> dict:
    """Read every face of a prepared set and return a report like ``inspect_folder``. Raises as ``open_prepared``."""
    prepared = open_prepared(path)
    masks = [name for name in MASK_NAMES if name != "face" or prepared.mask.mask_type != "none"]
    return make_report(prepared.folder.without(prepared.verify(workers, progress)), lambda record: masks)


def is_prepared(path: Path) -> bool:
    """Return whether a folder is a prepared set, intact or damaged."""
    path = Path(path)
    return any(os.path.isfile(path / name) for name in (INDEX, _shard_name(0)))


def open_prepared(path: Path) -> PreparedSet:
    """Open a prepared set. Its faces are read on access.

    Raises SwapfastError for a folder that is no prepared set, a damaged set or one of another version, and for a
    missing shard or one of another size. Damage within a shard is found when a face is read.
    """
    path = Path(path)
    index = path / INDEX
    try:
        columns, metadata = open_arrays(index)
    except (FileNotFoundError, NotADirectoryError):
        raise SwapfastError(
            f"{shown_name(path)}: no prepared set, it has no {INDEX}; make one with swapfast prepare"
        ) from None
    except OSError as error:
        raise SwapfastError(f"{shown_name(index)}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise _damaged(index, error) from error
    if metadata.get("what") != "swapfast prepared set":
        raise SwapfastError(f"{shown_name(index)}: not the index of a prepared set; make one with swapfast prepare")
    if metadata.get("format") != str(PREPARED_FORMAT):
        raise SwapfastError(
            f"{shown_name(index)}: written by another version of swapfast (format "
            f"{shown_name(metadata.get('format'))}, this one reads {PREPARED_FORMAT}); make the set again with "
            "swapfast prepare"
        )
    try:
        prepared = _parsed(path, columns, metadata)
    except KeyError as error:
        raise _damaged(index, f"no {error.args[0]}") from error
    except (ValueError, TypeError, OverflowError, RecursionError, SwapfastError) as error:
        raise _damaged(index, error) from error
    for name, size in prepared.shards:
        _check_shard(path / name, size)
    return prepared


def _damaged(index: Path, reason: object) -> SwapfastError:
    return SwapfastError(f"{shown_name(index)}: damaged: {shown_name(reason)}; {_AGAIN}")


def _check_shard(path: Path, size: int) -> None:
    try:
        actual = os.stat(path).st_size
    except FileNotFoundError:
        raise SwapfastError(f"{shown_name(path)}: missing; {_AGAIN}") from None
    except OSError as error:
        raise SwapfastError(f"{shown_name(path)}: cannot be read ({error.strerror or error})") from error
    if actual != size:
        raise SwapfastError(f"{shown_name(path)}: {actual} bytes, the index says {size}; {_AGAIN}")


def _parsed(path: Path, columns: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> PreparedSet:
    """Return the set of an index. Raises an error that ``open_prepared`` catches if a field is wrong."""
    if metadata["checksum"] != _checksum(metadata):
        raise ValueError("another checksum than its own")
    size, encoding = int(metadata["size"]), metadata["encoding"]
    check_format(encoding, size)
    if json.loads(metadata["mask_names"]) != list(MASK_NAMES):
        raise ValueError("other masks")
    crop = CropConfig.from_dict(json.loads(metadata["crop"]))
    mask = MaskConfig.from_dict(json.loads(metadata["mask"]))
    notes = [tuple(map(str, texts)) for texts in json.loads(metadata["notes"])]
    shards = [(str(name), int(length)) for name, length in json.loads(metadata["shards"])]
    if [name for name, _ in shards] != [_shard_name(number) for number in range(len(shards))]:
        raise ValueError("other shards")
    check_columns(columns, len(notes), 1)
    if metadata["count"] != str(len(columns["kind"])):
        raise ValueError("another number of faces")
    _check_places(columns, [length for _, length in shards], size, encoding)
    table = PreparedTable(path, columns, notes, crop, shards)
    return PreparedSet(path, size, encoding, crop, mask, metadata["source"], table)


def _check_places(columns: Mapping[str, np.ndarray], shards: list[int], size: int, encoding: str) -> None:
    count = len(columns["kind"])
    for name in _PLACE:
        if columns[name].dtype != np.int64 or columns[name].shape != (count,):
            raise ValueError(f"column {name} of another shape")
        if (columns[name] < 0).any():
            raise ValueError(f"column {name} out of range")
    if (columns["kind"] != KINDS.index("prepared")).any() or (columns["encoding"] != ENCODINGS.index(encoding)).any():
        raise ValueError("faces of another kind")
    if count == 0:
        raise ValueError("no faces")
    if columns["shard"].max() >= len(shards):
        raise ValueError("column shard out of range")
    ends = np.array(shards, np.int64)[columns["shard"]]
    for part in ("face", "masks"):
        at, length = columns[f"{part}_at"], columns[f"{part}_bytes"]
        if (length == 0).any() or (length > ends).any() or (at > ends - length).any():
            raise ValueError(f"column {part}_at beyond its shard")
        if encoding == "raw" and (length != 3 * size * size).any():
            raise ValueError(f"column {part}_bytes other than its size")


def _checksum(metadata: Mapping[str, str]) -> str:
    """Return the checksum of the metadata; ``write_arrays`` has one of the arrays."""
    covered = {name: text for name, text in metadata.items() if name not in ("checksum", "crc32")}
    return str(zlib.crc32(json.dumps(covered, sort_keys=True).encode()))


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


# --- writing ---------------------------------------------------------------------------------------------------


class NewPreparedSet:
    """A prepared set being written, under a temporary name beside ``out`` until ``commit``.

    Leaving the ``with`` block without ``commit`` removes it. Raises SwapfastError if ``out`` exists, and OSError where
    the set cannot be written.
    """

    def __init__(
        self,
        out: Path,
        size: int,
        encoding: str,
        crop: CropConfig,
        mask: MaskConfig,
        source: str,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        check_format(encoding, size)
        self.out = Path(os.path.abspath(out))
        self.temporary = temporary_name(self.out)
        self.size, self.encoding, self.shard_bytes = size, encoding, shard_bytes
        self.bytes = 0
        self._metadata = {
            "what": "swapfast prepared set",
            "format": str(PREPARED_FORMAT),
            "size": str(size),
            "encoding": encoding,
            "crop": json.dumps(crop.to_dict()),
            "mask": json.dumps(mask.to_dict()),
            "mask_names": json.dumps(MASK_NAMES),
            "source": source.encode("utf-8", "backslashreplace").decode(),
        }
        self._suffix = "jpg" if encoding == "jpeg" else "raw"
        self._file: io.BufferedWriter | None = None
        self._shards: list[tuple[str, int]] = []  # the finished ones, with sizes in bytes
        self._names: dict[str, None] = {}
        self._packed: list[Packed] = []
        self._places: list[tuple[int, ...]] = []
        self._new_folders: list[Path] = []
        self._lock: BinaryIO | None = None

    def __enter__(self) -> NewPreparedSet:
        self._check_free()
        self._new_folders = [folder for folder in self.out.parents if not folder.exists()]
        try:
            _remove_leftovers(self.out)
            self.temporary.mkdir(parents=True)
            self._lock = _locked(self.temporary)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.raw.close()  # without flushing its buffer, which might not fit on the disk
            self._file = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self.temporary.exists():
            shutil.rmtree(self.temporary, ignore_errors=True)
        if not self.out.exists():
            for folder in self._new_folders:
                with contextlib.suppress(OSError):  # missing or in use
                    folder.rmdir()

    def _check_free(self) -> None:
        if os.path.lexists(self.out):
            raise SwapfastError(f"{shown_name(self.out)}: exists already; give a new folder, or remove that one first")

    def add(self, sample: Sample) -> None:
        """Append one face, to a new shard if the last one is full."""
        name = _member_name(sample.packed.text, self._names)
        if self.encoding == "raw":
            members = [(f"{name}.raw", sample.face + sample.masks)]
        else:
            members = [(f"{name}.jpg", sample.face), (f"{name}.mask.jpg", sample.masks)]
        content, starts = _tar(members)
        if self._file is not None and self._file.tell() + len(content) + 2 * _BLOCK > self.shard_bytes:
            self._finish_shard(self._file)
        if self._file is None:
            self._file = open(self.temporary / _shard_name(len(self._shards)), "xb")  # noqa: SIM115 - it stays open
        begin = self._file.tell()
        self._file.write(content)
        masks_start = starts[0] + len(sample.face) if self.encoding == "raw" else starts[1]
        face = begin + starts[0], len(sample.face), zlib.crc32(sample.face)
        masks = begin + masks_start, len(sample.masks), zlib.crc32(sample.masks)
        self._places.append((len(self._shards), *face, *masks))
        self._names[name] = None
        self._packed.append(sample.packed)

    def _finish_shard(self, file: io.BufferedWriter) -> None:
        file.write(bytes(2 * _BLOCK))
        size = file.tell()
        file.close()
        self._file = None
        path = self.temporary / _shard_name(len(self._shards))
        flush(path)
        self._shards.append((path.name, size))
        self.bytes += size

    def commit(self) -> None:
        """Write the index, flush all files and give the set its name."""
        if self._file is not None:
            self._finish_shard(self._file)
        names = [f"{name}.{self._suffix}" for name in self._names]
        # Sizes and times of the source files mean nothing on another machine.
        files = np.full((len(names), 3, 2), -1, np.int64)
        table = FaceTable.build(self.out, names, self._packed, files)
        places = np.array(self._places, np.int64).reshape(-1, len(_PLACE)).T
        columns = {**table.columns, **dict(zip(_PLACE, places))}
        metadata = {
            **self._metadata,
            "shards": json.dumps(self._shards),
            "count": str(len(names)),
            "notes": json.dumps(table.note_sets),
        }
        index = self.temporary / INDEX
        write_arrays(index, columns, {**metadata, "checksum": _checksum(metadata)})
        self.bytes += index.stat().st_size
        (self.temporary / _LOCK).unlink()
        self._check_free()  # an empty folder would be replaced silently
        try:
            put_in_place(self.temporary, self.out)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # somebody was a moment faster
                self._check_free()
            raise


def _locked(folder: Path) -> BinaryIO:
    """Return the lock of a new folder. It gets its name when it is held, so that nobody finds it free before."""
    lock = open_new(folder / f"{_LOCK}-new")
    try_lock(lock)
    (folder / f"{_LOCK}-new").rename(folder / _LOCK)
    return lock


def _remove_leftovers(out: Path) -> None:
    """Remove what killed writers of the same set left behind."""
    if not out.parent.is_dir():
        return
    for path in out.parent.iterdir():
        if re.fullmatch(rf"{re.escape(TEMPORARY)}[0-9a-f]+-{re.escape(out.name)}", path.name) and _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Return whether nobody writes an unfinished set: nobody holds its lock, or it is old where there are none.

    The process number of its writer would not tell: in another container it is another process'.
    """
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        with open_plain(folder / _LOCK, "rb+") as lock:
            is_free = try_lock(lock)
    except OSError:  # it is about to be locked or to get its name, or is another user's
        is_free = None
    try:
        return not any(map(is_recent, (folder, *folder.iterdir()))) if is_free is None else is_free
    except OSError:
        return False


def _member_name(source: str, used_names: Mapping[str, None]) -> str:
    """Return a new NAME for a face's members: valid UTF-8 without dots, short enough to be unpacked."""
    stem = os.path.splitext(source)[0].replace(".", "_").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    stem = stem.encode()[:_NAME_BYTES].decode("utf-8", "ignore")
    name, number = stem, 2
    while name in used_names:
        name, number = f"{stem}-{number}", number + 1
    return name


def _tar(members: Sequence[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    """Return the part of a tar that holds these files, and the offset of each file's content in it.

    It holds no time or owner, so two sets of the same faces are equal.
    """
    parts, starts, offset = [], [], 0
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
        starts.append(offset + len(header))
        parts += [header, data, bytes(-len(data) % _BLOCK)]
        offset += sum(map(len, parts[-3:]))
    return b"".join(parts), starts
