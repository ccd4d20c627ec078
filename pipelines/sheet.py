"""Draws the sheet of `swapfast augment`: one picture of what training will see of a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np

from pipelines.dataset import TrainSet, bad_faces, check_prepared, open_source
from pipelines.fill import FaceSource, fill_store
from pipelines.side_light import ALWAYS, side_light
from pipelines.sides import Log, ProgressFactory, no_log, no_progress, scan_side
from pipelines.store import HostStore, StoreSpec
from swapfast.augment.constants import LARGEST_SIZE, SMALLEST_SIZE
from swapfast.augment.draws import draw, draw_at, landmark_noise, landmark_noise_at, light_shares, with_landmarks
from swapfast.config import TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_shares, spread_indices
from swapfast.faces.masks import needed_masks
from swapfast.faces.matching import LandmarkMatcher
from swapfast.faces.skip_list import read_skip_lists
from swapfast.files import check_new_file, real_path, write_file
from swapfast.preview.contact import contact_sheet
from swapfast.printing import shown_name
from swapfast.requirements import check_import

SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class SheetRequest:
    """The options of `swapfast augment`.

    landmarks_folder: the other side: faces are warped to its landmarks, and shown in its light where training would
        exchange the sides' light. By default faces are warped to landmarks of their own folder.
    size: px.
    percentile: of all random amounts, between 0 and 100; None draws as training does.
    """

    folder: Path
    out: Path
    config: TrainConfig
    landmarks_folder: Path | None = None
    size: int = 256
    faces: int = 8
    percentile: float | None = None
    skip_bad: bool = False


def check_request(request: SheetRequest) -> None:
    """Raise SwapfastError naming the flag of an impossible request."""
    check_import("Numba", "swapfast augment")
    check_new_file(request.out, "-o/--out", SUFFIXES)
    for folder in (request.folder, request.landmarks_folder or request.folder):
        faces = folder.parent if folder.is_file() else folder  # a picture beside a pack would be taken for a face
        if real_path(faces) in real_path(request.out).parents:
            raise SwapfastError(f"-o/--out {request.out}: lies in the faces' folder {folder}; choose another")
    if not SMALLEST_SIZE <= request.size <= LARGEST_SIZE:
        raise SwapfastError(f"--size {request.size}: must lie within {SMALLEST_SIZE} and {LARGEST_SIZE}")
    if not 1 <= request.faces <= 64:
        raise SwapfastError(f"--faces {request.faces}: must lie within 1 and 64")
    if request.config.augmentation.exchange_light == ALWAYS and request.landmarks_folder is None:
        raise SwapfastError(f"--exchange-light {ALWAYS}: the light of the other side is not known; give -B DIR")
    if request.percentile is not None and not 0 < request.percentile < 100:
        raise SwapfastError(f"--percentile {request.percentile:g}: must lie between 0 and 100, both excluded")


def make_sheet(request: SheetRequest, progress: ProgressFactory = no_progress, log: Log = no_log) -> int:
    """Write the sheet. Returns the number of its faces that could not be warped to landmarks.

    log: called with a line for each bad file that is left out.
    """
    check_request(request)
    config = request.config
    spec = StoreSpec(request.size, config.crop, config.mask, needed_masks(config))
    skip = read_skip_lists(config.run.skip_lists)
    source = scan_side(request.folder, config.mask.mask_type, request.skip_bad, progress, skip=skip)
    check_prepared(source, spec)
    source, shown_faces, store = _decoded(source, spec, request)
    for bad in source.folder.bad:
        log(f"{shown_name(bad.path)}: {bad.reason}; left out")
    ordinals, seed = np.arange(len(shown_faces)), config.seed
    if request.percentile is None:
        draws = draw(seed, ordinals, 0, spec.size, config.augmentation)
        noise = landmark_noise(seed, ordinals, np.zeros_like(ordinals))
        light = light_shares(seed, ordinals, 0)
    else:
        share = request.percentile / 100
        draws = draw_at(share, len(shown_faces), spec.size, config.augmentation)
        noise = landmark_noise_at(share, len(shown_faces))
        light = np.full(len(shown_faces), share)
    if request.landmarks_folder is None:
        targets, column = source, 1  # in its own folder the nearest face is the face itself
    else:
        targets, column = open_source(request.landmarks_folder, progress(f"reading {request.landmarks_folder}")), 0
    bent, warped = with_landmarks(draws, _pairs(shown_faces, targets, column, spec), noise, config.augmentation)
    gains = _light_gains(source, targets, spec, config, light)
    sheet = contact_sheet(store.faces, store.extra_masks, spec.masks, draws, bent, gains)
    succeeded, encoded = cv2.imencode(request.out.suffix.lower(), sheet)
    if not succeeded:
        height, width = sheet.shape[:2]
        raise SwapfastError(f"-o/--out {request.out}: {width} x {height} px are too many; fewer --faces, or give .png")
    write_file(request.out, encoded.tobytes())
    return int(len(warped) - warped.sum())


def _decoded(source: FaceSource, spec: StoreSpec, request: SheetRequest) -> tuple[FaceSource, FaceSource, HostStore]:
    """Return the source without faces that cannot be decoded, the faces of the sheet, and their store.

    Raises SwapfastError naming what cannot be decoded unless ``request.skip_bad``; then other faces take its place.
    """
    while True:
        shown_faces = _chosen(source, request.faces)
        store = HostStore.in_memory(spec, len(shown_faces))
        bad = fill_store(spec, shown_faces, store)
        if not bad:
            return source, shown_faces, store
        source = source.without(bad_faces(shown_faces, bad))
        source.folder.require_all_good(request.skip_bad)


def _chosen(source: FaceSource, count: int) -> FaceSource:
    """Return ``count`` faces spread evenly over the folder, each once."""
    members = np.unique(spread_indices(len(source), min(count, len(source))))
    records = source.folder.records.select(members)
    return FaceSource(dataclasses.replace(source.folder, records=records), source.prepared)


def _light_gains(
    source: FaceSource, other: FaceSource, spec: StoreSpec, config: TrainConfig, shares: np.ndarray
) -> np.ndarray | None:
    """Return by what each face's levels are multiplied, (N, 3) B, G, R; None where no light is exchanged.

    shares: (N,) of the way to the other side's light.
    """
    if other is source:
        return None
    light = side_light(
        [TrainSet.from_source(side, faces, spec, None) for side, faces in zip("ab", (source, other))], config
    )
    return None if light is None else light.gains(np.stack([shares, shares]))[0]


def _pairs(shown_faces: FaceSource, targets: FaceSource, column: int, spec: StoreSpec) -> np.ndarray:
    """Return the landmarks of the chosen faces and of their targets, (N, 2, 68, 2).

    column: 0 takes the nearest face of ``targets``, 1 the second nearest.
    """
    matcher = LandmarkMatcher.from_records(
        [shown_faces.folder.records, targets.folder.records], spec.size, spec.crop.centering, *crop_shares(spec.crop)
    )
    column = min(column, matcher.closest[0].shape[1] - 1)
    ids = np.stack([np.arange(len(shown_faces)), np.zeros(len(shown_faces), np.int64)])
    columns = np.stack([np.full(len(shown_faces), column), np.zeros(len(shown_faces), np.int64)])
    return matcher.get_close_landmarks(ids, columns)[: len(shown_faces)]
