"""Files that attack: each is refused by one of our errors, runs nothing, and takes neither time nor memory."""

import functools
import importlib
import marshal
import operator
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import types
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import cheap
from torch_pickles import Calls, W, archive, calling, loaded, number, numbers, program, state, storage, tensor, text

from ckptmgr.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from ckptmgr_torch import allowed, machine
from ckptmgr_torch.origin import Origin

MARK = "ckptmgr-torch-ran-code"


class Hidden:
    """A class of the attacker's own."""

    def __setstate__(self, state: Any) -> None:
        os.environ[MARK] = "1"


def glob(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def chain(first: bytes, *rest: Any) -> bytes:
    """`getattr` on what a global is, again and again."""
    made = first
    for name in rest:
        made = glob("builtins.getattr") + b"(" + made + text(name) + b"tR"
    return made


SET = f"import os; os.environ[{MARK!r}] = '1'"
RUNS: dict[str, bytes] = {  # what would run code
    "os.system": calling(os.system, f"export {MARK}=1"),
    "posix.system by name": program(glob("posix.system"), b"(", text("true"), b"tR"),
    "eval": calling(eval, "1"),
    "exec": calling(exec, SET),
    "compile": calling(compile, "1", "", "eval"),
    "builtins.getattr": program(chain(glob("builtins.dict"), "__subclasses__"), b")R"),
    "__import__": calling(__import__, "os"),
    "importlib": calling(importlib.import_module, "os"),
    "subprocess": calling(subprocess.Popen, ["true"]),
    "marshal": calling(marshal.loads, b"N"),
    "functools.partial": calling(functools.partial, eval, "1"),
    "operator.attrgetter": pickle.dumps(operator.attrgetter("system"), 2),
    "operator.methodcaller": pickle.dumps(operator.methodcaller("clear"), 2),
    "types.FunctionType": program(glob("types.FunctionType"), b")\x81"),
    "types.CodeType": program(glob("types.CodeType"), b")R"),
    "pickle.loads": calling(pickle.loads, calling(eval, "1")),
    "torch.load": program(glob("torch.load"), b"(", text("/etc/passwd"), b"tR"),
    "torch.hub.load": program(glob("torch.hub.load"), b"(", text("a/b"), text("c"), b"tR"),
    "torch.jit.load": program(glob("torch.jit.load"), b"(", text("x"), b"tR"),
    "numpy.load": program(glob("numpy.load"), b"(", text("/etc/passwd"), b"tR"),
    "numpy.f2py": program(glob("numpy.f2py.crackfortran.getlincoef"), b"(", text("1"), b"}}tR"),
    "torch._C": program(glob("torch._C._jit_set_profiling_mode"), b"(\x88tR"),
    "copyreg": pickle.dumps(Hidden(), 0),
    "copyreg, protocol 1": pickle.dumps(Hidden(), 1),
    "a class of its own": pickle.dumps(Hidden(), 2),
    "a class by a stack global": pickle.dumps(Hidden(), 4),
    "open": calling(open, "/etc/passwd"),
    "pathlib's methods": program(chain(glob("pathlib.Path"), "read_text"), b")R"),
    "numpy object arrays": pickle.dumps(np.array([Calls(eval, "1")], object), 2),
    "a dotted name": program(b"\x8c\x08builtins\x8c\x0edict.__class__\x93"),
    "an extension": program(b"\x82\x01"),
    "INST": program(b"(", text("true"), b"ios\nsystem\n"),
    "OBJ": program(b"(", glob("os.system"), text("true"), b"o"),
    "inside of a storage": state(w=storage(kind="os\nsystem")),
    "a callable factory": program(glob("collections.defaultdict"), glob("os.system"), b"\x85R"),
    "as the state of an allowed one": program(b"ccollections\nOrderedDict\n)R", calling(eval, "1")[2:-1], b"b"),
    "as the function of a subclass": program(glob("torch._tensor._rebuild_from_type_v2"), b"(", glob("os.system"), b")N)tR"),
    "sys.modules": program(glob("sys.modules")),
}


@pytest.mark.parametrize("data", RUNS.values(), ids=RUNS)
def test_what_would_run_code_is_refused_by_its_name(tmp_path: Path, data: bytes) -> None:
    path = archive(tmp_path / "m.pt", data)

    with cheap(), pytest.raises(UnsafeCheckpointError) as caught:
        loaded(path)

    assert str(path) in str(caught.value)
    assert MARK not in os.environ


def test_the_global_and_the_place_of_what_is_refused_are_named(tmp_path: Path) -> None:
    data = state(epoch=b"K\x03", model=b"}(" + text("w") + tensor() + text("hook") + calling(os.system, "true")[2:-1] + b"u")

    with pytest.raises(UnsafeCheckpointError, match=r"'model/hook': data.pkl has the global posix.system, which is not allowed"):
        loaded(archive(tmp_path / "m.pt", data))


@pytest.mark.parametrize(
    "name",
    [
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_wrapper_subclass",
        "torch.distributed.tensor.DTensor",
        "torch.nn.modules.linear.Linear",
        "torch.QInt8Storage",
        "torch.complex32",
    ],
)
def test_tensors_that_are_not_plain_are_refused_by_the_name_of_their_global(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeCheckpointError, match=f"'model/w': .*{name}"):
        loaded(archive(tmp_path / "m.pt", state(model=b"}(" + text("w") + glob(name) + b")Ru")))


def laugh(number: int) -> bytes:
    """A dict with the one before under two keys."""
    before = b"h%c" % (number - 1)
    return b"}q%c(" % number + text("a") + before + text("b") + before + b"u"


EMPTY = glob("numpy.core.multiarray._reconstruct") + b"(" + glob("numpy.ndarray") + b"K\x00\x85C\x01btR"
MANY_VIEWS = [tensor(shape=(3 << 20,), strides=(0,), offset=number) for number in range(6)]
COPY = glob("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R"
COPY_SET = glob("__builtin__.set") + b"h\x00\x85R"
PARTS = b"(" + b"h\x00" * 60_000 + b"t"
WRONG: dict[str, bytes] = {  # of allowed globals, with what they cannot have
    "a tensor of nothing": program(glob("torch._utils._rebuild_tensor_v2"), b")R"),
    "a tensor of text": program(glob("torch._utils._rebuild_tensor_v2"), b"(", text("x"), b"K\x00))tR"),
    "a tensor of a class": program(glob("torch._utils._rebuild_tensor_v2"), b"(", glob("torch.Size"), b"K\x00))tR"),
    "a parameter of a number": program(glob("torch._utils._rebuild_parameter"), b"(K\x01\x89NtR"),
    "a size of texts": program(glob("torch.Size"), text("x"), b"\x85\x85R"),
    "a device of a list": program(glob("torch.device"), b"]\x85R"),
    "bytes by a codec": program(glob("_codecs.encode"), text("x"), text("zip"), b"\x86R"),
    "a set of a number": program(glob("__builtin__.set"), b"K\x01\x85R"),
    "a set of sets": program(glob("__builtin__.set"), glob("__builtin__.set"), b"K\x01\x85R\x85R"),
    "arguments that are no tuple": program(glob("torch.Size"), b"K\x01R"),
    "a dict of triples": program(glob("collections.OrderedDict"), b"](", numbers(1, 2, 3), b"e\x85R"),
    "complex of texts": program(glob("__builtin__.complex"), text("1"), text("2"), b"\x86R"),
    "items for a tuple": program(b")K\x01a"),
    "items for a tensor": program(tensor(), b"K\x01a"),
    "keys for a list": program(b"]K\x01K\x02s"),
    "an odd number of items": program(b"}(K\x01u"),
    "a numpy array without its bytes": program(EMPTY),
    "a numpy array of too few bytes": pickle.dumps(np.arange(4.0), 2).replace(b"K\x04\x85", b"K\x7f\x85"),
    "a persistent id that is no storage": program(text("x"), b"Q"),
    "a storage without a record": state(w=tensor(of=storage("1"))),
    "a storage of a path": state(w=tensor(of=storage("../data.pkl"))),
    "a storage that is larger than its record": state(w=tensor(of=storage(count=7))),
    "a storage that is much larger than its record": state(w=tensor(of=storage(count=1 << 40))),
    "a storage of less than nothing": state(w=tensor(of=storage(count=-6))),
    "a storage that is smaller than its record": state(w=tensor(of=storage(count=5))),
    "strides outside of the storage": state(w=tensor(strides=(4, 1))),
    "negative strides": state(w=tensor(offset=5, strides=(-3, -1))),
    "a negative offset": state(w=tensor(offset=-1)),
    "an offset outside of the storage": state(w=tensor(offset=1)),
    "a shape that overflows": state(w=tensor(shape=(1 << 62, 1 << 62), strides=(1, 1))),
    "a shape of numbers that are too large": state(w=tensor(shape=(1 << 70000,), strides=(1,))),
    "a shape that is much larger than the storage": state(w=tensor(shape=(1 << 40,), strides=(0,))),
    "an empty shape that no array can have": state(w=tensor(shape=(1 << 62, 1 << 62, 0), strides=(1, 1, 1))),
    "more strides than dimensions": state(w=tensor(strides=(3, 1, 1))),
    "too many dimensions": state(w=tensor(shape=(1,) * 65, strides=(1,) * 65)),
    "views that are many times the storage": program(b"](", *MANY_VIEWS, b"e"),
    "a memo that is not there": program(b"h\x09"),
    "a mark that is not there": program(b"}u"),
    "an empty stack": program(b"\x85"),
    "nothing": b"",
    "no end": b"\x80\x02]",
    "an unknown opcode": program(b"\xff"),
    "an unknown protocol": b"\x80\x09N.",
    "a frame that is cut off": program(b"\x95" + struct.pack("<Q", 1 << 60)),
    "a text that is cut off": program(b"X" + struct.pack("<I", 0xFFFFFFF0)),
    "a text of 2**63 bytes": program(b"\x8d" + struct.pack("<Q", 1 << 63)),
    "bytes of 2**63 bytes": program(b"\x8e" + struct.pack("<Q", 1 << 63)),
    "a bytearray of 2**63 bytes": program(b"\x96" + struct.pack("<Q", 1 << 63)),
    "a number of 2**31 bytes": program(b"\x8b\xff\xff\xff\x7f"),
    "a number of many digits": state(n=number(1 << (8 << 17))),
    "a name without an end": program(b"c" + b"a" * 5000),
    "a text that is no UTF-8": program(b"X\x01\x00\x00\x00\xff"),
    "two values": program(b"NN"),
    "deep nesting": program(b"]" * 5000, b"a" * 4999),
    "deep tuples": program(b")", b"\x85" * 100_000),
    "deep dicts": program(b"}", (text("a") + b"}") * 70, b"s" * 70),
    "a list that contains itself": program(b"]q\x00h\x00a"),
    "a list that contains itself often": program(b"]q\x00(" + b"h\x00" * 50 + b"e"),
    "a dict that contains itself": program(b"}q\x00", text("a"), b"h\x00s"),
    "a billion laughs": program(b"]q\x00(NNNNNNNNNNe", *(b"]q%c(" % n + b"h%c" % (n - 1) * 10 + b"e" for n in range(1, 30))),
    "laughing dicts": program(b"}q\x00", *map(laugh, range(1, 60))),
    "long names, many tensors": program(b"}", text("n" * 100_000), b"](", tensor(), b"q\x00", b"h\x00" * 50_000, b"es"),
    "long names, many numbers": program(b"}", text("n" * 100_000), b"](", b"K\x01" * 50_000, b"es"),
    "lists and nothing else": program(b"(", b"]" * 1_000_000, b"t"),
    "places in the memo and nothing else": program(b"N", b"\x94" * 1_000_000),
    "places in the memo, as many as there may be": program(text("x" * 1_400_000), b"\x94" * 700_000, b"N"),
    "a place in the memo far behind the others": program(b"Nr", struct.pack("<I", 1 << 31)),
    "marks and nothing else": program(b"(" * 1_000_000),
    "the same bytes again and again": program(text("x" * 100_000), b"q\x000](", COPY * 5000, b"e"),
    "the same path again and again": program(text("x" * 100_000), b"q\x000", glob("pathlib.PosixPath"), PARTS, b"R"),
    "the same set again and again": program(b"](", b"N" * 60_000, b"eq\x000](", COPY_SET * 3000, b"e"),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_a_pickle_that_lies_is_one_error_of_ours_and_costs_nothing(tmp_path: Path, data: bytes) -> None:
    path = archive(tmp_path / "m.pt", data)

    started = time.process_time()
    with pytest.raises(CheckpointError):
        loaded(path)
    assert time.process_time() - started < 2
    with cheap(20), pytest.raises(CheckpointError) as caught:  # the memory: a million steps are slow while it is traced
        loaded(path)

    assert type(caught.value) in (CorruptCheckpointError, UnsafeCheckpointError)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000


KEYS = {
    "tuples": numbers(1, 2),
    "deep tuples": b")" + b"\x85" * 50_000,
    "large integers": number((1 << 61) - 1 << 64),
    "complex numbers": glob("__builtin__.complex") + b"G" + bytes(8) + b"G" + bytes(8) + b"\x86R",
    "lists": b"]",
    "tensors": tensor(),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_keys_whose_hashes_a_file_could_choose_are_refused(tmp_path: Path, key: bytes) -> None:
    for data in (program(b"}", key, b"Ns"), program(glob("collections.OrderedDict"), b"](](", key, b"Nee\x85R")):
        with cheap(), pytest.raises(UnsafeCheckpointError, match="a dict with the key"):
            loaded(archive(tmp_path / "m.pt", data))


def zip_with(path: Path, members: list[tuple[str, bytes]]) -> bytes:
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members:
            target.writestr(name, data)
    return path.read_bytes()


GOOD = [("archive/data.pkl", state(w=tensor())), ("archive/data/0", W), ("archive/version", b"3")]
ZIPS: dict[str, Callable[[Path], bytes]] = {
    "a name twice": lambda path: zip_with(path, [*GOOD, ("archive/data/1", W)]).replace(b"archive/data/1", b"archive/data/0"),
    "two roots": lambda path: zip_with(path, [*GOOD, ("other/data.pkl", b"N.")]),
    "no pickle": lambda path: zip_with(path, GOOD[1:]),
    "an absolute name": lambda path: zip_with(path, [*GOOD, ("/etc/passwd", b"")]),
    "a name that leads out": lambda path: zip_with(path, [*GOOD, ("archive/../../x", b"")]),
    "a name with a drive": lambda path: zip_with(path, [*GOOD, ("c:/x", b"")]),
    "cut off": lambda path: zip_with(path, GOOD)[:-10],
    "no directory": lambda path: zip_with(path, GOOD)[:200],
    "an unknown byte order": lambda path: zip_with(path, [*GOOD, ("archive/byteorder", b"middle")]),
    "a wrong size": lambda path: changed(path, 24, "<I", 23),
    "a wrong stored size": lambda path: changed(path, 20, "<I", 23),
    "a size over 4 GiB": lambda path: changed(path, 20, "<II", 0xFFFFFFFF, 0xFFFFFFFF),
    "an offset elsewhere": lambda path: changed(path, 42, "<I", 1),
    "the offset of another": lambda path: changed(path, 42, "<I", 0),
    "an encrypted record": lambda path: changed(path, 8, "<H", 1),
    "an unknown method": lambda path: changed(path, 10, "<H", 99),
    "a pickle that is not what was written": lambda path: zip_with(path, GOOD).replace(b"_tensor_v2", b"_tensor_v3"),
}


def changed(path: Path, at: int, form: str, *values: int) -> bytes:
    """A number in the directory's entry of the storage."""
    data = bytearray(zip_with(path, GOOD))
    struct.pack_into(form, data, data.rindex(b"archive/data/0") - 46 + at, *values)
    return bytes(data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", ZIPS.values(), ids=ZIPS)
def test_an_archive_that_lies_is_one_error_of_ours(tmp_path: Path, make: Callable[[Path], bytes]) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(make(path))

    with cheap(), pytest.raises(CheckpointError) as caught:
        loaded(path)

    assert type(caught.value) in (CorruptCheckpointError, UnsafeCheckpointError)
    assert str(path) in str(caught.value)


def test_a_bomb_is_not_decompressed(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.pt", b"N" * (100 << 20), method=zipfile.ZIP_DEFLATED)

    with cheap(nbytes=8 << 20), pytest.raises(UnsafeCheckpointError, match="bomb"):
        loaded(path)


def test_a_pickle_that_somebody_compressed_takes_no_more_than_its_file_tells(tmp_path: Path) -> None:
    numbers = b"".join(b"K%c" % choice for choice in random.Random(1).randbytes(600_000))
    path = archive(tmp_path / "m.pt", program(b"](", numbers, b"e"), method=zipfile.ZIP_DEFLATED)

    with cheap(nbytes=4 << 20), pytest.raises(CorruptCheckpointError, match="it is compressed and has"):
        loaded(path)


def test_a_pickle_of_more_values_than_any_checkpoint_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MOST_VALUES", 1000)
    long = program(b"](", b"N" * 2000, b"e")

    with pytest.raises(CorruptCheckpointError, match="more than 1000 steps: keep long lists"):
        machine.Machine(long, allowed.find, allowed.find, Origin("m.pt", "m.pt")).run("it")
    assert machine.Machine(long, allowed.find, allowed.find, Origin("m.pt", "m.pt"), tensors=10).run("it") == [None] * 2000


def test_nothing_is_imported_by_the_names_in_a_file(tmp_path: Path) -> None:
    for name in ("antigravity.fly", "this.s", f"{types.__name__}.x", "torch._utils._rebuild_sparse_tensor", "turtledemo.x"):
        with pytest.raises(UnsafeCheckpointError):
            loaded(archive(tmp_path / "m.pt", program(glob(name))))

    assert {"antigravity", "this", "turtledemo"}.isdisjoint(sys.modules)


def test_changed_bytes_give_only_our_errors(tmp_path: Path) -> None:
    """1000 files, each with one to four bytes changed, half of them in the pickle."""
    turned = tensor(shape=(3, 2), strides=(1, 3))
    values = state(a=tensor(), b=turned, n=numbers(1, 2, 1 << 70), t=text("x"), d=b"}(" + text("k") + b"Nu")
    path = archive(tmp_path / "m.pt", values)
    good, choose = path.read_bytes(), random.Random(5)
    start = good.index(values)

    for turn in range(1000):
        bad = bytearray(good)
        for _ in range(choose.randint(1, 4)):
            at = choose.randrange(start, start + len(values)) if turn % 2 else choose.randrange(len(bad))
            bad[at] = choose.choice([choose.randrange(256), bad[at] ^ 1 << choose.randrange(8), 0xFF])
        if turn % 2:  # the record's checksum is no protection from who makes the file
            archive(path, bytes(bad[start : start + len(values)]))
        else:
            path.write_bytes(bad)
        with suppress(CheckpointError):
            loaded(path)
    assert MARK not in os.environ
