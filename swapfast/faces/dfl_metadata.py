"""Reads what DeepFaceLab writes into the JPEG of an aligned face.

    FF EF length(2) content     the segment APP15, whose content is a pickle (protocol 2 to 5) of a dictionary
        landmarks               68 (x, y) in px of this JPEG
        xseg_mask               optional, bytes of a gray PNG or JPEG of any size: the mask of the whole picture
        source_filename, source_rect, source_landmarks, image_to_face_mat, face_type, seg_ie_polys, ...    not used here
The pickle is read by interop/pickles.py, which calls nothing that a file names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swapfast.errors import SwapfastError
from swapfast.faces.alignment import to_68
from swapfast.interop.pickles import read_pickle

OWNER = "its DeepFaceLab metadata"
_MOST_OPERATIONS = 1 << 17  # a segment has at most 64 KiB
_PROTOCOL = b"\x80"  # how pickles of protocol 2 to 5 begin


@dataclass(frozen=True, eq=False)
class DflMetadata:
    """What is used of the metadata.

    landmarks: (68, 2) float32, px of the picture.
    mask: an encoded PNG or JPEG, None where there is none.
    """

    landmarks: np.ndarray
    mask: bytes | None


def is_metadata(segment: bytes | None) -> bool:
    """Return whether the content of an APP15 begins as DeepFaceLab's does. Other programs may use the segment too."""
    return segment is not None and segment.startswith(_PROTOCOL)


def read_metadata(segment: bytes) -> DflMetadata:
    """Return what is in an APP15. Raises ValueError with a short reason."""
    try:
        table = read_pickle(segment, OWNER, _MOST_OPERATIONS)
    except SwapfastError as error:
        raise ValueError(str(error)) from None
    if not isinstance(table, dict):
        raise ValueError(f"{OWNER} is not a table")
    points = table.get("landmarks")
    if not isinstance(points, (list, tuple, np.ndarray)):
        raise ValueError(f'{OWNER} has no "landmarks"')
    try:
        numbers = np.array(points, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f'the "landmarks" of {OWNER} are not rows of two numbers') from error
    return DflMetadata(to_68(numbers), _mask_bytes(table.get("xseg_mask")))


def _mask_bytes(mask: object) -> bytes | None:
    """Return an encoded mask, whichever of its types it was stored as."""
    if isinstance(mask, np.ndarray) and mask.dtype == np.uint8:
        return mask.tobytes()
    return bytes(mask) if isinstance(mask, (bytes, memoryview)) else None
