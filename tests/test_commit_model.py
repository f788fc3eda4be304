"""The commit protocol's model holds in every interleaving, and would show it if it did not."""

import commit_model
import pytest
from commit_protocol import BROKEN, STORE
from commit_search import explore

LIMIT = 1_000_000


def first_violation(name: str, mutation: str | None) -> str:
    programs, store, lost, steps, lacks = commit_model.CONFIGS[name]
    BROKEN[:] = [mutation] if mutation else []
    STORE.update(remove_if="remove_if" not in lacks, conditions="conditions" not in lacks)
    try:
        return explore(programs, store, lost, steps, LIMIT)[1]
    finally:
        BROKEN.clear()
        STORE.update(remove_if=True, conditions=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", commit_model.CONFIGS)
def test_protocol_holds_in_every_interleaving(name: str) -> None:
    assert first_violation(name, None) == ""


@pytest.mark.parametrize(
    ("mutation", "name", "invariant"),
    [
        ("plain-names", "writer, sweep, delete, writer", "I1"),
        ("commit-by-create", "writer, sweep, delete, writer", "I1"),
        ("overwrite-unclaimed", "overwrite, reader, sweep", "I1"),
        ("plain-remove", "collect, pin", "I3"),
        ("check-then-put", "overwrite, collect, sweep", "I3"),
        ("sweep-reads-first", "incremental, overwrite, sweep", "I1"),
        ("claim-by-attempt", "writer, sweep, delete, lossy", "I3"),
        ("claim-again", "writer, sweep, delete, lossy", "I3"),
        ("lost-is-loss", "writer, sweep, delete, lossy", "I2"),
        ("files-first", "collect, delete of the newest", "I1"),
        ("pins-beside", "collect, pin", "I3"),
        ("no-hold", "incremental, delete, sweep", "I1"),
        ("hold-of-the-dead", "incremental, overwrite, sweep", "I1"),
        ("release-first", "two holders, two deletes, sweep", "I1"),
        ("release-all", "two holders, two deletes, sweep", "I1"),
        ("mark-at-once", "copy, delete, copy", "I3"),
        ("sequence-from-memory", "save below the newest, collect", "I8"),
    ],
)
def test_breaking_the_protocol_is_noticed(mutation: str, name: str, invariant: str) -> None:
    assert first_violation(name, mutation)[:2] == invariant


def test_every_mutation_is_tried() -> None:
    tried = {case[0] for case in test_breaking_the_protocol_is_noticed.pytestmark[0].args[1]}

    assert tried == set(commit_model.MUTATIONS)
