"""Data sets of training faces: one side, and several sides together."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.fill import FaceSource, Progress, fill_store
from pipelines.sampler import Permutation, Sampler
from pipelines.store import HostStore, StoreSpec
from swapfast.batch import MASK_NAMES
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.companions import PICTURE_SUFFIXES, is_mask_file
from swapfast.faces.folder import scan_folder
from swapfast.faces.masks import DRAWN_TYPES
from swapfast.faces.prepared import is_prepared, open_prepared
from swapfast.faces.reader import BadFace, has_face_header
from swapfast.faces.table import FaceTable

_LABELS = string.ascii_uppercase + string.digits + string.ascii_lowercase


def get_label(index: int, num_identities: int, next_identity: bool = False) -> str:
    """Return the label of identity ``index``: A to Z, 0 to 9, a to z. The index wraps around.

    next_identity: return the label of the identity after it.
    Raises ValueError unless there are 1 to 62 identities.
    """
    if not 1 <= num_identities <= len(_LABELS):
        raise ValueError(f"{num_identities} identities: there are 1 to {len(_LABELS)} labels")
    return _LABELS[(index + next_identity) % num_identities]


def to_float32(in_array: np.ndarray) -> np.ndarray:
    """Return uint8 values 0..255 as float32 in 0..1, exactly v / 255."""
    return np.divide(in_array, np.float32(255), dtype=np.float32)


def get_sorted_images(folder: str | Path) -> list[str]:
    """Return the full paths of a folder's pictures, without masks, sorted by name. No picture is read.

    Raises SwapfastError if there are none.
    """
    folder = Path(folder)
    try:
        file_names = {p.name for p in folder.iterdir() if not p.name.startswith(".") and p.is_file()}
    except OSError as error:
        raise SwapfastError(f"{folder}: cannot be read ({error.strerror})") from error
    pictures = (name for name in file_names if Path(name).suffix.lower() in PICTURE_SUFFIXES)
    all_names = frozenset(file_names)
    names = sorted(name for name in pictures if not is_mask_file(name, all_names) or has_face_header(folder / name))
    if not names:
        raise SwapfastError(f"{folder}: no PNG or JPEG in this folder; give the folder that holds the faces")
    return [str(folder / name) for name in names]


def open_source(path: Path, progress: Progress | None = None, known: FaceTable | None = None) -> FaceSource:
    """Return the faces of a folder (``scan_folder``) or of a prepared set."""
    if is_prepared(path):
        prepared = open_prepared(path)
        return FaceSource(prepared.folder, prepared)
    return FaceSource(scan_folder(path, progress=progress, known=known))


def check_prepared(source: FaceSource, spec: StoreSpec) -> list[str]:
    """Check that a prepared set has the crop and mask of ``spec``. Returns warnings for a person.

    Raises SwapfastError if it has another crop or no mask of that type.
    """
    prepared = source.prepared
    if prepared is None:
        return []
    if prepared.crop != spec.crop:
        flags = {"centering": "--centering", "coverage": "--coverage", "vertical_offset": "--vertical-offset"}
        requested, actual = spec.crop.to_dict(), prepared.crop.to_dict()
        differing = [
            f"{flags[n]} {actual[n]} there and {requested[n]} asked for" for n in flags if actual[n] != requested[n]
        ]
        raise SwapfastError(
            f"{prepared.path}: was prepared with {', '.join(differing)}; give the same, or prepare it anew"
        )
    if "face" in spec.masks and spec.mask != prepared.mask and spec.mask.mask_type not in DRAWN_TYPES:
        raise SwapfastError(
            f"{prepared.path}: was prepared with --mask-type {prepared.mask.mask_type}; give the same with the same "
            f"cleaning, a drawn one ({', '.join(DRAWN_TYPES)}), or prepare it anew"
        )
    if prepared.size < spec.size:
        return [f"warning: {prepared.path} was prepared at {prepared.size} px and is enlarged to {spec.size} px"]
    return []


def held_out_mask(pixels: np.ndarray, share: float) -> np.ndarray:
    """Return which faces are held out for validation, (N,) bool.

    A picture's fate depends on its pixels alone: on no name or folder, and not on whether it was prepared.
    pixels: (N, 8) uint8, digests of the pixels.
    share: of the faces, held out.
    """
    keys = np.ascontiguousarray(pixels).view(">u8")[:, 0]
    return keys < np.uint64(min(share, 1.0) * 2**64) if share < 1 else np.ones(len(keys), bool)


def tested_mask(pixels: np.ndarray, share: float) -> np.ndarray:
    """Return which faces are for the test, (N,) bool: from the other end of the digests than those for validation.

    pixels: see ``held_out_mask``.
    """
    return held_out_mask(~np.ascontiguousarray(pixels), share)


def without_tested(source: FaceSource, share: float) -> FaceSource:
    """Return a source without the share of its faces that is for the test, so that nothing of a run shows them.

    Raises SwapfastError if no face is left, or none for the test.
    """
    if not share:
        return source
    is_tested = tested_mask(source.folder.records.column("pixels"), share)
    if is_tested.all() or not is_tested.any():
        problem = "nothing to train on" if is_tested.all() else "nothing to test with"
        raise SwapfastError(
            f"--test {share:g}: of the {len(source)} faces of {source.folder.path} that leaves {problem}; give more "
            "faces or another share"
        )
    return dataclasses.replace(source.select(np.flatnonzero(~is_tested)), tested=int(is_tested.sum()))


def only_tested(source: FaceSource, share: float) -> FaceSource:
    """Return a source of the faces for the test alone. Raises SwapfastError if there are none."""
    tested = np.flatnonzero(tested_mask(source.folder.records.column("pixels"), share))
    if not len(tested):
        raise SwapfastError(
            f"--test: none of the {len(source)} faces of {source.folder.path} belongs to the share {share:g} that was "
            "held out for the test; give the folder that was trained on"
        )
    return source.select(tested)


def split_validation(source: FaceSource, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of a source's training faces, and of the faces held out for validation.

    Raises SwapfastError if no face is left for one of them.
    """
    is_held_out = held_out_mask(source.folder.records.column("pixels"), share)
    if len(source) and share and (is_held_out.all() or not is_held_out.any()):
        problem = "nothing to train on" if is_held_out.all() else "nothing to validate with"
        raise SwapfastError(
            f"--validation {share:g}: of the {len(source)} faces of {source.folder.path} that leaves {problem}; give "
            "more faces or another share"
        )
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


