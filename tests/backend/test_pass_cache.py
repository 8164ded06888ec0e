"""Passes and a vendor's manager of passes are factors of what the cache keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from attrs import evolve
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from intarsia.errors import PassError, PluginError
from intarsia.interfaces import (
    Decision,
    Option,
    PassManagerSpec,
    PassReport,
    PassSpec,
    PlatformSpec,
    Stage,
)
from intarsia.passes.manager import BuiltInManager
from tests.pass_toys import (
    Blocks,
    Plugin,
    X,
    affine,
    aten,
    compiled,
    does,
    fail,
    failures,
    last_through,
    matches,
    replaced,
)

# ----------------------------------------------------------------------------------------------- cache


class Kept:
    """Compiles `Blocks` with one cache, and says what of it was found there."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.settings = {
            "cache": str(root), "workers": 0, "split_at": ["torch.sigmoid"], **settings
        }  # fmt: skip

    def made(self, *plugins: Plugin, model: Any = None, **settings: Any) -> Any:
        return compiled(model or Blocks(), (X,), *plugins, **{**self.settings, **settings})

    def found(self, *plugins: Plugin, **settings: Any) -> str:
        """Say what was found: the "plan", the "piece", or "nothing"."""
        report = self.made(*plugins, **settings).report
        if report.bundle_reads:
            return "plan"
        return "nothing" if report.compiler_calls else "piece"


OPTION = {"level": Option(1, int)}
FIRST = does("a", lambda g: 1, options=OPTION)
SECOND = does("b", lambda g: 1)


def reverse_of(specs: Sequence[PassSpec]) -> list[PassSpec]:
    return list(reversed(specs))


class Reversed(BuiltInManager):
    """Runs passes in the opposite order."""

    level = "1"

    def order(self, specs: Any, stage: Any, box: Any, config: Any) -> Any:
        """Return the passes in the opposite order."""
        return reverse_of(super().order(specs, stage, box, config))

    def factors(self) -> Mapping[str, str]:
        """Return its level."""
        return {"level": self.level}


REVERSED = PassManagerSpec("reversed", lambda: Reversed())

CHANGES: dict[str, tuple[Plugin, dict[str, Any]]] = {
    "version": (Plugin(evolve(FIRST, version="2"), SECOND), {}),
    "uuid": (Plugin(does("a", lambda g: 1, options=OPTION, identity="2"), SECOND), {}),
    "options": (Plugin(FIRST, SECOND), {"options": {"a": {"level": 2}}}),
    "stage": (Plugin(evolve(FIRST, stage="piece"), SECOND), {}),
    "after": (Plugin(evolve(FIRST, after=("b",)), SECOND), {}),
    "before": (Plugin(FIRST, evolve(SECOND, before=("a",))), {}),
    "order in the settings": (Plugin(FIRST, SECOND), {"enable": ["b", "a"]}),
    "one less": (Plugin(FIRST, SECOND), {"enable": ["a"]}),
    "disabled": (Plugin(FIRST, SECOND), {"passes": {"disable": ["a"]}}),
    "limit": (Plugin(FIRST, SECOND), {"passes": {"limit": 1}}),
    "manager": (Plugin(FIRST, SECOND, pass_managers=[REVERSED]), {"pass_manager": "reversed"}),
    "none": (Plugin(FIRST, SECOND), {"enable": []}),
}


def test_what_passes_are_changed_by_misses_alone_and_nothing_changed_hits(tmp_path: Path) -> None:
    kept, plugin = Kept(tmp_path), Plugin(FIRST, SECOND)
    assert kept.found(plugin) == "nothing"
    assert kept.found(plugin) == "plan"
    for what, (changed, settings) in CHANGES.items():
        assert (what, kept.found(changed, **settings)) == (what, "nothing")
        assert (what, kept.found(changed, **settings)) == (what, "plan")
    assert kept.found(plugin) == "plan"


class MoreBlocks(Blocks):
    """Another model that has the pieces of `Blocks`."""

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        return torch.sigmoid(super().forward(x))


