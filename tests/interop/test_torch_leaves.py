"""Leaves, modules and optimizers of the real torch."""

import copy
import sys
from typing import Any

import numpy as np
import pytest
import states
from frameworks import torch

from ckptmgr import arrays, saving, tree
from ckptmgr.box import Box
from ckptmgr.errors import StateMismatchError, UnsupportedLeafError
from ckptmgr.spec import TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support")

QUANTIZED = {"torch.qint8", "torch.qint32", "torch.quint8", "torch.quint4x2", "torch.quint2x4"}
REFUSED = {f"torch.{sign}int{size}" for sign in ("", "u") for size in (3, 5, 6, 7)}
REFUSED |= {"torch.bits8", "torch.bits16", "torch.bits1x8", "torch.bits2x4", "torch.bits4x2"}
HELD = [f"torch.{name}" for name in ("bool", "bfloat16", "float16", "float32", "float64", "complex32", "complex64", "complex128")]
HELD += [f"torch.{sign}int{size}" for sign in ("", "u") for size in (1, 2, 4, 8, 16, 32, 64)]
HELD += [f"torch.float8_{name}" for name in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")] + ["torch.float4_e2m1fn_x2"]


def tensor(dtype: str, shape: tuple[int, ...] = (3, 4), seed: int = 1) -> Any:
    """A tensor of random bits."""
    kind = getattr(torch, dtype.removeprefix("torch."))
    if 0 in shape:
        return torch.empty(shape, dtype=kind)
    raw = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * kind.itemsize, np.uint8)
    return torch.from_numpy(raw & 1 if kind == torch.bool else raw).view(kind).reshape(shape)


def bits(value: Any) -> bytes:
    value = value.detach()
    if value.dtype.itemsize == 16:
        value = torch.view_as_real(value)
    return value.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.dtype.itemsize]).numpy().tobytes()


def module() -> Any:
    made = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 5))
    made[3].weight = made[0].weight
    return made


def trained(steps: int = 2) -> tuple[Any, Any]:
    torch.manual_seed(1)
    model = module()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.arange(5)).pow(2).mean().backward()
        optimizer.step()
    return model, optimizer


def test_every_dtype_of_torch_is_held_or_refused() -> None:
    every = {str(getattr(torch, name)) for name in dir(sys.modules["torch"]) if isinstance(getattr(torch, name), torch.dtype)}

    assert every == {*HELD} | QUANTIZED | REFUSED


@pytest.mark.parametrize("dtype", HELD)
def test_tensor_of_every_dtype_is_seen_without_a_copy_and_filled_in_place(dtype: str) -> None:
    one, other = tensor(dtype), tensor(dtype, seed=2)

    host = arrays.host_array(one)
    filled = states.restored({"w": one}, {"w": other})["w"]

    assert host.__array_interface__["data"][0] == one.data_ptr()
    assert filled is other
    assert filled.dtype == one.dtype
    assert bits(filled) == bits(one)


@pytest.mark.parametrize("dtype", HELD)
def test_tensor_of_every_dtype_can_be_made_anew(dtype: str) -> None:
    one = tensor(dtype)

    made = arrays.make("torch", arrays.host_array(one))

    assert (made.dtype, made.shape, bits(made)) == (one.dtype, one.shape, bits(one))


@pytest.mark.parametrize("dtype", sorted(set(HELD) - {"torch.float4_e2m1fn_x2"}))
def test_tensors_of_no_dimensions_without_elements_and_out_of_order(dtype: str) -> None:
    state = {"0-d": tensor(dtype, ()), "empty": tensor(dtype, (0, 3)), "turned": tensor(dtype).t(), "part": tensor(dtype)[:, 1:3]}
    into = {name: torch.empty_like(value) for name, value in state.items()}
    into["part"] = tensor(dtype, seed=3)[:, ::2]

    restored = states.restored(state, into)

    assert all(restored[name] is into[name] for name in state)
    assert all(bits(restored[name]) == bits(state[name]) for name in state)
    assert restored["part"].stride() == (4, 2)


@pytest.mark.parametrize("dtype", [dtype for dtype in HELD if dtype != "torch.float4_e2m1fn_x2"])  # packed: no slices
def test_slices_of_tensors_are_views(dtype: str) -> None:
    one = tensor(dtype)

    part = arrays.host_array(one, Box((1, 1), (3, 4)))

    assert np.shares_memory(part, arrays.host_array(one))
    assert part.tobytes() == bits(one[1:3, 1:4])


