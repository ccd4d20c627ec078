"""A loader written the peer's way: the yardstick of benchmarks/loader.py.

Every step each face is read, its header parsed, its alignment solved, cropped and its masks drawn again; the batch is
then augmented one image after another with all six channels together, on 8-bit pixels, in loader processes. What is
done, in which order and with which OpenCV calls follows the description of faceswap's data path; the code is ours.
"""

from __future__ import annotations

import ast
import zlib
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from swapfast.batch import MASK_NAMES
from swapfast.config import CropConfig, MaskConfig
from swapfast.faces.alignment import align
from swapfast.faces.crop import crop_window, cut_square, resize_square
from swapfast.faces.masks import training_masks
from swapfast.faces.record import FaceRecord

try:
    from scipy.interpolate import griddata
except ImportError:  # nothing else here needs it
    griddata = None

WORKERS = 2


def read_face(path: Path) -> tuple[np.ndarray, FaceRecord]:
    """Decode the whole PNG and evaluate its whole header."""
    data = path.read_bytes()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    start = data.index(b"iTXt")
    length = int.from_bytes(data[start - 4 : start], "big")
    header = ast.literal_eval(data[start + 4 + len("faceswap") + 5 : start + 4 + length].decode("utf-8"))
    landmarks = np.array(header["alignments"]["landmarks_xy"], np.float32)
    record = FaceRecord(path, "head", image.shape[1], image.shape[0], landmarks, align(landmarks))
    zlib.decompress(header["alignments"]["mask"]["bisenet-fp_face"]["mask"])
    return image, record


def item(path: Path, size: int) -> np.ndarray:
    """(size, size, 6) uint8: one training item."""
    image, record = read_face(path)
    crop = CropConfig()
    face = resize_square(cut_square(image, *crop_window(record, crop)), size)
    return np.concatenate([face, training_masks(record, crop, MaskConfig(), size, MASK_NAMES)], axis=2)


