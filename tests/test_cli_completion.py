"""Completion in real shells: the words they get for commands, options, paths, formats and steps."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ckptmgr import CheckpointManager

BASH = """
eval "$(ckptmgr completion bash)"
offered() {
    COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
    _ckptmgr_completion ckptmgr "${COMP_WORDS[COMP_CWORD]}"
    echo "${COMPREPLY[*]}"
}
offered ckptmgr c
offered ckptmgr show run --st
offered ckptmgr show run --step ''
offered ckptmgr show run --step 1
offered ckptmgr pin run 2
offered ckptmgr convert run x --to np
offered ckptmgr show r
offered ckptmgr show s3://bucket/run --step ''
offered ckptmgr show /nowhere --step ''
complete -p ckptmgr
"""
OFFERED = [
    "cp convert completion",
    "--step --storage-option",
    "1300 200 100",
    "1300 100",
    "200",
    "npz",
    "",  # the shell's own completion of file names
    "",  # nobody waits for a network
    "",
    "complete -o default -F _ckptmgr_completion ckptmgr",
]
FISH = """
ckptmgr completion fish | source
complete -C 'ckptmgr c'
complete -C 'ckptmgr show run --step 1'
complete -C 'ckptmgr show ru'
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (100, 200, 1300):
            manager.save(step, {"w": np.zeros(3)})
    return tmp_path


def printed(place: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_bash_is_offered_what_may_come_next(place: Path) -> None:
    lines = printed(place, "bash", "--norc", "-c", BASH).splitlines()

    commands, *others = lines
    assert set(OFFERED[0].split()) <= set(commands.split())
    assert all(word.startswith("c") for word in commands.split())
    assert [line.split() for line in others] == [line.split() for line in OFFERED[1:]]


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_is_offered_what_may_come_next_with_a_word_about_it(place: Path) -> None:
    words = [line.split("\t")[0] for line in printed(place, "fish", "--no-config", "-c", FISH).splitlines()]

    assert {"convert", "cp", "completion", "100", "1300", "run/"} <= set(words)


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_takes_the_script(place: Path) -> None:
    script = 'eval "$(ckptmgr completion zsh)"; echo ${_comps[ckptmgr]}'

    assert printed(place, "zsh", "-fc", script) == "_ckptmgr_completion\n"
    # What the function evaluates; a zsh without a keyboard completes nothing.
    asked = "_TYPER_COMPLETE_ARGS='ckptmgr show run --step ' _CKPTMGR_COMPLETE=complete_zsh ckptmgr"
    assert [f'"{step}"' in printed(place, "zsh", "-fc", asked) for step in (100, 200, 1300)] == [True] * 3


def test_an_unknown_shell_is_wrong_usage(place: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("ckptmgr"), "completion", "tcsh"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
