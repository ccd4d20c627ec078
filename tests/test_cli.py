"""The program as a person runs it: exit codes, lines, files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cli
from pipelines.dataset import only_tested, open_source
from swapfast.config import TrainConfig
from swapfast.options import settings
from tests import preloaded

ROOT = Path(__file__).resolve().parents[1]
TINY = ["-t", "tiny", "--recipe", "faceswap", "-b", "4", "--learning-rate", "1e-3", "--preview-images", "2"]


@pytest.fixture(scope="module")
def faces(drawn) -> Path:
    return drawn(12, 96, 3)


@pytest.fixture
def run(capsys, device):
    """``run("train", ...)`` -> (exit code, what was printed, what was complained about)."""

    def call(*arguments) -> tuple[int, str, str]:
        arguments = [str(a) for a in arguments]
        if arguments and arguments[0] in ("train", "evaluate") and "--device" not in arguments:
            arguments += ["--device", device.type]
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def _train(faces: Path, model: Path, *flags) -> list:
    return ["train", "-A", faces / "a", "-B", faces / "b", "-m", model, *TINY, *flags]


def _same(one: Path, two: Path, device) -> None:
    """Bit for bit on a CPU; a GPU's atomics leave a little."""
    weights = [load_file(path) for path in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        if device.type == "cpu":
            assert torch.equal(value, weights[1][key]), key
        else:
            torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_from_two_folders_to_a_measured_swap(faces, tmp_path, run):
    model = tmp_path / "model"
    code, out, err = run(*_train(faces, model, "-i", 5, "-s", 2))
    assert (code, err) == (0, ""), err
    assert "side A: 12 faces" in out and "done: 5 iterations" in out
    assert sorted(p.name for p in model.glob("checkpoint-*")) == ["checkpoint-00000004", "checkpoint-00000005"]
    sheet = cv2.imread(str(model / "preview.png"))
    assert sheet.shape == (14 + 2 * 64, 6 * 64, 3)
    assert sheet[14:, :64].std() > 20, "column A shows a face"
    state = json.loads((model / "checkpoint-00000005" / "state.json").read_text())
    assert state["step"] == 5 and state["config"]["model"]["name"] == "tiny" and state["data"]["a"]["faces"] == 12

    code, out, _ = run("evaluate", "-m", model, "--truth", faces / "truth", "--json")
    result = json.loads(out)
    assert code == 0
    figures = {f"{who}_{name}" for who in ("swap", "mean_b") for name in ("psnr", "psnr_matched", "ssim")}
    assert set(result) == figures | {
        *("color_error", "mean_b_color_error", "unchanged_psnr", "reconstruction_psnr", "own_crop_psnr", "pairs"),
        *("swap_psnr_own_crop", "swap_psnr_matched_own_crop", "mean_b_psnr_own_crop", "mean_b_psnr_matched_own_crop"),
    }
    assert result["swap_psnr_matched"] >= result["swap_psnr"] and 0 < result["color_error"] < 1
    assert result["pairs"] == 3 and result["mean_b_psnr"] > result["unchanged_psnr"]

    code, out, _ = run("evaluate", "-m", model, "--truth", faces / "truth")
    assert code == 0 and f"{result['swap_psnr']:.2f} dB" in out
    assert f"colour-matched {result['swap_psnr_matched']:.2f} dB" in out
    assert f"to the true swap cut as B's own faces are {result['swap_psnr_own_crop']:.2f} dB" in out
    (backup,) = model.glob("backup-*")
    lowest = int(backup.name.removeprefix("backup-"))
    measured = {}
    for checkpoint in (4, 5, lowest, "best"):
        code, out, err = run("evaluate", "-m", model, "--truth", faces / "truth", "--json", "--checkpoint", checkpoint)
        assert (code, err) == (0, "")
        measured[checkpoint] = json.loads(out)
    assert measured[5] == result != measured[4] and measured["best"] == measured[lowest]


@pytest.mark.slow
def test_the_same_command_goes_on_and_says_when_it_is_done(faces, tmp_path, run):
    model = tmp_path / "model"
    assert run(*_train(faces, model, "-i", 2))[0] == 0
    code, out, _ = run(*_train(faces, model, "-i", 4))
    assert code == 0 and "going on from iteration 2" in out
    files = sorted(model.rglob("*"))
    code, out, _ = run(*_train(faces, model, "-i", 4))
    assert code == 0 and "4 iterations are trained already" in out and sorted(model.rglob("*")) == files


@pytest.mark.slow
def test_a_resumed_model_keeps_its_settings_but_for_those_given(faces, tmp_path, run):
    model = tmp_path / "model"
    assert run(*_train(faces, model, "-i", 1, "-P"))[0] == 0
    go_on = ["train", "-A", faces / "a", "-B", faces / "b", "-m", model, "-i", 2, "--learning-rate", "1e-4"]
    assert run(*go_on)[0] == 0
    first, second = (
        json.loads((model / f"checkpoint-{step:08d}" / "state.json").read_text())["config"] for step in (1, 2)
    )
    assert first["optimizer"]["learning_rate"] == 1e-3 and first["augmentation"]["flip"] is False
    first["optimizer"]["learning_rate"] = 1e-4
    assert second == first


@pytest.mark.slow
def test_a_run_in_two_parts_is_the_run_in_one(faces, tmp_path, run, device):
    """Weights and optimizer state, with every augmentation on."""
    unbroken, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*_train(faces, unbroken, "-i", 8))[0] == 0
    for until in (3, 8):
        assert run(*_train(faces, parts, "-i", until))[0] == 0
    for name in ("model", "optimizer", "faces"):
        _same(*(m / "checkpoint-00000008" / f"{name}.safetensors" for m in (unbroken, parts)), device)


@pytest.mark.slow
def test_a_run_is_exact_in_the_middle_of_warm_up_and_accumulation(faces, tmp_path, run, device):
    """Stopped with two of three gradients collected; the flags need not be repeated."""
    unbroken, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ["--optimizer", "adabelief", "-a", 4, "--accumulation", 3, "--clip", "autoclip", "--weight-decay", 0.01]
    assert run(*_train(faces, unbroken, "-i", 8, *flags))[0] == 0
    assert run(*_train(faces, parts, "-i", 5, *flags))[0] == 0
    waiting = load_file(parts / "checkpoint-00000005" / "optimizer.safetensors")
    assert waiting["@collected"].tolist() == [2, 3] and any(key.endswith("waiting_grad") for key in waiting)
    assert run(*_train(faces, parts, "-i", 8))[0] == 0
    for name in ("model", "optimizer"):
        _same(*(m / "checkpoint-00000008" / f"{name}.safetensors" for m in (unbroken, parts)), device)


