"""One side's training faces, and several sides together: what the sampler's numbers mean."""

from __future__ import annotations

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
from swapfast.faces.folder import is_mask_file, scan_folder
from swapfast.faces.masks import DRAWN_TYPES
from swapfast.faces.prepared import is_prepared, open_prepared
from swapfast.faces.reader import PICTURE_SUFFIXES, BadFace
from swapfast.faces.table import FaceTable

_LABELS = string.ascii_uppercase + string.digits + string.ascii_lowercase


def get_label(index: int, num_identities: int, next_identity: bool = False) -> str:
    """The label of identity ``index``: A to Z, 0 to 9, a to z; ``next_identity``: of the one after it. Both roll over.

    Raises ValueError where there are not 1 to 62 identities.
    """
    if not 1 <= num_identities <= len(_LABELS):
        raise ValueError(f"{num_identities} identities: there are 1 to {len(_LABELS)} labels")
    return _LABELS[(index + next_identity) % num_identities]


def to_float32(in_array: np.ndarray) -> np.ndarray:
    """uint8 in 0..255 -> float32 in 0..1, exactly v / 255."""
    return np.divide(in_array, np.float32(255), dtype=np.float32)


def get_sorted_images(folder: str | Path) -> list[str]:
    """The full paths of a folder's pictures that are not masks, sorted by name, good or bad; none is read.

    Raises SwapfastError where there are none.
    """
    folder = Path(folder)
    try:
        there = {p.name for p in folder.iterdir() if not p.name.startswith(".") and p.is_file()}
    except OSError as error:
        raise SwapfastError(f"{folder}: cannot be read ({error.strerror})") from error
    pictures = (name for name in there if Path(name).suffix.lower() in PICTURE_SUFFIXES)
    names = sorted(name for name in pictures if not is_mask_file(name, frozenset(there)))
    if not names:
        raise SwapfastError(f"{folder}: no PNG or JPEG in this folder; give the folder that holds the faces")
    return [str(folder / name) for name in names]


def open_source(path: Path, progress: Progress | None = None, known: FaceTable | None = None) -> FaceSource:
    """The faces of a folder (see ``scan_folder``), or of a prepared set."""
    if is_prepared(path):
        made = open_prepared(path)
        return FaceSource(made.folder, made)
    return FaceSource(scan_folder(path, progress=progress, known=known))


def check_prepared(source: FaceSource, spec: StoreSpec) -> list[str]:
    """See that a prepared set shows the crop that is to be trained on; returns what a person should know of it.

    Raises SwapfastError where it shows another, or has no mask of the kind asked for.
    """
    made = source.prepared
    if made is None:
        return []
    if made.crop != spec.crop:
        flags = {"centering": "--centering", "coverage": "--coverage", "vertical_offset": "--vertical-offset"}
        wanted, has = spec.crop.to_dict(), made.crop.to_dict()
        differing = [f"{flags[n]} {has[n]} there and {wanted[n]} asked for" for n in flags if has[n] != wanted[n]]
        raise SwapfastError(f"{made.path}: was prepared with {', '.join(differing)}; give the same, or prepare it anew")
    if "face" in spec.masks and spec.mask != made.mask and spec.mask.mask_type not in DRAWN_TYPES:
        raise SwapfastError(
            f"{made.path}: was prepared with --mask-type {made.mask.mask_type}; give the same with the same cleaning, "
            f"a drawn one ({', '.join(DRAWN_TYPES)}), or prepare it anew"
        )
    if made.size < spec.size:
        return [f"warning: {made.path} was prepared at {made.size} px and is enlarged to {spec.size} px"]
    return []


def held_out_mask(pixels: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: which faces are for validation, by the (N, 8) digests of their pixels.

    The same picture is always on the same side, under any name, in any folder, prepared or not.
    """
    keys = np.ascontiguousarray(pixels).view(">u8")[:, 0]
    return keys < np.uint64(min(share, 1.0) * 2**64) if share < 1 else np.ones(len(keys), bool)


def split_validation(source: FaceSource, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Which of a source's faces are trained on, and which are held out.

    Raises SwapfastError where either would be none.
    """
    held = held_out_mask(source.folder.records.column("pixels"), share)
    if len(source) and share and (held.all() or not held.any()):
        left = "nothing to train on" if held.all() else "nothing to validate with"
        raise SwapfastError(
            f"--validation {share:g}: of the {len(source)} faces of {source.folder.path} that leaves {left}; give more "
            "faces or another share"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


@dataclass(frozen=True)
class TrainSet:
    """One side's faces for training: item i is ((S, S, 3 + M) uint8 BGR and masks, i).

    side: its label. source: its good faces. spec: what is stored of each. store: where, or None where every batch is
    decoded. rows: (len,) where in the store training face i lies; validation: likewise for those held out. members:
    (len,) which of the source's faces it is; validation_members likewise.
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
        cls, side: str, source: FaceSource, spec: StoreSpec, store, rows: np.ndarray | None = None, share: float = 0.0
    ) -> TrainSet:
        """From a source and its store; rows: where each of the source's faces lies in it. share: to be held out.

        Raises SwapfastError where nothing is left to train on, or nothing to validate with.
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
        """Read, decode and crop a folder at ``size`` px into memory. Raises SwapfastError listing every bad file."""
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

    def take(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, S, S, 3 or 4) faces and (B, K, S, S) extra masks of some training faces, from a store in host memory."""
        faces = np.empty((len(ids), *self.spec.face_shape), np.uint8)
        extra_masks = np.empty((len(ids), *self.spec.extra_masks_shape), np.uint8)
        self.store.take(self.rows[ids], faces, extra_masks)
        return faces, extra_masks


def bad_faces(source: FaceSource, reasons: dict[int, str]) -> list[BadFace]:
    """``fill``'s answer as faces with their files."""
    return [BadFace(source.folder.records[index].path, reasons[index]) for index in sorted(reasons)]


class MultiDataset:
    """Several sides side by side; its length is that of the longest.

    Item i holds one item of each set. While ``is_random``, each set goes through its faces in an order that is new
    every time it has been through, and goes on in the next epoch where it was, so that no face of a short set is left
    out; ``shuffle`` begins the next epoch. Otherwise item i is each set's own, short ones beginning again.
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
        self.sampler = Sampler(seed, tuple(map(len, self.datasets)), 1, permutation=permutation)

    def __len__(self) -> int:
        return max(self.sampler.counts)

    def indices(self, epoch: int) -> np.ndarray:
        """(sets, len) the faces that come in one epoch."""
        places = np.arange(epoch * len(self), (epoch + 1) * len(self))
        if not self.is_random:
            return np.stack([places % len(self) % count for count in self.sampler.counts])
        return np.stack([self.sampler.places(side, places) for side in range(len(self.datasets))])

    def shuffle(self) -> None:
        """Go on to the next epoch."""
        self.epoch += 1

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, int], ...]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = np.array([self.epoch * len(self) + index])
        chosen = [
            int(self.sampler.places(side, place)[0]) if self.is_random else index % count
            for side, count in enumerate(self.sampler.counts)
        ]
        return tuple(dataset[i] for dataset, i in zip(self.datasets, chosen))
