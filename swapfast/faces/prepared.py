"""A prepared set: faces cut at training size once, with their masks, in a folder that can be copied anywhere.

    OUT/shard-00000.tar     plain tar; of each face two members, one after the other
        NAME.jpg            jpeg: baseline, one scan, 4:4:4, quality 98; S x S px: what a GPU's JPEG engine takes
        NAME.mask.jpg       jpeg: gray, quality 100; S x 3S px: the masks face, eye, mouth one below the other
        NAME.raw            raw: S*S*3 bytes BGR, then 3*S*S bytes of masks: lossless
    OUT/shard-00001.tar     ... begun when the last one is full (about 256 MiB)
    OUT/index.safetensors   what and where each face is, written last (layout: swapfast/mapped.py)
        columns             those of a FaceTable: kind "prepared", names those of the members, texts those of the
                            files they were made from; landmarks and alignment in crop px; content, pixels and notes
                            of the source
        shard               in which shard a face lies, from 0
        face_at, face_bytes, face_crc       where its picture begins there, its length, and zlib's CRC-32 of it
        masks_at, masks_bytes, masks_crc    the same of its masks
        metadata            what, format, size, encoding, crop, mask, mask_names, shards (names and sizes), source,
                            count, notes; checksum: CRC-32 over all these

NAME is the source's name without its suffix and with _ for dots, made unique by a number; so webdataset's tools take
the two members of a jpeg face for one sample. A set has its name OUT only once it is whole and on the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
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
from swapfast.faces.folder import FaceFolder, report_of
from swapfast.faces.reader import BadFace, printable
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import ENCODINGS, KINDS, FaceTable, Packed, check_columns, pack
from swapfast.files import TEMPORARY, flush, put_in_place, temporary_name, writer_lives
from swapfast.mapped import open_arrays, write_arrays
from swapfast.system import on_all_cores

INDEX = "index.safetensors"
PREPARED_FORMAT = 1  # raised whenever an older program would read a set wrong
FORMATS = ("jpeg", "raw")
MIN_SIZE, MAX_SIZE = 16, 2048
SHARD_BYTES = 256 << 20
FACE_QUALITY, MASK_QUALITY = 98, 100

_PLACE = ("shard", "face_at", "face_bytes", "face_crc", "masks_at", "masks_bytes", "masks_crc")
_BLOCK = 512  # of tar: headers and contents begin at multiples of it
_NAME_BYTES = 200  # most file systems take 255, and the ending comes on top
_MAX_OPEN = 256  # shards at a time
_AGAIN = "copy the set again, or make it again with swapfast prepare"


def check_format(encoding: str, size: int) -> None:
    """Raises SwapfastError for a format or size that no set can have."""
    if encoding not in FORMATS:
        raise unknown_name("--format", encoding, FORMATS)
    if type(size) is not int or not MIN_SIZE <= size <= MAX_SIZE:
        raise SwapfastError(f"--size {size!r}: must be a whole number of pixels from {MIN_SIZE} to {MAX_SIZE}")


# --- one face --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One face as it is written. packed: its row, see table.py; its text is the name of the source's file.

    face, masks: see ``encode``.
    """

    packed: Packed
    face: bytes
    masks: bytes


def encode(face: np.ndarray, masks: np.ndarray, encoding: str) -> tuple[bytes, bytes]:
    """(S, S, 3) uint8 BGR and (3, S, S) uint8 masks as they lie in a set of this encoding."""
    if encoding == "raw":
        return face.tobytes(), masks.tobytes()
    full_colour = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _jpeg(face, FACE_QUALITY, full_colour), _jpeg(masks.reshape(-1, masks.shape[2]), MASK_QUALITY, [])


def _jpeg(image: np.ndarray, quality: int, more: list[int]) -> bytes:
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality, *more])
    if not done:
        raise ValueError("it cannot be encoded as JPEG")
    return data.tobytes()


