"""Calls that once passed the contract although they do not fit, and calls that it once refused wrongly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import intarsia
from intarsia.runtime.memory import overlap


def compiled(model: Any, *args: Any, **options: Any) -> Any:
    return intarsia.compile(model, args, compilers=["eager"], **options)


def refused(call: Callable[..., Any], *args: Any, match: str = "", **kwargs: Any) -> None:
    for _ in range(2):
        with pytest.raises(intarsia.ContractError, match=match):
            call(*args, **kwargs)


# -- Python values


def stacked(d: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(d.values()))


def joined(**kw: Tensor) -> Tensor:
    return torch.cat(list(kw.values()))


def test_the_order_of_a_dicts_keys_is_compared() -> None:
    call = compiled(stacked, {"a": torch.ones(1), "b": torch.zeros(1)})
    assert call({"a": torch.ones(1), "b": torch.zeros(1)}).tolist() == [[1.0], [0.0]]
    refused(call, {"b": torch.zeros(1), "a": torch.ones(1)}, match="d: expected the keys a, b")


def test_the_order_of_keyword_arguments_is_compared() -> None:
    call = intarsia.compile(
        joined, kwargs={"a": torch.ones(1), "b": torch.zeros(1)}, compilers=["eager"]
    )
    assert call(a=torch.ones(1), b=torch.zeros(1)).tolist() == [1.0, 0.0]
    refused(call, b=torch.zeros(1), a=torch.ones(1), match="kw: expected the keys a, b")


def test_a_tuple_is_no_list() -> None:
    def function(x: Any) -> Tensor:
        return x[0] * 2 if isinstance(x, tuple) else x[0] * 3  # type: ignore[no-any-return]

    call = compiled(function, (torch.ones(1),))
    assert call((torch.ones(1),)).item() == 2
    refused(call, [torch.ones(1)], match="x: expected a tuple, got a list")


def test_an_int_is_no_float_and_signs_of_zero_differ() -> None:
    def function(x: Tensor, s: float = 2.0) -> Tensor:
        return x * s

    x = torch.ones(2, dtype=torch.int64)
    call = compiled(function, x, 2.0)
    assert call(x).dtype == call(x, 2.0).dtype == torch.float32
    refused(call, x, 2, match="s: expected 2.0, got 2")
    zero = compiled(function, torch.ones(2), 0.0)
    assert zero(torch.ones(2), 0.0).tolist() == [0.0, 0.0]
    refused(zero, torch.ones(2), -0.0, match="s: expected 0.0, got -0.0")
    nan = compiled(function, torch.ones(2), float("nan"))
    assert nan(torch.ones(2), -float("nan")).isnan().all()
    refused(nan, torch.ones(2), 1.0, match="s: expected nan, got 1.0")
    infinite = compiled(function, torch.ones(2), float("inf"))
    assert infinite(torch.ones(2), float("inf")).isinf().all()


def test_a_set_is_compared_as_it_was() -> None:
    def function(x: Tensor, s: Any) -> Tensor:
        return x * 2 if len(s) == 1 else x

    values = {1}
    call = compiled(function, torch.ones(1), values)
    assert call(torch.ones(1), {1}).item() == 2
    values.clear()
    refused(call, torch.ones(1), values, match="s: expected")


def test_a_numpy_argument() -> None:
    numpy = pytest.importorskip("numpy")

    def function(x: Tensor, a: Any) -> Tensor:
        return x * torch.from_numpy(a)

    call = compiled(function, torch.ones(2), numpy.ones(2))
    assert call(torch.ones(2), numpy.ones(2)).tolist() == [1.0, 1.0]
    refused(call, torch.ones(2), numpy.zeros(2), match="a: expected")
    refused(call, torch.ones(2), numpy.ones(3), match="a: expected")
    refused(call, torch.ones(2), 1.0, match="a: expected")


class Holder:
    """An argument that is an object of the user."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def scaled(self) -> Tensor:
        return self.x * 2


def asked(holder: Holder, y: Tensor) -> Tensor:
    return holder.scaled() * getattr(holder, "factor", 3.0) + y


def test_an_attribute_that_an_argument_had_not() -> None:
    x = torch.randn(3)
    holder = Holder(x)
    net = compiled(asked, holder, x)
    torch.testing.assert_close(net(holder, x), asked(holder, x))
    holder.factor = 7.0  # type: ignore[attr-defined]
    refused(net, holder, x, match="expected no attribute 'factor'")
    del holder.factor  # type: ignore[attr-defined]
    torch.testing.assert_close(net(holder, x), asked(holder, x))


