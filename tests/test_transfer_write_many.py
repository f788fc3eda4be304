"""Writing many small tensors, which go together: nothing else than what each alone would give."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfers import RamStore, layout, memory

from ckptmgr import transfer
from ckptmgr.checksum import crc32c
from ckptmgr.errors import SaveError
from ckptmgr.layout import FileLayout, Late, Layout, Part, Piece
from ckptmgr.memory import MemorySource
from ckptmgr.storage import Folder
from ckptmgr.testing.samples import spec_of


@given(st.lists(st.integers(0, 20_000) | st.just(100_000), max_size=6), st.sampled_from([100, 5_000, 1 << 20]), st.data())
def test_many_small_tensors_in_a_row_are_written_as_each_alone(lengths: list[int], window: int, data: st.DataObject) -> None:
    # Rows of 40 between large and empty ones, strided ones and late pieces: windows hold what fits, and no byte moves.
    store, tensors = RamStore(window), {}
    pieces: list[Piece] = [b"head"]
    for place, length in enumerate(lengths):
        step = data.draw(st.sampled_from([1, 1, 2]))
        for index in range(data.draw(st.sampled_from([1, 40]))):
            name, array = f"{place}.{index}", np.full(length // 40 * step, index, np.uint8)[::step]
            tensors[name] = array
            pieces.append(Part(name, spec_of(array)))
        pieces += [Late(4, lambda known: b"%04d" % len(known["data"]["crc32c"]))] * data.draw(st.integers(0, 1))
    plan = Layout((FileLayout("data", tuple(pieces)),))
    expected = [
        b"%04d" % index if isinstance(piece, Late) else piece if isinstance(piece, bytes) else tensors[piece.name].tobytes()
        for index, piece in enumerate(pieces)
    ]

    written = transfer.write(Folder(store), plan, memory(tensors))

    assert store.files["data"] == b"".join(expected)
    assert written.files["data"] == (len(b"".join(expected)), crc32c(b"".join(expected)))
    assert written.digests["data"]["crc32c"] == list(map(crc32c, expected))
    assert all(sum(sizes) <= window and len(sizes) <= 1024 for sizes in store.windows["data"])


def test_a_small_tensor_among_many_that_was_changed_is_named() -> None:
    tensors = {f"t{index}": np.zeros(3, np.int8) for index in range(100)}
    plan = layout(tensors)

    with pytest.raises(SaveError, match="'t50' was announced as int8"):
        transfer.write(Folder(RamStore()), plan, MemorySource({**tensors, "t50": np.zeros(3, np.uint8)}, {}))


def test_fifty_thousand_late_pieces_are_no_work_of_their_squares() -> None:
    # As the members of a zip have: a minute, when each got a copy of all digests before it.
    count = 50_000
    pieces: list[Piece] = [b"head"]
    for index in range(count):
        pieces += [b"%06d" % index, Late(4, lambda known: known["data"]["crc32c"][-1].to_bytes(4, "little"))]
    store = RamStore()
    started = time.process_time()

    written = transfer.write(Folder(store), Layout((FileLayout("data", tuple(pieces)),)), memory({}))

    assert time.process_time() - started < 15
    assert store.files["data"][-4:] == crc32c(b"%06d" % (count - 1)).to_bytes(4, "little")
    assert written.files["data"].nbytes == 4 + 10 * count
    assert len(store.windows["data"]) < 100  # a late piece and what is before it are handed out together