def test_pieces_are_found_without_their_plan_and_miss_by_the_same_factors(tmp_path: Path) -> None:
    kept, plugin = Kept(tmp_path), Plugin(FIRST, SECOND)
    assert kept.found(plugin) == "nothing"
    assert kept.found(plugin, model=MoreBlocks()) == "piece"
    for what in ("version", "uuid", "options", "after", "order in the settings", "manager"):
        changed, settings = CHANGES[what]
        found = kept.found(changed, model=MoreBlocks(), **settings)
        assert (what, found) == (what, "nothing")


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_what_is_found_says_how_often_passes_matched(tmp_path: Path, compiler: str) -> None:
    kept = Kept(tmp_path, compilers=[compiler])
    slots = ("inductor-joint",) if compiler == "inductor" else ()
    plugin = Plugin(*(does(s, lambda g: 2, s) for s in ("graph", "piece", "piece-aten", *slots)))
    cold = matches(kept.made(plugin))
    assert cold == {"graph": 2, "piece": 6, "piece-aten": 6, **dict.fromkeys(slots, 6)}
    assert kept.found(plugin) == "plan"
    assert matches(kept.made(plugin)) == cold
    assert kept.found(plugin, model=MoreBlocks()) == "piece"
    again = kept.made(plugin, model=MoreBlocks(), name="again")
    assert matches(again) == cold
    torch.testing.assert_close(again(X), MoreBlocks()(X))


def test_a_pass_without_an_identity_is_never_found(tmp_path: Path) -> None:
    kept, plugin = Kept(tmp_path), Plugin(does("a", lambda g: 1, identity=None))
    assert kept.found(plugin) == "nothing"
    assert kept.found(plugin) == "nothing"


def test_strict_mode_does_not_take_what_was_kept_without_its_pass(tmp_path: Path) -> None:
    kept, plugin = Kept(tmp_path), Plugin(does("fails", fail))
    assert "no such luck" in failures(kept.made(plugin))["fails"]
    for model in (Blocks(), MoreBlocks()):
        with pytest.raises(PassError, match="no such luck"):
            kept.made(plugin, model=model, strict=True)


def test_a_plan_that_was_kept_does_not_hide_a_raised_min_matches(tmp_path: Path) -> None:
    kept, spec = Kept(tmp_path), does("fuse", lambda g: 1, min_matches=3)
    kept.made(Plugin(spec), strict=True)
    with pytest.raises(PassError, match="matched 3 times for {}, not 4 or more"):
        kept.made(Plugin(evolve(spec, min_matches=4)), strict=True)


def test_inductors_own_cache_does_not_skip_a_pass_that_changed(tmp_path: Path) -> None:
    for number in (1, 2):
        plugin = Plugin(does("a", lambda g, n=number: n, "inductor-post-grad-before"))
        made = compiled(
            affine, (X,), plugin, compilers=["inductor"], cache=str(tmp_path / str(number))
        )
        assert matches(made) == {"a": number}


class Users(CustomGraphPass):
    """A pass that the user has put into one of Inductor's slots."""

    ran: list[str]

    def __init__(self, ran: list[str], identity: str = "1") -> None:
        self.ran, self.identity = ran, identity

    def __call__(self, graph: fx.Graph) -> None:
        """Note that it ran."""
        self.ran.append("user")

    def uuid(self) -> str:
        """Return what it is told by."""
        return self.identity


SLOT: Stage = "inductor-post-grad-after"


@pytest.mark.parametrize("place", ["options", "torch"])
def test_a_pass_of_the_users_in_a_slot_runs_first_and_enters_the_key(
    tmp_path: Path, place: str
) -> None:
    ran: list[str] = []
    plugin = Plugin(does("ours", lambda g: ran.append("ours"), SLOT))

    def found(identity: str) -> str:
        users = Users(ran, identity)
        name = "post_grad_custom_post_pass"
        kept = Kept(tmp_path, compilers=["inductor"])
        if place == "options":
            return kept.found(plugin, options={"inductor": {name: users}})
        with inductor_config.patch({name: users}):
            before = inductor_config.save_config()
            how = kept.found(plugin)
            assert inductor_config.save_config() == before
            return how

    assert found("1") == "nothing"
    assert ran == ["user", "ours"]
    assert found("1") == "plan"
    assert found("2") == "nothing"
    assert ran == ["user", "ours"] * 2


