"""The logs of a run as a person finds them: in TensorBoard, as JSONL, and by `swapfast log`."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cli

FLAGS = [
    "-t",
    "tiny",
    "--recipe",
    "faceswap",
    "-b",
    "4",
    "--learning-rate",
    "1e-3",
    "--preview-images",
    "2",
    "--validation",
    "0.4",
]


@pytest.fixture(scope="module")
def faces(drawn) -> Path:
    return drawn(12, 96, 3)


@pytest.fixture
def run(capsys, device, faces):
    """``run("log", ...)`` or ``run("train", model, ...)`` -> (exit code, what was printed, what was said of it)."""

    def call(command, *arguments) -> tuple[int, str, str]:
        if command == "train":
            model, *more = arguments
            arguments = ["-A", faces / "a", "-B", faces / "b", "-m", model, *FLAGS, "--device", device.type, *more]
        code = cli.main([command, *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def _lines(model):
    return [json.loads(line) for line in (model / "logs" / "steps.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_a_run_killed_and_gone_on_with_has_every_step_once(run, tmp_path):
    """The newest checkpoint is damaged, so that the second run goes on from the one before."""
    model = tmp_path / "model"
    assert run("train", model, "-i", 6, "-s", 4)[0] == 0
    (model / "checkpoint-00000006" / "model.safetensors").write_bytes(b"")
    with (model / "logs" / "steps.jsonl").open("ab") as log:
        log.write(b'{"step": 7, "ti')  # what a kill leaves
    code, out, err = run("train", model, "-i", 8, "-s", 4)
    assert code == 0 and "Validation A: " in out, err

    summary = json.loads(run("log", model, "--json")[1])
    assert (summary["iterations"], summary["logged_steps"], summary["runs"]) == (8, 8, 2)
    assert summary["void_steps"] == 2 and summary["damaged_lines"] == 1
    assert 0 < summary["loss"]["a"]["best"] <= summary["loss"]["a"]["latest"] < 1 and summary["learning_rate"] == 1e-3
    assert set(summary["functions"]) == {"ssim_a", "ssim_b", "mse_a", "mse_b"} and summary["memory_host_mib"] > 50
    assert summary["swap_quality"]["best"] >= summary["swap_quality"]["latest"] > 5
    assert set(summary["validation"]) == {"a", "b"} and summary["speed"]["data_wait"]["mean"] <= 1

    seen = EventAccumulator(str(model / "logs" / "train"), {"scalars": 0, "images": 0})
    seen.Reload()
    assert [scalar.step for scalar in seen.Scalars("batch_total")] == list(range(1, 9))
    assert [scalar.step for scalar in seen.Scalars("validation_face_B")] == [4, 8]
    assert {"memory/host_mib", "speed/faces_per_s", "gradient/norm", "learning_rate"} <= set(seen.Tags()["scalars"])
    *_, image = seen.Images("preview")
    assert [image.step for image in seen.Images("preview")] == [4, 8]
    logged = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    shown = cv2.imread(str(model / "preview.png"))
    assert logged.shape == shown.shape and np.abs(logged.astype(int) - shown).mean() < 4

    code, out, _ = run("log", model, "-o", tmp_path / "plot.png")
    assert code == 0 and out.startswith(f"{model}: 8 iterations") and "2 steps were lost and done again" in out
    assert cv2.imread(str(tmp_path / "plot.png")).shape == (540, 960, 3)
    code, out, err = run("log", model, "-o", tmp_path / "no" / "plot.png")
    assert code == 2 and not out and "--out" in err and f"there is no folder {tmp_path / 'no'}" in err


@pytest.mark.long
def test_measuring_does_not_change_what_is_trained_whatever_the_cache(run, tmp_path, device):
    """Weights bit for bit, and the same validation losses from every cache."""
    losses, weights = {}, {}
    for name, *more in (
        ("host", "--cache", "host", "--validation-interval", 1),
        ("gpu", "--cache", "gpu", "--validation-interval", 2),
        ("off", "--cache", "off"),
        ("silent", "--cache", "host", "-n"),
    ):
        model = tmp_path / name
        code, out, err = run("train", model, "-i", 4, "-s", 4, *more)
        assert code == 0, err
        weights[name] = load_file(model / "checkpoint-00000004" / "model.safetensors")
        last = [line for line in out.splitlines() if "Validation A" in line][-1]
        losses[name] = last[10:].partition(" | gain")[0]  # gain is told where there was a measurement before
        assert (model / "logs").exists() == (name != "silent")
    assert losses["host"].strip().startswith("[#00004] Validation A: 0.") and len(set(losses.values())) == 1
    if device.type == "cpu":
        assert all((weights["host"][key] == weights[name][key]).all() for name in weights for key in weights["host"])
    assert [line["step"] for line in _lines(tmp_path / "host") if "validation_loss_a" in line] == [1, 2, 3, 4]
    code, _, err = run("log", tmp_path / "silent")
    assert code == 2 and "steps.jsonl; give the folder of a model that was trained without -n" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none"], "none: no such folder"),
        (["."], ".: holds no logs/steps.jsonl"),
        ([".", "-o", "x.jpg"], "ends in .png"),
    ],
)
def test_wrong_requests(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("log", *arguments)
    assert code == 2 and out == "" and message in err and err.startswith("swapfast: ") and err.count("\n") == 1
