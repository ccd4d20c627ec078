"""Where a frame's landmarks come from: the mesh networks, or points that another program has found.

A backend finds the faces of a frame, and may follow one into the next frame. Everything else (tracks, gaps, limits,
files) knows no more of it than ``LandmarkBackend``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.extract.landmark_map import load_map
from swapfast.extract.networks import Detector, MeshNetwork, Region
from swapfast.faces.alignment import Alignment, align
from swapfast.faces.reader import share_outside
from swapfast.swap.found_faces import FaceFinder
from swapfast.swap.frames import Frame
from swapfast.swap.landmark_file import DECIMALS
from swapfast.swap.tracks import face_box, overlaps

BACKENDS = ("mesh", "json")
TURNS = ("auto", "always", "never")
MOST_OUTSIDE = 0.5  # share of a face that may lie outside its frame
SAME_FACE = 0.3  # intersection over union of two boxes that are one face
# The same for two of which one is turned against the other by more than 60 degrees: no two heads lie like this, but
# brow and hair of a face that is upside down are taken for another one the right way up, in 7 of 24 drawn faces.
CONTRADICTED, _TURNED_COSINE = 0.1, 0.5
# Confidence from which on no other turn of the frame is looked at: upright faces have more (24 drawn ones, 16
# photographs), upside-down ones that were taken for upright up to 0.999998.
SURE = 1 - 1e-7
_QUICK, _THOROUGH = (1, 2), (1, 2, 4)  # levels of tiles, see ``Detector``
_UPRIGHT, _TURNED = (0,), (1, 3, 2)
# Reasons why a face is left out; the report counts them.
UNSURE, UNLIKE, CUT_OFF = "low confidence", "not shaped like a face", "cut off by the frame's edge"


@dataclass(frozen=True)
class AcceptanceLimits:
    """What a face must reach.

    confidence  of the mesh network, 0..1: upright faces have 0.9999 and more, one that was taken for an upright face
                though it lies on its side up to 0.985
    distance    largest mean distance of the aligned landmarks to the mean face, in the unit square
    """

    confidence: float = 0.99
    distance: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.confidence < 1:
            raise SwapfastError(f"--confidence {self.confidence:g}: give 0 to 0.99")
        if not 0 < self.distance <= 0.2:
            raise SwapfastError(f"--max-distance {self.distance:g}: give more than 0 and up to 0.2")


@dataclass(frozen=True, eq=False)
class FoundPoints:
    """The landmarks of a face that was accepted.

    landmarks   (68, 2) float64, px of the frame
    alignment   of these
    confidence  0..1
    state       what the backend needs to follow the face
    track       known to whoever found it, or None
    """

    landmarks: np.ndarray
    alignment: Alignment
    confidence: float = 1.0
    state: Any = None
    track: int | None = None

    @property
    def box(self) -> np.ndarray:
        """Return the box around the landmarks: x0, y0, x1, y1."""
        return face_box(self.landmarks)

    @property
    def direction(self) -> np.ndarray:
        """Return the unit vector from the outer corner of one eye to that of the other, (2,)."""
        across = self.landmarks[45] - self.landmarks[36]
        return across / max(1e-9, float(np.linalg.norm(across)))


@dataclass(frozen=True, eq=False)
class FrameFindings:
    """The faces of a frame, and why others were left out."""

    faces: list[FoundPoints]
    rejected: list[str] = field(default_factory=list)


class LandmarkBackend(Protocol):
    """Finds faces in frames. One thread uses it at a time."""

    can_follow: bool

    def find(self, frame: Frame, is_thorough: bool = True) -> FrameFindings:
        """Return the faces of a frame. is_thorough: small and turned ones too, which takes longer."""

    def follow(self, frame: Frame, face: FoundPoints) -> FoundPoints | None:
        """Return where a face of a neighbouring frame is in this one, None where it is lost."""


class MeshBackend:
    """Landmarks by the two networks and the map from 468 points to 68.

    turns: 'auto' looks at quarter turns where no upright face is found, 'always' and 'never' as they say.
    """

    can_follow = True

    def __init__(
        self, models: Mapping[str, bytes], limits: AcceptanceLimits | None = None, turns: str = "auto"
    ) -> None:
        self._detector, self._network = Detector(models), MeshNetwork(models)
        self._map, self._limits, self._turns = load_map(), limits or AcceptanceLimits(), turns

    def find(self, frame: Frame, is_thorough: bool = True) -> FrameFindings:
        """Return the faces of a frame."""
        levels = _THOROUGH if is_thorough else _QUICK
        turns = (*_UPRIGHT, *_TURNED) if self._turns == "always" else _UPRIGHT
        faces, rejected = self._verified(frame, self._detector(frame.pixels, levels, turns))
        # A face that lies on its side is now and then taken for an upright one, of which the network is less sure.
        is_sure = faces and min(face.confidence for face in faces) >= SURE
        if is_thorough and self._turns == "auto" and not is_sure:
            more, reasons = self._verified(frame, self._detector(frame.pixels, levels, _TURNED))
            faces, rejected = faces + more, rejected or reasons
        return FrameFindings(_once_each(faces), [] if faces else rejected)

    def follow(self, frame: Frame, face: FoundPoints) -> FoundPoints | None:
        """Return the face, looked for where its mesh was in a neighbouring frame."""
        face_or_reason = self._accepted(frame, *self._network(frame.pixels, Region.of_mesh(face.state)))
        return face_or_reason if isinstance(face_or_reason, FoundPoints) else None

    def _verified(self, frame: Frame, detections: np.ndarray) -> tuple[list[FoundPoints], list[str]]:
        """Return the faces that detections are, and why others are none."""
        faces: list[FoundPoints] = []
        rejected: list[str] = []
        for detection in detections:
            # The detector's square is coarse: a second pass sees what the first one found.
            mesh, _ = self._network(frame.pixels, Region.of_detection(detection))
            face_or_reason = self._accepted(frame, *self._network(frame.pixels, Region.of_mesh(mesh)))
            if isinstance(face_or_reason, str):
                rejected.append(face_or_reason)
            else:
                faces.append(face_or_reason)
        return faces, rejected

    def _accepted(self, frame: Frame, mesh: np.ndarray, confidence: float) -> FoundPoints | str:
        """Return the face, or the reason why it is none."""
        if confidence < self._limits.confidence:
            return UNSURE
        return accepted(frame, self._map(mesh), self._limits, confidence, mesh)


def as_written(landmarks: np.ndarray) -> np.ndarray:
    """Return landmarks as files hold them, so that a crop that is made again from a file is the same."""
    return np.round(landmarks, DECIMALS).astype(np.float32).astype(np.float64)


def accepted(
    frame: Frame,
    landmarks: np.ndarray,
    limits: AcceptanceLimits,
    confidence: float = 1.0,
    state: Any = None,
    track: int | None = None,
) -> FoundPoints | str:
    """Return landmarks as a face, or the reason why they are none."""
    landmarks = as_written(landmarks)
    try:
        alignment = align(landmarks)
    except ValueError:
        return UNLIKE
    if alignment.average_distance > limits.distance:
        return UNLIKE
    if share_outside(landmarks, *frame.size) > MOST_OUTSIDE:
        return CUT_OFF
    return FoundPoints(landmarks, alignment, confidence, state, track)


def _once_each(faces: list[FoundPoints]) -> list[FoundPoints]:
    """Return faces without those that are another one seen less surely."""
    faces_once: list[FoundPoints] = []
    for face in sorted(faces, key=lambda face: -face.confidence):
        if not is_among(face, faces_once):
            faces_once.append(face)
    return faces_once


def is_among(face: FoundPoints, others: Sequence[FoundPoints]) -> bool:
    """Return whether a face is one of the others, or takes a part of one for a face that lies another way."""
    if not others:
        return False
    shares = overlaps(face.box[None], np.array([other.box for other in others]))[0]
    turned = np.array([face.direction @ other.direction for other in others]) < _TURNED_COSINE
    return bool(((shares > SAME_FACE) | (turned & (shares > CONTRADICTED))).any())


class JsonBackend:
    """Landmarks that another program has found: a file of them, or NAME.json beside each picture.

    finder: knows the faces of a frame, see swap/found_faces.py.
    """

    can_follow = False

    def __init__(self, finder: FaceFinder, limits: AcceptanceLimits | None = None) -> None:
        self._finder, self._limits = finder, limits or AcceptanceLimits()

    def find(self, frame: Frame, is_thorough: bool = True) -> FrameFindings:
        """Return the faces that the file knows of."""
        points = self._finder(frame)
        faces: list[FoundPoints] = []
        rejected = list(points.skipped)
        for face in points.faces:
            face_or_reason = accepted(frame, face.landmarks, self._limits, track=face.track)
            if isinstance(face_or_reason, str):
                rejected.append(face_or_reason)
            else:
                faces.append(face_or_reason)
        return FrameFindings(faces, rejected)

    def follow(self, frame: Frame, face: FoundPoints) -> FoundPoints | None:
        """Return nothing: only the file knows."""
        return None


def interpolated(first: FoundPoints, last: FoundPoints, share: float) -> FoundPoints | None:
    """Return the face between two others of its track. share: 0 at the first, 1 at the last. None where it is none."""
    landmarks = as_written((1 - share) * first.landmarks + share * last.landmarks)
    try:
        alignment = align(landmarks)
    except ValueError:
        return None
    state = None if first.state is None or last.state is None else (1 - share) * first.state + share * last.state
    confidence = min(first.confidence, last.confidence)
    return FoundPoints(landmarks, alignment, confidence, state)
