"""The warp to landmarks against the peer's maps, a float64 Delaunay by definition, and as properties."""

from __future__ import annotations

import dataclasses
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from swapfast.augment import landmarks
from swapfast.augment.augmentation import ImageAugmentation
from swapfast.augment.device.augmenter import DeviceAugmenter
from swapfast.augment.device.geometry import control_map
from swapfast.augment.draws import Draws, draw, landmark_noise, with_landmarks
from swapfast.augment.host import geometry as host_geometry
from swapfast.augment.host.augmenter import OpenCVAugmenter
from swapfast.augment.kernels.jit import load_kernels
from swapfast.augment.landmarks import NODES, edge_anchors, landmark_nodes, triangulate
from swapfast.augment.taps import hat_weights
from swapfast.config import AugmentationConfig
from tests.augment.array_versions import offsets_at_nodes, settled
from tests.augment.slow_references import bilinear, pictures, psnr

node_kernels = load_kernels("nodes")
SIZES = (64, 128)  # of the golden file


def filled(nodes: np.ndarray, size: int) -> np.ndarray:
    """(N, K, K, 2) nodes -> (N, size, size, 2) where each px reads."""
    weights = hat_weights(size, nodes.shape[1])
    return np.einsum("ij,njkc,lk->nilc", weights, nodes, weights, optimize=True)


def at_points(nodes: np.ndarray, points: np.ndarray, size: int) -> np.ndarray:
    """(N, P, 2): where px ``points`` (N, P, 2) of each face read."""
    scale = (nodes.shape[1] - 1) / (size - 1)
    return np.stack([bilinear(grid, *(p.T * scale)) for grid, p in zip(nodes, points)])


def lattice(size: int, nodes: int = NODES) -> np.ndarray:
    """(nodes, nodes, 2): each node's own place."""
    return np.stack(np.meshgrid(*[np.linspace(0, size - 1, nodes)] * 2), axis=-1)


def arc(x, y, width, height, start, end, count) -> np.ndarray:
    angle = np.deg2rad(np.linspace(start, end, count))
    return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], axis=-1)


def plain_face() -> np.ndarray:
    """(68, 2) landmarks of a face that looks straight ahead; the image is 0..1."""
    ring = np.arange(6) * 60 - 180
    eyes = [arc(x, 0.4, 0.06, 0.025, a, a, 1) for x in (0.34, 0.66) for a in ring]
    lips = [arc(0.5, 0.72, 0.12, 0.05, 180, 510, 12), arc(0.5, 0.72, 0.08, 0.015, 180, 495, 8)]
    brows = [arc(x, 0.34, 0.1, 0.06, 190, 350, 5) for x in (0.33, 0.67)]
    nose = [np.stack([np.full(4, 0.5), np.linspace(0.4, 0.54, 4)], -1), arc(0.5, 0.56, 0.07, 0.03, 180, 0, 5)]
    return np.concatenate([arc(0.5, 0.4, 0.37, 0.5, 180, 0, 17), *brows, *nose, *eyes, *lips])


PARTS = (17, 22, 27, 36, 42, 48, 68)  # where jaw, brows, nose, eyes and mouth end


def faces_like(n: int, size: int, seed: int, turn: float = 0.0, spread: float = 0.002) -> np.ndarray:
    """(n, 68, 2) float32 px: ``plain_face`` with the whole, its parts and points varied, the points by ``spread``.

    turn: pushes the near cheek of the jaw inward, as in a head that looks to the side.
    """
    rng = np.random.default_rng(seed)
    face = plain_face() + rng.normal(0, spread, (n, 68, 2))
    for first, last in zip((0, *PARTS), PARTS):
        middle = face[:, first:last].mean(axis=1, keepdims=True)
        grown = (face[:, first:last] - middle) * rng.uniform(0.92, 1.08, (n, 1, 2))
        face[:, first:last] = middle + grown + rng.normal(0, 0.005, (n, 1, 2))
    face[:, :17, 0] += turn * np.linspace(1, 0.3, 17)
    face = 0.5 + (face - 0.5) * rng.uniform(0.95, 1.05, (n, 1, 2)) + rng.normal(0, 0.006, (n, 1, 2))
    return (face * (size - 1)).astype(np.float32)


def noise_like(n: int, size: int, seed: int) -> np.ndarray:
    return landmark_noise(seed, np.arange(n), 0) * (2 / 256 * size)


# ---- against the peer ----------------------------------------------------------------------------------------


def put_back(maps: np.ndarray) -> np.ndarray:
    """(N, 2, S, S) maps of the peer, transposed -> (N, S, S, 2) as they were meant, x and y."""
    return np.stack([maps[:, 1].transpose(0, 2, 1), maps[:, 0].transpose(0, 2, 1)], axis=-1).astype(np.float64)


