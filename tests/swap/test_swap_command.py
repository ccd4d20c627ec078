"""`swapfast swap` on folders of pictures: what is written, going on, choosing, and requests that cannot be met."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import signal
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import cli
from pipelines.decode import dali_version
from swapfast.checkpoints.folder import Checkpoint, CheckpointFolder
from swapfast.config import CropConfig, LossConfig, ModelConfig, TrainConfig
from swapfast.faces.alignment import align
from swapfast.faces.crop import sample_square
from swapfast.faces.png import write_header
from swapfast.files import TEMPORARY
from swapfast.models import build_model
from swapfast.swap.landmark_file import header_line, landmark_line
from swapfast.swap.marking import is_marked
from tests.same_files import check_same
from tests.swap.echo import drawn_face

pytestmark = pytest.mark.slow  # whole programs

FACES = [drawn_face(i, 128) for i in range(4)]


def save_model(folder: Path, learn_mask: bool = False) -> Path:
    config = TrainConfig(model=ModelConfig(name="tiny"), loss=LossConfig(learn_mask=learn_mask))
    weights = build_model(config.model, learn_mask, seed=3).state_dict()
    faces = {f"mean_{side}": torch.full((64, 64, 3), 0.5) for side in "ab"}
    state = {"config": config.to_dict(), "metrics": {"average_loss": 0.5}}
    CheckpointFolder(folder).save(Checkpoint(7, {"model": weights, "optimizer": {}, "faces": faces}, state))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "masked", learn_mask=True)


def write_frame(folder: Path, name: str, pixels: np.ndarray, *landmarks: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / name), pixels)
    tables = [{"landmarks": points.astype(float).tolist()} for points in landmarks]
    text = json.dumps(tables[0] if len(tables) == 1 else {"faces": tables})
    (folder / name).with_suffix(".json").write_text(text)


@pytest.fixture
def frames(tmp_path) -> Path:
    """Four frames of one face each, as PNG."""
    for index, face in enumerate(FACES):
        write_frame(tmp_path / "frames", f"shot_{index + 1:04d}.png", face.image, face.landmarks)
    return tmp_path / "frames"


@pytest.fixture
def swap(model, tmp_path, monkeypatch, capsys):
    """Run the command with more words, in an empty folder; return its code, output and error."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*words: object, m: Path = model) -> tuple[int, str, str]:
        code = cli.main(["swap", "-m", str(m), "--device", "cpu", *map(str, words)])
        return code, *capsys.readouterr()

    return call


def done(result: tuple[int, str, str]) -> str:
    assert result[0] == 0, result
    return result[1]


def refused(result: tuple[int, str, str], *words: str, code: int = 2) -> None:
    assert result[0] == code and result[1] == "", result
    lines = result[2].splitlines()
    assert len(lines) == 1 and lines[0].startswith("swapfast: "), lines
    for word in words:
        assert word in lines[0]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".png", ".jpg")}


def head_of(face, name: str, frame: str, index: int = 0) -> bytes:
    """A face PNG as faceswap extracts it."""
    alignment = align(face.landmarks)
    head = sample_square(face.image, alignment.matrix(128, "head", whole_padding=True), 128)
    stored = np.zeros((64, 64), np.uint8)
    stored[16:48, 16:48] = 255
    payload = {
        "alignments": {
            "x": 0, "y": 0, "w": 9, "h": 9, "landmarks_xy": face.landmarks.astype(float).tolist(), "identity": {},
            "mask": {"bisenet-fp_face": {
                "mask": zlib.compress(stored.tobytes()), "affine_matrix": [[1, 0, 0], [0, 1, 0]], "interpolator": 1,
                "stored_size": 64, "stored_centering": "face",
            }},
        },
        "source": {
            "alignments_version": 2.4, "original_filename": name, "face_index": index, "source_filename": frame,
            "source_is_video": False, "source_frame_dims": face.image.shape[:2],
        },
    }  # fmt: skip
    return write_header(cv2.imencode(".png", head)[1].tobytes(), payload)


# --- what is written --------------------------------------------------------------------------------------


