"""Averaged weights from the command line: kept, gone on with, and used by whatever opens the model."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

import cli


@pytest.fixture
def swapfast(capsys):
    """Run a command; return its code, output and error."""

    def call(*words: object) -> tuple[int, str, str]:
        return cli.main([*map(str, words)]), *capsys.readouterr()

    return call


@pytest.mark.slow
def test_a_run_keeps_averages_and_every_command_takes_them(made_faces, tmp_path, swapfast):
    model = tmp_path / "m"
    sides = ("-A", made_faces / "a", "-B", made_faces / "b", "-t", "tiny", "-b", 2, "--preview-images", 1, "-n")
    sides += ("--recipe", "faceswap", "--learning-rate", "1e-3", "--device", "cpu", "--validation", 0.2)

    def train(folder, iterations, *flags):
        code, out, error = swapfast("train", *sides, "-m", folder, "-i", iterations, *flags)
        assert code == 0, error
        return out

    train(model, 2)
    assert not (model / "checkpoint-00000002/ema.safetensors").exists()
    code, _, error = swapfast("evaluate", "-m", model, "--truth", made_faces / "truth", "--weights", "ema")
    assert code == 2 and error == (
        f"swapfast: --weights ema: {model}/checkpoint-00000002 has no averaged weights: give raw, or train with --ema\n"
    )
    said = "ema-300 and ema-20: averages that begin with the weights of iteration 2\n"
    assert said in train(model, 4, "--ema", "300, 20")
    assert said not in train(model, 6), "the model keeps the setting"
    stored = load_file(model / "checkpoint-00000006/ema.safetensors")
    assert stored["300/@steps"] == 4

    truth = ("evaluate", "-m", model, "--truth", made_faces / "truth", "--json", "--checkpoint", "newest")
    figures = []
    for kind, taken in (("auto", "ema-300"), ("raw", ""), ("ema-20", "ema-20")):
        code, out, error = swapfast(*truth, "--weights", kind)
        line = f"with its averaged weights ({taken}); --weights raw takes those in training\n"
        assert code == 0 and error == line * bool(taken)
        figures.append(json.loads(out)["swap_psnr"])
    assert figures[0] != figures[1] and figures[0] == figures[2], "after 4 steps both look back on 0.4"
    for flags, weights in (((), "ema-300"), (("--weights", "raw"), "raw")):
        code, _, error = swapfast(
            "export",
            "-m",
            model,
            "--to",
            "safetensors",
            "-o",
            tmp_path / f"{weights}.safetensors",
            "--checkpoint",
            "newest",
            *flags,
        )
        assert code == 0 and ("averaged weights (ema-300); --weights raw takes" in error) == (weights != "raw")
    name = "decoders.b.face.3.weight"
    assert (load_file(tmp_path / "ema-300.safetensors")[name] == stored[f"300/{name}"]).all()
    trained = load_file(model / "checkpoint-00000006/model.safetensors")
    assert (load_file(tmp_path / "raw.safetensors")[name] == trained[name]).all()
    face = sorted((made_faces / "a").glob("*.png"))[0]
    sheets = [tmp_path / f"{kind}.png" for kind in ("ema", "raw")]
    for sheet in sheets:
        assert swapfast("activations", model, face, "-o", sheet, "--weights", sheet.stem)[0] == 0
    assert sheets[0].read_bytes() != sheets[1].read_bytes()
    assert f"averaged weights (ema-300) from iteration 6 of {model}" in train(tmp_path / "next", 1, "-l", model)
    raw = train(tmp_path / "raw", 1, "-l", model, "--weights", "raw")
    assert f"\nweights from iteration 6 of {model}" in f"\n{raw}"
    train(model, 7, "--ema", "off")
    assert not (model / "checkpoint-00000007/ema.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--ema", "on"), "--ema: 'on' is neither off nor one to 4 half-lives in iterations, such as 500 or 500,4000"),
        (("--ema", "0"), "--ema: '0' is neither off nor"),
        (("--ema", "1,2,3,4,5"), "--ema: '1,2,3,4,5' is neither off nor"),
        (("--ema", "-5"), "--ema: '-5' is neither off nor"),
        (("--ema", "5,05"), "--ema: '5,05' names a half-life twice"),
        (("--ema", "9" * 500), "neither off nor"),
        (("--weights", "ema"), "--weights ema: this run has no averaged weights: give raw, or train with --ema"),
        (("--weights", "ema-5", "--ema", "50"), "--weights ema-5: this run has ema-50: give one of them"),
        (("--weights", "rav"), "unknown --weights 'rav'. Did you mean 'raw'?"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(made_faces, tmp_path, swapfast, flags, said):
    sides = ("-A", made_faces / "a", "-B", made_faces / "b", "-m", tmp_path / "m", "-t", "tiny", "-i", 1)
    sides += ("--recipe", "faceswap")
    code, _, error = swapfast("train", *sides, *flags)
    assert code == 2 and error.count("\n") == 1 and said in error, error
    assert not (tmp_path / "m").exists()