@pytest.mark.slow
def test_a_learning_rate_is_found_kept_and_used(faces, tmp_path, run, device):
    """Before the first step, and once: a resumed run has it, with the flag and without."""
    model, plain = tmp_path / "model", tmp_path / "plain"
    search = ["-r", "--lr-finder-iterations", 100, "--lr-finder-start", 1e-5, "--lr-finder-end", 1, "-b", 2]
    code, out, err = run(*_train(faces, model, "-i", 2, *search, "--lr-finder-mode", "graph_and_set"))
    assert code == 0, err
    rate = json.loads((model / "lr_finder.json").read_text())["learning_rate"]
    assert f"learning rate {rate:.3g} found; look at {model / 'lr_finder.png'}" in out
    state = json.loads((model / "checkpoint-00000002" / "state.json").read_text())
    assert state["config"]["optimizer"]["learning_rate"] == state["lr_finder"] == rate
    assert run(*_train(faces, plain, "-i", 5, "--learning-rate", rate, "-b", 2))[0] == 0
    code, out, _ = run(*_train(faces, model, "-i", 3, *search))
    assert code == 0 and f"learning rate {rate:.3g}, which was found before" in out
    go_on = ["train", "-A", faces / "a", "-B", faces / "b", "-m", model, "-i", 5]
    assert run(*go_on)[0] == 0
    for name in ("model", "optimizer"):  # the search took none of the run's batches
        _same(*(m / "checkpoint-00000005" / f"{name}.safetensors" for m in (model, plain)), device)


@pytest.mark.long
def test_a_learning_rate_can_be_looked_for_alone(faces, tmp_path, run):
    search = [
        "-r",
        "--lr-finder-iterations",
        100,
        "--lr-finder-mode",
        "graph_and_exit",
        "--lr-finder-start",
        1e-5,
        "-b",
        2,
    ]
    for already in (0, 2):
        model = tmp_path / f"m{already}"
        if already:
            assert run(*_train(faces, model, "-i", already, "-b", 2))[0] == 0
        contents = {path: path.read_bytes() for path in model.rglob("*.safetensors")}
        code, out, err = run(*_train(faces, model, "-i", 2, *search))
        assert code == 0 and re.search(r"learning rate \S+ found; look at .*lr_finder.png", out), (out, err)
        assert cv2.imread(str(model / "lr_finder.png")) is not None
        checkpoints = [path.name for path in model.glob("checkpoint-*")]
        assert checkpoints == ["checkpoint-00000002"][: bool(already)]
        assert all(path.read_bytes() == content for path, content in contents.items())


@pytest.mark.long
@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("stop", r"the loss \(\w+ of side A.* became non-finite at iteration \d+ \(ordinals \d+ to \d+ of each side\)"),
        ("skip", r"the 10th step in a row; the checkpoint of iteration \d+ is finite"),
        ("rollback", r"went back to the weights of iteration \d+ and goes on behind it at learning rate 0.5 "),
    ],
    ids=["stop", "skip", "rollback"],
)
def test_a_rate_that_blows_up_is_answered(policy, said, faces, tmp_path, run):
    """Every weight moves by 1 a step, which float16 cannot bear. What is saved is finite whatever the answer."""
    model = tmp_path / "model"
    blow_up = ["--learning-rate", 1, "--optimizer", "lion", "--precision", "fp16", "-i", 16, "-s", 1]
    code, out, err = run(*_train(faces, model, *blow_up, "--nan", policy))
    assert code == 1 or policy == "rollback", (out, err)
    assert re.search(said, out + err) and "Traceback" not in err, (out, err)
    saved = list(model.glob("checkpoint-*/model.safetensors"))
    assert saved and all(torch.isfinite(weight).all() for path in saved for weight in load_file(path).values())


def _start(faces: Path, model: Path, device) -> subprocess.Popen:
    """A run in a process of its own that has printed its first loss line."""
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        *map(str, _train(faces, model, "-i", 100_000)),
        "--device",
        device.type,
        "--deterministic",
    ]
    process = preloaded.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "[#" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    return process


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on_exactly(faces, tmp_path, run, device):
    """SIGTERM at a moment nobody chose; 5 iterations on, the model equals one that was not stopped."""
    model, unbroken = tmp_path / "model", tmp_path / "whole"
    with _start(faces, model, device) as process:
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        rest, complaints = process.communicate(timeout=60)
    assert process.returncode == 3 and complaints == "", complaints
    stopped = int(re.search(r"stopped by SIGTERM and saved at iteration (\d+)", rest)[1])
    assert (model / f"checkpoint-{stopped:08d}" / "state.json").is_file()
    for folder in (model, unbroken):
        assert run(*_train(faces, folder, "-i", stopped + 5))[0] == 0
    _same(*(m / f"checkpoint-{stopped + 5:08d}/model.safetensors" for m in (model, unbroken)), device)


@pytest.mark.slow
def test_ctrl_c_with_nobody_left_to_read(faces, tmp_path, device):
    """``swapfast train | tee log`` and Ctrl-C: tee is gone before the run has saved."""
    with _start(faces, tmp_path / "model", device) as process:
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        complaints = process.stderr.read()
        process.wait(timeout=60)
    assert len(list((tmp_path / "model").glob("checkpoint-*"))) == 1, complaints
    assert "Traceback" not in complaints


@pytest.mark.slow
def test_the_kornia_backend_trains(faces, tmp_path, run):
    code, out, err = run(*_train(faces, tmp_path / "m", "-i", 3, "--backend", "kornia"))
    assert code == 0 and "augmentation  kornia" in out, err


@pytest.mark.slow
def test_former_names_are_taken_with_a_note(faces, tmp_path, run):
    code, out, err = run(*_train(faces, tmp_path / "m", "-i", 1, "--backend", "device", "--cache", "device"))
    assert code == 0 and "augmentation  kornia" in out and "cache: gpu" in out, err
    assert err.splitlines() == [
        "swapfast: --backend device is called kornia now",
        "swapfast: --cache device is called gpu now",
    ]


