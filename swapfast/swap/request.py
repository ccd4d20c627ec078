"""What a swap is asked for, and everything that can be checked before anything is written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from swapfast import __version__
from swapfast.batch import SIDES
from swapfast.checkpoints.trained import CheckpointChoice, OpenedModel, open_model
from swapfast.device import pick_device, set_products
from swapfast.errors import SwapfastError, unknown_name
from swapfast.faces.companions import PICTURE_SUFFIXES
from swapfast.faces.masks import DRAWN_TYPES
from swapfast.files import check_folder, check_new_file, not_a_folder, open_plain
from swapfast.swap.chosen import ChosenSettings, FrameRanges, choose_settings
from swapfast.swap.found_faces import FaceChoice, FaceTable, JsonBeside, read_faces_folder
from swapfast.swap.frames import Frame
from swapfast.swap.landmark_file import read_landmark_file
from swapfast.swap.pictures import MaskFolder, PictureFolder, PictureOutput, list_pictures
from swapfast.swap.settings import DECODERS, LEARNED_TYPES, NO_MASK, ORDERS, RECT
from swapfast.swap.swapper import FrameSwapper

SCALES = (25.0, 400.0)  # percent
WRITERS = ("picture", "patch")
FORMATS = {"same": "", "png": ".png", "jpg": ".jpg"}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class SwapRequest:
    """What is asked for.

    model_dir, checkpoint, weights, exchange_codes, device   of ``open_model``
    input       a folder of frames, or one picture
    out         the folder of the new ones; None for what writes no frames
    faces, landmarks    where the faces of frames are known from; neither: NAME.json beside them
    to          the side whose face comes out
    ranges      frames to swap, all where None; keep_unchanged: write the others as they are
    scale       of the output, percent
    format      'same', 'png' or 'jpg'
    decoder     of pictures, one of ``DECODERS``
    """

    model_dir: Path
    input: Path
    out: Path | None = None
    faces: Path | None = None
    landmarks: Path | None = None
    mask_dir: Path | None = None
    settings: ChosenSettings = field(default_factory=choose_settings)
    to: str = "b"
    checkpoint: CheckpointChoice = "auto"
    weights: str = "auto"
    exchange_codes: bool | None = None
    device: str = "auto"
    choice: FaceChoice = field(default_factory=FaceChoice)
    ranges: FrameRanges | None = None
    keep_unchanged: bool = False
    scale: float = 100.0
    writer: str = "picture"
    write_mask: bool = False
    transparent: bool = False
    format: str = "same"
    overwrite: bool = False
    report: Path | None = None
    batch_size: int = 16
    workers: int | None = None
    decoder: str = "auto"

    def __post_init__(self) -> None:
        if self.to not in SIDES:
            raise unknown_name("--to", self.to, SIDES)
        if not SCALES[0] <= self.scale <= SCALES[1]:
            raise SwapfastError(f"-O/--output-scale {self.scale:g}: must lie within {SCALES[0]:g} and {SCALES[1]:g}")
        if self.writer not in WRITERS:
            raise unknown_name("-w/--writer", self.writer, WRITERS)
        if self.format not in FORMATS:
            raise unknown_name("--format", self.format, FORMATS)
        if self.decoder not in DECODERS:
            raise unknown_name("--decoder", self.decoder, DECODERS)
        if self.choice.which not in ORDERS:
            raise unknown_name("--face", self.choice.which, ORDERS)
        if not 0 <= self.choice.min_size <= self.choice.max_size:
            raise SwapfastError(
                f"--min-size {self.choice.min_size:g}, --max-size {self.choice.max_size:g}: no face is that large; "
                "give px, the smaller one first"
            )
        if not 1 <= self.batch_size <= 4096:
            raise SwapfastError(f"--batch-size {self.batch_size}: must lie within 1 and 4096")
        if self.faces is not None and self.landmarks is not None:
            raise SwapfastError("-p/--faces and --landmarks: both say where the faces are; give one of them")
        if self.transparent and self.format == "jpg":
            raise SwapfastError("--transparent with --format jpg: a JPEG has no alpha; leave --format away")
        if self.writer == "patch" and (self.transparent or self.format != "same" or self.scale != 100):
            raise SwapfastError(
                "-w/--writer patch: writes faces by themselves; leave --transparent, --format and --output-scale away"
            )


@dataclass(frozen=True)
class PicturePlan:
    """A checked request whose input is pictures.

    indices: of those that are gone through, see ``is_swapped``.
    """

    request: SwapRequest
    opened: OpenedModel
    pictures: PictureFolder
    find: FaceTable | JsonBeside
    masks: MaskFolder | None
    indices: list[int]

    @cached_property
    def numbers(self) -> list[int]:
        """The number of each picture."""
        return self.pictures.numbers

    def is_swapped(self, index: int) -> bool:
        """Whether the faces of a picture are swapped: it lies in the ranges."""
        return self.request.ranges is None or self.numbers[index] in self.request.ranges

    @property
    def output(self) -> PictureOutput:
        """How frames are written."""
        request = self.request
        assert request.out is not None, "asked for by whoever writes"
        return PictureOutput(
            request.out,
            FORMATS[request.format],
            request.writer,
            request.write_mask,
            request.transparent,
            request.scale / 100,
        )

    def swapper(self, **options: Any) -> FrameSwapper:
        """Return what swaps a frame's faces. options: of ``FrameSwapper``, over those of the request."""
        request = self.request
        usual: dict[str, Any] = {
            "scale": request.scale / 100,
            "batch_size": request.batch_size,
            "wants_alpha": request.write_mask,
            "wants_patches": request.writer == "patch",
            "is_transparent": request.transparent,
        }
        return FrameSwapper(
            self.opened.model,
            self.opened.config.crop,
            lambda index: request.settings.of(self.numbers[index]),
            request.to,
            **{**usual, **options},
        )

    def occlusion(self, frame: Frame) -> Any:
        """Return the mask of what is in front of a frame's faces, None without one."""
        from swapfast.swap.picture_file import read_gray_mask

        path = None if self.masks is None else self.masks.path_of(frame.name)
        return None if path is None else read_gray_mask(path, frame.size)

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides over the pictures that are written: a run only goes on where all of it is the same."""
        faces = {"source": faces_source(self.request), "sha256": faces_digest(self.find, self.pictures)}
        return fingerprint_of(self.request, self.opened, faces)


def fingerprint_of(request: SwapRequest, opened: OpenedModel, faces: dict[str, Any]) -> dict[str, Any]:
    """Return what decides over what is written. faces: where they are known from, and a digest of them."""
    metadata = opened.metadata
    return {
        "model": {
            "name": opened.model.name,
            "folder": str(request.model_dir.resolve()),
            "iteration": metadata.step,
            "weights": request.weights,
            "exchange_codes": request.exchange_codes,
            "sha256": file_digest(metadata.path / "model.safetensors"),
        },
        "input": str(request.input.resolve()),
        "faces": faces,
        "mask_dir": None if request.mask_dir is None else str(request.mask_dir.resolve()),
        "to": request.to,
        "choice": [request.choice.which, list(request.choice.indices), request.choice.min_size]
        + ([request.choice.max_size] if request.choice.max_size != float("inf") else []),
        "frame_ranges": None if request.ranges is None else list(map(list, request.ranges.spans)),
        "keep_unchanged": request.keep_unchanged,
        "settings": request.settings.to_dict(),
        "output": [request.writer, request.format, request.scale, request.write_mask, request.transparent],
        "batch_size": request.batch_size,
        "version": __version__,
        # A GPU's decoder has pixels of its own.
        **({} if request.decoder == "auto" else {"decoder": request.decoder}),
    }


def plan_pictures(request: SwapRequest) -> PicturePlan:
    """Check a request and open what it names. Raises SwapfastError naming what is wrong with it."""
    pictures = list_pictures(request.input)
    check_output(request, pictures.folder)
    find = find_faces(request, pictures)
    masks = None if request.mask_dir is None else MaskFolder.open(request.mask_dir)
    opened = open_swap_model(request)
    plan = PicturePlan(request, opened, pictures, find, masks, list(range(len(pictures.names))))
    indices = [i for i in plan.indices if request.keep_unchanged or plan.is_swapped(i)]
    if not any(map(plan.is_swapped, indices)):
        numbers = plan.numbers
        raise SwapfastError(
            f"-R/--frame-ranges: none of the {len(numbers)} frames lies in it; they are numbered {min(numbers)} to "
            f"{max(numbers)}"
        )
    plan = PicturePlan(request, opened, pictures, find, masks, indices)
    if request.out is not None:
        _check_names(plan)
    return plan


def open_swap_model(request: SwapRequest) -> OpenedModel:
    """Open the request's model and check that it can do what its settings ask for."""
    if not request.model_dir.is_dir():
        raise not_a_folder(request.model_dir, f"-m/--model-dir {request.model_dir}", "a model folder")
    device = pick_device(request.device)
    set_products("fp32", device)
    opened = open_model(request.model_dir, request.checkpoint, device, request.weights, request.exchange_codes)
    for settings in request.settings.all():
        if settings.mask.type in LEARNED_TYPES and not opened.model.learns_mask:
            raise SwapfastError(
                f"-M/--mask-type {settings.mask.type}: this model was trained without --learn-mask; give extended, "
                "for one"
            )
    return opened


