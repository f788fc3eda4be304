"""New weights in a whole-model file: Keras loads them, and everything else as it was."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras, tf_keras
from keras_forms import GOLDEN, planned, saved, source
from keras_golden_models import load, optimizer_variables

from ckptmgr import transfer
from ckptmgr.backend import tensor_spec
from ckptmgr.memory import MemorySource
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.swapping import _Overlaid as Overlaid
from ckptmgr_hdf5.keras_writing import Form

CASES = [("k2_tutorial.h5", "keras-legacy"), ("k2_functional.keras", "keras"), ("k3_functional.keras", "keras")]


def swapped(folder: Path, name: str, form: Form, state: dict[str, np.ndarray[Any, Any]]) -> Path:
    """A copy of the golden file in which tensors of the state take the place of its own."""
    new = MemorySource(state, {each: tensor_spec(array.dtype, array.shape) for each, array in state.items()})
    with source(GOLDEN / name) as template:
        both = Overlaid(template, new)
        every = {each: np.empty(spec.shape, spec.numpy) for each, spec in both.specs.items()}
        layout = planned(every, form, template=template)
        transfer.write(Folder(PosixStore(folder)), layout, both)
    return folder / layout.files[-1].name


def kernels(name: str) -> dict[str, np.ndarray[Any, Any]]:
    held = saved(GOLDEN / name).tensors
    return {each: array * 2 for each, array in held.items() if each.startswith("layers/") and each.endswith("/kernel")}


@pytest.mark.parametrize(("name", "form"), CASES)
def test_only_the_weights_that_are_given_change(tmp_path: Path, name: str, form: Form) -> None:
    before, new = saved(GOLDEN / name), kernels(name)

    after = saved(swapped(tmp_path, name, form, new))

    assert after.metadata == before.metadata
    assert list(after.tensors) == list(before.tensors)
    expected = {**before.tensors, **new}
    assert all(after.tensors[each].tobytes() == expected[each].tobytes() for each in expected)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_keras_loads_the_new_weights_beside_the_old_optimizer(tmp_path: Path, name: str, form: Form) -> None:
    lib = tf_keras if name.startswith("k2") else keras
    new = kernels(name)

    ours, theirs = (load(lib, path) for path in (swapped(tmp_path, name, form, new), GOLDEN / name))

    changed = {array.tobytes() for array in new.values()}
    assert {np.asarray(weight).tobytes() for weight in ours.weights} >= changed
    slots = [[np.asarray(each).tobytes() for each in optimizer_variables(model)] for model in (ours, theirs)]
    assert slots[0] == slots[1]


def test_texts_of_the_archive_stay_as_they_are_byte_for_byte(tmp_path: Path) -> None:
    name = "k3_functional.keras"

    path = swapped(tmp_path, name, "keras", kernels(name))

    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(GOLDEN / name) as theirs:
        for member in ("metadata.json", "config.json"):
            assert ours.read(member) == theirs.read(member)