@dataclass(frozen=True)
class TrainSet:
    """One side's training faces: item i is a pair of (S, S, 3 + M) uint8 BGR with masks, and i.

    side: its label.
    source: its good faces.
    spec: what is stored of each face.
    store: the decoded faces, None if every batch is decoded.
    rows: (len,) the store's row of each training face.
    validation: the store's rows of the faces held out.
    members: (len,) the source's index of each training face.
    validation_members: the source's indices of the faces held out.
    """

    side: str
    source: FaceSource
    spec: StoreSpec
    store: HostStore | None
    rows: np.ndarray
    validation: np.ndarray
    members: np.ndarray
    validation_members: np.ndarray

    @classmethod
    def from_source(
        cls,
        side: str,
        source: FaceSource,
        spec: StoreSpec,
        store: HostStore | None,
        rows: np.ndarray | None = None,
        share: float = 0.0,
    ) -> TrainSet:
        """Return the training set of a source and its store.

        rows: (len(source),) the store's row of each face, by default the same index.
        share: of the faces, held out.
        Raises SwapfastError if no face is left for training or validation.
        """
        rows = np.arange(len(source)) if rows is None else rows
        members = split_validation(source, share)
        return cls(side, source, spec, store, rows[members[0]], rows[members[1]], *members)

    @classmethod
    def from_folder(
        cls,
        side: str,
        image_folder: str | Path,
        size: int,
        crop: CropConfig | None = None,
        mask: MaskConfig | None = None,
        masks: tuple[str, ...] = MASK_NAMES,
    ) -> TrainSet:
        """Return the training set of a folder, decoded into memory. Raises SwapfastError listing every bad file."""
        source = open_source(Path(image_folder))
        source.folder.require_all_good()
        spec = StoreSpec(size, crop or CropConfig(), mask or MaskConfig(), masks)
        check_prepared(source, spec)
        store = HostStore.in_memory(spec, len(source))
        bad = fill_store(spec, source, store)
        if bad:
            source.without(bad_faces(source, bad)).folder.require_all_good()
        return cls.from_source(side, source, spec, store)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        faces, extra_masks = self.take(np.array([index]))
        return np.concatenate([faces[0], extra_masks[0].transpose(1, 2, 0)], axis=2), index

    @property
    def host_store(self) -> HostStore:
        """The store of a side whose faces lie in host memory."""
        assert self.store is not None, "the faces of this side are decoded anew for each step"
        return self.store

    def take(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return some training faces from a store in host memory.

        ids: (B,). Returns faces (B, S, S, 3 or 4) and extra masks (B, K, S, S), uint8.
        """
        faces = np.empty((len(ids), *self.spec.face_shape), np.uint8)
        extra_masks = np.empty((len(ids), *self.spec.extra_masks_shape), np.uint8)
        self.host_store.take(self.rows[ids], faces, extra_masks)
        return faces, extra_masks


def bad_faces(source: FaceSource, reasons: dict[int, str]) -> list[BadFace]:
    """Return the reasons of ``fill_store`` as bad faces."""
    return [BadFace(source.folder.records[index].path, reasons[index]) for index in sorted(reasons)]


class MultiDataset:
    """Several sides side by side, as long as the longest of them.

    Item i holds one item of each set. With ``is_random``, each set goes through its faces in a new order every time,
    and continues across epochs, so that every face of a short set is used. The next epoch begins by itself when as many
    items have been taken as there are, or with ``shuffle``. Without ``is_random``, item i is item i of each set, and
    short sets repeat.
    """

    def __init__(
        self,
        datasets: Sequence[TrainSet],
        is_random: bool = True,
        seed: int = 1,
        permutation: Permutation | None = None,
    ) -> None:
        self.datasets = tuple(datasets)
        self.is_random = is_random
        self.epoch = 0
        self._taken = 0  # items of this epoch
        self.sampler = Sampler(seed, tuple(map(len, self.datasets)), 1, permutation=permutation)

    def __len__(self) -> int:
        return max(self.sampler.counts)

    def indices(self, epoch: int) -> np.ndarray:
        """Return the faces of one epoch, (sets, len)."""
        positions = np.arange(epoch * len(self), (epoch + 1) * len(self))
        if not self.is_random:
            return np.stack([positions % len(self) % count for count in self.sampler.counts])
        return np.stack([self.sampler.faces_at(side, positions) for side in range(len(self.datasets))])

    def shuffle(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self._taken = 0

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, int], ...]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._taken == len(self):
            self.shuffle()
        self._taken += 1
        position = np.array([self.epoch * len(self) + index])
        faces_of_sides = [
            int(self.sampler.faces_at(side, position)[0]) if self.is_random else index % count
            for side, count in enumerate(self.sampler.counts)
        ]
        return tuple(dataset[i] for dataset, i in zip(self.datasets, faces_of_sides))
