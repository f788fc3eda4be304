"""A store is a dict, whatever is asked of it and in whatever order."""

from pathlib import Path

import pytest
from every_store import LOCAL, REMOTE, WEAK, empty_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptmgr.storage import Answer, Store

pytestmark = pytest.mark.filterwarnings("ignore:.* does not honour conditional writes")
KEYS = ["a", "b", "s/a", "s/t/a", "s/t/b"]
CALLS = st.tuples(st.sampled_from(["put", "create", "replace", "remove", "delete"]), st.sampled_from(KEYS), st.booleans())
SAME_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return empty_store(request.param, request, tmp_path)


@pytest.mark.parametrize("store", LOCAL, indirect=True)
@settings(SAME_FIXTURE, max_examples=25)
@given(calls=st.lists(CALLS, max_size=25))
def test_a_local_store_is_a_dict(store: Store, calls: list[tuple[str, str, bool]]) -> None:
    check(store, calls)


@pytest.mark.cloud
@pytest.mark.parametrize("store", [*REMOTE, *WEAK], indirect=True)
@settings(SAME_FIXTURE, max_examples=6)
@given(calls=st.lists(CALLS, min_size=10, max_size=25))
def test_a_remote_store_is_a_dict(store: Store, calls: list[tuple[str, str, bool]]) -> None:
    check(store, calls)


def check(store: Store, calls: list[tuple[str, str, bool]]) -> None:
    store.delete(KEYS)
    model: dict[str, bytes] = {}
    first: dict[str, object] = {}
    for n, (call, key, is_fresh) in enumerate(calls):
        data = b"%d" % n
        current = store.read(key)[1] if key in model else b"none"
        version = current if is_fresh else first.setdefault(key, current)
        holds = key not in model if call == "create" else key in model and version == current
        if call == "put":
            store.put(key, [[data]], len(data))
        elif call == "delete":
            store.delete([key])
        elif call == "create":
            assert store.create(key, data) is (Answer.OK if holds else Answer.NO)
        elif call == "replace":
            assert store.replace(key, data, version) is (Answer.OK if holds else Answer.NO)
        elif store.has_remove:
            assert store.remove(key, version) is (Answer.OK if holds else Answer.NO)
        if call == "put" or (call in ("create", "replace") and holds):
            model[key] = data
        elif call == "delete" or (call == "remove" and store.has_remove and holds):
            model.pop(key, None)

    found = {key: store.read(key) for key in KEYS}
    assert {key: value and value[0] for key, value in found.items()} == {key: model.get(key) for key in KEYS}
    if not store.url.startswith("s3:"):  # SeaweedFS forgets empty folders some time later
        assert set(store.list("").folders) == {"s" for key in model if key.startswith("s/")}
        assert set(store.list("s/").folders) == {"t" for key in model if key.startswith("s/t/")}
