"""Caches the matches of the warp to landmarks: finding those of 50,000 faces a side takes up to a minute.

    matches-LANDMARKS.safetensors   a, b: (n, k) int32, see LandmarkMatcher.closest

LANDMARKS is a digest of both sides' landmarks as they are trained on, so a file is never out of date, only unused. A
file that is damaged, or cannot be read or written, counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipelines.cache import describe_file
from swapfast.batch import SIDES
from swapfast.faces.matching import FindClosest, Progress, SidePair, find_closest
from swapfast.mapped import open_arrays, write_arrays

MATCHES_FORMAT = 1  # raised whenever matching gives other faces than before


def cached_find_closest(cache: Path, folders: str, options: Mapping[str, object]) -> FindClosest:
    """Return a ``find_closest`` that reads its result from the cache folder, or computes and stores it there.

    folders: the sides' folders as text.
    options: what else shapes their landmarks, JSON-ready.
    A new file replaces the former one of the same folders and options.
    """

    def find(landmarks: SidePair, num_choices: int, progress: Progress | None = None) -> SidePair:
        digest = landmarks_digest(landmarks, num_choices)
        path = cache / f"matches-{digest[:16]}.safetensors"
        closest = load_matches(path, digest, landmarks, num_choices)
        if closest is None:
            closest = find_closest(landmarks, num_choices, progress)
            description = {
                "folder": folders.encode("utf-8", "backslashreplace").decode(),
                "options": json.dumps(options),
            }
            with contextlib.suppress(OSError):
                cache.mkdir(parents=True, exist_ok=True)
                save_matches(path, digest, closest, description)
                _remove_former(path, description)
        return closest

    return find


def landmarks_digest(landmarks: SidePair, num_choices: int) -> str:
    """Return a digest of everything that determines the matches."""
    options = {"format": MATCHES_FORMAT, "choices": num_choices, "faces": [len(side) for side in landmarks]}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for side in landmarks:
        digest.update(np.ascontiguousarray(side, "<f4").data)
    return digest.hexdigest()


def save_matches(path: Path, digest: str, closest: SidePair, description: Mapping[str, str]) -> None:
    """Write matches to a file. Raises OSError where it cannot be written.

    description: further metadata, for a person.
    """
    write_arrays(path, dict(zip(SIDES, closest)), {"what": "swapfast matches", "digest": digest, **description})


def load_matches(path: Path, digest: str, landmarks: SidePair, num_choices: int) -> SidePair | None:
    """Return the stored matches of these landmarks, mapped; None if they are missing or damaged."""
    try:
        arrays, metadata = open_arrays(path)
    except (OSError, ValueError):
        return None
    if "crc32" not in metadata or metadata.get("what") != "swapfast matches" or metadata.get("digest") != digest:
        return None
    if arrays.keys() != set(SIDES):
        return None
    closest_a, closest_b = (arrays[side] for side in SIDES)
    count_a, count_b = map(len, landmarks)
    fits = _fits(closest_a, count_a, count_b, num_choices) and _fits(closest_b, count_b, count_a, num_choices)
    return (closest_a, closest_b) if fits else None


def _fits(closest: np.ndarray, faces: int, candidates: int, num_choices: int) -> bool:
    if closest.dtype != np.int32 or closest.shape != (faces, min(num_choices, candidates)):
        return False
    return bool(closest.min() >= 0 and closest.max() < candidates)


def _remove_former(path: Path, description: Mapping[str, str]) -> None:
    """Remove the former matches of the same folders. A process that has them mapped can go on using them."""
    for candidate in path.parent.glob("matches-*.safetensors"):
        if candidate != path and description.items() <= describe_file(candidate).items():
            candidate.unlink(missing_ok=True)