def decode(face: bytes, masks: bytes, encoding: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of ``encode``, in new arrays. Raises ValueError with a short reason."""
    shapes = (size, size, 3), (3, size, size)
    if encoding == "raw":
        try:
            return tuple(np.frombuffer(b, np.uint8).reshape(s).copy() for b, s in zip((face, masks), shapes))
        except ValueError as error:
            raise ValueError("damaged (another length than its size)") from error
    pictures = []
    for data, shape, mode in zip((face, masks), shapes, (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE)):
        try:
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:
            picture = None
        if picture is None or picture.size != size * size * 3 or picture.shape[1] != size:
            raise ValueError("damaged (pixels that cannot be decoded)")
        pictures.append(picture.reshape(shape))
    return tuple(pictures)


def make_sample(
    record: FaceRecord, face: np.ndarray, masks: np.ndarray, crop: CropConfig, size: int, encoding: str
) -> Sample:
    """What is written of ``record``, whose crop and (3, S, S) masks these are. Raises ValueError with a short reason.

    The digests stay those of the source, so that a held-out share chosen by them stays the same.
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
    made = dataclasses.replace(
        record,
        kind="prepared",
        width=size,
        height=size,
        landmarks=landmarks,
        alignment=alignment,
        stored_masks={},
        mask_file=None,
        encoding=encoding,
    )
    packed = dataclasses.replace(pack(made), text=record.path.name)
    return Sample(packed, *encode(face, masks, encoding))


# --- reading ---------------------------------------------------------------------------------------------------


class PreparedTable(FaceTable):
    """The faces of a prepared set. A record's path is that of its member, such as OUT/shard-00000.tar/NAME.jpg."""

    def __init__(self, folder: Path, columns, note_sets, crop: CropConfig, shards, rows=None) -> None:
        super().__init__(folder, columns, note_sets, [()], rows)
        self.crop, self.shards = crop, shards

    def select(self, indices: Sequence[int]) -> PreparedTable:
        """Some of these faces, in the order given."""
        rows = self.rows[np.asarray(indices, np.int64)]
        return PreparedTable(self.folder, self.columns, self.note_sets, self.crop, self.shards, rows)

    def source_name(self, index: int) -> str:
        """The name of the file that a face was made from."""
        return self._text("texts", int(self.rows[index]))

    def _record(self, row: int) -> FaceRecord:
        record = super()._record(row)
        shard, _ = self.shards[self.columns["shard"][row]]
        path = self.folder / shard / record.path.name
        return dataclasses.replace(record, path=path, mask_file=None, cut=self.crop)


class PreparedSet:
    """An open set; see ``open_prepared``. Threads and forked processes may share it.

    path: its folder. size: S, px. encoding: "jpeg" or "raw". crop, mask: what the faces were cut and masked by.
    source: the name of the folder it was made from. folder: its faces. shards: names and sizes in bytes. A face is
    asked for by its ROW in the set, which is its index in ``folder.records`` only until some are left out; after
    that it is ``records.rows[index]``.
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

    def __len__(self) -> int:
        return len(self._columns["shard"])

    def bytes_of(self, row: int) -> tuple[bytes, bytes]:
        """A face's picture and masks as encoded, unchecked. Raises ValueError where its shard can no longer be read.

        Read and not mapped: a mapped shard that somebody cuts short would end the process without a word.
        """
        c = self._columns
        number = int(c["shard"][row])
        places = ((int(c[f"{part}_at"][row]), int(c[f"{part}_bytes"][row])) for part in ("face", "masks"))
        name, shard = self.shards[number][0], self._shard(number)
        try:
            found = tuple((os.pread(shard.fileno(), length, at), length) for at, length in places)
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error
        if any(len(data) != length for data, length in found):
            raise ValueError(f"{name} has changed since the set was opened")
        return tuple(data for data, _ in found)

    def _shard(self, number: int) -> BinaryIO:
        """A shard, opened when it is first asked for. There is no lock: two threads may open it twice, without harm."""
        found = self._open.get(number)
        if found is not None:
            return found
        name, size = self.shards[number]
        try:
            found = open(self.path / name, "rb", buffering=0)  # noqa: SIM115 - closed when nobody has it any more
            if os.fstat(found.fileno()).st_size != size:
                raise ValueError(f"{name} has changed since the set was opened")
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error
        for oldest in list(self._open)[: 1 - _MAX_OPEN]:
            self._open.pop(oldest, None)  # whoever still reads from it keeps it open
        self._open[number] = found
        return found

    def damage(self, row: int) -> str | None:
        """Why a face's bytes are not those that were written, in a phrase; None if they are."""
        try:
            self._checked(row)
        except ValueError as error:
            return str(error)
        return None

    def _checked(self, row: int) -> tuple[bytes, bytes]:
        face, masks = self.bytes_of(row)
        c = self._columns
        if zlib.crc32(face) != c["face_crc"][row] or zlib.crc32(masks) != c["masks_crc"][row]:
            raise ValueError("damaged (checksum)")
        return face, masks

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """A face, (S, S, 3) uint8 BGR, and its masks, (3, S, S) uint8: face, eye, mouth.

        With mask type none the face mask is 255 everywhere. Raises ValueError with a short reason.
        """
        return decode(*self._checked(row), self.encoding, self.size)

    def verify(self, workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> list[BadFace]:
        """Reads every face; returns those that cannot be."""
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
    """A report on a prepared set like that on a folder (folder.py), every face read. Raises as ``open_prepared``."""
    made = open_prepared(path)
    masks = [name for name in MASK_NAMES if name != "face" or made.mask.mask_type != "none"]
    return report_of(made.folder.without(made.verify(workers, progress)), lambda record: masks)


def is_prepared(path: Path) -> bool:
    """Whether a folder is a prepared set, be it a damaged one."""
    path = Path(path)
    return any(os.path.isfile(path / name) for name in (INDEX, _shard_name(0)))


def open_prepared(path: Path) -> PreparedSet:
    """Opens a set; faces are read when they are asked for.

    Raises SwapfastError where it is none, is damaged or of another version, or where a shard is missing or of another
    size. Damage within a shard shows when a face is read.
    """
    path = Path(path)
    index = path / INDEX
    try:
        columns, metadata = open_arrays(index)
    except (FileNotFoundError, NotADirectoryError):
        raise SwapfastError(
            f"{printable(path)}: no prepared set, it has no {INDEX}; make one with swapfast prepare"
        ) from None
    except OSError as error:
        raise SwapfastError(f"{printable(index)}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise _damaged(index, error) from error
    if metadata.get("what") != "swapfast prepared set":
        raise SwapfastError(f"{printable(index)}: not the index of a prepared set; make one with swapfast prepare")
    if metadata.get("format") != str(PREPARED_FORMAT):
        raise SwapfastError(
            f"{printable(index)}: written by another version of swapfast (format "
            f"{printable(metadata.get('format'))}, this one reads {PREPARED_FORMAT}); make the set again with "
            "swapfast prepare"
        )
    try:
        found = _parsed(path, columns, metadata)
    except KeyError as error:
        raise _damaged(index, f"no {error.args[0]}") from error
    except (ValueError, TypeError, OverflowError, RecursionError, SwapfastError) as error:
        raise _damaged(index, error) from error
    for name, size in found.shards:
        _check_shard(path / name, size)
    return found


def _damaged(index: Path, reason: object) -> SwapfastError:
    return SwapfastError(f"{printable(index)}: damaged: {printable(reason)}; {_AGAIN}")


def _check_shard(path: Path, size: int) -> None:
    try:
        actual = os.stat(path).st_size
    except FileNotFoundError:
        raise SwapfastError(f"{printable(path)}: missing; {_AGAIN}") from None
    except OSError as error:
        raise SwapfastError(f"{printable(path)}: cannot be read ({error.strerror or error})") from error
    if actual != size:
        raise SwapfastError(f"{printable(path)}: {actual} bytes, the index says {size}; {_AGAIN}")


def _parsed(path: Path, columns: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> PreparedSet:
    """Raises one of what ``open_prepared`` catches where these are not what ``NewPreparedSet`` writes."""
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
    """Of the metadata; that of the arrays is kept by ``write_arrays``."""
    meant = {name: text for name, text in metadata.items() if name not in ("checksum", "crc32")}
    return str(zlib.crc32(json.dumps(meant, sort_keys=True).encode()))


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


# --- writing ---------------------------------------------------------------------------------------------------


class NewPreparedSet:
    """A set being written, under a temporary name beside ``out`` until ``commit``.

    Leaving the ``with`` block without one removes it. Raises SwapfastError where there is something at ``out``, and
    OSError where it cannot be written.
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
        self._ending = "jpg" if encoding == "jpeg" else "raw"
        self._file: io.BufferedWriter | None = None
        self._shards: list[tuple[str, int]] = []  # the finished ones
        self._names: dict[str, None] = {}
        self._packed: list[Packed] = []
        self._places: list[tuple[int, ...]] = []
        self._made_folders: list[Path] = []

    def __enter__(self) -> NewPreparedSet:
        self._check_free()
        self._made_folders = [folder for folder in self.out.parents if not folder.exists()]
        try:
            _remove_leftovers(self.out)
            self.temporary.mkdir(parents=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.raw.close()  # what its buffer still holds is not wanted, and might not fit on the disk
            self._file = None
        if self.temporary.exists():
            shutil.rmtree(self.temporary, ignore_errors=True)
        if not self.out.exists():
            for folder in self._made_folders:
                with contextlib.suppress(OSError):  # never made, or somebody uses it
                    folder.rmdir()

    def _check_free(self) -> None:
        if os.path.lexists(self.out):
            raise SwapfastError(f"{printable(self.out)}: exists already; give a new folder, or remove that one first")

    def add(self, sample: Sample) -> None:
        """Append one face, to a new shard where the last one is full."""
        name = _member_name(sample.packed.text, self._names)
        if self.encoding == "raw":
            members = [(f"{name}.raw", sample.face + sample.masks)]
        else:
            members = [(f"{name}.jpg", sample.face), (f"{name}.mask.jpg", sample.masks)]
        written, starts = _tar(members)
        if self._file is not None and self._file.tell() + len(written) + 2 * _BLOCK > self.shard_bytes:
            self._finish_shard()
        if self._file is None:
            self._file = open(self.temporary / _shard_name(len(self._shards)), "xb")  # noqa: SIM115 - it stays open
        begin = self._file.tell()
        self._file.write(written)
        masks_start = starts[0] + len(sample.face) if self.encoding == "raw" else starts[1]
        face = begin + starts[0], len(sample.face), zlib.crc32(sample.face)
        masks = begin + masks_start, len(sample.masks), zlib.crc32(sample.masks)
        self._places.append((len(self._shards), *face, *masks))
        self._names[name] = None
        self._packed.append(sample.packed)

    def _finish_shard(self) -> None:
        self._file.write(bytes(2 * _BLOCK))
        size = self._file.tell()
        self._file.close()
        self._file = None
        path = self.temporary / _shard_name(len(self._shards))
        flush(path)
        self._shards.append((path.name, size))
        self.bytes += size

    def commit(self) -> None:
        """Write the index, flush everything and give the set its name."""
        if self._file is not None:
            self._finish_shard()
        names = [f"{name}.{self._ending}" for name in self._names]
        # Sizes and times of the source's files mean nothing elsewhere.
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
        self._check_free()  # a folder that is empty would be replaced without a word
        put_in_place(self.temporary, self.out)


def _remove_leftovers(out: Path) -> None:
    """What killed writers of the same set have left. A file of our own number is one too: we have not begun."""
    if not out.parent.is_dir():
        return
    for path in out.parent.iterdir():
        number = path.name.removeprefix(TEMPORARY).split("-")[0]
        if not number.isdecimal() or path.name != f"{TEMPORARY}{number}-{out.name}":
            continue
        if int(number) == os.getpid() or not writer_lives(path):
            shutil.rmtree(path, ignore_errors=True)


def _member_name(source: str, taken: Mapping[str, None]) -> str:
    """NAME of the members: valid UTF-8 without dots, short enough to be unpacked, and not taken."""
    stem = os.path.splitext(source)[0].replace(".", "_").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    stem = stem.encode()[:_NAME_BYTES].decode("utf-8", "ignore")
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    return name


def _tar(members: Sequence[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    """The part of a tar that holds these files, and where the content of each begins in it.

    No time, owner or anything else that would make two sets of the same faces differ.
    """
    parts, starts, at = [], [], 0
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
        starts.append(at + len(header))
        parts += [header, data, bytes(-len(data) % _BLOCK)]
        at += sum(map(len, parts[-3:]))
    return b"".join(parts), starts