@pytest.fixture(params=["opencv", "kornia"])
def backend(request) -> str:
    return request.param


def maps_of(backend: str, nodes: np.ndarray, size: int, device) -> np.ndarray:
    """(N, size, size, 2) where each px reads, as a backend fills the nodes in."""
    if backend == "kornia":
        return control_map(torch.from_numpy(nodes.astype(np.float32)).to(device), size).cpu().numpy()
    weights = host_geometry.node_weights(size, nodes.shape[1])
    return np.stack([host_geometry.fill_rows(row, weights) for row in host_geometry.node_rows(nodes, weights)])


def feed_of(backend: str, images: np.ndarray, draws: Draws, device) -> np.ndarray:
    """(N, size, size, 3) levels."""
    size = draws.size
    if backend == "kornia":
        result = DeviceAugmenter(size, size, [size])(torch.from_numpy(images).to(device), None, draws)
        return 255 * result.feed.permute(0, 2, 3, 1).cpu().numpy()
    with OpenCVAugmenter(size, size, [size], threads=1) as augment:
        return augment(images, None, draws).feed.permute(0, 2, 3, 1).numpy()


def report(within, name: str, error: np.ndarray, mean: float, p95: float, most: float) -> None:
    error = np.linalg.norm(error, axis=-1)
    within(f"{name}: mean, px", error.mean(), mean)
    within(f"{name}: 95 of 100 below, px", np.percentile(error, 95), p95)
    within(f"{name}: largest, px", error.max(), most)


@pytest.mark.golden
@pytest.mark.parametrize("size", SIZES)
def test_points_kept_are_the_peers_but_for_the_tip_of_a_brow(golden, size):
    g = golden("aug_warp_landmarks")
    theirs = g[f"kept_{size}"]
    ours = landmarks._active_points(g[f"src_{size}"], g[f"dst_{size}"] + g[f"noise_{size}"])
    assert ours[:, 17].all() and not theirs[:, 17].any(), "point 17 is no jaw"
    rest = np.arange(68) != 17
    assert np.array_equal(ours[:, rest], theirs[:, :68][:, rest])
    assert theirs[:, 68:].all()


@pytest.mark.golden
@pytest.mark.parametrize("size", SIZES)
def test_map_is_the_peers_put_back_the_right_way_round(golden, device, within, monkeypatch, backend, size):
    """33 nodes against a map of every px: the tolerances are those measured for the method (mean .16, p95 .70)."""
    g = golden("aug_warp_landmarks")
    inputs = [g[f"{name}_{size}"] for name in ("src", "dst", "noise")]
    theirs = put_back(g[f"map_{size}"])
    assert not g[f"nan_{size}"].any()
    ours, warped = landmark_nodes(*inputs, size)
    assert warped.all()
    report(within, f"{backend} {size} px, ours", maps_of(backend, ours, size, device) - theirs, 0.16, 0.7, 4)
    if backend == "kornia":
        return  # what follows is made on the host, for both
    report(within, f"{size} px, moved by", theirs - lattice(size, size), 1.2, 3.6, 6)

    active = landmarks._active_points
    monkeypatch.setattr(landmarks, "_active_points", lambda *points: active(*points) & (np.arange(68) != 17))
    report(within, f"{size} px, no point 17", filled(landmark_nodes(*inputs, size)[0], size) - theirs, 0.16, 0.7, 4)
    every = landmark_nodes(*inputs, size, nodes=size, settle=False)[0]
    report(within, f"{size} px, every px, no point 17", every - theirs, 1e-4, 1e-4, 1e-3)


