import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.box import Box
from ckptmgr.layout import Contents, FileLayout, Late, Part, pack, piece_nbytes
from ckptmgr.spec import TensorSpec


def part(name: str, nbytes: int) -> Part:
    return Part(name, TensorSpec("uint8", (nbytes,)))


def named(files) -> list[list[str]]:
    return [[one.name for one in file] for file in files]


parts = st.lists(st.integers(0, 12), max_size=12).map(lambda sizes: [part(f"t{i}", size) for i, size in enumerate(sizes)])


@given(parts, st.integers(1, 20))
def test_every_part_is_packed_once_into_files_within_the_limit(some: list[Part], limit: int):
    files = pack(some, limit)

    assert sorted(one for file in files for one in file) == sorted(some)
    assert all(sum(one.nbytes for one in file) <= limit or len(file) == 1 for file in files)
    assert len(files) == 1 or all(files)


@given(parts, st.integers(1, 20))
def test_parts_keep_their_order_within_files(some: list[Part], limit: int):
    for file in pack(some, limit):
        assert sorted(file, key=some.index) == list(file)


def test_no_limit_is_one_file():
    assert named(pack([part("a", 5), part("b", 500)])) == [["a", "b"]]


def test_no_parts_are_one_empty_file():
    assert pack([]) == pack([], 10) == ((),)


def test_a_full_file_is_closed_at_exactly_its_limit():
    assert named(pack([part("a", 4), part("b", 6), part("c", 1)], 10)) == [["a", "b"], ["c"]]


def test_a_tensor_over_the_limit_gets_a_file_of_its_own_without_closing_the_current_one():
    some = [part("a", 4), part("huge", 11), part("b", 6), part("c", 1)]

    assert named(pack(some, 10)) == [["a", "b"], ["huge"], ["c"]]


@pytest.mark.parametrize("limit", [0, -1, "5GB"])
def test_a_limit_that_is_not_positive_is_refused(limit: int | str):
    with pytest.raises(ValueError, match=f"max_file_nbytes must be a positive number of bytes.*, not {limit!r}"):
        pack([], limit)


@pytest.mark.parametrize(
    ("dtype", "shape", "box", "nbytes"),
    [
        ("float32", (4, 4), None, 64),
        ("float32", (4, 4), Box((1, 0), (3, 4)), 32),
        ("float32", (4, 4), Box((1, 0), (1, 4)), 0),
        ("packed_float4_e2m1fn", (4, 4), Box((1, 0), (3, 4)), 4),
        ("string", (4,), Box((1,), (3,)), 0),
    ],
)
def test_a_part_knows_its_bytes(dtype: str, shape: tuple[int, ...], box: Box | None, nbytes: int):
    assert Part("t", TensorSpec(dtype, shape), box).nbytes == nbytes


def test_a_file_layout_derives_offsets_and_size():
    late = Late(3, lambda digests: b"end")
    file = FileLayout("model.bin", (b"head", part("a", 10), b"", part("empty", 0), part("b", 6), late))

    assert file.nbytes == 23
    assert [(index, offset, one.name) for index, offset, one in file.parts()] == [(1, 4, "a"), (3, 14, "empty"), (4, 14, "b")]
    assert [piece_nbytes(piece) for piece in file.pieces] == [4, 10, 0, 0, 6, 3]


def test_a_file_of_one_late_piece_has_no_size_yet():
    assert FileLayout("index", (Late(None, lambda digests: b""),)).nbytes is None
    assert FileLayout("empty", ()).nbytes == 0


def test_contents_tell_how_names_are_nested():
    contents = Contents(((part("a/b", 1), part("c/d", 1)), (part("a/b", 1),)), paths={"a/b": ("a/b",), "": ()})

    assert contents.path("a/b") == ("a/b",)
    assert contents.path("c/d") == ("c", "d")
    assert contents.path("") == ()


def test_contents_name_each_tensor_once():
    contents = Contents(((part("b", 1), part("a", 1)), (part("b", 1),)))

    assert contents.names == ["b", "a"]
