"""Reads one file of a folder: whether it is a face, and its landmarks.

The content of a file decides, not its name:
    PNG with a faceswap header              a head
    PNG or JPEG with NAME.json beside it    a plain picture. The json's "landmarks" are 68 (x, y) in picture px. Its
                                            "mask" names the mask file, by default NAME_mask.png if that exists. Its
                                            "orientation" says which px these are, see orientation.py.
    JPEG with DeepFaceLab's metadata        a plain picture too, unless a json lies beside it; dfl_metadata.py
Nothing is decoded here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import xxhash

from swapfast.faces import jpeg, png
from swapfast.faces.alignment import align, to_68
from swapfast.faces.companions import PICTURE_SUFFIXES, find_file
from swapfast.faces.dfl_metadata import OWNER, is_metadata, read_metadata
from swapfast.faces.faceset_pack import holds_member
from swapfast.faces.image import read_bytes
from swapfast.faces.orientation import UPRIGHT, roll_of, stored_landmarks
from swapfast.faces.other_kinds import kind_of
from swapfast.faces.record import MAX_STORED_SIZE, FaceRecord
from swapfast.printing import shown_name

MIN_EDGE = 16
MIN_SPAN = 8  # px between the outermost landmarks of the smallest face
MAX_JSON_BYTES = 4 << 20
# Notes on landmarks that a folder's other faces may explain (landmark_check.py). The first ends with the orientation.
UPRIGHT_NOTE = "upright landmarks beside EXIF orientation "
SIZE_NOTE = "another size in its json"

DFL_NOTE = "DeepFaceLab's landmarks"
MASK_UNUSABLE = "mask file unusable"  # note of a face whose mask file is lost, damaged or of another size
NO_LANDMARKS = "no faceswap header in it"
# Pictures of these types are recognised only to report that they are not read.
_OTHER_SUFFIXES = (
    *(".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"),
    *(".jp2", ".jxl", ".tga", ".ppm", ".pgm", ".exr", ".hdr", ".psd"),
)

PictureInfo = png.PngInfo | jpeg.JpegInfo


@dataclass(frozen=True)
class BadFace:
    """A file that cannot be used as a face, and the reason in one phrase."""

    path: Path
    reason: str


def read_face(folder: Path, name: str, file_names: frozenset[str]) -> FaceRecord | BadFace | None:
    """Read one file of a folder. Returns None for a file that is not a picture.

    file_names: of all files in the folder.
    """
    path, suffix = folder / name, Path(name).suffix.lower()
    if suffix == ".json":
        return None
    is_picture = suffix in PICTURE_SUFFIXES or suffix in _OTHER_SUFFIXES
    try:
        if not path.is_file() and not holds_member(path):
            raise ValueError("not a file that can be read (a broken link or a device)")
        if not is_picture and not _starts_like_a_picture(path):
            return None
        return _record(path, suffix, file_names)
    except OSError as error:
        return BadFace(path, f"cannot be read ({error.strerror or error})") if is_picture else None
    except ValueError as error:
        return BadFace(path, str(error)) if is_picture or path.is_file() else None


def _starts_like_a_picture(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(8).startswith((png.SIGNATURE, jpeg.SIGNATURE))


def _record(path: Path, suffix: str, file_names: frozenset[str]) -> FaceRecord:
    data = read_bytes(path)
    if not data:
        raise ValueError("empty (zero bytes)")
    info = picture_info(data, suffix)
    if min(info.width, info.height) < MIN_EDGE:
        raise ValueError(f"{info.width}x{info.height} px, too small for a face")
    if isinstance(info, png.PngInfo) and info.faceswap_text is not None:
        return _head(path, data, info, info.faceswap_text)
    return _plain(path, data, info, file_names)


def picture_info(data: bytes, suffix: str) -> PictureInfo:
    if data.startswith(png.SIGNATURE):
        return png.read_png(data)
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.read_jpeg(data)
    if (kind := kind_of(data)) is not None:
        raise ValueError(kind)
    if suffix in _OTHER_SUFFIXES:
        raise ValueError(f"{suffix[1:]} pictures are not read: convert to PNG or JPEG")
    raise ValueError("neither a PNG nor a JPEG, whatever its name says")


def digest_pixels(data: bytes) -> bytes:
    """Return an 8-byte digest of a picture's encoded pixels: a PNG from its first IDAT on, a JPEG as a whole.

    A new mask in a faceswap header, which lies before the pixels, leaves it unchanged. XXH3 takes a sixth of
    SHA-256's time. It distinguishes a user's pictures, but two different ones with the same digest can be constructed.
    """
    return xxhash.xxh3_64_digest(memoryview(data)[png.find_pixels(data) :])


def read_unchanged(record: FaceRecord) -> bytes:
    """Return the content of a picture's file. Raises ValueError if it is unreadable or has changed since the scan."""
    data = read_bytes(record.path)
    if record.pixels and digest_pixels(data) != record.pixels:
        raise ValueError("it has changed since the folder was read; start again")
    return data


