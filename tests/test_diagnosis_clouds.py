"""The doctor on object stores: by few requests that read, and what it prints heals."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import saves
from every_store import place
from runs import state
from sickness import found, obey
from test_requests import Case

from ckptmgr import CheckpointManager, Diagnosis, diagnose
from ckptmgr.manifest import Manifest, new_attempt
from ckptmgr.record import Record, encode

pytestmark = pytest.mark.cloud


def looked(run: Case, **options: Any) -> Diagnosis:
    return diagnose(run.url, storage_options=run.options, **options)


@pytest.mark.parametrize("name", ["s3", "s3-fsspec", "gcs", "azure"])
def test_requests_are_few_and_only_read(name: str, request: pytest.FixtureRequest) -> None:
    run = Case(name, request).filled()

    count = run.count(lambda: looked(run, deep=False))

    methods = {each["method"] for each in run.proxy.requests()}
    assert methods <= {"GET", "HEAD"}
    assert count <= 5 + 6  # a record each, and the rest for the run
    assert looked(run).restores == 5


def test_a_thousand_steps_take_a_request_each_and_some_pages(request: pytest.FixtureRequest) -> None:
    run, steps = Case("s3", request), 1_000
    root = run.writer.folder

    def put(step: int) -> None:
        attempt = new_attempt()
        made = Manifest(step, attempt, step, "run", saves.CREATED, "safetensors", 0, saves.entries(attempt))
        name = saves.NAMING.format(step)
        root.write(f"{name}/a-{attempt}/file-0", saves.content(attempt, "file-0"))
        root.write(f"{name}/manifest.json", encode(Record(manifest=made)))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, range(steps)))

    assert run.count(lambda: looked(run)) <= steps + 10
    assert {each["method"] for each in run.proxy.requests()} <= {"GET", "HEAD"}
    assert looked(run).restores == steps - 1


def of_s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of three steps in S3, whose credentials are in the environment as the command looks for them."""
    url, options = place("s3", request)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for step in (1, 2, 3):
        CheckpointManager(url).save(step, state(step))
    return url


def cut(manager: CheckpointManager) -> None:
    manager.folder.write(f"step-00000003/a-{attempt_of(manager, 3)}/model.safetensors", b"short")


def lose(manager: CheckpointManager) -> None:
    manager.folder.delete([f"step-00000003/a-{attempt_of(manager, 3)}/model.safetensors"])


def attempt_of(manager: CheckpointManager, step: int) -> str:
    return next(info.attempt for info in manager.steps() if info.step == step)


@pytest.mark.parametrize("harm", [cut, lose])
def test_a_damaged_step_in_s3_is_told_and_taken_out(
    harm: Callable[[CheckpointManager], None], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = of_s3(request, monkeypatch)
    harm(CheckpointManager(url))

    diagnosis = diagnose(url)

    assert (diagnosis.restores, diagnosis.skips) == (2, (3,))
    obey(found(diagnosis, "damaged-file"))
    assert diagnose(url).ok
    assert CheckpointManager(url).restore().step == 2


def test_an_upload_that_nobody_ends_is_swept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    url = of_s3(request, monkeypatch)
    manager = CheckpointManager(url, storage_options={"client": "fsspec"})
    bucket, _, key = url.removeprefix("s3://").partition("/")
    client = manager.folder.store._fs  # type: ignore[attr-defined]
    client.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{key}/step-00000009/a-0123456789abcdef/model.safetensors")

    assert diagnose(url).ok
    finding = found(diagnose(url, grace_s=0), "unnamed-attempt")

    assert "1 unfinished write" in finding.found
    obey(finding)
    assert diagnose(url, grace_s=0).ok


def test_a_clock_that_differs_from_the_stores_is_told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    url = of_s3(request, monkeypatch)
    monkeypatch.setattr("ckptmgr.diagnosis.storing.time", lambda: time.time() - 630)

    finding = found(diagnose(url), "clock")

    assert "10 min behind the store's" in finding.found


def test_a_store_without_conditions_is_told_once_it_was_tried(request: pytest.FixtureRequest) -> None:
    url, options = place("moto", request)
    with pytest.warns(UserWarning, match="does not honour"):
        CheckpointManager(url, storage_options=options).save(1, state(1))

    assert found(diagnose(url, storage_options=options), "weak-storage").severity == "note"
