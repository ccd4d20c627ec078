"""How right are kornia's functions, step by step of the augmentation: python -m benchmarks.kornia_errors

Each step's largest and mean error against float64, written for reading (tests/augment/slow_references.py), and against
OpenCV, on photographs of faces or, without --faces, on drawn ones. Both the functions that the ``kornia`` backend is
made of and those in whose place ours stand. Prints the table of docs/kornia.md.

Levels are 0..255, LAB in 8-bit units. What TF32 would do on a GPU is worked out here: a product's operands rounded to
10 bits, as its convolution does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from kornia.color import xyz as kornia_xyz
from kornia.enhance import equalize_clahe
from kornia.geometry.transform import get_rotation_matrix2d, remap, resize
from torch import Tensor

from benchmarks.augment import make_records
from benchmarks.common import parser, save
from swapfast.augment.constants import CLIP_LIMIT
from swapfast.augment.device import clahe, color, geometry
from swapfast.augment.draws import draw
from swapfast.augment.host import color as host_color
from swapfast.config import AugmentationConfig, CropConfig
from swapfast.faces.crop import crop_face
from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image
from tests.augment.slow_references import (
    affine_positions,
    area_mean,
    bilinear,
    equalized_slowly,
    jittered,
    node_positions,
)

SIZE = 256  # px
SHIFT = (0, 128, 128)  # of LAB in 8-bit units
SCALE = (2.55, 1, 1)
FACES = 4  # of CLAHE's, whose reference goes px by px


@dataclass(frozen=True)
class Row:
    """One function for one step."""

    step: str
    function: str
    unit: str
    exact: tuple[float, float]  # largest and mean error against float64
    opencv: tuple[float, float] | None  # the same against OpenCV

    def cells(self) -> list[str]:
        return [self.step, self.function, self.unit, _written(self.exact), _written(self.opencv)]


def _written(error: tuple[float, float] | None) -> str:
    return "" if error is None else " / ".join(f"{value:.2g}" for value in error)


def distance(ours: np.ndarray | Tensor, theirs: np.ndarray) -> tuple[float, float]:
    error = np.abs(np.asarray(ours, np.float64) - theirs)
    return float(error.max()), float(error.mean())


def images_of(array: np.ndarray) -> Tensor:
    """Return (N, C, S, S) float32 of (N, S, S, C) values."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2), np.float32))


