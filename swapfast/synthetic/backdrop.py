"""Paints the background: a soft gradient with blurred shapes."""

from __future__ import annotations

import cv2
import numpy as np


def paint_backdrop(seed: int, size: int) -> np.ndarray:
    """Return a background, (size, size, 3) float32 BGR in 0..1, as a pure function of its arguments."""
    rng = np.random.default_rng(seed)
    side = 96  # painted small and enlarged, since it is out of focus
    corners = rng.uniform(0.15, 0.8, (2, 2, 3)) * 0.6 + rng.uniform(0.15, 0.7) * 0.4
    sheet = cv2.resize(corners.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(3, 9))):
        x, y, radius = (rng.uniform((0, 0, 6), (side, side, 26))).round().astype(int).tolist()
        colour = rng.uniform(0.1, 0.85, 3).tolist()
        shape = sheet.copy()
        if rng.random() < 0.5:
            cv2.circle(shape, (x, y), radius, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(shape, (x - radius, y - radius * 2), (x + radius // 2, y + radius), colour, -1)
        sheet = sheet + (shape - sheet) * np.float32(rng.uniform(0.3, 0.9))
    sheet = cv2.GaussianBlur(sheet, (0, 0), float(rng.uniform(1.5, 5.0)))
    return np.clip(cv2.resize(sheet, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)
