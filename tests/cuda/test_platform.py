"""The CUDA platform: what it asks of a device, and which devices it leaves alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

import intarsia
from intarsia.device_ops import AcceleratorOps, device_ops
from intarsia.host import Host
from intarsia_cuda.device import accepts, available, check_driver, check_triton, traits

if not available():
    pytest.skip(available().reason, allow_module_level=True)

pytestmark = pytest.mark.cuda

two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")


def run(code: str) -> str:
    """Run Python code in a new process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_asking_initialises_nothing_and_a_forked_child_can_use_cuda() -> None:
    code = """
        import multiprocessing, torch
        from intarsia.host import Host
        host = Host()
        assert host.availability(host.platform("cuda", usable=False))
        assert host.availability(host.static_graph("cuda", usable=False))
        from intarsia_cuda import driver
        assert driver.version()
        assert not torch.cuda.is_initialized()
        def use():
            print(torch.ones(2, device="cuda").sum().item())
        child = multiprocessing.get_context("fork").Process(target=use)
        child.start(); child.join()
        assert child.exitcode == 0
    """
    assert run(code) == "2.0"


def test_traits_describe_the_device_and_fit_themselves() -> None:
    found = traits(0)
    assert found["capability"] == ".".join(map(str, torch.cuda.get_device_capability(0)))
    assert found["toolkit"] == torch.version.cuda
    assert found["driver"]
    assert int(found["multiprocessors"]) > 0
    assert accepts(found, found)
    assert check_driver()
    assert check_triton()


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_model_on_cuda_is_compiled_for_the_platform_cuda(compiler: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()).cuda().eval()
    x = torch.randn(4, 8, device="cuda")
    compiled = intarsia.compile(model, (x,), compilers=[compiler], cache=False, strict=True)
    assert compiled.report.platform == "cuda"
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


def test_default_device_operations_serve_cuda() -> None:
    ops = device_ops(Host().platform("cuda"), 0)
    assert isinstance(ops, AcceleratorOps)
    begin, end = ops.event(), ops.event()
    x = torch.ones(1 << 20, device="cuda:0")
    with ops.stream() as stream:
        begin.record()
        x.mul_(2)
        end.record()
        assert torch.cuda.current_stream().stream_id == stream.stream_id
    ops.synchronize()
    assert begin.elapsed_time(end) > 0
    assert ops.memory()["allocated"] >= 4 << 20
    assert ops.memory()["free"] > 0
    with ops.guard(0):
        assert torch.cuda.current_device() == 0


COMPILE_FOR_THE_SECOND = """
import torch, intarsia
{first}
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()).to("cuda:1").eval()
x = torch.randn(4, 8, device="cuda:1")
compiled = intarsia.compile(model, (x,), compilers=["eager"], cache=False, strict=True)
compiled(x)
torch.cuda.synchronize(1)
print({shown})
"""


@two_devices
@pytest.mark.parametrize(
    ("first", "shown"),
    [
        ("", "torch.cuda.memory_reserved(0), torch.cuda.memory_reserved(1) > 0"),
        # A context alone takes hundreds of MiB of a device, and asking for free memory would make one.
        (
            "torch.cuda.set_device(1)",
            "int(torch._C._cuda_hasPrimaryContext(0)), torch._C._cuda_hasPrimaryContext(1)",
        ),
    ],
    ids=["memory", "context"],
)
def test_compiling_for_one_device_touches_no_other(first: str, shown: str) -> None:
    assert run(COMPILE_FOR_THE_SECOND.format(first=first, shown=shown)) == "0 True"


@two_devices
def test_recording_on_one_device_leaves_the_memory_of_another() -> None:
    from intarsia_cuda.graphs import CudaGraphs

    ops, backend = AcceleratorOps("cuda", 1), CudaGraphs({}, 1)
    before = torch.cuda.memory_stats(0).get("reserved_bytes.all.current", 0)
    x, stream, pool = torch.ones(1 << 20, device="cuda:1"), ops.stream(), backend.new_pool(1)
    ops.synchronize()
    with stream:
        backend.begin(pool, stream)
        y = x * 2
        recording = backend.end()
    x.fill_(4)
    ops.synchronize()
    recording.replay()  # with device 0 current
    ops.synchronize()
    assert y[0].item() == 8
    backend.measure(recording)
    recording.release()
    assert torch.cuda.memory_stats(0).get("reserved_bytes.all.current", 0) == before
