"""examples/cloud/: parsed, its shell parts run with stand-ins, every flag known to the parser."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

import cli

ROOT = Path(__file__).resolve().parents[2]
CLOUD = ROOT / "examples" / "cloud"
# Writes its name and arguments, one a line, and ends with the code in $CODE_name.
STAND_IN = """#!/bin/sh
{ printf '%s\\n' "$(basename "$0")"; printf '%s\\n' "$@"; echo; } >>"$CALLS"
eval "exit \\${CODE_$(basename "$0"):-0}"
"""
SRUN = '#!/bin/sh\nexec "$@"\n'
# What a run does of which --after-save sees something: two saves and the files of a model folder.
SWAPFAST = """#!/bin/sh
printf '%s\\n' swapfast "$@" | grep -v '^ ' >>"$CALLS"
mkdir -p model/checkpoint-00000002 model/cache
echo weights >>model/checkpoint-00000002/weights
echo pixels >model/cache/pixels
for word; do command=$word; done
SWAPFAST_MODEL_DIR=$PWD/model SWAPFAST_CHECKPOINT=$PWD/model/checkpoint-00000002 SWAPFAST_STEP=2 sh -c "$command"
"""
# rsync -a of a folder: the last argument is where to; what --exclude names is left out.
RSYNC = """#!/bin/sh
for word; do from=$to; to=$word; done
case $from in */) cp -r "$from". "$to";; *) cp -r "$from" "$to";; esac
case "$*" in *"--exclude cache"*) rm -r "$to/cache";; esac
"""


@pytest.fixture
def shell(tmp_path):
    """Run a script with stand-ins for the programs it starts; returns exit code and calls, each a list of words."""
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()

    def run(script: list[str], folder: Path = tmp_path, stand_ins: dict[str, str] | None = None, **variables):
        simple = dict.fromkeys(("docker", "sky", "scontrol", "swapfast", "ssh"), STAND_IN)
        for name, text in {**simple, "srun": SRUN, **(stand_ins or {})}.items():
            (programs / name).write_text(text)
        for program in programs.iterdir():
            program.chmod(0o755)
        calls.write_text("")
        environment = {"PATH": f"{programs}:{os.defpath}", "CALLS": str(calls), "HOME": str(tmp_path), **variables}
        ended = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
        return ended, [call.splitlines() for call in calls.read_text().split("\n\n") if call.strip()]

    return run


def parsed(words: list[str]):
    """What swapfast would do by these words; a flag it does not know raises SwapfastError."""
    return vars(cli._make_parser().parse_all(words))


@pytest.mark.parametrize("script", sorted(CLOUD.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_programs_that_the_shell_can_read(script):
    assert script.stat().st_mode & stat.S_IXUSR
    interpreter = script.read_text().splitlines()[0].removeprefix("#!")
    assert interpreter in ("/bin/sh", "/bin/bash")
    subprocess.run([interpreter, "-n", script], check=True)


def instructions() -> list[tuple[str, str]]:
    text = (CLOUD / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_dockerfile_copies_what_a_wheel_is_made_of():
    found = instructions()
    assert found[0][0] == "FROM"
    assert {word for word, _ in found} == {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    sources = [source for word, rest in found if word == "COPY" for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = {"setup.cfg", "pyproject.toml", config["options"]["py_modules"].strip() + ".py", "README.md", "LICENSE"}
    packages = {name.strip("*") for name in config["options.packages.find"]["include"].split()}
    assert needed | packages <= set(sources)
    ignored = (CLOUD / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*" and {line[1:] for line in ignored if line.startswith("!")} == set(sources)
    (install,) = (rest for word, rest in found if word == "RUN" and "pip install" in rest)
    (extras,) = re.findall(r"\.\[([\w,]+)]", install)
    assert set(extras.split(",")) <= set(config["options.extras_require"])
    assert "-c constraints.txt" in install


def test_the_container_hands_signals_to_swapfast():
    found = dict(instructions())
    assert json.loads(found["ENTRYPOINT"]) == ["swapfast"], "a shell would keep the signal"
    assert found["STOPSIGNAL"] == "SIGTERM"
    with pytest.raises(SystemExit) as end:
        cli.main(json.loads(found["CMD"]))
    assert end.value.code == 0


def test_docker_gets_time_to_save_and_flags_that_train_has(shell, tmp_path):
    ended, ((name, *words),) = shell([str(CLOUD / "docker.sh"), "-b", "32"])
    assert (ended.returncode, name, words[0]) == (0, "docker", "run")
    flags, command = words[1 : words.index("swapfast")], words[words.index("swapfast") + 1 :]
    assert int(flags[flags.index("--stop-timeout") + 1]) >= 120 and "--init" in flags
    assert flags[flags.index("--gpus") + 1] == "all"
    assert flags[flags.index("--volume") + 1] == f"{tmp_path}:/work" and flags[flags.index("--workdir") + 1] == "/work"
    asked = parsed(command)
    assert (asked["command"], asked["batch_size"], asked["run.model_dir"]) == ("train", 32, "model")
    assert asked["run.watch"] == "8420" and flags[flags.index("--network") + 1] == "host"
    ended, (words,) = shell([str(CLOUD / "docker.sh")], GPUS="", IMAGE="mine:1")
    assert "--gpus" not in words and "mine:1" in words and "" not in words
    assert shell([str(CLOUD / "docker.sh")], CODE_docker="3")[0].returncode == 3, "the code of train is that of docker"


@pytest.mark.slow
@pytest.mark.parametrize("code, requeued", [(0, False), (1, False), (2, False), (3, True)])
def test_slurm_requeues_a_run_that_was_stopped_and_no_other(code, requeued, shell):
    ended, calls = shell([str(CLOUD / "slurm.sh"), "-b", "32"], CODE_swapfast=str(code), SLURM_JOB_ID="417")
    assert ended.returncode == code
    asked = parsed(calls[0][1:])
    assert (asked["command"], asked["batch_size"], asked["run.iterations"]) == ("train", 32, 200000)
    assert calls[1:] == ([["scontrol", "requeue", "417"]] if requeued else [])


def test_slurm_is_told_before_its_first_command():
    lines = (CLOUD / "slurm.sh").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    orders = {number: line for number, line in enumerate(lines) if line.startswith("#SBATCH")}
    assert max(orders) < first, "sbatch reads no further"
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in orders.values())
    assert all(re.fullmatch(r"[a-z-]+", name) for name in options)
    name, _, seconds = options["signal"].partition("@")
    assert name == "TERM" and int(seconds) >= 120, "to srun's processes, not B:TERM, which only the shell would get"
    assert {"requeue", "open-mode"} <= set(options)


def task() -> dict:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install PyYAML")
    return yaml.safe_load((CLOUD / "sky.yaml").read_text())


@pytest.mark.slow
def test_a_managed_job_goes_on_with_the_model_in_the_bucket(shell, tmp_path):
    bucket, machine = tmp_path / "bucket", tmp_path / "machine"
    bucket.mkdir()
    script = task()["run"].replace("/bucket", str(bucket))
    stand_ins = {"swapfast": SWAPFAST, "rsync": RSYNC, "mountpoint": f'#!/bin/sh\ntest -d "{bucket}"\n'}
    for number in (1, 2):
        folder = tmp_path / f"machine{number}"
        folder.mkdir()
        ended, ((_, *words),) = shell(["bash", "-c", script], folder, stand_ins, ITERATIONS="500")
        assert ended.returncode == 0, ended.stderr
        saved = bucket / "model" / "checkpoint-00000002" / "weights"
        assert saved.read_text() == "weights\n" * number, "the second machine begins with what the first one saved"
        assert not (bucket / "model" / "cache").exists()
    asked = parsed([*words, "true"])
    assert (asked["run.iterations"], asked["run.after_save"]) == (500, "true")
    assert asked["run.input_a"] == str(bucket / "faces" / "a")
    for path in sorted(bucket.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    bucket.rmdir()
    machine.mkdir()
    ended, calls = shell(["bash", "-c", script], machine, stand_ins, ITERATIONS="500")
    assert ended.returncode != 0 and calls == [] and not (machine / "model").exists(), "no bucket, no new model"


def test_the_task_has_what_skypilot_needs():
    asked = task()
    assert set(asked) <= {"name", "resources", "workdir", "envs", "file_mounts", "setup", "run"}
    assert asked["resources"]["use_spot"] is True and asked["envs"] == {"ITERATIONS": 200000}
    assert asked["file_mounts"]["/bucket"]["mode"] == "MOUNT"
    assert shlex.split(asked["setup"].splitlines()[1]) == ["pip", "install", "-c", "constraints.txt", ".[watch]"]


def test_a_task_is_started_from_anywhere(shell):
    ended, ((name, *words),) = shell([str(CLOUD / "sky.sh"), "5000"])
    assert ended.returncode == 0 and name == "sky" and words[:2] == ["jobs", "launch"]
    assert words[words.index("--env") + 1] == "ITERATIONS=5000"
    assert (ROOT / words[-1]).samefile(CLOUD / "sky.yaml"), "the working directory is the repository"


def test_a_page_is_reached_through_ssh(shell):
    ended, ((name, *words),) = shell([str(CLOUD / "watch.sh"), "swap", "my model", "9000"])
    assert ended.returncode == 0 and name == "ssh"
    assert words[words.index("-L") + 1] == "9000:127.0.0.1:9000" and words[-2] == "swap"
    program, *command = shlex.split(words[-1])
    asked = parsed(command)
    assert program == "swapfast" and asked["command"] == "watch"
    assert asked["models"] == [Path("my model")] and asked["port"] == 9000
    ended, calls = shell([str(CLOUD / "watch.sh")])
    assert ended.returncode != 0 and calls == [] and "give the host" in ended.stderr
