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


def row(*kind: Any, **fields: Any) -> Callable[[Any], None]:
    def edit(tree: Any) -> None:
        block = tree["tensors"][0]
        if kind:
            tree["kinds"][block["kinds"][0]] = list(kind)
        for column, value in fields.items():
            block[column][0] = value

    return edit


def one_place_for_all(tree: Any) -> None:
    names = [f"n{index}" for index in range(1000)]
    tree["tensors"] = [
        {key: column if key == "file" else column[:1] * 1000 for key, column in tree["tensors"][0].items()} | {"names": names}
    ]
    tree["skeleton"] = {"$arrays": names}


def string_in_slices(tree: Any) -> None:
    row("string", [1], 0, crc32c=None)(tree)
    block = tree["tensors"][0]
    tree["tensors"].append({key: column if key == "file" else column[1:] for key, column in block.items()})
    tree["tensors"][0] = {key: column if key == "file" else column[:1] for key, column in block.items()}
    tree["tensors"][0] |= {"starts": [[0]], "stops": [[1]]}


def a_name_of_any_length(tree: Any) -> None:
    tree["skeleton"]["z" * 2**20] = {"$arrays": [f"{index}" for index in range(2**17)]}  # 128 GiB of names


@pytest.mark.parametrize(
    "edit",
    [
        one_place_for_all,
        row(offsets=2**62),
        row("string", [2], 0),
        row("string", [2], 0, offsets=None, crc32c=None),
        string_in_slices,
        row("int8", [0, 2**62, 2**62], 0),
        row("int8", [10**9, 10**9], 10**18),
        lambda tree: tree["tensors"][0].__setitem__("file", "../../step-00000000/manifest.json"),
        lambda tree: tree["tensors"][0].__setitem__("file", "/etc/passwd"),
        lambda tree: tree["tensors"][0].__setitem__("file", "a/b"),
        lambda tree: tree["tensors"][0].__setitem__("file", "\0"),
        lambda tree: tree["tensors"][0].__setitem__("file", "\ud800"),
        lambda tree: tree["skeleton"].__setitem__("z", {"$arrays": ["not there"]}),
        lambda tree: tree["skeleton"].__setitem__("z", {"$arrays": 7}),
        a_name_of_any_length,
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
