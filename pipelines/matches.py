"""The matches of the warp to landmarks, remembered: finding those of 50,000 faces a side takes up to a minute.

    matches-LANDMARKS.safetensors   a, b: (n, k) int32, see LandmarkMatcher.closest

LANDMARKS is a digest of what is matched, both sides' landmarks as they are trained on. So a file is never out of date,
only unused. One that is damaged or cannot be read or written is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipelines.cache import describe_file
from swapfast.faces.matching import Find, Progress, Sides, find_closest
from swapfast.mapped import open_arrays, write_arrays

MATCHES_FORMAT = 1  # raised whenever other faces are found than before


def cached_find_closest(cache: Path, folders: str, options: Mapping[str, object]) -> Find:
    """``find_closest`` that looks into the cache folder first, and keeps there what it had to find.

    folders, options: the sides in words and what else shapes their landmarks, JSON-ready. What was kept for the same
    ones before is removed.
    """

    def find(landmarks: Sides, num_choices: int, progress: Progress | None = None) -> Sides:
        digest = landmarks_digest(landmarks, num_choices)
        path = cache / f"matches-{digest[:16]}.safetensors"
        closest = load_matches(path, digest, landmarks, num_choices)
        if closest is None:
            closest = find_closest(landmarks, num_choices, progress)
            about = {"folder": folders.encode("utf-8", "backslashreplace").decode(), "options": json.dumps(options)}
            with contextlib.suppress(OSError):
                cache.mkdir(parents=True, exist_ok=True)
                save_matches(path, digest, closest, about)
                _remove_former(path, about)
        return closest

    return find


def landmarks_digest(landmarks: Sides, num_choices: int) -> str:
    """Of everything that the matches follow from."""
    about = {"format": MATCHES_FORMAT, "choices": num_choices, "faces": [len(side) for side in landmarks]}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for side in landmarks:
        digest.update(np.ascontiguousarray(side, "<f4"))
    return digest.hexdigest()


def save_matches(path: Path, digest: str, closest: Sides, about: Mapping[str, str]) -> None:
    """Keep what was found. about: more metadata, for a person. Raises OSError where it cannot be written."""
    write_arrays(path, dict(zip("ab", closest)), {"what": "swapfast matches", "digest": digest, **about})


def load_matches(path: Path, digest: str, landmarks: Sides, num_choices: int) -> Sides | None:
    """What was kept of these landmarks, mapped; None where there is nothing that is whole."""
    try:
        arrays, metadata = open_arrays(path)
    except (OSError, ValueError):
        return None
    if "crc32" not in metadata or metadata.get("what") != "swapfast matches" or metadata.get("digest") != digest:
        return None
    closest = tuple(arrays.get(name) for name in "ab")
    others = reversed(landmarks)
    fits = (_fits(rows, len(own), len(other), num_choices) for rows, own, other in zip(closest, landmarks, others))
    return closest if all(fits) else None


def _fits(rows: np.ndarray | None, faces: int, others: int, num_choices: int) -> bool:
    if rows is None or rows.dtype != np.int32 or rows.shape != (faces, min(num_choices, others)):
        return False
    return rows.min() >= 0 and rows.max() < others


def _remove_former(path: Path, about: Mapping[str, str]) -> None:
    """Remove these folders' matches as they were before; who has them mapped keeps them until the end."""
    for other in path.parent.glob("matches-*.safetensors"):
        if other != path and about.items() <= describe_file(other).items():
            other.unlink(missing_ok=True)