def test_a_method_that_an_argument_got_of_its_own() -> None:
    x = torch.randn(3)
    holder = Holder(x)
    net = compiled(asked, holder, x)
    holder.scaled = lambda: x * 5  # type: ignore[method-assign]
    refused(net, holder, x, match="expected no own attribute 'scaled'")


def test_an_attribute_that_an_argument_has_no_more() -> None:
    x = torch.randn(3)

    def doubled(holder: Holder) -> Tensor:
        return holder.x * 2 if hasattr(holder, "flag") else holder.x

    holder = Holder(x)
    holder.flag = object()  # type: ignore[attr-defined]
    net = compiled(doubled, holder)
    torch.testing.assert_close(net(holder), x * 2)
    del holder.flag  # type: ignore[attr-defined]
    refused(net, holder, match="expected attribute 'flag', got no attribute 'flag'")


def test_parameters_with_names_of_builtins() -> None:
    def function(
        x: Tensor, type: str = "a", len: int = 3, isinstance: Any = (1,), max: Any = None
    ) -> Tensor:
        return x * len

    call = compiled(function, torch.ones(1), "a", 3, (1,))
    assert call(torch.ones(1), "a", 3, (1,)).item() == 3
    refused(call, torch.ones(1), "b", 3, (1,), match="type: expected 'a'")
    refused(call, torch.ones(1), "a", 4, (1,), match="len: expected 3")


@pytest.mark.parametrize("name", ["batch-size", "2n", "lambda", ""])
def test_a_symbol_is_a_python_identifier(name: str) -> None:
    with pytest.raises(intarsia.ConfigError, match="identifier"):
        compiled(plus, torch.ones(3, 4), dynamic={"x": {0: name}})


# -- what tracing froze


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0
        self.function: Any = torch.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) * self.scale  # type: ignore[no-any-return]


def test_a_frozen_value_that_becomes_nan_has_changed() -> None:
    model = Scaled()
    call = compiled(model, torch.ones(2), check="values")
    call(torch.ones(2))
    model.scale = float("nan")
    refused(call, torch.ones(2), match="self.scale was 2.0")
    again = compiled(model, torch.ones(2), check="values")
    assert again(torch.ones(2)).isnan().all()


def doubled(x: Tensor) -> Tensor:
    return x * 2


@pytest.mark.parametrize(
    "pair",
    [
        (torch.relu, torch.sigmoid),
        (doubled, nn.functional.relu),
        (lambda x: x * 1, lambda x: x * 3),
    ],
    ids=["builtin", "function", "lambda"],
)
def test_a_function_that_the_model_holds_is_compared_by_identity(pair: tuple[Any, Any]) -> None:
    model = Scaled()
    model.function = pair[0]
    call = compiled(model, -torch.ones(2), check="values")
    assert torch.equal(call(-torch.ones(2)), model(-torch.ones(2)))
    model.function = pair[1]
    refused(call, -torch.ones(2), match="self.function")
    model.function = pair[0]
    call(-torch.ones(2))


# -- memory