def find_faces(request: SwapRequest, pictures: PictureFolder) -> FaceTable | JsonBeside:
    """Return where the faces of pictures are known from."""
    if request.faces is not None:
        table = read_faces_folder(request.faces, "-p/--faces")
        table.check_frames(pictures.names)
        return table
    if request.landmarks is not None:
        file = read_landmark_file(request.landmarks)
        file.faces.check_frames(pictures.names)
        last = max(file.faces.by_index, default=-1)
        if last >= len(pictures.names):
            raise SwapfastError(
                f"--landmarks {request.landmarks}: speaks of frame {last}, but there are {len(pictures.names)}; give "
                "the file of these frames"
            )
        return file.faces
    beside = JsonBeside(pictures.folder)
    if beside.count == 0:
        raise SwapfastError(
            f"-i {request.input}: where are the faces? Looked for NAME.json beside each frame; give -p FACES, the "
            "folder of faceswap's extracted faces, or --landmarks FILE"
        )
    return beside


def check_output(request: SwapRequest, frames: Path) -> None:
    """Raise SwapfastError where the output cannot be, or would touch what is read."""
    if request.report is not None:
        check_new_file(request.report, "--report", (".json",))
    if request.out is None:
        return
    check_folder(request.out, "-o/--out")
    if request.out.suffix.lower() in PICTURE_SUFFIXES and not request.out.is_dir():
        raise SwapfastError(
            f"-o/--out {request.out}: is the name of a picture; give a folder, in which each frame keeps its own name"
        )
    readers: Sequence[tuple[str, Path | None]] = (
        ("-i", frames),
        ("-p/--faces", request.faces),
        ("--mask-dir", request.mask_dir),
        ("-m/--model-dir", request.model_dir),
    )
    for flag, folder in readers:
        if folder is not None and request.out.exists() and folder.exists() and os.path.samefile(request.out, folder):
            raise SwapfastError(
                f"-o/--out {request.out}: is the folder of {flag}, which is only read; give another one"
            )


