"""The order of what a copy from a GPU asks for. Without a GPU: a stand-in for torch writes down what it is asked."""

import gc
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from frameworks import torch

from ckptmgr import arrays, cuda
from ckptmgr.frameworks import TorchAdapter
from ckptmgr.spec import PackedArray, TensorSpec
from ckptmgr.transfer import slabs


def torch_that_notes(asked: list[str]) -> Any:
    def noting(name: str) -> Any:
        return lambda *arguments: asked.append(name)

    @contextmanager
    def stream(side: Any) -> Any:
        asked.append("on side")
        yield
        asked.append("on current")

    copied = SimpleNamespace(synchronize=noting("synchronize"))
    side = SimpleNamespace(wait_stream=noting("side waits for current"), record_event=lambda: asked.append("record") or copied)
    current = SimpleNamespace(wait_event=noting("current waits for copy"))
    host = SimpleNamespace(
        cudaHostRegister=lambda *arguments: asked.append("pin") or 0, cudaHostUnregister=lambda *arguments: asked.append("unpin")
    )
    api = SimpleNamespace(
        Stream=lambda device: side,
        current_stream=lambda device: current,
        stream=stream,
        cudart=lambda: host,
        check_error=lambda code: None,
    )
    return SimpleNamespace(cuda=api)


def test_the_copy_comes_between_what_was_and_what_will_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setitem(sys.modules, "torch", torch_that_notes(asked))
    cuda._side_stream.cache_clear()
    tensor = SimpleNamespace(device="cuda:0", record_stream=lambda side: asked.append("keep memory"))
    out = SimpleNamespace(copy_=lambda tensor, non_blocking: asked.append("copy"))
    memory = np.zeros(16, np.uint8)

    wait = cuda.copy(tensor, out, memory)

    order = ["pin", "side waits for current", "on side", "copy", "record", "on current", "keep memory", "current waits for copy"]
    assert asked == order
    wait()
    cuda.copy(tensor, out, memory)
    assert asked == [*order, "synchronize", *order[1:]]  # pinned once
    del memory
    gc.collect()
    assert asked[-1] == "unpin"
    cuda._side_stream.cache_clear()


def test_memory_is_pinned_as_a_whole_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    noting = torch_that_notes([])
    pinned = mock.Mock(return_value=0)
    noting.cuda.cudart = lambda: SimpleNamespace(cudaHostRegister=pinned, cudaHostUnregister=mock.Mock())
    monkeypatch.setitem(sys.modules, "torch", noting)
    cuda._side_stream.cache_clear()
    slab = slabs.raw(1 << 20)
    packed = PackedArray.wrap(slab[64:128], TensorSpec("packed_float4_e2m1fn", (128,)))
    tensor = SimpleNamespace(device="cuda:0", record_stream=lambda side: None)

    for array in (np.ndarray((4,), np.float32, slab, 0), packed):
        cuda.copy(tensor, SimpleNamespace(copy_=lambda tensor, non_blocking: None), array)

    pinned.assert_called_once_with(slab.__array_interface__["data"][0], slab.nbytes, 0)
    cuda._side_stream.cache_clear()


@pytest.mark.parametrize("kind", ["complex64", "bfloat16", "uint4", "float4_e2m1fn_x2"])
def test_what_is_copied_beside_needs_nothing_done_to_it_afterwards(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if not hasattr(torch, kind):
        pytest.skip(f"this torch has no {kind}")
    made = {"complex64": lambda: torch.tensor([[1 + 2j, 3 - 4j]]).conj(), "bfloat16": lambda: torch.tensor([[1.5]]).bfloat16()}
    tensor = made.get(kind, lambda: torch.tensor([[1, 2]], dtype=torch.uint8).view(getattr(torch, kind)))()
    spec = arrays.describe(tensor)
    assert spec is not None
    out = PackedArray.wrap(np.zeros(spec.nbytes, np.uint8), spec) if spec.is_packed else np.zeros(spec.shape, spec.numpy)
    asked: list[Any] = []

    def copied(tensor: Any, into: Any, array: Any) -> None:
        assert not tensor.is_conj()
        assert tensor.dtype == into.dtype
        into.copy_(tensor)
        asked.append(array)

    monkeypatch.setattr(cuda, "copy", copied)
    TorchAdapter().stage(SimpleNamespace(is_cuda=True, dtype=tensor.dtype, detach=tensor.detach), out)

    assert asked[0] is out
    assert out.tobytes() == arrays.host_array(tensor).tobytes()


def test_memory_that_cannot_be_pinned_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    noting = torch_that_notes([])
    noting.cuda.check_error = mock.Mock(side_effect=RuntimeError("out of pinnable memory"))
    monkeypatch.setitem(sys.modules, "torch", noting)

    with pytest.raises(RuntimeError, match="pinnable"):
        cuda.copy(SimpleNamespace(device="cuda:0"), None, np.zeros(16, np.uint8))