@pytest.mark.golden
@pytest.mark.parametrize("size", SIZES)
def test_image_is_the_peers_put_back_the_right_way_round(golden, device, within, at_least, backend, size):
    g = golden("aug_warp_landmarks")
    images = g[f"img_{size}"]
    nodes, _ = landmark_nodes(*(g[f"{name}_{size}"] for name in ("src", "dst", "noise")), size)
    d = dataclasses.replace(Draws.identity(len(images), size), landmark_nodes=nodes)
    feed = feed_of(backend, images, d, device)
    expected = [
        cv2.remap(image, at.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for image, at in zip(images, put_back(g[f"map_{size}"]))
    ]
    name = f"{backend} {size} px: feed"
    at_least(f"{name}, dB", psnr(feed, expected), 30)
    at_least(f"{name} over no warp at all, dB", psnr(feed, expected) - psnr(images, expected), 6)
    own_map = [bilinear(image, at[..., 0], at[..., 1]) for image, at in zip(images, filled(nodes, size))]
    within(f"{name} against its own map, levels", np.abs(feed - own_map).max(), 1 if backend == "opencv" else 0.01)


# ---- against the definition ----------------------------------------------------------------------------------


def delaunay(points: np.ndarray) -> np.ndarray:
    """(T, 3) all triangles with no point inside their circumcircle, by trying all."""
    triples = np.array(list(itertools.combinations(range(len(points)), 3)))
    a, b, c = points[triples].astype(np.float64).transpose(1, 0, 2)
    b, c = b - a, c - a
    cross = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    proper = np.abs(cross) > 1e-9
    triples, a, b, c, cross = triples[proper], a[proper], b[proper], c[proper], cross[proper]
    bb, cc = (b**2).sum(1), (c**2).sum(1)
    centre = np.stack([c[:, 1] * bb - b[:, 1] * cc, b[:, 0] * cc - c[:, 0] * bb], -1) / cross[:, None]
    squared = (centre**2).sum(1)
    centre += a
    empty = np.ones(len(triples), bool)
    for point in points.astype(np.float64):
        empty &= ((centre - point) ** 2).sum(1) >= squared * (1 - 1e-9) - 1e-9
    return triples[empty]


def read_by_definition(origin: np.ndarray, target: np.ndarray, active: np.ndarray, at: np.ndarray, size: int):
    """(M, 2) where px ``at`` (M, 2) of one face read: barycentric in the triangle they lie in; float64 throughout."""
    anchors = edge_anchors(size)
    source, target = (
        np.concatenate([origin[active], anchors]),
        np.concatenate([target[active], anchors]).astype(np.float64),
    )
    result = np.full(at.shape, np.nan)
    for i, j, k in delaunay(target):
        edges = np.stack([target[j] - target[i], target[k] - target[i]], axis=1)
        share = np.linalg.solve(edges, (at - target[i]).T)
        inside = (share >= -1e-9).all(0) & (share.sum(0) <= 1 + 1e-9)
        result[inside] = source[i] + (source[[j, k]] - source[i]).T.dot(share).T[inside]
    return result


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0.0, 0.3])
@pytest.mark.parametrize("size", [48, 100])
def test_nodes_read_where_the_definition_says(within, size, turn):
    """Also for turned heads, whose jaw lies on the face and is left out, and with landmarks outside the image."""
    origin, match = faces_like(5, size, 1, turn), faces_like(5, size, 2, turn)
    origin[3, :, 0] += 0.35 * size
    match[3, :, 0] += 0.35 * size
    noise = noise_like(5, size, 3)
    match[4, 14:17, 0] = size - 1 - np.array([0.01, 0.1, 1])  # close to the rim, which must stay all the same
    noise[4] = 0
    nodes, warped = landmark_nodes(origin, match, noise, size, settle=False)
    assert warped.all()
    active = landmarks._active_points(origin, match + noise)
    assert (match[3] + noise[3]).max() > size and origin[:3].max() < 1.1 * size
    assert active[:, 17:].all() and (active[:, :17].all() if turn == 0 else (~active[:, :17]).any(1).all())
    at = lattice(size).reshape(-1, 2)
    movement = (match + noise).astype(np.float32)
    expected = [read_by_definition(*face, at, size) for face in zip(origin, movement, active)]
    assert np.isfinite(expected).all()
    # Where a noisy landmark nearly meets its neighbour, a node on the edge between takes either side's word.
    error = np.linalg.norm(nodes.reshape(len(origin), -1, 2) - expected, axis=-1)
    within("99.9 of 100 nodes, px", np.percentile(error, 99.9), 1e-4)
    within("all nodes, px", error.max(), 0.05)


def settled_by_the_kernel(grid, positions, offsets, active):
    result = grid.copy()
    counts = active & ((positions >= 0) & (positions <= grid.shape[1] - 1)).all(-1)
    for face, face_grid in enumerate(result):
        node_kernels._settle(positions[face], offsets[face], np.flatnonzero(counts[face]), landmarks.RIDGE, face_grid)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("settle", [settled, settled_by_the_kernel], ids=["arrays", "kernel"])
