"""Every other Python that ckptmgr is said to run on, and that is on this machine, saves, restores, converts and ends well.

What is found is tried in a new environment, with the wheel and without any framework.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from exit_program import WAYS
from test_exiting import PROGRAM, check
from wheels import ROOT, build, clean, run

from ckptmgr import CheckpointManager

NAMED = re.findall(r"Programming Language :: Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OTHERS = [version for version in NAMED if version != "{}.{}".format(*sys.version_info)]
FORMATS = ROOT / "tests" / "every_format_program.py"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def candidates(version: str) -> Iterator[Path]:
    """On PATH, and where pyenv keeps them."""
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))


def environment() -> dict[str, str]:
    """That of a program which runs with this checkout."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def interpreter(version: str) -> Path:
    for path in candidates(version):
        asked = [path, "-c", "import ensurepip, sys; print(*sys.version_info[:2], sep='.')"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, env=clean())  # a shim may lead nowhere
        if done.returncode == 0 and done.stdout.strip() == version:
            return path
    pytest.skip(f"no Python {version} with venv on this machine")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module", params=OTHERS)
def scripts(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment's commands."""
    python = interpreter(request.param)
    folder = tmp_path_factory.mktemp("other")
    run(str(python), "-m", "venv", str(folder))
    run(str(folder / "bin" / "pip"), "install", "-q", f"{wheel}[cli,hdf5,tf-bundle,incremental]")
    return folder / "bin"


def test_this_python_is_one_of_those_named() -> None:
    assert "{}.{}".format(*sys.version_info) in NAMED


def test_every_module_and_format_works_without_a_warning(scripts: Path, tmp_path: Path) -> None:
    done = run(str(scripts / "python"), "-W", "error", str(FORMATS), str(tmp_path))

    needed, formats = map(ast.literal_eval, done.stdout.splitlines())
    assert needed == ["pytest", "tensorstore"]
    assert formats == ["hdf5", "npz", "orbax", "safetensors", "tf_bundle", "torch", "torch_dcp"]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_unfinished_when_a_program_ends_is_saved(scripts: Path, way: str, tmp_path: Path) -> None:
    near = f'{{"near": "{tmp_path / "near"}"}}' if way == "copy" else "{}"
    command = [scripts / "python", "-W", "error", PROGRAM, way, tmp_path / "run", near]

    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=clean())

    check(done, way, CheckpointManager(tmp_path / "run"))


def test_commands_tell_of_a_run_what_they_tell_here(scripts: Path, tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            manager.save(step, {"w": [1.5] * step}, metrics={"loss": 1 / step})

    for command in (["ls", "--long"], ["verify"], ["doctor", "--help"]):
        given = [*command, *([] if "--help" in command else [str(tmp_path / "run")])]
        asked = [sys.executable, "-c", "import sys; sys.argv[0] = 'ckptmgr'; from ckptmgr.cli import main; main()", *given]
        here = subprocess.run(asked, capture_output=True, text=True, check=True, env=environment())
        assert run(str(scripts / "ckptmgr"), *given).stdout == here.stdout
