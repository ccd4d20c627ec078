"""The faces of a folder as columns: under a kilobyte a face, in memory as in the index file, which is mapped.

A ``FaceTable`` is a sequence of ``FaceRecord``; each is made when it is asked for. The index keeps what reading a
folder found, so that the next start reads only files that are new or have another size or time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swapfast.faces.alignment import CENTERINGS, Alignment
from swapfast.faces.png import read_header
from swapfast.faces.reader import BadFace
from swapfast.faces.record import FaceRecord, StoredMask
from swapfast.mapped import open_arrays, write_arrays

INDEX_FORMAT = 2  # raised whenever reading a file finds more or other things than before

KINDS = ("bad", "head", "plain", "prepared")
ENCODINGS = ("png", "jpeg", "raw")

# What is known of one face; ``files``: size and mtime in ns of the picture, its json and its mask, -1 where there is
# none. notes and masks are places in lists of what occurs, of which a folder has few.
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


class StoredMasks(Mapping[str, StoredMask]):
    """The masks in the header of a file: their names are known, their pixels are read when one is asked for."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.path, self.names = path, names
        self._read: Mapping[str, StoredMask] | None = None

    def __getitem__(self, name: str) -> StoredMask:
        """Raises ValueError with a short reason where the file has changed or cannot be read."""
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

    def __iter__(self):
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Packed:
    """One file's row, and what a row has no room for. text: a bad file's reason, or the name of a face's mask file."""

    row: bytes
    notes: tuple[str, ...]
    masks: tuple[str, ...]
    text: str


def pack(found: FaceRecord | BadFace) -> Packed:
    """What was found in a file, as a row without its ``files``."""
    row = np.zeros((), ROW)
    if isinstance(found, BadFace):
        return Packed(row.tobytes(), (), (), found.reason)
    alignment = found.alignment
    row["content"] = np.frombuffer(found.content.ljust(16, b"\0"), np.uint8)
    row["pixels"] = np.frombuffer(found.pixels.ljust(8, b"\0"), np.uint8)
    row["kind"], row["encoding"] = KINDS.index(found.kind), ENCODINGS.index(found.encoding)
    row["width"], row["height"] = found.width, found.height
    row["landmarks"] = found.landmarks
    row["legacy_matrix"] = alignment.legacy_matrix
    row["offsets"] = [alignment.offsets[name] for name in CENTERINGS]
    row["rotation"], row["translation"] = alignment.rotation, alignment.translation
    row["angles"] = alignment.pitch, alignment.yaw, alignment.roll, alignment.average_distance
    mask = found.mask_file.name if found.mask_file else ""
    return Packed(row.tobytes(), found.notes, tuple(found.stored_masks), mask)


