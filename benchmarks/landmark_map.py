"""Fits the map from the 468 mesh points to the 68 landmarks on drawn faces, and measures it.

``python -m benchmarks.landmark_map --out swapfast/extract/data/mesh_to_68.json`` makes the file of the package again.
Each landmark is a weighted mean of at most six mesh points near it, with weights that are positive and add up to 1
(non-negative least squares), so that no expression or pose can throw it far away. Drawn faces have exact landmarks and
no licence attached. Errors are means over landmarks of the distance over that of the outer corners of the eyes.

    drawn    other drawn people than those of the fit, exact points
    human    photographs with points set by hand, where their folder is there
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from scipy.optimize import nnls

from benchmarks.common import ROOT, Results, parser
from swapfast.extract.landmark_map import MESH_POINTS, LandmarkMap, load_map
from swapfast.extract.model_files import read_models
from swapfast.extract.networks import Detector, MeshNetwork, Region
from swapfast.faces.orientation import MIRRORED
from swapfast.synthetic.identity import draw_identities
from swapfast.synthetic.render import render
from swapfast.synthetic.scene import draw_scene
from swapfast.synthetic.streams import generator

FIT_SEED, TEST_SEED = 1, 10_001
SCENES = 3  # of each person
SIZE = 320  # px of a drawn picture
NEAR, MOST = 12, 6  # mesh points that are tried for a landmark, and that are kept
_SUM_TO_ONE = 1e3  # weight of that equation
# The usual choice of one mesh point for each landmark: where the search for nearby points begins.
SINGLE_POINTS = (
    *(127, 234, 93, 132, 58, 172, 136, 150, 152, 379, 365, 397, 288, 361, 323, 454, 356),
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87),
)
Sample = tuple[np.ndarray, np.ndarray]  # a picture, and its landmarks


def drawn_samples(first_seed: int, people: int) -> Iterator[Sample]:
    """Yield pictures of drawn people, each with exact landmarks. people: pairs."""
    for seed in range(first_seed, first_seed + people):
        for number, person in enumerate(draw_identities(seed)):
            for index in range(SCENES):
                face = render(person, draw_scene(generator(seed, number + 1, index)), SIZE)
                yield face.image, face.landmarks


def human_samples(folder: Path) -> Iterator[Sample]:
    """Yield photographs whose points were set by hand."""
    for entry in json.loads((folder / "manifest.json").read_text()):
        if entry["group"] in "ab" and entry["origin"].startswith("human"):
            path = folder / "aligned" / entry["group"] / entry["name"]
            points = json.loads(path.with_suffix(".json").read_text())["landmarks"]
            picture = cv2.imread(str(path.with_suffix(".jpg")))
            assert picture is not None, path
            yield picture, np.array(points, np.float64)


def mirrored(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Yield each picture, and then its mirror image."""
    for picture, points in samples:
        yield picture, points
        turned = points.copy()
        turned[:, 0] = picture.shape[1] - 1 - turned[:, 0]
        yield np.ascontiguousarray(picture[:, ::-1]), turned[list(MIRRORED)]


def find_meshes(samples: Iterator[Sample]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return meshes (N, 468, 2) and landmarks (N, 68, 2) of the faces that are found, and how many are not."""
    models = read_models()
    detector, network = Detector(models), MeshNetwork(models)
    meshes, landmarks, missed = [], [], 0
    for picture, points in samples:
        faces = detector(picture)
        if not len(faces):
            missed += 1
            continue
        mesh, _ = network(picture, Region.of_detection(faces[0]))
        mesh, _ = network(picture, Region.of_mesh(mesh))
        meshes.append(mesh)
        landmarks.append(np.asarray(points, np.float64))
    return np.array(meshes), np.array(landmarks), missed


def eye_distances(landmarks: np.ndarray) -> np.ndarray:
    """Return the distance of the outer corners of the eyes, (N,) px."""
    return np.linalg.norm(landmarks[:, 36] - landmarks[:, 45], axis=1)


def fit_map(meshes: np.ndarray, landmarks: np.ndarray) -> LandmarkMap:
    """Return the map that fits landmarks best."""
    scale = eye_distances(landmarks)[:, None]
    mean = meshes.mean(0)
    weights = np.zeros((68, MESH_POINTS))
    for landmark, single in enumerate(SINGLE_POINTS):
        near = np.argsort(np.linalg.norm(mean - mean[single], axis=1), kind="stable")[:NEAR]
        for _ in range(2):
            near = near[np.argsort(-_fitted(meshes, landmarks[:, landmark], scale, near), kind="stable")[:MOST]]
        weights[landmark, near] = _fitted(meshes, landmarks[:, landmark], scale, near)
    return LandmarkMap(weights)


def _fitted(meshes: np.ndarray, points: np.ndarray, scale: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the weights of the mesh points ``near`` that fit one landmark best, (n,), which add up to 1."""
    rows = (meshes[:, near] / scale[:, None]).transpose(0, 2, 1).reshape(-1, len(near))
    rows = np.vstack([rows, np.full((1, len(near)), _SUM_TO_ONE)])
    weights, _ = nnls(rows, np.append((points / scale).ravel(), _SUM_TO_ONE))
    return weights / weights.sum()


def errors(found: np.ndarray, landmarks: np.ndarray) -> dict[str, float]:
    """Return mean errors over the eyes' distance: of all points, the inner 51, the jaw, and a face at 95 %."""
    each = np.linalg.norm(found - landmarks, axis=2) / eye_distances(landmarks)[:, None]
    return {
        "all_68": round(float(each.mean()), 4),
        "inner_51": round(float(each[:, 17:].mean()), 4),
        "jaw": round(float(each[:, :17].mean()), 4),
        "face_p95": round(float(np.percentile(each.mean(1), 95)), 4),
    }


def main() -> None:
    """Fit, or measure the map of the package."""
    flags = parser(__doc__ or "")
    flags.add_argument("--people", type=int, default=100, help="pairs of drawn people to fit on; default 100")
    flags.add_argument("--test-people", type=int, default=30, help="pairs to measure on; default 30")
    flags.add_argument("--faces", type=Path, default=ROOT.parent / "shared" / "faces", help="photographs with points")
    flags.add_argument("--out", type=Path, help="fit, and write the map here; default: measure that of the package")
    arguments = flags.parse_args()
    people, test_people = (4, 2) if arguments.quick else (arguments.people, arguments.test_people)
    cv2.setNumThreads(1)
    results = Results(arguments.json)
    if arguments.out is None:
        chosen = load_map()
    else:
        meshes, landmarks, missed = find_meshes(mirrored(drawn_samples(FIT_SEED, people)))
        chosen = fit_map(meshes, landmarks)
        arguments.out.write_text(chosen.to_json())
        results.add({"set": "fit", "faces": len(meshes), "missed": missed, **errors(chosen(meshes), landmarks)})
    single = np.zeros((68, MESH_POINTS))
    single[np.arange(68), SINGLE_POINTS] = 1
    sets = {"drawn": drawn_samples(TEST_SEED, test_people)}
    if (arguments.faces / "manifest.json").is_file():
        sets["human"] = human_samples(arguments.faces)
    for name, samples in sets.items():
        meshes, landmarks, missed = find_meshes(samples)
        for kind, mapping in (("single points", LandmarkMap(single)), ("fitted", chosen)):
            row = {"set": name, "map": kind, "faces": len(meshes), "missed": missed}
            results.add({**row, **errors(mapping(meshes), landmarks)})


if __name__ == "__main__":
    main()
