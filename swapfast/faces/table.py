"""The faces of a folder as columns of less than a kilobyte per face, equal in memory and in the mapped index file.

A ``FaceTable`` is a sequence of ``FaceRecord``, each made on access. The index stores the result of reading a folder,
so that the next start reads only files that are new or have another size or time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np

from swapfast.config import CropConfig
from swapfast.faces.alignment import CENTERINGS, Alignment
from swapfast.faces.png import read_header
from swapfast.faces.reader import BadFace
from swapfast.faces.record import FaceRecord, StoredMask
from swapfast.mapped import open_arrays, write_arrays

INDEX_FORMAT = 4  # raised whenever reading a file gives another result than before
MAX_COORDINATE = 1e9  # px; files that say more are refused, heads and frames alike

KINDS: tuple[Literal["bad", "head", "plain", "prepared"], ...] = ("bad", "head", "plain", "prepared")
ENCODINGS: tuple[Literal["png", "jpeg", "raw"], ...] = ("png", "jpeg", "raw")

# The columns of one face. files: size and mtime in ns of the picture, its json and its mask, -1 for a missing file.
# notes, masks: indices into the lists of combinations that occur, of which a folder has few.
ROW = np.dtype(
    [
        ("files", "<i8", (3, 2)),
        ("content", "u1", 16),
        ("pixels", "u1", 8),
        ("kind", "u1"),
        ("encoding", "u1"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("notes", "<i4"),
        ("masks", "<i4"),
        ("landmarks", "<f4", (68, 2)),
        ("legacy_matrix", "<f8", (2, 3)),
        ("offsets", "<f8", (3, 2)),
        ("rotation", "<f8", 3),
        ("translation", "<f8", 3),
        ("angles", "<f8", 4),  # pitch, yaw, roll, average distance
    ]
)

ROW_NAMES: tuple[str, ...] = ROW.names or ()


class StoredMasks(Mapping[str, StoredMask]):
    """The masks in the header of a file. Their names are known; the header is read on the first access to one."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.path, self.names = path, names
        self._read: Mapping[str, StoredMask] | None = None

    def __getitem__(self, name: str) -> StoredMask:
        """Return a mask. Raises ValueError with a short reason if the file has changed or cannot be read."""
        if name not in self.names:
            raise KeyError(name)
        if self._read is None:
            header = read_header(self.path)
            self._read = {} if header is None else header.masks
        if name not in self._read:
            raise ValueError("the file has changed since the folder was read")
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Packed:
    """One file's row and its values of variable length.

    row: bytes of a ``ROW``.
    text: the reason of a bad file, or the name of a face's mask file; with a NUL and the reason after it if that
        cannot be used.
    """

    row: bytes
    notes: tuple[str, ...]
    masks: tuple[str, ...]
    text: str


def pack(face: FaceRecord | BadFace) -> Packed:
    """Return a face or bad file as a row. The column ``files`` stays 0."""
    row = np.zeros((), ROW)
    if isinstance(face, BadFace):
        return Packed(row.tobytes(), (), (), face.reason)
    alignment = face.alignment
    row["content"] = np.frombuffer(face.content.ljust(16, b"\0"), np.uint8)
    row["pixels"] = np.frombuffer(face.pixels.ljust(8, b"\0"), np.uint8)
    row["kind"], row["encoding"] = KINDS.index(face.kind), ENCODINGS.index(face.encoding)
    row["width"], row["height"] = face.width, face.height
    row["landmarks"] = face.landmarks
    row["legacy_matrix"] = alignment.legacy_matrix
    row["offsets"] = [alignment.offsets[name] for name in CENTERINGS]
    row["rotation"], row["translation"] = alignment.rotation, alignment.translation
    row["angles"] = alignment.pitch, alignment.yaw, alignment.roll, alignment.average_distance
    mask = face.mask_file.name if face.mask_file else "\0".join(face.unusable_mask or ())
    return Packed(row.tobytes(), face.notes, tuple(face.stored_masks), mask)


