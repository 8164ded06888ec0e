"""Components named by config: they are built and shown, and what cannot be served is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch

import intarsia
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.interfaces import (
    BoundPass,
    PassContext,
    PassManagerSpec,
    PassReport,
    PassSpec,
    PlatformSpec,
    StaticGraphSpec,
)


class Reversed:
    """A pass manager of a third party."""

    def order(self, specs: Sequence[PassSpec], *_: Any) -> Sequence[PassSpec]:
        """Return the passes in the opposite order."""
        return list(reversed(specs))

    def run(
        self, passes: Sequence[BoundPass], stage: Any, graph: Any, _: PassContext
    ) -> PassReport:
        """Run nothing."""
        return PassReport(stage)

    def factors(self) -> Mapping[str, str]:
        """Return what it is."""
        return {"direction": "backwards"}


class Slots:
    """A static-graph backend of a third party."""

    built: ClassVar[list[int | None]] = []

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.built.append(device)

    def budget(self, device: int | None) -> Mapping[str, int]:
        """Return ten slots."""
        return {"slots": 10}


class Acme:
    """The plugin that brings both."""

    intarsia_api_version = (1, 0)
    __name__ = "acme"

    @staticmethod
    def intarsia_pass_managers() -> list[PassManagerSpec]:
        """Bring the manager."""
        return [PassManagerSpec("acme", Reversed)]

    @staticmethod
    def intarsia_static_graphs() -> list[StaticGraphSpec]:
        """Bring the backend."""
        return [StaticGraphSpec("acme", Slots)]


def compiled(**settings: Any) -> Any:
    """Compile a small model with settings and the plugin."""
    resolved = load_config(None, environ={}, compilers=["eager"], **settings)
    return intarsia.compile(
        torch.nn.Linear(4, 4), args=(torch.randn(2, 4),), config=resolved,
        host=Host(resolved, extra_plugins=[Acme()]),
    )  # fmt: skip


def test_a_named_pass_manager_and_backend_are_built_and_explained() -> None:
    text = compiled(pass_manager="acme", static_graph_backend="acme").explain()
    assert "pass-manager in effect = 'acme'" in text
    assert "direction=backwards" in text
    assert "budget slots 10" in text


def test_models_on_one_device_share_a_backend_and_what_it_counts() -> None:
    for _ in range(2):
        compiled(static_graph_backend="acme")
    assert Slots.built == [None]


@pytest.mark.parametrize("key", ["pass_manager", "static_graph_backend"])
def test_an_unknown_component_is_an_error_with_the_nearest_name(key: str) -> None:
    with pytest.raises(intarsia.ConfigError, match='did you mean "acme"'):
        compiled(**{key: "acmee"})


def test_static_graphs_need_a_backend() -> None:
    with pytest.raises(intarsia.ConfigError, match='platform "cpu" has no static-graph backend'):
        compiled(static_graph="piecewise")


@pytest.mark.parametrize("missing", [{"cache": False}, {"workers": 0, "cache": "somewhere"}])
def test_packages_without_what_they_need_are_refused(missing: Any) -> None:
    with pytest.raises(intarsia.ConfigError, match=r"artifact = .package. .*cannot be served"):
        compiled(artifact="package", **missing)


def test_a_rule_of_the_platform_that_has_nothing_to_cut_is_no_warning() -> None:
    class Cutting:
        intarsia_api_version = (1, 0)
        __name__ = "cutting"

        @staticmethod
        def intarsia_platforms() -> list[PlatformSpec]:
            """Return the CPU, cut at two operations by default."""
            rules = ("torch.sigmoid", "torch.sinh")
            return [PlatformSpec(name="cutting", device_type="cpu", rules=rules)]

    def made(**settings: Any) -> Any:
        config = load_config(None, platform="cutting", compilers=["eager"], **settings)
        host = Host(config, extra_plugins=[Cutting()])
        x = torch.randn(3, 4)
        return intarsia.compile(lambda x: torch.sigmoid(x) + 1, (x,), config=config, host=host)

    assert made().report.pieces == 2
    assert not made().report.warnings
    assert "torch.sinh" in str(made(split_at=["torch.sigmoid", "torch.sinh"]).report.warnings)


def test_a_platform_for_another_device_than_the_models_is_refused() -> None:
    class Elsewhere:
        intarsia_api_version = (1, 0)
        __name__ = "elsewhere"

        @staticmethod
        def intarsia_platforms() -> list[PlatformSpec]:
            """Return a device that no tensor is on."""
            return [PlatformSpec(name="elsewhere", device_type="meta")]

    config = load_config(None, environ={}, platform="elsewhere", compilers=["eager"])
    with pytest.raises(
        intarsia.ConfigError, match='platform = "elsewhere" .code. cannot serve a model on cpu'
    ):
        intarsia.compile(
            torch.nn.Linear(4, 4), (torch.randn(2, 4),), config=config,
            host=Host(config, extra_plugins=[Elsewhere()]),
        )  # fmt: skip
