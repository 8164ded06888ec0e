"""The CUDA plugin where there is no CUDA: found, not available, and it says why."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import intarsia_cuda
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.references import resolve_reference
from intarsia_cuda.device import accepts, available, check_driver, check_triton

TRAITS = {"capability": "9.0", "multiprocessors": "132", "toolkit": "13.0", "driver": "13.0"}

without_cuda = pytest.mark.skipif(
    torch.version.cuda is not None, reason="this torch is built with CUDA"
)


def test_discovery_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys, intarsia_cuda as c\n"
        "c.intarsia_platforms(), c.intarsia_static_graphs(), c.intarsia_doctor()\n"
        "print([m for m in ('torch', 'triton') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_reference_of_the_plugin_leads_somewhere() -> None:
    platform, graphs = (
        intarsia_cuda.intarsia_platforms()[0],
        intarsia_cuda.intarsia_static_graphs()[0],
    )
    checks = [check.run for check in intarsia_cuda.intarsia_doctor()]
    for reference in (
        platform.available,
        platform.traits,
        platform.accepts,
        graphs.factory,
        *checks,
    ):
        assert callable(resolve_reference(reference))


@without_cuda
def test_platform_and_backend_are_not_available_and_say_why() -> None:
    host = Host(load_config(None), extra_plugins=[intarsia_cuda] if not _installed() else [])
    for spec in (host.platform("cuda", usable=False), host.static_graph("cuda", usable=False)):
        decision = host.availability(spec)
        assert not decision
        assert "without CUDA" in decision.reason
    assert not torch.cuda.is_initialized()


def _installed() -> bool:
    return any(status.name == "cuda" for status in Host().plugins)


@without_cuda
def test_checks_ask_nothing_of_a_machine_without_cuda() -> None:
    assert not available()
    for check in (check_driver, check_triton):
        assert check()
        assert check().reason.startswith("not needed")


def test_rocm_is_not_taken_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "built for ROCm" in available().reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"driver": "13.1"}, ""),
        ({"driver": "12.8"}, "trait driver: built for '13.0', here '12.8'"),
        ({"toolkit": "13.2"}, ""),
        ({"toolkit": "12.9"}, "trait toolkit: built for '13.0', here '12.9'"),
        ({"capability": "10.0"}, "trait capability: built for '9.0', here '10.0'"),
        ({"multiprocessors": "148"}, ""),
        ({"multiprocessors": "60"}, "trait multiprocessors: built for '132', here '60'"),
    ],
)
def test_artifacts_are_accepted_where_they_run(change: dict[str, str], reason: str) -> None:
    decision = accepts(TRAITS, {**TRAITS, **change})
    assert decision.ok is not bool(reason)
    assert decision.reason == reason


def test_driver_versions_are_compared_as_numbers() -> None:
    assert accepts({**TRAITS, "driver": "12.9"}, {**TRAITS, "driver": "12.10"})
    assert not accepts({**TRAITS, "driver": "12.10"}, {**TRAITS, "driver": "12.9"})


def test_backend_has_the_methods_of_the_protocol() -> None:
    from intarsia.interfaces import Recording, StaticGraphBackend
    from intarsia_cuda.graphs import CudaGraphs, CudaRecording

    for protocol, own in ((StaticGraphBackend, CudaGraphs), (Recording, CudaRecording)):
        wanted = {name for name in vars(protocol) if not name.startswith("_")}
        assert wanted <= set(dir(own))