class Written(nn.Module):
    b: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("b", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b + 0
        x.add_(1)
        return y + self.b * 2


def test_a_written_argument_that_is_a_weight_is_refused() -> None:
    model = Written()
    call = compiled(model, torch.ones(4))
    assert call(torch.ones(4)).tolist() == [0.0] * 4
    refused(call, model.b, match="the model's own weight b")
    refused(call, model.b.view(2, 2).view(4), match="the model's own weight b")
    model.b = torch.ones(4)
    assert call(torch.ones(4)).tolist() == [3.0] * 4
    refused(call, model.b, match="the model's own weight b")


def test_slices_of_one_cache_may_both_be_written() -> None:
    def function(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k.add_(x)
        v.add_(x * 2)
        return k + v

    cache = torch.zeros(2, 3)
    call = compiled(function, torch.ones(3), cache[0], cache[1])
    assert call(torch.ones(3), cache[0], cache[1]).tolist() == [3.0] * 3
    assert cache.tolist() == [[1.0] * 3, [2.0] * 3]
    refused(call, torch.ones(3), cache[0], cache[0], match="an overlap with")
    refused(call, torch.ones(3), cache.view(6)[1:4], cache.view(6)[3:6], match="an overlap with")
    refused(call, cache[1], cache[0], cache[1], match="an overlap with")
    call(cache.view(6)[0:3].clone(), cache.view(6)[0:3], cache.view(6)[3:6])


def test_overlap_compares_bytes() -> None:
    base = torch.zeros(4, 6)
    assert overlap(base, base[1:2, 3:4])
    assert not overlap(base[:2], base[2:])
    assert overlap(base[:, :3], base[:, 3:])  # columns: from first to last byte they do
    assert not overlap(base[0, ::2], base[1])
    assert not overlap(base[:0], base)
    assert not overlap(torch.zeros(3), torch.zeros(3))
    assert not overlap(torch.zeros(3, device="meta"), torch.zeros(3, device="meta"))


def test_a_copy_that_is_a_view_at_size_1() -> None:
    def function(x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous()

    call = compiled(
        function, torch.ones(3, 4), dynamic={"x": {0: "n"}}, sizes={"n": [1]}, uncovered="eager"
    )
    assert call(torch.ones(1, 4)).shape == (4, 1)


# -- kinds of tensors


def plus(x: Tensor) -> Tensor:
    return x + 1


def add(x: Tensor) -> Tensor:
    return x.add_(1)


def test_ordinary_rows_where_expanded_ones_were_captured_are_refused_by_name() -> None:
    x = torch.randn(8).expand(4, 8)
    call = compiled(plus, x)
    assert torch.equal(call(x), plus(x))
    refused(
        call, torch.randn(4, 8), match=r"x: expected the strides \(0, 1\) of an expanded tensor"
    )


def test_negative_and_conjugate_bits_are_resolved() -> None:
    negative = torch.tensor([1 + 2j, 3 + 4j]).conj().imag
    assert negative.is_neg()
    call = intarsia.compile(plus, (torch.ones(4)[::2],), compilers=["inductor"])
    assert call(negative).tolist() == [-1.0, -3.0]
    scalar = compiled(plus, torch.tensor(1.0))
    assert scalar(negative[0]).item() == -1.0
    assert scalar.report.counters["relayout"] == 1
    conjugate = torch.tensor([1 + 2j, 3 + 4j]).conj()
    complex_call = compiled(plus, torch.ones(2, dtype=torch.complex64))
    assert complex_call(conjugate).tolist() == [2 - 2j, 4 - 4j]
    assert complex_call.report.counters["relayout"] == 1


def test_a_written_argument_with_such_a_bit_is_refused() -> None:
    negative = torch.tensor([1 + 2j]).conj().imag
    refused(compiled(add, torch.ones(1)), negative, match="negative")
    conjugate = torch.tensor([1 + 2j]).conj()
    refused(compiled(add, torch.ones(1, dtype=torch.complex64)), conjugate, match="conjugate")


def test_another_layout_is_refused() -> None:
    call = compiled(plus, torch.ones(3, 4))
    refused(
        call,
        torch.ones(3, 4).to_sparse(),
        match="expected layout torch.strided, got torch.sparse_coo",
    )
    refused(call, torch.ones(3, 4).to_sparse_csr(), match="got torch.sparse_csr")


class Named(torch.Tensor):
    """A subclass without anything of its own."""


def test_another_subclass_is_refused() -> None:
    call = compiled(plus, torch.ones(4))
    two = TwoTensor(torch.ones(4), torch.zeros(4))
    refused(call, two, match="x: expected a Tensor, got a TwoTensor")
    refused(call, torch.ones(4).as_subclass(Named), match="got a Named")
    assert call(nn.Parameter(torch.ones(4), requires_grad=False)).tolist() == [2.0] * 4
    with torch.no_grad():
        assert call(nn.Parameter(torch.ones(4))).tolist() == [2.0] * 4
    other = compiled(plus, nn.Parameter(torch.ones(4), requires_grad=False))
    assert other(torch.ones(4)).tolist() == [2.0] * 4


def test_an_example_of_a_subclass_fits_itself() -> None:
    two = TwoTensor(torch.ones(4), torch.zeros(4))
    call = intarsia.compile(plus, (two,), compilers=["eager"])
    assert call(two).a.tolist() == [2.0] * 4
    refused(call, torch.ones(4), match="x: expected a TwoTensor, got a Tensor")


# -- autocast


def test_autocast_is_part_of_the_contract() -> None:
    model = nn.Linear(4, 4).eval()
    x = torch.randn(2, 4)
    call = compiled(model, x)
    assert call(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        refused(call, x, match="autocast")
    with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
        assert call(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        under = compiled(copy.deepcopy(model), x)
        assert under(x).dtype == torch.bfloat16
    refused(under, x, match="autocast")
    with torch.autocast("cpu", torch.float16):
        refused(under, x, match="float16")
