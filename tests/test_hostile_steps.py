"""Steps whose files were made by an attacker who knows the format: every checksum is right, and what they say is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import state

import ckptmgr
from ckptmgr import CorruptCheckpointError
from ckptmgr.checksum import crc32c
from ckptmgr.record import seal

pytestmark = pytest.mark.filterwarnings("ignore:step .* is skipped:RuntimeWarning")


@pytest.fixture
def forge(manager) -> Callable[[Callable[[Any], Any]], None]:
    """Changes the JSON of ``tree.json`` of step 1 and makes all checksums right again. Step 0 stays good."""
    manager.save(0, state(0))
    manager.save(1, state(1))
    step = Path(manager.path(1)).parent

    def forge(edit: Callable[[Any], Any]) -> None:
        file = Path(manager.path(1)) / "tree.json"
        tree = json.loads(file.read_bytes())
        edit(tree)
        data = json.dumps(tree).encode()
        file.write_bytes(data)
        record = json.loads((step / "manifest.json").read_bytes())
        for entry in record["manifest"]["files"]:
            if entry["name"] == "tree.json":
                entry.update(nbytes=len(data), crc32c=f"{crc32c(data):08x}")
        (step / "manifest.json").write_bytes(sealed(record))

    return forge


def sealed(record: dict) -> bytes:
    manifest = record["manifest"]
    del manifest["crc32c"], record["crc32c"]
    manifest["crc32c"] = f"{crc32c(json.dumps(manifest, sort_keys=True, separators=(',', ':')).encode()):08x}"
    return seal(json.dumps(record, indent=2).removesuffix("\n}").encode() + b",\n")


def row(**fields: Any) -> Callable[[Any], None]:
    columns = {"name": 0, "dtype": 1, "shape": 2, "file": 3, "offset": 4, "nbytes": 5, "crc32c": 6}

    def edit(tree: Any) -> None:
        for name, value in fields.items():
            tree["tensors"][0][columns[name]] = value

    return edit


def one_place_for_all(tree: Any) -> None:
    first = tree["tensors"][0]
    tree["tensors"] = [[f"n{index}", *first[1:]] for index in range(1000)]
    tree["skeleton"] = {f"n{index}": {"$tensor": f"n{index}"} for index in range(1000)}


def string_in_slices(tree: Any) -> None:
    name, _, _, file, offset, *_ = tree["tensors"][0]
    tree["tensors"][0] = [name, "string", [1], file, offset, 8, None, [0], [1]]


@pytest.mark.parametrize(
    "edit",
    [
        one_place_for_all,
        row(offset=2**62),
        row(dtype="string", shape=[2], nbytes=0),
        row(dtype="string", shape=[2], nbytes=0, offset=None, crc32c=None),
        string_in_slices,
        row(shape=[0, 2**62, 2**62], nbytes=0),
        row(shape=[10**9, 10**9], dtype="int8", nbytes=10**18),
        lambda tree: tree["files"].__setitem__(0, "../../step-00000000/manifest.json"),
        lambda tree: tree["files"].__setitem__(0, "/etc/passwd"),
        lambda tree: tree["files"].__setitem__(0, "a/b"),
        lambda tree: tree["files"].__setitem__(0, "\0"),
        lambda tree: tree["files"].__setitem__(0, "\ud800"),
        lambda tree: tree["skeleton"].__setitem__("z", {"$tensor": "not there"}),
        lambda tree: tree["skeleton"].__setitem__("z", {"$os.system": "true"}),
        lambda tree: tree["skeleton"].__setitem__("z", {"$scalar": "object", "data": "00" * 8}),
    ],
)
def test_a_forged_tree_is_damage_and_the_older_step_is_taken(manager, forge, edit):
    forge(edit)

    with pytest.raises(CorruptCheckpointError):
        manager.restore(1)
    with pytest.raises(CorruptCheckpointError):
        ckptmgr.load(Path(manager.path(1)).parent)
    assert manager.restore().step == 0


def test_a_record_with_a_key_twice_among_many_is_refused_at_once(manager):
    manager.save(1, state(1))
    file = Path(manager.path(1)).parent / "manifest.json"
    body = file.read_bytes().rpartition(b'  "crc32c"')[0]
    keys = [f'"key{number}": 0' for number in range(100_000)]
    file.write_bytes(seal(body + f"{', '.join(keys)}, {keys[-1]},\n".encode()))

    with pytest.raises(CorruptCheckpointError, match="'key99999' is there twice"):  # in quadratic time it would take minutes
        manager.restore(1)


def test_an_empty_tensor_of_a_shape_that_fits_is_no_forgery(manager):
    manager.save(1, {"a": np.zeros((0, 5)), "b": np.zeros((3, 0)), "c": np.arange(2)})

    assert manager.restore(1).state["a"].shape == (0, 5)
