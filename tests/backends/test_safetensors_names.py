"""Which files of a folder are one safetensors checkpoint, by their names."""

import pytest

from ckptmgr_safetensors import SafetensorsBackend

INDEX = "m.safetensors.index.json"
SHARDS = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]


def file_sets(*names: str) -> dict[str, list[str]]:
    return {stem: list(files) for stem, files in SafetensorsBackend().file_sets(names).items()}


def test_every_file_alone_is_a_checkpoint() -> None:
    assert file_sets("b.safetensors", "a.safetensors") == {"a": ["a.safetensors"], "b": ["b.safetensors"]}


def test_shards_come_in_order_and_their_index_last() -> None:
    assert file_sets(INDEX, *reversed(SHARDS)) == {"m": [*SHARDS, INDEX]}


def test_shards_without_their_index_name_it_nevertheless() -> None:
    assert file_sets(SHARDS[1]) == {"m": [SHARDS[1], INDEX]}


def test_an_index_without_its_shards_is_a_set() -> None:
    assert file_sets(INDEX) == {"m": [INDEX]}


def test_beside_an_index_a_single_file_of_the_same_stem_is_not_the_one_to_open() -> None:
    assert file_sets("m.safetensors", *SHARDS, INDEX) == {"m": ["m.safetensors", *SHARDS, INDEX]}


def test_beside_shards_that_lost_their_index_a_single_file_is_the_one_to_open() -> None:
    assert file_sets("m.safetensors", *SHARDS) == {"m": [*SHARDS, "m.safetensors"]}


def test_shards_of_several_counts_are_of_one_stem() -> None:
    assert file_sets(*SHARDS, "m-00001-of-00003.safetensors", INDEX) == {
        "m": [SHARDS[0], "m-00001-of-00003.safetensors", SHARDS[1], INDEX]
    }


def test_a_stem_may_look_like_that_of_a_shard() -> None:
    assert file_sets("m-00001-of-00002-00001-of-00001.safetensors") == {
        "m-00001-of-00002": ["m-00001-of-00002-00001-of-00001.safetensors", "m-00001-of-00002.safetensors.index.json"]
    }


@pytest.mark.parametrize(
    "name",
    ["m.safetensors.bak", "m.safetensors.index", "index.json", "m.h5", ".safetensors", ".safetensors.index.json", "checkpoint"],
)
def test_other_files_are_of_no_checkpoint(name: str) -> None:
    assert file_sets(name) == {}


def test_few_digits_make_no_shard() -> None:
    assert file_sets("m-1-of-2.safetensors") == {"m-1-of-2": ["m-1-of-2.safetensors"]}
