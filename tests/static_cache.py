"""Decoding with a static cache of Hugging Face's `transformers`, a step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

__all__ = ["Step", "example", "greedy", "llama"]


class Step(nn.Module):
    """One decoding step over a static cache of its own, whose tensors are buffers.

    The cache has place for `room` tokens of `batch` sequences, in float32 where the model's weights are.
    """

    def __init__(self, model: Any, batch: int, room: int) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.cache = transformers.StaticCache(config=config, max_cache_len=room)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.cache.early_initialization(batch, heads, size, torch.float32, model.device)
        for i, layer in enumerate(self.cache.layers):
            for name, value in vars(layer).items():
                if isinstance(value, Tensor):
                    self.register_buffer(f"{name}_{i}", value)

    def reset(self) -> None:
        """Empty the cache in place."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return the logits of the last token."""
        output = self.model(
            input_ids=input_ids, position_ids=position_ids, past_key_values=self.cache,
            use_cache=True,
        )  # fmt: skip
        return output.logits[:, -1]


def llama(layers: int) -> Any:
    """Return a small Llama with random weights, always the same."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def example(device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the first token that `greedy` starts from, and its position."""
    return torch.tensor([[7]], device=device), torch.tensor([[0]], device=device)


def greedy(call: Callable[..., Tensor], count: int, device: str = "cpu") -> list[int]:
    """Return the tokens that a step finds likeliest one after the other."""
    token, found = example(device)[0], []
    for position in range(count):
        token = call(token, torch.tensor([[position]], device=device)).argmax(-1, keepdim=True)
        found.append(int(token))
    return found
