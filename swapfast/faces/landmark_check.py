"""Looks at the landmarks of a folder as a whole: what one face cannot tell, many can.

Nothing is read but a few photographs with an EXIF orientation whose landmarks are upright (orientation.py).
"""

from __future__ import annotations

from collections import defaultdict

import cv2
import numpy as np

from swapfast.faces.crop import spread_indices
from swapfast.faces.image import read_reduced
from swapfast.faces.orientation import turned_evidence
from swapfast.faces.reader import SIZE_NOTE, UPRIGHT_NOTE, BadFace
from swapfast.faces.table import KINDS, FaceTable
from swapfast.printing import shown_name

LOOKED_AT = 12  # photographs of an orientation whose pixels are looked at
TURNED, STALE = 0.25, -0.2  # mean evidence from which on landmarks are those of the turned or the stored picture
MANY_OUTSIDE = 0.35  # share of a face's box outside its picture that is more than a cut cheek
FEW_FACES = 4  # fewer say nothing of a folder
CORNER = 0.55  # share of the picture's edges within which all faces lie where the picture was enlarged


def check_landmarks(table: FaceTable) -> tuple[list[BadFace], list[str]]:
    """Return the faces whose landmarks cannot be in px of their pictures, and warnings on those that may not be."""
    bad, warnings = _turned_faces(table)
    bad += _shared_descriptions(table)
    if bad:
        names = {face.path.name for face in bad}
        table = table.select([index for index in range(len(table)) if table.name(index) not in names])
    plain = np.flatnonzero(table.column("kind") == KINDS.index("plain"))
    if len(plain):
        warnings += _outside(table, plain) + _in_a_corner(table, plain)
    if noted := table.with_note(SIZE_NOTE):
        example = shown_name(table.name(noted[0][0]))
        warnings.append(
            f"{len(noted)} of {len(table)} faces have another size in their json than their pictures ({example}): were "
            "the landmarks measured before these were resized or cut?"
        )
    return bad, warnings


def _turned_faces(table: FaceTable) -> tuple[list[BadFace], list[str]]:
    """Judge upright landmarks of photographs that have an EXIF orientation, all of one orientation alike."""
    faces = defaultdict(list)
    for index, note in table.with_note(UPRIGHT_NOTE):
        faces[int(note.removeprefix(UPRIGHT_NOTE))].append(index)
    bad, warnings = [], []
    for orientation, indices in sorted(faces.items()):
        evidence = _mean_evidence(table, indices, orientation)
        names = [table.name(index) for index in indices]
        if evidence >= TURNED:
            reason = (
                f"a face is upright only after turning by its EXIF orientation {orientation}, so its landmarks were "
                'measured on the turned picture: say "orientation": "exif" in its json, or "stored" if they were not'
            )
            bad += [BadFace(table.folder / name, reason) for name in names]
        elif evidence > STALE:
            warnings.append(
                f"{len(names)} of {len(table)} faces have upright landmarks and EXIF orientation {orientation} "
                f"({shown_name(names[0])}); they are taken as measured on the picture as stored: if on the turned one, "
                'say "orientation": "exif" in the json ("stored" ends this warning)'
            )
    return bad, warnings


def _mean_evidence(table: FaceTable, indices: list[int], orientation: int) -> float:
    """Return the mean ``turned_evidence`` of some photographs, 0 where none can be read."""
    evidence = []
    for index in np.unique(np.array(indices)[spread_indices(len(indices), LOOKED_AT)]).tolist():
        record = table[index]
        try:
            picture, scale = read_reduced(record.path, float(np.ptp(record.landmarks, axis=0).max()))
            points = (record.landmarks + 0.5) * np.float32(scale) - 0.5
            evidence.append(turned_evidence(picture, points.astype(np.float32), orientation))
        except (ValueError, cv2.error):
            continue  # a damaged picture, which is told of when it is decoded
    return float(np.mean(evidence)) if evidence else 0.0


def _shared_descriptions(table: FaceTable) -> list[BadFace]:
    """Return the pictures that share one json and have different sizes: it can be that of one of them only."""
    stems = defaultdict(list)
    for index in np.flatnonzero(table.column("kind") == KINDS.index("plain")).tolist():
        stems[table.name(index).rpartition(".")[0]].append(index)
    bad = []
    for stem, indices in stems.items():
        if len(indices) < 2 or len({(table[index].width, table[index].height) for index in indices}) < 2:
            continue
        names = [table.name(index) for index in indices]
        for index, name in zip(indices, names):
            rest = ", ".join(shown_name(n) for n in names if n != name)
            size = f"{table[index].width}x{table[index].height}"
            reason = f"shares {shown_name(stem)}.json with {rest}, of another size than its {size} px: remove one"
            bad.append(BadFace(table.folder / name, reason))
    return bad


def _outside(table: FaceTable, plain: np.ndarray) -> list[str]:
    """Warn where a good part of half the faces or more lies outside their pictures."""
    landmarks, edges = table.column("landmarks")[plain], _edges(table, plain)[:, 0]
    # Along the last axis: along the middle one it takes ten times as long.
    low, high = (np.stack([extreme(landmarks[..., axis], 1) for axis in (0, 1)], 1) for extreme in (np.min, np.max))
    inside = np.clip(np.minimum(high, edges - 1) - np.maximum(low, 0), 0, None)
    shares = 1 - (inside / np.maximum(high - low, 1)).prod(1)
    indices = plain[shares > MANY_OUTSIDE]
    if len(indices) < max(2, len(plain) / 2):
        return []
    return [
        f"{len(indices)} of {len(plain)} faces lie more than a third outside their pictures "
        f"({shown_name(table.name(int(indices[0])))}): were the landmarks measured before these were cut or resized?"
    ]


def _in_a_corner(table: FaceTable, plain: np.ndarray) -> list[str]:
    """Warn where every face lies in the upper left of its picture, as landmarks of smaller pictures do."""
    if len(plain) < FEW_FACES:
        return []
    landmarks = table.column("landmarks")[plain]
    farthest = CORNER * _edges(table, plain)
    if landmarks.min() < 0 or (landmarks > farthest).any():  # a face that is cut there really lies there
        return []
    example = shown_name(table.name(int(plain[0])))
    return [
        f"all {len(plain)} faces lie in the upper left of their pictures ({example}): were the landmarks measured "
        "before these were enlarged?"
    ]


def _edges(table: FaceTable, indices: np.ndarray) -> np.ndarray:
    """Return the sizes of pictures, (N, 1, 2) px."""
    return np.stack([table.column(name)[indices] for name in ("width", "height")], axis=1)[:, None]