def _loss_falls(a: Path, b: Path, model: Path, run, *flags) -> str:
    """Train 60 iterations: the mean total loss of the last ten is well below that of the first. Returns the output."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, out, err = run("train", "-A", a, "-B", b, "-m", model, *TINY, "-i", 60, "-s", 1000, *flags)
    assert code == 0, err
    events = EventAccumulator(str(model / "logs" / "train"), {"scalars": 0})
    events.Reload()
    totals = [event.value for event in events.Scalars("batch_total")]
    assert len(totals) == 60 and np.mean(totals[-10:]) < 0.9 * np.mean(totals[:10])
    return out


@pytest.mark.slow
def test_real_photographs_train(photographs, tmp_path, run):
    """Plain pictures with a JSON beside each."""
    _loss_falls(photographs / "aligned" / "a", photographs / "aligned" / "b", tmp_path / "m", run)


@pytest.mark.slow
@pytest.mark.golden
def test_faceswap_faces_train(golden, tmp_path, run):
    """Six extracted faces, three a side, with the mask stored in their headers; and some steps with a drawn one."""
    pictures = sorted((golden.folder / "faces").glob("*.png"))
    for side, chosen in zip("ab", (pictures[:3], pictures[3:6])):
        (tmp_path / side).mkdir()
        for path in chosen:
            (tmp_path / side / path.name).write_bytes(path.read_bytes())
    a, b = tmp_path / "a", tmp_path / "b"
    out = _loss_falls(a, b, tmp_path / "stored", run, "--mask-type", "bisenet-fp_face")
    code, drawn, err = run("train", "-A", a, "-B", b, "-m", tmp_path / "drawn", *TINY, "-i", 2)
    assert code == 0, err
    assert all("warning: side A has 3 faces" in printed for printed in (out, drawn))


def _bad_requests(faces: Path, tmp_path: Path) -> dict[str, tuple[list, str]]:
    """What a person can get wrong -> (arguments, what the one line must say)."""
    empty, file, mixed, text = (tmp_path / name for name in ("empty", "file.txt", "mixed", "text"))
    for folder in (empty, mixed, text):
        folder.mkdir()
    file.write_text("x")
    dead = tmp_path / "dead"
    dead.symlink_to(tmp_path / "gone")
    model = tmp_path / "m"
    (text / "face.png").write_text("not a picture")
    for name, content in {"zero.png": b"", "cut.png": (faces / "a" / "0000.png").read_bytes()[:700]}.items():
        (mixed / name).write_bytes(content)
        (mixed / name).with_suffix(".json").write_bytes((faces / "a" / "0000.json").read_bytes())
    bad_points = json.loads((faces / "a" / "0001.json").read_text())
    for name, points in {"short": bad_points["landmarks"][:60], "nan": [[float("nan"), 1.0]] * 68}.items():
        (mixed / f"{name}.png").write_bytes((faces / "a" / "0001.png").read_bytes())
        (mixed / f"{name}.json").write_text(json.dumps({"landmarks": points}))
    (mixed / "alone.png").write_bytes((faces / "a" / "0002.png").read_bytes())

    def train(*flags, a=faces / "a", b=faces / "b"):
        return ["train", "-A", a, "-B", b, "-m", model, *TINY, *flags]

    return {
        "missing folder": (train(a=tmp_path / "nowhere"), r"nowhere: no such folder"),
        "empty folder": (train(b=empty), r"empty: no PNG or JPEG"),
        "file for a folder": (train(a=file), r"file.txt: is a file; give the folder that holds the faces"),
        "text named png": (train(a=text), r"face.png: "),
        "bad files": (train(a=mixed), r"5 of 5 files.*alone.png: .*cut.png: .*nan.png: .*short.png: .*zero.png: "),
        "mask not stored": (train("--mask-type", "vgg-clear"), r"0000.png: no mask 'vgg-clear'"),
        "unknown mask": (train("--mask-type", "extendet"), r"unknown mask type 'extendet'.*extended"),
        "batch 0": (train("-b", "0"), r"-b/--batch-size 0: must lie within 1 and"),
        "batch of words": (train("-b", "many"), r"-b/--batch-size: invalid int value: 'many'"),
        "timelapse of one side": (train("-x", faces / "a"), r"--timelapse-input-A .*give --timelapse-input-B too"),
        "timelapse of nobody": (train("-x", empty, "-y", faces / "b"), r"empty: no PNG or JPEG"),
        "timelapse among faces": (train("-z", faces / "a" / "out"), r"--timelapse-output .*lies in the faces' folder"),
        "timelapse in a file": (train("-z", file), r"--timelapse-output .*file.txt: is a file; give a folder"),
        "timelapse below a file": (train("-z", file / "x"), r"--timelapse-output .*file.txt: is a file; give a folder"),
        "timelapse behind a dead link": (train("-z", dead), r"--timelapse-output .*dead: is a link to nothing"),
        "iterations 0": (train("-i", "0"), r"-i/--iterations 0: must lie within 1 and 10{12}$"),
        "unknown model": (train("-t", "orginal"), r"unknown model 'orginal'. Did you mean 'original'\?.*tiny"),
        "unknown loss": (
            train("--loss", "sssim", "--loss-weights", "100"),
            r"unknown loss function 'sssim'.*mae, ms_ssim, mse",
        ),
        "losses and weights": (
            train("--loss", "mae", "--loss-weights", "100", "50"),
            r"--loss mae with --loss-weights 100.0 50.0: .*one weight for each",
        ),
        "weight": (
            train("--loss", "mae", "--loss-weights", "1001"),
            r"--loss-weights 1001.0: must lie within 0 and 1000",
        ),
        "multiplier without a mask": (
            train("--mask-type", "none", "--eye-multiplier", "5"),
            r"--eye-multiplier 5: has no effect with --no-penalized-mask or --mask-type none",
        ),
        "unknown flag": (
            train("--batchsize", "4"),
            r"unknown flag for train '--batchsize'. Did you mean '--batch-size'\?",
        ),
        "coverage": (train("--coverage", "20"), r"--coverage 20.0: must lie within 62.5 and 100"),
        "centering": (train("--centering", "nose"), r"unknown --centering 'nose'.*face, head, legacy"),
        "setting": (train("--set", "loss.eyes=3"), r"unknown setting in --set 'loss.eyes'"),
        "setting's value": (train("--set", "augmentation.rotation_range=90"), r"rotation_range 90.0: must lie"),
        "config file": (train("-C", tmp_path / "none.toml"), r"none.toml: cannot be read"),
        "triton": (train("--backend", "triton", "--device", "cpu"), r"--backend triton: needs a CUDA device.*kornia"),
        "cuda": (train("--device", "cuda"), r"--device cuda: torch sees no CUDA"),
        "no model to go on with": (train("--resume", "must"), r"--resume must: .*holds no model"),
        "model folder is a file": (["train", *train()[1:5], "-m", file, *TINY], r"--model-dir .*file.txt: is a file"),
        "command": (
            ["trian"],
            r"unknown command 'trian'. Did you mean 'train'\?.*doctor, evaluate, export, extract, import, inspect",
        ),
        "nothing to evaluate": (["evaluate", "-m", empty, "--truth", faces / "truth"], r"empty: holds no model"),
        "no such iteration": (
            ["evaluate", "-m", empty, "--truth", faces / "truth", "--checkpoint", "7"],
            r"--checkpoint 7: .*empty has no such iteration; train a model",
        ),
        "no checkpoint's name": (
            ["evaluate", "-m", empty, "--truth", faces / "truth", "--checkpoint", "newer"],
            r"--checkpoint.*'newer': give an iteration, best or newest",
        ),
        "model among the faces": (["train", *train()[1:5], "-m", faces / "a", *TINY], r"lies in the faces' folder"),
        "unknown mask, not needed": (train("--mask-type", "extendet", "--no-penalized-mask"), r"unknown mask type"),
        "mask colour": (train("--mask-color", "red"), r"mask colour 'red'.*#rrggbb"),
        "no flag": (["--verzion"], r"unknown flag '--verzion'. Did you mean '--version'"),
        "list in a list": (train("--set", "loss.functions=[[1],[2]]"), r"--loss \[1\]: expected a text"),
        "no argument": (
            ["train", "-A", faces / "a"],
            r"required: -B/--input-B, -m/--model-dir; .*flag.*SWAPFAST_INPUT_B, SWAPFAST_MODEL_DIR.*\[run\].*"
            r"--config \(input_b, model_dir\)",
        ),
        "cache among the faces": (
            train("--cache-dir", faces / "b" / "cache"),
            r"--cache-dir .*lies in the faces' folder",
        ),
        "cache folder is a file": (train("--cache-dir", file), r"--cache-dir .*file.txt: is a file; give a folder"),
        "cache": (train("--cache", "disk"), r"unknown --cache 'disk'.*auto, gpu, host, off"),
        "validation": (train("--validation", "0.9"), r"--validation 0.9: must lie within 0.0 and 0.5"),
        "list no cache": (["cache", tmp_path / "nowhere"], r"nowhere: no such folder"),
        "prepare over": (["prepare", faces / "a", empty], r"empty: .*exists"),
        "prepare what": (["prepare", tmp_path / "nowhere", tmp_path / "new"], r"nowhere: no such folder"),
        "prepare size": (["prepare", faces / "a", tmp_path / "new", "--size", "4096"], r"--size 4096"),
        "prepare format": (
            ["prepare", faces / "a", tmp_path / "new", "--format", "png"],
            r"unknown --format 'png'. Known: jpeg, raw",
        ),
        "prepare bad": (["prepare", mixed, tmp_path / "new"], r"5 of 5 files.*alone.png: "),
        "prepare setting": (["prepare", faces / "a", tmp_path / "new", "-b", "4"], r"unknown flag for prepare '-b'"),
        "sheet suffix": (["augment", faces / "a", "-o", tmp_path / "new.gif"], r"--out .*new.gif: .*\.png"),
        "sheet folder": (
            ["augment", faces / "a", "-o", tmp_path / "no" / "s.png"],
            r"--out .*: there is no folder .*no",
        ),
        "sheet among the others": (
            ["augment", faces / "a", "-B", faces / "b", "-o", faces / "b" / "s.png"],
            r"--out .*lies in the faces' folder .*b;",
        ),
        "sheet among faces": (
            ["augment", faces / "a", "-o", faces / "a" / "s.png"],
            r"--out .*lies in the faces' folder",
        ),
        "sheet size": (["augment", faces / "a", "-o", tmp_path / "s.png", "--size", "4096"], r"--size 4096: must lie"),
        "sheet percentile": (
            ["augment", faces / "a", "-o", tmp_path / "s.png", "--percentile", "100"],
            r"--percentile 100: must lie between 0 and 100",
        ),
        "warp and no warp": (train("-M", "-W"), r"-M/--warp-to-landmarks with -W/--no-warp: give one"),
        "optimizer": (
            train("--optimizer", "adamn"),
            r"unknown --optimizer 'adamn'. Did you mean 'adam\w*'\?.*rms-prop",
        ),
        "clip": (train("--clip", "auto"), r"unknown --clip 'auto'.*autoclip, global_norm, none, norm, value"),
        "clip value": (
            train("--clip", "autoclip", "--clip-value", "11"),
            r"--clip-value 11.0: must lie within 0.0 and 10",
        ),
        "clip to nothing": (train("--clip", "norm", "--clip-value", "0"), r"--clip-value 0.0 with --clip norm"),
        "history": (train("--autoclip-history", "-1"), r"--autoclip-history -1: must lie within 0 and 100000"),
        "warm-up": (train("-a", "5001"), r"-a/--warmup 5001: must lie within 0 and 5000"),
        "accumulation": (train("--accumulation", "0"), r"--accumulation 0: must lie within 1 and 100"),
        "decay": (train("--weight-decay", "-0.1"), r"--weight-decay -0.1: must lie within 0.0 and 1.0"),
        "precision": (train("--precision", "fp8"), r"unknown --precision 'fp8'.*bf16, fp16, fp32"),
        "nan": (train("--nan", "ignore"), r"unknown --nan 'ignore'.*rollback, skip, stop"),
        "rates reversed": (
            train("--lr-finder", "--lr-finder-start", "1e-3", "--lr-finder-end", "1e-6"),
            r"--lr-finder-start 0.001 with --lr-finder-end 1e-06: the rate rises from start to end",
        ),
        "finder steps": (train("-r", "--lr-finder-iterations", "5"), r"--lr-finder-iterations 5: must lie within 100"),
        "faces 0": (["synthesize", tmp_path / "new", "--faces", "0"], r"--faces 0"),
        "size": (["synthesize", tmp_path / "new", "--size", "20"], r"--size 20"),
        "freeze nobody": (train("-f", "decoder_c"), r"-f/--freeze-weights 'decoder_c'.*decoder_a, decoder_b, .*none"),
        "clear no cache": (["cache", faces, "--clear"], r"--clear .*faces: holds no cache and is no model folder"),
        "out not empty": (["synthesize", faces], r"not empty|already"),
    }


CASES = [
    "missing folder",
    "empty folder",
    "file for a folder",
    "text named png",
    "bad files",
    "mask not stored",
    "unknown mask",
    "batch 0",
    "batch of words",
    "iterations 0",
    "unknown model",
    "unknown loss",
    "losses and weights",
    "weight",
    "multiplier without a mask",
    "unknown flag",
    "coverage",
    "centering",
    "setting",
    "setting's value",
    "config file",
    "triton",
    "cuda",
    "no model to go on with",
    "model folder is a file",
    "command",
    "nothing to evaluate",
    "no such iteration",
    "no checkpoint's name",
    "model among the faces",
    "unknown mask, not needed",
    "mask colour",
    "no flag",
    "list in a list",
    "no argument",
    "cache among the faces",
    "cache folder is a file",
    "cache",
    "validation",
    "list no cache",
    "prepare over",
    "prepare what",
    "prepare size",
    "prepare format",
    "prepare bad",
    "prepare setting",
    "sheet suffix",
    "sheet folder",
    "sheet among faces",
    "sheet among the others",
    "sheet size",
    "sheet percentile",
    "warp and no warp",
    "optimizer",
    "clip",
    "clip value",
    "clip to nothing",
    "history",
    "warm-up",
    "accumulation",
    "decay",
    "precision",
    "nan",
    "rates reversed",
    "finder steps",
    "faces 0",
    "size",
    "freeze nobody",
    "clear no cache",
    "out not empty",
    "timelapse of one side",
    "timelapse of nobody",
    "timelapse among faces",
    "timelapse in a file",
    "timelapse below a file",
    "timelapse behind a dead link",
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_request_is_one_clear_line(case, faces, tmp_path, run):
    if case == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    cases = _bad_requests(faces, tmp_path)
    assert set(cases) == set(CASES)
    arguments, message = cases[case]
    files = sorted(tmp_path.rglob("*"))
    code, out, err = run(*arguments)
    assert code == 2, (code, out, err)
    assert re.search(message, err, re.DOTALL), err
    assert "Traceback" not in err and err.startswith("swapfast: ")
    assert case in ("bad files", "prepare bad", "text named png") or err.count("\n") == 1, "one line"
    assert sorted(tmp_path.rglob("*")) == files, "nothing is written, not even a folder"


def test_cuda_graphs_are_refused_on_a_cpu(faces, tmp_path, run):
    code, _, err = run(*_train(faces, tmp_path / "model", "-i", 1, "--device", "cpu", "--cuda-graph", "on"))
    assert code == 2 and err == "swapfast: --cuda-graph on: a CPU has none; give --cuda-graph auto\n"
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_timelapse_is_a_picture_for_every_save(faces, tmp_path, run):
    """Beside the model or elsewhere, of the preview's faces or of others; a run that goes on adds to it."""
    model = tmp_path / "model"
    assert run(*_train(faces, model, "-i", 3, "-s", 2, "-z"))[0] == 0
    pictures = {path.name: cv2.imread(str(path)) for path in (model / "timelapse").iterdir()}
    assert sorted(pictures) == ["00000002.jpg", "00000003.jpg"]
    last, preview = pictures["00000003.jpg"].astype(int), cv2.imread(str(model / "preview.png")).astype(int)
    assert last.shape == preview.shape and np.abs(last - preview).mean() < 4
    assert np.abs(last - pictures["00000002.jpg"]).mean() > 0.05, "the model has changed"

    out = tmp_path / "elsewhere" / "film"
    out.mkdir(parents=True)
    leftover = out / ".writing-999999999-00000001.jpg"
    leftover.write_bytes(b"a run that was killed")
    os.utime(leftover, (time.time() - 86400,) * 2)  # a newer one might be another run's that is about to lock it
    turned = ("-x", faces / "b", "-y", faces / "a", "-z", out)
    assert run(*_train(faces, model, "-i", 5, "-s", 2, *turned))[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["00000004.jpg", "00000005.jpg"]
    assert len(list((model / "timelapse").iterdir())) == 2
    sheet, size = cv2.imread(str(out / "00000005.jpg")).astype(int), 64
    column_a, column_b = sheet[14:, :size], sheet[14:, 3 * size : 4 * size]
    a, b = preview[14:, :size], preview[14:, 3 * size : 4 * size]
    assert np.abs(column_a - b).mean() < 6 < np.abs(column_a - a).mean(), "B's faces are where A's were asked for"
    assert np.abs(column_b - a).mean() < 6


@pytest.mark.slow
def test_a_model_of_another_kind_is_left_alone(faces, tmp_path, run):
    model = tmp_path / "model"
    assert run(*_train(faces, model, "-i", 1))[0] == 0
    for flags, said in {
        ("-t", "original"): r"-t/--trainer is 'tiny' there and 'original' now",
        ("--coverage", "80"): r"--coverage is 100.0 there and 80.0 now",
        ("--seed", "5"): r"--seed is 1 there and 5 now",
        ("--no-penalized-mask",): r"--no-penalized-mask is off there and on now",
        ("--lowmem", "-t", "original"): r"--lowmem is off there and on now",
    }.items():
        code, _, err = run(*_train(faces, model, "-i", 2, *flags))
        assert code == 2 and re.search(said, err), err
    code, _, err = run(*_train(faces, model, "-i", 2, "--resume", "never"))
    assert code == 2 and "holds a model already" in err
    assert [p.name for p in model.glob("checkpoint-*")] == ["checkpoint-00000001"]


@pytest.mark.slow
def test_an_edited_state_file_is_one_clear_line(faces, tmp_path, run):
    """Somebody's hand in state.json: no traceback, and the model stays as it is."""
    model = tmp_path / "model"
    assert run(*_train(faces, model, "-i", 1))[0] == 0
    path = model / "checkpoint-00000001" / "state.json"
    good = path.read_text()
    for edit, said in {
        "faces": r"state.json names no faces.safetensors",
        "optimizer": r"state.json names no optimizer.safetensors",
        "model": r"state.json names no model.safetensors",
    }.items():
        state = json.loads(good)
        del state["files"][f"{edit}.safetensors"]
        path.write_text(json.dumps(state))
        for command in (["evaluate", "-m", model, "--truth", faces / "truth"], _train(faces, model, "-i", 2)):
            code, _, err = run(*command)
            assert code == 2 and re.search(said, err) and err.count("\n") == 1, err
    path.write_text(good.replace('"name": "tiny"', '"name": "original"'))
    code, _, err = run("evaluate", "-m", model, "--truth", faces / "truth")
    assert code == 2 and "do not fit the model 'original'" in err
    assert [p.name for p in model.glob("checkpoint-*")] == ["checkpoint-00000001"]


@pytest.mark.slow
def test_bad_files_can_be_left_out(faces, tmp_path, run):
    folder = tmp_path / "a"
    folder.mkdir()
    for path in (faces / "a").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "0003.png").write_bytes(b"")
    code, out, err = run("inspect", folder)
    assert code == 1 and "0003.png" in out
    code, out, _ = run("inspect", folder, "--json")
    report = json.loads(out)
    assert code == 1 and [bad["file"] for bad in report["bad"]] == ["0003.png"] and report["faces"] == 11
    arguments = ["train", "-A", folder, "-B", faces / "b", "-m", tmp_path / "m", *TINY, "-i", 1]
    assert run(*arguments)[0] == 2
    code, out, err = run(*arguments, "--skip-bad")
    assert code == 0 and "1 bad files left out" in out, err