def test_each_frame_is_written_swapped_marked_and_noted(swap, frames):
    output = done(swap("-i", frames, "-o", "out", "--report", "report.json"))
    assert output.startswith("4 faces swapped in 4 frames") and "the model makes 64" in output
    written = pictures(Path("out"))
    assert list(written) == [f"shot_{i:04d}.png" for i in range(1, 5)]
    for name, data in written.items():
        before, after = cv2.imread(str(frames / name)), cv2.imread(f"out/{name}")
        changed = (before != after).any(2)
        assert 0.05 < changed.mean() < 0.4 and is_marked(data)
        Image.open(io.BytesIO(data)).verify()
    manifest = json.loads(Path("out/swap.json").read_text())
    assert manifest["state"] == "finished" and set(manifest["files"]) == set(written)
    assert all(manifest["files"][name] == hashlib.sha256(data).hexdigest() for name, data in written.items())
    assert manifest["request"]["model"]["iteration"] == 7 and "synthetic" in manifest["synthetic_media"]
    report = json.loads(Path("report.json").read_text())
    assert report["faces"] == 4 and report["faces_skipped"] == {} and report["seconds_by_stage"]["model"] > 0
    assert sorted(os.listdir("out")) == [*sorted(written), "swap.json"], "nothing else is left"


def test_the_same_input_gives_the_same_bytes(swap, frames):
    done(swap("-i", frames, "-o", "one", "-c", "linear", "--workers", "1"))
    done(swap("-i", frames, "-o", "two", "-c", "linear", "--workers", "3"))
    check_same(pictures(Path("two")), pictures(Path("one")))


@pytest.mark.parametrize("lost", [(0,), (1, 3)])
def test_a_run_goes_on_where_it_was(swap, frames, lost):
    done(swap("-i", frames, "-o", "out"))
    whole, times = pictures(Path("out")), {p.name: p.stat().st_mtime_ns for p in Path("out").iterdir()}
    names = sorted(whole)
    for index in lost:
        Path("out", names[index]).unlink()
    Path("out", f"{TEMPORARY}0-x.png").write_bytes(b"half")
    output = done(swap("-i", frames, "-o", "out"))
    assert output.startswith(f"{len(lost)} faces swapped in {len(lost)} frames")
    check_same(pictures(Path("out")), whole)
    for index in set(range(4)) - set(lost):
        assert Path("out", names[index]).stat().st_mtime_ns == times[names[index]], "the others are left"
    manifest = json.loads(Path("out/swap.json").read_text())
    assert len(manifest["files"]) == 4 and not list(Path("out").glob(f"{TEMPORARY}*"))


def test_another_swap_in_the_folder_is_refused(swap, frames):
    done(swap("-i", frames, "-o", "out"))
    before = pictures(Path("out"))
    refused(swap("-i", frames, "-o", "out", "-c", "none"), "out: holds another swap (settings differs)", "--overwrite")
    check_same(pictures(Path("out")), before)
    done(swap("-i", frames, "-o", "out", "-c", "none", "--overwrite"))
    assert pictures(Path("out")) != before
    Path("mine").mkdir()
    Path("mine/keep.txt").write_text("x")
    refused(swap("-i", frames, "-o", "mine"), "mine: is not empty, and holds no swap")
    assert os.listdir("mine") == ["keep.txt"]


def test_nothing_that_is_read_is_written_to(swap, frames, model):
    refused(swap("-i", frames, "-o", frames), "-o/--out", "is the folder of -i")
    refused(swap("-i", frames, "-o", model), "is the folder of -m/--model-dir")
    assert not (frames / "swap.json").exists()


KINDS = {
    "rgb.png": (np.uint8, 3),
    "deep.png": (np.uint16, 3),
    "alpha.png": (np.uint8, 4),
    "deepalpha.png": (np.uint16, 4),
    "gray.png": (np.uint8, 1),
    "deepgray.png": (np.uint16, 1),
    "photo.jpg": (np.uint8, 3),
    "gray.jpg": (np.uint8, 1),
}