def test_nodes_settle_where_the_definition_says(within, settle):
    """The sum that is made least, written down in full and solved in float64; points left out count for nothing."""
    rng = np.random.default_rng(1)
    nodes, n = 9, 3
    grid, offsets = rng.normal(size=(n, nodes, nodes, 2)), rng.normal(size=(n, 68, 2))
    places = rng.uniform(-1, nodes, (n, 68, 2))
    places[0, :4] = [[0, 0], [nodes - 1, nodes - 1], [3, 4], [3, 4]]
    active = rng.random((n, 68)) < 0.8
    ours = settle(grid, places, offsets, active)
    assert np.array_equal(ours[:, [0, -1]], grid[:, [0, -1]]) and np.array_equal(ours[:, :, 0], grid[:, :, 0])
    for face in range(n):
        inner_points = active[face] & ((places[face] >= 0) & (places[face] <= nodes - 1)).all(1)
        low = np.minimum(places[face, inner_points].astype(int), nodes - 2)
        up = places[face, inner_points] - low
        shares = np.zeros((inner_points.sum(), nodes, nodes))
        for x, y in itertools.product((0, 1), repeat=2):
            weight = (up[:, 0] if x else 1 - up[:, 0]) * (up[:, 1] if y else 1 - up[:, 1])
            shares[np.arange(inner_points.sum()), low[:, 1] + y, low[:, 0] + x] += weight
        missed = offsets[face, inner_points] - np.einsum("pyx,yxc->pc", shares, grid[face])
        inner = shares[:, 1:-1, 1:-1].reshape(inner_points.sum(), -1)
        least = np.concatenate([inner / np.sqrt(landmarks.RIDGE), np.eye(inner.shape[1])])
        wanted = np.concatenate([missed / np.sqrt(landmarks.RIDGE), np.zeros((inner.shape[1], 2))])
        change = np.linalg.lstsq(least, wanted, rcond=None)[0].reshape(nodes - 2, nodes - 2, 2)
        within("change of the nodes", np.abs(ours[face, 1:-1, 1:-1] - grid[face, 1:-1, 1:-1] - change).max(), 2e-5)


# ---- landmarks land where they should ------------------------------------------------------------------------


def landing(within, name: str, origin, match, size: int, most: float = 0.5) -> None:
    """How far from its place the feed shows a landmark, in the mean over those kept and in the image."""
    for what, noise in (
        ("no noise", np.zeros((len(origin), 68, 2))),
        ("noise", noise_like(len(origin), size, 1)),
    ):
        target = match + noise
        nodes, warped = landmark_nodes(origin, match, noise, size)
        assert warped.all()
        in_view = landmarks._active_points(origin, target) & ((target >= 0) & (target <= size - 1)).all(-1)
        error = np.linalg.norm(at_points(nodes, target, size) - origin, axis=-1)[in_view]
        movement = np.linalg.norm(target - origin, axis=-1)[in_view].mean()
        within(f"{name}: mean px, {what}, moved {movement:.2f}", error.mean(), most)
        every, _ = landmark_nodes(origin, match, noise, size, nodes=4 * size)
        error = np.linalg.norm(at_points(every, target, size) - origin, axis=-1)[in_view]
        within(f"{name}: mean px, {what}, 4 nodes a px", error.mean(), 0.1)


@pytest.mark.golden
@pytest.mark.parametrize("size", SIZES)
def test_golden_landmarks_land(golden, within, size):
    g = golden("aug_warp_landmarks")
    landing(within, f"{size} px", g[f"src_{size}"], g[f"dst_{size}"], size)


@pytest.mark.long
def test_landmarks_of_photographs_land(photographs, within):
    """Of real faces, each warped to the most similar face of another picture."""
    size = 256
    read = [json.loads(path.read_text()) for path in sorted((photographs / "aligned").glob("[ab]/*.json"))]
    faces = np.array([np.array(entry["landmarks"]) * ((size - 1) / (entry["size"] - 1)) for entry in read])[::5]
    assert len(faces) > 20
    far = ((faces[:, None] - faces) ** 2).sum((2, 3)) + np.where(np.eye(len(faces)), np.inf, 0)
    landing(within, f"{size} px", faces, faces[far.argmin(1)], size)


@pytest.mark.slow
def test_ordinary_faces_are_warped_at_the_ends_of_all_settings(photographs):
    """With mouths that are closed, and where the narrowest crop and the largest movement push points outside."""
    size = 256
    read = [json.loads(path.read_text()) for path in sorted((photographs / "aligned").glob("[ab]/*.json"))]
    faces = np.array([np.array(entry["landmarks"]) / (entry["size"] - 1) for entry in read])
    assert sum(len(np.unique(face, axis=0)) < 68 for face in faces) > 40, "doubled points"
    config = AugmentationConfig(rotation_range=25.0, zoom_amount=25.0, shift_range=25.0)
    for narrowed in (1, 1 / 0.625):
        points = np.repeat(((faces - 0.5) * narrowed + 0.5) * (size - 1), 4, axis=0)
        d = draw(1, np.arange(len(points)), 0, size, config)
        origin, match = (d.move_points(p) for p in (points, points[::-1]))
        nodes, warped = landmark_nodes(origin, match, noise_like(len(origin), size, 2), size)
        assert warped.all() and np.isfinite(nodes).all()
        assert narrowed == 1 or (np.maximum(-origin, origin - size + 1).max((1, 2)) > 0.1 * size).mean() > 0.5


