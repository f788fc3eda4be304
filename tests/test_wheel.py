"""What a user installs: the wheel has our import packages and nothing else, and works in an empty environment."""

import subprocess
import venv
import zipfile
from pathlib import Path

import pytest
from wheels import ROOT, build, clean, run

PACKAGES = {"ckptmgr", *(path.name for path in (ROOT / "backends").glob("ckptmgr_*"))}
LOAD_ALL = """
from ckptmgr import MissingDependencyError, backend
for name in backend.available():
    try:
        print(name, type(backend.find(name)).__module__.partition(".")[0])
    except MissingDependencyError as error:
        print(name, str(error).partition("; ")[2])
"""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel: Path, scripts: Path) -> Path:
    run(str(scripts / "pip"), "install", "-q", str(wheel))
    return scripts


def test_wheel_holds_exactly_our_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES


def test_every_package_in_the_wheel_is_typed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.removesuffix("/py.typed") for name in names if name.endswith("py.typed")} == PACKAGES


def test_wheel_carries_its_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert [name for name in names if name.endswith("licenses/LICENSE")] != []


def test_backends_load_with_core_dependencies_only_or_say_what_they_need(installed: Path) -> None:
    done = run(str(installed / "python"), "-c", LOAD_ALL)

    assert done.stdout.splitlines() == [
        "hdf5 ckptmgr_hdf5",
        "npz ckptmgr_npz",
        "orbax pip install 'ckptmgr[orbax]'",
        "safetensors ckptmgr_safetensors",
        "tf_bundle pip install 'ckptmgr[tf-bundle]'",
        "torch ckptmgr_torch",
        "torch_dcp ckptmgr_torch",
    ]


def test_a_step_is_saved_and_restored_without_any_extra(installed: Path, tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np, ckptmgr\n"
        "with ckptmgr.CheckpointManager(sys.argv[1]) as manager:\n"
        "    manager.save(7, {'w': np.arange(5)})\n"
        "    print(manager.restore().state['w'].sum())\n"
    )

    done = run(str(installed / "python"), "-W", "error", "-c", script, str(tmp_path / "run"))

    assert done.stdout == "10\n"


def test_command_without_its_extra_prints_the_pip_line(installed: Path) -> None:
    done = subprocess.run([installed / "ckptmgr", "ls", "."], capture_output=True, text=True, check=False, env=clean())

    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["ckptmgr: the command needs typer and rich: pip install 'ckptmgr[cli]'"]