def _digest_content(data: bytes, pixels: bytes, *companions: bytes) -> bytes:
    """Return a 16-byte digest of everything that makes a face. The pixels enter by their digest."""
    digest = xxhash.xxh3_128(memoryview(data)[: png.find_pixels(data)])
    for part in (pixels, *map(xxhash.xxh3_128_digest, companions)):
        digest.update(part)
    return digest.digest()


def _head(path: Path, data: bytes, info: png.PngInfo, text: bytes) -> FaceRecord:
    header = png.parse_header(text)
    if info.width != info.height:
        raise ValueError(f"a faceswap head of {info.width}x{info.height} px, expected a square")
    if header.frame_dims:
        check_near(header.landmarks, *header.frame_dims[::-1], "its source frame")
    pixels = digest_pixels(data)
    return FaceRecord(
        path=path,
        kind="head",
        width=info.width,
        height=info.height,
        landmarks=header.landmarks,
        alignment=align(header.landmarks),
        stored_masks=header.masks,
        notes=info.notes,
        content=_digest_content(data, pixels),
        pixels=pixels,
    )


def _plain(path: Path, data: bytes, info: PictureInfo, file_names: frozenset[str]) -> FaceRecord:
    json_name = find_file(f"{path.stem}.json", file_names)
    if json_name is None and isinstance(info, jpeg.JpegInfo) and info.app15 is not None and is_metadata(info.app15):
        return _from_deepfacelab(path, data, info, info.app15, file_names)
    if json_name is None:
        raise ValueError(f"{NO_LANDMARKS} and no {shown_name(path.stem)}.json with landmarks beside it")
    json_data = read_json(path.with_name(json_name))
    description = parse_json(json_data, path.with_name(json_name))
    landmarks, remarks = placed_landmarks(landmarks_of(description), info, description)
    mask_file, mask_data, unusable_mask = _mask_file(path, info, description, file_names)
    return _plain_record(path, info, landmarks, (mask_file, unusable_mask), remarks, (data, json_data, mask_data))


def _from_deepfacelab(
    path: Path, data: bytes, info: jpeg.JpegInfo, metadata: bytes, file_names: frozenset[str]
) -> FaceRecord:
    """Return a face whose landmarks are in its metadata. A mask file beside it ranks over a mask in there."""
    face = read_metadata(metadata)
    landmarks, _ = placed_landmarks(face.landmarks, info, {"orientation": "stored"})
    mask_file, mask_data, unusable_mask = _mask_file(path, info, {}, file_names)
    if face.mask is not None and mask_file is None and unusable_mask is None:
        try:
            _check_mask_dimensions(picture_info(face.mask, ""))
            mask_file = path
        except ValueError as error:
            unusable_mask = (path.name, f"the mask in {OWNER} is {error}")
    return _plain_record(path, info, landmarks, (mask_file, unusable_mask), (DFL_NOTE,), (data, mask_data))


