"""Help with examples, completion in three shells, and the nearest word to a typing error."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

import pytest

import cli
from swapfast.commands.completion import SHELLS
from swapfast.commands.examples import EXAMPLES

pytestmark = pytest.mark.slow  # windows, servers, networks and terminals are waited for

PARSER = cli._make_parser()


@pytest.mark.parametrize("name", sorted(PARSER.commands))
def test_the_help_of_every_command_has_examples_that_it_takes(name, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and EXAMPLES[name]
    for line, _ in EXAMPLES[name]:
        assert f"  {line}" in shown
        if line.startswith("swapfast "):
            words = shlex.split(line.partition(" > ")[0])[1:]
            assert words[0] == name and PARSER.parse_all(words).command == name


def _script(shell: str, capsys) -> str:
    pytest.importorskip("shtab", reason="needs shtab (pip install 'swapfast[completion]')")
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


def _needs(shell: str) -> str:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"needs {shell} (apt-get install {shell})")
    return program


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_reads_its_script(shell, capsys, tmp_path):
    script, program = _script(shell, capsys), _needs(shell)
    path = tmp_path / "script"
    path.write_text(script)
    result = subprocess.run(
        [program, "-n", path], capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert result.returncode == 0 and result.stderr == ""


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["swapfast", "tra"], {"train"}),
        (["swapfast", "train", "--backe"], {"--backend"}),
        (["swapfast", "train", "--backend", "k"], {"kornia"}),
        (["swapfast", "prepare", "--format", ""], {"jpeg", "raw"}),
        (["swapfast", "completion", ""], set(SHELLS)),
        (["swapfast", "log", "mod"], {"model"}),
    ],
)
def test_bash_completes(typed, expected, capsys, tmp_path):
    script, program = _script("bash", capsys), _needs("bash")
    (tmp_path / "model").mkdir()
    words = " ".join(shlex.quote(word) for word in typed)
    asked = f"COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _shtab_swapfast; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    result = subprocess.run(
        [program, "--norc", "-c", f"{script}\n{asked}"], capture_output=True, text=True, cwd=tmp_path
    )
    assert set(result.stdout.split()) - {""} == expected, result.stderr


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("swapfast tra", {"train"}), ("swapfast train --backend k", {"kornia"}), ("swapfast log mod", {"model/"})],
)
def test_fish_completes(typed, expected, capsys, tmp_path):
    script, program = _script("fish", capsys), _needs("fish")
    (tmp_path / "model").mkdir()
    result = subprocess.run(
        [program, "--no-config", "-c", f"{script}\ncomplete -C {shlex.quote(typed)}"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert {line.split("\t")[0] for line in result.stdout.splitlines()} == expected, result.stderr


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'?"),
        (["train", "--bach-size", "3"], "Did you mean '--batch-size'?"),
        (["train", "--truth", "x"], "(a flag of evaluate)"),
        # What is missing as well does not hide it.
        (["train", "--input-x", "x"], "unknown flag for train '--input-x'. Did you mean '--input-A'?"),
        (["swap", "--imput", "x"], "unknown flag for swap '--imput'. Did you mean '--input'?"),
        (["evaluate", "--model_dir=x"], "unknown flag for evaluate '--model_dir'. Did you mean '--model-dir'?"),
        (["evaluate", "-m", "x", "--tset"], "Did you mean '--test'?"),
        (["export", "--modeldir", "x", "--to"], "Did you mean '--model-dir'?"),
        (["log", "--josn"], "unknown flag for log '--josn'. Did you mean '--json'?"),
        (["watch", "--prot", "80"], "unknown flag for watch '--prot'. Did you mean '--port'?"),
        (["train", "--after-sav=cp -r a b"], "Did you mean '--after-save'?"),
        (["--version-", "train"], "unknown flag '--version-'. Did you mean '--version'?"),
        (["train", "-b", "-2"], "-b/--batch-size -2: must lie within"),
        (["train", "--weight-decay", "-1e-4"], "--weight-decay: expected one argument"),
        (["log", "--", "--josn"], "--josn: no such folder"),
        (["completion", "bsh"], "unknown shell 'bsh'. Did you mean 'bash'? Known: bash, fish, zsh"),
        (["train", "--set", "optimizer.learning_rat=1"], "Did you mean 'optimizer.learning_rate'?"),
    ],
)
def test_a_typing_error_is_answered_with_the_nearest(words, answer, capsys):
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert answer in said.err and said.err.count("\n") == 1 and said.out == ""
