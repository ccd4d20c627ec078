"""Finds landmarks, pose and expression in small drawn faces: a little network for one pair of people.

It is trained once on the faces that the recipes are trained on, of both people, whose points are known exactly, and
kept beside them. Swaps are blurred and of the wrong colour, so it learns from faces made so. Its own error is measured
on true pictures that it never saw.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.people import AMOUNTS
from swapfast.config import CropConfig
from swapfast.faces.crop import crop_face, crop_landmarks
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.faces.orientation import MIRRORED

SIZE = 64
MARGIN = 12  # px around the crops, so that they can be moved
STEPS, BATCH = 700, 32
VERSION = 2
EYES = (range(36, 42), range(42, 48))


@dataclass(frozen=True)
class Found:
    """landmarks: (n, 68, 2) px of 64. amounts: (n, AMOUNTS), see people.py."""

    landmarks: np.ndarray
    amounts: np.ndarray


def _network() -> nn.Sequential:
    widths = (3, 16, 32, 64, 64)
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Conv2d(width, following, 3, 2, 1), nn.LeakyReLU(0.1)]
    layers += [nn.Flatten(), nn.Linear(64 * 16, 128), nn.LeakyReLU(0.1), nn.Linear(128, 136 + len(AMOUNTS))]
    return nn.Sequential(*layers)


class LandmarkNet:
    """The network with the means and deviations of what it finds."""

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        self.network, self.mean, self.deviation = _network(), mean, deviation

    @torch.no_grad()
    def find(self, images: np.ndarray) -> Found:
        """Return what is found in (n, S, S, 3) images in 0..1 BGR, of any size S."""
        pixels = torch.from_numpy(np.ascontiguousarray(images, np.float32)).permute(0, 3, 1, 2)
        if pixels.shape[-1] != SIZE:
            pixels = F.interpolate(pixels, (SIZE, SIZE), mode="area")
        values = self.network(pixels - 0.5) * self.deviation + self.mean
        return Found(values[:, :136].reshape(-1, 68, 2).numpy(), values[:, 136:].numpy())

    def save(self, path: Path) -> None:
        """Write it to a .safetensors file."""
        tensors = {"mean": self.mean, "deviation": self.deviation, **self.network.state_dict()}
        partial = path.with_suffix(f".{os.getpid()}.part")
        save_file(tensors, partial)
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> LandmarkNet:
        """Read what ``save`` wrote."""
        tensors = load_file(path)
        net = cls(tensors.pop("mean"), tensors.pop("deviation"))
        net.network.load_state_dict(tensors)
        return net


def read_faces(
    folder: Path, known: dict[str, list], splits: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return crops with their margin (n, S, S, 3) uint8, landmarks in px of the crop (n, 68, 2), and amounts."""
    images, points, values = [], [], []
    for split in splits:
        for record, amounts in zip(scan_folder(folder / split).records, known[split], strict=True):
            images.append(crop_face(record, read_image(record.path), CropConfig(), SIZE, MARGIN))
            points.append(crop_landmarks(record, CropConfig(), SIZE))
            values.append(amounts)
    return np.stack(images), np.stack(points), np.array(values, np.float32)


def _mirrored(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return half of (n, 3, S, S) crops with margins mirrored by chance, and what is to be found in them.

    A person who always looks to one side is to be found in a swap that looks to the other.
    """
    flips = torch.rand(len(images), generator=generator) < 0.5
    points, amounts = targets[:, :136].view(-1, 68, 2), targets[:, 136:]
    turned = points[:, list(MIRRORED)] * torch.tensor((-1.0, 1.0)) + torch.tensor((SIZE - 1.0, 0.0))
    sign = torch.tensor([-1.0 if name == "yaw" else 1.0 for name in AMOUNTS])
    other = torch.cat([turned.flatten(1), amounts * sign], 1)
    return torch.where(flips[:, None, None, None], images.flip(3), images), torch.where(flips[:, None], other, targets)


def _moved(images: Tensor, points: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return crops of (n, 3, S, S) images with margins, turned, scaled and shifted by chance, and their points."""
    count, edge = len(images), images.shape[-1]
    draws = torch.rand(count, 4, generator=generator) * 2 - 1
    angle, scale, shift = draws[:, 0] * 0.12, 1 + draws[:, 1] * 0.08, draws[:, 2:] * 3.5
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    turn = torch.stack(
        [torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1
    )  # crop to picture, about the middle
    middle = (SIZE - 1) / 2
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    grid = torch.stack([columns, rows], -1).reshape(1, -1, 2) - middle
    source = grid @ turn.transpose(1, 2) + shift[:, None] + middle + MARGIN
    grid = (source / (edge - 1) * 2 - 1).reshape(count, SIZE, SIZE, 2)
    crops = F.grid_sample(images, grid, align_corners=True, padding_mode="border")
    inverse = torch.linalg.inv(turn)
    return crops, (points - middle - shift[:, None]) @ inverse.transpose(1, 2) + middle


def _worn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images blurred, tinted and with noise by chance, as swaps are."""
    count = len(images)
    sigma = float(torch.rand((), generator=generator)) * 1.6
    if sigma > 0.3:
        taps = torch.exp(-(torch.arange(-4, 5) ** 2) / (2 * sigma**2))
        taps = taps / taps.sum()
        padded = F.pad(images.flatten(0, 1)[:, None], (4, 4, 4, 4), mode="replicate")
        images = F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1)).view(count, 3, SIZE, SIZE)
    gain = 1 + 0.35 * (torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1)
    shift = 0.08 * (torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1)
    return images * gain + shift + 0.02 * torch.randn(images.shape, generator=generator)


def train_landmark_net(folder: Path, steps: int = STEPS, seed: int = 1) -> LandmarkNet:
    """Return a network trained on the faces of ``folder`` (see ``draw_pair``), those held out among them."""
    known = json.loads((folder / "amounts.json").read_text(encoding="utf-8"))
    pixels, points, amounts = read_faces(folder, known, ("train/a", "train/b", "held_out/a", "held_out/b"))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.from_numpy(np.concatenate([points.reshape(-1, 136), amounts], axis=1))
    net = LandmarkNet(targets.mean(0), torch.cat([torch.full((136,), 2.0), targets[:, 136:].std(0) + 1e-3]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net.network = _network()
    optimizer = torch.optim.Adam(net.network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        faces, found = _mirrored(images[rows].float() / 255, targets[rows], generator)
        crops, landmarks = _moved(faces, found[:, :136].view(-1, 68, 2), generator)
        wanted = torch.cat([landmarks.reshape(BATCH, 136), found[:, 136:]], 1)
        values = net.network(_worn(crops, generator) - 0.5)
        error = values - (wanted - net.mean) / net.deviation
        costs = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")
        loss = costs[:, :136].mean() + 0.3 * costs[:, 136:].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def landmark_net(folder: Path, steps: int = STEPS) -> LandmarkNet:
    """Return the network of the faces in ``folder``, trained once and kept there."""
    path = folder / f"landmarks-v{VERSION}-{steps}.safetensors"
    if not path.exists():
        train_landmark_net(folder, steps).save(path)
    return LandmarkNet.load(path)


def landmark_errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the mean distance of each face's landmarks from the true ones, percent of the eyes' distance, (n,).

    found, true: (n, 68, 2) px.
    """
    eyes = [true[:, list(eye)].mean(1) for eye in EYES]
    apart = np.linalg.norm(eyes[0] - eyes[1], axis=1)
    return 100 * np.linalg.norm(found - true, axis=2).mean(1) / apart
