"""Storage options on the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from every_store import options
from safetensors.numpy import save_file
from services import S3
from typer.testing import CliRunner

from ckptmgr import CheckpointManager
from ckptmgr.cli.app import app
from ckptmgr.cli.storing import options_of_both, storage_options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("endpoint_url=http://host:9000/a=b", "http://host:9000/a=b"),
        ("retries=30", 30),
        ("anon=true", True),
        ("use_ssl=False", False),
        ("profile=null", None),
        ("key=0123456789", "0123456789"),
        ("secret=true", "true"),
        ('client_kwargs={"region_name": "here"}', {"region_name": "here"}),
        ('token={"type": "service_account"}', {"type": "service_account"}),
        ("region=", ""),
    ],
)
def test_a_value_is_what_it_looks_like_and_credentials_are_text(text: str, expected: Any) -> None:
    (value,) = storage_options([text]).values()

    assert (value, type(value)) == (expected, type(expected))


def test_options_go_to_the_remote_one_of_two_places() -> None:
    given = ["region=here"]

    assert options_of_both("s3://a/run", "run", given, []) == ({"region": "here"}, {})
    assert options_of_both("run", "s3://a/run", given, []) == ({}, {"region": "here"})
    assert options_of_both("a", "b", ["follow_links=true"], []) == ({"follow_links": True}, {"follow_links": True})


def test_the_target_may_have_options_of_its_own() -> None:
    found = options_of_both("s3://a/run", "s3://b/run", ["region=here", "anon=true"], ["region=there"])

    assert found == ({"region": "here", "anon": True}, {"region": "there", "anon": True})


def test_links_are_followed_in_the_storage_that_is_told_to(tmp_path: Path) -> None:
    save_file({"w": np.ones(3)}, tmp_path / "blob")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model.safetensors").symlink_to("../blob")
    runner, target = CliRunner(), str(tmp_path / "out")

    for words in (["diff", "cache", "cache"], ["export", "cache", target, "--to", "hf"]):
        line = [words[0], *(str(tmp_path / each) if each == "cache" else each for each in words[1:])]
        assert runner.invoke(app, line).exit_code == (2 if words[0] == "diff" else 1)
        done = runner.invoke(app, [*line, "--storage-option", "follow_links=true"])
        assert (done.exit_code, done.stderr) == (0, ""), done.output


@pytest.mark.cloud
def test_every_command_reaches_an_endpoint_of_its_own(tmp_path: Path, s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url, words = f"s3://test-bucket{tmp_path}", [f"{key}={_typed(value)}" for key, value in options(s3_server).items()]
    given = [word for pair in words for word in ("--storage-option", pair)]
    with CheckpointManager("run") as manager:
        for step in (1, 2, 3):
            manager.save(step, {"w": np.ones(3)})

    for line in (
        f"cp run {url}/run", f"ls {url}/run", f"show {url}/run --step 2", f"verify {url}/run", f"report {url}/run -o page.html",
        f"migrate {url}/run {url}/other --to npz", f"convert {url}/other {url}/new.npz", f"show {url}/new.npz",
        f"pin {url}/run 1 kept", f"gc {url}/run --keep-last 1 --yes", f"unpin {url}/run 1 kept", f"sweep {url}/run",
        f"cp {url}/run back", f"diff {url}/run back --steps 1 1", f"diff {url}/run --steps 3 3", f"diff back {url}/run",
        f"export {url}/run {url}/hf --to hf --select *", f"export back {url}/tf --to tf", f"export {url}/run tf --to tf",
        f"doctor {url}/run", f"doctor back --remote {url}/run", f"adopt {url}/tf --dry-run", f"adopt {url}/tf",
        f"verify {url}/tf",
    ):  # fmt: skip
        done = CliRunner().invoke(app, [*line.split(), *given])
        assert (done.exit_code, done.stderr) == (0, ""), line

    assert [info.step for info in CheckpointManager("back").steps()] == [1, 3]
    broken = CliRunner().invoke(app, ["diff", f"{url}/nothing", f"{url}/run", *given])
    unreachable = CliRunner().invoke(app, ["diff", f"{url}/run", "back", *given, "--storage-option", "secret=wrong"])
    assert (broken.exit_code, unreachable.exit_code) == (2, 2)


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
