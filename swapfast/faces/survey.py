"""Looks at every face of a folder: pose, sharpness, size and near-duplicates, and what a person should do about them.

yaw         degrees, positive: the nose points to the left of the picture
pitch       degrees, positive: looks down
sharpness   deviation of the Laplacian of the gray crop, levels of 255, at most 128 px wide; as `extract --blur-limit`
edge        px of the picture that the face was found in, which the whole-face crop covers
difference  mean of the grays of two aligned crops of 32 px, levels of 255; as `extract --duplicates`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from swapfast.config import CropConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face, crop_matrix
from swapfast.faces.folder import FaceFolder, checked_picture
from swapfast.faces.prepared import PreparedSet
from swapfast.faces.reader import BadFace
from swapfast.faces.record import FaceRecord
from swapfast.faces.table import FaceTable
from swapfast.system import available_cores
from swapfast.threads import ThreadPool

Progress = Callable[[int, int], None]

DUPLICATE, BLURRED, SMALL = "near-duplicate", "blurred", "small"
SHARPNESS_EDGE, THUMBNAIL_EDGE = 128, 32  # px
_LEGACY = CropConfig(centering="legacy", coverage=100.0, vertical_offset=0.0)
_FACE = CropConfig(centering="face", coverage=100.0, vertical_offset=0.0)
_COMPARED = 2000  # faces of the nearest yaws with which each is compared
_BLOCK = 256  # of faces that are compared at a time
# A side with fewer distinct faces, or more that add nothing, is told so.
FEW_DISTINCT, MANY = 100, 0.2
# Poses that a swap meets everywhere, degrees.
_SIDEWAYS, _UPWARDS = 20.0, 10.0
_BIN = 10.0  # degrees of yaw and pitch within which two sides' poses are compared
_RARE = 0.02  # share of a side that needs no other side's faces


@dataclass(frozen=True)
class FaceLimits:
    """What a face must be, not to be in the list of faces to skip.

    blur: least sharpness; None stands for 0.4 of the folder's median.
    difference: least difference from every sharper face, levels of 255.
    edge: least px.
    """

    blur: float | None = None
    difference: float = 2.0
    edge: float = 0.0


@dataclass(frozen=True, eq=False)
class Survey:
    """The figures of a folder's good faces, one row each.

    thumbnails: (N, 32, 32) uint8 gray. The others: (N,) float.
    """

    records: FaceTable
    yaw: np.ndarray
    pitch: np.ndarray
    sharpness: np.ndarray
    edges: np.ndarray
    thumbnails: np.ndarray

    def __len__(self) -> int:
        return len(self.records)

    def blur_limit(self, limits: FaceLimits) -> float:
        """Return the sharpness below which a face counts as blurred."""
        if limits.blur is not None:
            return limits.blur
        return 0.4 * float(np.median(self.sharpness)) if len(self) else 0.0


@dataclass(frozen=True)
class Skipped:
    """A face to leave out: its index, the reason, and for near-duplicates the index of the face that is as good."""

    index: int
    reason: str
    like: int | None = None


def survey_folder(folder: FaceFolder, progress: Progress | None = None) -> tuple[FaceFolder, Survey]:
    """Decode every face of a folder once. Returns the folder without the damaged ones, and the survey of the rest.

    progress: called with (faces done, faces in total).
    """
    return _survey(folder, checked_picture, progress)


def survey_prepared(prepared: PreparedSet, progress: Progress | None = None) -> tuple[FaceFolder, Survey]:
    """Survey a prepared set like a folder. Its faces are as large as the set, and blurred where it enlarged them."""
    rows = {prepared.folder.records.name(i): int(row) for i, row in enumerate(prepared.folder.records.rows)}
    return _survey(prepared.folder, lambda record: prepared.read(rows[record.path.name])[0], progress)


def _survey(
    folder: FaceFolder, picture: Callable[[FaceRecord], np.ndarray], progress: Progress | None
) -> tuple[FaceFolder, Survey]:
    records, bad, looks = folder.records, [], []

    def look(record: FaceRecord) -> tuple[float, float, np.ndarray] | str:
        try:
            return _look(record, picture(record))
        except (ValueError, MemoryError, SwapfastError, cv2.error) as error:
            return str(error).removeprefix(f"{record.path}: ") or "not enough memory"

    with ThreadPool(available_cores()) as pool:
        for count, (record, result) in enumerate(zip(records, pool.map(look, records), strict=True), 1):
            if isinstance(result, str):
                bad.append(BadFace(record.path, result))
            else:
                looks.append(result)
            if progress is not None:
                progress(count, len(records))
    folder = folder.without(bad) if bad else folder
    angles = folder.records.column("angles")
    sharpness, edges, thumbnails = zip(*looks) if looks else ((), (), np.zeros((0, THUMBNAIL_EDGE, THUMBNAIL_EDGE)))
    return folder, Survey(
        records=folder.records,
        yaw=angles[:, 1],
        pitch=angles[:, 0],
        sharpness=np.array(sharpness, np.float64),
        edges=np.array(edges, np.float64),
        thumbnails=np.asarray(thumbnails, np.uint8),
    )


def _look(record: FaceRecord, picture: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Return a face's sharpness, edge and thumbnail."""
    edge = 1 / float(np.sqrt(abs(np.linalg.det(crop_matrix(record, _FACE, 1)[:, :2]))))
    in_picture = _edge_in_picture(record)
    size = int(min(SHARPNESS_EDGE, max(16, in_picture)))
    gray = cv2.cvtColor(crop_face(record, picture, _LEGACY, size), cv2.COLOR_BGR2GRAY)
    small = cv2.cvtColor(crop_face(record, picture, _FACE, THUMBNAIL_EDGE), cv2.COLOR_BGR2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_32F).std()), edge, small


