"""Masks: faceswap's, where it is right; beside the face where it is not, ours is on it."""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.alignment import CENTERINGS, align, to_68
from swapfast.faces.crop import crop_face, crop_landmarks, crop_matrix, crop_window, sample_square
from swapfast.faces.folder import scan_folder
from swapfast.faces.masks import (
    DRAWN_TYPES,
    EYE_PARTS,
    FACE_PARTS,
    MOUTH_PARTS,
    blur,
    clean_stored,
    dilate,
    draw_face,
    draw_parts,
    face_mask,
    face_mask_in,
    feature_mask,
    lift_brows,
    mask_names,
    training_masks,
)
from swapfast.faces.record import FaceRecord, StoredMask
from swapfast.points import transform_points
from tests.faces.face_samples import (
    a_face,
    a_picture,
    a_stored_mask,
    as_the_peer,
    corrected,
    drawn_mask,
    peer_matrix,
    write_plain,
)

EDGE_LEVELS = 2  # DESIGN.md section 2: masks differ by at most 2 levels, at their edges


def gap(ours: np.ndarray, theirs: np.ndarray) -> int:
    assert ours.shape == theirs.shape and ours.dtype == np.uint8
    return int(np.abs(ours.astype(int) - theirs).max())


def a_record(**changes) -> FaceRecord:
    points = to_68(a_face().astype(float))
    record = FaceRecord(Path("somewhere/face.png"), "plain", 400, 400, points, align(points))
    return dataclasses.replace(record, **changes)


# --- drawn from landmarks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(golden):
    return golden("landmark_masks")


@pytest.mark.golden
def test_landmarks_of_the_crops_are_faceswaps(drawn, golden_heads, within):
    """But for the known difference between the map of the pixels and faceswap's."""
    keys = [key for key in drawn.files if key.startswith("landmarks_")]
    assert keys
    worst = 0.0
    for key in keys:
        _, file, size = key.split("_")
        record = golden_heads[int(file[1:])][0]
        ours = as_the_peer(crop_landmarks(record, CropConfig(), int(size)), record, CropConfig(), int(size))
        worst = max(worst, np.abs(ours - drawn[key]).max())
    within("crop landmarks, px", worst, 2e-4 if cv2.__version__.startswith("5.") else 0.01)


@pytest.mark.golden
def test_drawn_masks_are_faceswaps(drawn, within):
    draw = {
        "face": lambda points, size: draw_face(points, size, extended=False),
        "face_extended": draw_face,
        "eye": lambda points, size: draw_parts(points, size, EYE_PARTS),
        "mouth": lambda points, size: draw_parts(points, size, MOUTH_PARTS),
    }
    worst: dict[str, int] = {}
    for key in drawn.files:
        what, _, rest = key.partition("_")
        if what in ("landmarks", "points"):
            continue
        name, file, size = rest.rsplit("_", 2)
        points, size = drawn[f"landmarks_{file}_{size}"], int(size)
        if what == "raw":
            ours = draw[name](points, size)
        elif what == "train":
            ours = feature_mask(points, size, name)
        elif what.startswith("dil"):
            ours = dilate(draw[name](points, size), float(what[3:]))
        elif what.startswith("blur"):
            kind, passes, name = name.split("_", 2)
            ours = blur(draw[name](points, size), int(what[4:]), int(passes), box=kind == "normalized")
        else:
            pytest.fail(f"no idea what {key} is")
        part = what.rstrip("-.0123456789")
        worst[part] = max(worst.get(part, 0), gap(ours, drawn[key]))
    assert set(worst) == {"raw", "train", "dil", "blur"}
    for what, error in worst.items():
        within(f"{what}, levels", error, EDGE_LEVELS)


@pytest.mark.golden
def test_the_hulls_are_drawn_around_faceswaps_points(drawn):
    keys = [key for key in drawn.files if key.startswith("points_face_extended_f")]
    assert keys
    for key in keys:
        file, size = key.split("_")[-2:]
        lifted = np.rint(lift_brows(drawn[f"landmarks_{file}_{size}"])).astype(int)
        np.testing.assert_array_equal(np.concatenate([lifted[part] for part in FACE_PARTS]), drawn[key])