@pytest.mark.slow
def test_prepared_sets_train_as_their_folders_do(faces, tmp_path, run, device):
    """A raw one to the bit, also mixed with a folder; a JPEG one trains without a cache too."""
    for side in "ab":
        for encoding, size in (("raw", 64), ("jpeg", 64)):
            out = tmp_path / f"{encoding}_{side}"
            code, said, err = run("prepare", faces / side, out, "--format", encoding, "--size", size)
            assert code == 0 and re.search(r"12 faces at 64 px in .*: \d+ KiB each", said), err
    assert run(*_train(faces, tmp_path / "folders", "-i", 4))[0] == 0
    for name, b in (("raw", tmp_path / "raw_b"), ("mixed", faces / "b")):
        arguments = ["train", "-A", tmp_path / "raw_a", "-B", b, "-m", tmp_path / name, *TINY, "-i", 4]
        code, out, err = run(*arguments)
        assert code == 0, err
        checkpoint = "checkpoint-00000004/model.safetensors"
        _same(tmp_path / name / checkpoint, tmp_path / "folders" / checkpoint, device)
    arguments = ["train", "-A", tmp_path / "jpeg_a", "-B", tmp_path / "jpeg_b", *TINY, "-i", 4]
    for cache_mode in ("host", "off"):
        assert run(*arguments, "-m", tmp_path / cache_mode, "--cache", cache_mode)[0] == 0
    _same(tmp_path / "host" / checkpoint, tmp_path / "off" / checkpoint, device)
    code, _, err = run(*arguments, "-m", tmp_path / "other", "--coverage", 80)
    assert code == 2 and "was prepared with --coverage 100.0 there and 80.0 asked for" in err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_where_faces_are_kept_does_not_matter(faces, tmp_path, run, device):
    """And is said; the next start finds what it needs."""
    said = {}
    for cache_mode in ("auto", "host", "gpu", "off"):
        code, said[cache_mode], err = run(*_train(faces, tmp_path / cache_mode, "-i", 3, "--cache", cache_mode))
        assert code == 0, err
        _same(*(tmp_path / w / "checkpoint-00000003/model.safetensors" for w in ("auto", cache_mode)), device)
    assert f"cache: host, 0.6 MiB in {tmp_path / 'host' / 'cache'}" in said["host"]
    kinds = [path.name.split("-")[0] for path in (tmp_path / "off" / "cache").iterdir()]
    assert "cache: off" in said["off"] and kinds == ["index", "index"]
    assert "cache: gpu" in said["gpu"]
    code, out, _ = run(*_train(faces, tmp_path / "host", "-i", 5))
    assert code == 0 and "side A: 12 of 12 faces were decoded before" in out
    code, out, _ = run("cache", tmp_path / "host", "--json")
    files = json.loads(out)["files"]
    assert code == 0 and [file["what"] for file in files] == ["index", "index", "store", "store"]
    code, out, _ = run("cache", tmp_path / "host", "--clear")
    assert code == 0 and str(faces / "a") in out and "removed 4 files" in out
    assert list((tmp_path / "host" / "cache").iterdir()) == []
    shared = ("-i", 1, "--cache-dir", tmp_path / "shared")
    assert run(*_train(faces, tmp_path / "one", *shared))[0] == 0
    code, out, _ = run(*_train(faces, tmp_path / "two", *shared))
    assert code == 0 and out.count("12 of 12 faces were decoded before") == 2


