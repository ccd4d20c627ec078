"""Three hundred damaged and hostile files: each ends in one clean line or in the right face, never in anything else."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

import cli
from swapfast.faces.masks import draw_face
from swapfast.faces.png import SIGNATURE, walk_chunks, write_header
from tests import preloaded
from tests.faces.face_samples import a_face, a_payload, a_picture, a_stored_mask, png_bytes, write_head, write_plain

pytestmark = pytest.mark.slow  # whole programs

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
COUNT = 200
MEMORY = 1 << 30


# --- what is damaged --------------------------------------------------------------------------------------


@dataclass
class Face:
    """A face's files by their endings: '.png' or '.jpg', and for a plain picture '.json' and '_mask.png'."""

    name: str
    files: dict[str, bytes]

    @property
    def suffix(self) -> str:
        return ".png" if ".png" in self.files else ".jpg"

    @property
    def picture(self) -> bytes:
        return self.files[self.suffix]

    @property
    def is_head(self) -> bool:
        return ".json" not in self.files


@dataclass
class Case:
    """One damaged face. must: 'bad' where nothing else is right, 'same' where the face as it was is right too, or
    'any' where nobody can tell (a JPEG's entropy code, a digit in a json). like: whose face it was."""

    what: str
    must: str
    like: str
    files: dict[str, bytes] = field(repr=False)


def _read(path: Path) -> Face:
    files = {path.suffix: path.read_bytes()}
    for ending in (".json", "_mask.png"):
        beside = path.with_name(path.stem + ending)
        if beside.exists():
            files[ending] = beside.read_bytes()
    if ".json" in files:  # which may name the mask, and every copy has another name
        described = json.loads(files[".json"])
        files[".json"] = json.dumps({"landmarks": described["landmarks"]}).encode()
    return Face(path.stem, files)


def _sources(folder: Path) -> dict[str, list[Face]]:
    """Real faces where there are any, and some that are made here."""
    write_head(folder / "head0.png", payload=a_payload(a_face(), **{"bisenet-fp_face": a_stored_mask()}))
    write_head(folder / "head1.png", edge=90, payload=a_payload(a_face(degrees=9)), seed=1)
    for index, name in enumerate(("plain.png", "photo.jpg")):
        picture = a_picture(200, 210, index)
        landmarks = a_face(60, (70, 60))
        mask = cv2.GaussianBlur(draw_face(landmarks, 210)[:, :200], (0, 0), 5)
        write_plain(folder / name, picture, landmarks, mask)
    heads = sorted((SHARED / "golden" / "faces").glob("*.png"))[::2]
    photographs = sorted((SHARED / "faces" / "aligned").glob("*/*.jpg"))[::12]
    return {
        "made": [_read(path) for path in sorted(folder.glob("*.[pj][np]g")) if "_mask" not in path.name],
        "golden": [_read(path) for path in heads],
        "photographs": [_read(path) for path in photographs],
    }


# --- damage as it happens ---------------------------------------------------------------------------------


def flip(data: bytes, rng: random.Random) -> bytes:
    """One to eight bits, half of the time near the beginning, where the headers are."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(data) if rng.random() < 0.5 else min(200, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice([0, 1, 7, 8, 20, 40, rng.randrange(len(data)), len(data) - rng.randint(1, 30)])]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """A stretch of zeros or noise, as a bad disk leaves it."""
    first, length = rng.randrange(len(data)), rng.randint(4, 4096)
    stretch = data[first : first + length]
    return (
        data[:first]
        + (bytes(len(stretch)) if rng.random() < 0.5 else rng.randbytes(len(stretch)))
        + data[first + length :]
    )


def lose(data: bytes, rng: random.Random) -> bytes:
    first = rng.randrange(len(data))
    return data[:first] + data[first + rng.randint(1, 500) :]


def append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([rng.randbytes(99), data, bytes(5000), b"\xff\xd9", SIGNATURE])


DAMAGES = (flip, flip, flip, cut, overwrite, lose, append)


def _accidents(face: Face, rng: random.Random) -> Case:
    """Something happens to one of a face's files."""
    damage = rng.choice(DAMAGES)
    ending = rng.choice([face.suffix, face.suffix, *face.files])
    damaged = damage(face.files[ending], rng)
    must = "same" if ending.endswith("png") else "any"
    return Case(f"{damage.__name__} {ending}", must, face.name, {**face.files, ending: damaged})