def test_packed_elements_have_their_logical_shape() -> None:
    assert arrays.describe(tensor("torch.float4_e2m1fn_x2")) == TensorSpec("packed_float4_e2m1fn", (3, 8))


def test_lazily_conjugated_and_negated_tensors_are_stored_as_what_they_mean() -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    state = {"conj": value.conj(), "neg": value.conj().imag}
    into = {"conj": torch.zeros(2, dtype=torch.complex64).conj(), "neg": torch.zeros(2)}

    restored = states.restored(state, into)

    assert states.restored(state)["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert states.restored(state)["neg"].tolist() == [-2.0, 4.0]
    assert restored["conj"] is into["conj"]
    assert restored["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert restored["neg"].tolist() == [-2.0, 4.0]


def test_tensors_that_require_gradients_stay_the_same_objects() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    inner = weight * 2

    restored = states.restored({"w": torch.ones(2), "inner": torch.full((2,), 3.0)}, {"w": weight, "inner": inner})

    assert restored["w"] is weight
    assert weight.requires_grad
    assert weight.tolist() == [1, 1]
    assert inner.tolist() == [3, 3]


def test_expanded_tensor_is_replaced_because_its_elements_share_memory() -> None:
    into = torch.zeros(1, 3).expand(2, 3)

    restored = states.restored(torch.arange(6.0).reshape(2, 3), into)

    assert restored.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert into.sum() == 0


def lazy() -> Any:
    return torch.nn.LazyLinear(3).weight


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse_coo"),
        (lambda: torch.eye(2).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.zeros(2).to_mkldnn(), "mkldnn"),
        (lambda: torch.zeros(2, device="meta"), "meta device"),
        (lambda: torch._empty_affine_quantized([2], scale=1.0, zero_point=0, dtype=torch.qint8), "qint8"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged), "NestedTensor"),
        (lazy, "uninitialized"),
        *[(lambda dtype=dtype: tensor(dtype), "no counterpart") for dtype in sorted(REFUSED)],
        (lambda: tensor("torch.float4_e2m1fn_x2", ()), "no counterpart"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's own, on how these tensors are made
def test_tensors_without_plain_values_are_refused_by_their_path(make: Any, reason: str) -> None:
    with pytest.raises(UnsupportedLeafError, match=f"^'a/w' .*{reason}") as info:
        tree.flatten({"a": {"w": make()}})

    assert info.value.path == "a/w"


def test_tied_weights_are_stored_once_and_fill_both() -> None:
    model, into = module(), module()

    flat = tree.flatten(model)
    states.restored(model, into)

    assert flat.aliases == {"3.weight": "0.weight"}
    assert torch.equal(into[0].weight, model[0].weight)
    assert into[3].weight is into[0].weight


def test_module_and_optimizer_go_on_bit_exactly() -> None:
    model, optimizer = trained()
    fresh, fresh_optimizer = trained(steps=0)
    torch.nn.init.zeros_(fresh[1].weight)
    pointers = [parameter.data_ptr() for parameter in fresh.parameters()]

    restored = states.restored({"model": model, "optimizer": optimizer}, {"model": fresh, "optimizer": fresh_optimizer})
    for each, its in ((model, optimizer), (fresh, fresh_optimizer)):
        its.zero_grad()
        each(torch.arange(5)).pow(2).mean().backward()
        its.step()

    assert restored["model"] is fresh
    assert [parameter.data_ptr() for parameter in fresh.parameters()] == pointers
    for name, value in model.state_dict().items():
        assert bits(fresh.state_dict()[name]) == bits(value)
    one, other = optimizer.state_dict(), fresh_optimizer.state_dict()
    assert one["param_groups"] == other["param_groups"]
    assert all(
        torch.equal(one["state"][key][name], other["state"][key][name]) for key in one["state"] for name in one["state"][key]
    )


def test_running_optimizer_is_set_back_in_its_own_memory() -> None:
    model, optimizer = trained()
    before = copy.deepcopy(optimizer.state_dict())
    source, skeleton = states.saved({"model": model, "optimizer": optimizer})
    model(torch.arange(5)).pow(2).mean().backward()
    optimizer.step()

    states.restoring.restore(source, skeleton, into={"model": model, "optimizer": optimizer})

    after = optimizer.state_dict()
    assert after["state"].keys() == before["state"].keys()
    assert all(torch.equal(after["state"][key]["exp_avg"], before["state"][key]["exp_avg"]) for key in before["state"])


def test_schedulers_and_scalers_come_back() -> None:
    def parts() -> dict[str, Any]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        step = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3, 5])
        return {"optimizer": optimizer, "step": step, "plateau": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)}

    state, into = parts(), parts()
    for _ in range(2):
        state["optimizer"].step()
        state["step"].step()
        state["plateau"].step(0.5)

    states.restored(state, into)

    assert into["step"].state_dict() == state["step"].state_dict()
    assert into["plateau"].state_dict() == state["plateau"].state_dict()
    assert into["optimizer"].param_groups[0]["lr"] == state["optimizer"].param_groups[0]["lr"]


