"""Swaps the faces of frames with a trained model. It knows frames and faces, and no files.

The way of a frame has three parts, so that the outer two can run in threads beside the model:

    prepare     cut each face: once at the model's input size, once as the reference at its output size
    predict     batches of faces on the device, over several frames
    complete    mask, colours, sharpening; then warp each face into its box, and blend once

Colours are measured in ``measure``, a step of its own, so that they can be smoothed over frames before ``compose``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from swapfast.batch import SIDES
from swapfast.config import CropConfig
from swapfast.faces.crop import sample_square
from swapfast.models import FaceAutoencoder
from swapfast.swap.apply import swap_faces
from swapfast.swap.color import Statistics, adjust, measure
from swapfast.swap.frames import Frame, FrameFace, SwappedFrame
from swapfast.swap.masks import base_mask, erode, finished_mask, frame_matrix, mask_size
from swapfast.swap.paste import blend, paste_matrix, touched_box, warp_into
from swapfast.swap.settings import LEARNED, LEARNED_MIN, LEARNED_OTHER, LEARNED_TYPES, SwapSettings
from swapfast.swap.sharpen import sharpened
from swapfast.video.pixels import part_of

_COLOR_RIM = 5.0  # percent of the crop's edge inside the mask that no colours are measured in


@dataclass(eq=False)
class FaceInWork:
    """A face on its way through a frame.

    cut         (s, s, 3) float32 in 0..1, at the model's input size
    reference   (S, S, 3) float32 in 0..1, at its output size
    made        (S, S, 3) float32, by the model
    learned     by mask type, (S, S) float32
    alpha       (K, K) float32, how opaque the face is
    weights     (S, S) float32, where colours are measured
    statistics  what was measured of the colours; whoever smooths them puts a mean in its place
    """

    face: FrameFace
    settings: SwapSettings
    cut: np.ndarray
    reference: np.ndarray
    made: np.ndarray | None = None
    learned: dict[str, np.ndarray] = field(default_factory=dict)
    alpha: np.ndarray | None = None
    weights: np.ndarray | None = None
    statistics: Statistics | None = None


@dataclass(eq=False)
class FrameInWork:
    """A frame and its faces. occlusion: (H, W) uint8, 0 where something lies in front of a face; None: nowhere."""

    frame: Frame
    faces: list[FaceInWork]
    occlusion: np.ndarray | None = None


@dataclass(frozen=True)
class Patch:
    """A pasted face as a compositor wants it.

    face: (S, S, 3) float32 in 0..1 BGR. alpha: (K, K) float32 in 0..1, of the same field of view.
    matrix: (2, 3), px of ``face`` -> px of the frame.
    """

    face: np.ndarray
    alpha: np.ndarray
    matrix: np.ndarray


class FrameSwapper:
    """Swaps the faces of frames.

    crop: what the model was trained on. settings: of a frame, by its index.
    to: the side whose face comes out. scale: of what is written, 1.0 as it was.
    wants_alpha, wants_patches: what ``compose`` returns beside the frame's pixels.
    is_transparent: paste onto nothing in place of the frame, with the mask as the alpha.
    """

    def __init__(
        self,
        model: FaceAutoencoder,
        crop: CropConfig,
        settings: SwapSettings | Callable[[int], SwapSettings] | None = None,
        to: str = "b",
        *,
        scale: float = 1.0,
        batch_size: int = 16,
        wants_alpha: bool = False,
        wants_patches: bool = False,
        is_transparent: bool = False,
    ) -> None:
        self.model, self.crop, self.to, self.scale = model, crop, to, scale
        chosen = SwapSettings() if settings is None else settings
        self.settings_of: Callable[[int], SwapSettings] = chosen if callable(chosen) else lambda index: chosen
        self.batch_size = batch_size
        self.wants_alpha, self.wants_patches, self.is_transparent = wants_alpha, wants_patches, is_transparent
        self.input_size, self.output_size = model.input_size, model.output_sizes[-1]

    def swap(self, frame: Frame, faces: Sequence[FrameFace], occlusion: np.ndarray | None = None) -> SwappedFrame:
        """Return one frame with ``faces`` swapped, all steps at once."""
        work = self.prepare(frame, faces, occlusion)
        self.predict([work])
        self.measure(work)
        return self.compose(work)

    def prepare(self, frame: Frame, faces: Sequence[FrameFace], occlusion: np.ndarray | None = None) -> FrameInWork:
        """Return the frame with its faces cut."""
        settings = self.settings_of(frame.index)
        return FrameInWork(frame, [self._cut(frame.pixels, face, settings) for face in faces], occlusion)

    def _cut(self, pixels: np.ndarray, face: FrameFace, settings: SwapSettings) -> FaceInWork:
        colours, highest = pixels[..., :3], np.float32(np.iinfo(pixels.dtype).max)
        if colours.shape[2] != pixels.shape[2]:
            colours = np.ascontiguousarray(colours)
        cuts = {}
        for size in {self.input_size, self.output_size}:
            square = sample_square(colours, frame_matrix(face, self.crop, size), size)
            cuts[size] = square.astype(np.float32) / highest
        return FaceInWork(face, settings, cuts[self.input_size], cuts[self.output_size])

    def predict(self, frames: Sequence[FrameInWork]) -> None:
        """Let the model make the faces of several frames, in batches. Which faces share a batch follows from these."""
        faces = [face for frame in frames for face in frame.faces]
        if not faces:
            return
        images = np.ascontiguousarray(np.stack([face.cut for face in faces]).transpose(0, 3, 1, 2))
        made = swap_faces(self.model, images, self.to, self.batch_size)
        for face, picture in zip(faces, made):
            face.made = np.ascontiguousarray(picture[..., :3])
            if picture.shape[2] > 3:
                face.learned[LEARNED] = np.ascontiguousarray(picture[..., 3])
        if self.model.learns_mask and any(f.settings.mask.type in LEARNED_TYPES[1:] for f in faces):
            other = next(side for side in SIDES if side != self.to)
            for face, picture in zip(faces, swap_faces(self.model, images, other, self.batch_size, of=other)):
                face.learned[LEARNED_OTHER] = np.ascontiguousarray(picture[..., 3])
                face.learned[LEARNED_MIN] = np.minimum(face.learned[LEARNED], face.learned[LEARNED_OTHER])

    def measure(self, work: FrameInWork) -> FrameInWork:
        """Make each face's mask and measure its colours. Returns ``work``."""
        size = mask_size(self.output_size)
        for face in work.faces:
            assert face.made is not None, "predicted before"
            base = base_mask(face.face, self.crop, face.settings.mask, size, face.learned)
            occlusion = None
            if work.occlusion is not None:
                to_mask = frame_matrix(face.face, self.crop, size)
                occlusion = sample_square(work.occlusion, to_mask, size, border=cv2.BORDER_CONSTANT)
            face.alpha = finished_mask(base, face.settings.mask, occlusion)
            face.weights = self._weights(face)
            face.statistics = measure(face.settings.color, face.made, face.reference, face.weights)
        return work

    def _weights(self, face: FaceInWork) -> np.ndarray:
        """Return where the colours of a face are measured: inside its mask, away from the mask's edge.

        At the edge itself there is background, hair or the shadow of a chin.
        """
        assert face.alpha is not None
        alpha = cv2.resize(face.alpha, (self.output_size, self.output_size), interpolation=cv2.INTER_AREA)
        solid = (alpha > 0.5).astype(np.uint8)
        rim = max(1, round(_COLOR_RIM / 100 * self.output_size))
        core = erode(solid, rim)
        return (core if core.any() else solid).astype(np.float32)

    def compose(self, work: FrameInWork) -> SwappedFrame:
        """Paste the faces into a copy of their frame."""
        frame = work.frame
        pixels = self._canvas(frame)
        height, width = pixels.shape[:2]
        is_plain = pixels.shape[2] == 3 and not self.is_transparent
        colours = pixels if is_plain else np.ascontiguousarray(pixels[..., :3])
        if self.is_transparent:
            colours = np.zeros_like(colours)
        alpha = np.zeros((height, width), np.float32) if self.wants_alpha or self.is_transparent else None
        patches = [self._patch(face) for face in work.faces]
        for patch in patches:
            self._paste(colours, alpha, patch)
        if self.is_transparent and alpha is not None:
            highest = np.iinfo(pixels.dtype).max
            pixels = np.dstack([colours, np.rint(alpha * highest).astype(pixels.dtype)])
        elif not is_plain:
            pixels[..., :3] = colours
        levels = np.rint(alpha * 255).astype(np.uint8) if alpha is not None and self.wants_alpha else None
        swapped = [face.face for face in work.faces]
        return SwappedFrame(frame, pixels, len(patches), levels, patches if self.wants_patches else [], swapped)

    def _canvas(self, frame: Frame) -> np.ndarray:
        """Return a copy of a frame's pixels, at the scale that is asked for."""
        pixels = frame.pixels
        if self.scale == 1 and frame.box is not None:
            canvas = np.zeros(pixels.shape, pixels.dtype)  # takes no time and no memory where nobody touches it
            inside = part_of(frame.box)
            canvas[inside] = pixels[inside]
            return canvas
        if self.scale == 1:
            return pixels.copy()
        height, width = pixels.shape[:2]
        size = max(1, round(width * self.scale)), max(1, round(height * self.scale))
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC)

    def _patch(self, work: FaceInWork) -> Patch:
        assert work.made is not None and work.alpha is not None and work.weights is not None
        settings = work.settings
        face = adjust(settings.color, work.made, work.reference, work.weights, work.statistics)
        face = sharpened(face, settings.face)
        to_crop = frame_matrix(work.face, self.crop, self.output_size)
        matrix = paste_matrix(to_crop, self.output_size, 1 + settings.face.scale / 100)
        return Patch(face, work.alpha, matrix)

    def _paste(self, colours: np.ndarray, alpha: np.ndarray | None, patch: Patch) -> None:
        """Blend a patch into a frame of the output's scale, and into its alpha where there is one."""
        height, width = colours.shape[:2]
        matrix = scaled_matrix(patch.matrix, self.scale)
        of_mask = mask_matrix(matrix, len(patch.face), len(patch.alpha))
        box = touched_box(patch.alpha, of_mask, width, height)
        if box is None:
            return
        opacity = warp_into(patch.alpha, of_mask, box, cv2.BORDER_CONSTANT, cv2.INTER_LINEAR)
        face = warp_into(patch.face, matrix, box, cv2.BORDER_REPLICATE, cv2.INTER_CUBIC)
        x0, y0, x1, y1 = box
        if self.is_transparent:
            # Onto nothing: colours as they are, the alpha tells how much of them there is.
            highest = np.iinfo(colours.dtype).max
            levels = np.rint(np.clip(face, 0, 1) * highest).astype(colours.dtype)
            colours[y0:y1, x0:x1] = np.where(opacity[..., None] > 0, levels, colours[y0:y1, x0:x1])
        else:
            blend(colours, face, opacity, box)
        if alpha is not None:
            region = alpha[y0:y1, x0:x1]
            region += opacity * (1 - region)


def scaled_matrix(matrix: np.ndarray, scale: float) -> np.ndarray:
    """Return a matrix to px of a frame as one to px of the frame at another scale, (2, 3)."""
    if scale == 1:
        return matrix
    return np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]]) @ np.vstack([matrix, (0, 0, 1)])


def mask_matrix(matrix: np.ndarray, size: int, of_mask: int) -> np.ndarray:
    """Return a matrix of a crop of ``size`` px as one of its mask, of ``of_mask`` px, (2, 3)."""
    scale = size / of_mask
    return matrix @ np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
