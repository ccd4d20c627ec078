"""Compares the files of two folders, and says in a line what differs: a diff of pictures' bytes is unreadable."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np


def check_same(found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    """Fail unless both have the same names and contents; of pictures the pixels that differ are counted."""
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    differing = [name for name in sorted(expected.keys() & found.keys()) if found[name] != expected[name]]
    problems = [f"missing: {missing}"] * bool(missing) + [f"too many: {more}"] * bool(more)
    assert not (problems or differing), "; ".join(
        problems + [f"{name}: {_difference(found[name], expected[name])}" for name in differing]
    )


def _difference(found: object, expected: object) -> str:
    if not isinstance(found, bytes) or not isinstance(expected, bytes):
        return f"{found!r} in place of {expected!r}"
    first = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), "the end")
    text = f"{len(found)} bytes in place of {len(expected)}, unlike from {first} on"
    pixels = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) for data in (found, expected)]
    if any(picture is None for picture in pixels):
        return text
    if pixels[0].shape != pixels[1].shape:
        return f"{text}, {pixels[0].shape} pixels in place of {pixels[1].shape}"
    difference = np.abs(pixels[0].astype(int) - pixels[1].astype(int))
    return f"{text}, {np.count_nonzero(difference)} values differ by up to {difference.max()}"
