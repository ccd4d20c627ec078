"""Runs that are stopped, killed, taken back, or run out of room; and models that begin with another's weights."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file

import cli
from swapfast.checkpoints.folder import CheckpointFolder
from swapfast.checkpoints.snapshots import Snapshots
from tests import crash_harness, preloaded
from tests.crash_harness import TrainingProcess

pytestmark = pytest.mark.slow  # whole programs

KILLS, SEED = 5, 170  # one aimed at each phase, at its third entry at most: each run before a kill costs steps
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def faces(drawn) -> Path:
    return drawn(40, 64)


@pytest.fixture
def run(capsys, device):
    """``run("train", ...)`` -> (exit code, what was printed, what was complained about)."""

    def call(*arguments) -> tuple[int, str, str]:
        flags = ["--device", device.type] if arguments[0] == "train" else []
        code = cli.main([*map(str, arguments), *flags])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def _train(faces: Path, model: Path, *flags) -> list:
    return ["train", "-A", faces / "a", "-B", faces / "b", "-m", model, *crash_harness.TINY, *flags]


def _weights(model: Path, step: int, name: str = "model") -> bytes:
    return (model / f"checkpoint-{step:08d}" / f"{name}.safetensors").read_bytes()


def _state(model: Path, step: int) -> dict:
    return json.loads((model / f"checkpoint-{step:08d}" / "state.json").read_text())


def test_killed_runs_go_on_and_come_to_the_same_weights(faces, tmp_path):
    rows = crash_harness.kill_runs(faces, tmp_path, KILLS, SEED)
    assert rows[-1]["kills"] == KILLS and rows[-1]["lost_max"] <= crash_harness.INTERVAL and rows[-1]["same_weights"]


@pytest.mark.parametrize(
    ("phase", "nth", "saved"),
    [("reading", 2, None), ("decoding", 2, None), ("train", 1, None), ("train", 4, 3), ("saving", 1, 4)]
    + [("keeping", 1, 4), ("preview", 1, 4)],
)
def test_sigterm_in_every_phase(phase, nth, saved, faces, tmp_path, device):
    """Code 3 and a checkpoint of that very step; before the first one nothing, and it is said."""
    command = _train(faces, tmp_path / "m", "-i", 50, "-s", 4, "--device", device.type)
    started = TrainingProcess(command, tmp_path / "run", (signal.SIGTERM, phase, nth))
    assert started.wait() == 3, started.output()
    assert "Traceback" not in started.output()
    assert CheckpointFolder(tmp_path / "m").steps() == ([] if saved is None else [saved])
    if saved is None:
        assert "stopped by SIGTERM before anything new was saved; the same command begins again" in started.output()
    else:
        assert f"stopped by SIGTERM and saved at iteration {saved}; the same command goes on" in started.output()
        assert (tmp_path / "m" / "preview.png").is_file()


def test_sigusr1_saves_and_the_run_goes_on(faces, tmp_path, device):
    command = _train(faces, tmp_path / "m", "-i", 6, "-s", 100, "--device", device.type)
    started = TrainingProcess(command, tmp_path / "run", (signal.SIGUSR1, "train", 4))
    assert started.wait() == 0, started.output()
    assert CheckpointFolder(tmp_path / "m").steps() == [3, 6]


@pytest.mark.long
def test_a_stop_file_and_a_time_limit(faces, tmp_path, device):
    """Each ends with code 3 and a checkpoint; a file that is left over is refused."""
    stop = tmp_path / "STOP"
    command = _train(faces, tmp_path / "m", "--stop-file", stop, "--device", device.type)
    started = TrainingProcess(command, tmp_path / "run")
    assert started.wait_for("train", 2)
    stop.touch()
    assert started.wait() == 3
    (first,) = CheckpointFolder(tmp_path / "m").steps()
    assert f"stopped by --stop-file {stop} and saved at iteration {first}" in started.output()
    assert TrainingProcess(command, tmp_path / "run").wait() == 2
    stop.unlink()

    command = _train(faces, tmp_path / "m", "--max-time", 3, "--device", device.type)
    began = time.monotonic()
    started = TrainingProcess(command, tmp_path / "run")
    assert started.wait() == 3 and time.monotonic() - began < 30
    assert re.search(r"stopped by --max-time 3s (and saved at iteration \d+|before anything new)", started.output())


@pytest.mark.long
def test_a_limit_interrupts_the_compiler(faces, tmp_path, device):
    """Compiling takes a quarter of a minute and more; nothing was trained, so nothing is saved."""
    stop_file = tmp_path / "STOP"
    command = _train(faces, tmp_path / "m", "--compile", "--stop-file", stop_file, "-i", 3, "--device", device.type)
    started = TrainingProcess(
        command, tmp_path / "run", variables={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "nothing_yet")}
    )
    assert started.wait_for("train", 1)
    time.sleep(1)
    stop_file.touch()
    assert started.wait() == 3
    assert "compiling: the first step" in started.output()
    assert f"stopped by --stop-file {stop_file} before anything new was saved" in started.output()
    assert CheckpointFolder(tmp_path / "m").steps() == []


@pytest.mark.long
def test_going_back_to_a_snapshot_and_on_again(faces, tmp_path, run):
    """The same weights as before, exactly; what came after is still there."""
    model = tmp_path / "m"
    code, out, err = run(*_train(faces, model, "-i", 8, "-s", 2, "-I", 4))
    assert code == 0 and "[Model backed up]" in out, err
    code, out, _ = run("restore", model, "--list", "--json")
    points = json.loads(out)["points"]
    kinds = {(point["kind"], point["step"]) for point in points}
    assert code == 0 and kinds >= {("snapshot", 4), ("checkpoint", 6), ("checkpoint", 8), ("snapshot", 8)}
    assert sum(kind == "backup" for kind, _ in kinds) == 1 and all(point["whole"] for point in points)
    weights = _weights(model, 8)
    code, out, _ = run("restore", model, "--step", 4)
    assert code == 0 and "training goes on from iteration 4" in out
    assert "checkpoint-00000006 is now snapshot-00000006" in out
    code, out, _ = run("restore", model, "--list")
    assert re.search(r"checkpoint-00000004 .*<- training goes on here", out)
    code, out, err = run(*_train(faces, model, "-i", 8, "-s", 2, "-I", 4))
    assert code == 0 and "going on from iteration 4" in out and _weights(model, 8) == weights, err
    for wrong, said in {
        ("--step", "5"): r"--step 5: there is none such in .*--list",
        ("--step", "-5"): r"--step: '-5': must be a whole number of at least 0",
        ("--from", "backup"): r"--from backup: there is none such",
    }.items():
        code, _, err = run("restore", model, *wrong)
        assert code == 2 and re.search(said, err) and err.count("\n") == 1, err
    with CheckpointFolder(model).locked():
        second = TrainingProcess(["restore", model, "--step", 4], tmp_path / "run")
        assert second.wait() == 2 and "another run is training in this folder" in second.output()
    assert run("restore", tmp_path / "none")[0] == 2


def test_a_whole_backup_outlives_the_run_behind_its_damaged_checkpoint(faces, tmp_path, run):
    model = tmp_path / "m"
    assert run(*_train(faces, model, "-i", 4, "-s", 2))[0] == 0
    folder = CheckpointFolder(model)
    Snapshots(folder).back_up(4)
    (folder.path(4) / "optimizer.safetensors").unlink()
    code, out, err = run(*_train(faces, model, "-i", 3))
    assert code == 0 and "checkpoint-00000004 is damaged" in out + err and "going on from iteration 2" in out, out + err
    assert folder.read(model / "snapshot-00000004").step == 4


def test_the_second_task_of_one_job_is_told_of_torchrun(faces, tmp_path):
    with CheckpointFolder(tmp_path / "m").locked():
        command = _train(faces, tmp_path / "m", "-i", 1, "--device", "cpu")
        second = TrainingProcess(command, tmp_path / "run", variables={"SLURM_NTASKS": "2"})
        assert second.wait() == 2
    (line,) = (line for line in second.output().splitlines() if line.startswith("swapfast: "))
    assert "another run is training in this folder" in line and "2 tasks (SLURM_NTASKS)" in line and "torchrun" in line


def test_mean_faces_are_computed_once(faces, tmp_path, run):
    """A resumed run takes them from its checkpoint, as long as the folder's faces are the same."""
    model = tmp_path / "m"
    assert run(*_train(faces, model, "-i", 1))[0] == 0
    folder = CheckpointFolder(model)
    first = folder.read(folder.path(1))
    marked = {name: torch.full_like(mean, 0.5) for name, mean in first.tensors["faces"].items()}
    folder.drop(folder.path(1))
    folder.save(dataclasses.replace(first, tensors=first.tensors | {"faces": marked}))
    assert run(*_train(faces, model, "-i", 2))[0] == 0
    assert _weights(model, 2, "faces") == _weights(model, 1, "faces")
    fewer = shutil.copytree(faces / "a", tmp_path / "a", ignore=shutil.ignore_patterns("0001*"))
    code, out, _ = run("train", "-A", fewer, "-B", faces / "b", "-m", model, "-i", 3)
    assert code == 0 and "side A: its faces are not those it was trained on so far" in out
    means = load_file(model / "checkpoint-00000003" / "faces.safetensors")
    assert means["mean_a"].std() > 0.05, "a face's"
    assert torch.equal(means["mean_b"], marked["mean_b"])