def test_drawing_survives_points_far_outside():
    assert draw_face(a_face() - 1e5, 64).max() == 0
    assert draw_face((a_face() - 200) * 1e3, 64).max() == 255


def on_the_whole_canvas(points: np.ndarray, size: int, name: str) -> np.ndarray:
    """What ``feature_mask`` says it makes, with nothing left out."""
    canvas = draw_parts(points, size, {"eye": EYE_PARTS, "mouth": MOUTH_PARTS}[name])
    growth, edge = round(size * 0.025), size // 16 // 2 * 2 + 1
    if growth:
        canvas = cv2.dilate(canvas, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (growth, growth)))
    return cv2.GaussianBlur(canvas, (edge, edge), 0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 48, 64, 100, 128, 256, 384, 512])
def test_features_made_in_part_of_the_canvas_are_those_of_the_whole(size):
    """Faces of all sizes, distorted too, within the crop, across each border and beyond it."""
    rng, inside, seen = np.random.default_rng(size), crop_landmarks(a_record(), CropConfig(), size) / size - 0.5, 0
    for case in range(60):
        noise = rng.normal(0, (0, 0.01, 0.2)[case % 3], (68, 2))
        points = (inside * rng.uniform(0.2, 3) + noise + rng.uniform(-0.4, 1.4, 2)) * size
        for name in ("eye", "mouth"):
            ours = feature_mask(points.astype(np.float32), size, name)
            np.testing.assert_array_equal(ours, on_the_whole_canvas(points.astype(np.float32), size, name))
            seen += ours.any()
    assert 40 < seen < 120, "some lie in the crop, some do not"


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 8, 9, 16, 31, 32, 64, 101])
def test_the_blur_is_opencvs_gaussian_bit_for_bit(kernel):
    rng, edge = np.random.default_rng(kernel), kernel // 2 * 2 + 1
    for height, width in ((1, 1), (1, 90), (7, 3), (33, 128), (150, 120)):
        grain = rng.integers(0, 256, (height, width), np.uint8)
        for mask in (grain, (grain > 127) * np.uint8(255), np.full_like(grain, 255)):
            np.testing.assert_array_equal(blur(mask, kernel), cv2.GaussianBlur(mask, (edge, edge), 0))


@pytest.mark.parametrize("percent", [-9.0, -2.5, -0.4, 0.0, 0.6, 2.5, 3.0, 12.0])
def test_dilation_is_opencvs_with_an_ellipse_of_that_share(percent):
    for size in (64, 100, 512):
        mask = draw_face(crop_landmarks(a_record(), CropConfig(coverage=65), size), size)  # reaches the border
        px = round(size * abs(percent) / 100)
        ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (px, px)) if px else None
        expected = mask if px == 0 else cv2.dilate(mask, ellipse) if percent > 0 else cv2.erode(mask, ellipse)
        np.testing.assert_array_equal(dilate(mask, percent), expected)


def test_masks_made_together_are_those_made_one_by_one():
    record = a_record(kind="head", width=256, height=256, stored_masks=a_stored())
    for kind in ("extended", "components", "bisenet-fp_face"):
        crop, mask = CropConfig(coverage=80, vertical_offset=-6), MaskConfig(mask_type=kind, dilation=3)
        points = crop_landmarks(record, crop, 96)
        alone = {name: feature_mask(points, 96, name) for name in ("eye", "mouth")}
        alone["face"] = face_mask(record, crop, mask, 96)
        for names in (["face"], ["eye"], ["mouth", "face"], ["face", "eye", "mouth"]):
            together = training_masks(record, crop, mask, 96, names)
            np.testing.assert_array_equal(together, np.stack([alone[name] for name in names], axis=-1))


# --- stored in the header ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(golden):
    return golden("stored_masks")


@pytest.fixture(scope="module")
def cases(golden) -> dict[str, dict]:
    manifest = json.loads((golden.folder / "manifest.json").read_text())
    return manifest["files"]["stored_masks.npz"]["params"]["cases"]


