"""Steps that were left out because a loss or a gradient was not finite: which, why, and what a run does then.

The optimizer leaves them out on the device (``Optimizer.report``); the host hears of it when it fetches the losses, for
the next loss line or checkpoint. Then, by policy:

    stop      the run ends with code 1; the steps since the last checkpoint are lost
    skip      the run goes on, and gives up at the tenth such step in a row
    rollback  the run takes the weights of the last checkpoint, halves the learning rate and goes on with the batch
              behind the broken one. That does not depend on when the host heard of it. It gives up at the sixth time;
              another --learning-rate begins to count anew
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

NanPolicy = Literal["stop", "skip", "rollback"]
Faces = np.ndarray | None  # (B,) ordinals of a step's faces, the same on every side, where the batch knows them
MAX_IN_A_ROW, MAX_ROLLBACKS = 10, 5


@dataclass(frozen=True)
class Broken:
    """One step: how many iterations the model had with it, what was not finite, and its faces."""

    step: int
    what: str
    faces: Faces  # of several batches the first and the last

    def __str__(self) -> str:
        which = "" if self.faces is None else f" (ordinals {self.faces[0]} to {self.faces[-1]} of each side)"
        return f"{self.what} became non-finite at iteration {self.step}{which}"


def broken_step(
    step: int, faces: Faces, values: dict[str, float], parameter_name: Callable[[int], str], accumulated: int = 1
) -> Broken | None:
    """What was wrong with a step that has these values (see ``step_values`` and ``Optimizer.report``), if anything.

    accumulated: how many batches' gradients are added up; which one of them broke it is not known.
    """
    if values.get("nonfinite/loss"):
        return Broken(step, f"the loss ({_functions(values)})", faces)
    if values.get("nonfinite/gradient"):
        name = parameter_name(int(values["nonfinite/parameter"]))
        if accumulated == 1:
            return Broken(step, f"the gradient ({name})", faces)
        if faces is not None:
            first, last = int(faces[0]), int(faces[-1])
            faces = np.array([max(first - (accumulated - 1) * (last - first + 1), 0), last])
        return Broken(step, f"the gradient of {accumulated} batches ({name})", faces)
    return None


def _functions(values: dict[str, float]) -> str:
    """'ssim of side A, mask of side B': the parts of a loss that are not finite."""
    parts = []
    for tag, value in values.items():
        kind, _, name = tag.removeprefix("batch_").partition("_")
        if value - value != 0 and kind in ("unweighted", "mask"):  # NaN or infinite
            side, _, function = name.partition("/")
            parts.append(f"{function or 'mask'} of side {side}")
    return ", ".join(parts) or "their sum"