@pytest.mark.long
def test_another_batch_size_goes_on_with_the_next_faces(faces, tmp_path, run):
    """Every second batch is accumulated, so -b 4 by two is what -b 8 is at once: faces drawn again would differ.

    A checkpoint that does not say how many faces were drawn goes on as it was trained.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*_train(faces, whole, "-b", 8, "-i", 4, "-s", 2))[0] == 0
    assert run(*_train(faces, parts, "-b", 8, "-i", 2))[0] == 0
    for name in ("model", "optimizer"):
        assert _weights(parts, 2, name) == _weights(whole, 2, name)
    old = shutil.copytree(parts, tmp_path / "old")
    folder = CheckpointFolder(old)
    checkpoint = folder.read(folder.path(2))
    folder.drop(folder.path(2))
    folder.save(
        dataclasses.replace(checkpoint, state={k: v for k, v in checkpoint.state.items() if k != "faces_drawn"})
    )
    assert run(*_train(faces, old, "-i", 4, "-b", 8))[0] == 0
    assert _weights(old, 4) == _weights(whole, 4)
    assert run(*_train(faces, parts, "-i", 6, "-b", 4, "--accumulation", 2))[0] == 0
    assert _state(parts, 6)["faces_drawn"] == _state(whole, 4)["faces_drawn"]
    halves, at_once = (load_file(m / f"checkpoint-{s:08d}" / "model.safetensors") for m, s in ((parts, 6), (whole, 4)))
    start = load_file(whole / "checkpoint-00000002" / "model.safetensors")
    moved = sum(float((at_once[name] - start[name]).square().sum()) for name in start) ** 0.5
    apart = sum(float((at_once[name] - halves[name]).square().sum()) for name in start) ** 0.5
    assert apart < 0.05 * moved, f"{apart:.2e} of {moved:.2e}"


@pytest.mark.long
def test_the_state_tells_what_was_done(faces, tmp_path, run):
    model = tmp_path / "m"
    assert run(*_train(faces, model, "-i", 4, "-s", 2))[0] == 0
    assert run(*_train(faces, model, "-i", 6, "-s", 2, "-b", 3))[0] == 0
    state = _state(model, 6)
    assert [(r["from_iteration"], r["until_iteration"], r["batch_size"]) for r in state["runs"]] == [
        (0, 4, 4),
        (4, 6, 3),
    ]
    assert _state(model, 4)["faces_drawn"] == {"a": 16, "b": 16} and state["faces_drawn"] == {"a": 22, "b": 22}
    assert state["runs"][0]["precision"] == "fp32" and len(state["data"]["a"]["digest"]) == 64
    assert 0 < state["metrics"]["lowest_average_loss"] <= state["metrics"]["average_loss"]
    fewer = tmp_path / "moved"
    fewer.mkdir()
    for path in (faces / "a").iterdir():
        if not path.name.startswith(("0000", "0001")):
            (fewer / path.name).write_bytes(path.read_bytes())
    arguments = ["train", "-A", fewer, "-B", faces / "b", "-m", model, "-i", 7]
    code, out, _ = run(*arguments)
    assert code == 0 and "side A: its faces are not those it was trained on so far (40 then, 38 now)" in out
    assert "side B: its faces" not in out


@pytest.mark.long
def test_fixed_settings_can_be_overridden_where_that_is_possible(faces, tmp_path, run):
    model = tmp_path / "m"
    assert run(*_train(faces, model, "-i", 2))[0] == 0
    code, _, err = run(*_train(faces, model, "-i", 4, "--optimizer", "lion", "--coverage", 80))
    assert code == 2 and "--coverage is 100.0 there and 80.0 now; --optimizer is 'adam' there and 'lion' now" in err
    assert "or accept the change with --override" in err
    code, _, err = run(*_train(faces, model, "-i", 4, "--learn-mask", "--override"))
    assert code == 2 and "--learn-mask is off there and on now: that is the shape of the weights" in err
    code, out, err = run(*_train(faces, model, "-i", 4, "--optimizer", "lion", "--coverage", 80, "--override"))
    assert code == 0 and "--override: the optimizer begins anew" in out, err
    state = _state(model, 4)
    assert state["config"]["crop"]["coverage"] == 80 and state["overrides"] == [
        {"iteration": 2, "changes": {"crop.coverage": [100.0, 80.0], "optimizer.optimizer": ["adam", "lion"]}}
    ]
    assert run("train", "-A", faces / "a", "-B", faces / "b", "-m", model, "-i", 5)[0] == 0
    assert _state(model, 5)["overrides"] == state["overrides"]


@pytest.mark.long
def test_one_code_cannot_be_overridden_by_plain_codes(faces, tmp_path, run):
    """The sides' statistics of its checkpoint would have no place. Too few faces a batch lead to no such advice."""
    model = tmp_path / "m"
    begin = ["train", "-A", faces / "a", "-B", faces / "b", "-m", model, "-t", "tiny", "-b", 4]
    assert run(*begin, "-i", 1)[0] == 0
    for flags, said in {
        (
            "--code",
            "plain",
        ): "--code is 'encoder' there and 'plain' now. Leave these as they are or choose another --model-dir\n",
        ("--code", "plain", "--override"): "--override: --code is 'encoder' there and 'plain' now",
        ("-b", 2): "give -b 4 or more, or for a new model --code plain\n",
    }.items():
        code, _, err = run(*begin, "-i", 2, *flags)
        assert code == 2 and said in err and err.count("\n") == 1, err
    assert run(*begin, "-i", 2)[0] == 0