def _blob(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return texts concatenated as bytes, and the (N + 1,) offsets at which they begin and end."""
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


class FaceTable(Sequence[FaceRecord]):
    """A sequence of faces stored as columns, sorted by file name.

    columns: name -> array: those of ROW, the texts ``names``, ``texts`` and their offsets ``names_at``, ``texts_at``.
    note_sets, mask_sets: the combinations that the columns ``notes`` and ``masks`` index.
    rows: (len,) the table's faces as rows of the columns, by default all that are not bad.
    crop: that all pictures show, None where they are not crops.
    """

    crop: CropConfig | None = None

    def __init__(
        self,
        folder: Path,
        columns: Mapping[str, np.ndarray],
        note_sets: Sequence[tuple[str, ...]],
        mask_sets: Sequence[tuple[str, ...]],
        rows: np.ndarray | None = None,
    ) -> None:
        self.folder = folder
        self.columns = columns
        self.note_sets = note_sets
        self.mask_sets = mask_sets
        self.rows = np.flatnonzero(columns["kind"]) if rows is None else rows

    @classmethod
    def build(cls, folder: Path, names: Sequence[str], packed: Iterable[Packed], files: np.ndarray) -> FaceTable:
        """Return the table of packed faces.

        names: their file names.
        files: (N, 3, 2), the column ``files``.
        """
        packed = list(packed)
        rows = np.frombuffer(b"".join(p.row for p in packed), ROW).copy()
        note_sets = list(dict.fromkeys(p.notes for p in packed))
        mask_sets = list(dict.fromkeys(p.masks for p in packed))
        notes, masks = ({names: i for i, names in enumerate(sets)} for sets in (note_sets, mask_sets))
        rows["notes"] = [notes[p.notes] for p in packed]
        rows["masks"] = [masks[p.masks] for p in packed]
        rows["files"] = files
        columns = {name: np.ascontiguousarray(rows[name]) for name in ROW_NAMES}
        columns["names"], columns["names_at"] = _blob(names)
        columns["texts"], columns["texts_at"] = _blob(p.text for p in packed)
        return cls(folder, columns, note_sets, mask_sets)

    def packed(self, row: int) -> Packed:
        """Return one of the columns' rows as ``build`` takes it."""
        record = np.zeros((), ROW)
        for name in ROW_NAMES:
            record[name] = self.columns[name][row]
        notes, masks = self.columns["notes"][row], self.columns["masks"][row]
        return Packed(record.tobytes(), self.note_sets[notes], self.mask_sets[masks], self._text("texts", row))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> FaceRecord: ...

    @overload
    def __getitem__(self, index: slice) -> FaceTable: ...

    def __getitem__(self, index: int | slice) -> FaceRecord | FaceTable:
        """Return the record of one face, or the table of a slice."""
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self._record(int(self.rows[index]))

    def select(self, indices: Sequence[int] | np.ndarray) -> FaceTable:
        """Return the table of some of these faces, in the order of ``indices``."""
        rows = self.rows[np.asarray(indices, np.int64)]
        return FaceTable(self.folder, self.columns, self.note_sets, self.mask_sets, rows)

    def _text(self, name: str, row: int) -> str:
        at = self.columns[f"{name}_at"]
        return bytes(self.columns[name][at[row] : at[row + 1]]).decode("utf-8", "surrogateescape")

    def name(self, index: int) -> str:
        """Return the file name of one face."""
        return self._text("names", int(self.rows[index]))

    def file_names(self) -> list[str]:
        """Return the file name of every row of the columns, bad files included."""
        at, blob = self.columns["names_at"].tolist(), bytes(self.columns["names"])
        return [blob[a:b].decode("utf-8", "surrogateescape") for a, b in itertools.pairwise(at)]

    def column(self, name: str) -> np.ndarray:
        """Return a copy of one column of these faces."""
        return self.columns[name][self.rows]

    def _record(self, row: int) -> FaceRecord:
        c = self.columns
        path = self.folder / self._text("names", row)
        pitch, yaw, roll, distance = c["angles"][row].tolist()
        mask, _, mask_fault = self._text("texts", row).partition("\0")
        masks = self.mask_sets[c["masks"][row]]
        kind = KINDS[c["kind"][row]]
        assert kind != "bad", "a bad file has no record"
        return FaceRecord(
            path=path,
            kind=kind,
            width=int(c["width"][row]),
            height=int(c["height"][row]),
            landmarks=c["landmarks"][row],
            alignment=Alignment(
                legacy_matrix=c["legacy_matrix"][row],
                offsets=dict(zip(CENTERINGS, c["offsets"][row])),
                rotation=c["rotation"][row],
                translation=c["translation"][row],
                pitch=pitch,
                yaw=yaw,
                roll=roll,
                average_distance=distance,
            ),
            stored_masks=StoredMasks(path, masks) if masks else {},
            mask_file=self.folder / mask if mask and not mask_fault else None,
            unusable_mask=(mask, mask_fault) if mask_fault else None,
            notes=self.note_sets[c["notes"][row]],
            encoding=ENCODINGS[c["encoding"][row]],
            content=bytes(c["content"][row]),
            pixels=bytes(c["pixels"][row]),
        )

    def mask_name(self, row: int) -> str:
        """Return the name of a row's mask file, empty if it has none."""
        return self._text("texts", row).partition("\0")[0] if self.columns["kind"][row] else ""

    def bad(self, excluded: frozenset[str] = frozenset()) -> list[BadFace]:
        """Return the bad files of the columns with their reasons. excluded: names of files to leave out."""
        rows = np.flatnonzero(self.columns["kind"] == 0).tolist()
        names = [self._text("names", row) for row in rows]
        return [
            BadFace(self.folder / name, self._text("texts", row))
            for name, row in zip(names, rows)
            if name not in excluded
        ]

    def mask_files(self) -> frozenset[str]:
        """Return the names of all files that are a face's mask."""
        at = self.columns["texts_at"]
        with_text = np.flatnonzero((at[1:] > at[:-1]) & (self.columns["kind"] != 0)).tolist()
        return frozenset(self.mask_name(row) for row in with_text)

    def with_note(self, beginning: str) -> list[tuple[int, str]]:
        """Return the indices of these faces with a note that begins so, each with that note."""
        pairs = ((number, note) for number, notes in enumerate(self.note_sets) for note in notes)
        noted = {number: note for number, note in pairs if note.startswith(beginning)}
        numbers = self.column("notes")
        indices = np.flatnonzero(np.isin(numbers, list(noted))).tolist() if noted else []
        return [(index, noted[int(numbers[index])]) for index in indices]

    def note_counts(self) -> dict[str, int]:
        """Return how many of these faces have each note."""
        counts: dict[str, int] = {}
        for number, count in enumerate(np.bincount(self.column("notes"), minlength=1).tolist()):
            for note in self.note_sets[number] if count else ():
                counts[note] = counts.get(note, 0) + count
        return dict(sorted(counts.items()))

    def accepted_by(self, predicate: Callable[[FaceRecord], bool]) -> np.ndarray:
        """Return which faces satisfy ``predicate``, (len,) bool.

        The predicate may depend on a face's kind, masks and notes only: it is called once for each combination of them.
        """
        at = self.columns["texts_at"]
        has_file = (at[1:] > at[:-1])[self.rows]
        kinds = [*(self.column(name).astype(np.int64) for name in ("kind", "masks", "notes")), has_file]
        _, first, inverse = np.unique(np.stack(kinds, axis=1), axis=0, return_index=True, return_inverse=True)
        accepted = np.array([predicate(self[int(i)]) for i in first], bool)
        return accepted[inverse.reshape(-1)] if len(self) else np.zeros(0, bool)


# --- the index file ---------------------------------------------------------------------------------------


def index_path(cache: Path, folder: Path) -> Path:
    """Return the path of the index of ``folder`` in the cache folder."""
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache / f"index-{name}.safetensors"


def save_index(path: Path, table: FaceTable, **extra_metadata: str) -> None:
    """Write all rows of a table to an index file. Raises OSError where it cannot be written."""
    metadata = {
        "what": "swapfast index",
        "format": str(INDEX_FORMAT),
        "folder": str(table.folder.resolve()).encode("utf-8", "backslashreplace").decode(),
        "notes": json.dumps(table.note_sets),
        "masks": json.dumps(table.mask_sets),
        **extra_metadata,
    }
    write_arrays(path, table.columns, metadata)


def load_index(path: Path, folder: Path) -> FaceTable | None:
    """Return the mapped table of an index file, None if it is missing, damaged or of another program or version."""
    try:
        columns, metadata = open_arrays(path)
        expected = {"what": "swapfast index", "format": str(INDEX_FORMAT)}
        if "crc32" not in metadata or any(metadata.get(name) != value for name, value in expected.items()):
            return None
        note_sets, mask_sets = ([tuple(texts) for texts in json.loads(metadata[name])] for name in ("notes", "masks"))
        check_columns(columns, len(note_sets), len(mask_sets))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return FaceTable(folder, columns, note_sets, mask_sets)


def check_columns(columns: Mapping[str, np.ndarray], note_sets: int, mask_sets: int) -> None:
    """Raise ValueError or KeyError unless these are the columns of a table."""
    count = len(columns["kind"])
    for name in ROW_NAMES:
        dtype, shape = ROW[name].base, ROW[name].shape
        if columns[name].dtype != dtype or columns[name].shape != (count, *shape):
            raise ValueError(f"column {name} of another shape")
    for name in ("names", "texts"):
        at, blob = columns[f"{name}_at"], columns[name]
        if at.dtype != np.int64 or at.shape != (count + 1,) or blob.dtype != np.uint8 or blob.ndim != 1:
            raise ValueError(f"column {name} of another shape")
        if at[0] != 0 or at[-1] != len(blob) or (np.diff(at) < 0).any():
            raise ValueError(f"column {name} out of order")
    for name, limit in (("kind", len(KINDS)), ("encoding", len(ENCODINGS)), ("notes", note_sets), ("masks", mask_sets)):
        if count and not (columns[name].min() >= 0 and columns[name].max() < limit):
            raise ValueError(f"column {name} out of range")
    landmarks = columns["landmarks"]
    if count and not (landmarks.min() >= -MAX_COORDINATE and landmarks.max() <= MAX_COORDINATE):  # nor NaN
        raise ValueError("column landmarks out of range")