# ----------------------------------------------------------------------------------- a vendor's manager


def platforms(manager: str | None) -> list[PlatformSpec]:
    """Return a platform on the CPU of its own, with a manager, and with the passes "a" and "b"."""
    return [
        PlatformSpec(
            name="acme", device_type="cpu", available=lambda: Decision(True), compilers=("eager",),
            passes=("a", "b"), pass_manager=manager,
        )
    ]  # fmt: skip


def test_a_vendors_manager_is_used_for_its_platform_only_and_its_factors_enter_the_key(
    tmp_path: Path,
) -> None:
    ran: list[str] = []
    specs = [does(n, lambda g, n=n: ran.append(n)) for n in "ab"]
    plugin = Plugin(*specs, pass_managers=[REVERSED], platforms=platforms("reversed"))
    kept = Kept(tmp_path, compilers=None)
    made = kept.made(plugin, enable=[], platform="acme")
    assert made.report.platform == "acme"
    assert ran == ["b", "a"]
    assert "level=1" in made.explain()
    ran.clear()
    kept.made(plugin, enable=["a", "b"], platform="cpu")
    assert ran == ["a", "b"]
    assert kept.found(plugin, enable=[], platform="acme") == "plan"

    class Newer(Reversed):
        level = "2"

    newer = PassManagerSpec("reversed", lambda: Newer())
    plugin = Plugin(*specs, pass_managers=[newer], platforms=platforms("reversed"))
    assert kept.found(plugin, enable=[], platform="acme") == "nothing"


def test_the_checks_stay_on_with_a_vendors_manager() -> None:
    good = does("good", replaced(aten.relu.default, aten.relu.default), min_matches=3)
    bad = does("bad", last_through(aten.unsqueeze.default, 0))
    plugin = Plugin(good, bad, pass_managers=[REVERSED])
    made = compiled(affine, (X,), plugin, pass_manager="reversed")
    assert "had the shape" in failures(made)["bad"]
    assert any('"good" matched 1 times' in w for w in made.report.warnings)
    torch.testing.assert_close(made(X), affine(X))
    with pytest.raises(PassError, match="had the shape"):
        compiled(affine, (X,), plugin, pass_manager="reversed", strict=True)


def managed(order: Callable[[list[PassSpec]], Sequence[PassSpec]], **methods: Any) -> Plugin:
    """Return a plugin with the passes "a" and "b" and a manager that is built in but for something."""
    methods["order"] = lambda self, specs, *_: order(list(specs))
    manager = type("Managed", (BuiltInManager,), methods)
    specs = (does("a", lambda g: 1, min_matches=1), does("b", lambda g: 1))
    return Plugin(*specs, pass_managers=[PassManagerSpec("acme", manager)])


STRANGE = does("strange", lambda g: 1)


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (lambda specs: [*specs, STRANGE], "a, b, strange"),
        (lambda specs: [*specs, specs[0]], "a, b, a"),
        (lambda specs: [evolve(specs[0], version="9"), specs[1]], "a, b"),
    ],
)
def test_a_manager_orders_the_passes_that_it_is_given_and_no_others(
    order: Any, answer: str
) -> None:
    with pytest.raises(PluginError, match=f'"acme" gave an order.*asked for a, b.* {answer}'):
        compiled(affine, (X,), managed(order), pass_manager="acme")


def test_a_manager_may_leave_passes_out_but_not_unseen() -> None:
    made = compiled(affine, (X,), managed(lambda specs: specs[1:]), pass_manager="acme")
    assert matches(made) == {"b": 1}
    ran_none = managed(list, run=lambda self, passes, stage, graph, context: PassReport(stage))
    made = compiled(affine, (X,), ran_none, pass_manager="acme")
    assert [w for w in made.report.warnings if '"a" matched 0 times' in w]
    # what it reports does not count, only what the checks have seen
    assert matches(made) == {"a": None}
