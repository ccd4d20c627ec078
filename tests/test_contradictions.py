"""Folders that contradict themselves or a model: the program says so before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import cli
from swapfast.checkpoints.folder import CheckpointFolder

pytestmark = pytest.mark.slow  # whole commands

TINY = ["-t", "tiny", "--recipe", "faceswap", "-b", "4", "--preview-images", "2", "--no-logs"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "faces"
    assert cli.main(["synthesize", str(out), "--faces", "10", "--size", "96", "--pairs", "0", "--seed", "6"]) == 0
    return out


@pytest.fixture
def train(capsys, device):
    """``train(a, b, model, ...)`` -> (exit code, what was printed, what was complained about)."""

    def call(a: Path, b: Path, model: Path, *flags) -> tuple[int, str, str]:
        request = ["train", "-A", a, "-B", b, "-m", model, *TINY, "--device", device.type, *flags]
        code = cli.main([str(argument) for argument in request])
        return code, *capsys.readouterr()

    return call


def _change_masks(source: Path, target: Path, change, count: int) -> Path:
    """Copy a folder of faces and change the masks of its first ``count`` faces."""
    shutil.copytree(source, target)
    for path in sorted(target.glob("*_mask.png"))[:count]:
        cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))
    return target


@pytest.mark.long
@pytest.mark.parametrize("cache", ["host", "off"])
def test_masks_that_do_not_show_the_face_are_bad_files(faces, tmp_path, train, cache):
    wrong = _change_masks(faces / "a", tmp_path / "a", lambda mask: (mask > 127).astype(np.uint8), 3)
    flags = ["-i", 1, "--cache", cache]
    code, _, err = train(wrong, faces / "b", tmp_path / "m", *flags, "--mask-type", "file")
    assert code == 2 and "3 of 10 files cannot be used" in err
    assert err.count("multiply by 255") == 3 and "0002.png: its mask 0002_mask.png" in err
    assert not list((tmp_path / "m").glob("checkpoint-*"))
    code, out, err = train(wrong, faces / "b", tmp_path / "m", *flags, "--mask-type", "file", "--skip-bad")
    assert code == 0 and "side A: 7 faces" in out and "3 bad files left out" in out, err
    code, out, err = train(wrong, faces / "b", tmp_path / "drawn", *flags)
    assert code == 0 and "side A: 10 faces" in out and err == "", "a mask that is not used is not judged"


def _copy(source: Path, target: Path, *, without: str = "", prefix: str = "") -> Path:
    """Copy a folder of faces under other names, without those whose names begin with ``without``."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if not (without and path.name.startswith(without)):
            text = path.read_bytes()
            if path.suffix == ".json":
                text = text.replace(b'"mask": "', f'"mask": "{prefix}'.encode())
            (target / f"{prefix}{path.name}").write_bytes(text)
    return target


def test_exchanged_sides_are_refused_and_can_be_accepted(faces, tmp_path, train):
    a, b, model = faces / "a", faces / "b", tmp_path / "m"
    assert train(a, b, model, "-i", 1)[0] == 0
    for other_a, other_b in (
        (b, a),
        (_copy(b, tmp_path / "b", prefix="x"), _copy(a, tmp_path / "a", prefix="y", without="0003")),
    ):
        code, out, err = train(other_a, other_b, model, "-i", 2)
        assert code == 2 and "the sides are exchanged" in err and "--override" in err and err.count("\n") == 1
    code, out, err = train(b, a, model, "-i", 2, "--override")
    assert code == 0 and "--override: the sides are exchanged" in out, err
    assert train(b, a, model, "-i", 3)[0] == 0, "the model knows them as they are now"
    assert train(a, b, model, "-i", 4)[0] == 2


def test_old_checkpoints_know_their_faces_by_one_digest_a_side(faces, tmp_path, train):
    a, b, model = faces / "a", faces / "b", tmp_path / "m"
    assert train(a, b, model, "-i", 1)[0] == 0
    folder = CheckpointFolder(model)
    checkpoint = folder.read(folder.path(1))
    folder.drop(folder.path(1))
    del checkpoint.tensors["known_faces"], checkpoint.state["files"]
    folder.save(checkpoint)
    assert train(b, a, model, "-i", 2)[0] == 2
    code, out, err = train(a, b, model, "-i", 2)
    assert code == 0 and "new to this model" not in out, err


def test_the_share_of_new_faces_is_told(faces, tmp_path, train):
    a, b, model = faces / "a", faces / "b", tmp_path / "m"
    fewer = _copy(a, tmp_path / "fewer", without="0003")
    assert train(fewer, b, model, "-i", 1)[0] == 0
    code, out, err = train(_copy(a, tmp_path / "copy", prefix="x"), b, model, "-i", 2)
    assert code == 0 and "(9 then, 10 now): 1 of 10 faces are new to this model" in out, err
    assert "side B: its faces are not" not in out
    code, out, err = train(b, b, model, "-i", 3)
    assert code == 0, err
    assert "10 of 10 faces are new to this model on this side, and 10 of these are known as side B's" in out
    code, out, err = train(fewer, b, model, "-i", 4)
    assert code == 0 and "0 of 9 faces are new to this model" in out, err


def test_more_faces_on_both_sides_go_on(faces, tmp_path, train):
    """Also where the new ones of one side are those that the other had before."""
    a, b, model = faces / "a", faces / "b", tmp_path / "m"
    assert train(_copy(a, tmp_path / "fewer", without="0001"), a, model, "-i", 1)[0] == 0
    code, out, err = train(a, b, model, "-i", 2)
    assert code == 0 and "side B" in out and "10 of 10 faces are new to this model" in out, err


def test_the_same_faces_on_both_sides_are_told_of(faces, tmp_path, train):
    a = faces / "a"
    for number, (copy, count) in enumerate(((a, "all"), (_copy(a, tmp_path / "c", without="0002", prefix="z"), "9"))):
        code, out, err = train(a, copy, tmp_path / f"m{number}", "-i", 1)
        assert code == 0 and f"both sides show the same faces: {count} of the 10 pictures of side A" in out, err
    assert "both sides" not in train(a, faces / "b", tmp_path / "other", "-i", 1)[1]


@pytest.mark.parametrize("noise", [0, 2])
def test_a_side_of_one_picture_is_told_of(faces, tmp_path, train, noise):
    rng = np.random.default_rng(5)
    still = tmp_path / "still"
    still.mkdir()
    picture = cv2.imread(str(faces / "a" / "0000.png"))
    for number in range(10):
        grain = rng.normal(0, noise, picture.shape) if noise else 0
        cv2.imwrite(str(still / f"{number}.png"), np.clip(picture + grain, 0, 255).astype(np.uint8))
        shutil.copy(faces / "a" / "0000.json", still / f"{number}.json")
        shutil.copy(faces / "a" / "0000_mask.png", still)
    code, out, err = train(still, faces / "b", tmp_path / "m", "-i", 1, "--cache", "off" if noise else "auto")
    assert code == 0 and "side A: 10 of 10 faces are the same picture" in out and out.count("same picture") == 1, err
