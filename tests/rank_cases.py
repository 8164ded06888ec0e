"""What the ranks of a test's job run: `python -m tests.rank_cases FOLDER DEVICE CASE...`, under torchrun or
with RANK and WORLD_SIZE set.

Each case compiles on every rank, with something wrong on rank 1. What came of it is written to
FOLDER/RANK.json: "ok" with a digest of the numbers, or the error, and how long it took. A collective after
each case shows that no rank is stuck in one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import intarsia
from tests.models import assert_same
from tests.stores import child, files_of
from tests.tensor_parallel import COLLECTIVES, AsksForRank, part_of, whole
from tests.toys import write_distribution

DYNAMIC = {"ids": {0: "tokens"}}
BOXES = {"boxes": {"tokens": [32]}}
DEADLINE = 60.0
CASES: dict[str, Callable[[Rank], Any]] = {}


class Rank:
    """One rank of the job."""

    def __init__(self, folder: Path, rank: int, size: int, device: str = "cpu") -> None:
        self.folder, self.rank, self.size = folder, rank, size
        self.device = torch.device(device, rank) if device == "cuda" else torch.device(device)
        full = whole()
        self.model = part_of(full, rank, size).to(self.device)
        self.full = full.to(self.device)
        self.ids = self.tokens(7)

    def tokens(self, count: int) -> torch.Tensor:
        made = torch.randint(0, 97, (count,), generator=torch.Generator().manual_seed(count))
        return made.to(self.device)

    def compile(self, **settings: Any) -> Any:
        """Compile this rank's part and call it; the numbers are those of the whole model."""
        chosen: dict[str, Any] = {
            "compilers": ["eager"], "split_at": COLLECTIVES, "cache": self.folder / "cache",
            "exchange": "torch", "exchange_deadline": DEADLINE, **BOXES, **settings,
        }  # fmt: skip
        compiled = intarsia.compile(self.model, (self.ids,), dynamic=DYNAMIC, **chosen)
        for count in (7, 2, 20):
            ids = self.tokens(count)
            with torch.no_grad():
                assert_same(compiled(ids), self.full(ids))
        return compiled

    def torch_compile(self, **settings: Any) -> None:
        """Do the same through the other door."""
        torch._dynamo.reset()
        chosen: dict[str, Any] = {
            "compilers": ["eager"], "split_at": COLLECTIVES, "cache": False, "exchange": "torch",
            "exchange_deadline": DEADLINE, **settings,
        }  # fmt: skip
        compiled = torch.compile(self.model, backend="intarsia", options=chosen)
        with torch.no_grad():
            assert_same(compiled(self.ids), self.full(self.ids))

    @property
    def bad(self) -> bool:
        """Whether this is the rank with which something is wrong."""
        return self.rank == 1


def case(function: Callable[[Rank], Any]) -> Callable[[Rank], Any]:
    CASES[function.__name__] = function
    return function


def told(compiled: Any) -> dict[str, Any]:
    report = compiled.report
    kinds = [p.kind for p in report.piece_reports]
    return {
        "captures": report.captures, "pieces": report.pieces, "distinct": report.distinct,
        "splitting": kinds.count("splitting"), "plan": compiled.manifest()["plan"],
    }  # fmt: skip


@case
def cold(rank: Rank) -> Any:
    return told(rank.compile(cache=rank.folder / "first"))


@case
def warm(rank: Rank) -> Any:
    return told(rank.compile(cache=rank.folder / "first"))


@case
def inside(rank: Rank) -> Any:
    """The collectives are in the pieces."""
    return told(rank.compile(cache=False, split_at=["torch.nn.functional.silu"]))


@case
def inductor(rank: Rank) -> Any:
    return told(rank.compile(cache=rank.folder / "i", compilers=["inductor"], workers=0))


@case
def inductor_inside(rank: Rank) -> Any:
    split = ["torch.nn.functional.silu"]
    return told(rank.compile(cache=False, compilers=["inductor"], split_at=split, workers=0))


@case
def cold_on_one(rank: Rank) -> Any:
    return told(rank.compile(cache=rank.folder / ("other" if rank.bad else "first")))


@case
def corrupt_on_one(rank: Rank) -> Any:
    mine = rank.folder / f"mine-{rank.rank}"
    rank.compile(cache=mine)
    if rank.bad:
        for name in files_of(mine):
            path = mine / name
            data = bytearray(path.read_bytes())
            data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
            path.write_bytes(data)
    return told(rank.compile(cache=mine))


@case
def read_only_on_one(rank: Rank) -> Any:
    blocked = rank.folder / f"blocked-{rank.rank}"
    blocked.write_text("a file where the folder would have to be: also root cannot write below it")
    return told(rank.compile(cache=blocked / "cache" if rank.bad else rank.folder / "first"))


@case
def plugin_missing_on_one(rank: Rank) -> Any:
    if not rank.bad:
        sys.path.append(str(rank.folder / "site"))
    try:
        return told(rank.compile(compilers=["acme"], cache=False))
    finally:
        if not rank.bad:
            sys.path.remove(str(rank.folder / "site"))