def array_of(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


# ---- LAB -----------------------------------------------------------------------------------------------------


def kornia_lab(images: Tensor) -> Tensor:
    """Return LAB in 8-bit units by kornia's function."""
    scale, shift = (images.new_tensor(values)[:, None, None] for values in (SCALE, SHIFT))
    return rgb_to_lab(images.flip(1)) * scale + shift


def kornia_bgr(lab: Tensor) -> Tensor:
    scale, shift = (lab.new_tensor(values)[:, None, None] for values in (SCALE, SHIFT))
    return lab_to_rgb((lab - shift) / scale).flip(1)


def in_tf32(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return what a function of kornia gives where its channels are mixed in TF32."""
    exact = kornia_xyz._apply_linear_transformation

    def rounded(values: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(values)
        return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)

    def mix_rounded(image: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        return exact(rounded(image), rounded(kernel), bias)

    kornia_xyz._apply_linear_transformation = mix_rounded
    try:
        return function(images)
    finally:
        kornia_xyz._apply_linear_transformation = exact


def color_rows(faces: np.ndarray) -> list[Row]:
    """LAB of the faces, and back from LAB with every channel moved a tenth of the way up."""
    bgr = (faces / 255).astype(np.float32)
    images = images_of(bgr)
    exact_lab = array_of(kornia_lab(images.double()))
    amounts = np.full((len(faces), 3), 0.1)
    changed = jittered(exact_lab, amounts)
    exact_bgr = 255 * array_of(kornia_bgr(torch.from_numpy(changed).permute(0, 3, 1, 2)))
    lab = images_of(changed)
    cv_lab = np.stack([cv2.cvtColor(image, cv2.COLOR_BGR2LAB) for image in bgr]) * SCALE + SHIFT
    back = ((changed - SHIFT) / SCALE).astype(np.float32)
    cv_bgr = 255 * np.stack([cv2.cvtColor(image, cv2.COLOR_LAB2BGR) for image in back]).clip(0, 1)
    to_lab: dict[str, Callable[[Tensor], Tensor]] = {
        "`rgb_to_linear_rgb`, then ours": color.bgr_to_lab,
        "not: `rgb_to_lab`, on a CPU": kornia_lab,
        "not: `rgb_to_lab`, on a GPU (TF32)": partial(in_tf32, kornia_lab),
    }
    to_bgr: dict[str, Callable[[Tensor], Tensor]] = {
        "ours, then `linear_rgb_to_rgb`": color.lab_to_bgr,
        "not: `lab_to_rgb`, on a CPU": kornia_bgr,
        "not: `lab_to_rgb`, on a GPU (TF32)": partial(in_tf32, kornia_bgr),
    }
    rows = []
    for name, function in to_lab.items():
        ours = array_of(function(images))
        rows.append(Row("BGR to LAB", name, "levels", distance(ours, exact_lab), distance(ours, cv_lab)))
    for name, function in to_bgr.items():
        ours = 255 * array_of(function(lab))
        rows.append(Row("LAB to BGR", name, "levels", distance(ours, exact_bgr), distance(ours, cv_bgr)))
    return rows


def clahe_rows(faces: np.ndarray) -> list[Row]:
    """CLAHE with tiles of 32, 16, 8 and 11 px, on the L of few faces."""
    rows = []
    for size, grid in ((64, 2), (64, 4), (64, 8), (64, 6)):
        small = [cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA) for face in faces[:FACES]]
        levels = np.stack([cv2.cvtColor(face, cv2.COLOR_BGR2LAB)[..., 0] for face in small])
        exact = np.stack([equalized_slowly(plane, grid, CLIP_LIMIT) for plane in levels])
        opencv = np.stack([host_color.equalize(plane.copy(), grid) for plane in levels]).astype(np.float64)
        tensor, limit = torch.from_numpy(levels).float(), clahe.bin_limit(grid, size, CLIP_LIMIT)
        found = {
            "ours": clahe.equalize(tensor, grid, limit),
            "not: `equalize_clahe`": 255 * equalize_clahe(tensor[:, None] / 255, CLIP_LIMIT, (grid, grid))[:, 0],
        }
        step = f"CLAHE, tiles of {-(-size // grid)} px"
        rows += [Row(step, n, "levels", distance(v, exact), distance(v, opencv)) for n, v in found.items()]
    return rows


# ---- geometry ------------------------------------------------------------------------------------------------


def geometry_rows(faces: np.ndarray) -> list[Row]:
    """Matrix, movement and flip, the warp's map and the warp, with twice the usual amounts."""
    n, size = faces.shape[:2]
    config = AugmentationConfig(rotation_range=20.0, zoom_amount=10.0, shift_range=10.0)
    draws = draw(3, np.arange(n), 0, size, config)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    images, floats = images_of(faces), faces.astype(np.float32)
    inverse, nodes = draws.inverse(), draws.control_grid()

    centre = torch.full((n, 2), (size - 1) / 2)
    angle, scale = (torch.from_numpy(a).float() for a in (draws.rotation, np.stack([draws.scale] * 2, 1)))
    matrix = get_rotation_matrix2d(centre, angle, scale)
    matrix[:, :, 2] += torch.from_numpy(draws.shift)
    corner = np.array([0, 0, 1.0])  # where a matrix is off most

    exact = np.stack([bilinear(face, *affine_positions(m, x, y)) for face, m in zip(faces, inverse)])
    flags, mode = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.BORDER_REPLICATE
    opencv = [cv2.warpAffine(face, m, (size, size), flags=flags, borderMode=mode) for face, m in zip(floats, inverse)]
    moved = array_of(geometry.move(images, torch.from_numpy(draws.matrix()).float()))

    maps = np.stack([np.stack(node_positions(node, x, y, size), -1) for node in nodes])
    relative = torch.from_numpy(geometry.relative(nodes, size)).float()
    positions = geometry.control_map(relative, size)
    warped_exactly = np.stack([bilinear(face, at[..., 0], at[..., 1]) for face, at in zip(faces, maps)])
    remapped = [
        cv2.remap(face, at, None, cv2.INTER_LINEAR, borderMode=mode)  # type: ignore[call-overload]  # no map2
        for face, at in zip(floats, maps.astype(np.float32))
    ]
    warped = array_of(geometry.read(images, positions))
    px = torch.from_numpy(maps).float()
    by_default = array_of(remap(images, px[..., 0], px[..., 1]))
    mirrored = distance(array_of(geometry.flip(images, torch.ones(n, dtype=torch.bool))), faces[:, :, ::-1])
    return [
        Row(
            "matrix",
            "not: `get_rotation_matrix2d`, in float32",
            "px",
            distance(matrix.numpy() @ corner, draws.forward()[:, :2] @ corner),
            None,
        ),
        Row("movement and flip", "`warp_affine`", "levels", distance(moved, exact), distance(moved, np.stack(opencv))),
        Row(
            "flip alone",
            "`hflip`",
            "levels",
            mirrored,
            mirrored,
        ),
        Row("map of the warp", "`remap` of its nodes", "px", distance((positions + 1) * (size - 1) / 2, maps), None),
        Row("warp", "`remap`", "levels", distance(warped, warped_exactly), distance(warped, np.stack(remapped))),
        Row(
            "warp",
            "not: `remap` with its defaults",
            "levels",
            distance(by_default, warped_exactly),
            distance(by_default, np.stack(remapped)),
        ),
    ]


def shrink_rows(faces: np.ndarray) -> list[Row]:
    rows = []
    for smaller in (SIZE // 2, SIZE * 3 // 4):
        exact = np.stack([area_mean(face, smaller) for face in faces])
        opencv = [cv2.resize(f, (smaller, smaller), interpolation=cv2.INTER_AREA) for f in faces.astype(np.float32)]
        images, step = images_of(faces), f"{SIZE} to {smaller} px"
        found = {"`resize` by area": array_of(resize(images, (smaller, smaller), interpolation="area"))}
        if SIZE % smaller:
            ours = array_of(geometry.shrink(images, smaller))
            found = {"ours": ours, "not: `resize` by area": found["`resize` by area"]}
        rows += [Row(step, n, "levels", distance(v, exact), distance(v, np.stack(opencv))) for n, v in found.items()]
    return rows


# ---- all -----------------------------------------------------------------------------------------------------


def read_faces(folder: Path | None, count: int) -> np.ndarray:
    """Return (N, SIZE, SIZE, 3) BGR bytes: crops of a folder's faces, or of drawn ones."""
    with TemporaryDirectory() as drawn:
        records = scan_folder(folder).records if folder else make_records(Path(drawn), count)[0]
        crop = CropConfig()
        return np.stack([crop_face(record, read_image(record.path), crop, SIZE) for record in records[:count]])


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--faces", type=Path, metavar="DIR", help="folder of faces; default: drawn ones")
    flags.add_argument("--count", type=int, default=12, help="of faces; default 12")
    options = flags.parse_args()
    faces = read_faces(options.faces, 1 if options.quick else options.count)
    rows = [*color_rows(faces), *clahe_rows(faces), *geometry_rows(faces), *shrink_rows(faces)]
    table = [["step", "function", "unit", "against float64", "against OpenCV"], ["---"] * 5, *(r.cells() for r in rows)]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in table))
    save([vars(row) | {"name": "kornia_error"} for row in rows], options.json)


if __name__ == "__main__":
    main()
