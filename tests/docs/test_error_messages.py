"""The example messages on the page of errors are those that really occur."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import intarsia
from intarsia import torch_compat
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.interfaces import Capabilities, CompileResult, CompilerSpec, PassSpec
from intarsia.testing.null_device import NullPlugin

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "errors.md").read_text("utf-8")
SETTINGS: dict[str, Any] = {"compilers": ["eager"], "cache": False, "name": "decoder"}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.up(x))


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 10:
            return x + 1
        return x - 1


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Mixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = x @ x.t()
            x = torch.sigmoid(x)
            return x @ x


class Wrong:
    """A compiler that returns another dtype, or declines, or a pass that does not match."""

    intarsia_api_version = (1, 0)
    __name__ = "acme"

    def intarsia_compilers(self) -> list[CompilerSpec]:
        can = Capabilities(dynamic_shapes=True, light=True)
        return [
            CompilerSpec("acme", "1", lambda options, device: WrongCompiler(), capabilities=can),
            CompilerSpec("picky", "1", lambda options, device: Picky(), capabilities=can),
        ]

    def intarsia_passes(self) -> list[PassSpec]:
        return [PassSpec("acme-fuse", "1", "piece-aten", lambda options: NoMatch(), min_matches=1)]


class WrongCompiler:
    def compile(self, request: Any) -> Any:
        return CompileResult(lambda *inputs: [o.double() for o in request.graph(*inputs)])

    def factors(self) -> None:
        return None


class Picky(WrongCompiler):
    def compile(self, request: Any) -> Any:
        raise intarsia.CompileRejected("it has no instruction for sigmoid")


class NoMatch:
    def __call__(self, graph: Any) -> int:
        return 0

    def uuid(self) -> str:
        return "acme-fuse"


def compiled(
    model: nn.Module, dynamic: bool = True, expect: Any = None, **settings: Any
) -> intarsia.Compiled:
    resolved = load_config(None, environ={}, **{**SETTINGS, **settings})
    sizes = {"x": {0: "tokens"}} if dynamic else None
    host = Host(resolved, extra_plugins=[Wrong()])
    args = (torch.randn(3, 4),)
    return intarsia.compile(model, args, dynamic=sizes, config=resolved, host=host, expect=expect)


def unreadable(folder: Path) -> None:
    folder.joinpath("decoder.bundle").write_bytes(b"no")
    intarsia.load(str(folder / "decoder.bundle"), Small())


def frozen() -> None:
    settings = {"static_graph": "full", "static_graph_backend": "null", "name": "decoder"}
    resolved = load_config(None, environ={}, **settings)
    host = Host(resolved, extra_plugins=[NullPlugin()])
    with torch.no_grad():
        call = intarsia.record(nn.Linear(8, 8), (torch.randn(4, 8),), config=resolved, host=host)
    call.freeze()
    call.record((torch.randn(7, 8),))


def incompatible() -> None:
    plugin = SimpleNamespace(__name__="acme", intarsia_api_version=(2, 0))
    Host(load_config(None, environ={}), extra_plugins=[plugin])


PROVOKED: dict[str, Callable[[Path], object]] = {
    "ConfigError": lambda _: compiled(Small(), compilers=["inductr"]),
    "PluginError": lambda _: incompatible(),
    "CacheError": unreadable,
    "CaptureError": lambda _: compiled(DataDependent()),
    "ShapeError": lambda _: compiled(Branching(), boxes={"tokens": [64]}),
    "SplitError": lambda _: compiled(Mixed(), split_at=["torch.sigmoid"], dynamic=False),
    "CompileFailed": lambda _: compiled(Small(), compilers=["picky"]),
    "ContractError": lambda _: compiled(Small())(torch.randn(3, 4).double()),
    "MetadataError": lambda _: compiled(Small(), compilers=["acme"])(torch.randn(3, 4)),
    "MismatchError": lambda _: compiled(
        Small(), check="values", expect=compiled(Small()).manifest()
    ),
    "RecordError": lambda _: frozen(),
    "PassError": lambda _: compiled(Small(), strict=True, passes={"enable": ["acme-fuse"]}),
}
"""Error -> what raises it. A CompileRejected has the compiler's own words alone."""


def example(error: str) -> str:
    (section,) = re.findall(rf"^## `{error}`$(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    (block,) = re.findall(r"^```text\n(.*?)^```$", section, re.M | re.S)
    return " ".join(block.split())


@pytest.mark.parametrize("error", PROVOKED)
def test_example_of_the_page_occurs(error: str, tmp_path: Path) -> None:
    with pytest.raises(intarsia.IntarsiaError) as caught:
        PROVOKED[error](tmp_path)
    assert type(caught.value).__name__ == error
    said = " ".join(str(caught.value).replace(str(tmp_path), "").split())
    parts = [part.strip() for part in example(error).split("[...]")]
    assert said.startswith(parts[0])
    assert all(part in said for part in parts)


def test_example_of_an_unsupported_torch_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(intarsia.UnsupportedTorchError) as caught:
        torch_compat.require_supported_torch()
    assert str(caught.value) == example("UnsupportedTorchError")


def test_every_error_but_two_has_an_example() -> None:
    shown = {*PROVOKED, "UnsupportedTorchError"}
    names = {name for name in intarsia.errors.__all__ if name[0].isupper()}
    assert names - shown == {"IntarsiaError", "CompileRejected"}
