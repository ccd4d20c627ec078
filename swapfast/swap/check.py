"""Says what a swap would do, and writes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from swapfast.bars import Progress
from swapfast.checkpoints.trained import OpenedModel
from swapfast.errors import SwapfastError
from swapfast.faces.image import read_bytes
from swapfast.faces.reader import picture_info
from swapfast.printing import shown_name
from swapfast.swap.found_faces import FacesOfFrame
from swapfast.swap.frames import Frame, FrameFace
from swapfast.swap.picture_file import PictureOrigin
from swapfast.swap.pipeline import SwapCounts, crop_edge
from swapfast.swap.report import face_sizes, size_lines
from swapfast.swap.request import PicturePlan, SwapRequest, faces_source, needs_stored
from swapfast.swap.swapper import FrameSwapper


def check_pictures(plan: PicturePlan, progress: Progress | None = None) -> dict[str, Any]:
    """Return what would be done, JSON-ready. Every picture's header is read, and no pixel is decoded.

    Raises SwapfastError where a picture cannot be read, or a face lacks the mask that is asked for.
    """
    swapper, counts = plan.swapper(), SwapCounts()
    indices = [index for index in plan.indices if plan.is_swapped(index)]
    wanted = needs_stored(plan.request)
    for count, index in enumerate(indices, 1):
        frame = _header_of(plan, index)
        lacks_mask = plan.masks is not None and plan.masks.path_of(frame.name) is None
        faces = count_faces(counts, plan.request, plan.find(frame), frame, swapper, lacks_mask)
        kind = plan.request.settings.of(plan.numbers[index]).mask.type
        for face in faces:
            if kind in wanted and kind not in face.stored_masks:
                raise SwapfastError(
                    f"-M/--mask-type {kind}: {face.name or frame.name} has no such mask (it has "
                    f"{', '.join(sorted(face.stored_masks)) or 'none'}); give extended, which is drawn from landmarks"
                )
        if progress is not None:
            progress(count, len(indices))
    return check_figures(counts, plan.request, plan.opened, faces_source(plan.request), len(plan.indices))


def count_faces(
    counts: SwapCounts,
    request: SwapRequest,
    frame_faces: FacesOfFrame,
    frame: Frame,
    swapper: FrameSwapper,
    lacks_mask: bool,
) -> list[FrameFace]:
    """Count what would become of a frame's faces; return those that would be swapped.

    lacks_mask: the folder of masks has none for this frame.
    """
    faces, reasons = request.choice(frame_faces, frame, [crop_edge(face, swapper) for face in frame_faces.faces])
    counts.frames += 1
    counts.faces += len(faces)
    counts.frames_with_faces += bool(faces)
    counts.frames_without_mask += bool(faces) and lacks_mask
    counts.skipped.update(reasons)
    counts.edges.extend(crop_edge(face, swapper) for face in faces)
    return faces


def check_figures(
    counts: SwapCounts, request: SwapRequest, opened: OpenedModel, faces_from: str, frames: int
) -> dict[str, Any]:
    """Return what would be done, JSON-ready. counts: of the frames whose faces are swapped. frames: all there are."""
    return {
        "model": opened.model.name,
        "iteration": opened.metadata.step,
        "to": request.to,
        "faces_from": faces_from,
        "frames": frames,
        "frames_swapped": counts.frames_with_faces,
        "frames_without_faces": counts.frames - counts.frames_with_faces,
        "frames_outside_ranges": frames - counts.frames,
        "frames_without_mask": counts.frames_without_mask,
        "faces": counts.faces,
        "faces_skipped": dict(counts.skipped.most_common()),
        "face_px": face_sizes(counts.edges),
        "model_px": opened.model.output_sizes[-1],
        "settings": request.settings.to_dict(),
    }


def _header_of(plan: PicturePlan, index: int) -> Frame:
    """Return a frame of a picture's size whose pixels are all 0, and take no memory."""
    name = plan.pictures.names[index]
    path = plan.pictures.folder / name
    try:
        info = picture_info(read_bytes(path), path.suffix.lower())
    except ValueError as error:
        raise SwapfastError(f"{shown_name(path)}: {error}; mend it, or remove it") from error
    pixels = np.broadcast_to(np.uint8(0), (info.height, info.width, 3))
    return Frame(name, index, None, pixels, origin=PictureOrigin(path, b"", info, False, b""))


def describe_check(result: dict[str, Any]) -> list[str]:
    """Return the result in lines."""
    settings = result["settings"]
    lines = [
        f"{result['faces']} faces in {result['frames_swapped']} of {result['frames']} frames would become those of "
        f"{result['to'].upper()}, by {result['model']} at iteration {result['iteration']}",
        f"faces from {result['faces_from']}",
        f"mask {settings['mask']['type']}, colours {settings['color']['type']}"
        + (f", and {len(settings['range'])} ranges with settings of their own" if settings["range"] else ""),
    ]
    if result["frames_without_faces"]:
        lines.append(f"{result['frames_without_faces']} frames have no face that would be swapped")
    if result["frames_outside_ranges"]:
        lines.append(f"{result['frames_outside_ranges']} frames outside the ranges would be written as they are")
    if result["frames_without_mask"]:
        lines.append(f"{result['frames_without_mask']} frames have no mask in --mask-dir")
    lines += [f"{number} faces would be left out: {reason}" for reason, number in result["faces_skipped"].items()]
    return [*lines, *size_lines(result["face_px"], result["model_px"]), "nothing was written"]