def test_module_of_another_shape_is_refused_with_every_difference() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    into = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 1), torch.nn.Linear(1, 1))
    before = copy.deepcopy(into.state_dict())

    with pytest.raises(StateMismatchError) as info:
        states.restored({"model": model}, {"model": into})

    assert info.value.missing == ("model/2.weight", "model/2.bias")
    assert [name for name, _, _ in info.value.report.mismatched] == ["model/0.weight", "model/0.bias", "model/1.weight"]
    assert all(torch.equal(value, before[name]) for name, value in into.state_dict().items())


def test_module_that_loses_a_layer_is_told_what_it_would_drop() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))

    with pytest.raises(StateMismatchError) as info:
        states.restored(model, torch.nn.Sequential(torch.nn.Linear(2, 3)))

    assert info.value.unexpected == ("1.weight", "1.bias")


def test_module_with_more_than_tensors_is_told_to_load() -> None:
    class Counting(torch.nn.Module):
        count = 0

        def get_extra_state(self) -> Any:
            return {"count": self.count}

        def set_extra_state(self, state: Any) -> None:
            self.count = state["count"]

    model, into = Counting(), Counting()
    model.count = 7

    states.restored(model, into)

    assert into.count == 7


def test_hooks_on_loading_are_run() -> None:
    into = torch.nn.Linear(2, 2)
    seen: list[Any] = []
    into.register_load_state_dict_post_hook(lambda module, keys: seen.append(keys))

    states.restored(torch.nn.Linear(2, 2), into)

    assert len(seen) == 1


def test_plain_module_is_filled_without_a_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    into = module()
    monkeypatch.setattr(torch.nn.Parameter, "copy_", None)

    states.restored(module(), into)


def test_compiled_module_is_reached_by_a_rename_rule() -> None:
    model, into = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    prefixed = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}

    states.restored({"model": prefixed}, {"model": into}, rename=[("model/_orig_mod.", "model/")])

    assert torch.equal(into.weight, model.weight)


def test_foreign_file_of_a_module_fills_it_by_its_dotted_names() -> None:
    model, into = module(), module()
    source, _ = states.saved({f"net.{name}": value for name, value in model.state_dict().items()})

    states.restoring.restore(source, None, into={"net": into})

    assert all(torch.equal(value, into.state_dict()[name]) for name, value in model.state_dict().items())


def test_foreign_file_with_one_of_two_tied_names_fills_both() -> None:
    model, into = module(), module()
    names = dict(model.state_dict())
    del names["3.weight"]
    source, _ = states.saved(names)

    _, report = states.restoring.restore(source, None, into=into)

    assert report.is_exact
    assert torch.equal(into[3].weight, model[0].weight)


def test_generator_is_set_last_and_comes_back_without_a_template() -> None:
    generator, into = torch.Generator().manual_seed(3), torch.Generator()
    torch.rand(5, generator=generator)
    state = {"generator": generator}

    again = states.restored(state)["generator"]
    filled = states.restored(state, {"generator": into})["generator"]

    assert filled is into
    expected = torch.rand(3, generator=generator).tolist()
    assert torch.rand(3, generator=again).tolist() == expected
    assert torch.rand(3, generator=into).tolist() == expected


def test_cast_fills_a_module_of_another_precision_in_place() -> None:
    model, into = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    weight = into.weight

    with pytest.raises(StateMismatchError):
        states.restored(model, into)
    states.restored(model, into, cast="same_kind")

    assert into.weight is weight
    assert torch.equal(into.weight, model.weight.to(torch.bfloat16))


def test_a_loss_with_a_gradient_is_a_metric_without_a_warning():
    loss = torch.tensor([2.0], requires_grad=True).mean()

    assert saving.numbers({"loss": loss, "bf16": loss.bfloat16()}) == {"loss": 2.0, "bf16": 2.0}
    with pytest.raises(TypeError, match="'loss' must be a number"):
        saving.numbers({"loss": torch.zeros(2)})
