"""Configs: JSON that nobody vouches for, what in it is code, and what the classes in it call their variables."""

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bounds import cheap
from keras_files import GOLDEN, archive, h5, numbered, opened

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_hdf5.keras_classes import class_of, layers_of, own_name, slots, snake_case, units
from ckptmgr_hdf5.keras_config import has_unsafe_config, parse
from ckptmgr_hdf5.origin import Origin

ORIGIN = Origin("m.keras", "/run/m.keras")


def config_of(name: str) -> str:
    with zipfile.ZipFile(GOLDEN / name) as source:
        return source.read("config.json").decode()


def test_nan_and_infinity_are_read_as_python_writes_them(tmp_path: Path) -> None:
    text = '{"class_name": "Sequential", "config": {"rate": NaN, "limit": -Infinity}}'
    path = archive(tmp_path / "x.keras", text, lambda file: numbered(file, {"": 1}))

    assert opened(path).metadata["config"] == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "the key 'c' is there twice"),
        ("[" * 201 + "]" * 201, "nest 201 deep"),
        ('{"a":' * 100_000, "nest 100000 deep"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[1] 2", "Extra data"),
        ("[" + "[],[" * 150_000 + "]" * 150_001, "more than 250000 lists and objects"),
        ('["\\ud800"]', "surrogates not allowed"),
        ("9" * 5000, "integer string conversion"),
    ],
)
def test_what_is_no_plain_json_is_refused(text: str, problem: str) -> None:
    with cheap(), pytest.raises(CorruptCheckpointError) as caught:
        parse(text, ORIGIN, "config.json")
    assert problem in str(caught.value)
    assert "'/run/m.keras' is not a valid HDF5 file: 'config.json': it is no JSON" in str(caught.value)


def test_brackets_in_strings_do_not_count() -> None:
    assert parse('{"a\\"[": "' + "[" * 1000 + '\\\\"}', ORIGIN, "x") == {'a"[': "[" * 1000 + "\\"}


def test_a_text_over_the_limits_is_carried_without_names(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        numbered(file, {"layers/dense": 1})

    config = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {"words": "x" * (5 << 20)}}]}}
    path = archive(tmp_path / "x.keras", config, fill)

    found = opened(path)

    assert [*found.tensors] == ["layers/dense/vars/0"]
    assert len(str(found.metadata["config"])) > 5 << 20