@pytest.mark.slow
def test_a_share_is_held_out(faces, tmp_path, run):
    arguments = _train(faces, tmp_path / "m", "-i", 1)
    code, out, err = run(*arguments, "--validation", "0.4")
    assert code == 0, err
    counts = [tuple(map(int, numbers)) for numbers in re.findall(r"(\d+) faces from .*, (\d+) more held out", out)]
    assert [sum(count) for count in counts] == [12, 12] and all(1 <= held <= 9 for _, held in counts)
    state = json.loads((tmp_path / "m" / "checkpoint-00000001" / "state.json").read_text())
    assert [(side["faces"], side["held_out"]) for side in state["data"].values()] == counts
    code, _, err = run(*arguments, "--validation", "0.1", "-i", 2)
    assert code == 2 and "--validation is 0.4 there and 0.1 now" in err, "held-out faces stay so"
    code, _, err = run(*_train(faces, tmp_path / "n", "-i", 1), "--validation", "0.000001")
    assert code == 2 and "that leaves nothing to validate with" in err
    assert not (tmp_path / "n").exists()


@pytest.mark.slow
def test_a_share_for_the_test_is_never_shown_and_measured_afterwards(faces, tmp_path, run):
    """A run with it is to the bit a run in folders without those faces: weights, preview, timelapse and mean faces."""
    folders, counts = {}, {}
    for side in "ab":
        tested = only_tested(open_source(faces / side), 0.3).folder.records
        counts[side] = len(tested)
        names = {Path(tested.name(index)).stem for index in range(len(tested))}
        ignored = shutil.ignore_patterns(*(f"{name}*" for name in names))
        folders[side] = shutil.copytree(faces / side, tmp_path / "rest" / side, ignore=ignored)
    flags = ("-i", 3, "--validation", 0.2, "-z")
    whole, rest = tmp_path / "whole", tmp_path / "model"
    code, out, err = run(*_train(faces, whole, *flags, "--test", 0.3))
    assert code == 0 and f", {counts['a']} more for the test" in out, err
    assert run(*_train(tmp_path / "rest", rest, *flags))[0] == 0
    names = ("model.safetensors", "optimizer.safetensors", "faces.safetensors")
    for name in [f"checkpoint-00000003/{name}" for name in names] + ["preview.png", "timelapse/00000003.jpg"]:
        assert (whole / name).read_bytes() == (rest / name).read_bytes(), name
    data = json.loads((whole / "checkpoint-00000003" / "state.json").read_text())["data"]
    assert all(d["faces"] + d["held_out"] + d["tested"] == 12 and d["tested"] == counts[s] for s, d in data.items())

    code, out, err = run("evaluate", "-m", whole, "--test", "--json")
    measured = json.loads(out)
    assert code == 0 and {side: result["faces"] for side, result in measured.items()} == counts
    assert err.startswith("iteration ") and err.count("\n") == 1, "which checkpoint it is, and no more"
    assert all(result["loss"] > 0 and 3 < result["psnr"] < 60 for result in measured.values())
    code, out, _ = run("evaluate", "-m", whole, "--test", "-A", faces / "a", "-B", faces / "b")
    assert code == 0 and f"A > A: loss {measured['a']['loss']:.5f}, {measured['a']['psnr']:.2f} dB" in out
    swapped = json.loads(run("evaluate", "-m", whole, "--test", "-A", faces / "b", "--json")[1])
    assert swapped["b"] == measured["b"] and swapped["a"]["psnr"] < measured["a"]["psnr"], "each by its decoder"
    for arguments, said in {
        ("-m", rest, "--test"): r"was trained without a share for the test",
        ("-m", whole, "--test", "-B", tmp_path / "rest" / "b"): r"none of the \d+ faces of .* belongs to the share 0.3",
        ("-m", whole, "--truth", faces / "truth", "-A", faces / "a"): r"-A/-B with --truth",
        ("-m", whole): r"one of the arguments --truth --test is required",
        ("-m", whole, "--test", "-A", faces / "b", "-B", faces / "a"): r"the sides are exchanged.* Exchange -A and -B$",
    }.items():
        code, _, err = run("evaluate", *arguments)
        assert code == 2 and re.search(said, err) and "Traceback" not in err, err
    code, _, err = run(*_train(faces, whole, "-i", 4, "--test", 0.1))
    assert code == 2 and "--test is 0.3 there and 0.1 now" in err
    alone = tmp_path / "rest" / "a"
    code, out, err = run(*_train(faces, whole, "-i", 4, "-z", "auto", "-x", alone, "-y", faces / "b"))
    assert code == 0, err


