"""`split-by = COMPILER`: a compiler that cuts its own schedule, and the partitions through the stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import fx

import intarsia
from intarsia.config import load_config
from intarsia.errors import CompileRejected
from intarsia.host import Host
from intarsia.interfaces import Capabilities, CompileResult, CompilerSpec, Decision, Option
from intarsia.testing.null_device import NullPlugin
from intarsia_inductor.calls import partitioned


@torch.library.custom_op("partitions::fresh", mutates_args=())
def fresh(x: torch.Tensor) -> torch.Tensor:
    return x * 3 + 1


@fresh.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("partitions::into", mutates_args=("out",))
def into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x * 2)


OPS = ("partitions::fresh", "partitions::into")


class Cut:
    """A graph that is run part by part: the `PartitionedCall` of the compiler below."""

    def __init__(self, parts: Sequence[Any], order: Sequence[Any], names: Any) -> None:
        self.partitions, self.order, self.names = list(parts), order, names
        self.boxed_call = True

    def with_partitions(self, partitions: Sequence[Any]) -> Callable[[list[Any]], Sequence[Any]]:
        return Cut(partitions, self.order, self.names)

    def __call__(self, inputs: list[Any]) -> Sequence[Any]:
        holes, results = self.names
        values = dict(zip(holes, inputs, strict=True))
        inputs.clear()
        for what, takes, gives in self.order:
            given = [values[n] for n in takes]
            made = (self.partitions[what] if isinstance(what, int) else what)(given)
            values.update(zip(gives, made, strict=True))
        return tuple(values[n] for n in results)


class Cutter:
    """A compiler that cuts at the operators it is told."""

    def __init__(self, options: Mapping[str, Any], device: int | None) -> None:
        self.at = tuple(options["partition_at"])

    def compile(self, request: Any) -> CompileResult:
        """Cut the graph, and run its parts with fx."""
        module: fx.GraphModule = request.lower("torch")
        groups: list[tuple[bool, list[fx.Node]]] = []
        for node in module.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            cut = node.op == "call_function" and any(
                str(node.target).startswith(op.replace("::", ".")) for op in self.at
            )
            if cut or not groups or groups[-1][0]:
                groups.append((cut, []))
            groups[-1][1].append(node)
        holes = [n.name for n in module.graph.nodes if n.op == "placeholder"]
        (output,) = (n for n in module.graph.nodes if n.op == "output")
        results = [n.name for n in output.args[0]]
        parts: list[Any] = []
        order: list[Any] = []
        for cut, nodes in groups:
            mine = {n.name for n in nodes}
            takes = list(
                dict.fromkeys(
                    i.name for n in nodes for i in n.all_input_nodes if i.name not in mine
                )
            )
            gives = [
                n.name for n in nodes
                if n.name in results or any(u.name not in mine for u in n.users)
            ]  # fmt: skip
            if not cut:  # as Inductor's do, a partition returns what is read after it
                later = {
                    i.name
                    for g in groups[len(order) + 1 :]
                    for n in g[1]
                    for i in n.all_input_nodes
                }
                gives += [name for name in takes if name in later]
            run = self._part(module, nodes, takes, gives)
            if cut:
                order.append((run, takes, gives))
            else:
                order.append((len(parts), takes, gives))
                parts.append(run)
        return CompileResult(Cut(parts, order, (holes, results)), None, ())

    def _part(self, module: Any, nodes: Any, takes: Any, gives: Any) -> Any:
        graph = fx.Graph()
        known: dict[str, fx.Node] = {n: graph.placeholder(n) for n in takes}
        for node in nodes:
            known[node.name] = graph.node_copy(node, lambda n: known[n.name])
            if node.target is torch.sigmoid:
                known[node.name].target = torch.sigmoid_
        graph.output(tuple(known[n] for n in gives))
        made = fx.GraphModule(module, graph)

        def run(inputs: list[Any]) -> Any:
            values = list(inputs)
            inputs.clear()
            return made(*values)

        return run

    def load(self, *_: Any) -> Any:
        raise CompileRejected("nothing is saved")

    def factors(self) -> None:
        return None

    def supports(self, _: Any) -> Decision:
        return Decision(True)


class CutterPlugin:
    intarsia_api_version = (1, 0)
    __name__ = "cutter"

    def intarsia_compilers(self) -> list[CompilerSpec]:
        """Bring the compiler."""
        able = Capabilities(dynamic_shapes=True, mutation=True, custom_ops=True, workers=False,
                            partitions=("cpu",))  # fmt: skip
        return [CompilerSpec("cutter", "1", Cutter, devices=("cpu",), capabilities=able,
                             options={"partition_at": Option((), tuple)})]  # fmt: skip


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        x = torch.ops.partitions.fresh(self.layers[0](given).relu())
        x = torch.sigmoid(x)  # done in the memory of what the operator returned
        y = self.layers[1](x) + given  # an argument that two partitions read
        out = torch.empty_like(y)
        torch.ops.partitions.into(y, out)
        return self.layers[2](out) * self.calls + x


def make(**settings: Any) -> tuple[Any, Model, NullPlugin]:
    torch.manual_seed(0)
    model, plugin = Model().requires_grad_(False), NullPlugin()
    chosen = {
        "compilers": ["cutter", "eager"], "split_by": "cutter", "split_at": list(OPS),
        "static_graph": "piecewise", "static_graph_backend": "null", "cache": False,
        "boxes": {"n": [1, 16]}, **settings,
    }  # fmt: skip
    resolved = load_config(None, environ={}, **chosen)
    host = Host(resolved, extra_plugins=[plugin, CutterPlugin()])
    compiled = intarsia.compile(
        model, (torch.randn(2, 8),), dynamic={"given": {0: "n"}}, config=resolved, host=host
    )
    return compiled, model, plugin


def record(compiled: Any, *sizes: int) -> Any:
    return compiled.record(lambda s, _: ((torch.randn(s["n"], 8),), {}), sizes={"n": sizes})


def test_each_partition_is_recorded() -> None:
    compiled, model, plugin = make()
    assert compiled.report.pieces == 1
    table = record(compiled, 4, 2)
    assert table.recordings == 6, str(table)
    for n in (2, 4, 3, 4, 2):
        x, before, count = torch.randn(n, 8), plugin.device.replays, model.calls.item()
        result = compiled(x)
        assert model.calls.item() == count + 1
        assert plugin.device.replays == before + (0 if n == 3 else 3)
        model.calls.sub_(1)
        torch.testing.assert_close(result, model(x))
    assert "replay-general" not in compiled.report.counters


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_partition_that_cannot_be_recorded_runs_as_it_is(after: int) -> None:
    compiled, model, plugin = make()
    plugin.device.fail("end", after=after)
    (row,) = record(compiled, 4).rows
    assert (row.status, row.recordings) == ("partly", 2)
    for _ in range(3):
        x = torch.randn(4, 8)
        result = compiled(x)
        model.calls.sub_(1)
        torch.testing.assert_close(result, model(x))


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"split_at": ["torch.sigmoid"]}, "torch.sigmoid"),
        ({"split_at": ["tag:cudagraph_unsafe"]}, "tag:cudagraph_unsafe"),
        ({"split_at": [torch.nn.Linear]}, "Linear"),
        ({"compilers": ["eager"]}, "asks eager first"),
        ({"split_by": "inductor"}, "partitions on cuda"),
        ({"split_by": "eager"}, "partitions on no device"),
        ({"split_by_support": ["eager"]}, "split-by-support"),
        ({"split_by": "cuter"}, "cutter"),
    ],
)
def test_what_a_compiler_cannot_cut_at_is_refused_by_name(settings: Any, shown: str) -> None:
    with pytest.raises(intarsia.ConfigError, match=shown):
        make(**settings)


def test_operators_may_be_named_by_their_objects() -> None:
    ops = torch.ops.partitions
    compiled, _, _ = make(split_at=[ops.fresh, ops.into.default])
    assert record(compiled, 2).recordings == 3


def test_generated_code_keeps_its_partitions() -> None:
    class Runner:  # as Inductor generates it
        def __init__(self, partitions: list[Any]) -> None:
            self.partitions = partitions

        def call(self, args: list[Any]) -> Any:
            return self.partitions[0](args)

    theirs = Runner([lambda args: (args[0] + 1,)])
    call = partitioned(theirs.call)
    del theirs.partitions  # as torch does when the compiled graph is collected
    assert call([torch.ones(1)])[0].item() == 2
    other = call.with_partitions([lambda args: (args[0] * 5,)])  # type: ignore[attr-defined]
    assert other([torch.ones(1)])[0].item() == 5
    assert call([torch.ones(1)])[0].item() == 2
    moved = torch.ones(5)[1:]
    assert call([moved])[0].tolist() == [2, 2, 2, 2]
    with pytest.raises(CompileRejected, match="has not cut"):
        partitioned(Runner([]).call)