@pytest.mark.long
@pytest.mark.parametrize("size", [64, 128, 256])
def test_random_landmarks_land(within, size):
    landing(within, f"{size} px", faces_like(16, size, 5), faces_like(16, size, 6), size)


@pytest.mark.parametrize("size", [288, 384, 512, 576, 768, 1024])
def test_landmarks_of_large_faces_land(within, size):
    """Half a pixel is a smaller part of a larger face, which therefore has more nodes."""
    origin, match, noise = faces_like(8, size, 5), faces_like(8, size, 6), noise_like(8, size, 1)
    nodes, warped = landmark_nodes(origin, match, noise, size)
    assert warped.all()
    target = match + noise
    in_view = landmarks._active_points(origin, target) & ((target >= 0) & (target <= size - 1)).all(-1)
    error = np.linalg.norm(at_points(nodes, target, size) - origin, axis=-1)[in_view]
    within(f"{size} px, {nodes.shape[1]} nodes: mean px", error.mean(), 0.5)


def test_the_step_by_itself_warps_to_landmarks(device):
    """As the API has it: points with the call, and its own noise, whose deviation is a setting."""
    size, config = 64, AugmentationConfig(landmark_deviation=3.0)
    faces = np.random.default_rng(3).integers(0, 256, (2, size, size, 3), np.uint8)
    step = ImageAugmentation(2, size, config)
    origin, match = faces_like(2, size, 5), faces_like(2, size, 6)
    warped = step.warp(faces, True, origin, match)
    assert not np.array_equal(warped, step.warp(faces, True, origin, match)), "the next faces' noise"
    step = ImageAugmentation(2, size, config, draw(0, np.arange(2), 0, size, config))
    assert np.array_equal(warped, step.warp(faces, True, origin, match)), "that of the first"
    nodes, _ = landmark_nodes(origin, match, landmark_noise(0, [0, 1], 0) * 0.03 * size, size)
    draws = dataclasses.replace(Draws.identity(2, size), landmark_nodes=nodes)
    assert np.array_equal(warped, ImageAugmentation(2, size, config, draws).warp(faces))
    assert not np.array_equal(warped, step.warp(faces)) and not np.array_equal(warped, faces)
    on_device = step.warp(torch.from_numpy(faces).to(device), True, origin, match)
    assert np.abs(on_device.cpu().numpy().astype(int) - warped).max() <= 6
    with pytest.raises(ValueError, match="needs batch_src_points and batch_dst_points"):
        step.warp(faces, to_landmarks=True)
    with pytest.raises(ValueError, match=r"match: expected \(2, 68, 2\)"):
        step.warp(faces, True, origin, match[:1])


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [True, False])
def test_a_dot_on_a_landmark_appears_on_the_matchs(within, noisy):
    """Through the whole of OpenCVAugmenter, moved, flipped and warped: found by its centre of mass."""
    size, n = 256, 48
    ordinals = np.arange(n)
    pairs = np.stack([faces_like(n, size, 8), faces_like(n, size, 9)], axis=1)
    plain = draw(6, ordinals, 0, size, AugmentationConfig(color=False, rotation_range=20.0, zoom_amount=10.0))
    which = np.resize([8, 30, 33, 36, 45, 48, 54, 57], n)  # chin, nose, corners of eyes and mouth, lower lip
    origin, match = (plain.move_points(pairs[:, i]) for i in (0, 1))
    if noisy:
        d, warped = with_landmarks(plain, pairs, landmark_noise(6, ordinals, 0))
        match = match + landmark_noise(6, ordinals, 0) * (2 / 256 * size)
    else:
        nodes, warped = landmark_nodes(origin, match, np.zeros((n, 68, 2)), size)
        d = dataclasses.replace(plain, landmark_nodes=nodes)
    assert warped.all() and d.flip.any() and not d.flip.all()
    origin, match = origin[ordinals, which], match[ordinals, which]
    y, x = np.mgrid[:size, :size]
    dots = [255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 2.0**2)) for px, py in pairs[ordinals, 0, which]]
    faces = np.repeat(np.rint(dots).astype(np.uint8)[..., None], 3, axis=-1)
    with OpenCVAugmenter(size, size, [size]) as augment:
        result = augment(faces, None, d)

    def centres(images) -> np.ndarray:
        mass = images[:, 0].double().numpy()
        total = mass.sum((1, 2))
        return np.stack([(mass * x).sum((1, 2)) / total, (mass * y).sum((1, 2)) / total], -1)

    within("target, largest, px", np.linalg.norm(centres(result.targets[0]) - origin, axis=1).max(), 0.05)
    error = np.linalg.norm(centres(result.feed) - match, axis=1)
    movement = np.linalg.norm(origin - match, axis=1).mean()
    assert movement > 3
    within(f"feed, mean px, moved {movement:.1f}", error.mean(), 1.5 if noisy else 1.0)


