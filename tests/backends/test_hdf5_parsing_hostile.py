"""HDF5 files made to crash, stall or fill the memory of who reads them: one error that names file and object, soon."""

import struct

import pytest
from bounds import cheap
from hdf5_images import (
    CONTINUATION,
    INT8,
    UNDEFINED,
    Image,
    contiguous,
    dataset,
    header,
    heap,
    message,
    parsed,
    shape,
    symbol_node,
    symbols,
    tree_node,
)
from hdf5_refused import refused, x_is

from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError
from ckptmgr_hdf5.parsing import Dataset, Unknown


def test_a_file_by_hand_is_read() -> None:
    image = Image()
    data = image.put(b"\1\2\3")
    place = image.put(dataset(data, 3, nbytes=3))

    found = parsed(image.finished(image.group([b"x"], [place]))).find("x")

    assert isinstance(found, Dataset)
    assert (found.shape, found.offset, found.kind) == ((3,), data, "raw")


@pytest.mark.parametrize("data", [b"", b"\x89HDF", b"PK\3\4" * 600, bytes(5000)])
def test_a_file_without_signature_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"'run/x.h5' is not a valid HDF5 file: there is no HDF5 signature"):
        parsed(data)


def test_a_file_that_was_cut_off_is_refused_at_every_length() -> None:
    image = Image()
    whole = image.finished(image.group([b"x"], [image.put(dataset(96, 3, nbytes=3))]))

    for length in range(len(whole)):
        with pytest.raises(CorruptCheckpointError, match=r"bytes|cut off|no HDF5 signature"):
            parsed(whole[:length])


@pytest.mark.parametrize(("at", "value"), [(8, 4), (9, 1), (12, 1), (13, 4), (14, 4), (32, 0), (48, 96)])
def test_a_superblock_of_another_profile_is_left_to_others(at: int, value: int) -> None:
    image = Image()
    data = bytearray(image.finished(image.group([], [])))
    data[at] = value

    with pytest.raises(Unknown, match=r"superblock|addresses"):
        parsed(bytes(data))


@pytest.mark.parametrize("root", [0, 8, 1 << 40, UNDEFINED])
def test_a_root_that_is_nowhere_is_refused(root: int) -> None:
    refused(Image(), root, "there is no object header|bytes .* are needed", "/")


def test_a_root_that_is_a_dataset_is_refused() -> None:
    image = Image()

    refused(image, image.put(dataset(96, 1, nbytes=1)), "the root is no group", "/")


def test_an_object_that_is_nothing_is_refused() -> None:
    x_is([message(3, INT8), shape(1)], "it is neither group nor dataset")


def test_an_object_that_is_both_is_refused() -> None:
    image = Image()
    table = image.table([], [])
    place = image.put(header(table, shape(1), message(3, INT8), contiguous(96, 1)))

    refused(image, image.group([b"x"], [place]), "but not all that a dataset has", "/x")


@pytest.mark.parametrize("kind", [1, 3, 8])
def test_two_messages_where_one_is_said_are_refused(kind: int) -> None:
    x_is([shape(1), message(3, INT8), contiguous(96, 1), message(kind, bytes(16))], f"two messages of type {kind}")


@pytest.mark.parametrize("missing", [0, 1])
def test_a_dataset_without_type_or_shape_is_refused(missing: int) -> None:
    x_is([part for at, part in enumerate([shape(1), message(3, INT8), contiguous(96, 1)]) if at != missing], "not all that")


@pytest.mark.parametrize("kind", [0x9, 0xD, 0xE, 0xF, 0x13, 0x14, 0x17, 0x18, 0x19, 0xFF])
def test_messages_of_another_profile_are_left_to_others(kind: int) -> None:
    image = Image()
    place = image.put(header(shape(1), message(3, INT8), contiguous(96, 1), message(kind, bytes(8))))

    with pytest.raises(Unknown, match=f"'/x': a message of type {kind}"):
        parsed(image.finished(image.group([b"x"], [place])))


def test_a_message_longer_than_its_header_is_refused() -> None:
    x_is([shape(1), struct.pack("<HHB3x", 3, 64, 0) + INT8], "a message of 64 bytes is longer")


@pytest.mark.parametrize(("nbytes", "problem"), [(0xFFFFFFFF, "over the limit"), (10_000, "are needed, and there are")])
def test_a_header_longer_than_the_file_is_refused(nbytes: int, problem: str) -> None:
    image = Image()
    place = image.put(struct.pack("<BxHII4x", 1, 1, 1, nbytes))

    refused(image, image.group([b"x"], [place]), problem, "/x")