@pytest.mark.slow
def test_a_contact_sheet_leaves_out_what_cannot_be_decoded(faces, tmp_path, run):
    """Found when its pixels are decoded only: its header is in order. Others are shown in its place."""
    folder, sheet = tmp_path / "a", tmp_path / "sheet.png"
    shutil.copytree(faces / "a", folder)
    names = sorted(path.name for path in folder.glob("????.png"))
    data = (folder / names[0]).read_bytes()
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    body = b"IDAT" + bytes(length)
    (folder / names[0]).write_bytes(data[:at] + body + zlib.crc32(body).to_bytes(4, "big") + data[at + 8 + length :])
    arguments = ["augment", folder, "-o", sheet, "--faces", 3, "--size", 64]
    code, out, err = run(*arguments)
    assert code == 2 and not sheet.exists() and not out
    assert re.fullmatch(rf"swapfast: .*1 of 12 files cannot be used.*--skip-bad\n  {names[0]}: pixels .*decoded\n", err)
    (folder / names[5]).write_bytes(b"")  # what its header tells
    code, out, err = run(*arguments, "--skip-bad")
    assert code == 0 and f"look at {sheet}" in out
    assert err.splitlines() == [
        f"{folder / names[5]}: empty (zero bytes); left out",
        f"{folder / names[0]}: pixels that cannot be decoded; left out",
    ]
    picture = cv2.imread(str(sheet))
    for name in (names[0], names[5]):
        (folder / name).unlink()
    assert run(*arguments)[::2] == (0, "")
    assert np.array_equal(picture, cv2.imread(str(sheet))), "as if it had never been there"
    for name in names:
        (folder / name).write_bytes(b"")
    code, _, err = run(*arguments, "--skip-bad")
    assert code == 2 and "no face is left" in err


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["opencv", "kornia"])
def test_warping_to_landmarks_trains(faces, tmp_path, run, backend):
    code, out, err = run(*_train(faces, tmp_path / "m", "-i", 2, "-M", "--backend", backend))
    assert code == 0 and "done: 2 iterations" in out, err
    state = json.loads((tmp_path / "m" / "checkpoint-00000002" / "state.json").read_text())
    assert state["config"]["augmentation"]["warp_to_landmarks"] is True


