"""Decoding once: DALI's pixels, the crops in the store, and files that turn out to be bad."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from pipelines.decode import dali_version, decode_pictures
from pipelines.fill import fill_store
from pipelines.sides import make_train_set, scan_side
from pipelines.store import HostStore, StoreSpec
from swapfast import system
from swapfast.batch import MASK_NAMES
from swapfast.config import CropConfig, MaskConfig, TrainConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_face
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.masks import needed_masks, training_masks


def _spec(size=64, masks=MASK_NAMES, mask_type="extended"):
    return StoreSpec(size, CropConfig(), MaskConfig(mask_type=mask_type), masks)


@pytest.mark.skipif(dali_version() is None, reason="DALI is not installed here")
def test_dali_decodes_what_opencv_decodes(made_faces):
    paths = [record.path for record in scan_folder(made_faces / "a").records]
    ours = [p.copy() for batch in decode_pictures(paths, 2, use_dali=True) for p in batch]
    theirs = [p.copy() for batch in decode_pictures(paths, 2, use_dali=False) for p in batch]
    assert len(ours) == len(theirs) == len(paths)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.skipif(dali_version() is None, reason="DALI is not installed here")
@pytest.mark.parametrize(
    "suffix, image",
    [
        ("gray.png", np.arange(96 * 96, dtype=np.uint16).reshape(96, 96).astype(np.uint8)),
        ("deep.png", (np.arange(96 * 96 * 3, dtype=np.uint32) * 7 % 65536).astype(np.uint16).reshape(96, 96, 3)),
        ("alpha.png", np.dstack([np.full((96, 96, 3), (10, 200, 30), np.uint8), np.eye(96, dtype=np.uint8) * 255])),
    ],
)
def test_unusual_pictures_are_read_right(tmp_path, suffix, image):
    """Gray is expanded, 16 bits are scaled to 8, alpha is dropped."""
    path = tmp_path / suffix
    cv2.imwrite(str(path), image)
    expected = image[..., :3] if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    if image.dtype == np.uint16:
        expected = np.rint(expected / 257)
    for use_dali in (True, False):
        ((decoded,),) = decode_pictures([path], 1, use_dali=use_dali)
        assert np.abs(decoded.astype(int) - expected).max() <= (1 if image.dtype == np.uint16 else 0), use_dali


def _filled(path, spec, threads=None):
    source = scan_side(path, "none", skip_bad=False)
    store = HostStore.in_memory(spec, len(source))
    assert fill_store(spec, source, store, threads=threads) == {}
    return source, store


def test_the_store_holds_crops_and_masks_and_little_else(made_faces):
    source, store = _filled(made_faces / "a", _spec())
    assert len(store) == len(source) == 14
    assert store.nbytes == 14 * 64 * 64 * 6 == 14 * store.spec.bytes_per_face
    for index in (0, 7, 13):
        record = source.folder.records[index]
        image = read_image(record.path)
        assert np.array_equal(store.faces[index, ..., :3], crop_face(record, image, CropConfig(), 64))
        masks = training_masks(record, CropConfig(), MaskConfig(), 64, list(MASK_NAMES))
        stored = np.dstack([store.faces[index, ..., 3], *store.extra_masks[index]])
        assert np.array_equal(stored, masks)


@pytest.mark.slow
def test_threads_and_processes_do_not_matter(made_faces, tmp_path, monkeypatch):
    """PNGs go to processes, JPEGs to DALI, in a folder of both."""
    for path in (made_faces / "b").iterdir():
        shutil.copy(path, tmp_path / path.name)
    for name in ("0002", "0005"):
        picture = cv2.imread(str(tmp_path / f"{name}.png"))
        (tmp_path / f"{name}.png").unlink()
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), picture)
    stores = [_filled(tmp_path, _spec(48), threads=threads)[1] for threads in (1, 3)]
    monkeypatch.setattr(system, "PROCESSES_FROM", 2)
    stores.append(_filled(tmp_path, _spec(48), threads=2)[1])
    assert stores[0].faces[2].std() > 10 and len(stores[0]) == 9
    for other in stores[1:]:
        assert np.array_equal(stores[0].faces, other.faces) and np.array_equal(stores[0].extra_masks, other.extra_masks)


def test_a_face_mask_from_the_file_beside_the_picture(made_faces):
    _, store = _filled(made_faces / "a", _spec(mask_type="file"))
    _, drawn = _filled(made_faces / "a", _spec())
    inside, outside = store.faces[..., 3] > 128, drawn.faces[..., 3] > 128
    overlap = (inside & outside).sum() / (inside | outside).sum()
    assert 0.6 < overlap < 0.999, "about the same region, and not the same mask"


def test_masks_follow_from_the_config():
    assert needed_masks(TrainConfig()) == MASK_NAMES
    off = TrainConfig.from_dict({"mask": {"mask_type": "none"}})
    assert needed_masks(off) == ()
    plain = TrainConfig.from_dict({"loss": {"eye_multiplier": 1, "mouth_multiplier": 1}})
    assert needed_masks(plain) == ("face",)
    with pytest.raises(SwapfastError, match="--learn-mask"):
        needed_masks(TrainConfig.from_dict({"mask": {"mask_type": "none"}, "loss": {"learn_mask": True}}))


def _read(path, skip_bad, mask_type="extended", cache=None, where="memory"):
    return make_train_set(
        "A", scan_side(path, mask_type, skip_bad), _spec(mask_type=mask_type), where, cache, skip_bad, 0.0
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["memory", "host"])
def test_a_picture_that_does_not_decode_is_named_or_left_out(damaged, tmp_path, where):
    """Also when it was found the last time and nothing is decoded any more."""
    for _ in range(2):
        with pytest.raises(SwapfastError, match=r"1 of 14 .*\n\s+0003.png: "):
            _read(damaged, skip_bad=False, cache=tmp_path / "cache", where=where)
    for _ in range(2):
        side = _read(damaged, skip_bad=True, cache=tmp_path / "cache", where=where)
        records = side.source.folder.records
        assert len(side) == 13 and [bad.path.name for bad in side.source.folder.bad] == ["0003.png"]
        assert "0003.png" not in [record.path.name for record in records] and len(records) == 13
        for index in range(13):
            expected = crop_face(records[index], read_image(records[index].path), CropConfig(), 64)
            assert np.array_equal(side[index][0][..., :3], expected), "the others have moved up in order"


def test_a_mask_that_no_face_has(made_faces):
    with pytest.raises(SwapfastError, match=r"0000.png: no mask 'bisenet-fp_face'"):
        scan_side(made_faces / "a", "bisenet-fp_face", skip_bad=True)


def test_a_face_without_its_mask_and_one_with_a_broken_mask(made_faces, tmp_path):
    """Both are named before anything is decoded, and both can be left out."""
    for path in (made_faces / "a").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "0002_mask.png").unlink()
    described = json.loads((tmp_path / "0002.json").read_text())
    del described["mask"]
    (tmp_path / "0002.json").write_text(json.dumps(described))
    broken = tmp_path / "0005_mask.png"
    broken.write_bytes(broken.read_bytes()[:-60] + bytes(60))
    with pytest.raises(SwapfastError, match=r"2 of 14 .*\n  0002.png: no mask 'file' .*\n  0005.png: its mask "):
        scan_side(tmp_path, "file", skip_bad=False)
    side = _read(tmp_path, True, "file")
    assert {bad.path.name for bad in side.source.folder.bad} == {"0002.png", "0005.png"} and len(side) == 12
    assert len(_read(tmp_path, True)) == 14, "a drawn mask needs no file, so none is judged"