def _plain_record(
    path: Path,
    info: PictureInfo,
    landmarks: np.ndarray,
    mask: tuple[Path | None, tuple[str, str] | None],
    remarks: Sequence[str],
    contents: tuple[bytes, ...],
) -> FaceRecord:
    """Return the record of a picture with landmarks.

    mask: its file, or why it cannot be used. contents: of all its files, the picture first.
    """
    mask_file, unusable_mask = mask
    data, *companions = contents
    pixels = digest_pixels(data)
    return FaceRecord(
        path=path,
        kind="plain",
        width=info.width,
        height=info.height,
        landmarks=landmarks,
        alignment=align(landmarks),
        mask_file=mask_file,
        unusable_mask=unusable_mask,
        notes=(*info.notes, *remarks, *([MASK_UNUSABLE] if unusable_mask else [])),
        encoding="png" if isinstance(info, png.PngInfo) else "jpeg",
        content=_digest_content(data, pixels, *companions),
        pixels=pixels,
    )


def _check_mask_dimensions(info: PictureInfo) -> None:
    """Raise ValueError for a mask in metadata that would be larger than any face."""
    if max(info.width, info.height) > MAX_STORED_SIZE:
        raise ValueError(f"{info.width}x{info.height} px, larger than {MAX_STORED_SIZE}")


def check_near(landmarks: np.ndarray, width: int, height: int, picture: str) -> None:
    """Raise ValueError for points further outside than the picture is wide or high. A face may cross the border."""
    size = np.array([width, height])
    if (landmarks < -size).any() or (landmarks > 2 * size).any():
        raise ValueError(f"landmarks far outside {picture} ({width}x{height} px)")