def test_a_broken_config_names_file_and_member(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.keras", '{"a": 1', lambda file: numbered(file, {"": 1}))

    with pytest.raises(CorruptCheckpointError, match=r"'config.json': it is no JSON") as caught:
        opened(path)
    assert (caught.value.file, caught.value.tensor) == ("x.keras", "config.json")


def test_a_config_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.keras", "{}", lambda file: numbered(file, {"": 1}))
    path.write_bytes(path.read_bytes().replace(b'"3.15.1"', b'"3.15.\xff"'))

    with pytest.raises(CorruptCheckpointError, match=r"metadata.json"):
        opened(path)


@pytest.mark.parametrize("name", [file.name for file in GOLDEN.glob("*.keras")])
def test_of_the_models_by_real_keras_only_the_one_with_a_lambda_is_unsafe(name: str) -> None:
    assert has_unsafe_config(config_of(name)) is (name == "k3_lambda.keras")


@pytest.mark.parametrize(("name", "expected"), [("k3_lambda.h5", True), ("k3_functional.h5", False), ("k2_functional.h5", False)])
def test_legacy_configs_are_judged_as_well(name: str, expected: bool) -> None:
    assert has_unsafe_config(str(opened(GOLDEN / name).metadata["model_config"])) is expected


@pytest.mark.parametrize(
    "config",
    [
        {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"},
        {"module": "keras.utils", "class_name": "function", "config": "get_file"},
        {"module": "keras.src.utils.file_utils", "class_name": "get_file", "config": {}},
        {"module": "keras.saving", "class_name": "x"},
        {"module": "kerasx.layers", "class_name": "Dense"},
        {"module": "my_layers", "class_name": "Dense", "registered_name": "Dense", "config": {}},
        {"module": 3, "class_name": "Dense"},
        {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}},
        {"class_name": "Lambda", "config": {"function": ["4wEAAAA=", None, None], "function_type": "lambda"}},
        {"class_name": "os.system"},
        {"class_name": ["Lambda"]},
        {"class_name": "TFOpLambda", "config": {"function": "io.write_file"}},
        {"class_name": "TFOpLambda", "config": None},
    ],
)
def test_code_and_foreign_modules_are_unsafe_wherever_they_stand(config: object) -> None:
    assert has_unsafe_config(json.dumps(config))
    assert has_unsafe_config(json.dumps({"class_name": "Sequential", "config": {"layers": [{"a": [1, {"b": config}]}]}}))


@pytest.mark.parametrize(
    "config",
    [
        {"module": "keras.layers", "class_name": "Dense", "config": {"name": "Lambda"}, "registered_name": None},
        {"module": "keras.src.models.functional", "class_name": "Functional", "config": {}},
        {"module": "tf_keras.src.engine.functional", "class_name": "Functional", "config": {}},
        {"module": None, "class_name": "Scale", "registered_name": "mine>Scale", "config": {}},
        {"module": "builtins", "class_name": "function", "config": "my_loss", "registered_name": "function"},
        {"class_name": "Custom>Adam", "config": {}},
        {"class_name": "TFOpLambda", "config": {"function": "__operators__.add"}},
        {"module": "keras.optimizers.schedules", "class_name": "CosineDecay", "config": {}},
        {"module": "os"},
    ],
)
def test_what_only_names_classes_of_keras_or_registered_ones_is_safe(config: object) -> None:
    assert not has_unsafe_config(json.dumps(config))


@pytest.mark.parametrize("text", ["{", '{"a": 1, "a": 1}', "[" * 100_000, " " * (5 << 20) + "{}", '"\ud800"'])
def test_what_cannot_be_read_counts_as_unsafe(text: str) -> None:
    assert has_unsafe_config(text)


def test_code_in_a_config_is_never_run(tmp_path: Path) -> None:
    before = time.perf_counter()
    config = {"class_name": "__lambda__", "module": "time", "config": {"code": "sleep(100)"}}

    found = opened(archive(tmp_path / "x.keras", config, lambda file: numbered(file, {"": 1})))

    assert found.metadata["config"] == json.dumps(config)
    assert time.perf_counter() - before < 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BatchNormalization", "batch_normalization"),
        ("Conv2D", "conv2d"),
        ("LSTM", "lstm"),
        ("RMSprop", "rm_sprop"),
        ("ScaleShift", "scale_shift"),
        ("PReLU", "p_re_lu"),
        ("Conv1DTranspose", "conv1d_transpose"),
        ("my-Class 2", "my_class2"),
    ],
)
def test_names_of_classes_are_written_as_keras_does(name: str, expected: str) -> None:
    assert snake_case(name) == expected


@pytest.mark.parametrize("config", [None, 3, [], {}, {"class_name": 3}, {"class_name": "Dense", "config": 3, "module": 4}])
def test_what_is_no_serialized_object_tells_nothing(config: object) -> None:
    assert (class_of(config), own_name(config), layers_of(config), slots(config)) == ("", "", None, None)
    assert [(unit.leaves, unit.trained) for unit in units(config)] == [(None, None)]


def test_a_sequential_model_of_keras_1_is_a_list_of_layers() -> None:
    config = {"class_name": "Sequential", "config": [{"class_name": "Dense", "config": {"name": "d", "use_bias": False}}]}

    (model, layer) = units(config)

    assert (model.stored, model.leaves) == ((), ())
    assert (layer.stored, layer.path, layer.leaves) == (("layers", "dense"), ("layers", "d"), ("kernel",))


def test_a_frozen_model_has_no_trained_variables() -> None:
    layers = [{"class_name": "Dense", "config": {}}, {"class_name": "Mine", "config": {}}]

    found = units({"class_name": "Sequential", "config": {"trainable": False, "layers": layers}})

    assert [unit.trained for unit in found] == [0, 0, 0]


def test_deeply_nested_models_are_listed_at_once(tmp_path: Path) -> None:
    config: dict[str, Any] = {"class_name": "Dense", "config": {}}
    for _ in range(60):
        config = {"class_name": "Sequential", "config": {"layers": [config]}}

    def fill(file: Any) -> None:
        numbered(file, {"/".join(["layers/sequential"] * 59 + ["layers/dense"]): 2})
        file.attrs["ignored"] = 1

    with cheap():
        names = [*opened(archive(tmp_path / "x.keras", config, fill)).tensors]
    assert names == ["/".join(["layers/sequential"] * 59 + ["layers/dense", leaf]) for leaf in ("kernel", "bias")]


def test_a_model_config_of_three_megabytes_is_carried(tmp_path: Path) -> None:
    text = json.dumps({"class_name": "Sequential", "config": {"layers": [], "words": ["word"] * 400_000}})

    def fill(file: Any) -> None:
        file.attrs["model_config"] = text
        file.create_group("model_weights").attrs["layer_names"] = []

    assert opened(h5(tmp_path / "x.h5", fill)).metadata["model_config"] == text