def _check_names(plan: PicturePlan) -> None:
    """Raise SwapfastError where two frames would be written to one file."""
    names: dict[str, str] = {}
    for index in plan.indices:
        name = plan.pictures.names[index]
        new = plan.output.name_of(name).lower()
        if new in names:
            raise SwapfastError(
                f"-o/--out: {names[new]} and {name} would both become {plan.output.name_of(name)}; rename one of them, "
                "or write each in its own format"
            )
        names[new] = name


def needs_stored(request: SwapRequest) -> list[str]:
    """Return the stored masks that the settings name."""
    drawn_types = (*DRAWN_TYPES, *LEARNED_TYPES, RECT, NO_MASK)
    return sorted({s.mask.type for s in request.settings.all()} - set(drawn_types))


def faces_source(request: SwapRequest) -> str:
    """Return where the faces are known from, in words."""
    path = request.faces or request.landmarks
    return f"NAME.json in {request.input.resolve()}" if path is None else str(path.resolve())


def faces_digest(find: FaceTable | JsonBeside, pictures: PictureFolder) -> str:
    """Return a digest of everything that is known of the faces."""
    digest = hashlib.sha256()
    if isinstance(find, JsonBeside):
        for name in sorted(n for n in os.listdir(pictures.folder) if n.lower().endswith(".json")):
            status = (pictures.folder / name).stat()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()
    return table_digest(find)


def table_digest(table: FaceTable) -> str:
    """Return a digest of the faces of a table."""
    digest = hashlib.sha256()
    indices = ((text, table.by_index[int(text)]) for text in sorted(map(str, table.by_index)))
    for frame, faces in chain(((name, table.by_name[name]) for name in sorted(table.by_name)), indices):
        for face in faces:
            digest.update(f"{frame} {face.index} {face.name}\n".encode(errors="surrogateescape"))
            digest.update(face.landmarks.tobytes())
            for name, mask in sorted(face.stored_masks.items()):
                digest.update(name.encode() + mask.data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file. Raises SwapfastError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_plain(path) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise SwapfastError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()
