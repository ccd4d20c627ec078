"""The fused augmentation, compared on the first faces it gets with the one it takes the place of.

What only a GPU can show (whether Triton finds its compiler, whether the kernels of this very card are right) is seen
there, before any face is trained on. Nothing here needs Triton.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from swapfast.augment.draws import Draws
from swapfast.augment.fused.rows import StoredRows
from swapfast.augment.result import Augmented

FACES = 8  # that are compared
# Ten bits a channel are 71 dB by themselves; ties of CLAHE that end one level off on a GPU cost some. A wrong kernel is
# far below. Masks round in float32 only.
LEAST_DB = 55.0

Pixels = Tensor | StoredRows
Augment = Callable[..., Augmented]  # of faces, extra masks and draws; the fused one also of ``rows`` and ``out``


@dataclass(frozen=True)
class Comparison:
    """How far two augmentations of the same faces and draws are apart, in dB of 0..1; infinite where they are equal."""

    feed: float
    target: float  # the worst of all sizes
    masks: float  # the same; infinite without masks

    @property
    def worst(self) -> float:
        """Return the least of the three; NaN counts as nothing alike."""
        return min(value if value == value else -torch.inf for value in (self.feed, self.target, self.masks))


def compare(one: Augmented, other: Augmented) -> Comparison:
    """Return how far two results are apart. Waits for their device."""
    masks = [] if one.masks is None or other.masks is None else list(zip(one.masks, other.masks, strict=True))
    return Comparison(
        feed=_decibel(one.feed, other.feed),
        target=min(map(_decibel, one.targets, other.targets)),
        masks=min((_decibel(a, b) for a, b in masks), default=torch.inf),
    )


def _decibel(one: Tensor, other: Tensor) -> float:
    return float(-10 * torch.log10((one.double() - other.double()).square().mean()))


def _augment_gathered(augment: Augment, faces: Pixels, extra_masks: Pixels | None, draws: Draws) -> Augmented:
    tensors = [pixels.gather() if isinstance(pixels, StoredRows) else pixels for pixels in (faces, extra_masks)]
    return augment(*tensors, draws)


def _augment_stored(
    augment: Augment, faces: Pixels, extra_masks: Pixels | None, draws: Draws, **options: Augmented
) -> Augmented:
    if not isinstance(faces, StoredRows):
        return augment(faces, extra_masks, draws, **options)
    mask_rows = extra_masks.stored if isinstance(extra_masks, StoredRows) else extra_masks
    return augment(faces.stored, mask_rows, draws, rows=faces.rows, **options)


class VerifiedAugmenter:
    """Augments by the fused kernels, or by the reference where these fail or differ from it on the first faces.

    fused: makes the fused augmentation; may raise anything
    reference: the augmentation whose place it takes
    warn: prints the one line that says why the reference is used
    """

    def __init__(self, fused: Callable[[], Augment], reference: Augment, warn: Callable[[str], None]) -> None:
        self.reference = reference
        self._make_fused, self._warn = fused, warn
        self._chosen: Augment | None = None
        self._lock = threading.Lock()

    @property
    def is_fused(self) -> bool:
        """Whether the fused kernels are used; False before the first faces."""
        return self._chosen is not None and self._chosen is not self.reference

    def __call__(
        self, faces: Pixels, extra_masks: Pixels | None, draws: Draws, out: Augmented | None = None
    ) -> Augmented:
        """Return N faces augmented, float32 0..1 on their device; see ``DeviceAugmenter``.

        faces: as tensors or, with the extra masks, as rows of a store, which the kernels read without a gather
        out: where the fused kernels write, a former result of theirs of the same shapes; by default new memory
        """
        with self._lock:
            if self._chosen is None and len(faces):
                self._chosen = self._choose(faces, extra_masks, draws)
        if self._chosen is None or self._chosen is self.reference:
            return _augment_gathered(self.reference, faces, extra_masks, draws)
        return _augment_stored(self._chosen, faces, extra_masks, draws, **({} if out is None else {"out": out}))

    def _choose(self, faces: Pixels, extra_masks: Pixels | None, draws: Draws) -> Augment:
        batch = faces[:FACES], None if extra_masks is None else extra_masks[:FACES], draws[:FACES]
        reference_batch = _augment_gathered(self.reference, *batch)
        try:
            fused = self._make_fused()
            comparison = compare(_augment_stored(fused, *batch), reference_batch)
        except Exception as error:  # Triton, its compiler, the driver: whatever it is, the slower way is there
            self._warn(f"--backend triton: {reason(error)}; augmenting by kornia")
            return self.reference
        if comparison.worst < LEAST_DB:
            self._warn(
                f"--backend triton: differs from kornia on this card ({comparison.worst:.0f} dB, {LEAST_DB:.0f} are "
                "needed); augmenting by kornia"
            )
            return self.reference
        return fused


def reason(error: Exception) -> str:
    """Return in one line why the fused augmentation cannot run here."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:160]
    if isinstance(error, ValueError):  # what the kernels do not take, in their own words
        return str(error)
    if "compiler" in text or "CalledProcessError" in text:
        return f"Triton cannot compile here, it needs a C compiler and Python.h ({text})"
    return f"the fused kernels cannot run here ({text})"
