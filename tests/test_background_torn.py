"""`BackgroundSaver` while a loop changes everything: each step holds the values of one moment."""

import numpy as np
import pytest
from frameworks import torch
from holding import ThrottledStore
from stores import MemoryStore

from ckptmgr import BackgroundSaver, CheckpointManager, KeepLast
from ckptmgr.storage import Folder


@pytest.mark.slow
@pytest.mark.parametrize(("on_busy", "wanted"), [("wait", 500), ("skip", 50), ("replace", 50)])
def test_no_step_is_torn_by_a_loop_that_adds_1_everywhere(monkeypatch: pytest.MonkeyPatch, on_busy: str, wanted: int) -> None:
    store = ThrottledStore(MemoryStore(), seconds=0.0005)
    monkeypatch.setattr("ckptmgr.manager.open_folder", lambda *arguments: Folder(store))
    manager = CheckpointManager("anywhere", retention=KeepLast(20))
    wide = np.zeros((64, 128))
    model = torch.nn.Linear(64, 64, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.data.zero_()
    view = wide[:, ::2]
    view.flags.writeable = False
    state = {
        "large": np.zeros(1 << 15),
        "view": view,
        "fortran": np.zeros((50, 30), np.int32, order="F"),
        "swapped": np.zeros(500, ">f4"),
        "scalar": np.zeros(()),
        "small": [np.zeros(3, np.int16) for _ in range(50)],
        "raw": np.frombuffer(raw := bytearray(8 * 300), np.int64),
        "torch": torch.zeros(100, 100),
        "half": torch.zeros(3000, dtype=torch.bfloat16).reshape(100, 30).t(),
        "model": model,
        "rank": 0,
    }
    checked: set[int] = set()

    def check() -> None:
        for info in manager.steps():
            if info.step not in checked:
                checked.add(info.step)
                assert values(manager.restore(info.step).state) == {float(info.step % 128)}

    with BackgroundSaver(manager, on_busy=on_busy) as saver:  # type: ignore[arg-type]
        step = 0
        while len(checked) < wanted:
            step += 1
            add(state, wide, raw, step % 128)
            saver.save(step, state)
            if step % 20 == 0:
                saver.wait()
                check()

    assert step == wanted or on_busy != "wait"


def add(state: dict, wide: np.ndarray, raw: bytearray, value: int) -> None:
    """One more everywhere, in place; back to 0 where bfloat16 could not count any further."""
    more = 1 if value else -127
    wide += more
    np.frombuffer(raw, np.int64)[...] += more
    state["rank"] = value
    for leaf in (state["large"], state["fortran"], state["swapped"], state["scalar"], *state["small"]):
        leaf += more
    for tensor in (state["torch"], state["half"], *(parameter.data for parameter in state["model"].parameters())):
        tensor += more


def values(found: dict) -> set[float]:
    """All values that stand anywhere in a restored state."""
    leaves = [*found.pop("small"), *found.pop("model").values(), *found.values()]
    return {value for leaf in leaves for value in np.unique(np.asarray(leaf).astype(np.float64)).tolist()}
