"""Compiles on a local cluster of processes, and what is left of them for others."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import Client, LocalCluster
from intarsia_dask.executor import DaskExecutor
from intarsia_dask.shelf import Shelf
from intarsia_dask.store import DaskStore

import intarsia

pytestmark = [pytest.mark.contrib, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster of two processes, each of which does two things at a time."""
    with LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
    ) as made:
        yield made


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster, set_as_default=False) as made:
        yield made


MODEL = """
import torch

class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8 + i, 9 + i) for i in range(3))
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sigmoid(layer(x).relu())
        return x
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.nn.Module]:
    """A model of three different compiled pieces, whose module other processes can import."""
    tmp_path.joinpath("fleet_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    made: torch.nn.Module = import_module("fleet_model").Model()
    yield made
    sys.modules.pop("fleet_model")


SETTINGS: dict[str, Any] = {"split_at": ["torch.sigmoid"], "compilers": ["inductor", "eager"]}


def check(made: Any, model: torch.nn.Module) -> None:
    for rows in (1, 3, 9):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(made(x), model(x))


def workers(client: Client) -> list[int]:
    return sorted(client.run(os.getpid).values())


def test_a_cluster_compiles_for_a_fleet(
    client: Client, model: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(client.scheduler.address).replace("tcp://", "dask-scheduler://")
    made = intarsia.compile(
        model, (torch.randn(3, 8),), dynamic={"x": {0: "n"}}, executor=DaskExecutor(client),
        cache=[str(tmp_path / "ours"), url], strict=True, **SETTINGS,
    )  # fmt: skip
    assert made.report.compiler_calls == 3
    check(made, model)
    assert [
        r for r in caplog.records if r.levelno >= logging.WARNING and r.name == "intarsia"
    ] == []
    assert DaskStore(url).list()

    fleet = textwrap.dedent("""
        import json, sys
        sys.path[:0] = [{here!r}]
        import torch, intarsia
        from fleet_model import Model

        model, x = Model(), torch.randn(5, 8)
        made = intarsia.compile(model, (torch.randn(3, 8),), dynamic={{"x": {{0: "n"}}}}, cache={cache!r},
                                strict=True, **{settings!r})
        torch.testing.assert_close(made(x), model(x))
        print(json.dumps([made.report.captures, made.report.compiler_calls, made.report.bundle_reads]))
    """).format(here=str(tmp_path), cache=[str(tmp_path / "theirs"), url], settings=SETTINGS)
    done = subprocess.run(
        [sys.executable, "-c", fleet], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, 0, 1], done.stderr


def test_torch_compile_uses_the_cluster_too(client: Client, model: torch.nn.Module) -> None:
    executor = DaskExecutor(client)
    sent: list[Any] = []
    submit = executor.submit

    def counted(*args: Any, **kwargs: Any) -> Any:
        sent.append(args[0])
        return submit(*args, **kwargs)

    executor.submit = counted  # type: ignore[method-assign]
    options = {**SETTINGS, "executor": executor, "cache": False}
    check(torch.compile(model, backend="intarsia", dynamic=True, options=options), model)
    assert len(sent) >= 3


@pytest.mark.parametrize(
    ("function", "argument", "what"),
    [(os._exit, 3, "exit code 3"), (time.sleep, 600, "longer than 5 s")],
)
def test_what_crashes_or_hangs_leaves_the_workers_as_they_were(
    client: Client, function: Any, argument: Any, what: str
) -> None:
    before = workers(client)
    executor = DaskExecutor(client, deadline=5)
    with pytest.raises(intarsia.CompileFailed, match=what):
        executor.submit(function, argument).result(timeout=120)
    assert workers(client) == before
    assert executor.submit(os.getpid).result(timeout=120) not in before


def test_what_workers_would_make_otherwise_is_compiled_here(
    model: torch.nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None,
        env={"TORCHINDUCTOR_MAX_AUTOTUNE": "1"},
    ) as cluster, Client(cluster, set_as_default=False) as client:  # fmt: skip
        made = intarsia.compile(
            model, (torch.randn(3, 8),), dynamic={"x": {0: "n"}}, executor=DaskExecutor(client),
            cache=False, **SETTINGS,
        )  # fmt: skip
    check(made, model)
    assert any("a worker would make something else" in r.getMessage() for r in caplog.records)


def test_without_workers_it_is_compiled_here(
    model: torch.nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalCluster(n_workers=0, dashboard_address=None) as cluster, Client(
        cluster, set_as_default=False
    ) as client:  # fmt: skip
        made = intarsia.compile(
            model, (torch.randn(3, 8),), dynamic={"x": {0: "n"}}, cache=False,
            executor=DaskExecutor(client, patience=1), **SETTINGS,
        )  # fmt: skip
    check(made, model)
    assert any("Only 0/1 workers arrived" in r.getMessage() for r in caplog.records)


def test_a_full_scheduler_is_told_once_and_the_compile_goes_on(
    model: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalCluster(n_workers=0, dashboard_address=None) as cluster, Client(
        cluster, set_as_default=False
    ) as client:  # fmt: skip
        client.register_plugin(Shelf(limit=100))
        url = cluster.scheduler_address.replace("tcp://", "dask-scheduler://")
        made = intarsia.compile(
            model, (torch.randn(3, 8),), dynamic={"x": {0: "n"}}, cache=[str(tmp_path), url],
            **{**SETTINGS, "compilers": ["eager"]},
        )  # fmt: skip
    check(made, model)
    assert len([r for r in caplog.records if "holds 100 bytes" in r.getMessage()]) == 1


def test_a_scheduler_that_is_not_there_is_a_miss(
    model: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = intarsia.compile(
        model, (torch.randn(3, 8),), dynamic={"x": {0: "n"}}, cache=[str(tmp_path), "dask-scheduler://127.0.0.1:9"],
        **{**SETTINGS, "compilers": ["eager"]},
    )  # fmt: skip
    check(made, model)
    assert any("dask-scheduler://127.0.0.1:9" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize(
    "url", ["dask-scheduler://", "dask-scheduler://host:1/path", "dask-scheduler://host:1?a=b"]
)
def test_a_url_that_is_more_than_a_place_is_refused(url: str) -> None:
    with pytest.raises(intarsia.ConfigError, match="not a host and a port"):
        DaskStore(url)