def test_each_kind_of_picture_keeps_its_format_depth_and_channels(swap, tmp_path):
    face, folder = FACES[0], tmp_path / "kinds"
    for number, (name, (kind, channels)) in enumerate(KINDS.items()):
        pixels = face.image.astype(kind) * (257 if kind == np.uint16 else 1)
        if channels == 1:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
        if channels == 4:
            pixels = np.dstack([pixels, np.full(pixels.shape[:2], np.iinfo(kind).max // 3, kind)])
        write_frame(folder, f"{number}_{name}", pixels, face.landmarks)
    Image.open(folder / "0_rgb.png").convert("P").save(folder / "8_palette.png")
    Image.open(folder / "0_rgb.png").convert("CMYK").save(folder / "9_inks.jpg", quality=95)
    for name in ("8_palette", "9_inks"):
        shutil.copy(folder / "0_rgb.json", folder / f"{name}.json")
    done(swap("-i", folder, "-o", "out"))
    for number, (name, (kind, channels)) in enumerate(KINDS.items()):
        before, after = (cv2.imread(str(f / f"{number}_{name}"), cv2.IMREAD_UNCHANGED) for f in (folder, Path("out")))
        assert after.dtype == kind and after.shape == before.shape, name
        if channels == 4:
            np.testing.assert_array_equal(after[..., 3], before[..., 3])
        if name.endswith(".png"):
            changed = after != before if channels == 1 else (after != before).any(2)
            assert 0.05 < changed.mean() < 0.4, name
        else:  # a JPEG is encoded anew, at quality 95
            assert np.abs(after.astype(int) - before)[:8].mean() < 2, name
    assert cv2.imread("out/8_palette.png", cv2.IMREAD_UNCHANGED).shape == face.image.shape
    inks, colours = cv2.imread("out/9_inks.jpg"), cv2.imread(str(folder / "0_rgb.png"))
    assert np.abs(inks.astype(int) - colours)[:8].mean() < 3


def test_a_photographs_orientation_and_profile_are_kept(swap, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = Image.fromarray(cv2.cvtColor(FACES[0].image, cv2.COLOR_BGR2RGB))
    picture.save(folder / "p.jpg", exif=exif, icc_profile=b"profile", quality=95, subsampling=0)
    table = {"landmarks": FACES[0].landmarks.astype(float).tolist(), "orientation": "stored"}
    (folder / "p.json").write_text(json.dumps(table))
    done(swap("-i", folder, "-o", "out"))
    written = Image.open("out/p.jpg")
    assert written.getexif()[0x0112] == 6 and written.info["icc_profile"] == b"profile"
    assert is_marked(Path("out/p.jpg").read_bytes())


def test_frames_without_a_face_are_copied_and_counted(swap, frames):
    (frames / "shot_0002.json").unlink()
    output = done(swap("-i", frames, "-o", "out"))
    assert "1 frames have no face that is swapped" in output
    assert Path("out/shot_0002.png").read_bytes() == (frames / "shot_0002.png").read_bytes()


def test_ranges_drop_the_other_frames_or_keep_them(swap, frames):
    done(swap("-i", frames, "-o", "out", "-R", "2-3"))
    assert list(pictures(Path("out"))) == ["shot_0002.png", "shot_0003.png"]
    done(swap("-i", frames, "-o", "all", "-R", "2-3", "-k"))
    originals, written = pictures(frames), pictures(Path("all"))
    assert [written[name] == originals[name] for name in sorted(written)] == [True, False, False, True]
    refused(swap("-i", frames, "-o", "x", "-R", "9-"), "none of the 4 frames lies in it; they are numbered 1 to 4")
    refused(swap("-i", frames, "-o", "x", "-R", "5-2"), "-R/--frame-ranges 5-2: ends before it begins")
    refused(swap("-i", frames, "-o", "x", "-R", "a"), "-R/--frame-ranges 'a': is no range of frames")


def test_settings_of_ranges_rank_over_flags(swap, frames):
    Path("run.toml").write_text(
        'color.type = "none"\n[[range]]\nframes = "2"\nmask.type = "rect"\n'
        '[[range]]\nframes = "3-"\nmask.erosion = 90.0\n'
    )
    done(swap("-i", frames, "-o", "out", "-C", "run.toml", "-M", "components"))
    shares = []
    for name, data in pictures(Path("out")).items():
        before = cv2.imread(str(frames / name))
        shares.append(float((cv2.imdecode(np.frombuffer(data, np.uint8), 1) != before).any(2).mean()))
    assert shares[1] > 0.35 > shares[0] > 2 * shares[2]
    Path("wrong.toml").write_text('[[range]]\nframes = "2"\nmask.kind = "rect"\n')
    refused(swap("-i", frames, "-o", "x", "-C", "wrong.toml"), "wrong.toml: range 1.mask", "'kind'", "type")
    Path("wrong.toml").write_text("[[range]]\nmask.erosion = 1.0\n")
    refused(swap("-i", frames, "-o", "x", "-C", "wrong.toml"), "wrong.toml: range 1: says no frames")


def test_masks_patches_and_faces_on_nothing(swap, frames):
    done(swap("-i", frames, "-o", "out", "--write-mask"))
    mask = cv2.imread("out/masks/shot_0001.png", cv2.IMREAD_UNCHANGED)
    changed = (cv2.imread("out/shot_0001.png") != cv2.imread(str(frames / "shot_0001.png"))).any(2)
    assert mask.shape == changed.shape and not changed[mask == 0].any() and changed[mask == 255].mean() > 0.9
    done(swap("-i", frames, "-o", "alone", "--transparent"))
    alone = cv2.imread("alone/shot_0001.png", cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(alone[..., 3], mask)
    inside = mask == 255
    np.testing.assert_allclose(
        alone[..., :3][inside], cv2.imread("out/shot_0001.png")[inside], atol=1, err_msg="rounded once in either"
    )


def test_a_patch_goes_back_to_where_the_frame_has_it(swap, frames):
    """Composited by its matrix, with OpenCV, a patch gives what the picture writer gives."""
    done(swap("-i", frames, "-o", "out", "-c", "none"))
    done(swap("-i", frames, "-o", "parts", "-c", "none", "-w", "patch"))
    entry = json.loads(Path("parts/patches/shot_0001.json").read_text())
    (face,) = entry["faces"]
    patch = cv2.imread(f"parts/patches/{face['file']}", cv2.IMREAD_UNCHANGED)
    assert patch.dtype == np.uint16 and patch.shape == (face["size"], face["size"], 4)
    warped = cv2.warpAffine(patch.astype(np.float32) / 65535, np.array(face["to_frame"]), (128, 128))
    frame = cv2.imread(str(frames / "shot_0001.png")).astype(np.float32)
    expected = frame + (warped[..., :3] * 255 - frame) * warped[..., 3:]
    difference = np.abs(expected - cv2.imread("out/shot_0001.png"))
    assert difference.mean() < 0.5 and difference.max() < 16, "sampled linearly here, by a cubic filter there"


def test_format_and_scale(swap, frames):
    done(swap("-i", frames, "-o", "out", "--format", "jpg", "-O", "50"))
    assert next(iter(pictures(Path("out")))) == "shot_0001.jpg"
    assert cv2.imread("out/shot_0001.jpg").shape == (64, 64, 3)
    write_frame(frames, "shot_0001.jpg", FACES[0].image, FACES[0].landmarks)
    refused(swap("-i", frames, "-o", "x", "--format", "png"), "shot_0001.jpg and shot_0001.png would both become")


# --- which faces ------------------------------------------------------------------------------------------


def test_only_faces_that_are_still_in_the_folder_are_swapped(swap, frames, tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for index, face in enumerate(FACES):
        frame = f"shot_{index + 1:04d}.png"
        (folder / f"shot_{index + 1:04d}_0.png").write_bytes(head_of(face, f"{frame}_0", frame))
    for path in frames.glob("*.json"):
        path.unlink()
    refused(swap("-i", frames, "-o", "x"), "where are the faces? Looked for NAME.json", "-p FACES")
    done(swap("-i", frames, "-o", "all", "-p", folder))
    refused(swap("-i", frames, "--check", "-p", folder, "-M", "vgg-clear"), "has no such mask (it has bisenet-fp_face)")
    (folder / "shot_0002_0.png").unlink()
    (folder / "notes.png").write_bytes(cv2.imencode(".png", FACES[0].image)[1].tobytes())
    code, output, error = swap("-i", frames, "-o", "out", "-p", folder)
    assert code == 0 and "1 of 4 files are left out, such as notes.png: no faceswap header" in error
    assert output.startswith("3 faces swapped in 4 frames")
    everything, some, originals = pictures(Path("all")), pictures(Path("out")), pictures(frames)
    assert some["shot_0002.png"] == originals["shot_0002.png"] != everything["shot_0002.png"]
    assert some["shot_0001.png"] == everything["shot_0001.png"]
    done(swap("-i", frames, "-o", "stored", "-p", folder, "-M", "bisenet-fp_face"))


def test_faces_of_other_frames_are_named(swap, frames, tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    (folder / "a.png").write_bytes(head_of(FACES[0], "a", "other_000001.png"))
    refused(swap("-i", frames, "-o", "x", "-p", folder), "they are of other_000001.png", "the frames are shot_0001.png")
    refused(swap("-i", frames, "-o", "x", "-p", frames), "holds no face PNG of faceswap's extract")
    refused(swap("-i", frames, "-o", "x", "-p", tmp_path / "none"), "no such folder")


def test_frames_of_another_size_are_left_and_counted(swap, tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    (folder / "a.png").write_bytes(head_of(FACES[0], "a", "shot_0001.png"))
    write_frame(tmp_path / "frames", "shot_0001.png", cv2.resize(FACES[0].image, (64, 64)), FACES[0].landmarks)
    output = done(swap("-i", tmp_path / "frames", "-o", "out", "-p", folder))
    assert "1 faces left out: landmarks of a frame of 128x128 px, but the frame has 64x64" in output


def test_two_faces_in_a_frame_are_swapped_or_chosen(swap, tmp_path):
    wide = np.hstack([FACES[0].image, FACES[1].image])
    left, right = FACES[0].landmarks, FACES[1].landmarks + (128, 0)
    write_frame(tmp_path / "two", "f.png", wide, right, left)
    changes = {}
    for words in ((), ("--face", "leftmost"), ("--face-index", "0"), ("--min-size", "2000"), ("--face", "largest")):
        name = "_".join(("o", *words)).replace("-", "")
        output = done(swap("-i", tmp_path / "two", "-o", name, *words))
        changed = (cv2.imread(f"{name}/f.png") != wide).any(2)
        changes[words] = changed[:, :128].any(), changed[:, 128:].any()
        assert ("left out" in output) == bool(words)
    assert changes[()] == (True, True) and changes[("--face", "leftmost")] == (True, False)
    assert changes[("--face-index", "0")] == (False, True) and changes[("--min-size", "2000")] == (False, False)
    assert sum(changes[("--face", "largest")]) == 1


def test_landmarks_of_one_file(swap, frames):
    lines = [header_line("frames", 4, (128, 128))]
    lines += [landmark_line(face.landmarks, frame=index) for index, face in enumerate(FACES[:2])]
    lines += [landmark_line(FACES[2].landmarks, name="shot_0003.png", track=1)]
    Path("l.jsonl").write_text("\n".join(lines))
    done(swap("-i", frames, "-o", "beside"))
    output = done(swap("-i", frames, "-o", "out", "--landmarks", "l.jsonl"))
    assert output.startswith("3 faces swapped in 4 frames")
    for name in ("shot_0001.png", "shot_0003.png"):
        apart = np.abs(cv2.imread(f"out/{name}").astype(int) - cv2.imread(f"beside/{name}"))
        assert apart.max() <= 2, "landmarks are rounded to a thousandth px"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "line 1: is not valid JSON"),
        ('{"a": 1}\n', "does not begin with"),
        ('{"format": "swapfast landmarks", "version": 9}\n', "version 9 is not read"),
        ('{"format": "swapfast landmarks", "version": 1, "size": 5}\n', '"size" 5 is not'),
        ('{"format": "swapfast landmarks", "version": 1, "orientation": "up"}\n', "neither"),
        ('{"format": "swapfast landmarks", "version": 1}\n', "holds no face"),
        ('{"format": "swapfast landmarks", "version": 1}\n{"landmarks": []}\n', 'line 2: says neither "frame"'),
        ('{"format": "swapfast landmarks", "version": 1}\n{"frame": 0}\n', 'line 2: it has no list "landmarks"'),
        (
            '{"format": "swapfast landmarks", "version": 1}\n{"frame": 0, "landmarks": [[1,2]]}\n',
            "line 2: landmarks of",
        ),
        ('{"format": "swapfast landmarks", "version": 1}\n{"frame": 0, "landmarks": [[' + "[" * 9000, "line 2: is not"),
        ('{"format": "swapfast landmarks", "version": 1}\n{"frame": 0, "x": "' + "y" * 70000 + '"}', "is longer than"),
    ],
)
def test_a_landmark_file_that_is_none(swap, frames, text, message):
    Path("l.jsonl").write_text(text)
    refused(swap("-i", frames, "-o", "x", "--landmarks", "l.jsonl"), "--landmarks l.jsonl", message)
    assert not Path("x").exists()


def test_a_landmark_file_of_more_frames(swap, frames):
    Path("l.jsonl").write_text("\n".join([header_line(), landmark_line(FACES[0].landmarks, frame=90)]))
    refused(swap("-i", frames, "-o", "x", "--landmarks", "l.jsonl"), "speaks of frame 90, but there are 4")


def test_what_is_in_front_stays(swap, frames, tmp_path):
    mask = np.full((128, 128), 255, np.uint8)
    mask[64:] = 0
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks/shot_0001.png"), mask)
    output = done(swap("-i", frames, "-o", "out", "--mask-dir", tmp_path / "masks"))
    assert "3 frames have no mask in --mask-dir" in output
    changed = (cv2.imread("out/shot_0001.png") != cv2.imread(str(frames / "shot_0001.png"))).any(2)
    assert changed[:62].any() and not changed[70:].any()
    cv2.imwrite(str(tmp_path / "masks/shot_0002.png"), mask[:50])
    refused(
        swap("-i", frames, "-o", "y", "--mask-dir", tmp_path / "masks"), "the mask is 128x50 px, its frame 128x128",
    )  # fmt: skip


# --- check and sheet --------------------------------------------------------------------------------------


def test_check_says_what_would_be_done_and_writes_nothing(swap, frames):
    output = done(swap("-i", frames, "--check"))
    assert output.startswith("4 faces in 4 of 4 frames would become those of B, by tiny at iteration 7")
    assert "px in the frame" in output and output.rstrip().endswith("nothing was written")
    result = json.loads(done(swap("-i", frames, "-o", "out", "--check", "--json", "-s", "-R", "1-2")))
    assert result["to"] == "a" and result["faces"] == 2 and result["model_px"] == 64
    assert os.listdir(".") == []


def test_a_sheet_shows_every_mask_and_colour(swap, frames, masked_model):
    """Its rows are the model's masks: 4 drawn ones, and 3 that are learned."""
    heights = {}
    for name, folder in (("plain", None), ("masked", masked_model)):
        words = {} if folder is None else {"m": folder}
        assert done(swap("--sheet", frames / "shot_0001.png", "-o", f"{name}.png", **words)) == f"look at {name}.png\n"
        sheet = cv2.imread(f"{name}.png")
        heights[name] = sheet.shape[0]
        assert is_marked(Path(f"{name}.png").read_bytes())
    assert heights["masked"] - heights["plain"] == 3 * (heights["plain"] - 58) // 4


def test_a_sheet_of_what_is_no_frame(swap, frames):
    refused(swap("--sheet", frames, "-o", "s.png"), "is no picture; give one frame")
    refused(swap("--sheet", frames / "shot_0001.png", "-o", "s.gif"), "-o/--out s.gif: give a name that ends in")
    refused(swap("--sheet", frames / "shot_0001.png", "-o", frames / "shot_0001.png"), "is the frame itself")
    (frames / "shot_0001.json").unlink()
    refused(swap("--sheet", frames / "shot_0001.png", "-o", "s.png"), "has no face to swap")


# --- bad input --------------------------------------------------------------------------------------------


def test_what_is_missing_or_contradicts_is_one_line(swap, frames, tmp_path):
    refused(swap("-o", "x"), "required: -i/--input")
    refused(swap("-i", frames), "required: -o/--out")
    refused(swap("-i", tmp_path / "no", "-o", "x"), "no such folder; give a folder of frames")
    refused(swap("-i", frames, "-o", "x", m=tmp_path / "no"), "-m/--model-dir", "no such folder")
    refused(swap("-i", frames, "-o", "x", "--to", "c"), "--to 'c'", "Known: a, b")
    refused(swap("-i", frames, "-o", "x", "--to", "b", "-s"), "-s means --to a")
    refused(swap("-i", frames, "-o", "x", "-O", "5"), "-O/--output-scale 5: must lie within 25 and 400")
    refused(swap("-i", frames, "-o", "x", "-c", "rainbow"), "-c/--color-adjustment", "rainbow")
    refused(swap("-i", frames, "-o", "x", "-M", "learned"), "trained without --learn-mask")
    refused(swap("-i", frames, "-o", "x", "-w", "gif"), "-w/--writer 'gif'")
    refused(swap("-i", frames, "-o", "x", "--transparent", "--format", "jpg"), "a JPEG has no alpha")
    refused(swap("-i", frames, "-o", "x", "-w", "patch", "-O", "50"), "leave --transparent")
    refused(swap("-i", frames, "-o", "x", "-p", "a", "--landmarks", "b"), "give one of them")
    refused(swap("-i", frames, "-o", "x", "--erosion", "101"), "--erosion 101.0")
    refused(swap("-i", frames, "-o", "x", "--min-size", "9", "--max-size", "3"), "--min-size 9, --max-size 3")
    refused(swap("-i", frames, "-o", frames / "shot_0001.png"), "shot_0001.png: is a file")
    refused(swap("-i", frames, "-o", "o.png"), "-o/--out o.png: is the name of a picture; give a folder")
    refused(swap("-i", frames / "shot_0001.json", "-o", "x"), "shot_0001.json: is neither a PNG nor a JPEG")
    (tmp_path / "above/frames").mkdir(parents=True)
    shutil.copy(frames / "shot_0001.png", tmp_path / "above/frames")
    refused(swap("-i", tmp_path / "above", "-o", "x"), "above/frames holds pictures: give that")
    assert not Path("x").exists()


@pytest.mark.skipif(dali_version() is None, reason="DALI is not installed")
def test_dali_gives_the_same_files_as_opencv(swap, tmp_path):
    """Frames of both kinds, so that some of each are decoded by the other."""
    folder = tmp_path / "frames"
    for index, (suffix, face) in enumerate(zip((".png", ".jpg", ".png", ".jpg"), FACES)):
        alpha = np.full((*face.image.shape[:2], 1), 200, np.uint8)
        pixels = np.dstack([face.image, alpha]) if index == 2 else face.image
        write_frame(folder, f"shot_{index}{suffix}", pixels, face.landmarks)
    for decoder in ("dali", "opencv", "auto"):
        done(swap("-i", folder, "-o", tmp_path / decoder, "--decoder", decoder))
    assert len(pictures(tmp_path / "dali")) == 4
    for other in ("dali", "auto"):
        check_same(pictures(tmp_path / other), pictures(tmp_path / "opencv"))
    (folder / "shot_1.jpg").write_bytes((folder / "shot_1.jpg").read_bytes()[:200])
    refused(swap("-i", folder, "-o", tmp_path / "new", "--decoder", "dali"), "shot_1.jpg: ", "mend it", code=1)
    assert pictures(tmp_path / "new") == {}  # it is in the first group


def test_a_decoder_that_nobody_has(swap, frames, tmp_path):
    refused(swap("-i", frames, "-o", tmp_path / "out", "--decoder", "nvjpeg"), "--decoder", "opencv", "dali")


def test_a_damaged_frame_is_named_and_the_others_stay(swap, frames):
    path = frames / "shot_0003.png"
    path.write_bytes(path.read_bytes()[:500])
    refused(swap("-i", frames, "-o", "out", "--workers", "1"), "shot_0003.png: truncated", code=1)
    assert not list(Path("out").glob(f"{TEMPORARY}*"))
    cv2.imwrite(str(path), FACES[2].image)
    done(swap("-i", frames, "-o", "out"))
    assert len(pictures(Path("out"))) == 4


def test_a_json_that_holds_no_face_is_counted(swap, frames):
    (frames / "shot_0001.json").write_text("{")
    (frames / "shot_0002.json").write_text('{"faces": 3}')
    (frames / "shot_0003.json").write_text(json.dumps({"landmarks": [[1, 2]] * 68}))
    output = done(swap("-i", frames, "-o", "out"))
    assert output.startswith("1 faces swapped in 4 frames") and output.count("1 faces left out: ") == 3
    assert "shot_0001.json is not valid JSON" in output and "all lie on one spot" in output


def test_learned_masks_of_either_side(swap, frames, masked_model):
    results = []
    for kind in ("learned", "learned-other", "learned-min"):
        done(swap("-i", frames, "-o", kind, "-M", kind, "--write-mask", m=masked_model))
        results.append(cv2.imread(f"{kind}/masks/shot_0001.png", cv2.IMREAD_UNCHANGED).astype(int))
    own, other, smaller = results
    assert own.any() and (own != other).any() and np.abs(smaller - np.minimum(own, other)).mean() < 8


def test_a_run_that_is_stopped_goes_on(swap, frames):
    """SIGINT as soon as the first picture is there."""
    for index in range(5, 60):
        for suffix in (".png", ".json"):
            shutil.copy(frames / f"shot_0001{suffix}", frames / f"shot_{index:04d}{suffix}")

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not list(Path("out").glob("shot_*")) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    code, output, error = swap("-i", frames, "-o", "out")
    thread.join()
    assert (code, output) == (3, "") and error.startswith("swapfast: stopped by SIGINT; the frames that are in out are")
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").glob("shot_*")}
    assert 0 < len(before) < 59 and json.loads(Path("out/swap.json").read_text())["state"] == "unfinished"
    done(swap("-i", frames, "-o", "out"))
    done(swap("-i", frames, "-o", "whole"))
    check_same(pictures(Path("out")), pictures(Path("whole")))
    assert {name: Path("out", name).stat().st_mtime_ns for name in before} == before
    assert not list(Path("out").glob(f"{TEMPORARY}*"))


def test_a_full_disk_is_one_line(swap, frames, monkeypatch):
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
        result = swap("-i", frames, "-o", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    refused(result, "cannot be written (the disk is full)", code=1)
    assert not list(Path("out").glob(f"{TEMPORARY}*")) and not pictures(Path("out"))


def test_settings_are_printed_as_toml(swap):
    output = done(swap("--print-config", "--preset", "deepfacelab", "-c", "mkl"))
    Path("s.toml").write_text(output)
    assert 'type = "learned-min"' in output and 'type = "linear"' in output
    assert done(swap("--print-config", "-C", "s.toml")) == output


def test_crop_of_another_model_is_its_own():
    """The crop comes from the model's own settings: the same landmarks give another square."""
    from swapfast.swap.frames import FrameFace
    from swapfast.swap.masks import frame_matrix

    face = FrameFace.from_landmarks(FACES[0].landmarks)
    usual, whole = (frame_matrix(face, CropConfig(centering=c), 64) for c in ("face", "head"))
    assert np.linalg.det(whole[:, :2]) < 0.8 * np.linalg.det(usual[:, :2])
