"""The training patch: faceswap's where the picture reaches, the repeated border where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from swapfast.config import CropConfig
from swapfast.errors import SwapfastError
from swapfast.faces.alignment import align, to_68
from swapfast.faces.crop import (
    crop_face,
    crop_landmarks,
    crop_matrix,
    crop_window,
    crop_with,
    head_matrix,
    sample_square,
)
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.masks import MOUTH_PARTS, draw_parts
from swapfast.faces.record import FaceRecord
from swapfast.points import transform_points
from tests.faces.face_samples import a_face, a_picture, corrected, exact_crop, peer_matrix


def record_of(landmarks: np.ndarray, width: int, height: int, kind: str = "plain") -> FaceRecord:
    points = to_68(np.asarray(landmarks, float))
    return FaceRecord(Path("x.png"), kind, width, height, points, align(points))


# --- faceswap heads ---------------------------------------------------------------------------------------


@pytest.mark.golden
def test_windows_and_patches_are_faceswaps_where_the_head_reaches(golden, golden_heads, within):
    vectors = golden("align_crop")
    keys = [key.removeprefix("face_") for key in vectors.files if key.startswith("face_")]
    assert keys
    window_error, patch_error = 0, 0.0
    for key in keys:
        file, centering, coverage, offset, size = key.split("_")
        record, picture = golden_heads[int(file[1:])]
        crop = CropConfig(centering=centering, coverage=100 * float(coverage), vertical_offset=100 * float(offset))
        window = crop_window(record, crop)
        window_error = max(window_error, np.abs(np.subtract(window, vectors[f"crop_{key}"])).max())
        expected = corrected(vectors[f"face_{key}"], picture, window)
        patch_error = max(patch_error, np.abs(crop_face(record, picture, crop, int(size)) - expected).max())
    within("window, px", window_error, 0)
    within("patch, levels", patch_error, 1)


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("size", [64, 96, 200])
@pytest.mark.parametrize(("centering", "offset"), [("face", 25.0), ("head", -25.0), ("head", 25.0), ("legacy", 25.0)])
def test_outside_the_head_the_border_is_repeated(golden_heads, centering, offset, size, within):
    crop = CropConfig(centering=centering, vertical_offset=offset)
    worst, outside = 0.0, 0
    for record, picture in golden_heads[:3]:
        x0, y0, t = crop_window(record, crop)
        outside += y0 < 0 or y0 + t > 512 or x0 < 0 or x0 + t > 512
        expected = exact_crop(picture, (x0, y0, t), size)
        worst = max(worst, np.abs(crop_face(record, picture, crop, size) - expected).max())
    assert outside or centering != "head"
    within("against exact area means, levels", worst, 1.0)


@pytest.mark.golden
def test_landmarks_of_heads_lie_where_their_pixels_land(golden_heads, within):
    """At full coverage of the head and less, at every size: exactly by the map, and to the centre of a drawn spot."""
    for centering, size in (("face", 128), ("legacy", 256), ("head", 64)):
        crop = CropConfig(centering=centering, coverage=87.5, vertical_offset=-5)
        record, _ = golden_heads[1]
        in_head = transform_points(record.alignment.matrix(512, "head", whole_padding=True), record.landmarks)
        landmarks = crop_landmarks(record, crop, size)
        real = transform_points(head_matrix(record, crop, size), in_head)
        within(f"{centering} {size}: landmarks to pixels, px", np.abs(landmarks - real).max(), 1e-4)
        peer = transform_points(peer_matrix(record, crop, size), record.landmarks)
        assert np.abs(peer - real).max() > 0.1, "the peer's lie beside them"
        for point in (5, 30, 45):
            found = centre_of_mass(crop_face(record, dotted(512, 512, in_head[point], 3.0), crop, size))
            within(f"{centering} {size}: point {point}, px", np.abs(found - landmarks[point]).max(), 0.06)


@pytest.mark.parametrize("edge", [200, 256, 500])
@pytest.mark.parametrize("coverage", [62.5, 80.0, 100.0])
def test_masks_of_heads_lie_on_their_pixels(edge, coverage, within):
    """A head whose white part is the mouth's hull: its crop and the drawn hull have one centre."""
    record = record_of(a_face(scale=120, shift=(160, 150)), edge, edge, "head")
    in_head = transform_points(record.alignment.matrix(edge, "head", whole_padding=True), record.landmarks)
    head = draw_parts(8 * in_head + 3.5, 8 * edge, MOUTH_PARTS)
    head = cv2.resize(head, (edge, edge), interpolation=cv2.INTER_AREA)
    crop = CropConfig(coverage=coverage)
    pixels = crop_face(record, cv2.merge([head] * 3), crop, 192)
    drawn = draw_parts(crop_landmarks(record, crop, 192), 192, MOUTH_PARTS)
    gap = np.abs(centre_of_mass(pixels) - centre_of_mass(drawn[..., None]))
    within(f"head {edge}, coverage {coverage}, px", gap.max(), 0.3)  # the points are rounded to whole px


