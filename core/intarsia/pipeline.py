"""The stages in order: split, route, compile, bind. Both front doors use this."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, evolve, field

from intarsia import torch_compat
from intarsia.boxes_text import describe_box
from intarsia.capture import nodes
from intarsia.capture.conditions import (
    narrowed,
    nearly_fixed,
    predicate,
    refusal,
    text_of,
    violations,
)
from intarsia.capture.graph import Graph, GraphInput
from intarsia.capture.structure import Path
from intarsia.compiling.boxes import PlannedBox, plan_boxes
from intarsia.compiling.indexing import indexable
from intarsia.compiling.routes import RouteChoice, choose, piece_view
from intarsia.compiling.scheduler import Scheduler
from intarsia.compiling.tasks import Outcome, Task, bakes
from intarsia.config import Config, ResolvedConfig
from intarsia.errors import ShapeError
from intarsia.host import Host
from intarsia.interfaces import Box, PassRun, PassSpec, PlatformSpec
from intarsia.passes.plan import PassPlan
from intarsia.passes.totals import PassTotal, check_matches, totals
from intarsia.references import resolve_reference
from intarsia.report.events import EventStream
from intarsia.runtime.bound import BoundBox, PieceFunction, Plan, PlannedPiece, Verification
from intarsia.runtime.source import compile_source, graph_source
from intarsia.runtime.stitch import stitch
from intarsia.runtime.verify import Mismatch
from intarsia.runtime.weights import PlanInput, Recorded, module_of
from intarsia.split.canonical import CanonicalPiece, canonical, written_storages
from intarsia.split.partition import Partition, Piece, check_partition, partition
from intarsia.split.rules import SupportRule, combine, rule_from, unmatched, view_of

Named = Callable[[str], Any]


@define
class SplitGraph:
    """A graph after the split: pieces, canonical forms and the compilers chosen for each."""

    graph: Graph
    partition: Partition
    canonicals: tuple[CanonicalPiece, ...]
    choices: tuple[RouteChoice, ...]
    fixed: Mapping[str, int] = field(factory=dict)

    def called(self) -> list[Piece]:
        """Return the pieces that go to a compiler."""
        return [p for p in self.partition.pieces if self.choices[p.index].compilers]


@define
class Pipeline:
    """One compile: the settings, the plugins, and what is known of the device."""

    resolved: ResolvedConfig
    host: Host
    platform: PlatformSpec
    events: EventStream
    device: int | None
    name: str
    warnings: list[str] = field(factory=list)
    graph_passes: Sequence[PassSpec] = ()
    graph_runs: list[PassRun] = field(factory=list)

    @property
    def config(self) -> Config:
        """The settings in effect."""
        return self.resolved.config

    # -- split

    def split(self, graph: Graph, fixed: Mapping[str, int]) -> SplitGraph:
        """Cut a graph into pieces and choose the compilers of each.

        Raises:
            SplitError, ConfigError, PluginError.
        """
        with self.events.phase("split"):
            view = view_of(graph.module)
            rules = self._rules()
            # A platform's own rules are for every model: that one has nothing to cut is no news.
            chosen = rules if self.config.split_at else rules[len(self.platform.rules) :]
            for text, near in unmatched(chosen, view):
                hint = f"; the graph has {', '.join(near)}" if near else ""
                self._warn(f'split rule "{text}" matches nothing in the graph{hint}')
            made = partition(graph.module, combine([rule for _, rule in rules], view))
            if self._checks():
                check_partition(graph.module, made)
            kinds = dict(zip(made.placeholders, graph.inputs, strict=True))
            canonicals = tuple(canonical(p, graph, kinds) for p in made.pieces)
            choices = tuple(
                self._choice(p, c) for p, c in zip(made.pieces, canonicals, strict=True)
            )
            self._refuse_unused_routes(made, canonicals)
        return SplitGraph(graph, made, canonicals, choices, fixed)

    def _checks(self) -> bool:
        return os.environ.get("INTARSIA_CHECK", "") not in ("", "0")

    def _rules(self) -> list[tuple[str, Any]]:
        def named(word: str) -> Any:
            spec = self.host.split_rule(word)
            return resolve_reference(spec.rule, owner=f'split rule "{word}"')

        config = self.config
        if config.split_by != "fx":  # that compiler cuts its own schedule
            return []
        wanted = config.split_at or tuple(self.platform.rules)
        found = [
            (v if isinstance(v, str) else getattr(v, "__qualname__", repr(v)), v) for v in wanted
        ]
        rules = [(text, rule_from(value, named)) for text, value in found]
        rules += [(word, rule_from(named(word), named)) for word in config.split_rule]
        rules += [(f"support of {n}", self._support(n)) for n in config.split_by_support]
        return rules

    def _support(self, name: str) -> SupportRule:
        spec = self.host.compiler(name)
        if spec.supports is not None:
            return SupportRule(name, resolve_reference(spec.supports, owner=f'compiler "{name}"'))
        from intarsia.compiling.instances import built_for

        return SupportRule(name, built_for(self.host, spec, self.device).compiler.supports)

    def _choice(self, piece: Piece, form: CanonicalPiece) -> RouteChoice:
        return choose(piece, piece_view(piece, form), self.config, self.platform, self.host)

    def _refuse_unused_routes(self, made: Partition, forms: Sequence[CanonicalPiece]) -> None:
        from intarsia.compiling.routes import matches

        views = [piece_view(p, f) for p, f in zip(made.pieces, forms, strict=True)]
        for number, route in enumerate(self.config.routes, 1):
            if not any(matches(route.piece, view) for view in views):
                self._warn(f"route {number} matches no piece")

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self.events.warn(message)

    # -- passes

    def rewritten(self, graph: Graph, passes: PassPlan) -> Graph:
        """Return a captured graph as the passes over whole graphs leave it.

        Raises:
            PassError: in strict mode, where one fails or leaves another function.
        """
        box: Box = {
            n: (s.low, torch_compat.UNBOUNDED if s.high is None else s.high)
            for n, s in graph.symbols.items()
        }
        specs = self.graph_passes = passes.at(box, ("graph",))
        if specs:
            from intarsia.passes.running import run_graph_passes  # who has none need not import it

            with self.events.phase("passes"):
                runs = run_graph_passes(
                    graph.module, specs, passes.setup(), box=box, where=f"{self.name} graph",
                    device_type=self.platform.device_type, device=self.device,
                )  # fmt: skip
            self.graph_runs.extend(runs)
        return graph

    def pass_totals(
        self, parts: Sequence[tuple[PlannedBox, SplitGraph]],
        outcomes: Sequence[Mapping[int, Outcome]], passes: PassPlan,
    ) -> list[PassTotal]:  # fmt: skip
        """Return how often each pass matched, and warn where that is too seldom.

        Raises:
            PassError: one matched too seldom, and `strict` is on.
        """
        found = totals(self.graph_passes, self.graph_runs, {})
        for (planned, _), made in zip(parts, outcomes, strict=True):
            runs = [run for outcome in made.values() for run in outcome.result.passes]
            specs = [spec for spec in passes.at(planned.box) if spec.stage != "graph"]
            found += totals(specs, runs, planned.box)
        for line in check_matches(passes.specs, found, self.config.strict):
            self._warn(line)
        return found

    # -- boxes

    def boxes(
        self, graph: Graph, recapture: Callable[[Mapping[str, int]], Graph] | None
    ) -> list[tuple[PlannedBox, Mapping[str, int]]]:
        """Return the boxes to compile, each with the symbols that its graph is captured at 1 of.

        A box that includes size 1 of a symbol where the graph branches on it is split: size 1 gets a
        capture of its own. Any other condition that a box breaks refuses it.

        Raises:
            ShapeError: a box is not contained in what the graph is valid for.
            ConfigError: config names a symbol that the graph does not have.
        """
        found: list[tuple[PlannedBox, Mapping[str, int]]] = []
        for planned in plan_boxes(self.config, graph.symbols):
            found.extend(self._valid_parts(graph, planned, recapture is not None))
        # What was captured for itself is cut to what that graph can be indexed in, by `fitted`.
        return [(part if fixed else self._indexable(graph, part), fixed) for part, fixed in found]

    def _indexable(self, graph: Graph, planned: PlannedBox) -> PlannedBox:
        return indexable(graph, planned, self.platform.device_type)

    def _valid_parts(
        self, graph: Graph, planned: PlannedBox, can_recapture: bool
    ) -> list[tuple[PlannedBox, Mapping[str, int]]]:
        broken = violations(graph, planned.box)
        if not broken:
            return [(planned, {})]
        ones = [n for n, (low, high) in planned.box.items() if low == 1]
        raised: Box = {n: (2, high) if n in ones else (low, high)
                       for n, (low, high) in planned.box.items()}  # fmt: skip
        splits = [n for n in ones if _breaks_at_one(graph, raised, n)]
        if not can_recapture or not splits:
            return self._narrowed(graph, planned, broken)
        found: list[tuple[PlannedBox, Mapping[str, int]]] = []
        for mask in range(1 << len(splits)):
            fixed = {n: 1 for bit, n in enumerate(splits) if mask >> bit & 1}
            box = {n: _part(n, bounds, splits, fixed) for n, bounds in planned.box.items()}
            if any(low > high for low, high in box.values()):
                continue
            part = evolve(planned, box=box)
            left = [] if fixed else violations(graph, box)
            found.extend([(part, fixed)] if not left else self._narrowed(graph, part, left))
        return found

    def fitted(self, graph: Graph, planned: PlannedBox) -> PlannedBox:
        """Return a box as far as a graph that was captured for it is valid.

        Raises:
            ShapeError: the box was asked for, and the graph is not valid for all of it.
        """
        broken = violations(graph, planned.box)
        fitted = self._narrowed(graph, planned, broken)[0][0] if broken else planned
        return self._indexable(graph, fitted)

    def _narrowed(
        self, graph: Graph, planned: PlannedBox, broken: Sequence[Any]
    ) -> list[tuple[PlannedBox, Mapping[str, int]]]:
        """Return the general box without what the graph is not valid for; refuse one that was asked for.

        Raises:
            ShapeError: the box is not the general one, a condition is about data, or a symbol is left
                with next to no sizes.
        """
        test = predicate(graph, planned.box, broken) if planned.origin == "general" else None
        if test is None:
            raise refusal(graph, planned.box, broken)
        box = narrowed(graph, planned.box, broken)
        first = broken[0]
        fixed = nearly_fixed(graph, planned.box, box, test)
        if fixed is not None:
            raise ShapeError(
                f'the symbol "{fixed}" cannot be dynamic',
                why=f"tracing took a branch that next to no other size takes: "
                f"{text_of(first, graph)} at {first.where}",
                next_step="Leave it out of dynamic, or take the loop or branch over it out of the model.",
                subject=fixed,
            )
        hints = {n: graph.symbols[n].hint for n in box if n in graph.symbols}
        self._warn(
            f"only sizes in {describe_box(box)} that keep the branch of tracing are compiled: "
            f"{text_of(first, graph)} at {first.where}"
            + (f", and {len(broken) - 1} more conditions" if len(broken) > 1 else "")
        )
        return [(evolve(planned, box=box, test=test, hints=hints), {})]

    # -- compile and bind

    def tasks(self, split: SplitGraph, planned: PlannedBox) -> list[Task]:
        """Return the tasks of a split graph for a box."""
        return [
            Task(p, split.canonicals[p.index], planned.box, split.choices[p.index],
                 f"{self.name}.{p.name}", planned.hints, self._weights_to_bake(split, p))
            for p in split.called()
        ]  # fmt: skip

    def _weights_to_bake(self, split: SplitGraph, piece: Piece) -> dict[int, torch.Tensor] | None:
        names = split.choices[piece.index].compilers
        if not any(bakes(self.host.compiler(name)) for name in names):
            return None
        values = {
            n: split.graph.inputs[i].value for i, n in enumerate(split.partition.placeholders)
        }
        found = {i: values.get(n) for i, n in enumerate(piece.inputs)}
        return {i: value for i, value in found.items() if value is not None}

    def plan(
        self, split: SplitGraph, *, arguments: Sequence[Path], roots: Sequence[str],
        symbols: Sequence[str], model: Any, padded: tuple[str, ...] = (),
    ) -> Plan:  # fmt: skip
        """Return the plan of a split graph, ready to be bound for any box."""
        graph = split.graph
        order = {node: i for i, node in enumerate(split.partition.placeholders)}
        pieces = []
        for piece in split.called():
            weights = {
                i: order[n] for i, n in enumerate(piece.inputs)
                if n in order and graph.inputs[order[n]].kind in ("weight", "constant")
            }  # fmt: skip
            signature = split.canonicals[piece.index].signature
            pieces.append(PlannedPiece(piece.index, weights, signature))
        made = stitch(
            graph, split.partition, frozenset(p.index for p in pieces), arguments=arguments,
            roots=roots, symbols=symbols, model=module_of(model), padded=padded,
        )  # fmt: skip
        return Plan(
            plan_inputs(graph),
            tuple(pieces),
            split.fixed,
            made,
            self.name,
            module_of(model),
            tuple(_pinned_arguments(graph)),
        )

    def compile(
        self, parts: Sequence[tuple[PlannedBox, SplitGraph]], scheduler: Scheduler
    ) -> list[Mapping[int, Outcome]]:
        """Compile every piece of every box; returns piece index -> outcome for each box."""
        tasks: list[Task] = []
        spans: list[tuple[int, list[int]]] = []
        for planned, split in parts:
            mine = self.tasks(split, planned)
            spans.append((len(tasks), [t.piece.index for t in mine]))
            tasks.extend(mine)
        distinct = len({t.key(self.config.dedupe) for t in tasks})
        if distinct > self.config.max_tasks_warning:
            boxes = ", ".join(describe_box(p.box) for p, _ in parts[:12])
            self._warn(f"{distinct} (piece, box) tasks are planned, over the boxes {boxes}")
        outcomes = scheduler.run(tasks)
        return [
            {index: outcomes[start + offset] for offset, index in enumerate(indices)}
            for start, indices in spans
        ]

    def packageable(
        self, parts: Sequence[tuple[PlannedBox, SplitGraph]],
        outcomes: Sequence[Mapping[int, Outcome]],
    ) -> list[tuple[Any, Task, str]]:  # fmt: skip
        """Return the distinct pieces whose compiler can make a package of them, and has not yet."""
        found: dict[int, tuple[Any, Task, str]] = {}
        for (planned, split), made in zip(parts, outcomes, strict=True):
            for task in self.tasks(split, planned):
                outcome = made[task.piece.index]
                spec = self.host.compiler(outcome.compiler)
                function = outcome.result.callable
                if (
                    "package" in spec.tiers
                    and outcome.result.tier != "package"
                    and not outcome.baked
                ):
                    found.setdefault(id(function), (function, task, outcome.compiler))
        return list(found.values())

    def bound(
        self, planned: PlannedBox, plan: Plan, outcomes: Mapping[int, Outcome],
        weights: Sequence[Any], split: SplitGraph | None = None,
    ) -> BoundBox:  # fmt: skip
        """Return a plan bound for a box."""
        check = {"values": "always"}.get(self.config.check, self.config.check)
        functions = {index: piece_function(outcome) for index, outcome in outcomes.items()}
        made = BoundBox(planned, plan, functions, check, self.name)
        if self.config.verify and split is not None:
            made.verification = self._verification(split, plan, planned)
        made.bind(weights)
        return made

    def _verification(self, split: SplitGraph, plan: Plan, planned: PlannedBox) -> Verification:
        modules = {p.index: p.module for p in split.partition.pieces}
        indices = [piece.index for piece in plan.pieces]
        mutated = {p.index: p.signature(planned.box).mutated for p in plan.pieces}
        eager = {index: _as_it_is(modules[index]) for index in indices}
        unfilled = {index: nodes.unfilled_results(modules[index].graph) for index in indices}
        left = dict.fromkeys(indices, self.config.verify)
        return Verification(eager, mutated, unfilled, left, self._differs)

    def _differs(self, wrong: Mismatch) -> None:
        self.events.count("quarantine", str(wrong))
        self.events.warn(
            f"{wrong}; it runs eagerly from now on", kind="quarantine", piece=wrong.piece,
            compiler=wrong.compiler, what=wrong.what, error=wrong.error,
        )  # fmt: skip


def _as_it_is(module: torch.fx.GraphModule) -> Callable[..., Any]:
    source, space = graph_source(module, "piece")
    return compile_source(source, "piece", space.values, "eager piece")


def piece_function(outcome: Outcome) -> PieceFunction:
    """Return what runs for a compiled piece."""
    made = outcome.result
    bind = getattr(outcome.instance.compiler, "bind", None)
    return PieceFunction(made.callable, outcome.compiler, bind, outcome.baked or {}, made.artifact,
                         tuple(made.needs), made.note, made.tier, outcome.watch)  # fmt: skip


def written_arguments(graph: Graph) -> list[str]:
    """Return the paths of the arguments whose memory a graph writes to."""
    return _arguments_in(graph, written_storages(graph.module.graph))


def _pinned_arguments(graph: Graph) -> list[str]:
    results: list[torch.fx.Node] = []
    torch.fx.map_arg(graph.module.graph.output_node().args[0], results.append)
    outside = {nodes.storage_of(node) for node in results} - {None}
    return _arguments_in(graph, outside | written_storages(graph.module.graph))


def _arguments_in(graph: Graph, storages: set[Any]) -> list[str]:
    holes = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    return [
        str(entry.path) for hole, entry in zip(holes, graph.inputs, strict=True)
        if entry.kind == "argument" and nodes.storage_of(hole) in storages
    ]  # fmt: skip


def plan_inputs(graph: Graph) -> tuple[PlanInput, ...]:
    """Return the inputs of a graph as a plan keeps them, without the graph."""
    holes = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    return tuple(_plan_input(e, h) for e, h in zip(graph.inputs, holes, strict=True))


def _plan_input(entry: GraphInput, hole: torch.fx.Node) -> PlanInput:
    recorded = None
    if entry.kind in ("weight", "constant"):
        recorded = Recorded.of(nodes.value_of(hole))
    return PlanInput(entry.kind, entry.name, entry.names, entry.source, entry.is_parameter, recorded,
                     entry.value, entry.read)  # fmt: skip


def _breaks_at_one(graph: Graph, raised: Box, name: str) -> bool:
    """Say whether size 1 of a symbol breaks a condition that the sizes from 2 on keep."""
    lowered = {**raised, name: (1, 1)}
    return bool(violations(graph, lowered))


def _part(
    name: str, bounds: tuple[int, int], splits: Sequence[str], fixed: Mapping[str, int]
) -> tuple[int, int]:
    if name not in splits:
        return bounds
    return (1, 1) if name in fixed else (2, bounds[1])