def configs(case: dict) -> tuple[CropConfig, MaskConfig]:
    crop = CropConfig(
        centering=case["centering"], coverage=case["coverage"], vertical_offset=float(case["y_offset_pct"])
    )
    mask = MaskConfig(
        mask_type=case["mask"],
        dilation=case["dilation_pct"],
        blur_kernel=case["blur_kernel"],
        threshold=case["threshold_pct"],
    )
    return crop, mask


def is_the_defect(case: dict, record: FaceRecord) -> bool:
    same = record.stored_masks[case["mask"]].stored_centering == case["centering"]
    return same and case["coverage"] == 100 and case["y_offset_pct"] != 0


@pytest.mark.golden
def test_stored_masks_are_faceswaps_but_for_the_lost_offset(stored, cases, golden_heads, within):
    files = {"f0": golden_heads[0][0], "f3": golden_heads[3][0]}
    worst, compared = {"read": 0, "cleaned": 0, "cropped": 0}, 0
    for key in stored.files:
        what, file, name = key.split("_", 2)
        record = files[file]
        if what == "stored":
            worst["read"] = max(worst["read"], gap(record.stored_masks[name].pixels(), stored[key]))
            continue
        crop, mask = configs(cases[name])
        if what == "prep":
            pixels = record.stored_masks[mask.mask_type].pixels()
            ours = clean_stored(pixels, mask.dilation, mask.threshold, mask.blur_kernel)
            worst["cleaned"] = max(worst["cleaned"], gap(ours, stored[key]))
        elif what == "out" and not is_the_defect(cases[name], record):
            ours = face_mask(record, crop, mask, cases[name]["size"])
            worst["cropped"] = max(worst["cropped"], gap(ours, stored[key]))
            compared += 1
    assert compared >= 20
    for what, error in worst.items():
        within(f"{what}, levels", error, EDGE_LEVELS)


def middle_row(mask: np.ndarray) -> float:
    return (mask.sum(axis=1) * np.arange(mask.shape[0])).sum() / mask.sum()


@pytest.mark.golden
def test_the_vertical_offset_moves_a_stored_mask_too(stored, cases, golden_heads, within):
    """faceswap leaves the mask where it was; moved by the offset it lies on the moved face."""
    files = {"f0": golden_heads[0][0], "f3": golden_heads[3][0]}
    checked = 0
    for name, case in cases.items():
        for file, record in files.items():
            if not is_the_defect(case, record):
                continue
            prepared = stored[f"prep_{file}_{name}"]
            edge, size = prepared.shape[0], case["size"]
            core = edge * {"face": 0.5, "head": 0.375, "legacy": 0.625}[case["centering"]]
            down = round(case["y_offset_pct"] / 100 * core)
            expected = np.zeros_like(prepared)
            expected[max(down, 0) : edge + min(down, 0)] = prepared[max(-down, 0) : edge - max(down, 0)]
            assert edge == size, "this expectation is built without resizing"
            ours = face_mask(record, *configs(case), size)
            within(f"{file} {name}: moved mask, levels", gap(ours, expected), 0)
            assert (ours != stored[f"out_{file}_{name}"]).mean() > 0.01
            assert middle_row(ours) - middle_row(stored[f"out_{file}_{name}"]) > 0.5 * down
            checked += 1
    assert checked


# --- whole items ------------------------------------------------------------------------------------------

ITEM_KEY = re.compile(r"(?P<tag>\w.*)_(?P<size>\d+)_i(?P<index>\d+)")  # previews have other names
TAG_PART = re.compile(r"(?P<what>cov|off|dil)(?P<amount>-?[\d.]+)")
TAG_WORDS = {"default", "nomask", "bisenet", "extended", "components"}  # said by the manifest's channels too


def item_configs(tag: str, channels: list[str]) -> tuple[CropConfig, MaskConfig]:
    """What a tag such as cov875_off5 and its channels (the mask type, then eye, mouth) were made with.

    Raises ValueError for a part of the tag that says nothing we know.
    """
    crop, mask = {}, {"mask_type": next((name for name in channels if name not in ("eye", "mouth")), "none")}
    for part in tag.split("_"):
        found = TAG_PART.fullmatch(part)
        if part in CENTERINGS:
            crop["centering"] = part
        elif found:
            amount = float(found["amount"])
            if found["what"] == "cov":
                crop["coverage"] = amount / 10 if amount > 100 else amount  # cov875 is 87.5 %
            elif found["what"] == "off":
                crop["vertical_offset"] = amount
            else:
                mask["dilation"] = amount
        elif part not in TAG_WORDS:
            raise ValueError(f"no idea what {part!r} means")
    return CropConfig(**crop), MaskConfig(**mask)