# --- damage with intent -----------------------------------------------------------------------------------


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _with_text(face: Face, text: bytes) -> bytes:
    """A head's PNG whose faceswap chunk holds ``text``."""
    parts = [SIGNATURE]
    for kind, data in walk_chunks(face.picture):
        ours = kind == b"iTXt" and bytes(data).startswith(b"faceswap\0")
        parts.append(_chunk(kind, b"faceswap" + bytes(5) + text if ours else bytes(data)))
    return b"".join(parts)


def _with_ihdr(data: bytes, **changes: int) -> bytes:
    names = ("width", "height", "depth", "colour", "compression", "filtering", "interlace")
    values = dict(zip(names, struct.unpack(">IIBBBBB", data[16:29]))) | changes
    return data[:8] + _chunk(b"IHDR", struct.pack(">IIBBBBB", *values.values())) + data[33:]


def _with_idat(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Other compressed pixels, their CRC right."""
    chunks = [(kind, bytes(content)) for kind, content in walk_chunks(data)]
    pixels = change(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    before, after = [c for c in chunks if c[0] not in (b"IDAT", b"IEND")], [(b"IDAT", pixels), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(*chunk) for chunk in before + after)


def _with_mask(face: Face, **changes) -> bytes:
    return write_header(face.picture, a_payload(a_face(), face={**a_stored_mask(), **changes}))


class Touch:
    """What a pickle can do: this one makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def _repeated(unit: bytes, times: int) -> bytes:
    """A zlib stream of ``unit`` so many times, packed once."""
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    first, again = (press.compress(unit) + press.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    high, low = divmod(zlib.adler32(unit), 1 << 16)
    a, b = 1, 0  # its checksum, put together from that of one unit
    for _ in range(times):
        a, b = (a + low - 1) % 65521, (b + high + len(unit) * (a - 1)) % 65521
    return b"\x78\xda" + first + again * (times - 1) + press.flush() + struct.pack(">HH", b, a)


def _bomb(size: int) -> bytes:
    """A zlib stream of ``size`` zeros."""
    return _repeated(bytes(1 << 20), size >> 20)


def _hostile_heads(face: Face, marker: Path) -> Iterator[tuple[str, bytes]]:
    payload = a_payload(a_face())
    run = f"__import__('os').mkdir({str(marker)!r})"
    texts = {
        "nested lists": b"[" * 300_000,
        "nested closed": b"[" * 300_000 + b"]" * 300_000,
        "nested tables": b"{'a':" * 100_000 + b"1" + b"}" * 100_000,
        "nested tuples in alignments": repr(payload).encode().replace(b"'mask': {}", b"'mask': " + b"(" * 100_000),
        "code": run.encode(),
        "code in a table": b"{'alignments': " + run.encode() + b"}",
        "code in a string": b'{"alignments": f"{' + run.encode() + b'}"}',
        "a lambda": b"{'alignments': (lambda: 1)()}",
        "a pickle": pickle.dumps(Touch(marker)),
        "a pickle of a table": pickle.dumps(payload),
        "digits": b"{'alignments': " + b"9" * 2_000_000 + b"}",
        "a huge exponent": repr(payload).encode().replace(b"[[", b"[[1e99999,1],[", 1),
        "a huge number": repr(payload).encode().replace(b"[[", b"[[" + b"1" * 5000 + b",1],[", 1),
        "strings without end": b"{'a': '" + b"\\x41" * 500_000,
        "backslashes": b"{'a': '" + b"\\" * 500_001 + b"'}",
        "quotes": b"'" * 1_000_000,
        "commas": b"{" + b"," * 1_000_000,
        "spaces": b" " * 3_000_000 + b"x",
        "a list of lists of digits": b"{'alignments': {'landmarks_xy': [" + b"[1,1]," * 700_000 + b"]}}",
        "not UTF-8": b"{'a': '\xff\xfe\xfd'}",
        "null bytes": bytes(100_000),
        "nothing": b"",
        "nine megabytes": b"{'a': '" + b"a" * (9 << 20) + b"'}",
        "a set": b"{1, 2, 3}",
        "complex": repr(payload).encode().replace(b"[[", b"[[1j, 2],[", 1),
    }
    for what, text in texts.items():
        yield f"text: {what}", _with_text(face, text)
    wrong = [None, 5, "x", [], {}, [[]], [[1, 2]] * 68000, [[1]] * 68, [["a", "b"]] * 68, [[None] * 2] * 68, b"x", -1.5]
    wrong += [[[float("inf")] * 2] * 68, [[10**400, 1]] * 68, [[[1, 2]] * 68] * 2, True, [[1e30, 1e30]] * 68]
    for value in wrong:
        made = a_payload(a_face())
        made["alignments"]["landmarks_xy"] = value
        yield f"landmarks: {value!r:.20}", write_header(face.picture, made)
    for value in (None, 5, [], "x", {"face": None}, {"face": []}, {"face": {"mask": 5}}, {5: 6}):
        made = a_payload(a_face())
        made["alignments"]["mask"] = value
        yield f"masks: {value!r:.20}", write_header(face.picture, made)
    yield "alignments: a list", write_header(face.picture, {"alignments": [], "source": []})
    yield "source: text", write_header(face.picture, {**payload, "source": "x"})
    yield (
        "frame: zero",
        write_header(face.picture, {**payload, "source": {**payload["source"], "source_frame_dims": (0, -5)}}),
    )
    masks = {
        "a bomb of 4 GiB": {"mask": _bomb(1 << 32)},
        "a bomb that says its size": {"mask": _bomb(1 << 30), "stored_size": 1 << 15},
        "16 times the largest": {"mask": _bomb(1 << 28), "stored_size": 4096},
        "a huge size": {"stored_size": 10**9},
        "a negative size": {"stored_size": -64},
        "no size": {"stored_size": 0},
        "a size of text": {"stored_size": "64"},
        "a pickle": {"mask": pickle.dumps(Touch(marker))},
        "noise": {"mask": b"\x78\x9c" + bytes(range(256)) * 20},
        "nothing": {"mask": b""},
        "text": {"mask": "x\\x9c"},
        "a cut stream": {"mask": a_stored_mask()["mask"][:-6]},
        "a matrix of one": {"affine_matrix": [[1]]},
        "no matrix": {"affine_matrix": None},
        "an unknown centering": {"stored_centering": "../face"},
    }
    for what, changes in masks.items():
        yield f"mask: {what}", _with_mask(face, **changes)
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (2**32 - 1, 1),
        (0, 64),
        (30_000, 30_000),
        (40_000, 17),
        (11_585, 11_585),
    ):
        yield f"IHDR: {width}x{height}", _with_ihdr(face.picture, width=width, height=height)
    for changes in ({"depth": 3}, {"colour": 9}, {"compression": 7}, {"interlace": 2}, {"depth": 16}, {"colour": 3}):
        yield f"IHDR: {changes}", _with_ihdr(face.picture, **changes)
    at = face.picture.index(b"IDAT") - 4
    for length in (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, len(face.picture), 2**28):
        yield f"a chunk of {length}", face.picture[:at] + struct.pack(">I", length) + face.picture[at + 4 :]
    yield "no IEND", face.picture[:-12]
    yield "no IDAT", SIGNATURE + b"".join(_chunk(k, bytes(d)) for k, d in walk_chunks(face.picture) if k != b"IDAT")
    yield "pixels cut short", _with_idat(face.picture, lambda data: data[: len(data) // 2])
    yield "pixels of another picture", _with_idat(face.picture, lambda data: zlib.compress(bytes(50)))
    yield "pixels of noise", _with_idat(face.picture, lambda data: random.Random(1).randbytes(len(data)))
    yield "no pixels", _with_idat(face.picture, lambda data: b"")


def _hostile_jsons(marker: Path) -> Iterator[tuple[str, bytes]]:
    good = a_face(60, (70, 60)).tolist()
    texts = {
        "nested": b"[" * 500_000,
        "nested landmarks": b'{"landmarks": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "digits": b'{"landmarks": [[' + b"9" * 100_000 + b", 1]]}",
        "an exponent": b'{"landmarks": [' + b",".join([b"[1e999, 1]"] * 68) + b"]}",
        "a pickle": pickle.dumps(Touch(marker)),
        "noise": random.Random(2).randbytes(5000),
        "nothing": b"",
        "null": b"null",
        "null bytes": bytes(1000),
        "a number": b"5",
        "many points": json.dumps({"landmarks": [[1, 2]] * 100_000}).encode(),
        "one row": json.dumps({"landmarks": [good]}).encode(),
        "rows of one": json.dumps({"landmarks": [[1]] * 68}).encode(),
        "true": json.dumps({"landmarks": [[True, False]] * 68}).encode(),
        "far away": json.dumps({"landmarks": [[x + 10**7, y] for x, y in good]}).encode(),
        "mirrored to nothing": json.dumps({"landmarks": [[0, 0]] * 68}).encode(),
    }
    masks = (
        "../../../etc/passwd",
        "/dev/zero",
        "/etc/passwd",
        "",
        ".",
        "..",
        "\0",
        "a" * 5000,
        "\ud800",
        5,
        [],
        {},
        "no.png",
    )
    yield from ((f"json: {what}", text) for what, text in texts.items())
    for mask in masks:
        yield f"json: mask {mask!r:.20}", json.dumps({"landmarks": good, "mask": mask}).encode()


def _hostile_masks(face: Face, marker: Path) -> Iterator[tuple[str, bytes]]:
    mask = face.files["_mask.png"]
    yield "mask file: a pickle", pickle.dumps(Touch(marker))
    yield "mask file: text", b"x" * 500
    yield "mask file: nothing", b""
    yield "mask file: another size", png_bytes(np.zeros((9, 9), np.uint8))
    yield "mask file: huge", _with_ihdr(mask, width=2**31 - 1, height=2**31 - 1)
    yield "mask file: cut", mask[:-20]


def _strangers(marker: Path) -> Iterator[tuple[str, str, bytes]]:
    """(what, ending, content) of files that are no face at all."""
    rng, packed = random.Random(3), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(50 << 20))
    others = {
        "noise": rng.randbytes(4000),
        "noise behind a PNG's signature": SIGNATURE + rng.randbytes(4000),
        "noise behind a JPEG's signature": b"\xff\xd8\xff" + rng.randbytes(4000),
        "zeros": bytes(4000),
        "fill bytes": b"\xff\xd8\xff" + b"\xff" * 1_000_000,
        "an empty JPEG": b"\xff\xd8\xff\xd9",
        "a pickle": pickle.dumps(Touch(marker)),
        "a zip": packed.getvalue(),
        "a GIF": b"GIF89a" + rng.randbytes(500),
        "a WebP": b"RIFF\x00\x10\x00\x00WEBPVP8 " + rng.randbytes(500),
        "a program": b"\x7fELF" + rng.randbytes(500),
        "a bitmap": cv2.imencode(".bmp", a_picture(30, 30))[1].tobytes(),
        "a script": b"#!/bin/sh\nmkdir " + os.fsencode(marker) + b"\n",
    }
    for what, content in others.items():
        yield what, rng.choice([".png", ".jpg"]), content
    yield "a PNG of no face", ".png", png_bytes(a_picture(64, 64))
    yield "a JPEG without landmarks", ".jpg", cv2.imencode(".jpg", a_picture(64, 64))[1].tobytes()


def _sof(data: bytes, width: int, height: int) -> bytes:
    at = next(at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def make_cases(sources: dict[str, list[Face]], marker: Path) -> list[Case]:
    made = {face.name: face for face in sources["made"]}
    head, plain, photo = made["head0"], made["plain"], made["photo"]
    cases = [Case(what, "bad", head.name, {".png": data}) for what, data in _hostile_heads(head, marker)]
    cases += [Case(what, "bad", plain.name, {**plain.files, ".json": text}) for what, text in _hostile_jsons(marker)]
    for face in (plain, photo):
        hostile = _hostile_masks(face, marker)
        cases += [Case(what, "bad", face.name, {**face.files, "_mask.png": data}) for what, data in hostile]
    cases += [Case(what, "bad", "", {ending: content}) for what, ending, content in _strangers(marker)]
    for width, height in ((65_500, 65_500), (0, 100), (32_767, 10)):
        cases.append(
            Case(f"SOF: {width}x{height}", "bad", "", {**photo.files, ".jpg": _sof(photo.picture, width, height)})
        )
    cases.append(Case("SOF: twice as high", "bad", "", {**photo.files, ".jpg": _sof(photo.picture, 200, 420)}))
    # So small that DALI and OpenCV take it for gray at the end: nothing in it is false but its size.
    large = {**without(photo, "_mask.png"), ".jpg": _sof(photo.picture, 11_585, 11_585)}
    cases.append(Case("SOF: 11585x11585", "any", "", large))
    # The name lies and the content is a face.
    cases.append(Case("a head named .jpg", "same", head.name, {".jpg": head.picture}))
    cases.append(Case("a JPEG named .png", "same", photo.name, {**without(photo, ".jpg"), ".png": photo.picture}))
    cases.append(Case("a PNG named .jpg", "same", plain.name, {**without(plain, ".png"), ".jpg": plain.picture}))
    rng = random.Random(20)
    real = [face for name in ("golden", "photographs") for face in sources[name]]
    while len(cases) < COUNT:
        cases.append(_accidents(rng.choice(real if real and len(cases) % 5 else sources["made"]), rng))
    return cases


def without(face: Face, ending: str) -> dict[str, bytes]:
    return {name: data for name, data in face.files.items() if name != ending}


# --- the whole path, in a process of its own --------------------------------------------------------------

PATH = """
import json, resource, sys, time
from pathlib import Path

resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
import numpy as np
from pipelines.decode import BatchDecoder, dali_version
from pipelines.fill import DALI_PIXELS, FaceSource, fill_store
from pipelines.store import HostStore, StoreSpec
from swapfast.config import CropConfig, MaskConfig
from swapfast.faces.image import read_image
from swapfast.faces.folder import scan_folder

def resident(name):
    # VmRSS is what is resident now, VmHWM the most there has been.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

def grown():
    # How much more than at the beginning was resident since the last time this was asked.
    most = resident("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5")
    return most

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
if dali_version():
    import nvidia.dali, pipelines.graph
before = resident("VmRSS")
grown()
told, arrays = {}, {}
found = scan_folder(folder, workers=2)
told["bad"] = {face.path.name: face.reason for face in found.bad}
told["scanned"] = grown()
source = FaceSource(found)
for kind in ("extended", "file"):
    if kind == "file":
        has = np.flatnonzero([record.mask_file is not None for record in source.folder.records])
    else:
        has = np.arange(len(source))
    spec = StoreSpec(48, CropConfig(), MaskConfig(mask_type=kind), ("face", "eye", "mouth"))
    store = HostStore.in_memory(spec, len(source))
    reasons = fill_store(spec, source, store, has, threads=2)
    names = [source.folder.records.name(int(i)) for i in has]
    told[kind] = {source.folder.records.name(i): reason for i, reason in reasons.items()}
    told[f"{kind} names"] = names
    arrays[f"{kind} faces"], arrays[f"{kind} extra_masks"] = store.faces[has], store.extra_masks[has]
# A mask that cannot be used spoils its face only with --mask-type file.
told["unusable"] = {r.path.name: r.unusable_mask[1] for r in source.folder.records if r.unusable_mask}
told["file"] |= told["unusable"]
arrays["landmarks"] = np.stack([record.landmarks for record in source.folder.records])
told["filled"] = grown()
told["workers"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024

told["decoded"], told["differing"] = 0, []
if dali_version():
    # Those that no store could take come first, in batches with good ones.
    undecodable = [i for i in range(len(source)) if source.folder.records.name(i) in told["extended"]]
    # Without a store DALI decodes pictures of any size, and takes the memory that they say they need.
    small = [i for i, record in enumerate(source.folder.records) if record.width * record.height <= DALI_PIXELS]
    sample = undecodable + [i for i in small if i not in undecodable]
    def members_of(step):
        return [(0, sample[(8 * step + place) % len(sample)]) for place in range(8)]
    decoder = BatchDecoder([source], members_of, 2, None, True)
    for step in range(8):
        for (_, i), decoded in zip(members_of(step), decoder(step)):
            told["decoded"] += 1
            record = source.folder.records[i]
            try:
                expected = read_image(record.path)
            except ValueError:
                expected = None
            if isinstance(decoded, str):
                same = expected is None
            else:
                same = record.encoding == "jpeg" or expected is None or np.array_equal(decoded, expected)
            if not same:
                told["differing"].append(record.path.name)
told["decoded in batches"] = grown()
out.with_suffix(".json").write_text(json.dumps(told))
np.savez(out, **arrays)
"""


def _run(*command, timeout: int = 150) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, command)]
    return preloaded.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout)


def _through_the_path(folder: Path, out: Path) -> tuple[dict, dict[str, np.ndarray]]:
    done = _run("-c", PATH, folder, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.with_suffix(".json").read_text()), dict(np.load(out))


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """(folder of the damaged, their cases by file name, folder of the faces as they were, what a pickle would make)"""
    place = tmp_path_factory.mktemp("fuzz")
    damaged, good, marker = place / "damaged", place / "good", place / "a_pickle_was_loaded"
    damaged.mkdir(), good.mkdir()
    sources = _sources(good)
    for face in [*sources["golden"], *sources["photographs"]]:
        for ending, data in face.files.items():
            (good / f"{face.name}{ending}").write_bytes(data)
    cases = {}
    for number, case in enumerate(make_cases(sources, marker)):
        for ending, data in case.files.items():
            (damaged / f"{number:03}{ending}").write_bytes(data)
        cases[f"{number:03}{'.png' if '.png' in case.files else '.jpg'}"] = case
    assert len(cases) == COUNT
    return damaged, cases, good, marker


@pytest.fixture(scope="module")
def paths(fuzzed, tmp_path_factory):
    """What became of the damaged ones, and of the faces as they were."""
    damaged, _, good, _ = fuzzed
    place = tmp_path_factory.mktemp("out")
    before = {path.name: path.read_bytes() for path in damaged.iterdir()}
    result = _through_the_path(damaged, place / "damaged.npz")
    assert {path.name: path.read_bytes() for path in damaged.iterdir()} == before, "the folder is left as it was"
    return result, _through_the_path(good, place / "good.npz")


@pytest.mark.long
def test_what_was_not_damaged_is_good(paths):
    _, (told, _) = paths
    assert told["bad"] == told["extended"] == told["file"] == {} and len(told["extended names"]) >= 4
    assert not told["differing"]


@pytest.mark.long
def test_every_file_ends_in_one_clean_line_or_as_a_face(fuzzed, paths):
    _, cases, _, marker = fuzzed
    (told, _), _ = paths
    bad = {**told["bad"], **told["extended"]}
    assert not told["bad"].keys() & set(told["extended names"])
    assert {*told["bad"], *told["extended names"]} == cases.keys()
    for name, reason in {**bad, **told["file"]}.items():
        assert 0 < len(reason) < 400 and reason.isprintable(), (cases[name].what, reason)
        assert "Error" not in reason and " at 0x" not in reason and "<" not in reason, (cases[name].what, reason)
    assert not marker.exists()
    accepted = {
        name: cases[name].what
        for name in cases
        if cases[name].must == "bad" and name not in {**bad, **told["unusable"]}
    }
    assert not accepted, f"taken for faces: {accepted}"
    assert sum(cases[name].must != "bad" for name in bad) > 20, "accidents are found too"


def test_a_damaged_png_is_bad_or_the_face_it_was(fuzzed, paths):
    """Its pixels, its masks and its landmarks, to the last bit."""
    _, cases, _, _ = fuzzed
    (told, arrays), (good, originals) = paths
    compared = 0
    where = {Path(name).stem: i for i, name in enumerate(good["extended names"])}
    landmarks = dict(zip(told["extended names"], arrays["landmarks"]))
    for kind in ("extended", "file"):
        by_kind = {Path(name).stem: i for i, name in enumerate(good[f"{kind} names"])}
        for i, name in enumerate(told[f"{kind} names"]):
            case = cases[name]
            if case.must != "same" or name in told[kind] or name in told["extended"]:
                continue
            like = by_kind[case.like]
            assert np.array_equal(landmarks[name], originals["landmarks"][where[case.like]]), (name, case.what)
            for part in ("faces", "extra_masks"):
                ours, theirs = arrays[f"{kind} {part}"][i], originals[f"{kind} {part}"][like]
                assert np.array_equal(ours, theirs), (name, case.what, kind)
            compared += 1
    assert compared > 5


def test_the_batch_decoder_goes_on(paths):
    """Undecodable pictures in the middle of good ones: each has its reason, and the others their own pixels."""
    (told, _), _ = paths
    if not told["decoded"]:
        pytest.skip("DALI is not installed")
    assert told["decoded"] == 64 and told["differing"] == []


def test_memory_stays_below_a_gib(paths, within):
    (told, _), _ = paths
    for what in ("scanned", "filled", "workers", "decoded in batches"):
        within(f"{what}, GiB", told[what] / MEMORY, 1)


# --- giants -----------------------------------------------------------------------------------------------

SCAN_AND_FILL = """
import json, sys
from pathlib import Path

import numpy as np
from pipelines.fill import FaceSource, fill_store
from pipelines.store import HostStore, StoreSpec
from swapfast.config import CropConfig, MaskConfig
from swapfast.faces.folder import scan_folder

def resident(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
found = scan_folder(folder, workers=1)
source, spec = FaceSource(found), StoreSpec(48, CropConfig(), MaskConfig(), ("face", "eye", "mouth"))
store = HostStore.in_memory(spec, len(source))
bad = {face.path.name: face.reason for face in found.bad}
bad |= {source.folder.records.name(i): reason for i, reason in fill_store(spec, source, store, threads=1).items()}
names = [source.folder.records.name(i) for i in range(len(source))]
out.write_text(json.dumps({"bad": bad, "names": names, "peak": resident("VmHWM")}))
np.savez(out.with_suffix(".npz"), faces=store.faces[..., :3])
"""


def _plain_colour(edge: int, depth: int, colour: tuple[int, int, int], extra: bytes = b"") -> bytes:
    """A square PNG of one colour (RGB), its chunks ``extra`` before the pixels."""
    row = b"\0" + struct.pack(">3H" if depth == 16 else ">3B", *colour) * edge
    ihdr = _chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, depth, 2, 0, 0, 0))
    return SIGNATURE + ihdr + extra + _chunk(b"IDAT", _repeated(row, edge)) + _chunk(b"IEND", b"")


@pytest.mark.long
def test_giants_end_in_a_line_or_as_the_right_face_within_a_gib(tmp_path, within):
    """The largest pictures there may be, one of 16 bits that is larger, and 1 MiB of text that unpacks to 1 GiB."""
    folder, out = tmp_path / "faces", tmp_path / "told.json"
    folder.mkdir()
    zeros = _bomb(1 << 30)
    pictures = {
        "giant": _plain_colour(8192, 8, (16, 128, 255)),
        "giant16": _plain_colour(5792, 16, (0x1000, 0x8080, 0xFFFF)),
        "huge16": _plain_colour(8192, 16, (0x1000, 0x8080, 0xFFFF)),
        "text": _plain_colour(256, 8, (16, 128, 255), _chunk(b"iTXt", b"Comment\0\x01\0\0\0" + zeros)),
        "text16": _plain_colour(256, 16, (0x1000, 0x8080, 0xFFFF), _chunk(b"iTXt", b"Comment\0\x01\0\0\0" + zeros)),
        "old_text": _plain_colour(256, 8, (16, 128, 255), _chunk(b"zTXt", b"Comment\0\0" + zeros)),
        "header": _plain_colour(256, 8, (16, 128, 255), _chunk(b"iTXt", b"faceswap\0\x01\0\0\0" + zeros)),
    }
    for name, data in pictures.items():
        edge = struct.unpack(">I", data[16:20])[0]
        landmarks = a_face(edge / 4, (edge * 3 / 8, edge * 3 / 8)).tolist()
        (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.json").write_text(json.dumps({"landmarks": landmarks}))
    done = _run("-c", SCAN_AND_FILL, folder, out)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(out.read_text())
    assert told["bad"].keys() == {"header.png", "huge16.png"}
    assert "compressed" in told["bad"]["header.png"] and "larger than is read" in told["bad"]["huge16.png"]
    assert told["names"] == ["giant.png", "giant16.png", "old_text.png", "text.png", "text16.png"]
    faces = np.load(out.with_suffix(".npz"))["faces"]
    assert np.array_equal(faces, np.broadcast_to(np.uint8([255, 128, 16]), faces.shape))
    within("the whole process, GiB", told["peak"] / MEMORY, 1)


# --- as a person meets it ---------------------------------------------------------------------------------


def _clean(done: subprocess.CompletedProcess, code: int) -> None:
    assert done.returncode == code, done.stderr[-3000:]
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.long
def test_inspect_names_every_bad_file(fuzzed, paths):
    damaged, cases, _, marker = fuzzed
    (told, _), _ = paths
    done = _run("cli.py", "inspect", damaged, "--json")
    _clean(done, 1)
    report = json.loads(done.stdout)
    assert {one["file"]: one["reason"] for one in report["bad"]}.keys() == {
        *told["bad"],
        *told["extended"],
        *told["file"],
    }
    assert report["faces"] + len(report["bad"]) == len(cases) and not marker.exists()


@pytest.mark.long
def test_training_leaves_the_bad_ones_out_or_says_what_they_are(fuzzed, tmp_path, capsys):
    damaged, cases, good, marker = fuzzed
    train = ["cli.py", "train", "-A", damaged, "-B", good, "-t", "tiny", "-b", "2", "-i", "1", "--preview-images", "2"]
    train += ["-n", "--device", "cpu"]
    _clean(_run(*train, "-m", tmp_path / "model", "--skip-bad"), 0)
    assert (tmp_path / "model" / "preview.png").exists()
    assert cli.main([*map(str, train[1:]), "-m", str(tmp_path / "none")]) == 2
    refused = capsys.readouterr().err
    assert f"of {len(cases)} files cannot be used" in refused and "--skip-bad" in refused
    assert len(refused.strip().splitlines()) > 100 and "Traceback" not in refused
    assert not (tmp_path / "none").exists() and not marker.exists()


@pytest.mark.long
def test_training_without_a_store_goes_on_too(fuzzed, tmp_path, capsys):
    damaged, _, good, marker = fuzzed
    train = ["train", "-A", damaged, "-B", good, "-t", "tiny", "-b", "2", "-i", "1", "--preview-images", "2", "-n"]
    train += ["--device", "cpu", "-m", tmp_path / "model", "--skip-bad", "--cache", "off"]
    code = cli.main([str(word) for word in train])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("swapfast: ")]
    assert (code, told) == (0, []) and not marker.exists()