@pytest.mark.parametrize(
    ("address", "problem"), [(16, "continues in itself"), (1 << 50, "are needed"), (UNDEFINED, "are needed")]
)
def test_a_header_that_continues_in_itself_or_nowhere_is_refused(address: int, problem: str) -> None:
    image = Image()
    place = image.reserve(40)
    target = place if address == 16 else address
    image.put(header(message(CONTINUATION, struct.pack("<QQ", target, 40))), place)

    refused(image, image.group([b"x"], [place]), problem, "/x")


def test_continuations_in_a_ring_are_refused() -> None:
    image = Image()
    first, second = image.reserve(24), image.reserve(24)
    for here, there in ((first, second), (second, first)):
        image.put(message(CONTINUATION, struct.pack("<QQ", there, 24)), here)
    place = image.put(header(message(CONTINUATION, struct.pack("<QQ", first, 24))))

    refused(image, image.group([b"x"], [place]), "continues in itself", "/x")


def test_continuations_that_overlap_are_refused_before_they_multiply() -> None:
    image = Image()
    first, count = len(image.data), 20_000
    image.put(b"".join(message(CONTINUATION, struct.pack("<QQ", first + 24 * at, 24 * (count - at))) for at in range(1, count)))
    place = image.put(header(message(CONTINUATION, struct.pack("<QQ", first, 24 * (count - 1)))))

    refused(image, image.group([b"x"], [place]), "structures overlap|are needed", "/x")


def test_a_group_that_contains_itself_is_refused() -> None:
    image = Image()
    root = image.reserve(40)
    image.put(header(image.table([b"again"], [root])), root)

    refused(image, root, "the group contains itself", "/again")


def test_groups_that_contain_each_other_are_refused() -> None:
    image = Image()
    first = image.reserve(40)
    second = image.group([b"first"], [first])
    image.put(header(image.table([b"second"], [second])), first)

    refused(image, first, "the group contains itself", "/second/first")


def nested(depth: int) -> bytes:
    image = Image()
    place = image.group([], [])
    for _ in range(depth):
        place = image.group([b"g"], [place])
    return image.finished(place)


def test_two_hundred_groups_in_each_other_are_read() -> None:
    assert len([*parsed(nested(200)).walk()]) == 201


@pytest.mark.parametrize("depth", [201, 3000])
def test_deeper_groups_are_refused(depth: int) -> None:
    with cheap(), pytest.raises(CorruptCheckpointError, match="nested more than 200 deep"):
        parsed(nested(depth))


def test_groups_that_double_on_each_level_are_refused() -> None:
    image = Image()
    place = image.group([], [])
    for _ in range(60):
        place = image.group([b"a", b"b"], [place, place])
    data = image.finished(place)

    with cheap(), pytest.raises(CorruptCheckpointError, match="over and over"):
        parsed(data)


def test_a_few_groups_with_two_names_are_read() -> None:
    image = Image()
    place = image.group([], [])
    for _ in range(5):
        place = image.group([b"a", b"b"], [place, place])

    assert len([*parsed(image.finished(place)).walk()]) == 63


def test_many_groups_that_share_one_table_are_refused() -> None:
    image = Image()
    names, empty = [b"%05d" % at for at in range(10_000)], image.group([], [])
    shared = image.table(names, [empty] * 10_000)
    root = image.group(names, [image.put(header(shared)) for _ in names])

    with cheap(), pytest.raises(CorruptCheckpointError, match="over and over"):
        parsed(image.finished(root, leaf_k=5000))


def test_symbol_nodes_that_overlap_are_refused() -> None:
    image = Image()
    count = 20_000
    empty = image.group([], [])
    raw = b"\0" + b"".join(b"%05d\0" % at for at in range(count))
    names = image.put(heap(image.put(raw), len(raw)))
    rows = [
        struct.pack("<QQI4x", 1 + 6 * at, empty, 0) + struct.pack("<8x4sBxH", b"SNOD", 1, count - at - 1) for at in range(count)
    ]
    first = image.put(struct.pack("<4sBxH", b"SNOD", 1, count) + b"".join(rows))
    groups = [image.put(header(symbols(image.put(tree_node([first + 40 * at])), names))) for at in range(200)]
    root = image.group([b"%03d" % at for at in range(200)], groups)

    with cheap(), pytest.raises(CorruptCheckpointError, match=r"overlap|over and over"):
        parsed(image.finished(root, leaf_k=20_000))


def test_a_b_tree_that_contains_itself_is_refused() -> None:
    image = Image()
    node = image.reserve(48)
    image.put(tree_node([node], level=1), node)
    root = image.put(header(symbols(node, image.put(heap(image.put(bytes(8)), 8)))))

    refused(image, root, "there is no node of a group's B-tree", "/")


