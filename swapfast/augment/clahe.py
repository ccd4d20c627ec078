"""CLAHE (contrast limited adaptive histogram equalisation) of the lightness, on torch tensors, by kornia.

kornia takes one grid per call, so faces are grouped by theirs. An own kernel with a grid per face, equal to OpenCV
and of fixed shape for ``torch.compile``, is to come; it needs to replace ``equalize`` only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kornia.enhance import equalize_clahe
from torch import Tensor

from swapfast.augment.constants import CLIP_LIMIT
from swapfast.augment.transfer import send


def equalize(lightness: Tensor, grids: Sequence[int]) -> Tensor:
    """(N, 1, S, S) levels 0..255 -> the same, equalised with ``grids[i]`` x ``grids[i]`` tiles; 0 leaves a face.

    Levels are rounded to whole ones first: a histogram has 256 bins. kornia blends its tiles half a pixel before
    OpenCV and does not round the result, so the two differ by 0.2 (512 px) to 0.6 (64 px) levels on average.
    """
    result = lightness.clone()
    for grid in sorted({int(g) for g in grids} - {0}):
        members = send(np.flatnonzero(np.equal(grids, grid)), lightness.device)
        levels = (lightness[members].round() / 255).clamp(0, 1)
        result[members] = equalize_clahe(levels, CLIP_LIMIT, (grid, grid)) * 255
    return result
