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
import torch
from torch import Tensor

from swapfast.errors import EXIT_FAILED, SwapfastError

NanPolicy = Literal["stop", "skip", "rollback"]
Faces = np.ndarray | None  # (B,) ordinals of a step's faces, the same on every side, where the batch knows them
MAX_IN_A_ROW, MAX_ROLLBACKS = 10, 5
_AGAIN = "Start again with a lower --learning-rate"


@dataclass(frozen=True)
class NonFiniteStep:
    """A step with a loss, gradient or weight that is not finite.

    step: iterations the model had with it. cause: what was not finite. faces: the step's; of several batches the first
    and the last.
    """

    step: int
    cause: str
    faces: Faces

    def __str__(self) -> str:
        ordinals = "" if self.faces is None else f" (ordinals {self.faces[0]} to {self.faces[-1]} of each side)"
        return f"{self.cause} became non-finite at iteration {self.step}{ordinals}"


def nonfinite_step(
    step: int, faces: Faces, values: dict[str, float], parameter_name: Callable[[int], str], accumulated: int = 1
) -> NonFiniteStep | None:
    """Return what was not finite in a step with these values, None where all was.

    values: see ``step_values`` and ``Optimizer.report``. accumulated: how many batches' gradients are added up; which
    one of them was to blame is not known.
    """
    if values.get("nonfinite/loss"):
        return NonFiniteStep(step, f"the loss ({_functions(values)})", faces)
    if values.get("nonfinite/gradient"):
        name = parameter_name(int(values["nonfinite/parameter"]))
        if accumulated == 1:
            return NonFiniteStep(step, f"the gradient ({name})", faces)
        if faces is not None:
            first, last = int(faces[0]), int(faces[-1])
            faces = np.array([max(first - (accumulated - 1) * (last - first + 1), 0), last])
        return NonFiniteStep(step, f"the gradient of {accumulated} batches ({name})", faces)
    return None


def nonfinite_weights(step: int, weights: dict[str, Tensor]) -> NonFiniteStep | None:
    """Return which weight is not finite, None where all are. Waits for the device.

    Weights can overflow though every loss and gradient was finite.
    """
    finite = torch.stack([weight.isfinite().all() for weight in weights.values()])
    if finite.all():
        return None
    name = next(name for name, good in zip(weights, finite.tolist()) if not good)
    return NonFiniteStep(step, f"the weights ({name})", None)


def _functions(values: dict[str, float]) -> str:
    """Return the parts of a loss that are not finite: 'ssim of side A, mask of side B'."""
    parts = []
    for tag, value in values.items():
        kind, _, name = tag.removeprefix("batch_").partition("_")
        if value - value != 0 and kind in ("unweighted", "mask"):  # NaN or infinite
            side, _, function = name.partition("/")
            parts.append(f"{function or 'mask'} of side {side}")
    return ", ".join(parts) or "their sum"


# --- how a run answers ------------------------------------------------------------------------------------


class SkippedSteps:
    """Answers steps that were left out, where the run does not go back to a checkpoint."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def end_row(self) -> None:
        """Note that the weights have moved."""
        self._in_a_row = 0

    def skip(self, bad: NonFiniteStep, policy: NanPolicy, saved_step: int | None) -> str:
        """Return the warning to show. Raises SwapfastError (code 1) where the run ends with this step.

        saved_step: of the newest checkpoint.
        """
        if policy == "stop":
            raise SwapfastError(
                f"{bad} and did not reach the weights; {_saved(saved_step)}. {_AGAIN}, or with --nan skip or "
                "--nan rollback",
                EXIT_FAILED,
            )
        self._in_a_row += 1
        if self._in_a_row >= MAX_IN_A_ROW:
            raise SwapfastError(
                f"{bad}, the {MAX_IN_A_ROW}th step in a row; {_saved(saved_step)}. {_AGAIN} or --nan rollback, or look "
                "at the faces",
                EXIT_FAILED,
            )
        return f"warning: {bad}; that step was left out (--nan skip)"


def rollback_error(bad: NonFiniteStep, has_checkpoint: bool) -> SwapfastError:
    """Return the error of a run that has gone back too often, or finds nothing to go back to."""
    reason = f"it went back {MAX_ROLLBACKS} times already" if has_checkpoint else "there is no checkpoint"
    return SwapfastError(f"{bad}; --nan rollback: {reason}. {_AGAIN}", EXIT_FAILED)


def weights_error(bad: NonFiniteStep, saved_step: int | None) -> SwapfastError:
    """Return the error of weights that are not finite, which are never saved."""
    return SwapfastError(f"{bad}; {_saved(saved_step)}. {_AGAIN}", EXIT_FAILED)


def _saved(saved_step: int | None) -> str:
    if saved_step is None:
        return "nothing had been saved"
    return f"the checkpoint of iteration {saved_step} is finite"