@pytest.mark.long
def test_too_few_faces_a_batch_make_a_plain_model_that_costs_no_more(faces, tmp_path, run):
    begin = ["train", "-A", faces / "a", "-B", faces / "b", "-t", "tiny", "-b", 2, "-i", 1]
    for name, flags, cycle in (("usual", (), 0.0), ("asked", ("--cycle-weight", 30), 30.0)):
        code, out, err = run(*begin, "-m", tmp_path / name, *flags)
        assert code == 0 and "--code plain, since -b 2 is too small for the usual encoder" in out, err
        config = _state(tmp_path / name, 1)["config"]
        assert config["model"]["code"] == "plain" and config["loss"]["landmark_weight"] == 0
        assert config["loss"]["cycle_weight"] == cycle and config["augmentation"]["color_chance"] == 100


# Of the cycle and the landmarks: what is plain has no use for them.
WEIGHTS = {"plain": (0.0, 0.0), "bottleneck": (50.0, 10.0)}


@pytest.mark.long
def test_a_new_model_has_the_code_that_its_weights_were_trained_with(faces, tmp_path, run):
    begin = ["train", "-A", faces / "a", "-B", faces / "b", "-t", "tiny", "-b", 4, "-i", 1]
    for code in ("plain", "bottleneck"):
        old, new = tmp_path / code, tmp_path / f"from-{code}"
        for flags in (("-m", old, "--code", code), ("-m", new, "-l", old)):
            result, out, err = run(*begin, *flags)
            assert result == 0, err
        config = _state(new, 1)["config"]
        assert config["model"]["code"] == code
        assert (config["loss"]["cycle_weight"], config["loss"]["landmark_weight"]) == WEIGHTS[code]
        line = f"--code {code}, which the weights of -l {old} were trained with; --code encoder is usual for tiny"
        assert line in out.splitlines()
    result, out, err = run(*begin, "-m", tmp_path / "asked", "-l", tmp_path / "plain", "--code", "encoder")
    assert result == 0, err
    assert f"warning: --code encoder in place of --code plain, which the weights of -l {tmp_path / 'plain'} were" in out
    assert _state(tmp_path / "asked", 1)["config"]["model"]["code"] == "encoder"