def _edge_in_picture(record: FaceRecord) -> float:
    """Return the edge of the tight crop in px of the file's picture; of a head, whose frame is another, its share."""
    if record.kind == "head":
        return record.width * (1 - 0.625) / (1 - 0.375)
    return 1 / float(np.sqrt(abs(np.linalg.det(crop_matrix(record, _LEGACY, 1)[:, :2]))))


# --- faces that add nothing -------------------------------------------------------------------------------


def faces_to_skip(survey: Survey, limits: FaceLimits) -> list[Skipped]:
    """Return the faces that are blurred, small, or nearly the same as a sharper one, in the order of the folder."""
    reasons: dict[int, Skipped] = {}
    for index in np.flatnonzero(survey.sharpness < survey.blur_limit(limits)).tolist():
        reasons[index] = Skipped(index, BLURRED)
    for index in np.flatnonzero(survey.edges < limits.edge).tolist():
        reasons.setdefault(index, Skipped(index, SMALL))
    for index, like in near_duplicates(survey, limits.difference, skipped=frozenset(reasons)).items():
        reasons[index] = Skipped(index, DUPLICATE, like)
    return [reasons[index] for index in sorted(reasons)]


def near_duplicates(survey: Survey, difference: float, skipped: frozenset[int] = frozenset()) -> dict[int, int]:
    """Return the faces that differ too little from a sharper one, each with the one that stays.

    Every face is compared with the faces of the nearest yaws, so that large folders take no longer than they must.
    skipped: faces that are left out already; nothing is a duplicate of them.
    """
    if difference <= 0 or not len(survey):
        return {}
    neighbours = _near_pairs(survey, difference, skipped)
    kept_rows: set[int] = set()
    duplicates: dict[int, int] = {}
    for index in np.argsort(-survey.sharpness, kind="stable").tolist():
        if index in skipped:
            continue
        like = [other for other in neighbours.get(index, ()) if other in kept_rows]
        if like:
            duplicates[index] = min(like)
        else:
            kept_rows.add(index)
    return duplicates


