"""Weights that change after compiling: the next call is right, or a typed error names the weight."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intarsia
from tests import models
from tests.checks import compare_call
from tests.models import ATTENTION, DECODER_DYNAMIC, decoder, decoder_inputs, randn, random_

X = {"x": {0: "n"}}


class Net(nn.Module):
    """Two linears around a splitting op, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.sigmoid(self.one(x))) + self.shift


def net() -> Net:
    """Return a net with random weights."""
    made = random_(Net()).eval()
    assert isinstance(made, Net)
    return made


def compiled_net(model: nn.Module, **config: Any) -> Any:
    """Compile cut at the sigmoid, and call it: the first call binds and checks."""
    config = {"compilers": ["eager"], "split_at": ["torch.sigmoid"], **config}
    compiled = intarsia.compile(model, args=(randn(6, 4),), dynamic=X, **config)
    right(compiled, model)
    return compiled


def right(compiled: Any, model: nn.Module) -> None:
    """Compare with the model as it is now, at two sizes."""
    for n in (6, 3):
        compare_call(compiled, model, model, ((randn(n, 4, seed=n),), {}))


def data_copy(model: Net) -> None:
    model.one.weight.data.copy_(randn(4, 4, seed=5))


def data_assigned(model: Net) -> None:
    model.one.weight.data = randn(4, 4, seed=6)


def in_place(model: Net) -> None:
    with torch.no_grad():
        model.two.weight.mul_(-2)
        model.shift.add_(3)


def parameter_replaced(model: Net) -> None:
    model.two.weight = nn.Parameter(randn(4, 4, seed=7))


def buffer_replaced(model: Net) -> None:
    model.shift = randn(4, seed=8)


def module_replaced(model: Net) -> None:
    model.one = random_(nn.Linear(4, 4), seed=9)  # type: ignore[assignment]


def state_loaded(model: Net) -> None:
    model.load_state_dict(random_(Net(), seed=10).state_dict())


def state_assigned(model: Net) -> None:
    model.load_state_dict(random_(Net(), seed=11).state_dict(), assign=True)


CHANGES = (
    data_copy, data_assigned, in_place, parameter_replaced, buffer_replaced, module_replaced,
    state_loaded, state_assigned,
)  # fmt: skip


@pytest.mark.parametrize("check", ["first", "always", "values", "none"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_the_next_call_after_a_change_is_right(change: Callable[[Net], None], check: str) -> None:
    model = net()
    compiled = compiled_net(model, check=check)
    before = compiled(randn(6, 4, seed=1))
    change(model)
    right(compiled, model)
    assert not torch.equal(compiled(randn(6, 4, seed=1)), before), "the change shows"


@pytest.mark.parametrize(
    "change", [parameter_replaced, state_assigned], ids=lambda one: one.__name__
)
def test_a_replaced_weight_reaches_inductor_too(change: Callable[[Net], None]) -> None:
    model = net()
    compiled = compiled_net(model, compilers=["inductor"])
    change(model)
    right(compiled, model)


def test_the_wrapper_loads_state_into_the_model() -> None:
    model = net()
    compiled = compiled_net(model)
    state = random_(Net(), seed=12).state_dict()
    compiled.load_state_dict(state, assign=True)
    assert torch.equal(model.one.weight, state["one.weight"])
    right(compiled, model)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (lambda: nn.Parameter(randn(4, 4).double()), ("dtype", "float32", "float64")),
        (lambda: nn.Parameter(randn(5, 4)), ("shape", "(4, 4)", "(5, 4)")),
        (lambda: nn.Parameter(randn(4, 4).t()), ("stride", "(4, 1)", "(1, 4)")),
    ],
    ids=["dtype", "shape", "stride"],
)
def test_a_weight_of_another_kind_is_refused_by_name(
    weight: Callable[[], nn.Parameter], says: tuple[str, ...]
) -> None:
    model = net()
    compiled = compiled_net(model)
    kept = model.two.weight
    model.two.weight = weight()
    for _ in range(2):  # not only once
        with pytest.raises(intarsia.ContractError, match=r"two\.weight") as caught:
            compiled(randn(6, 4))
        assert all(word in str(caught.value) for word in says)
    model.two.weight = kept
    right(compiled, model)


def test_a_write_that_no_hook_sees_is_noticed_by_rebind() -> None:
    model = net()
    compiled = compiled_net(model)
    model._parameters["unused"] = None
    model.one._parameters["weight"] = nn.Parameter(randn(4, 4, seed=3))
    compiled.rebind()
    right(compiled, model)


