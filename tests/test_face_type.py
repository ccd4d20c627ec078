"""`--face-type`: DeepFaceLab's names for a crop, and what contradicts them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import cli
from swapfast.config import FACE_TYPE_NAMES, FACE_TYPES, CropConfig
from swapfast.errors import SwapfastError
from swapfast.faces.alignment import align, mean_face, umeyama
from swapfast.faces.crop import crop_shares
from swapfast.points import transform_points
from swapfast.sources import choose

# DeepFaceLab pads the square of its mean face by this share on each side, and whole_face and head are moved up.
DFL_CROPS = {"h": (0, 0), "mf": (0.0675, 0), "f": (0.2109375, 0), "wf": (0.4, 0.07), "head": (0.7, 0.5)}


@pytest.mark.slow
def test_it_is_a_name_for_three_settings():
    assert set(FACE_TYPE_NAMES) == {"none", *FACE_TYPES} and set(FACE_TYPES) == set(DFL_CROPS)
    for name, crop in FACE_TYPES.items():
        assert choose({"run.face_type": name}).config.crop == crop
        assert choose({}, [f"run.face_type={name}"]).config.crop == crop
        assert choose({}, environment={"SWAPFAST_FACE_TYPE": name}).config.crop == crop
    assert choose({"run.face_type": "none"}).config.crop == CropConfig()
    assert choose({"run.face_type": "wf", "crop.coverage": 90.0}).config.crop == FACE_TYPES["wf"], "the same twice"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("crop.coverage", 100.0, "--face-type wf: is --coverage 90, and 100 is given too"),
        ("crop.vertical_offset", 0.0, "--face-type wf: is --vertical-offset -7.5, and 0 is given too"),
        ("crop.centering", "head", "--face-type wf: is --centering face, and head is given too"),
    ],
)
def test_another_value_contradicts_it(name, value, said):
    with pytest.raises(SwapfastError, match=said):
        choose({"run.face_type": "wf", name: value})
    with pytest.raises(SwapfastError, match=said):
        choose({name: value}, environment={"SWAPFAST_FACE_TYPE": "wf"})


@pytest.mark.slow
def test_a_flag_goes_over_a_file(tmp_path, capsys):
    file = tmp_path / "run.toml"
    assert cli.main(["train", "--print-config"]) == 0
    file.write_text(capsys.readouterr().out)
    assert choose({"run.face_type": "wf"}, file=file).config.crop == FACE_TYPES["wf"]
    assert cli.main(["train", "--face-type", "f", "--print-config"]) == 0
    file.write_text(capsys.readouterr().out)
    again = choose({}, file=file).config
    assert again.crop == FACE_TYPES["f"] and again.run.face_type == "f"
    assert choose({"run.face_type": "mf"}, file=file).config.crop == FACE_TYPES["mf"]


@pytest.mark.slow
def test_the_commands_that_cut_faces_know_it(tmp_path, capsys):
    for words in (["train"], ["prepare", "x", "y"], ["augment", "x", "-o", "y.png"]):
        assert cli.main([*words, "--face-type", "wff"]) == 2
        assert "unknown --face-type 'wff'. Did you mean 'wf'?" in capsys.readouterr().err


@pytest.mark.slow
def test_the_crops_are_deepfacelabs(photographs, within):
    """Of 65 photographs: how far the corners lie apart, in edges. Head follows the yaw there, and so is further off."""
    mean = mean_face().flat - (0.009873, 0)
    points = [
        np.array(
            json.loads((photographs / "aligned" / face["group"] / f"{face['name']}.json").read_text())["landmarks"]
        )
        for face in json.loads((photographs / "manifest.json").read_text())
        if face["group"] in ("a", "b") and face["origin"].startswith("human")
    ]
    assert len(points) > 50
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    for name, (padding, shift) in DFL_CROPS.items():
        distances = []
        for landmarks in points:
            to_picture = np.linalg.inv([*umeyama(landmarks[[*range(17, 49), 54]], mean[[*range(32), 37]]), (0, 0, 1)])
            theirs = transform_points(to_picture[:2], (square - 0.5) * (2 * padding + 1) + (0.5, 0.5 - shift))
            crop = FACE_TYPES[name]
            matrix = align(landmarks.astype(np.float32)).matrix(1, crop.centering, *crop_shares(crop))
            ours = transform_points(np.linalg.inv([*matrix, (0, 0, 1)])[:2], square)
            edge = np.linalg.norm(theirs[1] - theirs[0])
            distances.append(np.linalg.norm(ours - theirs, axis=1).mean() / edge)
        within(name, np.mean(distances), 0.05 if name == "head" else 0.025)