@pytest.mark.slow
def test_it_is_said_how_many_faces_could_not_be_warped(faces, tmp_path, run):
    """Of side A, all whose tip of the nose and its root are in one place; of side B, all that are warped to them."""
    doubled = tmp_path / "faces"
    shutil.copytree(faces, doubled)
    for file in (doubled / "a").glob("*.json"):
        header = json.loads(file.read_text())
        header["landmarks"][30] = header["landmarks"][27]
        file.write_text(json.dumps(header))
    code, out, err = run(*_train(doubled, tmp_path / "m", "-i", 2, "-M"))
    assert code == 0, err
    counts = re.search(r"(\d+) of (\d+) faces could not be warped to landmarks .* and were fed unwarped", out)
    assert counts and counts[1] == counts[2] != "0"
    code, out, err = run(*_train(faces, tmp_path / "n", "-i", 2, "-M"))
    assert code == 0 and "could not be warped" not in out, err


@pytest.mark.slow
def test_a_contact_sheet_shows_what_training_will_see(faces, tmp_path, run):
    def sheet(name, *flags):
        code, out, err = run("augment", faces / "a", "-o", tmp_path / name, "--faces", 3, "--size", 64, *flags)
        assert code == 0 and f"look at {tmp_path / name}" in out, err
        picture = cv2.imread(str(tmp_path / name))
        assert picture.shape[1] == 6 * 66 - 2
        rows = picture[-3 * 66 :]
        return [[rows[66 * row :][:64, 66 * column :][:, :64].astype(int) for column in range(6)] for row in range(3)]

    def apart(one, two):
        return np.abs(one - two).mean()

    all_colored = "--set=augmentation.color_chance=100"  # by default most faces keep their colours
    drawn = sheet("drawn.png", all_colored)
    for original, colour, target, masks, feed, bent in drawn:
        assert min(apart(original, colour), apart(colour, target), apart(target, masks)) > 1
        assert min(apart(target, feed), apart(target, bent), apart(feed, bent)) > 1
    assert all(apart(*pair) == 0 for rows in zip(sheet("again.png", all_colored), drawn) for pair in zip(*rows))
    zeros = [f"--set=augmentation.{name}=0" for name in ("zoom_amount", "rotation_range", "shift_range")]
    for original, colour, target, _, feed, _ in sheet("still.png", "-c", "-P", "-W", *zeros):
        assert apart(original, colour) == apart(original, target) == apart(original, feed) == 0
    still = ["--percentile", 50, "-P", "-W", *zeros]  # the colours' middle is no change, but for CLAHE
    strong = ["--set", "augmentation.color_clahe_clip_limit=40"]
    for (_, weak, *_), (_, colour, target, _, feed, _) in zip(sheet("2.png", *still), sheet("40.png", *still, *strong)):
        assert apart(colour, target) == apart(colour, feed) == 0 < apart(colour, weak) - 3
    low, high = sheet("low.png", "--percentile", 2, "-P"), sheet("high.jpg", "--percentile", 98, "-P")
    assert np.mean([row[1].mean() for row in low]) + 20 < np.mean([row[1].mean() for row in high]), "darker and lighter"
    for row in zip(sheet("99.png", "--percentile", 99), sheet("seed.png", "--percentile", 99, "--set", "seed=7")):
        assert all(apart(*pair) == 0 for pair in zip(*row)), "every draw is pinned"
    with_b = sheet("b.png", "-B", faces / "b")
    assert apart(with_b[0][4], drawn[0][4]) == 0 < apart(with_b[0][5], drawn[0][5])


