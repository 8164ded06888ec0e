"""Greedy decoding of a Hugging Face Llama with a static cache, by static graphs on the null device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import intarsia
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.testing.null_device import NullPlugin
from tests.static_cache import Step, example, greedy, llama

LAYERS, TOKENS = 4, 64


@pytest.mark.parametrize("mode", ["piecewise", "full"])
@pytest.mark.parametrize("door", ["intarsia.compile", "torch.compile"])
def test_64_tokens_equal_eagers(door: str, mode: str) -> None:
    model, plugin = llama(LAYERS), NullPlugin()
    step = Step(model, 1, TOKENS)
    settings: dict[str, Any] = {
        "split_at": ["torch.nn.functional.scaled_dot_product_attention"], "static_graph": mode,
        "static_graph_backend": "null", "compilers": ["eager"], "cache": False,
    }  # fmt: skip
    resolved = load_config(None, environ={}, **settings)
    host = Host(resolved, extra_plugins=[plugin])
    with torch.no_grad():
        expected = greedy(Step(model, 1, TOKENS), TOKENS)
        if door == "intarsia.compile":
            call = intarsia.compile(step, example(), config=resolved, host=host)
            call.record(lambda sizes, key: (example(), {}))
            step.reset()
        else:
            options = {**settings, "host": host}
            call = torch.compile(step, backend="intarsia", fullgraph=True, options=options)
        assert greedy(call, TOKENS) == expected
    count = LAYERS + 1 if mode == "piecewise" else 1
    assert plugin.device.recordings == count
    replayed = TOKENS if door == "intarsia.compile" else TOKENS - 1  # the first call is recorded
    assert plugin.device.replays == count * replayed
