"""Frames with drawn faces, the command, and the two network files where they have been fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

import cli
from swapfast.errors import SwapfastError
from swapfast.extract.model_files import read_models
from swapfast.swap.landmark_file import header_line, landmark_line
from swapfast.synthetic.render import RenderedFace
from tests.swap.echo import drawn_face


@pytest.fixture(scope="session")
def models() -> Mapping[str, bytes]:
    """The networks of the user's cache."""
    try:
        return read_models()
    except SwapfastError as error:
        pytest.skip(f"no networks: {error}")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``run("-i", ...)`` runs `swapfast extract` in an empty folder; returns its code, output and error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main(["extract", *map(str, words)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture(scope="session")
def people() -> list[RenderedFace]:
    """Faces of 160 px: three scenes of one person, then one of another."""
    return [*(drawn_face(index, 160) for index in range(3)), drawn_face(0, 160, seed=5)]


def place(
    face: RenderedFace, width: int = 320, height: int = 240, x: int = 60, y: int = 40, quarters: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A frame with a drawn face's picture at (x, y), turned by quarters anticlockwise, and its landmarks."""
    rows, columns = np.mgrid[:height, :width]
    frame = np.stack([rows // 2, columns // 3, (rows + columns) // 4], axis=-1).astype(np.uint8)
    picture, points, edge = np.rot90(face.image, quarters), face.landmarks.astype(np.float64), len(face.image)
    for _ in range(quarters % 4):
        points = np.stack([points[:, 1], edge - 1 - points[:, 0]], axis=1)
    left, top, right, bottom = max(0, x), max(0, y), min(width, x + edge), min(height, y + edge)
    frame[top:bottom, left:right] = picture[top - y : bottom - y, left - x : right - x]
    return frame, points + (x, y)


def write_pictures(folder: Path, *frames: tuple[np.ndarray, list[np.ndarray]]) -> Path:
    """Write frames as PNGs, shot_0001.png and so on, with their landmarks beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (pixels, faces) in enumerate(frames, 1):
        cv2.imwrite(str(folder / f"shot_{number:04d}.png"), pixels)
        tables = [{"landmarks": np.asarray(points, float).tolist()} for points in faces]
        (folder / f"shot_{number:04d}.json").write_text(json.dumps({"faces": tables}))
    return folder


def write_landmarks(path: Path, faces: Mapping[int, list[np.ndarray]], tracks: bool = False) -> Path:
    """Write the faces of a sequence shot_0001.png ... by the frame's index."""
    lines = [
        landmark_line(points, name=f"shot_{index + 1:04d}.png", face=face, track=face if tracks else None)
        for index, found in faces.items()
        for face, points in enumerate(found)
    ]
    path.write_text("\n".join([header_line(), *lines]) + "\n")
    return path
