"""Whole batches from faceswap's recorded draws: its numbers where it is right, the corrected ones where it is not."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from pipelines.collate import Collate
from pipelines.run.build import make_augmenter
from swapfast.augment.device import clahe, color
from swapfast.augment.device.augmenter import Amounts, packed_amounts
from swapfast.augment.draws import Draws
from swapfast.batch import MASK_NAMES
from tests.augment.slow_references import bilinear, coarse_grid_levels, jittered, node_positions, psnr

CASES = {  # of collate_full: feed px, output px in the order of the arrays, colour order
    "default64": (64, (64,), "bgr"),
    "rgb_multi": (64, (32, 64, 128), "rgb"),
    "nowarp": (64, (64,), "bgr"),
    "nocolor_noflip": (96, (96,), "bgr"),
    "wtl": (64, (64,), "bgr"),
}
# Warped to landmarks, and the file does not tell which: its feed can be compared with nothing. Targets and masks are
# made without them.
NO_LANDMARKS = {"wtl"}


# --- the peer's way, with its defects and without ---------------------------------------------------------


def recorded_draws(g, case: str) -> Draws:
    """In the order of the manifest: lab, clahe, grid; rotation, scale, shift; flip; warp. What is off is not there.

    Of a warp to landmarks, which has the choice of the pairs before all that, the feed alone makes use.
    """
    recorded = [g[name] for name in g.files if name.startswith(f"{case}_draw")]
    if case in NO_LANDMARKS:
        _pairs_a, _pairs_b, *recorded, _noise = recorded
    size, n = g[f"{case}_data"].shape[2], 4
    amounts = {}
    if "nocolor" not in case:
        lab, rand, steps, *recorded = recorded
        base = max(2, size // 128)
        grids = np.zeros(n, np.int64)
        grids[rand < 0.5] = base + steps.astype(np.int64) * (base // 2)
        amounts |= {"lab": lab.reshape(n, 3), "clahe_grid": grids}
    rotation, scale, shift, *recorded = recorded
    amounts |= {"rotation": rotation, "scale": scale, "shift": shift}
    if "noflip" not in case:
        rand, *recorded = recorded
        amounts["flip"] = rand <= 0.5
    if "nowarp" not in case and case not in NO_LANDMARKS:
        amounts["warp"] = recorded.pop()
    assert not recorded
    return dataclasses.replace(Draws.identity(n, size), **amounts)


def peers_color(bgr: np.ndarray, d: Draws, right: bool) -> np.ndarray:
    """right: jitter is rounded, and not cut off."""
    if not d.lab.any() and not d.clahe_grid.any():
        return bgr
    result = np.empty_like(bgr)
    for i, image in enumerate(bgr):
        lab = jittered(cv2.cvtColor(image, cv2.COLOR_BGR2LAB)[None], d.lab[i : i + 1].astype(np.float32))[0]
        lab = (np.rint(lab) if right else lab).astype(np.uint8)
        if grid := int(d.clahe_grid[i]):
            lab[..., 0] = cv2.createCLAHE(2.0, (grid, grid)).apply(np.ascontiguousarray(lab[..., 0]))
        result[i] = cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)
    return result


def peers_move(images: np.ndarray, d: Draws, together: bool) -> np.ndarray:
    """together: all channels in one go, on OpenCV's coarse grid, and not three at a time."""
    size, step = d.size, images.shape[-1] if together else 3
    moved = np.empty_like(images)
    for i, (image, matrix) in enumerate(zip(images, d.forward()[:, :2].astype(np.float32))):
        for first in range(0, images.shape[-1], step):
            part = np.ascontiguousarray(image[..., first : first + step])
            moved[i, ..., first : first + step] = cv2.warpAffine(
                part, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
    return np.where(d.flip[:, None, None, None], moved[:, :, ::-1], moved)


def peers_warp(targets: np.ndarray, d: Draws, right: bool) -> np.ndarray:
    """right: the map half a pixel less, the edge repeated and not black."""
    padded = int(1.25 * d.size)
    cut = padded // 10
    border = cv2.BORDER_REPLICATE if right else cv2.BORDER_CONSTANT
    line = np.linspace(0, d.size, 5)
    result = np.empty_like(targets)
    for i, offsets in enumerate(d.warp):
        nodes = [grid + offset for grid, offset in zip(np.meshgrid(line, line), offsets)]
        maps = [cv2.resize(node.astype(np.float32), (padded, padded))[cut:-cut, cut:-cut] for node in nodes]
        x, y = (m - np.float32(0.5 if right else 0) for m in maps)
        result[i] = cv2.remap(targets[i], x, y, cv2.INTER_LINEAR, borderMode=border)
    return result


def area(images: np.ndarray, size: int) -> np.ndarray:
    """Shrunk as the peer does, three channels at a time."""
    parts = [
        np.stack([cv2.resize(i, (size, size), interpolation=cv2.INTER_AREA) for i in part])
        for part in (np.ascontiguousarray(images[..., :3]), np.ascontiguousarray(images[..., 3:]))
    ]
    return images if images.shape[1] == size else np.concatenate(parts, axis=-1)


def exact_feed(colored: np.ndarray, d: Draws) -> np.ndarray:
    """The face read once, in float64, where movement, flip and warp together point to."""
    y, x = np.mgrid[: d.size, : d.size].astype(np.float64)
    return np.stack(
        [bilinear(face, *node_positions(nodes, x, y, d.size)) for face, nodes in zip(colored, d.control_grid())]
    )


def by_side(batch: torch.Tensor) -> np.ndarray:
    """(B, sides, C, H, W) floats -> (sides * B, H, W, C) levels, as the peer counts them."""
    return 255 * batch.cpu().permute(1, 0, 3, 4, 2).flatten(0, 1).numpy()


def peers_order(batch: np.ndarray) -> np.ndarray:
    """(B, sides, ...) -> (sides * B, ...)."""
    return batch.swapaxes(0, 1).reshape(-1, *batch.shape[2:])


def worst(a, b) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


@pytest.fixture(scope="module", params=CASES)
def case(request, golden):
    g = golden("collate_full")
    assert {name.split("_draw")[0] for name in g.files if "_draw" in name} == CASES.keys()
    return request.param, g


@pytest.fixture(scope="module")
def drawn(case):
    name, g = case
    return recorded_draws(g, name)


def device_color(bgr: np.ndarray, drawn: Draws) -> np.ndarray:
    """(N, S, S, 3) bytes: what LAB in floats makes of them, CLAHE on whole levels; rounded once."""
    images = torch.from_numpy(np.ascontiguousarray(bgr)).permute(0, 3, 1, 2).float() / 255
    amounts = Amounts.unpack(torch.from_numpy(packed_amounts(drawn)))
    adjusted = color.color_adjust(images, *amounts.color, clahe.groups(drawn))
    return (255 * adjusted).round().byte().permute(0, 2, 3, 1).numpy()


# --- golden -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.golden
def test_the_draws_are_read_as_the_peer_meant_them(case, drawn, within):
    """Its steps, defects and all, lead to its numbers: so the corrected ones below differ by the defects alone."""
    name, g = case
    feed_size, sizes, order = CASES[name]
    data = peers_order(g[f"{name}_data"])
    colored = np.concatenate([peers_color(data[..., :3], drawn, right=False), data[..., 3:]], axis=-1)
    moved = peers_move(colored, drawn, together=True)
    turned = moved[..., [2, 1, 0, 3, 4, 5]] if order == "rgb" else moved
    for index, size in enumerate(sizes):
        small = area(turned, size)
        within(f"target {size}, levels", worst(small[..., :3], peers_order(g[f"{name}_target{index}"])), 1)
        for channel, mask in enumerate(MASK_NAMES, 3):
            theirs = peers_order(g[f"{name}_mask_{mask}{index}"])[:, 0]
            within(f"{mask} {size}, levels", worst(small[..., channel], theirs), 1)
    if name in NO_LANDMARKS:
        return
    feed = turned[..., :3] if name == "nowarp" else peers_warp(turned[..., :3], drawn, right=False)
    theirs = np.concatenate([g[f"{name}_feed0"], g[f"{name}_feed1"]])
    within("feed, levels", worst(area(np.concatenate([feed] * 2, -1), feed_size)[..., :3], theirs), 1)


@pytest.fixture(params=["opencv", "kornia"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def batch(case, drawn, backend, device):
    """The whole path: items as a MultiDataset gives them -> Batch."""
    name, g = case
    feed_size, sizes, order = CASES[name]
    collate = Collate(
        make_augmenter(backend, drawn.size, feed_size, sizes, device), backend == "kornia", MASK_NAMES, order, device
    )
    items = [
        tuple((pixels, 10 * side + row) for side, pixels in enumerate(item))
        for row, item in enumerate(g[f"{name}_data"])
    ]
    made = collate(items, drawn)
    assert np.array_equal(made.ids, [[0, 1], [10, 11]])
    return made


@pytest.mark.slow
@pytest.mark.golden
def test_targets_are_the_peers_without_its_bias(case, drawn, batch, backend, within, at_least):
    """Moved exactly and not on a grid of 1/32 px, jitter rounded: 1 level; with LAB in float by dB.

    OpenCV's backend has LAB in float too: to a level what the device makes of the colours, moved exactly.
    """
    name, g = case
    _, sizes, order = CASES[name]
    bgr = peers_order(g[f"{name}_data"])[..., :3]
    moved = peers_move(peers_color(bgr, drawn, right=True), drawn, together=False)
    in_floats = peers_move(device_color(bgr, drawn), drawn, together=False)
    coarse = coarse_grid_levels(bgr)
    for index, size in enumerate(sizes):
        expected = area(np.concatenate([moved] * 2, -1), size)[..., :3]
        ours = by_side(batch.targets[index])
        assert ours.shape == expected.shape
        ours = ours[..., ::-1] if order == "rgb" else ours
        if "nocolor" in name:
            within(f"{backend} {name} target {size}, levels", worst(ours, expected), 1.001)
        else:
            at_least(f"{backend} {name} target {size}, dB", psnr(ours, expected), 43)
        if backend == "opencv":
            expected = area(np.concatenate([in_floats] * 2, -1), size)[..., :3]
            within(f"{backend} {name} target {size} in floats, levels", worst(ours, expected), 1.001)
        theirs = peers_order(g[f"{name}_target{index}"])
        theirs = theirs[..., ::-1] if order == "rgb" else theirs
        if "nocolor" in name:
            within(f"{backend} {name} target {size} against the peer's, levels", worst(ours, theirs), coarse)
        elif backend == "opencv":
            plain = drawn.clahe_grid == 0  # which makes something else of another level
            bias = (ours - theirs)[plain].mean()
            assert plain.any() and 0 < bias < 1.5, "brighter by the half level that the peer cuts off"


@pytest.mark.golden
def test_masks_are_the_peers(case, drawn, batch, backend, within):
    """Six channels in one go take OpenCV's path of 1/32 px there: 5.7 levels in the worst of ten draws.

    Moved exactly they part by 1 level: both round after moving and after shrinking.
    """
    name, g = case
    data = peers_order(g[f"{name}_data"])
    coarse = coarse_grid_levels(data[..., 3:])
    moved = peers_move(data, drawn, together=False)
    for mask in MASK_NAMES:
        for index, ours in enumerate(getattr(batch.meta, f"mask_{mask}")):
            theirs = g[f"{name}_mask_{mask}{index}"]
            assert ours.shape == theirs.shape
            within(
                f"{backend} {name} {mask} {index} against the peer's, levels", worst(255 * ours.cpu(), theirs), coarse
            )
            exact = area(moved, theirs.shape[-1])[..., 3 + MASK_NAMES.index(mask)]
            within(f"{backend} {name} {mask} {index}, levels", worst(by_side(ours)[..., 0], exact), 1.001)


@pytest.mark.slow
@pytest.mark.golden
def test_feeds_are_the_peers_without_its_half_pixel_and_its_black_rim(case, drawn, batch, backend, within, at_least):
    """Against the definition to a level; against the peer's two samplings, corrected, by dB and inside the rim."""
    name, g = case
    if name in NO_LANDMARKS:
        pytest.skip("the file does not tell to which landmarks this case was warped")
    feed_size, _, order = CASES[name]
    ours = np.concatenate([255 * side.cpu().permute(0, 2, 3, 1).numpy() for side in batch.inputs])
    ours = ours[..., ::-1] if order == "rgb" else ours
    bgr = peers_order(g[f"{name}_data"])[..., :3]
    colored = peers_color(bgr, drawn, right=True)
    moved = peers_move(colored, drawn, together=False)
    if name == "nowarp":
        within(f"{backend} {name} feed against target, levels", worst(ours, by_side(batch.targets[0])), 1.001)
    expected, in_floats = (
        area(np.concatenate([np.rint(exact_feed(one, drawn)).astype(np.uint8)] * 2, -1), feed_size)[..., :3]
        for one in (colored, device_color(bgr, drawn))
    )
    if "nocolor" in name:
        within(f"{backend} {name} feed, levels", worst(ours, expected), 1.001)
    else:
        at_least(f"{backend} {name} feed, dB", psnr(ours, expected), 38)
    if backend == "opencv":
        within(f"{backend} {name} feed in floats, levels", worst(ours, in_floats), 1.001)
    twice = area(np.concatenate([peers_warp(moved, drawn, right=True)] * 2, -1), feed_size)[..., :3]
    rim = feed_size // 8
    inner = (slice(None), slice(rim, -rim), slice(rim, -rim))
    at_least(f"{backend} {name} feed against two samplings, dB", psnr(ours[inner], twice[inner]), 30)


# --- what surrounds the augmentation ----------------------------------------------------------------------


def _items(rng, size: int, masks: int, sides: int = 2, rows: int = 3):
    return [
        tuple((rng.integers(0, 256, (size, size, 3 + masks), np.uint8), int(rng.integers(99))) for _ in range(sides))
        for _ in range(rows)
    ]


@pytest.mark.parametrize("masks", [(), ("face",), ("eye",), ("face", "mouth"), ("eye", "mouth"), MASK_NAMES])
def test_any_set_of_masks_finds_its_place(masks, backend, device):
    items = _items(np.random.default_rng(1), 32, len(masks))
    collate = Collate(make_augmenter(backend, 32, 32, (16, 32), device), backend == "kornia", masks, "bgr", device)
    made = collate(items, Draws.identity(6, 32))
    assert [tuple(target.shape) for target in made.targets] == [(3, 2, 3, 16, 16), (3, 2, 3, 32, 32)]
    for row, item in enumerate(items):
        for side, (pixels, index) in enumerate(item):
            assert made.ids[side, row] == index
            assert worst(255 * made.inputs[side][row].cpu().permute(1, 2, 0).numpy(), pixels[..., :3]) < 0.02
            for name in MASK_NAMES:
                masks_per_size = getattr(made.meta, f"mask_{name}")
                if name not in masks:
                    assert masks_per_size is None
                    continue
                ours = 255 * masks_per_size[1][row, side, 0].cpu().numpy()
                assert worst(ours, pixels[..., 3 + masks.index(name)]) < 0.02, name


def test_a_collate_leaves_what_it_is_given_alone(backend, device):
    items = _items(np.random.default_rng(2), 32, 3)
    before = [[pixels.copy() for pixels, _ in item] for item in items]
    collate = Collate(make_augmenter(backend, 32, 32, (32,), device), backend == "kornia", MASK_NAMES, "rgb", device)
    d = dataclasses.replace(Draws.identity(6, 32), lab=np.full((6, 3), 0.3), flip=np.ones(6, bool))
    one, two = collate(items, d), collate(items, d)
    assert all(np.array_equal(a, b) for item, kept in zip(items, before) for (a, _), b in zip(item, kept))
    assert torch.equal(one.targets[0], two.targets[0]) and torch.equal(one.inputs[1], two.inputs[1])


def test_wrong_items_are_refused(backend, device):
    rng = np.random.default_rng(3)
    collate = Collate(make_augmenter(backend, 32, 32, (32,), device), backend == "kornia", MASK_NAMES, "bgr", device)
    with pytest.raises(ValueError):
        collate(_items(rng, 32, 3), Draws.identity(5, 32))
    with pytest.raises(ValueError):
        collate(_items(rng, 48, 3), Draws.identity(6, 48))
