"""One side's faces and several sides together: faceswap's labels, orders and items, and what is held out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipelines.dataset import (
    MultiDataset,
    TrainSet,
    get_label,
    get_sorted_images,
    held_out_mask,
    only_tested,
    open_source,
    split_validation,
    without_tested,
)
from pipelines.preview import PreviewSet
from pipelines.store import HostStore, StoreSpec
from swapfast.augment.result import Augmented, to_float
from swapfast.batch import MASK_NAMES
from swapfast.config import CropConfig, MaskConfig
from swapfast.errors import SwapfastError
from swapfast.faces.crop import crop_landmarks, crop_window
from swapfast.faces.image import read_image
from swapfast.faces.masks import DRAWN_TYPES
from swapfast.points import transform_points
from tests.faces.face_samples import (
    a_face,
    a_payload,
    a_picture,
    a_stored_mask,
    corrected,
    drawn_mask,
    exact_window,
    peer_matrix,
    write_head,
    write_plain,
)

EDGE_LEVELS = 2  # DESIGN.md section 2: masks differ by at most 2 levels, at their edges


def worst(a, b) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


# --- labels and orders ------------------------------------------------------------------------------------


@pytest.mark.golden
def test_labels_are_the_peers(golden):
    tables = json.loads((golden.folder / "get_label.json").read_text())
    checked = 0
    for name, expected in tables.items():
        count, _, following = name.partition("_")
        if isinstance(expected, str):
            assert "raises" in expected
            with pytest.raises(ValueError, match="63 identities"):
                get_label(0, int(count))
            continue
        ours = [get_label(i, int(count), next_identity=following == "next") for i in range(len(expected))]
        assert ours == expected, name
        checked += len(expected)
    assert checked > 150


def test_labels_of_no_identity_are_refused():
    for count in (0, -1, 63):
        with pytest.raises(ValueError, match="1 to 62"):
            get_label(0, count)
    assert get_label(0, 1) == get_label(0, 1, next_identity=True) == "A"


class Recorded:
    """numpy.random.permutation's results, given out as the peer asked for them: per epoch, set after set."""

    def __init__(self, calls: list[np.ndarray], counts: list[int], epochs: int) -> None:
        calls, left = list(calls), [0] * len(counts)
        self.of_side: list[list[np.ndarray]] = [[] for _ in counts]
        for _ in range(epochs):
            for side, count in enumerate(counts):
                while left[side] < max(counts):
                    self.of_side[side].append(calls.pop(0))
                    left[side] += count
                left[side] -= max(counts)
        assert not calls

    def __call__(self, side: int, epoch: int, faces: int) -> np.ndarray:
        assert len(self.of_side[side][epoch]) == faces
        return self.of_side[side][epoch]


@pytest.mark.golden
def test_the_order_of_several_sets_is_the_peers(golden):
    g = golden("multidataset")
    names = [name.removeprefix("lens_") for name in g.files if name.startswith("lens_")]
    assert {"eq", "ab", "ba"} <= set(names)
    for name in names:
        counts, expected = g[f"lens_{name}"].tolist(), g[f"indices_{name}"]
        calls = [g[f"perm_{name}_{i}"] for i in range(len([f for f in g.files if f.startswith(f"perm_{name}_")]))]
        sets = [range(count) for count in counts]
        several = MultiDataset(sets, permutation=Recorded(calls, counts, len(expected)))
        assert len(several) == expected.shape[2]
        for epoch, table in enumerate(expected):
            assert np.array_equal(several.indices(epoch), table), (name, epoch)
            assert [several[i] for i in range(len(several))] == [tuple(column) for column in table.T.tolist()]
            several.shuffle()


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(10, 4), (3, 11), (6, 6), (1, 7), (25, 24)])
def test_no_face_of_the_short_side_is_left_out(counts):
    """Epochs one after another are whole permutations, of each set for itself; a new order every time."""
    several = MultiDataset([range(count) for count in counts], seed=3)
    epochs = 6 * min(counts)
    seen = np.concatenate([several.indices(epoch) for epoch in range(epochs)], axis=1)
    for side, count in enumerate(counts):
        assert seen.shape[1] % count == 0
        rounds = seen[side].reshape(-1, count)
        assert (np.sort(rounds, axis=1) == np.arange(count)).all()
        assert count < 6 or len({tuple(one) for one in rounds}) > len(rounds) - 2
    items = []
    for _ in range(epochs):
        items += [several[i] for i in range(len(several))]
        several.shuffle()
    assert np.array_equal(np.array(items).T, seen), "what is given is what was announced"