def _blob(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts one after another as bytes, and where each begins and ends."""
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    at = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=at[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), at


class FaceTable(Sequence[FaceRecord]):
    """Faces as columns; see ``ROW``. Its order is the files' sorted by name.

    columns: by name, those of ROW and texts as ``names`` with ``names_at`` and ``texts`` with ``texts_at``.
    note_sets, mask_sets: what ``notes`` and ``masks`` count. rows: which of the columns' rows are meant; all faces
    that are not bad by default.
    """

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
        """From what ``pack`` gave for each name; files: (N, 3, 2), see ROW."""
        packed = list(packed)
        rows = np.frombuffer(b"".join(p.row for p in packed), ROW).copy()
        note_sets = list(dict.fromkeys(p.notes for p in packed))
        mask_sets = list(dict.fromkeys(p.masks for p in packed))
        notes, masks = ({s: i for i, s in enumerate(sets)} for sets in (note_sets, mask_sets))
        rows["notes"] = [notes[p.notes] for p in packed]
        rows["masks"] = [masks[p.masks] for p in packed]
        rows["files"] = files
        columns = {name: np.ascontiguousarray(rows[name]) for name in ROW.names}
        columns["names"], columns["names_at"] = _blob(names)
        columns["texts"], columns["texts_at"] = _blob(p.text for p in packed)
        return cls(folder, columns, note_sets, mask_sets)

    def packed(self, row: int) -> Packed:
        """The inverse of ``build``, for one of the columns' rows."""
        record = np.zeros((), ROW)
        for name in ROW.names:
            record[name] = self.columns[name][row]
        notes, masks = self.columns["notes"][row], self.columns["masks"][row]
        return Packed(record.tobytes(), self.note_sets[notes], self.mask_sets[masks], self._text("texts", row))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        """The record of one face; a slice gives a table."""
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self._record(int(self.rows[index]))

    def select(self, indices: Sequence[int]) -> FaceTable:
        """Some of these faces, in the order given."""
        rows = self.rows[np.asarray(indices, np.int64)]
        return FaceTable(self.folder, self.columns, self.note_sets, self.mask_sets, rows)

    def _text(self, name: str, row: int) -> str:
        at = self.columns[f"{name}_at"]
        return bytes(self.columns[name][at[row] : at[row + 1]]).decode("utf-8", "surrogateescape")

    def name(self, index: int) -> str:
        """The file name of one face."""
        return self._text("names", int(self.rows[index]))

    def file_names(self) -> list[str]:
        """The name of every row of the columns, bad files included."""
        at, blob = self.columns["names_at"].tolist(), bytes(self.columns["names"])
        return [blob[a:b].decode("utf-8", "surrogateescape") for a, b in itertools.pairwise(at)]

    def column(self, name: str) -> np.ndarray:
        """One column of these faces, copied."""
        return self.columns[name][self.rows]

    def _record(self, row: int) -> FaceRecord:
        c = self.columns
        path = self.folder / self._text("names", row)
        pitch, yaw, roll, distance = c["angles"][row].tolist()
        mask = self._text("texts", row)
        masks = self.mask_sets[c["masks"][row]]
        return FaceRecord(
            path=path,
            kind=KINDS[c["kind"][row]],
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
            mask_file=self.folder / mask if mask else None,
            notes=self.note_sets[c["notes"][row]],
            encoding=ENCODINGS[c["encoding"][row]],
            content=bytes(c["content"][row]),
            pixels=bytes(c["pixels"][row]),
        )

    def mask_name(self, row: int) -> str:
        """The name of the mask file of one of the columns' rows, empty without one."""
        return self._text("texts", row) if self.columns["kind"][row] else ""

    def bad(self, passed_over: frozenset[str] = frozenset()) -> list[BadFace]:
        """The files of the columns that are no face, with their reasons."""
        rows = np.flatnonzero(self.columns["kind"] == 0).tolist()
        named = ((self._text("names", row), row) for row in rows)
        return [BadFace(self.folder / name, self._text("texts", row)) for name, row in named if name not in passed_over]

    def mask_files(self) -> frozenset[str]:
        """The names of all files that are some face's mask."""
        at = self.columns["texts_at"]
        with_text = np.flatnonzero((at[1:] > at[:-1]) & (self.columns["kind"] != 0)).tolist()
        return frozenset(self._text("texts", row) for row in with_text)

    def note_counts(self) -> dict[str, int]:
        """How many of these faces have each note."""
        found: dict[str, int] = {}
        for number, count in enumerate(np.bincount(self.column("notes"), minlength=1).tolist()):
            for note in self.note_sets[number] if count else ():
                found[note] = found.get(note, 0) + count
        return dict(sorted(found.items()))

    def accepted_by(self, accepts: Callable[[FaceRecord], bool]) -> np.ndarray:
        """(len,) bool: which faces ``accepts`` takes, asked once for each kind of face that differs in its masks."""
        at = self.columns["texts_at"]
        has_file = (at[1:] > at[:-1])[self.rows]
        kinds = np.stack([self.column("kind"), self.column("masks"), has_file], axis=1).astype(np.int64)
        _, first, which = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
        answers = np.array([accepts(self[int(i)]) for i in first], bool)
        return answers[which.reshape(-1)] if len(self) else np.zeros(0, bool)


# --- the index file ---------------------------------------------------------------------------------------


def index_path(cache: Path, folder: Path) -> Path:
    """Where the index of ``folder`` lies in the cache folder."""
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache / f"index-{name}.safetensors"


def save_index(path: Path, table: FaceTable, **more: str) -> None:
    """Keep all rows of a table. Raises OSError where it cannot be written."""
    metadata = {
        "what": "swapfast index",
        "format": str(INDEX_FORMAT),
        "folder": str(table.folder.resolve()).encode("utf-8", "backslashreplace").decode(),
        "notes": json.dumps(table.note_sets),
        "masks": json.dumps(table.mask_sets),
        **more,
    }
    write_arrays(path, table.columns, metadata)


def load_index(path: Path, folder: Path) -> FaceTable | None:
    """The table of an index file, mapped; None where there is none that this program wrote and nothing damaged."""
    try:
        columns, metadata = open_arrays(path)
        expected = {"what": "swapfast index", "format": str(INDEX_FORMAT)}
        if "crc32" not in metadata or any(metadata.get(name) != value for name, value in expected.items()):
            return None
        sets = [[tuple(texts) for texts in json.loads(metadata[name])] for name in ("notes", "masks")]
        check_columns(columns, *map(len, sets))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return FaceTable(folder, columns, *sets)


def check_columns(columns: Mapping[str, np.ndarray], note_sets: int, mask_sets: int) -> None:
    """Raises ValueError or KeyError where these are not the columns of a table."""
    count = len(columns["kind"])
    for name in ROW.names:
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