@pytest.mark.long
@pytest.mark.parametrize(
    ("recipe", "code"), [("saehd-finish", "bottleneck"), ("faceswap", "plain"), ("one-code", "encoder")]
)
def test_a_recipe_ranks_over_the_code_of_the_weights_only_where_it_has_one(faces, tmp_path, run, recipe, code):
    begin = ["train", "-A", faces / "a", "-B", faces / "b", "-t", "tiny", "-b", 4, "-i", 1]
    assert run(*begin, "-m", tmp_path / "old", "--code", "bottleneck")[0] == 0
    result, out, err = run(*begin, "-m", tmp_path / "new", "-l", tmp_path / "old", "--recipe", recipe)
    assert result == 0 and ("warning: --code" in out) == (code != "bottleneck"), err
    assert _state(tmp_path / "new", 1)["config"]["model"]["code"] == code


@pytest.mark.long
def test_a_new_model_begins_with_anothers_weights_and_a_frozen_encoder(faces, tmp_path, run, device):
    old, new = tmp_path / "old", tmp_path / "new"
    assert run(*_train(faces, old, "-i", 2))[0] == 0
    code, out, err = run(*_train(faces, new, "-i", 2, "-l", old, "-f"))
    assert code == 0, err
    assert f"weights from iteration 2 of {old / 'checkpoint-00000002'}: encoder 14 of 14, decoder_a 8 of 8" in out
    assert "model         tiny, encoder frozen" in out
    first, second = (load_file(m / "checkpoint-00000002" / "model.safetensors") for m in (old, new))
    assert all(torch.equal(first[n], second[n]) == n.startswith("encoder.") for n in first if n.endswith("weight"))
    code, out, err = run(*_train(faces, new, "-i", 3, "-l", old, "-f", "none"))
    assert code == 0 and "--load-weights: not used" in out and "frozen" not in out, err
    third = load_file(new / "checkpoint-00000003" / "model.safetensors")
    assert not torch.equal(third["encoder.0.0.weight"], second["encoder.0.0.weight"])
    assert _state(new, 3)["loaded_weights"]["taken"]["encoder"] == 14
    for flags, said in {
        ("-l", tmp_path / "nowhere"): r"--load-weights .*nowhere: no such folder",
        ("-f", "encoder", "decoder_a", "decoder_b"): r"-f/--freeze-weights encoder decoder_a decoder_b: nothing would",
        ("-f", "head"): r"unknown -f/--freeze-weights 'head'.*decoder_a, decoder_b, .*encoder",
        ("--max-time", "soon"): r"--max-time: 'soon' is no duration: give seconds or such as 3h30m",
        ("-I", "-1"): r"-I/--snapshot-interval -1: must lie within 0 and 10{12}$",
        ("-l", old, "-t", "original"): r"no weight of its encoder fits the model 'original'",
    }.items():
        code, _, err = run(*_train(faces, tmp_path / "m", "-i", 1, *flags))
        assert code == 2 and re.search(said, err) and err.count("\n") == 1, err
        assert not (tmp_path / "m").exists()