@case
def falls_back_on_one(rank: Rank) -> Any:
    sys.path.append(str(rank.folder / "site"))
    import acme_plugin

    acme_plugin.BROKEN = rank.bad
    try:
        return told(rank.compile(compilers=["acme", "eager"], cache=False))
    finally:
        sys.path.remove(str(rank.folder / "site"))


@case
def setting_on_one(rank: Rank) -> Any:
    return told(rank.compile(cache=False, uncovered="error" if rank.bad else "general"))


@case
def late_on_one(rank: Rank) -> Any:
    if rank.bad:
        time.sleep(4)
    return told(rank.compile(exchange_deadline=1.5, cache=False))


@case
def jit(rank: Rank) -> Any:
    rank.torch_compile()


@case
def jit_falls_back_on_one(rank: Rank) -> Any:
    sys.path.append(str(rank.folder / "site"))
    import acme_plugin

    acme_plugin.BROKEN = rank.bad
    try:
        rank.torch_compile(compilers=["acme", "eager"])
    finally:
        sys.path.remove(str(rank.folder / "site"))


@case
def jit_gradients_on_one(rank: Rank) -> Any:
    torch._dynamo.reset()
    options = {"compilers": ["eager"], "cache": False, "exchange": "torch"}
    compiled = torch.compile(rank.model, backend="intarsia", options=options)
    with torch.set_grad_enabled(rank.bad):
        compiled(rank.ids)


@case
def asks_for_rank(rank: Rank) -> Any:
    """The plan of one rank is no plan for another where the rank is a constant in it."""
    model, x = AsksForRank(), torch.arange(3.0)
    if rank.bad:
        dist.barrier()  # rank 0 leaves its plan first
    compiled = intarsia.compile(model, (x,), compilers=["eager"], cache=rank.folder / "asks")
    if not rank.bad:
        dist.barrier()
    torch.testing.assert_close(compiled(x), x * (rank.rank + 2) + rank.size)
    again = intarsia.compile(model, (x,), compilers=["eager"], cache=rank.folder / "asks")
    torch.testing.assert_close(again(x), x * (rank.rank + 2) + rank.size)
    return {"captures": [compiled.report.captures, again.report.captures]}


PLUGIN = """
from intarsia.interfaces import Capabilities, CompilerSpec
from intarsia_eager.adaptor import EagerCompiler
intarsia_api_version = (1, 0)
BROKEN = False
class Acme(EagerCompiler):
    def compile(self, request):
        if BROKEN:
            raise RuntimeError("acme has no licence here")
        return super().compile(request)
def intarsia_compilers():
    return [CompilerSpec("acme", "1", Acme, capabilities=Capabilities(dynamic_shapes=True, workers=False))]
"""


def run(rank: Rank, function: Callable[[Rank], Any]) -> dict[str, Any]:
    begun = time.monotonic()
    try:
        found: dict[str, Any] = {"ok": function(rank)}
    except Exception as error:
        inner: BaseException = error
        while not isinstance(inner, intarsia.IntarsiaError) and inner.__cause__ is not None:
            inner = inner.__cause__
        found = {"error": type(inner).__name__, "text": str(inner)}
    found["seconds"] = time.monotonic() - begun
    value = torch.tensor([float(rank.rank + 1)], device=rank.device)
    dist.all_reduce(value)
    found["sum"] = value.item()
    return found


def main(folder: Path, device: str, names: list[str]) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(
            backend, init_method=f"file://{folder / 'ranks'}", rank=rank, world_size=size
        )
    here = Rank(folder, rank, size, device)
    found = {name: run(here, CASES[name]) for name in names}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
    # After a functional collective torch keeps the group, with its gloo threads, until the interpreter goes,
    # and now and then a process then ends with "terminate called". The cases are over: leave without that.
    sys.stderr.flush()
    os._exit(0)


# ------------------------------------------------------------------------------------------ the test's side


def start(folder: Path, device: str, names: list[str], size: int = 2) -> dict[str, list[Any]]:
    """Run cases in a job; returns case -> what came of it on each rank."""
    prepare(folder)
    ranks = [
        child(
            "import runpy; runpy.run_module('tests.rank_cases', run_name='__main__')",
            folder, device, *names,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        ended = [process.communicate(timeout=200) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, (_, err) in zip(ranks, ended, strict=True):
        assert process.returncode == 0, err[-4000:]
    return results(folder, size)


def prepare(folder: Path) -> None:
    """Write the plugin that some cases load."""
    (folder / "site").mkdir()
    plugin = {"acme_plugin": PLUGIN}
    write_distribution(folder / "site", "intarsia-acme", {"acme": "acme_plugin"}, plugin)


def results(folder: Path, size: int = 2) -> dict[str, list[Any]]:
    """Return case -> what came of it on each rank."""
    each = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    return {name: [found[name] for found in each] for name in each[0]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
