"""`swapfast activations`: what a trained network makes of a face, stage by stage, as a picture."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from swapfast.commands.argument_types import checkpoint, path, whole
from swapfast.commands.weights import add_weights
from swapfast.errors import EXIT_DONE, SwapfastError
from swapfast.printing import complain, say, shown_name
from swapfast.stop import StopRequest

if TYPE_CHECKING:
    import numpy as np

    from swapfast.config import CropConfig

SUFFIXES = (".png", ".jpg", ".jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("model", type=path, metavar="MODEL", help="a model folder")
    parser.add_argument(
        "faces",
        type=path,
        nargs="+",
        metavar="FACE",
        help="faceswap's face PNG, or a picture with NAME.json beside it; several share channels and scales",
    )
    parser.add_argument("-o", "--out", type=path, required=True, metavar="FILE", help="the picture: .png or .jpg")
    parser.add_argument(
        "--channels", type=whole, default=9, metavar="N", help="of each stage, those that vary most; default 9"
    )
    parser.add_argument(
        "--checkpoint",
        type=checkpoint,
        metavar="N",
        help="the iteration to look at, newest, or best: the backup, see docs/running.md; default: the newest",
    )
    add_weights(parser)
    parser.add_argument("--of", choices=("a", "b"), default="a", help="the side that the faces show; default a")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    """Draw what the command line asks for; return the exit code."""
    import cv2
    import numpy as np

    from swapfast.checkpoints.trained import open_model
    from swapfast.device import pick_device
    from swapfast.files import check_new_file, not_a_folder, write_file
    from swapfast.preview.activations import MOST_CHANNELS, MOST_FACES, draw_activations, find_activations

    out, faces = arguments.out, arguments.faces
    check_new_file(out, "-o/--out", SUFFIXES)
    if out.exists() and _is_face(out):
        raise SwapfastError(f"-o/--out {out}: is a picture of a face; give another name for the sheet")
    if not 1 <= arguments.channels <= MOST_CHANNELS:
        raise SwapfastError(f"--channels {arguments.channels}: must lie within 1 and {MOST_CHANNELS}")
    if len(faces) > MOST_FACES:
        raise SwapfastError(f"{len(faces)} faces: a sheet shows at most {MOST_FACES}; give fewer")
    if not arguments.model.is_dir():
        raise not_a_folder(arguments.model, f"MODEL {arguments.model}", "a model folder, and the faces behind it")
    model, config, metadata = open_model(
        arguments.model,
        arguments.checkpoint,
        pick_device(arguments.device),
        arguments.weights,
        arguments.exchange_codes,
    )
    for remark in metadata.remarks:
        complain(remark)
    pictures = np.stack([_crop(path, config.crop, model.input_size) for path in faces])
    activations = find_activations(model, np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)), arguments.of)
    title = f"{model.name} at {model.input_size} px, iteration {metadata.step} of {arguments.model.resolve().name}"
    sheet = draw_activations(activations, pictures, [path.name for path in faces], title, arguments.channels)
    succeeded, encoded = cv2.imencode(out.suffix.lower(), sheet)
    if not succeeded:
        height, width = sheet.shape[:2]
        raise SwapfastError(f"-o/--out {out}: {width} x {height} px are too many; fewer faces, or give .png")
    write_file(out, encoded.tobytes())
    say(f"look at {out}")
    return EXIT_DONE


def _is_face(path: Path) -> bool:
    """Say whether a file is a face. `-o FOLDER/*.png` names the first of them as the sheet."""
    from swapfast.faces.reader import read_face
    from swapfast.faces.record import FaceRecord

    folder = path.absolute().parent
    return isinstance(read_face(folder, path.name, frozenset(os.listdir(folder))), FaceRecord)


def _crop(path: Path, crop: CropConfig, size: int) -> np.ndarray:
    """Return the face in a file, cut as the model was trained: (size, size, 3) float32 in 0..1 BGR.

    Raises SwapfastError where there is no face.
    """
    import numpy as np

    from swapfast.faces.crop import crop_face
    from swapfast.faces.image import read_image
    from swapfast.faces.reader import BadFace, read_face

    if path.is_dir():
        raise SwapfastError(f"{path}: is a folder; give pictures of faces")
    folder = path.absolute().parent
    try:
        path.stat()  # a name without a file is told from one that cannot be read
        record = read_face(folder, path.name, frozenset(os.listdir(folder)))
        if record is None:
            raise ValueError("is no picture")
        if isinstance(record, BadFace):
            raise ValueError(record.reason)
        face = crop_face(record, read_image(path), crop, size)
    except OSError as error:
        raise SwapfastError(f"{shown_name(path)}: {error.strerror or error}; give a picture of a face") from error
    except ValueError as error:
        raise SwapfastError(f"{shown_name(path)}: {error}; give another picture of a face") from error
    return face.astype(np.float32) / 255
