"""Tracks as pictures, and which of them look like one person.

A track is one face from the frame in which it appears to the one in which it is lost. One person has many: after each
cut, each turn of the head, each time something passes in front. Each has a contact sheet.

Grouping: tracks that are seen in one frame are two people. Of the others those are put together whose mean faces, small
aligned crops with their light taken out, differ least (average linkage). No network that knows people is at work:
change of light, glasses or make-up part one person's tracks, and two people who look alike become one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from swapfast.faces.crop import spread_indices
from swapfast.faces.image import decode_image

SHEET_FACES, _CELL, _COLUMNS, _HEAD = 24, 112, 8, 26  # of a contact sheet; px
_MOST_KEPT = 2 * SHEET_FACES  # pictures of a track that are kept: every second one is dropped when there are more
_SIGNATURE_EDGE = 24  # px
# How much the mean faces of one person's tracks differ at most, Lab. Of 65 people photographed twice in one light 88 %
# of the pairs are nearer, and 3 % of the pairs of two people.
SAME_PERSON = 5.5
MOST_GROUPED = 1000  # tracks
_PAPER, _INK = 28, (235, 235, 235)
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 88]


@dataclass
class TrackRecord:
    """What is known of a track. first, last: frames, as --frame-ranges counts them. written: faces in the folder."""

    number: int
    source: str
    first: int
    last: int = 0
    faces: int = 0
    filled: int = 0
    written: int = 0
    person: int | None = None
    frames: set[int] = field(default_factory=set, repr=False)
    _edges: float = 0.0
    _pictures: list[np.ndarray] = field(default_factory=list, repr=False)  # as JPEG
    _every: int = 1

    def add(self, frame: int, number: int, edge: float, is_filled: bool) -> bool:
        """Count a face; return whether a picture of it is wanted. edge: of its crop in the frame, px."""
        wants_picture = self.faces % self._every == 0 and not is_filled
        self.faces += 1
        self.filled += is_filled
        self.last = number
        self.frames.add(frame)
        self._edges += edge
        return wants_picture

    def add_picture(self, picture: np.ndarray) -> None:
        """Keep a picture for the sheet, (S, S, 3) uint8."""
        self._pictures.append(cv2.imencode(".jpg", picture, _QUALITY)[1])
        if len(self._pictures) > _MOST_KEPT:
            self._pictures = self._pictures[::2]
            self._every *= 2

    def pictures(self) -> list[np.ndarray]:
        """Return pictures spread evenly over the track."""
        count = min(len(self._pictures), SHEET_FACES)
        if not count:
            return []
        indices = spread_indices(len(self._pictures), count)
        return [decode_image(self._pictures[i].tobytes()) for i in indices]

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {
            "track": self.number,
            "person": self.person,
            "source": self.source,
            "first": self.first,
            "last": self.last,
            "faces": self.faces,
            "filled": self.filled,
            "written": self.written,
            "crop_px": round(self._edges / max(1, self.faces)),
        }


def draw_sheet(record: TrackRecord) -> bytes:
    """Return a track's contact sheet, a JPEG."""
    pictures = record.pictures()
    rows = max(1, -(-len(pictures) // _COLUMNS))
    sheet = np.full((_HEAD + rows * _CELL, _COLUMNS * _CELL, 3), _PAPER, np.uint8)
    person = "" if record.person is None else f", person {record.person}"
    title = f"track {record.number}{person}: {record.source}, {record.first} to {record.last}, {record.faces} faces"
    title = title.encode("ascii", "replace").decode()
    cv2.putText(sheet, title, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, _COLUMNS)
        y, x = _HEAD + row * _CELL, column * _CELL
        sheet[y : y + _CELL, x : x + _CELL] = cv2.resize(picture, (_CELL, _CELL), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", sheet, _QUALITY)[1].tobytes()


def signature(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return how the faces of a track look on average, (n,) float32: Lab, light taken out.

    pictures: aligned crops, (S, S, 3) uint8 BGR.
    """
    size = (_SIGNATURE_EDGE, _SIGNATURE_EDGE)
    small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
    lab = np.mean([cv2.cvtColor(p.astype(np.float32) / 255, cv2.COLOR_BGR2Lab) for p in small], axis=0)
    # Light from one side, and its colour, are a slope: a plane is taken out of each channel, not only the mean.
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32) / size[0] - 0.5
    plane = np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3)
    values = lab.reshape(-1, 3)
    return (values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0]).reshape(-1).astype(np.float32)


def group_people(records: Mapping[int, TrackRecord], limit: float = SAME_PERSON) -> None:
    """Give each track the number of a person; the person with most faces is 0.

    Of more than MOST_GROUPED tracks each is a person of its own.
    """
    numbers = list(records)
    groups = [[number] for number in numbers]
    if len(numbers) <= MOST_GROUPED:
        distances = _distances([records[number] for number in numbers])
        groups = [[numbers[i] for i in group] for group in link(distances, limit)]
    groups.sort(key=lambda group: (-sum(records[n].faces for n in group), min(group)))
    for person, group in enumerate(groups):
        for number in group:
            records[number].person = person


def link(distances: np.ndarray, limit: float) -> list[list[int]]:
    """Return the groups of average linkage: the two nearest are joined until none are nearer than ``limit``.

    distances: (n, n) symmetric; infinite between what must not be in one group.
    """
    distances = distances.astype(np.float64)
    np.fill_diagonal(distances, np.inf)
    groups: dict[int, list[int]] = {i: [i] for i in range(len(distances))}
    while len(groups) > 1:
        first, second = divmod(int(np.argmin(distances)), len(distances))
        if not distances[first, second] < limit:
            break
        weights = len(groups[first]), len(groups[second])
        mean = (weights[0] * distances[first] + weights[1] * distances[second]) / sum(weights)
        distances[first], distances[:, first] = mean, mean
        distances[second], distances[:, second] = np.inf, np.inf
        distances[first, first] = np.inf
        groups[first] += groups.pop(second)
    return list(groups.values())


def _distances(records: Sequence[TrackRecord]) -> np.ndarray:
    """Return how much each two tracks differ, (n, n): root mean square of their signatures."""
    pictures = [record.pictures() for record in records]
    length = 3 * _SIGNATURE_EDGE**2
    signatures = np.array([signature(p) if p else np.full(length, np.inf) for p in pictures])
    distances = np.full((len(records), len(records)), np.inf)
    for i, record in enumerate(records):
        if not pictures[i]:
            continue
        for j in range(i):
            other = records[j]
            if pictures[j] and (record.source != other.source or record.frames.isdisjoint(other.frames)):
                difference = float(np.sqrt(np.mean((signatures[i] - signatures[j]) ** 2)))
                distances[i, j] = distances[j, i] = difference
    return distances
