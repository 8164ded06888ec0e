"""Greedy decoding of a Hugging Face Llama with a static cache, by static graphs on the null device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import intarsia
from intarsia.config import load_config
from intarsia.host import Host
from intarsia.testing.null_device import NullPlugin

LAYERS, TOKENS = 4, 64
EXAMPLE = (torch.tensor([[7]]), torch.tensor([[0]]))


class Step(torch.nn.Module):
    """One decoding step over a static cache of its own, whose tensors are buffers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        self.model = model
        self.cache = transformers.StaticCache(config=config, max_cache_len=TOKENS)
        size = config.hidden_size // config.num_attention_heads
        self.cache.early_initialization(
            1, config.num_key_value_heads, size, torch.float32, torch.device("cpu")
        )
        for i, layer in enumerate(self.cache.layers):
            for name, value in vars(layer).items():
                if isinstance(value, Tensor):
                    self.register_buffer(f"{name}_{i}", value)

    def reset(self) -> None:
        """Empty the cache in place."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()

    def forward(self, ids: Tensor, position: Tensor) -> Tensor:
        """Return the logits of the last token."""
        output = self.model(
            input_ids=ids, position_ids=position, past_key_values=self.cache, use_cache=True
        )
        return output.logits[:, -1]


def greedy(call: Any) -> list[int]:
    token, found = EXAMPLE[0], []
    for position in range(TOKENS):
        token = call(token, torch.tensor([[position]])).argmax(-1, keepdim=True)
        found.append(int(token))
    return found


@pytest.mark.parametrize("mode", ["piecewise", "full"])
@pytest.mark.parametrize("door", ["intarsia.compile", "torch.compile"])
def test_64_tokens_equal_eagers(door: str, mode: str) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    plugin, step = NullPlugin(), Step(model)
    settings: dict[str, Any] = {
        "split_at": ["torch.nn.functional.scaled_dot_product_attention"], "static_graph": mode,
        "static_graph_backend": "null", "compilers": ["eager"], "cache": False,
    }  # fmt: skip
    resolved = load_config(None, environ={}, **settings)
    host = Host(resolved, extra_plugins=[plugin])
    with torch.no_grad():
        expected = greedy(Step(model))
        if door == "intarsia.compile":
            call = intarsia.compile(step, EXAMPLE, config=resolved, host=host)
            call.record(lambda sizes, key: (EXAMPLE, {}))
            step.reset()
        else:
            options = {**settings, "host": host}
            call = torch.compile(step, backend="intarsia", fullgraph=True, options=options)
        assert greedy(call) == expected
    count = LAYERS + 1 if mode == "piecewise" else 1
    assert plugin.device.recordings == count
    replayed = TOKENS if door == "intarsia.compile" else TOKENS - 1  # the first call is recorded
    assert plugin.device.replays == count * replayed