def color_adjust(batch: np.ndarray, rng: np.random.Generator) -> None:
    """LAB jitter channel by channel and CLAHE on a half of the batch, in place on the first three channels.

    NumPy on the whole batch at once, both directions worked out and one chosen, takes twice as long.
    """
    lab = np.stack([cv2.cvtColor(image, cv2.COLOR_BGR2LAB) for image in np.ascontiguousarray(batch[..., :3])])
    amount = (rng.uniform(-1, 1, (len(batch), 1, 1, 3)) * (0.3, 0.08, 0.08)).astype(np.float32)
    for image, shares in zip(lab, amount):
        for channel, share in enumerate(shares.ravel()):
            plane = image[..., channel]
            image[..., channel] = (255 - plane) * share + plane if share >= 0 else plane * (1 + share)
    base = max(2, batch.shape[1] // 128)
    for image in lab:
        if rng.random() < 0.5:
            grid = int(base + rng.integers(0, 5) * (base // 2))
            image[..., 0] = cv2.createCLAHE(2.0, (grid, grid)).apply(np.ascontiguousarray(image[..., 0]))
    for image, changed in zip(batch, lab):
        image[..., :3] = cv2.cvtColor(changed, cv2.COLOR_LAB2BGR)


def transform(batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate, zoom and shift each image with its masks, six channels at once, then flip a half of them."""
    size = batch.shape[1]
    transformed = np.empty_like(batch)
    for source, target in zip(batch, transformed):
        matrix = cv2.getRotationMatrix2D(((size - 1) / 2,) * 2, rng.uniform(-10, 10), rng.uniform(0.95, 1.05))
        matrix[:, 2] += rng.uniform(-0.05, 0.05, 2) * size
        cv2.warpAffine(source, matrix, (size, size), dst=target, borderMode=cv2.BORDER_REPLICATE)
    flip = rng.random(len(batch)) <= 0.5
    transformed[flip] = transformed[flip, :, ::-1]
    return transformed


def warp(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The 5x5 grid, blown up by cv2.resize for each image and read by cv2.remap."""
    size = images.shape[1]
    nodes = np.linspace(0, size, 5, dtype=np.float32)
    nodes = np.stack(np.meshgrid(nodes, nodes))
    padded = int(size * 1.25)
    inner = slice(padded // 10, padded // 10 + size)
    result = np.empty_like(images)
    for source, target in zip(images, result):
        grid = nodes + rng.normal(0, 5 / 256 * size, (2, 5, 5)).astype(np.float32)
        maps = [cv2.resize(axis, (padded, padded))[inner, inner] for axis in grid]
        map_x, map_y = (np.ascontiguousarray(m) for m in maps)
        cv2.remap(source, map_x, map_y, cv2.INTER_LINEAR, dst=target)
    return result


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """uint8 -> float32 in 0..1."""
    return torch.from_numpy(array.astype(np.float32) / 255)


def augment(batch: np.ndarray, rng: np.random.Generator) -> list[torch.Tensor]:
    """(N, S, S, 6) uint8 -> feed, target and masks as float tensors."""
    color_adjust(batch, rng)
    transformed = transform(batch, rng)
    feed = warp(np.ascontiguousarray(transformed[..., :3]), rng)
    return [to_tensor(feed), to_tensor(transformed[..., :3]), to_tensor(transformed[..., 3:])]


def clahe(lab: np.ndarray, rng: np.random.Generator) -> None:
    """The part of ``color_adjust`` that CLAHE is, in place on the first of (N, S, S, 3) uint8 channels."""
    base = max(2, lab.shape[1] // 128)
    for image in lab:
        if rng.random() < 0.5:
            grid = int(base + rng.integers(0, 5) * (base // 2))
            image[..., 0] = cv2.createCLAHE(2.0, (grid, grid)).apply(np.ascontiguousarray(image[..., 0]))


def shrink(batch: np.ndarray, size: int) -> np.ndarray:
    """Each image with its masks, six channels at once, to a smaller output size."""
    return np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in batch])


def warp_landmarks(images: np.ndarray, pairs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The warp to landmarks: a map of every pixel, linear inside the triangles between the points, for each image.

    pairs: (N, 2, 68, 2) px, the points of each image and of its match. Jaw points that lie on the face are left out.
    """
    size = images.shape[1]
    last, half = size - 1, size // 2 - 1
    anchors = [(0, 0), (0, last), (last, last), (last, 0), (half, 0), (half, last), (last, half), (0, half)]
    matches = pairs[:, 1] + rng.normal(0, 2 / 256 * size, pairs[:, 1].shape)
    result = np.zeros_like(images)  # what a map leaves out is black, and not what lay in memory
    for source, target, origin, match in zip(images, result, pairs[:, 0], matches.astype(np.float32)):
        hull = cv2.convexHull(np.concatenate([origin[17:], match[17:]]).astype(np.int32))
        inside = [
            any(cv2.pointPolygonTest(hull, (float(x), float(y)), False) >= 0 for x, y in (origin[i], match[i]))
            for i in range(17)
        ]
        active = [i for i in range(68) if i >= 17 or not inside[i]]
        origin_points, match_points = (
            np.concatenate([points[active], anchors]).astype(np.float32) for points in (origin, match)
        )
        at = landmark_map(origin_points, match_points, size).astype(np.float32)
        mode = cv2.BORDER_TRANSPARENT
        cv2.remap(source, at, None, cv2.INTER_LINEAR, target, mode)  # type: ignore[call-overload]  # no map2
    return result


def landmark_map(origin: np.ndarray, match: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 2): where each pixel reads: at the points ``match`` (P, 2) those of ``origin``.

    The peer has it from scipy's griddata. Where there is no scipy, OpenCV triangulates, the triangles are painted with
    their numbers, and each pixel goes through its triangle's matrix: the same map, worked out for all pixels as well.
    """
    x, y = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    if griddata is not None:
        return griddata(match, origin, (x, y), method="linear", fill_value=0)
    far = 1000 * size
    subdivision = cv2.Subdiv2D((-far, -far, 2 * far, 2 * far))
    subdivision.insert(match)  # type: ignore[call-overload]  # the stubs lack the array
    corners = np.asarray(subdivision.getTriangleList()).reshape(-1, 3, 2)
    corners = corners[(np.abs(corners) <= 2 * size).all((1, 2))]  # the others lead to the frame around it all
    number = {point.tobytes(): i for i, point in enumerate(match)}
    places = np.array([[number[point.tobytes()] for point in corner] for corner in corners])
    matrices = (
        np.linalg.pinv(np.dstack([corners, np.ones((len(corners), 3, 1), np.float32)])) @ origin[places]
    )  # (T, 3, 2)
    painted = np.zeros((size, size), np.int32)
    for i, corner in enumerate(np.rint(corners * 16).astype(np.int32)):
        cv2.fillConvexPoly(painted, corner, i, shift=4)
    at = matrices.astype(np.float32)[painted]
    return at[..., 0, :] * x[..., None] + at[..., 1, :] * y[..., None] + at[..., 2, :]


def augment_to_landmarks(batch: np.ndarray, pairs: np.ndarray, rng: np.random.Generator) -> list[torch.Tensor]:
    """``augment`` with the warp to landmarks; pairs: as they lie in the moved images."""
    color_adjust(batch, rng)
    transformed = transform(batch, rng)
    feed = warp_landmarks(np.ascontiguousarray(transformed[..., :3]), pairs, rng)
    return [to_tensor(feed), to_tensor(transformed[..., :3]), to_tensor(transformed[..., 3:])]


class PairSet(Dataset):
    """A face of each side."""

    def __init__(self, folders: list[Path], size: int, steps: int, batch_size: int) -> None:
        self.files = [sorted(folder.glob("*.png")) for folder in folders]
        self.size, self.length = size, steps * batch_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[np.ndarray]:
        return [item(files[index * 7919 % len(files)], self.size) for files in self.files]


class Collate:
    """Stacks the faces, A's first, and augments them."""

    def __call__(self, items: list[list[np.ndarray]]) -> list[torch.Tensor]:
        rng = np.random.default_rng()
        return augment(np.stack([face for side in zip(*items) for face in side]), rng)


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(1)


def loader(folders: list[Path], size: int, steps: int, batch_size: int) -> DataLoader:
    """Batches as the peer makes them: loader processes, two batches ahead each."""
    return DataLoader(
        PairSet(folders, size, steps, batch_size),
        batch_size=batch_size,
        num_workers=WORKERS,
        prefetch_factor=2,
        collate_fn=Collate(),
        worker_init_fn=_one_thread,
    )
