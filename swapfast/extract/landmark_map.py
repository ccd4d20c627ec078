"""The map from the 468 points of a mesh to 68 landmarks, fitted on drawn faces by benchmarks/landmark_map.py.

{"landmarks": [{"127": 0.8, "162": 0.2}, ... 68 of them]}     mesh point -> weight; weights add up to 1
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

MESH_POINTS = 468


@dataclass(frozen=True, eq=False)
class LandmarkMap:
    """Each landmark as a weighted mean of mesh points. weights: (68, 468)."""

    weights: np.ndarray

    def __call__(self, meshes: np.ndarray) -> np.ndarray:
        """Return the landmarks of meshes (..., 468, 2), (..., 68, 2) in the same px."""
        return np.einsum("kv,...vc->...kc", self.weights, meshes)

    def to_json(self) -> str:
        """Return the file's text."""
        rows = []
        for row in self.weights:
            entries = {str(point): round(float(row[point]), 5) for point in np.flatnonzero(row > 5e-6)}
            rows.append("  " + json.dumps(entries))
        return '{"landmarks": [\n' + ",\n".join(rows) + "\n]}\n"


@cache
def load_map() -> LandmarkMap:
    """Return the map of the package."""
    text = (resources.files("swapfast.extract.data") / "mesh_to_68.json").read_text(encoding="utf-8")
    weights = np.zeros((68, MESH_POINTS))
    for landmark, entries in enumerate(json.loads(text)["landmarks"]):
        for point, weight in entries.items():
            weights[landmark, int(point)] = weight
    return LandmarkMap(weights / weights.sum(1, keepdims=True))
