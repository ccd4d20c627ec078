"""How far swaps are turned: among pictures of the true B, drawn at other angles, it is where they are nearest to.

A network that finds poses is off by degrees on blurred swaps; this asks the drawing. Each picture is cut by its own
landmarks, and compared inside its mask after mean colours were set equal. Both are blurred: a blurred face is nearer to
a smooth view of a sharp one than to the same view.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from benchmarks.people import SIZE, Pair, write_face
from swapfast.config import TrainConfig
from swapfast.faces.crop import crop_face, shrink
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from swapfast.swap.evaluate import face_mask_for
from swapfast.swap.figures import each_distance
from swapfast.synthetic import render

AXES = ("yaw", "pitch")
ANGLES = np.arange(-16.0, 17.0, 4.0)  # degrees that B is turned further to the right, or down
BLUR = 0.03  # deviation, in edges of the picture
VERSION = 1


@dataclass(frozen=True)
class TurnedPictures:
    """The true B at ANGLES about each of AXES.

    pictures: (axes, angles, n, S, S, 3) uint8 BGR. masks: (axes, angles, n, S, S) uint8.
    """

    pictures: np.ndarray
    masks: np.ndarray

    def turns(self, swaps: np.ndarray) -> dict[str, float]:
        """Return how many degrees swaps are turned too far, on average: 'yaw_turn' to the right, 'pitch_turn' down.

        swaps: (n, S, S, 3) in 0..1 BGR, of the first true pairs. Angles beyond the ANGLES are told as the outermost.
        """
        return {
            f"{axis}_turn": self._nearest(swaps, *of_axis)
            for axis, *of_axis in zip(AXES, self.pictures, self.masks, strict=True)
        }

    def _nearest(self, swaps: np.ndarray, pictures: np.ndarray, masks: np.ndarray) -> float:
        smooth = _blurred(swaps[: len(pictures[0])])
        means = [
            float(each_distance(smooth, _blurred(at_angle / 255), mask / 255)["psnr_matched"].mean())
            for at_angle, mask in zip(pictures, masks, strict=True)
        ]
        return vertex(ANGLES, np.array(means))


def _blurred(images: np.ndarray) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(image, (0, 0), BLUR * len(image)) for image in images])


def vertex(places: np.ndarray, values: np.ndarray) -> float:
    """Return where a parabola through the largest value and its neighbours is highest, within the places."""
    best = min(max(int(values.argmax()), 1), len(values) - 2)
    around = slice(best - 1, best + 2)
    curve, slope, _ = np.polyfit(places[around] - places[best], values[around], 2)
    if curve >= 0:  # of values that do not have a top: all are equal, or the outermost is the largest
        return float(places[values.argmax()])
    return float(np.clip(places[best] - slope / (2 * curve), places[0], places[-1]))


def draw_turned(pair: Pair, folder: Path, config: TrainConfig, size: int, count: int) -> TurnedPictures:
    """Return the true B of the first ``count`` true pairs at other angles, drawn once. folder: of ``draw_pair``."""
    path = folder / f"turned-{size}-{count}-v{VERSION}.npz"
    if path.exists():
        with np.load(path) as stored:
            return TurnedPictures(stored["pictures"], stored["masks"])
    person = pair.people()[1]
    pictures = np.empty((len(AXES), len(ANGLES), count, size, size, 3), np.uint8)
    masks = np.empty(pictures.shape[:-1], np.uint8)
    for number, axis in enumerate(AXES):
        for place, angle in enumerate(np.radians(ANGLES)):
            with tempfile.TemporaryDirectory() as drawn:
                for index in range(count):
                    scene = pair.scene("truth", index)
                    pose = replace(scene.pose, **{axis: getattr(scene.pose, axis) + angle})
                    write_face(render(person, replace(scene, pose=pose), SIZE), Path(drawn) / f"{index:04d}.png")
                for index, record in enumerate(scan_folder(Path(drawn)).records):
                    crop = crop_face(record, read_image(record.path), config.crop, size)
                    pictures[number, place, index] = shrink(crop, size)
                    masks[number, place, index] = face_mask_for(record, record, config, size)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.npz")  # another process may draw the same
    np.savez(partial, pictures=pictures, masks=masks)
    partial.replace(path)
    return TurnedPictures(pictures, masks)