def _near_pairs(survey: Survey, difference: float, skipped: frozenset[int]) -> dict[int, list[int]]:
    """Return for each face the faces that differ from it by less than ``difference``."""
    order = np.array([i for i in np.argsort(survey.yaw, kind="stable").tolist() if i not in skipped], np.int64)
    pixels = survey.thumbnails.reshape(len(survey), -1)[order].astype(np.float32)
    # The mean absolute difference is at least that of the means, and at most the root mean square one.
    means = pixels.mean(1)
    pairs: dict[int, list[int]] = {}
    for first in range(0, len(order), _BLOCK):
        rows = slice(first, min(first + _BLOCK, len(order)))
        ahead = slice(first, min(first + _BLOCK + _COMPARED, len(order)))
        squares = (pixels[rows] ** 2).sum(1)[:, None] + (pixels[ahead] ** 2).sum(1) - 2 * pixels[rows] @ pixels[ahead].T
        # A mean of 3 levels where all the difference is in a tenth of the pixels is a root mean square of 9.5.
        candidates = (squares < pixels.shape[1] * (4 * difference) ** 2) & (
            np.abs(means[rows, None] - means[ahead]) < difference
        )
        for row, column in zip(*np.nonzero(candidates)):
            a, b = first + int(row), first + int(column)
            if a < b and np.abs(pixels[a] - pixels[b]).mean() < difference:
                pairs.setdefault(int(order[a]), []).append(int(order[b]))
                pairs.setdefault(int(order[b]), []).append(int(order[a]))
    return pairs


# --- advice -----------------------------------------------------------------------------------------------


def advice(survey: Survey, skipped: Sequence[Skipped], name: str) -> list[str]:
    """Return sentences on what a folder lacks, and the way out. name: how they call the folder."""
    if not len(survey):
        return []
    lines = []
    for angles, sign, limit, pose in (
        (survey.yaw, 1, _SIDEWAYS, "turned left"),
        (survey.yaw, -1, _SIDEWAYS, "turned right"),
        (survey.pitch, -1, _UPWARDS, "looking up"),
        (survey.pitch, 1, _UPWARDS, "looking down"),
    ):
        largest = float((sign * angles).max())
        if largest < limit:
            reach = f"the farthest is {largest:.0f}" if largest > 0 else "none is at all"
            lines.append(f"{name} has no face {pose} beyond {limit:.0f} degrees ({reach})")
    reasons = [skip.reason for skip in skipped]
    distinct = len(survey) - len(skipped)
    if distinct < FEW_DISTINCT:
        lines.append(
            f"{name} has {distinct} faces that are sharp and differ; some hundreds of other moments would help"
        )
    if (count := reasons.count(DUPLICATE)) > MANY * len(survey):
        lines.append(
            f"{name}: {count} of {len(survey)} faces are near-duplicates of others; leave them out with --skip"
        )
    if (count := reasons.count(BLURRED)) > MANY * len(survey):
        lines.append(f"{name}: {count} of {len(survey)} faces are blurred; leave them out with --skip")
    edge = float(np.median(survey.edges))
    if edge < 128:
        lines.append(
            f"{name}'s faces are {edge:.0f} px wide (median): a model of more px learns nothing more from them"
        )
    return lines


def compare(a: Survey, b: Survey) -> list[str]:
    """Return sentences on poses of A, whose frames are swapped, that B never shows."""
    if not len(a) or not len(b):
        return []
    near = (np.abs(a.yaw[:, None] - b.yaw) < _BIN) & (np.abs(a.pitch[:, None] - b.pitch) < _BIN)
    missing = ~near.any(1)
    share = float(missing.mean())
    if share <= _RARE:
        return []
    yaw, pitch = float(np.median(a.yaw[missing])), float(np.median(a.pitch[missing]))
    turned = f"turned {'left' if yaw > 0 else 'right'} by {abs(yaw):.0f}"
    nods = f"looking {'down' if pitch > 0 else 'up'} by {abs(pitch):.0f}"
    return [
        f"{share:.0%} of A's faces have a pose that no face of B has within {_BIN:.0f} degrees, such as {turned} and "
        f"{nods} degrees: the swap will be poor there; give B more faces like these"
    ]
