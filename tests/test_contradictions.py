"""Folders that contradict themselves or a model: the program says so before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import cli

TINY = ["-t", "tiny", "-b", "4", "--preview-images", "2", "--no-logs"]


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
