"""The order of what a copy from a GPU asks for. Without a GPU: a stand-in for torch writes down what it is asked."""

import gc
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from ckptmgr import cuda


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


def test_memory_that_cannot_be_pinned_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = torch_that_notes([])
    torch.cuda.check_error = mock.Mock(side_effect=RuntimeError("out of pinnable memory"))
    monkeypatch.setitem(sys.modules, "torch", torch)

    with pytest.raises(RuntimeError, match="pinnable"):
        cuda.copy(SimpleNamespace(device="cuda:0"), None, np.zeros(16, np.uint8))