def placed_landmarks(landmarks: np.ndarray, info: PictureInfo, description: dict) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a plain picture's landmarks in px of the picture as stored, and notes on what may be wrong with them.

    Raises ValueError if they cannot be in px of this picture.
    """
    orientation = info.orientation if isinstance(info, jpeg.JpegInfo) else 1
    frame = description.get("orientation")
    if frame not in ("stored", "exif", None):
        raise ValueError(f'its json\'s "orientation" is {str(frame)[:50]!r}, neither "stored" nor "exif"')
    if frame == "exif":
        landmarks = stored_landmarks(landmarks, orientation, info.width, info.height)
    span = float(np.ptp(landmarks, axis=0).max())
    if 0 < span < MIN_SPAN:
        shares = "; shares of the picture's edge must be multiplied by it" if span <= 2 else ""
        raise ValueError(f"landmarks that span {span:.2g} px, which no face does{shares}")
    is_tagged = orientation != 1 and frame is None
    outside = share_outside(landmarks, info.width, info.height)
    if outside > 0.5:
        turned = stored_landmarks(landmarks, orientation, info.width, info.height)
        if is_tagged and not share_outside(turned, info.width, info.height):
            raise ValueError(
                f"landmarks of which {outside:.0%} lie outside the picture as it is stored, and nothing once it is "
                f'turned by its EXIF orientation {orientation}: say "orientation": "exif" in its json'
            )
        check_near(landmarks, info.width, info.height, "the picture")
        raise ValueError(
            f"landmarks of a face that lies {outside:.0%} outside the picture ({info.width}x{info.height} px): "
            "measured before it was resized or cut, perhaps"
        )
    check_near(landmarks, info.width, info.height, "the picture")
    remarks = []
    if is_tagged and abs(roll_of(landmarks)) <= UPRIGHT:
        remarks.append(f"{UPRIGHT_NOTE}{orientation}")
    if not _is_size_of(description, info, orientation):
        remarks.append(SIZE_NOTE)
    return landmarks, tuple(remarks)


def share_outside(landmarks: np.ndarray, width: int, height: int) -> float:
    """Return the share of a face's hull that lies outside its picture.

    Points would not do: most of a profile's lie near its edge.
    """
    if landmarks.min() >= 0 and (landmarks <= np.array([width - 1, height - 1])).all():
        return 0.0
    hull = cv2.convexHull(landmarks.astype(np.float32))
    picture = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - 0.5
    inside, _ = cv2.intersectConvexConvex(hull, picture)
    return 1 - inside / max(cv2.contourArea(hull), 1e-6)


def _is_size_of(description: dict, info: PictureInfo, orientation: int) -> bool:
    """Return whether the size that a json gives, if any, is that of the picture as stored or turned."""
    size = description.get("size", [description.get("width"), description.get("height")])
    edges = [size, size] if isinstance(size, int) else size
    if not isinstance(edges, list) or len(edges) != 2 or not all(type(edge) is int for edge in edges):
        return True
    stored_size = [info.width, info.height]
    return edges == stored_size or (orientation >= 5 and edges == stored_size[::-1])


def read_json(path: Path) -> bytes:
    data = read_bytes(path)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"{shown_name(path.name)} is larger than {MAX_JSON_BYTES >> 20} MiB")
    return data


def parse_json(data: bytes, path: Path) -> dict:
    try:
        description = json.loads(data)
    except RecursionError:
        raise ValueError(f"{shown_name(path.name)} is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{shown_name(path.name)} is not valid JSON") from error
    if not isinstance(description, dict):
        raise ValueError(f"{shown_name(path.name)} is not a table with landmarks")
    return description


def landmarks_of(table: Mapping, owner: str = "its json") -> np.ndarray:
    """Return the "landmarks" of a table, (68, 2) float32. Raises ValueError with a short reason about its ``owner``."""
    points = table.get("landmarks")
    if not isinstance(points, list):
        raise ValueError(f'{owner} has no list "landmarks"')
    try:
        numbers = np.array(points, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f'the "landmarks" of {owner} are not rows of two numbers') from error
    return to_68(numbers)


def _mask_file(
    path: Path, info: PictureInfo, description: dict, file_names: frozenset[str]
) -> tuple[Path | None, bytes, tuple[str, str] | None]:
    """Return the mask beside a plain picture, its content, and its name with the reason if it cannot be used.

    Its header is checked. Only training with mask type file needs it, so no fault of it spoils the face.
    """
    json_name = description.get("mask")
    name = f"{path.stem}_mask.png" if json_name is None else json_name
    if not isinstance(name, str) or not _can_name_a_file(name):
        return None, b"", ("", 'its json\'s "mask" is not a file name')
    file_name = find_file(name, file_names)
    if file_name is None:
        lost = name, f"its mask {shown_name(name)[:100]!r}, named by the json, is not beside it"
        return None, b"", None if json_name is None else lost
    try:
        data = read_bytes(path.with_name(file_name))
        mask_info = picture_info(data, "") if data else None
    except ValueError as error:
        return None, b"", (file_name, f"its mask {shown_name(file_name)} is {error}")
    if mask_info is None:
        return None, b"", (file_name, f"its mask {shown_name(file_name)} is empty (zero bytes)")
    if json_name is None and isinstance(mask_info, png.PngInfo) and mask_info.faceswap_text is not None:
        return None, b"", None  # a face of its own that is only named like a mask
    if (mask_info.width, mask_info.height) != (info.width, info.height):
        sizes = f"{mask_info.width}x{mask_info.height} px, the picture {info.width}x{info.height}"
        return None, b"", (file_name, f"its mask {shown_name(file_name)} is {sizes}")
    return path.with_name(file_name), data, None


def _can_name_a_file(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False  # half a character


def has_face_header(path: Path) -> bool:
    """Return whether a file is a PNG with a faceswap header. Of a mask, no more than its beginning is read."""
    try:
        if not path.is_file():
            return False  # a pipe would be waited for
        with open(path, "rb", buffering=0) as file:
            start = file.read(64)
        if not start.startswith(png.SIGNATURE) or start[37:41] == b"IDAT":
            return False
        return png.read_png(read_bytes(path)).faceswap_text is not None
    except (OSError, ValueError):
        return False