def training_items(golden):
    """(key, CropConfig, MaskConfig, size, index of the face, mask names in channel order) of every item we can read."""
    manifest = json.loads((golden.folder / "manifest.json").read_text())
    described = manifest["files"]["dataset_items.npz"]["params"]["mask channel order / config"]
    for key in golden("dataset_items").files:
        found = ITEM_KEY.fullmatch(key)
        if not found:
            continue
        tag, channels = found["tag"], described.get(found["tag"])
        try:
            if not isinstance(channels, list):
                raise ValueError(f"the manifest has no list of channels for {tag!r}")
            crop, mask = item_configs(tag, channels)
        except ValueError as error:
            print(f"dataset_items {key} skipped: {error}")
            continue
        names = [name if name in ("eye", "mouth") else "face" for name in channels]
        yield key, crop, mask, int(found["size"]), int(found["index"]), names


@pytest.mark.golden
def test_training_items_are_faceswaps(golden, golden_heads, within):
    """A drawn mask is faceswap's where it is drawn around faceswap's points, and ours lies where the pixels are."""
    vectors, tags = golden("dataset_items"), set()
    for key, crop, mask, size, index, names in training_items(golden):
        record, picture = golden_heads[index]
        assert mask_names(mask, face=bool(names), eye="eye" in names, mouth="mouth" in names) == names
        image = crop_face(record, picture, crop, size)
        masks = training_masks(record, crop, mask, size, names)
        expected = corrected(vectors[key][..., :3], picture, crop_window(record, crop))
        within(f"{key}: image, levels", np.abs(image - expected).max(), 1)
        assert masks.shape == (size, size, vectors[key].shape[2] - 3)
        for channel, name in enumerate(names):
            ours = masks[..., channel]
            if name != "face" or mask.mask_type in DRAWN_TYPES:
                np.testing.assert_array_equal(ours, drawn_mask(crop_landmarks(record, crop, size), mask, size, name))
                ours = drawn_mask(transform_points(peer_matrix(record, crop, size), record.landmarks), mask, size, name)
            within(f"{key}: {name}, levels", gap(ours, vectors[key][..., 3 + channel]), EDGE_LEVELS)
        tags.add(key.rsplit("_", 2)[0])
    assert tags


def test_items_of_the_same_form_are_read_and_others_named(tmp_path, capsys):
    channels = {
        "legacy_cov875_off-5_dil-2.5": ["components", "eye", "mouth"],
        "cov75": ["extended", "mouth"],
        "turned90": ["extended"],
        "nomask": [],
        "preview": {"input": 64},
    }
    described = {"files": {"dataset_items.npz": {"params": {"mask channel order / config": channels}}}}
    (tmp_path / "manifest.json").write_text(json.dumps(described))
    keys = [f"{tag}_64_i2" for tag in channels if tag != "preview"] + ["preview_feed", "new_32_i0"]

    def golden(name):
        return SimpleNamespace(files=keys)

    golden.folder = tmp_path
    assert list(training_items(golden)) == [
        (
            "legacy_cov875_off-5_dil-2.5_64_i2",
            CropConfig(centering="legacy", coverage=87.5, vertical_offset=-5),
            MaskConfig(mask_type="components", dilation=-2.5),
            *(64, 2, ["face", "eye", "mouth"]),
        ),
        ("cov75_64_i2", CropConfig(coverage=75), MaskConfig(), 64, 2, ["face", "mouth"]),
        ("nomask_64_i2", CropConfig(), MaskConfig(mask_type="none"), 64, 2, []),
    ]
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in told] == ["turned90_64_i2", "new_32_i0"]