def test_without_chance_short_sets_begin_again():
    several = MultiDataset([range(3), range(7)], is_random=False)
    expected = [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4), (2, 5), (0, 6)]
    for _ in range(2):
        assert [several[i] for i in range(len(several))] == expected
        assert np.array_equal(several.indices(several.epoch).T, expected)
        several.shuffle()
    for beyond in (7, -1):
        with pytest.raises(IndexError):
            several[beyond]


def test_another_seed_is_another_order():
    one, again, other = (MultiDataset([range(20), range(9)], seed=seed).indices(2) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


# --- items ------------------------------------------------------------------------------------------------

ITEMS = {  # tag of dataset_items -> what it was made with
    "default": (CropConfig(), MaskConfig(), MASK_NAMES),
    "bisenet": (CropConfig(), MaskConfig(mask_type="bisenet-fp_face"), MASK_NAMES),
    "cov875_off5": (CropConfig(coverage=87.5, vertical_offset=5.0), MaskConfig(), MASK_NAMES),
    "head": (CropConfig(centering="head"), MaskConfig(mask_type="bisenet-fp_head"), MASK_NAMES),
    "nomask": (CropConfig(), MaskConfig(mask_type="none"), ()),
    "dil2_components": (CropConfig(), MaskConfig(mask_type="components", dilation=2.0), MASK_NAMES),
}


@pytest.mark.slow
@pytest.mark.golden
def test_training_items_are_the_peers(golden, within):
    """Where its patch is black because the window leaves the head, ours repeats the border."""
    g, seen = golden("dataset_items"), set()
    wanted = [name for name in g.files if not name.startswith("preview")]
    for name in wanted:
        tag, size, index = name.rsplit("_", 2)
        crop, mask, masks = ITEMS[tag]
        faces = TrainSet.from_folder("A", golden.folder / "faces", int(size), crop, mask, masks)
        assert len(faces) == 6
        ours, number = faces[int(index[1:])]
        assert number == int(index[1:]) and ours.dtype == np.uint8 and ours.shape == g[name].shape
        record = faces.source.folder.records[number]
        expected = corrected(g[name][..., :3], read_image(record.path), crop_window(record, crop))
        within(f"{name}: image, levels", worst(ours[..., :3], expected), 1)
        for channel, mask_name in enumerate(masks, start=3):
            plane = ours[..., channel]
            if mask_name != "face" or mask.mask_type in DRAWN_TYPES:  # the peer draws them beside the pixels
                theirs = transform_points(peer_matrix(record, crop, int(size)), record.landmarks)
                np.testing.assert_array_equal(
                    plane, drawn_mask(crop_landmarks(record, crop, int(size)), mask, int(size), mask_name)
                )
                plane = drawn_mask(theirs, mask, int(size), mask_name)
            within(f"{name}: {mask_name}, levels", worst(plane, g[name][..., channel]), EDGE_LEVELS)
        seen.add(tag)
    assert seen == ITEMS.keys()


@pytest.mark.golden
@pytest.mark.parametrize("tag", ["preview", "preview_cov875"])
def test_preview_items_are_the_peers(golden, within, tag):
    g = golden("dataset_items")
    manifest = json.loads((golden.folder / "manifest.json").read_text())
    told = manifest["files"]["dataset_items.npz"]["params"]["mask channel order / config"][tag]
    config = told["config"]
    faces = PreviewSet(
        "A",
        open_source(golden.folder / "faces"),
        told["input"],
        told["output"],
        told["order"],
        crop=CropConfig(
            centering=config["top__centering"],
            coverage=config["top__coverage"],
            vertical_offset=config["top__vertical_offset"],
        ),
        mask=MaskConfig(mask_type=config["mask_type"]),
    )
    assert faces.full_size == told["full_size"]
    feed, target = faces[0]
    assert feed.dtype == target.dtype == np.float32
    theirs = g[f"{tag}_feed"]
    ours = 255 * feed.transpose(1, 2, 0)
    assert ours.shape == theirs.shape and (255 * target).shape == g[f"{tag}_target"].shape
    within(f"{tag}: feed, levels", worst(ours, theirs), 1.001)
    # The peer hands the target on in the model's order; ours is BGR whatever the model wants, as the sheet is.
    theirs = g[f"{tag}_target"]
    face = theirs[..., 2::-1] if told["order"] == "rgb" else theirs[..., :3]
    record = faces.source.folder.records[0]
    picture, size = read_image(record.path), faces.full_size
    # What lies around the crop has the crop's scale in ours; the peer cuts it along other whole pixels.
    x0, y0, edge = crop_window(record, faces.crop)
    part, middle = edge * size / told["output"], (x0 + edge / 2, y0 + edge / 2)
    full = crop_window(record, dataclasses.replace(faces.crop, coverage=100.0))
    assert abs(full[2] - part) < 1
    within(f"{tag}: the peer's target, levels", worst(face, exact_window(picture, *full, size)), 1.001)
    expected = exact_window(picture, middle[0] - part / 2, middle[1] - part / 2, part, size)
    within(
        f"{tag}: target, levels", worst(255 * target[..., :3], expected), 1.001 if full[2] == part else 6
    )  # see test_crop
    if faces.mask.mask_type in DRAWN_TYPES:
        points = transform_points(peer_matrix(record, faces.crop, size), record.landmarks)
        within(f"{tag}: mask, levels", worst(drawn_mask(points, faces.mask, size, "face"), theirs[..., 3]), EDGE_LEVELS)
        drawn = drawn_mask(crop_landmarks(record, faces.crop, size), faces.mask, size, "face")
        np.testing.assert_array_equal(np.rint(255 * target[..., 3]), drawn)
    else:
        scale = full[2] / part
        to_ours = np.array([[scale, 0, (1 - scale) * (size - 1) / 2], [0, scale, (1 - scale) * (size - 1) / 2]])
        moved = cv2.warpAffine(theirs[..., 3], to_ours, (size, size), flags=cv2.INTER_CUBIC)
        within(f"{tag}: mask, levels", worst(255 * target[..., 3], moved), 8)


@pytest.mark.parametrize("counts", [(25, 24), (30, 7)])
def test_several_sets_are_shuffled_at_each_end(counts):
    """Without a call of ``shuffle``: pass after pass is the next epoch, and a call in between begins one early."""
    several, expected = (MultiDataset([range(count) for count in counts], seed=5) for _ in range(2))
    passes = [np.array(list(several)).T for _ in range(3)]
    for epoch, items in enumerate(passes):
        assert np.array_equal(items, expected.indices(epoch))
    assert not np.array_equal(passes[0], passes[1]) and not np.array_equal(passes[1], passes[2])
    several.shuffle()
    assert several[0] == tuple(expected.indices(3)[:, 0])
    several.shuffle()
    assert np.array_equal(np.array(list(several)).T, expected.indices(4))
    still = MultiDataset([range(count) for count in counts], is_random=False)
    assert list(still) == list(still) and [item[0] for item in still] == list(range(counts[0]))


def test_a_folder_of_pictures_becomes_a_set(made_faces):
    faces = TrainSet.from_folder("A", str(made_faces / "a"), 48)
    assert len(faces) == 14 and faces.side == "A"
    item, index = faces[5]
    assert item.shape == (48, 48, 6) and index == 5
    pixels, extra_masks = faces.take(np.array([5, 5, 0]))
    assert np.array_equal(pixels[0], item[..., :4]) and np.array_equal(extra_masks[1], item[..., 4:].transpose(2, 0, 1))
    assert np.array_equal(pixels[2], faces[0][0][..., :4])
    for beyond in (14, -1):
        with pytest.raises(IndexError):
            faces[beyond]
    bare, _ = TrainSet.from_folder("A", made_faces / "a", 48, masks=("eye",))[5]
    assert np.array_equal(bare, np.concatenate([item[..., :3], item[..., 4:5]], axis=-1))


def test_sets_side_by_side_give_items_of_each(made_faces):
    a, b = (TrainSet.from_folder(side.upper(), made_faces / side, 32) for side in "ab")
    several = MultiDataset([a, b], seed=5)
    for i in (0, 9, 13):
        (one, index_a), (two, index_b) = several[i]
        assert (index_a, index_b) == tuple(several.indices(0)[:, i])
        assert np.array_equal(one, a[index_a][0]) and np.array_equal(two, b[index_b][0])


def test_bad_files_are_listed(made_faces, damaged):
    with pytest.raises(SwapfastError, match=r"1 of 14 files cannot be used(.|\n)*0003.png: pixels"):
        TrainSet.from_folder("A", damaged, 48)
    (damaged / "0004.png").write_bytes(b"")
    with pytest.raises(SwapfastError, match=r"0004.png: empty"):
        TrainSet.from_folder("A", damaged, 48)


def test_rows_say_where_in_the_store_a_face_lies(made_faces):
    """As where some of the stored faces turned out bad."""
    whole = TrainSet.from_folder("A", made_faces / "a", 32)
    some = np.array([3, 0, 12])
    source = dataclasses.replace(
        whole.source,
        folder=dataclasses.replace(whole.source.folder, records=whole.source.folder.records.select(some)),
    )
    faces = TrainSet.from_source("A", source, whole.spec, whole.store, some)
    assert len(faces) == 3 and [np.array_equal(faces[i][0], whole[j][0]) for i, j in enumerate(some)] == [True] * 3


# --- names ------------------------------------------------------------------------------------------------


def test_pictures_are_sorted_by_name(tmp_path):
    for name in ("b.png", "B.PNG", "10.jpg", "9.jpeg", "a.JPG", "ä.png"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("notes.txt", "a.json", ".hidden.png", "x.webp", "png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    expected = [str(tmp_path / name) for name in ("10.jpg", "9.jpeg", "B.PNG", "a.JPG", "b.png", "ä.png")]
    assert get_sorted_images(tmp_path) == get_sorted_images(str(tmp_path)) == expected


def test_no_pictures_are_an_error(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"x")
    for place, phrase in ((tmp_path, "no PNG or JPEG"), (tmp_path / "gone", "cannot be read")):
        with pytest.raises(SwapfastError, match=phrase) as caught:
            get_sorted_images(place)
        assert str(place) in str(caught.value)


# --- held out ---------------------------------------------------------------------------------------------


def small_set(folder: Path, share: float = 0.0) -> TrainSet:
    """With a store of which nothing is read: which faces are where is all that is asked."""
    source, spec = open_source(folder), StoreSpec(16, CropConfig(), MaskConfig(), ())
    return TrainSet.from_source("A", source, spec, HostStore.in_memory(spec, len(source)), share=share)


def held_names(faces: TrainSet) -> tuple[set[str], set[str]]:
    """Names of the faces to train on, and of those held out."""
    records = faces.source.folder.records
    return tuple({records.name(int(i)) for i in part} for part in (faces.members, faces.validation_members))


@pytest.fixture(scope="module")
def faces_240(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for index in range(180):
        write_head(folder / f"{index:03}.png", edge=20, seed=index)
    for index in range(60):
        suffix = "jpg" if index % 2 else "png"
        write_plain(folder / f"plain{index:03}.{suffix}", a_picture(40, 40, index), a_face(16, (10, 10)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_share_held_out_is_that_asked_for(faces_240, share):
    """Within 4.5 standard deviations of a binomial."""
    faces = small_set(faces_240, share)
    count = len(faces.validation)
    assert abs(count - 240 * share) < 4.5 * np.sqrt(240 * share * (1 - share))
    train, held = held_names(faces)
    assert len(faces) == len(train) == 240 - count and not train & held
    assert train | held == {path.name for path in faces_240.iterdir() if path.suffix != ".json"}
    assert sorted([*faces.rows, *faces.validation]) == list(range(240)), "each has its place in the store"
    assert np.array_equal(faces.rows, faces.members) and np.array_equal(faces.validation, faces.validation_members)


@pytest.mark.slow
def test_a_larger_share_holds_out_the_same_and_more(faces_240):
    held = [held_names(small_set(faces_240, share))[1] for share in (0.1, 0.3, 0.5)]
    assert held[0] < held[1] < held[2]
    assert held_names(small_set(faces_240))[1] == set()


def test_no_share_is_more_likely_than_another():
    """Of many digests, between the shares too: chi-square of 20 parts, 99.9 % quantile 43.8."""
    pixels = np.random.default_rng(1).integers(0, 256, (20_000, 8), np.uint8)
    shares = np.linspace(0, 1, 21)[1:]
    counts = np.diff([0, *(held_out_mask(pixels, share).sum() for share in shares)])
    assert counts.sum() == 20_000 and ((counts - 1000) ** 2 / 1000).sum() < 43.8
    assert not held_out_mask(pixels, 0).any() and held_out_mask(pixels, 1).all() and held_out_mask(pixels, 2).all()
    edges = np.array([[0] * 8, [255] * 8, [128] + [0] * 7, [127] + [255] * 7], np.uint8)
    assert held_out_mask(edges, 0.5).tolist() == [True, False, False, True]


@pytest.mark.long
@pytest.mark.parametrize("validation", [0.0, 0.1, 0.4])
def test_the_share_for_the_test_is_disjoint_and_does_not_depend_on_the_others(faces_240, validation):
    """80/10/10 and others: training, validation and test are all of the faces, each once."""
    whole = open_source(faces_240)
    source, tested = without_tested(whole, 0.1), only_tested(whole, 0.1)
    assert source.tested == len(tested) and len(source) + len(tested) == 240 and 8 <= len(tested) <= 45
    train, held = split_validation(source, validation) if validation else (np.arange(len(source)), np.array([], int))
    names = [
        {source.folder.records.name(int(i)) for i in train},
        {source.folder.records.name(int(i)) for i in held},
        {tested.folder.records.name(i) for i in range(len(tested))},
    ]
    assert sum(map(len, names)) == len(set.union(*names)) == 240
    alone = held_names(small_set(faces_240, validation))[1]
    assert alone - names[2] == names[1], "the validation faces are those of a run without a test"
    larger = only_tested(whole, 0.3)
    assert names[2] < {larger.folder.records.name(i) for i in range(len(larger))}


@pytest.mark.slow
def test_a_share_for_the_test_that_leaves_nothing_is_an_error(faces_240, tmp_path):
    whole = open_source(faces_240)
    with pytest.raises(SwapfastError, match=r"--test 1e-06: of the 240 faces of .* leaves nothing to test with"):
        without_tested(whole, 1e-6)
    names = [whole.folder.records.name(int(i)) for i in np.flatnonzero(held_out_mask_of(whole, 0.5))]
    shutil.copy(faces_240 / next(name for name in names if name.startswith(("0", "1"))), tmp_path / "one.png")
    with pytest.raises(SwapfastError, match=r"--test: none of the 1 faces of .* belongs to the share 0.1"):
        only_tested(open_source(tmp_path), 0.1)


def held_out_mask_of(source, share: float) -> np.ndarray:
    return held_out_mask(source.folder.records.column("pixels"), share)


@pytest.mark.slow
def test_the_same_picture_is_always_on_the_same_side(faces_240, tmp_path):
    """In another folder, under another name, in another order, with a new mask or other landmarks in its header."""
    _, held = held_names(small_set(faces_240, 0.3))
    moved, wanted = tmp_path / "moved", set()
    moved.mkdir()
    payload = a_payload(a_face(degrees=4), components=a_stored_mask(32, "face", 5))
    for index in range(60):
        name = f"{179 - index:03}.png"
        new = moved / f"{index:04}_renamed.png"
        if index % 2:
            write_head(new, edge=20, payload=payload, seed=179 - index)
            assert new.read_bytes() != (faces_240 / name).read_bytes()
        else:
            shutil.copy(faces_240 / name, new)
        wanted |= {new.name} if name in held else set()
    for index in range(60):
        path = next(faces_240.glob(f"plain{index:03}.[pj][np]g"))
        new = moved / f"another{59 - index}{path.suffix}"
        shutil.copy(path, new)
        new.with_suffix(".json").write_text(json.dumps({"landmarks": (a_face(15, (11, 10))).tolist()}))
        cv2.imwrite(str(new.with_name(f"{new.stem}_mask.png")), np.zeros((40, 40), np.uint8))
        wanted |= {new.name} if path.name in held else set()
    train, now = held_names(small_set(moved, 0.3))
    assert now == wanted and len(train) == 120 - len(wanted) and 10 < len(now) < 65


def test_items_are_those_that_are_not_held_out(made_faces):
    whole = TrainSet.from_folder("A", made_faces / "a", 32)
    part = TrainSet.from_source("A", whole.source, whole.spec, whole.store, share=0.4)
    assert len(part.validation) > 0 and len(part) + len(part.validation) == 14
    for index, member in enumerate(part.members):
        item, number = part[index]
        assert number == index and np.array_equal(item, whole[int(member)][0])
    with pytest.raises(IndexError):
        part[len(part)]


@pytest.mark.slow
def test_nothing_left_is_an_error_that_names_the_flag(faces_240, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    _, held = held_names(small_set(faces_240, 0.5))
    heads = sorted(name for name in held if not name.startswith("plain"))[:3]
    for name in heads:
        shutil.copy(faces_240 / name, one)
    with pytest.raises(
        SwapfastError, match=r"--validation 0.5: of the 3 faces of .*one .*nothing to train on"
    ) as caught:
        small_set(one, 0.5)
    assert caught.value.code == 2
    with pytest.raises(SwapfastError, match=r"--validation 1e-09: .*nothing to validate with"):
        small_set(one, 1e-9)
    assert len(small_set(one, 0)) == 3


# --- bytes to floats --------------------------------------------------------------------------------------


def test_floats_are_exactly_bytes_over_255(device):
    """On the CPU; a GPU may round the last bit another way."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    for form in (torch.contiguous_format, torch.channels_last):
        given = pixels.to(device).contiguous(memory_format=form)
        made = to_float(given)
        assert made.dtype == torch.float32 and made.device == given.device and made.stride() == given.stride()
        exact = pixels.numpy().astype(np.float32) / np.float32(255)
        assert np.abs(made.cpu().numpy() - exact).max() <= (0 if device.type == "cpu" else 1e-7)
        assert torch.equal(given.cpu(), pixels), "the bytes stay"
        assert to_float(made) is made
    part = pixels.permute(0, 2, 3, 1)[:, ::2]
    assert np.array_equal(to_float(part).numpy(), part.numpy().astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("masks", [True, False])
def test_an_augmented_batch_becomes_floats_as_a_whole(masks):
    def some(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    masks_per_size = [some(2, 3, 4, 4), some(2, 3, 8, 8)] if masks else None
    given = Augmented(feed=some(2, 3, 8, 8), targets=[some(2, 3, 4, 4), some(2, 3, 8, 8)], masks=masks_per_size)
    made = given.to_float()
    pairs = [(made.feed, given.feed), *zip(made.targets, given.targets), *zip(made.masks or [], given.masks or [])]
    assert len(pairs) == (5 if masks else 3) and (made.masks is None) == (not masks)
    for ours, pixels in pairs:
        assert torch.equal(ours, pixels.float() / 255)