def test_a_b_tree_that_is_a_graph_is_refused() -> None:
    image = Image()
    node = image.put(symbol_node([]))
    for level in range(200):
        node = image.put(tree_node([node] * 32, level=level))
    root = image.put(header(symbols(node, image.put(heap(image.put(bytes(8)), 8)))))

    refused(image, root, "over and over", "/")


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (b"TREE\1\0\0\0", "no node of a group's B-tree"),
        (b"TREE\0\0\xff\xff", "no node of a group's B-tree"),
        (b"SNOD\1\0\0\0", "no node of a group's B-tree"),
        (tree_node([96]), "no node of a group's symbols"),
        (tree_node([UNDEFINED]), "are needed"),
    ],
)
def test_a_damaged_b_tree_is_refused(node: bytes, problem: str) -> None:
    image = Image()
    root = image.put(header(symbols(image.put(node), image.put(heap(image.put(bytes(8)), 8)))))

    refused(image, root, problem, "/")


@pytest.mark.parametrize("node", [b"SNOD\2\0\0\0", b"SNOD\1\0\xff\xff", b"snod\1\0\0\0"])
def test_a_damaged_symbol_node_is_refused(node: bytes) -> None:
    image = Image()
    leaf = image.put(node)
    root = image.put(header(symbols(image.put(tree_node([leaf])), image.put(heap(image.put(bytes(8)), 8)))))

    refused(image, root, "no node of a group's symbols", "/")


def test_a_local_heap_that_is_none_is_refused() -> None:
    image = Image()
    root = image.put(header(symbols(image.put(tree_node([])), image.put(bytes(32)))))

    refused(image, root, "there is no local heap", "/")


@pytest.mark.parametrize(("nbytes", "problem"), [(1 << 62, "over the limit"), (10 << 20, "are needed")])
def test_a_local_heap_longer_than_the_file_is_refused(nbytes: int, problem: str) -> None:
    image = Image()
    root = image.put(header(symbols(image.put(tree_node([])), image.put(heap(96, nbytes)))))

    refused(image, root, problem, "/")


@pytest.mark.parametrize("place", [8, 4, 1 << 63])
def test_a_name_outside_of_its_heap_is_refused(place: int) -> None:
    image = Image()
    leaf = image.put(symbol_node([(place, 96)]))
    raw = b"\0\0\0\0name"
    root = image.put(header(symbols(image.put(tree_node([leaf])), image.put(heap(image.put(raw), 8)))))

    refused(image, root, "is not in the local heap of 8 bytes", "/")


def test_long_names_that_overlap_are_refused() -> None:
    image = Image()
    raw = b"a" * 1_000_000 + b"\0"
    leaf = image.put(symbol_node([(at, 96) for at in range(10_000)]))
    root = image.put(header(symbols(image.put(tree_node([leaf])), image.put(heap(image.put(raw), len(raw))))))

    refused(image, root, "is not in the local heap", "/", leaf_k=5000)


def test_long_paths_are_refused() -> None:
    image = Image()
    empty = image.group([], [])
    inner = image.group([b"%05d" % at for at in range(2000)], [empty] * 2000)
    root = image.group([b"a" * 100_000], [inner])

    with cheap(), pytest.raises(CorruptCheckpointError, match="paths of the file's objects are too long"):
        parsed(image.finished(root, leaf_k=1000))


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\xc3", b"\xed\xa0\x80"])
def test_a_name_that_is_no_utf_8_is_refused(name: bytes) -> None:
    image = Image()

    refused(image, image.group([name], [image.group([], [])]), "is no UTF-8", "/")


@pytest.mark.parametrize("names", [[b""], [b"."], [b"a/b"], [b"/"], [b"b", b"a"], [b"a", b"a"]])
def test_names_that_no_path_leads_to_are_refused(names: list[bytes]) -> None:
    image = Image()
    empty = image.group([], [])

    refused(image, image.group(names, [empty] * len(names)), "is no name, or not in order", "/")


def test_a_soft_link_is_refused() -> None:
    image = Image()
    root = image.put(header(image.table([b"link"], [UNDEFINED], cached=2)))

    with pytest.raises(UnsafeCheckpointError, match="'/': b'link' is a soft link") as caught:
        parsed(image.finished(root))
    assert caught.value.file == "x.h5"


def test_a_link_of_no_kind_is_refused() -> None:
    image = Image()

    refused(image, image.put(header(image.table([b"link"], [96], cached=3))), "the link b'link' is of no kind", "/")


def test_data_in_an_external_file_is_refused_whatever_its_list_says() -> None:
    image = Image()
    place = image.put(header(shape(1), message(3, INT8), contiguous(96, 1), message(7, bytes(24))))

    with pytest.raises(UnsafeCheckpointError, match="'/x': its data is in another file"):
        parsed(image.finished(image.group([b"x"], [place])))