@pytest.mark.slow
def test_settings_travel_as_toml(tmp_path, run):
    command = [
        "train",
        "-A",
        "a",
        "-B",
        "b",
        "-m",
        "m",
        "-b",
        "7",
        "-P",
        "--set",
        "loss.eye_multiplier=1.5",
        "--print-config",
    ]
    code, text, _ = run(*command)
    assert code == 0
    (tmp_path / "run.toml").write_text(text)
    code, again, _ = run("train", "-A", "a", "-B", "b", "-m", "m", "-C", tmp_path / "run.toml", "--print-config")
    assert code == 0 and again == text
    config = TrainConfig.from_toml(tmp_path / "run.toml")
    assert (config.batch_size, config.augmentation.flip, config.loss.eye_multiplier) == (7, False, 1.5)


@pytest.mark.slow
def test_a_file_holds_a_whole_run(faces, tmp_path, run, device, monkeypatch):
    """What --print-config prints trains as the flags do; paths in it are relative to the working directory."""
    monkeypatch.chdir(faces)
    flags = ["-A", "a", "-B", "b", *TINY, "-i", 2, "-s", 1, "--cache", "off", "-z", "-n", "--skip-bad"]
    code, text, err = run("train", *flags, "-m", tmp_path / "file", "--print-config")
    assert code == 0 and 'input_a = "a"' in text, err
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert cli.main(["train", "-C", str(file)]) == 0
    assert run("train", *flags, "-m", tmp_path / "flags")[0] == 0
    assert sorted(path.name for path in (tmp_path / "file" / "timelapse").iterdir()) == ["00000001.jpg", "00000002.jpg"]
    assert not (tmp_path / "file" / "logs").exists()
    _same(*(tmp_path / name / "checkpoint-00000002" / "model.safetensors" for name in ("file", "flags")), device)
    assert "run" not in json.loads((tmp_path / "file" / "checkpoint-00000002" / "state.json").read_text())["config"]
    code, again, _ = run("train", "-C", file, "--print-config")
    assert (code, again) == (0, text)


@pytest.mark.slow
def test_variables_are_settings(faces, tmp_path, run, monkeypatch):
    """Of train, which goes on with what a model keeps where neither they nor the file say otherwise; and of prepare."""
    for name, value in {"INPUT_A": faces / "a", "INPUT_B": faces / "b", "MODEL_DIR": tmp_path / "m"}.items():
        monkeypatch.setenv(f"SWAPFAST_{name}", str(value))
    monkeypatch.setenv("SWAPFAST_COVERAGE", "80")
    code, out, err = run("train", *TINY, "-i", 1)
    assert code == 0 and "done: 1 iterations" in out, err
    assert run("prepare", faces / "a", tmp_path / "set", "--size", 64)[0] == 0
    monkeypatch.delenv("SWAPFAST_COVERAGE")
    code, _, err = run("train", "-A", tmp_path / "set", "-m", tmp_path / "other")
    assert code == 2 and "was prepared with --coverage 80.0 there and 100.0 asked for" in err
    (tmp_path / "run.toml").write_text("[optimizer]\nlearning_rate = 1e-4\n")
    monkeypatch.setenv("SWAPFAST_ITERATIONS", "2")
    code, out, err = run("train", "-C", tmp_path / "run.toml")
    assert code == 0 and "going on from iteration 1" in out and "done: 2 iterations" in out, err
    config = json.loads((tmp_path / "m" / "checkpoint-00000002" / "state.json").read_text())["config"]
    assert (config["crop"]["coverage"], config["batch_size"], config["optimizer"]["learning_rate"]) == (80, 4, 1e-4)
    monkeypatch.setenv("SWAPFAST_BATCHSIZE", "2")
    for command in (["train"], ["prepare", faces / "a", tmp_path / "p"], ["augment", faces / "a", "-o", "s.png"]):
        code, _, err = run(*command)
        assert code == 2 and "unknown variable 'SWAPFAST_BATCHSIZE'. Did you mean 'SWAPFAST_BATCH_SIZE'?" in err
    assert run("inspect", faces / "a")[0] == 0, "which reads none"


@pytest.mark.slow
def test_every_flag_of_a_setting_reaches_it(run):
    for name, (option, _, _, default) in settings(TrainConfig()).items():
        flag = option.flag.split("/")[-1]
        if not flag or option.choices or isinstance(default, (str, list)):
            continue
        value = [] if isinstance(default, bool) else [str(type(default)(option.low))]
        code, text, err = run("train", "-A", "a", "-B", "b", "-m", "m", flag, *value, "--print-config")
        expected = json.dumps(not default) if isinstance(default, bool) else value[0]
        part, _, last = name.rpartition(".")
        table = text.partition(f"[{part}]")[2] if part else text
        line = re.search(rf"^{last} = (.*)$", table, re.MULTILINE)
        assert code == 0 and float(line[1]) == float(value[0]) if value else line[1] == expected, (flag, err)


def test_the_doctor_says_what_will_be_used(run):
    code, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert code == 0 and report["versions"]["torch"] == torch.__version__ and report["cores"] >= 1
    assert report["will_use"]["training"] in ("cpu", "cuda")
    code, text, _ = run("doctor")
    assert code == 0 and report["versions"]["opencv"] in text


def test_help_names_the_commands_and_the_rule(run, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "consent" in text
    assert all(
        command in text
        for command in (
            "synthesize",
            "inspect",
            "train",
            "restore",
            "evaluate",
            "doctor",
            "prepare",
            "cache",
            "augment",
        )
    )
    assert run()[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["trian"], {}, r"unknown command 'trian'. Did you mean 'train'\?"),
        (["train", "--batchsize", "4"], {}, r"unknown flag for train '--batchsize'. Did you mean '--batch-size'\?"),
        (["train"], {"SWAPFAST_BTCH_SIZE": "4"}, r"unknown variable 'SWAPFAST_BTCH_SIZE'. Did you mean"),
        (["train", "-C", "none.toml"], {}, r"--config none.toml: cannot be read"),
        (["inspect", "nowhere"], {}, r"nowhere: no such folder"),
    ],
)
def test_a_wrong_request_ends_the_process_with_code_2(arguments, variables, message, tmp_path):
    """As a shell sees it: all others are asked for within this process."""
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | variables)
    assert result.returncode == 2 and not result.stdout, result.stderr
    assert re.match(f"swapfast: {message}", result.stderr) and result.stderr.count("\n") == 1, result.stderr


@pytest.mark.slow
def test_a_missing_libgl_is_one_line_with_the_way_out(tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file: No such file')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "cli.py"), "doctor"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "apt-get install libgl1" in result.stderr and "opencv-python-headless" in result.stderr