def test_the_summary_trains_nothing(faces, tmp_path, run):
    code, out, err = run(*_train(faces, tmp_path / "m", "--summary", "-f"))
    assert code == 0 and re.search(r"^encoder.0.0 +SameConv +16 x 32 x 32 +1,216\*$", out, re.MULTILINE), err
    assert re.search(r"^trained +[\d,]+ parameters, the others \(\*\) are frozen$", out, re.MULTILINE)
    assert not (tmp_path / "m").exists()


def test_a_command_after_every_save(faces, tmp_path, run):
    """The run waits for the last one; that one fails is a warning."""
    out_file = tmp_path / "out"
    command = f'sleep 0.2; echo $SWAPFAST_STEP >> {out_file}; ls "$SWAPFAST_MODEL_DIR/preview.png" || exit 4'
    code, out, err = run(*_train(faces, tmp_path / "m", "-i", 6, "-s", 2, "--after-save", command))
    assert (code, err) == (0, "") and "warning: --after-save" not in out
    steps = out_file.read_text().split()
    assert steps[-1] == "6" and steps == sorted(set(steps))
    code, out, err = run(*_train(faces, tmp_path / "m", "-i", 7, "--after-save", "echo full >&2; exit 3"))
    assert code == 0 and "warning: --after-save ended with code 3 for iteration 7: full" in out