# ---- properties ----------------------------------------------------------------------------------------------


def test_a_face_that_is_its_own_match_does_not_move_by_a_bit():
    for size in (32, 65, 100, 128):
        origin = faces_like(5, size, 1)
        nodes, warped = landmark_nodes(origin, origin, np.zeros((5, 68, 2)), size)
        assert warped.all()
        assert np.array_equal(nodes, np.broadcast_to(lattice(size), nodes.shape))
        d = dataclasses.replace(Draws.identity(5, size), landmark_nodes=nodes)
        images = pictures(5, size)
        with OpenCVAugmenter(size, size, [size], threads=1) as augment:
            assert np.array_equal(augment(images, None, d).feed.permute(0, 2, 3, 1), images)


def test_the_rim_stays_where_it_is(within):
    size = 128
    nodes, warped = landmark_nodes(faces_like(16, size, 1), faces_like(16, size, 2), noise_like(16, size, 3), size)
    movement = np.abs(nodes - lattice(size))
    assert warped.all() and movement.max() > 3
    for rim in (movement[:, 0], movement[:, -1], movement[:, :, 0], movement[:, :, -1]):
        within("the rim, px", rim.max(), 0)


def spoilt(origin: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Landmarks (68, 2) of faces that cannot be warped, by what is wrong with them."""
    line = np.stack([np.linspace(5, size - 5, 68)] * 2, -1)
    return {
        "NaN": np.where(np.arange(68)[:, None] == 30, np.nan, origin),
        "infinite": np.where(np.arange(68)[:, None] == 3, np.inf, origin),
        "one far outside": np.where(np.arange(68)[:, None] == 60, [2.5 * size, 5], origin),
        "all far outside": origin - 1e7,
        "as large as numbers get": origin * 1e36,
        "on a slanting line": line,
        "on a level line": line * [1, 0] + [0, 9],
        "on an upright line": line * [0, 1] + [9, 0],
        "all the same": np.full((68, 2), size / 2),
        "two places": np.where(np.arange(68)[:, None] % 2, [9.0, 9.0], [30.0, 40.0]),
        "two doubled": np.where(np.arange(68)[:, None] == 30, origin[33], origin),
        "two of the jaw doubled": np.where(np.arange(68)[:, None] == 4, origin[5], origin),
        "all doubled": origin.repeat(2, axis=0)[::2].reshape(34, 2, 2).mean(1).repeat(2, axis=0),
        "a lip on another place than its own": np.where(np.arange(68)[:, None] == 61, origin[65], origin),
        "the core on a line": np.concatenate([origin[:17], line[17:]]),
    }


@pytest.mark.parametrize("where", ["own", "match"])
def test_a_face_that_cannot_be_warped_stays_as_it_is(where):
    size = 64
    good = faces_like(1, size, 1)[0]
    bad = spoilt(good, size)
    n = len(bad) + 2
    pairs = np.stack([faces_like(n, size, 4), faces_like(n, size, 5)], axis=1)
    pairs[1:-1, ["own", "match"].index(where)] = np.array(list(bad.values()), np.float32)
    ordinals = np.arange(n)
    d, warped = with_landmarks(Draws.identity(n, size), pairs, landmark_noise(1, ordinals, 0))
    assert {name: bool(w) for name, w in zip(bad, warped[1:-1])} == dict.fromkeys(bad, False)
    assert warped[[0, -1]].all() and np.isfinite(d.landmark_nodes).all()
    stay = lattice(size)
    assert (d.landmark_nodes[~warped] == stay).all()
    for face in (0, -1):  # the others do not notice
        alone, _ = with_landmarks(Draws.identity(1, size), pairs[[face]], landmark_noise(1, ordinals[[face]], 0))
        assert np.array_equal(alone.landmark_nodes[0], d.landmark_nodes[face])
        assert not np.array_equal(d.landmark_nodes[face], stay)
    images = pictures(n, size)
    with OpenCVAugmenter(size, size, [size], threads=1) as augment:
        feed = augment(images, None, d).feed.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(feed[~warped], images[~warped])


def test_threads_share_the_faces_and_change_no_bit():
    n, size = 50, 128
    pairs = np.stack([faces_like(n, size, 4), faces_like(n, size, 5)], axis=1)
    pairs[7, 0] = pairs[7, 0, :1]
    noise = landmark_noise(1, np.arange(n), 0)
    alone, warped = with_landmarks(Draws.identity(n, size), pairs, noise)
    with ThreadPoolExecutor(3) as pool:
        shared, same_warped = with_landmarks(Draws.identity(n, size), pairs, noise, each=pool.map)
    assert np.array_equal(alone.landmark_nodes, shared.landmark_nodes)
    assert np.array_equal(warped, same_warped) and warped.sum() == n - 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole px", "closed lips", "a square lattice", "on the rim", "far apart"])
def test_awkward_points_give_a_bounded_map(within, kind):
    """Points on a circle, on an edge, twice in a place: whatever the triangulation makes of them, nothing leaves."""
    size, n = 96, 64
    rng = np.random.default_rng(0)
    origin, match = faces_like(n, size, 1, spread=0.03), faces_like(n, size, 2, spread=0.03)
    if kind == "whole px":
        origin, match = np.rint(faces_like(n, size, 1)), np.rint(faces_like(n, size, 2))
    elif kind == "closed lips":
        match[:, [61, 62, 63, 48, 37]] = match[:, [67, 66, 65, 60, 41]]
    elif kind == "a square lattice":
        match = np.stack(np.meshgrid(np.arange(17), np.arange(4)), -1).reshape(1, 68, 2) * 4.0 - [1, 0]
        match = np.repeat(match, n, axis=0)
    elif kind == "on the rim":
        match[:, :17] = np.clip(match[:, :17] * 1.5 - size / 4, 0, size - 1)
    else:
        origin, match = (rng.uniform(-size, 2 * size, (n, 68, 2)).astype(np.float32) for _ in range(2))
    nodes, warped = landmark_nodes(origin, match, np.zeros((n, 68, 2)), size)
    assert warped.all() and np.isfinite(nodes).all()
    # The offset at a node lies between those of the corners around it, before landmarks that share a cell pull at it.
    reach = np.abs(origin - match).max((1, 2))
    within("offset, of the largest landmark's", (np.abs(nodes - lattice(size)).max((1, 2, 3)) / reach).max(), 2)
    nodes, _ = landmark_nodes(origin, match, np.zeros((n, 68, 2)), size, settle=False)
    within("unsettled, the same", (np.abs(nodes - lattice(size)).max((1, 2, 3)) / reach).max(), 1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("settle", [True, False])
@pytest.mark.parametrize("size", [64, 300])
def test_the_kernel_gives_what_arrays_give(within, size, settle):
    """Turned heads, closed lips, whole px and points outside among them."""
    n = 24
    source, match, noise = faces_like(n, size, 1), faces_like(n, size, 2), noise_like(n, size, 3)
    source[:8], match[:8] = faces_like(8, size, 4, 0.3), faces_like(8, size, 5, 0.3)
    match[8:12, [61, 62, 63]] = match[8:12, [67, 66, 65]]
    source[12:16], match[12:16], noise[8:16] = np.rint(source[12:16]), np.rint(match[12:16]), 0
    match[16:20, :, 0] += 0.4 * size
    nodes, warped = landmark_nodes(source, match, noise, size, settle=settle)
    assert warped.all()
    count = nodes.shape[1]
    offsets = offsets_at_nodes(triangulate(source, match + noise, size, count), count, settle)
    within("arrays against the kernel, px", np.abs(nodes - lattice(size, count) - offsets).max(), 1e-3)


def test_batch_order_and_threads_change_no_bit():
    size, n = 128, 37
    inputs = faces_like(n, size, 1), faces_like(n, size, 2), noise_like(n, size, 3)
    inputs[0][5] = np.nan
    nodes, warped = landmark_nodes(*inputs, size)
    assert warped.sum() == n - 1
    with ThreadPoolExecutor(3) as pool:  # it holds no state that two callers could share
        for again, same_warped in pool.map(lambda _: landmark_nodes(*inputs, size), range(6)):
            assert np.array_equal(nodes, again) and np.array_equal(warped, same_warped)
    order = np.random.default_rng(0).permutation(n)
    for pick in (slice(0, 1), slice(3, 10), order):
        part, _ = landmark_nodes(*(a[pick] for a in inputs), size)
        assert np.array_equal(part, nodes[pick])
    empty, no_faces = landmark_nodes(*(a[:0] for a in inputs), size)
    assert empty.shape == (0, NODES, NODES, 2) and no_faces.shape == (0,)


def test_movement_flip_and_warp_in_one_are_the_steps_after_each_other(within):
    """The map of the composed nodes against: the warp's map, then flip and movement undone at each px."""
    size, n = 128, 12
    ordinals = np.arange(n)
    config = AugmentationConfig(rotation_range=25.0, zoom_amount=20.0, shift_range=10.0)
    pairs = np.stack([faces_like(n, size, 1), faces_like(n, size, 2)], axis=1)
    d, warped = with_landmarks(draw(3, ordinals, 1, size, config), pairs, landmark_noise(3, ordinals, 1))
    assert warped.any() and d.flip.any() and not d.flip.all()
    steps = filled(d.warp_nodes(), size)
    steps[d.flip, ..., 0] = size - 1 - steps[d.flip, ..., 0]
    back = np.linalg.inv(d.forward())
    steps = np.einsum("nij,nhwj->nhwi", back[:, :2, :2], steps) + back[:, None, None, :2, 2]
    weights = host_geometry.node_weights(size, NODES)
    rows = host_geometry.node_rows(d.control_grid(), weights)
    composed = [
        np.concatenate([host_geometry.fill_rows(r[b], weights[a, b]) for a, b in host_geometry.bands(size, NODES)])
        for r in rows
    ]
    within("opencv's map, px", np.abs(composed - steps).max(), 1e-3)


def test_backends_agree(device, at_least):
    size, n = 128, 6
    ordinals = np.arange(n)
    pairs = np.stack([faces_like(n, size, 1), faces_like(n, size, 2)], axis=1)
    d, _ = with_landmarks(
        draw(4, ordinals, 0, size, AugmentationConfig(color=False)), pairs, landmark_noise(4, ordinals, 0)
    )
    faces = pictures(n, size)
    with OpenCVAugmenter(size, size, [size]) as augment:
        ours = augment(faces, None, d).to_float().feed
    theirs = DeviceAugmenter(size, size, [size])(torch.from_numpy(faces).to(device), None, d).feed.cpu()
    at_least("landmarks, feed of the backends, dB", psnr(ours, theirs, 1), 55)


def test_the_steps_in_order_show_what_the_whole_shows(at_least):
    size, n = 128, 6
    ordinals = np.arange(n)
    pairs = np.stack([faces_like(n, size, 1), faces_like(n, size, 2)], axis=1)
    d, _ = with_landmarks(
        draw(9, ordinals, 0, size, AugmentationConfig(color=False)), pairs, landmark_noise(9, ordinals, 0)
    )
    faces, step = pictures(n, size), ImageAugmentation(n, size, draws=d)
    with OpenCVAugmenter(size, size, [size]) as augment:
        full_feed = augment(faces, None, d).feed.permute(0, 2, 3, 1).numpy()
    inner = (slice(None), slice(16, -16), slice(16, -16))  # at the rim the whole may see beyond the target
    steps = step.warp(step.random_flip(step.transform(faces)[0])[0])
    at_least("two samplings against one, dB", psnr(steps[inner], full_feed[inner]), 32)


@pytest.mark.parametrize("nodes", [5, 17, 33, 64])
@pytest.mark.parametrize("size", [16, 65, 256, 300, 1024])
def test_bands_hold_all_the_weight_there_is(within, size, nodes):
    """Each band of rows has the nodes that count for it, and no product is one that BLAS would spread over threads."""
    weights = hat_weights(size, nodes)
    remainder = weights.copy()
    seen = 0
    for pixel_rows, between in host_geometry.bands(size, nodes):
        assert pixel_rows.start == seen and between.stop <= nodes
        seen = pixel_rows.stop
        remainder[pixel_rows, between] = 0
        height, inner_points = pixel_rows.stop - pixel_rows.start, between.stop - between.start
        assert height == 1 or 2 * size * height * inner_points <= host_geometry.PRODUCT_LIMIT
    assert seen == size and not remainder.any()


def test_wrong_shapes_are_refused():
    origin = faces_like(2, 64, 1)
    noise = np.zeros((2, 68, 2))
    for bad in ((origin[:1], origin, noise), (origin, origin[:, :5], noise), (origin, origin, noise[..., :1])):
        with pytest.raises(ValueError, match="expected"):
            landmark_nodes(*bad, 64)
    with pytest.raises(ValueError, match="pairs"):
        with_landmarks(Draws.identity(2, 64), origin, landmark_noise(0, [0, 1], 0))
    with pytest.raises(ValueError, match="pairs"):
        with_landmarks(Draws.identity(3, 64), np.stack([origin, origin], 1), landmark_noise(0, [0, 1], 0))
