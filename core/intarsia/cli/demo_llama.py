"""The demo with a KV cache: a Llama of random weights generates tokens, one at a time."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import asdict, frozen
from torch import Tensor, nn

import intarsia
from intarsia.cli.demo import Shown
from intarsia.cli.demo_minilm import compiled_text
from intarsia.cli.progress import Progress
from intarsia.cli.table import render_table
from intarsia.cli.timing import Spent, Timing, interleaved, measured
from intarsia.config import ResolvedConfig

__all__ = ["CachedLlama", "generate", "random_llama", "show"]

PROMPTS = (12, 5)
"""Lengths of the prompts: two, so that the prefill graph is seen to take any."""


class CachedLlama(nn.Module):
    """A Llama with its KV cache as buffers, which every call fills further."""

    def __init__(self, layers: int, longest: int, *, seed: int = 0) -> None:
        super().__init__()
        from transformers import StaticCache

        self.llama = random_llama(layers, seed)
        config = self.llama.config
        self._cache = StaticCache(config=config, max_cache_len=longest)
        self._cache.early_initialization(
            1, config.num_key_value_heads, config.head_dim, torch.float32, torch.device("cpu")
        )
        self._layers: list[Any] = list(self._cache.layers)
        for index, layer in enumerate(self._layers):
            self.register_buffer(f"keys_{index}", layer.keys, persistent=False)
            self.register_buffer(f"values_{index}", layer.values, persistent=False)
            self.register_buffer(f"length_{index}", layer.cumulative_length, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Append the tokens to the cache and return the logits after the last of them."""
        result = self.llama(
            input_ids=input_ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        logits: Tensor = result.logits[:, -1]
        return logits

    def forget(self) -> None:
        """Empty the cache."""
        for layer in self._layers:
            for tensor in (layer.keys, layer.values, layer.cumulative_length):
                tensor.zero_()


def random_llama(layers: int, seed: int = 0) -> Any:
    """Return a small Llama whose weights are random and spread wide enough to talk of many things."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.15,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def generate(
    model: CachedLlama, step: Callable[[Tensor], Tensor], prompt: Tensor, count: int
) -> list[int]:
    """Return `count` tokens, each the likeliest after those before it.

    Args:
        model: whose cache is filled.
        step: the model or its compiled form; called with the prompt, then with one token at a time.
        prompt: the tokens to begin with.
        count: how many tokens to make.
    """
    model.forget()
    with torch.no_grad():
        token = step(prompt).argmax(-1, keepdim=True)
        tokens = [int(token)]
        for _ in range(count - 1):
            token = step(token).argmax(-1, keepdim=True)
            tokens.append(int(token))
    return tokens


def prompts() -> list[Tensor]:
    """Return the prompts: random tokens of several lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 512, (1, length), generator=generator) for length in PROMPTS]


def show(options: Namespace, config: ResolvedConfig, told: Progress) -> Shown:
    """Run the demo."""
    told.step("making the model")
    model = CachedLlama(options.layers, max(PROMPTS) + options.tokens)
    with measured() as spent:
        compiled = intarsia.compile(
            model,
            (prompts()[0],),
            dynamic={"input_ids": {1: "tokens"}},
            config=config,
            name="llama",
            on_event=told,
        )
    try:
        told.step("generating")
        runs = [_run(model, compiled, prompt, options.tokens) for prompt in prompts()]
        times = interleaved(
            {
                "eager": lambda: generate(model, model, prompts()[0], options.tokens),
                "intarsia": lambda: generate(model, compiled, prompts()[0], options.tokens),
            },
            seconds=options.seconds,
            tell=lambda done, total: told.step("measuring", done, total),
        )
        return _result(options, runs, times, compiled.report, spent)
    finally:
        compiled.close()


@frozen
class Run:
    """The tokens that eager and the compiled model made of one prompt."""

    prompt: int
    eager: list[int]
    intarsia: list[int]


def _run(model: CachedLlama, compiled: Any, prompt: Tensor, count: int) -> Run:
    expected = generate(model, model, prompt, count)
    return Run(prompt.shape[1], expected, generate(model, compiled, prompt, count))


def _result(
    options: Namespace, runs: Sequence[Run], times: dict[str, Timing], report: Any, spent: Spent
) -> Shown:
    speed = {name: options.tokens / time.wall for name, time in times.items()}
    data = {
        "model": "llama",
        "layers": options.layers,
        "runs": [asdict(run) for run in runs],
        "tokens_per_s": speed,
        "compile_wall_s": spent.wall,
        "compile_cpu_s": spent.cpu,
        "report": report.to_dict(),
    }
    text = "\n".join(
        (
            f"Llama, {options.layers} layers of random weights, {options.tokens} tokens, greedily, "
            "with a KV cache",
            compiled_text(report, spent),
            "",
            render_table(
                ("prompt", "tokens of eager", "compiled"),
                ((run.prompt, _first(run.eager), _agreement(run)) for run in runs),
            ),
            "",
            render_table(
                ("generating", "tokens/s", "of eager"),
                ((name, rate, rate / speed["eager"]) for name, rate in speed.items()),
            ),
        )
    )
    return Shown(all(run.eager == run.intarsia for run in runs), text, data)


def _first(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens[:10])) + (" ..." if len(tokens) > 10 else "")


def _agreement(run: Run) -> str:
    pairs = enumerate(zip(run.eager, run.intarsia, strict=True))
    differs = next((index for index, (one, other) in pairs if one != other), None)
    return "all equal" if differs is None else f"token {differs} differs"