@pytest.mark.long
def test_a_full_disk_in_the_middle_of_a_run(faces, tmp_path, device):
    """One line, code 1; the checkpoint before is whole and the run goes on from it when there is room again."""
    model = tmp_path / "m"
    command = _train(faces, model, "-s", 3, "-I", 0, "--device", device.type)
    started = TrainingProcess(command, tmp_path / "run")
    assert started.wait_for("preview", 1)
    resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    assert started.wait() == 1
    lines = [line for line in started.output().splitlines() if line.startswith("swapfast: ")]
    assert len(lines) == 1 and "cannot be written (the disk is full); free space or choose another" in lines[0]
    assert "Traceback" not in started.output()
    folder = CheckpointFolder(model)
    loaded, remarks = folder.load()
    assert loaded.step % 3 == 0 and remarks == [] and not list(model.glob(".writing-*"))
    again = TrainingProcess([*command, "-i", loaded.step + 2], tmp_path / "run")
    assert again.wait() == 0 and again.marks.resumed_step == loaded.step


def test_out_of_memory_is_one_line_with_ways_out(faces, tmp_path, device):
    if device.type != "cpu":
        pytest.skip("the limit is on the host's memory")
    command = _train(faces, tmp_path / "m", "-b", 8000, "--device", "cpu")
    started = TrainingProcess(command, tmp_path / "run")
    assert started.wait_for("reading", 1)
    status = Path(f"/proc/{started.process.pid}/status").read_text()
    limit = int(re.search(r"VmSize:\s+(\d+)", status)[1]) * 1024 + (1600 << 20)
    resource.prlimit(started.process.pid, resource.RLIMIT_AS, (limit, limit))
    assert started.wait() == 1, started.output()
    lines = [line for line in started.output().splitlines() if line.startswith("swapfast: ")]
    said = r"swapfast: out of memory \((?:[\d.]+ .iB were asked for; )?[\d.]+ .iB are free\): train with a smaller -b"
    assert len(lines) == 1 and re.match(said, lines[0]) and "Traceback" not in started.output(), started.output()


@pytest.mark.long
@pytest.mark.parametrize("how", ["SIGTERM", "--stop-file"])
def test_a_picture_that_never_comes_keeps_nobody_from_saving(how, faces, tmp_path, device):
    """Without a cache a network share that is away stalls the reads of whoever trains: a pipe does the same."""
    for side in "ab":
        (tmp_path / side).mkdir()
        for path in sorted((faces / side).glob("????.json")):
            record = json.loads(path.read_text())
            picture = cv2.imread(str(path.with_suffix(".png")))
            cv2.imwrite(str(tmp_path / side / f"{path.stem}.jpg"), picture)
            record = {"image": f"{path.stem}.jpg", "size": record["size"], "landmarks": record["landmarks"]}
            (tmp_path / side / path.name).write_text(json.dumps(record))
    stop_file = tmp_path / "STOP"
    endless = ["-i", 10**6, "-s", 10**6, "--cache", "off", "--stop-file", stop_file]
    arguments = _train(tmp_path, tmp_path / "model", *endless)
    command = [sys.executable, "-m", "swapfast", *map(str, arguments), "--device", device.type, "--preview-images", "2"]
    process = preloaded.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        for line in process.stdout:
            if "[#" in line:
                break
        os.mkfifo(tmp_path / "pipe")
        os.replace(tmp_path / "pipe", tmp_path / "a/0003.jpg")
        time.sleep(3)  # every picture is wanted within ten steps
        process.send_signal(signal.SIGTERM) if how == "SIGTERM" else stop_file.touch()
        output, complaints = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3 and "Traceback" not in complaints, complaints
    step = int(re.search(rf"stopped by {how}.* and saved at iteration (\d+)", output)[1])
    assert step > 0 and CheckpointFolder(tmp_path / "model").steps() == [step]
