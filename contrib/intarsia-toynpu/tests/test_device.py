"""The device in torch: what runs eagerly there equals what the host computes, down to the strides."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytestmark = pytest.mark.contrib


def _out(x: Tensor) -> Tensor:
    return torch.add(x, x, out=torch.empty(0, device=x.device))


def _set(x: Tensor) -> Tensor:
    x[1:2, ::2] = 3.0
    return x


def _norm_with_statistics(x: Tensor) -> Tensor:
    mean, var = torch.zeros(6, device=x.device), torch.ones(6, device=x.device)
    return F.batch_norm(x, mean, var, training=True) + mean + var


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda x: x.t(),
    "slice": lambda x: x[1:, ::2],
    "view": lambda x: x.view(2, 12),
    "view as int": lambda x: x.view(torch.int32),
    "view as complex": lambda x: torch.view_as_complex(x.view(4, 3, 2)).abs(),
    "expand": lambda x: x[:1].expand(3, 6) + 1,
    "unfold": lambda x: x.unfold(1, 2, 2),
    "as_strided": lambda x: x[1:].as_strided((2, 3), (1, 2), 7),
    "one row": lambda x: x[:1].t(),
    "no rows": lambda x: x[:0] @ x.t(),
    "cat": lambda x: torch.cat([x, x.flip(0)]),
    "write into a view": lambda x: x[1:].add_(1),
    "write through a view": lambda x: (x.view(2, 12)[0].mul_(2), x)[1],
    "set item": _set,
    "out": _out,
    "resize": lambda x: x.clone().resize_(2, 3),
    "grow": lambda x: x.clone().resize_(5, 7)[0],
    "softmax": lambda x: x.softmax(-1),
    "topk": lambda x: x.topk(2).indices,
    "split": lambda x: x.split(3)[1],
    "nonzero": lambda x: (x > 0).nonzero(),
    "mask": lambda x: x[x > 0],
    "bfloat16": lambda x: (x.bfloat16() @ x.bfloat16().t()).float(),
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "batch norm": _norm_with_statistics,
    "attention": lambda x: F.scaled_dot_product_attention(*(x[None, None],) * 3),
    "convolution": lambda x: F.conv1d(x[None], x[:2, :, None].permute(0, 1, 2)[:, :4]),
    "channels last": lambda x: x.view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_equals_the_hosts(name: str) -> None:
    x = torch.randn(4, 6)
    expected, found = OPERATIONS[name](x.clone()), OPERATIONS[name](x.to("toynpu"))
    assert found.device == torch.device("toynpu", 0)
    assert found.stride() == expected.stride()
    torch.testing.assert_close(found.cpu(), expected)


def test_views_share_the_memory_that_they_are_views_of() -> None:
    x = torch.randn(4, 6).to("toynpu")
    part = x[2:].t()
    assert part.data_ptr() == x.data_ptr() + 2 * 6 * 4
    assert part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    part.zero_()
    assert not x[2:].any()
    assert x[:2].all()


def test_a_tensor_keeps_its_memory_and_gives_it_back() -> None:
    from intarsia_toynpu.memory import MEMORY

    before = MEMORY.allocated
    x = torch.zeros(1000, device="toynpu")
    part = x[500:]
    del x
    assert MEMORY.allocated == before + 4032
    other = torch.ones(1000, device="toynpu")
    assert not part.any()
    del part, other
    assert MEMORY.allocated == before


def test_more_memory_than_there_is_is_an_error_of_torch() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="toynpu is out of memory"):
        torch.empty(1 << 30, dtype=torch.float64, device="toynpu")


def test_a_custom_operation_without_a_kernel_is_an_error() -> None:
    with torch.library._scoped_library("npu_device_tests", "DEF") as library:
        library.define("host_only(Tensor x) -> Tensor")
        library.impl("host_only", lambda x: x + 1, "CPU")
        with pytest.raises(NotImplementedError, match=r"npu_device_tests.host_only.*toynpu"):
            torch.ops.npu_device_tests.host_only(torch.randn(2).to("toynpu"))


def test_tensors_of_two_devices_do_not_mix() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.randn(2).to("toynpu") + torch.randn(2)


def test_what_was_saved_is_loaded_to_the_device() -> None:
    x = torch.randn(3, 4)
    for saved, where in ((x.to("toynpu"), None), (x, "toynpu")):
        file = io.BytesIO()
        torch.save({"x": saved}, file)
        file.seek(0)
        found = torch.load(file, map_location=where)["x"]
        assert found.device.type == "toynpu"
        torch.testing.assert_close(found.cpu(), x, rtol=0, atol=0)


def test_a_model_is_trained_on_the_device() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 6), torch.randn(32, 1)
    steps: list[list[float]] = []
    for device in ("cpu", "toynpu"):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
        model.to(device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
        losses = []
        for _ in range(5):
            optimiser.zero_grad()
            loss = F.mse_loss(model(x.to(device)), y.to(device))
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        steps.append(losses)
    assert steps[0][-1] < steps[0][0]
    assert steps[1] == pytest.approx(steps[0], rel=1e-5)
