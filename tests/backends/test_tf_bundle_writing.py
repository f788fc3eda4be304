"""What is written beside the tensors, and that it is all there again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptmgr
from ckptmgr import transfer
from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError, UnsupportedTensorError
from ckptmgr.layout import Contents, Layout, Part
from ckptmgr.memory import MemorySource
from ckptmgr.source import TensorSource
from ckptmgr.spec import TensorSpec, tensor_spec
from ckptmgr.storage import Folder, PosixStore
from ckptmgr_tf_bundle import TFBundleBackend, carriage
from ckptmgr_tf_bundle.bundle import Bundle, open_bundle
from ckptmgr_tf_bundle.keys import GRAPH_KEY

GOLDEN = Path(__file__).parents[1] / "golden" / "tf_bundle"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def saved(folder: Path, state: Any, backend: TFBundleBackend | None = None, **more: Any) -> Bundle:
    ckptmgr.save(folder / "cp", state, backend=backend or TFBundleBackend(), **more)
    return open_bundle(Folder(PosixStore(folder)), "cp")


def written(folder: Path, contents: Contents, tensors: dict[str, np.ndarray], backend: TFBundleBackend | None = None) -> Layout:
    layout = (backend or TFBundleBackend()).layout(contents, stem="cp", align=64)
    source = MemorySource(tensors, {name: tensor_spec(array.dtype, array.shape) for name, array in tensors.items()})
    transfer.write(Folder(PosixStore(folder)), layout, source)
    return layout


def opened(folder: Path, name: str = "cp") -> TensorSource:
    return TFBundleBackend().open(Folder(PosixStore(folder)), name)


def test_keys_are_tensorflows(tmp_path: Path) -> None:
    bundle = saved(tmp_path, {"a.b": [np.zeros(2), {"c/d": np.ones(1)}]})

    ours = {GRAPH_KEY, carriage.KEY, f"save_counter{VALUE}"}
    assert {*bundle.keys} - ours == {f"a..b/0{VALUE}", f"a..b/1/c.Sd{VALUE}"}


def test_plain_values_are_tensors_of_explicit_dtypes(tmp_path: Path) -> None:
    state = {"i": 3, "f": 0.1, "b": True, "c": 1j, "t": "né", "raw": b"\xff", "n": np.int16(-5), "big": 2**70, "w": np.zeros(1)}

    bundle = saved(tmp_path, state)

    found = {
        key.removesuffix(VALUE): bundle.read(key).item()
        for key in bundle.keys
        if key.endswith(VALUE) and not key.startswith("w/")
    }
    dtypes = {key.removesuffix(VALUE): bundle.specs[key].dtype for key in bundle.keys if key.endswith(VALUE)}
    assert found == {
        **{"i": 3, "f": np.float32(0.1).item(), "b": True, "c": 1j, "t": "né".encode(), "raw": b"\xff", "n": -5},
        "save_counter": 0,
    }
    assert [dtypes[name] for name in "ifbctn"] == ["int64", "float32", "bool", "complex128", "string", "int16"]


def test_plain_values_come_back_as_they_were(tmp_path: Path) -> None:
    state = {"i": 3, "f": 0.1, "t": "né", "none": None, "big": 2**70, "w": np.zeros(1)}

    saved(tmp_path, state)
    loaded = ckptmgr.load(tmp_path / "cp")

    assert loaded.pop("w").tolist() == [0.0]
    assert loaded == {"i": 3, "f": 0.1, "t": "né", "none": None, "big": 2**70}
    assert [type(value) for value in loaded.values()] == [int, float, str, type(None), int]


def test_a_float_beyond_float32_is_no_warning(tmp_path: Path) -> None:
    bundle = saved(tmp_path, {"f": 1e300, "w": np.zeros(1)})

    assert bundle.read(f"f{VALUE}").item() == float("inf")
    assert ckptmgr.load(tmp_path / "cp")["f"] == 1e300


@pytest.mark.parametrize("counter", [7, np.int32(7), np.array(7, np.int64)])
def test_a_counter_of_the_states_own_is_kept_and_is_int64(tmp_path: Path, counter: Any) -> None:
    bundle = saved(tmp_path, {"save_counter": counter, "w": np.zeros(1)})

    assert bundle.read(f"save_counter{VALUE}").item() == 7
    assert bundle.specs[f"save_counter{VALUE}"].dtype == "int64"


def test_the_counter_can_be_left_out(tmp_path: Path) -> None:
    bundle = saved(tmp_path, {"w": np.zeros(1)}, TFBundleBackend(save_counter=False))

    assert f"save_counter{VALUE}" not in bundle.keys


def test_an_added_counter_is_no_tensor_of_the_state(tmp_path: Path) -> None:
    saved(tmp_path, {"w": np.zeros(1)})

    with opened(tmp_path) as source:
        assert list(source.specs) == ["w"]


def test_tied_tensors_share_their_bytes_under_keys_of_their_own(tmp_path: Path) -> None:
    w = np.arange(1000.0)

    bundle = saved(tmp_path, {"embed": w, "head": {"w": w}})
    loaded = ckptmgr.load(tmp_path / "cp")

    assert bundle.is_same(f"embed{VALUE}", f"head/w{VALUE}")
    assert (tmp_path / "cp.data-00000-of-00001").stat().st_size < 10_000
    assert loaded["embed"] is loaded["head"]["w"]


def test_files_are_cut_at_the_size_limit_and_counted_in_their_names(tmp_path: Path) -> None:
    state = {f"w{index}": np.full(100, index, np.float64) for index in range(5)}

    saved(tmp_path, state, max_file_nbytes=1600)

    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"cp.data-0000{n}-of-00003" for n in range(3)), "cp.index"]
    loaded = ckptmgr.load(tmp_path / "cp")
    assert [int(loaded[f"w{index}"][-1]) for index in range(5)] == [0, 1, 2, 3, 4]


def test_a_smaller_set_leaves_no_file_of_a_larger_one(tmp_path: Path) -> None:
    state = {f"w{index}": np.full(100, index) for index in range(5)}
    saved(tmp_path, state, max_file_nbytes=800)
    (tmp_path / "cp2.index").write_bytes(b"another's")

    saved(tmp_path, state)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["cp.data-00000-of-00001", "cp.index", "cp2.index"]


def test_tensors_lie_aligned_to_their_items(tmp_path: Path) -> None:
    state = {"a": np.zeros(3, np.int8), "b": np.zeros(3), "c": np.zeros(3, np.complex128), "d": np.zeros(5, np.float16)}

    saved(tmp_path, state)

    with opened(tmp_path) as source:
        assert all(source.extents(name)[0].offset % source.specs[name].numpy.itemsize == 0 for name in state)


def test_slices_of_a_tensor_come_back_as_one(tmp_path: Path) -> None:
    whole = np.arange(48, dtype=np.float32).reshape(8, 6)
    spec = TensorSpec("float32", (8, 6))
    halves = [Part("w", spec, Box((0, 0), (8, 2))), Part("w", spec, Box((0, 2), (8, 6)))]

    written(tmp_path, Contents(((halves[0],), (halves[1],)), {"tied": "w"}), {"w": whole})

    with opened(tmp_path) as source:
        assert source.read("w").tolist() == whole.tolist()
        assert source.read("tied", Box((3, 1), (4, 4))).tolist() == [[19, 20, 21]]


def test_slices_with_a_gap_are_refused() -> None:
    part = Part("w", TensorSpec("float32", (8, 6)), Box((0, 0), (7, 6)))

    with pytest.raises(UnsupportedTensorError, match="do not cover") as refusal:
        TFBundleBackend().layout(Contents(((part,),)), stem="cp", align=64)

    assert refusal.value.tensor == "w"


def test_a_tensor_given_twice_is_refused() -> None:
    part = Part("w", TensorSpec("float32", (8, 6)))

    with pytest.raises(ValueError, match="given twice"):
        TFBundleBackend().layout(Contents(((part, part),)), stem="cp", align=64)


def test_keys_that_differ_only_in_kind_stay_apart(tmp_path: Path) -> None:
    saved(tmp_path, {"m": {1: np.zeros(1), "1": np.ones(1)}})

    loaded = ckptmgr.load(tmp_path / "cp")

    assert {key: value.tolist() for key, value in loaded["m"].items()} == {1: [0.0], "1": [1.0]}


def test_the_name_based_form_is_plain(tmp_path: Path) -> None:
    bundle = saved(tmp_path, {"scope/w": np.zeros(2, np.float32), "step": np.array(3)}, TFBundleBackend(form="name"))

    assert list(bundle.keys) == ["scope/w", "step"]


@pytest.mark.parametrize("name", ["", GRAPH_KEY, carriage.KEY])
def test_the_name_based_form_refuses_names_of_the_format(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedTensorError, match="for itself"):
        saved(tmp_path, {name: np.zeros(2)}, TFBundleBackend(form="name"))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"7", "version 1"),
        (b'{"version": 2, "metadata": {}}', "newer ckptmgr"),
        (b'{"version": 1, "metadata": {}, "added": "w"}', "'added'"),
        (b'{"version": 1, "metadata": {}, "added": [], "aliases": [], "names": {}}', "'aliases'"),
        (b'{"version": 1, "metadata": {}, "added": [], "aliases": {}, "names": {"a": 1}}', "'names'"),
        (b'{"version": 1, "metadata": {}, "added": [], "aliases": {"v": "gone"}, "names": {}}', "no two tensors"),
        (b'{"version": 1, "metadata": {}, "added": [], "aliases": {"v": "w"}, "names": {}}', "different places"),
        (
            b'{"version": 1, "metadata": {}, "added": [], "aliases": {}, "names": {"v/.ATTRIBUTES/VARIABLE_VALUE": "w"}}',
            "one name",
        ),
    ],
)
def test_a_damaged_entry_of_ours_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: bytes, problem: str) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(carriage.Carriage, "encode", lambda self: entry)
        saved(tmp_path, {"w": np.zeros(1), "v": np.ones(1)})

    with pytest.raises(CorruptCheckpointError, match=problem):
        opened(tmp_path)


def copied(folder: Path, source: TensorSource, backend: TFBundleBackend | None = None) -> Bundle:
    """A checkpoint written again from what a source of another one has."""
    tensors = {name: source.read(name) for name in source.specs}
    contents = Contents(
        (tuple(Part(name, source.specs[name]) for name in tensors),),
        source.aliases,
        {name: array.reshape(-1).tolist() for name, array in tensors.items() if array.dtype.hasobject},
        source.blobs,
        paths=source.paths,  # type: ignore[attr-defined]
    )
    written(folder, contents, tensors, backend)
    return open_bundle(Folder(PosixStore(folder)), "cp")


@pytest.mark.parametrize(
    "prefix",
    ["object_graph/nested-1", "keras_legacy/weights", "keras_legacy/ck-1", "keras3/ck-1", "keras_small/training_1/cp.ckpt"],
)
def test_a_checkpoint_is_written_again_with_its_own_keys_and_graph(tmp_path: Path, prefix: str) -> None:
    folder, _, name = prefix.rpartition("/")
    first = open_bundle(Folder(PosixStore(GOLDEN / folder)), name)

    with opened(GOLDEN / folder, name) as source:
        second = copied(tmp_path, source)

    assert [key for key in second.keys if key != carriage.KEY] == list(first.keys)
    for key in first.keys:
        assert second.specs[key] == first.specs[key]
        assert second.read(key).tolist() == first.read(key).tolist(), key


def test_a_graph_that_does_not_fit_the_tensors_gives_way_to_a_new_one(tmp_path: Path) -> None:
    with opened(GOLDEN / "keras_legacy", "weights") as source:
        graph = source.blobs[GRAPH_KEY]
    contents = Contents(((Part("w", TensorSpec("float64", (1,))),),), blobs={GRAPH_KEY: graph})

    written(tmp_path, contents, {"w": np.ones(1)})

    with opened(tmp_path) as source:
        assert list(source.specs) == ["w"]


def test_a_variant_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    first = open_bundle(Folder(PosixStore(GOLDEN / "variant")), "iter-1")
    (key,) = first.variants

    with opened(GOLDEN / "variant", "iter-1") as source:
        second = copied(tmp_path, source)

    assert second.stored(key) == first.stored(key)
    assert second.variants[key]._replace(offset=0) == first.variants[key]._replace(offset=0)
