"""Says what a swap would do, and writes nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from swapfast.bars import Progress
from swapfast.errors import SwapfastError
from swapfast.faces.image import read_bytes
from swapfast.faces.reader import picture_info
from swapfast.printing import shown_name
from swapfast.swap.frames import Frame
from swapfast.swap.picture_file import PictureOrigin
from swapfast.swap.pipeline import crop_edge
from swapfast.swap.report import face_sizes, size_lines
from swapfast.swap.request import PicturePlan, faces_source, needs_stored


def check_pictures(plan: PicturePlan, progress: Progress | None = None) -> dict[str, Any]:
    """Return what would be done, JSON-ready. Every picture's header is read, and no pixel is decoded.

    Raises SwapfastError where a picture cannot be read, or a face lacks the mask that is asked for.
    """
    swapper, skipped, edges = plan.swapper(), Counter[str](), []
    indices = [index for index in plan.indices if plan.is_swapped(index)]
    with_faces = without_mask = 0
    wanted = needs_stored(plan.request)
    for count, index in enumerate(indices, 1):
        frame = _header_of(plan, index)
        found = plan.find(frame)
        faces, reasons = plan.request.choice(found, frame, [crop_edge(face, swapper) for face in found.faces])
        skipped.update(reasons)
        edges += [crop_edge(face, swapper) for face in faces]
        with_faces += bool(faces)
        without_mask += bool(faces) and plan.masks is not None and plan.masks.path_of(frame.name) is None
        kind = plan.request.settings.of(plan.numbers[index]).mask.type
        for face in faces:
            if kind in wanted and kind not in face.stored_masks:
                raise SwapfastError(
                    f"-M/--mask-type {kind}: {face.name or frame.name} has no such mask (it has "
                    f"{', '.join(sorted(face.stored_masks)) or 'none'}); give extended, which is drawn from landmarks"
                )
        if progress is not None:
            progress(count, len(indices))
    metadata = plan.opened.metadata
    return {
        "model": plan.opened.model.name,
        "iteration": metadata.step,
        "to": plan.request.to,
        "faces_from": faces_source(plan.request),
        "frames": len(plan.indices),
        "frames_swapped": with_faces,
        "frames_without_faces": len(indices) - with_faces,
        "frames_outside_ranges": len(plan.indices) - len(indices),
        "frames_without_mask": without_mask,
        "faces": len(edges),
        "faces_skipped": dict(skipped.most_common()),
        "face_px": face_sizes(edges),
        "model_px": plan.opened.model.output_sizes[-1],
        "settings": plan.request.settings.to_dict(),
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