# --- what lies around a crop ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["head", "plain"])
@pytest.mark.parametrize("coverage", [62.5, 70.0, 87.5, 95.0])
@pytest.mark.parametrize("size", [64, 128])
def test_what_lies_around_a_crop_fits_it(kind, coverage, size, within):
    """Spots on and near the seam lie at the same place whether the crop or its surrounding shows them."""
    record = record_of(a_face(scale=120, shift=(160, 150)), 480, 480, kind)
    crop, margin = CropConfig(coverage=coverage, vertical_offset=4.0), 16
    to_crop = head_matrix(record, crop, size) if kind == "head" else crop_matrix(record, crop, size)
    back = np.linalg.inv(np.vstack([to_crop, (0, 0, 1)]))[:2]
    for spot in ((0.12, 0.5), (0.88, 0.5), (0.5, 0.12), (0.85, 0.85)):
        picture = dotted(480, 480, transform_points(back, size * np.array(spot)), 0.025 * size / to_crop[0, 0])
        inside = centre_of_mass(crop_face(record, picture, crop, size))
        around = centre_of_mass(crop_face(record, picture, crop, size, margin)) - margin
        within(f"{kind}, {coverage} %, {size} px: {spot}, px", np.abs(inside - around).max(), 0.1)


@pytest.mark.parametrize("coverage", [62.5, 87.5, 100.0])
@pytest.mark.parametrize("centering", ["face", "head", "legacy"])
def test_a_plain_crop_has_the_same_scale_at_every_size(centering, coverage, within):
    record = record_of(a_face(scale=120, shift=(160, 150)), 480, 480)
    crop = CropConfig(centering=centering, coverage=coverage)
    scales = [np.sqrt(np.linalg.det(crop_matrix(record, crop, size)[:, :2])) / size for size in (64, 80, 96, 128, 512)]
    within(f"{centering}, {coverage} %: relative", np.ptp(scales) / scales[0], 1e-12)


# --- plain pictures ---------------------------------------------------------------------------------------


def dotted(width: int, height: int, centre, sigma: float) -> np.ndarray:
    """A white spot with soft edges whose middle is exactly ``centre``."""
    y, x = np.mgrid[:height, :width]
    spot = 255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(spot).astype(np.uint8)[..., None], 3, axis=2)


def centre_of_mass(picture: np.ndarray) -> np.ndarray:
    spot = picture[..., 0].astype(float)
    spot[spot < 8] = 0
    y, x = np.mgrid[: spot.shape[0], : spot.shape[1]]
    return np.array([(spot * x).sum(), (spot * y).sum()]) / spot.sum()


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 160, 384])
@pytest.mark.parametrize("degrees", [0, 20])
def test_landmarks_lie_where_their_pixels_land(size, degrees, within):
    points = a_face(scale=120, shift=(160, 150), degrees=degrees)
    record = record_of(points, 500, 480)
    crop = CropConfig(centering="face", coverage=90, vertical_offset=5)
    expected = crop_landmarks(record, crop, size)
    for index in (19, 30, 36, 54):
        found = centre_of_mass(crop_face(record, dotted(500, 480, points[index], 4.0), crop, size))
        within(f"size {size}, turned {degrees}, point {index}, px", np.abs(found - expected[index]).max(), 0.05)


