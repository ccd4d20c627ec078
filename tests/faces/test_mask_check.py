"""Masks that do not show their face are refused with the likely cause; legitimate ones pass."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
import pytest

from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.folder import scan_folder
from swapfast.faces.mask_check import mask_fault
from swapfast.faces.masks import draw_face, face_mask
from tests.faces.face_samples import a_face, a_payload, a_picture, write_head, write_plain

EDGE = 400
HULL = draw_face(a_face(), EDGE)
PHOTOGRAPH = cv2.GaussianBlur(a_picture(EDGE, EDGE)[..., 0], (0, 0), 3)


def _with_alpha(gray: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return cv2.merge([gray, gray, gray, alpha])


def _stored(mask: np.ndarray) -> dict:
    return {
        "mask": zlib.compress(np.ascontiguousarray(mask).tobytes()),
        "affine_matrix": [[1, 0, 0], [0, 1, 0]],
        "interpolator": 3,
        "stored_size": len(mask),
        "stored_centering": "face",
    }


def _shifted(mask: np.ndarray, x: int, y: int = 0) -> np.ndarray:
    return cv2.warpAffine(mask, np.array([[1.0, 0, x], [0, 1, y]]), mask.shape[::-1])


WRONG = {
    "black": (HULL * 0, "all black"),
    "labels": ((HULL > 127).astype(np.uint8), "holds 0 and 1 only: multiply by 255"),
    "classes": ((HULL > 127) * np.uint8(1) + (PHOTOGRAPH > 99) * np.uint8(17), "numbers of classes"),
    "inverted": (255 - HULL, "inverted"),
    "white": (HULL * 0 + 255, "all white"),
    "gray": (HULL * 0 + 128, "it is 128 everywhere"),
    "beside": (_shifted(HULL, 110), "another place"),
    "far": (_shifted(HULL, -150, 150), "another place"),
    "photograph": (PHOTOGRAPH, "a picture with grays"),
    "alpha of black": (_with_alpha(HULL * 0, HULL), "alpha channel"),
    "alpha of white": (_with_alpha(HULL * 0 + 255, HULL), "alpha channel"),
    "alpha of a photograph": (_with_alpha(PHOTOGRAPH, HULL), "alpha channel"),
    "16 bits of 255": (HULL.astype(np.uint16), "at most 255 of 65535: multiply by 257"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_a_mask_file_that_does_not_show_its_face_is_refused(tmp_path, kind):
    mask, cause = WRONG[kind]
    write_plain(tmp_path / "one.png", a_picture(EDGE, EDGE), a_face(), mask)
    (record,) = scan_folder(tmp_path).records
    with pytest.raises(SwapfastError, match=cause) as caught:
        face_mask(record, CropConfig(), MaskConfig(mask_type="file"), 64)
    assert "one_mask.png" in str(caught.value) and "\n" not in str(caught.value)
    face_mask(record, CropConfig(), MaskConfig(), 64)  # a drawn mask does not ask for the file


def _on_face(mask: np.ndarray, record) -> np.ndarray:
    """Return a mask of the frame on the full face crop of a record, 128 px."""
    return cv2.warpAffine(mask, record.alignment.matrix(128, "face"), (128, 128))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda mask: mask, None),
        (lambda mask: mask * 0, "all black"),
        (lambda mask: mask // 255, "holds 0 and 1 only"),
        (lambda mask: 255 - mask, "inverted"),
        (lambda mask: mask * 0 + 255, "all white"),
        (lambda mask: _shifted(mask, 60), "another place"),
    ],
)
def test_a_mask_in_a_header_is_judged_where_it_is_asked_for(tmp_path, change, cause):
    write_head(tmp_path / "one.png", payload=a_payload(a_face()))
    (record,) = scan_folder(tmp_path).records
    mask = change(_on_face(HULL, record))
    write_head(tmp_path / "one.png", payload=a_payload(a_face(), **{"bisenet-fp_face": _stored(mask)}))
    (record,) = scan_folder(tmp_path).records
    face_mask(record, CropConfig(), MaskConfig(), 64)
    settings = MaskConfig(mask_type="bisenet-fp_face")
    if cause is None:
        assert face_mask(record, CropConfig(), settings, 64).max() == 255
        return
    with pytest.raises(SwapfastError, match=cause):
        face_mask(record, CropConfig(), settings, 64)


def _hair() -> np.ndarray:
    """A head with long hair: an ellipse twice as large as the face."""
    return cv2.ellipse(HULL.copy(), (200, 190), (150, 180), 0, 0, 360, 255, -1)


def _without(mask: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    mask = mask.copy()
    mask[rows, columns] = 0
    return mask


ALL = slice(None)
RIGHT = {
    "drawn": HULL,
    "blurred": cv2.GaussianBlur(HULL, (0, 0), 20),
    "half as bright": HULL // 2,
    "hair": _hair(),
    "nothing above the brows": _without(HULL, slice(0, 150), ALL),
    "the left half hidden": _without(HULL, ALL, slice(0, 200)),
    "the upper half hidden": _without(HULL, slice(0, 190), ALL),
    "hair and a hand": _without(_hair(), slice(190, 400), ALL),
    "eyes and brows alone": _without(HULL, slice(190, 400), ALL),
    "grown": cv2.dilate(HULL, np.ones((41, 41))),
    "shrunk": cv2.erode(HULL, np.ones((31, 31))),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_a_legitimate_mask_passes(kind):
    assert mask_fault(RIGHT[kind], a_face()) is None


def test_a_mask_of_16_bits_passes(tmp_path):
    write_plain(tmp_path / "one.png", a_picture(EDGE, EDGE), a_face(), HULL.astype(np.uint16) * 257)
    (record,) = scan_folder(tmp_path).records
    assert face_mask(record, CropConfig(), MaskConfig(mask_type="file"), 64).max() == 255


@pytest.mark.parametrize(("x", "y"), [(60, 0), (-60, 0), (0, 60), (0, -60), (90, 90)])
def test_the_mask_of_a_face_cut_at_the_border_passes(x, y):
    low, high = a_face().min(0), a_face().max(0)
    x0, y0 = max(int(low[0]) + x, 0), max(int(low[1]) + y, 0)
    x1, y1 = int(high[0]) + min(x, 0) + 40, int(high[1]) + min(y, 0) + 40
    mask = np.ascontiguousarray(HULL[y0:y1, x0:x1])
    assert mask_fault(mask, a_face() - [x0, y0]) is None


def test_an_all_white_mask_passes_where_the_face_fills_the_picture():
    low, high = a_face().min(0).astype(int), a_face().max(0).astype(int)
    width, height = high - low
    assert mask_fault(np.full((height, width), 255, np.uint8), a_face() - low) is None