def test_mask_names_keep_their_order():
    assert mask_names(MaskConfig(), True, True, True) == ["face", "eye", "mouth"]
    assert mask_names(MaskConfig(), True, False, True) == ["face", "mouth"]
    assert mask_names(MaskConfig(), False, False, False) == []
    assert mask_names(MaskConfig(mask_type="none"), True, True, False) == ["eye"]


def test_masks_come_in_the_order_asked_for_and_lie_on_their_features():
    record = a_record()
    masks = training_masks(record, CropConfig(), MaskConfig(), 128, ["face", "eye", "mouth"])
    points = np.rint(crop_landmarks(record, CropConfig(), 128)).astype(int)
    mouth, eye, nose = points[48:60].mean(axis=0), points[36:42].mean(axis=0), points[30]
    for where, expected in ((nose, (255, 0, 0)), (eye, (255, 255, 0)), (mouth, (255, 0, 255))):
        x, y = np.rint(where).astype(int)
        assert tuple(np.where(masks[y, x] > 200, 255, masks[y, x])) == expected
    assert training_masks(record, CropConfig(), MaskConfig(), 128, []).shape == (128, 128, 0)


# --- a mask beside the picture ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [48, 320])
def test_a_mask_file_is_cut_exactly_as_its_picture(tmp_path, size, within):
    rng = np.random.default_rng(3)
    soft = cv2.GaussianBlur(rng.uniform(0, 255, (380, 420)).astype(np.float32), (0, 0), 8)
    texture = np.clip((soft - soft.mean()) * 12 + 128, 0, 255).astype(np.uint8)
    mask = np.maximum(texture // 2, draw_parts(a_face(), 420, FACE_PARTS)[:380])
    picture = cv2.merge([mask] * 3)  # a picture that is its own mask must stay so
    write_plain(tmp_path / "one.png", picture, a_face(), mask)
    (record,) = scan_folder(tmp_path).records
    crop, kind = CropConfig(coverage=80, vertical_offset=-6), MaskConfig(mask_type="file")
    ours = training_masks(record, crop, kind, size, ["face"])[..., 0]
    within(f"size {size}, levels", gap(ours, crop_face(record, picture, crop, size)[..., 1]), 0)


def test_outside_the_picture_there_is_no_face(tmp_path):
    picture = a_picture(200, 200)
    white = np.full((200, 200), 255, np.uint8)
    white[:40] = 0  # above the face; a mask that is white all over does not show it
    write_plain(tmp_path / "one.png", picture, a_face(scale=120, shift=(40, 90)), white)
    (record,) = scan_folder(tmp_path).records
    mask = training_masks(record, CropConfig(centering="head"), MaskConfig(mask_type="file"), 96, ["face"])
    assert mask[-3:].max() == 0 and mask[48, 48] == 255


@pytest.mark.parametrize("kind", ["extended", "components", "file"])
def test_a_mask_in_anothers_window_is_that_of_the_frame(tmp_path, kind, within):
    """Cut where another face lies, a mask keeps its place in the frame: compared with one made there and then cut."""
    inside = draw_parts(a_face(), 400, FACE_PARTS)
    write_plain(tmp_path / "one.png", a_picture(400, 400), a_face(), cv2.GaussianBlur(inside, (0, 0), 3))
    (record,) = scan_folder(tmp_path).records
    moved = to_68(a_face(scale=110, shift=(140, 130), degrees=5).astype(float))
    window_of = dataclasses.replace(record, landmarks=moved, alignment=align(moved))
    crop, mask = CropConfig(coverage=80), MaskConfig(mask_type=kind)
    ours = face_mask_in(window_of, record, crop, mask, 160)
    extended = draw_face(a_face(), 400, extended=kind == "extended")
    in_frame = cv2.GaussianBlur(inside, (0, 0), 3) if kind == "file" else extended
    expected = sample_square(in_frame, crop_matrix(window_of, crop, 160), 160, cv2.BORDER_CONSTANT)
    within(f"{kind}: pixels on the other side", ((ours > 127) != (expected > 127)).mean(), 0.01)
    np.testing.assert_array_equal(face_mask_in(record, record, crop, mask, 160), face_mask(record, crop, mask, 160))
    wider = face_mask_in(window_of, record, crop, dataclasses.replace(mask, dilation=3), 160)
    np.testing.assert_array_equal(wider, dilate(ours, 3))


@pytest.mark.slow
@pytest.mark.parametrize("group", ["a", "misc"])
def test_the_masks_beside_photographs_cover_their_faces(photographs, group):
    for record in scan_folder(photographs / "aligned" / group).records[:12]:
        from_file = training_masks(record, CropConfig(), MaskConfig(mask_type="file"), 64, ["face"]) > 127
        from_points = training_masks(record, CropConfig(), MaskConfig(mask_type="components"), 64, ["face"]) > 127
        assert (from_file & from_points).sum() / (from_file | from_points).sum() > 0.6, record.path


# --- what a face does not have ----------------------------------------------------------------------------


def a_stored(name: str = "bisenet-fp_face") -> dict[str, StoredMask]:
    made = a_stored_mask()
    return {name: StoredMask(made["mask"], made["stored_size"], made["stored_centering"])}


@pytest.mark.parametrize(
    ("record", "kind", "parts"),
    [
        (a_record(), "file", ["face.png", "'file'", "face_mask.png"]),
        (a_record(), "vgg-clear", ["face.png", "'vgg-clear'", "it has none", "live in faceswap PNGs"]),
        (a_record(kind="head", stored_masks=a_stored()), "vgg-clear", ["'vgg-clear'", "it has bisenet-fp_face"]),
        (a_record(kind="head", stored_masks=a_stored()), "file", ["'file'", "it has bisenet-fp_face"]),
        (a_record(), "bisenet", ["unknown mask type 'bisenet'", "extended", "components", "bisenet-fp_head"]),
        (a_record(kind="head", stored_masks=a_stored("mine")), "mime", ["Did you mean 'mine'", "extended"]),
    ],
)
def test_a_mask_that_a_face_lacks_is_answered_with_what_it_has(record, kind, parts):
    with pytest.raises(SwapfastError) as caught:
        training_masks(record, CropConfig(), MaskConfig(mask_type=kind), 64, ["face"])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_mask_stored_under_any_name_can_be_used():
    record = a_record(kind="head", width=256, height=256, stored_masks=a_stored("mine"))
    assert training_masks(record, CropConfig(), MaskConfig(mask_type="mine"), 64, ["face"]).max() == 255


def test_an_unknown_mask_name_is_answered_with_the_known():
    with pytest.raises(SwapfastError, match=r"unknown mask 'nose'.*eye, face, mouth"):
        training_masks(a_record(), CropConfig(), MaskConfig(), 64, ["nose"])


def test_a_damaged_mask_file_is_an_error_that_names_it(tmp_path):
    write_plain(tmp_path / "one.png", a_picture(300, 300), a_face(), np.zeros((300, 300), np.uint8))
    (record,) = scan_folder(tmp_path).records
    (tmp_path / "one_mask.png").write_bytes(b"no picture any more")
    with pytest.raises(SwapfastError, match=r"one_mask\.png: pixels that cannot be decoded"):
        training_masks(record, CropConfig(), MaskConfig(mask_type="file"), 64, ["face"])


def test_small_dilation_and_no_blur_change_nothing():
    mask = draw_face(a_face() / 5, 64)
    np.testing.assert_array_equal(dilate(mask, 0.5), mask)
    np.testing.assert_array_equal(blur(mask, 0), mask)
    assert dilate(mask, 3).sum() > mask.sum() > dilate(mask, -3).sum()


@pytest.mark.slow
def test_a_stored_mask_never_inflates_beyond_its_size():
    bomb = zlib.compress(bytes(64 << 20))
    with pytest.raises(ValueError, match="more than 4096 bytes, expected 4096"):
        StoredMask(bomb, 64, "face").pixels()
    with pytest.raises(ValueError, match="4095 bytes, expected 4096"):
        StoredMask(zlib.compress(bytes(4095)), 64, "face").pixels()
    with pytest.raises(ValueError, match="truncated"):
        StoredMask(zlib.compress(bytes(4096))[:-2], 64, "face").pixels()
    with pytest.raises(ValueError, match="not valid zlib"):
        StoredMask(b"no zlib", 64, "face").pixels()