def test_a_weight_of_a_module_that_was_put_in_later_is_watched_too() -> None:
    model = net()
    compiled = compiled_net(model)
    module_replaced(model)
    right(compiled, model)
    model.one.weight = nn.Parameter(randn(4, 4, seed=13))
    right(compiled, model)


# ------------------------------------------------------------------- weights that are not the model's own


def called_right(compiled: Any, model: Callable[[Tensor], Tensor]) -> None:
    """Compare at two sizes."""
    for n in (6, 3):
        x = randn(n, 4, seed=n)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))


def compiled_function(function: Any, **config: Any) -> Any:
    """Compile, and call once."""
    name = "input" if isinstance(function, nn.Sequential) else "x"
    compiled = intarsia.compile(
        function, args=(randn(6, 4),), dynamic={name: {0: "n"}}, compilers=["eager"], **config
    )
    called_right(compiled, function)
    return compiled


def test_a_bound_methods_weights_are_those_of_its_module() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def encode(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = Encoder()
    compiled = compiled_function(model.encode)
    model.inner.weight = nn.Parameter(randn(4, 4, seed=1))
    called_right(compiled, model.encode)
    model.inner._parameters["weight"] = nn.Parameter(randn(4, 4, seed=2))
    compiled.rebind()
    called_right(compiled, model.encode)


def test_weights_of_a_module_that_a_function_closes_over_are_watched() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def function(x: Tensor) -> Tensor:
        return inner(x)

    compiled = compiled_function(function)
    inner[1].weight = nn.Parameter(randn(4, 4, seed=1))
    called_right(compiled, function)
    inner[0] = nn.Linear(4, 4)
    called_right(compiled, function)
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    compiled.rebind()
    called_right(compiled, function)


class Plain(nn.Module):
    """A tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


GLOBAL = torch.ones(4)


def uses_global(x: Tensor) -> Tensor:
    """Read a global tensor."""
    return GLOBAL * x


@pytest.mark.parametrize("check", ["first", "values"])
@pytest.mark.parametrize("repeated", [False, True])
def test_a_replaced_plain_tensor_is_read_again(check: str, repeated: bool) -> None:
    model = nn.Sequential(*(Plain() for _ in range(4))) if repeated else Plain()
    compiled = compiled_function(model, check=check)
    (model[2] if repeated else model).scale = randn(4, seed=1)  # type: ignore[index]
    if check == "first":
        compiled.rebind()
    called_right(compiled, model)


def test_a_replaced_global_tensor_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compiled_function(uses_global)
    monkeypatch.setattr(f"{__name__}.GLOBAL", randn(4, seed=1))
    compiled.rebind()
    called_right(compiled, uses_global)


# ---------------------------------------------------------------------------- conversions, without a hook


@pytest.mark.parametrize("check", ["first", "always", "values", "none"])
def test_a_buffer_that_a_conversion_replaced_is_bound_anew(check: str) -> None:
    model = net()
    compiled = compiled_net(model, check=check)
    model.double()
    model.float()
    model.shift.fill_(5)
    right(compiled, model)


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_a_weight_is_never_read_as_another_dtype(compiler: str, called: bool) -> None:
    model = net()
    compiled = intarsia.compile(model, args=(randn(6, 4),), dynamic=X, compilers=[compiler])
    if called:
        right(compiled, model)
    model.two.half()
    with pytest.raises(intarsia.ContractError, match=r"two\.(weight|bias)") as caught:
        compiled(randn(6, 4))
    assert "float16" in str(caught.value)
    model.two.float()
    right(compiled, model)


def test_a_weight_that_torch_has_only_announced_is_not_the_last_word() -> None:
    from torch.nn.modules.module import register_module_parameter_registration_hook

    model = net()
    compiled = compiled_net(model)
    handle = register_module_parameter_registration_hook(lambda *_: right(compiled, model))
    try:
        parameter_replaced(model)
    finally:
        handle.remove()
    right(compiled, model)
    assert not compiled._engine.stale, "and then it is settled"


def test_weights_that_are_replaced_without_a_call_are_not_all_kept() -> None:
    model = net()
    compiled = compiled_net(model)
    for seed in range(5):
        model.one.weight = nn.Parameter(randn(4, 4, seed=seed))
    assert len(compiled._engine._announced) == 1
    right(compiled, model)
    assert not compiled._engine._announced


# ---------------------------------------------------------------------------------------------- tied


def tied() -> Any:
    """Return the zoo's model with one weight under two names."""
    return models.by_name("tied-weights").build()


def compiled_tied(model: Any) -> Any:
    """Compile it, cut in the middle."""
    return intarsia.compile(
        model, args=(models.randint(0, 11, (5,)),), dynamic={"ids": {0: "n"}},
        compilers=["eager"], split_at=[".tanh"],
    )  # fmt: skip


def test_tied_weights_stay_tied() -> None:
    model = tied()
    compiled = compiled_tied(model)
    call = ((models.randint(0, 11, (5,), seed=2),), {})
    compare_call(compiled, model, model, call)
    model.embedding.weight.data.mul_(0.5)
    compare_call(compiled, model, model, call)
    model.head.weight = model.embedding.weight = nn.Parameter(randn(11, 8, seed=4))
    compare_call(compiled, model, model, call)


def test_untying_one_of_two_tied_weights_is_refused_by_both_names() -> None:
    model = tied()
    compiled = compiled_tied(model)
    model.head.weight = nn.Parameter(randn(11, 8, seed=5))
    with pytest.raises(intarsia.ContractError) as caught:
        compiled(models.randint(0, 11, (5,)))
    assert "no longer tied" in str(caught.value)
    assert "embedding.weight" in str(caught.value)
    assert "head.weight" in str(caught.value)


# ---------------------------------------------------------------------------------------------- bind


def test_bind_is_called_for_each_piece_instance_and_again_on_rebind(toys: ModuleType) -> None:
    model = decoder(4, hidden=32)
    compiled = intarsia.compile(
        model, kwargs=decoder_inputs(7), dynamic=DECODER_DYNAMIC, compilers=["binder"],
        split_at=[ATTENTION],
    )  # fmt: skip
    assert compiled.report.distinct == 3
    assert len(toys.REQUESTS) == 3, "equal pieces share one compilation"
    assert len(toys.BINDS) == 5, "but each is bound to its own weights"
    compare_call(compiled, model, model, ((), decoder_inputs(5)))
    assert len(toys.BINDS) == 5
    bound = [{id(weight) for weight in weights.values()} for weights in toys.BINDS]
    norms = {id(layer.mlp_norm.weight) for layer in model.layers}
    assert all(len(norms & one) == 1 for one in bound[1:]), "a layer's own weight in each"
    assert len(set.union(*bound) & norms) == 4

    toys.BINDS.clear()
    compiled.rebind()
    assert len(toys.BINDS) == 5
    toys.BINDS.clear()
    model.layers[2].mlp_norm.weight = nn.Parameter(randn(32, seed=1))
    compare_call(compiled, model, model, ((), decoder_inputs(6)))
    assert len(toys.BINDS) == 5, "a replaced weight binds anew, once"
    compare_call(compiled, model, model, ((), decoder_inputs(6)))
    assert len(toys.BINDS) == 5


def test_bind_is_called_for_every_box(toys: ModuleType) -> None:
    model = net()
    intarsia.compile(
        model, args=(randn(6, 4),), dynamic=X, compilers=["binder"],
        split_at=["torch.sigmoid"], boxes={"n": [8, 16]}, uncovered="error",
    )  # fmt: skip
    assert len(toys.BINDS) == 4
    assert [sorted(one) for one in toys.BINDS] == [sorted(one) for one in toys.BINDS]
    assert {id(w) for one in toys.BINDS for w in one.values()} == {
        id(t) for t in (*model.parameters(), model.shift)
    }


def test_a_model_may_be_collected_while_another_is_traced() -> None:
    from torch.nn.modules import module as hooks

    class Setting(torch.nn.Module):
        """Has tracing look at torch's registration hooks, and note that they are there."""

        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.two = self.one
            return self.two(x)

    x = torch.randn(2, 4)
    gc.collect()
    before = len(hooks._global_module_registration_hooks)
    held = [intarsia.compile(torch.nn.Linear(4, 4), (x,), compilers=["eager"], cache=False)]

    def backend(module: Any, inputs: Any) -> Any:
        held.clear()
        gc.collect()
        return module.forward

    torch.compile(Setting(), backend=backend, fullgraph=True)(x)
    intarsia.compile(torch.nn.Linear(4, 4), (x,), compilers=["eager"], cache=False).close()
    assert len(hooks._global_module_registration_hooks) <= before