def box_average(picture: np.ndarray, matrix: np.ndarray, size: int, fine: int = 24) -> np.ndarray:
    """float64: the mean over each crop pixel's turned footprint of the picture's own square pixels, border repeated."""
    inverse = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]
    steps = (np.arange(size * fine) + 0.5) / fine - 0.5
    x, y = np.meshgrid(steps, steps)
    height, width = picture.shape[:2]
    column = np.clip(np.rint(inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]).astype(int), 0, width - 1)
    row = np.clip(np.rint(inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]).astype(int), 0, height - 1)
    return picture.astype(float)[row, column].reshape(size, fine, size, fine, -1).mean(axis=(1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("shrink", [1.3, 2.0, 3.4, 7.7])
@pytest.mark.parametrize("degrees", [0, 11, 37])
def test_shrinking_averages_the_turned_footprint(shrink, degrees, within):
    size, scale, turn = 40, 1 / shrink, np.deg2rad(degrees)
    picture = a_picture(420, 400)
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shift = np.array([size / 2 + 0.3, size / 2 - 0.2]) - rotation @ (210, 200)
    matrix = np.column_stack([rotation, shift])
    error = np.abs(sample_square(picture, matrix, size) - box_average(picture, matrix, size))
    within(f"shrink {shrink}, turned {degrees}: mean, levels", error.mean(), 0.8)
    within(f"shrink {shrink}, turned {degrees}: worst, levels", error.max(), 6)


def test_growing_is_cubic_and_copying_is_exact():
    picture = a_picture(60, 60)
    matrix = np.array([[1.0, 0, -7], [0, 1.0, -9]])
    np.testing.assert_array_equal(sample_square(picture, matrix, 40), picture[9:49, 7:47])
    ramp = np.repeat(np.tile(np.arange(60, dtype=np.uint8) * 4, (60, 1))[..., None], 3, axis=2)
    grown = sample_square(ramp, np.array([[2.0, 0, -20], [0, 2.0, -20]]), 80).astype(float)
    expected = (np.arange(80) + 20) / 2 * 4
    assert np.abs(grown[:, 4:-4, 0] - expected[4:-4]).max() <= 1


def test_outside_a_plain_picture_the_border_is_repeated(within):
    points = a_face(scale=120, shift=(20, 10))
    picture = a_picture(200, 180)
    crop = CropConfig(centering="head")
    record = record_of(points, 200, 180)
    wide = cv2.copyMakeBorder(picture, 300, 300, 300, 300, cv2.BORDER_REPLICATE)
    inside = record_of(points + 300, 800, 780)
    for size in (64, 400):
        gap = np.abs(crop_face(record, picture, crop, size).astype(int) - crop_face(inside, wide, crop, size))
        within(f"size {size}, levels", gap.max(), 2)


# --- one window for two pictures --------------------------------------------------------------------------


def test_two_pictures_are_cut_by_one_window():
    first, second = record_of(a_face(), 400, 400), record_of(a_face(shift=(190, 90), degrees=8), 400, 400)
    picture = a_picture(400, 400)
    crop = CropConfig()
    np.testing.assert_array_equal(
        crop_with(first, second, picture, crop, 96), sample_square(picture, crop_matrix(first, crop, 96), 96)
    )
    head, same = record_of(a_face(), 256, 256, "head"), record_of(a_face(), 256, 256, "head")
    x0, y0, t = crop_window(head, crop)
    picture = a_picture(256, 256)
    np.testing.assert_array_equal(crop_with(head, same, picture, crop, t), picture[y0 : y0 + t, x0 : x0 + t])
    with pytest.raises(SwapfastError, match="two faceswap PNGs or two plain"):
        crop_with(head, first, a_picture(400, 400), crop, 64)


@pytest.mark.slow
@pytest.mark.parametrize("size", [48, 64, 300])
@pytest.mark.parametrize("edge", [256, 200])
def test_two_heads_of_one_frame_are_cut_at_one_place(size, edge, within):
    """Each head is extracted by its own landmarks; what lies in one place of the frame must in the crops too."""
    first = record_of(a_face(scale=120, shift=(160, 150)), 256, 256, "head")
    other = record_of(a_face(scale=128, shift=(150, 158), degrees=4), edge, edge, "head")
    crop = CropConfig(coverage=90, vertical_offset=-4)
    for spot in ((180, 190), (220, 250), (265, 185)):
        frame = dotted(500, 480, spot, 4.0)
        found = []
        for record in (first, other):
            to_head = record.alignment.matrix(record.width, "head", whole_padding=True)
            head = sample_square(frame, to_head, record.width)
            found.append(centre_of_mass(crop_with(first, record, head, crop, size)))
        within(f"size {size}, heads 256 and {edge}: {spot}, px", np.abs(found[0] - found[1]).max(), 0.1)


def test_a_picture_of_another_size_than_its_record_is_refused():
    with pytest.raises(SwapfastError, match=r"decoded as 400x300.*400x400"):
        crop_face(record_of(a_face(), 400, 400), a_picture(400, 300), CropConfig(), 64)


# --- real photographs -------------------------------------------------------------------------------------


def test_a_face_cut_from_the_photograph_is_that_of_the_aligned_picture(photographs, at_least):
    """The aligned picture is the photograph moved by a known matrix: both must give one crop."""
    compared = 0
    for name in ("frl001_neutral", "frl002_neutral", "frl003_neutral", "frl006_neutral"):
        described = json.loads((photographs / f"aligned/a/{name}.json").read_text())
        aligned = read_image(photographs / f"aligned/a/{name}.jpg")
        frame = read_image(photographs / f"full_frames/{name}.jpg")
        in_frame = record_of(np.array(described["source_landmarks"]), frame.shape[1], frame.shape[0])
        in_aligned = record_of(np.array(described["landmarks"]), 512, 512)
        crop = CropConfig(coverage=70)
        one, other = crop_face(in_frame, frame, crop, 128), crop_face(in_aligned, aligned, crop, 128)
        at_least(f"{name}: crops of photograph and aligned picture, dB", cv2.PSNR(one, other), 34)
        compared += 1
    assert compared == 4


def test_every_photograph_can_be_cropped_with_its_eyes_level(photographs):
    for record in scan_folder(photographs / "aligned/misc").records:
        patch = crop_face(record, read_image(record.path), CropConfig(), 96)
        points = crop_landmarks(record, CropConfig(), 96)
        assert patch.shape == (96, 96, 3) and patch.dtype == np.uint8 and patch.std() > 10
        right, left = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
        assert 10 < left[0] - right[0] < 60 and abs(left[1] - right[1]) < 6
