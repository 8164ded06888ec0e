"""Equal pieces share one compilation; pieces that differ in anything a compiler sees never do.

Every model here is a row of parts between splitting ops. The expected number of distinct pieces counts
the compiled ones; the splitting ones run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import models
from tests.checks import no_fallbacks, piece_records, same_as_eager
from tests.models import ATTENTION, DECODER_DYNAMIC, Inputs, Sizes, decoder, decoder_inputs, randn

ops = torch.ops.intarsia_tests
Part = Callable[[Tensor], Tensor]
SPLIT = "intarsia_tests::square"


def chain(*parts: Part) -> Callable[[Tensor], Tensor]:
    """Return a function that runs the parts with a splitting op between each two."""

    def model(x: Tensor) -> Tensor:
        for i, part in enumerate(parts):
            x = part(x) if i == 0 else part(ops.square(x))
        return x

    return model


def rows(s: Sizes, seed: int) -> Inputs:
    """Return one [n, 4] argument."""
    return (randn(s["n"], 4, seed=seed),), {}


def compiled_chain(
    model: Callable[..., Any],
    inputs: Callable[[Sizes, int], Inputs] = rows,
    dynamic: dict[str, dict[int, str]] | None = None,
    sizes: Sequence[Sizes] = ({"n": 6}, {"n": 3}),
    **config: Any,
) -> Any:
    """Compile with the eager compiler at one splitting op, compare with eager, return the result."""
    dynamic = {"x": {0: "n"}} if dynamic is None else dynamic
    config = {"compilers": ["eager"], "split_at": [SPLIT], **config}
    compiled = same_as_eager(model, inputs, sizes, dynamic, scale=4.0, **config)
    assert no_fallbacks(compiled.report)
    return compiled


def part(a: float = 0.5) -> Part:
    """Return a part that is equal to every other with the same number."""
    return lambda x: (x * a).sin() + x.tanh()  # bounded: a row of squares would overflow


DIFFERENT: dict[str, tuple[Part, Part]] = {
    "float": (part(0.75), part(0.25)),
    "float-last-digit": (part(0.1), part(0.1 + 1e-15)),
    "float-against-int": (lambda x: x * 1, lambda x: x * 1.0),
    "int": (lambda x: x + 1, lambda x: x + 2),
    "bool-against-int": (lambda x: torch.add(x, True), lambda x: torch.add(x, 1)),
    "negative-zero": (lambda x: x.sin() * 0.0 + x, lambda x: x.sin() * -0.0 + x),
    "infinity": (lambda x: x.clamp(max=float("inf")), lambda x: x.clamp(min=-float("inf"))),
    "dim": (lambda x: x.softmax(0), lambda x: x.softmax(1)),
    "keyword": (lambda x: x.clamp(min=0.1), lambda x: x.clamp(max=0.1)),
    "op": (lambda x: x.sin() + 1, lambda x: x.cos() + 1),
    "op-attribute": (lambda x: ops.scale(x, 0.5) + 1, lambda x: ops.scale(x, 0.25) + 1),
    "dtype-argument": (
        lambda x: x.to(torch.float64).sum(0).float() + x,
        lambda x: x.to(torch.bfloat16).sum(0).float() + x,
    ),
    "string-argument": (
        lambda x: torch.nn.functional.gelu(x, approximate="none"),
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    ),
    "argument-order": (lambda x: x.sin() - x.cos(), lambda x: x.cos() - x.sin()),
    "wiring": (lambda x: x.sin() * x.cos() + x.sin(), lambda x: x.sin() * x.cos() + x.cos()),
    "slice": (lambda x: x[:, 1:].sum(1, keepdim=True) + x, lambda x: x[:, :3].sum(1, True) + x),
    "ellipsis-against-slice": (lambda x: x[..., 0:1] + x, lambda x: x[:1, ...] + x),
    "in-place": (lambda x: x.sin().add(1), lambda x: x.sin().add_(1)),
    "constant-tensor": (
        lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]),
        lambda x: x * torch.tensor([1.0, 2.0, 3.0, 5.0]),
    ),
    "size-arithmetic": (lambda x: x * x.shape[0], lambda x: x * (x.shape[0] + 1)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_pieces_that_differ_stay_apart(name: str) -> None:
    first, second = DIFFERENT[name]
    middle = compiled_chain(chain(part(), first, second, first, part()))
    # part, first, second, first again, part again
    assert middle.report.pieces == 9
    assert middle.report.compiled_pieces == 5
    keys = [r["key"] for r in piece_records(middle.report)][::2]
    assert keys[0] == keys[4]
    assert keys[1] == keys[3]
    assert keys[1] != keys[2], f"pieces that differ in {name} were merged"
    assert middle.report.distinct == 3
    assert middle.report.compiler_calls == 3


def test_equal_pieces_are_compiled_once() -> None:
    compiled = compiled_chain(chain(*[part() for _ in range(8)]))
    report = compiled.report
    assert (report.pieces, report.compiled_pieces, report.distinct) == (15, 8, 1)
    assert report.compiler_calls == 1


def test_without_dedupe_every_piece_is_compiled() -> None:
    compiled = compiled_chain(chain(*[part() for _ in range(4)]), dedupe=False)
    assert compiled.report.compiler_calls == 4


def test_a_different_input_dtype_stays_apart() -> None:
    def double(x: Tensor) -> Tensor:
        return part()(ops.square(part()(ops.square(x.double()))).float())

    compiled = compiled_chain(double)
    # .double | part on float64, .. | .float and part: the two parts have other dtypes
    assert compiled.report.distinct == compiled.report.compiled_pieces == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pieces_that_differ_only_in_the_dtype_of_an_input_stay_apart(dtype: torch.dtype) -> None:
    def model(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = ops.square(x)
        a = part()(x)
        y = ops.square(y)
        b = part()(y)
        return ops.square(a), ops.square(b)

    compiled = compiled_chain(
        model,
        lambda s, seed: ((randn(s["n"], 4, seed=seed), randn(s["n"], 4, seed=9, dtype=dtype)), {}),
        {"x": {0: "n"}, "y": {0: "n"}},
    )
    assert compiled.report.compiled_pieces == 2
    assert compiled.report.distinct == 2


def test_pieces_that_differ_only_in_the_stride_of_an_input_stay_apart() -> None:
    def model(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # the arguments have strides (4, 1) and (1, n): nothing between changes them
        a = (x * 0.5).sin()
        ops.add_into(x, a)
        b = (y * 0.5).sin()
        ops.add_into(y, b)
        return x, y

    compiled = compiled_chain(
        model,
        lambda s, seed: ((randn(5, 4, seed=seed), randn(4, 5, seed=seed + 1).t()), {}),
        {},
        split_at=["intarsia_tests::add_into"],
    )
    assert compiled.report.compiled_pieces == 2
    assert compiled.report.distinct == 2


def test_pieces_that_differ_only_in_aliasing_stay_apart() -> None:
    def model(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a = ops.square(x)
        view = a.view(-1)
        ops.add_into(a, x)
        a.mul_(2)  # this piece writes to one input and reads another that shares its memory
        first = view + 1
        ops.add_into(y, x)
        b, flat = ops.square(y), ops.square(x.view(-1))
        b.mul_(2)  # the same work on two tensors that share nothing
        second = flat + 1
        return ops.square(first), ops.square(second)

    compiled = compiled_chain(
        model,
        lambda s, seed: ((randn(s["n"], 4, seed=seed), randn(s["n"], 4, seed=seed + 1)), {}),
        {"x": {0: "n"}, "y": {0: "n"}},
        split_at=[SPLIT, "intarsia_tests::add_into"],
    )
    keys = [r["key"] for r in piece_records(compiled.report) if "mul_" in " ".join(r["ops"])]
    assert len(keys) == 2
    assert keys[0] != keys[1]


def test_pieces_that_differ_only_in_which_symbol_they_use_share_a_compilation() -> None:
    def model(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a = part()(ops.square(x))
        b = part()(ops.square(y))
        return ops.square(a), ops.square(b)

    def inputs(s: Sizes, seed: int) -> Inputs:
        return (randn(s["n"], 4, seed=seed), randn(s["m"], 4, seed=seed + 1)), {}

    sizes = [{"n": 6, "m": 5}, {"n": 3, "m": 9}]
    dynamic = {"x": {0: "n"}, "y": {0: "m"}}
    compiled = compiled_chain(model, inputs, dynamic, sizes)
    assert compiled.report.compiled_pieces == 2
    assert compiled.report.distinct == 1, "symbols are renamed by first appearance"


def test_pieces_whose_symbols_have_other_ranges_stay_apart() -> None:
    def model(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a = part()(ops.square(x))
        b = part()(ops.square(y))
        return ops.square(a), ops.square(b)

    def inputs(s: Sizes, seed: int) -> Inputs:
        return (randn(s["n"], 4, seed=seed), randn(s["m"], 4, seed=seed + 1)), {}

    compiled = compiled_chain(
        model,
        inputs,
        {"x": {0: "n"}, "y": {0: "m"}},
        [{"n": 6, "m": 5}, {"n": 3, "m": 9}],
        dynamic_ranges={"n": (2, 8), "m": (2, 64)},
    )
    assert compiled.report.distinct == 2


def test_one_symbol_twice_is_not_two_symbols() -> None:
    def model(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        a = ops.square(x).T @ ops.square(y).sin()  # both [n, 4]
        b = (ops.square(x) @ ops.square(x).T).sum(1, keepdim=True) * 2
        c = (ops.square(x) @ ops.square(z).T).sum(1, keepdim=True) * 2
        return a, b - c

    def inputs(s: Sizes, seed: int) -> Inputs:
        n, m = s["n"], s["m"]
        return tuple(randn(k, 4, seed=seed + i) for i, k in enumerate((n, n, m))), {}

    dynamic = {"x": {0: "n"}, "y": {0: "n"}, "z": {0: "m"}}
    compiled_chain(model, inputs, dynamic, [{"n": 6, "m": 5}, {"n": 3, "m": 9}])


class Layer(nn.Module):
    """A layer whose splitting op takes a constant, and whose own work may take one too."""

    def __init__(self, by: float, own: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.by, self.own = by, own

    def forward(self, x: Tensor) -> Tensor:
        return ops.scale(self.linear(x).tanh() * self.own, self.by) + x


class Layers(nn.Module):
    def __init__(self, constants: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(by, own) for by, own in constants)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def layers(*constants: tuple[float, float]) -> nn.Module:
    """Return layers with random weights."""
    return models.random_(Layers(constants)).eval()


@pytest.mark.parametrize("regional", [True, False])
def test_a_constant_of_the_splitting_op_does_not_keep_other_pieces_apart(regional: bool) -> None:
    model = layers(*[(0.5 + i, 2.0) for i in range(5)])
    report = compiled_chain(model, split_at=["intarsia_tests::scale"], regional=regional).report
    assert (report.pieces, report.compiled_pieces, report.distinct) == (11, 6, 3)


def test_a_constant_of_the_piece_itself_keeps_it_apart() -> None:
    model = layers(*[(0.5, 2.0 + i) for i in range(5)])
    report = compiled_chain(model, split_at=["intarsia_tests::scale"]).report
    assert (report.pieces, report.compiled_pieces, report.distinct) == (11, 6, 6)


def test_weights_do_not_keep_pieces_apart_but_their_metadata_does() -> None:
    model = layers(*[(0.5, 2.0) for _ in range(5)])
    report = compiled_chain(model, split_at=["intarsia_tests::scale"]).report
    assert report.distinct == 3  # first; the residual and the next layer; last
    odd = layers(*[(0.5, 2.0) for _ in range(5)])
    weight = odd.layers[2].linear.weight
    odd.layers[2].linear.weight = nn.Parameter(weight.detach().t().contiguous().t())
    report = compiled_chain(odd, split_at=["intarsia_tests::scale"]).report
    assert report.distinct == 4, "one weight has another stride"


def test_tied_weights_inside_a_piece_stay_apart_from_untied_ones() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = ops.square(self.b(self.a(x).tanh()))
            x = ops.square(self.c(self.c(x).tanh()))
            return ops.square(self.a(self.b(x).tanh()))

    report = compiled_chain(models.random_(Two()).eval()).report
    assert report.compiled_pieces == 3
    assert report.distinct == 2, "c(c(x)) takes one weight, a(b(x)) two"


@pytest.mark.parametrize("constants", ["none", "int", "str", "both"])
@pytest.mark.parametrize("regional", [True, False])
def test_layer_numbers_and_names_in_attention_leave_three_distinct_pieces(
    constants: str, regional: bool
) -> None:
    compiled = same_as_eager(
        decoder(4, hidden=32, constants=constants),
        lambda s, seed: ((), decoder_inputs(s["tokens"], seed)),
        [{"tokens": 7}, {"tokens": 1}, {"tokens": 12}],
        DECODER_DYNAMIC,
        compilers=["eager"],
        split_at=[ATTENTION],
        regional=regional,
    )
    report = compiled.report
    assert (report.pieces, report.compiled_pieces, report.distinct) == (9, 5, 3)
    assert report.compiler_calls == 3


def test_equal_pieces_reach_a_compiler_once(toys: ModuleType) -> None:
    compiled_chain(chain(*[part() for _ in range(6)], part(0.125)), compilers=["recorder"])
    assert len(toys.REQUESTS) == 2
    assert len({request.key for request in toys.REQUESTS}) == 2


def test_the_same_model_gives_the_same_keys_again() -> None:
    def keys(seed: int) -> list[str]:
        torch._dynamo.reset()
        compiled = same_as_eager(
            decoder(2, hidden=32, seed=seed),
            lambda s, seed: ((), decoder_inputs(s["tokens"], seed)),
            [{"tokens": 7}],
            DECODER_DYNAMIC,
            compilers=["eager"],
            split_at=[ATTENTION],
        )
        return [record["key"] for record in piece_records(compiled.report)]

    assert keys(0) == keys(1), "weights are not part of a key"
